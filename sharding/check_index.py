"""The tables of an index -> what contradicts itself: totals, overlapping splits, windows lost at seams; no shard is read."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from data_prep.session import SPLITS
from sharding.check_found import Fault
from sharding.index import ShardIndex


def index_faults(index: ShardIndex) -> Iterator[Fault]:
    """Every fault that the tables alone show."""
    yield from _total_faults(index)
    if len(index.segments):
        table = _Ordered.of(index)
        yield from _order_faults(index, table)
        yield from _interval_faults(index, table)
        yield from _lost_windows(index, table)
        yield from _overlaps(index, table)


@dataclass(frozen=True)
class _Ordered:
    """The segments (n,) in the order session, split, interval, time; `first` (m,) row of each interval."""

    row: np.ndarray  # of the index
    session: np.ndarray
    split: np.ndarray
    interval: np.ndarray
    bounds: np.ndarray  # (2, n) of the interval
    start: np.ndarray
    stop: np.ndarray
    carry: np.ndarray
    first: np.ndarray

    @staticmethod
    def of(index: ShardIndex) -> "_Ordered":
        table = index.segments
        number = table.column("interval")
        row = np.lexsort((table.start_us, number, table.split, table.session))
        session, split, number = table.session[row], table.split[row], number[row]
        new = np.ones(len(row), bool)
        new[1:] = (np.diff(session) != 0) | (np.diff(split) != 0) | (np.diff(number) != 0)
        bounds = np.stack([table.column(f"interval_{end}_us") for end in ("start", "stop")])[:, row]
        us = (column[row] for column in (table.start_us, table.stop_us, table.carry_us))
        return _Ordered(row, session, split, number, bounds, *us, np.flatnonzero(new))

    @property
    def last(self) -> np.ndarray:
        """(m,) the last row of each interval."""
        return np.append(self.first[1:], len(self.row)) - 1

    @property
    def member_of(self) -> np.ndarray:
        """(n,) which interval each row is of."""
        return np.repeat(np.arange(len(self.first)), self.last - self.first + 1)

    def name(self, index: ShardIndex, at: int) -> str:
        """The interval of a row, in words."""
        return f"{index.session_ids[self.session[at]]}, {SPLITS[self.split[at]]}, interval {self.interval[at]}"


def _total_faults(index: ShardIndex) -> Iterator[Fault]:
    """Rows of sessions against those of their segments and units, and index.json against all."""
    segments, count, width = index.segments, len(index.sessions), len(SPLITS)
    owned_h = (segments.stop_us - segments.start_us) / 3600e6
    hours = np.bincount(segments.session * width + segments.split, owned_h, count * width).reshape(count, width)
    sums = {n: _summed(segments.session, segments.column(n), count) for n in ("spikes", "targets")}
    units, counted = index.unit_table.chosen(), index.unit_table.count
    of_unit, told = np.repeat(np.arange(count), counted), units.numbers(["spikes", "rate"])
    unit_spikes, seconds = _summed(of_unit, told["spikes"], count), 3600 * hours.sum(axis=1)
    odd = ~np.isclose(told["rate"] * seconds[of_unit], told["spikes"], rtol=1e-9, atol=1e-6)
    odd_rates = np.bincount(of_unit[odd], minlength=count)
    if strange := _strangers(index, of_unit):
        yield Fault("the table of units", f"{strange} of its units are not of the session in whose place they stand")
    for n, row in enumerate(index.sessions):
        if odd_rates[n]:
            yield Fault(row.id, f"{odd_rates[n]} units' rates are not their spikes by its seconds")
        yield from (
            Fault(row.id, f"has {getattr(row, name)} {name}, its segments {sums[name][n]}")
            for name in sums
            if getattr(row, name) != sums[name][n]
        )
        if row.spikes != unit_spikes[n]:
            yield Fault(row.id, f"has {row.spikes} spikes, its units {unit_spikes[n]}")
        for split, owned in zip(SPLITS, hours[n]):
            if not np.isclose(row.hours[split], owned, rtol=1e-9, atol=1e-9):
                yield Fault(row.id, f"has {row.hours[split]:.6f} h of {split}, its segments {owned:.6f} h")
    totals = {
        "sessions": count,
        "units": len(units),
        "segments": len(segments),
        "spikes": int(sums["spikes"].sum()),
        "bytes": sum(entry["bytes"] for entry in index.meta["shards"]),
    }
    for name, value in totals.items():
        if index.meta["totals"].get(name) != value:
            yield Fault("index.json", f"tells {index.meta['totals'].get(name)} {name} in all, its tables {value}")


def _strangers(index: ShardIndex, of_unit: np.ndarray) -> int:
    """Units whose row or global id names another session than the one that counts them."""
    names, strange = np.array(index.session_ids, dtype=object), 0
    for at, part in index.unit_table.chosen().parts(["id", "session"]):
        wanted = names[of_unit[at : at + len(part)]]
        session, unit = (part.column(name).to_numpy(zero_copy_only=False) for name in ("session", "id"))
        strange += int(np.sum((session != wanted) | [not a.startswith(f"{b}/") for a, b in zip(unit, wanted)]))
    return strange


def _summed(of: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    """(count,) int64 sums, exact."""
    out = np.zeros(count, np.int64)
    np.add.at(out, of, values)
    return out


def _order_faults(index: ShardIndex, table: _Ordered) -> Iterator[Fault]:
    """Readers search the table: its order counts; and a key names one segment."""
    if (table.row != np.arange(len(table.row))).any():
        yield Fault("the table of segments", "is not in the order session, split, interval, time")
    keys = _keys(index)
    if len(set(keys)) < len(keys):
        seen: set[str] = set()
        twice = next(key for key in keys if key in seen or seen.add(key))
        yield Fault("the table of segments", f"{len(keys) - len(set(keys))} keys are there twice, one is {twice}")


def _interval_faults(index: ShardIndex, table: _Ordered) -> Iterator[Fault]:
    """The segments of an interval have to tile it without hole or overlap, each with its whole halo."""
    first, last = table.first, table.last
    begin, end = table.bounds[0, first], table.bounds[1, first]
    reach = _running_max(table.stop, table.member_of)
    inner = np.ones(len(table.row), bool)
    inner[first] = False
    before = np.append(begin[0], reach[:-1])
    before[first] = begin
    gap = table.start - before
    for at in np.flatnonzero(gap).tolist():
        a, b = sorted((before[at], table.start[at]))
        words = "lie in no segment"
        if gap[at] < 0:
            words = "are owned by two segments" if inner[at] else "lie before its start, yet a segment owns them"
        yield Fault(table.name(index, at), f"{_span(a, b)} {words}")
    for n in np.flatnonzero(reach[last] != end).tolist():
        a, b = sorted((reach[last[n]], end[n]))
        words = "lie in no segment" if reach[last[n]] < end[n] else "lie behind its stop, yet a segment owns them"
        yield Fault(table.name(index, first[n]), f"{_span(a, b)} {words}")
    of = table.member_of
    odd = (table.bounds[0] != begin[of]) | (table.bounds[1] != end[of]) | (table.stop <= table.start)
    halo = np.full(len(index.sessions), index.halo_us)
    np.maximum.at(halo, table.session, table.carry - table.stop)  # of a root with longer halos, before it was merged
    wanted = np.minimum(table.stop + halo[table.session], table.bounds[1])
    keys = _keys(index) if (odd | (table.carry != wanted)).any() else []
    for at in np.flatnonzero(odd).tolist():
        yield Fault(keys[table.row[at]], "its bounds, or those of its interval, cannot be")
    for at in np.flatnonzero(~odd & (table.carry != wanted)).tolist():
        text = f"carries data to {table.carry[at] / 1e6:.6f} s, wanted is {wanted[at] / 1e6:.6f} s"
        yield Fault(keys[table.row[at]], text)


def _keys(index: ShardIndex) -> list[str]:
    return index.segments.stored.read(["key"]).column("key").to_pylist()


def _lost_windows(index: ShardIndex, table: _Ordered) -> Iterator[Fault]:
    """The floor(length / halo) windows of the longest length that lie side by side: each has to lie in a segment."""
    of, length, begin = table.member_of, index.halo_us, table.bounds[0, table.first]
    planned = np.maximum(table.bounds[1, table.first] - begin, 0) // length
    served = np.minimum(table.stop, table.carry - length + 1)  # starts before this have all of their window here
    low, high = (-((begin[of] - edge) // length) for edge in (table.start, served))
    inside = np.maximum(np.minimum(high, planned[of]) - np.maximum(low, 0), 0)
    lost = planned - _summed(of, inside, len(planned))
    for n in np.flatnonzero(lost > 0).tolist():
        text = f"{lost[n]} of its {planned[n]} windows of {length / 1e6:g} s lie in no segment"
        yield Fault(table.name(index, table.first[n]), text)


def _overlaps(index: ShardIndex, table: _Ordered) -> Iterator[Fault]:
    """Splits of a session that own or carry a common microsecond, and intervals of a split that do."""
    for split in range(len(SPLITS)):
        rows = table.first[table.split[table.first] == split]
        begin, end, of = table.bounds[0, rows], table.bounds[1, rows], table.session[rows]
        order = np.lexsort((begin, of))
        reach = _running_max(end[order], of[order])
        both = (of[order][1:] == of[order][:-1]) & (reach[:-1] > begin[order][1:])
        for n in np.flatnonzero(both).tolist():
            at = rows[order[n + 1]]
            yield Fault(
                table.name(index, at), f"{_span(table.bounds[0, at], reach[n])} are in an interval before it too"
            )
    order = np.lexsort((table.start, table.session))
    split, of = table.split[order], table.session[order]
    start, carry = table.start[order], table.carry[order]
    for mine in range(len(SPLITS)):
        # Where the split reaches to before each segment; in a session that it has not begun, nowhere.
        nowhere = np.iinfo(np.int64).min
        reach = _running_max(np.where(split == mine, carry, nowhere), of)
        before = np.append(nowhere, reach[:-1])
        before[np.append(True, of[1:] != of[:-1])] = nowhere
        hit = np.flatnonzero((split != mine) & (before > start))
        pair, at = np.unique(np.stack([of[hit], split[hit]]), axis=1, return_index=True)
        for (session, other), first in zip(pair.T.tolist(), hit[at].tolist()):
            count = int(((of[hit] == session) & (split[hit] == other)).sum())
            yield Fault(
                index.session_ids[session],
                f"{_span(start[first], min(before[first], carry[first]))} are in {SPLITS[mine]} and in {SPLITS[other]}"
                + (f", as are parts of {count - 1} more segments" if count > 1 else ""),
            )


def _running_max(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """The largest value so far (n,) within each group; the rows of a group follow each other."""
    # Rank the values, so that groups can be told apart by adding what no rank reaches.
    levels, rank = np.unique(values, return_inverse=True)
    shifted = np.cumsum(np.append(0, np.diff(group) != 0))[: len(group)] * len(levels)
    return levels[np.maximum.accumulate(rank + shifted) - shifted] if len(values) else values


def _span(start: int, stop: int) -> str:
    return f"{start / 1e6:.6f} to {stop / 1e6:.6f} s"
