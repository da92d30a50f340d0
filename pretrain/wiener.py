"""Wiener filter: the linear decoder every result stands beside, from the same shards, intervals and samples.

A behaviour sample at time t is a linear function of binned spike counts around t: of the bins that end at or before t
(causal), or of as many before as after (centred: what a model sees that reads a window around the sample). Bins are
20 ms wide, or as wide as the behaviour's period where that is longer. Counts are z-scored with training statistics;
bins outside the contiguous interval are zero after that. History and ridge are chosen on the valid split alone.

Ridge solutions of all strengths come from one Golub-Kahan bidiagonalisation a target dimension (as LSQR finds them), in
which the lagged design matrix is only ever applied, never built: X v is one product of counts and weights, summed along
its lags. So the work grows with bins x units x lags, not with its square.
"""

from dataclasses import dataclass, field

import numpy as np

from pretrain.errors import ConfigError
from pretrain.metrics import r2
from sharding.index import ShardIndex
from sharding.sampling import Sampling, SessionTables
from sharding.window import interval_windows

BIN_S = 0.02
BLOCK_S = 30.0  # samples evaluated at once, which bounds memory
FINE = 20  # steps per bin of the grid on which counts around arbitrary times are looked up
MIN_STD = 1e-3  # of a count, before it is divided by: a unit without training spikes stays near zero


@dataclass(frozen=True)
class WienerConfig:
    history_s: list[float] = field(default_factory=lambda: [0.2, 0.5, 1.0])
    "histories to choose from, seconds (of both sides together where centred)"
    ridge: list[float] = field(default_factory=lambda: [10.0**power for power in range(-2, 7)])
    "ridge strengths to choose from"
    iterations: int = 60
    "bidiagonalisation steps; a ridge too weak to be settled by then is regularised by the stop as well"


@dataclass(frozen=True)
class Stretch:
    """One contiguous interval of a split, its spikes and behaviour samples; times in int64 us, the session's clock."""

    start_us: int
    stop_us: int
    spike_us: np.ndarray  # (s,) rising
    spike_unit: np.ndarray  # (s,) local unit numbers
    stamp_us: np.ndarray  # (n,) rising
    value: np.ndarray  # (n, K) as recorded
    weight: np.ndarray  # (n,) loss weight
    evaluated: np.ndarray  # (n,) bool


def stretches(index: ShardIndex, session: str, sampling: Sampling, split: str) -> list[Stretch]:
    """The contiguous intervals of a session's split, each whole, in time order."""
    index = index.select([session])
    tables, out = SessionTables.of(index, sampling), []
    for whole in interval_windows(index, sampling.signal, split):
        start = whole.start_us
        out.append(
            Stretch(
                start,
                start + whole.length_us,
                whole.spike_time + start,
                whole.spike_unit.astype(np.int64),
                whole.sample_time + start,
                whole.value,
                tables.weight[0, whole.phase].astype(np.float64),
                tables.evaluated[0, whole.phase],
            )
        )
    return out


@dataclass(frozen=True)
class WienerFilter:
    """A fitted filter: weights (lags, U, K) of z-scored counts; lag j is the bin that ends j bins before the sample."""

    bin_us: float
    first_lag: int  # j of the first weights: 0 where causal, negative (bins after the sample) where centred
    mean_U: np.ndarray
    std_U: np.ndarray
    most_U: np.ndarray
    weight_LUK: np.ndarray
    bias_K: np.ndarray
    history_s: float
    ridge: tuple[float, ...]  # by target dimension

    def predict(self, stretch: Stretch) -> np.ndarray:
        """Values (n, K) at the stretch's own samples."""
        return (
            _predict(stretch, self.bin_us, self.first_lag, self.mean_U, self.std_U, self.most_U, self.weight_LUK)
            + self.bias_K
        )


def fit_wiener(
    train: list[Stretch], valid: list[Stretch], units: int, config: WienerConfig, causal: bool
) -> WienerFilter:
    """Fit on the train stretches; history and, by dimension, ridge by R2 on the evaluated samples of the valid ones.

    Raises ConfigError where either has too few samples to fit or to choose.
    """
    for name, split in (("train", train), ("valid", valid)):
        if sum(int(np.count_nonzero(s.weight if name == "train" else s.evaluated)) for s in split) < 2:
            raise ConfigError(f"{name} split", "has no samples for a Wiener filter", "evaluate with wiener=false")
    bin_us = bin_width_us(train)
    grid = BinnedTrain.of(train, units, bin_us, room=_lags(max(config.history_s), bin_us) + 1)
    target = np.concatenate([s.value[s.evaluated] for s in valid])
    best, best_score = None, None
    for history_s in config.history_s:
        lags = _lags(history_s, bin_us)
        first_lag = 0 if causal else -(lags // 2)
        weight_RLUK, bias_RK = grid.ridge_solutions(first_lag, lags, config.ridge, config.iterations)
        count, K = len(config.ridge), target.shape[1]
        stacked = np.moveaxis(weight_RLUK, 0, -2).reshape(lags, units, count * K)
        value = (
            np.concatenate(
                [
                    _predict(s, bin_us, first_lag, grid.mean_U, grid.std_U, grid.most_U, stacked)[s.evaluated]
                    for s in valid
                ]
            ).reshape(-1, count, K)
            + bias_RK
        )
        score_RK = np.array(
            [[r2(target[:, k : k + 1], value[:, r, k : k + 1]) for k in range(K)] for r in range(count)]
        )
        score_RK = np.nan_to_num(score_RK, nan=-np.inf)  # a dimension that does not vary decides nothing
        chosen, dims = score_RK.argmax(axis=0), np.arange(K)
        score = score_RK[chosen, dims]
        score = float(score[np.isfinite(score)].mean()) if np.isfinite(score).any() else -np.inf
        if best is None or score > best_score:
            best_score = score
            best = WienerFilter(
                bin_us,
                first_lag,
                grid.mean_U,
                grid.std_U,
                grid.most_U,
                np.moveaxis(weight_RLUK[chosen, :, :, dims], 0, -1),
                bias_RK[chosen, dims],
                history_s,
                tuple(config.ridge[r] for r in chosen),
            )
    return best


def bin_width_us(stretches_: list[Stretch]) -> float:
    """20 ms, or the median period of the behaviour where it is longer."""
    steps = np.concatenate([np.diff(s.stamp_us) for s in stretches_])
    return max(BIN_S * 1e6, float(np.median(steps))) if len(steps) else BIN_S * 1e6


def _lags(history_s: float, bin_us: float) -> int:
    return max(1, round(history_s * 1e6 / bin_us))


@dataclass(frozen=True)
class BinnedTrain:
    """Train stretches on grids of bins, laid end to end with room for lags between them.

    Row r of counts holds the bin that ends at grid point r; targets are means of the samples nearest to it.
    """

    counts_GU: np.ndarray  # float32, z-scored; zero in the room and outside intervals
    inside: np.ndarray  # (G,) bool: bins that lie in an interval
    target_GK: np.ndarray
    weight_G: np.ndarray  # loss weight, 0 where there is no sample
    mean_U: np.ndarray
    std_U: np.ndarray
    most_U: np.ndarray  # largest count of a bin

    @staticmethod
    def of(train: list[Stretch], units: int, bin_us: float, room: int) -> "BinnedTrain":
        parts = [_binned(stretch, units, bin_us, room) for stretch in train if len(stretch.stamp_us)]
        counts, inside, target, weight = (np.concatenate(column) for column in zip(*parts))
        mean_U = counts[inside].mean(axis=0) if inside.any() else np.zeros(units)
        std_U = np.maximum(counts[inside].std(axis=0), MIN_STD) if inside.any() else np.ones(units)
        scored = np.where(inside[:, None], (counts - mean_U) / std_U, 0).astype(np.float32)
        most_U = counts[inside].max(axis=0) if inside.any() else np.zeros(units)
        return BinnedTrain(scored, inside, target, weight, mean_U, std_U, most_U)

    def ridge_solutions(self, first_lag: int, lags: int, ridge: list[float], iterations: int):
        """Weights (R, L, U, K) and biases (R, K) minimising sum w (y - X W - b)^2 + ridge |W|^2, sum w = its count.

        The bias is not penalised: X and y are taken about their weighted means.
        """
        design = LaggedDesign(self, first_lag, lags)
        weight_KRLU, bias_KR = [], []
        for target in self.target_GK[design.rows].T:
            centre = design.mean(target)
            solution_RF = ridge_by_bidiagonalisation(design, design.root * (target - centre), ridge, iterations)
            weight_KRLU.append(solution_RF.reshape(len(ridge), lags, -1))
            bias_KR.append([centre - design.mean(design.plain(v)) for v in solution_RF])
        return np.moveaxis(np.array(weight_KRLU), 0, -1), np.array(bias_KR).T


class LaggedDesign:
    """sqrt(w) (X - its weighted mean), applied to vectors and transposed, where X holds lagged rows of counts."""

    def __init__(self, grid: BinnedTrain, first_lag: int, lags: int):
        self.counts, self.lags, self.first_lag = grid.counts_GU, lags, first_lag
        self.rows = np.flatnonzero(grid.weight_G > 0)
        weight = grid.weight_G[self.rows]
        self.share = weight / weight.sum()
        self.root = np.sqrt(self.share * len(weight))  # weights of mean 1, so that a ridge means the same everywhere
        # a lag reads counts[row - lag]; the room around every stretch keeps that inside the array
        self.read = self.rows[:, None] - (first_lag + np.arange(lags))

    def mean(self, values: np.ndarray) -> float:
        return float(self.share @ values)

    def plain(self, v: np.ndarray) -> np.ndarray:
        """X v, (n,) for v (L * U,)."""
        product_GL = self.counts @ v.reshape(self.lags, -1).T.astype(np.float32)
        total = np.zeros(len(self.rows))
        for lag in range(self.lags):
            total += product_GL[self.read[:, lag], lag]
        return total

    def forward(self, v: np.ndarray) -> np.ndarray:
        product = self.plain(v)
        return self.root * (product - self.mean(product))

    def transposed(self, u: np.ndarray) -> np.ndarray:
        """Adjoint of forward: (L * U,) for u (n,)."""
        scaled = self.root * u
        scaled = scaled - self.share * scaled.sum()
        spread_LG = np.zeros((self.lags, len(self.counts)), np.float32)
        for lag in range(self.lags):
            spread_LG[lag, self.read[:, lag]] = scaled
        return (spread_LG @ self.counts).astype(np.float64).ravel()


def ridge_by_bidiagonalisation(design, target: np.ndarray, ridge: list[float], iterations: int) -> np.ndarray:
    """argmin |design v - target|^2 + r |v|^2 for every r of ridge: (R, F) float64.

    `design` has forward (F,) -> (n,) and transposed (n,) -> (F,). Exact once `iterations` reach the rank or the small
    problem stops growing; its basis is kept orthogonal explicitly.
    """
    beta = np.linalg.norm(target)
    first = design.transposed(target)
    if not beta or not np.linalg.norm(first):
        return np.zeros((len(ridge), len(first)))
    left, basis, diagonal, below = target / beta, [], [], []
    right, previous = first / beta, 0.0
    for _ in range(min(iterations, len(first), len(target))):
        for _twice in range(2 if basis else 0):  # Gram-Schmidt, repeated: rounding would bring old directions back
            held = np.array(basis)
            right = right - held.T @ (held @ right)
        alpha = np.linalg.norm(right)
        if alpha < 1e-6 * (diagonal[0] if diagonal else 0.0) or alpha == 0:
            break
        basis.append(right / alpha)
        diagonal.append(alpha)
        left = design.forward(basis[-1]) - alpha * left
        previous = np.linalg.norm(left)
        below.append(previous)
        if previous < 1e-6 * diagonal[0]:
            break
        left = left / previous
        right = design.transposed(left) - previous * basis[-1]
    n = len(diagonal)
    small = np.zeros((n + 1, n))
    small[np.arange(n), np.arange(n)], small[np.arange(1, n + 1), np.arange(n)] = diagonal, below[:n]
    u, s, vt = np.linalg.svd(small, full_matrices=False)
    filtered = s / (s**2 + np.asarray(ridge)[:, None]) * (beta * u[0])
    return filtered @ vt @ np.array(basis)


def _binned(stretch: Stretch, units: int, bin_us: float, room: int):
    """Counts, inside, target and weight of one stretch on a grid through its first sample, room rows on either side."""
    first = stretch.stamp_us[0]
    before = int((first - stretch.start_us) // bin_us)  # whole bins that end at or before the first sample
    after = int((stretch.stop_us - first) // bin_us)
    grid_rows = before + after + 2 * room + 1
    origin = room + before  # the row whose bin ends at the first sample
    row = np.floor((stretch.spike_us - first) / bin_us).astype(np.int64) + 1 + origin
    counts = np.bincount(row * units + stretch.spike_unit, minlength=grid_rows * units).reshape(grid_rows, units)
    inside = np.zeros(grid_rows, bool)
    inside[origin - before + 1 : origin + after + 1] = True
    nearest = np.minimum(np.rint((stretch.stamp_us - first) / bin_us).astype(np.int64), after) + origin
    total = np.bincount(nearest, stretch.weight, grid_rows)
    summed = np.stack([np.bincount(nearest, stretch.weight * column, grid_rows) for column in stretch.value.T], axis=1)
    target = summed / np.where(total > 0, total, 1)[:, None]
    return counts.astype(np.float32), inside, target, total


def _predict(stretch: Stretch, bin_us: float, first_lag: int, mean_U, std_U, most_U, weight_LUC) -> np.ndarray:
    """Sum over lags of z-scored counts times weights, (n, C), at each sample's own time.

    A count stops at the largest of training: a unit that was nearly silent then has a tiny standard deviation, and a burst
    of it later would throw a linear prediction off by any amount.
    """
    out = np.zeros((len(stretch.stamp_us), weight_LUC.shape[2]))
    if not len(out):
        return out
    fine_us, lags = bin_us / FINE, len(weight_LUC)
    reach_us = (lags + abs(first_lag) + 2) * bin_us
    scaled_LUC = (weight_LUC / std_U[:, None]).astype(np.float32)
    level_LC = mean_U @ scaled_LUC.astype(np.float64)  # what the subtracted mean count amounts to
    edges = np.arange(stretch.stamp_us[0], stretch.stamp_us[-1] + 1, BLOCK_S * 1e6)
    for block in np.split(np.arange(len(out)), np.searchsorted(stretch.stamp_us, edges[1:])):
        if not len(block):
            continue
        stamp = stretch.stamp_us[block].astype(np.float64)
        origin = stamp[0] - np.ceil(reach_us / fine_us) * fine_us
        i, j = np.searchsorted(stretch.spike_us, (origin, stamp[-1] + reach_us))
        cells = int((stamp[-1] + reach_us - origin) // fine_us) + 2
        cell = np.floor((stretch.spike_us[i:j] - origin) / fine_us).astype(np.int64)
        flat = np.bincount((cell + 1) * len(mean_U) + stretch.spike_unit[i:j], minlength=(cells + 1) * len(mean_U))
        before_TU = np.cumsum(flat.reshape(cells + 1, -1), axis=0, dtype=np.float32)  # spikes before each fine edge
        at = np.floor((stamp - origin) / fine_us + 1e-3).astype(np.int64)
        for lag in range(lags):
            end = at - (first_lag + lag) * FINE
            stop = stamp - (first_lag + lag) * bin_us
            inside = (stop - bin_us >= stretch.start_us - 1) & (stop <= stretch.stop_us + 1)
            counts = np.minimum(before_TU[end] - before_TU[end - FINE], most_U.astype(np.float32))
            out[block] += np.where(inside[:, None], counts @ scaled_LUC[lag] - level_LC[lag], 0)
    return out
