"""Spikes unit after unit, as files keep them -> one stream in order of time."""

from itertools import pairwise

import numpy as np

from data_prep.errors import SessionError
from data_prep.recording import SpikeTrains
from data_prep.session import Spikes

_AT_ONCE = 1 << 16  # spikes sorted together: few enough to stay in the processor's cache, which halves the time


def in_order_of_time(where: str, trains: SpikeTrains) -> tuple[Spikes, int]:
    """All spikes sorted by time, ties in order of units; and how many units had to be sorted first.

    Raises SessionError where a time is not finite.
    """
    time, count = trains.read(0, len(trains)), trains.count
    if not np.isfinite(time).all():
        raise SessionError(where, f"{int(np.sum(~np.isfinite(time)))} spike times are not finite", "leave the file out")
    stop = np.cumsum(count)
    start = stop - count
    falls = np.flatnonzero(time[1:] < time[:-1])
    before, after = (np.searchsorted(stop, where, "right") for where in (falls, falls + 1))
    unsorted = np.unique(before[before == after])  # elsewhere a fall is the step from one unit to the next
    for unit in unsorted:
        time[start[unit] : stop[unit]].sort()
    return _merged(time, start, stop), len(unsorted)


def _merged(time: np.ndarray, start: np.ndarray, stop: np.ndarray) -> Spikes:
    """Merge units that are sorted each, slice of time by slice of time."""
    slices = max(1, len(time) // _AT_ONCE)
    edges = np.linspace(time.min(initial=0.0), time.max(initial=0.0), slices + 1)[1:-1]
    cuts = [a + np.searchsorted(time[a:b], edges) for a, b in zip(start, stop)]  # a row a unit
    bounds = np.column_stack([start, np.reshape(cuts, (len(start), slices - 1)), stop]).astype(np.int64).T
    merged, unit, done = np.empty(len(time)), np.empty(len(time), dtype=np.uint32), 0
    rows = np.arange(len(start), dtype=np.uint32)
    for low, high in pairwise(bounds):
        size = high - low
        place = np.repeat(low - (np.cumsum(size) - size), size) + np.arange(size.sum())
        part = time[place]
        order = np.argsort(part, kind="stable")
        here = slice(done, done + len(part))
        merged[here], unit[here] = part[order], np.repeat(rows, size)[order]
        done = here.stop
    return Spikes(merged, unit)
