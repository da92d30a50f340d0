"""Places of a plan -> global batches, by window count or by token budget -> each rank's balanced share of them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sharding.errors import ConfigError

CHUNK = 256  # places whose tokens are counted at a time: many for speed, few because their shards are wanted then
NEAR = 101, 100  # a share within 1 % of the mean is not worth improving


@dataclass(frozen=True)
class Share:
    """One rank's part of every global batch."""

    rank: int = 0
    of: int = 1

    def __post_init__(self):
        if not 0 <= self.rank < self.of:
            raise ConfigError("share", f"is rank {self.rank} of {self.of}", "give a rank from 0 and below `of`")


@dataclass(frozen=True)
class LoaderState:
    """All that a resumed run needs: the number of the next global batch and the place in the plan where it begins."""

    batch: int = 0
    place: int = 0


WHOLE, BEGIN = Share(), LoaderState()


@dataclass(frozen=True)
class Span:
    """Global batch `number` holds the windows at places first ... first + windows - 1; the next begins at `stop`."""

    number: int
    first: int
    windows: int
    stop: int

    @property
    def after(self) -> LoaderState:
        return LoaderState(self.number + 1, self.stop)

    @property
    def places(self) -> np.ndarray:
        return np.arange(self.first, self.first + self.windows)


class Cut(Protocol):
    """How the epochs of a plan, laid end to end, are cut into global batches."""

    def state(self, start: LoaderState) -> LoaderState:
        """The same batch number with the place at which it really begins."""

    def spans(self, start: LoaderState, total: int) -> Iterator[Span]:
        """Batches from `start` to number total - 1."""


class ByCount:
    """`size` windows a batch. What is left of an epoch is dropped, or makes a smaller batch.

    Where all windows fill less than one batch and are dropped, batches span epochs.
    """

    def __init__(self, windows: int, size: int, drop_rest: bool = True):
        self.windows, self.size = windows, size
        self.across = drop_rest and windows < size
        self.per_epoch = windows // size if drop_rest else -(-windows // size)

    def span(self, number: int) -> Span:
        if self.across:
            return Span(number, number * self.size, self.size, (number + 1) * self.size)
        epoch, at = divmod(number, self.per_epoch)
        first, limit = epoch * self.windows + at * self.size, (epoch + 1) * self.windows
        stop = limit if at + 1 == self.per_epoch else first + self.size
        return Span(number, first, min(self.size, limit - first), stop)

    def state(self, start: LoaderState) -> LoaderState:
        return LoaderState(start.batch, self.span(start.batch).first)

    def spans(self, start: LoaderState, total: int) -> Iterator[Span]:
        return map(self.span, range(start.batch, total))


class ByTokens:
    """As many windows a batch, in the plan's order, as stay within a budget of tokens.

    A window above the budget stands alone; batches end with the epoch. `tokens` tells those of the windows at places
    (n,) as (n,) int64.
    """

    def __init__(self, windows: int, budget: int, tokens: Callable[[np.ndarray], np.ndarray]):
        self.windows, self.budget, self.tokens = windows, budget, tokens

    def state(self, start: LoaderState) -> LoaderState:
        return start

    def spans(self, start: LoaderState, total: int) -> Iterator[Span]:
        first, sums = start.place, np.zeros(1, np.int64)  # sums[i]: tokens of the i windows from `first` on
        for number in range(start.batch, total):
            limit = first + self.windows - first % self.windows  # where the epoch ends
            while sums[-1] - sums[0] <= self.budget and first + len(sums) - 1 < limit:
                ahead = first + len(sums) - 1
                places = np.arange(ahead, min(ahead + CHUNK, limit))
                sums = np.append(sums, sums[-1] + np.cumsum(self.tokens(places)))
            fitting = int(np.searchsorted(sums, sums[0] + self.budget, side="right")) - 1
            count = max(min(fitting, limit - first), 1)
            yield Span(number, first, count, first + count)
            first, sums = first + count, sums[count:]


def all_shares(tokens: np.ndarray, of: int) -> list[np.ndarray]:
    """Rows of `tokens` (n,) for each of the ranks, rising: counts differ by at most one, sums of tokens by little.

    The heaviest windows are dealt first, in rounds, each round's heaviest to the rank that has least so far; then the
    fullest and the emptiest rank swap the pair of windows that evens them best, as long as that helps.
    """
    order = np.argsort(-tokens, kind="stable")
    rank, total = np.zeros(len(tokens), np.int64), np.zeros(of, np.int64)
    for first in range(0, len(tokens), of):
        dealt = order[first : first + of]
        lightest = np.argsort(total, kind="stable")[: len(dealt)]
        rank[dealt] = lightest
        total[lightest] += tokens[dealt]
    for _ in range(of if len(tokens) > of else 0):
        if not _swapped(tokens, rank, total):
            break
    return [np.flatnonzero(rank == number) for number in range(of)]


def _swapped(tokens: np.ndarray, rank: np.ndarray, total: np.ndarray) -> bool:
    """Swap one pair of windows between the fullest and the emptiest rank, in place; False where that is no gain."""
    full, empty = int(total.argmax()), int(total.argmin())
    if total[full] * len(total) * NEAR[1] <= total.sum() * NEAR[0]:
        return False
    gap, ours, theirs = total[full] - total[empty], np.flatnonzero(rank == full), np.flatnonzero(rank == empty)
    left = np.abs(gap - 2 * (tokens[ours][:, None] - tokens[theirs]))  # what each swap would leave of the gap
    best = int(left.argmin())
    if left.flat[best] >= gap:
        return False
    given, taken = ours[best // len(theirs)], theirs[best % len(theirs)]
    rank[given], rank[taken] = empty, full
    total[full] -= tokens[given] - tokens[taken]
    total[empty] += tokens[given] - tokens[taken]
    return True


def share_of(tokens: np.ndarray, share: Share) -> np.ndarray:
    """Rows of `tokens` (n,) that are this rank's, rising."""
    return np.arange(len(tokens)) if share.of == 1 else all_shares(tokens, share.of)[share.rank]


def imbalance(tokens: np.ndarray) -> float:
    """How much longer the fullest rank takes than all would on average: max / mean - 1 of the shares' tokens (ranks,)."""
    mean = np.mean(tokens)
    return float(np.max(tokens) / mean - 1) if mean else 0.0


def packing_efficiency(tokens: np.ndarray, budget: int) -> float:
    """Mean tokens of global batches (n,) as a part of their budget."""
    return float(np.mean(tokens) / budget)
