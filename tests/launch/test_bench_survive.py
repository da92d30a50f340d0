"""`bench survive`: numbers read off a curve that is known by hand, and real trainings that are stopped and go on."""

import json
import subprocess

import numpy as np
import pytest

from data_prep.errors import ConfigError, DataError
from launch import bench_survive
from launch.bench_survive import ASKED, Setup, SurviveConfig, setups, speeds, survived
from launch.cli import main
from launch.record import Curve
from pretrain.errors import Stopped
from pretrain.train import PretrainConfig


def curve(steps: int, step_s: float, save_s: float, save_every: int, windows: int = 8) -> Curve:
    """Rows of steps that take as long as they are told, and longer after a save; the first ones three times as long."""
    took = np.full(steps + 1, step_s)
    took[1 + save_every :: save_every] += save_s
    took[:5] *= 3
    step = np.arange(steps + 1.0)
    wait = np.full(steps + 1, 0.25)
    columns = {"step": step, "windows": step * windows, "seconds": np.cumsum(took), "speed/wait_share": wait}
    return Curve(columns)


def test_a_save_costs_what_the_step_after_it_takes_longer():
    found = speeds(curve(40, 0.5, 0.2, 5), stopped=30, save_every=5)
    assert found.step_s == pytest.approx(0.5) and found.save_s == pytest.approx(0.2)
    assert found.windows_s == pytest.approx(8 / 0.5) and found.wait_share == pytest.approx(0.25)


def test_what_comes_after_the_stop_is_not_counted():
    whole = curve(40, 0.5, 0.2, 5)
    whole.columns["seconds"][31:] += 60  # start of the second process
    assert speeds(whole, stopped=30, save_every=5) == speeds(curve(40, 0.5, 0.2, 5), stopped=30, save_every=5)


@pytest.mark.parametrize(
    "count, expected", [(2, [(1, 4), (1, 2), (2, 2)]), (1, [(1, 4), (1, 4)]), (8, [(1, 4), (1, 1), (8, 1)])]
)
def test_all_setups_share_the_same_cores(monkeypatch, count, expected):
    monkeypatch.setattr(bench_survive, "cores", lambda: 4)
    found = setups(SurviveConfig(processes=count, strategies=["zero2"]))
    assert [(setup.processes, setup.threads) for setup in found] == expected
    assert [setup.strategy for setup in found] == ["auto"] * (len(found) - 1) + ["zero2"]
    assert str(Setup("auto", 1, 4)) == "one device, 1 process of 4 threads"
    assert str(Setup("zero2", 2, 1)) == "zero2, 2 processes of 1 thread"


@pytest.mark.parametrize("change", [dict(steps=20), dict(save_every=1)])
def test_too_few_steps_are_refused_before_anything_runs(change):
    with pytest.raises(ConfigError, match="survive.steps: .*; give steps for five saves at least"):
        next(survived(SurviveConfig(**change), PretrainConfig(), "shards"))


def test_a_training_that_ends_otherwise_than_expected_is_told_in_its_own_words(tmp_path):
    (tmp_path / "log").write_text("spikeloom: the disk is full\n")
    run = tmp_path / "run"
    with pytest.raises(DataError, match="exit code 1: spikeloom: the disk is full"):
        bench_survive._ended(subprocess.Popen(["false"]), run, ASKED)
    with pytest.raises(ConfigError, match="ended before it could be stopped"):
        bench_survive._ended(subprocess.Popen(["true"]), run, ASKED)
    with pytest.raises(DataError, match="exit code 1"):
        bench_survive._await_step(subprocess.Popen(["false"]), run, 3)
    assert Stopped.exit_code == ASKED


def test_only_whole_rows_tell_a_step(tmp_path):
    for text, step in ((None, -1), ("step,loss\n", -1), ("step,loss\n0,\n7,1.5\n8,1", 7), ("step,loss\n0,\n12,\n", 12)):
        if text is not None:
            (tmp_path / "metrics.csv").write_text(text)
        assert bench_survive._last_step(tmp_path) == step


@pytest.mark.slow
def test_a_real_training_is_stopped_and_goes_on(tmp_path, monkeypatch, repository):
    text = (repository / "configs" / "dandisets" / "synthetic.yaml").read_text(encoding="utf-8")
    (tmp_path / "small.yaml").write_text(
        text.replace("min_train_s", "# min_train_s") + "\nmin_train_s: 1\n", encoding="utf-8"
    )
    monkeypatch.chdir(tmp_path)
    words = ["minutes=0.5", "sessions=1", "recipe=small.yaml", "training.model=model/poyo_tiny.yaml"]
    words += ["training.loader.batch_windows=4", "survive.steps=36", "survive.save_every=4", "survive.strategies=[ddp]"]
    assert main(["bench", "survive", *words]) == 0
    told = json.loads((tmp_path / "bench" / "bench.json").read_text(encoding="utf-8"))["measurements"]
    by_setup: dict[str, dict] = {}
    for row in told:
        by_setup.setdefault(row["of"], {})[row["what"], row["unit"]] = row["value"]
    assert any(of.startswith("ddp, 2 processes") for of in by_setup)
    for found in by_setup.values():
        assert found["training", "windows/s"] > 0 and 0 <= found["waiting for data", "%"] <= 100
        parts = found["from a request to stop to the end", "s"] + found["from a second start to its first step", "s"]
        assert found["lost by a stop", "s"] == pytest.approx(parts - found["a step", "s"])
        size = next(iter(by_setup.values()))["a save", "MB"]
        assert found["a save", "MB"] == pytest.approx(size, abs=1e-3)  # the same tensors, whatever the strategy
