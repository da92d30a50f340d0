"""Shards -> the training stream from the batch a run stands at, and the overlapping windows of a split."""

import time
from collections.abc import Iterator
from contextlib import closing

import lightning

from pretrain.module import StepPart
from pretrain.ranks import ALONE, Ranks
from sharding.batch import Batch
from sharding.batches import LoaderState
from sharding.index import ShardIndex
from sharding.loader import EvalLoader, LoaderConfig, TrainLoader, eval_loader, train_loader
from sharding.sampling import Sampling


class ShardDataModule(lightning.LightningDataModule):
    """A rank's part of the batches of a run, and how many of them were trained on: that, not what was fetched, is saved."""

    def __init__(
        self,
        index: ShardIndex,
        sampling: Sampling,
        loader: LoaderConfig,
        *,
        seed: int,
        total_steps: int,
        step_s: float,
        parts: int = 1,
        ranks: Ranks = ALONE,
    ):
        """`parts` are those of a rank's share of a global batch. Raises ConfigError where there is nothing to train on."""
        super().__init__()
        self.index, self.sampling, self.loader, self.step_s = index, sampling, loader, step_s
        self.seed, self.parts, self.ranks = seed, parts, ranks
        self.train = train_loader(index, sampling, loader, seed=seed, total_batches=total_steps, share=ranks.share)
        self.trained, self.windows = LoaderState(), 0  # where the next batch begins; windows of those before it
        self._of_splits: dict[str, EvalLoader] = {}

    @property
    def epoch(self) -> float:
        """Passes over the train split so far."""
        return self.trained.place / self.train.epoch_windows

    def note(self, batch: Batch) -> None:
        """The global batch that this is of was trained on."""
        self.trained = LoaderState(batch.number + 1, batch.stop)
        self.windows += batch.windows

    def place(self) -> dict[str, int]:
        """What resume() takes."""
        return self.train.state_dict(self.trained) | {"windows": self.windows}

    def resume(self, place: dict[str, int]) -> None:
        """Go on after the batches trained on. Raises ConfigError where the run was begun with other batches."""
        self.train.load_state_dict(place)
        self.trained, self.windows = self.train.state, place["windows"]

    def train_dataloader(self) -> "Parts":
        return Parts(self.train, self.parts)

    def split_loader(self, split: str) -> EvalLoader:
        """This rank's windows of those every `step_s` seconds and one ending with each interval, in order.

        Its worker processes stay for the next validation.
        """
        if split not in self._of_splits:
            self._of_splits[split] = eval_loader(
                self.index, self.sampling, self.loader, split, self.step_s, self.ranks.share
            )
        return self._of_splits[split]

    def close(self) -> None:
        """End the worker processes that stayed."""
        for loader in self._of_splits.values():
            loader.close()


class Parts:
    """A rank's shares of global batches, cut into parts.

    It has no length and no state: Lightning would count its batches from the first step of the run, not from here, and
    save the state of the batch that it fetches ahead.
    """

    def __init__(self, loader: TrainLoader, parts: int):
        self.loader, self.parts = loader, parts

    def __iter__(self) -> Iterator[StepPart]:
        with closing(iter(self.loader)) as batches:
            while True:
                began = time.perf_counter()
                batch = next(batches, None)
                if batch is None:
                    return
                weight, waited_s = float(batch.weight_Q.sum()), time.perf_counter() - began
                for number, part in enumerate(batch.parts(self.parts)):
                    yield StepPart(part, number, self.parts, weight, waited_s)
