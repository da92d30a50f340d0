"""How evenly batches are cut: tokens over the ranks of a global batch, and over the batches of a token budget."""

from collections.abc import Iterator

import numpy as np

from sharding.augment import UnitDropoutConfig
from sharding.batches import ByTokens, LoaderState, Span, all_shares, imbalance, packing_efficiency
from sharding.index import ShardIndex
from sharding.maker import BatchMaker
from sharding.plan import TrainPlan
from sharding.sampling import Sampling

RANKS = (2, 4, 8, 64)
BATCHES = 16  # that are looked at, and at most so many windows in all:
WINDOWS = 30_000


class Tokens:
    """What the windows of a plan hold."""

    def __init__(self, index: ShardIndex, sampling: Sampling, dropout: UnitDropoutConfig):
        self.plan = TrainPlan(index, sampling.window_s, seed=0)
        self._maker = BatchMaker(index, sampling, 0, dropout)

    def of(self, places: np.ndarray) -> np.ndarray:
        """(n,) int64."""
        return self._maker.tokens(self.plan.table(places))

    @property
    def mean(self) -> float:
        """Of a window, over an epoch's first ones."""
        return float(self.of(np.arange(min(self.plan.windows, WINDOWS))).mean())


def balanced(tokens: Tokens, batch_windows: int) -> Iterator[tuple[str, float, str, str]]:
    """(what, value, unit, of): how much more than the mean the fullest rank has, where each has so many windows."""
    for ranks in RANKS:
        size = ranks * batch_windows
        batches = max(min(BATCHES, WINDOWS // size), 1)
        ours, in_order = [], []
        for number in range(batches):
            places = np.arange(number * size, (number + 1) * size)
            read = tokens.of(places)
            ours.append(imbalance(np.array([read[rows].sum() for rows in all_shares(read, ranks)])))
            in_order.append(imbalance(read.reshape(ranks, -1).sum(axis=1)))
        of = f"{ranks} ranks, {batch_windows} windows each, mean of {batches} batches; dealt in order {np.mean(in_order):.1%}"
        yield "imbalance of ranks", 100 * float(np.mean(ours)), "%", of


def budgeted(tokens: Tokens, budget: int, batch_windows: int) -> Iterator[tuple[str, float, str, str]]:
    """(what, value, unit, of) of batches by a token budget, beside batches of so many windows, over an epoch."""
    limit = min(tokens.plan.windows, WINDOWS)
    spans: list[Span] = []
    for span in ByTokens(tokens.plan.windows, budget, tokens.of).spans(LoaderState(), limit):
        if span.stop > limit:
            break
        spans.append(span)
    by_budget = np.array([tokens.of(span.places).sum() for span in spans])
    counted = [np.arange(first, first + batch_windows) for first in range(0, limit - batch_windows + 1, batch_windows)]
    by_count = np.array([tokens.of(places).sum() for places in counted])
    of = f"budget of {budget:,} tokens, {len(spans)} batches"
    yield "packing efficiency", 100 * packing_efficiency(by_budget, budget), "%", f"{of}; mean tokens over the budget"
    yield "fullest batch", 100 * float(by_budget.max()) / budget, "%", f"{of}; its tokens over the budget"
    for name, found in (("by token budget", by_budget), (f"by {batch_windows} windows", by_count)):
        of = f"batches {name}: {found.mean():,.0f} on average, {found.min():,} to {found.max():,}"
        yield "spread of tokens a batch", 100 * float(found.std() / found.mean()), "% (sd)", of
