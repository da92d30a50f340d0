"""Segments -> shards: plain tars with members at known offsets, each under its final name only when complete."""

import hashlib
import os
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from sharding.errors import ShardError
from sharding.segment import Segment, arrays, encoded, encoded_sizes, to_sample

PARTIAL = ".partial"  # suffix of what is not complete yet


@dataclass(frozen=True)
class WrittenFile:
    """A complete file of a shard root."""

    file: str
    bytes: int
    sha256: str


class AtomicFile:
    """A binary file that appears under its name only when `commit()` returns; raises ShardError for a full disk."""

    def __init__(self, path: Path):
        self.path, self._partial = path, path.with_name(f".{path.name}{PARTIAL}")
        self.bytes, self._digest = 0, hashlib.sha256()
        self._stream = self._try(lambda: open(self._partial, "wb"))

    def write(self, data: bytes) -> None:
        self._try(lambda: self._stream.write(data))
        self._digest.update(data)
        self.bytes += len(data)

    def commit(self, name: Callable[[str], str] | None = None) -> WrittenFile:
        """Give the complete file its name, or the one that `name` makes of its sha256."""
        if name:
            self.path = self.path.with_name(name(self._digest.hexdigest()))

        def finish():
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._stream.close()
            os.replace(self._partial, self.path)
            sync_folder(self.path.parent)

        self._try(finish)
        return WrittenFile(self.path.name, self.bytes, self._digest.hexdigest())

    def discard(self) -> None:
        """Remove what was written; harmless after commit()."""
        try:
            self._stream.close()
        except OSError:
            pass  # the buffer did not fit on the disk: it is thrown away anyhow
        self._partial.unlink(missing_ok=True)

    def _try(self, act):
        try:
            return act()
        except OSError as error:
            if hasattr(self, "_stream"):
                self.discard()
            raise ShardError(
                self.path,
                f"could not be written ({error.strerror or error})",
                "free space or choose another output folder, then run again",
            ) from None


class ShardWriter:
    """Writes the segments of one split into <split>-000000.tar, <split>-000001.tar ... of about `shard_bytes` each.

    `first` is the number of the first shard; `files` gathers every complete one. Use as a context: on an error the
    unfinished shard is removed.
    """

    def __init__(self, root: Path, split: str, shard_bytes: int, first: int = 0):
        self.root, self.split, self.shard_bytes, self.first = root, split, shard_bytes, first
        self.files: list[WrittenFile] = []
        self._open: AtomicFile | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind, error, trace) -> None:
        if self._open and kind:
            self._open.discard()
        elif self._open:
            self._finish()

    def keep_together(self, segments: list[Segment]) -> None:
        """Close the open shard where these segments, hollow ones will do, would not fit but would into a new one."""
        size = sum(_blocks(n) for segment in segments for n in encoded_sizes(to_sample(segment)).values())
        if self._open and self._open.bytes + size > self.shard_bytes >= size:
            self._finish()

    def write(self, segment: Segment) -> dict:
        """Append a segment and return its record of tables.SEGMENT_SCHEMA; raises ShardError where the disk is full."""
        members = encoded(to_sample(segment))
        if self._open and self._open.bytes + sum(_blocks(len(data)) for data in members.values()) > self.shard_bytes:
            self._finish()
        if not self._open:
            self._open = AtomicFile(self.root / f"{self.split}-{self.first + len(self.files):06d}.tar")
        sizes = {name: array.nbytes for name, array in arrays(segment).items()}
        record = {"member": [], "offset": [], "bytes": [], "array_bytes": []}
        for name, data in members.items():
            record["member"].append(name)
            record["bytes"].append(len(data))
            record["array_bytes"].append(sizes.get(name, 0))
            record["offset"].append(_append(self._open, f"{segment.key}.{name}", data))
        return {
            "key": segment.key,
            "session": segment.session,
            "split": segment.split,
            "shard": self._open.path.name,
            "interval": segment.interval,
            "interval_start_us": segment.interval_us[0],
            "interval_stop_us": segment.interval_us[1],
            "start_us": segment.start_us,
            "stop_us": segment.stop_us,
            "carry_us": segment.carry_us,
            "spikes": segment.owned_spikes,
            "targets": segment.owned_targets,
            **record,
        }

    def _finish(self) -> None:
        # two empty blocks end a tar, which is filled up to whole records
        self._open.write(bytes(2 * tarfile.BLOCKSIZE))
        self._open.write(bytes(-self._open.bytes % tarfile.RECORDSIZE))
        self.files.append(self._open.commit())
        self._open = None


def write_bytes(path: Path, data: bytes) -> WrittenFile:
    """A whole file at once, atomically."""
    out = AtomicFile(path)
    out.write(data)
    return out.commit()


def _append(out: AtomicFile, name: str, data: bytes) -> int:
    """Append a tar member and return the offset of its first byte; nothing in it depends on clock or user."""
    member = tarfile.TarInfo(name)
    member.size, member.mtime, member.mode = len(data), 0, 0o444
    out.write(member.tobuf(tarfile.USTAR_FORMAT))
    offset = out.bytes
    out.write(data)
    out.write(bytes(-len(data) % tarfile.BLOCKSIZE))
    return offset


def _blocks(size: int) -> int:
    """Bytes that a member of that size takes in a tar, its header included."""
    return tarfile.BLOCKSIZE + size + -size % tarfile.BLOCKSIZE


def sync_folder(folder: Path) -> None:
    """Make the names of a folder safe against a crash of the machine."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
