"""Assets fetched into a cache: byte for byte or not at all, whatever happens on the way."""

import errno
import fcntl
import hashlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_prep.archive_fetch import digest_of
from data_prep.errors import SessionError
from data_prep.open_source import open_source
from data_prep.recipe import Recipe
from data_prep.source import ArchiveConfig, Source
from tests.data_prep.archive_double import (
    STALL_S,
    VERSION,
    Double,
    Rule,
    Stored,
    cut,
    flip,
    html,
    no_range,
    stall,
    status,
)

QUICK = ArchiveConfig(timeout_s=1.0, retries=3, backoff_s=0.01, wait_s=3.0)
SIZE = 300_000
BLOB = np.random.default_rng(1).bytes(SIZE)
BYTES = "GET /blobs/"


@pytest.fixture
def double():
    """One file, published."""
    double = Double()
    double.add("sub-A/a.nwb", BLOB)
    double.publish()
    with double.serving():
        yield double


def listed(double: Double, tmp_path: Path, config: ArchiveConfig = QUICK, version: str = VERSION) -> Source:
    recipe = Recipe(name="small")
    return open_source(double.url(version), ["**/*.nwb", "**/*.nwb.zarr"], [], config, recipe, tmp_path / "out")


def read(source: Source) -> bytes:
    with source.opened(source.assets[0]) as path:
        return path.read_bytes()


def cached(tmp_path: Path) -> list[str]:
    """Names of all files in the cache, hidden ones too."""
    return sorted(path.name for path in (tmp_path / "out.downloads").rglob("*") if path.is_file())


def ranges(double: Double) -> list[str]:
    return [asked.range for asked in double.requests_of(BYTES)]


@pytest.mark.parametrize("sha256", [True, False], ids=["sha256", "etag"])
def test_a_fetched_file_is_the_archives_and_is_fetched_once(double, tmp_path, sha256):
    double.drafted[0].sha256 = sha256
    source = listed(double, tmp_path)
    assert read(source) == BLOB
    asked = len(double.log)
    assert read(source) == BLOB
    assert len(double.log) == asked  # not even the archive is asked
    assert cached(tmp_path) == [".a.nwb.verified.json", "a.nwb"]
    told = source.provenance(source.assets[0])
    assert (told["streamed"], told["digest_checked"]) == ("no", "yes")
    with source.opened(source.assets[0]) as path:
        assert path == tmp_path / "out.downloads" / f"127.0.0.1_{double.server.server_port}" / "000001" / VERSION / (
            "sub-A/a.nwb"
        )


def test_the_etag_of_a_file_in_several_parts_is_the_archives(tmp_path):
    path, stored = tmp_path / "big", Stored("big", bytes((64 << 20) + 5))
    path.write_bytes(stored.blob)
    etag = stored.digests()["dandi:dandi-etag"]
    assert etag.endswith("-2") and digest_of(path, "dandi-etag:") == f"dandi-etag:{etag}"


def test_the_token_never_reaches_the_storage_though_the_archive_redirects_there(double, tmp_path, monkeypatch):
    double.token = "secret"
    monkeypatch.setenv(double.variable, "secret")
    assert read(listed(double, tmp_path)) == BLOB
    assert {asked.token for asked in double.requests_of("/api/assets/")} == {"token secret"}
    assert {(asked.token, asked.status) for asked in double.requests_of(BYTES)} == {("", 200)}


def test_a_cut_download_goes_on_where_it_ended(double, tmp_path):
    double.rules += [Rule(BYTES, cut(200_000)), Rule(BYTES, cut(10_000), times=1)]
    assert read(listed(double, tmp_path)) == BLOB
    starts = [int(span.removeprefix("bytes=").rstrip("-") or 0) for span in ranges(double)]
    assert starts[0] == 0 and 200_000 - (1 << 16) < starts[1] <= 200_000 and starts[2] >= starts[1]
    assert double.bytes_of(BYTES) < SIZE + 3 * (1 << 16)


def test_where_ranges_are_ignored_it_starts_again(double, tmp_path):
    double.rules += [Rule(BYTES, cut(200_000)), Rule(BYTES, asked=no_range)]
    assert read(listed(double, tmp_path)) == BLOB
    assert [asked.status for asked in double.requests_of(BYTES)] == [200, 200]


def test_a_range_that_is_not_the_one_asked_for_starts_again(double, tmp_path):
    def shifted(answer):
        return replace(answer, headers={"Content-Range": f"bytes 0-{len(answer.body) - 1}/{SIZE}"})

    double.rules += [Rule(BYTES, cut(200_000)), Rule(BYTES, shifted)]
    assert read(listed(double, tmp_path)) == BLOB
    assert ranges(double)[-1] == ""


@pytest.mark.parametrize(
    "fault",
    [status(503, Retry_After="0"), status(429), html, cut(0), stall(100_000)],
    ids=["503", "429", "html", "cut at once", "stall"],
)
def test_a_fault_on_the_way_leaves_no_trace_in_the_file(double, tmp_path, fault):
    double.rules += [Rule(BYTES, fault)]
    began = time.monotonic()
    assert read(listed(double, tmp_path, replace(QUICK, timeout_s=0.5))) == BLOB
    assert time.monotonic() - began < STALL_S
    assert len(double.requests_of(BYTES)) == 2


def test_a_fault_of_the_redirect_is_tried_again(double, tmp_path):
    double.rules += [Rule("GET /api/assets/.*/download/", status(502), times=2)]
    assert read(listed(double, tmp_path)) == BLOB


def test_patience_ends_and_what_came_is_kept_for_the_next_run(double, tmp_path):
    double.rules += [Rule(BYTES, cut(150_000)), Rule(BYTES, status(503), times=3)]
    source = listed(double, tmp_path)
    with pytest.raises(SessionError, match=r"sub-A/a.nwb: answers 503 .* \(tried 4 times\)"):
        read(source)
    assert [name for name in cached(tmp_path) if name.endswith((".nwb", ".part"))] == [
        next(name for name in cached(tmp_path) if name.endswith(".part"))
    ]
    sent = double.bytes_of(BYTES)
    assert read(source) == BLOB
    assert double.bytes_of(BYTES) - sent < SIZE - 150_000 + (1 << 16)


def test_a_download_that_gains_ground_is_not_given_up(double, tmp_path):
    big = np.random.default_rng(2).bytes(12 << 20)
    double.replace("sub-A/a.nwb", big)
    double.publish()
    double.rules += [Rule(BYTES, cut(2 << 20), times=5)]  # more cuts than tries
    assert read(listed(double, tmp_path)) == big


@pytest.mark.parametrize("sha256", [True, False], ids=["sha256", "etag"])
def test_a_flipped_bit_is_found_before_the_file_has_its_name(double, tmp_path, sha256):
    double.drafted[0].sha256 = sha256
    double.rules += [Rule(BYTES, flip(123_456))]
    assert read(listed(double, tmp_path)) == BLOB
    assert ranges(double) == ["", ""]  # from the first byte again


def test_what_never_has_its_digest_is_refused_with_both(double, tmp_path):
    double.rules += [Rule(BYTES, flip(7), times=99)]
    source = listed(double, tmp_path)
    wrong = hashlib.sha256(BLOB[:7] + bytes([BLOB[7] ^ 1]) + BLOB[8:]).hexdigest()
    with pytest.raises(SessionError, match=f"sub-A/a.nwb: .*{source.assets[0].digest}, came with sha256:{wrong}") as no:
        read(source)
    assert "\n" not in str(no.value)
    assert [name for name in cached(tmp_path) if "a.nwb" in name and not name.endswith(".lock")] == []


def test_an_asset_without_any_digest_is_refused(double, tmp_path):
    double.drafted[0].claims = {"dandi:dandi-etag": "", "dandi:sha2-256": ""}
    with pytest.raises(SessionError, match="the archive states no digest of it"):
        read(listed(double, tmp_path))


def test_a_damaged_file_of_the_cache_is_fetched_anew(double, tmp_path):
    source = listed(double, tmp_path)
    with source.opened(source.assets[0]) as path:
        pass
    path.write_bytes(BLOB[:-1] + b"x")
    os.utime(path, ns=(1, 1))  # another time than the one remembered, so it is looked at
    assert read(source) == BLOB


def test_a_file_somebody_put_there_is_taken_once_its_digest_fits(double, tmp_path):
    source = listed(double, tmp_path, replace(QUICK, keep_files=False))
    path = Path(source.cache) / "sub-A/a.nwb"
    path.parent.mkdir(parents=True)
    path.write_bytes(BLOB)
    assert read(source) == BLOB and double.requests_of(BYTES) == []
    assert path.exists()  # it is not ours to remove


def test_files_that_are_not_kept_are_gone_after_the_last_reader(double, tmp_path):
    source = listed(double, tmp_path, replace(QUICK, keep_files=False))
    with source.opened(source.assets[0]) as path:
        with source.opened(source.assets[0]):
            pass
        assert path.read_bytes() == BLOB
    assert cached(tmp_path) == []


def test_an_asset_replaced_in_a_draft_after_it_was_listed_is_read_by_its_id_and_told(double, tmp_path):
    source = listed(double, tmp_path, replace(QUICK, allow_draft=True), "draft")
    double.replace("sub-A/a.nwb", b"newer")
    assert read(source) == BLOB
    assert "replaced in or removed from draft" in source.provenance(source.assets[0])["outdated"]


def test_bytes_that_changed_under_an_id_are_refused(double, tmp_path):
    source = listed(double, tmp_path)
    double.drafted[0].blob = BLOB[::-1]
    with pytest.raises(SessionError, match="was replaced on the archive since it was listed: sha256:.* became sha256:"):
        read(source)
    double.known.clear()
    double.published[VERSION].clear()
    with pytest.raises(SessionError, match=r"does not show it \(404\)"):
        read(source)


def test_a_cache_that_cannot_be_written_is_told(double, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SessionError, match="cannot be written .*choose another archive.cache"):
        read(listed(double, tmp_path, replace(QUICK, cache=str(tmp_path / "file"))))


def test_a_cache_that_only_others_may_write_is_read(double, tmp_path, monkeypatch):
    source = listed(double, tmp_path)
    with source.opened(source.assets[0]) as path:
        pass
    monkeypatch.setattr(os, "access", lambda place, kind: False)  # root may write everywhere
    asked, times = len(double.log), path.parent.stat().st_mtime_ns
    assert read(source) == BLOB
    assert (len(double.log), path.parent.stat().st_mtime_ns) == (asked, times)


# Processes

FETCH = """
import sys
from pathlib import Path
from data_prep.recipe import Recipe
from data_prep.open_source import open_source
from data_prep.source import ArchiveConfig
config = ArchiveConfig(timeout_s=20)
source = open_source(sys.argv[1], ["**/*.nwb"], [], config, Recipe(name="small"), Path(sys.argv[2]))
with source.opened(source.assets[0]):
    pass
"""


def test_a_killed_fetch_goes_on_with_the_bytes_that_lack(double, tmp_path):
    double.rules += [Rule(BYTES, stall(200_000))]
    root = Path(__file__).parents[2]
    child = subprocess.Popen([sys.executable, "-c", FETCH, double.url(), str(tmp_path / "out")], cwd=root)
    deadline, part = time.monotonic() + 60, []
    while time.monotonic() < deadline and not (part and part[0].stat().st_size >= 3 * (1 << 16)):
        assert child.poll() is None
        time.sleep(0.02)
        part = list((tmp_path / "out.downloads").rglob("*.part"))
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    have = part[0].stat().st_size
    source = listed(double, tmp_path)
    assert not Path(source.cache, "sub-A/a.nwb").exists()
    assert read(source) == BLOB
    last = double.requests_of(BYTES)[-1]
    assert (last.range, last.sent) == (f"bytes={have}-", SIZE - have)
    assert cached(tmp_path) == [".a.nwb.verified.json", "a.nwb"]


def fetch(source: Source, pipe) -> None:
    pipe.send(hashlib.sha256(read(source)).hexdigest())


def test_processes_that_meet_fetch_it_once(double, tmp_path):
    source, context = listed(double, tmp_path), multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe(duplex=False)
    children = [context.Process(target=fetch, args=(source, theirs)) for _ in range(3)]
    for child in children:
        child.start()
    found = [ours.recv() for _ in children]
    for child in children:
        child.join()
    assert set(found) == {hashlib.sha256(BLOB).hexdigest()}
    assert double.bytes_of(BYTES) == SIZE


def test_where_the_file_system_has_no_locks_each_process_has_its_own_unfinished_file(double, tmp_path, monkeypatch):
    def unable(hold, kind):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", unable)
    source = listed(double, tmp_path)
    double.rules += [Rule(BYTES, cut(100_000)), Rule(BYTES, status(503), times=9)]
    with pytest.raises(SessionError, match="answers 503"):
        read(source)
    assert [name for name in cached(tmp_path) if name.endswith(f"-{os.getpid()}.part")]
    double.rules.clear()
    assert read(source) == BLOB


# Zarr

ENTRIES = {".zgroup": b'{"zarr_format": 2}', "units/spike_times/0": BLOB[:5000], "units/.zattrs": b"{}", "a/b": b"x"}


@pytest.fixture
def zarr(double):
    double.remove("sub-A/a.nwb")
    double.add("sub-A/a.nwb.zarr", entries=dict(ENTRIES))
    double.publish()
    return double


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_zarr_asset_becomes_a_folder_with_every_entry(zarr, tmp_path):
    zarr.rules += [
        Rule("/blobs/.*spike_times", flip(100)),
        Rule("/blobs/.*zattrs", status(503)),
        Rule("/blobs/.*a/b", cut(0)),
    ]
    source = listed(zarr, tmp_path)
    assert source.assets[0].zarr and source.assets[0].size == sum(map(len, ENTRIES.values()))
    with source.opened(source.assets[0]) as folder:
        assert content(folder) == ENTRIES
    asked = len(zarr.log)
    with source.opened(source.assets[0]) as folder:
        assert content(folder) == ENTRIES
    assert len(zarr.log) == asked


def test_an_embargoed_zarr_asset_takes_the_token_along_the_archives_own_redirects(zarr, tmp_path, monkeypatch):
    zarr.token = "secret"
    monkeypatch.setenv(zarr.variable, "secret")
    source = listed(zarr, tmp_path)
    with source.opened(source.assets[0]) as folder:
        assert content(folder) == ENTRIES
    assert 301 in {asked.status for asked in zarr.log}
    assert {asked.token for asked in zarr.requests_of(BYTES)} == {""}


def test_a_changed_entry_of_a_zarr_folder_is_fetched_anew(zarr, tmp_path):
    source = listed(zarr, tmp_path)
    with source.opened(source.assets[0]) as folder:
        pass
    (folder / "units/.zattrs").write_bytes(b"{ }")
    with source.opened(source.assets[0]) as folder:
        assert content(folder) == ENTRIES


def test_entries_fetched_before_are_not_fetched_again(zarr, tmp_path):
    zarr.rules += [Rule("/blobs/.*spike_times", status(503), times=4)]
    source = listed(zarr, tmp_path)
    with pytest.raises(SessionError, match="sub-A/a.nwb.zarr/units/spike_times/0: answers 503"):
        with source.opened(source.assets[0]):
            pass
    with source.opened(source.assets[0]) as folder:
        assert content(folder) == ENTRIES
    assert [asked.status for asked in zarr.requests_of("/blobs/.*zgroup")] == [200]


def test_a_zarr_whose_entries_are_not_those_of_its_checksum_is_refused(zarr, tmp_path):
    source = listed(zarr, tmp_path)
    before = zarr.drafted[0].digests()
    zarr.drafted[0].claims = before
    zarr.drafted[0].entries["a/b"] = b"y"
    with pytest.raises(SessionError, match="its entries have .* dandi-zarr-checksum:.* not .* bytes and .*"):
        with source.opened(source.assets[0]):
            pass
