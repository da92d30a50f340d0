"""Servers that fail, disks that fill, processes that die: a clear line or a silent recovery, never wrong bytes or a hang."""

import contextlib
import errno
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import fsspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sharding.cache import CacheConfig
from sharding.cache_fetch import Server
from sharding.errors import ShardError
from sharding.files import files_at
from tests.sharding.shard_server import Fault, entry_of, serving, shard_files, until

SIZE = 200_000
STALL_S, PATIENCE_S = 0.4, 1.0


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")  # loopback is asked directly, whatever this machine has


@pytest.fixture
def server():
    with serving(4, SIZE) as running:
        yield running


@pytest.fixture
def cache(tmp_path) -> CacheConfig:
    """Of a patience that ends soon, but with no stall that a busy machine could mistake."""
    return CacheConfig(folder=str(tmp_path / "cache"), stall_s=10, patience_s=PATIENCE_S)


@pytest.fixture
def hasty(cache) -> CacheConfig:
    return CacheConfig(cache.folder, stall_s=STALL_S, patience_s=PATIENCE_S)


def parts(cache: CacheConfig) -> list[Path]:
    return list(Path(cache.folder).rglob("*.part"))


def whole(cache: CacheConfig) -> list[Path]:
    return sorted(Path(cache.folder).glob("roots/*/train-*"))


@contextlib.contextmanager
def fetching(server, cache, entry, repository, **words):
    """A process that fetches a file whose server stalls in the middle."""
    server.faults[entry["file"]].append(Fault(stall=SIZE // 2))
    code = f"""
from sharding.cache import CacheConfig
from sharding.cache_fetch import Server
from sharding.files import files_at
files_at({server.url!r}, CacheConfig({cache.folder!r}, stall_s=100)).path({entry!r})
"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=repository)
    try:
        until(lambda: [part for part in parts(cache) if part.stat().st_size > SIZE // 4])
        yield process
    finally:
        process.kill()
        process.wait(10)


PASSING = {
    "answers 500": Fault(status=500),
    "answers 503": Fault(status=503),
    "too many requests": Fault(status=429),
    "cut in the middle": Fault(cut=SIZE // 2),
    "cut before the first byte": Fault(cut=0),
    "stalls in the middle": Fault(stall=SIZE // 2),
    "stalls before the first byte": Fault(stall=0),
    "flips a byte": Fault(flip=12_345),
    "too short": Fault(body=b"short"),
    "too long": Fault(body=b"long" * SIZE),
}


@pytest.mark.parametrize("name", PASSING)
def test_what_passes_is_tried_again(server, cache, hasty, name):
    fault, entry = PASSING[name], server.entries[0]
    cache = hasty if "stalls" in name else cache
    server.faults[entry["file"]].append(fault)
    assert files_at(server.url, cache).path(entry).read_bytes() == server.files[entry["file"]]
    assert server.count(entry["file"]) == 2 and parts(cache) == []


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(faults=st.lists(st.sampled_from([PASSING[name] for name in PASSING if "stall" not in name]), max_size=3))
def test_whatever_goes_wrong_the_bytes_are_right_or_there_are_none(server, cache, faults):
    shutil.rmtree(cache.folder, ignore_errors=True)
    entry = server.entries[0]
    server.faults[entry["file"]].clear()
    server.faults[entry["file"]].extend(faults)
    try:
        assert files_at(server.url, cache).path(entry).read_bytes() == server.files[entry["file"]]
    except ShardError:
        assert whole(cache) == []
    assert parts(cache) == []


def test_a_server_that_fails_for_a_while_is_told_in_two_lines(server, cache, caplog):
    entry = server.entries[0]
    server.faults[entry["file"]].extend([Fault(status=503)] * 3)
    with caplog.at_level(logging.INFO, "spikeloom"):
        files_at(server.url, cache).path(entry)
    started, went_on = [line for line in caplog.messages if "train-000000.tar" in line]
    assert "train-000000.tar: the server answers 503; trying again for up to 1 s" in started
    assert "goes on after" in went_on


@pytest.mark.parametrize("fault", [Fault(status=500), Fault(cut=10)], ids=["500", "cut"])
def test_patience_ends(server, hasty, fault):
    entry = server.entries[0]
    server.always[entry["file"]] = fault
    began = time.monotonic()
    with pytest.raises(ShardError, match=r"root/train-000000.tar: .*\(tried for 1 s\); see whether the server is well"):
        files_at(server.url, hasty).path(entry)
    assert time.monotonic() - began < 3 * (PATIENCE_S + STALL_S)
    assert whole(hasty) == [] and parts(hasty) == []


def test_a_server_that_never_answers_is_given_up(hasty):
    with socket.create_server(("127.0.0.1", 0)) as deaf:  # connects, since it listens; nobody ever reads
        began = time.monotonic()
        with pytest.raises(ShardError, match="index.json: no byte came for 0.4 s"):
            files_at(f"http://127.0.0.1:{deaf.getsockname()[1]}/root", hasty).read("index.json")
        assert time.monotonic() - began < 3 * (PATIENCE_S + STALL_S)


def test_a_server_that_comes_up_late_is_waited_for(server, cache):
    server.stop()
    back = threading.Timer(0.5, server.start)
    back.start()
    entry = server.entries[0]
    patient = CacheConfig(cache.folder, stall_s=10, patience_s=10)
    assert files_at(server.url, patient).path(entry).read_bytes() == server.files[entry["file"]]
    back.join()


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_what_does_not_pass_is_told_at_once(server, cache, status):
    entry = server.entries[0]
    server.always[entry["file"]] = Fault(status=status)
    told = (
        "is missing on the server; upload" if status > 403 else f"the server answers {status}; check the address, and"
    )
    began = time.monotonic()
    with pytest.raises(ShardError, match=f"root/train-000000.tar: {told}"):
        files_at(server.url, cache).path(entry)
    assert time.monotonic() - began < PATIENCE_S and server.asked == [entry["file"]]


def test_wrong_bytes_are_fetched_twice_and_then_told(server, cache):
    entry = server.entries[0]
    server.always[entry["file"]] = Fault(flip=99)
    digest = rf"its sha256 is not what the index says: [0-9a-f]{{16}}, not {entry['sha256'][:16]} \(fetched twice\)"
    with pytest.raises(ShardError, match=f"train-000000.tar: {digest}; upload the shards again"):
        files_at(server.url, cache).path(entry)
    server.always[entry["file"]] = Fault(body=b"x" * (SIZE - 1))
    with pytest.raises(ShardError, match="has 199999 bytes, its index says 200000"):
        files_at(server.url, cache).path(entry)
    assert len(server.asked) == 4 and whole(cache) == [] and parts(cache) == []


def test_a_redirect_in_circles_is_told(server, cache):
    server.always["train-000000.tar"] = Fault(redirect=f"{server.url}/train-000000.tar")
    with pytest.raises(ShardError, match="TooManyRedirects"):
        files_at(server.url, cache).path(server.entries[0])


def test_a_stalled_file_system_without_time_outs_is_watched(hasty):
    class Stalling(fsspec.AbstractFileSystem):
        protocol = "stalling"
        asked: list[str] = []

        def get_file(self, path, into, callback=None, **_):
            self.asked.append(path)
            if len(self.asked) == 1:
                time.sleep(3)  # no byte
            Path(into).write_bytes(b"whole")

    fsspec.register_implementation("stalling", Stalling, clobber=True)
    began = time.monotonic()
    path = files_at("stalling://root", hasty).path(entry_of("train-000000.tar", b"whole"))
    assert path.read_bytes() == b"whole" and time.monotonic() - began < 2 and len(Stalling.asked) == 2


def test_s3_that_stalls_is_tried_again(server, cache, monkeypatch):
    pytest.importorskip("s3fs", reason="the s3 extra is not installed")
    for name, value in {
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url.removesuffix("/root"))
    entry = server.entries[0]
    server.faults[entry["file"]].append(Fault(stall=SIZE // 2))
    slow = CacheConfig(cache.folder, stall_s=1, patience_s=5)  # making a client takes half a second
    assert files_at("s3://bucket/root", slow).path(entry).read_bytes() == server.files[entry["file"]]
    server.always[server.entries[1]["file"]] = Fault(status=403)
    with pytest.raises(ShardError, match="s3://bucket/root/train-000001.tar: the server refuses it"):
        files_at("s3://bucket/root", slow).path(server.entries[1])


def test_a_process_that_is_killed_in_the_middle_leaves_no_harm(server, cache, repository):
    entry, other = server.entries[:2]
    with fetching(server, cache, entry, repository) as process:
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    assert len(parts(cache)) == 1 and whole(cache) == []
    files = files_at(server.url, cache)
    files.path(other)  # any file that comes in sweeps
    assert parts(cache) == []
    began = time.monotonic()
    assert files.path(entry).read_bytes() == server.files[entry["file"]]
    assert time.monotonic() - began < 1 and server.count(entry["file"]) == 2


def test_who_waits_goes_on_where_the_killed_process_ended(server, cache, repository):
    entry = server.entries[0]
    with fetching(server, cache, entry, repository) as process:
        threading.Timer(0.4, process.kill).start()
        assert files_at(server.url, cache).path(entry).read_bytes() == server.files[entry["file"]]
    assert server.count(entry["file"]) == 2 and parts(cache) == []


def test_a_living_download_is_not_swept(server, cache, repository):
    with fetching(server, cache, server.entries[0], repository):
        files_at(server.url, cache).path(server.entries[1])
        assert len(parts(cache)) == 1


def test_a_process_that_stands_still_is_named(server, cache, repository):
    entry = server.entries[0]
    with fetching(server, cache, entry, repository) as process:
        process.send_signal(signal.SIGSTOP)
        name = f"process {process.pid} on {socket.gethostname().partition('.')[0]}"
        began = time.monotonic()
        with pytest.raises(ShardError, match=f"{name} holds its lock and has not moved for 1 s; end it and run again"):
            files_at(server.url, CacheConfig(cache.folder, stall_s=0.25, patience_s=0.5)).path(entry)
        assert time.monotonic() - began < 5


def test_downloads_at_once_share_the_limit(server, cache, repository):
    """A file is refused no room because another is on its way: it waits until that one is whole, and can go."""
    with fetching(server, cache, server.entries[0], repository) as process:
        small = CacheConfig(cache.folder, limit_gb=1.5 * SIZE / 1e9, stall_s=10, patience_s=10)
        threading.Timer(0.4, process.kill).start()
        assert files_at(server.url, small).path(server.entries[1]).exists()
    assert [path.name.split(".")[0] for path in whole(cache)] == ["train-000001"]


def test_a_cache_that_is_removed_while_it_is_used_comes_again(server, cache):
    files = files_at(server.url, cache)
    files.path(server.entries[0])
    shutil.rmtree(cache.folder)
    assert files.path(server.entries[0]).read_bytes() == server.files["train-000000.tar"]
    name = server.entries[1]["file"]
    server.faults[name].append(Fault(slow_s=0.3))
    threading.Timer(0.15, shutil.rmtree, [cache.folder]).start()  # in the middle of a download
    assert files.path(server.entries[1]).read_bytes() == server.files[name]


DISK = """
import os, sys, threading, time
from pathlib import Path
from sharding.cache import CacheConfig
from sharding.cache_fetch import Server
from sharding.errors import ShardError
from sharding.files import files_at

folder, url, entries = Path(sys.argv[1]), sys.argv[2], {entries!r}
cache = CacheConfig(str(folder / "cache"), stall_s=5, patience_s=5)
files = files_at(url, cache)

def here():
    return [path.name.split(".")[0][-1] for path in sorted(folder.rglob("train-*.tar"))]

def in_the_middle():
    until = time.monotonic() + 10
    while time.monotonic() < until and not any(part.stat().st_size > 1000 for part in folder.rglob("*.part")):
        time.sleep(0.005)
    fill()

def fill():
    with open(folder / "ballast", "ab", buffering=0) as ballast:
        try:
            while True:
                ballast.write(bytes(4096))
        except OSError:
            pass
"""


def on_a_small_disk(server, tmp_path, repository, code: str) -> list[str]:
    """What code prints in a process whose folder is a tmpfs with place for a little more than four shards."""
    disk = tmp_path / "disk"
    disk.mkdir()
    script = tmp_path / "script.py"
    script.write_text(DISK.format(entries=server.entries) + code)
    mount = (
        f"mount -t tmpfs -o size={4 * SIZE + 100_000} none {disk} && exec {sys.executable} {script} {disk} {server.url}"
    )
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount]
    if shutil.which("unshare") is None or subprocess.run([*command[:4], "true"], capture_output=True).returncode:
        pytest.skip("this machine allows no private mounts")
    path = {"PYTHONPATH": str(repository)}
    done = subprocess.run(command, env={**os.environ, **path}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_disk_smaller_than_the_limit_evicts(server, tmp_path, repository):
    server.files |= shard_files(6, SIZE, seed=1)[0]
    server.entries = [entry_of(name, body) for name, body in server.files.items()]
    code = "for entry in entries:\n    files.path(entry); time.sleep(0.02)\nprint(*here())"
    assert on_a_small_disk(server, tmp_path, repository, code) == ["2 3 4 5"]
    assert sorted(server.asked) == sorted(server.files)  # room is made before, not by a failure in the middle


def test_a_disk_that_fills_in_the_middle(server, tmp_path, repository):
    name = server.entries[2]["file"]
    server.always[name] = Fault(slow_s=0.4)
    code = """
for entry in entries[:2]:
    files.path(entry); time.sleep(0.02)
thread = threading.Thread(target=in_the_middle); thread.start()
print(files.path(entries[2]).stat().st_size)  # the oldest made room
thread.join()
print(*here())
fill()
for path in folder.rglob("train-*"):
    path.unlink()
fill()
try:
    files.path(entries[2])
except ShardError as error:
    print(error)
print(*here(), len(list(folder.rglob("*.part"))))
"""
    size, kept, told, left = on_a_small_disk(server, tmp_path, repository, code)
    assert size == str(SIZE) and kept in ("1 2", "2") and left.split() == ["0"]
    assert "cache: its disk is full (" in told and "free some space, or set cache.folder to a larger disk" in told


def test_a_quota_that_no_statistics_tell_evicts_and_tries_once_more(server, cache, monkeypatch):
    real = Server.transfer

    def within_quota(self, name, into, most, stop):
        if sum(path.stat().st_size for path in whole(cache)) + most > 2.5 * SIZE:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        real(self, name, into, most, stop)

    monkeypatch.setattr(Server, "transfer", within_quota)
    files = files_at(server.url, cache)
    for entry in server.entries:
        assert files.path(entry).read_bytes() == server.files[entry["file"]]
    assert [path.name.split(".")[0] for path in whole(cache)] == ["train-000002", "train-000003"]


def test_a_body_without_end_is_not_taken(server, cache):
    entry = server.entries[0]
    server.faults[entry["file"]].append(Fault(body=b"long" * SIZE, stall=2 * SIZE))
    began = time.monotonic()
    assert files_at(server.url, cache).path(entry).read_bytes() == server.files[entry["file"]]
    assert time.monotonic() - began < 8  # not for the ten seconds of a stall


def test_a_file_that_the_system_does_not_let_grow(server, cache, repository):
    """RLIMIT_FSIZE stands in for a quota, where there is no small disk: the kernel refuses in the middle of a file."""
    code = f"""
import resource
from sharding.cache import CacheConfig
from sharding.cache_fetch import Server
from sharding.errors import ShardError
from sharding.files import files_at
resource.setrlimit(resource.RLIMIT_FSIZE, ({SIZE // 2}, {SIZE // 2}))
try:
    files_at({server.url!r}, CacheConfig({cache.folder!r})).path({server.entries[0]!r})
except ShardError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, timeout=30)
    assert "its disk is full" in done.stdout and done.stderr == ""
    assert whole(cache) == [] and parts(cache) == [] and len(server.asked) == 2
