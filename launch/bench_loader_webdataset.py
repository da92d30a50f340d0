"""Plain WebDataset: the usual layout, a sample a window, and our shards as a stream; decoded by webdataset, packed."""

import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import count, islice
from pathlib import Path

import numpy as np
import webdataset
from webdataset.tariterators import group_by_keys, tar_file_expander

from sharding.augment import UnitDropout, UnitDropoutConfig
from sharding.batch import Batch
from sharding.index import ShardIndex
from sharding.pack import pack
from sharding.plan import TrainPlan, window_length_us
from sharding.sampling import Sampling, SessionTables
from sharding.stream import Jittered, stream_segments, stream_windows
from sharding.window import Reader, Window

ARRAYS = ("spike_time", "spike_unit", "sample_time", "value", "phase")


def written(index: ShardIndex, sampling: Sampling, folder: Path) -> Path:
    """A tar of the windows of the first epoch, in its order; one that is there of these very shards is kept."""
    path = folder / f"windows-{index.digest()[:12]}.tar"
    if not path.exists():
        plan, reader = TrainPlan(index, sampling.window_s, seed=0), Reader(index, sampling.signal)
        length = window_length_us(index, sampling.window_s)
        table = plan.table(np.arange(plan.windows))
        unfinished = path.with_suffix(".partial")
        folder.mkdir(parents=True, exist_ok=True)
        with webdataset.TarWriter(str(unfinished)) as tar:
            for place, (segment, start) in enumerate(zip(table.segment.tolist(), table.start_us.tolist())):
                window = reader.window(segment, start, length)
                arrays = {f"{name}.npy": np.ascontiguousarray(getattr(window, name)) for name in ARRAYS}
                told = {"session": int(window.session), "start_us": start}
                tar.write({"__key__": f"{place:08d}", "json": told, **arrays})
        os.replace(unfinished, path)
    return path


def batches(
    path: Path, index: ShardIndex, sampling: Sampling, size: int, dropout: UnitDropoutConfig
) -> Iterator[Batch]:
    """Packed batches of the tar's windows, over and over, with unit dropout."""
    tables, drop = SessionTables.of(index, sampling), Dropped(dropout)
    length = window_length_us(index, sampling.window_s)
    units = [np.arange(session.units) for session in index.sessions]
    windows = _endless(path, units, length)
    while True:
        yield pack(drop.some(list(islice(windows, size))), tables)


def _endless(path: Path, units: list[np.ndarray], length_us: int) -> Iterator[Window]:
    while True:
        with open(path, "rb") as stream:
            # what WebDataset(path).decode() strings together, but for the file, which it would leave open
            opened = [{"url": str(path), "stream": stream}]
            for sample in webdataset.DataPipeline([opened], tar_file_expander, group_by_keys, webdataset.decode()):
                told, arrays = sample["json"], [sample[f"{name}.npy"] for name in ARRAYS]
                yield Window(told["session"], told["start_us"], length_us, units[told["session"]], *arrays)


def streamed(index: ShardIndex, sampling: Sampling, size: int, dropout: UnitDropoutConfig) -> Iterator[Batch]:
    """Packed batches of the windows of our own train shards, pass after pass, with unit dropout."""
    tables, drop = SessionTables.of(index, sampling), Dropped(dropout)
    windows = _passes(index, sampling)
    while True:
        yield pack(drop.some(list(islice(windows, size))), tables)


def _passes(index: ShardIndex, sampling: Sampling) -> Iterator[Window]:
    row = {name: number for number, name in enumerate(index.session_ids)}
    urls = [f"{index.root}/{entry['file']}" for entry in index.meta["shards"] if entry["file"].startswith("train-")]
    for number in count():
        chosen = Jittered(sampling.window_s, seed=0, passed=number)
        for one in stream_windows(stream_segments(urls), sampling.signal, chosen):
            if one.session in row:
                yield replace(one.window, session=row[one.session])


class Dropped:
    """Unit dropout as numpy has it ready: as many units as ours keeps, chosen by its own generator.

    Ours draws from counters, in a compiled kernel; its plain twin is there for tests, and would slow this down.
    """

    def __init__(self, config: UnitDropoutConfig):
        self._dropout, self._random, self._place = UnitDropout(config), np.random.default_rng(0), 0

    def some(self, windows: list[Window]) -> list[Window]:
        """The windows with the units that are kept."""
        units = np.array([len(window.units) for window in windows])
        many = self._dropout.counts(units, 0, self._place + np.arange(len(windows)))
        self._place += len(windows)
        chosen = (np.sort(self._random.permutation(u)[:k]) if k < u else None for u, k in zip(units, many))
        return [w if kept is None else w.keeping(kept) for w, kept in zip(windows, chosen)]
