"""CacheConfig: where shards of remote roots are kept on local disk, and how long a server is waited for."""

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from sharding.errors import ConfigError

VARIABLE = "SPIKELOOM_CACHE"
GB = 10**9


@dataclass
class CacheConfig:
    """The cache of shards on a local disk.

    Credentials are none of its settings: fsspec finds them as its file systems do (AWS_*, ~/.aws, ~/.netrc, FSSPEC_*).
    """

    folder: str = ""
    "folder of downloads and of what was verified; empty: $SPIKELOOM_CACHE, else ~/.cache/spikeloom"
    limit_gb: float = 100.0
    "most GB (10^9 bytes) that downloads of all roots in the folder may take; the least recently used make room"
    stall_s: float = 60.0
    "seconds without a byte after which a transfer is given up and tried again"
    patience_s: float = 600.0
    "seconds that a file is tried again before it is given up"

    def __post_init__(self):
        for name in ("limit_gb", "stall_s", "patience_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"cache.{name}", f"is {getattr(self, name)}", "give a positive number")

    @property
    def path(self) -> Path:
        """The folder itself."""
        named = self.folder or os.environ.get(VARIABLE) or "~/.cache/spikeloom"
        return Path(os.path.abspath(os.path.expanduser(named)))

    @property
    def limit_bytes(self) -> int:
        return int(self.limit_gb * GB)


def is_url(root) -> bool:
    """Whether a root is on a server rather than a folder."""
    return isinstance(root, str) and "://" in root


def without_secrets(url: str) -> str:
    """A URL without user, password, query and fragment: what may be shown, and what names a folder."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", "")).rstrip("/")


def folder_name(place: str) -> str:
    """A folder's name for a root: its readable end and a digest of all of it."""
    readable = re.sub(r"[^A-Za-z0-9.-]+", "_", place.partition("://")[2] or place).strip("_.")[-60:]
    return f"{readable}-{hashlib.sha256(place.encode()).hexdigest()[:12]}"
