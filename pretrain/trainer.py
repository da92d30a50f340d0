"""The steps of a training: Lightning drives them, the Keeper beside it measures, validates, keeps the best and saves.

Everything between two steps happens in one hook, in one order: record, validate, export the best, save. So a run that
is cut anywhere repeats nothing and skips nothing, and resumed it ends with the weights it would have had.
"""

import logging
import math
import os
import warnings
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import lightning
import torch

from pretrain.average import WeightAverage
from pretrain.checkpoint import checkpoint_of, save_checkpoint
from pretrain.datamodule import ShardDataModule
from pretrain.errors import CheckpointError, ConfigError
from pretrain.metrics import mean_of_defined, r2
from pretrain.module import DecodingModule, norm_of
from pretrain.progress import StepProgress
from pretrain.run import Run
from pretrain.stitch import Stitcher
from pretrain.tracking import MetricsFile, Tracker, TrackingConfig, wandb_logger

DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class TrainerConfig:
    steps: int = 1000
    "optimiser steps in all"
    val_every: int = 100
    "steps between validations; the first is before any step, the last after all"
    save_every: int = 100
    "steps between writings of last.ckpt, from which an interrupted run continues"
    log_every: int = 10
    "steps between rows of metrics.csv"
    val_step_s: float = 0.5
    "seconds between overlapping windows in validation"
    device: str = "auto"
    "auto (a GPU where there is one), cpu or cuda"
    precision: str = "32-true"
    "32-true, or bf16-mixed on a GPU"
    threads: int = 0
    "CPU threads of torch; 0 leaves its own choice"

    def __post_init__(self):
        for name in ("steps", "val_every", "save_every", "log_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"trainer.{name}", f"is {getattr(self, name)}", "give a number of at least 1")
        if self.device not in DEVICES:
            raise ConfigError("trainer.device", f"{self.device!r} is not a device", f"take one of {', '.join(DEVICES)}")


def fit(
    run: Run,
    module: DecodingModule,
    data: ShardDataModule,
    facts: dict,
    config: TrainerConfig,
    tracking: TrackingConfig,
) -> None:
    """Train to `config.steps`, from last.ckpt where the run has one; the best weights on validation are exported.

    `facts` are the fields of the Checkpoint beside its weights. Raises ConfigError where the loss stops being finite.
    """
    if run.open(data.index):
        resume, at = run.resume_file, _step_of(run.resume_file)
    else:
        resume, at = None, 0
    if config.threads:
        torch.set_num_threads(config.threads)
    logger = wandb_logger(tracking, run.folder, run.config)
    tracker = Tracker(MetricsFile(run.folder / "metrics.csv", data.index.session_ids, at if resume else None), logger)
    try:
        with StepProgress(config.steps, at) as progress, _quiet():
            keeper = Keeper(run, data, facts, config, tracker, progress)
            trainer = _lightning(config, run, keeper, module.optim.clip_norm, logger)
            module.train()
            trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    finally:
        tracker.close()
    assert trainer.global_step == config.steps, "the plan gave fewer batches than steps"
    run.close(
        seconds=round(tracker.file.seconds, 1),
        best={"step": keeper.best_step, "valid/r2": _finite(keeper.best)},
        device=str(trainer.strategy.root_device),
    )


class Keeper(lightning.Callback):
    """What happens between two steps; its few numbers travel in last.ckpt."""

    def __init__(
        self,
        run: Run,
        data: ShardDataModule,
        facts: dict,
        config: TrainerConfig,
        tracker: Tracker,
        progress: StepProgress,
    ):
        self.run, self.data, self.facts, self.config = run, data, facts, config
        self.tracker, self.progress = tracker, progress
        self.best, self.best_step = -math.inf, None
        self.loss_sum, self.loss_steps, self.latest = 0.0, 0, {}
        self.average: WeightAverage | None = None
        self._saved_average: dict | None = None

    def state_dict(self) -> dict:
        return {
            "average": self.average.state_dict() if self.average else None,
            "best": self.best,
            "best_step": self.best_step,
            "loss_sum": float(self.loss_sum),
            "loss_steps": self.loss_steps,
            "latest": self.latest,
        }

    def load_state_dict(self, state: dict) -> None:
        for name, value in state.items():
            setattr(self, "_saved_average" if name == "average" else name, value)

    def on_train_start(self, trainer, module) -> None:
        if module.optim.average:
            self.average = WeightAverage(module.parameters(), module.optim.average)
            if self._saved_average:
                self.average.load_state_dict(self._saved_average)
        self._windows_before = self.data.windows
        if trainer.global_step == 0:  # an untrained or merely enlarged model is a candidate too
            self._record(0, self._validate(trainer, module, 0))

    def on_before_optimizer_step(self, trainer, module, optimizer) -> None:
        self._lr = optimizer.param_groups[0]["lr"]
        if self._due(trainer.global_step + 1, self.config.log_every):
            self._grad_norm = norm_of(weight.grad for weight in module.parameters() if weight.grad is not None)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        step, row = trainer.global_step, {}
        self.data.note(batch)
        if self.average:
            self.average.update()
        self.loss_sum = self.loss_sum + outputs["loss"].detach()
        self.loss_steps += 1
        if self._due(step, self.config.log_every):
            row |= self._training(module, step)
        if self._due(step, self.config.val_every):
            row |= self._validate(trainer, module, step)
        if row:
            self._record(step, row)
        if self._due(step, self.config.save_every):
            self._save(trainer)

    def _due(self, step: int, every: int) -> bool:
        return step % every == 0 or step == self.config.steps

    def _training(self, module, step: int) -> dict[str, float]:
        """Mean loss since the last row, norms and rate."""
        loss = float(self.loss_sum) / self.loss_steps
        self.loss_sum, self.loss_steps = 0.0, 0
        if not math.isfinite(loss):
            raise ConfigError(f"step {step}", f"the loss is {loss}", "lower optim.lr, or set optim.clip_norm")
        return {
            "train/loss": loss,
            "train/grad_norm": self._grad_norm,
            "lr": self._lr,
            "train/weight_norm": norm_of(module.parameters()),
        }

    def _validate(self, trainer, module, step: int) -> dict[str, float]:
        """Loss and R2 of the valid split; the weights, or their average, are exported where the mean R2 is the best yet."""
        with self.average.in_place() if self.average else nullcontext():
            return self._judge(trainer, module, step)

    def _judge(self, trainer, module, step: int) -> dict[str, float]:
        stitcher = Stitcher(self.data.sampling.sessions, self.data.sampling.statistics)
        loss_sum, weight_sum = 0.0, 0.0
        module.eval()
        with torch.no_grad(), trainer.precision_plugin.val_step_context():
            for batch in self.data.split_loader("valid"):
                batch = batch.to(module.device)
                loss, value_QK = module.losses(batch)
                weight = float(batch.weight_Q.sum())
                loss_sum, weight_sum = loss_sum + float(loss) * weight, weight_sum + weight
                stitcher.add(batch, value_QK)
        module.train()
        scores = {
            f"valid/r2/{p.session}": r2(p.target[p.evaluated], p.value[p.evaluated]) for p in stitcher.predictions()
        }
        mean = mean_of_defined(list(scores.values()))
        if math.isnan(mean) or mean > self.best:  # without anything to validate on, the latest weights are kept
            self.best, self.best_step = (self.best if math.isnan(mean) else mean), step
            save_checkpoint(self.run.checkpoint, checkpoint_of(module.model, module.task, **self.facts))
        return {"valid/loss": loss_sum / weight_sum if weight_sum else math.nan, "valid/r2": mean} | scores

    def _record(self, step: int, row: dict[str, float]) -> None:
        windows = self.data.windows
        self.tracker.record({"step": step, "epoch": self.data.epoch, "windows": windows} | row)
        self.latest |= {name: row[name] for name in ("train/loss", "valid/r2") if name in row}
        r2_now = self.latest.get("valid/r2")
        done = windows - self._windows_before
        self.progress.update(step, done, self.latest.get("train/loss"), r2_now, told="valid/r2" in row)

    def _save(self, trainer) -> None:
        fresh = self.run.folder / ".last.ckpt.fresh"
        try:
            trainer.save_checkpoint(fresh, weights_only=False)
            with open(fresh, "rb") as file:
                os.fsync(file.fileno())
            os.replace(fresh, self.run.resume_file)
        except OSError as error:
            fresh.unlink(missing_ok=True)
            raise CheckpointError(
                self.run.resume_file,
                f"could not be written ({error.strerror})",
                "free space and run again: it continues from the last saved step",
            ) from None


def _lightning(config: TrainerConfig, run: Run, keeper: Keeper, clip_norm: float, logger) -> lightning.Trainer:
    return lightning.Trainer(
        accelerator=accelerator(config.device),
        devices=1,
        precision=config.precision,
        max_steps=config.steps,
        max_epochs=-1,
        gradient_clip_val=clip_norm or None,
        callbacks=[keeper],
        logger=logger or False,
        default_root_dir=run.folder,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        use_distributed_sampler=False,
        log_every_n_steps=1,
    )


def accelerator(device: str) -> str:
    """Lightning's name for a configured device; raises ConfigError for a GPU that is not there."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("trainer.device", "torch sees no CUDA device", "take device=cpu, or run where there is a GPU")
    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"


def _step_of(path) -> int:
    try:
        return int(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["global_step"])
    except Exception as error:  # whatever a damaged archive makes torch raise
        raise CheckpointError(
            path, f"cannot be read ({str(error).partition(chr(10))[0]})", "remove it to begin the run again"
        ) from None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


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
            yield
    finally:
        logger.setLevel(level)
