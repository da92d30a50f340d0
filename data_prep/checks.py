"""What every Session must satisfy, whoever made it; each failure is one SessionError."""

from itertools import combinations

import numpy as np

from data_prep.errors import SessionError
from data_prep.session import SPLITS, Intervals, Session, Signal


def check_session(session: Session, min_train_s: float = 1e-6) -> None:
    """Raise SessionError at the first thing that is not as Session promises, or where training time is too short."""
    where = session.id
    _check_spikes(where, session)
    for name, signal in session.signals.items():
        _check_signal(f"{where} {name}", signal)
    _check_trials(where, session)
    if len(session.domain) == 0:
        raise SessionError(where, "its domain is empty", "look at the domain section of the recipe")
    _check_splits(where, session, min_train_s)


def check_times(where: str, time: np.ndarray) -> None:
    """Raise SessionError unless the sample times (N,) are finite and strictly increasing."""
    if np.isfinite(time[:1]).all() and np.isfinite(time[-1:]).all() and (time[1:] > time[:-1]).all():
        return
    if not np.isfinite(time).all():
        raise SessionError(where, f"{int(np.sum(~np.isfinite(time)))} timestamps are not finite", "leave the file out")
    step = np.diff(time)
    if (step < 0).any():
        raise SessionError(
            where,
            f"timestamps go back in time {int(np.sum(step < 0))} times, first after {time[np.argmax(step < 0)]:g} s",
            "add the repair sort_timestamps, or clock_reset",
        )
    if (step == 0).any():
        raise SessionError(
            where,
            f"{int(np.sum(step == 0))} timestamps are repeated, first at {time[np.argmax(step == 0)]:g} s",
            "add the repair drop_repeated_timestamps",
        )


def _check_spikes(where: str, session: Session) -> None:
    units, count, spikes = session.units, len(session.units), len(session.spikes)
    if count == 0 or spikes == 0:
        raise SessionError(where, f"{count} units with {spikes} spikes", "look at the units section of the recipe")
    optional = {len(values) for values in (units.electrode, units.held_out, units.missing)} - {0}
    if {len(units.region), len(units.quality), *optional} != {count} or len(set(units.id)) != count:
        raise SessionError(where, "the unit table is inconsistent or names a unit twice", "set units.id_column")
    seen, end = 0, -np.inf
    for time, unit in session.spikes.parts():  # never all of them at once
        if len(unit) != len(time) or unit.max() >= count:
            raise SessionError(
                where, f"spikes name unit {int(unit.max())} of {count}", "the file is inconsistent: leave it out"
            )
        if not np.isfinite(time).all():
            bad = int(np.sum(~np.isfinite(time)))
            raise SessionError(where, f"{bad} spike times are not finite", "leave the file out")
        if time[0] < end or (time[1:] < time[:-1]).any():
            raise SessionError(where, "spike times are not sorted", "sort them")
        seen, end = seen + len(time), time[-1]
    if seen != spikes:
        raise SessionError(where, f"{seen} spikes of {spikes} can be read", "store the session again")


def _check_signal(where: str, signal: Signal) -> None:
    time, value, valid = signal.time, signal.value, signal.valid
    if value.ndim != 2 or not len(time) == len(value) == len(valid):
        raise SessionError(where, f"{len(time)} times, values of shape {value.shape}, {len(valid)} marks", "align them")
    check_times(where, time)
    if not valid.any():
        raise SessionError(where, f"none of its {len(time)} samples is finite", "leave the file or the signal out")
    if not np.isfinite(value if valid.all() else value[valid]).all():
        raise SessionError(where, "a sample marked valid is not finite", "mark it as missing")


def _check_trials(where: str, session: Session) -> None:
    for name, values in session.trial_columns.items():
        if len(values) != len(session.trials):
            raise SessionError(
                where, f"trial column {name} has {len(values)} rows of {len(session.trials)}", "align them"
            )


def _check_splits(where: str, session: Session, min_train_s: float) -> None:
    if set(session.splits) != set(SPLITS):
        raise SessionError(where, f"splits are {sorted(session.splits)}", f"make them {', '.join(SPLITS)}")
    inside = Intervals.of((start - 1e-6, stop + 1e-6) for start, stop in session.domain)
    for name, split in session.splits.items():
        if split.difference(inside).seconds > 0:
            raise SessionError(where, f"{name} reaches beyond the domain", "keep splits inside the domain")
    for one, other in combinations(SPLITS, 2):
        if session.splits[one].intersection(session.splits[other]).seconds > 0:
            raise SessionError(where, f"{one} and {other} overlap", "keep splits apart")
    if not any(len(split) for split in session.splits.values()):
        raise SessionError(where, "train, valid and test are empty", "look at the domain and splits of the recipe")
    if session.splits["train"].seconds < min_train_s:
        raise SessionError(
            where,
            f"{session.splits['train'].seconds:.1f} s of training time, {min_train_s:g} s are asked for",
            "lower min_train_s, or look at the domain and splits of the recipe",
        )
