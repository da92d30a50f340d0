"""The tables of a shard root: sessions, units and segments; columns are numpy arrays, rows are made when asked for."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
from pyarrow import compute

from data_prep.session import SPLITS
from sharding.errors import ShardError
from sharding.files import AGAIN
from sharding.tables_rows import SESSION_SCHEMA, SessionRow
from sharding.tables_stored import StoredTable

UNIT_SCHEMA = pa.schema(  # units lie in the order of their sessions
    [
        ("id", pa.string()),
        ("session", pa.string()),
        ("region", pa.string()),
        ("quality", pa.string()),
        ("electrode", pa.string()),  # row or channel, "" where unknown
        ("held_out", pa.bool_()),  # the dandiset withholds it in its test files
        ("missing", pa.bool_()),  # in the roster of the dandiset, not in this file
        ("spikes", pa.int64()),
        ("rate", pa.float64()),
    ]
)
_TEXT = pa.dictionary(pa.int32(), pa.string())
SEGMENT_SCHEMA = pa.schema(  # segments lie in the order session, split, interval, time
    [
        ("key", pa.string()),
        ("session", _TEXT),
        ("split", _TEXT),
        ("shard", _TEXT),
        ("interval", pa.int32()),
        ("interval_start_us", pa.int64()),
        ("interval_stop_us", pa.int64()),
        ("start_us", pa.int64()),
        ("stop_us", pa.int64()),
        ("carry_us", pa.int64()),
        ("spikes", pa.int64()),
        ("targets", pa.int64()),
        # a member an entry, in the order of the tar; an array fills the last bytes of its member
        ("member", pa.list_(_TEXT)),
        ("offset", pa.list_(pa.int64())),
        ("bytes", pa.list_(pa.int64())),
        ("array_bytes", pa.list_(pa.int64())),
    ]
)
_ROWS_AT_ONCE = 1024  # sessions made into rows together: dearer one by one


class SessionTable(Sequence):
    """The sessions of an index: a sequence of SessionRow, each made from the table when it is asked for."""

    def __init__(self, table: pa.Table):
        self.table = table  # of SESSION_SCHEMA

    @staticmethod
    def of(rows) -> "SessionTable":
        """A table of the given SessionRows."""
        return SessionTable(pa.Table.from_pylist([row.to_record() for row in rows], schema=SESSION_SCHEMA))

    def __len__(self) -> int:
        return self.table.num_rows

    def __getitem__(self, at):
        if isinstance(at, slice):
            return tuple(self.take(np.arange(len(self))[at]))
        row = range(len(self))[at]
        return SessionRow.from_record(self.table.slice(row, 1).to_pylist()[0])

    def __iter__(self) -> Iterator[SessionRow]:
        for first in range(0, len(self), _ROWS_AT_ONCE):
            yield from map(SessionRow.from_record, self.table.slice(first, _ROWS_AT_ONCE).to_pylist())

    def take(self, rows: np.ndarray) -> "SessionTable":
        """Only the sessions of these rows (m,)."""
        return SessionTable(self.table.take(pa.array(rows, pa.int64())).combine_chunks())

    @cached_property
    def ids(self) -> tuple[str, ...]:
        return tuple(self.table.column("id").to_pylist())

    def column(self, name: str) -> np.ndarray:
        """A column of numbers (n,)."""
        return self.table.column(name).to_numpy()

    def hours(self, split: str) -> np.ndarray:
        """(n,) float64 hours of a split."""
        return self.table.column("hours").combine_chunks().field(split).to_numpy()

    def dims(self, signal: str) -> np.ndarray:
        """(n,) int64 dimensions of a signal; 0 where a session has none of that name."""
        lists = self.table.column("signals").combine_chunks()
        hit = np.flatnonzero(compute.equal(lists.flatten().field("name"), signal).to_numpy(zero_copy_only=False))
        row = np.repeat(np.arange(len(self)), lists.value_lengths().to_numpy())
        out = np.zeros(len(self), np.int64)
        out[row[hit]] = lists.flatten().field("dims").to_numpy()[hit]
        return out

    def lengths(self, column: str) -> np.ndarray:
        """(n,) int64 how many entries a column of lists has ("phases": codes that a session's samples may have)."""
        return self.table.column(column).combine_chunks().value_lengths().to_numpy().astype(np.int64)

    def names(self, column: str) -> list[str]:
        """All names in a column of lists ("phases", "signals"), in the order in which they first come."""
        flat = self.table.column(column).combine_chunks().flatten()
        return (flat.field("name") if column == "signals" else flat).unique().to_pylist()

    def records(self, *columns: str) -> Iterator[tuple]:
        """Some columns of every session, as plain values."""
        for first in range(0, len(self), _ROWS_AT_ONCE):
            part = self.table.slice(first, _ROWS_AT_ONCE)
            yield from zip(*(part.column(column).to_pylist() for column in columns))


class UnitTable:
    """The units of an index, session after session; their ids are read when asked for."""

    def __init__(self, stored: StoredTable, first: np.ndarray, count: np.ndarray):
        self.stored, self.first, self.count = stored, first, count  # (sessions,) int64: row of the first unit; units
        self._group: tuple[int, pa.Array] = (-1, pa.array([], pa.string()))  # ids of the row group read last

    def __reduce__(self):
        return UnitTable, (self.stored, self.first, self.count)

    def take(self, sessions: np.ndarray) -> "UnitTable":
        """Only the units of the sessions in these rows (m,), rising."""
        return UnitTable(self.stored, self.first[sessions], self.count[sessions])

    def ids(self, session: int, name: str) -> tuple[str, ...]:
        """Global ids of the units of a session, of which row and id are given."""
        first, out = int(self.first[session]), []
        stop = first + int(self.count[session])
        while first < stop:
            group = int(np.searchsorted(self.stored.edges, first, "right")) - 1
            low, high = self.stored.edges[group : group + 2].tolist()
            out += self._ids(group).slice(first - low, min(stop, high) - first).to_pylist()
            first = min(stop, high)
        if out and not (out[0].startswith(f"{name}/") and out[-1].startswith(f"{name}/")):
            raise ShardError(
                self.stored.files.root, f"its table of units does not hold those of {name} in order", AGAIN
            )
        return tuple(out)

    def all_ids(self) -> Iterator[list[str]]:
        """Global ids of all units in order, in runs."""
        for _, part in self.chosen().parts(["id"]):
            yield part.column("id").to_pylist()

    def chosen(self) -> StoredTable:
        """The rows of these units."""
        if self.count.sum() == len(self.stored):
            return self.stored
        return self.stored.take(runs(self.first, self.count))

    def _ids(self, group: int) -> pa.Array:
        held = self._group
        if held[0] != group:
            rows = np.arange(*self.stored.edges[group : group + 2])
            held = self._group = (group, self.stored.take(rows).read(["id"]).column("id").combine_chunks())
        return held[1]


@dataclass(frozen=True)
class IntervalTable:
    """Contiguous stretches of a split: start_us, stop_us (n,) int64 on the session's clock; first (n,) segment row."""

    start_us: np.ndarray
    stop_us: np.ndarray
    first: np.ndarray
    segments: np.ndarray  # (n,) how many segments, consecutive from `first`


@dataclass(frozen=True, eq=False)
class SegmentTable:
    """The segments of an index in the order session, split, interval, time; columns are read when first asked for."""

    stored: StoredTable | None  # None: there is nothing but `columns`
    shards: list[dict]  # entries of index.json, which `shard` counts
    session: np.ndarray  # (n,) int64 row of the index's sessions
    split: np.ndarray  # (n,) int8 row of data_prep.session.SPLITS
    shard: np.ndarray  # (n,) int32
    columns: dict[str, np.ndarray] = field(default_factory=dict)  # those of numbers that are in memory

    @staticmethod
    def of(stored: StoredTable, shards: list[dict], session_ids) -> "SegmentTable":
        """The segments of a table; raises ShardError where one names a session, split or shard that is not there."""
        names = {"session": (session_ids, np.int64), "split": (SPLITS, np.int8)}
        names["shard"] = ([entry["file"] for entry in shards], np.int32)
        codes = stored.codes({c: ({text: n for n, text in enumerate(t)}, dtype) for c, (t, dtype) in names.items()})
        if len(stored) and min(codes[name].min() for name in codes) < 0:
            root = stored.files.root
            raise ShardError(root, "its segments name a shard, session or split that is not there", AGAIN)
        return SegmentTable(stored, shards, **codes)

    def __len__(self) -> int:
        return len(self.session)

    @property
    def table(self) -> pa.Table:
        """Everything that is stored of these segments, read anew."""
        return self.stored.read()

    def take(self, keep: np.ndarray, sessions: np.ndarray | None = None) -> "SegmentTable":
        """Only the segments where the mask (n,) is true; `session` then counts only the given rows (m,), rising."""
        rows = np.flatnonzero(keep)
        session = self.session[rows]
        return SegmentTable(
            None if self.stored is None else self.stored.take(rows),
            self.shards,
            session if sessions is None else np.searchsorted(sessions, session),
            self.split[rows],
            self.shard[rows],
            {name: values[rows] for name, values in self.columns.items()},
        )

    def replaced(self, **columns: np.ndarray) -> "SegmentTable":
        """The same segments with other numbers in the named columns."""
        return replace(self, columns=self.columns | columns)

    def column(self, name: str) -> np.ndarray:
        """A column of numbers (n,)."""
        if name not in self.columns:
            self.columns.update(self.stored.numbers([name]))
        return self.columns[name]

    @property
    def start_us(self) -> np.ndarray:
        return self.column("start_us")

    @property
    def stop_us(self) -> np.ndarray:
        return self.column("stop_us")

    @property
    def carry_us(self) -> np.ndarray:
        return self.column("carry_us")

    def intervals(self, split: str) -> IntervalTable:
        """The contiguous stretches of a split over all sessions, in order."""
        rows = np.flatnonzero(self.split == SPLITS.index(split))
        session, interval = self.session[rows], self.column("interval")[rows]
        new = np.ones(len(rows), bool)
        new[1:] = (session[1:] != session[:-1]) | (interval[1:] != interval[:-1])
        at = np.flatnonzero(new)
        return IntervalTable(
            self.column("interval_start_us")[rows[at]],
            self.column("interval_stop_us")[rows[at]],
            rows[at],
            np.diff(np.append(at, len(rows))),
        )

    def member(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Where the array of a member lies in its shard: first byte and bytes (n,) int64; -1 where there is none."""
        return self.members([name])[0]

    def members(self, names) -> list[tuple[np.ndarray, np.ndarray]]:
        """The same for several members, in one reading; raises ShardError for one that lies beyond its shard's end."""
        out = [np.full((2, len(self)), -1, dtype=np.int64) for _ in names]
        ends = np.array([entry["bytes"] for entry in self.shards], dtype=np.int64)
        for at, table in self.stored.parts(["member", "offset", "bytes", "array_bytes"]):
            lists = table.column("member").combine_chunks()
            row = at + np.repeat(np.arange(len(table)), lists.value_lengths().to_numpy())
            offset, size, array = (_flat(table, name) for name in ("offset", "bytes", "array_bytes"))
            if (
                len(row)
                and not (
                    (offset >= 0) & (array >= 0) & (array <= size) & (offset + size <= ends[self.shard[row]])
                ).all()
            ):
                raise ShardError(self.stored.files.root, "its segments lie beyond the end of their shards", AGAIN)
            member, number = lists.flatten(), {text: n for n, text in enumerate(names)}
            which = np.array([number.get(text, -1) for text in member.dictionary.to_pylist()], np.int64)
            which = which[member.indices.to_numpy()]
            for n, (first, length) in enumerate(out):
                hit = np.flatnonzero(which == n)
                first[row[hit]], length[row[hit]] = (offset + size - array)[hit], array[hit]
        return [(first, length) for first, length in out]


def runs(first: np.ndarray, count: np.ndarray) -> np.ndarray:
    """first[0], first[0] + 1, ... count[0] numbers, then those from first[1] on, end to end; int64."""
    return np.repeat(first - (np.cumsum(count) - count), count) + np.arange(count.sum())


def _flat(table: pa.Table, name: str) -> np.ndarray:
    return table.column(name).combine_chunks().flatten().to_numpy()
