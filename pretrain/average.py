"""Running average of the weights: what a training validates and exports where its recipe asks for one.

Weights of single steps scatter around where a training stands; their average stands nearer to it, long before a falling
rate calms them (Polyak and Juditsky 1992). The training itself is untouched.
"""

from collections.abc import Iterable
from contextlib import contextmanager

import torch
from torch import Tensor


class WeightAverage:
    """Exponential moving average of weights: average += (1 - d) * (weight - average) after every step.

    d is `decay`, at first less: (1 + n) / (10 + n) at the n-th step, so that the start is soon forgotten. A weight that
    does not move keeps every bit in its average. `weights` are what a rank holds (Spread.own_tensors).
    """

    def __init__(self, weights: Iterable[Tensor], decay: float):
        self.decay, self.steps = decay, 0
        self.weights = list(weights)
        self.average = [weight.detach().clone() for weight in self.weights]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are after one more step."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.average, self.weights, 1 - decay)
        self.steps += 1

    @contextmanager
    def in_place(self):
        """While inside, the weights hold the averages."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for weight, average in zip(self.weights, self.average):
            weight.data, average.data = average.data, weight.data
