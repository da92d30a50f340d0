"""A small training whose every number one can follow, run by the ranks of test_strategy.py under any strategy."""

from dataclasses import dataclass, field
from pathlib import Path

import lightning
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pretrain.average import WeightAverage
from pretrain.optim import OptimConfig, build_optimizer
from pretrain.ranks import joined
from pretrain.spread import spread
from pretrain.strategy import StrategyConfig
from pretrain.strategy_zero import spread_zero  # noqa: F401 so that forks of this need not load DeepSpeed

ROWS, WIDTH, TABLES = 11, 5, {"body.unit.weight"}
WINDOWS = 12  # of a global batch


@dataclass(frozen=True)
class Fit:
    """One training: where it begins, how it is spread, when it stops."""

    name: str
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    steps: int = 50
    total: int = 50  # of the schedule
    parts: int = 1
    precision: str = "32-true"
    freezes: bool = False
    resume: str = ""  # name of a finished fit, from whose end this one goes on
    start: int = 0


@dataclass(frozen=True)
class Part:
    """Windows of one rank's part of a global batch; frozen, as the real ones are."""

    unit_B: torch.Tensor
    target_BK: torch.Tensor
    weight_B: torch.Tensor
    total: torch.Tensor  # weight of the whole global batch
    seen_D: torch.Tensor  # columns of the table that are read

    def to(self, device) -> "Part":
        return Part(**{name: tensor.to(device) for name, tensor in vars(self).items()})


def global_batch(step: int) -> Part:
    """The windows of a step. Units come and go: a step sees a few of them, the last not before step 10.

    Every third step reads the table's first columns alone: of a row that two ranks share one has no gradient then.
    """
    draw = torch.Generator().manual_seed(step)
    seen = torch.randperm(ROWS - (step < 10), generator=draw)[:5]
    unit_B = seen[torch.randint(5, (WINDOWS,), generator=draw)]
    target_BK = torch.randn(WINDOWS, 3, generator=draw) + unit_B[:, None] * 0.3
    weight_B = torch.rand(WINDOWS, generator=draw)
    seen_D = torch.tensor([1.0, 1.0] + [float(step % 3 > 0)] * (WIDTH - 2))
    return Part(unit_B, target_BK, weight_B, weight_B.sum(), seen_D)


class Parts(torch.utils.data.IterableDataset):
    """This rank's parts of each global batch; shares of unequal size."""

    def __init__(self, fit: Fit, ranks):
        self.fit, self.ranks = fit, ranks

    def __iter__(self):
        for step in range(self.fit.start, self.fit.steps):
            batch = global_batch(step)
            pieces = self.ranks.world * self.fit.parts
            sizes = [WINDOWS // pieces] * (pieces - 1)
            sizes = [size - (number % 2) for number, size in enumerate(sizes)]
            sizes.append(WINDOWS - sum(sizes))
            split = [tensor.split(sizes) for tensor in (batch.unit_B, batch.target_BK, batch.weight_B)]
            for part in range(self.fit.parts):
                number = self.ranks.rank * self.fit.parts + part
                yield Part(*(tensors[number] for tensors in split), batch.total, batch.seen_D)


@dataclass(frozen=True)
class Given:
    """What the body gives out: tensors inside a type of ours, as the models do."""

    y_BK: torch.Tensor


class Body(nn.Module):
    """A table, a matrix, a norm, parameters beside these modules, and a bias and a gain of fewer elements than ranks."""

    def __init__(self):
        super().__init__()
        self.unit = nn.Embedding(ROWS, WIDTH)
        self.latent = nn.Parameter(torch.randn(3, WIDTH))
        self.mix, self.norm, self.out = nn.Linear(WIDTH, 7), nn.LayerNorm(7), nn.Linear(7, 3)
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, unit_B: torch.Tensor, seen_D: torch.Tensor) -> Given:
        unit_BD = self.unit(unit_B) * seen_D
        x_BD = unit_BD + torch.softmax(unit_BD @ self.latent.T, -1) @ self.latent
        return Given(self.out(torch.tanh(self.norm(self.mix(x_BD)))) * self.gain)


class Toy(lightning.LightningModule):
    """The body and its loss."""

    def __init__(self, fit: Fit, ranks, shards):
        super().__init__()
        torch.manual_seed(0)
        self.fit, self.ranks, self.shards = fit, ranks, shards
        self.body = Body()
        self.losses, self.norms = [], []

    def addend(self, part: Part) -> torch.Tensor:
        y_BK = self.body(part.unit_B, part.seen_D).y_BK
        return ((y_BK - part.target_BK).square().mean(-1) * part.weight_B).sum() / part.total

    def on_train_batch_start(self, part: Part, batch_idx: int) -> None:
        if self.fit.freezes:  # as finetuning does: first the table, then everything
            for weight in self.parameters():
                weight.requires_grad_(weight is self.body.unit.weight or self.global_step >= 5)

    def training_step(self, part: Part, batch_idx: int) -> torch.Tensor:
        loss = self.addend(part)
        if batch_idx % self.fit.parts == 0:
            self.losses.append(0.0)
        self.losses[-1] += float(loss.detach())
        return loss * (self.fit.parts * self.ranks.world)

    def train_dataloader(self):
        return torch.utils.data.DataLoader(Parts(self.fit, self.ranks), batch_size=None)

    def configure_optimizers(self):
        optimizer, schedule = build_optimizer(
            self.named_parameters(), TABLES, self.fit.optim, self.fit.total, start=self.fit.start, shards=self.shards
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Watcher(lightning.Callback):
    """Does what the Keeper does, as far as it concerns the strategy."""

    def __init__(self, fit: Fit, spread, saved: dict | None):
        self.fit, self.spread, self.saved, self.average, self.validated = fit, spread, saved, None, []

    def on_train_start(self, trainer, module) -> None:
        self.average = WeightAverage(self.spread.own_tensors(module), 0.9)
        if self.saved:
            state: dict = {}
            for key, value in _below(self.saved, "optimizer/").items():
                name, _, what = key.rpartition("/")
                state.setdefault(name, {})[what] = value
            self.spread.take_optimizer(module, state)
            self.average.steps = self.fit.start
            self.spread.fill(module, self.average.average, _below(self.saved, "average/"))
        else:
            self._validate(module)

    def on_before_optimizer_step(self, trainer, module, optimizer) -> None:
        self.spread.note_gradients(module)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        if (batch_idx + 1) % self.fit.parts:
            return
        self.average.update()
        module.norms.append(self.spread.gradient_norm(module))
        if (self.fit.start + module.global_step) % 10 == 0:
            self._validate(module)

    def _validate(self, module) -> None:
        """The averaged weights on a number of batches that differs from rank to rank."""
        module.eval()
        with torch.no_grad(), self.spread.reading(module, self.average):
            for number in range(1 + self.spread.ranks.rank):
                loss = float(module.addend(global_batch(1000 + number)))
                self.validated += [loss] if number == 0 else []
            norm = float(torch.stack([weight.norm() for weight in module.parameters()]).norm())
        module.train()
        norms = self.spread.weight_norms(module)
        self.validated += [norm, float(torch.tensor(list(norms.values())).norm())]


def run(fit: Fit, ranks, folder: Path) -> None:
    """Train; the leader writes NAME.safetensors: what a save holds, and losses and norms by step."""
    saved = load_file(folder / f"{fit.resume}.safetensors") if fit.resume else None
    spreading = spread(fit.strategy, ranks, "cpu", fit.precision, freezes=fit.freezes)
    module = Toy(fit, ranks, spreading.shards)
    if saved:
        with torch.no_grad():
            for name, weight in module.named_parameters():
                weight.copy_(saved[f"weights/{name}"])
    watcher = Watcher(fit, spreading, saved)
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=ranks.local_world,
        strategy=spreading.lightning,
        plugins=spreading.plugins,
        accumulate_grad_batches=fit.parts,
        gradient_clip_val=fit.optim.clip_norm or None,
        max_steps=fit.steps - fit.start,
        max_epochs=-1,
        callbacks=[watcher],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(module)
    tensors = {f"weights/{name}": value for name, value in (spreading.whole_weights(module) or {}).items()}
    for name, state in (spreading.whole_optimizer(module) or {}).items():
        tensors |= {f"optimizer/{name}/{key}": value for key, value in state.items()}
    whole = spreading.whole(module, watcher.average.average) or {}
    tensors |= {f"average/{name}": value for name, value in whole.items()}
    losses = torch.tensor(ranks.sums(*module.losses))
    if ranks.leader:
        told = {"losses": losses, "norms": torch.tensor(module.norms), "validated": torch.tensor(watcher.validated)}
        save_file(tensors | told, folder / f"{fit.name}.safetensors")


def _below(tensors: dict, prefix: str) -> dict:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def train(fits: list[Fit], folder: Path) -> None:
    """What one rank does: all the fits, one after another."""
    torch.set_num_threads(1)
    with joined("cpu") as ranks:
        for fit in fits:
            run(fit, ranks, folder)
