"""A shard root -> every fault in it: checksums, index against tars, data, splits that overlap, windows lost at seams."""

import multiprocessing
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from sharding.cache import CacheConfig
from sharding.check_found import Fault, Moments, SessionSums, ShardFound
from sharding.check_index import index_faults
from sharding.check_segment import SessionFacts
from sharding.check_shard import ShardJob, check_shard
from sharding.errors import ConfigError, ShardError
from sharding.files import RootFiles, files_at
from sharding.index import ShardIndex
from sharding.index_meta import read_meta
from sharding.tables_rows import SessionRow

TOLERANCE = 1e-6  # of a std; sums in another order differ by less
Begin = Callable[[int, int], None]  # how many shards, how many bytes
Step = Callable[[str, int], None]  # name and bytes of a shard that is done


@dataclass(frozen=True)
class CheckConfig:
    """Which shards are checked, and by how many processes."""

    root: str
    "Shard root: a folder or a URL."
    workers: int = 1
    "Processes that read shards side by side."
    cache: CacheConfig = field(default_factory=CacheConfig)
    "Where shards of a URL are kept while they are read."


@dataclass(frozen=True)
class Checked:
    """What a check found, and how much it read in how many seconds."""

    faults: tuple[Fault, ...]
    files: int
    bytes: int
    segments: int
    spikes: int
    seconds: float


def check(config: CheckConfig, begin: Begin = lambda n, total: None, step: Step = lambda name, n: None) -> Checked:
    """Hold every byte of a shard root against its index, the index against itself and data against what they must be.

    A damaged file is a row among the faults and the check goes on; where there is no index that can be read nothing
    can be compared: that is the one fault then. Raises ConfigError for settings that make no sense.
    """
    if config.workers < 1:
        raise ConfigError("workers", f"is {config.workers}", "give 1 or more")
    began = time.monotonic()
    files = files_at(config.root, config.cache, verify=False)  # each shard is compared here, in the one pass over it
    try:
        index = ShardIndex.of(files, read_meta(files))
    except ShardError as error:
        return Checked((Fault(str(error.where), error.found),), 0, 0, 0, 0, time.monotonic() - began)
    files.prefetch(index.meta["shards"])  # of a URL: the next ones come while one is looked at
    begin(len(index.meta["shards"]), sum(entry["bytes"] for entry in index.meta["shards"]))
    faults, sums, untold = [*_strays(index), *index_faults(index)], {}, set()
    count = size = segments = spikes = 0
    for job, found in _answers(files, _jobs(index), config.workers):
        faults += found.faults
        untold |= found.untold
        for name, told in found.sums.items():
            sums[name] = sums[name].joined(told) if name in sums else told
        count, size = count + bool(found.bytes), size + found.bytes
        segments, spikes = segments + found.segments, spikes + found.spikes
        step(job.entry["file"], job.entry["bytes"])
    of_unit, first = index.unit_table.chosen().numbers(["spikes"])["spikes"], index.unit_table.first
    for row, at in zip(index.sessions, first.tolist()):
        if row.id not in untold and row.id in sums:
            faults += _sum_faults(row, of_unit[at : at + row.units], sums[row.id])
    return Checked(tuple(faults), count, size, segments, spikes, time.monotonic() - began)


def _strays(index: ShardIndex) -> Iterator[Fault]:
    """Shards in a folder that the index does not name: who streams all of a folder would meet them."""
    if isinstance(index.root, Path):
        named = {entry["file"] for entry in index.meta["shards"]}
        for name in sorted(path.name for path in index.root.glob("*.tar") if path.name not in named):
            yield Fault(name, "the index does not name it: a run that was stopped left it, or one is writing now")


def shards_of(root: str) -> tuple[int, int]:
    """How many shards a root has, and their bytes, by its index.json; raises ShardError."""
    entries = read_meta(files_at(root))["shards"]
    return len(entries), sum(entry["bytes"] for entry in entries)


def _jobs(index: ShardIndex) -> Iterator[ShardJob]:
    """A job a shard, in the order of the index, made when it is asked for."""
    segments, entries = index.segments, index.meta["shards"]
    order = np.argsort(segments.shard, kind="stable")
    edges = np.searchsorted(segments.shard[order], np.arange(len(entries) + 1))
    for n, entry in enumerate(entries):
        rows = segments.stored.take(order[edges[n] : edges[n + 1]]).read().to_pylist()
        yield ShardJob(
            entry, rows, {name: _facts(index, name) for name in dict.fromkeys(row["session"] for row in rows)}
        )


def _facts(index: ShardIndex, name: str) -> SessionFacts:
    row = index.session(name)
    try:
        ids = index.unit_ids(name)
    except ShardError:  # told by index_faults
        ids = ()
    return SessionFacts(
        row.units,
        tuple(unit.removeprefix(f"{name}/") for unit in ids),
        {signal: told.dims for signal, told in row.signals.items()},
        len(row.phases),
        row.phases.index("outlier") if "outlier" in row.phases else -1,
    )


def _answers(files: RootFiles, jobs: Iterator[ShardJob], workers: int) -> Iterator[tuple[ShardJob, ShardFound]]:
    """Jobs and what they found, in order; a process that dies loses no more than a clear line."""
    work = partial(check_shard, files)
    if workers == 1:
        yield from ((job, work(job)) for job in jobs)
        return
    waiting: deque = deque()
    # Who started the processes hears the keyboard and ends them; they do not.
    quiet = {"initializer": signal.signal, "initargs": (signal.SIGINT, signal.SIG_IGN)}
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), **quiet)
    try:
        for job in jobs:
            waiting.append((job, pool.submit(work, job)))
            if len(waiting) > 2 * workers:  # as many as keep all busy: a job holds its rows
                first, answer = waiting.popleft()
                yield first, answer.result()
        for first, answer in waiting:
            yield first, answer.result()
    except BrokenProcessPool:
        found = "a process of the check was killed"
        raise ShardError(files.root, found, "free memory, or check with workers=1") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _sum_faults(row: SessionRow, unit_spikes: np.ndarray, sums: SessionSums) -> Iterator[Fault]:
    """Counts of units and statistics of a session, as its segments' data tell them."""
    wrong = np.flatnonzero(unit_spikes != sums.unit_spikes) if len(unit_spikes) == len(sums.unit_spikes) else []
    if len(wrong):
        n = int(wrong[0])
        text = f"unit {n} has {unit_spikes[n]} spikes by the table of units, {sums.unit_spikes[n]} in the shards"
        yield Fault(row.id, text + (f", and so {len(wrong) - 1} more units" if len(wrong) > 1 else ""))
    for name, told in row.statistics.items():
        held = sums.train.get(name, Moments(0, np.zeros(0), np.zeros(0)))
        if held.n != told.samples:
            yield Fault(row.id, f"signal {name}: {told.samples} train samples by the table, {held.n} in the shards")
        elif held.n:
            std = np.sqrt(held.squares / held.n)
            room = TOLERANCE * (std + np.abs(held.mean))
            for word, mine, theirs in (("mean", held.mean, told.mean), ("std", std, told.std)):
                if not (np.abs(mine - theirs) <= room).all():
                    yield Fault(
                        row.id, f"signal {name}: {word} of train {_few(theirs)} by the table, {_few(mine)} here"
                    )


def _few(values: np.ndarray) -> str:
    return ", ".join(f"{value:.6g}" for value in values[:4]) + (" ..." if len(values) > 4 else "")
