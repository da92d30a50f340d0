"""Checkpoints: whole or absent, the same model back bit by bit, one line for whatever else is found."""

import json
import os
import shutil

import pytest
import torch

import pretrain.checkpoint as module
from pretrain.checkpoint import FACTS, WEIGHTS, load_checkpoint, load_model, save_checkpoint
from pretrain.errors import CheckpointError


@pytest.fixture
def folder(pretrained, tmp_path):
    return shutil.copytree(pretrained / "checkpoint", tmp_path / "checkpoint")


def test_comes_back_bit_by_bit(folder, tmp_path):
    first = load_checkpoint(folder)
    save_checkpoint(tmp_path / "copy", first)
    again = load_checkpoint(tmp_path / "copy")
    assert again.weights.keys() == first.weights.keys()
    assert all(torch.equal(again.weights[name], weight) for name, weight in first.weights.items())
    assert (again.units, again.sessions, again.config) == (first.units, first.sessions, first.config)
    assert again.statistics.to_json() == first.statistics.to_json()
    model, task = load_model(again)
    assert all(torch.equal(weight, first.weights[f"model.{name}"]) for name, weight in model.state_dict().items())
    assert task.config.signal == "cursor_vel" and not model.training


def test_is_found_in_its_run_folder(pretrained):
    assert load_checkpoint(pretrained).sessions.ids == ("tiny/a", "tiny/b")


def _edit(change):
    def edit(folder):
        facts = json.loads((folder / FACTS).read_text())
        change(facts)
        (folder / FACTS).write_text(json.dumps(facts))

    return edit


def _cut(folder):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


def _flip(folder):
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-5] ^= 1
    (folder / WEIGHTS).write_bytes(data)


@pytest.mark.parametrize(
    "damage, found",
    [
        (shutil.rmtree, "no such folder"),
        (lambda folder: (folder / FACTS).unlink(), "no checkpoint.json"),
        (lambda folder: (folder / WEIGHTS).unlink(), "cannot be read"),
        (lambda folder: (folder / FACTS).write_text("{"), "not readable JSON"),
        (lambda folder: (folder / FACTS).write_text("[]"), "format None, not 1"),
        (_edit(lambda facts: facts.update(format=99)), "format 99, not 1"),
        (_edit(lambda facts: facts.pop("units")), "lacks units"),
        (_edit(lambda facts: facts["config"].pop("window_s")), "lacks config.window_s"),
        (_edit(lambda facts: facts.update(config="x")), "lacks config.model, config.task"),
        (_edit(lambda facts: facts.update(units=["x", "x"])), "a name occurs twice"),
        (_edit(lambda facts: facts.update(statistics={"s": 1})), "cannot be understood"),
        (_edit(lambda facts: facts.update(weights=3)), "cannot be understood"),
        (_cut, "bytes that are not"),
        (_flip, "bytes that are not"),
    ],
)
def test_what_is_not_whole_is_told_in_one_line(folder, damage, found):
    damage(folder)
    with pytest.raises(CheckpointError, match=found) as error:
        load_checkpoint(folder)
    assert "\n" not in str(error.value) and str(folder) in str(error.value) and error.value.exit_code == 1


@pytest.mark.parametrize(
    "change, found",
    [
        (lambda facts: facts["config"]["model"].update(width=24), "where the config says"),
        (lambda facts: facts["config"]["model"].update(depth=2), "is not in the weights"),
        (lambda facts: facts["config"]["model"].update(depth=0), "is unknown to the config"),
        (lambda facts: facts["config"]["model"].update(width="wide"), "builds no model"),
        (lambda facts: facts["config"]["model"].update(colour="red"), "unknown settings"),
        (lambda facts: facts["config"]["model"].update(name="other"), "'other' is not known here"),
        (lambda facts: facts["config"].update(dims=-1), "builds no model"),
        (lambda facts: facts["units"].pop(), "where the config says"),
    ],
)
def test_weights_that_do_not_fit_the_config_are_told_in_one_line(folder, change, found):
    _edit(change)(folder)
    with pytest.raises(CheckpointError, match=found) as error:
        load_model(load_checkpoint(folder), folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("renames", [0, 1])
def test_a_writer_that_dies_leaves_a_whole_checkpoint(folder, monkeypatch, renames):
    """Killed before the first rename or between the two, the old weights are still there; the next save succeeds."""
    old = load_checkpoint(folder)
    new = load_checkpoint(folder)
    new.weights["task.linear.bias"].add_(1)
    real, left = os.rename, [renames]

    def rename(source, target):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        real(source, target)

    monkeypatch.setattr(module.os, "rename", rename)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(folder, new)
    monkeypatch.undo()
    assert torch.equal(load_checkpoint(folder).weights["task.linear.bias"], old.weights["task.linear.bias"])
    save_checkpoint(folder, new)
    assert torch.equal(load_checkpoint(folder).weights["task.linear.bias"], new.weights["task.linear.bias"])
    assert sorted(p.name for p in folder.parent.iterdir()) == ["checkpoint"]


def test_a_full_disk_is_one_line_and_keeps_the_old_weights(folder, monkeypatch):
    old = load_checkpoint(folder)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left on device.*free space"):
        save_checkpoint(folder, old)
    monkeypatch.undo()
    assert load_checkpoint(folder).weights.keys() == old.weights.keys()
    assert sorted(p.name for p in folder.parent.iterdir()) == ["checkpoint"]
