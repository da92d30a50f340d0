"""Sessions -> a shard root: shards, tables and, last of all, the index whose presence says that the root is whole."""

import json
import re
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Self

from data_prep.session import SPLITS, Session
from sharding.cut import NO_PHASE, Cut, PhaseCodes, cut
from sharding.errors import ShardError
from sharding.index import ShardIndex
from sharding.index_meta import FORMAT, INDEX, KIND, TABLES, Refused, meta_digest
from sharding.tables import SEGMENT_SCHEMA, UNIT_SCHEMA
from sharding.tables_rows import SESSION_SCHEMA
from sharding.tally import Tally
from sharding.writer import PARTIAL, ShardWriter, write_bytes
from sharding.writer_tables import Records, standing, write_table

_SHARD = re.compile(rf"({'|'.join(SPLITS)})-(\d{{6,}})\.tar")
# What a run writes; tables of format 1 have no digest in their names.
OURS = re.compile(rf"{_SHARD.pattern}|({'|'.join(TABLES)})(-[0-9a-f]{{8}})?\.parquet|\..*{re.escape(PARTIAL)}")


@dataclass(frozen=True)
class CutSettings:
    """What decides the bytes of the shards, beside the sessions."""

    segment_us: int = 60_000_000  # the longest stretch of starts that a segment owns
    halo_us: int = 1_000_000  # the longest window that is served
    shard_bytes: int = 128_000_000
    splits: tuple[str, ...] = SPLITS

    def to_json(self) -> dict:
        return {**asdict(self), "splits": list(self.splits)}


@dataclass(frozen=True)
class Source:
    """The file that a session was read from."""

    file: str
    sha256: str


class RootWriter:
    """Writes one shard root. Use as a context, and call finish() inside it when all sessions are added.

    With `kept`, the index of what stands in the folder, sessions are added to those: its shards stay as they are, new
    ones are numbered on. Entering removes what earlier runs left, without `kept` the index first, so that no rest is
    taken for whole. Only one process may do so at a time: see root_lock.
    """

    def __init__(self, output: Path, settings: CutSettings, kept: ShardIndex | None = None):
        self.output, self.settings, self.kept = output, settings, kept
        self.codes = PhaseCodes(kept.meta["phases"] if kept else (NO_PHASE,))
        self._ids = set(kept.session_ids) if kept else set()
        self._sessions, self._units, self._segments = map(Records, (SESSION_SCHEMA, UNIT_SCHEMA, SEGMENT_SCHEMA))
        self._spikes, self._stack = 0, ExitStack()

    def __enter__(self) -> Self:
        sweep(self.output, self.kept.meta if self.kept else None)
        entries = self.kept.meta["shards"] if self.kept else []
        self._writers = {
            split: self._stack.enter_context(
                ShardWriter(self.output, split, self.settings.shard_bytes, next_number(split, entries))
            )
            for split in self.settings.splits
        }
        return self

    def __exit__(self, *error) -> None:
        self._stack.__exit__(*error)

    @property
    def count(self) -> int:
        """Sessions of the root as it will be."""
        return len(self._ids)

    def cut(self, session: Session) -> Cut:
        """The segments of a session, nothing written yet; raises ShardError for a session that cannot be taken."""
        if session.id in self._ids:
            raise ShardError(
                session.id,
                "is there already, from another file or an earlier state of this one",
                "keep one of the two, or shard without append to replace it",
            )
        segments = cut(
            session,
            segment_us=self.settings.segment_us,
            halo_us=self.settings.halo_us,
            splits=self.settings.splits,
            codes=self.codes,
        )
        if not len(segments):
            raise ShardError(
                session.id,
                f"has no time in the splits {', '.join(self.settings.splits)}",
                "look at its recipe's splits",
            )
        return segments

    def add(self, session: Session, segments: Cut, source: Source) -> None:
        """Write the segments that cut() gave; raises ShardError where the disk is full."""
        for split, writer in self._writers.items():
            writer.keep_together([segment for segment in segments.hollow if segment.split == split])
        tally = Tally(session, segments.phases)
        for segment in segments:
            self._segments.add([self._writers[segment.split].write(segment)])
            tally.add(segment)
        row = tally.session_row(source.file, source.sha256)
        self._ids.add(session.id)
        self._spikes += row.spikes
        self._sessions.add([row.to_record()])
        self._units.add(tally.unit_records())

    def finish(self, refused: list[Refused]) -> None:
        """Complete the last shards, write the tables and then index.json."""
        self._stack.close()
        kept = self.kept
        fresh = {"sessions": self._sessions, "units": self._units, "segments": self._segments}
        tables = {
            name: write_table(
                self.output, name, chain(standing(kept, name, records.schema), records.tables()), records.schema
            )
            for name, records in fresh.items()
        }
        shards = [asdict(file) for writer in self._writers.values() for file in writer.files]
        totals = {name: records.count for name, records in fresh.items()}
        totals |= {"spikes": self._spikes, "bytes": sum(entry["bytes"] for entry in shards)}
        if kept:
            shards = kept.meta["shards"] + shards
            totals = {name: value + kept.meta["totals"][name] for name, value in totals.items()}
        write_index(
            self.output,
            {
                "config": self.settings.to_json(),
                "phases": self.codes.names,
                "totals": totals,
                "refused": [asdict(entry) for entry in refused],
                "tables": {name: asdict(file) for name, file in tables.items()},
                "shards": shards,
            },
        )


def write_index(output: Path, meta: dict) -> None:
    """index.json of a root whose shards and tables are there: the moment at which it holds what `meta` tells."""
    meta = {"kind": KIND, "format": FORMAT, "writer": version("spikeloom"), **meta}
    meta["digest"] = meta_digest(meta)
    write_bytes(output / INDEX, json.dumps(meta, indent=1).encode())


def next_number(split: str, entries: list[dict]) -> int:
    """The number of the first new shard of a split: one above those that these entries of index.json name."""
    found = (_SHARD.fullmatch(entry["file"]) for entry in entries)
    return max((int(name[2]) + 1 for name in found if name and name[1] == split), default=0)


def sweep(output: Path, meta: dict | None = None) -> None:
    """Make the folder and remove shards, tables and half-written files of earlier runs, except what `meta` names.

    Without `meta` all go, the index first, so that no rest is taken for whole. Raises ShardError.
    """
    named = {entry["file"] for entry in [*meta["tables"].values(), *meta["shards"]]} | {INDEX} if meta else set()
    try:
        output.mkdir(parents=True, exist_ok=True)
        if INDEX not in named:
            (output / INDEX).unlink(missing_ok=True)
        for name in sorted(path.name for path in output.iterdir()):
            if OURS.fullmatch(name) and name not in named:
                (output / name).unlink(missing_ok=True)
    except OSError as error:
        raise ShardError(output, f"cannot be written to ({error.strerror})", "choose another output folder") from None
