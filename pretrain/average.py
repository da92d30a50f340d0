"""Running average of the weights: what a training validates and exports where its recipe asks for one.

Weights of single steps scatter around where a training stands; their average stands nearer to it, long before a falling
rate calms them (Polyak and Juditsky 1992). The training itself is untouched.
"""

from collections.abc import Iterable
from contextlib import contextmanager

import torch
from torch import nn


class WeightAverage:
    """Exponential moving average of parameters: average += (1 - d) * (weight - average) after every step.

    d is `decay`, at first less: (1 + n) / (10 + n) at the n-th step, so that the start is soon forgotten. A weight that
    does not move keeps every bit in its average.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float):
        self.decay, self.steps = decay, 0
        self.parameters = list(parameters)
        self.average = [weight.detach().clone() for weight in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are after one more step."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.average, self.parameters, 1 - decay)
        self.steps += 1

    @contextmanager
    def in_place(self):
        """While inside, the parameters hold the averages."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for weight, average in zip(self.parameters, self.average):
            weight.data, average.data = average.data, weight.data

    def state_dict(self) -> dict:
        return {"steps": self.steps, "average": self.average}

    def load_state_dict(self, state: dict) -> None:
        self.steps = state["steps"]
        for average, saved in zip(self.average, state["average"], strict=True):
            average.copy_(saved)
