"""`check` finds and names every fault that is made on purpose, and none in a good root."""

import hashlib
import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from sharding.cache import CacheConfig
from sharding.check import CheckConfig, _answers, _jobs, check
from sharding.check_found import Moments
from sharding.errors import ConfigError, ShardError
from sharding.files import LocalFiles
from sharding.index import ShardIndex
from sharding.index_meta import meta_digest
from tests.sharding.shard_server import Fault, ShardServer

SECOND = 1_000_000


@pytest.fixture(scope="module")
def good(session_maker, root_writer, tmp_path_factory) -> Path:
    """Two sessions, three splits, two train shards; of small size, as every byte of it is to be flipped."""
    folder = tmp_path_factory.mktemp("good")
    sessions = [
        session_maker(1, units=6, seconds=20.0, hz=20.0),
        session_maker(2, units=5, seconds=15.0, hz=20.0, signals=("a_pos", "cursor_vel")),
    ]
    index = root_writer(folder, sessions, segment_us=3 * SECOND, shard_bytes=20_000)
    assert sum(entry["file"].startswith("train") for entry in index.meta["shards"]) > 1
    return folder


@pytest.fixture
def root(good, tmp_path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "root"))


def faults(root, **settings) -> list[str]:
    return [f"{fault.where}: {fault.found}" for fault in check(CheckConfig(str(root), **settings)).faults]


def one(root) -> str:
    """The only fault there is."""
    (fault,) = faults(root)
    return fault


def rewrite(root: Path, name: str, change) -> None:
    """Change the records of a table, with digests and the index told anew as an attacker or a faulty writer would."""
    meta = json.loads((root / "index.json").read_text())
    entry = meta["tables"][name]
    table = parquet.read_table(root / entry["file"])
    rows = table.to_pylist()
    rows = change(rows) or rows
    parquet.write_table(pa.Table.from_pylist(rows, schema=table.schema), root / entry["file"])
    retell(root, entry["file"], meta)


def retell(root: Path, file: str, meta: dict | None = None, **changes) -> None:
    """Tell a file's size and digest anew in index.json, and change what else is named."""
    meta = meta or json.loads((root / "index.json").read_text())
    for entry in [*meta["tables"].values(), *meta["shards"]]:
        if entry["file"] == file:
            data = (root / file).read_bytes()
            entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    meta |= changes
    meta["digest"] = meta_digest(meta)
    (root / "index.json").write_text(json.dumps(meta))


def spoil(root: Path, member: str, change, segment: int = 0) -> str:
    """Write a member of a segment of the train split anew, of the same size, and tell the digests anew."""
    meta = json.loads((root / "index.json").read_text())
    rows = [row for row in segments(root) if row["split"] == "train"]
    row = rows[segment]
    at = row["member"].index(member)
    offset, size = row["offset"][at], row["bytes"][at]
    path = root / row["shard"]
    data = bytearray(path.read_bytes())
    old = bytes(data[offset : offset + size])
    if member == "json":
        new = change(old)
    else:
        array = np.load(io.BytesIO(old)).copy()
        change(array)
        new = old[: size - array.nbytes] + array.tobytes()
    assert len(new) == size and new != old
    data[offset : offset + size] = new
    path.write_bytes(data)
    retell(root, row["shard"], meta)
    return f"{row['shard']}: {row['key']}: "


def segments(root: Path) -> list[dict]:
    return parquet.read_table(next(root.glob("segments*.parquet"))).to_pylist()


# ------------------------------------------------------------------------------------------------ good roots


def test_a_good_root_has_no_fault_and_all_of_it_is_read(good):
    checked = check(CheckConfig(str(good)))
    tars = list(good.glob("*.tar"))
    assert checked.faults == ()
    assert checked.files == len(tars) and checked.bytes == sum(path.stat().st_size for path in tars)
    rows = segments(good)
    assert checked.segments == len(rows) and checked.spikes == sum(row["spikes"] for row in rows)


def test_processes_find_the_same_as_one(root):
    path = next(root.glob("valid-*.tar"))
    path.write_bytes(path.read_bytes()[:-1])
    alone = faults(root)
    assert alone and faults(root, workers=2) == alone


class Deadly(LocalFiles):
    """Files whose reading kills the process, as the system does when memory runs out."""

    def path(self, entry):
        os._exit(9)


def test_a_process_that_is_killed_is_one_line(good):
    with pytest.raises(ShardError, match="a process of the check was killed; free memory, or check with workers=1"):
        list(_answers(Deadly(good), _jobs(ShardIndex.open(good)), 2))


def test_every_shard_is_told_when_it_is_done(good):
    told = []
    check(CheckConfig(str(good)), lambda n, size: told.append((n, size)), lambda name, size: told.append((name, size)))
    (count, total), *steps = told
    assert count == len(steps) and total == sum(size for _, size in steps) and len(dict(steps)) == count


@settings(max_examples=30, deadline=None)
@given(parts=st.lists(st.integers(0, 40), min_size=1, max_size=5), seed=st.integers(0, 9))
def test_moments_of_parts_are_those_of_the_whole(parts, seed):
    random = np.random.default_rng(seed)
    values = [random.normal(3, 2, (n, 2)).astype(np.float32) for n in parts]
    whole = np.concatenate(values).astype(np.float64)
    joined = Moments.of(values[0])
    for value in values[1:]:
        joined = joined.joined(Moments.of(value))
    assert joined.n == len(whole)
    if len(whole):
        np.testing.assert_allclose(joined.mean, whole.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(joined.squares / joined.n, whole.var(axis=0), rtol=1e-10, atol=1e-12)


def test_a_root_on_a_server_is_checked_as_one_in_a_folder(good, tmp_path):
    server = ShardServer({path.name: path.read_bytes() for path in good.iterdir()})
    server.start()
    try:
        for n, bad in enumerate(([], ["train-000001.tar"], ["valid-000000.tar", "test-000000.tar"])):
            server.always.clear()
            server.always.update({name: Fault(flip=700) for name in bad})
            checked = check(CheckConfig(server.url, cache=CacheConfig(str(tmp_path / str(n)), patience_s=1)))
            assert {fault.where for fault in checked.faults} == set(bad)
            assert all("its sha256 is not what the index says" in fault.found for fault in checked.faults)
            assert checked.files == len(list(good.glob("*.tar"))) - len(bad)
    finally:
        server.stop()


# ------------------------------------------------------------------------------------------------ bytes


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_flipped_byte_of_any_shard_is_found(good, data):
    path = data.draw(st.sampled_from(sorted(good.glob("*.tar"))))
    whole = path.read_bytes()
    at, bit = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 7))
    try:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
        found = faults(good)
    finally:
        path.write_bytes(whole)
    assert f"{path.name}: its sha256 is not what the index says" in found
    assert all(fault.startswith(path.name) for fault in found)  # no session's totals, no other shard


@pytest.mark.parametrize("damage", ["missing", "truncated", "empty", "grown"])
def test_a_shard_of_another_size_is_one_row_and_the_others_are_checked(root, damage):
    path = root / "train-000001.tar"
    whole = path.read_bytes()
    new = {"truncated": whole[:-512], "empty": b"", "grown": whole + b"\0"}.get(damage)
    path.unlink() if new is None else path.write_bytes(new)
    fault = one(root)
    assert "train-000001.tar" in fault
    assert ("missing" if damage == "missing" else f"{len(whole)}") in fault
    other = root / "valid-000000.tar"
    other.write_bytes(other.read_bytes()[:-1] + b"\1")
    assert {fault.split(":")[0] for fault in faults(root)} == {path.name, other.name}


@pytest.mark.parametrize("name", ["index.json", "segments", "units", "sessions"])
def test_a_damaged_index_or_table_is_the_one_fault(root, name):
    path = next(root.glob(f"{name}*"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert path.name in one(root)
    path.unlink()
    assert path.name in one(root)


def test_a_shard_that_the_index_does_not_name(root):
    shutil.copy(root / "train-000000.tar", root / "train-000077.tar")
    assert one(root).startswith("train-000077.tar: the index does not name it")


# ------------------------------------------------------------------------------------------------ index against tars


def test_an_empty_header_inside_a_tar(root):
    path, row = root / "train-000000.tar", segments(root)[0]
    data = bytearray(path.read_bytes())
    header = row["offset"][2] - tarfile.BLOCKSIZE
    data[header : header + tarfile.BLOCKSIZE] = bytes(tarfile.BLOCKSIZE)
    path.write_bytes(data)
    retell(root, path.name)
    members = sum(len(row["member"]) for row in segments(root) if row["shard"] == path.name)
    assert one(root) == (
        f"{path.name}: is no tar from byte {header} on (an empty header before more data); "
        f"{members - 2} members that the index names were not found before it"
    )


def test_a_header_of_a_wrong_checksum(root):
    path, row = root / "train-000000.tar", segments(root)[0]
    data = bytearray(path.read_bytes())
    data[row["offset"][0] - tarfile.BLOCKSIZE + 150] ^= 1  # inside the checksum
    path.write_bytes(data)
    retell(root, path.name)
    assert one(root).startswith(f"{path.name}: is no tar from byte 0 on")


@pytest.mark.parametrize("size", [-1024, 2**40])
def test_a_header_that_leads_out_of_the_file_or_back(root, size):
    path, row = root / "train-000000.tar", segments(root)[0]
    data = bytearray(path.read_bytes())
    header = row["offset"][1] - tarfile.BLOCKSIZE
    member = tarfile.TarInfo.frombuf(data[header : header + 512], "utf-8", "strict")
    member.size = size
    data[header : header + 512] = member.tobuf(tarfile.GNU_FORMAT)[:512]
    path.write_bytes(data)
    retell(root, path.name)
    assert f"is no tar of ours from byte {row['offset'][1]} on" in one(root)


def test_a_member_that_no_segment_names(root):
    gone = segments(root)[0]
    rewrite(root, "segments", lambda rows: rows[1:])
    found = faults(root)
    for member in gone["member"]:
        assert f"{gone['shard']}: holds a member {gone['key']}.{member} that no segment names" in found
    assert any("lie in no segment" in fault and "to" in fault for fault in found)  # the hole that it leaves


def test_a_member_that_is_not_there(root):
    """A shard without its first segment, whose row is still in the table."""
    path, row = root / "train-000000.tar", segments(root)[0]
    data = path.read_bytes()
    first = segments(root)[1]["offset"][0] - tarfile.BLOCKSIZE
    # The segment's headers are renamed in place: all else stays where it is.
    changed = bytearray(data)
    at = 0
    while at < first:
        member = tarfile.TarInfo.frombuf(data[at : at + 512], "utf-8", "strict")
        changed[at : at + 512] = _renamed(member, "x" + member.name[1:])
        at += 512 + member.size + -member.size % 512
    path.write_bytes(changed)
    retell(root, path.name)
    found = faults(root)
    assert f"{path.name}: {row['key']}: has no member {', '.join(row['member'])}" in found
    assert len(found) == 1 + len(row["member"])  # and each of the renamed is extra


def _renamed(member: tarfile.TarInfo, name: str) -> bytes:
    member.name = name
    return member.tobuf(tarfile.USTAR_FORMAT)


def test_members_whose_places_are_swapped_in_the_table(root):
    def swap(rows):
        for column in ("offset", "bytes", "array_bytes"):
            cells = rows[0][column]
            cells[1], cells[2] = cells[2], cells[1]

    rewrite(root, "segments", swap)
    found = faults(root)
    assert len(found) == 2 and all("the index says" in fault and "member spike_" in fault for fault in found)


def test_a_member_under_another_name(root):
    def rename(rows):
        rows[0]["member"][3] = "b" + rows[0]["member"][3][1:]

    rewrite(root, "segments", rename)
    found = faults(root)
    assert any("has no member b" in fault for fault in found) and any("that no segment names" in f for f in found)


@pytest.mark.parametrize(
    "old, new, names",
    [
        (b'"interval":0', b'"interval":1', "interval"),
        (b'"train"', b'"valid"', "split"),
        (b'"made/m_1"', b'"made/m_9"', "session"),
        (b'"u0"', b'"u9"', "units"),
        (b'"cursor_vel"', b'"cursor_acc"', "signals"),
        (b'"start_us":3', b'"start_us":4', "start_us"),
        (b'"carry_us":', b'"carry_uz":', "does not hold just"),
        (b"{", b"[", "cannot be read"),
    ],
)
def test_a_json_member_that_says_otherwise(root, old, new, names):
    where = spoil(root, "json", lambda text: text.replace(old, new, 1))
    fault = one(root)
    assert fault.startswith(where) and "json" in fault and names in fault


def test_an_array_of_another_type_or_shape(root):
    row = segments(root)[0]
    path = root / row["shard"]
    data = path.read_bytes()
    at = row["offset"][1]
    path.write_bytes(data[:at] + data[at : at + 60].replace(b"<i4", b"<u4") + data[at + 60 :])
    retell(root, path.name)
    assert "spike_time.npy is <u4" in one(root)
    header = data[at : at + 128]
    path.write_bytes(data[:at] + header.replace(b"(", b"(1", 1).replace(b" \n", b"\n") + data[at + 128 :])
    retell(root, path.name)
    assert "which does not fill its" in one(root)
    path.write_bytes(data[: at + 1] + b"n" + data[at + 2 :])
    retell(root, path.name)
    assert "spike_time.npy has no npy header" in one(root)
    path.write_bytes(data)
    retell(root, path.name)
    rewrite(root, "segments", lambda rows: rows[0]["array_bytes"].__setitem__(1, 4))
    assert "bytes of numbers, the index says 4" in one(root)


# ------------------------------------------------------------------------------------------------ data


def _swap_ends(array):
    array[[0, -1]] = array[[-1, 0]]


@pytest.mark.parametrize(
    "member, change, text",
    [
        ("spike_time.npy", _swap_ends, "its spike times fall back"),
        ("spike_time.npy", lambda a: a.__setitem__(0, -5), "1 times of a spike lie outside the "),
        ("spike_time.npy", lambda a: a.__setitem__(-1, 2**30), "1 times of a spike lie outside the "),
        ("spike_unit.npy", lambda a: a.__setitem__(3, 6), "a spike of unit number 6 among 6 units"),
        ("cursor_vel.time.npy", lambda a: a.__setitem__(1, a[0]), "cursor_vel: its times do not rise"),
        ("cursor_vel.value.npy", lambda a: a.__setitem__((2, 1), np.nan), "cursor_vel: a value is not finite"),
        ("cursor_vel.value.npy", lambda a: a.__setitem__((0, 0), np.inf), "cursor_vel: a value is not finite"),
        ("cursor_vel.phase.npy", lambda a: a.__setitem__(0, 200), "cursor_vel: phase code 200 among 4 phases"),
    ],
)
def test_numbers_that_no_segment_may_hold(root, member, change, text):
    where = spoil(root, member, change)
    assert any(fault.startswith(where) and text in fault for fault in faults(root))


def test_a_spike_of_another_unit_is_found_in_the_totals(root):
    def other(units):
        units[0] = (units[0] + 1) % 4

    spoil(root, "spike_unit.npy", other)
    fault = one(root)
    assert fault.startswith("made/m_1: unit ") and "and so 1 more units" in fault


def test_another_target_is_found_in_the_statistics(root):
    spoil(root, "cursor_vel.value.npy", lambda value: value.__setitem__((5, 0), value[5, 0] + 3))
    found = faults(root)
    assert len(found) == 2 and all("cursor_vel: " in fault for fault in found)
    assert {fault.split("cursor_vel: ")[1].split()[0] for fault in found} == {"mean", "std"}


@pytest.mark.parametrize("column, text", [("spikes", "owns "), ("targets", "owns ")])
def test_a_wrong_count_of_a_segment(root, column, text):
    def change(rows):
        rows[0][column] += 1

    rewrite(root, "segments", change)
    found = faults(root)
    assert any(text in fault and f"{column}, the index says" in fault for fault in found)
    assert any(fault.startswith("made/m_1: has ") and column in fault for fault in found)  # nor do the totals agree


@pytest.mark.parametrize(
    "table, change, text",
    [
        ("sessions", lambda rows: rows[1].__setitem__("spikes", 1), "made/m_2: has 1 spikes, its segments"),
        ("sessions", lambda rows: rows[1].__setitem__("targets", 1), "made/m_2: has 1 targets, its segments"),
        ("sessions", lambda rows: rows[0]["hours"].__setitem__("valid", 1.0), "made/m_1: has 1.000000 h of valid"),
        ("sessions", lambda rows: rows[0]["signals"][0]["mean"].__setitem__(0, 9.0), "mean of train 9, "),
        ("sessions", lambda rows: rows[0]["signals"][0]["std"].__setitem__(0, 9.0), "std of train 9, "),
        ("sessions", lambda rows: rows[0]["signals"][0].__setitem__("samples", 7), "7 train samples by the table"),
        ("units", lambda rows: rows[0].__setitem__("spikes", 10**6), "made/m_1: unit 0 has 1000000 spikes"),
        ("units", lambda rows: rows[0].__setitem__("rate", 1e6), "made/m_1: 1 units' rates are not"),
        ("units", lambda rows: rows[:-1], "its sessions have other units than its table of units"),
        ("units", lambda rows: rows[0].__setitem__("session", "x"), "1 of its units are not of the session in whose"),
        ("units", lambda rows: rows[0].__setitem__("id", "x/u0"), "1 of its units are not of the session in whose"),
    ],
)
def test_totals_that_do_not_agree(root, table, change, text):
    rewrite(root, table, change)
    assert any(text in fault for fault in faults(root)), faults(root)


def test_totals_of_the_index_itself(root):
    totals = json.loads((root / "index.json").read_text())["totals"]
    retell(root, "", totals={**totals, "spikes": 1})
    assert one(root) == f"index.json: tells 1 spikes in all, its tables {totals['spikes']}"


# ------------------------------------------------------------------------------------------------ splits and seams


def _shift_split(rows, split: str, us: int):
    """Move the segments of a split of the first session in time."""
    for row in rows:
        if row["session"] == "made/m_1" and row["split"] == split:
            for name in ("interval_start_us", "interval_stop_us", "start_us", "stop_us", "carry_us"):
                row[name] += us


def test_splits_that_share_a_time(root):
    rewrite(root, "segments", lambda rows: _shift_split(rows, "valid", -SECOND // 2))
    found = [fault for fault in faults(root) if " and in " in fault]
    assert found == ["made/m_1: 14.750000 to 15.250000 s are in train and in valid"]


def test_a_halo_that_reaches_into_another_split(root):
    """It carries beyond its interval: no window may ever begin there, but data of another split would leak."""

    def reach(rows):
        row = next(row for row in reversed(rows) if row["session"] == "made/m_1" and row["split"] == "train")
        row["carry_us"] += 1000

    rewrite(root, "segments", reach)
    found = faults(root)
    assert "made/m_1: 15.250000 to 15.251000 s are in train and in valid" in found
    assert any("carries data to 15.251000 s, wanted is 15.250000 s" in fault for fault in found)


def test_neighbours_that_only_touch_are_no_fault(good):
    ends = {row["split"]: row["carry_us"] for row in segments(good) if row["session"] == "made/m_1"}
    starts = {row["split"]: row["start_us"] for row in reversed(segments(good)) if row["session"] == "made/m_1"}
    assert ends["train"] == starts["valid"] and ends["valid"] == starts["test"] and not faults(good)


def test_a_hole_at_a_seam(root):
    def hole(rows):
        rows[1]["start_us"] += SECOND

    rewrite(root, "segments", hole)
    row = segments(root)[1]
    text = f"{row['start_us'] / 1e6 - 1:.6f} to {row['start_us'] / 1e6:.6f} s lie in no segment"
    found = faults(root)
    assert f"made/m_1, train, interval 0: {text}" in found
    assert any("windows of 1 s lie in no segment" in fault for fault in found)


def test_two_segments_that_own_the_same_starts(root):
    def overlap(rows):
        rows[1]["start_us"] -= SECOND

    rewrite(root, "segments", overlap)
    assert any("s are owned by two segments" in fault for fault in faults(root))


def test_a_halo_that_is_too_short(root):
    """Nothing is missing among the starts, but a window across the seam is in no segment whole."""

    def shorten(rows):
        rows[0]["carry_us"] -= SECOND // 2

    rewrite(root, "segments", shorten)
    key = segments(root)[0]["key"]
    assert any(fault.startswith(f"{key}: carries data to ") for fault in faults(root))


def test_an_interval_whose_end_no_segment_owns(root):
    def longer(rows):
        for row in rows:
            if row["session"] == "made/m_1" and row["split"] == "test":
                row["interval_stop_us"] += 2 * SECOND

    rewrite(root, "segments", longer)
    found = faults(root)
    assert "made/m_1, test, interval 0: 23.250000 to 25.250000 s lie in no segment" in found
    assert any("2 of its 6 windows of 1 s lie in no segment" in fault for fault in found)


def test_intervals_of_a_split_that_overlap(root):
    def overlap(rows):
        for row in rows:
            if row["session"] == "made/m_1" and row["split"] == "train" and row["interval"] == 1:
                for name in ("interval_start_us", "interval_stop_us", "start_us", "stop_us", "carry_us"):
                    row[name] -= 2 * SECOND

    rewrite(root, "segments", overlap)
    assert "made/m_1, train, interval 1: 7.250000 to 8.250000 s are in an interval before it too" in faults(root)


def test_segments_out_of_order_or_twice(root):
    rewrite(root, "segments", lambda rows: [rows[1], rows[0], *rows[2:]])
    assert one(root) == "the table of segments: is not in the order session, split, interval, time"
    rewrite(root, "segments", lambda rows: [rows[1], rows[1], *rows[2:]])
    key = segments(root)[0]["key"]
    assert f"the table of segments: 1 keys are there twice, one is {key}" in faults(root)


def test_a_setting_that_makes_no_sense(good):
    with pytest.raises(ConfigError, match="workers"):
        check(CheckConfig(str(good), workers=0))
