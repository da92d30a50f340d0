"""index.json: what a shard root is, written last of all; read, checked and digested here."""

import hashlib
import json
import re
from dataclasses import dataclass

from sharding.errors import ShardError
from sharding.files import AGAIN, RootFiles

FORMAT = 2
KIND = "spikeloom shards"
INDEX = "index.json"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
TABLES = ("sessions", "units", "segments")


@dataclass(frozen=True)
class Refused:
    """A stored session that could not be sharded, and why."""

    file: str
    message: str
    sha256: str = ""  # of the file as it was then


def read_meta(files: RootFiles) -> dict:
    """index.json of a root, checked against its own digest; raises ShardError."""
    root, path = files.root, f"{files.root}/{INDEX}"
    try:
        meta = json.loads(files.read(INDEX))
    except FileNotFoundError:
        raise ShardError(root, f"holds no {INDEX}, so no complete shards", "run `spikeloom shard` into it") from None
    except (OSError, ValueError) as error:
        raise ShardError(path, f"cannot be read ({error})", AGAIN) from None
    if not isinstance(meta, dict) or meta.get("kind") != KIND:
        raise ShardError(path, "is not an index of Spikeloom shards", "give the folder that `spikeloom shard` wrote")
    if meta.get("format") != FORMAT:
        raise ShardError(
            path,
            f"is of format {meta.get('format')}, this version reads format {FORMAT}",
            "shard the stored sessions again into a new folder, or use the version that wrote it",
        )
    if meta.get("digest") != meta_digest(meta):
        raise ShardError(path, "was changed after it was written", AGAIN)
    try:
        names = [entry["file"] for entry in [*(meta["tables"][name] for name in TABLES), *meta["shards"]]]
    except (KeyError, TypeError) as error:
        raise ShardError(path, f"does not fit format {FORMAT} ({error!r})", AGAIN) from None
    for name in names:
        if not _NAME.fullmatch(str(name)):
            raise ShardError(path, f"names a file outside its folder, {name!r}", AGAIN)
    return meta


def meta_digest(meta: dict) -> str:
    """sha256 of index.json without its own digest."""
    rest = {name: value for name, value in meta.items() if name != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
