"""A trial table and the recipe's words -> trial intervals, which of them are valid, and phases."""

import re
from dataclasses import dataclass

import numpy as np

from data_prep.columns import column, numbers
from data_prep.errors import SessionError
from data_prep.expression import passes
from data_prep.recipe import Moment, PhaseRecipe, TrialsRecipe
from data_prep.session import Intervals


@dataclass(frozen=True)
class Trials:
    """Trials sorted by start; every column and mask has one entry a trial."""

    start: np.ndarray  # (n,) float64 s
    stop: np.ndarray  # (n,) float64 s, later than start
    valid: np.ndarray  # (n,) bool, meets the recipe's condition
    columns: dict[str, np.ndarray]
    notes: tuple[str, ...] = ()  # what a person should hear of


NO_TRIALS = Trials(np.zeros(0), np.zeros(0), np.zeros(0, dtype=bool), {})


def moments(where: str, table: dict[str, np.ndarray], moment: Moment, last_trial_s: float) -> np.ndarray:
    """Times (n,) of a Moment, NaN where the trial has none; rows of the table are in order of time."""
    name = named(moment)
    time = numbers(f"{where} {name}", column(where, table, name))
    if moment.next:
        following, upcoming = np.full(len(time), np.nan), np.nan
        for row in range(len(time) - 1, -1, -1):
            following[row] = upcoming
            upcoming = time[row] if np.isfinite(time[row]) else upcoming
        final = np.flatnonzero(np.isfinite(time))[-1:]  # the last trial that has a value has none after it
        following[final] = table["stop_time"][final] + last_trial_s
        time = following
    return time + moment.offset_s


def named(moment: Moment) -> str:
    """The column a Moment names, a part of one as it is stored: go[2] is go.2."""
    return re.sub(r"\[(\d+)\]$", r".\1", moment.column.strip())


def find_trials(where: str, recipe: TrialsRecipe, table: dict[str, np.ndarray]) -> Trials:
    """Trials of a table, in order of time.

    Raises SessionError for a column that is not there, and where trials of two clocks would lie upon each other.
    """
    if not table or not len(next(iter(table.values()))):
        return NO_TRIALS
    table = {name: numbers(f"{where} {name}", v) if name in _EDGES else v for name, v in table.items()}
    if recipe.table == "trials":  # epochs may be nested, trials follow each other
        _refuse_resets(where, *(table[name] for name in _EDGES))
    order = np.argsort(table["start_time"], kind="stable")
    table, notes = {name: values[order] for name, values in table.items()}, []
    for name, factor in recipe.factors.items():
        hits = [key for key in table if key == name or re.fullmatch(rf"{re.escape(name)}\.\d+", key)]
        table.update({key: numbers(f"{where} {key}", table[key]) * factor for key in hits})
        notes += [] if hits else [f"trials have no column {name}, which trials.factors names"]
    start = moments(where, table, recipe.start, recipe.last_trial_s)
    stop = moments(where, table, recipe.stop, recipe.last_trial_s)
    table["duration"] = stop - start
    with np.errstate(invalid="ignore"):
        usable = stop > start
    valid = passes(where, table, recipe.valid)
    order = np.flatnonzero(usable)[np.argsort(start[usable], kind="stable")]
    columns = {name: values[order] for name, values in table.items()}
    notes += [] if usable.all() else [f"{int(np.sum(~usable))} trials without a usable start and stop left out"]
    return Trials(start[order], stop[order], valid[order], columns, tuple(notes))


_EDGES = ("start_time", "stop_time")


def _refuse_resets(where: str, start: np.ndarray, stop: np.ndarray) -> None:
    """A table may list its trials in any order; but where sorting it makes trials overlap that did not, a clock was reset."""
    falls = int(np.sum(start[1:] < start[:-1]))
    if falls == 0:
        return
    order = np.argsort(start, kind="stable")
    before = int(np.sum(start[1:] < stop[:-1])) - falls
    if int(np.sum(start[order][1:] < stop[order][:-1])) > before:
        raise SessionError(
            where,
            f"they start anew {falls} times, first after row {int(np.argmax(start[1:] < start[:-1]))}, and would overlap: "
            "the clock was reset",
            "add the repair clock_reset",
        )


def check_clock(where: str, trials: Trials, spikes_s: tuple[float, float]) -> None:
    """Raise SessionError where trials are told in milliseconds; `spikes_s` is first and last spike, s."""
    if len(trials.start) < 2:
        return
    late, first, last = trials.start > spikes_s[1], trials.start[0] / 1000, trials.start[-1] / 1000
    if late.mean() > 0.5 and spikes_s[0] - 60 <= first and last <= spikes_s[1] + 60:
        raise SessionError(
            where,
            f"{int(late.sum())} of {len(late)} start after the last spike at {spikes_s[1]:g} s: milliseconds, it seems",
            "add trials.factors {start_time: 0.001, stop_time: 0.001}, and every other time in ms",
        )


def find_phase(where: str, recipe: PhaseRecipe, trials: Trials, last_trial_s: float) -> Intervals:
    """Intervals of one phase over all trials that have it."""
    missing = {named(moment) for moment in (recipe.start, recipe.stop)} - set(trials.columns)
    if len(trials.start) == 0 or (recipe.optional and missing):
        return Intervals.of([])
    chosen = {"valid": trials.valid, "invalid": ~trials.valid, "all": np.ones_like(trials.valid)}[recipe.trials]
    start = moments(where, trials.columns, recipe.start, last_trial_s)
    stop = moments(where, trials.columns, recipe.stop, last_trial_s)
    with np.errstate(invalid="ignore"):
        chosen = chosen & (stop > start)
    return Intervals.of(zip(start[chosen], stop[chosen]))
