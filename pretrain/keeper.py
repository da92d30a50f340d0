"""What happens between two steps of a training: measure, validate, keep the best weights, save, and stop when asked.

All of it happens in one hook, in one order. So a run that is cut anywhere repeats nothing and skips nothing, and resumed
it ends with the weights it would have had. All ranks go through the same hooks; what needs all of them is done by all,
and the leader alone writes.
"""

import math
from dataclasses import dataclass

import lightning
import torch

from pretrain.alarms import Alarms
from pretrain.average import WeightAverage
from pretrain.checkpoint import Checkpoint, save_checkpoint
from pretrain.datamodule import ShardDataModule
from pretrain.judge import judge
from pretrain.losses import Losses
from pretrain.module import DecodingModule, StepPart
from pretrain.progress import StepProgress
from pretrain.ranks import Ranks
from pretrain.run import Run
from pretrain.saves import Save, Saves
from pretrain.speed import Meter
from pretrain.stopping import StopRequest
from pretrain.strategy import Spread, global_norm
from pretrain.tracking import Tracker


@dataclass(frozen=True)
class Instruments:
    """Where measurements go; the tracker is None on all ranks but the leader."""

    meter: Meter
    alarms: Alarms
    progress: StepProgress
    tracker: Tracker | None


class Keeper(lightning.Callback):
    """Drives the rhythm of a run; its few numbers travel in every save."""

    def __init__(self, run: Run, data: ShardDataModule, facts: dict, config, spread: Spread, instruments: Instruments):
        """`facts` are the fields of a Checkpoint beside its weights, `config` a TrainerConfig."""
        self.run, self.data, self.facts, self.config = run, data, facts, config
        self.spread, self.instruments = spread, instruments
        self.ranks: Ranks = data.ranks
        self.saves = Saves(run.saves, config.keep)
        self.stop, self.stopped = StopRequest(), None
        self.best, self.best_step = -math.inf, None
        self.losses, self.latest = Losses(self.ranks), {}
        self.average: WeightAverage | None = None
        self._restored: Save | None = None
        self._rhythms = config.log_every, config.val_every, config.save_every

    # ------------------------------------------------------------------------------------------------ state

    def resume(self, save: Save, module: DecodingModule) -> None:
        """Put back what can be before the strategy sets up: weights, the place in the stream, the few numbers."""
        facts, weights = save.facts["keeper"], save.tensors("weights")
        with torch.no_grad():
            for name, weight in module.named_parameters():
                weight.copy_(weights[name])
        self.data.resume(save.facts["loader"])
        for name in ("best", "best_step", "latest"):
            setattr(self, name, facts[name])
        self.losses.total, self.losses.steps = facts["losses"]
        self.best = -math.inf if self.best is None else self.best
        self.instruments.alarms.load_state_dict(facts["alarms"])
        self.instruments.meter.load_state_dict(facts["meter"])
        self._restored = save

    def _facts(self, step: int) -> dict:
        keeper = {
            "best": self.best if math.isfinite(self.best) else None,
            "best_step": self.best_step,
            "losses": [self.losses.total, self.losses.steps],
            "latest": self.latest,
            "average_steps": self.average.steps if self.average else None,
            "alarms": self.instruments.alarms.state_dict(),
            "meter": self.instruments.meter.state_dict(),
        }
        written_by = {"world": self.ranks.world, "strategy": self.spread.name}
        return {"step": step, "loader": self.data.place(), "keeper": keeper, "written_by": written_by}

    def summary(self) -> dict:
        """What the run came to: its best step, and the alarms."""
        best = {"step": self.best_step, "valid/r2": self.best if math.isfinite(self.best) else None}
        return {"best": best, "alarms": self.instruments.alarms.summary()}

    def _save(self, module: DecodingModule, step: int) -> None:
        tensors = {f"weights/{name}": tensor for name, tensor in (self.spread.whole_weights(module) or {}).items()}
        for name, state in (self.spread.whole_optimizer(module) or {}).items():
            tensors |= {f"optimizer/{name}/{key}": value for key, value in state.items()}
        if self.average:
            whole = self.spread.whole(module, self.average.average) or {}
            tensors |= {f"average/{name}": tensor for name, tensor in whole.items()}
        facts = self._facts(step)

        def write() -> None:
            self.instruments.tracker.file.flush()
            self.saves.write(step, tensors, facts)

        self.ranks.by_leader(write)

    # ------------------------------------------------------------------------------------------------ hooks

    def on_train_start(self, trainer, module: DecodingModule) -> None:
        self.stop.__enter__()  # only now: Lightning has put handlers of its own before
        if module.optim.average:
            self.average = WeightAverage(self.spread.own_tensors(module), module.optim.average)
        if self._restored:
            self._take_back(module, self._restored)
        if trainer.global_step == 0:  # an untrained or merely enlarged model is a candidate too
            self._record(0, self._validate(trainer, module, 0))
        self.instruments.meter.start()

    def _take_back(self, module: DecodingModule, save: Save) -> None:
        state: dict[str, dict[str, torch.Tensor]] = {}
        for key, tensor in save.tensors("optimizer").items():
            name, _, what = key.rpartition("/")
            state.setdefault(name, {})[what] = tensor
        self.spread.take_optimizer(module, state)
        if self.average:
            self.average.steps = save.facts["keeper"]["average_steps"]
            self.spread.fill(module, self.average.average, save.tensors("average"))

    def on_train_batch_start(self, trainer, module: DecodingModule, part: StepPart, batch_idx: int) -> None:
        if part.first:
            module.step_weight, asked = self.ranks.sums(part.weight, bool(self.stop.asked))
            self.stopped = (self.stop.asked or "a signal to another rank") if asked else None
            self.losses.begin(trainer.global_step + 1, module.device)
            self.instruments.meter.begin(part.waited_s)
        self.losses.take(part.batch)
        self._last_part = part.last

    def on_after_backward(self, trainer, module: DecodingModule) -> None:
        self.losses.add(module.latest)

    def on_before_optimizer_step(self, trainer, module: DecodingModule, optimizer) -> None:
        if not self._last_part:  # DeepSpeed accumulates by itself, and is asked to step after every part
            return
        self._lr, step = optimizer.param_groups[0]["lr"], trainer.global_step + 1
        batches = self.losses.batches
        due = self.stopped or any(self._due(step, every) for every in self._rhythms)
        on_cpu = trainer.strategy.root_device.type == "cpu"  # where looking at a number waits for nothing
        if due or on_cpu:
            for bad_step, loss, its_batches in self.losses.look():
                self.instruments.alarms.loss(bad_step, loss, its_batches, module)
        if due:
            self.spread.note_gradients(module)
            norm = self.spread.gradient_norm(module) if self.spread.shards is None else 0.0  # DeepSpeed looks itself
            if not math.isfinite(norm):  # it may overflow before the loss does, and what is saved now would be spoiled
                self.instruments.alarms.gradient(step, norm, batches, module)

    def on_train_batch_end(self, trainer, module: DecodingModule, outputs, part: StepPart, batch_idx: int) -> None:
        self.instruments.meter.note(part.batch)
        if not part.last:
            return
        step, row = trainer.global_step, {}
        self.data.note(part.batch)
        if self.average:
            self.average.update()
        logs, validates, saves = (self._due(step, every) for every in self._rhythms)
        if logs:
            row |= self._training(module, step)
        if validates:
            row |= self._validate(trainer, module, step)
        if row:
            self._record(step, row)
        if saves or self.stopped:
            with self.instruments.meter.paused():
                self._save(module, step)
        if self.stopped and step < self.config.steps:
            trainer.should_stop = True

    # Lightning puts its own handlers back after these two, and before teardown()
    def on_train_end(self, trainer, module) -> None:
        self.stop.__exit__(None, None, None)

    def on_exception(self, trainer, module, exception: BaseException) -> None:
        self.stop.__exit__(None, None, None)

    def _due(self, step: int, every: int) -> bool:
        return step % every == 0 or step == self.config.steps

    # ------------------------------------------------------------------------------------------------ measuring

    def _training(self, module: DecodingModule, step: int) -> dict[str, float]:
        """Mean loss since the last row, norms, rate and speed."""
        norms = self.spread.weight_norms(module)
        self.instruments.alarms.norms(step, norms)
        return {
            "train/loss": self.losses.mean(),
            "train/grad_norm": self.spread.gradient_norm(module),
            "lr": self._lr,
            "train/weight_norm": global_norm(norms.values()),
        } | self.instruments.meter.row()

    def _validate(self, trainer, module: DecodingModule, step: int) -> dict[str, float]:
        """Loss and R2 of the valid split; the weights, or their average, are exported where the mean R2 is the best yet."""
        with self.spread.reading(module, self.average), self.instruments.meter.paused():
            return self._judge(trainer, module, step)

    def _judge(self, trainer, module: DecodingModule, step: int) -> dict[str, float]:
        precision = trainer.precision_plugin.val_step_context()
        judged = judge(module, self.data, self.facts["config"]["dims"], precision)
        if math.isnan(judged.mean) or judged.mean > self.best:  # without anything to validate on, the latest are kept
            self.best, self.best_step = (self.best if math.isnan(judged.mean) else judged.mean), step
            self._export(module)
        self.instruments.alarms.scores(step, self.config.steps, judged.scores)
        if self.instruments.tracker:
            self.instruments.tracker.judged(step, judged.scores, judged.predictions)
        return judged.row

    def _export(self, module: DecodingModule) -> None:
        weights = self.spread.whole_weights(module)

        def write() -> None:
            save_checkpoint(self.run.checkpoint, Checkpoint(weights=weights, **self.facts))

        self.ranks.by_leader(write)

    def _record(self, step: int, row: dict[str, float]) -> None:
        row = {"step": step, "epoch": self.data.epoch, "windows": self.data.windows} | row
        self.latest |= {name: row[name] for name in ("train/loss", "valid/r2") if name in row}
        if self.instruments.tracker:
            self.instruments.tracker.record(row)
            self.instruments.progress.update(step, self.latest | row, told="valid/r2" in row)
