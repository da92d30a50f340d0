"""Optimisers and the learning-rate schedule: LAMB with sparse rows as POYO trains with, AdamW as the alternative."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from pretrain.errors import ConfigError

BETA1 = 0.9  # memory of the gradients, of both optimisers and all recipes


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
    average: float = 0.0
    "decay a step of a running average of the weights, which is validated and exported in their place; 0 takes none"

    def __post_init__(self):
        if not 0 <= self.average < 1:
            raise ConfigError("optim.average", f"is {self.average}", "give a decay from 0 up to, not including, 1")


class Lamb(torch.optim.Optimizer):
    """LAMB without bias correction, as POYO's authors train (You et al. 2020; POYO, section 7 of our specification).

    step = m / (sqrt(v) + eps) + decay * w; w -= lr * trust * step, with trust = min(|w|, 10) / |step| per tensor, 1 where
    either norm is 0. A group with `sparse_rows=True` holds embedding tables: rows whose gradient is zero are neither moved
    nor decayed and their moments are set to zero, while trust is computed on the whole table.
    """

    def __init__(self, params, lr: float, betas=(0.9, 0.999), eps: float = 1e-6, weight_decay: float = 0.0):
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, sparse_rows=False))

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

    def _update(self, weight: torch.Tensor, group: dict) -> None:
        state, grad, (beta1, beta2) = self.state[weight], weight.grad, group["betas"]
        if not state:
            state["m"], state["v"] = torch.zeros_like(weight), torch.zeros_like(weight)
        m, v = state["m"].lerp_(grad, 1 - beta1), state["v"].lerp_(grad.square(), 1 - beta2)
        if group["sparse_rows"]:
            present = (grad != 0).any(dim=-1, keepdim=True)
            m.mul_(present), v.mul_(present)
        step = m / (v.sqrt() + group["eps"]) + group["weight_decay"] * weight
        if group["sparse_rows"]:
            step.mul_(present)
        weight_norm, step_norm = weight.norm().clamp(max=10.0), step.norm()
        trust = torch.where((weight_norm > 0) & (step_norm > 0), weight_norm / step_norm, 1.0)
        weight.sub_(step * (group["lr"] * trust))


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
    named_parameters: Iterable[tuple[str, nn.Parameter]], table_names: set[str], config: OptimConfig, total_steps: int
):
    """Optimiser and its per-step schedule for the parameters; `table_names` are those of the embedding tables.

    Returns (optimizer, LambdaLR). Raises ConfigError for an unknown name.
    """
    tables, matrices, vectors = [], [], []
    for name, weight in named_parameters:
        (tables if name in table_names else matrices if weight.ndim > 1 else vectors).append(weight)
    shared = dict(lr=config.lr, betas=(BETA1, config.beta2), weight_decay=config.weight_decay)
    if config.name == "lamb":
        groups = [
            dict(params=matrices + vectors),
            dict(params=tables, lr=config.lr * config.table_lr, sparse_rows=True),
        ]
        optimizer = Lamb(_filled(groups), **shared)
    elif config.name == "adamw":
        groups = [
            dict(params=matrices),
            dict(params=vectors, weight_decay=0.0),
            dict(params=tables, lr=config.lr * config.table_lr, weight_decay=0.0),
        ]
        optimizer = torch.optim.AdamW(_filled(groups), **shared)
    else:
        raise ConfigError("optim.name", f"{config.name!r} is not an optimiser here", "take lamb or adamw")
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step, total_steps, config))
    return optimizer, schedule


def _filled(groups: list[dict]) -> list[dict]:
    return [group for group in groups if group["params"]]
