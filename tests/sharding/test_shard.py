"""Stage 2: stored sessions become a root; a finished one is kept, a bad session is told, torch is not needed."""

import errno
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_prep.session import Intervals
from data_prep.store import save_session
from sharding.errors import ConfigError, ShardError
from sharding.index import ShardIndex
from sharding.shard import ShardConfig, shard


@pytest.fixture
def stored(sessions, tmp_path):
    folder = tmp_path / "sessions"
    folder.mkdir()
    for session in sessions:
        save_session(session, folder)
    return folder


def state(folder):
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}


def test_a_finished_root_is_kept_and_another_config_or_session_writes_it_anew(stored, session_maker, tmp_path):
    config = ShardConfig(str(stored), str(tmp_path / "root"), segment_s=7.0)
    index = shard(config)
    assert index.session_ids == ("made/m_0", "made/m_1", "made/m_2") and index.refused == ()
    before = state(index.root)
    assert shard(config).digest() == index.digest() and state(index.root) == before
    save_session(session_maker(9, seconds=20.0), stored)
    assert shard(config).session_ids == (*index.session_ids, "made/m_9")
    assert shard(replace(config, segment_s=5.0)).meta["config"]["segment_us"] == 5_000_000
    (index.root / "train-000000.tar").write_bytes(b"cut short")
    assert len(shard(replace(config, segment_s=5.0)).session_ids) == 4


def test_what_a_broken_off_run_left_is_cleaned_away_and_nothing_else(stored, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    for name in (".train-000000.tar.partial", "train-000007.tar", "sessions.parquet"):
        (root / name).write_bytes(b"rest")
    (root / "notes.txt").write_text("mine")
    with pytest.raises(ShardError, match="holds no index.json"):
        ShardIndex.open(root)
    shard(ShardConfig([str(stored)], str(root)))
    assert sorted(re.sub("-[0-9a-f]{8}[.]", "-DIGEST.", path.name) for path in root.iterdir()) == [
        "index.json",
        "notes.txt",
        "segments-DIGEST.parquet",
        "sessions-DIGEST.parquet",
        "test-000000.tar",
        "train-000000.tar",
        "units-DIGEST.parquet",
        "valid-000000.tar",
    ]


def test_a_bad_session_is_told_and_the_rest_goes_on(stored, sessions, session_maker, tmp_path):
    whole = sorted(stored.iterdir())[1]
    whole.write_bytes(whole.read_bytes()[:3000])
    save_session(replace(session_maker(5), splits={s: Intervals.of([]) for s in ("train", "valid", "test")}), stored)
    told = []
    index = shard(ShardConfig(str(stored), str(tmp_path / "root")), lambda *step: told.append(step))
    assert index.session_ids == ("made/m_0", "made/m_2")
    assert [entry.file for entry in index.refused] == [whole.name, "made__m_5.h5"]
    assert "has no time in the splits" in index.refused[1].message
    assert [step[:2] for step in told] == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    assert ShardIndex.open(index.root, verify=True).refused == index.refused
    assert shard(ShardConfig(str(stored), str(tmp_path / "root"))).refused == index.refused


def test_when_every_session_is_bad_nothing_is_left_that_looks_whole(stored, tmp_path):
    for path in stored.iterdir():
        path.write_bytes(b"")
    with pytest.raises(ShardError, match="no session could be sharded"):
        shard(ShardConfig(str(stored), str(tmp_path / "root")))
    assert list((tmp_path / "root").iterdir()) == []


def test_the_same_session_from_two_folders_is_taken_once(stored, sessions, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    save_session(sessions[0], other)
    index = shard(ShardConfig([str(stored), str(other / "made__m_0.h5")], str(tmp_path / "root")))
    assert len(index.sessions) == 3 and "is there already, from another file" in index.refused[0].message


REFUSED = {
    "output: is not given": {"output": ""},
    "sessions: is not given": {"sessions": ""},
    "nowhere: does not exist": {"sessions": "nowhere"},
    "halo_s: is 0": {"halo_s": 0.0},
    "segment_s: with halo_s is 4001": {"segment_s": 4000.0},
    r"splits: is \['training'\]; choose among train": {"splits": ["training"]},
}


@pytest.mark.parametrize("found", REFUSED)
def test_senseless_settings_are_refused(stored, tmp_path, found):
    with pytest.raises((ConfigError, ShardError), match=found):
        shard(replace(ShardConfig(str(stored), str(tmp_path / "root")), **REFUSED[found]))


def test_an_empty_folder_and_a_foreign_index_are_refused(stored, tmp_path):
    root, empty = tmp_path / "root", tmp_path / "empty"
    root.mkdir(), empty.mkdir()
    with pytest.raises(ShardError, match="holds no stored session; run `spikeloom prepare`"):
        shard(ShardConfig(str(empty), str(root)))
    (root / "index.json").write_text('{"mine": 1}')
    with pytest.raises(ShardError, match="delete it or choose another output folder"):
        shard(ShardConfig(str(stored), str(root)))
    assert (root / "index.json").read_text() == '{"mine": 1}'


WITHOUT_TORCH = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "webdataset"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import resource
from sharding.errors import DataError
from sharding.shard import ShardConfig, shard
if len(sys.argv) > 3:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), int(sys.argv[3])))
try:
    print(len(shard(ShardConfig(sys.argv[1], sys.argv[2])).sessions), "torch" in sys.modules)
except DataError as error:
    print(error)
"""


def without_torch(*args):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT_TORCH, *map(str, args)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.stderr
    return done.stdout.strip()


def test_sharding_needs_no_torch(stored, tmp_path):
    assert without_torch(stored, tmp_path / "root") == "3 False"


@pytest.mark.parametrize("last, told", [("units.parquet", "units-.*parquet"), ("index.json", "index.json")])
def test_a_disk_that_fills_up_at_the_very_end_leaves_no_index(stored, tmp_path, monkeypatch, last, told):
    def fsync(handle, sync=os.fsync):
        if Path(os.readlink(f"/proc/self/fd/{handle}")).name == f".{last}.partial":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(ShardError, match=f"{told}: could not be written .No space left on device.; free space"):
        shard(ShardConfig(str(stored), str(tmp_path / "root")))
    assert not list((tmp_path / "root").glob(".*")) and not (tmp_path / "root" / "index.json").exists()
    monkeypatch.undo()
    assert len(shard(ShardConfig(str(stored), str(tmp_path / "root"))).sessions) == 3


def test_a_full_disk_stops_in_one_line_and_the_root_is_not_taken_for_whole(stored, tmp_path):
    root = tmp_path / "root"
    said = without_torch(stored, root, 100_000)
    assert "train-000000.tar: could not be written (File too large); free space" in said and len(said.splitlines()) == 1
    with pytest.raises(ShardError, match="holds no index.json"):
        ShardIndex.open(root)
    assert not list(root.glob(".*"))
    assert without_torch(stored, root) == "3 False"  # room again: what was left is cleaned away
    np.testing.assert_array_equal([s.units for s in ShardIndex.open(root, verify=True).sessions], [12, 7, 30])
