"""The least that a loader of these shards can do: cut windows out of mapped arrays by binary search, and copy them."""

from collections.abc import Iterator

import numpy as np

from sharding.index import ShardIndex
from sharding.mapped import MappedMember
from sharding.plan import TrainPlan, WindowTable, window_length_us
from sharding.segment import PHASE, TIME, UNIT, VALUE, WIDE_UNIT

ARRAYS = ("spike_time", "spike_unit", "sample_time", "value", "phase")


class Floor:
    """Windows of a plan as views of the mapped segments: times and units of spikes; times, values, phases of samples.

    No object, no unit dropout, no lookup, no normalisation and no tensor: no loader does less. The views of whole
    segments are made beforehand.
    """

    def __init__(self, index: ShardIndex, signal: str, window_s: float):
        segments, shards = index.segments, index.mapped()
        self._start = segments.start_us
        self._reach = segments.carry_us - segments.start_us
        self._length = window_length_us(index, window_s)
        self._plan = TrainPlan(index, window_s, seed=0)
        times, units, samples, values, phases = (
            MappedMember(shards, segments, name)
            for name in ("spike_time.npy", "spike_unit.npy", *(f"{signal}.{p}.npy" for p in ("time", "value", "phase")))
        )
        self._arrays: list[tuple[np.ndarray, ...]] = []
        for row in range(len(segments)):
            time, sample = times.read(row, TIME), samples.read(row, TIME)
            unit = UNIT if units.bytes_of(row) == len(time) * UNIT.itemsize else WIDE_UNIT
            value = values.read(row, VALUE).reshape(len(sample), -1)
            self._arrays.append((time, units.read(row, unit), sample, value, phases.read(row, PHASE)))

    def sliced(self, windows: WindowTable) -> list[tuple[np.ndarray, ...]]:
        """The five views (in the order of ARRAYS) of every window."""
        first = windows.start_us - self._start[windows.segment]
        stop = np.minimum(first + self._length, self._reach[windows.segment])
        # needles of the arrays' own type: numpy would cast the whole array for others
        bounds, out = np.stack([first, stop], axis=1).astype(TIME), []
        for segment, bound in zip(windows.segment.tolist(), bounds):
            time, unit, sample, value, phase = self._arrays[segment]
            i, j = time.searchsorted(bound)
            a, b = sample.searchsorted(bound)
            out.append((time[i:j], unit[i:j], sample[a:b], value[a:b], phase[a:b]))
        return out

    def copied(self, windows: WindowTable) -> list[np.ndarray]:
        """The five arrays of all windows end to end; units as int64, as an embedding takes them."""
        joined = [np.concatenate(parts) for parts in zip(*self.sliced(windows))]
        joined[1] = joined[1].astype(np.int64)
        return joined

    def batches(self, size: int) -> Iterator[WindowTable]:
        """The windows of batch after batch, epoch after epoch; made beforehand, an epoch at a time."""
        epoch = 0
        while True:
            first = epoch * self._plan.windows
            whole = self._plan.table(np.arange(first, first + self._plan.windows))
            for at in range(0, max(len(whole) - size, 0) + 1, size):
                part = slice(at, at + size)
                yield WindowTable(whole.place[part], whole.segment[part], whole.start_us[part])
            epoch += 1

    def slicing(self, size: int) -> Iterator[tuple[int, int]]:
        """Slice batch after batch; yields windows and spikes."""
        for windows in self.batches(size):
            cut = self.sliced(windows)
            yield len(cut), sum(len(window[0]) for window in cut)

    def copying(self, size: int) -> Iterator[tuple[int, int]]:
        """Slice and copy batch after batch; yields windows and spikes."""
        for windows in self.batches(size):
            yield len(windows), len(self.copied(windows)[0])
