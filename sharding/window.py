"""Mapped shards -> Windows: a crop of a segment is two binary searches and a few views."""

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from sharding.errors import ConfigError, ShardError
from sharding.files import AGAIN
from sharding.index import ShardIndex
from sharding.segment import PHASE, SIGNAL_ARRAYS, TIME, UNIT, VALUE, WIDE_UNIT
from sharding.tokens import SPIKE, UNIT_END, UNIT_START, SpikeTokens

# the order in which a window's tokens lie
KINDS = np.array((UNIT_START, UNIT_END, SPIKE), np.int64)
NARROW = 2**16  # units of a session that UNIT can tell apart
LAST = np.iinfo(TIME).max  # microseconds from a segment's start that a shard can tell

# What a segment's bytes can have wrong that must not lead a reader astray.
FALLING, UNKNOWN_UNIT = "spike times that fall", "a spike of a unit that its session does not have"
REPEATED, UNKNOWN_PHASE = "sample times that do not rise", "a phase code without a name"

# A segment: rows of its session and shard, bounds on the session's clock, counts, and the first bytes of its arrays.
LOCATED = np.dtype(
    [
        *((name, np.int32) for name in ("session", "shard")),
        *((name, np.int64) for name in ("start_us", "carry_us", "spikes", "samples")),
        *((name, np.int64) for name in ("spike_time", "spike_unit", *SIGNAL_ARRAYS)),
    ]
)


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
    phase: np.ndarray  # (n,) uint8, see SessionRow.phases

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
    """Cuts windows out of the shards of an index; one a process, maps are opened when first needed.

    Crosses to another process as a few plain arrays, nothing of Python's for each segment.
    """

    def __init__(self, index: ShardIndex, signal: str):
        """Raises ConfigError for a session without the signal, ShardError for tables that do not fit the shards."""
        self._root, self._shards = index.root, index.mapped()
        self.units, self.phases = index.sessions.column("units"), index.sessions.lengths("phases")
        self.dims = _dims(index, signal)
        self.segments = _located(index, signal, self.dims)

    def window(self, segment: int, start_us: int, length_us: int) -> Window:
        """The window of a segment (a row of index.segments) from start_us on the session's clock.

        Holds what lies in [start_us, start_us + length_us) and before the segment's carried data end. Raises ShardError
        for a shard that is not there, or whose bytes cannot be a segment's.
        """
        row = self.segments[segment]
        session, spikes, samples = int(row["session"]), int(row["spikes"]), int(row["samples"])
        dims, units = int(self.dims[session]), int(self.units[session])
        first = start_us - int(row["start_us"])
        stop = max(first, min(first + length_us, int(row["carry_us"] - row["start_us"])))
        mapped = self.shard(int(row["shard"]))

        def array(name: str, dtype: np.dtype, count: int) -> np.ndarray:
            return np.frombuffer(mapped, dtype, count, int(row[name])) if count else np.zeros(0, dtype)

        ends = np.clip((first, stop), 0, LAST).astype(TIME)  # needles of another type would have all times copied
        spike_time = array("spike_time", TIME, spikes)
        i, j = spike_time.searchsorted(ends)
        spike_time = spike_time[i:j] - first
        spike_unit = array("spike_unit", WIDE_UNIT if units > NARROW else UNIT, spikes)[i:j]
        sample_time = array("time", TIME, samples)
        a, b = sample_time.searchsorted(ends)
        sample_time = sample_time[a:b] - first
        phase = array("phase", PHASE, samples)[a:b]
        for damage, found in (
            (FALLING, (spike_time[1:] < spike_time[:-1]).any() or j < i),
            (UNKNOWN_UNIT, (spike_unit >= units).any()),
            (REPEATED, (sample_time[1:] <= sample_time[:-1]).any() or b < a),
            (UNKNOWN_PHASE, (phase >= self.phases[session]).any()),
        ):
            if found:
                raise self.damaged(segment, damage)
        value = array("value", VALUE, samples * dims)[a * dims : b * dims].reshape(-1, dims)
        return Window(session, start_us, length_us, np.arange(units), spike_time, spike_unit, sample_time, value, phase)

    def shard(self, number: int) -> np.ndarray:
        """The bytes of a shard, mapped; raises ShardError where it cannot be, or was cut short since.

        What is gone from a file cannot be read from its map: the system would end the process.
        """
        array, size = self._shards.array(number), self._shards.map(number).size()
        if size != len(array):
            found = f"has {size} bytes since it was opened, its index says {len(array)}"
            raise ShardError(self._file(number), found, AGAIN)
        return array

    def damaged(self, segment: int, damage: str) -> ShardError:
        """What to raise for a segment whose bytes cannot be right."""
        row = self.segments[segment]
        key = _key_at(self.shard(int(row["shard"])), int(row["spike_time"]))
        return ShardError(
            self._file(int(row["shard"])), f"segment {key} holds {damage}", f"run `spikeloom check {self._root}`"
        )

    def _file(self, number: int) -> str:
        return f"{self._root}/{self._shards.files[number]}"


def interval_windows(index: ShardIndex, signal: str, split: str) -> Iterator[Window]:
    """Every contiguous interval of a split whole, as one long window, in order; times are int64 here."""
    reader, intervals = Reader(index, signal), index.segments.intervals(split)
    begin, end = index.segments.start_us, index.segments.stop_us
    for first, count, start, stop in zip(
        intervals.first.tolist(),
        intervals.segments.tolist(),
        intervals.start_us.tolist(),
        intervals.stop_us.tolist(),
    ):
        parts = [reader.window(row, int(begin[row]), int(end[row] - begin[row])) for row in range(first, first + count)]
        joined = {
            name: np.concatenate([getattr(part, name) for part in parts]) for name in ("spike_unit", "value", "phase")
        }
        joined |= {
            name: np.concatenate([getattr(part, name) + np.int64(part.start_us - start) for part in parts])
            for name in ("spike_time", "sample_time")
        }
        yield replace(parts[0], start_us=start, length_us=stop - start, **joined)


def _dims(index: ShardIndex, signal: str) -> np.ndarray:
    """(sessions,) dimensions of a signal; raises ConfigError for a session without it."""
    dims = index.sessions.dims(signal)
    for row in np.flatnonzero(dims == 0).tolist():
        session = index.sessions[row]
        raise ConfigError(
            session.id,
            f"has no signal {signal!r}",
            f"choose among {', '.join(session.signals) or 'none'}, or leave the session out",
        )
    return dims


def _located(index: ShardIndex, signal: str, dims: np.ndarray) -> np.ndarray:
    """Where the arrays of every segment lie, (n,) LOCATED; raises ShardError where sizes do not fit together.

    What is checked here is what lets compiled code read by bare addresses: every array lies within its shard.
    """
    segments = index.segments
    out = np.zeros(len(segments), LOCATED)
    out["session"], out["shard"] = segments.session, segments.shard
    out["start_us"], out["carry_us"] = segments.start_us, segments.carry_us
    files = [f"{file}.npy" for file in ("spike_time", "spike_unit", *(f"{signal}.{part}" for part in SIGNAL_ARRAYS))]
    members = dict(zip(("spike_time", "spike_unit", *SIGNAL_ARRAYS), segments.members(files)))
    out["spikes"] = np.maximum(members["spike_time"][1], 0) // TIME.itemsize
    out["samples"] = np.maximum(members["phase"][1], 0)
    wide = np.where(index.sessions.column("units") > NARROW, WIDE_UNIT.itemsize, UNIT.itemsize)[out["session"]]
    sizes = {
        "spike_time": (TIME.itemsize, out["spikes"] * TIME.itemsize),
        "spike_unit": (wide, out["spikes"] * wide),
        "time": (TIME.itemsize, out["samples"] * TIME.itemsize),
        "value": (VALUE.itemsize, out["samples"] * VALUE.itemsize * dims[out["session"]]),
        "phase": (1, out["samples"]),
    }
    ends = np.array([entry["bytes"] for entry in index.meta["shards"]] + [0], np.int64)[out["shard"]]
    wrong = np.zeros(len(segments), bool)
    for name, (width, size) in sizes.items():
        out[name], told = members[name]
        wrong |= (told != size) | (out[name] < 0) | (out[name] > ends - size) | (out[name] % width != 0)
    if wrong.any():
        key = segments.table.column("key")[int(np.flatnonzero(wrong)[0])].as_py()
        raise ShardError(index.root, f"its tables tell arrays of segment {key} that do not fit together", AGAIN)
    return out


def _key_at(mapped: np.ndarray, position: int) -> str:
    """The key of the segment with an array at a byte of a shard: slow, and only for a message."""
    try:
        with tarfile.open(fileobj=io.BytesIO(mapped), mode="r:") as shard:
            for member in shard:
                if member.offset_data <= position <= member.offset_data + member.size:
                    return member.name.partition(".")[0]
    except tarfile.TarError:
        pass
    return f"at byte {position}"
