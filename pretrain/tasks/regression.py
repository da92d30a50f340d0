"""Regression: one feature row per query becomes a behaviour value; the loss is POYO's weighted squared error."""

from dataclasses import dataclass, field

import torch
from torch import nn

from pretrain.outputs import Encoded
from sharding.batch import Batch

LEAST_WEIGHT = 1e-8  # that a loss is divided by: a batch of samples that do not count has no loss


@dataclass(frozen=True)
class RegressionConfig:
    name: str = "regression"
    signal: str = "cursor_vel"
    "behaviour series to decode, by its name in the shards"
    center: bool = False
    "subtract each session's training mean from the targets (POYO only divides; positions need it)"
    scale: float | str = "recipe"
    "divide targets by: recipe (the constant the recipe gives, else robust), robust (robust training sd), std, or a number"
    use_recipe_weights: bool = True
    "start from the loss weights and evaluation phases the recipe advises"
    phase_weights: dict[str, float] = field(default_factory=dict)
    "loss weight of a sample by its phase, over the recipe's; 1 where a phase is not named"
    eval_phases: list[str] = field(default_factory=list)
    "phases to evaluate on, instead of the recipe's; empty keeps the recipe's"


class Regression(nn.Module):
    """Linear readout of `dims` values and the loss of the POYO paper (sum of w * mean over dims of error^2 / sum of w)."""

    def __init__(self, config: RegressionConfig, width: int, dims: int):
        super().__init__()
        self.config = config
        self.linear = nn.Linear(width, dims)

    @torch.no_grad()
    def start_at_zero(self) -> None:
        """Decode the mean until something is learned: in place of a random readout, whose noise is unlearned first."""
        for weight in self.parameters():
            weight.zero_()

    def readout(self, encoded: Encoded) -> torch.Tensor:
        """Normalised values (Q, K) for features (Q, D)."""
        return self.linear(encoded.feature_QD)

    def loss_sum(self, value_QK: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The loss before it is divided by the weights: a scalar in float32, which adds up over parts of a batch."""
        error_Q = (value_QK.float() - batch.target_QK).square().mean(dim=-1)
        return (error_Q * batch.weight_Q).sum()

    def loss(self, value_QK: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Scalar loss in float32; zero where every weight of the batch is zero."""
        return self.loss_sum(value_QK, batch) / batch.weight_Q.sum().clamp_min(LEAST_WEIGHT)
