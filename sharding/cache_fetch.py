"""A file on a server -> a local file, through fsspec: one attempt that cannot hang, and attempts until patience ends."""

import asyncio
import concurrent.futures
import contextlib
import errno
import logging
import os
import random
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit, urlunsplit

import aiohttp
import fsspec
from fsspec.callbacks import Callback

from sharding.cache import CacheConfig, without_secrets
from sharding.cache_stamps import LOG
from sharding.errors import ConfigError, ShardError

T = TypeVar("T")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the local disk takes no more
_PASSING = (408, 425, 429)
_LONGEST_PAUSE_S = 30.0
_TICK_S = 0.1  # how often a transfer is looked at
# errors of botocore and aiohttp that no further try mends; botocore is there only with s3fs, hence by name
_HOPELESS = (
    "NoCredentialsError",
    "PartialCredentialsError",
    "ProfileNotFound",
    "NoRegionError",
    "ParamValidationError",
    "InvalidURL",
    "NonHttpUrlClientError",
    "TooManyRedirects",
    "ClientConnectorCertificateError",
)


class Trouble(Exception):
    """Something that may pass: worth another try."""

    def __init__(self, found: str, idle_s: float = 0.0):
        super().__init__(found)
        self.idle_s = idle_s  # how long no byte had come


class Refused(Exception):
    """What no further try mends."""


class OutOfPatience(ShardError):
    """A server that does not answer as it should for too long."""


class Stopped(Exception):
    """The file is no longer wanted."""


def never() -> bool:
    return False


class Server:
    """The files of a root on a server; connections belong to one process each."""

    def __init__(self, url: str, config: CacheConfig):
        self._url, self._config = url.rstrip("/"), config
        self._opened: dict = {}  # by process

    def shown(self, name: str) -> str:
        """The address of a file, for people."""
        return f"{without_secrets(self._url)}/{name}"

    def transfer(self, name: str, into: Path, most: int, stop: Callable[[], bool] = never) -> None:
        """One attempt to copy a file; more than `most` bytes are not taken.

        Raises FileNotFoundError, Refused, Trouble, Stopped, ConfigError, or an OSError of FULL.
        """
        filesystem, path = self._open(name)
        progress = _Progress()
        try:
            self._watch(_started(filesystem, path, into, progress), progress, most, stop)
        except (Stopped, Trouble, Refused):
            raise
        except FileNotFoundError:
            if not into.parent.exists():
                raise Trouble("its folder in the cache was removed") from None
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in FULL:
                raise
            raise _judged(error, progress.idle_s, self._config) from None  # its text may hold a signed address

    def _open(self, name: str):
        """A file system and the path of a file in it."""
        opened = self._opened
        if os.getpid() not in opened:  # two threads may both open one, which does no harm
            opened = self._opened = {os.getpid(): _file_system(self._url, self._config)}
        filesystem = opened[os.getpid()]
        parts = urlsplit(self._url)
        url = urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}"))
        return filesystem, filesystem._strip_protocol(url)

    def _watch(self, running, progress: "_Progress", most: int, stop: Callable[[], bool]) -> None:
        """Wait for a transfer as long as bytes come."""
        tick = min(_TICK_S, self._config.stall_s / 4)
        try:
            while not concurrent.futures.wait([running], tick).done:
                if stop():
                    raise Stopped
                if progress.value > most:
                    return  # the caller sees its size
                if progress.idle_s > self._config.stall_s:
                    raise Trouble(f"no byte came for {self._config.stall_s:g} s", progress.idle_s)
            running.result()
        finally:
            progress.abandoned = True
            running.cancel()

    def __reduce__(self):  # connections do not cross to another process
        return Server, (self._url, self._config)


class _Progress(Callback):
    """When the last byte came; ends a transfer that nobody waits for any more."""

    def __init__(self):
        super().__init__()
        self.last, self.abandoned = time.monotonic(), False

    @property
    def idle_s(self) -> float:
        return time.monotonic() - self.last

    def call(self, *_, **__):
        if self.abandoned:
            raise Stopped
        self.last = time.monotonic()


def _file_system(url: str, config: CacheConfig):
    """An fsspec file system with time-outs; raises ConfigError."""
    protocol = url.partition("://")[0]
    options = {}
    if protocol in ("http", "https"):
        given = fsspec.config.conf.get(protocol, {}).get("client_kwargs", {})  # headers that the user configured
        wait = aiohttp.ClientTimeout(total=None, sock_connect=config.stall_s, sock_read=config.stall_s)
        logging.getLogger("fsspec.http").setLevel(logging.INFO)  # at DEBUG it tells whole addresses, secrets and all
        options["client_kwargs"] = {"trust_env": True, **given, "timeout": wait}
    if protocol in ("s3", "s3a"):
        options["max_concurrency"] = 1  # else it holds 500 MB in memory and tells no progress
    try:
        return fsspec.core.url_to_fs(url, skip_instance_cache=True, use_listings_cache=False, **options)[0]
    except ImportError as error:
        do = "pip install 'spikeloom[s3]'" if protocol in ("s3", "s3a") else "install the package that it names"
        raise ConfigError(without_secrets(url), f"{protocol}:// needs a package ({error})", do) from None
    except ValueError:
        raise ConfigError(
            without_secrets(url), f"{protocol}:// is no kind of address that fsspec knows", "use http(s)://, s3:// ..."
        ) from None


def _started(filesystem, path: str, into: Path, progress: _Progress) -> concurrent.futures.Future:
    """A transfer that runs; one of an asynchronous file system ends when it is cancelled."""
    if filesystem.async_impl:
        copy = filesystem._get_file(path, str(into), callback=progress)
        return asyncio.run_coroutine_threadsafe(copy, filesystem.loop)
    running: concurrent.futures.Future = concurrent.futures.Future()

    def run() -> None:
        try:
            filesystem.get_file(path, str(into), callback=progress)
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
            with contextlib.suppress(concurrent.futures.InvalidStateError):
                running.set_exception(error)
        else:
            with contextlib.suppress(concurrent.futures.InvalidStateError):
                running.set_result(None)

    threading.Thread(target=run, daemon=True).start()
    return running


def _judged(error: Exception, idle_s: float, config: CacheConfig) -> Exception:
    """What an error of a library means to us."""
    status = getattr(error, "status", getattr(error, "status_code", None))
    if status in (404, 410):
        return FileNotFoundError()
    if type(error).__name__ in _HOPELESS:
        return Refused(_plain(error))
    if isinstance(status, int) and status >= 300:
        text = f"the server answers {status}"
        return Trouble(text, idle_s) if status in _PASSING or status >= 500 else Refused(text)
    if isinstance(error, PermissionError):
        return Refused(f"the server refuses it ({_plain(error)})")
    if isinstance(error, TimeoutError):
        return Trouble(f"no byte came for {config.stall_s:g} s", idle_s)
    return Trouble(_plain(error), idle_s)


def _plain(error: Exception) -> str:
    """An error's own words in one line, without what may be secret in an address."""
    text = re.sub(r"://[^/@\s]*@", "://", " ".join(str(error).split()))
    return f"{type(error).__name__}: {re.sub(r'[?][^ ]*', '', text)[:160]}" if text else type(error).__name__


def patiently(
    where: str, config: CacheConfig, attempt: Callable[[], T], stop: Callable[[], bool] = never, at_last: str = ""
) -> T:
    """What `attempt` gives, tried anew after a Trouble with growing waits; raises OutOfPatience when it ends.

    Patience is spent by waits and by seconds without a byte, not by seconds in which bytes came.
    """
    pause, spent = min(1.0, config.patience_s / 20), 0.0
    while True:
        try:
            got = attempt()
        except Trouble as trouble:
            if not spent:
                limit = f"{config.patience_s:g} s{at_last}"
                LOG.warning("%s: %s; trying again for up to %s", where, trouble, limit)
            spent += trouble.idle_s + pause
            if spent > config.patience_s:
                do = "see whether the server is well, or raise cache.patience_s"
                raise OutOfPatience(where, f"{trouble} (tried for {config.patience_s:g} s)", do) from None
            _sleep(pause * random.uniform(0.75, 1.25), stop)  # spread, so that processes do not all come back at once
            pause = min(2 * pause, _LONGEST_PAUSE_S)
        else:
            if spent:
                LOG.warning("%s: goes on after %.0f s", where, spent)
            return got


def _sleep(seconds: float, stop: Callable[[], bool]) -> None:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if stop():
            raise Stopped
        time.sleep(min(left, _TICK_S))
