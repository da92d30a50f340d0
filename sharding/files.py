"""Where the files of a shard root are: names and their index entries -> local files that can be mapped."""

from pathlib import Path
from typing import Protocol

from sharding.errors import ShardError

AGAIN = "copy or write the shards again"


class RootFiles(Protocol):
    """The files of one root, whatever holds them; crosses to other processes by pickling.

    An entry is what index.json says of a file: {"file": name, "bytes": size, "sha256": digest}.
    """

    root: Path | str

    def read(self, name: str) -> bytes:
        """The bytes of a small file as they are there now; raises FileNotFoundError or ShardError."""

    def path(self, entry: dict) -> Path:
        """The entry's file on a local disk, complete; raises ShardError. May take as long as a download."""

    def prefetch(self, entries: list[dict]) -> None:
        """Say which files will be wanted next, in this order; returns at once."""


class LocalFiles:
    """A folder."""

    def __init__(self, root: Path | str):
        self.root = Path(root)

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def path(self, entry: dict) -> Path:
        path = self.root / entry["file"]
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            raise ShardError(path, "is missing", AGAIN) from None
        except OSError as error:
            raise ShardError(path, f"cannot be read ({error.strerror})", AGAIN) from None
        if size != entry["bytes"]:
            raise ShardError(path, f"has {size} bytes, its index says {entry['bytes']}", AGAIN)
        return path

    def prefetch(self, entries: list[dict]) -> None:
        pass
