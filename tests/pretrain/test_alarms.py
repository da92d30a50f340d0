"""Alarms: what goes wrong is told once, with its cause; what is sound is left in peace."""

import json
import logging
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning import Callback

from pretrain.alarms import Alarms
from pretrain.errors import ConfigError
from pretrain.optim import Lamb
from pretrain.ranks import ALONE
from pretrain.train import pretrain
from tests.pretrain.conftest import tiny_config


@pytest.fixture
def alarms(tmp_path) -> Alarms:
    return Alarms(tmp_path, None, ALONE)


def told(folder):
    return [json.loads(line) for line in (folder / "alarms.jsonl").read_text().splitlines()]


# ------------------------------------------------------------------------------------------------ numbers not finite


class Spoil(Callback):
    """Spoils a step, before it is taken, by what `do` does to the module and the batch."""

    def __init__(self, step: int, do):
        self.step, self.do = step, do

    def on_train_batch_start(self, trainer, module, part, batch_idx: int) -> None:
        if trainer.global_step + 1 == self.step:
            self.batch, self.ids = part.batch, trainer.datamodule.sampling.sessions.ids
            self.do(module, part.batch)


def spoiled(config, step, do) -> tuple[str, dict, Spoil]:
    """The error of a run that is spoiled, and what it left in RUN/alarms."""
    spoil = Spoil(step, do)
    with pytest.raises(ConfigError) as error:
        pretrain(config, spoil)
    return str(error.value), json.loads((Path(config.run) / "alarms" / f"step-{step}.json").read_text()), spoil


def test_a_target_that_is_not_finite_is_named_with_the_windows_of_its_batch(shards, tmp_path):
    def spoil(module, batch):
        batch.target_QK[3, 1] = torch.inf

    config = tiny_config(shards, tmp_path / "run")
    line, record, seen = spoiled(config, 5, spoil)
    assert line.startswith("step 5: the loss is") and "\n" not in line
    assert "the batch's target_QK has 0 NaN and 1 infinite of" in line and "spikeloom replay run=" in line
    assert record["step"] == 5 and record["batch"] == 4 and record["seed"] == 42 and record["loss"] in ("inf", "nan")
    ids, at = seen.ids, 0
    expected = []
    for place, session, queries in zip(
        *(x.tolist() for x in (seen.batch.place_B, seen.batch.session_B, seen.batch.query_length_B))
    ):
        start_us = int(seen.batch.stamp_Q[at]) - round(float(seen.batch.query_time_Q[at]) * 1e6)
        expected.append({"place": place, "session": ids[session - 1], "start_us": start_us})
        at += queries
    assert record["windows"] == sorted(expected, key=lambda window: window["place"]) and len(expected) == 4
    assert [alarm["kind"] for alarm in told(tmp_path / "run")] == ["loss"]


def test_the_first_activation_that_overflows_is_named(shards, tmp_path):
    """The inner weights of a layer are made huge: its feed-forward is the first whose output is no number any more."""

    def spoil(module, batch):
        module.model.layers[0].feed_forward.inward.weight.data.fill_(1e30)

    line, record, _ = spoiled(tiny_config(shards, tmp_path / "run"), 3, spoil)
    outputs = [found for found in record["found"] if found.startswith("the output of")]
    assert "the output of model.layers.0.feed_forward" in line and len(outputs) == 1
    assert any(found.startswith("the gradient of task.linear.weight") for found in record["found"])
    assert not any(found.startswith("the weight") for found in record["found"])  # the step was not taken


def test_no_save_and_no_export_holds_what_the_alarm_saw(shards, tmp_path):
    def spoil(module, batch):
        batch.target_QK[0, 0] = torch.nan

    config = tiny_config(shards, tmp_path / "run")
    config = replace(config, trainer=replace(config.trainer, save_every=1, log_every=5))
    spoiled(config, 4, spoil)
    assert sorted(path.name for path in (tmp_path / "run" / "saves").glob("*.safetensors")) == [
        "step-00000002.safetensors",
        "step-00000003.safetensors",
    ]
    with open(tmp_path / "run" / "metrics.csv") as file:
        assert not re.search(r"nan|inf", file.read())


# ------------------------------------------------------------------------------------------------ weights


def test_a_weight_that_lamb_shrinks_is_told_once_with_the_cure(alarms, tmp_path, caplog):
    """The paper's rule: where no gradient comes trust is 1 / decay, so that a step takes the share lr of the tensor."""
    weights = {"dead": torch.nn.Parameter(torch.ones(8, 8)), "alive": torch.nn.Parameter(torch.ones(8, 8))}
    optimizer = Lamb(weights.values(), lr=0.05, weight_decay=1e-2)
    generator = torch.Generator().manual_seed(0)
    shrunk = None
    with caplog.at_level(logging.WARNING, "spikeloom"):
        for step in range(1, 151):
            weights["dead"].grad = torch.zeros(8, 8)
            weights["alive"].grad = torch.randn(8, 8, generator=generator)
            optimizer.step()
            if step % 10 == 0:
                alarms.norms(step, {name: float(weight.detach().norm()) for name, weight in weights.items()})
            if shrunk is None and float(weights["dead"].detach().norm()) < 0.01 * 8 * 0.95**10:
                shrunk = step
    (alarm,) = told(tmp_path)
    assert alarm["kind"] == "fall" and alarm["names"] == ["dead"] and "optim.safe=true" in alarm["line"]
    assert alarm["step"] == -(-shrunk // 10) * 10  # the first look after it fell below 1 % of its greatest
    assert len(caplog.records) == 1


def test_a_norm_that_rises_without_end_is_told_once(alarms, tmp_path):
    for step in range(12):
        alarms.norms(step, {"grows": 0.5 * 2.0**step, "starts at zero": 0.0 if step == 0 else 30.0, "still": 3.0})
    (alarm,) = told(tmp_path)
    assert alarm["kind"] == "rise" and alarm["names"] == ["grows"] and alarm["step"] == 8  # 128 > 100
    assert "clip_norm" in alarm["line"]


# ------------------------------------------------------------------------------------------------ sessions


def test_sessions_that_stay_below_zero_are_told_together_and_once(alarms, tmp_path):
    for step in range(0, 1001, 100):
        late = step >= 600
        alarms.scores(
            step, 1000, {"good": 0.5, "bad": -0.1, "worse": -2.0, "wakes": 0.1 if late else -0.5, "none": float("nan")}
        )
    (alarm,) = told(tmp_path)
    assert alarm["names"] == ["bad", "worse"] and alarm["step"] == 700  # 500, 600, 700
    assert alarm["line"].startswith("2 of 5 sessions")


def test_a_short_run_is_judged_by_two_validations_after_its_last_step(alarms, tmp_path):
    for step in (0, 4, 8):
        alarms.scores(step, 8, {"bad": -0.1, "late": -0.1 if step == 8 else 0.1})
    (alarm,) = told(tmp_path)
    assert alarm["names"] == ["bad"] and alarm["step"] == 8


# ------------------------------------------------------------------------------------------------ resuming


def test_a_resumed_run_tells_nothing_twice_and_forgets_what_comes_again(tmp_path):
    def look(alarms, steps):
        for step in steps:
            alarms.norms(step, {"w": 1.0 if step < 3 else 0.001, "v": 1.0 if step < 6 else 0.001})
            alarms.scores(step, 8, {"s": -1.0})

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    look(Alarms(whole, None, ALONE), range(9))
    alarms = Alarms(cut, None, ALONE)
    look(alarms, range(5))
    saved = json.loads(json.dumps(alarms.state_dict()))
    look(alarms, range(5, 7))  # killed after an alarm that the save does not know
    resumed = Alarms(cut, None, ALONE)
    resumed.load_state_dict(saved)
    look(resumed, range(5, 9))
    assert told(cut) == told(whole) == resumed.summary() and [alarm["kind"] for alarm in told(whole)] == [
        "fall",
        "fall",
        "below zero",
    ]
