"""An NWB file nobody has described -> facts of every series, table and unit column; arrays are read when asked for."""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.nwb import opened_file
from data_prep.nwb_direct import damage_told
from data_prep.nwb_layout import OTHER, REFERENCES, Column, NwbFile, StoredSeries, Table
from data_prep.nwb_tables import columns, ends_of, ids, of_electrodes, regions

_SAMPLES = 4_000_000  # numbers of a series that are looked at, at most: 32 MB
_LOOK = 20_000  # samples at each of a few places where a long series is only looked into


@dataclass(frozen=True)
class SeriesFacts:
    """What a file says of one series, and how to look into it."""

    stored: StoredSeries
    place: str
    kind: str  # neurodata_type: TimeSeries, SpatialSeries, ElectricalSeries ...
    shape: tuple[int, ...]
    dtype: str  # numpy's letter: f, i, u, b; another one holds no numbers
    unit: str
    conversion: float
    offset: float
    rate: float  # 0 where the file gives timestamps
    starting_time: float
    description: str

    @property
    def name(self) -> str:
        return self.place.rsplit("/", 1)[-1]

    @property
    def columns(self) -> int:
        return self.shape[1] if len(self.shape) > 1 else 1

    def times(self) -> np.ndarray:
        """Times (N,) s by the letter of NWB."""
        return self.stored.times()

    def values(self) -> np.ndarray:
        """Values (n, K) with conversion and offset, of the first n <= N samples."""
        most = min(self.shape[0], max(2, _SAMPLES // self.columns))
        value = np.asarray(self.stored.data[:most]).astype(np.float64).reshape(most, -1)
        factors = self.stored.channel_conversion
        if factors is not None and len(factors) == value.shape[1]:
            value *= factors[:]
        return value * self.conversion + self.offset

    def look(self) -> np.ndarray:
        """Values (n, K) as stored, from the beginning, the middle and the end."""
        count = self.shape[0]
        firsts = sorted({0, max(count // 2 - _LOOK // 2, 0), max(count - _LOOK, 0)})
        parts = [np.asarray(self.stored.data[first : first + _LOOK]) for first in firsts]
        return np.concatenate(parts).reshape(sum(len(part) for part in parts), -1)

    def regions(self) -> tuple[str, ...]:
        """Text (K) of where each column's electrode is; () where the file does not say."""
        column = self.stored.electrodes
        told = of_electrodes(column, "location") if column is not None else []
        return tuple(told) if len(told) == self.columns and any(told) else ()


@dataclass(frozen=True)
class Survey:
    """One file: facts, and small tables whole."""

    name: str
    version: str
    subject: str
    session_id: str
    identifier: str
    description: str
    series: tuple[SeriesFacts, ...]
    units: int  # rows of the units table, 0 where there is none
    unit_columns: tuple[str, ...]  # every column, also those that are not read
    unit_table: dict[str, np.ndarray]  # the readable ones
    unit_region: dict[str, tuple[str, ...]]  # source -> text (U,), as a recipe's units.region may name it
    spike_times: int  # total of the units table
    spike_extent: tuple[float, float]  # first and last spike, s; (nan, nan) where unknown
    falls: int  # how often the spike times of the busiest unit fall back
    observed: bool  # whether there are obs_intervals
    tables: dict[str, dict[str, np.ndarray]]  # below intervals/
    about: dict[str, dict[str, str]]  # table -> column -> description
    unread: dict[str, tuple[str, ...]]  # table -> columns a recipe cannot use (references, wide ones)


@contextlib.contextmanager
def surveyed(path: Path) -> Iterator[Survey]:
    """The facts of a file while it is open; raises SessionError in one line for what cannot be opened or read."""
    with opened_file(path) as file, damage_told(file.name):
        yield _survey(file)


def _survey(file: NwbFile) -> Survey:
    units = file.units if file.units is not None and len(file.units) else None
    tables = {name: columns(table)[0] for name, table in file.tables.items()}
    once = {one.same: one for _, one in sorted(file.series.items(), reverse=True)}  # a link is no series of its own
    return Survey(
        name=file.name,
        version=file.version,
        subject=file.subject,
        session_id=file.session_id,
        identifier=file.identifier,
        description=" ".join(file.description.split()),
        series=tuple(_facts(one) for one in sorted(once.values(), key=lambda one: one.place)),
        units=0 if units is None else len(units),
        unit_columns=() if units is None else tuple(units.columns),
        unit_table={} if units is None else {"id": ids(units), **_properties(units)},
        unit_region={} if units is None else _region_sources(units),
        **_spike_facts(units),
        observed=units is not None and "obs_intervals" in units.columns,
        tables=tables,
        about={name: {key: _line(c.description) for key, c in t.columns.items()} for name, t in file.tables.items()},
        unread={name: tuple(_unread(table, tables[name])) for name, table in file.tables.items()},
    )


def _line(text: str) -> str:
    return " ".join(text.split())


def _properties(units: Table) -> dict[str, np.ndarray]:
    return columns(units, skip=("spike_times", "obs_intervals", "electrodes", "waveforms", "id"))[0]


def _unread(table: Table, read: dict[str, np.ndarray]) -> Iterator[str]:
    for name, column in table.columns.items():
        if name not in read and f"{name}.0" not in read and column.holds not in (REFERENCES, OTHER):
            yield name


def _region_sources(units: Table) -> dict[str, tuple[str, ...]]:
    """Text of each unit by every source that a recipe could name and that says something."""
    own = [name for name in units.columns if re.search(r"region|area|location", name, re.I)]
    told = {source: regions(units, [source]) for source in ("electrodes", "electrode_group", *own)}
    return {source: texts for source, texts in told.items() if any(texts)}


def _spike_facts(units: Table | None) -> dict:
    column: Column | None = units.columns.get("spike_times") if units is not None else None
    if column is None or not column.ends or not column.data.shape[0]:
        return {"spike_times": 0, "spike_extent": (np.nan, np.nan), "falls": 0}
    ends = ends_of(column)
    starts = np.append(0, ends[:-1])
    busiest = np.argsort(starts - ends, kind="stable")[:5]  # they tell the extent of all nearly as well
    trains = [np.asarray(column.data[starts[k] : ends[k]], dtype=np.float64) for k in busiest if ends[k] > starts[k]]
    extent = (
        min((float(np.nanmin(train)) for train in trains), default=np.nan),
        max((float(np.nanmax(train)) for train in trains), default=np.nan),
    )
    falls = int(np.sum(np.diff(trains[0]) < 0)) if trains else 0
    return {"spike_times": int(ends[-1]), "spike_extent": extent, "falls": falls}


def _facts(one: StoredSeries) -> SeriesFacts:
    return SeriesFacts(
        stored=one,
        place=one.place,
        kind=one.kind,
        shape=tuple(one.data.shape),
        dtype=np.dtype(one.data.dtype).kind,
        unit=one.unit,
        conversion=one.conversion,
        offset=one.offset,
        rate=one.rate,
        starting_time=one.starting_time,
        description=_line(one.description),
    )
