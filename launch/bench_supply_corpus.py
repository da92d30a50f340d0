"""Numbers of sessions and segments -> a shard root of that size whose shards are holes: an index without data."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import compute

from sharding.root import CutSettings, write_index
from sharding.tables import SEGMENT_SCHEMA, UNIT_SCHEMA
from sharding.tables_rows import SESSION_SCHEMA, SessionRow, SignalRow, SignalStatistics
from sharding.writer_tables import write_table

SIGNAL, SIGNAL_HZ, SPIKE_HZ = "cursor_vel", 100, 13
PER_SHARD = 160  # segments; about 100 MB where each has 60 s of 100 units
AT_ONCE = 2000  # sessions whose rows are made together
HEADER = 128  # bytes before the array of an .npy member
INTERVALS = (0, 0, 0, 0, 1, 2)  # split of each contiguous stretch of a session; a stretch has as many segments as any


@dataclass(frozen=True)
class Corpus:
    """Alike sessions, each of six stretches: four train, one valid and one test."""

    sessions: int
    segments: int = 24  # of a session; a multiple of 6
    segment_s: int = 60
    units: int = 100  # of a session

    @property
    def hours(self) -> float:
        return self.sessions * self.segments * self.segment_s / 3600

    def __str__(self) -> str:
        return (
            f"{self.sessions:,} sessions, {self.sessions * self.segments:,} segments of {self.segment_s} s, "
            f"{self.hours:,.0f} h, {self.sessions * self.units:,} units"
        )


def written(corpus: Corpus, folder: Path) -> Path:
    """The root, below `folder`; one that is there is kept."""
    root = folder / "-".join(str(number) for number in asdict(corpus).values())
    if (root / "index.json").exists():
        return root
    root.mkdir(parents=True, exist_ok=True)
    members = _members(corpus)
    room = sum(512 + -(-(HEADER + size) // 512) * 512 for size in members.values())  # of a segment in its tar
    shards = -(-corpus.sessions * corpus.segments // PER_SHARD)
    for number in range(shards):
        with open(root / _shard(number), "wb") as shard:
            os.truncate(shard.fileno(), PER_SHARD * room)
    runs = [np.arange(a, min(a + AT_ONCE, corpus.sessions)) for a in range(0, corpus.sessions, AT_ONCE)]
    tables = {
        "sessions": write_table(root, "sessions", (_sessions(corpus, run) for run in runs), SESSION_SCHEMA),
        "units": write_table(root, "units", (_units(corpus, run) for run in runs), UNIT_SCHEMA),
        "segments": write_table(root, "segments", (_segments(corpus, run, members) for run in runs), SEGMENT_SCHEMA),
    }
    meta = {
        "config": CutSettings(segment_us=corpus.segment_s * 1_000_000).to_json(),
        "phases": ["random", "reach"],
        "totals": {"sessions": corpus.sessions, "units": corpus.sessions * corpus.units},
        "refused": [],
        "tables": {name: asdict(file) for name, file in tables.items()},
        "shards": [{"file": _shard(n), "bytes": PER_SHARD * room, "sha256": "0" * 64} for n in range(shards)],
    }
    write_index(root, meta)
    return root


def _shard(number: int) -> str:
    return f"train-{number:06d}.tar"


def _names(run: np.ndarray) -> list[str]:
    return [f"dandiset{n % 20:02d}/subject{n % 500:03d}_{n:06d}" for n in run.tolist()]


def _members(corpus: Corpus) -> dict[str, int]:
    """Bytes of the array of each member of a segment, at most."""
    spikes = SPIKE_HZ * corpus.units * (corpus.segment_s + 1)
    samples = SIGNAL_HZ * (corpus.segment_s + 1)
    sizes = {"time": 4 * samples, "value": 8 * samples, "phase": samples}
    told = {"spike_time.npy": 4 * spikes, "spike_unit.npy": 2 * spikes}
    return told | {f"{SIGNAL}.{part}.npy": size for part, size in sizes.items()}


def _sessions(corpus: Corpus, run: np.ndarray) -> pa.Table:
    segments, hours = corpus.segments, corpus.segment_s / 3600
    row = SessionRow(
        id="",
        dandiset="simulated",
        version="0",
        asset="",
        subject="nobody",
        paradigm="reach",
        units=corpus.units,
        spikes=SPIKE_HZ * corpus.units * segments * corpus.segment_s,
        targets=SIGNAL_HZ * segments * corpus.segment_s,
        hours={"train": segments * 4 / 6 * hours, "valid": segments / 6 * hours, "test": segments / 6 * hours},
        signals={SIGNAL: SignalRow(2, "cm/s", SIGNAL_HZ)},
        statistics={SIGNAL: SignalStatistics(1000, np.zeros(2), np.ones(2), np.ones(2))},
        target_scale={SIGNAL: 20.0},
        loss_weights={"reach": 5.0},
        eval_phases=("reach",),
        phases=("random", "reach"),
        source="",
        source_sha256="0" * 64,
    )
    one = pa.Table.from_pylist([row.to_record()], schema=SESSION_SCHEMA)
    return one.take(pa.array(np.zeros(len(run), np.int64))).set_column(0, "id", pa.array(_names(run)))


def _units(corpus: Corpus, run: np.ndarray) -> pa.Table:
    count = len(run) * corpus.units
    session = pa.array(_names(run)).take(pa.array(np.repeat(np.arange(len(run)), corpus.units)))
    number = pa.array([f"unit{n:03d}" for n in range(corpus.units)]).take(
        pa.array(np.tile(np.arange(corpus.units), len(run)))
    )
    columns = {
        "id": compute.binary_join_element_wise(session, number, "/"),
        "session": session,
        **{
            name: pa.array([text]).take(pa.array(np.zeros(count, np.int64)))
            for name, text in (("region", "M1"), ("quality", "good"), ("electrode", ""))
        },
        "held_out": np.zeros(count, bool),
        "missing": np.zeros(count, bool),
        "spikes": np.full(count, SPIKE_HZ * corpus.segments * corpus.segment_s),
        "rate": np.full(count, float(SPIKE_HZ)),
    }
    return pa.table([columns[name] for name in UNIT_SCHEMA.names], schema=UNIT_SCHEMA)


def _segments(corpus: Corpus, run: np.ndarray, members: dict[str, int]) -> pa.Table:
    length, each = corpus.segment_s * 1_000_000, corpus.segments // len(INTERVALS)
    count, many = len(run) * corpus.segments, len(members)
    within = np.tile(np.arange(corpus.segments), len(run))
    number = run[0] * corpus.segments + np.arange(count)  # of the segment in all
    stretch, nth = within // each, within % each
    split = np.array(INTERVALS)[stretch]
    random = np.random.default_rng(int(run[0]))  # numbers as uneven as those of recordings: even ones pack too well
    begin = stretch * (each * length + 1_000_000) + np.repeat(random.integers(10**7, 10**9, len(run)), corpus.segments)
    spikes = random.integers(SPIKE_HZ * corpus.units * corpus.segment_s // 2, members["spike_unit.npy"] // 2, count)
    start, stop = begin + nth * length, begin + (nth + 1) * length
    most = np.array(list(members.values()))
    sizes = np.tile(most, (count, 1))
    sizes[:, 0], sizes[:, 1] = 4 * spikes, 2 * spikes
    blocks = 512 + -(-(HEADER + most) // 512) * 512
    offset = number[:, None] % PER_SHARD * blocks.sum() + np.cumsum(blocks) - blocks + 512
    shard, first = number // PER_SHARD, int(number[0]) // PER_SHARD
    lists = np.arange(count + 1, dtype=np.int32) * many
    columns = {
        "key": [f"{n}" for n in number.tolist()],
        "session": _text(np.repeat(np.arange(len(run)), corpus.segments), _names(run)),
        "split": _text(split, CutSettings().splits),
        "shard": _text(shard - first, [_shard(n) for n in range(first, int(shard[-1]) + 1)]),
        "interval": np.where(split == 0, stretch, 0),
        "interval_start_us": begin,
        "interval_stop_us": begin + each * length,
        "start_us": start,
        "stop_us": stop,
        "carry_us": np.minimum(stop + 1_000_000, begin + each * length),
        "spikes": spikes,
        "targets": np.full(count, SIGNAL_HZ * corpus.segment_s),
        "member": pa.ListArray.from_arrays(lists, _text(np.tile(np.arange(many), count), list(members))),
        "offset": pa.ListArray.from_arrays(lists, offset.ravel()),
        "bytes": pa.ListArray.from_arrays(lists, (sizes + HEADER).ravel()),
        "array_bytes": pa.ListArray.from_arrays(lists, sizes.ravel()),
    }
    whole = [
        pa.array(columns[field.name], None if isinstance(columns[field.name], pa.Array) else field.type)
        for field in SEGMENT_SCHEMA
    ]
    return pa.table(whole, schema=SEGMENT_SCHEMA)


def _text(codes: np.ndarray, names) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32()), pa.array(list(names), pa.string()))
