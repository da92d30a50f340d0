"""Shard files -> arrays: maps each tar once and hands out views of it, by segment and member."""

import mmap
from functools import lru_cache
from pathlib import Path

import numpy as np

from sharding.errors import ShardError
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
    """The shard files of a root: (name, bytes) each; mapped on first use, in whatever process that happens."""

    def __init__(self, root: Path, files: dict[str, int]):
        self.root, self.files, self._bytes = root, tuple(files), tuple(files.values())
        self.map = lru_cache(OPEN_SHARDS)(self._map)

    def _map(self, number: int) -> mmap.mmap:
        path = self.root / self.files[number]
        try:
            with open(path, "rb") as stream:
                mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise ShardError(path, f"cannot be mapped ({error})", "copy or write the shards again") from None
        if len(mapped) != self._bytes[number]:  # reading past the end of a map would kill the process
            raise ShardError(
                path, f"has {len(mapped)} bytes, its index says {self._bytes[number]}", "copy or write the shards again"
            )
        return mapped

    def __reduce__(self):  # maps do not cross to another process
        return MappedShards, (self.root, dict(zip(self.files, self._bytes)))
