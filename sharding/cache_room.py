"""The cache folder: names of what lies in it, and what goes when something new needs its place. All of it may be removed
at any time; it is fetched again.

CACHE/roots/<root>/train-000000.<digest>.tar     a whole shard, verified
CACHE/roots/<root>/.train-000000.<digest>.tar.*  ok: its stamp, touched at each use; lock; part: one being fetched
CACHE/verified/<root>/                           stamps of shards in local folders
"""

import contextlib
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from filelock import FileLock, Timeout

from sharding.cache import GB, CacheConfig
from sharding.cache_fetch import Trouble
from sharding.cache_stamps import held
from sharding.errors import ConfigError, ShardError

_NAME = r"[^.].*\.[0-9a-f]{16}(\.[A-Za-z0-9_-]+)?"
_WHOLE = re.compile(_NAME)
_PART = re.compile(rf"\.(?P<kept>{_NAME})\.(?P<by>[^.]*-\d+)-\d+\.(?P<bytes>\d+)\.part")
_ROOM_WAIT_S = 60.0  # the room's lock is held for the time of a few thousand stat calls
_serial = count()


class NoRoom(Exception):
    """There is place only where something lies that is still wanted."""


@dataclass(frozen=True)
class Kept:
    """A whole file."""

    path: Path
    size: int
    used_ns: int


@dataclass(frozen=True)
class Part:
    """A file that is being fetched, or what a killed process left of one."""

    path: Path
    kept: Path
    by: str  # host-process
    size: int  # bytes when whole
    now: int  # bytes on disk


def kept_name(entry: dict) -> str:
    """The name of a file in the cache: files of one name but other content lie side by side."""
    stem, suffix = os.path.splitext(entry["file"])
    return f"{stem}.{entry['sha256'][:16]}{suffix}"


def hidden(kept: Path, kind: str) -> Path:
    """The stamp ("ok") or lock of a file."""
    return kept.with_name(f".{kept.name}.{kind}")


def parts_of(folder: Path) -> list[Part]:
    """What is being fetched into a folder of a root."""
    found = []
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as listing:
        for item in listing:
            if match := _PART.fullmatch(item.name):
                with contextlib.suppress(FileNotFoundError):
                    now = item.stat().st_size
                    kept = folder / match["kept"]
                    found.append(Part(folder / item.name, kept, match["by"], int(match["bytes"]), now))
    return found


class Room:
    """The downloads of all roots together, within the limit and the disk."""

    def __init__(self, config: CacheConfig):
        self._config, self.folder = config, config.path
        self.roots = self.folder / "roots"

    def check(self, size: int) -> None:
        """Raise ConfigError unless so many bytes can be kept at a time."""
        limit = self._config.limit_bytes
        if size > limit:
            found = f"is {limit / GB:g}, but {size / GB:.3g} GB of shards must be kept at a time"
            raise ConfigError("cache.limit_gb", found, "raise it, or lower block_shards where shuffling is by blocks")
        self.make(self.roots)
        disk = shutil.disk_usage(self.roots).free + sum(one.size for one in self._kept())
        if size > disk:
            found = f"its disk has place for {disk / GB:.3g} GB of shards, {size / GB:.3g} GB must be kept at a time"
            raise ConfigError(self.folder, found, "set cache.folder to a larger disk, or lower block_shards")

    @contextlib.contextmanager
    def part(self, kept: Path, size: int, wish: Callable[[str], int], most: int) -> Iterator[Path]:
        """An empty file to fill with `size` bytes, whose place is reserved; gone afterwards unless it was renamed.

        What is wished for less goes first, of that the least recently used; nothing that is wished for more than `most`.

        Raises NoRoom, Trouble where others hold the room for a while, ConfigError and ShardError where there can be
        none, and OSError.
        """
        own = f"{socket.gethostname().partition('.')[0]}-{os.getpid()}-{next(_serial)}"
        part = hidden(kept, f"{own}.{size}.part")
        self.make(kept.parent)
        with self._locked():
            self._sweep(kept)
            self._make_room(size, wish, most)
            part.touch()
        try:
            yield part
        finally:
            with contextlib.suppress(OSError):
                part.unlink()

    def evict(self, size: int) -> None:
        """Remove at least `size` bytes, if there are: a disk may be full whatever its statistics say."""
        with self._locked():
            for one in sorted(self._kept(), key=lambda one: one.used_ns):
                if size <= 0:
                    return
                _remove(one)
                size -= one.size

    def touch(self, kept: Path) -> None:
        """Note a use now."""
        with contextlib.suppress(OSError):  # a cache that others filled, or a file that just went
            os.utime(hidden(kept, "ok"), ns=(now := time.time_ns(), now))  # finer than the system's own clock of files

    def _make_room(self, size: int, wish: Callable[[str], int], most: int) -> None:
        kept = sorted(self._kept(), key=lambda one: (wish(one.path.name), one.used_ns))
        parts = self._parts()
        fetched, coming = sum(part.size for part in parts), sum(max(0, part.size - part.now) for part in parts)
        over_limit = sum(one.size for one in kept) + fetched + size - self._config.limit_bytes
        over_disk = coming + size - shutil.disk_usage(self.roots).free
        over = max(over_limit, over_disk)  # what is unlinked but still mapped is free a little later
        if over > sum(one.size for one in kept) or size > self._config.limit_bytes:
            raise self._none_left(size, fetched)
        going = []
        while over > 0:
            going.append(kept.pop(0))
            over -= going[-1].size
        if going and wish(going[-1].path.name) > most:
            raise NoRoom
        for one in going:
            _remove(one)

    def _none_left(self, size: int, fetched: int) -> Exception:
        if size > self._config.limit_bytes:
            found = f"is {self._config.limit_gb:g}, but a single file has {size / GB:.3g} GB"
            return ConfigError("cache.limit_gb", found, "raise it")
        if fetched:
            return Trouble("the cache is full of what others are fetching")
        return self.full(size)

    def full(self, size: int) -> ShardError:
        """The error of a disk that takes no more."""
        free = shutil.disk_usage(self.roots).free
        found = f"its disk is full ({free / GB:.3g} GB free, {size / GB:.3g} GB needed)"
        return ShardError(self.folder, found, "free some space, or set cache.folder to a larger disk")

    def _sweep(self, mine: Path) -> None:
        """Remove what processes that died have left; a part whose file's lock is held belongs to a living one."""
        for part in self._parts():
            if part.kept == mine:
                continue
            with contextlib.suppress(OSError, NotImplementedError, Timeout, RuntimeError):
                with FileLock(hidden(part.kept, "lock"), timeout=0):
                    part.path.unlink(missing_ok=True)

    def _kept(self) -> list[Kept]:
        found = []
        for folder in self._folders():
            with contextlib.suppress(FileNotFoundError), os.scandir(folder) as listing:
                stats = {item.name: item.stat() for item in listing if _is_there(item)}
                for name in filter(_WHOLE.fullmatch, stats):
                    used = stats.get(f".{name}.ok", stats[name]).st_mtime_ns
                    found.append(Kept(folder / name, stats[name].st_size, used))
        return found

    def _parts(self) -> list[Part]:
        return [part for folder in self._folders() for part in parts_of(folder)]

    def _folders(self) -> list[Path]:
        with contextlib.suppress(FileNotFoundError), os.scandir(self.roots) as listing:
            return [Path(item.path) for item in listing if item.is_dir()]
        return []

    def make(self, folder: Path) -> None:
        """A folder in the cache; raises ConfigError."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            do = "set cache.folder or SPIKELOOM_CACHE to a folder on a disk of this machine"
            raise ConfigError(self.folder, f"cannot be written to ({error.strerror})", do) from None

    def _locked(self) -> contextlib.AbstractContextManager:
        """The room for one process at a time; where there are no locks, the limit may be passed by what others fetch."""
        return held(self.folder / ".room.lock", _ROOM_WAIT_S, 0.01)


def _remove(one: Kept) -> None:
    for path in (one.path, hidden(one.path, "ok")):  # processes that map it keep its bytes until they let go
        path.unlink(missing_ok=True)


def _is_there(item: os.DirEntry) -> bool:
    return item.is_file(follow_symlinks=False)
