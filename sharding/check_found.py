"""What a check finds: faults, and the sums that are held against the totals of the tables."""

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Fault:
    """Where something is wrong (a file, a session or a segment), and what was found there."""

    where: str
    found: str


@dataclass
class Moments:
    """Number, mean (K,) and sum of squared deviations (K,) of values, float64; parts are joined exactly (Chan 1979)."""

    n: int
    mean: np.ndarray
    squares: np.ndarray

    @staticmethod
    def of(value: np.ndarray) -> "Moments":
        """Moments of values (n, K)."""
        if not len(value):
            return Moments(0, np.zeros(value.shape[1]), np.zeros(value.shape[1]))
        exact = value.astype(np.float64)
        mean = np.ones(len(exact)) @ exact / len(exact)  # a product: sums along few columns are slow
        exact -= mean
        return Moments(len(value), mean, np.einsum("nk,nk->k", exact, exact))

    def joined(self, other: "Moments") -> "Moments":
        n = self.n + other.n
        if not n:
            return self
        step = other.mean - self.mean
        between = np.square(step) * (self.n * other.n / n)
        return Moments(n, self.mean + step * (other.n / n), self.squares + other.squares + between)


@dataclass
class SessionSums:
    """What segments hold of a session within the starts they own."""

    unit_spikes: np.ndarray  # (U,) int64
    train: dict[str, Moments] = field(default_factory=dict)  # signal -> train samples outside outliers

    def joined(self, other: "SessionSums") -> "SessionSums":
        train = {**self.train}
        for name, moments in other.train.items():
            train[name] = train[name].joined(moments) if name in train else moments
        return SessionSums(self.unit_spikes + other.unit_spikes, train)


@dataclass
class ShardFound:
    """What came of one shard; of the sessions in `untold` some segment could not be read, their sums are not whole."""

    faults: list[Fault] = field(default_factory=list)
    sums: dict[str, SessionSums] = field(default_factory=dict)
    untold: set[str] = field(default_factory=set)
    bytes: int = 0
    segments: int = 0
    spikes: int = 0
