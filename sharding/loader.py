"""Plan + batches + maker -> streams of packed batches, the same for any number of ranks and workers, resumable by two
integers."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import cached_property

import numpy as np

from sharding.augment import UnitDropoutConfig
from sharding.batch import Batch
from sharding.batches import BEGIN, WHOLE, ByCount, ByTokens, Cut, LoaderState, Share, Span, share_of
from sharding.errors import ConfigError
from sharding.index import ShardIndex
from sharding.loader_workers import Workers
from sharding.maker import BatchMaker
from sharding.mix import MixConfig
from sharding.plan import EvalPlan, TrainPlan, WindowTable
from sharding.prefetch import Announced, ahead, in_turn
from sharding.sampling import Sampling


@dataclass
class LoaderConfig:
    """How batches are made."""

    batch_windows: int = 32
    "windows in a batch, over all ranks"
    batch_tokens: int = 0
    "most tokens in a batch, over all ranks, instead of batch_windows: memory stays flat; 0 goes by batch_windows"
    drop_rest: bool = True
    "drop what is left of an epoch after its last whole batch; false makes a smaller batch of it (not with batch_tokens)"
    workers: int = 0
    "processes that make batches; 0 makes them in the training process, which is enough unless its own Python is busy"
    prefetch: int = 2
    "batches made ahead, by a thread of the training process or by each worker; 0 makes each when asked (workers: 1)"
    unit_dropout: UnitDropoutConfig | None = None
    "how many units of a training window are kept; null keeps all"
    mix: MixConfig | None = None
    "how an epoch is shared out among sessions; null takes every window once an epoch"
    block_shards: int = 0
    "shards shuffled together at a time, to bound the cache of a remote corpus (plan.TrainPlan tells what it costs); 0 is all"

    def check(self, ranks: int = 1) -> None:
        """Raise ConfigError for numbers that cannot be meant."""
        for name in ("batch_windows", "batch_tokens", "workers", "prefetch", "block_shards"):
            least = 1 if name == "batch_windows" else 0
            if getattr(self, name) < least:
                raise ConfigError(f"loader.{name}", f"is {getattr(self, name)}", f"give at least {least}")
        if not self.batch_tokens and self.batch_windows < ranks:
            raise ConfigError(
                "loader.batch_windows",
                f"is {self.batch_windows} for {ranks} ranks",
                f"give at least {ranks}, or take fewer ranks",
            )


def train_loader(
    index: ShardIndex,
    sampling: Sampling,
    config: LoaderConfig,
    *,
    seed: int,
    total_batches: int,
    start: LoaderState = BEGIN,
    share: Share = WHOLE,
) -> "TrainLoader":
    """A rank's share of the global batches start.batch ... total_batches - 1, epoch after epoch.

    Where a global batch has fewer windows than there are ranks, the shares left over are idle: its first window, without
    weight. Raises ConfigError where there is no window at all, or for numbers that cannot be meant.
    """
    config.check(share.of)
    plan = TrainPlan(index, sampling.window_s, seed, config.mix, config.block_shards)
    if not plan.windows:
        raise ConfigError(
            index.root,
            f"holds no train interval of {sampling.window_s} s in the {len(index.sessions)} chosen sessions",
            "choose more sessions, more train minutes or a shorter window",
        )
    make = Shares(plan, BatchMaker(index, sampling, seed, config.unit_dropout), share)
    cut = _cut(plan.windows, config, make.tokens)
    announced = Announced(plan, index.files, index.meta["shards"])
    announced.check_room(cut.state(start).place)
    sequence = GlobalBatches(cut, announced, total_batches, fingerprint(index, sampling, config, seed))
    return TrainLoader(make, sequence, config, start)


@dataclass(frozen=True)
class GlobalBatches:
    """Those of a run, one after another; what all ranks and workers have in common."""

    cut: Cut
    announced: Announced
    total: int  # batches
    identity: int  # fingerprint

    def spans(self, state: LoaderState) -> Iterator[Span]:
        """From a state on, the root told of the shards that come."""
        return self.announced.passing(self.cut.spans(state, self.total), state.place)


class TrainLoader:
    """Iterating goes on from the state, which counts the batches handed over, never those made ahead of them."""

    def __init__(self, make: "Shares", sequence: GlobalBatches, config: LoaderConfig, start: LoaderState):
        self._make, self._sequence, self._config = make, sequence, config
        self.epoch_windows = make.plan.windows
        self.state = sequence.cut.state(start)

    def __iter__(self) -> Iterator[Batch]:
        workers = min(self._config.workers, max(self._sequence.total - self.state.batch, 0))
        with closing(_made(self._make, self._sequence.spans(self.state), workers, self._config.prefetch)) as batches:
            for batch in batches:
                self.state = LoaderState(batch.number + 1, batch.stop)
                yield batch

    def windows(self, places: np.ndarray) -> WindowTable:
        """Which windows stand at places (n,) of the plan, such as those of Batch.place_B."""
        return self._make.plan.table(places)

    def state_dict(self, state: LoaderState | None = None) -> dict[str, int]:
        """What load_state_dict() takes, three integers; of another state where one is given."""
        state = state or self.state
        return {"batch": state.batch, "place": state.place, "plan": self._sequence.identity}

    def load_state_dict(self, told: dict[str, int]) -> None:
        """Go on from there, with whatever ranks and workers; raises ConfigError where that was another sequence."""
        if told["plan"] != self._sequence.identity:
            raise ConfigError(
                "the run",
                "was begun with other batches (shards, sessions, seed, window or loader settings differ)",
                "give the settings it was begun with, or begin another run",
            )
        self.state = self._sequence.cut.state(LoaderState(told["batch"], told["place"]))


def eval_loader(
    index: ShardIndex, sampling: Sampling, config: LoaderConfig, split: str, step_s: float, share: Share = WHOLE
) -> "EvalLoader":
    """A rank's share of the overlapping windows of a split, in order; no unit dropout.

    Every window is some rank's and none is two's; a rank's batches are its part of what the config says of all.
    """
    config.check()
    plan = EvalPlan(index, split, sampling.window_s, step_s)
    make = Strides(plan, BatchMaker(index, sampling), share)
    windows, tokens = -(-config.batch_windows // share.of), -(-config.batch_tokens // share.of)
    cut = ByTokens(make.windows, tokens, make.tokens) if tokens else ByCount(make.windows, windows, drop_rest=False)
    return EvalLoader(make, cut, config)


class EvalLoader:
    """Batches over a split, again each time it is iterated; worker processes stay for the next time."""

    def __init__(self, make: "Strides", cut: Cut, config: LoaderConfig):
        self._make, self._cut, self._config = make, cut, config

    @cached_property
    def _workers(self) -> Workers:
        return Workers(self._make, min(self._config.workers, len(self)), self._config.prefetch, keep=True)

    @cached_property
    def spans(self) -> list[Span]:
        """What each batch holds, the places counted within this rank's share."""
        out: list[Span] = []
        for span in self._cut.spans(LoaderState(), self._make.windows):
            if span.first == self._make.windows:
                break
            out.append(span)
        return out

    @property
    def windows(self) -> int:
        return self._make.windows

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, number: int) -> Batch:
        """One batch, made here and now; IndexError past the last."""
        return self._make(self.spans[number])

    def close(self) -> None:
        """End the worker processes now; to leave them to Python's collection of garbage may take it ten seconds."""
        if "_workers" in vars(self):
            self._workers.close()

    def __iter__(self) -> Iterator[Batch]:
        if self._config.workers and self.spans:
            return self._workers.batches(iter(self.spans))
        return _made(self._make, iter(self.spans), 0, self._config.prefetch)


@dataclass(frozen=True)
class Shares:
    """Makes a rank's share of a global batch of training."""

    plan: TrainPlan
    maker: BatchMaker
    share: Share

    def __call__(self, span: Span) -> Batch:
        table = self.plan.table(span.places)
        if self.share.of == 1:
            return self.maker.batch(table, span.number, span.stop)
        mine = share_of(self.maker.tokens(table), self.share)
        idle, mine = not len(mine), mine if len(mine) else np.zeros(1, np.int64)
        table = WindowTable(table.place[mine], table.segment[mine], table.start_us[mine])
        batch = replace(self.maker.batch(table, span.number, span.stop), windows=span.windows)
        return batch.idled() if idle else batch

    def tokens(self, places: np.ndarray) -> np.ndarray:
        """Tokens (n,) of the windows at places."""
        return self.maker.tokens(self.plan.table(places))


@dataclass(frozen=True)
class Strides:
    """Makes batches of every `of`-th window of an EvalPlan, from `rank` on: such shares hold much the same sessions."""

    plan: EvalPlan
    maker: BatchMaker
    share: Share

    @property
    def windows(self) -> int:
        return len(range(self.share.rank, self.plan.windows, self.share.of))

    def __call__(self, span: Span) -> Batch:
        return self.maker.batch(self.plan.table(self._places(span.places)), span.number, span.stop)

    def tokens(self, own: np.ndarray) -> np.ndarray:
        """Tokens (n,) of windows counted within the share; 0 beyond it."""
        out = np.zeros(len(own), np.int64)
        here = own < self.windows
        out[here] = self.maker.tokens(self.plan.table(self._places(own[here])))
        return out

    def _places(self, own: np.ndarray) -> np.ndarray:
        return self.share.rank + self.share.of * own


def fingerprint(index: ShardIndex, sampling: Sampling, config: LoaderConfig, seed: int) -> int:
    """63 bits that differ where anything does that decides the sequence of global batches."""
    size = [config.batch_tokens] if config.batch_tokens else [config.batch_windows, config.drop_rest]
    dropout = asdict(config.unit_dropout) if config.unit_dropout else None
    mix = asdict(config.mix) if config.mix else None
    told = json.dumps([index.digest(), sampling.window_s, seed, size, dropout, mix, config.block_shards])
    return int.from_bytes(hashlib.sha256(told.encode()).digest()[:8], "big") >> 1


def _cut(windows: int, config: LoaderConfig, tokens: Callable[[np.ndarray], np.ndarray]) -> Cut:
    if config.batch_tokens:
        return ByTokens(windows, config.batch_tokens, tokens)
    return ByCount(windows, config.batch_windows, config.drop_rest)


def _made(make: Callable[[Span], Batch], spans: Iterator[Span], workers: int, prefetch: int) -> Iterator[Batch]:
    if workers:
        return Workers(make, workers, prefetch).batches(spans)
    return ahead(make, spans, prefetch) if prefetch else in_turn(make, spans)
