"""The series of a Recording and the recipe's words -> Signals: converted, checked for what they claim to be, resampled."""

from dataclasses import replace

import numpy as np

from data_prep.checks import check_times
from data_prep.errors import SessionError
from data_prep.measure import factor, per_second, swaps
from data_prep.recipe import Recipe, SignalRecipe
from data_prep.recording import Recording, Series
from data_prep.session import Signal
from data_prep.signals import differentiate, finite_rows, norm, resample, sample_interval

_RATE_TOLERANCE = 0.01  # of the median sample interval against the stated rate
_WILDLY = 10.0  # so many times longer or shorter than the spikes, a series is not of the same recording


def find_signals(
    recording: Recording, recipe: Recipe, session: str, spikes_s: tuple[float, float]
) -> tuple[dict[str, Signal], list[str]]:
    """Signals in the recipe's order and units of measure, and notes; derived ones come from those before resampling.

    `spikes_s` is first and last spike. Raises SessionError, in which `session` is named, for what cannot be true.
    """
    full: dict[str, Signal | None] = {}
    notes = []

    def find(name: str) -> Signal | None:
        if name not in full:
            wanted, series = recipe.signals[name], recording.series.get(name)
            where = f"{recording.name} {name} of session {session}"
            full[name] = None
            if series is not None:
                _check_clock(where, wanted, series, spikes_s)
                full[name] = _signal(where, name, wanted, series.time, series.value, wanted.stated_unit or series.unit)
                if full[name] is None:
                    notes.append(f"{series.place} is left out: none of its {len(series.time)} samples is finite")
            if full[name] is None and wanted.derive_from and (source := find(wanted.derive_from)) is not None:
                rate = differentiate(source.time, source.value, recipe.signals[wanted.derive_from].gap)
                unit = wanted.stated_unit or per_second(source.unit_of_measure)
                made = _signal(where, name, wanted, source.time, rate, unit)
                full[name] = made and replace(made, derived_from=wanted.derive_from)
            if full[name] is None and wanted.required:
                what = "no series" if series is None else "no series with a finite sample"
                from_it = [f"{wanted.derive_from} (to derive it from)"] if wanted.derive_from else []
                places = " or ".join([*wanted.path, *from_it])
                raise SessionError(recording.name, f"{what} at {places}", f"correct signals.{name} of the recipe")
        return full.get(name)

    found = {name: signal for name in recipe.signals if (signal := find(name)) is not None}
    return {name: _resampled(signal, recipe.signals[name]) for name, signal in found.items()}, notes


def _check_clock(where: str, recipe: SignalRecipe, series: Series, spikes_s: tuple[float, float]) -> None:
    """Raise SessionError unless times rise, at the rate the recipe states, over about as long as the spikes do."""
    check_times(f"{where} ({series.place})", series.time)
    step, spikes = sample_interval(series.time), spikes_s[1] - spikes_s[0]
    if step <= 0:
        return
    if recipe.rated_hz > 0 and abs(step * recipe.rated_hz - 1) > _RATE_TOLERANCE:
        period = abs(recipe.rated_hz / step - 1) <= _RATE_TOLERANCE
        raise SessionError(
            where,
            f"its median sample interval is {step:.6g} s ({1 / step:.6g} Hz), the recipe says {recipe.rated_hz:g} Hz",
            "its rate holds the period: add clock: period" if period else "correct rated_hz, or leave the file out",
        )
    lasts = float(series.time[-1] - series.time[0])
    if spikes <= 0 or 1 / _WILDLY < lasts / spikes < _WILDLY:
        return
    even = np.allclose(np.diff(series.time), step, rtol=1e-3)
    told = f"its {len(series.time)} samples last {lasts:.4g} s, the spikes {spikes:.4g} s"
    if even and 0.5 < lasts / step**2 / spikes < 2:  # with the period for the rate they would last as long
        hint = "its rate holds the period: add clock: period"
        raise SessionError(where, f"{told}; with {step:g} as the rate they would fit", hint)
    if 0.5 < lasts / 1000 / spikes < 2:
        raise SessionError(where, f"{told}: its times look like milliseconds", "leave the file out, or mend it")


def _signal(where: str, name: str, recipe: SignalRecipe, time, value, stated: str) -> Signal | None:
    """The converted and checked signal; None where no sample is finite, if it may be derived or is not required."""
    if recipe.columns:
        if max(recipe.columns) >= value.shape[1] or min(recipe.columns) < 0:
            raise SessionError(where, f"it has {value.shape[1]} columns", f"correct signals.{name}.columns")
        value = value[:, recipe.columns]
    unit = recipe.unit or stated
    times = recipe.factor * (factor(where, stated, unit) if recipe.unit else 1.0)
    value = value if times == 1 else value * times
    valid = finite_rows(value)
    if not valid.any():
        if recipe.derive_from or not recipe.required:
            return None
        raise SessionError(where, f"none of its {len(time)} samples is finite", "leave the file or the signal out")
    _check_size(where, recipe, value if valid.all() else value[valid], stated, unit)
    return Signal(name, time, value, unit, valid)


def _check_size(where: str, recipe: SignalRecipe, value: np.ndarray, stated: str, unit: str) -> None:
    """Raise SessionError where values (n, K) are not of plausible size, with the unit of measure that would explain it."""
    if not recipe.plausible:
        return
    (low, high), length = recipe.plausible, norm(value)
    # counting is several times faster than a percentile, and decides but for the rarest case
    rare = 0.001 * len(length)
    if np.count_nonzero(length > high) < rare - 1 and np.count_nonzero(length >= low) > rare + 1:
        return
    size = float(np.percentile(length, 99.9))
    if low <= size <= high:
        return
    fitting = [name for name, times in swaps(stated).items() if low <= size * times <= high]
    swap = f"; it looks like {' or '.join(fitting)}, stated is {stated}" if fitting else ""
    raise SessionError(
        where,
        f"its 99.9 percentile is {size:.4g} {unit}, the recipe expects {low:g} to {high:g}{swap}",
        f"set stated_unit: {fitting[0]} if so"
        if fitting
        else "correct stated_unit or plausible, or leave the file out",
    )


def _resampled(signal: Signal, recipe: SignalRecipe) -> Signal:
    time, value = signal.time, signal.value
    if recipe.hz > 0:
        time, value = resample(time, value, recipe.hz, recipe.gap)
    return replace(signal, time=time, value=value.astype(np.float32), valid=finite_rows(value))
