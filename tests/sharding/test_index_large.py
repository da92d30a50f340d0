"""An index of very many sessions: opening reads a few columns, asking for a few sessions reads their rows."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharding.errors import ShardError
from sharding.index_meta import meta_digest
from sharding.tables_stored import ROWS, StoredTable
from tests.sharding.large_root import MEMBERS, large_root, opened

SESSIONS, UNITS = 800, 60


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    index = large_root(tmp_path_factory.mktemp("large") / "root", SESSIONS, UNITS)
    assert len(index.segments) > ROWS and SESSIONS * UNITS > 2 * ROWS and ROWS % UNITS
    return index


@pytest.fixture
def touched(monkeypatch):
    """(table, column, rows) of everything that is read."""
    out, parts = [], StoredTable.parts

    def watched(table, columns):
        columns = list(columns)
        for at, part in parts(table, columns):
            out.extend((table.entry["file"].split("-")[0], column, len(part)) for column in columns)
            yield at, part

    monkeypatch.setattr(StoredTable, "parts", watched)
    return out


def test_opening_reads_sessions_and_three_columns_of_segments(large, touched):
    index = opened(large.root)
    assert {table for table, _, _ in touched} == {"sessions", "segments"}
    assert {column for table, column, _ in touched if table == "segments"} == {"session", "split", "shard"}
    assert index.digest() == large.digest()


def test_ids_of_some_units_are_read_from_their_rows_alone(large, touched):
    part = large.select(large.session_ids[300:303])
    assert touched == []
    assert part.unit_ids(large.session_ids[301])[59] == f"{large.session_ids[301]}/u0059"
    assert {(table, column) for table, column, _ in touched} == {("units", "id")}
    assert sum(rows for _, _, rows in touched) <= 2 * ROWS
    touched.clear()
    assert part.units.num_rows == 3 * UNITS
    part.segments.member("spike_time.npy")
    assert max(rows for _, _, rows in touched) <= 3 * UNITS


@settings(max_examples=25, deadline=None)
@given(st.sets(st.integers(0, SESSIONS - 1), min_size=1, max_size=12), st.data())
def test_a_selection_holds_what_the_whole_holds_of_its_sessions(large, chosen, data):
    ids = [large.session_ids[row] for row in chosen]
    part = large.select(ids)
    if data.draw(st.booleans()):  # of a selection, as of the whole
        ids = ids[: data.draw(st.integers(1, len(ids)))]
        part = part.select(ids)
    rows = np.array(sorted(large.session_ids.index(name) for name in ids))
    assert part.session_ids == tuple(large.session_ids[row] for row in rows)
    assert (
        [row.id for row in part.sessions] == [part.sessions[n].id for n in range(len(rows))] == list(part.session_ids)
    )
    segments = np.flatnonzero(np.isin(large.segments.session, rows))
    np.testing.assert_array_equal(rows[part.segments.session], large.segments.session[segments])
    for name in ("start_us", "interval", "spikes"):
        np.testing.assert_array_equal(part.segments.column(name), large.segments.column(name)[segments])
    names = data.draw(st.permutations(MEMBERS))[:3]
    for ours, whole in zip(part.segments.members(names), large.segments.members(names), strict=True):
        np.testing.assert_array_equal(ours, np.stack(whole)[:, segments])
    expected = [f"{large.session_ids[row]}/u{unit:04d}" for row in rows for unit in range(UNITS)]
    assert [unit for ids in part.all_unit_ids() for unit in ids] == expected
    assert [unit for name in part.session_ids for unit in part.unit_ids(name)] == expected
    assert part.units.column("id").to_pylist() == expected


def test_members_are_those_of_the_table(large):
    rows, table = [0, 5, ROWS - 1, ROWS, len(large.segments) - 1], large.segments.table
    for name, (first, size) in zip(MEMBERS, large.segments.members(MEMBERS), strict=True):
        for row in rows:
            told = {
                column: table.column(column)[row].as_py() for column in ("member", "offset", "bytes", "array_bytes")
            }
            at = told["member"].index(name)
            assert size[row] == told["array_bytes"][at]
            assert first[row] == told["offset"][at] + told["bytes"][at] - size[row]
    first, size = large.segments.member("hand_vel.time.npy")
    assert (first == -1).all() and (size == -1).all()


def test_an_index_crosses_to_another_process_as_little_more_than_its_numbers(large):
    part = large.matching("recipe_0*")
    for index in (large, part):
        data = pickle.dumps(index)
        assert (
            len(data) < 80 * len(index.segments) + 1200 * len(index.sessions) + 300 * len(index.meta["shards"]) + 20_000
        )
        other = pickle.loads(data)
        assert other.digest() == index.digest() and other.unit_ids(index.session_ids[7]) == index.unit_ids(
            index.session_ids[7]
        )
        for one, two in zip(other.segments.members(MEMBERS[:2]), index.segments.members(MEMBERS[:2]), strict=True):
            np.testing.assert_array_equal(one, two)


def test_units_out_of_the_order_of_sessions_and_members_beyond_their_shard_are_told(large, tmp_path):
    for path in Path(large.root).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    meta = json.loads((tmp_path / "index.json").read_text())
    meta["shards"] = [{**entry, "bytes": 240_000_000 - 1_000_000} for entry in meta["shards"]]
    (tmp_path / "index.json").write_text(json.dumps({**meta, "digest": meta_digest(meta)}))
    with pytest.raises(ShardError, match="lie beyond the end of their shards"):
        opened(tmp_path).segments.member("spike_time.npy")
    first, *others = large.session_ids
    with pytest.raises(ShardError, match="does not hold those of .* in order"):
        large.unit_table.ids(1, first)


MEASURED = """
import pickle, re, sys, time
from pathlib import Path
from tests.sharding.large_root import opened
def resident():
    return int(re.search(r"VmRSS:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1e3
opened(sys.argv[1]).segments.member("json")  # what reading tables takes at all
before, start = resident(), time.perf_counter()
index = opened(sys.argv[2])
print(time.perf_counter() - start, resident() - before, len(pickle.dumps(index)) / 1e6)
"""


@pytest.mark.slow
def test_a_hundred_thousand_sessions_open_in_seconds_and_take_a_few_hundred_megabytes(tmp_path, repository):
    for sessions in (10, 100_000):
        large_root(tmp_path / str(sessions), sessions)
    places = [str(tmp_path / "10"), str(tmp_path / "100000")]
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *places], capture_output=True, text=True, check=True, cwd=repository
    )
    seconds, resident_mb, pickled_mb = map(float, done.stdout.split())
    assert seconds < 10 and resident_mb < 250 and pickled_mb < 250, done.stdout
