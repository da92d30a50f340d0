"""Losses of steps, added up from their parts and over ranks, and looked at when that costs nothing or is due."""

import math
from collections.abc import Iterator

import torch

from pretrain.alarms import Trained
from pretrain.ranks import Ranks
from sharding.batch import Batch

Batches = list[Batch | Trained]


class Losses:
    """What each step's parts have added to its loss, on the device until it is looked at, and their mean since the last row."""

    def __init__(self, ranks: Ranks):
        self.ranks = ranks
        self.total, self.steps = 0.0, 0  # of the losses looked at since the last mean
        self._addends: list[torch.Tensor] = []  # a step
        self._batches: list[tuple[int, Batches]] = []  # this rank's parts of the same steps

    def begin(self, step: int, device: torch.device) -> None:
        """A step has begun."""
        if self._batches:  # nobody has looked yet: on a GPU that waits until it is due, and memory is dear
            self._batches[-1][1][:] = map(Trained.of, self._batches[-1][1])
        self._addends.append(torch.zeros((), device=device))
        self._batches.append((step, []))

    def take(self, batch: Batch) -> None:
        """A part of the step at hand is about to be computed."""
        self._batches[-1][1].append(batch)

    def add(self, addend: torch.Tensor) -> None:
        """What that part adds to the loss."""
        self._addends[-1] = self._addends[-1] + addend

    @property
    def batches(self) -> Batches:
        """The parts of the step at hand."""
        return self._batches[-1][1]

    def look(self) -> Iterator[tuple[int, float, Batches]]:
        """Step, loss and batches of each step since the last look whose loss is not finite; all others join the mean.

        Called by all ranks.
        """
        if not self._addends:
            return
        losses, batches = self.ranks.sums(*torch.stack(self._addends).tolist()), self._batches
        self._addends, self._batches = [], []
        yield from ((step, loss, parts) for (step, parts), loss in zip(batches, losses) if not math.isfinite(loss))
        self.total, self.steps = self.total + math.fsum(losses), self.steps + len(losses)

    def mean(self) -> float:
        """Of the losses looked at since it was last asked for."""
        mean, self.total, self.steps = self.total / self.steps, 0.0, 0
        return mean
