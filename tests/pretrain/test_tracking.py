"""metrics.csv: written row by row, continued without doubling; wandb works offline and stays off unless asked."""

import csv

import pytest

from pretrain.errors import ConfigError
from pretrain.tracking import MetricsFile, TrackingConfig, wandb_logger
from pretrain.train import pretrain
from tests.pretrain.conftest import tiny_config


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_rows_are_there_as_soon_as_they_are_written(tmp_path):
    file = MetricsFile(tmp_path / "metrics.csv", ["s/1"], None)
    file.append({"step": 1, "train/loss": 0.5})
    file.append({"step": 2, "valid/r2/s/1": 0.25, "valid/r2": float("nan")})
    one, two = read(tmp_path / "metrics.csv")
    assert one["train/loss"] == "0.5" and one["valid/r2/s/1"] == ""
    assert two["valid/r2/s/1"] == "0.25" and two["valid/r2"] == ""  # undefined is blank
    assert list(one)[:4] == ["step", "epoch", "windows", "seconds"]


def test_resuming_drops_later_and_torn_rows_and_keeps_the_clock_running(tmp_path):
    path = tmp_path / "metrics.csv"
    file = MetricsFile(path, [], None)
    for step in (1, 2, 3):
        file.append({"step": step, "train/loss": float(step)})
    text = path.read_text().splitlines()
    text[1] = text[1].replace(text[1].split(",")[3], "100.0")
    path.write_text("\n".join([*text, "4,0.1,1"]))  # cut in the middle of a row
    again = MetricsFile(path, [], resume_step=2)
    again.append({"step": 3, "train/loss": 3.5})
    assert [(row["step"], row["train/loss"]) for row in read(path)] == [("1", "1"), ("2", "2"), ("3", "3.5")]
    path.write_text("\n".join(text[:2]) + "\n")
    assert MetricsFile(path, [], resume_step=9).seconds >= 100


def test_a_new_run_begins_a_new_file(tmp_path):
    MetricsFile(tmp_path / "metrics.csv", [], None).append({"step": 1})
    MetricsFile(tmp_path / "metrics.csv", [], None)
    assert read(tmp_path / "metrics.csv") == []


def test_wandb_is_off_unless_asked_and_unknown_modes_are_refused(tmp_path):
    assert wandb_logger(TrackingConfig(), tmp_path, {}) is None
    with pytest.raises(ConfigError, match="'maybe' is not a mode"):
        wandb_logger(TrackingConfig(wandb="maybe"), tmp_path, {})
    assert list(tmp_path.iterdir()) == []


def test_wandb_offline_needs_no_account(shards, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = pretrain(tiny_config(shards, tmp_path / "run", steps=2, tracking=TrackingConfig(wandb="offline")))
    (log,) = run.glob("wandb/offline-run-*/*.wandb")
    assert b"valid/r2/tiny/a" in log.read_bytes()
