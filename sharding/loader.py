"""Plan + reader + augmentation + packing -> torch DataLoaders whose every batch is a pure function of its number."""

import multiprocessing
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from sharding.augment import UnitDropoutConfig
from sharding.batch import Batch
from sharding.errors import ConfigError
from sharding.index import ShardIndex
from sharding.maker import BatchMaker
from sharding.plan import EvalPlan, TrainPlan, windows_per_epoch
from sharding.sampling import Sampling


@dataclass
class LoaderConfig:
    """How batches are made."""

    batch_windows: int = 32
    "windows in a batch"
    workers: int = 0
    "processes that make batches; 0 makes them in the training process"
    unit_dropout: UnitDropoutConfig | None = None
    "how many units of a training window are kept; null keeps all"


def batches_per_epoch(index: ShardIndex, window_s: float, config: LoaderConfig) -> int:
    """Whole batches of an epoch; 1 where all windows together fill less than one. Raises ConfigError for no window."""
    windows = windows_per_epoch(index, window_s)
    if config.batch_windows < 1:
        raise ConfigError("batch_windows", f"is {config.batch_windows}", "give at least 1")
    if not windows:
        raise ConfigError(
            index.root,
            f"holds no train interval of {window_s} s in the {len(index.sessions)} chosen sessions",
            "choose more sessions, more train minutes or a shorter window",
        )
    return max(1, windows // config.batch_windows)


def train_loader(
    index: ShardIndex, sampling: Sampling, config: LoaderConfig, *, seed: int, total_batches: int, start_batch: int = 0
) -> DataLoader:
    """Packed training batches start_batch ... total_batches - 1; batch b is the same whatever came before.

    Epochs follow each other, each dropping its last partial batch; where all windows fill less than one batch,
    batches span epochs. Raises ConfigError where there is no window at all.
    """
    batches_per_epoch(index, sampling.window_s, config)
    return _loader(TrainBatches(index, sampling, config, seed), range(start_batch, total_batches), config)


def eval_loader(index: ShardIndex, sampling: Sampling, config: LoaderConfig, split: str, step_s: float) -> DataLoader:
    """Packed batches over the overlapping windows of a split, in order, the last one partial; no unit dropout."""
    batches = EvalBatches(index, sampling, config, split, step_s)
    return _loader(batches, range(len(batches)), config)


class TrainBatches(Dataset):
    """Batch b holds the windows [b * size, (b + 1) * size) of the epochs laid end to end."""

    def __init__(self, index: ShardIndex, sampling: Sampling, config: LoaderConfig, seed: int):
        self.plan, self.size = TrainPlan(index, sampling.window_s, seed), config.batch_windows
        self.per_epoch = self.plan.windows // self.size
        self.maker = BatchMaker(index, sampling, seed, config.unit_dropout)

    def __getitem__(self, number: int) -> Batch:
        epoch, at = divmod(number, self.per_epoch) if self.per_epoch else (0, number)
        first = epoch * self.plan.windows + at * self.size
        stop = first + self.size
        return self.maker.batch(self.plan.table(np.arange(first, stop)), number, stop)


class EvalBatches(Dataset):
    """Batch b holds the b-th run of sequential windows."""

    def __init__(self, index: ShardIndex, sampling: Sampling, config: LoaderConfig, split: str, step_s: float):
        self.plan, self.size = EvalPlan(index, split, sampling.window_s, step_s), config.batch_windows
        self.maker = BatchMaker(index, sampling)

    def __len__(self) -> int:
        return -(-self.plan.windows // self.size)

    def __getitem__(self, number: int) -> Batch:
        stop = min((number + 1) * self.size, self.plan.windows)
        return self.maker.batch(self.plan.table(np.arange(number * self.size, stop)), number, stop)


def _loader(batches: Dataset, numbers: range, config: LoaderConfig) -> DataLoader:
    workers = min(config.workers, len(numbers))
    return DataLoader(
        batches,
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        persistent_workers=workers > 0,
        multiprocessing_context=_process_context() if workers else None,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(0),  # its own, to leave the model's random stream alone
    )


def _process_context():
    """How workers start: not by fork, which would copy the locks of torch's threads; torch is imported once for all."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context
