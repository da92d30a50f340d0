"""Optimisers and the learning-rate schedule: LAMB with sparse rows as POYO trains with, AdamW as the alternative."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pretrain.errors import ConfigError

BETA1 = 0.9  # memory of the gradients, of both optimisers and all recipes
TRUST_LIMIT = 10.0  # of safe LAMB: DeepSpeed's FusedLamb has it as max_coeff; limits as such: Fong et al. 2020, LAMBC


@dataclass(frozen=True)
class OptimConfig:
    name: str = "adamw"
    "lamb (the paper's) or adamw"
    lr: float = 1e-3
    "peak learning rate; the paper's LAMB rate is 3.125e-5 times the windows of a global batch"
    table_lr: float = 1.0
    "learning rate of unit and session embeddings, in multiples of lr"
    weight_decay: float = 1e-4
    "decay of the weights; adamw leaves embeddings, biases and norms undecayed, lamb decays all as the paper does"
    beta2: float = 0.999
    "memory of the squared gradients: lower forgets the steep first steps sooner, which short trainings want"
    warmup_steps: int = 0
    "steps of linear warm-up"
    hold: float = 0.5
    "fraction of all steps at the peak rate (warm-up included) before the cosine descent"
    final_lr: float = 1e-4
    "learning rate at the end, in multiples of lr"
    clip_norm: float = 0.0
    "gradient norm clipped to this; 0 does not clip"
    safe: bool = False
    "lamb without its collapse: tables, biases and norms undecayed, trust at most 10; false is the paper's"
    average: float = 0.0
    "decay a step of a running average of the weights, which is validated and exported in their place; 0 takes none"

    def __post_init__(self):
        if not 0 <= self.average < 1:
            raise ConfigError("optim.average", f"is {self.average}", "give a decay from 0 up to, not including, 1")
        if self.safe and self.name != "lamb":
            raise ConfigError("optim.safe", f"is for lamb, not {self.name}, which needs none", "leave it out")


@dataclass(frozen=True)
class Shards:
    """How DeepSpeed cuts each tensor: flattened, zero-padded, and rank r of `world` holds the r-th of equal slices."""

    rank: int
    world: int
    control: Any = None  # process group for slices in host memory; None is the default group

    def held(self, numel: int, padded: int) -> tuple[int, int]:
        """First element of a tensor of `numel` that this rank holds, and how many: of its slice the rest is padding."""
        first = min(self.rank * padded, numel)
        return first, min(padded, numel - first)

    def reduced(self, values: Tensor, how=dist.ReduceOp.SUM) -> Tensor:
        """The values, reduced over all ranks in place."""
        if self.world > 1:
            dist.all_reduce(values, how, group=None if values.is_cuda else self.control)
        return values


class Lamb(torch.optim.Optimizer):
    """LAMB without bias correction, as POYO's authors train (You et al. 2020; POYO, section 7 of our specification).

    step = m / (sqrt(v) + eps) + decay * w; w -= lr * trust * step, with trust = min(|w|, 10) / |step| per tensor, 1 where
    either norm is 0, and at most the group's `trust_limit`. A group with `sparse_rows=True` holds embedding tables: rows
    whose gradient is zero are neither moved nor decayed and their moments are set to zero, while trust is computed on the
    whole table.

    With `shards` each group holds a slice of one tensor, whose shape is the group's `shape`: norms and the rows that are
    present are those of the whole tensor, agreed on by all ranks, which take every step together.
    """

    def __init__(
        self,
        params,
        lr: float,
        betas=(0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        shards: Shards | None = None,
    ):
        self.shards = shards
        defaults = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        super().__init__(params, defaults | dict(sparse_rows=False, trust_limit=math.inf, shape=None))

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, group)
        return loss

    def _update(self, weight: Tensor, group: dict) -> None:
        state, grad, (beta1, beta2) = self.state[weight], weight.grad, group["betas"]
        if not state:
            state["m"], state["v"] = torch.zeros_like(weight), torch.zeros_like(weight)
        m, v = state["m"], state["v"]
        first = 0
        if self.shards:
            first, n = self.shards.held(math.prod(group["shape"]), len(weight))
            weight, grad, m, v = weight[:n], grad[:n], m[:n], v[:n]
        m.lerp_(grad, 1 - beta1), v.lerp_(grad.square(), 1 - beta2)
        present = self._present(grad, group, first) if group["sparse_rows"] else None
        if present is not None:
            m.mul_(present), v.mul_(present)
        step = m / (v.sqrt() + group["eps"]) + group["weight_decay"] * weight
        if present is not None:
            step.mul_(present)
        weight_norm, step_norm = self._norms(weight, step)
        weight_norm = weight_norm.clamp(max=10.0)
        trust = torch.where((weight_norm > 0) & (step_norm > 0), weight_norm / step_norm, 1.0)
        weight.sub_(step * (group["lr"] * trust.clamp(max=group["trust_limit"])))

    def _norms(self, weight: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        if not self.shards:
            return weight.norm(), step.norm()
        squares = torch.stack([weight.norm(dtype=torch.float64), step.norm(dtype=torch.float64)]).square()
        return self.shards.reduced(squares).sqrt().to(weight.dtype).unbind()

    def _present(self, grad: Tensor, group: dict, first: int) -> Tensor:
        """Whether each element's row of the table has a gradient anywhere; broadcasts against the gradient.

        A slice's gradient is that of the table's elements from `first` on: its first and last row may be cut.
        """
        if not self.shards:
            return (grad != 0).any(dim=-1, keepdim=True)
        rows, width = group["shape"]
        row_of = torch.arange(first, first + len(grad), device=grad.device) // width
        found = torch.zeros(rows, dtype=torch.uint8, device=grad.device)
        found.index_fill_(0, row_of[grad != 0], 1)
        return self.shards.reduced(found, dist.ReduceOp.MAX)[row_of].bool()


def lr_factor(step: int, total_steps: int, config: OptimConfig) -> float:
    """Learning rate at a step, in multiples of the peak: linear warm-up, constant, then cosine to `final_lr`.

    Defined by absolute steps, so resuming does not move it. Constant for half, then cosine, is the paper's.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    knee = config.hold * total_steps
    if step < knee:
        return 1.0
    descent = min(1.0, (step - knee) / max(1.0, total_steps - knee))
    return config.final_lr + (1 - config.final_lr) * 0.5 * (1 + math.cos(math.pi * descent))


def build_optimizer(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    table_names: set[str],
    config: OptimConfig,
    total_steps: int,
    start: int = 0,
    shards: Shards | None = None,
):
    """Optimiser and its per-step schedule for the parameters; `table_names` are those of the embedding tables.

    The first step to come is number `start` of `total_steps`. With `shards` (of DeepSpeed) every tensor has a parameter
    group of its own, so that what a rank is given is a slice of one tensor. Returns (optimizer, LambdaLR). Raises
    ConfigError for an unknown name.
    """
    tables, matrices, vectors = [], [], []
    for name, weight in named_parameters:
        (tables if name in table_names else matrices if weight.ndim > 1 else vectors).append(weight)
    shared = dict(lr=config.lr, betas=(BETA1, config.beta2), weight_decay=config.weight_decay)
    undecayed = dict(weight_decay=0.0) if config.safe or config.name == "adamw" else {}
    groups = [
        dict(params=matrices),
        dict(params=vectors, **undecayed),
        dict(params=tables, lr=config.lr * config.table_lr, **undecayed),
    ]
    if config.name == "lamb":
        groups[-1]["sparse_rows"] = True
        if config.safe:
            groups = [group | dict(trust_limit=TRUST_LIMIT) for group in groups]
        optimizer = Lamb(_shared_out(groups, shards), **shared, shards=shards)
    elif config.name == "adamw":
        optimizer = torch.optim.AdamW(_shared_out(groups, shards), **shared)
    else:
        raise ConfigError("optim.name", f"{config.name!r} is not an optimiser here", "take lamb or adamw")
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(start + step, total_steps, config))
    return optimizer, schedule


def _shared_out(groups: list[dict], shards: Shards | None) -> list[dict]:
    """The groups that hold anything; for shards one a tensor, which tells the tensor's shape."""
    if shards is None:
        return [group for group in groups if group["params"]]
    return [group | dict(params=[weight], shape=tuple(weight.shape)) for group in groups for weight in group["params"]]
