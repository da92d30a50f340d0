"""Anatomy: entropies, ranks, shares and probes of known cases; what is read through hooks is what the model computed."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pretrain.anatomy import cross_probabilities, look, measured_probes, relative_entropy, self_probabilities
from pretrain.diagnose import DiagnoseConfig, diagnose
from pretrain.errors import ConfigError
from pretrain.gradients import Moved, measured_gradients, parts_of
from pretrain.metrics import r2
from pretrain.module import DecodingModule
from pretrain.nn.attention import CrossAttention, SelfAttention
from pretrain.nn.rotary import RotaryTime, rotate
from pretrain.optim import OptimConfig
from pretrain.probe import Rows, effective_rank, moments, probe_r2
from pretrain.stitch import Stitcher
from pretrain.train import chosen_sessions, pretrain, untrained
from pretrain.trainer import TrainerConfig
from sharding.loader import eval_loader, train_loader
from tests.pretrain.conftest import tiny_config, tiny_model
from tests.pretrain.test_train import rows as metrics_of

# ------------------------------------------------------------------------------------------------ numbers of rows


@given(st.integers(1, 12), st.floats(0.1, 100))
def test_equal_directions_are_counted(rank, scale):
    x = np.zeros((24, 15))
    x[:, :rank] = scale * np.vstack([np.eye(12)[:, :rank], -np.eye(12)[:, :rank]])
    assert effective_rank(x + 7) == pytest.approx(rank)


def test_unequal_directions_count_less():
    x = np.array([[3.0, 1], [3, -1], [-3, 1], [-3, -1]])
    assert effective_rank(x) == pytest.approx(math.exp(-(0.9 * math.log(0.9) + 0.1 * math.log(0.1))))
    assert math.isnan(effective_rank(np.ones((4, 2))))


def test_shares_of_a_sum_of_known_parts():
    windows, places = np.meshgrid(np.arange(6), np.arange(4), indexing="ij")
    window, place = windows.ravel(), places.ravel()
    fixed, between = np.array([3.0, -3, 1, -1]), np.array([2.0, -2, 2, -2, 2, -2])
    within = np.where((window + place // 2) % 2, 0.5, -0.5) * np.where(place % 2, 1, -1)
    x = (10 + fixed[place] + between[window] + within)[:, None] * [0.6, 0.8]
    shares, moved = moments(x, place, window)
    total = 100 + 5 + 4 + 0.25
    told = (shares.constant, shares.fixed, shares.windows, shares.times)
    assert told == pytest.approx((100 / total, 5 / total, 4 / total, 0.25 / total))
    assert shares.moved == pytest.approx(4.25 / total)
    assert np.allclose(moved, (between[window] + within)[:, None] * [0.6, 0.8])


def _rows(x, y, count=3):
    """Every row of features is looked at by `count` samples."""
    row = np.repeat(np.arange(len(x)), count)
    return Rows(x, row, y[row], np.ones(len(row)))


def test_a_probe_finds_a_planted_line_and_nothing_in_noise():
    random = np.random.default_rng(0)
    x = random.normal(size=(400, 30)) * 1e-3 + 5  # small beside what is constant
    y = (x - 5) @ random.normal(size=(30, 2)) * 1e3 + 0.3 * random.normal(size=(400, 2))
    assert probe_r2(_rows(x[:300], y[:300]), _rows(x[300:], y[300:])) > 0.95
    noise = random.normal(size=(400, 2))
    assert -0.05 < probe_r2(_rows(x[:300], noise[:300]), _rows(x[300:], noise[300:])) <= 0.05


def test_samples_of_one_row_are_worth_the_same_told_apart():
    random = np.random.default_rng(1)
    x, row = random.normal(size=(40, 3)), random.integers(0, 40, 200)
    y = x[row] @ random.normal(size=(3, 1)) + random.normal(size=(200, 1))
    weight = random.uniform(0, 1, 200)
    together = Rows(x, row, y, weight)
    order = np.argsort(row, kind="stable")
    apart = Rows(x[row[order]], np.arange(200), y[order], weight[order])
    assert probe_r2(together, together, (0.1,)) == pytest.approx(probe_r2(apart, apart, (0.1,)))


def test_samples_without_weight_neither_teach_nor_judge():
    random = np.random.default_rng(2)
    x = random.normal(size=(200, 4))
    y = x @ random.normal(size=(4, 1))
    wild = np.arange(200) % 4 == 0
    spoilt = Rows(x, np.arange(200), np.where(wild[:, None], 1e3, y), (~wild).astype(float))
    assert probe_r2(spoilt, spoilt) > 0.99
    assert math.isnan(probe_r2(replace(spoilt, weight=np.zeros(200)), spoilt))


# ------------------------------------------------------------------------------------------------ attention


def test_entropy_is_1_for_equal_keys_and_0_for_one_that_dominates():
    turn = RotaryTime(8)(torch.zeros(5))
    q, k = torch.randn(3, 2, 8), torch.ones(5, 2, 8)
    (p,) = cross_probabilities(None, q, k, k, turn[:3], turn, [3], [5])
    assert p.shape == (2, 3, 5) and torch.allclose(relative_entropy(p), torch.ones(2, 3))
    q, k[0] = torch.ones(3, 2, 8), 100.0
    (p,) = cross_probabilities(None, q, k, k, turn[:3], turn, [3], [5])
    assert relative_entropy(p).max() < 1e-6


@torch.no_grad()
def test_the_probabilities_are_those_that_make_the_outputs():
    torch.manual_seed(0)
    rotary, lengths, keys = RotaryTime(16), [4, 6], [5, 9]
    q_turn, k_turn = rotary(torch.rand(10)), rotary(torch.rand(14))
    cross, alone = CrossAttention(12, 2, 16, 0.1, rotate_values=True), SelfAttention(12, 3, 16, 0.1)
    for attention in (cross.eval(), alone.eval()):
        for weight in attention.parameters():
            weight.mul_(3)  # away from uniform
    q, (k, v) = cross.query(torch.randn(10, 12)), cross.context(torch.randn(14, 12))
    inputs = (q, k, v, q_turn, k_turn, lengths, keys)
    p = list(cross_probabilities(cross, *inputs))
    out = torch.cat([torch.einsum("nqk,knh->qnh", a, b) for a, b in zip(p, rotate(v, k_turn).split(keys))])
    expected = cross.to_out(rotate(out, q_turn, back=True).flatten(-2))
    assert torch.allclose(cross(*inputs), expected, atol=1e-5)
    assert relative_entropy(p[0]).mean() < 0.95
    x = torch.randn(10, 12)
    p = list(self_probabilities(alone, x, q_turn, lengths))
    v = rotate(alone.to_qkv(alone.norm(x)).unflatten(-1, (3, 3, -1))[:, 2], q_turn)
    out = torch.cat([torch.einsum("nqk,knh->qnh", a, b) for a, b in zip(p, v.split(lengths))])
    expected = alone.to_out(rotate(out, q_turn, back=True).flatten(-2))
    assert torch.allclose(alone(x, q_turn, lengths), expected, atol=1e-5)


# ------------------------------------------------------------------------------------------------ a model


@pytest.fixture(scope="module")
def opened(shards, tmp_path_factory):
    """A fresh module on session a, with its index, its sampling and config."""
    config = tiny_config(shards, tmp_path_factory.mktemp("none"), sessions=["tiny/a"], model=tiny_model(depth=2))
    index = chosen_sessions(config.shards, config.sessions)
    model, task, sampling = untrained(config.model, config.task, 1.0, index, config)
    return DecodingModule(model, task, config.optim, 8, 42), index, sampling, config


def test_a_look_sees_what_the_model_decodes_and_leaves_it_as_it_was(opened):
    module, index, sampling, config = opened
    batches = list(eval_loader(index, sampling, config.loader, "valid", 1.0))
    module.train()
    seen = look(module, batches, Stitcher(sampling.sessions, sampling.statistics))
    assert module.training and not any(part._forward_hooks for part in module.modules())
    module.eval()
    with torch.no_grad():
        feature = np.concatenate([module.model(batch).feature_QD.numpy() for batch in batches])
        value = np.concatenate([module(batch).numpy() for batch in batches])
    assert np.array_equal(np.concatenate(seen.query["decoder"]), feature)
    stamp, first = np.unique(np.concatenate([batch.stamp_Q.numpy() for batch in batches]), return_index=True)
    target = np.concatenate([batch.target_QK.numpy() for batch in batches])
    assert len(stamp) == len(target) and seen.r2 == pytest.approx(r2(target, value), abs=1e-5)
    assert list(seen.latent) == ["encoder attention", "encoder", "layer 1", "layer 2"]
    assert seen.latent["layer 2"][0].shape == (4, 8, 2, 16)


def test_a_uniform_attention_spans_the_mean_distance(opened):
    module, index, sampling, config = opened
    batch = next(iter(eval_loader(index, sampling, config.loader, "valid", 1.0)))
    told = {(block, quantity): value for block, quantity, value in look(module, [batch]).measured_attention()}
    assert [block for block, quantity in told if quantity == "attention entropy"] == [
        "encoder",
        "layer 1",
        "layer 2",
        "decoder",
    ]
    latent = (np.arange(8) + 0.5) / 8
    mean = np.abs(batch.query_time_Q.numpy()[:, None] - latent).mean()
    assert told["decoder", "attention span if uniform (s)"] == pytest.approx(mean, abs=1e-6)
    assert told["decoder", "attention entropy"] > 0.99  # fresh weights choose hardly anything
    assert told["decoder", "attention span (s)"] == pytest.approx(mean, abs=0.02)
    assert told["layer 1", "attention span if uniform (s)"] == pytest.approx(2 / 8 * 63 / 48, abs=1e-6)


def test_a_local_start_shows_in_entropy_and_span(opened):
    module, index, sampling, config = opened
    local = tiny_model(local_start=8.0, head_width=64)
    model, task, _ = untrained(local, config.task, 1.0, index, config)
    started = DecodingModule(model, task, config.optim, 8, 42)
    batch = next(iter(eval_loader(index, sampling, config.loader, "valid", 1.0)))
    told = {(block, quantity): value for block, quantity, value in look(started, [batch]).measured_attention()}
    assert told["encoder", "attention entropy"] < 0.9
    assert told["encoder", "attention span (s)"] < 0.6 * told["encoder", "attention span if uniform (s)"]


def test_rows_for_a_probe_are_those_of_the_nearest_step(opened):
    module, index, sampling, config = opened
    batches = list(eval_loader(index, sampling, config.loader, "train", 1.0))
    seen = look(module, batches, attention=False)
    assert not seen.attended
    rows = seen.rows("layer 1", judged=False)
    time = np.concatenate([batch.query_time_Q for batch in batches])
    nearest = np.abs(time[:, None] - (np.arange(8) + 0.5) / 8).argmin(axis=1)
    tie = np.isclose(time * 8 % 1, 0)  # on the edge between two steps
    length = np.concatenate([batch.query_length_B for batch in batches])
    window = np.repeat(np.arange(len(length)), length)
    assert (rows.row == window * 8 + nearest)[~tie].all()
    z = np.concatenate(seen.latent["layer 1"])
    assert rows.feature.shape == (len(z) * 8, 32) and np.array_equal(rows.feature[11], z[1, 3].ravel())
    told = measured_probes(seen, seen)
    assert [block for block, *_ in told][-2:] == ["decoder attention", "decoder"]
    assert max(value for *_, value in told) > 0.1  # on its own windows a line finds something


def test_every_weight_belongs_to_a_part_and_to_one_place_of_its_attention(opened):
    module = opened[0]
    parts = parts_of(module)
    whole = [weight for name, part in parts.items() if ", " not in name for weight, _ in part]
    named = {id(weight) for weight in whole}
    assert len(named) == len(whole)
    left = {name for name, weight in module.named_parameters() if id(weight) not in named}
    assert left == {"model.kind"}
    where, what = parts["layer 2, where"], parts["layer 2, what"]
    rows = [len(weight[rows]) for weight, rows in where + what if weight.shape[0] == 48]
    assert rows == [32, 16]


def test_gradients_of_one_batch_agree_and_opposed_ones_do_not(opened):
    module, index, sampling, config = opened
    [batch] = train_loader(index, sampling, config.loader, seed=1, total_batches=1)
    parts = {name: part for name, part in parts_of(module).items() if name in ("encoder", "readout")}
    module.eval()

    def told(signs):
        rows = measured_gradients(lambda i, batch: signs[i] * module.losses(batch)[0], parts, [batch] * len(signs))
        return {(block, quantity): value for block, quantity, value in rows}

    alike, opposed = told([1, 1]), told([1, -1])
    module.zero_grad()
    module.losses(batch)[0].backward()
    norm = float(torch.cat([weight.grad.flatten() for weight in module.task.parameters()]).norm())
    assert alike["readout", "gradient norm"] == pytest.approx(norm, rel=1e-5)
    assert alike["encoder", "gradient agreement"] == pytest.approx(1, rel=1e-5)
    assert opposed["encoder", "gradient agreement"] == pytest.approx(-1, rel=1e-5)
    assert math.isnan(told([1])["encoder", "gradient agreement"])


def test_an_update_is_measured_against_the_weights_before_it():
    weight = torch.nn.Parameter(torch.tensor([[3.0, 4.0], [1.0, 1.0], [0.0, 0.0]]))
    moved = Moved({"first": [(weight, slice(0, 1))], "all": [(weight, slice(None))], "none": [(weight, slice(2, 3))]})
    with torch.no_grad():
        weight[0] += torch.tensor([0.3, 0.4])
        weight[2] += 1e-3
    told = {block: value for block, _, value in moved.measured()}
    assert told["first"] == pytest.approx(0.1) and math.isnan(told["none"])
    assert told["all"] == pytest.approx((0.25 + 2e-6) ** 0.5 / 27**0.5)


# ------------------------------------------------------------------------------------------------ the loop


@pytest.mark.parametrize(
    "optim", [OptimConfig(name="lamb", lr=2e-2, clip_norm=0.5), OptimConfig(lr=5e-3, warmup_steps=3, hold=0.3)]
)
def test_the_losses_are_those_of_a_pretraining(shards, tmp_path, optim):
    trainer = TrainerConfig(steps=7, val_every=7, save_every=7, log_every=1, device="cpu", threads=1)
    settings = {"optim": optim, "trainer": trainer, "model": tiny_model(local_start=4.0, calibrated_start=True)}
    config = tiny_config(shards, tmp_path / "run", **settings)
    expected = [float(row["train/loss"]) for row in metrics_of(pretrain(config)) if row["train/loss"]]
    looks = DiagnoseConfig(steps=[0, 4, 6], train_windows=8, valid_windows=8, gradient_batches=2)
    heard = []
    found = diagnose(config, looks, lambda step, measured: heard.append((step, len(measured))))
    assert found.losses == pytest.approx(expected, abs=2e-6) and len(expected) == 7
    assert found.steps == [0, 4, 6] == [step for step, _ in heard]
    assert sum(count for _, count in heard) == len(found.rows)
    assert all(np.isfinite(value) for *_, value in found.rows)


def test_what_cannot_be_diagnosed_is_refused(shards, tmp_path):
    with pytest.raises(ConfigError, match="diagnose.steps"):
        DiagnoseConfig(steps=[])
    with pytest.raises(ConfigError, match="diagnose.train_windows: is 0"):
        DiagnoseConfig(train_windows=0)
    config = tiny_config(shards, tmp_path)
    with pytest.raises(ConfigError, match="trainer.precision: is bf16-mixed"):
        diagnose(replace(config, trainer=replace(config.trainer, precision="bf16-mixed")), DiagnoseConfig())
