"""Learning curves -> how fast: area, when a level is first reached, how many times sooner than the reference.

Between two validations a curve is a straight line. Every number is of one training; over seeds they become a Stat.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from launch.record import Curve


@dataclass(frozen=True)
class LearningCurve:
    """The validations of one training, from before its first step: windows seen, seconds and R2, each (n,) float64."""

    windows: np.ndarray
    seconds: np.ndarray
    r2: np.ndarray

    @staticmethod
    def of(metrics: Curve | None) -> "LearningCurve | None":
        """The validations in a metrics.csv; None where there is none."""
        known = metrics.known("windows", "seconds", "valid/r2") if metrics else None
        return LearningCurve(*known) if known else None

    @property
    def best(self) -> float:
        return float(self.r2.max())

    def reached(self, level: float) -> tuple[float, float] | None:
        """Windows and seconds at which R2 is first at `level`; None where it never is."""
        windows = first_reached(self.windows, self.r2, level)
        return None if windows is None else (windows, first_reached(self.seconds, self.r2, level))

    @property
    def area(self) -> float:
        """Mean of R2, not below 0, over the windows seen: 1 would be perfect from the start on."""
        length = self.windows[-1] - self.windows[0]
        return float(np.trapezoid(np.maximum(self.r2, 0), self.windows) / length) if length else max(self.r2[0], 0.0)


@dataclass(frozen=True)
class Trained:
    """One training of a source: its curve as far as it came, and in one line why it failed, if it did."""

    recipe: str
    seed: int
    budget: int  # windows that it was to see
    curve: LearningCurve | None
    failed: str | None = None
    commit: str = ""  # of the code that trained it


@dataclass(frozen=True)
class Linear:
    """R2 of a Wiener filter on the validation samples, and the seconds that fitting and choosing it took."""

    r2: float
    seconds: float


@dataclass(frozen=True)
class Learned:
    """All that happened on one source; the first of `wiener` (label -> Linear) is the level to pass."""

    source: str
    sessions: tuple[str, ...]
    digest: str  # of its shards and sessions
    wiener: dict[str, Linear]
    runs: list[Trained]

    @property
    def level(self) -> float | None:
        return next((linear.r2 for linear in self.wiener.values()), None)

    @property
    def recipes(self) -> list[str]:
        return list(dict.fromkeys(run.recipe for run in self.runs))

    def of(self, recipe: str) -> list[Trained]:
        return [run for run in self.runs if run.recipe == recipe]

    def finished(self, recipe: str) -> list[Trained]:
        return [run for run in self.of(recipe) if not run.failed and run.curve]


@dataclass(frozen=True)
class Stat:
    """Mean and standard deviation (n - 1; NaN for one) of what `n` of `of` trainings gave; mean NaN where none did."""

    mean: float
    sd: float
    n: int
    of: int


def stat(values: Iterable[float | None]) -> Stat:
    """The Stat of values, None where a training has none."""
    values = list(values)
    defined = [value for value in values if value is not None and math.isfinite(value)]
    mean = float(np.mean(defined)) if defined else math.nan
    return Stat(mean, float(np.std(defined, ddof=1)) if len(defined) > 1 else math.nan, len(defined), len(values))


def first_reached(x: np.ndarray, y: np.ndarray, level: float) -> float | None:
    """The first x, (n,) rising, at which the straight lines through y (n,) are at `level` or above; None: nowhere."""
    above = np.flatnonzero(y >= level)
    if not len(above):
        return None
    i = int(above[0])
    if i == 0:
        return float(x[0])
    return float(x[i - 1] + (level - y[i - 1]) / (y[i] - y[i - 1]) * (x[i] - x[i - 1]))


NUMBERS = (
    "best",
    "final",
    "area",
    "best_windows",
    "best_seconds",
    "wiener_windows",
    "wiener_seconds",
    "reference_windows",
    "reference_seconds",
    "times_fewer_windows",
    "times_less_time",
    "seconds",
)


def numbers(run: Trained, level: float | None, reference: Trained | None) -> dict[str, float | None]:
    """The NUMBERS of a finished training; None where a level is not reached.

    `level` is the R2 of the Wiener filter. "reference_*" is when the best R2 of the reference is reached, and "times_*"
    how many times as much the reference itself needed until then.
    """
    curve = run.curve
    best = curve.reached(curve.best)
    passed = curve.reached(level) if level is not None else None
    as_good = needed = None
    if reference is not None and reference.curve is not None:
        as_good, needed = curve.reached(reference.curve.best), reference.curve.reached(reference.curve.best)
    # a level that is there before the first step says nothing of speed
    learning = as_good and as_good[0] > 0 and needed[0] > 0
    times = [a / b for a, b in zip(needed, as_good)] if learning else (None, None)
    values = (
        curve.best,
        float(curve.r2[-1]),
        curve.area,
        *best,
        *(passed or (None, None)),
        *(as_good or (None, None)),
        *times,
        float(curve.seconds[-1]),
    )
    return dict(zip(NUMBERS, values, strict=True))


def reference_of(learned: Learned, run: Trained) -> Trained | None:
    """What a training is compared with: the reference's of the same seed, or where it has none its best of all seeds."""
    finished = learned.finished(learned.recipes[0])
    same = [reference for reference in finished if reference.seed == run.seed]
    return same[0] if same else max(finished, key=lambda reference: reference.curve.best, default=None)


def summary(learned: Learned) -> dict[str, dict[str, Stat]]:
    """Recipe -> number -> its Stat over the finished trainings of a source; the first recipe is the reference."""
    out = {}
    for recipe in learned.recipes:
        each = [numbers(run, learned.level, reference_of(learned, run)) for run in learned.finished(recipe)]
        out[recipe] = {name: stat(row[name] for row in each) for name in NUMBERS}
    return out
