"""Shard files -> arrays: maps each tar once and hands out views of it, by segment and member."""

import mmap
import os
import resource
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sharding.errors import ShardError
from sharding.files import AGAIN, RootFiles
from sharding.tables import SegmentTable

# Each map holds a file descriptor, and a process may have few: a quarter is ours, no more than the kernel's maps allow.
MOST_MAPS = 8192
_LATELY = 4  # maps that stay although their files were evicted: they may be read at this moment
_LOOK_S = 5.0  # how often is looked for evicted files
_TRIES = 3  # a cache may evict a file between its fetching and its mapping


def open_shards() -> int:
    """How many shards a process keeps mapped."""
    return max(16, min(resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4, MOST_MAPS))


class MappedMember:
    """One member (such as "spike_time.npy") of every segment, as read-only views of the mapped shards."""

    def __init__(self, shards: "MappedShards", segments: SegmentTable, name: str):
        self._shards = shards
        self._shard = segments.shard
        self._first, self._bytes = segments.member(name)

    def bytes_of(self, segment: int) -> int:
        """Bytes of the array; -1 where the segment has no such member."""
        return int(self._bytes[segment])

    def read(self, segment: int, dtype: np.dtype) -> np.ndarray:
        """The array of a segment, flat."""
        size = self._bytes[segment]
        if not size:
            return np.zeros(0, dtype)
        mapped = self._shards.map(self._shard[segment])
        return np.frombuffer(mapped, dtype, count=size // dtype.itemsize, offset=self._first[segment])


@dataclass(frozen=True)
class _Map:
    path: Path
    mapped: mmap.mmap
    array: np.ndarray  # (bytes,) uint8
    address: int


class MappedShards:
    """The shard files of a root, in the order of their index entries; mapped on first use, in whatever process.

    A map that is dropped here lives on as long as an array views it.
    """

    def __init__(self, files: RootFiles, entries: list[dict]):
        self._files, self._entries = files, entries
        self.files = tuple(entry["file"] for entry in entries)
        self._maps: OrderedDict[int, _Map] = OrderedDict()  # least recently used first
        self._lock, self._looked = threading.RLock(), time.monotonic()

    def __len__(self) -> int:
        """How many shards are mapped now."""
        return len(self._maps)

    def map(self, number: int) -> mmap.mmap:
        """A shard's bytes; raises ShardError."""
        return self._get(number).mapped

    def array(self, number: int) -> np.ndarray:
        """A shard's bytes as (bytes,) uint8, read-only; raises ShardError."""
        return self._get(number).array

    def address(self, number: int) -> int:
        """Where the first byte of `array(number)` lies in memory: as long as somebody holds that array."""
        return self._get(number).address

    def release(self) -> None:
        """Drop maps of files that a cache has evicted, whose space the disk gets back only then."""
        with self._lock:
            self._looked = time.monotonic()
            for number in list(self._maps)[:-_LATELY]:
                if not os.path.exists(self._maps[number].path):
                    del self._maps[number]

    def _get(self, number: int) -> _Map:
        number = int(number)
        with self._lock:
            found = self._maps.get(number)
            if found is not None:
                self._maps.move_to_end(number)
                if time.monotonic() - self._looked > _LOOK_S:
                    self.release()
                return found
        found = self._map(number)  # outside of the lock: it may take as long as a download
        with self._lock:
            found = self._maps.setdefault(number, found)
            if time.monotonic() - self._looked > _LOOK_S:
                self.release()
            while len(self._maps) > open_shards():
                self._maps.popitem(last=False)
            return found

    def _map(self, number: int) -> _Map:
        entry = self._entries[number]
        for last in (False,) * (_TRIES - 1) + (True,):
            path = self._files.path(entry)
            try:
                with open(path, "rb") as stream:
                    mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
                break
            except FileNotFoundError as error:
                if last:
                    raise _cannot(path, error) from None
            except (OSError, ValueError) as error:
                raise _cannot(path, error) from None
        if len(mapped) != entry["bytes"]:  # reading past the end of a map would kill the process
            raise ShardError(path, f"has {len(mapped)} bytes, its index says {entry['bytes']}", AGAIN)
        array = np.frombuffer(mapped, np.uint8)
        return _Map(path, mapped, array, array.__array_interface__["data"][0])

    def __reduce__(self):  # maps do not cross to another process
        return MappedShards, (self._files, self._entries)


def _cannot(path: Path, error: Exception) -> ShardError:
    return ShardError(path, f"cannot be mapped ({error})", AGAIN)
