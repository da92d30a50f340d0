"""A run that is killed, asked to stop or continued by other ranks ends as one left alone, bit by bit where it can.

Real processes and real signals. Each life is a fork of a process that has imported everything, so that the kills fall
into the training; some strike by themselves at the call that puts a file in its place.
"""

import csv
import json
import os
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from itertools import count, pairwise
from pathlib import Path
from statistics import median

import pytest
import torch

from pretrain.checkpoint import load_checkpoint
from pretrain.errors import TEMPORARY
from pretrain.optim import OptimConfig
from pretrain.saves import Saves
from pretrain.strategy import StrategyConfig
from pretrain.train import PretrainConfig, pretrain
from tests.pretrain.conftest import tiny_config, tiny_model
from tests.pretrain.warm import Moment, Warm

EVERY = 5  # steps between saves
KILLED, DONE, STOPPED = -signal.SIGKILL, 0, TEMPORARY
TIMED = ("seconds", "speed/", "memory/")  # columns that tell of the machine, not of the run


@pytest.fixture(scope="module")
def warm():
    with Warm("pandas, pretrain.train") as process:  # pyarrow imports pandas when it is first asked for a table
        yield process


def config_of(shards: Path, run: Path, steps: int = 30) -> PretrainConfig:
    config = tiny_config(shards, run, optim=OptimConfig(lr=5e-3, average=0.9))
    trainer = replace(config.trainer, steps=steps, val_every=10, save_every=EVERY, log_every=1)
    return replace(config, trainer=trainer)


@dataclass(frozen=True)
class Whole:
    """A run left alone, and about how long its steps took."""

    run: Path
    step_s: float


def codes_of(warm: Warm, config: PretrainConfig, moment: Moment | None = None, ranks: int = 1) -> list[int]:
    """Exit codes of the ranks of one life of a run."""
    return warm.run(pretrain_alone, config, moment=moment, ranks=ranks)[0]


def pretrain_alone(config: PretrainConfig) -> None:
    """pretrain(), after which signals do what they did before it."""
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    try:
        pretrain(config)
    finally:
        changed = {number: now for number in before if (now := signal.getsignal(number)) != before[number]}
        assert not changed, changed


def left_alone(warm: Warm, config: PretrainConfig, ranks: int = 1) -> Whole:
    assert codes_of(warm, config, ranks=ranks) == [DONE] * ranks
    with open(Path(config.run) / "metrics.csv", newline="") as file:
        seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
    return Whole(Path(config.run), median(b - a for a, b in pairwise(seconds)))


@pytest.fixture(scope="module")
def whole(warm, shards, tmp_path_factory) -> Whole:
    return left_alone(warm, config_of(shards, tmp_path_factory.mktemp("whole") / "run"))


def rows(run: Path) -> list[dict[str, str]]:
    with open(run / "metrics.csv", newline="") as file:
        return [
            {name: value for name, value in row.items() if not name.startswith(TIMED)} for row in csv.DictReader(file)
        ]


def lines(run: Path) -> list[dict[str, float]]:
    told = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith(TIMED)} for row in told]


def assert_the_same_run(run: Path, whole: Path) -> None:
    """Weights, optimiser, average, exported weights and every row, once each; nothing unfinished is left."""
    one, other = Saves(run / "saves").newest(), Saves(whole / "saves").newest()
    assert one.step == other.step and one.facts["loader"] == other.facts["loader"]
    for ours, theirs in (
        (one.tensors(), other.tensors()),
        (load_checkpoint(run).weights, load_checkpoint(whole).weights),
    ):
        assert ours.keys() == theirs.keys()
        assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []
    assert rows(run) == rows(whole) and lines(run) == lines(whole)
    told = [json.loads((folder / "provenance.json").read_text()) for folder in (run, whole)]
    assert told[0]["finished"] and told[0]["best"] == told[1]["best"] and told[0]["alarms"] == told[1]["alarms"]
    assert {path.name for path in run.rglob("*")} == {path.name for path in whole.rglob("*")}


def saved(step: int) -> str:
    return f"saves/step-{step:08d}.safetensors"


def pretrain_killed_at(config: PretrainConfig, number: int, calls: tuple[str, ...], target: str = "*") -> None:
    """pretrain() in this process, killed just before it asks the system for the number-th of such calls on such a path."""
    left = count(1)

    def struck(call: Callable) -> Callable:
        def strike(*arguments):
            if fnmatch(str(arguments[-1]), target) and next(left) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments)

        return strike

    for name in calls:
        setattr(os, name, struck(getattr(os, name)))
    pretrain(config)


def test_a_run_killed_three_times_ends_with_the_same_bits(warm, shards, whole, tmp_path):
    """When a save is written but not in its place, between the two renames of an export, and anywhere between steps."""
    run = tmp_path / "run"
    config = config_of(shards, run)
    assert warm.run(pretrain_killed_at, config, 1, ("replace",), f"*/{saved(10)}")[0] == [KILLED]
    assert [path.name for path in (run / "saves").rglob("*.safetensors")] == ["step-00000005.safetensors"] + [
        "step-00000010.safetensors"
    ]
    assert Saves(run / "saves").steps() == [5]
    assert warm.run(pretrain_killed_at, config, 1, ("rename",), "*/checkpoint")[0] == [KILLED]
    assert not (run / "checkpoint").exists() and load_checkpoint(run)  # the one before stands aside
    assert codes_of(warm, config, Moment(1.5 * whole.step_s, config.run, (saved(15),))) == [KILLED]
    assert 15 <= Saves(run / "saves").newest().step < 30
    assert codes_of(warm, config) == [DONE]
    assert_the_same_run(run, whole.run)
    assert len(json.loads((run / "provenance.json").read_text())["resumed"]) == 3


@pytest.mark.slow
def test_a_run_killed_before_every_flush_and_rename_ends_with_the_same_bits(warm, shards, tmp_path):
    """One life a call: the n-th is killed at its n-th."""
    whole = left_alone(warm, config_of(shards, tmp_path / "whole", steps=10))
    config = config_of(shards, tmp_path / "run", steps=10)
    lives, codes = 0, [KILLED]
    while codes == [KILLED]:
        lives += 1
        codes = warm.run(pretrain_killed_at, config, lives, ("fsync", "replace", "rename"))[0]
    assert codes == [DONE] and lives > 15
    assert_the_same_run(tmp_path / "run", whole.run)


def test_a_run_asked_to_stop_saves_where_it_stands_and_goes_on(warm, shards, whole, tmp_path):
    config = config_of(shards, tmp_path / "run")
    moment = Moment(1.5 * whole.step_s, config.run, (saved(5),), signal.SIGUSR1)
    assert codes_of(warm, config, moment) == [STOPPED]
    newest = Saves(tmp_path / "run" / "saves").newest().step
    assert newest == max(int(row["step"]) for row in rows(tmp_path / "run"))  # no step was lost
    assert codes_of(warm, config) == [DONE]
    assert_the_same_run(tmp_path / "run", whole.run)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_killed_twenty_times_at_random_ends_with_the_same_bits(warm, shards, tmp_path, ranks):
    """Of two ranks one is killed, by lot; the other fails or is ended like a job whose node is gone."""
    draw = random.Random(ranks)
    whole = left_alone(warm, config_of(shards, tmp_path / "whole", steps=160), ranks)
    kills, begun = 0, 0
    while kills < 20:
        begun += 1
        config = config_of(shards, tmp_path / f"killed-{begun}", steps=160)
        codes = []
        while codes != [DONE] * ranks:
            moment = random_moment(draw, config, whole.step_s, ranks) if kills < 20 else None
            codes = codes_of(warm, config, moment, ranks=ranks)
            assert codes == [DONE] * ranks or moment and codes[moment.rank] == KILLED
            kills += codes != [DONE] * ranks
        assert_the_same_run(Path(config.run), whole.run)


def random_moment(draw: random.Random, config: PretrainConfig, step_s: float, ranks: int) -> Moment:
    """A while after the run was started, or after it made its next save or the one after."""
    saves = Saves(Path(config.run) / "saves").steps()
    ahead = draw.choice([0, 1, 1, 2])
    step = (saves[-1] if saves else 0) + EVERY * ahead
    patterns = (saved(step),) if ahead and step < config.trainer.steps else ()
    return Moment(draw.uniform(0, 2 * EVERY * step_s), config.run, patterns, rank=draw.randrange(ranks))


@pytest.mark.slow
@pytest.mark.parametrize("asked", [0, 1])
def test_two_ranks_stop_at_the_same_step_whichever_is_asked(warm, shards, tmp_path, asked):
    whole = left_alone(warm, config_of(shards, tmp_path / "whole"), 2)
    config = config_of(shards, tmp_path / "run")
    moment = Moment(1.5 * whole.step_s, config.run, (saved(10),), signal.SIGUSR1, asked)
    assert codes_of(warm, config, moment, ranks=2) == [STOPPED] * 2
    assert codes_of(warm, config, ranks=2) == [DONE] * 2
    assert_the_same_run(tmp_path / "run", whole.run)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_a_run_goes_on_on_other_ranks_and_by_other_strategies(warm, shards, tmp_path, name):
    """Each life is cut, by a kill or a request; without dropout, which ranks draw for themselves, all compute the same."""
    still = tiny_model(attention_dropout=0.0, ff_dropout=0.0, residual_dropout=0.0)
    optim = OptimConfig(name=name, lr=5e-3, average=0.9, clip_norm=1.0)
    whole, run = (replace(config_of(shards, tmp_path / name), model=still, optim=optim) for name in ("whole", "run"))
    step_s = left_alone(warm, whole).step_s
    for strategy, ranks, number, code in (
        ("ddp", 2, signal.SIGKILL, KILLED),
        ("zero1", 3, signal.SIGUSR1, STOPPED),
        ("zero3", 2, signal.SIGKILL, KILLED),
        ("zero2", 1, signal.SIGTERM, STOPPED),
    ):
        newest = Saves(tmp_path / "run" / "saves").newest()
        after = saved((newest.step if newest else 0) // EVERY * EVERY + EVERY)
        life = replace(run, trainer=replace(run.trainer, strategy=StrategyConfig(strategy)))
        moment = Moment(step_s, run.run, (after,), number)
        assert codes_of(warm, life, moment, ranks=ranks)[0] == code
        written = Saves(tmp_path / "run" / "saves").newest()
        assert written.step > (newest.step if newest else 0)
        assert written.facts["written_by"]["world"] == ranks
    assert codes_of(warm, run) == [DONE]
    one, other = (Saves(tmp_path / name / "saves").newest().tensors() for name in ("run", "whole"))
    assert one.keys() == other.keys()
    for key, tensor in other.items():
        torch.testing.assert_close(one[key], tensor, rtol=1e-3, atol=1e-5, msg=lambda told, key=key: f"{key}: {told}")
    assert [row["step"] for row in rows(tmp_path / "run")] == [row["step"] for row in rows(tmp_path / "whole")]
