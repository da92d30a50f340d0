"""Export: the weights of any save as one checkpoint that loads anywhere; nothing else is overwritten."""

import shutil

import pytest
import torch

from launch.cli import main
from pretrain.checkpoint import load_checkpoint, load_model
from pretrain.errors import CheckpointError, ConfigError
from pretrain.export import ExportConfig, export
from pretrain.optim import OptimConfig
from pretrain.saves import Saves
from pretrain.train import pretrain
from tests.pretrain.conftest import tiny_config


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def averaged(shards, tmp_path_factory):
    """A finished run that validates an average of its weights, with saves of steps 6 and 8."""
    folder = tmp_path_factory.mktemp("averaged") / "run"
    return pretrain(tiny_config(shards, folder, optim=OptimConfig(lr=5e-3, average=0.5)))


def test_the_best_is_the_checkpoint_of_the_run(pretrained, tmp_path):
    exported = export(ExportConfig(str(pretrained), str(tmp_path / "out")))
    one, other = load_checkpoint(tmp_path / "out"), load_checkpoint(pretrained)
    assert same(one.weights, other.weights) and (one.config, one.units, one.sessions) == (
        other.config,
        other.units,
        other.sessions,
    )
    assert exported.what == "the best weights on validation"


@pytest.mark.parametrize("which, step", [("last", 8), ("6", 6)])
def test_a_save_becomes_a_checkpoint(pretrained, tmp_path, which, step):
    exported = export(ExportConfig(str(pretrained), str(tmp_path / "out"), which))
    assert exported.what == f"the weights after step {step}"
    checkpoint = load_checkpoint(exported.folder)
    assert same(checkpoint.weights, Saves(pretrained / "saves").at(step).tensors("weights"))
    model, task = load_model(checkpoint)
    assert checkpoint.statistics.to_json() == load_checkpoint(pretrained).statistics.to_json()
    assert {f"model.{name}" for name in model.state_dict()} < checkpoint.weights.keys()


def test_the_average_is_exported_where_there_is_one(averaged, tmp_path):
    exported = export(ExportConfig(str(averaged), str(tmp_path / "out"), "last"))
    assert exported.what == "the average of the weights after step 8"
    save, weights = Saves(averaged / "saves").newest(), load_checkpoint(exported.folder).weights
    assert same(weights, save.tensors("average")) and not same(weights, save.tensors("weights"))


def test_an_older_checkpoint_is_replaced_and_nothing_else(pretrained, tmp_path):
    out = tmp_path / "out"
    export(ExportConfig(str(pretrained), str(out)))
    export(ExportConfig(str(pretrained), str(out), "6"))
    assert same(load_checkpoint(out).weights, Saves(pretrained / "saves").at(6).tensors("weights"))
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"out: holds what is no checkpoint \(notes.txt\); give a new folder"):
        export(ExportConfig(str(pretrained), str(out)))
    assert (out / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "settings, found",
    [
        (dict(run=""), "run: is not given"),
        (dict(output=""), "output: is not given"),
        (dict(run="nowhere"), "nowhere: not the folder of a run"),
        (dict(output="RUN/checkpoint"), "is the run's own checkpoint; give another folder"),
        (dict(output="RUN"), "holds what is no checkpoint"),
        (dict(output="RUN/config.yaml"), "is a file"),
        (dict(which="5"), "which: '5' is no save of .*; take best, last or one of 6, 8"),
        (dict(which="newest"), "which: 'newest' is no save"),
    ],
)
def test_what_cannot_be_meant_is_one_line(pretrained, tmp_path, settings, found):
    before = {path: path.stat().st_mtime_ns for path in pretrained.rglob("*")}
    given = dict(run="RUN", output=str(tmp_path / "out")) | settings
    given = {key: value.replace("RUN", str(pretrained)) for key, value in given.items()}
    with pytest.raises(ConfigError, match=found) as error:
        export(ExportConfig(**given))
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()
    assert {path: path.stat().st_mtime_ns for path in pretrained.rglob("*")} == before


def test_saves_that_are_missing_damaged_or_of_another_model_are_one_line(pretrained, tmp_path):
    run = shutil.copytree(pretrained, tmp_path / "run")
    saves = Saves(run / "saves")
    path = saves.at(8).path
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="step-00000008.safetensors: its bytes are not those that were written"):
        export(ExportConfig(str(run), str(tmp_path / "out"), "8"))
    saves.write(8, {"weights/model.unit.weight": torch.zeros(2, 2)}, {})
    with pytest.raises(
        CheckpointError, match="step-00000008.safetensors: weights/model.* is not as in the run's check"
    ):
        export(ExportConfig(str(run), str(tmp_path / "out"), "last"))
    shutil.rmtree(run / "saves")
    with pytest.raises(CheckpointError, match="run: has no saves; take which=best, or train on"):
        export(ExportConfig(str(run), str(tmp_path / "out"), "last"))
    shutil.rmtree(run / "checkpoint")
    with pytest.raises(CheckpointError, match="run: no checkpoint.json in it"):
        export(ExportConfig(str(run), str(tmp_path / "out")))


def test_the_command_tells_what_it_wrote(pretrained, tmp_path, capsys):
    words = ["export", f"run={pretrained}", f"output={tmp_path / 'out'}", "which=6"]
    assert main([*words, "--dry-run"]) == 0
    assert f"# would write which=6 of {pretrained} to {tmp_path / 'out'}; saves of steps there: 6, 8" in (
        capsys.readouterr().out
    )
    assert not (tmp_path / "out").exists()
    assert main(words) == 0
    assert capsys.readouterr().out == f"the weights after step 6 of {pretrained}: {tmp_path / 'out'}\n"
    assert main(["export"]) == 2 and "run=FOLDER output=FOLDER is missing" in capsys.readouterr().err
