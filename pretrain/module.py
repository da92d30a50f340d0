"""One training step and one decoding step as Lightning runs them; model and task stay ignorant of it."""

import lightning
import torch
from torch import nn

from pretrain.optim import OptimConfig, build_optimizer
from sharding.batch import Batch


class DecodingModule(lightning.LightningModule):
    """A model and a task being trained for `total_steps`.

    Every step's dropout is drawn from a seed of its own, (seed, step): a resumed run draws what it would have drawn.
    For the first `frozen_steps` only the embedding tables move, and of these only the rows from `new_rows` on (table
    name -> first new row): unit identification. With frozen_steps == total_steps nothing else ever moves.
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
        self.frozen_steps = frozen_steps
        for name, table in model.tables().items():
            if new_rows is not None:
                table.weight.register_hook(_Only(new_rows[name], self))

    def forward(self, batch: Batch) -> torch.Tensor:
        """Normalised values (Q, K) of the batch's queries."""
        return self.task.readout(self.model(batch))

    def losses(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss, auxiliary losses of the model included, and the values (Q, K) it was taken from."""
        encoded = self.model(batch)
        value_QK = self.task.readout(encoded)
        return self.task.loss(value_QK, batch) + sum(encoded.losses.values()), value_QK

    @property
    def frozen(self) -> bool:
        """Whether the step to come is one of unit identification."""
        return self.global_step < self.frozen_steps

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        seed_step(self.seed, self.global_step)
        if self.frozen_steps:
            tables = self._tables()
            for weight in self.parameters():
                weight.requires_grad_(not self.frozen or id(weight) in tables)

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        return self.losses(batch)[0]

    def configure_optimizers(self):
        """Tables alone where all steps are frozen, so that no optimiser state exists for what never moves."""
        tables, only = self._tables(), self.frozen_steps >= self.total_steps
        named = [(name, weight) for name, weight in self.named_parameters() if not only or id(weight) in tables]
        table_names = {name for name, weight in named if id(weight) in tables}
        optimizer, schedule = build_optimizer(named, table_names, self.optim, self.total_steps)
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


def seed_step(seed: int, step: int) -> None:
    """Make torch draw the dropout of a step, whatever was drawn before."""
    torch.manual_seed((seed * 1_000_003 + step) % 2**63)


def norm_of(tensors) -> float:
    """Euclidean norm over all the tensors together."""
    norms = torch._foreach_norm([tensor.detach() for tensor in tensors])
    return float(torch.stack(norms).norm()) if norms else 0.0
