"""Where the files of a shard root are: names and their index entries -> local files that can be mapped."""

import os
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from sharding.cache import CacheConfig, folder_name, is_url
from sharding.cache_stamps import is_verified
from sharding.errors import ShardError

AGAIN = "copy or write the shards again"


class RootFiles(Protocol):
    """The files of one root, whatever holds them; crosses to other processes by pickling.

    An entry is what index.json says of a file: {"file": name, "bytes": size, "sha256": digest}.
    """

    root: Path | str  # what may be shown to people: of a URL no user, password or query

    def read(self, name: str) -> bytes:
        """The bytes of a small file as they are there now; raises FileNotFoundError or ShardError."""

    def path(self, entry: dict) -> Path:
        """The entry's file on a local disk, complete; raises ShardError. May take as long as a download.

        Another process may remove it before it is opened, to make room in a cache: ask again then.
        """

    def prefetch(self, entries: list[dict]) -> None:
        """Say which files will be wanted next, in this order; returns at once. The newest call counts."""

    def check_room(self, size: int) -> None:
        """Raise ConfigError unless so many bytes of files can lie on the local disk at a time."""


def files_at(root, cache: CacheConfig = CacheConfig(), verify: bool = True) -> RootFiles:  # noqa: B008 - never changed
    """The files of a root: a folder, or a URL that fsspec can open; `verify` compares local shards with their sha256.

    What comes from a server is always compared.
    """
    if is_url(root) and not root.startswith("file://"):
        from sharding.cache_remote import CachedFiles  # aiohttp: 0.3 s that a folder need not pay

        return CachedFiles(root, cache)
    return LocalFiles(unquote(urlsplit(root).path) if is_url(root) else root, cache, verify)


class LocalFiles:
    """A folder; each file is compared with its sha256 when this machine first asks for its path."""

    def __init__(self, root: Path | str, cache: CacheConfig = CacheConfig(), verify: bool = True):  # noqa: B008
        self.root, self._cache, self._verify = Path(root), cache, verify
        self._stamps = cache.path / "verified" / folder_name(os.path.realpath(root))

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def path(self, entry: dict) -> Path:
        path = self.root / entry["file"]
        try:
            size = path.stat().st_size
            if size != entry["bytes"]:
                raise ShardError(path, f"has {size} bytes, its index says {entry['bytes']}", AGAIN)
            stamp = self._stamps / f"{entry['file']}.ok"
            if self._verify and not is_verified(path, entry, stamp, self._cache.patience_s):
                raise ShardError(path, "its sha256 is not what the index says", AGAIN)
        except FileNotFoundError:
            raise ShardError(path, "is missing", AGAIN) from None
        except OSError as error:
            raise ShardError(path, f"cannot be read ({error.strerror})", AGAIN) from None
        return path

    def prefetch(self, entries: list[dict]) -> None:
        pass

    def check_room(self, size: int) -> None:
        pass
