"""Spikes and behaviour of a session -> how each unit is tuned: where a unit's embedding may start.

A unit's tuning is the correlation of its spike count with behaviour shortly before and after, on the train split. Units
tuned alike then start alike, in one session and over all, and what is learned of one holds for the others from the first
step; drawn at random, every unit must be found out for itself.
"""

import numpy as np

from pretrain.wiener import Stretch, stretches
from sharding.index import ShardIndex
from sharding.sampling import Sampling
from sharding.vocabulary import Vocabulary

BIN_S = 0.05
LAGS_S = np.linspace(-0.5, 0.5, 11)  # of behaviour behind the spikes
DIRECTIONS_KEY = 1  # a new unit must come to lie where the units of its pretraining lie: never change it
NOBODY = Vocabulary()
STRENGTH = 10.0  # a correlation of 0.1 at every lag makes a start as long as a random one


def start_tuned(model, index: ShardIndex, sampling: Sampling, known: Vocabulary = NOBODY) -> None:
    """Start the units of an index from their tuning, but for those already `known`, where the model asks for it."""
    if not model.config.tuned_start:
        return
    for session in index.session_ids:
        ids = index.unit_ids(session)
        new = np.array([unit not in known for unit in ids])
        if new.any():
            start_UD = tuning_start(index, sampling, session, model.width)
            model.start_units(sampling.units.rows(ids)[new], start_UD[new])


def tuning_start(index: ShardIndex, sampling: Sampling, session: str, width: int) -> np.ndarray:
    """Where a session's units start: (U, width) float32, of about unit variance a channel where tuning is strong.

    Every tuning is told along directions of its own, at random once and the same in all sessions and all runs.
    """
    dims = len(sampling.statistics[session][0])
    tuning_UF = tuning(stretches(index, session, sampling, "train"), len(index.unit_ids(session)), dims)
    features = tuning_UF.shape[1]
    directions = np.random.Generator(np.random.Philox(key=DIRECTIONS_KEY)).standard_normal((features, width))
    return (STRENGTH / np.sqrt(features) * tuning_UF @ directions).astype(np.float32)


def tuning(train: list[Stretch], units: int, dims: int) -> np.ndarray:
    """Correlations (U, lags * K) of each unit's count in 50-ms bins with behaviour `LAGS_S` later; 0 where undefined.

    Bins whose nearest sample has no weight in the loss are left out, and so are stretches shorter than three bins.
    """
    parts = [part for stretch in train if (part := _binned(stretch, units)) is not None]
    count_TU = np.concatenate([np.zeros((0, units)), *(count for count, _ in parts)])
    value_TF = np.concatenate([np.zeros((0, len(LAGS_S) * dims)), *(value for _, value in parts)])
    if len(count_TU) < 3:
        return np.zeros((units, len(LAGS_S) * dims))
    return _standard(count_TU).T @ _standard(value_TF) / len(count_TU)


def _binned(stretch: Stretch, units: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Counts (T, U) and lagged behaviour (T, lags * K) of the bins of one stretch."""
    bins = int((stretch.stop_us - stretch.start_us) / 1e6 / BIN_S)
    if bins < 3 or not len(stretch.stamp_us):
        return None
    bin_S = ((stretch.spike_us - stretch.start_us) / 1e6 / BIN_S).astype(np.int64)
    inside = bin_S < bins
    count_TU = np.bincount(bin_S[inside] * units + stretch.spike_unit[inside], minlength=bins * units)
    centre_T = (np.arange(bins) + 0.5) * BIN_S
    time = (stretch.stamp_us - stretch.start_us) / 1e6
    value_TF = np.stack([np.interp(centre_T + lag, time, value) for lag in LAGS_S for value in stretch.value.T], axis=1)
    counted = np.interp(centre_T, time, stretch.weight > 0) > 0.5
    return count_TU.reshape(bins, units)[counted].astype(np.float64), value_TF[counted]


def _standard(x: np.ndarray) -> np.ndarray:
    """Columns with mean 0 and sd 1; those that never vary are 0."""
    centred, sd = x - x.mean(axis=0), x.std(axis=0)
    return centred / np.where(sd > 1e-9, sd, np.inf)
