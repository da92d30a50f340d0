"""Pretraining: it learns, resumes bit by bit, keeps the best weights, and refuses what cannot be meant."""

import csv
import gc
import json
import multiprocessing
import resource
import shutil
import threading
from dataclasses import replace

import pytest
import torch

from pretrain.checkpoint import load_checkpoint
from pretrain.errors import CheckpointError, ConfigError, ShardError
from pretrain.module import DecodingModule
from pretrain.saves import Saves
from pretrain.tracking import MEASURED
from pretrain.train import pretrain
from sharding.cache import CacheConfig
from sharding.loader import LoaderConfig
from sharding.mix import MixConfig
from tests.pretrain.conftest import tiny_config, tiny_model
from tests.sharding.shard_server import ShardServer


def rows(run):
    with open(run / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def final_save(run):
    return Saves(run / "saves").newest()


def weights_of(run):
    return final_save(run).tensors("weights")


def assert_same_end(one, other):
    """Two runs ended with the same bits in everything that a save holds."""
    one, other = final_save(one), final_save(other)
    ours, theirs = one.tensors(), other.tensors()
    assert ours.keys() == theirs.keys() and one.facts["loader"] == other.facts["loader"]
    assert not [name for name in theirs if not torch.equal(ours[name], theirs[name])]


def test_the_run_folder_holds_what_the_contract_says(pretrained):
    found = rows(pretrained)
    assert [row["step"] for row in found] == ["0", "2", "4", "6", "8"]
    assert [bool(row["valid/r2"]) for row in found] == [True, False, True, False, True]
    last = {name: float(value) for name, value in found[-1].items() if value}  # no MFU on a CPU of unknown peak
    assert last["windows"] == 32 and last["valid/r2"] == pytest.approx(
        (last["valid/r2/tiny/a"] + last["valid/r2/tiny/b"]) / 2, abs=1e-6
    )
    assert last["train/grad_norm"] > 0 and last["epoch"] == pytest.approx(32 / 70, abs=1e-6)  # of 2 x 35 windows
    told = json.loads((pretrained / "provenance.json").read_text())
    assert told["finished"] and told["shards"]["digest"] and {"spikeloom", "torch"} <= told["versions"].keys()
    assert final_save(pretrained).step == 8 and Saves(pretrained / "saves").steps() == [6, 8]


def test_the_best_weights_on_validation_are_kept(pretrained):
    best = json.loads((pretrained / "provenance.json").read_text())["best"]
    scored = [row for row in rows(pretrained) if row["valid/r2"]]
    top = max(scored, key=lambda row: float(row["valid/r2"]))
    assert best["step"] == int(top["step"]) and best["valid/r2"] == pytest.approx(float(top["valid/r2"]), abs=1e-6)


def test_it_learns(shards, tmp_path):
    config = tiny_config(shards, tmp_path / "run", steps=150)
    config = replace(
        config,
        sessions=["tiny/a"],
        loader=LoaderConfig(batch_windows=8),
        seed=1,
        trainer=replace(config.trainer, val_every=150, save_every=150),
    )
    scores = [float(row["valid/r2"]) for row in rows(pretrain(config)) if row["valid/r2"]]
    assert scores[0] < 0.05 and scores[-1] > 0.2


class Cut(Exception):
    pass


def cut_at(config, step, monkeypatch):
    """Run until just before that step is taken."""
    training_step = DecodingModule.training_step

    def cut(self, batch, batch_idx):
        if self.global_step == step:
            raise Cut
        return training_step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(DecodingModule, "training_step", cut)
        with pytest.raises(Cut):
            pretrain(config)
    gc.collect()
    assert not [thread for thread in threading.enumerate() if thread.name == "batches ahead"]


def without_time(run):
    return [{key: value for key, value in row.items() if not key.startswith(MEASURED)} for row in rows(run)]


@pytest.mark.parametrize("at", [2, 3, 7])  # before the first save at step 3, right after it, after the second at 6
def test_a_run_cut_short_ends_with_the_same_bits(shards, pretrained, tmp_path, monkeypatch, at):
    config = tiny_config(shards, tmp_path / "run")
    cut_at(config, at, monkeypatch)
    assert Saves(tmp_path / "run" / "saves").steps() == [step for step in (3, 6) if step <= at]
    torch.manual_seed(123)  # whatever was drawn meanwhile
    run = pretrain(config)
    assert_same_end(run, pretrained)
    assert without_time(run) == without_time(pretrained)  # every step once
    one, other = load_checkpoint(run).weights, load_checkpoint(pretrained).weights
    assert all(torch.equal(one[name], other[name]) for name in other)


@pytest.mark.parametrize(
    "first, then",
    [
        (dict(batch_tokens=2000), dict(workers=1)),
        (dict(batch_windows=33, drop_rest=False, mix=MixConfig(temperature=2.0), block_shards=1), dict(prefetch=0)),
    ],
)
def test_batches_of_differing_sizes_are_counted_and_resumed_as_they_come(shards, tmp_path, monkeypatch, first, then):
    seen, training_step = [], DecodingModule.training_step

    def watched(self, batch, batch_idx):
        seen.append(batch.batch.place_B.tolist())
        return training_step(self, batch, batch_idx)

    monkeypatch.setattr(DecodingModule, "training_step", watched)
    whole = pretrain(tiny_config(shards, tmp_path / "whole", loader=LoaderConfig(**first)))
    expected, seen[:] = list(seen), []
    assert len({len(places) for places in expected}) > 1
    for row in rows(whole):
        trained = expected[: int(row["step"])]
        assert int(row["windows"]) == sum(map(len, trained))
        place = trained[-1][-1] + 1 if trained else 0
        assert float(row["epoch"]) == pytest.approx(place / 70, abs=1e-6)  # 2 x 35 windows
    cut_at(tiny_config(shards, tmp_path / "run", loader=LoaderConfig(**first)), 5, monkeypatch)
    assert seen == expected[:5]
    seen.clear()
    run = pretrain(tiny_config(shards, tmp_path / "run", loader=LoaderConfig(**first | then)))
    assert seen == expected[3:]  # from the last save on, none skipped for having been fetched ahead
    assert_same_end(run, whole)
    assert without_time(run) == without_time(whole)


def test_a_run_begun_on_a_folder_goes_on_from_a_server_with_the_same_bits(shards, pretrained, tmp_path, monkeypatch):
    server = ShardServer({path.name: path.read_bytes() for path in shards.iterdir()})
    server.start()
    try:
        config = tiny_config(shards, tmp_path / "run")
        cut_at(config, 5, monkeypatch)
        cache = CacheConfig(folder=str(tmp_path / "cache"))
        run = pretrain(replace(config, shards=server.url, cache=cache))
    finally:
        server.stop()
    assert_same_end(run, pretrained)
    assert without_time(run) == without_time(pretrained)


def test_a_run_is_continued_with_its_own_batches_and_by_its_own_version_alone(shards, tmp_path, monkeypatch):
    config = tiny_config(shards, tmp_path / "run")
    cut_at(config, 4, monkeypatch)
    save = final_save(tmp_path / "run")
    loader = save.facts["loader"] | {"plan": save.facts["loader"]["plan"] ^ 1}
    Saves(tmp_path / "run" / "saves").write(save.step, save.tensors(), save.facts | {"loader": loader})
    with pytest.raises(ConfigError, match="the run: was begun with other batches"):
        pretrain(config)
    (tmp_path / "run" / "last.ckpt").touch()
    with pytest.raises(
        ConfigError, match="holds last.ckpt, an unfinished run of an older version; finish it with that"
    ):
        pretrain(config)


def test_a_finished_run_is_left_as_it_is(shards, pretrained, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in pretrained.rglob("*")}
    monkeypatch.setattr(DecodingModule, "training_step", None)
    assert pretrain(tiny_config(shards, pretrained)) == pretrained
    assert {path: path.stat().st_mtime_ns for path in pretrained.rglob("*")} == before


def test_other_settings_in_a_run_folder_are_refused_by_name(shards, pretrained):
    config = tiny_config(shards, pretrained, model=tiny_model(depth=2), seed=7)
    with pytest.raises(ConfigError, match="model.depth: 1 there, 2 here, seed: 42 there, 7 here") as error:
        pretrain(config)
    assert error.value.exit_code == 2
    free = tiny_config(shards, pretrained)  # where and how fast may differ
    pretrain(replace(free, trainer=replace(free.trainer, threads=2), loader=replace(free.loader, workers=1)))


def test_a_damaged_save_is_passed_over_and_where_all_are_that_is_one_line(shards, pretrained, tmp_path, caplog):
    run = shutil.copytree(pretrained, tmp_path / "run")
    told = json.loads((run / "provenance.json").read_text())
    (run / "provenance.json").write_text(json.dumps(told | {"finished": None}))
    older, newer = sorted((run / "saves").iterdir())
    newer.write_bytes(newer.read_bytes()[:-1000])
    pretrain(tiny_config(shards, run))
    assert_same_end(run, pretrained)
    assert newer.name in caplog.text
    (run / "provenance.json").write_text(json.dumps(told | {"finished": None}))
    for path in (older, newer):
        path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="saves: no save is whole .*; remove the saves to begin") as error:
        pretrain(tiny_config(shards, run))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change, found",
    [
        ({"shards": ""}, "shards: is not given"),
        ({"run": ""}, "run: is not given"),
        ({"sessions": ["nothing/*"]}, "no session fits 'nothing/\\*'"),
        ({"exclude": ["tiny/*"]}, "leaves no session"),
    ],
)
def test_what_cannot_be_meant_is_one_line(shards, tmp_path, change, found):
    with pytest.raises(ConfigError, match=found):
        pretrain(replace(tiny_config(shards, tmp_path / "run"), **change))
    assert not (tmp_path / "run").exists()


def test_an_absent_signal_is_named(shards, tmp_path):
    config = tiny_config(shards, tmp_path / "run")
    with pytest.raises(ConfigError, match="no signal 'hand_vel'"):
        pretrain(replace(config, task=replace(config.task, signal="hand_vel")))


def test_a_loss_that_is_not_finite_stops_the_run_before_it_can_be_saved(shards, tmp_path, monkeypatch):
    addend = DecodingModule.addend

    def spoiled(self, batch):
        return addend(self, batch) * (float("nan") if self.global_step == 4 else 1.0)

    monkeypatch.setattr(DecodingModule, "addend", spoiled)
    with pytest.raises(ConfigError, match="step 5: the loss is nan .*; look closer by .spikeloom replay run="):
        pretrain(tiny_config(shards, tmp_path / "run"))
    assert Saves(tmp_path / "run" / "saves").steps() == [3]
    assert (tmp_path / "run" / "alarms" / "step-5.json").is_file()


def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(shards, pretrained, tmp_path):
    """A limit on the size of files stands for a disk that is full in the middle of a write."""
    config = tiny_config(shards, tmp_path / "run")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    exported = sum(path.stat().st_size for path in (pretrained / "checkpoint").iterdir())
    resume = final_save(pretrained).path.stat().st_size
    for room in (exported // 4, (exported + resume) // 2):  # too little for the weights, then for a save
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        try:
            with pytest.raises(CheckpointError, match="could not be written .File too large.; free space") as error:
                pretrain(config)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert "\n" not in str(error.value) and not Saves(tmp_path / "run" / "saves").steps()
        assert not list((tmp_path / "run").glob(".*"))
    assert_same_end(pretrain(config), pretrained)


def test_workers_hand_over_the_same_batches(shards, pretrained, tmp_path):
    config = tiny_config(shards, tmp_path / "run", loader=LoaderConfig(batch_windows=4, workers=1))
    before = set(multiprocessing.active_children())
    assert_same_end(pretrain(config), pretrained)
    assert set(multiprocessing.active_children()) <= before  # those that stayed for validations ended with the run


def test_a_flipped_byte_in_a_shard_stops_a_training_before_its_first_step(shards, tmp_path):
    shutil.copytree(shards, tmp_path / "shards")
    tar = next((tmp_path / "shards").glob("train-*.tar"))
    data = bytearray(tar.read_bytes())
    data[len(data) // 2] ^= 1
    tar.write_bytes(data)
    with pytest.raises(ShardError, match=f"{tar.name}: its sha256 is not what the index says; "):
        pretrain(tiny_config(tmp_path / "shards", tmp_path / "run"))
    assert {row["step"] for row in rows(tmp_path / "run")} <= {"0"}
    assert not Saves(tmp_path / "run" / "saves").steps()
    shutil.rmtree(tmp_path / "run")
    assert pretrain(tiny_config(tmp_path / "shards", tmp_path / "run", verify=False)).exists()
