"""Saves: what was written comes back bit by bit, whole or absent; damage is passed over, and the last few are kept."""

import json
import logging
import os
import resource
import signal
import stat

import pytest
import safetensors.torch
import torch

from pretrain.errors import CheckpointError
from pretrain.saves import WRITING, Saves
from tests.pretrain.warm import Moment, Warm

FACTS = {"loader": {"batch": 3, "place": 12}, "keeper": {"best": float("-inf"), "step": None}, "written_by": ["ddp", 2]}


def tensors(step: int = 0) -> dict[str, torch.Tensor]:
    """Pieces of one flat buffer, as a sharded optimiser gives them, a number, an empty table and a transposed matrix."""
    flat = torch.arange(24.0) + step
    return {
        "weights/model.a": flat[:10].view(2, 5),
        "weights/model.ab": flat[10:],
        "optimizer/model.a/m": torch.randn(2, 5, generator=torch.Generator().manual_seed(step)),
        "optimizer/model.a/step": torch.tensor(float(step)),
        "optimizer/model.none/m": torch.zeros(0, 3),
        "average/model.a": torch.arange(10.0).view(5, 2).T,
    }


@pytest.fixture
def saves(tmp_path):
    return Saves(tmp_path / "saves", keep=2)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_save_comes_back_bit_by_bit(saves):
    path = saves.write(300, tensors(), FACTS)
    assert path.name == "step-00000300.safetensors" and saves.steps() == [300]
    save = saves.newest()
    assert (save.step, save.path, save.facts) == (300, path, {"format": 1, "step": 300} | FACTS)
    assert same(save.tensors(), tensors())
    assert save.tensors("weights").keys() == {"model.a", "model.ab"}
    assert same(save.tensors("optimizer/model.a"), {"m": tensors()["optimizer/model.a/m"], "step": torch.tensor(0.0)})
    assert stat.S_IMODE(path.stat().st_mode) == 0o644 and os.listdir(saves.folder) == [path.name]


def test_what_is_done_to_the_tensors_of_a_save_does_not_reach_its_file(saves):
    before = saves.write(1, tensors(), FACTS).read_bytes()
    weights = saves.newest().tensors("weights")
    for weight in weights.values():
        weight.mul_(2)
    assert saves.at(1).path.read_bytes() == before and saves.newest().tensors("weights")["model.a"][0, 1] == 1.0


def test_other_readers_of_safetensors_read_a_save(saves):
    read = safetensors.torch.load_file(saves.write(1, tensors(), FACTS))
    assert same(read, tensors())


def test_the_last_few_are_kept_and_those_of_another_future_go(saves):
    for step in (10, 20, 30):
        saves.write(step, tensors(step), {})
    assert saves.steps() == [20, 30]
    saves.write(100_000_000, tensors(), {})  # nine digits
    assert saves.steps() == [30, 100_000_000]
    saves.write(31, tensors(), {})  # continued from 30
    assert saves.steps() == [30, 31] and saves.newest().step == 31
    saves.write(31, tensors(5), {})
    assert same(saves.newest().tensors(), tensors(5))


def test_without_saves_there_is_none(saves):
    assert saves.newest() is None and saves.steps() == []
    saves.write(5, tensors(), {})
    assert saves.newest(until=4) is None and saves.newest(until=5).step == 5


def _cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _flip(place: int):
    def flip(data: bytes) -> bytes:
        return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]

    return flip


@pytest.mark.parametrize(
    "damage",
    [_cut, _flip(-4), _flip(1), lambda data: b"", lambda data: data.replace(b"place", b"plaice"[:5])],
    ids=["cut", "a tensor's byte", "the header's length", "empty", "a fact"],
)
def test_a_damaged_save_is_passed_over_and_named(saves, caplog, damage):
    saves.write(10, tensors(10), FACTS)
    path = saves.write(20, tensors(20), FACTS)
    path.write_bytes(damage(path.read_bytes()))
    with caplog.at_level(logging.WARNING, "spikeloom"):
        save = saves.newest()
    assert save.step == 10 and same(save.tensors(), tensors(10))
    (told,) = caplog.messages
    assert str(path) in told and told.endswith("; it is passed over") and "\n" not in told
    saves.write(20, tensors(20), FACTS)
    assert saves.newest().step == 20


def test_where_all_are_damaged_the_run_is_not_begun_again_unasked(saves):
    for step in (10, 20):
        path = saves.write(step, tensors(), {})
        path.write_bytes(_cut(path.read_bytes()))
    with pytest.raises(CheckpointError, match=r"saves: no save is whole \(step-00000010.*\); remove the saves to") as e:
        saves.newest()
    assert "\n" not in str(e.value)


def _metadata(**facts) -> dict[str, str]:
    return {"facts": json.dumps(facts)}


@pytest.mark.parametrize(
    "metadata, found",
    [
        (_metadata(format=2, step=7), "format 2, not 1; continue with the version of spikeloom that began the run"),
        (_metadata(format=1, step=8), "holds step 8; give it back its name"),
        (_metadata(format=1), "not a save of a run; give the folder of a run"),
        ({"facts": "[]"}, "not a save of a run"),
        ({"facts": "{"}, "not a save of a run"),
        (None, "not a save of a run"),
    ],
)
def test_what_is_no_save_of_ours_is_refused_in_a_line(saves, metadata, found):
    path = saves.write(7, {"a": torch.zeros(3)}, {})
    safetensors.torch.save_file({"a": torch.zeros(3)}, path, metadata)
    with pytest.raises(CheckpointError, match=f"step-00000007.safetensors: {found}"):
        saves.at(7)


def test_a_newer_format_is_not_passed_over_for_an_older_save(saves):
    saves.write(6, tensors(), {})
    path = saves.write(7, tensors(), {})
    safetensors.torch.save_file({"a": torch.zeros(3)}, path, _metadata(format=2, step=7))
    with pytest.raises(CheckpointError, match="format 2"):
        saves.newest()


def test_an_absent_save_is_one_line(saves):
    with pytest.raises(CheckpointError, match="step-00000003.safetensors: cannot be read .No such file or directory"):
        saves.at(3)


def test_a_full_disk_is_one_line_and_leaves_the_saves_as_they_were(saves):
    """A limit on the size of files stands for a disk that is full in the middle of a write."""
    big = {"weights/model.a": torch.zeros(100_000)}
    first = saves.write(1, tensors(), {}).read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(CheckpointError, match="could not be written .File too large.; free space") as error:
            saves.write(2, big, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(error.value) and error.value.where == saves.folder / "step-00000002.safetensors"
    assert os.listdir(saves.folder) == ["step-00000001.safetensors"] and saves.at(1).path.read_bytes() == first
    saves.write(2, big, {})
    assert saves.steps() == [1, 2]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="step-00000001.safetensors: could not be written .Not a directory"):
        Saves(tmp_path / "file").write(1, tensors(), {})


def write_on(folder: str) -> None:
    """A save a step until something ends it."""
    saves = Saves(folder, keep=2)
    for step in range(1, 100_000):
        saves.write(step, {"weights/a": torch.full((1_000_000,), float(step))}, {"of": step})


def test_a_writer_killed_at_any_moment_leaves_whole_saves(saves):
    """Real kills, two of them aimed at the middle of a write."""
    cut = 0
    with Warm("pretrain.saves") as warm:
        for pattern in ("step-00000008*", f"{WRITING}/*", "step-00000009*", f"{WRITING}/*"):
            moment = Moment(0.0, str(saves.folder), ("step-00000007*", pattern))
            assert warm.run(write_on, str(saves.folder), moment=moment)[0] == [-signal.SIGKILL]
            cut += any(saves.folder.glob(f"{WRITING}/*"))
            assert 1 <= len(saves.steps()) <= 3  # a kill may come before the oldest goes
            for step in saves.steps():
                save = saves.at(step)
                save.check()
                assert save.facts["of"] == step and (save.tensors()["weights/a"] == step).all()
            saves.clear()
            assert {path.suffix for path in saves.folder.iterdir()} == {".safetensors"}
    assert cut  # in the middle of a write
