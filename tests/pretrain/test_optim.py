"""LAMB against a slow reference, the rows it must leave alone, and the schedule's knee."""

import math

import numpy as np
import pytest
import torch

from pretrain.errors import ConfigError
from pretrain.optim import Lamb, OptimConfig, build_optimizer, lr_factor


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
