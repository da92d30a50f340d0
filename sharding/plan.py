"""ShardIndex -> which window comes when: jittered and shuffled for training, overlapping and in order for evaluation."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from sharding.errors import ConfigError
from sharding.index import ShardIndex
from sharding.tables import IntervalTable
from sharding.tokens import to_microseconds

PLAN_STREAM = 1  # keeps the plan's random numbers apart from those of the augmentations (augment.py)


@dataclass(frozen=True)
class WindowTable:
    """Windows in the order in which they come: place (n,) int64, segment (n,) int64 row of the index, start_us (n,)
    int64 on the session's clock. A place is a window's number in all epochs laid end to end: epoch * windows + position.
    """

    place: np.ndarray
    segment: np.ndarray
    start_us: np.ndarray

    def __len__(self) -> int:
        return len(self.segment)


class TrainPlan:
    """Which window of the train split comes at which place, a pure function of (seed, place)."""

    def __init__(self, index: ShardIndex, window_s: float, seed: int):
        self.windows = windows_per_epoch(index, window_s)  # of every epoch
        self._epoch = lru_cache(4)(lambda epoch: train_windows(index, seed, epoch, window_s))
        self._made_of = (index, window_s, seed)

    def table(self, place: np.ndarray) -> WindowTable:
        """The windows at these places (n,), in any order, of any epochs."""
        epoch, at = np.divmod(place, self.windows)
        parts = [(self._epoch(int(e)), int(a)) for e, a in zip(epoch, at)]
        return WindowTable(
            place, np.array([t.segment[a] for t, a in parts]), np.array([t.start_us[a] for t, a in parts])
        )

    def __reduce__(self):
        return TrainPlan, self._made_of


class EvalPlan:
    """Windows every `step_s` and one ending with each interval of a split, in time order; place is their number."""

    def __init__(self, index: ShardIndex, split: str, window_s: float, step_s: float):
        self._table = sequential_windows(index, split, window_s, step_s)
        self.windows = len(self._table)

    def table(self, place: np.ndarray) -> WindowTable:
        """The windows at these places (n,)."""
        return WindowTable(place, self._table.segment[place], self._table.start_us[place])


def windows_per_epoch(index: ShardIndex, window_s: float) -> int:
    """Training windows of every epoch: floor(length / window), summed over the contiguous train intervals."""
    intervals = index.segments.intervals("train")
    return int(((intervals.stop_us - intervals.start_us) // window_length_us(index, window_s)).sum())


def train_windows(index: ShardIndex, seed: int, epoch: int, window_s: float) -> WindowTable:
    """The windows of an epoch, a pure function of (seed, epoch).

    In every contiguous interval an offset is drawn from [0, window) and windows follow each other from there; where
    that leaves one short of floor(length / window), a window at the interval's nearer end makes up for it. All are
    shuffled together; intervals shorter than a window give none.
    """
    length = window_length_us(index, window_s)
    intervals = index.segments.intervals("train")
    random = np.random.Generator(np.random.Philox(key=[seed, PLAN_STREAM], counter=[0, 0, 0, epoch]))
    span = intervals.stop_us - intervals.start_us
    offset = random.integers(0, length, len(span))
    count = span // length
    interval = np.repeat(np.arange(len(span)), count)
    nth = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    start = offset[interval] + nth * length
    beyond = start + length > span[interval]  # at most the last one of an interval
    right = span[interval] - start  # what the windows before it leave free at the end; the offset is free before them
    start = np.where(beyond, np.where(right > offset[interval], span[interval] - length, 0), start)
    order = random.permutation(len(start))
    return _owned(index, intervals, interval[order], (intervals.start_us[interval] + start)[order])


def sequential_windows(index: ShardIndex, split: str, window_s: float, step_s: float) -> WindowTable:
    """Windows every `step_s` and one ending at the interval's end, in time order; every sample lies in at least one.

    An interval shorter than a window gets one window from its start, which holds only what the interval holds.
    """
    length, step = window_length_us(index, window_s), int(to_microseconds(step_s))
    if not 0 < step <= length:
        raise ConfigError("step_s", f"is {step_s}", f"give seconds above 0 and up to the window's {window_s}")
    intervals = index.segments.intervals(split)
    span = intervals.stop_us - intervals.start_us
    room = np.maximum(span - length, 0)
    count = room // step + 1 + (room % step > 0)
    interval = np.repeat(np.arange(len(span)), count)
    nth = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    start = np.minimum(nth * step, room[interval])
    return _owned(index, intervals, interval, intervals.start_us[interval] + start)


def window_length_us(index: ShardIndex, window_s: float) -> int:
    """A window's length in microseconds; raises ConfigError where the shards cannot serve it."""
    length = int(to_microseconds(window_s))
    if not 0 < length <= index.halo_us:
        raise ConfigError(
            "window_s",
            f"is {window_s}, these shards serve windows up to {index.halo_us / 1e6} s",
            "take a shorter window, or shard again with a larger halo_s",
        )
    return length


def _owned(index: ShardIndex, intervals: IntervalTable, interval: np.ndarray, start_us: np.ndarray) -> WindowTable:
    """Map starts, given with the row of their interval, to the segments that own them."""
    # Lay all intervals end to end on one axis: the segments' starts rise along it, so one search serves all.
    span = intervals.stop_us - intervals.start_us
    shift = np.cumsum(span) - span - intervals.start_us
    owner = np.repeat(np.arange(len(span)), intervals.segments)
    segment = np.repeat(intervals.first - (np.cumsum(intervals.segments) - intervals.segments), intervals.segments)
    segment += np.arange(len(segment))
    edges = index.segments.start_us[segment] + shift[owner]
    at = np.searchsorted(edges, start_us + shift[interval], side="right") - 1
    return WindowTable(np.arange(len(at)), segment[at], start_us)
