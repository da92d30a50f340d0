"""Local shards: missing, truncated and changed ones are told; each version is read once on a machine."""

import hashlib
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sharding import cache_stamps
from sharding.cache import CacheConfig
from sharding.errors import ConfigError, ShardError
from sharding.files import LocalFiles, files_at
from tests.sharding.shard_server import shard_files

FLIPPED = "its sha256 is not what the index says; copy or write the shards again"


@pytest.fixture
def cache(tmp_path) -> CacheConfig:
    return CacheConfig(folder=str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path):
    """A folder of files, and their entries."""
    files, entries = shard_files()
    folder = tmp_path / "root of %shards"
    folder.mkdir()
    for name, body in files.items():
        (folder / name).write_bytes(body)
    return folder, entries


@pytest.fixture
def digests(monkeypatch) -> list:
    """The files read for their digest; each test begins as a new process, which knows nothing."""
    read, real = [], hashlib.file_digest
    monkeypatch.setattr(cache_stamps, "_seen", set())
    monkeypatch.setattr(cache_stamps, "_told", set())
    monkeypatch.setattr(hashlib, "file_digest", lambda stream, kind: read.append(stream.name) or real(stream, kind))
    return read


def flip(path: Path, at: int = 777) -> None:
    with open(path, "r+b") as stream:
        stream.seek(at)
        byte = stream.read(1)[0]
        stream.seek(at)
        stream.write(bytes([byte ^ 1]))


@pytest.mark.parametrize("kind", [str, Path, Path.as_uri])
def test_a_folder_gives_its_own_files(root, cache, kind):
    folder, entries = root
    files = files_at(kind(folder), cache)
    assert isinstance(files, LocalFiles) and files.root == folder
    assert [files.path(entry) for entry in entries] == [folder / entry["file"] for entry in entries]
    assert files.read(entries[0]["file"]) == (folder / entries[0]["file"]).read_bytes()


def test_a_missing_a_truncated_and_a_flipped_shard_are_told(root, cache):
    folder, entries = root
    files = files_at(folder, cache)
    (folder / entries[0]["file"]).unlink()
    with pytest.raises(ShardError, match=r"train-000000.tar: is missing; copy or write"):
        files.path(entries[0])
    os.truncate(folder / entries[1]["file"], 99_999)
    with pytest.raises(ShardError, match=r"train-000001.tar: has 99999 bytes, its index says 100000; copy"):
        files.path(entries[1])
    flip(folder / entries[2]["file"])
    for _ in range(2):  # it is not forgotten
        with pytest.raises(ShardError, match=f"train-000002.tar: {FLIPPED}"):
            files.path(entries[2])
    assert files_at(folder, cache, verify=False).path(entries[2])


def test_each_version_of_a_shard_is_read_once(root, cache, digests, monkeypatch):
    folder, entries = root
    path = folder / entries[0]["file"]

    def ask_as_a_new_process():
        monkeypatch.setattr(cache_stamps, "_seen", set())
        files_at(folder, cache).path(entries[0])

    for _ in range(3):
        ask_as_a_new_process()
    assert digests == [str(path)]

    times, body = path.stat(), path.read_bytes()
    flip(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as a copy that keeps times
    with pytest.raises(ShardError, match=FLIPPED):
        ask_as_a_new_process()
    path.write_bytes(body)
    for _ in range(2):
        ask_as_a_new_process()
    assert len(digests) == 3

    other = dict(entries[0], sha256="0" * 64)  # an index that says something else
    with pytest.raises(ShardError, match=FLIPPED):
        files_at(folder, cache).path(other)


def test_of_many_processes_one_reads_a_shard(root, cache, tmp_path, repository):
    folder, entries = root
    log = tmp_path / "log"
    code = f"""
import hashlib, time
from sharding.cache import CacheConfig
from sharding.files import files_at
real = hashlib.file_digest
def slow(stream, kind):
    with open({str(log)!r}, "a") as out:
        print(stream.name, file=out)
    time.sleep(0.5)  # long enough for the others to come
    return real(stream, kind)
hashlib.file_digest = slow
files_at({str(folder)!r}, CacheConfig(folder={cache.folder!r})).path({entries[0]!r})
"""
    running = [subprocess.Popen([sys.executable, "-c", code], cwd=repository) for _ in range(4)]
    assert [process.wait(30) for process in running] == [0] * 4
    assert log.read_text().splitlines() == [str(folder / entries[0]["file"])]


def test_a_killed_reader_leaves_no_stamp_and_no_lock(root, cache, digests, repository):
    folder, entries = root
    code = f"""
import hashlib, os, signal
from sharding.cache import CacheConfig
from sharding.files import files_at
hashlib.file_digest = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
files_at({str(folder)!r}, CacheConfig(folder={cache.folder!r})).path({entries[0]!r})
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=repository).returncode == -9
    files_at(folder, cache).path(entries[0])
    assert len(digests) == 1


def test_without_a_cache_folder_each_process_reads_once_and_says_so_once(root, tmp_path, digests, caplog):
    folder, entries = root
    (tmp_path / "file").write_text("")
    cache = CacheConfig(folder=str(tmp_path / "file" / "cache"))
    with caplog.at_level(logging.WARNING, "spikeloom"):
        for _ in range(2):
            for entry in entries:
                files_at(folder, cache).path(entry)
    assert len(digests) == len(entries)
    assert len(caplog.messages) == 1 and "cannot be written to (Not a directory)" in caplog.messages[0]


def test_a_long_reading_is_told_once(root, cache, digests, caplog, monkeypatch):
    monkeypatch.setattr(cache_stamps, "_LONG_S", -1.0)
    for entry in root[1]:
        files_at(root[0], cache).path(entry)
    assert len(caplog.messages) == 1 and "compared with their sha256 before their first use" in caplog.messages[0]


def test_without_verifying_nothing_is_read(root, cache, digests):
    folder, entries = root
    for entry in entries:
        files_at(folder, cache, verify=False).path(entry)
    assert digests == [] and not Path(cache.folder).exists()


def test_the_cache_folder_is_found(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SPIKELOOM_CACHE", raising=False)
    assert CacheConfig().path == tmp_path / ".cache" / "spikeloom"
    monkeypatch.setenv("SPIKELOOM_CACHE", "~/elsewhere")
    assert CacheConfig().path == tmp_path / "elsewhere"
    assert CacheConfig(folder="/scratch/c").path == Path("/scratch/c")
    for name in ("limit_gb", "stall_s", "patience_s"):
        with pytest.raises(ConfigError, match=f"cache.{name}: is 0; give a positive number"):
            CacheConfig(**{name: 0})
