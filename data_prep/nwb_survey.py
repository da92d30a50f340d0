"""An NWB file nobody has described -> facts of every series, table and unit column, whose arrays are read when asked for."""

import contextlib
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pynwb
from pynwb.core import VectorIndex

from data_prep.nwb import _all_series, _columns, _damage_told, _opened, _regions, _tables

_SAMPLES = 20_000_000  # numbers of a series that are looked at, at most: 160 MB
_LOOK = 20_000  # samples at each of a few places where a long series is only looked into


@dataclass(frozen=True)
class SeriesFacts:
    """What a file says of one series, and how to look into it."""

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
    times: Callable[[], np.ndarray]  # -> (N,) s, all of them
    values: Callable[[], np.ndarray]  # -> (n, K) with conversion and offset, of the first n <= N samples
    look: Callable[[], np.ndarray]  # -> values (n, K) as stored, from the beginning, the middle and the end

    @property
    def name(self) -> str:
        return self.place.rsplit("/", 1)[-1]

    @property
    def columns(self) -> int:
        return self.shape[1] if len(self.shape) > 1 else 1

    @property
    def rated(self) -> bool:
        return self.rate > 0


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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # told when a recipe reads the file
        with _opened(path) as (version, nwb), _damage_told(path.name):
            units = nwb.units if nwb.units is not None and len(nwb.units) else None
            tables = {table.name: table for table in _tables(nwb)}
            columns = {name: _columns(table) for name, table in tables.items()}
            yield Survey(
                name=path.name,
                version=version,
                subject=(nwb.subject.subject_id if nwb.subject else "") or "",
                session_id=nwb.session_id or "",
                identifier=nwb.identifier or "",
                description=" ".join(str(nwb.session_description or "").split()),
                series=tuple(
                    _facts(place, one) for place, one in sorted(_all_series(nwb).items()) if hasattr(one.data, "shape")
                ),
                units=0 if units is None else len(units),
                unit_columns=() if units is None else tuple(units.colnames),
                unit_table={}
                if units is None
                else {"id": np.asarray(units.id[:]).astype(str), **_columns(units, "id")},
                unit_region={} if units is None else _region_sources(units),
                **_spike_facts(units),
                observed=units is not None and "obs_intervals" in units.colnames,
                tables=columns,
                about={
                    name: {c.name: " ".join(str(c.description or "").split()) for c in table.columns}
                    for name, table in tables.items()
                },
                unread={
                    name: tuple(c for c in t.colnames if c not in columns[name] and f"{c}.0" not in columns[name])
                    for name, t in tables.items()
                },
            )


def _spike_facts(units) -> dict:
    index = units["spike_times"] if units is not None and "spike_times" in units.colnames else None
    if not isinstance(index, VectorIndex) or not len(index.target.data):
        return {"spike_times": 0, "spike_extent": (np.nan, np.nan), "falls": 0}
    ends = np.asarray(index.data[:]).astype(np.int64)
    starts = np.append(0, ends[:-1])
    some = np.argsort(starts - ends, kind="stable")[:5]  # the busiest units tell the extent of all nearly as well
    trains = [np.asarray(index.target.data[starts[k] : ends[k]], dtype=np.float64) for k in some if ends[k] > starts[k]]
    extent = (
        min((float(np.nanmin(t)) for t in trains), default=np.nan),
        max((float(np.nanmax(t)) for t in trains), default=np.nan),
    )
    falls = int(np.sum(np.diff(trains[0]) < 0)) if trains else 0
    return {"spike_times": int(ends[-1]), "spike_extent": extent, "falls": falls}


def _region_sources(units) -> dict[str, tuple[str, ...]]:
    """Text of each unit by every source that a recipe could name and that says something."""
    own = [name for name in units.colnames if re.search(r"region|area|location", name, re.I)]
    told = {source: _regions(units, [source]) for source in ("electrodes", "electrode_group", *own)}
    return {source: texts for source, texts in told.items() if any(texts)}


def _facts(place: str, series: pynwb.TimeSeries) -> SeriesFacts:
    data, shape = series.data, tuple(series.data.shape)
    conversion, offset = float(series.conversion or 1.0), float(series.offset or 0.0)

    def times() -> np.ndarray:
        if series.timestamps is not None:
            return np.asarray(series.timestamps[:], dtype=np.float64)
        rate = series.rate if series.rate and series.rate > 0 else np.nan
        return (series.starting_time or 0.0) + np.arange(shape[0]) / rate

    def values() -> np.ndarray:
        most = min(shape[0], max(2, _SAMPLES // max(int(np.prod(shape[1:])), 1)))
        return np.asarray(data[:most]).astype(np.float64).reshape(most, -1) * conversion + offset

    def look() -> np.ndarray:
        firsts = sorted({0, max(shape[0] // 2 - _LOOK // 2, 0), max(shape[0] - _LOOK, 0)})
        parts = [np.asarray(data[first : first + _LOOK]) for first in firsts]
        return np.concatenate(parts).reshape(sum(len(part) for part in parts), -1)

    return SeriesFacts(
        place=place,
        kind=series.neurodata_type,
        shape=shape,
        dtype=np.dtype(data.dtype).kind,
        unit=str(series.unit or ""),
        conversion=conversion,
        offset=offset,
        rate=float(series.rate or 0.0),
        starting_time=float(series.starting_time or 0.0),
        description=" ".join(str(series.description or "").split()),
        times=times,
        values=values,
        look=look,
    )
