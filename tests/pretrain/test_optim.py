"""LAMB against a slow reference, the rows it must leave alone, its collapse and the cure, and the schedule's knee."""

import math

import numpy as np
import pytest
import torch

from pretrain.errors import ConfigError
from pretrain.optim import Lamb, OptimConfig, Shards, build_optimizer, lr_factor


def slow_lamb(weight, grads, lr, decay, eps=1e-6, sparse=False):
    """Three nested loops of the definition, float64."""
    m, v = np.zeros_like(weight), np.zeros_like(weight)
    for g in grads:
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        step = np.zeros_like(weight)
        for row in range(len(weight)):
            if sparse and not g[row].any():
                m[row] = v[row] = 0
                continue
            for col in range(weight.shape[1]):
                step[row, col] = m[row, col] / (math.sqrt(v[row, col]) + eps) + decay * weight[row, col]
        norm_w, norm_s = min(np.linalg.norm(weight), 10.0), np.linalg.norm(step)
        trust = norm_w / norm_s if norm_w > 0 and norm_s > 0 else 1.0
        weight = weight - lr * trust * step
    return weight


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("size", [0.0, 0.5, 30.0])  # no weight, a usual one, one whose norm is clipped to 10
def test_lamb_follows_its_definition(sparse, size):
    rng = np.random.default_rng(0)
    start = size * rng.normal(size=(5, 4))
    grads = rng.normal(size=(6, 5, 4))
    grads[2:4, 1] = 0  # a row absent for two steps
    weight = torch.nn.Parameter(torch.tensor(start))
    optimizer = Lamb([{"params": [weight], "sparse_rows": sparse}], lr=0.01, weight_decay=1e-2)
    for g in grads:
        weight.grad = torch.tensor(g)
        optimizer.step()
    expected = slow_lamb(start, grads, 0.01, 1e-2, sparse=sparse)
    np.testing.assert_allclose(weight.detach().numpy(), expected, rtol=1e-9, atol=1e-12)


def test_absent_rows_stay_bit_identical_under_sparse_lamb():
    table = torch.nn.Embedding(6, 4)
    before = table.weight.detach().clone()
    optimizer, _ = build_optimizer([("table", table.weight)], {"table"}, OptimConfig(name="lamb", lr=0.1), 10)
    for _ in range(3):
        optimizer.zero_grad()
        table(torch.tensor([1, 4])).square().sum().backward()
        optimizer.step()
    moved = (table.weight != before).any(dim=1)
    assert moved.tolist() == [False, True, False, False, True, False]


def cut(weight: torch.Tensor, padded: int) -> torch.nn.Parameter:
    """What a rank alone is given of a tensor: all of it, flattened and padded (with what must not count)."""
    flat = torch.full((padded,), 7.0, dtype=weight.dtype)
    flat[: weight.numel()] = weight.detach().flatten()
    return torch.nn.Parameter(flat)


@pytest.mark.parametrize("sparse", [False, True])
def test_a_slice_is_updated_as_the_tensor_is(sparse):
    """One rank, whose slice is the tensor and some padding; slices of several ranks: test_strategy.py."""
    torch.manual_seed(0)
    whole = torch.nn.Parameter(torch.randn(5, 4, dtype=torch.float64))
    slice_ = cut(whole, 23)
    settings = dict(lr=0.1, weight_decay=1e-2)
    plain = Lamb([dict(params=[whole], sparse_rows=sparse)], **settings)
    shards = Lamb([dict(params=[slice_], sparse_rows=sparse, shape=(5, 4))], **settings, shards=Shards(0, 1))
    for step in range(6):
        whole.grad = torch.randn_like(whole)
        whole.grad[step % 3] = 0
        slice_.grad = cut(whole.grad, 23).data
        plain.step(), shards.step()
    torch.testing.assert_close(slice_[:20].view(5, 4), whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(shards.state[slice_]["m"][:20].view(5, 4), plain.state[whole]["m"], rtol=1e-12, atol=0)
    assert (slice_[20:] == 7.0).all() and not shards.state[slice_]["v"][20:].any()


def fade(config: OptimConfig, name: str, grad: float, steps: int = 500) -> float:
    """Norm, in multiples of its norm at first, of a tensor whose gradient is noise of this size."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(20, 10) if name != "bias" else torch.randn(10))
    optimizer, _ = build_optimizer([(name, weight)], {"unit"}, config, steps)
    before = weight.detach().norm()
    for _ in range(steps):
        weight.grad = grad * torch.randn_like(weight)
        optimizer.step()
    return float(weight.detach().norm() / before)


@pytest.mark.parametrize("name", ["matrix", "bias", "unit"])
def test_a_vanishing_gradient_collapses_the_papers_lamb_and_not_the_safe_one(name):
    """Where the gradient is far below eps the step is the decay alone, and trust makes of it lr * w, whatever the decay."""
    paper = OptimConfig(name="lamb", lr=1e-2, weight_decay=1e-4, hold=1.0)
    safe = OptimConfig(name="lamb", lr=1e-2, weight_decay=1e-4, hold=1.0, safe=True)
    assert fade(paper, name, grad=1e-13) < 0.1
    assert fade(safe, name, grad=1e-13) == pytest.approx(1.0, abs=0.01)


def test_safe_lamb_decays_matrices_only_and_takes_the_same_healthy_steps():
    weights = {
        name: torch.nn.Parameter(torch.ones(shape)) for name, shape in dict(matrix=(4, 3), bias=3, unit=(5, 3)).items()
    }
    safe = OptimConfig(name="lamb", weight_decay=0.1, safe=True)
    optimizer, _ = build_optimizer(weights.items(), {"unit"}, safe, 10)
    decays = {id(weight): group["weight_decay"] for group in optimizer.param_groups for weight in group["params"]}
    assert [decays[id(weights[name])] for name in weights] == [0.1, 0.0, 0.0]
    moved = []
    for config in (safe, OptimConfig(name="lamb", weight_decay=0.1)):
        weight = torch.nn.Parameter(torch.ones(4, 3))
        optimizer, _ = build_optimizer([("matrix", weight)], set(), config, 10)
        weight.grad = torch.arange(12.0).view(4, 3)
        optimizer.step()
        moved.append(weight.detach())
    assert torch.equal(*moved)


def test_safe_is_for_lamb():
    with pytest.raises(ConfigError, match="optim.safe: is for lamb, not adamw, which needs none; leave it out"):
        OptimConfig(name="adamw", safe=True)


@pytest.mark.parametrize("name", ["lamb", "adamw"])
def test_a_schedule_begun_late_has_the_rates_of_those_steps(name):
    def rates(start: int) -> list[float]:
        weight = torch.nn.Parameter(torch.ones(2, 2))
        config = OptimConfig(name=name, warmup_steps=3)
        optimizer, schedule = build_optimizer([("matrix", weight)], set(), config, 10, start=start)
        out = []
        for _ in range(start, 10):
            out.append(optimizer.param_groups[0]["lr"])
            optimizer.step(), schedule.step()
        return out

    assert rates(4) == rates(0)[4:] and len(set(rates(0))) > 5


@pytest.mark.parametrize("name", ["lamb", "adamw"])
def test_for_slices_every_tensor_has_a_group_with_the_settings_of_its_kind(name):
    shapes = dict(unit=(3, 2), matrix=(2, 2), bias=(2,), other=(4, 2), session=(2, 2))
    weights = {name: torch.nn.Parameter(torch.ones(shape)) for name, shape in shapes.items()}
    config = OptimConfig(name=name, table_lr=10.0)

    def settings(shards):
        optimizer, _ = build_optimizer(weights.items(), {"unit", "session"}, config, 10, shards=shards)
        kept = ("lr", "weight_decay", "sparse_rows")
        return optimizer, {
            id(weight): [group.get(key) for key in kept]
            for group in optimizer.param_groups
            for weight in group["params"]
        }

    (plain, expected), (cut_up, found) = settings(None), settings(Shards(0, 2))
    assert found == expected and len(plain.param_groups) < len(cut_up.param_groups) == len(weights)
    assert all(group["shape"] == group["params"][0].shape for group in cut_up.param_groups)


def test_schedule_is_constant_then_cosine_in_absolute_steps():
    config = OptimConfig(hold=0.5, final_lr=1e-4, warmup_steps=10)
    assert lr_factor(0, 1000, config) == pytest.approx(0.1)
    assert {lr_factor(s, 1000, config) for s in (10, 250, 499, 500)} == {1.0}
    assert lr_factor(750, 1000, config) == pytest.approx(1e-4 + (1 - 1e-4) / 2)
    assert lr_factor(1000, 1000, config) == lr_factor(5000, 1000, config) == pytest.approx(1e-4)


def test_table_rate_is_a_multiple_and_adamw_decays_matrices_only():
    weights = {
        "matrix": torch.nn.Parameter(torch.ones(2, 2)),
        "bias": torch.nn.Parameter(torch.ones(2)),
        "unit": torch.nn.Parameter(torch.ones(3, 2)),
    }
    optimizer, _ = build_optimizer(weights.items(), {"unit"}, OptimConfig(lr=1e-3, table_lr=10, weight_decay=0.1), 10)
    seen = {id(group["params"][0]): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups}
    assert seen == {
        id(weights["matrix"]): (1e-3, 0.1),
        id(weights["bias"]): (1e-3, 0.0),
        id(weights["unit"]): (1e-2, 0.0),
    }


def test_a_lower_beta2_forgets_a_steep_start_sooner():
    moved = {}
    for beta2 in (0.999, 0.95):
        weight = torch.nn.Parameter(torch.ones(4, 4))
        config = OptimConfig(lr=1e-3, beta2=beta2, weight_decay=0.0, hold=1.0)
        optimizer, _ = build_optimizer([("matrix", weight)], set(), config, 300)
        for step in range(240):
            weight.grad = torch.full_like(weight, 100.0 if step == 0 else 1.0)
            before = weight.detach().clone()
            optimizer.step()
        moved[beta2] = (weight.detach() - before).abs().mean().item()
    assert moved[0.95] == pytest.approx(1e-3, rel=0.05) and moved[0.999] < 0.2e-3


def test_unknown_optimizer_is_one_line():
    with pytest.raises(ConfigError, match="'adam' is not an optimiser here; take lamb or adamw"):
        build_optimizer([], set(), OptimConfig(name="adam"), 1)
