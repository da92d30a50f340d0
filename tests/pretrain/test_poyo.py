"""POYO computes what the paper says: against a plain padded twin, and by truths about windows, times and units."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pretrain.models.poyo import Poyo, PoyoConfig
from pretrain.nn.attention import attend
from pretrain.nn.rotary import rotate
from pretrain.tasks.regression import Regression, RegressionConfig
from sharding.batch import Batch
from sharding.vocabulary import Vocabulary

_spec = importlib.util.spec_from_file_location("plain_poyo", Path(__file__).with_name("plain_poyo.py"))
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
plain_poyo = _module.plain_poyo

UNITS, SESSIONS = Vocabulary(tuple(f"u{i}" for i in range(12))), Vocabulary(("a", "b", "c"))
SMALL = PoyoConfig(
    width=32,
    depth=2,
    latents_per_step=3,
    cross_heads=2,
    self_heads=2,
    head_width=16,
    attention_dropout=0.0,
    ff_dropout=0.0,
    residual_dropout=0.0,
    embedding_std=0.5,
)


def window(seed: int, spikes: int, queries: int, session: int = 1) -> dict:
    """One window's packed columns: start and end marks for 4 units, then spikes at random times."""
    draw = torch.Generator().manual_seed(seed)
    units = torch.arange(4) + 1 + 4 * (session - 1)
    return {
        "token_time_S": torch.cat((torch.zeros(4), torch.ones(4), torch.rand(spikes, generator=draw))),
        "token_unit_S": torch.cat((units, units, units[torch.randint(4, (spikes,), generator=draw)])),
        "token_kind_S": torch.cat((torch.ones(4), torch.full((4,), 2), torch.zeros(spikes))).long(),
        "token_length_B": torch.tensor([8 + spikes]),
        "query_time_Q": torch.rand(queries, generator=draw).sort().values,
        "query_session_Q": torch.full((queries,), session),
        "query_length_B": torch.tensor([queries]),
        "target_QK": torch.randn(queries, 2, generator=draw),
        "weight_Q": torch.ones(queries),
        "evaluated_Q": torch.ones(queries, dtype=torch.bool),
        "stamp_Q": torch.arange(queries),
        "session_B": torch.tensor([session]),
        "place_B": torch.tensor([session]),
    }


def packed(*windows: dict) -> Batch:
    return Batch(**{key: torch.cat([w[key] for w in windows]) for key in windows[0]}, window_s=1.0)


RAGGED = (window(1, 40, 7), window(2, 0, 3, 2), window(3, 90, 1, 3), window(4, 1, 12, 2))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Poyo(SMALL, UNITS, SESSIONS)


@pytest.mark.parametrize("config", [SMALL, replace(SMALL, local_start=8.0)], ids=["paper start", "local start"])
def test_equals_the_plain_twin_in_outputs_and_gradients(config):
    torch.manual_seed(0)
    model, batch = Poyo(config, UNITS, SESSIONS), packed(*RAGGED)
    direction = torch.randn(23, 32)
    outputs, gradients = [], []
    for run in (lambda: model(batch).feature_QD, lambda: plain_poyo(model, batch)):
        model.zero_grad()
        out = run()
        (out * direction).sum().backward()
        outputs.append(out.detach())
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-5, rtol=1e-5)
    assert gradients[0].keys() == gradients[1].keys()
    for name in gradients[0]:
        scale = gradients[1][name].abs().max().clamp_min(1.0)
        torch.testing.assert_close(
            gradients[0][name] / scale, gradients[1][name] / scale, atol=1e-5, rtol=1e-4, msg=name
        )


def test_a_window_is_decoded_alike_alone_and_in_company(model):
    together = model(packed(*RAGGED)).feature_QD.split([7, 3, 1, 12])
    for alone, one in zip(RAGGED, together):
        torch.testing.assert_close(model(packed(alone)).feature_QD, one, atol=1e-5, rtol=1e-5)


def test_shifting_all_times_together_changes_nothing_but_for_the_latents(model):
    """Attention sees time differences alone: the rotated cross-attention of shifted queries and tokens is unchanged."""
    encoder, rotary = model.encoder, model.rotary
    tokens, queries = torch.rand(30), torch.rand(6)
    (k, v), q = encoder.context(torch.randn(30, 32)), encoder.query(torch.randn(6, 32))
    here = encoder(q, k, v, rotary(queries), rotary(tokens), [6], [30])
    # 0.125 s is 1,250 of the shortest periods: float32 angles there are good to about 1e-3 of a turn.
    there = encoder(q, k, v, rotary(queries + 0.125), rotary(tokens + 0.125), [6], [30])
    torch.testing.assert_close(here, there, atol=2e-2, rtol=0)
    moved = encoder(q, k, v, rotary(queries + 0.3), rotary(tokens), [6], [30])
    assert (here - moved).abs().max() > 5e-2  # while moving the queries alone matters


def test_order_of_tokens_does_not_matter(model):
    one = window(5, 50, 6)
    order = torch.randperm(58, generator=torch.Generator().manual_seed(9))
    shuffled = {**one, **{key: one[key][order] for key in ("token_time_S", "token_unit_S", "token_kind_S")}}
    torch.testing.assert_close(model(packed(one)).feature_QD, model(packed(shuffled)).feature_QD, atol=1e-5, rtol=1e-5)


def test_growing_keeps_old_rows_and_leaves_row_zero_without_gradient(model):
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.grow(UNITS.extended(["new1", "new2"]), SESSIONS.extended(["d"]))
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight[: len(before[name])], before[name], rtol=0, atol=0)
    assert len(model.unit.weight) == 15 and len(model.session.weight) == 5
    assert not model.unit.weight[0].any()
    batch = packed(*RAGGED)
    padding = replace(batch, token_unit_S=torch.zeros_like(batch.token_unit_S))
    model(padding).feature_QD.sum().backward()
    assert not model.unit.weight.grad.any()


def test_presets_have_the_published_sizes():
    """About 1.3 M and 11.8 M parameters; ours count no unit and session embeddings, the published figure does not say."""
    nothing = Vocabulary()
    for config, millions in (
        (PoyoConfig(), 1.3),
        (PoyoConfig(width=128, depth=24, latents_per_step=32, cross_heads=4), 11.8),
    ):
        count = sum(p.numel() for p in Poyo(config, nothing, nothing).parameters())
        assert abs(count / 1e6 - millions) < 0.1


def test_attention_weights_only_the_window_and_gives_zero_without_keys():
    q, k, v = (torch.randn(n, 2, 16, dtype=torch.float64) for n in (5, 7, 7))
    out = attend(q, k, v, [2, 0, 3], [6, 1, 0])
    weights = torch.einsum("qnh,snh->nqs", q[:2], k[:6]).div(4.0).softmax(-1)
    torch.testing.assert_close(out[:2], torch.einsum("nqs,snh->qnh", weights, v[:6]))
    assert not out[2:].any()


def test_local_start_looks_at_its_own_time():
    torch.manual_seed(0)
    model = Poyo(replace(SMALL, head_width=64, local_start=8.0), UNITS, SESSIONS)
    time = torch.linspace(0, 1, 101)
    q = model.encoder.query(model.latent[:1])
    k = model.encoder.context(model.unit.weight[1:2] + model.kind[:1])[0]
    at = rotate(q, model.rotary(torch.tensor([0.5])))
    keys = rotate(k.expand(101, -1, -1), model.rotary(time))
    weight = (torch.einsum("qnh,snh->ns", at, keys) / 8).softmax(-1).mean(0)
    near = weight[(time - 0.5).abs() < 0.1].sum()
    assert near > 0.5  # a uniform glance gives a fifth of a second a fifth of the weight
    assert weight.argmax() in range(48, 53)


def test_calibrated_start_centres_and_scales_what_the_cross_attentions_add():
    torch.manual_seed(0)
    model, batch = Poyo(replace(SMALL, calibrated_start=True), UNITS, SESSIONS), packed(*RAGGED)
    model.start(Regression(RegressionConfig(), 32, 2), [batch])
    for attention in (model.encoder, model.decoder):
        seen = []
        hook = attention.register_forward_hook(lambda _m, _i, out, into=seen: into.append(out))
        model(batch)
        hook.remove()
        torch.testing.assert_close(seen[0].mean(0), torch.zeros(32), atol=1e-4, rtol=0)
        torch.testing.assert_close(seen[0].std(0), torch.ones(32), atol=1e-3, rtol=0)


def test_zero_readout_decodes_nothing_and_learns_the_readout_first():
    """At the start all of the gradient is the readout's: none tells the model to be silent."""
    torch.manual_seed(0)
    batch, task = packed(*RAGGED), Regression(RegressionConfig(), 32, 2)
    model = Poyo(replace(SMALL, zero_readout=True), UNITS, SESSIONS)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    model.start(task, [batch])
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    value = task.readout(model(batch))
    assert not value.any()
    task.loss(value, batch).backward()
    assert task.linear.weight.grad.norm() > 0
    assert all(not weight.grad.any() for weight in model.parameters() if weight.grad is not None)
    plain = Regression(RegressionConfig(), 32, 2)
    Poyo(SMALL, UNITS, SESSIONS).start(plain, [batch])
    assert plain.linear.weight.any()


def test_loss_is_the_weighted_mean_of_the_paper():
    batch = replace(packed(*RAGGED), weight_Q=torch.arange(23).float())
    task, value = Regression(RegressionConfig(), 32, 2), torch.randn(23, 2)
    slow = sum(float(w) * float(((v - t) ** 2).mean()) for w, v, t in zip(batch.weight_Q, value, batch.target_QK))
    assert float(task.loss(value, batch)) == pytest.approx(slow / float(batch.weight_Q.sum()), rel=1e-5)
    nothing = replace(batch, weight_Q=torch.zeros(23))
    assert float(task.loss(value, nothing)) == 0.0


def test_overfits_one_window():
    torch.manual_seed(0)
    batch = packed(window(7, 60, 20))
    model, task = Poyo(SMALL, UNITS, SESSIONS), Regression(RegressionConfig(), 32, 2)
    optimizer = torch.optim.AdamW([*model.parameters(), *task.parameters()], lr=3e-3)
    for _ in range(400):
        loss = task.loss(task.readout(model(batch)), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < 5e-3:
            break
    assert loss.item() / float(batch.target_QK.var(dim=0).mean()) < 0.01  # R2 above .99
