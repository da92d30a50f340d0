"""ShardIndex: what is wrong with a root is told in one line; parts of it are true to their sessions."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharding.errors import ConfigError, ShardError
from sharding.index import ShardIndex
from sharding.index_limit import clipped
from sharding.index_meta import meta_digest
from tests.sharding.simulated import SECOND, simulated_index


@pytest.fixture
def root(sessions, root_writer, tmp_path):
    return root_writer(tmp_path / "root", sessions[:2], segment_us=7_000_000).root


def change(path, at: int):
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


def rewrite(root, **entries):
    meta = json.loads((root / "index.json").read_text()) | entries
    (root / "index.json").write_text(json.dumps(meta | {"digest": meta_digest(meta)}))


FAULTS = {
    "holds no index.json": lambda root: (root / "index.json").unlink(),
    "index.json: cannot be read": lambda root: (root / "index.json").write_text("{"),
    "is not an index of Spikeloom": lambda root: (root / "index.json").write_text("[]"),
    "is of format 1, this version reads format 2; shard the stored sessions again": lambda root: rewrite(
        root, format=1
    ),
    "was changed after it was written": lambda root: change(
        root / "index.json", (root / "index.json").read_bytes().index(b"reach")
    ),
    "outside its folder": lambda root: rewrite(root, shards=[{"file": "../x.tar", "bytes": 0, "sha256": ""}]),
    "names a file outside its folder, '..'": lambda root: rewrite(
        root, shards=[{"file": "..", "bytes": 0, "sha256": ""}]
    ),
    "does not fit format 2": lambda root: rewrite(root, tables=[]),
    "train-000000.tar: is missing": lambda root: (root / "train-000000.tar").unlink(),
    "valid-000000.tar: has 5000 bytes, its index says": lambda root: (root / "valid-000000.tar").write_bytes(
        bytes(5000)
    ),
    "units-[0-9a-f]{8}.parquet: its sha256 is not": lambda root: change(next(root.glob("units-*")), 200),
    "name a shard, session or split that is not there": lambda root: rewrite(
        root, shards=json.loads((root / "index.json").read_text())["shards"][:2]
    ),
}


@pytest.mark.parametrize("found", FAULTS)
def test_opening_tells_what_is_wrong_in_one_line(root, found):
    FAULTS[found](root)
    with pytest.raises(ShardError, match=found) as caught:
        ShardIndex.open(root)
    assert "\n" not in str(caught.value) and str(caught.value).count(";") >= 1


def test_a_flipped_byte_of_a_shard_is_found_by_verifying(root):
    change(root / "test-000000.tar", 9000)
    shards = ShardIndex.open(root, verify=True).mapped()
    shards.map(0)
    with pytest.raises(ShardError, match="test-000000.tar: its sha256 is not"):
        shards.map(2)


def test_the_digest_tells_the_root_and_not_where_it_lies_or_how_it_is_read(root, tmp_path):
    shutil.copytree(root, tmp_path / "copy")
    told = {
        ShardIndex.open(place, verify=verify).digest()
        for place in (root, tmp_path / "copy")
        for verify in (True, False)
    }
    assert len(told) == 1 and ShardIndex.open(root).limited(0.1).digest() not in told


def test_rows_tell_the_sessions_as_they_were(index, sessions):
    for row, session in zip(index.sessions, sessions):
        assert (row.id, row.subject, row.dandiset, row.units) == (session.id, "m", "made", len(session.units))
        assert row.loss_weights == session.loss_weights and row.eval_phases == ("reach",)
        assert row.signals["cursor_vel"].dims == 2 and row.signals["cursor_vel"].unit_of_measure == "cm/s"
        steps = np.diff(session.signals["cursor_vel"].time)
        assert row.signals["cursor_vel"].hz == pytest.approx(1 / np.median(steps), rel=1e-6)
        inside = sum(part.contains(session.spikes.time) for part in session.splits.values()) > 0
        assert row.spikes == inside.sum()
        assert row.hours == pytest.approx({name: part.seconds / 3600 for name, part in session.splits.items()})
        units = [u for u in index.units.to_pylist() if u["session"] == session.id]
        assert [u["spikes"] for u in units] == np.bincount(session.spikes.unit[inside], minlength=len(units)).tolist()
        assert units[0]["rate"] == pytest.approx(units[0]["spikes"] / (3600 * sum(row.hours.values())))
        assert index.unit_ids(session.id) == tuple(f"{session.id}/{unit}" for unit in session.units.id)
        assert row.phases == ("random", "hold", "reach", "outlier")


def test_totals_of_a_selection_are_the_sums_of_its_rows(index):
    part = index.select(index.session_ids[1:])
    total = part.summary()
    assert (total["sessions"], total["units"]) == (2, 37)
    assert total["spikes"] == sum(s.spikes for s in part.sessions)
    assert total["targets"] == sum(s.targets for s in part.sessions)
    assert total["hours"]["train"] == pytest.approx(sum(s.hours["train"] for s in part.sessions))
    assert index.summary()["spikes"] == sum(s.spikes for s in index.sessions)


def test_select_and_matching_keep_order_and_refuse_strangers(index):
    assert index.select(index.session_ids[::-1]).session_ids == index.session_ids
    part = index.matching(["made/m_2", "*_0"])
    assert part.session_ids == ("made/m_0", "made/m_2")
    assert set(part.segments.session.tolist()) == {0, 1}
    assert part.unit_ids("made/m_2") == index.unit_ids("made/m_2") and part.unit_ids("made/m_1") == ()
    assert part.digest() != index.digest() == index.matching("*").digest()
    with pytest.raises(ConfigError, match=r"no session fits 'monkey\*'; choose among made/m_0"):
        index.matching("monkey*")
    with pytest.raises(ConfigError, match="holds no session 'x'"):
        index.select(["x"])


def train_values(session, until_s=np.inf):
    """Valid train samples outside outliers, of the first `until_s` seconds of the train split."""
    signal, left, keep = session.signals["cursor_vel"], until_s, False
    for start, stop in session.splits["train"].merged():
        stop = min(stop, start + left)
        left -= stop - start
        keep = keep | ((signal.time >= start) & (signal.time < stop))
    return signal.value[keep & signal.valid & ~session.phases["outlier"].contains(signal.time)].astype(float)


def test_statistics_are_those_of_the_train_samples_without_outliers(index, sessions):
    for row, session in zip(index.sessions, sessions):
        value, told = train_values(session), row.statistics["cursor_vel"]
        assert told.samples == len(value)
        np.testing.assert_allclose(told.mean, value.mean(axis=0))
        np.testing.assert_allclose(told.std, value.std(axis=0))
        low, high = np.quantile(value, (0.025, 0.975), axis=0)
        np.testing.assert_allclose(told.robust_std, (high - low) / 3.92)


def test_a_limited_index_holds_the_first_minutes_of_train_and_all_else(index, sessions):
    part = index.limited(0.2)  # 12 s: into the second interval of the first session
    for row, whole, session in zip(part.sessions, index.sessions, sessions):
        assert row.hours["train"] == pytest.approx(12 / 3600)
        assert row.hours["test"] == whole.hours["test"]
        value = train_values(session, 12.0)
        assert row.statistics["cursor_vel"].samples == len(value)
        np.testing.assert_allclose(row.statistics["cursor_vel"].mean, value.mean(axis=0))
        np.testing.assert_allclose(row.statistics["cursor_vel"].std, value.std(axis=0))
    limited, whole = part.segments.intervals("train"), index.segments.intervals("train")
    assert limited.start_us[0] == whole.start_us[0] and limited.stop_us[0] == whole.stop_us[0]
    assert limited.stop_us[1] - limited.start_us[1] == 12_000_000 - (whole.stop_us[0] - whole.start_us[0])
    assert part.digest() != index.digest() and part.limited(9.0).summary() == part.summary()
    assert part.summary()["spikes"] == sum(
        int(
            (
                session.splits["valid"].contains(session.spikes.time)
                | session.splits["test"].contains(session.spikes.time)
            ).sum()
        )
        + spikes_of_first(session, 12.0)
        for session in sessions
    )
    with pytest.raises(ConfigError, match="train_minutes"):
        index.limited(0)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 400))
def test_clipping_equals_walking_through_the_intervals_one_by_one(index, data, limit_s):
    lengths = st.lists(st.integers(1, 300), max_size=4)
    rows = []
    for session in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, 100))
        for split in range(3):
            for length in data.draw(lengths):
                rows.append((session, split, at * SECOND, (at + length) * SECOND))
                at += length + 1
    names = [f"made/{n}" for n in range(5)]
    whole = simulated_index(index, names, np.array(rows, np.int64).reshape(-1, 4), segment_us=70 * SECOND).segments
    part, shorter = clipped(whole, limit_s * SECOND)
    expected, left, ends = [], [limit_s * SECOND] * 5, {}
    for session, split, number, start, stop, first, last in walked(whole):
        if split == 0:
            if (session, number) not in ends:
                ends[session, number] = start + min(stop - start, left[session])
                left[session] -= ends[session, number] - start
            stop = ends[session, number]
        if first < stop:
            expected.append((session, split, number, start, stop, first, min(last, stop)))
    assert walked(part) == expected
    owned = {(row[0], row[1], row[5]): row[6] for row in walked(whole)}
    assert shorter.tolist() == [n for n, row in enumerate(expected) if owned[row[0], row[1], row[5]] != row[6]]


def walked(segments):
    names = ("interval", "interval_start_us", "interval_stop_us", "start_us", "stop_us")
    columns = [segments.session, segments.split, *map(segments.column, names)]
    return list(zip(*(column.tolist() for column in columns)))


def spikes_of_first(session, left: float) -> int:
    count = 0
    for start, stop in session.splits["train"].merged():
        stop = min(stop, start + left)
        left -= stop - start
        count += int(((session.spikes.time >= start) & (session.spikes.time < stop)).sum())
    return count
