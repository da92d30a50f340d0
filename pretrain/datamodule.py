"""Shards -> the training stream from the batch a run stands at, and the overlapping windows of a split."""

from collections.abc import Iterator
from functools import cache

import lightning

from pretrain.errors import CheckpointError
from sharding.batch import Batch
from sharding.batches import LoaderState
from sharding.index import ShardIndex
from sharding.loader import EvalLoader, LoaderConfig, TrainLoader, eval_loader, train_loader
from sharding.sampling import Sampling


class ShardDataModule(lightning.LightningDataModule):
    """The batches of a run, and how many of them were trained on: that, not what was fetched, travels in last.ckpt."""

    def __init__(
        self, index: ShardIndex, sampling: Sampling, loader: LoaderConfig, *, seed: int, total_steps: int, step_s: float
    ):
        """Raises ConfigError where there is nothing to train on."""
        super().__init__()
        self.index, self.sampling, self.loader, self.step_s = index, sampling, loader, step_s
        self.train = train_loader(index, sampling, loader, seed=seed, total_batches=total_steps)
        self.trained, self.windows = LoaderState(), 0  # where the next batch begins; windows in those before it
        self.split_loader = cache(self._split_loader)  # its worker processes stay for the next validation

    @property
    def epoch(self) -> float:
        """Passes over the train split so far."""
        return self.trained.place / self.train.epoch_windows

    def note(self, batch: Batch) -> None:
        """A batch was trained on."""
        self.trained = LoaderState(batch.number + 1, batch.stop)
        self.windows += len(batch)

    def state_dict(self) -> dict[str, int]:
        return self.train.state_dict(self.trained) | {"windows": self.windows}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Raises ConfigError where the run was begun with other batches."""
        self.train.load_state_dict(state)
        self.trained, self.windows = self.train.state, state["windows"]

    def train_dataloader(self) -> "Onward":
        if self.trained.batch != self.trainer.global_step:  # Lightning loads no state where it finds none
            raise CheckpointError(
                self.trainer.ckpt_path,
                "does not say which windows its run had seen (another version wrote it)",
                "remove it to begin the run again, or continue with the version that began it",
            )
        return Onward(self.train)

    def _split_loader(self, split: str) -> EvalLoader:
        """Windows every `step_s` seconds and one ending with each interval, in order."""
        return eval_loader(self.index, self.sampling, self.loader, split, self.step_s)


class Onward:
    """A loader without a length or a state: Lightning would count its batches from the first step of the run, not from
    here, and save the state of the batch that it fetches ahead."""

    def __init__(self, loader: TrainLoader):
        self.loader = loader

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.loader)
