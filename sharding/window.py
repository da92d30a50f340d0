"""Mapped shards -> Windows: a crop of a segment is two binary searches and a few views."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from sharding.errors import ConfigError
from sharding.index import ShardIndex
from sharding.mapped import MappedMember
from sharding.segment import PHASE, TIME, UNIT, VALUE, WIDE_UNIT
from sharding.tokens import SPIKE, UNIT_END, UNIT_START, SpikeTokens

# the order in which a window's tokens lie
KINDS = np.array((UNIT_START, UNIT_END, SPIKE), np.int64)


@dataclass(frozen=True)
class Window:
    """A crop [start_us, start_us + length_us) of a segment; spikes and samples are told from the window's start."""

    session: int  # row of index.sessions
    start_us: int  # on the session's clock
    length_us: int
    units: np.ndarray  # (u,) local numbers of the units kept, rising; each gets its start and end mark
    spike_time: np.ndarray  # (s,) int32 microseconds, rising
    spike_unit: np.ndarray  # (s,) uint16 or uint32 local unit numbers
    sample_time: np.ndarray  # (n,) int32 microseconds, rising
    value: np.ndarray  # (n, K) float32, as recorded
    phase: np.ndarray  # (n,) uint8, see ShardIndex.phase_names

    @property
    def tokens(self) -> SpikeTokens:
        """For every kept unit, silent ones too, a start mark at 0 and an end mark at the end; then all spikes.

        time float32 s from the window's start, unit local number, kind.
        """
        u, s = len(self.units), len(self.spike_time)
        time = np.concatenate((np.zeros(u), np.full(u, self.length_us / 1e6), self.spike_time * 1e-6))
        unit = np.concatenate((self.units, self.units, self.spike_unit))
        return SpikeTokens(time.astype(np.float32), unit, np.repeat(KINDS, (u, u, s)))

    def keeping(self, units: np.ndarray) -> "Window":
        """The window as if only these units (local numbers, rising) had been recorded."""
        kept = np.zeros(int(self.units[-1]) + 1 if len(self.units) else 0, bool)
        kept[units] = True
        spikes = kept[self.spike_unit]
        return replace(self, units=units, spike_time=self.spike_time[spikes], spike_unit=self.spike_unit[spikes])


class Reader:
    """Cuts windows out of the shards of an index; one a process, maps are opened when first needed."""

    def __init__(self, index: ShardIndex, signal: str):
        self._sessions = index.sessions
        for session in index.sessions:
            if signal not in session.signals:
                raise ConfigError(
                    session.id,
                    f"has no signal {signal!r}",
                    f"choose among {', '.join(session.signals) or 'none'}, or leave the session out",
                )
        segments, shards = index.segments, index.mapped()
        self._segments, self._session = segments, segments.session
        self._units = [np.arange(session.units) for session in index.sessions]
        self._dims = [session.signals[signal].dims for session in index.sessions]
        self._base, self._carry = segments.start_us, segments.carry_us
        self._spike_time, self._spike_unit, self._time, self._value, self._phase = (
            MappedMember(shards, segments, f"{name}.npy")
            for name in ("spike_time", "spike_unit", f"{signal}.time", f"{signal}.value", f"{signal}.phase")
        )

    def window(self, segment: int, start_us: int, length_us: int) -> Window:
        """The window of a segment (a row of index.segments) from start_us on the session's clock.

        Holds what lies in [start_us, start_us + length_us) and before the segment's carried data end.
        """
        session = self._session[segment]
        first = start_us - int(self._base[segment])
        stop = min(first + length_us, int(self._carry[segment]) - int(self._base[segment]))
        spike_time = self._spike_time.read(segment, TIME)
        wide = self._spike_unit.bytes_of(segment) > 2 * len(spike_time)
        spike_unit = self._spike_unit.read(segment, WIDE_UNIT if wide else UNIT)
        sample_time = self._time.read(segment, TIME)
        i, j = spike_time.searchsorted((first, stop))
        a, b = sample_time.searchsorted((first, stop))
        dims = self._dims[session]
        return Window(
            session,
            start_us,
            length_us,
            self._units[session],
            spike_time[i:j] - first,
            spike_unit[i:j],
            sample_time[a:b] - first,
            self._value.read(segment, VALUE)[a * dims : b * dims].reshape(-1, dims),
            self._phase.read(segment, PHASE)[a:b],
        )

    def stretches(self, split: str) -> Iterator[Window]:
        """Every contiguous interval of a split whole, as one long window, in order; times are int64 here."""
        segments = self._segments
        intervals = segments.intervals(split)
        for first, count, start, stop in zip(
            intervals.first.tolist(),
            intervals.segments.tolist(),
            intervals.start_us.tolist(),
            intervals.stop_us.tolist(),
        ):
            parts = [
                self.window(row, int(segments.start_us[row]), int(segments.stop_us[row] - segments.start_us[row]))
                for row in range(first, first + count)
            ]
            joined = {
                name: np.concatenate([getattr(part, name) for part in parts])
                for name in ("spike_unit", "value", "phase")
            }
            joined |= {
                name: np.concatenate([getattr(part, name) + np.int64(part.start_us - start) for part in parts])
                for name in ("spike_time", "sample_time")
            }
            yield replace(parts[0], start_us=start, length_us=stop - start, **joined)
