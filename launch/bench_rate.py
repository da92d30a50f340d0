"""A source of batches, watched for a while -> windows and tokens a second."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

WARM_BATCHES = 2  # left out each time, beside those that a loader has ready


@dataclass(frozen=True)
class Watched:
    """What came out of a source within some seconds."""

    windows: int
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Rates:
    """Several looks at one source, told by their median."""

    looks: tuple[Watched, ...]

    @property
    def windows(self) -> float:
        """Windows a second."""
        return median(look.windows / look.seconds for look in self.looks)

    @property
    def tokens(self) -> float:
        """Tokens a second."""
        return median(look.tokens / look.seconds for look in self.looks)

    def against(self, other: "Rates") -> float:
        """How many times the other's windows a second: the median of the rounds, in each of which the two ran in turn."""
        ours, theirs = ([look.windows / look.seconds for look in rates.looks] for rates in (self, other))
        return median(a / b for a, b in zip(ours, theirs, strict=True))

    def __str__(self) -> str:
        """How far the looks lie apart, in words."""
        rates = [look.windows / look.seconds for look in self.looks]
        return f"median of {len(rates)}, {min(rates):,.0f} to {max(rates):,.0f} windows/s"


def watch(batches: Iterator, limit_s: float, sizes: Callable[[object], tuple[int, int]], ready: int = 0) -> Watched:
    """Take batches for that long, leaving out the first ones; `sizes` gives a batch's windows and tokens.

    `ready` is how many batches may stand made before anyone asks.
    """
    for _ in range(WARM_BATCHES + ready):
        next(batches)
    windows = tokens = 0
    began = time.perf_counter()
    while (seconds := time.perf_counter() - began) < limit_s or not windows:
        more = sizes(next(batches))
        windows, tokens = windows + more[0], tokens + more[1]
    return Watched(windows, tokens, seconds)


def in_turn(sources: dict[str, Callable[[], Watched]], times: int) -> dict[str, Rates]:
    """Look at every source in turn, so many times round, so that what else the machine does meets all alike."""
    looks: dict[str, list[Watched]] = {name: [] for name in sources}
    for _ in range(times):
        for name, look in sources.items():
            looks[name].append(look())
    return {name: Rates(tuple(found)) for name, found in looks.items()}
