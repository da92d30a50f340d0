"""Named mends for faults of published files; a recipe lists them, and each says in a note what it changed."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from data_prep.errors import SessionError
from data_prep.recording import Recording, Series, SpikeTrains

_ROWS_OF_AN_ARRAY = 96
PAUSE_S = 60.0  # seconds put between the blocks of a recording whose clock was reset


def sort_timestamps(recording: Recording) -> Recording:
    """Samples of every series in order of time; equal times keep their order."""
    series, notes = {}, []
    for name, one in recording.series.items():
        if (one.time[1:] >= one.time[:-1]).all():
            series[name] = one
            continue
        order = np.argsort(one.time, kind="stable")
        moved = int(np.sum(order != np.arange(len(order))))
        series[name] = replace(one, time=one.time[order], value=one.value[order]) if moved else one
        notes += [f"{name}: {moved} samples put in order of time"] if moved else []
    return replace(recording, series=series, notes=(*recording.notes, *notes))


def drop_repeated_timestamps(recording: Recording) -> Recording:
    """The first of samples with one and the same time; they must be in order already."""
    series, notes = {}, []
    for name, one in recording.series.items():
        keep = np.append(True, np.diff(one.time) != 0)[: len(one.time)]
        series[name] = one if keep.all() else replace(one, time=one.time[keep], value=one.value[keep])
        notes += [] if keep.all() else [f"{name}: {int(np.sum(~keep))} samples with a repeated time dropped"]
    return replace(recording, series=series, notes=(*recording.notes, *notes))


def drop_overlapping_trials(recording: Recording) -> Recording:
    """Trials that begin before an earlier one has ended; run `clock_reset` first where the clock starts anew."""
    table = recording.tables.get("trials")
    if not table:
        return recording
    keep, end = np.ones(len(table["start_time"]), dtype=bool), -np.inf
    for row, (start, stop) in enumerate(zip(table["start_time"], table["stop_time"])):
        keep[row] = not start < end
        end = max(end, stop) if keep[row] and np.isfinite(stop) else end
    if keep.all():
        return recording
    trials = {name: values[keep] for name, values in table.items()}
    note = f"{int(np.sum(~keep))} trials that overlap an earlier one dropped"
    return replace(recording, tables={**recording.tables, "trials": trials}, notes=(*recording.notes, note))


def drop_overlapping_pair(recording: Recording) -> Recording:
    """Of the first trial within which the next one starts, both, with the samples and spikes of their time.

    The clock of the recorder jumps back within such a pair (Churchland-Shenoy, two sessions), so neither is sound; a
    trial that starts before the one above it *started* is a reset of the clock instead, for `clock_reset`.
    """
    table = recording.tables.get("trials", {})
    start, stop = table.get("start_time", np.zeros(0)), table.get("stop_time", np.zeros(0))
    pairs = np.flatnonzero((start[:-1] <= start[1:]) & (start[1:] < stop[:-1]))
    if len(pairs) == 0:
        return recording
    first = int(pairs[0])
    low, high, jump = start[first], max(stop[first], stop[first + 1]), stop[first] - start[first + 1]
    block = int(np.sum(start[1 : first + 1] < start[:first]))

    def outside(time: np.ndarray) -> np.ndarray:
        resets = np.concatenate([[0], np.cumsum(time[:-1] - time[1:] > jump + 1e-3)])[: len(time)]
        return (time < low) | (time > high) | (resets != block)

    rows = np.delete(np.arange(len(start)), [first, first + 1])
    kept = {name: outside(one.time) for name, one in recording.series.items()}
    note = f"trials {first + 1} and {first + 2} overlap: dropped with their samples and spikes"
    return replace(
        recording,
        spikes=_filtered(recording.spikes, outside),
        series={
            name: replace(one, time=one.time[kept[name]], value=one.value[kept[name]])
            for name, one in recording.series.items()
        },
        observed=tuple(seen[rows] if len(seen) == len(start) else seen for seen in recording.observed),
        tables={**recording.tables, "trials": {name: values[rows] for name, values in table.items()}},
        notes=(*recording.notes, note),
    )


def _filtered(trains: SpikeTrains, keep: Callable[[np.ndarray], np.ndarray]) -> SpikeTrains:
    """The trains without the spikes for which `keep` of a train's times is False."""

    def read(first: int, last: int) -> np.ndarray:
        parts = np.split(trains.read(first, last), np.cumsum(trains.count[first:last])[:-1])
        return np.concatenate([np.zeros(0), *(part[keep(part)] for part in parts)])

    count = np.array([np.sum(keep(time)) for time in trains.trains()], dtype=np.int64)
    return SpikeTrains(count, read)


def aborted_before_target(recording: Recording) -> Recording:
    """A target_on_time for trials that have none: a second after the stop of the trial above, or their stop if earlier.

    So a trial that is cut from target to target ends where the next one was aborted before its target (Perich-Miller,
    as in the pipeline of the POYO papers). The first trial gets its start.
    """
    table = recording.tables.get("trials", {})
    missing = ~np.isfinite(table.get("target_on_time", np.zeros(0)))
    if not missing.any():
        return recording
    above = np.append(table["start_time"][:1] - 1, table["stop_time"][:-1])
    time = np.where(missing, np.minimum(above + 1, table["stop_time"]), table["target_on_time"])
    note = f"{int(np.sum(missing))} trials without a target_on_time: given one, so that the trial before them ends"
    tables = {**recording.tables, "trials": {**table, "target_on_time": time}}
    return replace(recording, tables=tables, notes=(*recording.notes, note))


def second_array_electrodes(recording: Recording) -> Recording:
    """96 added to the electrode rows of units whose id begins with 2 and that point into the first array's 96 rows.

    In the MC_Maze sets of the Neural Latents Benchmark the first digit of an id tells the array, and M1's rows are
    stored as if they were counted from the second array's first (its own notes on the data sets).
    """
    wrong = [
        row.isdigit() and int(row) < _ROWS_OF_AN_ARRAY and unit.startswith("2")
        for row, unit in zip(recording.electrode, recording.unit_columns["id"].astype(str).tolist())
    ]
    if not any(wrong):
        return recording
    rows = zip(recording.electrode, wrong)
    return replace(
        recording,
        electrode=tuple(str(int(row) + _ROWS_OF_AN_ARRAY) if is_wrong else row for row, is_wrong in rows),
        notes=(*recording.notes, f"electrode rows of {sum(wrong)} units of the second array raised by 96"),
    )


def clock_reset(recording: Recording) -> Recording:
    """Blocks after a reset of the clock moved to 60 s after the block before, in spikes, series and trials alike.

    A reset shows in the trials: one starts before the one above it ended. A unit whose spike times do not fall back
    as often is dropped, as nobody can say which block its spikes belong to, and so is another table or a mask; a series
    that does not is refused.
    """
    table = recording.tables.get("trials", {})
    if len(table.get("start_time", ())) < 2:
        return recording
    trial_block = _overlaps(table["start_time"], table["stop_time"])
    resets = int(trial_block[-1])
    falls = [_falls(time) for time in recording.spikes.trains()]
    keep = np.array([len(at) == resets or count == 0 for at, count in zip(falls, recording.spikes.count)], dtype=bool)
    dropped = () if keep.all() else (f"{int(np.sum(~keep))} units without matching resets dropped",)
    if resets == 0:
        mended = recording if keep.all() else recording.with_units(keep)
        return replace(mended, notes=(*mended.notes, *dropped)) if dropped else mended
    series_block = {name: _blocks(recording.name, name, one, resets) for name, one in recording.series.items()}
    trains = recording.spikes.kept(keep)

    seen = [_extent(one.time, series_block[name], resets) for name, one in recording.series.items()]
    seen += [_extent(table[name], trial_block, resets) for name in ("start_time", "stop_time")]
    seen += [_extent(time, _blocks_of(time), resets) for time in trains.trains()]
    shift = _shifts(np.array(seen))
    tables, lost = {"trials": _moved(table, trial_block, shift)}, [*recording.masks]
    for name, other in recording.tables.items():
        if name not in tables and len(other.get("start_time", ())):
            block = _overlaps(other["start_time"], other["stop_time"])
            if block[-1] == resets:
                tables[name] = _moved(other, block, shift)
            else:
                lost.append(name)
    unclear = (f"without the resets of the clock, so left out: {', '.join(lost)}",) if lost else ()
    series = {name: replace(one, time=one.time + shift[series_block[name]]) for name, one in recording.series.items()}
    note = f"clock reset {resets} times: later blocks moved to {PAUSE_S:g} s after the one before"
    return replace(
        recording.with_units(keep),
        spikes=trains.changed(lambda time: time + shift[_blocks_of(time)]),
        series=series,
        observed=_observed(recording, keep, shift, resets),
        tables=tables,
        masks={},
        notes=(*recording.notes, note, *dropped, *unclear),
    )


def _moved(table: dict[str, np.ndarray], block: np.ndarray, shift: np.ndarray) -> dict[str, np.ndarray]:
    return {name: values + shift[block] if _is_moment(name, table) else values for name, values in table.items()}


def _is_moment(name: str, table: dict[str, np.ndarray]) -> bool:
    """Whether a column holds times on the file's clock: reaction_time and reach_time are named alike and are durations."""
    if not name.endswith("_time") or table[name].dtype.kind != "f":
        return False
    with np.errstate(invalid="ignore"):
        inside = (table[name] >= table["start_time"] - 1) & (table[name] <= table["stop_time"] + 1)
    return 2 * int(np.sum(inside)) > int(np.sum(np.isfinite(table[name])))


def _falls(time: np.ndarray) -> np.ndarray:
    """Where the clock fell back: indices (n,) of the last time before each fall."""
    return np.flatnonzero(time[1:] < time[:-1])


def _blocks_of(time: np.ndarray) -> np.ndarray:
    """Block (n,) of each time: how often the clock fell back before it."""
    return np.searchsorted(_falls(time), np.arange(len(time)))


def _overlaps(start: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """Block (n,) of each interval: how often one started before the one above it had ended."""
    return np.append(0, np.cumsum(start[1:] < stop[:-1]))[: len(start)]


def _blocks(where: str, name: str, one: Series, resets: int) -> np.ndarray:
    block = _blocks_of(one.time)
    if len(block) and block[-1] != resets:
        raise SessionError(
            where,
            f"the trials show {resets} clock resets, the times of {name} {block[-1]}",
            "leave this file out, or write a repair for it",
        )
    return block


def _extent(time: np.ndarray, block: np.ndarray, resets: int) -> np.ndarray:
    """First and last time (resets + 1, 2) of each block; inf and -inf where it has none."""
    out = np.tile([np.inf, -np.inf], (resets + 1, 1))
    finite = np.isfinite(time)
    np.minimum.at(out[:, 0], block[finite], time[finite])
    np.maximum.at(out[:, 1], block[finite], time[finite])
    return out


def _shifts(extents: np.ndarray) -> np.ndarray:
    """Seconds (resets + 1,) to add to each block, from the extents (n, resets + 1, 2) of every clock there is."""
    first, last = extents[..., 0].min(axis=0), extents[..., 1].max(axis=0)
    shift, end = np.zeros(len(first)), -np.inf
    for k in range(len(first)):
        if k and np.isfinite(first[k]):
            shift[k] = end + PAUSE_S - first[k]
        end = max(end, last[k] + shift[k])
    return shift


def _observed(recording: Recording, keep: np.ndarray, shift: np.ndarray, resets: int) -> tuple[np.ndarray, ...]:
    """Observation intervals on the new clock; none at all where a unit's do not show the resets."""
    kept = [rows for rows, unit_kept in zip(recording.observed, keep) if unit_kept]
    blocks = [_overlaps(rows[:, 0], rows[:, 1]) for rows in kept]
    if any(len(block) and block[-1] != resets for block in blocks):
        return ()
    return tuple(rows + shift[block][:, None] for rows, block in zip(kept, blocks))


REPAIRS: dict[str, Callable[[Recording], Recording]] = {
    "sort_timestamps": sort_timestamps,
    "drop_repeated_timestamps": drop_repeated_timestamps,
    "drop_overlapping_trials": drop_overlapping_trials,
    "drop_overlapping_pair": drop_overlapping_pair,
    "aborted_before_target": aborted_before_target,
    "second_array_electrodes": second_array_electrodes,
    "clock_reset": clock_reset,
}


def repair(recording: Recording, names: list[str]) -> Recording:
    """The recording after the named mends, in order."""
    for name in names:
        recording = REPAIRS[name](recording)
    return recording
