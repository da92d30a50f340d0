"""Shard files -> arrays: maps each tar once and hands out views of it, by segment and member."""

import mmap
from functools import lru_cache

import numpy as np

from sharding.errors import ShardError
from sharding.files import AGAIN, RootFiles
from sharding.tables import SegmentTable

OPEN_SHARDS = 256  # each map holds a file descriptor; the usual limit of a process is 1024


class MappedMember:
    """One member (such as "spike_time.npy") of every segment, as read-only views of the mapped shards."""

    def __init__(self, shards: "MappedShards", segments: SegmentTable, name: str):
        self._shards = shards
        self._shard = segments.codes("shard", shards.files)
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


class MappedShards:
    """The shard files of a root, in the order of their index entries; mapped on first use, in whatever process."""

    def __init__(self, files: RootFiles, entries: list[dict]):
        self._files, self._entries = files, entries
        self.files = tuple(entry["file"] for entry in entries)
        self.map = lru_cache(OPEN_SHARDS)(self._map)

    def _map(self, number: int) -> mmap.mmap:
        entry = self._entries[number]
        path = self._files.path(entry)
        try:
            with open(path, "rb") as stream:
                mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise ShardError(path, f"cannot be mapped ({error})", AGAIN) from None
        if len(mapped) != entry["bytes"]:  # reading past the end of a map would kill the process
            raise ShardError(path, f"has {len(mapped)} bytes, its index says {entry['bytes']}", AGAIN)
        return mapped

    def __reduce__(self):  # maps do not cross to another process
        return MappedShards, (self._files, self._entries)
