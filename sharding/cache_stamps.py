"""Files that were once found equal to their sha256 -> remembered on disk, for all processes of a machine.

A stamp tells path, size, times and inode of the file as it was read; a file that was changed since is read again. What
changes no such thing, as a disk that rots, is found by `spikeloom check`.
"""

import contextlib
import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

LOG = logging.getLogger("spikeloom")
_LONG_S = 10.0  # a person should hear why nothing happens for so long

_seen: set[str] = set()  # what this process knows
_told: set[str] = set()  # lines it has logged
_spent_s = 0.0


def is_verified(path: Path, entry: dict, stamp: Path, patience_s: float) -> bool:
    """Whether a file's sha256 is its entry's; only the first process that asks reads it, the others wait for that.

    Raises OSError where the file cannot be read.
    """
    state = _state(path, os.stat(path), entry)
    if state in _seen:
        return True
    if not _stamped(stamp, state):
        with contextlib.suppress(OSError):
            stamp.parent.mkdir(parents=True, exist_ok=True)
        with held(stamp.with_name(stamp.name + ".lock"), patience_s):
            if not _stamped(stamp, state) and not _read_through(path, entry, stamp):
                return False
    _seen.add(state)
    return True


def remember(path: Path, entry: dict, stamp: Path) -> None:
    """Say that a file has just been found equal to its sha256."""
    state = _state(path, os.stat(path), entry)
    _seen.add(state)
    _write(stamp, state)


def _state(path: Path, found: os.stat_result, entry: dict) -> str:
    # ctime too: a copy may restore the older times, but never that one
    told = [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, entry["sha256"]]
    return json.dumps([str(path), *told])


def _stamped(stamp: Path, state: str) -> bool:
    try:
        return stamp.read_text(encoding="utf-8") == state
    except (OSError, ValueError):
        return False


def _read_through(path: Path, entry: dict, stamp: Path) -> bool:
    global _spent_s
    began = time.monotonic()
    with open(path, "rb") as stream:
        state = _state(path, os.fstat(stream.fileno()), entry)  # before reading: a change meanwhile makes it stale
        good = hashlib.file_digest(stream, "sha256").hexdigest() == entry["sha256"]
    _spent_s += time.monotonic() - began
    if _spent_s > _LONG_S:
        tell_once("shards are compared with their sha256 before their first use on this machine; this takes a while")
    if good:
        _write(stamp, state)
    return good


def _write(stamp: Path, state: str) -> None:
    fresh = stamp.with_name(f".{stamp.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        stamp.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_text(state, encoding="utf-8")
        os.replace(fresh, stamp)
    except OSError as error:
        with contextlib.suppress(OSError):
            fresh.unlink()
        tell_once(
            f"{stamp.parent}: cannot be written to ({error.strerror}), so every process compares each shard with its "
            "sha256 anew; set cache.folder or SPIKELOOM_CACHE to a folder that can be written to"
        )


@contextlib.contextmanager
def held(lock: Path, patience_s: float, poll_s: float = 0.05) -> Iterator[None]:
    """Hold a lock; go on without it where there are no locks or it takes too long, for where that costs only time."""
    lock = FileLock(lock)
    try:
        lock.acquire(timeout=patience_s, poll_interval=poll_s)
    except (OSError, NotImplementedError, Timeout):
        yield
        return
    try:
        yield
    finally:
        lock.release()


def tell_once(line: str) -> None:
    if line not in _told:
        _told.add(line)
        LOG.warning("%s", line)
