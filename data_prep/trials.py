"""A trial table and the recipe's words -> trial intervals, which of them are valid, and phases."""

from dataclasses import dataclass

import numpy as np

from data_prep.errors import SessionError
from data_prep.expression import column, passes
from data_prep.recipe import Moment, PhaseRecipe, TrialsRecipe
from data_prep.session import Intervals


@dataclass(frozen=True)
class Trials:
    """Trials sorted by start; every column and mask has one entry a trial."""

    start: np.ndarray  # (n,) float64 s
    stop: np.ndarray  # (n,) float64 s, later than start
    valid: np.ndarray  # (n,) bool, meets the recipe's conditions
    columns: dict[str, np.ndarray]
    left_out: int = 0  # rows without a usable start and stop


NO_TRIALS = Trials(np.zeros(0), np.zeros(0), np.zeros(0, dtype=bool), {})


def moments(where: str, table: dict[str, np.ndarray], moment: Moment, last_trial_s: float) -> np.ndarray:
    """Times (n,) of a Moment, NaN where the trial has none; rows of the table are in order of time."""
    time = column(where, table, moment.column)
    if time.dtype.kind not in "fiu":
        raise SessionError(where, f"column {moment.column!r} holds no times", "name a column of seconds")
    time = time.astype(np.float64)
    if moment.next:
        following, upcoming = np.full(len(time), np.nan), np.nan
        for row in range(len(time) - 1, -1, -1):
            following[row] = upcoming
            upcoming = time[row] if np.isfinite(time[row]) else upcoming
        final = np.flatnonzero(np.isfinite(time))[-1:]  # the last trial that has a value has none after it
        following[final] = table["stop_time"][final] + last_trial_s
        time = following
    return time + moment.offset_s


def find_trials(where: str, recipe: TrialsRecipe, table: dict[str, np.ndarray]) -> Trials:
    """Trials of a table, in order of time; raises SessionError for a column that is not there."""
    if not table or not len(next(iter(table.values()))):
        return NO_TRIALS
    order = np.argsort(table["start_time"], kind="stable")
    table = {name: values[order] for name, values in table.items()}
    for name, factor in recipe.factors.items():
        table[name] = column(where, table, name) * factor
    start = moments(where, table, recipe.start, recipe.last_trial_s)
    stop = moments(where, table, recipe.stop, recipe.last_trial_s)
    table["duration"] = stop - start
    with np.errstate(invalid="ignore"):
        usable = stop > start
    valid = passes(where, table, recipe.valid)
    order = np.flatnonzero(usable)[np.argsort(start[usable], kind="stable")]
    columns = {name: values[order] for name, values in table.items()}
    return Trials(start[order], stop[order], valid[order], columns, int(np.sum(~usable)))


def find_phase(where: str, recipe: PhaseRecipe, trials: Trials, last_trial_s: float) -> Intervals:
    """Intervals of one phase over all trials that have it."""
    missing = {m.column for m in (recipe.start, recipe.stop)} - set(trials.columns)
    if len(trials.start) == 0 or (recipe.optional and missing):
        return Intervals.of([])
    chosen = {"valid": trials.valid, "invalid": ~trials.valid, "all": np.ones_like(trials.valid)}[recipe.trials]
    start = moments(where, trials.columns, recipe.start, last_trial_s)
    stop = moments(where, trials.columns, recipe.stop, last_trial_s)
    with np.errstate(invalid="ignore"):
        chosen = chosen & (stop > start)
    return Intervals.of(zip(start[chosen], stop[chosen]))
