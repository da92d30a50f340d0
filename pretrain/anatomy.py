"""A Poyo model and batches -> what happens inside it: where attention looks, what its latents hold, what a step moves.

Everything is read through forward hooks; the model knows nothing of it. Blocks are named in the order of the model:
"encoder", "layer 1" ..., "decoder" hold attentions; latents are seen after the "encoder attention", after the "encoder"
(its feed-forward added) and after every layer, a query's row after the "decoder attention" and after the "decoder".
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from pretrain.metrics import mean_of_defined, r2
from pretrain.models.poyo import Poyo
from pretrain.module import DecodingModule
from pretrain.nn.attention import CrossAttention, SelfAttention
from pretrain.nn.rotary import rotate
from pretrain.probe import Rows, effective_rank, moments, probe_r2
from pretrain.stitch import Stitcher
from sharding.batch import Batch

Measured = list[tuple[str, str, float]]  # block, quantity, value
MODEL = "model"  # the block of what concerns all of it


# ------------------------------------------------------------------------------------------------ attention


def cross_probabilities(
    attention: CrossAttention, q_QNH, k_SNH, v_SNH, q_turn, k_turn, q_lengths, k_lengths
) -> Iterator[torch.Tensor]:
    """Probabilities (N, q, k) of every window, for what CrossAttention.forward takes; without dropout."""
    return _softmax(rotate(q_QNH, q_turn), rotate(k_SNH, k_turn), q_lengths, k_lengths)


def self_probabilities(attention: SelfAttention, x_SD: torch.Tensor, turn, lengths) -> Iterator[torch.Tensor]:
    """Probabilities (N, s, s) of every window, for what SelfAttention.forward takes; without dropout."""
    q, k, _ = attention.to_qkv(attention.norm(x_SD)).unflatten(-1, (3, attention.heads, -1)).unbind(1)
    return _softmax(rotate(q, turn), rotate(k, turn), lengths, lengths)


def _softmax(q_QNH, k_SNH, q_lengths: Sequence[int], k_lengths: Sequence[int]) -> Iterator[torch.Tensor]:
    for q, k in zip(q_QNH.split(list(q_lengths)), k_SNH.split(list(k_lengths))):
        yield (torch.einsum("qnh,knh->nqk", q, k) / q.shape[-1] ** 0.5).softmax(dim=-1)


@dataclass
class Attended:
    """Sums over queries of one block's attention: entropy (N,), span (N,) s, and the span a uniform one would have, s."""

    entropy: torch.Tensor | float = 0.0
    span_s: torch.Tensor | float = 0.0
    uniform_s: float = 0.0
    queries: int = 0

    def add(self, p_Nqk: torch.Tensor, q_time: torch.Tensor, k_time: torch.Tensor) -> None:
        """Take in a window; one of fewer than two keys leaves no choice and is passed over."""
        if p_Nqk.shape[-1] < 2 or not p_Nqk.shape[1]:
            return
        distance_qk = (q_time[:, None] - k_time).abs().to(p_Nqk.dtype)
        self.entropy = self.entropy + relative_entropy(p_Nqk).sum(dim=-1)
        self.span_s = self.span_s + torch.einsum("nqk,qk->n", p_Nqk, distance_qk)
        self.uniform_s += float(distance_qk.mean(dim=-1).sum())
        self.queries += len(q_time)

    def measured(self, block: str) -> Measured:
        if not self.queries:
            return []
        entropy_N, span_N = self.entropy / self.queries, self.span_s / self.queries
        named = {
            "attention entropy": entropy_N.mean(),
            "attention entropy, lowest head": entropy_N.min(),
            "attention entropy, highest head": entropy_N.max(),
            "attention span (s)": span_N.mean(),
            "attention span if uniform (s)": self.uniform_s / self.queries,
        }
        return [(block, quantity, float(value)) for quantity, value in named.items()]


def relative_entropy(p_Nqk: torch.Tensor) -> torch.Tensor:
    """Entropy (N, q) of probabilities (N, q, k) over log k: 1 is uniform, 0 is one key."""
    return torch.special.entr(p_Nqk).sum(dim=-1) / math.log(p_Nqk.shape[-1])


# ------------------------------------------------------------------------------------------------ a look inside


@dataclass
class Look:
    """What was seen in some windows, batch after batch: attention by block, rows (float32) by depth, the samples."""

    attended: dict[str, Attended] = field(default_factory=dict)
    latent: dict[str, list[np.ndarray]] = field(default_factory=dict)  # each (windows, steps, latents, D)
    query: dict[str, list[np.ndarray]] = field(default_factory=dict)  # each (Q, D)
    samples: list[tuple[np.ndarray, ...]] = field(default_factory=list)  # window, step, target, weight, evaluated
    r2: float = float("nan")

    def measured_attention(self) -> Measured:
        return [row for block, attended in self.attended.items() for row in attended.measured(block)]

    def _sampled(self) -> tuple[np.ndarray, ...]:
        return tuple(np.concatenate(column) for column in zip(*self.samples))

    def rows(self, block: str, judged: bool) -> Rows:
        """What a probe reads at that depth: for a sample at time t all latents of the step nearest to t, end to end.

        Samples weigh as in the loss, or 1 where they are evaluated (`judged`).
        """
        window, step, target, weight, evaluated = self._sampled()
        weight = evaluated.astype(np.float64) if judged else weight
        if block in self.query:
            return Rows(np.concatenate(self.query[block]), np.arange(len(window)), target, weight)
        z = np.concatenate(self.latent[block])
        return Rows(z.reshape(z.shape[0] * z.shape[1], -1), window * z.shape[1] + step, target, weight)

    def measured_rows(self) -> Measured:
        """Moments and effective ranks of every depth."""
        out: Measured = []
        for block, parts in self.latent.items():
            z = np.concatenate(parts)
            windows, steps, latents, width = z.shape
            window, step, latent = (at.ravel() for at in np.indices((windows, steps, latents)))
            rows, moved = _spread(block, z.reshape(-1, width), step * latents + latent, window * latents + latent)
            moved = moved.reshape(windows * steps, latents, width)
            common = np.square(moved.mean(axis=1)).sum() * latents
            out += [*rows, (block, "latents alike", float(common / max(np.square(moved).sum(), 1e-300)))]
        window, step = self._sampled()[:2]
        for block, parts in self.query.items():
            out += _spread(block, np.concatenate(parts), step, window)[0]
        return out


def _spread(block: str, x_RD: np.ndarray, place_R, window_R) -> tuple[Measured, np.ndarray]:
    shares, moved_RD = moments(x_RD, place_R, window_R)
    named = {
        "share constant": shares.constant,
        "share fixed by place": shares.fixed,
        "share between windows": shares.windows,
        "share within windows": shares.times,
        "share moved by spikes": shares.moved,
        "rms": float(np.sqrt(np.square(x_RD, dtype=np.float64).mean())),
        "effective rank": effective_rank(x_RD),
        "effective rank of what spikes move": effective_rank(moved_RD),
    }
    return [(block, quantity, value) for quantity, value in named.items()], moved_RD


@torch.no_grad()
def look(
    module: DecodingModule, batches: Iterable[Batch], stitcher: Stitcher | None = None, attention: bool = True
) -> Look:
    """Run the batches through the model in evaluation mode and keep what is seen.

    With a stitcher the model's own R2 is taken, mean over sessions, on evaluated samples. Without `attention` no
    probabilities are computed: rows alone.
    """
    seen, training, model = Look(), module.training, module.model
    module.eval()
    windows = 0
    for batch in batches:
        batch = batch.to(module.device)
        with _recording(model, seen, batch, attention):
            value_QK = module(batch)
        seen.samples.append(_samples(batch, windows, model.config.latent_step_s))
        windows += len(batch)
        if stitcher is not None:
            stitcher.add(batch, value_QK)
    module.train(training)
    if stitcher is not None:
        told = [r2(p.target[p.evaluated], p.value[p.evaluated]) for p in stitcher.predictions()]
        seen.r2 = mean_of_defined(told)
    return seen


def _samples(batch: Batch, first_window: int, step_s: float) -> tuple[np.ndarray, ...]:
    window = torch.arange(len(batch), device=batch.query_length_B.device).repeat_interleave(batch.query_length_B)
    last = round(batch.window_s / step_s) - 1
    step = (batch.query_time_Q / step_s).long().clamp(0, last)  # latents stand at step centres
    parts = (window + first_window, step, batch.target_QK, batch.weight_Q, batch.evaluated_Q)
    return tuple(part.cpu().numpy() for part in parts)


@contextmanager
def _recording(model: Poyo, seen: Look, batch: Batch, attention: bool) -> Iterator[None]:
    """Hooks that write one batch into a Look."""
    times: list[tuple[torch.Tensor, torch.Tensor]] = []  # turns and the times they were made of
    shape = (len(batch), round(batch.window_s / model.config.latent_step_s), len(model.latent), model.width)

    def keep(into: dict[str, list[np.ndarray]], block: str, x: torch.Tensor) -> None:
        x = x.unflatten(0, shape[:3]) if into is seen.latent else x
        into.setdefault(block, []).append(x.float().cpu().numpy())

    def fed(into, block):
        def hook(_module, inputs, output):
            keep(into, f"{block} attention", inputs[0])
            keep(into, block, inputs[0] + output)

        return hook

    def attended(block: str, probabilities: Callable[..., Iterator[torch.Tensor]]):
        def hook(module, inputs, _output):
            turns, lengths = _split(inputs)
            q_time, k_time = (next(time for turn, time in times if turn is wanted) for wanted in turns)
            total = seen.attended.setdefault(block, Attended())
            sides = (q_time.split(list(lengths[0])), k_time.split(list(lengths[1])))
            for p_Nqk, q, k in zip(probabilities(module, *inputs), *sides):
                total.add(p_Nqk, q, k)

        return hook

    with ExitStack() as stack:

        def at(module: nn.Module, hook) -> None:
            stack.callback(module.register_forward_hook(hook).remove)

        at(model.rotary, lambda _module, inputs, output: times.append((output, inputs[0])))
        at(model.encoder_ff, fed(seen.latent, "encoder"))
        at(model.decoder_ff, fed(seen.query, "decoder"))
        for number, layer in enumerate(model.layers, 1):
            at(layer, lambda _m, _i, output, block=f"layer {number}": keep(seen.latent, block, output))
        if attention:
            at(model.encoder, attended("encoder", cross_probabilities))
            for number, layer in enumerate(model.layers, 1):
                at(layer.attention, attended(f"layer {number}", self_probabilities))
            at(model.decoder, attended("decoder", cross_probabilities))
        yield


def _split(inputs: tuple) -> tuple[tuple, tuple]:
    """Turns and lengths of queries and keys among an attention's inputs."""
    if len(inputs) == 3:
        return (inputs[1], inputs[1]), (inputs[2], inputs[2])
    return inputs[3:5], inputs[5:7]


def measured_probes(train: Look, valid: Look) -> Measured:
    """R2 on valid windows of a linear probe of every depth, fitted on train windows; all sessions together."""
    blocks = [*valid.latent, *valid.query]
    return [(block, "probe R2", probe_r2(train.rows(block, False), valid.rows(block, True))) for block in blocks]
