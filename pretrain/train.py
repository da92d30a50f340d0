"""`spikeloom pretrain`: shards and a config -> a run folder with a trained checkpoint."""

from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from lightning import Callback
from torch import nn

from pretrain.datamodule import ShardDataModule
from pretrain.errors import ConfigError
from pretrain.models.poyo import PoyoConfig
from pretrain.models.registry import MODELS
from pretrain.module import DecodingModule
from pretrain.optim import OptimConfig
from pretrain.ranks import ALONE, Ranks, joined
from pretrain.run import Run, commit, versions
from pretrain.tasks.registry import TASKS
from pretrain.tasks.regression import RegressionConfig
from pretrain.tracking import TrackingConfig
from pretrain.trainer import TrainerConfig, accelerator, fit
from pretrain.tuning import start_tuned
from sharding.cache import CacheConfig
from sharding.index import ShardIndex
from sharding.loader import LoaderConfig, train_loader
from sharding.sampling import Sampling
from sharding.statistics import TargetStatistics, target_statistics
from sharding.vocabulary import Vocabulary

FIRST_BATCHES = 8  # that a model may see before training


@dataclass(frozen=True)
class PretrainConfig:
    shards: str = ""
    "folder of shards, or its URL"
    run: str = ""
    "folder of the run; an interrupted run there is continued, a finished one is left as it is"
    sessions: list[str] = field(default_factory=lambda: ["*"])
    "sessions to train on, by glob patterns of their ids"
    exclude: list[str] = field(default_factory=list)
    "sessions to leave out of those, by glob patterns"
    verify: bool = True
    "compare each shard with its checksum when this machine first reads it"
    cache: CacheConfig = field(default_factory=CacheConfig)
    "where shards of a remote root are kept"
    model: PoyoConfig = field(
        default_factory=PoyoConfig, metadata={"choices": {name: schema for name, (schema, _) in MODELS.items()}}
    )
    "the model"
    task: RegressionConfig = field(
        default_factory=RegressionConfig, metadata={"choices": {name: schema for name, (schema, _) in TASKS.items()}}
    )
    "what is decoded, and the loss"
    window_s: float = 1.0
    "length of the model's windows, seconds"
    optim: OptimConfig = field(default_factory=OptimConfig)
    "optimiser and schedule"
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    "batches"
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    "length, validation, device"
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    "where measurements go beside metrics.csv"
    seed: int = 42
    "of initial weights, order of windows, unit dropout and dropout"


def pretrain(config: PretrainConfig, watch: Callback | None = None) -> Path:
    """Train a new model on all chosen sessions together; returns the run folder.

    Called by every process of a launcher, each is a rank of the one training. `watch` looks on. Raises ConfigError, ShardError,
    CheckpointError in one line each, and Stopped where a signal asked for it.
    """
    with joined(accelerator(config.trainer.device)) as ranks:
        run = open_run(config, ranks)
        if run is not None:
            _pretrain(run, config, ranks, watch)
    return Path(config.run)


def _pretrain(run: Run, config: PretrainConfig, ranks: Ranks, watch: Callback | None) -> None:
    index = chosen_sessions(config.shards, config.sessions, config.exclude, config.verify, config.cache)
    model, task, sampling = untrained(config.model, config.task, config.window_s, index, config)
    module = DecodingModule(model, task, config.optim, config.trainer.steps, config.seed)
    train(run, module, (index, sampling), config, ranks, watch)


def untrained(
    model_config, task_config, window_s: float, index: ShardIndex, config
) -> tuple[nn.Module, nn.Module, Sampling]:
    """A fresh model and task for the sessions of an index, drawn from `config.seed`, and what they take of a window.

    The model sees the first training batches (of `config.loader`) where its configuration asks for them.
    """
    dims = dims_of(index, task_config.signal)
    statistics = target_statistics(index, task_config.signal, task_config.center, task_config.scale)
    units, sessions = vocabularies(index)
    torch.manual_seed(config.seed)
    model = MODELS[model_config.name][1](model_config, units, sessions)
    task = TASKS[task_config.name][1](task_config, model.width, dims)
    sampling = sampling_of(task_config, window_s, units, sessions, statistics)
    start_tuned(model, index, sampling)
    loader = replace(config.loader, workers=0)  # not worth their start
    model.start(task, train_loader(index, sampling, loader, seed=config.seed, total_batches=FIRST_BATCHES))
    return model, task, sampling


def train(
    run: Run,
    module: DecodingModule,
    source: tuple[ShardIndex, Sampling],
    config,
    ranks: Ranks,
    watch: Callback | None,
) -> None:
    """Fit a module on the sessions of an index; `config` has the sections loader, trainer, tracking and the seed."""
    index, sampling = source
    data = ShardDataModule(
        index,
        sampling,
        config.loader,
        seed=config.seed,
        total_steps=config.trainer.steps,
        step_s=config.trainer.val_step_s,
        parts=config.trainer.accumulate,
        ranks=ranks,
    )
    described = {
        "model": asdict(module.model.config),
        "task": asdict(module.task.config),
        "window_s": sampling.window_s,
        "dims": dims_of(index, sampling.signal),
        "run": run.config,
    }
    facts = dict(
        config=described,
        units=sampling.units,
        sessions=sampling.sessions,
        statistics=sampling.statistics,
        commit=commit(),
        versions=versions(),
    )
    fit(run, module, data, facts, config.trainer, config.tracking, watch)


def open_run(config, ranks: Ranks = ALONE) -> Run | None:
    """The run folder of a config, None where it holds the finished run; raises ConfigError where it is not named or belongs
    to a run of other settings."""
    for name in ("shards", "run"):
        if not getattr(config, name):
            raise ConfigError(name, "is not given", f"give {name}=FOLDER")
    run = Run(config.run, config)

    def look() -> bool:
        run.check()
        return run.finished

    return None if ranks.by_leader(look) else run


def chosen_sessions(
    shards: str,
    patterns: list[str],
    exclude: list[str] = (),
    verify: bool = False,
    cache: CacheConfig | None = None,
) -> ShardIndex:
    """The sessions of a shard root that fit a pattern and no excluding one; raises ConfigError where none is left.

    With `verify` each shard is compared with its checksum when it is first read here; that raises ShardError.
    """
    index = ShardIndex.open(shards, verify=verify, cache=cache or CacheConfig()).matching(patterns)
    left_out = set(index.matching(exclude).session_ids) if exclude else set()
    left = [session for session in index.session_ids if session not in left_out]
    if not left:
        raise ConfigError("exclude", "leaves no session", "exclude fewer")
    return index.select(left)


def vocabularies(index: ShardIndex) -> tuple[Vocabulary, Vocabulary]:
    """All units and all sessions of an index, in its order."""
    return Vocabulary(tuple(chain.from_iterable(index.all_unit_ids()))), Vocabulary(index.session_ids)


def dims_of(index: ShardIndex, signal: str) -> int:
    """Dimensions of a signal, the same in all sessions; raises ConfigError."""
    dims = index.sessions.dims(signal)
    if not dims.all():
        session = index.sessions[int(dims.argmin())]
        raise ConfigError(
            session.id,
            f"has no signal {signal!r}",
            f"set task.signal to one of {', '.join(session.signals) or 'none'}, or exclude it",
        )
    different = np.unique(dims).tolist()
    if len(different) > 1:
        raise ConfigError(
            f"signal {signal!r}",
            f"has {' and '.join(map(str, different))} dimensions over sessions",
            "choose sessions that agree",
        )
    return different[0]


def sampling_of(
    task, window_s: float, units: Vocabulary, sessions: Vocabulary, statistics: TargetStatistics
) -> Sampling:
    """What a task, told by its config, takes of a window."""
    return Sampling(
        signal=task.signal,
        window_s=window_s,
        units=units,
        sessions=sessions,
        statistics=statistics,
        phase_weights=dict(task.phase_weights),
        eval_phases=tuple(task.eval_phases),
        use_recipe_weights=task.use_recipe_weights,
    )
