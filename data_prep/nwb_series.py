"""Series of an NWB file and the places a recipe names -> Series, and masks as Intervals."""

from dataclasses import replace

import numpy as np

from data_prep.errors import SessionError
from data_prep.nwb_layout import NwbFile, StoredSeries
from data_prep.recipe import PhaseRecipe, SignalRecipe
from data_prep.recording import Series
from data_prep.session import Intervals

_GAP = 1.5  # a sample that is followed later than this many median intervals stands for one interval only
BESIDE = " + "  # joins places whose columns stand side by side


def find_places(file: NwbFile, places: list[str], key: str) -> list[StoredSeries]:
    """The series at the first place that is there, one or several side by side; [] where none is.

    A place is a full path or its last parts. Raises SessionError where it stands for several; `key` says in which
    word of the recipe.
    """
    for place in places:
        found = [_find(file, part.strip(), key) for part in place.split(BESIDE)]
        if all(one is not None for one in found):
            return found
    return []


def _find(file: NwbFile, place: str, key: str) -> StoredSeries | None:
    hits = {one.same: one for path, one in file.series.items() if path == place or path.endswith("/" + place)}
    if len(hits) > 1:
        paths = " and ".join(sorted(one.place for one in hits.values()))
        raise SessionError(file.name, f"{place!r} stands for {paths}", f"give {key} more of the path")
    return next(iter(hits.values()), None)


def read_signal(file: NwbFile, key: str, signal: SignalRecipe) -> Series | None:
    """The series of a signal; None where it is not there and need not be. Raises SessionError."""
    parts = find_places(file, signal.path, f"signals.{key}.path")
    if not parts:
        if not signal.required or signal.derive_from:
            return None
        raise SessionError(
            file.name,
            f"no series at {' or '.join(signal.path)}",
            f"point signals.{key}.path at one of: {', '.join(sorted(file.series)) or 'none, it has no series'}",
        )
    read = [_series(file, part, signal) for part in parts]
    if len(read) == 1:
        return read[0]
    for other in read[1:]:
        if not np.array_equal(read[0].time, other.time):
            raise SessionError(
                file.name, f"{read[0].place} and {other.place} are sampled at different times", "name one of them"
            )
    place, value = BESIDE.join(one.place for one in read), np.concatenate([one.value for one in read], axis=1)
    return replace(read[0], place=place, value=value)


def _series(file: NwbFile, series: StoredSeries, signal: SignalRecipe) -> Series:
    value = samples(file.name, series)
    if value.dtype.kind not in "fiub":
        raise SessionError(file.name, f"{series.place} holds no numbers", "name another series")
    value = value.astype(np.float64, copy=False).reshape(len(value), -1)
    if signal.conversion:
        if series.conversion != 1:
            value = value * series.conversion
        if series.channel_conversion is not None and len(series.channel_conversion) == value.shape[1]:
            value = value * series.channel_conversion[:]
        if series.offset and signal.clock != "period":  # there, offset is the time of the first sample
            value = value + series.offset
    return Series(series.place, times(file, series, signal.clock), value, series.unit)


def samples(name: str, series: StoredSeries) -> np.ndarray:
    """The data (N,) or (N, K) as stored; raises SessionError for another shape."""
    shape = tuple(series.data.shape)
    if len(shape) not in (1, 2) or shape[0] == 0:
        raise SessionError(name, f"{series.place} has data of shape {shape}", "name a series of samples x columns")
    return np.asarray(series.data[:])


def times(file: NwbFile, series: StoredSeries, clock: str = "") -> np.ndarray:
    """Times (N,) float64 s of the samples; by the clock `period`, offset (or starting_time) + i * rate."""
    count = series.data.shape[0]
    if clock == "period" and series.timestamps is None:
        return (series.offset or series.starting_time) + np.arange(count) * series.rate
    if series.timestamps is None and not series.rate > 0:
        raise SessionError(file.name, f"{series.place} has neither timestamps nor a rate", "name another series")
    time = file.clocks.get(series.clock)
    if time is None:
        time = series.times()
        if series.clock is not None:
            file.clocks[series.clock] = time
    if len(time) != count:
        raise SessionError(
            file.name, f"{series.place} has {count} samples but {len(time)} timestamps", "fetch it again"
        )
    return time


def read_mask(file: NwbFile, key: str, phase: PhaseRecipe) -> Intervals | None:
    """Where a true/false series is true, each sample until the next one; None where the file has none."""
    parts = find_places(file, phase.mask, f"phases.{key}.mask")
    if not parts:
        return None
    if len(parts) > 1:
        raise SessionError(file.name, f"phases.{key}.mask names {len(parts)} series", "name one")
    value, time = samples(file.name, parts[0]), times(file, parts[0], phase.clock)
    if value.dtype.kind not in "fiub" or value.size != len(value):
        raise SessionError(file.name, f"{parts[0].place} holds no truth values", "name another series")
    true = (value.reshape(-1) != 0) & (value.reshape(-1) == value.reshape(-1))  # NaN is not true
    stop = sample_ends(time)
    return Intervals.of(zip(time[true], stop[true])).merged()


def sample_ends(time: np.ndarray) -> np.ndarray:
    """Until when each sample (N,) stands: the next one, or one median interval where that is late or missing."""
    step = np.diff(time)
    usual = float(np.median(step)) if len(step) else 0.0
    step = np.append(np.where((step > 0) & (step <= _GAP * usual), step, usual), usual)
    return np.where(np.append(time[1:] - time[:-1], np.inf) == step, np.append(time[1:], np.inf), time + step)
