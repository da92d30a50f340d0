"""An asset of an archive -> a file in the cache that has its size and digest, fetched once however many processes ask."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import requests
from dandischema.digests.dandietag import DandiETag

from data_prep.archive_http import Trouble, as_trouble, patiently
from data_prep.errors import SessionError
from data_prep.source import ArchiveConfig, Asset

CHUNK = 1 << 16  # bytes read at a time; a broken connection loses at most one
GROUND = 1 << 20  # bytes that make a download start its tries anew
DAMAGED_TRIES = 2  # whole downloads more, where the digest does not fit


@contextlib.contextmanager
def held(path: Path, there: Callable[[], bool], fetch: Callable[[str], None], leave: Callable[[], None]):
    """Hold a file of the cache while it is read: fetched if it is not `there`, by one process at a time.

    `fetch` is given what to add to the name of its unfinished file: nothing, but where the file system knows no locks
    the process, since others may fetch too. `leave` is called at the end by the last reader.
    """
    if not os.access(path.parent, os.W_OK) and there():  # a cache that others filled: nobody here can change it
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    while True:
        hold = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(hold, fcntl.LOCK_SH)
            if _is(hold, lock) and not there():
                alone = _lock(hold, fcntl.LOCK_EX)
                if _is(hold, lock) and not there():
                    fetch("" if alone else f".{socket.gethostname()}-{os.getpid()}")
                _lock(hold, fcntl.LOCK_SH)
            if _is(hold, lock) and there():  # between two locks another process may have removed it
                break
        except BaseException:
            os.close(hold)
            raise
        os.close(hold)
    try:
        yield
    finally:
        with contextlib.suppress(BlockingIOError):  # others still read it
            _lock(hold, fcntl.LOCK_EX | fcntl.LOCK_NB)
            leave()
            lock.unlink(missing_ok=True)
        os.close(hold)


def _lock(hold: int, kind: int) -> bool:
    """Whether the file system has locks; waits for this one."""
    try:
        fcntl.flock(hold, kind)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        return False
    return True


def _is(hold: int, path: Path) -> bool:
    """Whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(hold), path.stat())
    except FileNotFoundError:
        return False


def is_verified(path: Path, asset: Asset) -> bool:
    """Whether the file was verified as this asset's before, and is as it was then."""
    mark = read_mark(path)
    return mark.get("digest") == asset.digest and [mark.get("size"), mark.get("mtime_ns")] == _state(path)


def _state(path: Path) -> list[int]:
    """Bytes and newest change, in ns, of a file or a folder of them."""
    files = [part for part in path.rglob("*") if part.is_file()] if path.is_dir() else [path] if path.exists() else []
    told = [file.stat() for file in files]
    return [sum(one.st_size for one in told), max((one.st_mtime_ns for one in told), default=-1)]


def read_mark(path: Path) -> dict:
    """What is remembered of a file's verification; {} for nothing."""
    try:
        mark = json.loads(_mark(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return mark if isinstance(mark, dict) else {}


def write_mark(path: Path, asset: Asset, fetched: bool) -> None:
    """Remember that a file is the asset's, and whether we put it there."""
    size, modified = _state(path)
    mark = {"digest": asset.digest, "size": size, "mtime_ns": modified, "fetched": fetched}
    fresh = _mark(path).with_suffix(".new")
    fresh.write_text(json.dumps(mark), encoding="utf-8")
    os.replace(fresh, _mark(path))


def remove(path: Path) -> None:
    """Take a file out of the cache, if it was fetched into it."""
    if read_mark(path).get("fetched"):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        _mark(path).unlink(missing_ok=True)


def _mark(path: Path) -> Path:
    return path.with_name(f".{path.name}.verified.json")


def partial_path(path: Path, asset: Asset, owner: str = "") -> Path:
    """The hidden name of an unfinished download; another digest has another name, so that two files never mix."""
    digest = re.sub("[^0-9a-z]", "", asset.digest.partition(":")[2])[:16]
    return path.with_name(f".{path.name}.{digest}{owner}.part")


def fetch_blob(
    session: requests.Session, url: str, asset: Asset, path: Path, config: ArchiveConfig, owner: str = ""
) -> None:
    """Bring an asset to its final name: resumed, its size and digest checked before; raises SessionError."""
    if path.is_file() and path.stat().st_size == asset.size and digest_of(path, asset.digest) == asset.digest:
        return write_mark(path, asset, fetched=bool(read_mark(path).get("fetched")))
    partial = partial_path(path, asset, owner)
    for name in os.listdir(path.parent):  # unfinished downloads of another version of this file
        if name.startswith(f".{path.name}.") and name.endswith(".part") and name != partial.name and not owner:
            (path.parent / name).unlink()
    found = ""
    for _ in range(DAMAGED_TRIES + 1):
        with disk_told(asset, path):
            _download(session, url, asset, partial, config)
            found = digest_of(partial, asset.digest)
            if found == asset.digest:
                os.replace(partial, path)
                return write_mark(path, asset, fetched=True)
            partial.unlink()
    raise SessionError(
        asset.path, f"should have the digest {asset.digest}, came with {found} in {DAMAGED_TRIES + 1} downloads",
        "nothing was kept; try another network, else tell the archive"
    )  # fmt: skip


@contextlib.contextmanager
def disk_told(asset: Asset, path: Path):
    """Tell in one line that the disk cannot take an asset."""
    try:
        yield
    except OSError as error:
        raise SessionError(
            asset.path, f"{path.parent} cannot take its {asset.size} bytes ({error.strerror})",
            "make room, choose another archive.cache, or set archive.stream or archive.keep_files=false"
        ) from error  # fmt: skip


def digest_of(path: Path, like: str) -> str:
    """The digest of a file, of the kind of `like` (sha256:... or dandi-etag:...)."""
    kind = like.partition(":")[0]
    if kind == "dandi-etag":
        return f"{kind}:{DandiETag.from_file(path).as_str()}"
    with open(path, "rb") as stream:
        return f"{kind}:{hashlib.file_digest(stream, 'sha256').hexdigest()}"


def _download(session: requests.Session, url: str, asset: Asset, partial: Path, config: ArchiveConfig) -> None:
    """Fill the partial file up to the asset's size, going on where it ends."""
    best = _size(partial)
    free = shutil.disk_usage(partial.parent).free
    if free < asset.size - best:
        raise OSError(errno.ENOSPC, f"{asset.size - best} bytes to come, {free} free")
    enough = max(GROUND, asset.size // 100)

    def attempt() -> None:
        nonlocal best
        before = best
        try:
            if _size(partial) != asset.size:
                with as_trouble():
                    _append(session, url, asset, partial, _size(partial))
            if _size(partial) != asset.size:
                raise Trouble(f"ends after {_size(partial)} of {asset.size} bytes")
        except Trouble as trouble:
            best = max(best, _size(partial))
            trouble.gained = best > before + enough
            raise

    patiently(asset.path, config, attempt)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _append(session: requests.Session, url: str, asset: Asset, partial: Path, have: int) -> None:
    """One request for the bytes from `have` on; from the first, where the server cannot go on."""
    if have > asset.size:
        have = 0
    words = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with session.get(url, stream=True, headers=words) as answer:
        check_status(answer, asset)
        if answer.status_code == 416:
            partial.unlink(missing_ok=True)
            raise Trouble(f"its storage has no byte {have}")
        if answer.status_code == 206:
            span = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", answer.headers.get("Content-Range", ""))
            if not span or int(span[1]) != have or span[3] not in (str(asset.size), "*"):
                partial.unlink(missing_ok=True)
                raise Trouble(f"its storage answers {answer.headers.get('Content-Range')} to {words.get('Range')}")
        else:  # the range was ignored: these bytes are those from the first on
            have = 0
            offered = answer.headers.get("Content-Length")
            if offered not in (None, str(asset.size)):
                raise Trouble(f"its storage offers {offered} bytes where it has {asset.size}")
        with open(partial, "ab" if have else "wb", buffering=0) as stream:
            for chunk in answer.iter_content(CHUNK):
                stream.write(chunk)
            os.fsync(stream.fileno())  # before the name says that it is whole


def check_status(answer: requests.Response, asset: Asset) -> None:
    """Raise SessionError for an answer that no further try would mend."""
    if answer.status_code in (404, 410):
        raise SessionError(asset.path, f"the archive has no asset {asset.id} any more", "list it again")
    if answer.status_code in (401, 403):
        raise SessionError(
            asset.path, f"access is refused ({answer.status_code})", "if it is embargoed, check the archive's token"
        )
    if answer.status_code not in (200, 206, 416):
        raise SessionError(asset.path, f"its storage answers {answer.status_code}", "check the archive's address")
