"""One training step and one decoding step as Lightning runs them; model and task stay ignorant of it."""

from dataclasses import dataclass, replace

import lightning
import torch
from torch import nn

from pretrain.optim import OptimConfig, build_optimizer
from pretrain.ranks import ALONE, Ranks
from pretrain.tasks.regression import LEAST_WEIGHT
from sharding.batch import Batch


@dataclass(frozen=True)
class StepPart:
    """What one rank computes at a time: part `number` of `of` of its share of a global batch."""

    batch: Batch
    number: int
    of: int
    weight: float  # sum of the loss weights of the rank's whole share
    waited_s: float  # for the share

    @property
    def first(self) -> bool:
        return self.number == 0

    @property
    def last(self) -> bool:
        return self.number + 1 == self.of

    def to(self, device) -> "StepPart":
        return replace(self, batch=self.batch.to(device))

    def pin_memory(self) -> "StepPart":
        return replace(self, batch=self.batch.pin_memory())


class DecodingModule(lightning.LightningModule):
    """A model and a task being trained for `total_steps`.

    Every step's dropout is drawn from a seed of its own, (seed, step, rank, part): a resumed run draws what it would have
    drawn. For the first `frozen_steps` only the embedding tables move, and of these only the rows from `new_rows` on
    (table name -> first new row): unit identification. With frozen_steps == total_steps nothing else ever moves.
    """

    def __init__(
        self,
        model: nn.Module,
        task: nn.Module,
        optim: OptimConfig,
        total_steps: int,
        seed: int,
        frozen_steps: int = 0,
        new_rows: dict[str, int] | None = None,
    ):
        super().__init__()
        self.model, self.task, self.optim, self.total_steps, self.seed = model, task, optim, total_steps, seed
        self.frozen_steps, self.ranks, self.begin, self.shards = frozen_steps, ALONE, 0, None
        self.step_weight = 0.0  # sum of the loss weights of the global batch at hand
        for name, table in model.tables().items():
            if new_rows is not None:
                table.weight.register_hook(_Only(new_rows[name], self))

    def among(self, ranks: Ranks, begin: int, shards) -> None:
        """Train as one of the ranks, from step `begin` on; `shards` is what build_optimizer() takes."""
        self.ranks, self.begin, self.shards = ranks, begin, shards

    def forward(self, batch: Batch) -> torch.Tensor:
        """Normalised values (Q, K) of the batch's queries."""
        return self.task.readout(self.model(batch))

    def losses(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss, auxiliary losses of the model included, and the values (Q, K) it was taken from."""
        encoded = self.model(batch)
        value_QK = self.task.readout(encoded)
        return self.task.loss(value_QK, batch) + sum(encoded.losses.values()), value_QK

    def addend(self, batch: Batch) -> torch.Tensor:
        """What this batch adds to the loss of the global batch that it is a part of.

        Summed over all parts on all ranks that is the loss of the global batch as one device would compute it: errors are
        divided by the weights of all, auxiliary losses, which are means over windows, count by their windows.
        """
        encoded = self.model(batch)
        value_QK = self.task.readout(encoded)
        weight = torch.tensor(self.step_weight, dtype=torch.float32, device=value_QK.device)
        share = 0.0 if batch.idle else len(batch) / max(batch.windows, 1)
        loss = self.task.loss_sum(value_QK, batch) / weight.clamp_min(LEAST_WEIGHT)
        return loss + sum(encoded.losses.values()) * share

    @property
    def frozen(self) -> bool:
        """Whether the step to come is one of unit identification."""
        return self.global_step < self.frozen_steps

    def on_train_batch_start(self, part: StepPart, batch_idx: int) -> None:
        seed_step(self.seed, self.global_step, self.ranks.rank, part.number)
        if self.frozen_steps:
            tables = self._tables()
            for weight in self.parameters():
                weight.requires_grad_(not self.frozen or id(weight) in tables)

    def training_step(self, part: StepPart, batch_idx: int) -> torch.Tensor:
        """The addend, times what gradients are divided by later: by the parts, and by the ranks in their mean."""
        loss = self.addend(part.batch)
        self.latest = loss.detach()
        return loss * (part.of * self.ranks.world)

    def configure_optimizers(self):
        """Tables alone where all steps are frozen, so that no optimiser state exists for what never moves."""
        tables, only = self._tables(), self.frozen_steps >= self.total_steps
        named = [(name, weight) for name, weight in self.named_parameters() if not only or id(weight) in tables]
        table_names = {name for name, weight in named if id(weight) in tables}
        optimizer, schedule = build_optimizer(
            named, table_names, self.optim, self.total_steps, start=self.begin, shards=self.shards
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _tables(self) -> set[int]:
        return {id(table.weight) for table in self.model.tables().values()}


class _Only:
    """Gradient hook of a table: while the module is frozen, rows before `first` get none."""

    def __init__(self, first: int, module: DecodingModule):
        self.first, self.module = first, module

    def __call__(self, grad: torch.Tensor) -> torch.Tensor:
        if not self.module.frozen:
            return grad
        return torch.cat((torch.zeros_like(grad[: self.first]), grad[self.first :]))


def seed_step(seed: int, step: int, rank: int = 0, part: int = 0) -> None:
    """Make torch draw the dropout of a part of a step on a rank, whatever was drawn before."""
    torch.manual_seed((seed * 1_000_003 + step + (rank * 4096 + part) * 2**36) % 2**63)


def norm_of(tensors) -> float:
    """Euclidean norm over all the tensors together."""
    norms = torch._foreach_norm([tensor.detach() for tensor in tensors])
    return float(torch.stack(norms).norm()) if norms else 0.0
