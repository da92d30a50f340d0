"""The first minutes of each session's train split: its segments clipped, its counts and statistics told anew."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from data_prep.session import SPLITS
from sharding.mapped import MappedMember, MappedShards
from sharding.segment import PHASE, TIME, VALUE
from sharding.tables import SegmentTable, SessionTable, runs
from sharding.tables_rows import SessionRow, SignalStatistics


def clipped(segments: SegmentTable, limit_us: int) -> tuple[SegmentTable, np.ndarray]:
    """The segments within the first microseconds of each session's train split and of other splits all; and which rows
    (m,) of these own less than before."""
    whole = segments.intervals("train")
    length, session = whole.stop_us - whole.start_us, segments.session[whole.first]
    before = np.cumsum(length) - length  # of all sessions, then of the same session
    before -= before[np.searchsorted(session, session)]
    left = np.clip(limit_us - before, 0, length)
    stop = np.full(len(segments), np.iinfo(np.int64).max)
    stop[runs(whole.first, whole.segments)] = np.repeat(whole.start_us + left, whole.segments)
    names = ("interval_stop_us", "stop_us", "carry_us")
    shorter = segments.replaced(**{name: np.minimum(segments.column(name), stop) for name in names})
    kept = segments.start_us < stop
    return shorter.take(kept), np.flatnonzero((shorter.stop_us < segments.stop_us)[kept])


def recounted(segments: SegmentTable, shards: MappedShards, signals, rows: np.ndarray) -> SegmentTable:
    """The segments with spikes and targets of these signals counted again in those rows."""
    spikes, targets = segments.column("spikes").copy(), segments.column("targets").copy()
    times = [MappedMember(shards, segments, f"{name}.time.npy") for name in signals]
    spike_time = MappedMember(shards, segments, "spike_time.npy")
    for row in rows.tolist():
        owned = segments.stop_us[row] - segments.start_us[row]
        spikes[row] = np.searchsorted(spike_time.read(row, TIME), owned)
        targets[row] = sum(np.searchsorted(time.read(row, TIME), owned) for time in times if time.bytes_of(row) > 0)
    return segments.replaced(spikes=spikes, targets=targets)


def retold(sessions: SessionTable, segments: SegmentTable, shards: MappedShards) -> Iterator[SessionRow]:
    """Session rows with counts, train hours and statistics of these segments."""
    counts = {
        name: np.bincount(segments.session, segments.column(name), len(sessions)).astype(int).tolist()
        for name in ("spikes", "targets")
    }
    members = {
        name: [MappedMember(shards, segments, f"{name}.{part}.npy") for part in ("time", "value", "phase")]
        for name in sessions.names("signals")
    }
    train = np.flatnonzero(segments.split == SPLITS.index("train"))
    edges = np.searchsorted(segments.session[train], np.arange(len(sessions) + 1))
    for row, session in enumerate(sessions):
        mine, told = train[edges[row] : edges[row + 1]], {}
        outlier = session.phases.index("outlier") if "outlier" in session.phases else -1
        for name, signal in session.signals.items():
            parts = [np.zeros((0, signal.dims), np.float32)]
            for segment in mine.tolist():
                time, value, phase = (m.read(segment, t) for m, t in zip(members[name], (TIME, VALUE, PHASE)))
                n = int(np.searchsorted(time, segments.stop_us[segment] - segments.start_us[segment]))
                parts.append(value.reshape(-1, signal.dims)[:n][phase[:n] != outlier])
            told[name] = SignalStatistics.of(np.concatenate(parts))
        hours = float((segments.stop_us[mine] - segments.start_us[mine]).sum() / 3600e6)
        yield replace(
            session,
            statistics=told,
            hours={**session.hours, "train": hours},
            **{name: counts[name][row] for name in counts},
        )
