"""A module and the valid split -> its loss and the R2 of every session, computed by all ranks together."""

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from pretrain.datamodule import ShardDataModule
from pretrain.metrics import mean_of_defined, r2
from pretrain.module import DecodingModule
from pretrain.outputs import Prediction
from pretrain.stitch import Stitcher


@dataclass(frozen=True)
class Judged:
    """`loss` is the mean over weights, `scores` the R2 by session; `predictions` are with the leader alone."""

    loss: float
    scores: dict[str, float]
    predictions: list[Prediction]

    @property
    def mean(self) -> float:
        """Over sessions; NaN where none has a score."""
        return mean_of_defined(list(self.scores.values()))

    @property
    def row(self) -> dict[str, float]:
        """As metrics.csv has it."""
        scores = {f"valid/r2/{name}": score for name, score in self.scores.items()}
        return {"valid/loss": self.loss, "valid/r2": self.mean} | scores


@torch.no_grad()
def judge(module: DecodingModule, data: ShardDataModule, dims: int, precision: AbstractContextManager) -> Judged:
    """Decode the valid split, each rank its windows, and score it; called by all ranks, whose numbers are the same.

    `dims` are those of the signal; `precision` is what the forward pass runs in.
    """
    stitcher = Stitcher(data.sampling.sessions, data.sampling.statistics)
    loss_sum, weight_sum, training = 0.0, 0.0, module.training
    module.eval()
    with precision:
        for batch in data.split_loader("valid"):
            batch = batch.to(module.device)
            loss, value_QK = module.losses(batch)
            weight = float(batch.weight_Q.sum())
            loss_sum, weight_sum = loss_sum + float(loss) * weight, weight_sum + weight
            stitcher.add(batch, value_QK)
    module.train(training)
    loss_sum, weight_sum = data.ranks.sums(loss_sum, weight_sum)
    stitcher.gather(data.ranks, dims)
    predictions = stitcher.predictions()
    scores = data.ranks.told({p.session: r2(p.target[p.evaluated], p.value[p.evaluated]) for p in predictions})
    return Judged(loss_sum / weight_sum if weight_sum else math.nan, scores, predictions)
