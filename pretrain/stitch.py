"""Overlapping windows' values -> one Prediction a session, averaged where windows saw the same sample.

A sample is known by its integer microsecond stamp, never by a float time; sums are float64, so that the order of
windows does not matter.
"""

from collections.abc import Iterable

import numpy as np
import torch

from pretrain.outputs import Prediction
from pretrain.ranks import Ranks
from sharding.batch import Batch
from sharding.statistics import TargetStatistics
from sharding.vocabulary import Vocabulary


def stitch(stamp_n: np.ndarray, value_nK: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Average values (n, K) over equal stamps (n,).

    Returns the distinct stamps in rising order (m,), their means (m, K) float64 and the position (m,) of a first
    occurrence of each. Example: stamps [5, 7, 5], values [[1], [2], [3]] -> [5, 7], [[2], [2]], [0, 1].
    """
    stamp_m, first_m, group_n, count_m = np.unique(stamp_n, return_index=True, return_inverse=True, return_counts=True)
    columns = [np.bincount(group_n, column, minlength=len(stamp_m)) for column in value_nK.T.astype(np.float64)]
    return stamp_m, np.stack(columns, axis=1) / count_m[:, None], first_m


class Stitcher:
    """Collects batches and their values; `predictions()` gives each session's samples in the recording's units."""

    def __init__(self, sessions: Vocabulary, statistics: TargetStatistics):
        self.sessions, self.statistics = sessions, statistics
        self._parts: list[tuple[np.ndarray, ...]] = []

    def add(self, batch: Batch, value_QK: torch.Tensor) -> None:
        """Take in the normalised values (Q, K) of a batch's queries."""
        parts = (batch.query_session_Q, batch.stamp_Q, value_QK.detach().float(), batch.target_QK, batch.evaluated_Q)
        self._parts.append(tuple(part.cpu().numpy() for part in parts))

    def gather(self, ranks: Ranks, dims: int) -> None:
        """Bring what all ranks took in, of `dims` dimensions, to the leader; the others are left with nothing."""
        if ranks.world == 1:
            return
        empty = [np.empty((0, *shape), dtype) for dtype, shape in _column_types(dims)]
        columns = [np.concatenate(column) for column in zip(*self._parts)] if self._parts else empty
        gathered = [ranks.gathered(column) for column in columns]
        self._parts = [tuple(map(np.concatenate, gathered))] if ranks.leader else []

    def predictions(self) -> list[Prediction]:
        """One Prediction a session, in the order of the vocabulary."""
        if not self._parts:
            return []
        row, stamp, value, target, evaluated = (np.concatenate(column) for column in zip(*self._parts))
        out = []
        for number in np.unique(row):
            mine = np.flatnonzero(row == number)
            session = self.sessions.ids[number - 1]
            mean, scale = (np.asarray(part, np.float64) for part in self.statistics[session])
            stamp_m, value_mK, first_m = stitch(stamp[mine], value[mine])
            target_mK = target[mine][first_m].astype(np.float64)
            out.append(
                Prediction(
                    session,
                    stamp_m * 1e-6,
                    (value_mK * scale + mean).astype(np.float32),
                    (target_mK * scale + mean).astype(np.float32),
                    evaluated[mine][first_m],
                )
            )
        return out


def _column_types(dims: int) -> list[tuple[type, tuple[int, ...]]]:
    """dtype, and shape but for the rows, of what Stitcher.add() keeps."""
    return [(np.int64, ()), (np.int64, ()), (np.float32, (dims,)), (np.float32, (dims,)), (np.bool_, ())]


@torch.no_grad()
def decode(decoder, batches: Iterable[Batch], stitcher: Stitcher, device: torch.device) -> list[Prediction]:
    """Run `decoder` (Batch -> normalised values (Q, K)) over the batches on a device and stitch what comes."""
    for batch in batches:
        batch = batch.to(device)
        stitcher.add(batch, decoder(batch))
    return stitcher.predictions()
