"""`merge` joins roots as if they had been written as one: same sessions, same windows, no shard written again."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharding.check import CheckConfig, check
from sharding.errors import ConfigError, ShardError
from sharding.index import ShardIndex
from sharding.index_meta import Refused
from sharding.merge import MergeConfig, join, merge
from sharding.plan import EvalPlan, TrainPlan
from sharding.root import CutSettings, RootWriter, Source
from sharding.root_lock import writing
from sharding.window import Reader

SECOND = 1_000_000
FIELDS = ("units", "spike_time", "spike_unit", "sample_time", "value", "phase")


@pytest.fixture(scope="module")
def parts(session_maker, root_writer, tmp_path_factory) -> list[ShardIndex]:
    """Three roots: phases of other codes, other signals, settings and splits, several shards of a split."""
    folder = tmp_path_factory.mktemp("parts")
    first = [session_maker(1, units=9, seconds=21.0), session_maker(2, units=5, seconds=15.0)]
    second = session_maker(3, units=30, seconds=17.0)
    second.phases["early"] = second.phases.pop("reach")  # counted otherwise than in the other roots
    third = session_maker(4, name="other/x", units=4, signals=("a_pos", "cursor_vel"), dims=3)
    return [
        root_writer(folder / "a", first, segment_us=4 * SECOND, shard_bytes=60_000),
        root_writer(folder / "b", [second], segment_us=3 * SECOND, halo_us=2 * SECOND, splits=("train", "test")),
        root_writer(folder / "c", [third], segment_us=60 * SECOND),
    ]


@pytest.fixture
def merged(parts, tmp_path):
    """merged(link) joins the parts into tmp_path/all."""

    def run(link="hard", **changes) -> ShardIndex:
        config = {"roots": [str(part.root) for part in parts], "output": str(tmp_path / "all"), "link": link}
        return merge(MergeConfig(**config | changes))

    return run


def windows(index: ShardIndex, table) -> list:
    reader = Reader(index, "cursor_vel")
    return [reader.window(s, t, SECOND) for s, t in zip(table.segment.tolist(), table.start_us.tolist())]


def assert_equal(a, b):
    for name in FIELDS:
        x, y = getattr(a, name), getattr(b, name)
        assert x.dtype == y.dtype and np.array_equal(x, y), name


# ------------------------------------------------------------------------------------------------ what comes out


@pytest.mark.parametrize("link", ["hard", "symbolic", "copy"])
def test_the_joined_root_passes_the_check_and_holds_all(parts, merged, link):
    index = merged(link)
    assert check(CheckConfig(str(index.root))).faults == ()
    assert index.session_ids == tuple(name for part in parts for name in part.session_ids)
    for name, total in parts[0].meta["totals"].items():
        assert index.meta["totals"][name] == sum(part.meta["totals"][name] for part in parts), total
    assert index.units.to_pylist() == [row for part in parts for row in part.units.to_pylist()]
    assert index.sessions.table.to_pylist() == [row for part in parts for row in part.sessions.table.to_pylist()]
    assert sum(entry["file"].startswith("train") for entry in parts[0].meta["shards"]) > 1
    assert len(index.meta["shards"]) == sum(len(part.meta["shards"]) for part in parts)


def test_segments_are_those_of_the_parts_under_new_names_of_shards(parts, merged):
    index = merged()
    digest = {entry["file"]: entry["sha256"] for entry in index.meta["shards"]}
    found = index.segments.table.to_pylist()
    for part in parts:
        own = {entry["file"]: entry["sha256"] for entry in part.meta["shards"]}
        for row in part.segments.table.to_pylist():
            other = found.pop(0)
            assert digest[other.pop("shard")] == own[row.pop("shard")]
            assert other == row
    assert not found


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_windows_are_those_of_the_parts(parts, merged, split):
    index, seen = merged(), 0
    for part in parts:
        own, mine = part, index.select(part.session_ids)
        here, there = (EvalPlan(one, split, 1.0, 0.4) for one in (own, mine))
        assert here.windows == there.windows
        places = np.arange(here.windows)
        a, b = here.table(places), there.table(places)
        assert np.array_equal(a.start_us, b.start_us)
        for one, other in zip(windows(own, a), windows(mine, b)):
            assert_equal(one, other)
            seen += 1
    assert seen > 20


def test_every_train_window_of_a_joined_root_can_be_read(merged):
    index = merged()
    plan = TrainPlan(index, 1.0, seed=3)
    table = plan.table(np.arange(plan.windows))
    assert {int(w.session) for w in windows(index, table)} == set(range(len(index.sessions)))


def test_phases_keep_their_names_though_their_codes_differ(parts, merged):
    index = merged()
    assert len({row.phases for row in index.sessions}) > 1
    for part in parts:
        for row in part.sessions:
            assert index.session(row.id).phases == row.phases


def test_the_smallest_halo_and_all_splits_are_what_it_serves(parts, merged):
    config = merged().meta["config"]
    assert config["halo_us"] == min(part.halo_us for part in parts) == SECOND
    assert config["splits"] == ["train", "valid", "test"]
    assert config["segment_us"] == 60 * SECOND and config["shard_bytes"] == 128_000_000


def test_joining_in_two_steps_is_joining_at_once(parts, merged, tmp_path):
    at_once = merged()
    first = merge(MergeConfig([str(part.root) for part in parts[:2]], str(tmp_path / "ab"), "symbolic"))
    steps = merge(MergeConfig([str(first.root), str(parts[2].root)], str(tmp_path / "abc"), "symbolic"))
    assert {name: entry["sha256"] for name, entry in at_once.meta["tables"].items()} == {
        name: entry["sha256"] for name, entry in steps.meta["tables"].items()
    }
    shutil.rmtree(first.root)  # links lead to the files themselves, not to links
    assert check(CheckConfig(str(steps.root))).faults == ()


def test_sessions_can_be_added_to_a_joined_root(parts, merged, session_maker):
    index = merged()
    settings = CutSettings(**{**index.meta["config"], "splits": tuple(index.meta["config"]["splits"])})
    session = session_maker(9, units=3, seconds=12.0)
    with writing(index.root), RootWriter(index.root, settings, index) as root:
        root.add(session, root.cut(session), Source("s9.h5", "0" * 64))
        root.finish([])
    grown = ShardIndex.open(index.root)
    assert grown.session_ids == (*index.session_ids, session.id)
    assert check(CheckConfig(str(grown.root))).faults == ()
    assert check(CheckConfig(str(parts[0].root))).faults == ()  # whose files are linked


# ------------------------------------------------------------------------------------------------ how it gets there


def test_hard_links_are_the_same_files_and_symbolic_ones_lead_there(parts, merged, tmp_path):
    files = {file for file, _ in join(MergeConfig([str(part.root) for part in parts], str(tmp_path / "x"))).shards}
    inodes = {file.stat().st_ino for file in files}
    hard = merged("hard").root
    assert {path.stat().st_ino for path in hard.glob("*.tar")} == inodes
    shutil.rmtree(hard)
    links = merged("symbolic").root
    assert {Path(os.readlink(path)) for path in links.glob("*.tar")} == files
    shutil.rmtree(links)
    copies = merged("copy").root
    assert not {path.stat().st_ino for path in copies.glob("*.tar")} & inodes
    assert all(file.exists() for file in files)


def test_across_file_systems_the_other_links_are_named(merged, monkeypatch, tmp_path):
    def refuse(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(ShardError, match="take link=symbolic or link=copy"):
        merged()
    assert not (tmp_path / "all" / "index.json").exists()
    monkeypatch.undo()
    assert check(CheckConfig(str(merged("copy").root))).faults == ()


def test_a_whole_root_of_the_same_parts_is_kept(merged, monkeypatch):
    index = merged()
    before = (index.root / "index.json").stat().st_mtime_ns
    monkeypatch.setattr(os, "link", None)
    assert merged().digest() == index.digest()
    assert (index.root / "index.json").stat().st_mtime_ns == before


def test_a_root_that_lost_a_shard_is_made_whole_again(merged):
    index = merged()
    (index.root / index.meta["shards"][0]["file"]).unlink()
    assert merged().digest() == index.digest()
    assert check(CheckConfig(str(index.root))).faults == ()


@settings(max_examples=8, deadline=None)
@given(stop=st.integers(0, 9), link=st.sampled_from(["hard", "copy"]))
def test_a_merge_that_dies_leaves_no_index_and_the_next_one_finishes(parts, tmp_path_factory, stop, link):
    output = tmp_path_factory.mktemp("dying") / "all"
    config = MergeConfig([str(part.root) for part in parts], str(output), link)

    class Died(BaseException):
        pass

    def die(done, total, name):
        if done == min(stop, total - 1):
            raise Died

    with pytest.raises(Died):
        merge(config, die)
    (output / ".train-000000.tar.partial").write_bytes(b"half")  # as a copy that was killed leaves it
    with pytest.raises(ShardError):
        ShardIndex.open(output)
    index = merge(config)
    assert check(CheckConfig(str(output))).faults == ()
    named = {entry["file"] for entry in [*index.meta["tables"].values(), *index.meta["shards"]]} | {"index.json"}
    assert {path.name for path in output.iterdir()} == named


def test_a_merge_that_dies_before_the_index_is_written_is_not_whole(merged, monkeypatch, tmp_path):
    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("sharding.merge.write_index", die)
    with pytest.raises(KeyboardInterrupt):
        merged()
    with pytest.raises(ShardError, match="holds no index.json"):
        ShardIndex.open(tmp_path / "all")
    monkeypatch.undo()
    assert check(CheckConfig(str(merged().root))).faults == ()


# ------------------------------------------------------------------------------------------------ what is refused


def test_a_session_that_is_in_two_roots_is_named_and_nothing_written(parts, tmp_path, session_maker, root_writer):
    twice = root_writer(tmp_path / "d", [session_maker(2, units=5, seconds=15.0)])
    with pytest.raises(ShardError, match=r"1 sessions are in two roots: made/m_2;"):
        merge(MergeConfig([str(parts[0].root), str(twice.root)], str(tmp_path / "all")))
    assert not (tmp_path / "all").exists()
    many = root_writer(tmp_path / "e", [session_maker(n, units=3, seconds=12.0) for n in range(10, 17)])
    shutil.copytree(many.root, tmp_path / "f")
    with pytest.raises(ShardError, match=r"7 sessions are in two roots: made/m_10, .*made/m_14 and 2 more;"):
        merge(MergeConfig([str(many.root), str(tmp_path / "f")], str(tmp_path / "all")))


def test_a_folder_that_holds_anything_else_is_left_alone(parts, merged, tmp_path):
    output = tmp_path / "all"
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    with pytest.raises(ShardError, match=r"holds other files \(notes.txt\); choose an empty or new folder"):
        merged()
    assert [path.name for path in output.iterdir()] == ["notes.txt"]
    (output / "notes.txt").unlink()
    merged(roots=[str(parts[0].root), str(parts[2].root)])
    before = sorted(path.name for path in output.iterdir())
    with pytest.raises(ShardError, match="holds other shards than these roots"):
        merged()
    assert sorted(path.name for path in output.iterdir()) == before
    (output / "index.json").write_text("{}")
    with pytest.raises(ShardError, match="delete it or choose another"):
        merged()


def test_a_damaged_part_is_told_before_anything_is_written(parts, merged, tmp_path):
    bad = tmp_path / "bad"
    shutil.copytree(parts[2].root, bad)
    tar = next(bad.glob("train-*.tar"))
    tar.write_bytes(tar.read_bytes()[:-1])
    with pytest.raises(ShardError, match=f"{tar.name}: has "):
        merged(roots=[str(parts[0].root), str(bad)])
    assert not (tmp_path / "all").exists()


def test_a_copy_of_a_shard_that_was_flipped_is_refused(parts, merged, tmp_path):
    bad = tmp_path / "bad"
    shutil.copytree(parts[2].root, bad)
    tar = next(bad.glob("train-*.tar"))
    tar.write_bytes(tar.read_bytes()[:-1] + b"\1")
    with pytest.raises(ShardError, match=f"{tar.name}: its sha256 is not what the index says"):
        merged("copy", roots=[str(parts[0].root), str(bad)])
    assert not (tmp_path / "all" / "index.json").exists()


def test_two_runs_cannot_write_one_root(merged, tmp_path):
    with writing(tmp_path / "all"), pytest.raises(ShardError, match="is being written by process"):
        merged()
    assert merged().session_ids


@pytest.mark.parametrize(
    "changes, fault",
    [
        ({"roots": []}, "roots: are 0; give two or more"),
        ({"roots": ["a"]}, "roots: are 1; give two or more"),
        ({"output": ""}, "output: is not given"),
        ({"link": "soft"}, "link: is 'soft'; choose among hard, symbolic, copy"),
        ({"roots": ["a", "s3://bucket/b"]}, "s3://bucket/b: is on a server, only folders can be joined; fetch it"),
        ({"output": "http://x/y"}, "http://x/y: is on a server"),
        ({"roots": ["a", "./b/../all"], "output": "all"}, "output: all is one of the roots"),
    ],
)
def test_settings_that_make_no_sense(merged, changes, fault):
    with pytest.raises(ConfigError, match=fault):
        merged(**changes)


def test_what_was_refused_in_any_part_is_told_and_no_path_of_the_machine(session_maker, tmp_path):
    for n in (20, 21):
        session = session_maker(n, units=3, seconds=12.0)
        with RootWriter(tmp_path / str(n), CutSettings()) as root:
            root.add(session, root.cut(session), Source(f"{n}.h5", "0" * 64))
            root.finish([Refused(f"bad{n}.h5", "no units", "0" * 64)])
    index = merge(MergeConfig([str(tmp_path / "20"), str(tmp_path / "21")], str(tmp_path / "all")))
    assert [row.file for row in index.refused] == ["bad20.h5", "bad21.h5"]
    assert str(tmp_path) not in (index.root / "index.json").read_text()
