"""Sampled behaviour: contiguous stretches, rates of change, resampling, outliers; nothing is ever computed across a gap."""

import weakref

import numpy as np

from data_prep.recipe import OutlierRecipe
from data_prep.session import Intervals

_ASKED = 1 << 14  # so many intervals tell the median of all
_FILLED = 2  # so many missing samples at most lie on a line between their neighbours; more are missing


_intervals: dict[int, tuple[weakref.ref, float]] = {}  # of arrays that are still there: several rules ask each


def sample_interval(time: np.ndarray) -> float:
    """Median distance of samples in seconds, in a long series that of some 16,000 of them; 0 where there are fewer than two."""
    if len(time) < 2:
        return 0.0
    known = _intervals.get(id(time))
    if known is None or known[0]() is not time:
        key, count = id(time), len(time) - 1
        # drawn, not every so manieth: intervals that take turns would be met unevenly
        asked = np.arange(count) if count <= 2 * _ASKED else np.random.default_rng(0).integers(count, size=_ASKED)
        interval = float(np.median(time[asked + 1] - time[asked]))
        known = weakref.ref(time, lambda _: _intervals.pop(key, None)), interval
        _intervals[key] = known
    return known[1]


def finite_rows(value: np.ndarray) -> np.ndarray:
    """Which rows (N,) of value (N, K) are finite; column by column, as numpy is slow along a short last axis."""
    found = np.ones(len(value), dtype=bool)
    for column in value.T:
        found &= np.isfinite(column)
    return found


def norm(value: np.ndarray) -> np.ndarray:
    """Euclidean length (N,) float64 of the rows of value (N, K)."""
    total = np.zeros(len(value))
    for column in value.T:
        total += np.square(column, dtype=np.float64)
    return np.sqrt(total, out=total)


def stretches(time: np.ndarray, gap: float) -> np.ndarray:
    """Contiguous stretches as index pairs (n, 2), half-open: a pause of more than `gap` median intervals ends one."""
    if len(time) == 0:
        return np.zeros((0, 2), dtype=np.int64)
    breaks = np.flatnonzero(np.diff(time) > gap * sample_interval(time)) + 1
    edges = np.concatenate([[0], breaks, [len(time)]])
    return np.stack([edges[:-1], edges[1:]], axis=1)


def covered(time: np.ndarray, gap: float) -> Intervals:
    """Where the samples are contiguous; every sample stands for one sample interval around it."""
    bounds, half = stretches(time, gap), sample_interval(time) / 2
    return (
        Intervals.of(zip(time[bounds[:, 0]] - half, time[bounds[:, 1] - 1] + half)) if len(bounds) else Intervals.of([])
    )


def differentiate(time: np.ndarray, value: np.ndarray, gap: float) -> np.ndarray:
    """Central differences (N, K) per second within each stretch, one-sided at its ends; NaN where a sample is alone.

    However long the pauses of a stretch may be, none of more than two missing samples is reached across.
    """
    rate = np.full(value.shape, np.nan)
    for first, last in stretches(time, min(gap, _FILLED + 1.5)):
        if last - first > 1:
            rate[first:last] = np.gradient(value[first:last], time[first:last], axis=0)
    return rate


def resample(time: np.ndarray, value: np.ndarray, hz: float, gap: float) -> tuple[np.ndarray, np.ndarray]:
    """Samples at `hz`, stretch by stretch, starting at its first sample: time (M,), value (M, K).

    Going down, a sample is the mean of what lies within half a new interval around it, so that nothing is aliased;
    going up, it lies on the line between its neighbours, unless more than two samples are missing between them.
    Missing values make missing values.
    """
    times, values = [np.zeros(0)], [np.zeros((0, value.shape[1]))]
    down = sample_interval(time) * hz < 1
    for first, last in stretches(time, gap):
        t, v = time[first:last], value[first:last]
        grid = t[0] + np.arange(np.floor((t[-1] - t[0]) * hz + 1e-6) + 1) / hz
        if down:
            low = np.searchsorted(t, grid - 0.5 / hz - 1e-9)
            high = np.searchsorted(t, grid + 0.5 / hz - 1e-9)
            total = np.concatenate([np.zeros((1, v.shape[1])), np.cumsum(np.nan_to_num(v), axis=0)])
            holes = np.concatenate([np.zeros((1, v.shape[1])), np.cumsum(~np.isfinite(v), axis=0)])
            count = np.maximum(high - low, 1)[:, None]
            new = np.where(
                (holes[high] - holes[low] > 0) | (high == low)[:, None], np.nan, (total[high] - total[low]) / count
            )
        else:
            new = np.stack([np.interp(grid, t, column) for column in v.T], axis=1)
            new[_in_pauses(grid, t, (_FILLED + 1.5) * sample_interval(time))] = np.nan
        times.append(grid)
        values.append(new)
    return np.concatenate(times), np.concatenate(values)


def _in_pauses(grid: np.ndarray, time: np.ndarray, longest_s: float) -> np.ndarray:
    """Which times of the grid (M,) lie strictly between two samples (N,) more than `longest_s` apart."""
    after = np.clip(np.searchsorted(time, grid - 1e-9), 1, max(len(time) - 1, 1))
    wide = np.append(False, np.diff(time) > longest_s)[after] if len(time) > 1 else np.zeros(len(grid), dtype=bool)
    return wide & (grid > time[after - 1] + 1e-9) & (grid < time[np.minimum(after, len(time) - 1)] - 1e-9)


def grown(mask: np.ndarray, width: int) -> np.ndarray:
    """Mask (N,) with every run `width` samples longer in all, the larger half before it where `width` is odd."""
    if width <= 0 or not mask.any() or mask.all():
        return mask.copy()
    total = np.concatenate([[0], np.cumsum(mask)])
    index = np.arange(len(mask))
    low = np.maximum(index - width // 2, 0)
    high = np.minimum(index + (width - width // 2) + 1, len(mask))
    return total[high] > total[low]


def outliers(rule: OutlierRecipe, time: np.ndarray, value: np.ndarray, gap: float) -> np.ndarray:
    """Boolean mask (N,) of the samples the rule condemns; missing samples are not outliers but missing."""
    for _ in range(rule.derivative):
        value = differentiate(time, value, gap)
    mask = np.zeros(len(time), dtype=bool)
    with np.errstate(invalid="ignore", over="ignore"):
        if rule.norm_above is not None:
            mask |= norm(value if finite_rows(value).all() else np.nan_to_num(value)) > rule.norm_above
        for column in value.T if rule.any_above is not None else ():
            mask |= np.abs(column) > rule.any_above
    return ~grown(~grown(mask, rule.dilate), rule.erode)


def marked(time: np.ndarray, mask: np.ndarray, gap: float) -> Intervals:
    """Intervals that hold exactly the marked samples (N,): from the first of a run to the sample after it, or to one
    sample interval after its last, whichever comes first."""
    step, index = sample_interval(time) or 1e-6, np.flatnonzero(mask)
    if len(index) == 0:
        return Intervals.of([])
    breaks = np.flatnonzero((np.diff(index) > 1) | (np.diff(time[index]) > gap * step)) + 1
    first, last = index[np.concatenate([[0], breaks])], index[np.append(breaks, len(index)) - 1]
    return Intervals.of(zip(time[first], np.minimum(np.append(time, np.inf)[last + 1], time[last] + step)))


def at_rest(time: np.ndarray, value: np.ndarray, gap: float, below: float, longer_than_s: float) -> Intervals:
    """Where the norm of value (N, K) stays under `below` for longer than `longer_than_s` seconds."""
    calm = marked(time, norm(value) < below, gap)
    return Intervals.of((start, stop) for start, stop in calm if stop - start > longer_than_s)
