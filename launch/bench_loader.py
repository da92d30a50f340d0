"""`spikeloom bench loader`: training batches a second, beside the floor, plain WebDataset and torch_brain.

All look at the windows of one plan (torch_brain at those of its own sampler, as many and as long) over the same
sessions, on the same machine, in turn in one run, each from the disk's cache to torch tensors with unit dropout. Only
the floor makes no tensors and drops no units: it is what slicing alone costs.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from launch import bench_loader_webdataset
from launch.bench_loader_balance import Tokens, balanced, budgeted
from launch.bench_loader_floor import Floor
from launch.bench_loader_torch_brain import HOW, TorchBrain, export
from launch.bench_rate import Rates, Watched, in_turn, watch
from sharding.augment import UnitDropoutConfig
from sharding.batch import Batch
from sharding.index import ShardIndex
from sharding.loader import LoaderConfig, train_loader
from sharding.sampling import Sampling

ENDLESS = 10**9  # batches
OURS = "ours, in process"  # and one after the other: nothing is made ahead
AHEAD = "ours, in process, a thread ahead"
BUDGET = "ours, in process, by token budget"
TARGETS = {"torch_brain, in process": 30.0, "floor, sliced": 1 / 3}  # what one process should reach of their windows/s


@dataclass(frozen=True)
class LoaderBench:
    """What is watched, and how long."""

    index: ShardIndex
    sampling: Sampling
    loader: LoaderConfig
    workers: list[int]  # numbers of worker processes
    seconds: float  # of each look
    repeats: int
    peer_python: str  # "" leaves torch_brain out
    folder: Path  # of what is made for the others, and kept

    @property
    def dropout(self) -> UnitDropoutConfig:
        return self.loader.unit_dropout or UnitDropoutConfig()


def compared(bench: LoaderBench) -> Iterator[tuple[str, float, str, str]]:
    """(what, value, unit, of) of every loader, and of ours against each."""
    tokens = Tokens(bench.index, bench.sampling, bench.dropout)
    budget = round(tokens.mean * bench.loader.batch_windows)
    with ExitStack() as stack:
        rates = in_turn(_sources(bench, budget, stack), bench.repeats)
    units = sum(session.units for session in bench.index.sessions)
    of = f"{len(bench.index.sessions)} sessions, {units:,} units, batches of {bench.loader.batch_windows}"
    for name, rate in rates.items():
        yield name, rate.windows, "windows/s", f"{of}; {rate}"
        yield name, rate.tokens, "spikes/s" if name.startswith("floor") else "tokens/s", of
    yield from _ratios(rates)
    yield from balanced(tokens, bench.loader.batch_windows)
    yield from budgeted(tokens, budget, bench.loader.batch_windows)


def _ratios(rates: dict[str, Rates]) -> Iterator[tuple[str, float, str, str]]:
    for ours in (OURS, AHEAD):
        for name, rate in rates.items():
            if name.startswith("ours"):
                continue
            ratio, wanted = rates[ours].against(rate), TARGETS.get(name)
            met = f"target {wanted:.3g}: {'met' if ratio >= wanted else 'not met'}; " if wanted else ""
            yield (
                f"{ours} / {name}",
                ratio,
                "ratio",
                f"{met}windows/s, median of the ratios of {len(rate.looks)} rounds",
            )


def _sources(bench: LoaderBench, budget: int, stack: ExitStack) -> dict[str, Callable[[], Watched]]:
    """Everything that is watched, by name; what lives in other processes ends with the stack."""
    size = bench.loader.batch_windows
    sources = {
        OURS: _ours(bench, stack, prefetch=0),
        AHEAD: _ours(bench, stack),
        BUDGET: _ours(bench, stack, prefetch=0, batch_tokens=budget),
    }
    for workers in bench.workers:
        sources[_named("ours", workers)] = _ours(bench, stack, workers=workers)
    floor = Floor(bench.index, bench.sampling.signal, bench.sampling.window_s)
    for name, batches in (("floor, sliced", floor.slicing(size)), ("floor, copied", floor.copying(size))):
        sources[name] = _look(batches, bench.seconds, lambda sizes: sizes)
    tar = bench_loader_webdataset.written(bench.index, bench.sampling, bench.folder)
    windows = bench_loader_webdataset.batches(tar, bench.index, bench.sampling, size, bench.dropout)
    sources["WebDataset, a sample a window"] = _look(windows, bench.seconds, _sizes)
    windows = bench_loader_webdataset.streamed(bench.index, bench.sampling, size, bench.dropout)
    sources["WebDataset, our shards as a stream"] = _look(windows, bench.seconds, _sizes)
    if bench.peer_python:
        made = export(bench.index, bench.sampling, size, bench.dropout, bench.folder)
        peer = stack.enter_context(TorchBrain(bench.peer_python, made))
        for workers in (0, 2):
            sources[_named("torch_brain", workers)] = lambda workers=workers: peer.watch(workers, bench.seconds)
    else:
        print(f"torch_brain is left out: it needs an environment of its own ({HOW})", file=sys.stderr)
    return sources


def _named(whose: str, workers: int) -> str:
    return f"{whose}, {workers} worker{'s' if workers > 1 else ''}" if workers else f"{whose}, in process"


def _ours(bench: LoaderBench, stack: ExitStack, **settings) -> Callable[[], Watched]:
    config = replace(bench.loader, **{"workers": 0, "batch_tokens": 0, "unit_dropout": bench.dropout, **settings})
    batches = iter(train_loader(bench.index, bench.sampling, config, seed=0, total_batches=ENDLESS))
    stack.callback(batches.close)
    return _look(batches, bench.seconds, _sizes, ready=config.prefetch * max(config.workers, 1))


def _look(batches: Iterator, seconds: float, sizes, ready: int = 0) -> Callable[[], Watched]:
    return lambda: watch(batches, seconds, sizes, ready)


def _sizes(batch: Batch) -> tuple[int, int]:
    return len(batch), len(batch.token_time_S)
