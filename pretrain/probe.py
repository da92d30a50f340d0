"""Rows of features -> numbers about them: how many directions, how much is constant, what a line can read out of them."""

from dataclasses import dataclass

import numpy as np

from pretrain.metrics import r2

STRENGTHS = tuple(float(s) for s in np.logspace(-6, 3, 19))  # ridge, in multiples of the rows; features have sd 1
CHOOSING = 0.2  # share of the training rows, the last ones, on which the strength is chosen


def effective_rank(x_RD: np.ndarray) -> float:
    """exp of the entropy of the covariance's normalised eigenvalues, for rows (R, D); NaN where rows do not differ."""
    x_RD = np.asarray(x_RD, np.float64)
    centred_RD = x_RD - x_RD.mean(axis=0)
    value_D = np.clip(np.linalg.eigvalsh(centred_RD.T @ centred_RD), 0, None)
    if not value_D.sum() > 0:
        return float("nan")
    share_D = value_D / value_D.sum()
    share_D = share_D[share_D > 0]
    return float(np.exp(-(share_D * np.log(share_D)).sum()))


@dataclass(frozen=True)
class Moments:
    """Shares of the second moment of rows, taken off one after the other; they sum to 1.

    constant: the mean of all rows. fixed: what else a row's place says, whatever the spikes. windows: what is the same
    in all of a window. times: what changes within windows.
    """

    constant: float
    fixed: float
    windows: float
    times: float

    @property
    def moved(self) -> float:
        """The share that spikes move at all."""
        return self.windows + self.times


def moments(x_RD: np.ndarray, place_R: np.ndarray, window_R: np.ndarray) -> tuple[Moments, np.ndarray]:
    """Moments of rows (R, D) and, (R, D), what is left of them without the means of their places.

    Rows of one `place_R` (R,) differ by their spikes alone; rows of one `window_R` (R,) by their time in a window alone.
    """
    rest_RD = np.asarray(x_RD, np.float64)
    sums = [np.square(rest_RD).sum()]
    moved_RD = rest_RD
    for group_R in (np.zeros(len(rest_RD), np.int64), place_R, window_R):
        rest_RD = rest_RD - _group_means(rest_RD, group_R)
        sums.append(np.square(rest_RD).sum())
        moved_RD = rest_RD if group_R is place_R else moved_RD
    share = -np.diff(sums) / sums[0] if sums[0] > 0 else np.full(3, np.nan)
    return Moments(*share.tolist(), float(sums[-1] / sums[0]) if sums[0] > 0 else float("nan")), moved_RD


def _group_means(x_RD: np.ndarray, group_R: np.ndarray) -> np.ndarray:
    """For every row (R, D) the mean of the rows of its group."""
    _, at_R, count_G = np.unique(group_R, return_inverse=True, return_counts=True)
    total_GD = np.zeros((len(count_G), x_RD.shape[1]))
    np.add.at(total_GD, at_R, x_RD)
    return (total_GD / count_G[:, None])[at_R]


@dataclass(frozen=True)
class Rows:
    """What a probe reads: features (R, F) and the targets (Q, K) of samples, each of which looks at one row.

    row (Q,) int64, target (Q, K), weight (Q,) >= 0. Rows are in the order in which they may be told apart in time.
    """

    feature: np.ndarray
    row: np.ndarray
    target: np.ndarray
    weight: np.ndarray


def probe_r2(train: Rows, valid: Rows, strengths: tuple[float, ...] = STRENGTHS) -> float:
    """R2 on the samples of `valid`, mean over dimensions, of a ridge regression of targets on standardised features.

    Its strength is chosen on the last rows of `train`, then it is fitted on all of them. Samples of a row are one row with
    their mean target: the least squares are the same.
    """
    x_RF, y_RK, w_R = _summed(train)
    cut = round(len(x_RF) * (1 - CHOOSING))
    first, last = slice(None, cut), slice(cut, None)
    if not (w_R[first].any() and w_R[last].any()):
        return float("nan")
    values_A = _ridge(x_RF[first], y_RK[first], w_R[first], strengths, x_RF[last])
    error_A = [(w_R[last, None] * np.square(value - y_RK[last])).sum() for value in values_A]
    (value_RK,) = _ridge(x_RF, y_RK, w_R, strengths[int(np.argmin(error_A))], valid.feature)
    kept = valid.weight > 0
    return r2(valid.target[kept], value_RK[valid.row[kept]])


def _summed(rows: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features (R, F), weighted mean targets (R, K) and summed weights (R,)."""
    count, weight = len(rows.feature), rows.weight.astype(np.float64)
    w_R = np.bincount(rows.row, weight, count)
    sums = [np.bincount(rows.row, weight * column, count) for column in rows.target.T.astype(np.float64)]
    return rows.feature, np.stack(sums, axis=1) / np.where(w_R > 0, w_R, 1)[:, None], w_R


def _ridge(x_RF, y_RK, w_R, strength: float | tuple[float, ...], x_VF) -> list[np.ndarray]:
    """Values (V, K) at x (V, F) for one strength, or for each, of a weighted ridge fit to x (R, F) and y (R, K)."""
    x_RF, x_VF, share_R = np.asarray(x_RF, np.float64), np.asarray(x_VF, np.float64), (w_R / w_R.sum())[:, None]
    mean_F, mean_K = (share_R * x_RF).sum(axis=0), (share_R * y_RK).sum(axis=0)
    x_RF, x_VF = x_RF - mean_F, x_VF - mean_F
    sd_F = np.sqrt((share_R * np.square(x_RF)).sum(axis=0))
    scale_F = np.where(sd_F > 1e-12 * max(sd_F.max(), 1e-300), 1 / np.where(sd_F > 0, sd_F, 1), 0)
    x_RF, x_VF = x_RF * scale_F, x_VF * scale_F
    gram_FF, cross_FK = x_RF.T @ (share_R * x_RF), x_RF.T @ (share_R * (y_RK - mean_K))
    if isinstance(strength, float):
        return [x_VF @ np.linalg.solve(gram_FF + strength * np.eye(len(gram_FF)), cross_FK) + mean_K]
    value_F, basis_FF = np.linalg.eigh(gram_FF)
    turned_VF, turned_FK = x_VF @ basis_FF, basis_FF.T @ cross_FK
    return [turned_VF @ (turned_FK / (np.clip(value_F, 0, None) + s)[:, None]) + mean_K for s in strength]
