"""Remote shards: fetched once a machine, verified, within the limit; prefetched in order; secrets stay out of sight."""

import base64
import logging
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sharding.cache import CacheConfig, is_url
from sharding.cache_room import Room, hidden, kept_name, parts_of
from sharding.errors import ConfigError, ShardError
from sharding.files import files_at
from sharding.index import ShardIndex
from sharding.window import Reader
from tests.sharding.shard_server import Fault, ShardServer, entry_of, serving, shard_files, until

SIZE = 100_000


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")  # loopback is asked directly, whatever this machine has


@pytest.fixture
def server():
    with serving(8, SIZE) as running:
        yield running


@pytest.fixture
def root_server():
    """Serves a folder."""
    servers = []

    def serve(folder: Path) -> ShardServer:
        servers.append(ShardServer({path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}))
        servers[-1].start()
        return servers[-1]

    yield serve
    for server in servers:
        server.stop()


@pytest.fixture
def cache(tmp_path) -> CacheConfig:
    return CacheConfig(folder=str(tmp_path / "cache"), stall_s=10, patience_s=1)


def limited(cache: CacheConfig, shards: float) -> CacheConfig:
    return CacheConfig(cache.folder, limit_gb=shards * SIZE / 1e9, stall_s=10, patience_s=1)


def here(cache: CacheConfig) -> list[str]:
    """The whole shards in the cache, as their index names them."""
    return sorted(path.name.split(".")[0] + ".tar" for path in Path(cache.folder).glob("roots/*/train-*.tar"))


def idle() -> bool:
    """Whether nothing is prefetched."""
    return not [one for one in threading.enumerate() if one.name == "spikeloom-prefetch"]


def debris(cache: CacheConfig) -> list[str]:
    return [path.name for path in Path(cache.folder).rglob("*.part")]


def names(entries) -> list[str]:
    return [entry["file"] for entry in entries]


def test_a_shard_is_fetched_once_and_is_the_servers(server, cache):
    files = files_at(server.url, cache)
    for _ in range(2):
        for entry in server.entries:
            assert files.path(entry).read_bytes() == server.files[entry["file"]]
    again = pickle.loads(pickle.dumps(files))
    assert again.path(server.entries[0]) == files.path(server.entries[0]) and again.root == server.url
    assert sorted(server.asked) == names(server.entries)
    assert debris(cache) == []


def test_two_processes_at_once_fetch_once(server, cache, repository):
    name = server.entries[0]["file"]
    server.always[name] = Fault(slow_s=0.5)
    code = f"""
from sharding.cache import CacheConfig
from sharding.files import files_at
from sharding.index import ShardIndex
from sharding.window import Reader
print(files_at({server.url!r}, CacheConfig({cache.folder!r}, stall_s=5)).path({server.entries[0]!r}))
"""
    command = [sys.executable, "-c", code]
    running = [subprocess.Popen(command, cwd=repository, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    told = {process.communicate(timeout=30)[0].strip() for process in running}
    assert len(told) == 1 and Path(told.pop()).read_bytes() == server.files[name]
    assert server.asked == [name]


def test_threads_of_one_process_fetch_once(server, cache):
    files, found = files_at(server.url, cache), []
    server.always[server.entries[0]["file"]] = Fault(slow_s=0.3)
    threads = [threading.Thread(target=lambda: found.append(files.path(server.entries[0]))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(found) == 4 and len(set(found)) == 1 and len(server.asked) == 1


def test_a_redirect_is_followed(server, cache):
    name = server.entries[0]["file"]
    server.faults[name].append(Fault(redirect=f"{server.url}/elsewhere/{name}"))
    assert files_at(server.url, cache).path(server.entries[0]).read_bytes() == server.files[name]


def test_a_file_system_that_is_not_asynchronous_serves_too(cache):
    files, entries = shard_files(2, SIZE)
    memory = fsspec.filesystem("memory")
    for name, body in files.items():
        memory.pipe_file(f"/cache-test/{name}", body)
    remote = files_at("memory://cache-test", cache)
    assert [remote.path(entry).read_bytes() for entry in entries] == list(files.values())
    assert remote.read("train-000001.tar") == files["train-000001.tar"]
    with pytest.raises(FileNotFoundError):
        remote.read("index.json")


def test_shards_lie_on_s3(cache, monkeypatch):
    pytest.importorskip("s3fs", reason="the s3 extra is not installed")
    moto = pytest.importorskip("moto.server", reason="moto is not installed")
    for name, value in {
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    s3 = moto.ThreadedMotoServer(port=0)
    s3.start()
    try:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*s3.get_host_and_port()))
        files, entries = shard_files(2, 6_000_000)
        bucket = fsspec.filesystem("s3", skip_instance_cache=True)
        bucket.mkdir("shards")
        for name, body in files.items():
            bucket.pipe_file(f"shards/root/{name}", body)
        remote = files_at("s3://shards/root/", cache)
        assert remote.root == "s3://shards/root"
        assert [remote.path(entry).read_bytes() for entry in entries] == list(files.values())
        with pytest.raises(FileNotFoundError):
            remote.read("index.json")
        with pytest.raises(ShardError, match="s3://shards/root/train-000009.tar: is missing on the server"):
            remote.path(entry_of("train-000009.tar", b"1"))
    finally:
        s3.stop()


def test_files_of_one_name_but_other_content_lie_side_by_side(server, cache):
    old = server.entries[0]
    server_files = files_at(server.url, cache)
    first = server_files.path(old)
    server.files[old["file"]] = b"new"
    second = server_files.path(entry_of(old["file"], b"new"))
    assert second.read_bytes() == b"new" and len(first.read_bytes()) == SIZE


def test_the_least_recently_used_make_room_over_all_roots(server, cache):
    cache = limited(cache, 3.5)
    one, other = files_at(server.url, cache), files_at(server.url + "/other", cache)
    a, b, c, d = server.entries[:4]
    for files, entry in ((one, a), (other, b), (one, c), (one, a), (one, d)):  # a is used again
        files.path(entry)
    assert here(cache) == names([a, c, d])
    assert not list(Path(cache.folder).glob(f"roots/*/.{kept_name(b)}.ok"))
    assert other.path(b).read_bytes() == server.files[b["file"]]  # and comes again
    assert here(cache) == names([a, b, d])


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asked=st.lists(st.integers(0, 5), min_size=5, max_size=20), limit=st.integers(1, 5))
def test_the_cache_holds_what_was_used_last(cache, asked, limit):
    shutil.rmtree(cache.folder, ignore_errors=True)
    bodies, entries = shard_files(6, SIZE)
    for name, body in bodies.items():
        fsspec.filesystem("memory").pipe_file(f"/lru/{name}", body)
    files, held = files_at("memory://lru", limited(cache, limit + 0.5)), OrderedDict()
    for number in asked:
        assert files.path(entries[number]).read_bytes() == bodies[entries[number]["file"]]
        held[number] = None
        held.move_to_end(number)
        if len(held) > limit:
            held.popitem(last=False)
        assert here(cache) == names(entries[number] for number in sorted(held))


def test_headers_that_fsspec_is_told_of_are_sent(server, cache, monkeypatch):
    told = {"client_kwargs": {"headers": {"Authorization": "Bearer abc"}}}  # FSSPEC_HTTP, or a file of its settings
    monkeypatch.setitem(fsspec.config.conf, "http", told)
    files_at(server.url, cache).path(server.entries[0])
    assert server.headers[0]["Authorization"] == "Bearer abc"


def test_a_limit_that_cannot_be_kept_is_told_beforehand(server, cache, monkeypatch):
    files = files_at(server.url, limited(cache, 2))
    files.check_room(2 * SIZE)
    with pytest.raises(ConfigError, match="cache.limit_gb: is 0.0002, but 0.0003 GB of shards .*or lower block_shards"):
        files.check_room(3 * SIZE)
    with pytest.raises(ConfigError, match="cache.limit_gb: is 5e-05, but a single file has 0.0001 GB; raise it"):
        files_at(server.url, limited(cache, 0.5)).path(server.entries[0])
    with pytest.raises(ConfigError, match="its disk has place for .* GB of shards, 1e"):
        files_at(server.url, limited(cache, 1e15)).check_room(10**19)
    assert files_at(Path(cache.folder), cache).check_room(10**19) is None
    assert server.asked == []


def test_what_cannot_come_in_evicts_nothing(server, cache):
    files = files_at(server.url, limited(cache, 3))
    for entry in server.entries[:3]:
        files.path(entry)
    with pytest.raises(ConfigError, match="but a single file has"):
        files.path(dict(server.entries[3], bytes=4 * SIZE))
    assert here(cache) == names(server.entries[:3])


def test_parts_of_hosts_with_long_names_are_known(cache, monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "node-17.cluster.example.org")
    room, entry = Room(cache), entry_of("train-000000.tar", b"x")
    kept = room.roots / "root" / kept_name(entry)
    with room.part(kept, 123, lambda name: 0, 2):
        (part,) = parts_of(kept.parent)
    assert (part.kept, part.by, part.size) == (kept, f"node-17-{os.getpid()}", 123)
    assert parts_of(kept.parent) == []


def test_a_root_on_a_server_gives_the_windows_of_its_folder(index, cache, root_server):
    remote = ShardIndex.open(root_server(index.files.root).url, cache=cache)
    assert remote.digest() == index.digest() and remote.summary() == index.summary()
    ours, theirs = Reader(index, "cursor_vel"), Reader(remote, "cursor_vel")
    for segment in range(len(index.segments)):
        start = int(index.segments.start_us[segment])
        one, other = (reader.window(segment, start, 1_000_000) for reader in (ours, theirs))
        for name in ("spike_time", "spike_unit", "value", "phase"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_prefetching_fetches_in_order_two_at_a_time(server, cache):
    for name in server.files:
        server.always[name] = Fault(slow_s=0.05)
    files = files_at(server.url, cache)
    wanted = list(reversed(server.entries))
    began = time.monotonic()
    files.prefetch(wanted)
    assert time.monotonic() - began < 0.05
    until(lambda: here(cache) == sorted(names(wanted)))
    order = [names(wanted).index(name) for name in server.asked]
    assert all(abs(at - place) <= 1 for at, place in enumerate(order)), order  # two run side by side
    assert server.most == 2
    until(idle)


def test_the_newest_prefetch_wins(server, cache):
    for name in server.files:
        server.always[name] = Fault(slow_s=0.1)
    files = files_at(server.url, cache)
    files.prefetch(server.entries[:6])
    until(lambda: server.asked)
    files.prefetch(server.entries[6:])
    until(lambda: {*names(server.entries[6:])} <= {*here(cache)})
    assert not {*names(server.entries[2:6])} & {*server.asked}


def test_prefetching_stays_within_the_limit_and_spares_what_is_wanted(server, cache):
    for name in server.files:
        server.always[name] = Fault(slow_s=0.1)
    cache = limited(cache, 4)
    files = files_at(server.url, cache)
    files.prefetch(server.entries[:2])
    until(lambda: here(cache) == names(server.entries[:2]))
    files.prefetch(server.entries[2:])  # 6 more, for 2 places and those of what was wanted earlier
    until(idle)
    assert here(cache) == names(server.entries[2:6])
    files.prefetch(server.entries[6:])
    until(idle)
    assert here(cache) == names(server.entries[4:])
    assert files.path(server.entries[0]).exists()  # what is needed now comes in any case, and what is wanted stays
    assert here(cache)[-2:] == names(server.entries[6:]) and len(here(cache)) == 4


def test_an_error_of_prefetching_is_told_when_the_file_is_needed(server, cache):
    absent = entry_of("train-000099.tar", b"x")
    files = files_at(server.url, cache)
    files.prefetch([absent, server.entries[0]])
    until(lambda: here(cache) == names(server.entries[:1]))
    until(idle)
    asked = server.count("train-000099.tar")
    with pytest.raises(ShardError, match="train-000099.tar: is missing on the server"):
        files.path(absent)
    assert server.count("train-000099.tar") == asked == 1
    server.files["train-000099.tar"] = b"x"
    assert files.path(absent).read_bytes() == b"x"


def test_a_process_that_ends_leaves_no_transfer(server, cache, repository):
    for name in server.files:
        server.always[name] = Fault(stall=1000)
    code = f"""
import time
from sharding.cache import CacheConfig
from sharding.files import files_at
from sharding.index import ShardIndex
from sharding.window import Reader
files = files_at({server.url!r}, CacheConfig({cache.folder!r}))
files.prefetch({server.entries!r})
time.sleep(0.5)
"""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (0, "") and time.monotonic() - began < 6
    assert len(server.asked) == 2 and debris(cache) == []


def test_a_shard_that_was_changed_in_the_cache_comes_again(server, cache, caplog):
    files = files_at(server.url, cache)
    entry = server.entries[0]
    path = files.path(entry)
    path.write_bytes(b"x" * SIZE)
    assert files.path(entry).read_bytes() == server.files[entry["file"]]
    os.truncate(path, 10)
    assert files.path(entry).read_bytes() == server.files[entry["file"]]
    path.unlink()
    assert files.path(entry).read_bytes() == server.files[entry["file"]]
    hidden(path, "ok").unlink()  # as after a crash between two renames: read again, not fetched again
    assert pickle.loads(pickle.dumps(files)).path(entry) == path
    assert server.count(entry["file"]) == 4
    assert sum("was changed or damaged in the cache" in line for line in caplog.messages) == 2


@pytest.mark.parametrize("name", ["../escape.tar", "a/b.tar", ".hidden.tar", "", "a\nb.tar", None, "a?b.tar"])
def test_an_index_is_not_trusted_with_names(server, cache, name):
    files = files_at(server.url, cache)
    for ask in (files.path, lambda entry: files.prefetch([entry])):
        with pytest.raises(ShardError, match="its index names a file"):
            ask({"file": name, "bytes": 1, "sha256": "0" * 64})
        with pytest.raises(ShardError, match="its index gives no sha256"):
            ask({"file": "a.tar", "bytes": 1, "sha256": "../../" + "0" * 58})
    assert server.asked == [] and not Path(cache.folder).exists()


def test_secrets_reach_the_server_and_nothing_else(server, cache, caplog):
    name = server.entries[0]["file"]
    url = server.url.replace("http://", "http://ann:hunter2@") + "?sig=s3cret"
    files = files_at(url, cache)
    server.faults[name].append(Fault(status=503))
    with caplog.at_level(logging.DEBUG):
        files.path(server.entries[0])
        server.always[name] = Fault(status=403)
        with pytest.raises(ShardError) as refused:
            files.path(entry_of(name, b"other"))
    assert server.queries[0] == "sig=s3cret"
    assert server.headers[0]["Authorization"] == "Basic " + base64.b64encode(b"ann:hunter2").decode()
    assert files.root == server.url
    told = [*caplog.messages, str(refused.value), files.root, *map(str, Path(cache.folder).rglob("*"))]
    told += [path.read_text() for path in Path(cache.folder).rglob("*.ok")]
    assert not [line for line in told if "hunter2" in line or "s3cret" in line]
    # a new signature finds the same files
    assert files_at(server.url + "?sig=new", cache).path(server.entries[0]) == files.path(server.entries[0])


def test_the_index_is_always_asked_for(server, cache, caplog):
    files = files_at(server.url, cache)
    for body in (b'{"a": 1}', b'{"a": 2}'):
        server.files["index.json"] = body
        assert files.read("index.json") == body
    server.always["index.json"] = Fault(body=b"<html>sign in</html>")  # a portal: told by who reads it, but not kept
    assert files.read("index.json").startswith(b"<html>")
    server.stop()
    assert files.read("index.json") == b'{"a": 2}'
    assert "goes on with the copy of 20" in caplog.messages[-1] and "then the copy read last" in caplog.messages[0]
    with pytest.raises(ShardError, match="(tried for 1 s)"):
        files_at(server.url + "/other", cache).read("index.json")


def test_no_index_is_told_at_once(server, cache):
    with pytest.raises(FileNotFoundError):
        files_at(server.url, cache).read("index.json")


def test_addresses_that_nothing_opens_are_told(cache):
    with pytest.raises(ConfigError, match="nonsense:// is no kind of address that fsspec knows"):
        files_at("nonsense://a/b", cache).read("index.json")
    assert is_url("s3://a") and not is_url("/a/b") and not is_url(Path("s3://a"))
    blocked = CacheConfig(folder="/proc/nowhere")
    with pytest.raises(ConfigError, match="/proc/nowhere: cannot be written to .*set cache.folder or SPIKELOOM_CACHE"):
        files_at("memory://x", blocked).path(entry_of("a.tar", b"x"))
