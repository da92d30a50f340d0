"""`spikeloom finetune`: a checkpoint and sessions it never saw -> a run folder with a checkpoint that knows them."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from lightning import Callback
from torch import nn

from pretrain.checkpoint import Checkpoint, load_checkpoint, load_model, rebuilt
from pretrain.errors import ConfigError
from pretrain.models.registry import MODELS
from pretrain.module import DecodingModule
from pretrain.optim import OptimConfig
from pretrain.ranks import Ranks, joined
from pretrain.run import Run
from pretrain.tasks.registry import TASKS
from pretrain.tracking import TrackingConfig
from pretrain.train import chosen_sessions, dims_of, open_run, sampling_of, train, untrained, vocabularies
from pretrain.trainer import TrainerConfig, accelerator
from pretrain.tuning import start_tuned
from sharding.cache import CacheConfig
from sharding.index import ShardIndex
from sharding.loader import LoaderConfig
from sharding.sampling import Sampling
from sharding.statistics import target_statistics

MODES = ("unit_id", "full", "scratch")


@dataclass(frozen=True)
class FinetuneConfig:
    checkpoint: str = ""
    "folder of a checkpoint, or of the run that made it"
    shards: str = ""
    "folder of shards that hold the sessions, or its URL"
    run: str = ""
    "folder of the run; an interrupted run there is continued, a finished one is left as it is"
    sessions: list[str] = field(default_factory=lambda: ["*"])
    "sessions to adapt to, by glob patterns of their ids"
    exclude: list[str] = field(default_factory=list)
    "sessions to leave out of those, by glob patterns"
    verify: bool = True
    "compare each shard with its checksum when this machine first reads it"
    cache: CacheConfig = field(default_factory=CacheConfig)
    "where shards of a remote root are kept"
    mode: str = "full"
    "unit_id (only new rows of units and sessions move), full (unit_id first, then all), scratch (the same model anew)"
    freeze_steps: int = 100
    "steps of unit identification before a full finetuning frees all weights"
    minutes_of_data: float | None = None
    "minutes of each session's train split to learn from, in time order; null is all"
    optim: OptimConfig = field(default_factory=OptimConfig)
    "optimiser and schedule"
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    "batches"
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    "length, validation, device"
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    "where measurements go beside metrics.csv"
    seed: int = 42
    "of new rows or weights, order of windows, unit dropout and dropout"


def finetune(config: FinetuneConfig, watch: Callback | None = None) -> Path:
    """Adapt a checkpoint to the chosen sessions; returns the run folder, whose checkpoint knows old and new sessions.

    Raises ConfigError, ShardError, CheckpointError in one line each, and Stopped where a signal asked for it.
    """
    if config.mode not in MODES:
        raise ConfigError("mode", f"{config.mode!r} is not a way to finetune", f"take one of {', '.join(MODES)}")
    if not config.checkpoint:
        raise ConfigError("checkpoint", "is not given", "give checkpoint=FOLDER")
    with joined(accelerator(config.trainer.device)) as ranks:
        run = open_run(config, ranks)
        if run is not None:
            _finetune(run, config, ranks, watch)
    return Path(config.run)


def _finetune(run: Run, config: FinetuneConfig, ranks: Ranks, watch: Callback | None) -> None:
    source = load_checkpoint(config.checkpoint)
    index = chosen_sessions(config.shards, config.sessions, config.exclude, config.verify, config.cache)
    if config.minutes_of_data is not None:
        index = index.limited(config.minutes_of_data)
    if config.mode == "scratch":
        model_config = rebuilt(MODELS, source.config["model"], "model")
        task_config = rebuilt(TASKS, source.config["task"], "task")
        model, task, sampling = untrained(model_config, task_config, source.config["window_s"], index, config)
    else:
        model, task, sampling = _grown(source, index, config)
    frozen = {"scratch": 0, "full": config.freeze_steps, "unit_id": config.trainer.steps}[config.mode]
    new_rows = {"unit": len(source.units), "session": len(source.sessions)} if frozen else None
    module = DecodingModule(model, task, config.optim, config.trainer.steps, config.seed, frozen, new_rows)
    train(run, module, (index, sampling), config, ranks, watch)


def _grown(source: Checkpoint, index: ShardIndex, config: FinetuneConfig) -> tuple[nn.Module, nn.Module, Sampling]:
    """The checkpoint's model with rows added for the units and sessions it lacks."""
    model, task = load_model(source, config.checkpoint)
    new_units, new_sessions = vocabularies(index)
    units, sessions = source.units.extended(new_units.ids), source.sessions.extended(new_sessions.ids)
    if config.mode == "unit_id" and len(units) == len(source.units):
        raise ConfigError(
            config.checkpoint, "already knows all units of these sessions", "evaluate it as it is, or take mode=full"
        )
    dims = dims_of(index, task.config.signal)
    if dims != source.config["dims"]:
        raise ConfigError(
            config.shards,
            f"{task.config.signal!r} has {dims} dimensions, the checkpoint decodes {source.config['dims']}",
            "take sessions that agree, or mode=scratch",
        )
    torch.manual_seed(config.seed)
    model.grow(units, sessions)
    fresh = target_statistics(index, task.config.signal, task.config.center, task.config.scale)
    statistics = fresh.merged(source.statistics)  # what the checkpoint knows of a session, its readout was learned with
    sampling = sampling_of(task.config, source.config["window_s"], units, sessions, statistics)
    start_tuned(model, index, sampling, known=source.units)
    return model, task, sampling
