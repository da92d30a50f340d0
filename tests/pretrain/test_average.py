"""The running average of weights: its recursion, what it leaves alone, and that it is what a run validates and exports."""

import csv
from dataclasses import replace

import pytest
import torch
from torch import nn

from pretrain.average import WeightAverage
from pretrain.checkpoint import load_checkpoint
from pretrain.errors import ConfigError
from pretrain.optim import OptimConfig
from pretrain.saves import Saves
from pretrain.train import pretrain
from tests.pretrain.conftest import tiny_config


def moved(weight: nn.Parameter, steps: int):
    """The weights after each of some random steps."""
    torch.manual_seed(0)
    for _ in range(steps):
        weight.data.add_(torch.randn_like(weight))
        yield weight.detach().clone()


def test_it_follows_its_recursion():
    weight = nn.Parameter(torch.randn(3, 2))
    average, expected = WeightAverage([weight], decay=0.8), weight.detach().double().clone()
    for n, value in enumerate(moved(weight, 30)):
        average.update()
        decay = min(0.8, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * value.double()
    with average.in_place():
        torch.testing.assert_close(weight.double(), expected, atol=1e-6, rtol=1e-6)


def test_it_is_steadier_than_the_weights():
    weight = nn.Parameter(torch.zeros(1000))
    average, distance = WeightAverage([weight], decay=0.95), []
    for _ in range(300):  # a training that stands still but for the noise of its steps
        weight.data.normal_()
        average.update()
    with average.in_place():
        distance.append(weight.norm())
    assert distance[0] < 0.3 * weight.norm()


def test_what_does_not_move_keeps_every_bit_and_a_look_changes_nothing():
    still, weight = nn.Parameter(torch.randn(50)), nn.Parameter(torch.randn(4))
    average, before = WeightAverage([still, weight], decay=0.98), still.detach().clone()
    for value in moved(weight, 20):
        average.update()
        with average.in_place():
            assert torch.equal(still, before) and not torch.equal(weight, value)
        assert torch.equal(still, before) and torch.equal(weight, value)


def test_a_run_exports_the_average_and_trains_as_without(shards, tmp_path):
    plain, averaged = tiny_config(shards, tmp_path / "plain"), tiny_config(shards, tmp_path / "averaged")
    averaged = replace(averaged, optim=replace(averaged.optim, average=0.9))
    last, export, losses = [], [], []
    for config in (plain, averaged):
        run = pretrain(config)
        save = Saves(run / "saves", keep=2).newest()
        assert save.step == 8
        last.append(save.tensors("weights"))
        export.append(load_checkpoint(run).weights)
        with open(run / "metrics.csv", newline="") as file:
            losses.append([row["train/loss"] for row in csv.DictReader(file)])
    assert losses[0] == losses[1] and all(torch.equal(last[0][name], last[1][name]) for name in last[0])
    assert any(not torch.equal(export[0][name], export[1][name]) for name in export[0])


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_that_is_none_is_one_line(decay):
    with pytest.raises(ConfigError, match="optim.average"):
        OptimConfig(average=decay)
