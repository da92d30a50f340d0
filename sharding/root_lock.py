"""A folder of shards -> the one run that may write into it now, told from a lock that ends with its process."""

import contextlib
import errno
import fcntl
import os
import platform
from collections.abc import Iterator
from pathlib import Path

from sharding.errors import ShardError

LOCK = ".writing"  # in the root while it is written; what it holds tells the second run who the first is
_TAKEN = (errno.EWOULDBLOCK, errno.EACCES)


@contextlib.contextmanager
def writing(root: Path) -> Iterator[None]:
    """Nobody else writes the root inside; the folder is made where it is missing.

    The operating system ends the lock with the process, however that ends. Raises ShardError at once where another run
    holds it, or where the folder cannot be written to. On a file system without locks there is none.
    """
    root = Path(root)
    try:
        root.mkdir(parents=True, exist_ok=True)
        handle = _taken(root)
    except OSError as error:
        raise ShardError(root, f"cannot be written to ({error.strerror})", "choose another output folder") from None
    try:
        yield
    finally:
        (root / LOCK).unlink(missing_ok=True)  # while it is held: who opened it in the meantime sees that it is gone
        os.close(handle)


def _taken(root: Path) -> int:
    """The lock file, open and held; its name may have been removed by the run before between opening and locking."""
    path = root / LOCK
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            _lock(handle, root)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), path.stat()):
                    os.ftruncate(handle, 0)
                    os.write(handle, f"process {os.getpid()} on {platform.node()}".encode())
                    return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _lock(handle: int, root: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _TAKEN:
            holder = os.pread(handle, 200, 0).decode("utf-8", "replace")
            raise ShardError(
                root,
                f"is being written by {holder.split(chr(10))[0] or 'another run'}",
                "wait for it to end, or choose another output folder",
            ) from None
