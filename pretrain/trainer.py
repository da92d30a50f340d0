"""The steps of a training: Lightning drives them, over one device or many, the Keeper beside it does what is between."""

import logging
import os
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, field

import lightning
import torch

from pretrain.alarms import Alarms
from pretrain.datamodule import ShardDataModule
from pretrain.errors import ConfigError, Stopped
from pretrain.keeper import Instruments, Keeper
from pretrain.module import DecodingModule
from pretrain.progress import StepProgress
from pretrain.ranks import Ranks
from pretrain.run import Run
from pretrain.saves import Save, Saves
from pretrain.speed import meter_of
from pretrain.spread import spread
from pretrain.strategy import PRECISIONS, StrategyConfig
from pretrain.tracking import TrackingConfig, tracker_of

DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class TrainerConfig:
    steps: int = 1000
    "optimiser steps in all"
    val_every: int = 100
    "steps between validations; the first is before any step, the last after all"
    save_every: int = 100
    "steps between saves, from which an interrupted run continues"
    keep: int = 2
    "newest saves that are kept; the best weights on validation are kept beside them"
    log_every: int = 10
    "steps between rows of metrics.csv"
    val_step_s: float = 0.5
    "seconds between overlapping windows in validation"
    device: str = "auto"
    "auto (a GPU where there is one), cpu or cuda"
    devices: int = 1
    "processes to start on this machine, one a GPU; 0 is one for every GPU; under srun or torchrun these decide"
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    "how weights, gradients and optimiser state are spread over devices"
    accumulate: int = 1
    "parts that a device's share of a batch is computed in, one after another: less memory, the same numbers"
    precision: str = "32-true"
    "32-true, or bf16-mixed: weights in float32, most of the arithmetic in bfloat16"
    threads: int = 0
    "CPU threads of torch in each process; 0 leaves its own choice, or shares the cores among several processes"

    def __post_init__(self):
        least = dict(steps=1, val_every=1, save_every=1, log_every=1, keep=1, accumulate=1, devices=0)
        for name, number in least.items():
            if getattr(self, name) < number:
                found = f"is {getattr(self, name)}"
                raise ConfigError(f"trainer.{name}", found, f"give a number of at least {number}")
        for name, choices in (("device", DEVICES), ("precision", PRECISIONS)):
            if getattr(self, name) not in choices:
                found = f"{getattr(self, name)!r} is not a {name}"
                raise ConfigError(f"trainer.{name}", found, f"take one of {', '.join(choices)}")


def fit(
    run: Run,
    module: DecodingModule,
    data: ShardDataModule,
    facts: dict,
    config: TrainerConfig,
    tracking: TrackingConfig,
    watch: lightning.Callback | None = None,
) -> None:
    """Train to `config.steps`, from the newest save where the run has one; the best weights on validation are exported.

    `facts` are the fields of the Checkpoint beside its weights; `watch` looks on, before anything is recorded or saved.
    Raises ConfigError where the loss stops being finite, and Stopped where a signal asked for it.
    """
    ranks, device = data.ranks, accelerator(config.device)
    ranks.same("the shards' digest", data.index.digest())
    ranks.by_leader(lambda: run.open(data.index))
    save = _newest(run, config, ranks)
    begin = save.step if save else 0
    _set_threads(config, ranks, device)
    spreading = spread(config.strategy, ranks, device, config.precision, freezes=0 < module.frozen_steps)
    module.among(ranks, begin, spreading.shards)
    alarms = Alarms(run.folder, data, ranks)
    tracker = tracker_of(tracking, run, data.index, begin if save else None) if ranks.leader else None
    meter = meter_of(module, ranks, device, config.precision, tracking)
    try:
        with StepProgress(config.steps, begin, quiet=not ranks.leader) as progress, _quiet():
            keeper = Keeper(run, data, facts, config, spreading, Instruments(meter, alarms, progress, tracker))
            if save:
                keeper.resume(save, module)
            trainer = _lightning(config, keeper, [watch] if watch else [], module.optim.clip_norm, device)
            _begin_at(trainer, begin)
            module.train()
            trainer.fit(module, datamodule=data)
        if tracker:
            tracker.summarise(keeper.summary())
    finally:
        data.close()
        if tracker:
            tracker.close()
    _finish(run, keeper, trainer, ranks)


def _finish(run: Run, keeper: Keeper, trainer: lightning.Trainer, ranks: Ranks) -> None:
    if trainer.global_step < keeper.config.steps:
        assert keeper.stopped, "the plan gave fewer batches than steps"
        found = f"stopped by {keeper.stopped} after step {trainer.global_step}, which is saved"
        raise Stopped(run.folder, found, "run the same command again to go on")
    tracker = keeper.instruments.tracker
    ranks.by_leader(
        lambda: run.close(
            seconds=round(tracker.file.seconds, 1),
            device=str(trainer.strategy.root_device),
            ranks=ranks.world,
            strategy=keeper.spread.name,
            **keeper.summary(),
        )
    )


def _newest(run: Run, config: TrainerConfig, ranks: Ranks) -> Save | None:
    """The save that all ranks go on from: the newest whole one that the leader finds."""

    def look() -> int | None:
        found = saves.newest()
        return found.step if found else None

    saves = Saves(run.saves, config.keep)
    step = ranks.by_leader(look)
    return None if step is None else saves.at(step)


def _set_threads(config: TrainerConfig, ranks: Ranks, device: str) -> None:
    if config.threads:
        torch.set_num_threads(config.threads)
    elif ranks.local_world > 1 and device == "cpu":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        own = os.environ.get("SLURM_CPUS_PER_TASK") or cores // ranks.local_world
        torch.set_num_threads(max(1, int(own)))


def _lightning(
    config: TrainerConfig, keeper: Keeper, before: list[lightning.Callback], clip_norm: float, device: str
) -> lightning.Trainer:
    ranks, spreading = keeper.ranks, keeper.spread
    return lightning.Trainer(
        accelerator=device,
        devices=ranks.local_world,
        num_nodes=ranks.world // ranks.local_world,
        strategy=spreading.lightning,
        plugins=spreading.plugins,  # which hold the precision
        accumulate_grad_batches=config.accumulate,
        max_steps=config.steps,
        max_epochs=-1,
        gradient_clip_val=clip_norm or None,
        callbacks=[*before, keeper],
        logger=False,
        default_root_dir=keeper.run.folder,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        use_distributed_sampler=False,
        log_every_n_steps=1,
    )


def _begin_at(trainer: lightning.Trainer, step: int) -> None:
    """Make Lightning count from there: its own way would read a checkpoint of its own making."""
    progress = trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total
    progress.ready = progress.completed = step


def accelerator(device: str) -> str:
    """Lightning's name for a configured device; raises ConfigError for a GPU that is not there."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("trainer.device", "torch sees no CUDA device", "take device=cpu, or run where there is a GPU")
    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"


@contextmanager
def _quiet():
    """Without Lightning's advice on what is so by intention here."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)  # banner lines on devices, tips, why it stopped
    try:
        with warnings.catch_warnings():
            # loader.workers is the user's choice, and batches are made ready by a plan, not by worker count
            warnings.filterwarnings("ignore", message="The '.*dataloader' does not have many workers")
            # Lightning 2.6 with torch 2.12 and later: its own way of looking into a batch
            warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")
            # training on a CPU beside an idle GPU was asked for
            warnings.filterwarnings("ignore", message="GPU available but not used")
            # a machine with SLURM's commands on which nothing was submitted
            warnings.filterwarnings("ignore", message="The `srun` command is available")
            yield
    finally:
        logger.setLevel(level)
