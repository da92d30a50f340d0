"""Reaches -> position, velocity and acceleration in closed form, spikes tuned to them, and the tables of an NWB file.

What the writers of layouts share: the truth that a test can ask back, and pynwb columns written whole, since row by row
takes pynwb several times as long.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from hdmf.common import DynamicTableRegion, VectorData, VectorIndex
from pynwb import NWBHDF5IO, NWBFile
from pynwb.base import TimeSeriesReference, TimeSeriesReferenceVectorData
from pynwb.epoch import TimeIntervals
from pynwb.file import Subject
from pynwb.misc import Units


@dataclass(frozen=True)
class Reaches:
    """Minimum-jerk movements one after another: each adds `by` (n, 2) to the position, from `onset` for `seconds`."""

    onset: np.ndarray  # (n,) s
    seconds: np.ndarray  # (n,)
    by: np.ndarray  # (n, 2) in the file's unit of length

    def _sum(self, time: np.ndarray, power: int, shape: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        out, reached = np.zeros((len(time), 2)), np.zeros((len(time) + 1, 2))
        for onset, seconds, by in zip(self.onset, self.seconds, self.by):
            first, last = np.searchsorted(time, [onset, onset + seconds])  # elsewhere it is at rest
            s = ((time[first:last] - onset) / seconds)[:, None]
            out[first:last] += by / seconds**power * shape(s)
            reached[last] += by
        return out + np.cumsum(reached, axis=0)[:-1] if power == 0 else out

    def position(self, time: np.ndarray) -> np.ndarray:
        """(N, 2) at times (N,) s in rising order, as for the two below."""
        return self._sum(time, 0, lambda s: s**3 * (10 - 15 * s + 6 * s**2))

    def velocity(self, time: np.ndarray) -> np.ndarray:
        """(N, 2) per s."""
        return self._sum(time, 1, lambda s: 30 * s**2 * (1 - s) ** 2)

    def acceleration(self, time: np.ndarray) -> np.ndarray:
        """(N, 2) per s^2."""
        return self._sum(time, 2, lambda s: 60 * s * (1 - s) * (1 - 2 * s))


def out_and_back(onset: np.ndarray, back: np.ndarray, seconds: float, length: float, directions: int = 8) -> Reaches:
    """A reach of `length` in turn to each direction at the times `onset` (n,), and back to the centre at `back` (n,)."""
    angle = np.arange(len(onset)) * 2 * np.pi / directions
    by = length * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    both = np.concatenate([onset, back])
    return Reaches(both, np.full(len(both), seconds), np.concatenate([by, -by]))


def tuned_spikes(reaches: Reaches, spans: Sequence[tuple[float, float]], units: int, top: float) -> list[np.ndarray]:
    """Sorted spike times of each unit within `spans` (s): 12 Hz, times up to two along its preferred direction.

    Unit k prefers 2 pi k / units; `top` is the speed at which tuning is full. No spike is nearer than 1 ms to an end.
    """
    random = np.random.default_rng(len(spans))
    trains = []
    for k in range(units):
        preferred = np.array([np.cos(2 * np.pi * k / units), np.sin(2 * np.pi * k / units)])
        parts = []
        for start, stop in spans:
            time = np.sort(random.uniform(start + 1e-3, stop - 1e-3, random.poisson(24 * (stop - start))))
            drive = np.clip(reaches.velocity(time) @ preferred / top, -1, 1)
            parts.append(time[random.random(len(time)) < 0.5 * (1 + drive)])
        trains.append(np.concatenate(parts))
    return trains


def nwb_file(session_id: str | None, subject: str, day: str, **about) -> NWBFile:
    """An empty file of a monkey's session on `day` (2009-09-12)."""
    return NWBFile(
        session_description=about.pop("session_description", "a test"),
        identifier=f"{subject}-{day}",
        session_id=session_id,
        session_start_time=datetime.fromisoformat(day).replace(tzinfo=UTC),
        subject=Subject(subject_id=subject, species="Macaca mulatta", sex="M", description="none"),
        **about,
    )


def save(file: NWBFile, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with NWBHDF5IO(path, "w") as io:
        io.write(file)
    return path


@dataclass(frozen=True)
class UnitTable:
    """Columns of a unit table besides the spikes; what is None is not in the file."""

    electrodes: Sequence[int] | None = None  # row of the electrode table, one a unit
    groups: list | None = None  # electrode_group of each unit
    observed: Sequence[np.ndarray] | None = None  # (n, 2) obs_intervals of each unit
    ids: Sequence[int] | None = None
    waveforms: int = 0  # samples of an int16 waveform for every spike
    columns: dict[str, list] = field(default_factory=dict)


def add_units(file: NWBFile, spikes: list[np.ndarray], table: UnitTable) -> None:
    """The unit table, columns written whole; waveforms are doubly indexed as NWB has them."""
    count = np.array([len(train) for train in spikes])
    columns = _ragged("spike_times", np.concatenate(spikes), np.cumsum(count))
    if table.observed is not None:
        rows = [np.asarray(one, dtype=np.float64).reshape(-1, 2) for one in table.observed]
        columns += _ragged("obs_intervals", np.concatenate(rows), np.cumsum([len(one) for one in rows]))
    if table.electrodes is not None:
        region = DynamicTableRegion(
            name="electrodes", description="electrodes", data=list(table.electrodes), table=file.electrodes
        )
        columns += [region, VectorIndex(name="electrodes_index", target=region, data=np.arange(1, len(spikes) + 1))]
    if table.groups is not None:
        columns.append(VectorData(name="electrode_group", description="group", data=table.groups))
    if table.waveforms:
        data = np.resize(np.arange(-200, 200, dtype=np.int16), (int(count.sum()) * table.waveforms, 1))
        columns += _ragged("waveforms", data, np.arange(1, count.sum() + 1) * table.waveforms)
        columns.append(VectorIndex(name="waveforms_index_index", target=columns[-1], data=np.cumsum(count)))
    columns += [VectorData(name=name, description=name, data=data) for name, data in table.columns.items()]
    ids = list(range(len(spikes)) if table.ids is None else table.ids)
    file.units = Units(name="units", description="units", id=ids, columns=columns)


def _ragged(name: str, data: np.ndarray, ends: np.ndarray) -> list:
    target = VectorData(name=name, description=name, data=data)
    return [target, VectorIndex(name=f"{name}_index", target=target, data=np.asarray(ends))]


def add_trials(file: NWBFile, columns: dict[str, object], made: Sequence = ()) -> None:
    """The trial table: a column is an array (n,) or (n, k), or a list of n arrays of differing length (ragged); `made`
    are columns that exist already (of `references`)."""
    made = list(made)
    for name, data in columns.items():
        if isinstance(data, list) and not isinstance(data[0], str):
            made += _ragged(name, np.concatenate(data), np.cumsum([len(row) for row in data]))
        else:
            made.append(VectorData(name=name, description=name, data=data))
    file.trials = TimeIntervals(name="trials", description="experimental trials", columns=made)


def references(series: list, spans: list[list[tuple[int, int]]]) -> list:
    """The column `timeseries` and its index: for each trial, (first sample, samples) of each of the series."""
    rows = [TimeSeriesReference(first, size, one) for row in spans for one, (first, size) in zip(series, row)]
    target = TimeSeriesReferenceVectorData(name="timeseries", description="index into a TimeSeries object", data=rows)
    ends = np.cumsum([len(row) for row in spans])
    return [target, VectorIndex(name="timeseries_index", target=target, data=ends)]
