"""What happens between two steps of a training: measure, validate, keep the best weights, save, and stop when asked.

All of it happens in one hook, in one order. So a run that is cut anywhere repeats nothing and skips nothing, and resumed
it ends with the weights it would have had. All ranks go through the same hooks; what needs all of them is done by all,
and the leader alone writes.
"""

import math
from dataclasses import dataclass

import lightning
import torch

from pretrain.alarms import Alarms, Trained
from pretrain.average import WeightAverage
from pretrain.checkpoint import Checkpoint, save_checkpoint
from pretrain.datamodule import ShardDataModule
from pretrain.metrics import mean_of_defined, r2
from pretrain.module import DecodingModule, StepPart
from pretrain.progress import StepProgress
from pretrain.ranks import Ranks
from pretrain.run import Run
from pretrain.saves import Save, Saves
from pretrain.speed import Meter
from pretrain.stitch import Stitcher
from pretrain.stopping import StopRequest
from pretrain.strategy import Spread, global_norm
from pretrain.tracking import Tracker
from sharding.batch import Batch


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
        self.run, self.data, self.facts, self.config, self.spread, self.instruments = (
            run,
            data,
            facts,
            config,
            spread,
            instruments,
        )
        self.ranks: Ranks = data.ranks
        self.saves = Saves(run.saves, config.keep)
        self.stop, self.stopped = StopRequest(), None
        self.best, self.best_step = -math.inf, None
        self.loss_sum, self.loss_steps, self.latest = 0.0, 0, {}
        self.average: WeightAverage | None = None
        self._restored: Save | None = None
        self._rhythms = config.log_every, config.val_every, config.save_every
        self._addends: list[torch.Tensor] = []  # of the steps since the losses were last looked at
        self._batches: list[
            tuple[int, list[Batch | Trained]]
        ] = []  # those steps and this rank's parts of their batches

    # ------------------------------------------------------------------------------------------------ state

    def resume(self, save: Save, module: DecodingModule) -> None:
        """Put back what can be before the strategy sets up: weights, the place in the stream, the few numbers."""
        facts, weights = save.facts["keeper"], save.tensors("weights")
        with torch.no_grad():
            for name, weight in module.named_parameters():
                weight.copy_(weights[name])
        self.data.resume(save.facts["loader"])
        for name in ("best", "best_step", "loss_sum", "loss_steps", "latest"):
            setattr(self, name, facts[name])
        self.best = -math.inf if self.best is None else self.best
        self.instruments.alarms.load_state_dict(facts["alarms"])
        self.instruments.meter.load_state_dict(facts["meter"])
        self._restored = save

    def _facts(self, step: int) -> dict:
        keeper = {
            "best": self.best if math.isfinite(self.best) else None,
            "best_step": self.best_step,
            "loss_sum": self.loss_sum,
            "loss_steps": self.loss_steps,
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
            if self._batches:  # nobody has looked yet: on a GPU that waits until it is due, and memory is dear
                self._batches[-1][1][:] = map(Trained.of, self._batches[-1][1])
            self._addends.append(torch.zeros((), device=module.device))
            self._batches.append((trainer.global_step + 1, []))
            self.instruments.meter.begin(part.waited_s)
        self._batches[-1][1].append(part.batch)
        self._last_part = part.last

    def on_after_backward(self, trainer, module: DecodingModule) -> None:
        self._addends[-1] = self._addends[-1] + module.latest

    def on_before_optimizer_step(self, trainer, module: DecodingModule, optimizer) -> None:
        if not self._last_part:  # DeepSpeed accumulates by itself, and is asked to step after every part
            return
        self._lr, step = optimizer.param_groups[0]["lr"], trainer.global_step + 1
        batches = self._batches[-1][1]
        due = self.stopped or any(self._due(step, every) for every in self._rhythms)
        on_cpu = trainer.strategy.root_device.type == "cpu"  # where looking at a number waits for nothing
        if due or on_cpu:
            self._look_at_losses(module)
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

    def _look_at_losses(self, module: DecodingModule) -> None:
        """Add the losses of the steps since the last look to the mean; raises ConfigError where one is not finite."""
        if not self._addends:
            return
        losses = self.ranks.sums(*torch.stack(self._addends).tolist())
        for (step, batches), loss in zip(self._batches, losses):
            if not math.isfinite(loss):
                self.instruments.alarms.loss(step, loss, batches, module)
        self.loss_sum, self.loss_steps = self.loss_sum + math.fsum(losses), self.loss_steps + len(losses)
        self._addends, self._batches = [], []

    def _training(self, module: DecodingModule, step: int) -> dict[str, float]:
        """Mean loss since the last row, norms, rate and speed."""
        loss = self.loss_sum / self.loss_steps
        self.loss_sum, self.loss_steps = 0.0, 0
        norms = self.spread.weight_norms(module)
        self.instruments.alarms.norms(step, norms)
        return {
            "train/loss": loss,
            "train/grad_norm": self.spread.gradient_norm(module),
            "lr": self._lr,
            "train/weight_norm": global_norm(norms.values()),
        } | self.instruments.meter.row()

    def _validate(self, trainer, module: DecodingModule, step: int) -> dict[str, float]:
        """Loss and R2 of the valid split; the weights, or their average, are exported where the mean R2 is the best yet."""
        with self.spread.reading(module, self.average), self.instruments.meter.paused():
            return self._judge(trainer, module, step)

    def _judge(self, trainer, module: DecodingModule, step: int) -> dict[str, float]:
        sampling = self.data.sampling
        stitcher = Stitcher(sampling.sessions, sampling.statistics)
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
        loss_sum, weight_sum = self.ranks.sums(loss_sum, weight_sum)
        stitcher.gather(self.ranks, self.facts["config"]["dims"])
        predictions = stitcher.predictions()
        scores = self.ranks.told({p.session: r2(p.target[p.evaluated], p.value[p.evaluated]) for p in predictions})
        mean = mean_of_defined(list(scores.values()))
        if math.isnan(mean) or mean > self.best:  # without anything to validate on, the latest weights are kept
            self.best, self.best_step = (self.best if math.isnan(mean) else mean), step
            self._export(module)
        self.instruments.alarms.scores(step, self.config.steps, scores)
        if self.instruments.tracker:
            self.instruments.tracker.judged(step, scores, predictions)
        loss = loss_sum / weight_sum if weight_sum else math.nan
        return {"valid/loss": loss, "valid/r2": mean} | {f"valid/r2/{name}": score for name, score in scores.items()}

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
