"""ShardIndex -> which window comes when: jittered and shuffled for training, overlapping and in order for evaluation.

All is arithmetic on numpy arrays by session, interval and segment; nothing is listed by window, so that start-up, memory
and the bytes that cross to a worker do not grow with the number of windows.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from sharding.blocks import Atoms, Layout
from sharding.counter import BLOCKS, PASS, SHUFFLE, key_of, permuted, words
from sharding.errors import ConfigError
from sharding.index import ShardIndex
from sharding.jitter import interval_offset, nth_start, session_words
from sharding.mix import MIXED_BY, MixConfig, quotas
from sharding.tables import IntervalTable, SegmentTable
from sharding.tokens import to_microseconds

CHUNK = 4096  # places that are worked out together: a few cost nearly as much as all of them
EPOCHS = 2  # whose blocks are kept at hand


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


class Stretches:
    """Contiguous intervals laid end to end on one axis, along which the starts of their segments rise: one search finds
    the segments that own any windows."""

    def __init__(self, segments: SegmentTable, intervals: IntervalTable):
        self.start_us, self.span = intervals.start_us, intervals.stop_us - intervals.start_us
        self._shift = np.cumsum(self.span) - self.span - self.start_us
        self._before = intervals.first - (np.cumsum(intervals.segments) - intervals.segments)
        row, interval = _segments_of(intervals)
        self._edge = segments.start_us[row] + self._shift[interval]

    def table(self, place: np.ndarray, interval: np.ndarray, start: np.ndarray) -> WindowTable:
        """The windows at places (n,) that start so many microseconds (n,) into intervals (n,)."""
        start_us = self.start_us[interval] + start
        at = np.searchsorted(self._edge, start_us + self._shift[interval], side="right") - 1
        return WindowTable(place, self._before[interval] + at, start_us)


class TrainPlan:
    """Which window of the train split comes at which place, a pure function of (seed, place).

    A pass over a session draws an offset for each of its contiguous intervals and has floor(length / window) windows of
    each (jitter.py). Without a mix an epoch is one pass over every session. With a mix a session has its quota of places
    in every epoch (`quota`, (sessions,)), and its passes go on from epoch to epoch, each in an order of its own, so that
    every window is seen once before any is seen twice. All windows of an epoch are shuffled together.

    block_shards > 0 bounds how many shards are read at a time: sessions that begin in one shard stay together, such
    groups are shuffled and put together to blocks of at most so many shards (more only where one group alone has more),
    and windows are shuffled within blocks, which follow each other. Which groups form a block, and in which order blocks
    come, is drawn anew each epoch. Batches are then less mixed: those of one block hold only its sessions, about
    block_shards / shards of all, so a gradient leans to a few sessions for as long as a block lasts; which sessions
    begin in one shard is fixed, so those always come together. 0 shuffles all windows of an epoch together.
    """

    def __init__(
        self, index: ShardIndex, window_s: float, seed: int, mix: MixConfig | None = None, block_shards: int = 0
    ):
        """Raises ConfigError for windows the shards cannot serve, a mix that cannot be had, and numbers out of range."""
        if block_shards < 0:
            raise ConfigError("block_shards", f"is {block_shards}", "give a number of shards, or 0 for no blocks")
        self.seed, self.block_shards, self.length_us = seed, block_shards, window_length_us(index, window_s)
        self._shuffle, self._pass, self._block = (key_of(seed, stream) for stream in (SHUFFLE, PASS, BLOCKS))
        segments, intervals = index.segments, index.segments.intervals("train")
        self._stretches = Stretches(segments, intervals)
        session, self._interval = segments.session[intervals.first], segments.column("interval")[intervals.first]
        count = self._stretches.span // self.length_us
        self._until = np.cumsum(count)  # windows of a pass over all sessions, up to and with each interval
        self._begin = self._until - count
        per_session = np.bincount(session, count, len(index.session_ids))
        self._count = per_session.astype(np.int64)  # windows of a pass over each session
        self._first = np.cumsum(self._count) - self._count
        self._words = np.array([session_words(name) for name in index.session_ids], np.uint64).reshape(-1, 2)
        self.windows = int(count.sum())  # of every epoch
        self.quota = self._count if mix is None else quotas(index.sessions.records(*MIXED_BY), self._count, mix)
        self._atoms = _atoms(index, intervals, (count > 0) & (self.quota[session] > 0))
        # With blocks every epoch of a chunk costs a layout of its own.
        self._run = max(min(CHUNK, self.windows), 1) if block_shards else CHUNK
        self._remember()

    def _remember(self) -> None:
        self._layout, self._chunk = lru_cache(EPOCHS)(self._laid_out), lru_cache(2)(self._worked_out)

    def __getstate__(self) -> dict:
        """Plain arrays and numbers; what is only kept at hand is worked out again."""
        return {name: value for name, value in vars(self).items() if name not in ("_layout", "_chunk")}

    def __setstate__(self, state: dict):
        vars(self).update(state)
        self._remember()

    def table(self, place: np.ndarray) -> WindowTable:
        """The windows at these places (n,) int64, in any order, of any epochs."""
        place = np.asarray(place, np.int64)
        if not len(place):
            return WindowTable(place, place, place)
        first, last = int(place.min()) // self._run, int(place.max()) // self._run
        if last - first > 1:
            return self._windows(place)
        near, at = self._chunk(first), place - first * self._run
        if first == last:
            return WindowTable(place, near.segment[at], near.start_us[at])
        next_ = self._chunk(last)
        segment = np.concatenate((near.segment, next_.segment))
        return WindowTable(place, segment[at], np.concatenate((near.start_us, next_.start_us))[at])

    def blocks(self, epoch: int) -> list[tuple[int, tuple[int, ...]]]:
        """The first place and the shards (numbers in the index's order of files) of the blocks of an epoch, in order."""
        layout = self._layout(epoch if self.block_shards else 0)
        return [(epoch * self.windows + first, shards) for first, shards in zip(layout.first.tolist(), layout.shards)]

    def _laid_out(self, epoch: int) -> Layout:
        if self.block_shards:
            return self._atoms.layout(self.quota, self.block_shards, epoch, self._block)
        return self._atoms.whole(self.quota)

    def _worked_out(self, chunk: int) -> WindowTable:
        return self._windows(np.arange(chunk * self._run, (chunk + 1) * self._run))

    def _windows(self, place: np.ndarray) -> WindowTable:
        epoch, position = np.divmod(place, self.windows)
        session, nth = self._draws(epoch, position)
        passed, nth = np.divmod(epoch * self.quota[session] + nth, self._count[session])
        low, high = self._words[session].T
        # A session whose windows all come in every epoch needs no order of its own: the epoch is shuffled.
        part = np.flatnonzero(self.quota[session] != self._count[session])
        if len(part):
            counter = (words(passed[part])[0], 0, low[part], high[part])
            nth[part] = permuted(nth[part], self._count[session[part]], counter, self._pass)
        nth += self._first[session]
        interval = np.searchsorted(self._until, nth, side="right")
        nth -= self._begin[interval]
        offset = interval_offset(self.seed, (low, high), self._interval[interval], passed, self.length_us)
        start = nth_start(nth, self._stretches.span[interval], self.length_us, offset)
        return self._stretches.table(place, interval, start)

    def _draws(self, epoch: np.ndarray, position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The session (n,) whose window comes at each position (n,) of its epoch, and the number among its quota."""
        if self.block_shards:
            parts = [(self._layout(int(e)), np.flatnonzero(epoch == e)) for e in np.unique(epoch)]
        else:
            parts = [(self._layout(0), np.arange(len(epoch)))]
        block, first, size, session, nth = np.empty((5, len(epoch)), np.int64)
        for layout, rows in parts:
            block[rows] = np.searchsorted(layout.stop, position[rows], side="right")
            first[rows] = layout.first[block[rows]]
            size[rows] = layout.stop[block[rows]] - first[rows]
        slot = first + permuted(position - first, size, (*words(epoch), block, 0), self._shuffle)
        for layout, rows in parts:
            at = np.searchsorted(layout.until, slot[rows], side="right")
            session[rows] = layout.session[at]
            nth[rows] = slot[rows] - (layout.until[at] - self.quota[session[rows]])
        return session, nth


class EvalPlan:
    """Windows every `step_s` and one ending with each interval of a split, in time order; place is their number.

    Every sample lies in at least one. An interval shorter than a window gets one window from its start, which holds
    only what the interval holds.
    """

    def __init__(self, index: ShardIndex, split: str, window_s: float, step_s: float):
        """Raises ConfigError for windows the shards cannot serve, and for steps that would leave samples out."""
        length, self._step = window_length_us(index, window_s), int(to_microseconds(step_s))
        if not 0 < self._step <= length:
            raise ConfigError("step_s", f"is {step_s}", f"give seconds above 0 and up to the window's {window_s}")
        self._stretches = Stretches(index.segments, index.segments.intervals(split))
        self._room = np.maximum(self._stretches.span - length, 0)
        count = -(-self._room // self._step) + 1
        self._until = np.cumsum(count)  # windows, up to and with each interval
        self._first = self._until - count
        self.windows = int(count.sum())

    def table(self, place: np.ndarray) -> WindowTable:
        """The windows at these places (n,) int64, in any order."""
        place = np.asarray(place, np.int64)
        interval = np.searchsorted(self._until, place, side="right")
        nth = place - self._first[interval]
        return self._stretches.table(place, interval, np.minimum(nth * self._step, self._room[interval]))


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


def _segments_of(intervals: IntervalTable) -> tuple[np.ndarray, np.ndarray]:
    """Rows (m,) of the segments of intervals, in order, and the interval (m,) that each belongs to."""
    interval = np.repeat(np.arange(len(intervals.first)), intervals.segments)
    before = intervals.first - (np.cumsum(intervals.segments) - intervals.segments)
    return before[interval] + np.arange(len(interval)), interval


def _atoms(index: ShardIndex, intervals: IntervalTable, used: np.ndarray) -> Atoms:
    """The sessions by the shards of the segments of those intervals that give windows, the mask `used` (intervals,)."""
    row, interval = _segments_of(intervals)
    row = row[used[interval]]
    return Atoms.of(index.segments.session[row], index.segments.shard[row].astype(np.int64))
