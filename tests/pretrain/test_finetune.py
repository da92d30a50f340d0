"""Finetuning: unit identification moves new rows and nothing else; full finetuning frees the rest after its steps."""

from dataclasses import replace

import pytest
import torch

from pretrain.checkpoint import load_checkpoint, load_model
from pretrain.errors import CheckpointError, ConfigError
from pretrain.finetune import FinetuneConfig, finetune
from pretrain.module import DecodingModule
from pretrain.optim import OptimConfig
from pretrain.saves import Saves
from pretrain.train import pretrain
from pretrain.trainer import TrainerConfig
from sharding.index import ShardIndex
from sharding.loader import LoaderConfig
from tests.pretrain.conftest import make_session, make_shards, tiny_config

TABLES = ("model.unit.weight", "model.session.weight")


def tiny_finetune(pretrained, shards, run, **settings) -> FinetuneConfig:
    """Six steps on session c."""
    return FinetuneConfig(
        **{
            "checkpoint": str(pretrained),
            "shards": str(shards),
            "run": str(run),
            "sessions": ["tiny/c"],
            "mode": "unit_id",
            "optim": OptimConfig(name="adamw", lr=0.02),
            "loader": LoaderConfig(batch_windows=4),
            "trainer": TrainerConfig(steps=6, val_every=6, save_every=6, log_every=2, device="cpu", threads=1),
        }
        | settings
    )


def last(run):
    return Saves(run / "saves").newest().tensors("weights")


@pytest.mark.parametrize(
    "optim",
    [
        OptimConfig(name="adamw", lr=0.02, weight_decay=0.1),
        OptimConfig(name="lamb", lr=0.02, weight_decay=0.1),
    ],
)
def test_unit_identification_moves_the_new_rows_and_not_a_bit_else(shards, pretrained, tmp_path, optim):
    old = load_checkpoint(pretrained)
    run = finetune(tiny_finetune(pretrained, shards, tmp_path / "run", optim=optim))
    new, exported = last(run), load_checkpoint(run)
    assert new.keys() == old.weights.keys()
    for name, weight in old.weights.items():
        assert torch.equal(new[name][: len(weight)], weight), name
        assert torch.equal(exported.weights[name][: len(weight)], weight), name
    assert len(new["model.unit.weight"]) == len(old.units) + 14
    assert len(new["model.session.weight"]) == len(old.sessions) + 1
    torch.manual_seed(42)
    model, _ = load_model(old)
    model.grow(exported.units, exported.sessions)
    for name in TABLES:
        fresh = model.state_dict()[name.removeprefix("model.")]
        assert (new[name][len(old.weights[name]) :] != fresh[len(old.weights[name]) :]).any(dim=1).all()
    assert exported.units.ids[: len(old.units.ids)] == old.units.ids
    assert exported.sessions.ids == (*old.sessions.ids, "tiny/c")
    assert {"tiny/a", "tiny/b", "tiny/c"} <= exported.statistics.of_session.keys()


def test_no_optimiser_state_is_kept_for_what_never_moves(shards, pretrained, tmp_path):
    run = finetune(tiny_finetune(pretrained, shards, tmp_path / "run"))
    kept = Saves(run / "saves").newest().tensors("optimizer")
    assert {name.rpartition("/")[0] for name in kept} == set(TABLES)


def test_known_sessions_beside_new_ones_keep_their_rows_in_unit_identification(shards, pretrained, tmp_path):
    run = finetune(tiny_finetune(pretrained, shards, tmp_path / "run", sessions=["*"]))
    old = load_checkpoint(pretrained)
    assert all(torch.equal(last(run)[name][: len(weight)], weight) for name, weight in old.weights.items())


@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_full_finetuning_frees_all_after_its_frozen_steps(shards, pretrained, tmp_path, name):
    old = load_checkpoint(pretrained)
    config = tiny_finetune(
        pretrained, shards, tmp_path / "frozen", mode="full", freeze_steps=6, optim=OptimConfig(name=name, lr=0.02)
    )
    frozen = last(finetune(config))
    assert all(torch.equal(frozen[key][: len(weight)], weight) for key, weight in old.weights.items())
    freed = last(finetune(replace(config, run=str(tmp_path / "freed"), freeze_steps=5)))
    moved = {key for key, weight in old.weights.items() if not torch.equal(freed[key][: len(weight)], weight)}
    untouched = {*TABLES, "model.rotary.omega"} | {key for key in old.weights if "rotary" in key}
    assert moved >= old.weights.keys() - untouched - {"model.kind"}
    assert not moved & set(TABLES)  # rows of sessions that are not there stay, whatever the optimiser carries along


def test_step_zero_counts_as_a_candidate(shards, pretrained, tmp_path):
    """A finetuning that only does harm exports the weights it began with."""
    old = load_checkpoint(pretrained)
    config = tiny_finetune(
        pretrained,
        shards,
        tmp_path / "run",
        mode="full",
        freeze_steps=0,
        sessions=["tiny/a"],
        optim=OptimConfig(name="adamw", lr=0.5),
    )
    weights = load_checkpoint(finetune(config)).weights
    assert all(torch.equal(weights[name], weight) for name, weight in old.weights.items())


def test_scratch_is_the_same_architecture_untrained_for_these_sessions_alone(shards, pretrained, tmp_path):
    run = finetune(tiny_finetune(pretrained, shards, tmp_path / "run", mode="scratch"))
    old, new = load_checkpoint(pretrained), load_checkpoint(run)
    assert new.sessions.ids == ("tiny/c",) and len(new.units.ids) == 14
    assert new.config["model"] == old.config["model"] and new.config["task"] == old.config["task"]
    assert not torch.equal(new.weights["model.latent"], old.weights["model.latent"])
    trainer = TrainerConfig(steps=6, val_every=6, save_every=6, device="cpu")
    plain = pretrain(
        tiny_config(
            shards, tmp_path / "plain", sessions=["tiny/c"], trainer=trainer, optim=OptimConfig(name="adamw", lr=0.02)
        )
    )
    assert all(torch.equal(weight, last(run)[name]) for name, weight in last(plain).items())  # trained as from scratch


def test_an_interrupted_finetuning_ends_with_the_same_bits(shards, pretrained, tmp_path, monkeypatch):
    config = tiny_finetune(pretrained, shards, tmp_path / "whole", mode="full", freeze_steps=3)
    config = replace(config, trainer=replace(config.trainer, save_every=2))
    whole = last(finetune(config))
    step = DecodingModule.training_step
    with monkeypatch.context() as patch:
        patch.setattr(
            DecodingModule, "training_step", lambda self, *a: 1 / 0 if self.global_step == 5 else step(self, *a)
        )
        with pytest.raises(ZeroDivisionError):
            finetune(replace(config, run=str(tmp_path / "cut")))
    resumed = last(finetune(replace(config, run=str(tmp_path / "cut"))))
    assert all(torch.equal(resumed[name], weight) for name, weight in whole.items())


def test_minutes_of_data_limit_what_is_learned_from_and_how_it_is_scaled(shards, pretrained, tmp_path):
    few = tiny_finetune(pretrained, shards, tmp_path / "few", minutes_of_data=0.1)
    index = ShardIndex.open(shards).matching(["tiny/c"])
    scale = load_checkpoint(finetune(few)).statistics["tiny/c"][1]
    assert scale == pytest.approx(index.limited(0.1).session("tiny/c").statistics["cursor_vel"].robust_std)
    assert scale != pytest.approx(index.session("tiny/c").statistics["cursor_vel"].robust_std)


@pytest.mark.parametrize(
    "change, error, found",
    [
        ({"mode": "half"}, ConfigError, "'half' is not a way to finetune; take one of unit_id"),
        ({"checkpoint": ""}, ConfigError, "checkpoint: is not given"),
        ({"checkpoint": "/nowhere"}, CheckpointError, "no such folder"),
        ({"sessions": ["tiny/a"]}, ConfigError, "already knows all units"),
        ({"minutes_of_data": 0.001}, ConfigError, "no train interval"),
    ],
)
def test_what_cannot_be_meant_is_one_line(shards, pretrained, tmp_path, change, error, found):
    with pytest.raises(error, match=found):
        finetune(replace(tiny_finetune(pretrained, shards, tmp_path / "run"), **change))


def test_another_number_of_dimensions_is_refused(pretrained, tmp_path):
    session = make_session("d", seconds=30)
    signal = session.signals["cursor_vel"]
    flat = replace(session, signals={"cursor_vel": replace(signal, value=signal.value[:, :1])})
    root = make_shards(tmp_path, [flat])
    with pytest.raises(ConfigError, match="has 1 dimensions, the checkpoint decodes 2"):
        finetune(tiny_finetune(pretrained, root, tmp_path / "run", sessions=["tiny/d"]))
