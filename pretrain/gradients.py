"""A loss and the parts of a model -> how strongly, and how surely, each part is pulled; how far a step moved it."""

from collections.abc import Callable, Iterable

import torch
from torch import nn

from pretrain.anatomy import Measured
from pretrain.module import DecodingModule
from pretrain.nn.attention import CrossAttention, SelfAttention
from sharding.batch import Batch

Part = list[tuple[nn.Parameter, slice]]  # weights, and which of their rows


def parts_of(module: DecodingModule) -> dict[str, Part]:
    """The weights of every block of a Poyo and its readout; the few of token kinds are left out.

    Of attentions also "BLOCK, where": projections to queries and keys, and "BLOCK, what": to values and outputs.
    """
    model = module.model
    blocks: dict[str, nn.Module] = {
        "unit embedding": model.unit,
        "encoder": model.encoder,
        "encoder ff": model.encoder_ff,
    }
    blocks |= {f"layer {number}": layer for number, layer in enumerate(model.layers, 1)}
    blocks |= {"session embedding": model.session, "decoder": model.decoder, "decoder ff": model.decoder_ff}
    blocks |= {"readout": module.task}
    parts = {name: [(weight, slice(None)) for weight in block.parameters()] for name, block in blocks.items()}
    parts |= {"latent": [(model.latent, slice(None))]}
    for name, block in blocks.items():
        for attention in block.modules():
            if isinstance(attention, (CrossAttention, SelfAttention)):
                parts |= {f"{name}, where": _where(attention), f"{name}, what": _what(attention)}
    return {name: part for name, part in parts.items() if part}


def _where(attention: CrossAttention | SelfAttention) -> Part:
    if isinstance(attention, CrossAttention):
        half = len(attention.to_kv.weight) // 2
        return [(attention.to_q.weight, slice(None)), (attention.to_kv.weight, slice(half))]
    return [(attention.to_qkv.weight, slice(len(attention.to_qkv.weight) // 3 * 2))]


def _what(attention: CrossAttention | SelfAttention) -> Part:
    out = [(weight, slice(None)) for weight in attention.to_out.parameters()]
    if isinstance(attention, CrossAttention):
        return [(attention.to_kv.weight, slice(len(attention.to_kv.weight) // 2, None)), *out]
    return [(attention.to_qkv.weight, slice(len(attention.to_qkv.weight) // 3 * 2, None)), *out]


def measured_gradients(
    loss_of: Callable[[int, Batch], torch.Tensor], parts: dict[str, Part], batches: Iterable[Batch]
) -> Measured:
    """Root mean square over batches of each part's gradient norm, and the share of its square that batches agree on.

    `loss_of(number, batch)` gives the loss. The share is |mean gradient|^2 / mean |gradient|^2 without bias: 1 where all
    batches pull alike, 0 where they pull at random (it may fall below 0 by chance); NaN for a single batch.
    """
    total: dict[str, list[torch.Tensor]] = {}
    square, count = dict.fromkeys(parts, 0.0), 0
    for count, batch in enumerate(batches, 1):
        for part in parts.values():
            for weight, _ in part:
                weight.grad = None
        loss_of(count - 1, batch).backward()
        for name, part in parts.items():
            pulled = [_gradient(weight)[rows].clone() for weight, rows in part]
            square[name] += _square(pulled)
            total[name] = [a + b for a, b in zip(total[name], pulled)] if name in total else pulled
    out: Measured = []
    for name in parts:
        out.append((name, "gradient norm", (square[name] / count) ** 0.5))
        agreed = (_square(total[name]) - square[name]) / max(count - 1, 1)
        known = count > 1 and square[name] > 0
        out.append((name, "gradient agreement", agreed / square[name] if known else float("nan")))
    return out


def _gradient(weight: nn.Parameter) -> torch.Tensor:
    return weight.grad if weight.grad is not None else torch.zeros_like(weight)


def _square(tensors: list[torch.Tensor]) -> float:
    return float(sum(tensor.detach().double().square().sum() for tensor in tensors))


class Moved:
    """Weights as they are now; `measured()` later tells how far each part has gone since, relative to where it was.

    NaN for a part whose weights were all zero.
    """

    def __init__(self, parts: dict[str, Part]):
        self.parts = parts
        self.before = {name: [weight.detach()[rows].clone() for weight, rows in part] for name, part in parts.items()}

    def measured(self) -> Measured:
        out: Measured = []
        for name, part in self.parts.items():
            step = _square([weight.detach()[rows] - old for (weight, rows), old in zip(part, self.before[name])])
            size = _square(self.before[name])
            out.append((name, "update / weight", (step / size) ** 0.5 if size else float("nan")))
        return out
