"""Scores of decoded behaviour: R2 per dimension and its unweighted mean.

The mean over dimensions is uniform, never weighted by variance. A dimension whose targets are all equal, or that has
fewer than two samples, has no variance to explain: its R2 is NaN, left out of the mean, and null in results.json.
"""

import numpy as np


def r2_per_dimension(target: np.ndarray, value: np.ndarray) -> np.ndarray:
    """1 - SS_res / SS_tot per dimension (K,) float64, for targets and values (n, K); NaN where targets do not vary."""
    target, value = np.asarray(target, np.float64), np.asarray(value, np.float64)
    score = np.full(target.shape[1], np.nan)
    if len(target) < 2:
        return score
    varies = np.ptp(target, axis=0) > 0  # exact, where a sum of squares of a constant may round to more than zero
    residual = np.square(target - value).sum(axis=0)
    total = np.square(target - target.mean(axis=0)).sum(axis=0)
    score[varies] = 1 - residual[varies] / total[varies]
    return score


def mean_of_defined(scores) -> float:
    """Unweighted mean of the scores that are not NaN; NaN where none is."""
    scores = np.asarray(scores, np.float64)
    scores = scores[~np.isnan(scores)]
    return float(scores.mean()) if len(scores) else float("nan")


def r2(target: np.ndarray, value: np.ndarray) -> float:
    """Unweighted mean over dimensions of R2, for targets and values (n, K)."""
    return mean_of_defined(r2_per_dimension(target, value))
