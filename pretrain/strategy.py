"""How a training is spread over devices: each strategy's own words for "the weights", behind one set of names.

Whatever the strategy, weights and optimiser state are asked for and given back whole: float32, by the name of the
parameter. So what N ranks saved under one strategy, M ranks continue under another.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy
from torch import Tensor, nn

from pretrain.average import WeightAverage
from pretrain.errors import ConfigError
from pretrain.optim import Shards
from pretrain.ranks import Ranks

NAMES = ("auto", "ddp", "zero1", "zero2", "zero3")
PRECISIONS = ("32-true", "bf16-mixed")
# elements of gradients that DeepSpeed reduces at a time (80 MB, held throughout); its own default is 25 times that
BUCKET = 20_000_000
WAIT = timedelta(minutes=30)  # for the slowest rank, in gradients' collectives
State = dict[str, dict[str, Tensor]]  # parameter -> key of the optimiser -> value


@dataclass(frozen=True)
class StrategyConfig:
    name: str = "auto"
    "auto (one device alone, DDP over several), ddp, or DeepSpeed's zero1, zero2, zero3"
    offload_optimizer: bool = False
    "keep optimiser state in host memory (zero1, zero2, zero3)"
    offload_parameters: bool = False
    "keep parameters in host memory (zero3)"

    def __post_init__(self):
        if self.name not in NAMES:
            raise ConfigError(
                "trainer.strategy.name", f"{self.name!r} is no strategy", f"take one of {', '.join(NAMES)}"
            )
        if self.offload_optimizer and not self.name.startswith("zero"):
            raise ConfigError("trainer.strategy.offload_optimizer", f"needs DeepSpeed, not {self.name}", "take zero1")
        if self.offload_parameters and self.name != "zero3":
            raise ConfigError("trainer.strategy.offload_parameters", f"needs zero3, not {self.name}", "take zero3")


class Spread:
    """Every rank holds everything: one device, or DDP. DeepSpeed's ways are in strategy_zero."""

    shards: Shards | None = None  # how tensors are cut for the optimiser (pretrain.optim.build_optimizer)

    def __init__(self, name: str, lightning: Strategy, plugins: list, ranks: Ranks):
        """`plugins` hold the precision too: Lightning's Trainer is given none beside them."""
        self.name, self.lightning, self.plugins, self.ranks = name, lightning, plugins, ranks
        self._gradient_norm: Tensor | None = None

    def whole_weights(self, module: nn.Module) -> dict[str, Tensor] | None:
        """Copies of all weights in host memory, by name, on the leader; None elsewhere. Called by all ranks."""
        return self.whole(module, self.own_tensors(module))

    def own_tensors(self, module: nn.Module) -> list[Tensor]:
        """What this rank holds of each of the module's parameters, in their order; the very tensors, not copies."""
        return list(module.parameters())

    def whole(self, module: nn.Module, tensors: list[Tensor]) -> dict[str, Tensor] | None:
        """Tensors like `own_tensors`, put together: as `whole_weights`. Called by all ranks."""
        if not self.ranks.leader:
            return None
        names = [name for name, _ in module.named_parameters()]
        return {name: _on_host(tensor) for name, tensor in zip(names, tensors, strict=True)}

    @torch.no_grad()
    def fill(self, module: nn.Module, tensors: list[Tensor], whole: dict[str, Tensor]) -> None:
        """The other way: put this rank's part of what `whole` gave into tensors like `own_tensors`."""
        for (name, _), tensor in zip(module.named_parameters(), tensors, strict=True):
            tensor.copy_(whole[name])

    def whole_optimizer(self, module: nn.Module) -> State | None:
        """Copies of the optimiser's state in host memory on the leader, of parameters that have any; None elsewhere.

        Called by all ranks, between two steps.
        """
        if not self.ranks.leader:
            return None
        state = self.lightning.optimizers[0].state
        return {
            name: {key: _on_host(value) for key, value in state[weight].items()}
            for name, weight in module.named_parameters()
            if state.get(weight)
        }

    def take_optimizer(self, module: nn.Module, state: State) -> None:
        """Go on from what `whole_optimizer` gave (every rank is given all of it); after Lightning's set-up."""
        for name, weight in module.named_parameters():
            if name in state:
                self.lightning.optimizers[0].state[weight] = {
                    key: placed(key, value, weight) for key, value in state[name].items()
                }

    def note_gradients(self, module: nn.Module) -> None:
        """Take the norm of the gradients that `gradient_norm` tells; in `on_before_optimizer_step`, where it is due."""
        grads = [weight.grad for weight in module.parameters() if weight.grad is not None]
        self._gradient_norm = torch.stack(torch._foreach_norm(grads)).norm() if grads else torch.zeros(())

    def gradient_norm(self, module: nn.Module) -> float:
        """Norm of all gradients of the step just taken, before it was clipped."""
        assert self._gradient_norm is not None, "note_gradients was not called"
        return float(self._gradient_norm)

    def weight_norms(self, module: nn.Module) -> dict[str, float]:
        """Norm of each parameter, on every rank. Called by all ranks."""
        names, weights = zip(*module.named_parameters())
        norms = torch.stack(torch._foreach_norm([weight.detach() for weight in weights]))
        return dict(zip(names, norms.tolist()))

    @contextmanager
    def reading(self, module: nn.Module, average: WeightAverage | None = None) -> Iterator[None]:
        """While inside, each rank may run and read the module alone: its weights are whole, or are the averages.

        To be entered by all ranks between two steps; nothing may be trained inside.
        """
        with average.in_place() if average else nullcontext():
            yield


def plain(ranks: Ranks, accelerator: str, precision: str, *, freezes: bool) -> Spread:
    """One device, or DDP over several; `accelerator` is "cpu" or "cuda"."""
    holds = Precision() if precision == "32-true" else MixedPrecision(precision, accelerator)
    plugins: list[Any] = [holds, ranks.environment]
    if ranks.world == 1:
        device = torch.device("cpu") if accelerator == "cpu" else torch.device("cuda", 0)
        return Spread("one device", SingleDeviceStrategy(device), plugins, ranks)
    # Where it looks for unused parameters DDP leaves its buckets as they are; else it sorts them anew after the first step
    # of a process, and three ranks or more add a gradient's parts in an order that depends on its place in a bucket.
    looks = freezes or ranks.world > 2
    return Spread("ddp", DDPStrategy(timeout=WAIT, find_unused_parameters=looks), plugins, ranks)


def placed(key: str, value: Tensor, weight: Tensor) -> Tensor:
    """A copy of an optimiser's value where it belongs: counters of steps in host memory, all else beside the weight."""
    return value.clone() if key == "step" else value.to(weight, copy=True)


def global_norm(norms: Iterable[float]) -> float:
    """Norm over all parameters together, of their `weight_norms`."""
    return math.hypot(*norms)


def _on_host(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True)
