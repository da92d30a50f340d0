"""Sessions made directly from numpy, and shard roots of them."""

from pathlib import Path

import numpy as np
import pytest

from data_prep.session import Intervals, Session, Signal, Spikes, Units
from sharding.index import ShardIndex
from sharding.root import CutSettings, RootWriter, Source

SECOND = 1_000_000


def make_session(
    seed: int = 0,
    *,
    name: str | None = None,
    units: int = 12,
    rate: float = 13.0,
    seconds: float = 40.0,
    hz: float = 100.0,
    start: float = 3.25,
    splits=None,
    dims: int = 2,
    signals=("cursor_vel",),
    scale: dict | None = None,
) -> Session:
    """A session of Poisson spikes and smooth noise; the last unit is silent, 2 % of the samples are invalid."""
    random = np.random.default_rng(seed)
    stop = start + seconds
    count = random.poisson(rate * units * seconds)
    spikes = np.sort(random.uniform(start - 1, stop + 1, count))
    unit = random.integers(0, max(units - 1, 1), count).astype(np.uint32)
    time = np.arange(start, stop, 1 / hz) + 0.0003
    made = {}
    for signal in signals:
        value = np.cumsum(random.normal(size=(len(time), dims)), axis=0).astype(np.float32)
        valid = random.random(len(time)) > 0.02
        made[signal] = Signal(signal, time, value, "cm/s", valid)
    if splits is None:
        a, b = start + 0.6 * seconds, start + 0.8 * seconds
        splits = {
            "train": [(start, start + 0.25 * seconds), (start + 0.3 * seconds, a)],
            "valid": [(a, b)],
            "test": [(b, stop)],
        }
    middle = start + seconds / 3
    phases = {
        "hold": Intervals.of([(start + 1, middle)]),
        "reach": Intervals.of([(middle - 2, middle + 6)]),
        "outlier": Intervals.of([(start + 2, start + 2.5)]),
    }
    return Session(
        id=name or f"made/m_{seed}",
        dandiset="made",
        subject="m",
        paradigm="reach",
        units=Units(tuple(f"u{i}" for i in range(units)), ("M1",) * units, ("good",) * units),
        spikes=Spikes(spikes, unit),
        signals=made,
        trials=Intervals.of([]),
        trial_columns={},
        phases=phases,
        domain=Intervals.of([(start, stop)]),
        splits={split: Intervals.of(splits.get(split, [])) for split in ("train", "valid", "test")},
        loss_weights={"hold": 0.1, "reach": 5.0, "outlier": 0.0},
        eval_phases=("reach",),
        target_scale=scale or {},
    )


def write_root(folder: Path, sessions, **settings) -> ShardIndex:
    """Shards of sessions that lie in memory."""
    with RootWriter(folder, CutSettings(**settings)) as root:
        for session in sessions:
            root.add(session, root.cut(session), Source(f"{session.id}.h5", "0" * 64))
        root.finish([])
    return ShardIndex.open(folder)


@pytest.fixture(scope="session")
def sessions() -> list[Session]:
    return [make_session(0), make_session(1, units=7, hz=50.0, seconds=61.3), make_session(2, units=30, seconds=25.0)]


@pytest.fixture(scope="session")
def index(sessions, tmp_path_factory) -> ShardIndex:
    return write_root(tmp_path_factory.mktemp("shards"), sessions, segment_us=7 * SECOND)


@pytest.fixture(scope="session")
def session_maker():
    return make_session


@pytest.fixture(scope="session")
def root_writer():
    return write_root
