"""Indexes of sessions that were never recorded: what a plan is made of, without data."""

from dataclasses import replace

import numpy as np
import pyarrow as pa

from data_prep.session import SPLITS
from sharding.index import ShardIndex
from sharding.tables import SegmentTable, SessionTable, UnitTable

SECOND = 1_000_000


def simulated_index(like: ShardIndex, ids, intervals, *, segment_us=60 * SECOND, per_shard=40, of=None) -> ShardIndex:
    """An index with the settings of `like`: sessions of these ids, in their order.

    intervals: (n, 4) int64 rows of session, split (number in SPLITS), start and stop in microseconds, in the order of
    an index. They are cut into segments of at most segment_us; `per_shard` segments follow each other in a shard.
    of: the (dandiset, subject) of each session.
    """
    session, split, start, stop = np.asarray(intervals, np.int64).reshape(-1, 4).T
    pieces = -(-(stop - start) // segment_us)
    first = np.cumsum(pieces) - pieces
    row = np.repeat(np.arange(len(start)), pieces)
    edge = start[row] + (np.arange(len(row)) - first[row]) * segment_us
    end = np.minimum(edge + segment_us, stop[row])
    group = session * len(SPLITS) + split
    number = np.arange(len(group)) - np.searchsorted(group, group)
    shard = np.arange(len(row)) // per_shard
    files = [f"shard-{i:06d}.tar" for i in range(int(shard.max(initial=-1)) + 1)]
    columns = {
        "interval": number[row],
        "interval_start_us": start[row],
        "interval_stop_us": stop[row],
        "start_us": edge,
        "stop_us": end,
        "carry_us": np.minimum(end + like.halo_us, stop[row]),
    }
    shards = [{"file": name, "bytes": 0, "sha256": ""} for name in files]
    of = of or [("made", name) for name in ids]
    alike = like.sessions.take(np.zeros(len(ids), np.int64)).table
    for name, texts in (("id", ids), ("dandiset", [d for d, _ in of]), ("subject", [s for _, s in of])):
        alike = alike.set_column(alike.schema.get_field_index(name), name, pa.array(list(texts), pa.string()))
    none = np.zeros(len(ids), np.int64)
    return replace(
        like,
        meta={**like.meta, "shards": shards},
        sessions=SessionTable(alike),
        segments=SegmentTable(None, shards, session[row], split[row].astype(np.int8), shard.astype(np.int32), columns),
        unit_table=UnitTable(like.unit_table.stored, none, none),
    )


def many_sessions(like: ShardIndex, sessions: int, segments: int = 24, segment_us: int = 60 * SECOND) -> ShardIndex:
    """Sessions of so many full segments each: four fifths in four train intervals, the rest in valid and test."""
    train = max(segments * 4 // 5 // 4, 1)
    lengths = np.array([train] * 4 + [max((segments - 4 * train) // 2, 1)] * 2) * segment_us
    start = np.cumsum(lengths) - lengths + np.arange(6) * SECOND
    split = np.array([0, 0, 0, 0, 1, 2])
    one = np.stack([np.zeros(6, np.int64), split, start, start + lengths], axis=1)
    intervals = np.tile(one, (sessions, 1))
    intervals[:, 0] = np.repeat(np.arange(sessions), 6)
    names = [f"d{i % 20:02d}/s{i % 500}_{i}" for i in range(sessions)]
    of = [(f"d{i % 20:02d}", f"s{i % 500}") for i in range(sessions)]
    return simulated_index(like, names, intervals, segment_us=segment_us, per_shard=2 * segments, of=of)
