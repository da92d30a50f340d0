"""The one door to attention: packed queries and keys of many windows in, packed outputs out, whatever backend runs.

Dimension letters are those of sharding/batch.py: Q packed queries, S packed keys, N heads, H head width.
"""

from collections.abc import Sequence

import torch
from torch import nn

from pretrain.nn.rotary import rotate
from pretrain.nn.sdpa import sdpa


def attend(
    q_QNH, k_SNH, v_SNH, q_lengths: Sequence[int], k_lengths: Sequence[int], dropout: float = 0.0
) -> torch.Tensor:
    """Softmax attention inside each window, scale 1/sqrt(H); returns (Q, N, H).

    q (Q, N, H), k and v (S, N, H) hold the windows end to end; `q_lengths` and `k_lengths` (B each) sum to Q and S.
    A window without keys gives zeros. `dropout` acts on the attention probabilities.
    """
    return sdpa(q_QNH, k_SNH, v_SNH, q_lengths, k_lengths, dropout)


class CrossAttention(nn.Module):
    """Queries attend to a context of another length, with rotary time (POYO: encoder and decoder).

    Content and time are kept apart: `query` and `context` project distinct contents once, `forward` gathers them for
    every token and turns them by their times. The result equals projecting each token by itself.
    """

    def __init__(self, width: int, heads: int, head_width: int, dropout: float, rotate_values: bool):
        super().__init__()
        self.heads, self.dropout, self.rotate_values = heads, dropout, rotate_values
        inner = heads * head_width
        self.norm, self.norm_context = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width)

    def query(self, x_ED: torch.Tensor) -> torch.Tensor:
        """Query contents (E, N, H) of distinct rows (E, D)."""
        return self.to_q(self.norm(x_ED)).unflatten(-1, (self.heads, -1))

    def context(self, x_ED: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Key and value contents, each (E, N, H), of distinct rows (E, D)."""
        k_ED, v_ED = self.to_kv(self.norm_context(x_ED)).chunk(2, dim=-1)
        return k_ED.unflatten(-1, (self.heads, -1)), v_ED.unflatten(-1, (self.heads, -1))

    @torch.no_grad()
    def start_local(self, logit: float, periods_P: torch.Tensor, shortest_s: float) -> None:
        """Give queries and keys a common part, so that attention starts near a query's own time.

        The common part is a vector on the turning channels with periods of at least `shortest_s`, reached through the
        biases of the two layer norms: a norm's output is orthogonal to the all-ones direction that carries it, so contents
        are untouched. The attention logit becomes `logit` at equal times and falls off with the time difference.
        """
        slow_P = (periods_P >= shortest_s).to(self.to_q.weight.dtype)
        head_width = self.to_q.weight.shape[0] // self.heads
        common_NH = torch.zeros(self.heads, head_width)
        common_NH[:, 0 : 2 * len(slow_P) : 2] = slow_P / slow_P.sum().sqrt()
        width = self.norm.normalized_shape[0]
        ones_D = torch.full((width,), width**-0.5)
        part = (logit * head_width**0.5) ** 0.5 * torch.outer(common_NH.flatten(), ones_D)
        for norm in (self.norm, self.norm_context):
            norm.bias.copy_(ones_D)
        self.to_q.weight.add_(part)
        self.to_kv.weight[: len(part)].add_(part)

    @torch.no_grad()
    def start_calibrated(self, output_RD: torch.Tensor) -> None:
        """Shift and scale the output projection so that the outputs (R, D) it gave would have had mean 0 and sd 1."""
        mean_D, sd_D = output_RD.mean(dim=0), output_RD.std(dim=0).clamp_min(1e-6)
        self.to_out.weight.div_(sd_D[:, None])
        self.to_out.bias.sub_(mean_D).div_(sd_D)

    def forward(self, q_QNH, k_SNH, v_SNH, q_turn, k_turn, q_lengths, k_lengths) -> torch.Tensor:
        """Outputs (Q, D) for queries (Q, N, H), keys and values (S, N, H), and RotaryTime's turns of both."""
        q, k = rotate(q_QNH, q_turn), rotate(k_SNH, k_turn)
        v = rotate(v_SNH, k_turn) if self.rotate_values else v_SNH
        out = attend(q, k, v, q_lengths, k_lengths, self.dropout if self.training else 0.0)
        if self.rotate_values:
            out = rotate(out, q_turn, back=True)
        return self.to_out(out.flatten(-2))


class SelfAttention(nn.Module):
    """Tokens of a window attend to each other, with rotary time and rotated values (POYO: processing layers)."""

    def __init__(self, width: int, heads: int, head_width: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm = nn.LayerNorm(width)
        self.to_qkv = nn.Linear(width, 3 * heads * head_width, bias=False)
        self.to_out = nn.Linear(heads * head_width, width)

    def forward(self, x_SD: torch.Tensor, turn, lengths: Sequence[int]) -> torch.Tensor:
        """Outputs (S, D) for tokens (S, D); `turn` are RotaryTime's turns, `lengths` the tokens of each window."""
        q, k, v = self.to_qkv(self.norm(x_SD)).unflatten(-1, (3, self.heads, -1)).unbind(1)
        q, k, v = rotate(q, turn), rotate(k, turn), rotate(v, turn)
        out = attend(q, k, v, lengths, lengths, self.dropout if self.training else 0.0)
        return self.to_out(rotate(out, turn, back=True).flatten(-2))
