"""Replay: the step that went wrong is met again, number for number, and seen from inside; the run is left as it was."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from launch.verb_replay import REPLAY
from pretrain.errors import ConfigError
from pretrain.optim import OptimConfig
from pretrain.replay import ReplayConfig, replay, schema_of
from pretrain.train import PretrainConfig, pretrain
from tests.pretrain.conftest import tiny_config


def diverging(shards, run: Path, lr: float) -> PretrainConfig:
    """Its learning rate rises until numbers overflow."""
    optim = OptimConfig(name="adamw", lr=lr, weight_decay=0.0, warmup_steps=20)
    config = tiny_config(shards, run, steps=30, optim=optim)
    config = replace(config, trainer=replace(config.trainer, save_every=2, val_every=30, log_every=5))
    with pytest.raises(ConfigError, match="spikeloom replay run="):
        pretrain(config)
    return config


@pytest.fixture(scope="module")
def diverged(shards, tmp_path_factory) -> PretrainConfig:
    """After some steps the gradient overflows while the loss is still finite."""
    return diverging(shards, tmp_path_factory.mktemp("diverged") / "run", 100.0)


def alarm_of(config) -> dict:
    (path,) = Path(config.run).glob("alarms/*.json")
    return json.loads(path.read_text())


def contents(folder: str) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in Path(folder).rglob("*") if path.is_file()}


def test_what_the_alarm_saw_is_met_again(shards, tmp_path):
    """A much higher rate: already the second step's outputs overflow."""
    config = diverging(shards, tmp_path / "run", 1e6)
    alarm = alarm_of(config)
    seen = replay(ReplayConfig(run=config.run), config)
    assert seen.step == seen.alarm == alarm["step"] == 2 and seen.begin == 0 and not seen.finite
    assert str(seen.loss) == alarm["loss"] and seen.windows == alarm["windows"]
    first = next(numbers for numbers in seen.outputs if not numbers.finite)
    assert alarm["found"][0] == f"the output of {first}"
    assert [f"the gradient of {bad}" for bad in seen.gradients if not bad.finite] == alarm["found"][1:]
    names = [numbers.name for numbers in seen.outputs]
    assert names[0] == "model.unit" and names[-1] == "task.linear" and "model.layers.0.attention.to_qkv" in names


def test_the_origin_is_found_before_the_step_of_the_alarm_and_whatever_save_is_left(diverged, tmp_path):
    """From the newest save and from the beginning, bit by bit the same; and the run is left as it was."""
    alarm, before = alarm_of(diverged), contents(diverged.run)
    seen = replay(ReplayConfig(run=diverged.run), diverged)
    assert seen.begin < seen.step <= alarm["step"] and seen.begin == (alarm["step"] - 1) // 2 * 2 > 0
    assert math.isfinite(seen.loss) and all(numbers.finite for numbers in seen.outputs)
    assert not math.isfinite(seen.norm) and not seen.finite
    assert contents(diverged.run) == before
    (tmp_path / "alarms").mkdir()
    (tmp_path / "alarms" / f"step-{alarm['step']}.json").write_text(json.dumps(alarm))
    again = replay(ReplayConfig(run=str(tmp_path), alarm=f"step-{alarm['step']}"), diverged)
    assert repr(again) == repr(replace(seen, begin=0))  # NaN equals nothing


def test_a_replay_that_meets_nothing_says_so(diverged, tmp_path, capsys):
    """An alarm of a step that was sound: as a fault of one machine looks on another."""
    (tmp_path / "alarms").mkdir()
    (tmp_path / "alarms" / "step-1.json").write_text(json.dumps({"step": 1}))
    seen = replay(ReplayConfig(run=str(tmp_path)), diverged)
    assert seen.finite and seen.step == 1 and len(seen.windows) == 4


def test_the_verb_shows_modules_gradients_and_windows(diverged, capsys):
    assert REPLAY.run(ReplayConfig(run=diverged.run)) == 0
    told = capsys.readouterr().out
    assert (
        "outputs of modules, in the order in which they are computed: all " in told
        and "gradients, from the loss on: " in told
    )
    seen = replay(ReplayConfig(run=diverged.run), diverged)
    assert f"to step {seen.step}: the loss is {seen.loss:.8g}" in told
    worst = max(seen.gradients, key=lambda numbers: (not numbers.finite, numbers.largest))
    assert worst.name in told and f"the gradient's norm {seen.norm:.4g}" in told
    assert all(window["session"] in told for window in seen.windows)


def test_what_is_not_there_is_refused(diverged, pretrained, tmp_path):
    assert schema_of(diverged.run) is PretrainConfig
    with pytest.raises(ConfigError, match="not the folder of a run"):
        schema_of(str(tmp_path))
    with pytest.raises(ConfigError, match="holds no alarm"):
        replay(ReplayConfig(run=str(pretrained)), diverged)
    with pytest.raises(ConfigError, match=f"'step-99' is not there; take one of step-{alarm_of(diverged)['step']}"):
        replay(ReplayConfig(run=diverged.run, alarm="step-99"), diverged)
