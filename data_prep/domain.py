"""What was observed, which signals run without a gap, epochs and rest -> the domain: where data count at all."""

import numpy as np

from data_prep.errors import SessionError
from data_prep.expression import passes
from data_prep.recipe import DomainRecipe, Recipe
from data_prep.recording import Recording
from data_prep.session import Intervals, Signal
from data_prep.signals import at_rest, covered
from data_prep.splits import rounded

INVALID_TIMES = "invalid_times"  # the table in which NWB keeps them


def find_domain(
    recording: Recording, recipe: Recipe, signals: dict[str, Signal], spikes_s: tuple[float, float]
) -> tuple[Intervals, list[str]]:
    """Where units were observed, signals are contiguous, the right epoch runs and the animal is not at rest; and notes.

    `spikes_s` is first and last spike. Raises SessionError where nothing is left, with what each limit allowed.
    """
    rule, where = recipe.domain, recording.name
    observed, notes = _observed(where, recording.observed) if rule.observed else (None, [])
    steps = {"observed": Intervals.of([(spikes_s[0], spikes_s[1] + 1e-6)]) if observed is None else observed}
    asked = rule.signals or list(recipe.signals)[:1]
    for name in asked:
        if name in signals:
            steps[name] = covered(signals[name].time[signals[name].valid], recipe.signals[name].gap)
    if absent := [name for name in asked if name not in signals]:
        what = "spikes" if observed is None else "obs_intervals"
        others = f"the {what} alone" if len(absent) == len(asked) else "what else there is"
        notes.append(f"no {' and no '.join(absent)}: the domain rests on {others}")
    if rule.epochs_table:
        steps["epochs"] = _epochs(where, recording, rule)
    domain = steps["observed"]
    for part in steps.values():
        domain = domain.intersection(part)
    if invalid := _invalid(recording) if rule.invalid_times else None:
        notes.append(f"{domain.intersection(invalid).seconds:.1f} s of invalid_times left out")
        domain = domain.difference(invalid)
    if rule.still.signal in signals:
        calm, gap = signals[rule.still.signal], recipe.signals[rule.still.signal].gap
        domain = domain.difference(at_rest(calm.time, calm.value, gap, rule.still.below, rule.still.longer_than_s))
    kept = rounded(domain, rule.min_s)
    if len(kept) == 0:
        each = ", ".join(f"{name} {part.merged().seconds:.1f} s" for name, part in steps.items())
        raise SessionError(
            where, f"nothing is left of {each} in stretches of {rule.min_s:g} s", "correct the domain section"
        )
    return kept, notes


def _observed(where: str, rows_of_units: tuple[np.ndarray, ...]) -> tuple[Intervals | None, list[str]]:
    """Times at which every unit was observed, None if no unit says; units that say nothing were always observed."""
    distinct = {rows.tobytes(): rows for rows in rows_of_units if len(rows)}  # nearly always one and the same list
    each = [Intervals.of(rows).merged() for rows in distinct.values()]
    if len(each) < 2:
        return (each[0] if each else None), []
    shared = each[0]
    for one in each[1:]:
        shared = shared.intersection(one)
    lost = Intervals.of(pair for one in each for pair in one).merged().seconds - shared.seconds
    if len(shared) == 0:
        raise SessionError(
            where,
            f"its units have {len(each)} different obs_intervals and share no second of {lost:.1f}",
            "leave units out with units.keep, or set domain.observed: false",
        )
    differ = [f"obs_intervals differ between units: {lost:.1f} s that not all of them share left out"]
    return shared, differ if lost > 0 else []


def _epochs(where: str, recording: Recording, rule: DomainRecipe) -> Intervals:
    table = recording.tables.get(rule.epochs_table, {})
    if not table:
        raise SessionError(where, f"no table intervals/{rule.epochs_table}", "correct domain.epochs_table")
    chosen = passes(f"{where} {rule.epochs_table}", table, rule.epochs)
    return Intervals.of(zip(table["start_time"][chosen], table["stop_time"][chosen]))


def _invalid(recording: Recording) -> Intervals | None:
    table = recording.tables.get(INVALID_TIMES, {})
    return Intervals.of(zip(table["start_time"], table["stop_time"])) if len(table.get("start_time", ())) else None
