"""Recording: the raw pieces of one file, in the file's order and clock, before anything is judged or cut."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from data_prep.session import Intervals


@dataclass(frozen=True)
class Series:
    """One series as found: time (N,) float64 s, value (N, K) float64 with conversion and offset applied."""

    place: str  # where in the file
    time: np.ndarray
    value: np.ndarray
    unit: str  # unit of measure as the file states it


@dataclass(frozen=True)
class SpikeTrains:
    """Spike times unit after unit, read only when they are asked for: a file of 10^8 spikes is never whole in memory."""

    count: np.ndarray  # (U,) int64, spikes of each unit
    read: Callable[[int, int], np.ndarray]  # (first, last) -> times (s,) float64 s of units first..last-1, file's order

    @staticmethod
    def of(time: np.ndarray, count: np.ndarray) -> "SpikeTrains":
        """Trains that are in memory: time (S,) unit after unit, count (U,)."""
        ends = np.concatenate([[0], np.cumsum(count)]).astype(np.int64)
        return SpikeTrains(np.asarray(count, dtype=np.int64), lambda first, last: time[ends[first] : ends[last]].copy())

    def __len__(self) -> int:
        return len(self.count)

    def groups(self, at_most: int = 1 << 22) -> Iterator[tuple[int, int, np.ndarray]]:
        """(first, last, times) of runs of units with at most so many spikes together (or one unit)."""
        first = 0
        while first < len(self):
            size = np.cumsum(self.count[first:])
            last = first + max(1, int(np.searchsorted(size, at_most, side="right")))
            yield first, last, self.read(first, last)
            first = last

    def trains(self) -> Iterator[np.ndarray]:
        """Times (s,) of each unit in turn."""
        for first, last, time in self.groups():
            yield from np.split(time, np.cumsum(self.count[first:last])[:-1])

    def kept(self, keep: np.ndarray) -> "SpikeTrains":
        """The trains of the units that the mask (U,) names."""
        rows = np.flatnonzero(keep)
        if len(rows) == len(self):
            return self

        def read(first: int, last: int) -> np.ndarray:
            chosen = rows[first:last]
            runs = np.split(chosen, np.flatnonzero(np.diff(chosen) != 1) + 1) if len(chosen) else []
            return np.concatenate([np.zeros(0), *(self.read(int(run[0]), int(run[-1]) + 1) for run in runs)])

        return SpikeTrains(self.count[rows], read)

    def changed(self, change: Callable[[np.ndarray], np.ndarray]) -> "SpikeTrains":
        """Trains whose times are `change`d, train by train, as they are read; it must keep their number."""

        def read(first: int, last: int) -> np.ndarray:
            parts = np.split(self.read(first, last), np.cumsum(self.count[first:last])[:-1])
            return np.concatenate([np.zeros(0), *map(change, parts)])

        return SpikeTrains(self.count, read)


@dataclass(frozen=True)
class Recording:
    """Everything a recipe asked for. Arrays of a table all have its number of rows."""

    name: str  # file name, the "where" of errors
    subject: str
    session_id: str
    identifier: str
    unit_columns: dict[str, np.ndarray]  # (U,) each, "id" among them
    region: tuple[str, ...]  # (U,) text of the file, "" where it does not say
    spikes: SpikeTrains
    observed: tuple[np.ndarray, ...]  # (U) arrays (n, 2) of obs_intervals; () where the file has none
    series: dict[str, Series]  # by the recipe's name
    tables: dict[str, dict[str, np.ndarray]]  # trials, epochs ...: column -> values
    electrode: tuple[str, ...] = ()  # (U,) row or channel, "" unknown; () where the file has none
    missing: tuple[bool, ...] = ()  # (U,) in the roster, not in this file; () where there is no roster
    masks: dict[str, Intervals] = field(default_factory=dict)  # phase -> where its true/false series is true
    provenance: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # what a person should hear of, one sentence each

    def with_units(self, keep: np.ndarray) -> "Recording":
        """The recording with the units that the mask (U,) names."""
        chosen = {key: getattr(self, key) for key in ("region", "electrode", "missing", "observed")}
        return replace(
            self,
            spikes=self.spikes.kept(keep),
            unit_columns={name: values[keep] for name, values in self.unit_columns.items()},
            **{key: tuple(value for value, kept in zip(values, keep) if kept) for key, values in chosen.items()},
        )
