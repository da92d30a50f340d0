"""Processes that want the same file -> one that fetches it, while the others wait for as long as it makes progress."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from sharding.cache import CacheConfig
from sharding.cache_room import hidden, parts_of
from sharding.cache_stamps import LOG, tell_once
from sharding.errors import ShardError

_LOOK_S = 0.5  # how often one who waits looks whether the file is there
_LONG_S = 10.0  # a person should hear why nothing happens for so long


class Busy(Exception):
    """Another process or thread is fetching the file."""


@contextlib.contextmanager
def turn(kept: Path, there: Callable[[], bool], config: CacheConfig, wait: bool = True) -> Iterator[bool]:
    """Be the one who fetches a file: True, or False where another has done so.

    The lock goes with the process that holds it, however it ends. Raises Busy where it is not to be waited for,
    ShardError where its holder stands still.
    """
    lock = FileLock(hidden(kept, "lock"))
    holder = _Holder(kept, config)
    locked = False
    while not there():
        try:
            lock.acquire(timeout=_LOOK_S if wait else 0, poll_interval=0.02)
            locked = True
            break
        except Timeout:
            if not wait:
                raise Busy from None
            holder.look()
        except (OSError, NotImplementedError):
            tell_once(f"{kept.parent}: knows no locks, so each process of this machine fetches shards for itself")
            break
    else:
        yield False
        return
    try:
        if locked:  # what is left of earlier attempts is nobody's
            for part in parts_of(kept.parent):
                if part.kept == kept:
                    part.path.unlink(missing_ok=True)
        yield not there()
    finally:
        lock.release()


class _Holder:
    """Who holds the lock of a file, and whether it moves."""

    def __init__(self, kept: Path, config: CacheConfig):
        self._kept, self._told, self._seen = kept, False, None
        self._since = self._moved = time.monotonic()
        self._most_s = config.patience_s + 2 * config.stall_s  # it gives up by itself before

    def look(self) -> None:
        now = time.monotonic()
        parts = [part for part in parts_of(self._kept.parent) if part.kept == self._kept]
        seen = [(part.path.name, part.now) for part in parts]
        if seen != self._seen:
            self._seen, self._moved = seen, now
        who = f"process {parts[0].by.rpartition('-')[2]} on {parts[0].by.rpartition('-')[0]}" if parts else "a process"
        if now - self._since > _LONG_S and not self._told:
            self._told = True
            LOG.warning("%s: waits for %s, which fetches it", self._kept, who)
        if now - self._moved > self._most_s:
            found = f"{who} holds its lock and has not moved for {self._most_s:g} s"
            do = f"end it and run again (or, where there is none, remove {hidden(self._kept, 'lock')})"
            raise ShardError(self._kept, found, do)
