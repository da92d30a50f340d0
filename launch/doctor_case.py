"""What the doctor is asked about: a training's config, the ranks and the device that are meant, and what follows of them.

What one check learns is here for the checks after it, worked out once, when it is first asked for.
"""

import math
import os
from dataclasses import dataclass, fields, replace
from functools import cached_property

import torch

from launch.submit_cluster import ClusterConfig
from pretrain.estimate import Estimate, Load, Setup, memory, parameters
from pretrain.train import PretrainConfig, chosen_sessions, dims_of, sampling_of, vocabularies
from pretrain.trainer import accelerator
from sharding.batch import Batch
from sharding.batches import Share
from sharding.cache import is_url
from sharding.index import ShardIndex
from sharding.loader import TrainLoader, train_loader
from sharding.sampling import Sampling
from sharding.statistics import target_statistics

OK, WARNING, FAULT, SKIPPED = "ok", "warning", "FAULT", "skipped"
LOOKED_AT = 4  # global batches whose sizes are told of all


@dataclass(frozen=True)
class DoctorConfig(PretrainConfig):
    """A pretraining, and how thoroughly it is looked at."""

    cluster: ClusterConfig | None = None
    "the cluster that it is meant for (cluster=cluster/gpu.yaml), whose ranks and limits count then"
    full: bool = False
    "read every shard and hold it against its checksum; else a few, and the sizes of the others"
    trial_s: float = 20.0
    "seconds that steps on trial may take; 0 takes none"


@dataclass(frozen=True)
class Finding:
    """What a check found, how bad that is (one of the four states), and what to do."""

    state: str
    found: str
    do: str = ""


def fine(found: str) -> Finding:
    return Finding(OK, found)


def warning(found: str, do: str) -> Finding:
    return Finding(WARNING, found, do)


def fault(found: str, do: str) -> Finding:
    return Finding(FAULT, found, do)


def skipped(found: str) -> Finding:
    return Finding(SKIPPED, found)


@dataclass(frozen=True)
class Trial:
    """What steps on trial took: seconds of a step of one rank, of making its batch, and of decoding a window."""

    step_s: float
    batch_s: float
    window_s: float
    device: str


class Case:
    """The config, and what the checks learn of it and of this machine."""

    def __init__(self, config: DoctorConfig):
        self.config = config
        self.disk_rate: float | None = None  # bytes a second, written and flushed to the run folder
        self.trial: Trial | None = None

    # ------------------------------------------------------------------------------------------------ ranks

    @cached_property
    def pretraining(self) -> PretrainConfig:
        """The config as the training itself would get it."""
        return PretrainConfig(**{field.name: getattr(self.config, field.name) for field in fields(PretrainConfig)})

    @cached_property
    def device(self) -> str:
        """Where the training is meant to run: "cpu" or "cuda"; a cluster's GPUs count though this machine has none.

        Raises ConfigError for a GPU that is not there.
        """
        asked, cluster = self.config.trainer.device, self.config.cluster
        if cluster and asked != "cpu" and self.gpus_per_node:
            return "cuda"
        return accelerator(asked)

    @cached_property
    def device_here(self) -> str:
        """Where steps on trial can run."""
        return "cuda" if self.device == "cuda" and torch.cuda.is_available() else "cpu"

    @property
    def gpus_per_node(self) -> int:
        """That the cluster gives; 0 without a cluster."""
        return int(str(self.config.cluster.gpus_per_node).rpartition(":")[2]) if self.config.cluster else 0

    @cached_property
    def local_world(self) -> int:
        """Ranks of the training on one machine."""
        if self.config.cluster:
            return self.config.cluster.tasks_per_node
        if "SLURM_JOB_ID" in os.environ:
            return -(-self.world // int(os.environ.get("SLURM_NNODES", 1)))
        return self.world

    @cached_property
    def world(self) -> int:
        """Ranks of the training: those of the cluster, of the SLURM job that this is, or of this machine."""
        cluster = self.config.cluster
        if cluster:
            return cluster.nodes * cluster.tasks_per_node
        if "SLURM_JOB_ID" in os.environ and int(os.environ.get("SLURM_NTASKS", 1)) > 1:
            return int(os.environ["SLURM_NTASKS"])
        gpus = torch.cuda.device_count() if self.device == "cuda" else 1
        return self.config.trainer.devices or gpus

    # ------------------------------------------------------------------------------------------------ data

    @property
    def remote(self) -> bool:
        """Whether shards are on a server."""
        return is_url(self.config.shards) and not self.config.shards.startswith("file://")

    @property
    def readable(self) -> bool:
        """Whether batches may be made here: not where their shards, maybe all of them, would be fetched first."""
        return not self.remote or self.config.full

    @cached_property
    def index(self) -> ShardIndex:
        """The chosen sessions; raises ShardError or ConfigError."""
        config = self.config
        return chosen_sessions(config.shards, config.sessions, config.exclude, verify=False, cache=config.cache)

    @cached_property
    def dims(self) -> int:
        return dims_of(self.index, self.config.task.signal)

    @cached_property
    def sampling(self) -> Sampling:
        task, index = self.config.task, self.index
        statistics = target_statistics(index, task.signal, task.center, task.scale)
        return sampling_of(task, self.config.window_s, *vocabularies(index), statistics)

    def new_loader(self) -> TrainLoader:
        """The first global batches as the first rank gets them, made here and now; raises ConfigError."""
        return train_loader(
            self.index,
            self.sampling,
            replace(self.config.loader, workers=0, prefetch=0),
            seed=self.config.seed,
            total_batches=min(LOOKED_AT, self.config.trainer.steps),
            share=Share(0, self.world),
        )

    @cached_property
    def shares(self) -> list[Batch]:
        """The first rank's shares of the first global batches."""
        return list(self.new_loader())

    @cached_property
    def part(self) -> Batch:
        """What a rank computes at a time: the part with most tokens of those shares."""
        parts = [part for share in self.shares for part in share.parts(self.config.trainer.accumulate)]
        return max(parts, key=lambda part: len(part.token_unit_S))

    @cached_property
    def load(self) -> Load:
        """Sizes of that part; of shards that were not fetched what it will be on average, by the index."""
        if self.readable:
            part = self.part
            return Load(len(part), len(part.token_unit_S), len(part.query_time_Q), self.config.window_s, self.dims)
        loader, window_s, total = self.config.loader, self.config.window_s, self.index.summary()
        of, seconds = self.world * self.config.trainer.accumulate, 3600 * sum(total["hours"].values())
        tokens = 2 * total["units"] / total["sessions"] + total["spikes"] / seconds * window_s  # of a window
        windows = loader.batch_tokens / tokens if loader.batch_tokens else loader.batch_windows
        windows = math.ceil(windows / of)
        queries = windows * total["targets"] / seconds * window_s
        return Load(windows, round(windows * tokens), round(queries), window_s, self.dims)

    # ------------------------------------------------------------------------------------------------ need

    @cached_property
    def shapes(self) -> dict[str, torch.Size]:
        return parameters(self.config.model, self.config.task, *vocabularies(self.index), self.dims)

    @cached_property
    def estimate(self) -> Estimate:
        """What a rank needs, for the largest part that was looked at."""
        return self.estimate_for(self.load)

    def estimate_for(self, load: Load) -> Estimate:
        trainer = self.config.trainer
        setup = Setup(trainer.strategy, self.world, self.config.optim, trainer.precision, self.device)
        return memory(self.config.model, self.shapes, load, setup)


def in_bytes(size: float) -> str:
    """Bytes for a person: "1.3 GB"."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size / 1e3:.3g} kB"


def in_time(seconds: float) -> str:
    """A time for a person: "3 h 20 min"."""
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if days else f"{hours} h {minutes} min" if hours else f"{minutes} min"
