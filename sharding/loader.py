"""Plan + reader + augmentation + packing -> torch DataLoaders whose every batch is a pure function of its number."""

import multiprocessing
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch.utils.data import DataLoader, Dataset

from sharding.augment import UnitDropout, UnitDropoutConfig
from sharding.batch import Batch
from sharding.errors import ConfigError
from sharding.index import ShardIndex
from sharding.pack import pack
from sharding.plan import WindowTable, sequential_windows, train_windows, window_length_us, windows_per_epoch
from sharding.sampling import Sampling, SessionTables
from sharding.window import Reader


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


class _Batches(Dataset):
    """Batch number -> Batch; reader and tables are made in whatever process asks first."""

    def __init__(self, index: ShardIndex, sampling: Sampling, config: LoaderConfig):
        self.index, self.sampling, self.config = index, sampling, config
        self.length_us = window_length_us(index, sampling.window_s)
        self.reader = Reader(index, sampling.signal)
        self.tables = SessionTables.of(index, sampling)


class TrainBatches(_Batches):
    """Batch b holds the windows [b * size, (b + 1) * size) of the epochs laid end to end."""

    def __init__(self, index: ShardIndex, sampling: Sampling, config: LoaderConfig, seed: int):
        super().__init__(index, sampling, config)
        self.seed = seed
        windows, size = windows_per_epoch(index, sampling.window_s), config.batch_windows
        self.per_epoch = windows // size * size or windows
        self.dropout = UnitDropout(config.unit_dropout) if config.unit_dropout else None
        self.plan = EpochPlan(index, sampling.window_s, seed)

    def __getitem__(self, number: int) -> Batch:
        first = number * self.config.batch_windows
        return pack([self._window(at) for at in range(first, first + self.config.batch_windows)], self.tables)

    def _window(self, position: int):
        epoch, at = divmod(position, self.per_epoch)
        plan = self.plan.of(epoch)
        window = self.reader.window(int(plan.segment[at]), int(plan.start_us[at]), self.length_us)
        if self.dropout is None:
            return window
        kept = self.dropout.kept(len(window.units), self.seed, epoch, at)
        return window if len(kept) == len(window.units) else window.keeping(kept)


class EvalBatches(_Batches):
    """Batch b holds the b-th run of sequential windows."""

    def __init__(self, index: ShardIndex, sampling: Sampling, config: LoaderConfig, split: str, step_s: float):
        super().__init__(index, sampling, config)
        self.windows: WindowTable = sequential_windows(index, split, sampling.window_s, step_s)

    def __len__(self) -> int:
        return -(-len(self.windows) // self.config.batch_windows)

    def __getitem__(self, number: int) -> Batch:
        run = slice(number * self.config.batch_windows, (number + 1) * self.config.batch_windows)
        at = zip(self.windows.segment[run].tolist(), self.windows.start_us[run].tolist())
        return pack([self.reader.window(segment, start, self.length_us) for segment, start in at], self.tables)


class EpochPlan:
    """The plans of the last few epochs that were asked for."""

    def __init__(self, index: ShardIndex, window_s: float, seed: int):
        self._made_of = (index, window_s, seed)
        self.of = lru_cache(4)(lambda epoch: train_windows(index, seed, epoch, window_s))

    def __reduce__(self):  # plans are made anew in another process
        return EpochPlan, self._made_of


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
