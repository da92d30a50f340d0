"""Sessions are added to a root: what stands there keeps every byte, and it reads like a root written at once."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_prep.store import save_session
from sharding.errors import ConfigError, ShardError
from sharding.files import LocalFiles
from sharding.index import ShardIndex
from sharding.mapped import MappedMember
from sharding.root_lock import writing
from sharding.shard import ShardConfig, shard


@pytest.fixture
def stored(sessions, tmp_path):
    folder = tmp_path / "sessions"
    folder.mkdir()
    return [save_session(session, folder) for session in sessions]


@pytest.fixture
def config(stored, tmp_path):
    """Shards small enough that each session fills several."""
    return ShardConfig([str(path) for path in stored], str(tmp_path / "root"), segment_s=7.0, shard_mb=0.05)


def some(config, *numbers, **changed):
    return replace(config, sessions=[config.sessions[n] for n in numbers], **changed)


def state(root):
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in root.iterdir()}


def contents(index, session):
    """Everything that an index says of a session and all arrays that its segments lead to."""
    part, shards = index.select([session]), index.mapped()
    segments = part.segments
    names = sorted({name for row in segments.table.column("member").to_pylist() for name in row})
    members = {name: MappedMember(shards, segments, name) for name in names}
    arrays = [m.read(row, np.dtype("u1")).tobytes() for m in members.values() for row in range(len(segments))]
    columns = segments.table.drop_columns(["shard", "offset"])
    return part.session(session), part.units.to_pylist(), columns.to_pylist(), arrays


def assert_alike(index, other, sessions):
    for session in sessions:
        ours, others = contents(index, session.id), contents(other, session.id)
        assert str(ours[0].to_record()) == str(others[0].to_record())  # as text: NaN is NaN
        assert ours[1:] == others[1:]


def test_added_sessions_leave_the_old_shards_alone_and_read_as_if_written_at_once(config, sessions, tmp_path):
    first = shard(some(config, 0, 1))
    before, told = state(first.root), []
    index = shard(config, lambda *step: told.append(step))
    after = state(index.root)
    old = {name for name in before if name.endswith(".tar")}
    assert len(old) > 3 and all(after[name] == before[name] for name in old)
    assert [step[:2] for step in told] == [(0, 1), (1, 1)]  # only the third was read
    assert index.session_ids == tuple(s.id for s in sessions)
    at_once = shard(replace(config, output=str(tmp_path / "at_once")))
    assert_alike(index, at_once, sessions)
    for name in ("sessions", "units"):
        assert index.meta["tables"][name] == at_once.meta["tables"][name]
    assert index.summary()["spikes"] == at_once.summary()["spikes"] == index.meta["totals"]["spikes"]
    for entry in index.meta["shards"]:
        assert hashlib.sha256((index.root / entry["file"]).read_bytes()).hexdigest() == entry["sha256"]
    assert first.digest() != index.digest()


def test_the_same_sessions_in_another_order_are_there_already(config):
    index = shard(config)
    before = state(index.root)
    assert shard(some(config, 2, 0, 1)).digest() == index.digest()
    assert shard(some(config, 1, append=True)).digest() == index.digest()
    assert state(index.root) == before


def test_appending_needs_not_name_what_is_there(config, sessions):
    first = shard(some(config, 0))
    index = shard(some(config, 2, append=True))
    assert index.session_ids == (sessions[0].id, sessions[2].id)
    assert contents(index, sessions[0].id)[1:] == contents(first, sessions[0].id)[1:]


def test_sessions_that_are_not_given_are_never_lost(config):
    before = state(shard(some(config, 0, 1)).root)
    lost = "root: holds 1 sessions that are not given .made__m_0.h5.; give append=true to keep them, or delete it"
    for change in ({}, {"halo_s": 0.5}):
        with pytest.raises(ShardError, match=lost):
            shard(some(config, 1, 2, **change))
    assert state(Path(config.output)) == before
    (Path(config.output) / "valid-000000.tar").write_bytes(b"cut short")  # one shard of those that hold m_0
    with pytest.raises(ShardError, match=lost):
        shard(some(config, 1, 2))
    assert len(shard(config).session_ids) == 3  # all are given: written anew


def test_a_changed_session_is_written_anew_or_refused_where_others_cannot_be(config, sessions, session_maker):
    shard(some(config, 0, 1))
    save_session(session_maker(40, name=sessions[0].id), os.path.dirname(config.sessions[0]))
    index = shard(some(config, 0, 2, append=True))
    assert index.session_ids == (sessions[0].id, sessions[1].id, sessions[2].id)
    assert index.session(sessions[0].id).source_sha256 != index.refused[0].sha256
    assert f"{sessions[0].id}: is there already, from another file or an earlier state" in index.refused[0].message
    before = state(index.root)
    assert shard(some(config, 0, 2, append=True)).refused == index.refused and state(index.root) == before
    anew = shard(config)
    assert anew.session_ids == tuple(s.id for s in sessions) and anew.refused == ()
    assert anew.session(sessions[0].id).source_sha256 == index.refused[0].sha256


def test_a_refused_file_that_is_gone_does_not_cost_a_new_root(config, sessions, tmp_path):
    (tmp_path / "bad.h5").write_bytes(b"no session")
    index = shard(replace(config, sessions=[*config.sessions[:2], str(tmp_path / "bad.h5")]))
    before = state(index.root)
    assert [entry.file for entry in index.refused] == ["bad.h5"]
    assert shard(some(config, 0, 1)).digest() == index.digest() and state(index.root) == before
    assert shard(config).refused == ()


def test_appending_with_other_settings_or_to_a_damaged_root_is_refused(config):
    root = shard(some(config, 0)).root
    with pytest.raises(ShardError, match="was cut with halo_us 1000000 .now 500000.; append with equal settings"):
        shard(some(config, 1, append=True, halo_s=0.5))
    (root / "train-000000.tar").write_bytes(b"cut short")
    with pytest.raises(ShardError, match="train-000000.tar: has 9 bytes"):
        shard(some(config, 1, append=True))
    assert shard(some(config, 0, 1)).session_ids == ("made/m_0", "made/m_1")  # all can be written anew


KILLED = """
import os, signal, sys
import sharding.root, sharding.shard
def die(*args):
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[1] == "index":
    sharding.root.write_index = die
sharding.shard.shard(
    sharding.shard.ShardConfig(sys.argv[3:], sys.argv[2], segment_s=7.0, shard_mb=0.05),
    lambda done, total, name: die() if done == 1 and sys.argv[1] == "session" else None,
)
"""


@pytest.mark.parametrize("when", ["session", "index"])
def test_an_append_that_is_killed_leaves_the_old_root_and_the_next_run_finishes(config, sessions, tmp_path, when):
    first = shard(some(config, 0))
    before = state(first.root)
    done = subprocess.run([sys.executable, "-c", KILLED, when, config.output, *config.sessions], check=False)
    assert done.returncode == -signal.SIGKILL
    left = state(first.root)
    assert len([name for name in left if name.endswith(".tar")]) > len([n for n in before if n.endswith(".tar")])
    assert all(left[name] == before[name] for name in before)
    assert ShardIndex.open(first.root, verify=True).digest() == first.digest()
    index = shard(config)
    at_once = shard(replace(config, output=str(tmp_path / "at_once")))
    assert_alike(index, at_once, sessions)
    named = {entry["file"] for entry in [*index.meta["tables"].values(), *index.meta["shards"]]}
    tables = {entry["file"] for entry in first.meta["tables"].values()}  # stay for who reads the old index now
    assert {path.name for path in index.root.iterdir()} == named | tables | {"index.json"}


def test_a_reader_in_the_moment_of_an_append_reads_the_new_index(config, sessions, monkeypatch):
    shard(some(config, 0))
    old = LocalFiles(config.output).read("index.json")
    shard(some(config, 1, append=True))
    assert ShardIndex.of(LocalFiles(config.output), json.loads(old)).session_ids == (sessions[0].id,)  # still whole
    shard(some(config, 2, append=True))
    served, read = [old], LocalFiles.read
    monkeypatch.setattr(LocalFiles, "read", lambda files, name: served.pop() if served else read(files, name))
    assert ShardIndex.open(config.output).session_ids == tuple(session.id for session in sessions)
    assert not served


def test_two_runs_do_not_write_one_root_and_a_finished_one_needs_no_writing(config):
    index = shard(some(config, 0))
    with writing(index.root):
        assert shard(some(config, 0)).digest() == index.digest()
        with pytest.raises(ShardError, match=rf"is being written by process {os.getpid()} on "):
            shard(config)
    assert len(shard(config).sessions) == 3


def test_parts_share_the_sessions_and_one_without_any_writes_an_empty_root(config, tmp_path):
    found = []
    for number in range(1, 9):
        index = shard(replace(config, part=f"{number}/8", output=str(tmp_path / f"part-{number}")))
        assert shard(replace(config, part=f"{number}/8", output=str(index.root))).digest() == index.digest()
        assert index.summary()["sessions"] == len(index.sessions) == len(set(index.segments.session.tolist()))
        found += index.session_ids
    assert sorted(found) == ["made/m_0", "made/m_1", "made/m_2"]
    number = next(n for n in range(1, 9) if len(ShardIndex.open(tmp_path / f"part-{n}").sessions))
    for other in range(1, 9):  # two parts that are given one output do not wipe each other away
        if other != number:
            with pytest.raises(ShardError, match="holds sessions of another part; give each part an output of its own"):
                shard(replace(config, part=f"{other}/8", output=str(tmp_path / f"part-{number}")))
    with pytest.raises(ConfigError, match="part: there is no part 9/8"):
        shard(replace(config, part="9/8"))
