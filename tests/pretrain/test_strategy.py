"""Every strategy, in real processes over gloo, against one device: losses, weights, state, and what goes on from a save."""

import csv
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pretrain.checkpoint import load_checkpoint
from pretrain.errors import ConfigError
from pretrain.optim import OptimConfig, Shards
from pretrain.ranks import ALONE, Ranks
from pretrain.saves import Saves
from pretrain.spread import spread
from pretrain.strategy import StrategyConfig
from pretrain.train import PretrainConfig, pretrain
from tests.pretrain.conftest import tiny_config, tiny_model
from tests.pretrain.toy_training import Fit, train
from tests.pretrain.warm import Warm

RECIPES = {
    name: OptimConfig(name=name, lr=1e-2, table_lr=2.0, weight_decay=0.01, warmup_steps=5, clip_norm=0.5)
    for name in ("adamw", "lamb")
}
SAME = 5e-6  # of losses and weights of size 1 after 50 steps in float32, summed in another order


@pytest.fixture
def warm(monkeypatch):
    monkeypatch.setitem(
        os.environ, "DS_ACCELERATOR", "cpu"
    )  # read where DeepSpeed is loaded, on a machine with a GPU too
    with Warm("tests.pretrain.toy_training, pretrain.train") as process:
        yield process


def trained(warm: Warm, folder: Path, ranks: int, *fits: Fit) -> list[dict[str, torch.Tensor]]:
    codes, _ = warm.run(train, list(fits), folder, ranks=ranks)
    assert codes == [0] * ranks
    return [load_file(folder / f"{fit.name}.safetensors") for fit in fits]


def fit(strategy: str, recipe: str, **settings) -> Fit:
    offload = {key: settings.pop(key) for key in ("offload_optimizer", "offload_parameters") if key in settings}
    name = "-".join(map(str, (strategy, recipe, *offload, *settings.items())))
    return Fit(name, StrategyConfig(strategy, **offload), RECIPES[recipe], **settings)


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], what: str, within: float = SAME):
    """Losses and norms of the steps that `found` has made, and all that a save holds at its end."""
    assert found.keys() == expected.keys(), what
    for key, value in found.items():
        reference = expected[key][-len(value) :] if key in ("losses", "norms", "validated") else expected[key]
        torch.testing.assert_close(value, reference, atol=within, rtol=within, msg=lambda m, k=key: f"{what}: {k}: {m}")


def assert_table_is_sparse(found: dict[str, torch.Tensor]) -> None:
    """Units that the last step did not see have no moments: the rule that has to be kept where rows are cut."""
    moments = found["optimizer/body.unit.weight/m"]
    absent = (moments == 0).all(dim=1)
    assert 0 < absent.sum() < len(moments)


def test_lamb_over_two_ranks_is_lamb_on_one_device(warm, tmp_path):
    (expected,) = trained(warm, tmp_path, 1, fit("auto", "lamb", steps=20, total=20))
    assert_table_is_sparse(expected)
    assert expected["losses"][-5:].mean() < 0.9 * expected["losses"][:5].mean()
    half = fit("zero3", "lamb", steps=10, total=20)
    fits = [half, *(fit(name, "lamb", steps=20, total=20, parts=2) for name in ("ddp", "zero1"))]
    for one, found in zip(fits[1:], trained(warm, tmp_path, 2, *fits)[1:]):
        assert_same(found, expected, one.name)
    (found,) = trained(warm, tmp_path, 1, fit("auto", "lamb", steps=20, total=20, resume=half.name, start=10))
    assert_same(found, expected, "zero3 on two ranks, then one device")


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_what_two_ranks_saved_any_strategy_goes_on_from(warm, tmp_path, recipe):
    (expected,) = trained(warm, tmp_path, 1, fit("auto", recipe))
    halves = [fit(name, recipe, steps=25) for name in ("ddp", "zero1", "zero2", "zero3")]
    trained(warm, tmp_path, 2, *halves)
    for world, names in (1, ("auto", "zero3")), (3, ("zero1", "zero2", "zero3", "ddp")):
        rest = [fit(name, recipe, resume=half.name, start=25) for name, half in zip(names, halves)]
        for one, found in zip(rest, trained(warm, tmp_path, world, *rest)):
            assert_same(found, expected, f"{one.resume} on two ranks, then {one.name} on {world}")


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_the_same_ranks_go_on_with_every_bit(warm, tmp_path, world):
    names = ("ddp", "zero1", "zero2", "zero3")
    halves = [fit(name, "lamb", steps=8, total=20, parts=2) for name in names]
    rest = [replace(half, name=f"{half.name}, rest", steps=20, resume=half.name, start=8) for half in halves]
    whole = [replace(half, name=f"{half.name}, whole", steps=20) for half in halves]
    ends = trained(warm, tmp_path, world, *halves, *rest, *whole)
    for name, found, expected in zip(names, ends[len(names) :], ends[2 * len(names) :]):
        assert_same(found, expected, name, within=0.0)


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_strategy_follows_one_device(warm, tmp_path, world, recipe):
    (expected,) = trained(warm, tmp_path, 1, fit("auto", recipe))
    fits = [fit(name, recipe, parts=parts) for name in ("ddp", "zero1", "zero2", "zero3") for parts in (1, 2)]
    fits += [fit(name, recipe, offload_optimizer=True) for name in ("zero1", "zero2", "zero3")]
    fits += [fit("zero3", recipe, offload_optimizer=True, offload_parameters=True, parts=2)]
    for one, found in zip(fits, trained(warm, tmp_path, world, *fits)):
        assert_same(found, expected, one.name)


@pytest.mark.slow
def test_bf16_mixed_means_the_same_in_every_strategy(warm, tmp_path):
    mixed = dict(precision="bf16-mixed", parts=2)
    ddp, *others = trained(warm, tmp_path, 2, *(fit(name, "lamb", **mixed) for name in ("ddp", "zero1", "zero3")))
    (full,) = trained(warm, tmp_path, 1, fit("auto", "lamb"))
    for found in others:
        assert_same(found, ddp, "bf16-mixed")
    assert 1e-4 < (ddp["losses"] - full["losses"]).abs().max() < 0.05  # it is bfloat16, and close to float32


@pytest.mark.slow
def test_what_ddp_freezes_neither_moves_nor_decays_until_it_is_freed(warm, tmp_path):
    (expected,) = trained(warm, tmp_path, 1, fit("auto", "adamw", freezes=True))
    (short,) = trained(warm, tmp_path, 2, fit("ddp", "adamw", freezes=True, steps=5, parts=2))
    (found,) = trained(warm, tmp_path, 2, fit("ddp", "adamw", freezes=True, parts=2))
    assert_same(found, expected, "freed after 5 steps")
    assert (
        torch.equal(short["weights/body.norm.weight"], torch.ones(7))
        and "optimizer/body.mix.weight/exp_avg" not in short
    )
    assert (found["optimizer/body.mix.weight/step"], found["optimizer/body.unit.weight/step"]) == (45, 50)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["zero1", "zero3"])
def test_a_gradient_that_is_not_finite_ends_all_ranks(warm, tmp_path, stage):
    steep = Fit("steep", StrategyConfig(stage), OptimConfig(lr=1e25))
    codes, _ = warm.run(train, [steep], tmp_path, ranks=2)
    assert codes == [ConfigError.exit_code] * 2 and not list(tmp_path.iterdir())


def run_of(shards: Path, folder: Path, strategy: str, accumulate: int = 2, steps: int = 8) -> PretrainConfig:
    """A run of the real model, without dropout: that is drawn by rank."""
    calm = tiny_model(attention_dropout=0.0, ff_dropout=0.0, residual_dropout=0.0)
    optim = OptimConfig(name="lamb", lr=1e-2, weight_decay=0.01, clip_norm=1.0, average=0.9)
    config = tiny_config(shards, folder / strategy, model=calm, optim=optim)
    trainer = replace(config.trainer, steps=steps, accumulate=accumulate, strategy=StrategyConfig(strategy))
    return replace(config, trainer=trainer)


@pytest.mark.slow
def test_a_run_of_the_real_model_is_the_same_under_every_strategy(warm, shards, tmp_path):
    def end(config: PretrainConfig, ranks: int) -> tuple[dict, dict, list[float]]:
        codes, _ = warm.run(pretrain, config, ranks=ranks)
        assert codes == [0] * ranks, config.run
        with open(Path(config.run) / "metrics.csv", newline="") as file:
            scores = [float(row["valid/r2"]) for row in csv.DictReader(file) if row["valid/r2"]]
        return Saves(Path(config.run) / "saves").newest().tensors(), load_checkpoint(config.run).weights, scores

    saved, exported, scores = end(run_of(shards, tmp_path, "auto", accumulate=1), 1)
    for strategy in ("ddp", "zero1", "zero2", "zero3"):
        for found, expected in zip(end(run_of(shards, tmp_path, strategy), 2), (saved, exported, scores)):
            torch.testing.assert_close(found, expected, atol=SAME, rtol=SAME, msg=lambda m, s=strategy: f"{s}: {m}")


@pytest.mark.parametrize("numel, world, padded", [(35, 2, 18), (35, 3, 12), (1, 3, 2), (1, 3, 1), (6, 1, 6), (4, 4, 2)])
def test_slices_hold_each_element_once(numel, world, padded):
    held = []
    for rank in range(world):
        first, n = Shards(rank, world).held(numel, padded)
        held += range(first, first + n)
    assert held == list(range(numel))


@pytest.mark.parametrize(
    "settings, precision, freezes, line",
    [
        (dict(name="zero2"), "32-true", True, "trainer.strategy.name: zero2 shares out what is trained .*take ddp"),
        (dict(name="auto"), "16-mixed", False, "trainer.precision: '16-mixed' is no precision here; take 32-true or"),
        (dict(name="fsdp"), "32-true", False, "'fsdp' is no strategy; take one of auto, ddp, zero1, zero2, zero3"),
        (dict(name="ddp", offload_optimizer=True), "32-true", False, "needs DeepSpeed, not ddp; take zero1"),
        (dict(name="zero2", offload_parameters=True), "32-true", False, "needs zero3, not zero2; take zero3"),
    ],
)
def test_what_cannot_be_had_is_one_line(settings, precision, freezes, line):
    with pytest.raises(ConfigError, match=line):
        spread(StrategyConfig(**settings), ALONE, "cpu", precision, freezes=freezes)


def test_auto_is_one_device_alone_and_ddp_among_several():
    found = [spread(StrategyConfig(), ranks, "cpu", "32-true", freezes=False) for ranks in (ALONE, Ranks(0, 2, 0, 2))]
    assert [one.name for one in found] == ["one device", "ddp"] and not any(one.shards for one in found)
