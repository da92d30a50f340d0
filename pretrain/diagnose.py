"""A training's first steps, as `pretrain` would take them, and a look inside the model before some of them.

A plain loop without Lightning: same sessions, weights, batches, dropout and rates, hence the same losses (a test holds it).
Where the recipe validates an average of the weights, the look is at the weights themselves.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
import torch

from pretrain.anatomy import MODEL, Measured, look, measured_probes
from pretrain.errors import ConfigError
from pretrain.gradients import Moved, measured_gradients, parts_of
from pretrain.module import DecodingModule, seed_step
from pretrain.stitch import Stitcher
from pretrain.train import PretrainConfig, chosen_sessions, untrained
from pretrain.trainer import accelerator
from sharding.batch import Batch
from sharding.index import ShardIndex
from sharding.loader import EvalLoader, eval_loader, train_loader
from sharding.sampling import Sampling


@dataclass(frozen=True)
class DiagnoseConfig:
    shards: str = ""
    "folder of shards that exist; empty takes the bench's own"
    steps: list[int] = field(default_factory=lambda: [0, 10, 25, 50, 100, 200])
    "steps taken before each look; a training of fewer steps is lengthened to the last"
    train_windows: int = 512
    "windows of the train split that probes are fitted on, spread over it"
    valid_windows: int = 128
    "windows of the valid split that are looked at, spread over it"
    gradient_batches: int = 4
    "training batches over which a gradient is measured"

    def __post_init__(self):
        if not self.steps or min(self.steps) < 0:
            raise ConfigError("diagnose.steps", f"is {self.steps}", "give steps of at least 0")
        for name in ("train_windows", "valid_windows", "gradient_batches"):
            if getattr(self, name) < 1:
                raise ConfigError(f"diagnose.{name}", f"is {getattr(self, name)}", "give a number of at least 1")


@dataclass(frozen=True)
class Diagnosis:
    """What was measured: (step, block, quantity, value) rows, and the loss of every step taken."""

    sessions: tuple[str, ...]
    rows: list[tuple[int, str, str, float]]
    losses: list[float]

    @property
    def steps(self) -> list[int]:
        return sorted({row[0] for row in self.rows})

    def of(self, quantity: str) -> dict[str, dict[int, float]]:
        """Block -> step -> value, blocks in the order in which they were measured."""
        out: dict[str, dict[int, float]] = {}
        for step, block, named, value in self.rows:
            if named == quantity:
                out.setdefault(block, {})[step] = value
        return out


def diagnose(
    training: PretrainConfig, config: DiagnoseConfig, told: Callable[[int, Measured], None] = lambda *_: None
) -> Diagnosis:
    """Train to the last of the steps and look inside before each of them; `told(step, measured)` hears of each look.

    Raises ConfigError, ShardError.
    """
    steps = sorted(set(config.steps))
    training = _as_long(training, steps[-1] + 1)
    index = chosen_sessions(training.shards, training.sessions, training.exclude, training.verify, training.cache)
    if training.trainer.threads:
        torch.set_num_threads(training.trainer.threads)
    model, task, sampling = untrained(training.model, training.task, training.window_s, index, training)
    module = DecodingModule(model, task, training.optim, training.trainer.steps, training.seed)
    module.to(accelerator(training.trainer.device))
    batches = iter(
        train_loader(
            index, sampling, training.loader, seed=training.seed, total_batches=steps[-1] + config.gradient_batches
        )
    )
    coming = deque(islice(batches, config.gradient_batches))
    inside = _Inside(module, index, sampling, training, config)
    optimizer, schedule = _optimiser(module)
    rows, losses = [], []
    for step in range(steps[-1] + 1):
        measured: Measured = []
        if step in steps:
            measured = inside.measured(list(coming), step)
            before = Moved(inside.parts)
        losses.append(_take(module, optimizer, schedule, coming.popleft(), step))
        coming.extend(islice(batches, 1))
        if step in steps:
            measured += [(MODEL, "loss", losses[-1]), *before.measured()]
            rows += [(step, *row) for row in measured]
            told(step, measured)
    return Diagnosis(tuple(index.session_ids), rows, losses)


def _as_long(training: PretrainConfig, steps: int) -> PretrainConfig:
    """The training with at least that many steps, batches made in this process, in the one precision there is here."""
    if training.trainer.precision != "32-true":
        found = f"is {training.trainer.precision}"
        raise ConfigError("trainer.precision", found, "a diagnosis computes in 32-true: leave it out")
    trainer = replace(training.trainer, steps=max(training.trainer.steps, steps))
    return replace(training, trainer=trainer, loader=replace(training.loader, workers=0))


def _optimiser(module: DecodingModule):
    made = module.configure_optimizers()
    return made["optimizer"], made["lr_scheduler"]["scheduler"]


def _take(module: DecodingModule, optimizer, schedule, batch: Batch, step: int) -> float:
    """One step of training; returns its loss."""
    module.train()
    loss = _loss(module, batch, step)
    optimizer.zero_grad()
    loss.backward()
    if module.optim.clip_norm:
        torch.nn.utils.clip_grad_norm_(module.parameters(), module.optim.clip_norm)
    optimizer.step()
    schedule.step()
    return float(loss.detach())


def _loss(module: DecodingModule, batch: Batch, step: int) -> torch.Tensor:
    """The loss of a batch with the dropout of that step."""
    seed_step(module.seed, step)
    return module.losses(batch.to(module.device))[0]


class _Inside:
    """The windows that are looked at, the same at every step."""

    def __init__(self, module: DecodingModule, index: ShardIndex, sampling: Sampling, training, config: DiagnoseConfig):
        self.module, self.sampling, self.parts = module, sampling, parts_of(module)
        loaders = {
            split: eval_loader(index, sampling, training.loader, split, training.window_s)
            for split in ("train", "valid")
        }
        if not len(loaders["valid"]):
            raise ConfigError(index.root, "the chosen sessions have no valid split", "choose sessions that have one")
        self.train = lambda: _evenly(loaders["train"], config.train_windows)
        self.valid = lambda: _evenly(loaders["valid"], config.valid_windows)

    def measured(self, batches: list[Batch], step: int) -> Measured:
        """All that is measured before a step; `batches` are its own and those to come."""
        train = look(self.module, self.train(), attention=False)
        valid = look(self.module, self.valid(), Stitcher(self.sampling.sessions, self.sampling.statistics))
        self.module.train()

        def loss_of(number: int, batch: Batch) -> torch.Tensor:
            return _loss(self.module, batch, step + number)

        return [
            (MODEL, "valid R2", valid.r2),
            *valid.measured_attention(),
            *valid.measured_rows(),
            *measured_probes(train, valid),
            *measured_gradients(loss_of, self.parts, batches),
        ]


def _evenly(batches: EvalLoader, windows: int) -> Iterator[Batch]:
    """Whole batches of about that many windows in all, evenly over those there are, in their order."""
    count = min(len(batches), max(1, round(windows * len(batches) / batches.windows)))
    for number in np.unique(np.linspace(0, len(batches) - 1, count).round().astype(int)):
        yield batches[int(number)]
