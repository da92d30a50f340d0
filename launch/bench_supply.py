"""`spikeloom bench supply`: what it takes to begin a training on an index, against how much that index holds.

Corpora without data (bench_supply_corpus.py) of more and more sessions; one of ten times the hours a session; and one
of as many hours in longer segments, so that only its windows are more. Each is opened in a process of its own, cold but
for the disk's cache. Memory is what that process holds resident, above what imports take.
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_prep.errors import DataError
from launch.bench_supply_corpus import SIGNAL, Corpus, written
from sharding.augment import UnitDropoutConfig
from sharding.index import ShardIndex
from sharding.loader import LoaderConfig, train_loader
from sharding.plan import TrainPlan
from sharding.sampling import Sampling
from sharding.statistics import target_statistics
from sharding.vocabulary import Vocabulary

WINDOW_S, BATCH = 1.0, 32
LONGER = 10  # times as long: what the two last corpora's sessions, and the last one's segments, are
STEPS = {
    "open": "open the index",
    "plan": "plan the training",
    "table": "first batch of the plan",
    "tables": "another batch, of another epoch",
    "names": "vocabularies and statistics of a new model",
    "loader": "a loader, ready to read",
}
HOLDING = ("open", "plan", "names", "loader")  # steps that keep what they make


@dataclass(frozen=True)
class SupplyConfig:
    """The corpora that `bench supply` makes."""

    sessions: list[int] = field(default_factory=lambda: [1_000, 10_000, 100_000])
    "numbers of sessions, of 24 segments of a minute each; the one before the last is also made of ten times the hours"
    units: int = 100
    "units of a session"


def supplied(config: SupplyConfig, folder: Path) -> Iterator[tuple[str, float, str, str]]:
    """(what, value, unit, of) of every step for every corpus; corpora are kept below the folder."""
    found = []
    for corpus in corpora(config):
        told = _began(written(corpus, folder))
        found.append((f"{corpus}; {told['windows']:,} windows an epoch", told))
    for step, words in STEPS.items():
        yield from ((words, told["seconds"][step], "s", of) for of, told in found)
        if step in HOLDING:
            yield from ((f"memory after: {words}", told["mb"][step], "MB", of) for of, told in found)
    yield from (("state of the loader", told["state_bytes"], "bytes", of) for of, told in found)


def corpora(config: SupplyConfig) -> list[Corpus]:
    """Rising numbers of sessions, then a middle one with more hours, then the same hours in longer segments."""
    alike = [Corpus(sessions, units=config.units) for sessions in sorted(config.sessions)]
    middle = alike[max(len(alike) - 2, 0)]
    more = Corpus(middle.sessions, middle.segments * LONGER, middle.segment_s, middle.units)
    return [*alike, more, Corpus(middle.sessions, middle.segments, middle.segment_s * LONGER, middle.units)]


def _began(root: Path) -> dict:
    """What measure() says of a root, in a process of its own."""
    done = subprocess.run([sys.executable, "-m", "launch.bench_supply", str(root)], capture_output=True, text=True)
    if done.returncode:
        raise DataError(
            root, f"could not be opened: {done.stderr.strip()[-300:]}", "delete it, so that it is made again"
        )
    return json.loads(done.stdout)


def measure(root: Path) -> dict:
    """Seconds and megabytes of every step of a training's beginning."""
    seconds, mb, before = {}, {}, _resident_mb()

    def step(name: str, act: Callable):
        began = time.perf_counter()
        out = act()
        seconds[name], mb[name] = time.perf_counter() - began, _resident_mb() - before
        return out

    index = step("open", lambda: ShardIndex.open(root))
    plan = step("plan", lambda: TrainPlan(index, WINDOW_S, seed=0))
    places = np.random.default_rng(0).integers(0, plan.windows, BATCH)
    step("table", lambda: plan.table(places))
    step("tables", lambda: plan.table(3 * plan.windows + places))
    sampling = step("names", lambda: _sampling(index))
    config = LoaderConfig(batch_windows=BATCH, unit_dropout=UnitDropoutConfig())
    loader = step("loader", lambda: train_loader(index, sampling, config, seed=0, total_batches=10**9))
    state = len(json.dumps(loader.state_dict()))
    return {"seconds": seconds, "mb": mb, "windows": plan.windows, "state_bytes": state}


def _sampling(index: ShardIndex) -> Sampling:
    units = Vocabulary(tuple(unit for run in index.all_unit_ids() for unit in run))
    statistics = target_statistics(index, SIGNAL, center=False, scale="recipe")
    return Sampling(SIGNAL, WINDOW_S, units, Vocabulary(tuple(index.session_ids)), statistics)


def _resident_mb() -> float:
    """Resident now; where the system does not tell, at most so far."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize() / 1e6
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]))))
