"""A model, a batch and a strategy -> the memory that a rank will need and the bytes of a save, before anything is built.

P is the number of parameters, W the ranks, e the bytes of a number in the arithmetic (4, or 2 under bf16-mixed). Bytes on
each rank, but for a few of counters:

               weights   masters   gradients           optimiser   average
    one device 4 P       0         4 P                 8 P         4 P
    ddp        4 P       0         4 P + 4 P (a)       8 P         4 P
    zero1      4 P       4 P / W   4 P + 4 P / W + (b) 8 P / W     4 P
    zero2      4 P       4 P / W   4 P / W + (b)       8 P / W     4 P
    zero3      4 P / W   4 P / W   4 P / W + (b)       8 P / W     4 P / W    and 4 P gathered (c)

(a) DDP's buckets; (b) DeepSpeed's bucket; (c) at most, where all layers are gathered at once. The average only where a
recipe takes one. Offloading moves masters and optimiser, with offload_parameters the weights too, to the host. A save
holds weights, optimiser and average whole, a checkpoint the weights and the names of all units and sessions.

Activations are what POYO's forward pass keeps for the backward pass. With D width, F ff_multiple, H head width, I the inner
width of cross-attention and N its heads, J and M those of self-attention, K target dimensions, and m bytes of a dropped
number's mask (e on a CPU, 1 on a GPU, 0 without dropout), where norm = 4 D + 8 + D e and ff = norm + 4 F D e + F D m:

    a token              8 + 4 H + 2 I e                             index, turn, key and value
    a latent             4 H + 3 I e + 4 N + ff + norm + 3 I e       encoder, and keys and values of the decoder
    a latent, each layer norm + 5 J e + 4 M + ff + 2 D m
    a query              8 + 4 H + 3 I e + 4 N + ff + D e + 4 K      decoder, readout and loss

bf16-mixed also keeps 2 bytes of each weight of a layer. On a CPU attention that drops keeps its probabilities, 12 bytes for
each pair of a query and a key and for each head: by far the most of all. One layer at a time needs room to work in besides:
2 I e a token (and 8 I more where numbers are rounded, 4 I where they are dropped), or 3 F D e a latent or a query, or once
more the probabilities of a layer.

Held against torch's own counting on a CPU in tests/pretrain/test_estimate.py; allocators waste some more.
"""

import json
import math
from dataclasses import dataclass

import torch

from pretrain.errors import ConfigError
from pretrain.models.poyo import PoyoConfig
from pretrain.models.registry import MODELS
from pretrain.optim import OptimConfig
from pretrain.strategy import BUCKET, StrategyConfig
from pretrain.tasks.registry import TASKS
from sharding.vocabulary import Vocabulary

WIDE = 4  # bytes of a float32
DDP_BUCKETS = 1  # copies of all gradients


@dataclass(frozen=True)
class Load:
    """What a rank computes at a time: a part of its share of a global batch."""

    windows: int
    tokens: int
    queries: int
    window_s: float = 1.0
    dims: int = 2  # of the target


@dataclass(frozen=True)
class Setup:
    """How it is computed and kept."""

    strategy: StrategyConfig = StrategyConfig()
    world: int = 1
    optim: OptimConfig = OptimConfig()
    precision: str = "32-true"
    device: str = "cpu"

    @property
    def stage(self) -> int:
        """Of ZeRO; 0 without."""
        name = self.strategy.name
        return int(name[-1]) if name.startswith("zero") else 0

    @property
    def number(self) -> int:
        """Bytes of a number in the arithmetic."""
        return 2 if self.precision == "bf16-mixed" else WIDE


@dataclass(frozen=True)
class Estimate:
    """Bytes: the first six on the device of every rank, `host` more in host memory; of files the last two."""

    weights: int
    gradients: int
    optimizer: int
    average: int
    activations: int
    working: int
    host: int
    save: int
    checkpoint: int

    @property
    def device(self) -> int:
        """All that a rank's device holds at the worst moment of a step."""
        return self.weights + self.gradients + self.optimizer + self.average + self.activations + self.working


def parameters(model, task, units: Vocabulary, sessions: Vocabulary, dims: int) -> dict[str, torch.Size]:
    """Shapes of all parameters, by the names they have in a training; `model` and `task` are configurations.

    Built without memory, so that what is counted here is what will be trained.
    """
    with torch.device("meta"):
        built = MODELS[model.name][1](model, units, sessions)
        parts = {"model": built, "task": TASKS[task.name][1](task, built.width, dims)}
    return {
        f"{part}.{name}": weight.shape for part, module in parts.items() for name, weight in module.named_parameters()
    }


def memory(model: PoyoConfig, shapes: dict[str, torch.Size], load: Load, setup: Setup) -> Estimate:
    """The need of a rank that trains `parameters` on parts of a batch like `load`.

    The checkpoint is counted without the names that it holds (see `names_bytes`).
    """
    whole = sum(map(math.prod, shapes.values()))
    mine = sum(-(-math.prod(shape) // setup.world) for shape in shapes.values()) if setup.stage else whole
    states, master = _states(setup.optim, shapes, mine), WIDE * mine if setup.stage else 0
    weights = WIDE * (mine if setup.stage == 3 else whole)
    gradients = WIDE * _gradient_numbers(setup, whole, mine)
    gathered = WIDE * whole if setup.stage == 3 else 0
    strategy, host = setup.strategy, 0
    if strategy.offload_optimizer:
        states, master, host = 0, 0, states + master
    if strategy.offload_parameters:
        weights, host = 0, host + weights
    averages = bool(setup.optim.average)
    return Estimate(
        weights=weights + master,
        gradients=gradients,
        optimizer=states,
        average=averages * WIDE * (mine if setup.stage == 3 else whole),
        activations=activations(model, load, setup) + _rounded_weights(shapes, setup),
        working=working(model, load, setup) + gathered,
        host=host,
        save=WIDE * whole * (1 + averages) + _states(setup.optim, shapes, whole),
        checkpoint=WIDE * whole,
    )


def names_bytes(units: Vocabulary, sessions: Vocabulary) -> int:
    """Bytes of the names in a checkpoint's JSON."""
    return len(json.dumps([units.ids, sessions.ids], indent=1))


def activations(model: PoyoConfig, load: Load, setup: Setup) -> int:
    """Bytes that the forward pass of a part keeps; the formula is in the opening of this file."""
    e, m, latents = setup.number, _mask(setup), _latents(model, load)
    width, inner, self_inner = model.width, model.cross_heads * model.head_width, model.self_heads * model.head_width
    turn, norm = 4 * model.head_width, 4 * width + 8 + width * e
    ff = norm + 4 * model.ff_multiple * width * e + model.ff_multiple * width * m * (model.ff_dropout > 0)
    ends = 4 * model.cross_heads
    token = 8 + turn + 2 * inner * e
    latent = turn + 3 * inner * e + ends + ff + norm + 3 * inner * e
    layer = norm + 5 * self_inner * e + 4 * model.self_heads + ff + 2 * width * m * (model.residual_dropout > 0)
    query = 8 + turn + 3 * inner * e + ends + ff + width * e + 4 * load.dims
    kept = load.tokens * token + latents * (latent + model.depth * layer) + load.queries * query
    return kept + _plain_attention(model, load, setup)


def working(model: PoyoConfig, load: Load, setup: Setup) -> int:
    """Bytes of room that the widest layer works in, beside what is kept."""
    e, inner = setup.number, model.cross_heads * model.head_width
    drops = setup.device == "cpu" and model.attention_dropout > 0
    token = 2 * inner * e + (8 * inner if e < WIDE else 4 * inner if drops else 0)
    row = 3 * model.ff_multiple * model.width * e
    latents = _latents(model, load)
    probabilities = WIDE * model.self_heads * latents * latents // max(load.windows, 1) * drops
    return max(load.tokens * token, max(latents, load.queries) * row, probabilities)


def _latents(model: PoyoConfig, load: Load) -> int:
    return load.windows * round(load.window_s / model.latent_step_s) * model.latents_per_step


def _mask(setup: Setup) -> int:
    return setup.number if setup.device == "cpu" else 1


def _plain_attention(model: PoyoConfig, load: Load, setup: Setup) -> int:
    """What attention keeps more on a CPU where it drops, which leads torch to its plain way."""
    if setup.device != "cpu" or not model.attention_dropout:
        return 0
    latents, windows = _latents(model, load), max(load.windows, 1)
    return sum(
        times * _plain_more(heads, model.head_width, setup.number, queries, keys, windows)
        for times, heads, queries, keys in (
            (1, model.cross_heads, latents, load.tokens),
            (model.depth, model.self_heads, latents, latents),
            (1, model.cross_heads, load.queries, latents),
        )
    )


def _plain_more(heads: int, head_width: int, e: int, queries: int, keys: int, windows: int) -> int:
    """Probabilities, what was dropped of them, and what is left, float32 all; rounded numbers widened; but no output."""
    inner = heads * head_width
    widened = (WIDE - e) * inner * (queries + 2 * keys)
    return 3 * WIDE * heads * queries * keys // windows + widened - queries * (inner * e + 4 * heads)


def _rounded_weights(shapes: dict[str, torch.Size], setup: Setup) -> int:
    if setup.number == WIDE:
        return 0
    return setup.number * sum(math.prod(shape) for name, shape in shapes.items() if ".to_" in name or "ward." in name)


def _gradient_numbers(setup: Setup, whole: int, mine: int) -> int:
    if not setup.stage:
        return whole * (1 + DDP_BUCKETS * (setup.world > 1))
    return mine + BUCKET + (whole if setup.stage == 1 else 0)


def _states(optim: OptimConfig, shapes: dict[str, torch.Size], numbers: int) -> int:
    """Bytes of the optimiser's state: two moments, and AdamW's counter of steps of each tensor."""
    if optim.name not in ("adamw", "lamb"):
        raise ConfigError("optim.name", f"{optim.name!r} is not an optimiser here", "take lamb or adamw")
    return WIDE * (2 * numbers + (len(shapes) if optim.name == "adamw" else 0))
