"""Spikes of an NWB file, from the units table or a series of counts -> the unit part of a Recording."""

from dataclasses import dataclass, field

import numpy as np

from data_prep.errors import SessionError
from data_prep.nwb_direct import damage_told
from data_prep.nwb_layout import NwbFile, StoredSeries, Table
from data_prep.nwb_series import find_places, sample_ends, samples, times
from data_prep.nwb_tables import UNIT_DATA, columns, electrodes, ends_of, ids, of_electrodes, regions
from data_prep.recipe import UnitsRecipe
from data_prep.recording import SpikeTrains

_UNITS = "units"
_BIN = {"start": 0.0, "centre": 0.5, "stop": 1.0}  # where in its bin the time of a count lies


@dataclass(frozen=True)
class Population:
    """Units in the order of the file (or of the roster), as Recording holds them."""

    columns: dict[str, np.ndarray]
    region: tuple[str, ...]
    electrode: tuple[str, ...]
    trains: SpikeTrains
    observed: tuple[np.ndarray, ...]
    provenance: dict[str, str]
    missing: tuple[bool, ...] = ()
    notes: list[str] = field(default_factory=list)


def read_population(file: NwbFile, recipe: UnitsRecipe) -> Population:
    """Units and spikes from the first of the recipe's sources that the file has; raises SessionError for none."""
    for source in recipe.source:
        if source == _UNITS:
            if file.units is not None and len(file.units) and "spike_times" in file.units.columns:
                return _of_table(file, file.units, recipe)
        elif found := find_places(file, [source], "units.source"):
            if len(found) > 1:
                raise SessionError(file.name, f"{source} names {len(found)} series", "name one in units.source")
            return _of_counts(file, found[0], recipe)
    if file.units is not None and len(file.units) and _UNITS in recipe.source:
        raise SessionError(file.name, "the units table has no spike_times", "leave it out")
    places = [source for source in recipe.source if source != _UNITS]
    counts = f", and no series at {' or '.join(places)}" if places else ""
    table = "no units table" if _UNITS in recipe.source else "units.source does not name the units table"
    raise SessionError(file.name, f"{table}{counts}, so no spikes", "name a series of counts in units.source, if any")


def _of_table(file: NwbFile, units: Table, recipe: UnitsRecipe) -> Population:
    held, notes = columns(units, skip=UNIT_DATA)
    resolution = units.columns["spike_times"].resolution
    return Population(
        columns={"id": ids(units), **held},
        region=regions(units, recipe.region),
        electrode=electrodes(units),
        trains=_trains(file.name, units),
        observed=_observed(file.name, units),
        provenance={"spikes_from": "units", "spike_resolution_s": str(resolution or "")},
        notes=notes,
    )


def _trains(name: str, units: Table) -> SpikeTrains:
    """Spike times as they are stored: unit after unit, float64 s, read when asked for."""
    column = units.columns["spike_times"]
    if not column.ends:
        raise SessionError(name, "spike_times has no index, so nobody knows which unit fired", "leave it out")
    ends, total = ends_of(column), column.data.shape[0]
    count = np.diff(ends, prepend=0)
    if len(ends) != len(units) or (count < 0).any() or ends[-1] != total or len(column.data.shape) != 1:
        raise SessionError(
            name, f"spike_times holds {total} times, its index ends at {ends[-1:].tolist()}", "fetch it again"
        )
    edges = np.concatenate([[0], ends])

    def read(first: int, last: int) -> np.ndarray:
        with damage_told(name):
            return np.asarray(column.data[int(edges[first]) : int(edges[last])]).astype(np.float64, copy=False)

    return SpikeTrains(count, read)


def _observed(name: str, units: Table) -> tuple[np.ndarray, ...]:
    column = units.columns.get("obs_intervals")
    if column is None or not column.ends:
        return ()
    rows, ends = np.asarray(column.data[:], dtype=np.float64).reshape(-1, 2), ends_of(column)
    if len(ends) != len(units) or (np.diff(ends, prepend=0) < 0).any() or ends[-1] > len(rows):
        raise SessionError(name, f"obs_intervals holds {len(rows)} rows, its index another number", "fetch it again")
    return tuple(np.split(rows[: ends[-1]], ends[:-1]))


def _of_counts(file: NwbFile, series: StoredSeries, recipe: UnitsRecipe) -> Population:
    """Each column is a unit; a bin with n counts gets n spikes, spread evenly inside it.

    They are read as stored: conversion and offset would make voltages of them (LINK keeps counts as ElectricalSeries).
    Where bins do not follow each other, nothing was observed.
    """
    name, place = file.name, series.place
    if recipe.bin_time not in _BIN:
        raise SessionError(name, f"units.bin_time is {recipe.bin_time!r}", f"choose from {', '.join(_BIN)}")
    counts, time = _whole(name, place, samples(name, series)), times(file, series)
    step = np.diff(time)
    width = float(np.median(step)) if len(step) else (1 / series.rate if series.rate > 0 else 0.0)
    if not width > 0 or not np.isfinite(time).all():
        raise SessionError(name, f"the bins of {place} are {width:g} s wide", "name another series in units.source")
    start = time - _BIN[recipe.bin_time] * width
    column = series.electrodes
    named = of_electrodes(column, "id") if column is not None else []
    located = of_electrodes(column, "location") if column is not None and "electrodes" in recipe.region else []
    units = counts.shape[1]
    named = named if len(set(named)) == units else [f"ch{k + 1:03d}" for k in range(units)]
    texts = located if len(located) == units else named if "id" in recipe.region else [""] * units
    breaks = np.flatnonzero(sample_ends(time)[:-1] != time[1:]) + 1
    edges = np.concatenate([[0], breaks, [len(time)]]).astype(np.int64)
    seen = np.stack([start[edges[:-1]], start[edges[1:] - 1] + width], axis=1)

    def read(first: int, last: int) -> np.ndarray:
        return np.concatenate([np.zeros(0), *(_spread(start, counts[:, k], width) for k in range(first, last))])

    return Population(
        columns={"id": np.array(named)},
        region=tuple(texts),
        electrode=tuple(named) if column is not None else (),
        trains=SpikeTrains(counts.sum(axis=0, dtype=np.int64), read),
        observed=(seen,) * units,
        provenance={"spikes_from": place, "spike_resolution_s": f"{width:.9g}"},
    )


def _whole(name: str, place: str, counts: np.ndarray) -> np.ndarray:
    """Counts (bins, units) as they are, if they are counts; raises SessionError for fractions, NaN and negative ones."""
    counts = counts.reshape(len(counts), -1)
    if counts.dtype.kind not in "fiub":
        raise SessionError(name, f"{place} holds no numbers", "name another series in units.source")
    bad = counts < 0 if counts.dtype.kind != "f" else ~((counts >= 0) & (counts == np.floor(counts)) & (counts < 2**31))
    if bad.any():
        value = counts[bad][0]
        raise SessionError(
            name, f"{place} has {int(bad.sum())} values that are no counts ({value:g})", "name a series of spike counts"
        )
    return counts.astype(np.int64) if counts.dtype.kind in "fb" else counts


def _spread(start: np.ndarray, count: np.ndarray, width: float) -> np.ndarray:
    """Times (s,) of one unit: the k-th of n spikes of a bin lies (k + 1/2) / n of its width after its start."""
    count = count.astype(np.int64)
    before = np.repeat(np.cumsum(count) - count, count)
    place = (np.arange(len(before)) - before + 0.5) / np.repeat(count, count)
    return np.repeat(start, count) + place * width


def in_roster(name: str, own: Population, roster: Population, id_column: str) -> Population:
    """The units of the roster, in its order and with its columns, with the spikes of this file's units of the same id.

    Units that this file lacks are missing and have no spikes. Raises SessionError for a unit the roster does not have.
    """
    rows = {}
    for which, population in (("its unit table", own), ("the roster", roster)):
        if id_column not in population.columns:
            raise SessionError(name, f"{which} has no column {id_column}", "correct units.id_column")
        rows[which] = {one: row for row, one in enumerate(population.columns[id_column].astype(str).tolist())}
    here, there = rows["its unit table"], rows["the roster"]
    if strange := [one for one in here if one not in there]:
        raise SessionError(
            name,
            f"unit {strange[0]} is not in the roster ({len(strange)} are not)",
            "correct units.roster or id_column",
        )
    order = np.array([here.get(one, -1) for one in there], dtype=np.int64)
    if len(there) != len(roster.region) or len(here) != len(own.region):
        raise SessionError(
            name, f"two units share one {id_column}", "set units.id_column to a column that tells them apart"
        )
    none = np.zeros((0, 2))
    return Population(
        columns=roster.columns,
        region=roster.region,
        electrode=roster.electrode,
        trains=_arranged(own.trains, order),
        observed=tuple(own.observed[row] if row >= 0 else none for row in order) if own.observed else (),
        provenance=own.provenance,
        missing=tuple((order < 0).tolist()),
        notes=own.notes,
    )


def _arranged(trains: SpikeTrains, order: np.ndarray) -> SpikeTrains:
    """Trains in another order: row k is train order[k], or an empty one where that is -1."""
    count = np.where(order >= 0, trains.count[order], 0)

    def read(first: int, last: int) -> np.ndarray:
        rows = [int(row) for row in order[first:last] if row >= 0]
        return np.concatenate([np.zeros(0), *(trains.read(row, row + 1) for row in rows)])

    return SpikeTrains(count, read)
