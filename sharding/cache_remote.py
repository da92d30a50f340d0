"""A shard root on a server -> files on local disk: fetched once a machine, verified, within the limit of the cache."""

import contextlib
import hashlib
import json
import os
import re
import tempfile
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from sharding.cache import GB, CacheConfig, folder_name, without_secrets
from sharding.cache_ahead import Ahead
from sharding.cache_fetch import FULL, OutOfPatience, Refused, Server, Trouble, never, patiently
from sharding.cache_room import NoRoom, Room, hidden, kept_name
from sharding.cache_stamps import LOG, is_verified, remember
from sharding.cache_turn import turn
from sharding.errors import ShardError
from sharding.writer import sync_folder

UPLOAD = "upload the shards again, index.json last"
SIGN_IN = "check the address, and the credentials that fsspec finds (AWS_*, ~/.aws, ~/.netrc, FSSPEC_*)"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_ANYTHING, _WANTED_EARLIER = 2, 1  # what may go for a file that is needed now, or only soon: see Ahead.wish
_MOST_READ = 2 * GB  # no index.json is larger


class _Wrong(Exception):
    """Bytes that are not those of the index."""


class CachedFiles:
    """The files of a root at a URL; those that are here already need no server, and no cache that can be written to."""

    def __init__(self, url: str, config: CacheConfig):
        self._url, self._config = url, config
        self.root = without_secrets(url)
        self._folder = config.path / "roots" / folder_name(self.root)
        self._server, self._room = Server(url, config), Room(config)
        self._ahead: dict[int, Ahead] = {}  # by process: threads do not follow into another

    def read(self, name: str) -> bytes:
        """The server's bytes; where it does not answer until patience ends, those that it sent last time."""
        where = self._server.shown(_checked(self.root, name))
        copy = self._folder / name
        at_last = ", then the copy read last is taken" if copy.exists() else ""
        try:
            with tempfile.TemporaryDirectory(prefix="spikeloom-") as folder:
                into = Path(folder) / name
                patiently(where, self._config, lambda: self._transfer(name, into, _MOST_READ), at_last=at_last)
                read = into.read_bytes()
        except OutOfPatience as error:
            if not at_last:
                raise
            day = datetime.fromtimestamp(copy.stat().st_mtime).isoformat(" ", "minutes")
            LOG.warning("%s: %s; goes on with the copy of %s", where, error.found, day)
            return copy.read_bytes()
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise ShardError(tempfile.gettempdir(), "its disk is full", "free some space, or set TMPDIR") from None
        _keep(copy, read)
        return read

    def path(self, entry: dict) -> Path:
        kept = self._kept(entry)
        if not self._is_here(entry, kept):
            self._fetch(entry, kept)
        return kept

    def prefetch(self, entries: list[dict]) -> None:
        for entry in entries:
            self._kept(entry)  # raises for a name that no shard has
        self._in_background.want(entries)

    def check_room(self, size: int) -> None:
        self._room.check(size)

    @property
    def _in_background(self) -> Ahead:
        if os.getpid() not in self._ahead:
            self._ahead = {os.getpid(): Ahead(self._fetch_ahead)}
        return self._ahead[os.getpid()]

    def _fetch_ahead(self, entry: dict, stop: Callable[[], bool]) -> None:
        kept = self._kept(entry)
        if not self._is_here(entry, kept):
            self._fetch(entry, kept, stop)

    def _kept(self, entry: dict) -> Path:
        """Where a file lies in the cache; an index is not trusted with names."""
        _checked(self.root, entry["file"])
        if not _DIGEST.fullmatch(entry["sha256"]):
            raise ShardError(self.root, f"its index gives no sha256 of {entry['file']}", UPLOAD)
        return self._folder / kept_name(entry)

    def _is_here(self, entry: dict, kept: Path) -> bool:
        """Whether the file is whole, and as it was when it came; notes the use."""
        try:
            here = os.stat(kept).st_size == entry["bytes"]
            if here := here and is_verified(kept, entry, hidden(kept, "ok"), self._config.patience_s):
                self._room.touch(kept)
            return here
        except OSError:
            return False

    def _fetch(self, entry: dict, kept: Path, stop: Callable[[], bool] | None = None) -> None:
        """Put the file into the cache, or wait for who does; with `stop` in the background, where nobody waits."""
        self._room.make(kept.parent)
        with turn(kept, lambda: self._is_here(entry, kept), self._config, wait=stop is None) as mine:
            if not mine:
                return
            if kept.exists():
                LOG.warning("%s: was changed or damaged in the cache; it is fetched again", kept)
            if stop is None and (failure := self._in_background.failure(entry, self._config.patience_s)):
                raise failure
            self._while_disk_lasts(entry, kept, stop)

    def _while_disk_lasts(self, entry: dict, kept: Path, stop: Callable[[], bool] | None) -> None:
        """Fetch the file; once more, after others made room, where the disk took no more in the middle."""
        for last in (False, True):
            try:
                return self._until_right(entry, kept, stop)
            except OSError as error:
                if error.errno not in FULL:
                    raise ShardError(kept, f"cannot be written ({error.strerror})", "look after this disk") from None
            if stop is not None:
                raise NoRoom
            if last:
                raise self._room.full(entry["bytes"])
            self._room.evict(entry["bytes"])

    def _until_right(self, entry: dict, kept: Path, stop: Callable[[], bool] | None) -> None:
        """Fetch the file; once more where it is not what the index says."""
        where = self._server.shown(entry["file"])
        for last in (False, True):
            try:
                return patiently(where, self._config, lambda: self._once(entry, kept, stop), stop or never)
            except _Wrong as error:
                if last:
                    raise ShardError(where, f"{error} (fetched twice)", UPLOAD) from None

    def _once(self, entry: dict, kept: Path, stop: Callable[[], bool] | None) -> None:
        """One attempt: fetched under another name, compared with its entry, safe on disk, renamed."""
        size = entry["bytes"]
        most = _ANYTHING if stop is None else _WANTED_EARLIER
        with self._room.part(kept, size, self._in_background.wish, most) as part:
            try:
                self._transfer(entry["file"], part, size, stop or never)
            except FileNotFoundError:
                raise ShardError(self._server.shown(entry["file"]), "is missing on the server", UPLOAD) from None
            try:
                _check(part, entry)
                os.replace(part, kept)
                sync_folder(kept.parent)
                remember(kept, entry, hidden(kept, "ok"))
                self._room.touch(kept)
            except FileNotFoundError:
                raise Trouble("its folder in the cache was removed") from None

    def _transfer(self, name: str, into: Path, most: int, stop: Callable[[], bool] = never) -> None:
        try:
            self._server.transfer(name, into, most, stop)
        except Refused as error:
            raise ShardError(self._server.shown(name), str(error), SIGN_IN) from None

    def __reduce__(self):  # connections, threads and what was fetched belong to one process
        return CachedFiles, (self._url, self._config)


def _checked(root: str, name) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ShardError(root, f"its index names a file {name!r}, as no shard is named", UPLOAD)
    return name


def _check(part: Path, entry: dict) -> None:
    """Compare what came with its entry and bring it safely to the disk; raises _Wrong."""
    if part.stat().st_size != entry["bytes"]:
        raise _Wrong(f"has {part.stat().st_size} bytes, its index says {entry['bytes']}")
    with open(part, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if digest != entry["sha256"]:
            raise _Wrong(f"its sha256 is not what the index says: {digest[:16]}, not {entry['sha256'][:16]}")
        os.fsync(stream.fileno())


def _keep(copy: Path, read: bytes) -> None:
    """Keep what was read for a day without the server; not what a portal may have answered in its place."""
    with contextlib.suppress(OSError, ValueError):
        if isinstance(json.loads(read), dict):
            copy.parent.mkdir(parents=True, exist_ok=True)
            fresh = copy.with_name(f".{copy.name}.{os.getpid()}-{threading.get_ident()}")
            fresh.write_bytes(read)
            os.replace(fresh, copy)
