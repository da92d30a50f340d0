"""Session: one recording as plain numpy arrays, whatever file it came from.

Times are float64 seconds on the file's clock, intervals are half-open [start, stop).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import itemgetter

import numpy as np

_PART = 1 << 20  # spikes of a large session that are in memory at a time
SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Intervals:
    """Half-open intervals [start, stop) in seconds, sorted by start; both arrays (n,) float64."""

    start: np.ndarray
    stop: np.ndarray

    @staticmethod
    def of(pairs) -> "Intervals":
        """Intervals from (start, stop) pairs in any order; empty and negative ones are left out."""
        pairs = sorted(((float(a), float(b)) for a, b in pairs if b > a), key=itemgetter(0))
        return Intervals(*(np.array([pair[k] for pair in pairs], dtype=np.float64) for k in (0, 1)))

    def __len__(self) -> int:
        return len(self.start)

    def __iter__(self):
        return iter(zip(self.start.tolist(), self.stop.tolist()))

    @property
    def seconds(self) -> float:
        """Summed duration, overlaps counted as often as they occur."""
        return float(np.sum(self.stop - self.start))

    def merged(self) -> "Intervals":
        """Disjoint intervals covering the same times; touching ones are joined."""
        out: list[list[float]] = []
        for start, stop in self:
            if out and start <= out[-1][1]:
                out[-1][1] = max(out[-1][1], stop)
            else:
                out.append([start, stop])
        return Intervals.of(out)

    def contains(self, time: np.ndarray) -> np.ndarray:
        """Boolean mask (n,): which of the times (n,) lie in any interval."""
        whole = self.merged()
        position = np.searchsorted(whole.start, time, side="right") - 1
        return (position >= 0) & (time < np.append(whole.stop, -np.inf)[position])

    def intersection(self, other: "Intervals") -> "Intervals":
        """Times in both."""
        a, b, out, i, j = self.merged(), other.merged(), [], 0, 0
        while i < len(a) and j < len(b):
            out.append((max(a.start[i], b.start[j]), min(a.stop[i], b.stop[j])))
            if a.stop[i] < b.stop[j]:
                i += 1
            else:
                j += 1
        return Intervals.of(out)

    def difference(self, other: "Intervals") -> "Intervals":
        """Times in self and not in other."""
        out = []
        holes = other.merged()
        for start, stop in self.merged():
            first, last = np.searchsorted(holes.stop, start, "right"), np.searchsorted(holes.start, stop, "left")
            for k in range(first, last):
                out.append((start, min(stop, holes.start[k])))
                start = max(start, holes.stop[k])
            out.append((start, stop))
        return Intervals.of(out)

    def dilated(self, by_s: float) -> "Intervals":
        """Every interval grown by `by_s` seconds on both sides (shrunk where negative)."""
        return Intervals.of(zip(self.start - by_s, self.stop + by_s))


@dataclass(frozen=True)
class Units:
    """The unit table: one entry a unit, in the order that Spikes.unit counts."""

    id: tuple[str, ...]  # unique within the session
    region: tuple[str, ...]  # "unknown" where the file does not say
    quality: tuple[str, ...]  # as the file has it, "" where it does not say
    electrode: tuple[str, ...] = ()  # row or channel it was recorded on, "" where unknown; () where no unit has one
    held_out: tuple[bool, ...] = ()  # the dandiset withholds the unit in its test files (NLB); () where none is
    missing: tuple[bool, ...] = ()  # in the roster of the dandiset but not in this file; () where all are there

    def __len__(self) -> int:
        return len(self.id)


@dataclass(frozen=True)
class Spikes:
    """All spikes of a session: time (S,) float64 s, sorted; unit (S,) uint32 row of Units.

    Of a large session both are arrays on disk, read when they are sliced: use `parts` and `before` instead of the whole.
    """

    time: np.ndarray
    unit: np.ndarray

    def __len__(self) -> int:
        return len(self.time)

    @property
    def extent(self) -> tuple[float, float]:
        """Times of the first and the last spike, s; there must be one."""
        return float(self.time[0]), float(self.time[-1])

    def parts(self, at_most: int = _PART) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(time, unit) of consecutive runs of at most so many spikes; what data_prep reads instead of the whole."""
        for first in range(0, len(self), at_most):
            yield self.time[first : first + at_most], self.unit[first : first + at_most]

    def whole(self) -> "Spikes":
        """The same, with both arrays in memory."""
        return Spikes(np.asarray(self.time[:]), np.asarray(self.unit[:]))

    def before(self, time: np.ndarray) -> np.ndarray:
        """How many spikes (n,) come before each of the times (n,)."""
        if isinstance(self.time, np.ndarray):
            return np.searchsorted(self.time, time)
        parts = (self.time[first : first + _PART] for first in range(0, len(self), _PART))
        return sum((np.searchsorted(part, time) for part in parts), np.zeros(len(time), dtype=np.int64))


@dataclass(frozen=True)
class Signal:
    """A behaviour series: time (N,) float64 s, strictly increasing; value (N, K) float32; valid (N,) bool."""

    name: str
    time: np.ndarray
    value: np.ndarray
    unit_of_measure: str
    valid: np.ndarray  # False where a value is missing or not finite: never a target
    derived_from: str = ""  # name of the signal it was differentiated from


@dataclass(frozen=True)
class Session:
    """One recording, checked (data_prep/checks.py) and split; what data_prep hands to sharding."""

    id: str  # "<recipe>/<subject>_<session>", unique in a corpus
    dandiset: str  # recipe name, the group a session belongs to
    subject: str
    paradigm: str
    units: Units
    spikes: Spikes
    signals: dict[str, Signal]
    trials: Intervals
    trial_columns: dict[str, np.ndarray]  # (n trials,) each, original columns worth keeping
    phases: dict[str, Intervals]  # in rising precedence: where two overlap the later one counts; "outlier" is last
    domain: Intervals  # where recording and behaviour are real and contiguous
    splits: dict[str, Intervals]  # train, valid, test: disjoint, each inside the domain
    loss_weights: dict[str, float] = field(default_factory=dict)  # phase -> weight the recipe advises (1 if absent)
    eval_phases: tuple[str, ...] = ()  # phases the recipe evaluates on; () is all
    target_scale: dict[str, float] = field(default_factory=dict)  # signal -> divisor of the literature, where known
    provenance: dict[str, str] = field(default_factory=dict)  # file, sha256, dandiset, version, asset, recipe hash ...
