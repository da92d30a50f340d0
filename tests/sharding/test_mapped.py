"""Mapped shards: the bytes of the files, few maps at a time, none that holds on to what a cache has evicted."""

import ctypes
import gc
import os
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest

from sharding import mapped
from sharding.cache import CacheConfig
from sharding.errors import ShardError
from sharding.files import files_at
from sharding.mapped import MappedShards
from tests.sharding.shard_server import ShardServer, shard_files

SIZE = 50_000


@pytest.fixture
def local(tmp_path):
    """Files in a folder, their entries, and a way to them."""
    files, entries = shard_files(12, SIZE)
    for name, body in files.items():
        (tmp_path / name).write_bytes(body)
    return files, entries, files_at(tmp_path, CacheConfig(str(tmp_path / "cache")))


@pytest.fixture
def served(tmp_path, monkeypatch):
    """The same on a server, with a cache for five of them."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    files, entries = shard_files(12, SIZE)
    server = ShardServer(files)
    server.start()
    yield files, entries, files_at(server.url, CacheConfig(str(tmp_path / "cache"), limit_gb=5 * SIZE / 1e9))
    server.stop()


def maps_of_evicted() -> int:
    """How many evicted shards this process still maps."""
    gc.collect()
    return sum("train-" in line and "(deleted)" in line for line in Path("/proc/self/maps").read_text().splitlines())


def test_arrays_and_addresses_are_the_files_bytes(local):
    files, entries, where = local
    shards = MappedShards(where, entries)
    for number, body in enumerate(files.values()):
        array = shards.array(number)
        assert array.tobytes() == body == bytes(shards.map(number)) and not array.flags.writeable
        assert ctypes.string_at(shards.address(number) + 1000, 99) == body[1000:1099]
        assert shards.array(np.int64(number)) is array
    assert len(shards) == 12 and shards.files == tuple(files)


def test_only_the_last_used_stay_mapped(local, monkeypatch):
    files, entries, where = local
    monkeypatch.setattr(mapped, "open_shards", lambda: 3)
    shards = MappedShards(where, entries)
    arrays = [shards.array(number) for number in (0, 1, 2, 0, 3, 4)]
    assert len(shards) == 3 and shards.array(0) is arrays[0] and shards.array(1) is not arrays[1]
    assert arrays[1].tobytes() == files["train-000001.tar"]  # a view keeps a map alive that was dropped
    del arrays
    gc.collect()
    maps = Path("/proc/self/maps").read_text().splitlines()
    assert len({line.split()[-1] for line in maps if str(where.root) in line}) == 3


def test_the_number_of_maps_follows_the_limit_of_open_files(monkeypatch):
    for limit, most in ((1024, 256), (20, 16), (1 << 20, 8192)):
        monkeypatch.setattr(mapped.resource, "getrlimit", lambda _, limit=limit: (limit, limit))
        assert mapped.open_shards() == most


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux to look at maps")
def test_maps_of_evicted_files_are_let_go(served, monkeypatch):
    files, entries, where = served
    monkeypatch.setattr(mapped, "_LOOK_S", 0.0)
    shards = MappedShards(where, entries)
    held = shards.array(0)
    for number, body in enumerate(files.values()):
        assert shards.array(number).tobytes() == body
    assert held.tobytes() == files["train-000000.tar"]
    assert maps_of_evicted() <= 1  # of the array in hand
    assert len(shards) <= 5
    del held
    assert maps_of_evicted() == 0
    assert shards.array(0).tobytes() == files["train-000000.tar"]  # it comes again
    for path in Path(where.path(entries[0])).parent.glob("train-*"):
        path.unlink()
    for _ in range(3):
        shards.array(0)  # it is being read: its own map stays
    assert len(shards) == mapped._LATELY


def test_a_file_evicted_before_it_is_mapped_comes_again(served):
    files, entries, where = served

    class Evicted:
        root, asked = where.root, 0

        def path(self, entry):
            path = where.path(entry)
            self.asked += 1
            if self.asked <= self.times:
                path.unlink()
            return path

    evicted = Evicted()
    evicted.times = 2
    assert MappedShards(evicted, entries).array(0).tobytes() == files["train-000000.tar"]
    evicted.times = 99
    with pytest.raises(ShardError, match="cannot be mapped"):
        MappedShards(evicted, entries).array(1)


def test_a_shard_that_shrank_or_is_empty_is_told(local):
    files, entries, where = local
    path = where.root / entries[0]["file"]
    os.truncate(path, SIZE - 1)
    with pytest.raises(ShardError, match="train-000000.tar: has 49999 bytes, its index says 50000"):
        MappedShards(where, entries).map(0)
    empty = dict(entries[0], bytes=0, sha256="e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
    os.truncate(path, 0)
    with pytest.raises(ShardError, match="train-000000.tar: cannot be mapped"):
        MappedShards(where, [empty]).map(0)


def test_maps_do_not_cross_to_another_process(local):
    files, entries, where = local
    shards = MappedShards(where, entries)
    shards.map(0)
    again = pickle.loads(pickle.dumps(shards))
    assert len(again) == 0 and again.array(3).tobytes() == files["train-000003.tar"]


def test_threads_share_maps(served):
    files, entries, where = served
    shards, wrong = MappedShards(where, entries), []

    def read(seed: int) -> None:
        for number in np.random.default_rng(seed).integers(0, 12, 40).tolist():
            if shards.array(number).tobytes() != files[f"train-{number:06d}.tar"]:
                wrong.append(number)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert wrong == []
