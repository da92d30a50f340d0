"""An NWB 2 file and a recipe -> Recording: what the recipe names is read, waveforms and raw traces never.

HDF5 is read as its layout says (nwb_direct); a zarr folder goes through pynwb's objects (nwb_objects), which is imported
only then.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data_prep.errors import SessionError
from data_prep.nwb_direct import damage_told, opened_hdf5
from data_prep.nwb_layout import NwbFile, StoredSeries
from data_prep.nwb_series import read_mask, read_signal
from data_prep.nwb_spikes import in_roster, read_population
from data_prep.nwb_tables import columns
from data_prep.recipe import Recipe
from data_prep.recording import Recording, SpikeTrains
from data_prep.source import ZARR_MARKS, RemoteFile


@contextlib.contextmanager
def opened_file(file: Path | RemoteFile) -> Iterator[NwbFile]:
    """What a file holds, while it is open; raises SessionError in one line for what cannot be opened."""
    if not (isinstance(file, Path) and file.is_dir()):
        opened = opened_hdf5(file)
    elif any((file / mark).is_file() for mark in (*ZARR_MARKS, ".zattrs")):
        from data_prep.nwb_objects import opened_zarr

        opened = opened_zarr(file)
    else:
        raise SessionError(file.name, "a folder that is no zarr file", "name the files in it")
    with opened as found:
        yield found


@contextlib.contextmanager
def opened_recording(
    file: Path | RemoteFile, recipe: Recipe, roster: Path | RemoteFile | None = None
) -> Iterator[Recording]:
    """Everything the recipe names in the file, in the file's order; its spikes are read while the context lasts.

    `roster` is the file whose units these are (recipe.units.roster). Raises SessionError in one line for a bad file.
    """
    with opened_file(file) as found:
        if roster is None:
            yield recording_of(found, recipe)
        else:
            with opened_file(roster) as listed:
                yield recording_of(found, recipe, listed)


def read_recording(file: Path | RemoteFile, recipe: Recipe, roster: Path | RemoteFile | None = None) -> Recording:
    """The same, whole in memory and the file closed."""
    with opened_recording(file, recipe, roster) as recording:
        trains = recording.spikes
        return replace(recording, spikes=SpikeTrains.of(trains.read(0, len(trains)), trains.count))


def recording_of(file: NwbFile, recipe: Recipe, roster: NwbFile | None = None) -> Recording:
    """What the recipe names in an open file; raises SessionError."""
    with damage_told(file.name):
        population = read_population(file, recipe.units)
        if roster is not None:
            listed = read_population(roster, recipe.units)
            population = in_roster(file.name, population, listed, recipe.units.id_column)
        series = {key: read_signal(file, key, signal) for key, signal in recipe.signals.items()}
        masks = {key: read_mask(file, key, phase) for key, phase in recipe.phases.items() if phase.mask}
        tables, notes = {}, population.notes
        for key, table in file.tables.items():
            tables[key], told = columns(table)
            notes = [*notes, *told]
    warnings = {"reader_warnings": "\n".join(file.warnings)} if file.warnings else {}
    return Recording(
        name=file.name,
        subject=file.subject,
        session_id=file.session_id,
        identifier=file.identifier,
        unit_columns=population.columns,
        region=population.region,
        spikes=population.trains,
        observed=population.observed,
        series={key: one for key, one in series.items() if one is not None},
        tables=tables,
        electrode=population.electrode,
        missing=population.missing,
        masks={key: one for key, one in masks.items() if one is not None},
        provenance={
            "nwb_version": file.version,
            "identifier": file.identifier,
            "session_start_time": file.start_time,
            **population.provenance,
            **warnings,
        },
        notes=tuple(notes),
    )


@dataclass(frozen=True)
class Contents:
    """What a file holds, for a person who writes a recipe: one line an item."""

    units: str
    series: tuple[str, ...]
    tables: tuple[str, ...]


def look(file: Path | RemoteFile) -> Contents:
    """Names, shapes, rates and units of measure of everything a recipe could name; raises SessionError."""
    with opened_file(file) as found, damage_told(found.name):
        units = (
            "no units table"
            if found.units is None
            else f"{len(found.units)} units; columns {', '.join(found.units.columns)}"
        )
        series = tuple(
            f"{place}: {tuple(s.data.shape)} {s.unit}, {_rate(s)}" for place, s in sorted(found.series.items())
        )
        tables = tuple(
            f"intervals/{name}: {len(table)} rows; columns {', '.join(table.columns)}"
            for name, table in found.tables.items()
        )
        return Contents(units, series, tables)


def _rate(series: StoredSeries) -> str:
    if series.timestamps is None:
        return f"{series.rate:g} Hz"
    step = np.median(np.diff(series.timestamps[:1000])) if len(series.timestamps) > 1 else np.nan
    return f"about {1 / step:.4g} Hz" if step > 0 else "no rate"
