"""Shards -> the training stream from the step a run stands at, and the overlapping windows of a split."""

from collections.abc import Iterator
from functools import cache

import lightning
from torch.utils.data import DataLoader

from sharding.batch import Batch
from sharding.index import ShardIndex
from sharding.loader import LoaderConfig, batches_per_epoch, eval_loader, train_loader
from sharding.sampling import Sampling


class ShardDataModule(lightning.LightningDataModule):
    """Batch b of training is a function of (seed, b), so a resumed run asks for the batches from its step on."""

    def __init__(
        self, index: ShardIndex, sampling: Sampling, loader: LoaderConfig, *, seed: int, total_steps: int, step_s: float
    ):
        super().__init__()
        self.index, self.sampling, self.loader = index, sampling, loader
        self.seed, self.total_steps, self.step_s = seed, total_steps, step_s
        self.epoch_steps = batches_per_epoch(index, sampling.window_s, loader)
        self.split_loader = cache(self._split_loader)  # its worker processes stay for the next validation

    def train_dataloader(self) -> "Onward":
        return Onward(
            train_loader(
                self.index,
                self.sampling,
                self.loader,
                seed=self.seed,
                total_batches=self.total_steps,
                start_batch=self.trainer.global_step,
            )
        )

    def _split_loader(self, split: str) -> DataLoader:
        """Windows every `step_s` seconds and one ending with each interval, in order."""
        return eval_loader(self.index, self.sampling, self.loader, split, self.step_s)


class Onward:
    """A loader without a length: Lightning would count its batches from the first step of the run, not from here."""

    def __init__(self, loader: DataLoader):
        self.loader = loader

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.loader)
