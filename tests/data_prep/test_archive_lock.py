"""A draft's list of files, frozen: the same files next time, and a word of what the draft did meanwhile."""

import json
import re
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from data_prep.archive_lock import Lock, freeze, moved_on, read_lock
from data_prep.errors import ConfigError
from data_prep.open_source import open_source
from data_prep.recipe import Recipe
from data_prep.source import ArchiveConfig, Asset, Source
from tests.data_prep.archive_double import Double, Rule, status

QUICK = ArchiveConfig(timeout_s=1.0, retries=1, backoff_s=0.01, wait_s=3.0, allow_draft=True)
ONE, TWO, NEW = Asset("a.nwb", 1, "sha256:1", "1", "t"), Asset("b.nwb", 2, "sha256:2", "2", "t"), Asset("c.nwb", 3)


@pytest.fixture
def double():
    double = Double()
    for name in "abcd":
        double.add(f"{name}.nwb", name.encode() * 10)
    with double.serving():
        yield double


def draft(double: Double, tmp_path: Path, files: str = "*.nwb") -> Source:
    return open_source(double.url("draft"), [files], [], QUICK, Recipe(name="small"), tmp_path / "out")


def lock_of(tmp_path: Path) -> Path:
    return tmp_path / "out.000001.lock.json"


def test_a_draft_is_frozen_whole_and_read_as_it_was(double, tmp_path):
    first = draft(double, tmp_path, "[ab].nwb")
    assert [asset.path for asset in first.assets] == ["a.nwb", "b.nwb"]
    assert first.notes == (f"the draft of 000001 is frozen in {lock_of(tmp_path)}: later runs read the same files",)
    frozen = json.loads(lock_of(tmp_path).read_text())
    assert [(one["path"], one["id"]) for one in frozen["assets"]] == [(one.path, one.id) for one in double.drafted]
    double.replace("a.nwb", b"newer")
    double.remove("b.nwb")
    double.add("e.nwb", b"e")
    then = draft(double, tmp_path)
    assert then.assets[:2] == first.assets and [asset.path for asset in then.assets] == [f"{n}.nwb" for n in "abcd"]
    told = [re.sub("since .*?: ", "since then: ", note) for note in then.notes]
    assert told == [
        "the draft of 000001 has moved on since then: 1 replaced (a.nwb), the frozen ones are read",
        "the draft of 000001 has moved on since then: 1 removed (b.nwb), they are read all the same",
        "the draft of 000001 has moved on since then: 1 added (e.nwb), they are not read",
    ]
    for asset, blob in zip(then.assets, (b"a" * 10, b"b" * 10)):
        with then.opened(asset) as path:
            assert path.read_bytes() == blob
    lock_of(tmp_path).unlink()
    assert [asset.path for asset in draft(double, tmp_path).assets] == [f"{n}.nwb" for n in "acde"]


def test_a_draft_that_rests_has_nothing_to_tell(double, tmp_path):
    draft(double, tmp_path)
    assert draft(double, tmp_path).notes == ()


def test_a_locked_draft_is_read_from_the_cache_where_the_archive_does_not_answer(double, tmp_path, monkeypatch):
    double.token = "secret"
    monkeypatch.setenv(double.variable, "secret")
    source = draft(double, tmp_path, "a.nwb")
    with source.opened(source.assets[0]):
        pass
    double.rules += [Rule("/api/", status(503), times=999)]
    again = draft(double, tmp_path, "a.nwb")
    assert "is not known: " in again.notes[0] and "answers 503" in again.notes[0]
    with again.opened(again.assets[0]) as path:
        assert path.read_bytes() == b"a" * 10


def test_of_two_processes_that_freeze_the_first_counts(tmp_path):
    path, found = tmp_path / "lock.json", []

    def run(asset: Asset) -> None:
        found.append(freeze(path, "http://x/api", "000001", (asset,)))

    threads = [threading.Thread(target=run, args=(replace(ONE, id=str(k)),)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({lock.assets for lock in found}) == 1
    assert [one.name for one in tmp_path.iterdir()] == ["lock.json"]


def test_a_lock_of_something_else_is_refused(tmp_path):
    path = tmp_path / "lock.json"
    assert read_lock(path, "http://x/api", "000001") is None
    freeze(path, "http://x/api", "000001", (ONE, TWO))
    assert read_lock(path, "http://x/api/", "000001").assets == (ONE, TWO)
    with pytest.raises(ConfigError, match="freezes 000001 of http://x/api, not 000002 of http://x/api"):
        read_lock(path, "http://x/api", "000002")
    for broken in ("", "[]", '{"format": 2}', '{"format": 1, "assets": [1]}', path.read_text()[:-20]):
        path.write_text(broken)
        with pytest.raises(ConfigError, match="is no lock file .*; delete it to freeze the draft anew"):
            read_lock(path, "http://x/api", "000001")


def test_many_changes_are_counted_and_the_first_named():
    many = tuple(replace(ONE, path=f"{k}.nwb", id=str(k)) for k in range(9))
    lock = Lock("http://x/api", "000001", "2026-01-01", many)
    assert moved_on(lock, many) == []
    (line,) = moved_on(lock, ())
    assert "9 removed (0.nwb, 1.nwb, 2.nwb, ...)" in line
