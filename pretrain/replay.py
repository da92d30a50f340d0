"""`spikeloom replay`: the steps of a run up to one whose numbers were not finite, taken again and looked at from inside.

The run is continued in a temporary folder from its newest save before that step (or begun again), by one process. On the
machine of a run that one process made, this gives the same numbers, bit by bit; of many ranks, the same up to rounding.
"""

import json
import math
import os
import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from lightning import Callback

from pretrain.alarms import Numbers, gradients, not_finite, outputs, windows_at
from pretrain.errors import ConfigError
from pretrain.finetune import FinetuneConfig, finetune
from pretrain.module import norm_of
from pretrain.run import settings_of
from pretrain.saves import Save, Saves
from pretrain.strategy import StrategyConfig
from pretrain.tracking import TrackingConfig
from pretrain.train import PretrainConfig, pretrain
from sharding.batch import Batch


@dataclass(frozen=True)
class ReplayConfig:
    run: str = ""
    "folder of the run"
    alarm: str = ""
    "which of RUN/alarms, as step-120; empty takes the latest"


@dataclass(frozen=True)
class Replayed:
    """The step at which the replay stopped: the first that is not finite, or the alarm's."""

    alarm: int  # the step that the alarm tells of
    begin: int  # the step of the save that was continued; 0 where the run was begun again
    step: int
    loss: float
    batch: list[Numbers]  # tensors of the batch that are not finite
    outputs: list[Numbers]  # of the modules, in the order in which they were computed
    gradients: list[Numbers]  # those nearest the loss first
    norm: float  # of all of them
    windows: list[dict]  # place in the plan, session, start_us

    @property
    def finite(self) -> bool:
        return (
            math.isfinite(self.loss)
            and math.isfinite(self.norm)
            and all(seen.finite for seen in (*self.outputs, *self.gradients))
        )


def schema_of(folder: str) -> type:
    """The kind of config that a run folder was made with; raises ConfigError where it is none."""
    settings = settings_of(folder) if folder else {}
    if not settings:
        raise ConfigError(
            "run", f"{folder!r} is not the folder of a run", "give run=FOLDER of a pretraining or finetuning"
        )
    return FinetuneConfig if "checkpoint" in settings else PretrainConfig


def replay(config: ReplayConfig, settings: PretrainConfig | FinetuneConfig) -> Replayed:
    """Take the steps again that led to an alarm; `settings` are the run's own config.

    Raises ConfigError where there is no such alarm, and what training raises.
    """
    step = _step_of(Path(config.run), config.alarm)
    save = Saves(Path(config.run) / "saves").newest(until=step - 1)
    watch = _Watch(step)
    with tempfile.TemporaryDirectory(prefix="spikeloom-replay-") as folder:
        if save:
            aside = Path(folder) / "run" / "saves" / save.path.name
            aside.parent.mkdir(parents=True)
            os.symlink(save.path.resolve(), aside)
        train = finetune if isinstance(settings, FinetuneConfig) else pretrain
        try:
            train(_again(settings, f"{folder}/run", save), watch)
        except _Seen as seen:
            return replace(seen.replayed, begin=save.step if save else 0)
    raise AssertionError("the training ended without the step")


def _step_of(folder: Path, alarm: str) -> int:
    found = {int(path.stem.rpartition("-")[2]): path for path in folder.glob("alarms/step-*.json")}
    if not found:
        raise ConfigError(folder, "holds no alarm of a loss that is not finite", "there is nothing to replay")
    if not alarm:
        return max(found)
    step = re.fullmatch(r"step-(\d+)", alarm)
    if not step or int(step[1]) not in found:
        raise ConfigError(
            "alarm", f"{alarm!r} is not there", f"take one of {', '.join(f'step-{n}' for n in sorted(found))}"
        )
    return json.loads(found[int(step[1])].read_text())["step"]


def _again(settings, folder: str, save: Save | None):
    """The same training by one process, its validations and saves left out: they move no weight."""
    world = save.facts["written_by"]["world"] if save else 1
    trainer = replace(
        settings.trainer,
        devices=1,
        strategy=StrategyConfig(),
        accumulate=settings.trainer.accumulate * world,
        val_every=settings.trainer.steps,
        save_every=settings.trainer.steps,
    )
    return replace(settings, run=folder, trainer=trainer, tracking=TrackingConfig(traces_every=0))


class _Seen(Exception):
    def __init__(self, replayed: Replayed):
        super().__init__(replayed.step)
        self.replayed = replayed


class _Watch(Callback):
    """Looks at every step before its weights move; leaves the training by _Seen."""

    def __init__(self, step: int):
        self.step = step

    def on_train_start(self, trainer, module) -> None:
        self._watched = outputs(module)
        self._outputs = self._watched.__enter__()
        self._batches: list[Batch] = []
        self._loss = 0.0

    def on_train_batch_start(self, trainer, module, part, batch_idx: int) -> None:
        self._batches.append(part.batch)

    def on_after_backward(self, trainer, module) -> None:
        self._loss += float(module.latest)

    def on_before_optimizer_step(self, trainer, module, optimizer) -> None:
        step = trainer.global_step + 1
        batch = [bad for batch in self._batches for bad in not_finite(batch.tensors().items())]
        named = gradients(module)
        grads, norm = [Numbers.of(name, grad) for name, grad in named], norm_of(grad for _, grad in named)
        places = torch.cat([batch.place_B for batch in self._batches if not batch.idle]).sort().values
        windows = windows_at(trainer.datamodule, places.cpu().numpy())
        replayed = Replayed(self.step, 0, step, self._loss, batch, [*self._outputs], grads, norm, windows)
        if step == self.step or not replayed.finite:
            raise _Seen(replayed)
        self._outputs.clear()
        self._batches.clear()
        self._loss = 0.0

    def teardown(self, trainer, module, stage: str) -> None:
        self._watched.__exit__(None, None, None)
