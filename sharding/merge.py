"""Shard roots -> one: shards become links under new numbers, tables are joined, no shard is read or written anew."""

import errno
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pyarrow as pa

from data_prep.session import SPLITS
from sharding.cache import is_url
from sharding.errors import ConfigError, ShardError
from sharding.files import AGAIN, files_at
from sharding.index import ShardIndex
from sharding.index_meta import INDEX, read_meta
from sharding.root import OURS, sweep, write_index
from sharding.root_lock import LOCK, writing
from sharding.tables import SEGMENT_SCHEMA, UNIT_SCHEMA
from sharding.tables_rows import SESSION_SCHEMA
from sharding.tables_stored import StoredTable
from sharding.writer import AtomicFile
from sharding.writer_tables import write_table

LINKS = ("hard", "symbolic", "copy")
MOST_NAMED = 5  # sessions that a refusal names
CHUNK = 1 << 20  # bytes copied at once
NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS)
Progress = Callable[[int, int, str], None]  # shards done, of how many, name of the one that comes next


@dataclass(frozen=True)
class MergeConfig:
    """Which roots are joined, and how their shards come into the new one."""

    roots: list[str] = field(default_factory=list)
    "Shard roots (folders) to join; sessions keep their order, root after root."
    output: str = ""
    "Folder of the joined root; made where it is missing."
    link: str = "hard"
    "How shards come there: hard (links on one file system), symbolic (the roots have to stay where they are) or copy."


@dataclass(frozen=True)
class Joined:
    """What a merge makes: where each shard comes from, its entry in the new index, and what that says besides tables."""

    parts: tuple[ShardIndex, ...]
    shards: tuple[tuple[Path, dict], ...]  # file of a part; its entry under the new name
    names: tuple[dict[str, str], ...]  # of each part: name of a shard -> its new name
    meta: dict  # config, phases, totals, refused and shards of the new index.json


def merge(config: MergeConfig, progress: Progress = lambda done, total, name: None) -> ShardIndex:
    """Join the roots and return the index of the new one; a complete root of just these is kept as it is.

    A run that was stopped leaves no index, and the next one finishes. Raises ConfigError for settings that make no
    sense, ShardError where a session is in two roots, or the folder holds something else; then nothing is written.
    """
    joined, output = join(config), Path(config.output)
    with writing(output):
        if _is_whole(output, joined):
            return ShardIndex.open(output)
        _make_room(output)
        for number, (file, entry) in enumerate(joined.shards):
            progress(number, len(joined.shards), entry["file"])
            _place(file, output / entry["file"], entry, config.link)
        write_index(output, {**joined.meta, "tables": _write_tables(output, joined)})
    progress(len(joined.shards), len(joined.shards), "")
    return ShardIndex.open(output)


def join(config: MergeConfig) -> Joined:
    """What a merge would make, nothing written yet; raises ConfigError and ShardError as merge() does."""
    if len(config.roots) < 2:
        raise ConfigError("roots", f"are {len(config.roots)}", "give two or more shard roots to join")
    if config.link not in LINKS:
        raise ConfigError("link", f"is {config.link!r}", f"choose among {', '.join(LINKS)}")
    if not config.output:
        raise ConfigError("output", "is not given", "give the folder of the joined root, output=FOLDER")
    for place in (*config.roots, config.output):
        if is_url(place):
            raise ConfigError(place, "is on a server, only folders can be joined", "fetch it into a folder first")
    if os.path.realpath(config.output) in map(os.path.realpath, config.roots):
        raise ConfigError("output", f"{config.output} is one of the roots", "give a folder of its own")
    parts = tuple(map(ShardIndex.open, config.roots))
    _refuse_twice(parts)
    shards, names = _renamed(parts)
    return Joined(parts, shards, names, _told(parts, [entry for _, entry in shards]))


def _refuse_twice(parts: tuple[ShardIndex, ...]) -> None:
    times = Counter(name for part in parts for name in part.session_ids)
    twice = [name for name, count in times.items() if count > 1]
    if twice:
        roots = " and ".join(str(part.root) for part in parts if twice[0] in part.session_ids)
        more = f" and {len(twice) - MOST_NAMED} more" if len(twice) > MOST_NAMED else ""
        found = f"{len(twice)} sessions are in two roots: {', '.join(twice[:MOST_NAMED])}{more}"
        raise ShardError(roots, found, "leave one of the roots out, or shard again without these sessions")


def _renamed(parts: tuple[ShardIndex, ...]) -> tuple[tuple[tuple[Path, dict], ...], tuple[dict[str, str], ...]]:
    """The shards in the order split, root, number, counted anew within each split."""
    rank = {split: n for n, split in enumerate(SPLITS)}
    every = [
        (n, entry, entry["file"].rpartition("-")[0]) for n, part in enumerate(parts) for entry in part.meta["shards"]
    ]
    shards, names, count = [], tuple({} for _ in parts), Counter()
    for n, entry, split in sorted(every, key=lambda one: rank.get(one[2], len(rank))):
        name = f"{split}-{count[split]:06d}.tar"
        count[split] += 1
        names[n][entry["file"]] = name
        shards.append((Path(parts[n].root) / entry["file"], {**entry, "file": name}))
    return tuple(shards), names


def _told(parts: tuple[ShardIndex, ...], shards: list[dict]) -> dict:
    """What the new index.json says besides its tables."""
    configs = [part.meta["config"] for part in parts]
    splits = {split for config in configs for split in config["splits"]}
    return {
        "config": {
            "segment_us": max(config["segment_us"] for config in configs),
            "halo_us": min(config["halo_us"] for config in configs),  # the longest window that all of them serve
            "shard_bytes": max(config["shard_bytes"] for config in configs),
            "splits": [split for split in SPLITS if split in splits],
        },
        "phases": parts[-1].meta["phases"],  # the codes that sessions added later go on with
        "totals": {name: sum(part.meta["totals"][name] for part in parts) for name in parts[0].meta["totals"]},
        "refused": [refused for part in parts for refused in part.meta["refused"]],
        "shards": shards,
    }


def _is_whole(output: Path, joined: Joined) -> bool:
    """Whether just this merge stands there, complete; raises ShardError for an index of anything else."""
    if not (output / INDEX).exists():
        return False
    try:
        meta = read_meta(files_at(output))
    except ShardError as error:  # not to be overwritten unasked
        raise ShardError(error.where, error.found, "delete it or choose another output folder") from None
    if {name: meta.get(name) for name in joined.meta} != joined.meta:
        raise ShardError(output, "holds other shards than these roots", "choose an empty or new folder")
    try:
        ShardIndex.open(output)
    except ShardError:  # a file is missing or cut short: make all again
        return False
    return True


def _make_room(output: Path) -> None:
    """Remove what a merge that was stopped left; raises ShardError where anything else is there."""
    names = sorted(name for name in os.listdir(output) if name != LOCK)
    others = [name for name in names if name != INDEX and not OURS.fullmatch(name)]
    if others:
        raise ShardError(output, f"holds other files ({', '.join(others[:3])})", "choose an empty or new folder")
    sweep(output)


def _place(file: Path, target: Path, entry: dict, link: str) -> None:
    """The shard under its new name; raises ShardError where that cannot be, or it is not the file of the index."""
    real = os.path.realpath(file)  # of a root that is made of symbolic links: what they lead to
    try:
        if link == "hard":
            os.link(real, target)
        elif link == "symbolic":
            os.symlink(real, target)
        else:
            _copy(Path(real), target, entry)
        size = target.stat().st_size
    except OSError as error:
        found = f"cannot be joined into {target.parent} by link={link} ({error.strerror})"
        other = "copy" if link != "hard" else "symbolic or link=copy"
        do = f"take link={other}" if error.errno in NO_LINKS else "look at both folders, then run again"
        raise ShardError(file, found, do) from None
    if size != entry["bytes"]:
        raise ShardError(file, f"has {size} bytes, its index says {entry['bytes']}", AGAIN)


def _copy(file: Path, target: Path, entry: dict) -> None:
    out = AtomicFile(target)
    try:
        with open(file, "rb") as stream:
            while chunk := stream.read(CHUNK):
                out.write(chunk)
        if out.commit().sha256 != entry["sha256"]:
            target.unlink()
            raise ShardError(file, "its sha256 is not what the index says", AGAIN)
    finally:
        out.discard()


def _write_tables(output: Path, joined: Joined) -> dict[str, dict]:
    """The tables of all parts end to end, as entries of index.json."""
    tables = {
        "sessions": (SESSION_SCHEMA, (part.sessions.table for part in joined.parts)),
        "units": (UNIT_SCHEMA, (table for part in joined.parts for table in _runs(part.unit_table.stored))),
        "segments": (SEGMENT_SCHEMA, _segments(joined)),
    }
    return {name: asdict(write_table(output, name, rows, schema)) for name, (schema, rows) in tables.items()}


def _runs(stored: StoredTable) -> Iterator[pa.Table]:
    """All columns of a table, a run of rows at a time."""
    return (table for _, table in stored.parts(stored.schema.names))


def _segments(joined: Joined) -> Iterator[pa.Table]:
    """The segments of all parts, with the new names of their shards."""
    at = SEGMENT_SCHEMA.get_field_index("shard")
    for part, names in zip(joined.parts, joined.names):
        for table in _runs(part.segments.stored):
            shard = table.column("shard").combine_chunks()
            renamed = pa.array([names[name] for name in shard.dictionary.to_pylist()], pa.string())
            column = pa.DictionaryArray.from_arrays(shard.indices, renamed)
            yield table.set_column(at, SEGMENT_SCHEMA.field(at), column)
