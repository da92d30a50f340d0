"""ShardIndex: what a shard root holds (sessions, units, segments, statistics), without opening a shard."""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fnmatch import translate
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from data_prep.session import SPLITS
from sharding.cache import CacheConfig
from sharding.errors import ConfigError, ShardError
from sharding.files import AGAIN, RootFiles, files_at
from sharding.index_limit import clipped, recounted, retold
from sharding.index_meta import FORMAT, Refused, read_meta
from sharding.mapped import MappedShards
from sharding.tables import SEGMENT_SCHEMA, UNIT_SCHEMA, SegmentTable, SessionTable, UnitTable
from sharding.tables_rows import SESSION_SCHEMA, SessionRow
from sharding.tables_stored import StoredTable


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """The sessions of a shard root, or some of them; every other product of the supply is made from this."""

    files: RootFiles  # where the shards are
    meta: dict  # index.json as written: format, config, totals, tables and shards with bytes and sha256
    sessions: SessionTable  # a sequence of SessionRow
    segments: SegmentTable
    unit_table: UnitTable
    limit_us: int | None = None  # microseconds of train data kept of each session; None is all

    @staticmethod
    def open(root, verify: bool = False, cache: CacheConfig = CacheConfig()) -> "ShardIndex":  # noqa: B008
        """The index of a root, a folder or a URL; raises ShardError for what is missing, cut short or of another format.

        Sizes of local shards and digests of the tables are always checked here, what comes from a server whenever it
        comes; `verify` compares each local shard with its sha256 too, when this machine first maps it.
        """
        files = files_at(root, cache, verify)
        meta = read_meta(files)
        try:
            index = ShardIndex.of(files, meta)
        except ShardError:
            now = read_meta(files)
            if now["digest"] == meta["digest"]:
                raise
            index = ShardIndex.of(files, now)  # sessions were added while it was read: here are their tables
        index._check_sizes()
        return index

    @staticmethod
    def of(files: RootFiles, meta: dict) -> "ShardIndex":
        """The index of a root's index.json and tables, no shard looked at; raises ShardError."""
        try:
            stored = [
                StoredTable.open(files, meta["tables"][name], schema)
                for name, schema in (("sessions", SESSION_SCHEMA), ("units", UNIT_SCHEMA), ("segments", SEGMENT_SCHEMA))
            ]
            sessions = SessionTable(stored[0].read().combine_chunks())
            units = sessions.column("units")
            if units.sum() != len(stored[1]):
                raise ShardError(files.root, "its sessions have other units than its table of units", AGAIN)
            return ShardIndex(
                files,
                meta,
                sessions,
                SegmentTable.of(stored[2], meta["shards"], sessions.ids),
                UnitTable(stored[1], np.cumsum(units) - units, units),
            )
        except (KeyError, TypeError, pa.ArrowException) as error:
            raise ShardError(files.root, f"its tables do not fit format {FORMAT} ({error})", AGAIN) from None

    @property
    def root(self) -> Path | str:
        """Where it was opened, as it may be shown."""
        return self.files.root

    @property
    def session_ids(self) -> tuple[str, ...]:
        return self.sessions.ids

    @property
    def refused(self) -> tuple[Refused, ...]:
        """Stored sessions that were not sharded when this root was written."""
        return tuple(Refused(**entry) for entry in self.meta["refused"])

    @property
    def halo_us(self) -> int:
        """The longest window that these shards serve, microseconds."""
        return self.meta["config"]["halo_us"]

    @cached_property
    def _row(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.session_ids)}

    def session(self, session_id: str) -> SessionRow:
        """One session; raises ConfigError where it is not here."""
        self._known([session_id])
        return self.sessions[self._row[session_id]]

    @property
    def units(self) -> pa.Table:
        """The unit table (tables.UNIT_SCHEMA) of these sessions, read anew."""
        return self.unit_table.chosen().read()

    def unit_ids(self, session_id: str) -> tuple[str, ...]:
        """Global ids "<session id>/<unit id>" of a session's units, in the order that its spikes count them."""
        row = self._row.get(session_id)
        return () if row is None else self.unit_table.ids(row, session_id)

    def all_unit_ids(self) -> Iterator[list[str]]:
        """Global ids of the units of all sessions in order, in runs: never all of them in memory."""
        return self.unit_table.all_ids()

    def select(self, session_ids) -> "ShardIndex":
        """The same files with only these sessions, in the order of this index; raises ConfigError for an unknown one."""
        wanted = set(session_ids)
        self._known(wanted)
        rows = np.array(sorted(self._row[name] for name in wanted), np.int64)
        return replace(
            self,
            sessions=self.sessions.take(rows),
            unit_table=self.unit_table.take(rows),
            segments=self.segments.take(np.isin(self.segments.session, rows), rows),
        )

    def matching(self, patterns) -> "ShardIndex":
        """The sessions whose id fits any glob pattern; raises ConfigError for a pattern that fits none."""
        patterns, ids = [patterns] if isinstance(patterns, str) else list(patterns), []
        for pattern in patterns:
            fits = re.compile(translate(pattern)).match
            fitting = [name for name in self.session_ids if fits(name)]
            if not fitting:
                raise ConfigError(self.root, f"no session fits {pattern!r}", f"choose among {_some(self.session_ids)}")
            ids += fitting
        return self.select(ids)

    def limited(self, train_minutes: float) -> "ShardIndex":
        """Only the first minutes of each session's train split, in time order, the last stretch clipped.

        Other splits stay whole; counts and statistics of sessions are told anew from what is left, those of units are
        not. Raises ConfigError for no time.
        """
        if not train_minutes > 0:
            raise ConfigError("train_minutes", f"is {train_minutes}", "give a positive number of minutes")
        limit, shards = round(train_minutes * 60e6), self.mapped()
        segments, shorter = clipped(self.segments, limit)
        segments = recounted(segments, shards, self.sessions.names("signals"), shorter)
        sessions = SessionTable.of(retold(self.sessions, segments, shards))
        return replace(self, sessions=sessions, segments=segments, limit_us=limit)

    def mapped(self) -> MappedShards:
        """The shard files, mapped when first read."""
        return MappedShards(self.files, self.meta["shards"])

    def digest(self) -> str:
        """sha256 that changes with any byte of the root, the selection of sessions and the limit: for provenance."""
        chosen = json.dumps([self.meta["digest"], self.session_ids, self.limit_us])
        return hashlib.sha256(chosen.encode()).hexdigest()

    def summary(self) -> dict:
        """Totals of the sessions in this index: what `show` prints."""
        return {
            "sessions": len(self.sessions),
            "units": int(self.sessions.column("units").sum()),
            "spikes": int(self.segments.column("spikes").sum()),
            "targets": int(self.segments.column("targets").sum()),
            "hours": {split: float(self.sessions.hours(split).sum()) for split in SPLITS},
            "segments": len(self.segments),
            "shards": len(self.meta["shards"]),
            "bytes": sum(entry["bytes"] for entry in self.meta["shards"]),
            "signals": sorted(self.sessions.names("signals")),
            "phases": self.sessions.names("phases"),
            "format": self.meta["format"],
        }

    def _check_sizes(self) -> None:
        """Raise ShardError where a local shard is missing or cut short."""
        if not isinstance(self.root, Path):
            return
        for entry in self.meta["shards"]:
            path = self.root / entry["file"]
            try:
                size = path.stat().st_size
            except FileNotFoundError:
                raise ShardError(path, "is missing", AGAIN) from None
            except OSError as error:
                raise ShardError(path, f"cannot be read ({error.strerror})", AGAIN) from None
            if size != entry["bytes"]:
                raise ShardError(path, f"has {size} bytes, its index says {entry['bytes']}", AGAIN)

    def _known(self, ids) -> None:
        for name in ids:
            if name not in self._row:
                raise ConfigError(self.root, f"holds no session {name!r}", f"choose among {_some(self.session_ids)}")


def _some(names) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
