"""A shard root of many sessions without their shards: index.json and tables as a run would have written them."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from data_prep.session import SPLITS
from sharding.files import LocalFiles
from sharding.index import ShardIndex
from sharding.index_meta import read_meta
from sharding.root import CutSettings, write_index
from sharding.tables import SEGMENT_SCHEMA, UNIT_SCHEMA
from sharding.tables_rows import SESSION_SCHEMA, SessionRow, SignalRow, SignalStatistics
from sharding.writer_tables import write_table

MEMBERS = ["json", "spike_time.npy", "spike_unit.npy"]
MEMBERS += [f"{signal}.{part}.npy" for signal in ("cursor_vel", "hand_pos") for part in ("time", "value", "phase")]
SEGMENT_US = 60_000_000
PER_SHARD = 240  # segments
_AT_ONCE = 1 << 17  # rows made at a time


def large_root(folder: Path, sessions: int, units: int = 100, segments: int = 24) -> ShardIndex:
    """Sessions "recipe_k/subject_n" of so many units and segments: two in ten of these are valid, two test."""
    folder.mkdir(parents=True)
    ids = [f"recipe_{n % 20:02d}/s{n % 500:03d}_session-{n:06d}" for n in range(sessions)]
    shards = [
        {"file": f"train-{n:06d}.tar", "bytes": PER_SHARD * 1_000_000, "sha256": f"{n:064x}"}
        for n in range(-(-sessions * segments // PER_SHARD))
    ]
    made = {"sessions": _sessions(ids, units, segments), "units": _units(ids, units)}
    made["segments"] = _segments(ids, segments, [entry["file"] for entry in shards])
    schemas = {"sessions": SESSION_SCHEMA, "units": UNIT_SCHEMA, "segments": SEGMENT_SCHEMA}
    tables = {name: vars(write_table(folder, name, made[name], schemas[name])) for name in made}
    totals = {"sessions": sessions, "units": sessions * units, "segments": sessions * segments}
    meta = {"config": CutSettings().to_json(), "phases": ["random"], "totals": totals, "refused": []}
    write_index(folder, {**meta, "tables": tables, "shards": shards})
    return opened(folder)


def opened(folder: Path) -> ShardIndex:
    """Its index; ShardIndex.open would look for the shards."""
    files = LocalFiles(folder, verify=False)
    return ShardIndex.of(files, read_meta(files))


def _sessions(ids, units, segments):
    told = SignalStatistics.of(np.random.default_rng(0).normal(size=(100, 2)))
    names = ("cursor_vel", "hand_pos")
    row = SessionRow(
        *("", "recipe", "0.1", "asset", "subject", "reach", units, 80_000 * segments, 2000 * segments),
        {split: segments / 180 for split in SPLITS},
        {name: SignalRow(2, "cm/s", 100.0) for name in names},
        {name: told for name in names},
        *({}, {"hold": 0.1, "reach": 5.0, "outlier": 0.0}, ("reach",), ("random", "hold", "reach", "outlier"), "", ""),
    )
    one = pa.Table.from_pylist([row.to_record()], schema=SESSION_SCHEMA)
    for first in range(0, len(ids), _AT_ONCE):
        part = ids[first : first + _AT_ONCE]
        table = one.take(pa.array(np.zeros(len(part), np.int64)))
        columns = {
            "id": part,
            "source": [f"{name}.h5" for name in part],
            "source_sha256": [f"{n:064x}" for n in range(len(part))],
        }
        for name, texts in columns.items():
            table = table.set_column(table.schema.get_field_index(name), name, pa.array(texts, pa.string()))
        yield table


def _units(ids, units):
    for first in range(0, len(ids), max(1, _AT_ONCE // units)):
        part = ids[first : first + max(1, _AT_ONCE // units)]
        n = len(part) * units
        columns = [
            [f"{name}/u{unit:04d}" for name in part for unit in range(units)],
            [name for name in part for _ in range(units)],
            *(["M1"] * n, ["good"] * n, [""] * n, [False] * n, [False] * n, [800] * n, [13.0] * n),
        ]
        yield pa.Table.from_arrays([pa.array(v, f.type) for v, f in zip(columns, UNIT_SCHEMA)], schema=UNIT_SCHEMA)


def _segments(ids, segments, files):
    split = np.minimum(np.maximum(np.arange(segments) * 10 // segments - 5, 0) // 2, 2).astype(np.int32)
    size = np.full(len(MEMBERS), 100_000)
    for first in range(0, len(ids), max(1, _AT_ONCE // segments)):
        session = np.repeat(np.arange(first, min(first + max(1, _AT_ONCE // segments), len(ids))), segments)
        n, own = len(session), np.tile(np.arange(segments), len(session) // segments)
        row = session * segments + own
        start = own.astype(np.int64) * SEGMENT_US
        edges = np.array([(np.flatnonzero(split == k)[[0, -1]] + [0, 1]) * SEGMENT_US for k in range(3)])
        of = split[own]
        offset = (row % PER_SHARD)[:, None] * 1_000_000 + np.arange(len(MEMBERS)) * 100_600 + 512
        columns = {
            "key": pa.array([f"s{s}-{o:06d}" for s, o in zip(session.tolist(), own.tolist())]),
            "session": _text(session - first, ids[first : session[-1] + 1]),
            "split": _text(of, SPLITS),
            "shard": _text(row // PER_SHARD, files),
            "interval": pa.array(np.zeros(n, np.int32)),
            "interval_start_us": edges[of, 0],
            "interval_stop_us": edges[of, 1],
            "start_us": start,
            "stop_us": start + SEGMENT_US,
            "carry_us": np.minimum(start + SEGMENT_US + 1_000_000, edges[of, 1]),
            "spikes": np.full(n, 80_000),
            "targets": np.full(n, 2000),
            "member": _listed(_text(np.tile(np.arange(len(MEMBERS)), n), MEMBERS)),
            "offset": _listed(pa.array(offset.ravel())),
            "bytes": _listed(pa.array(np.tile(size, n))),
            "array_bytes": _listed(pa.array(np.tile(np.where(np.arange(len(MEMBERS)), size - 128, 0), n))),
        }
        arrays = [v if isinstance(v, pa.Array) else pa.array(v) for v in columns.values()]
        yield pa.Table.from_arrays(arrays, schema=SEGMENT_SCHEMA)


def _text(codes, names) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32()), pa.array(list(names), pa.string()))


def _listed(values: pa.Array) -> pa.ListArray:
    """A list a segment, an entry a member."""
    return pa.ListArray.from_arrays(pa.array(np.arange(0, len(values) + 1, len(MEMBERS)), pa.int32()), values)
