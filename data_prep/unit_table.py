"""The units of a Recording and the recipe's words -> the unit table of a Session, its spikes, and what was noticed."""

import re
from dataclasses import replace

import numpy as np

from data_prep.columns import column, truths
from data_prep.errors import SessionError
from data_prep.expression import passes
from data_prep.recipe import UnitsRecipe
from data_prep.recording import Recording, SpikeTrains
from data_prep.session import Spikes, Units
from data_prep.spikes import in_order_of_time

_FEW_FALLS = 20  # a clock is reset so often at most; spike times that fall back more often are merely unsorted
_DEEP_S = 1.0  # seconds by which a reset throws the clock back at least; less is disorder among neighbours


def keep_units(recording: Recording, recipe: UnitsRecipe) -> Recording:
    """The recording with the units the recipe keeps; raises SessionError where it keeps none."""
    where, count = recording.name, recording.spikes.count
    missing = np.array(recording.missing or np.zeros(len(count)), dtype=bool)
    keep = passes(f"{where} units", recording.unit_columns, recipe.keep) & ((count >= recipe.min_spikes) | missing)
    if keep.all() and len(keep):
        return recording
    if not keep.any():
        raise SessionError(where, f"none of its {len(keep)} units is kept", "look at units.keep and units.min_spikes")
    note = f"{int(np.sum(~keep))} of {len(keep)} units left out by the recipe"
    return replace(recording.with_units(keep), notes=(*recording.notes, note))


def find_units(recording: Recording, recipe: UnitsRecipe) -> tuple[Units, Spikes, list[str]]:
    """The unit table, all spikes in order of time, and what was noticed; raises SessionError."""
    where, columns, count, notes = recording.name, recording.unit_columns, recording.spikes.count, []
    spikes, faults = in_order_of_time(where, recording.spikes)
    _refuse_resets(where, recording.spikes, faults.falls)
    missing = np.array(recording.missing or np.zeros(len(count)), dtype=bool)
    table = Units(
        id=tuple(column(f"{where} units", columns, recipe.id_column).astype(str).tolist()),
        region=tuple(_region(text, recipe.region_map) for text in recording.region),
        quality=tuple(columns.get(recipe.quality_column, np.full(len(count), "")).astype(str).tolist()),
        electrode=recording.electrode,
        held_out=_held_out(where, columns, recipe.held_out),
        missing=recording.missing if missing.any() else (),
    )
    if unsorted := int(np.sum(faults.falls > 0)):
        notes.append(f"spike times of {unsorted} units were not sorted")
    if faults.close:
        notes.append(f"{faults.close} spikes come less than 0.1 ms after one of the same unit (kept)")
    if silent := int(np.sum((count == 0) & ~missing)):
        notes.append(f"{silent} units have no spikes")
    if missing.any():
        notes.append(f"{int(np.sum(missing))} units of the roster are not in this file")
    return table, spikes, notes


def _region(text: str, region_map: dict[str, str]) -> str:
    return next((region for pattern, region in region_map.items() if re.search(pattern, text)), text) or "unknown"


def _held_out(where: str, columns: dict[str, np.ndarray], name: str) -> tuple[bool, ...]:
    """Which units the dandiset withholds in its test files; () where none is, or nothing says so."""
    withheld = truths(f"{where} units {name}", columns[name]) if name in columns else np.zeros(0, dtype=bool)
    return tuple(withheld.tolist()) if withheld.any() else ()


def _refuse_resets(where: str, trains: SpikeTrains, falls: np.ndarray) -> None:
    """A clock that starts anew shows in most units alike; sorting them would lay two blocks upon each other."""
    telling = trains.count >= 10
    few = np.flatnonzero(telling & (falls > 0) & (falls <= _FEW_FALLS))
    if telling.sum() < 2 or len(few) <= telling.sum() / 2:
        return
    deep = [np.min(np.diff(trains.read(int(unit), int(unit) + 1))) < -_DEEP_S for unit in few[:5]]
    if sum(deep) > len(deep) / 2:
        raise SessionError(
            where,
            f"the spike times of {len(few)} of {telling.sum()} units fall back {int(np.median(falls[few]))} times: "
            "the clock was reset",
            "add the repair clock_reset",
        )
