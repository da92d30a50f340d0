"""Rotary time: turns a token's time into a rotation of its channels, so that attention sees time differences.

Only the first half of a head's channels turns, in adjacent pairs (2i, 2i+1) at log-spaced periods; the rest stays (POYO:
head width 64, 16 periods from 0.1 ms to 2.06 s). Angles are float32 whatever the autocast dtype. A pair is handled as one
complex number: one multiplication a pair, on a CPU eight times faster than sines and cosines on strided halves.
"""

import math

import torch
from torch import nn


class RotaryTime(nn.Module):
    """Turns for times, at head_width / 4 periods from `min_period_s` to `max_period_s`, log-spaced, both included."""

    def __init__(self, head_width: int = 64, min_period_s: float = 1e-4, max_period_s: float = 2.0627):
        super().__init__()
        pairs = head_width // 4
        periods = torch.logspace(math.log10(min_period_s), math.log10(max_period_s), pairs, dtype=torch.float64)
        self.register_buffer("period_P", periods.float(), persistent=False)
        self.register_buffer("omega_P", (2 * math.pi / periods).float(), persistent=False)

    def forward(self, time_S: torch.Tensor) -> torch.Tensor:
        """exp(i omega t), complex64 (S, H/2), for times (S,) in seconds; 1 for the pairs that do not turn."""
        angle_SP = time_S.to(self.omega_P.dtype)[:, None] * self.omega_P
        angle_SH = torch.cat((angle_SP, torch.zeros_like(angle_SP)), dim=-1)
        return torch.polar(torch.ones_like(angle_SH), angle_SH)


def rotate(x_SNH: torch.Tensor, turn_SH: torch.Tensor, back: bool = False) -> torch.Tensor:
    """Turn every head of x (S, N, H) by the turns (S, H/2) of its token; `back` turns the other way.

    Returns (S, N, H) in the dtype of x; computed in float32 or wider.
    """
    turn_SNH = (turn_SH.conj() if back else turn_SH)[:, None]
    wide_SNH = x_SNH if x_SNH.dtype in (torch.float32, torch.float64) else x_SNH.float()
    turned = torch.view_as_complex(wide_SNH.unflatten(-1, (-1, 2))) * turn_SNH
    return torch.view_as_real(turned).flatten(-2).to(x_SNH.dtype)
