"""Rotary time: turns a token's time into a rotation of its channels, so that attention sees time differences.

Only the first channels of a head turn, in adjacent pairs (2i, 2i+1) at log-spaced periods; the rest stay (POYO, section 2
of the authors' description: head width 64, 16 periods from 0.1 ms to 2.06 s). Angles are float32 whatever the autocast dtype.
"""

import math

import torch
from torch import nn


class RotaryTime(nn.Module):
    """Angles for times, at `pairs` periods from `min_period_s` to `max_period_s`, log-spaced, both included."""

    def __init__(self, pairs: int = 16, min_period_s: float = 1e-4, max_period_s: float = 2.0627):
        super().__init__()
        periods = torch.logspace(math.log10(min_period_s), math.log10(max_period_s), pairs, dtype=torch.float64)
        self.register_buffer("period_P", periods.float(), persistent=False)
        self.register_buffer("omega_P", (2 * math.pi / periods).float(), persistent=False)

    def forward(self, time_S: torch.Tensor) -> torch.Tensor:
        """cos and sin (2, S, pairs) float32 of the angles for times (S,) in seconds."""
        with torch.autocast(time_S.device.type, enabled=False):
            angle_SP = time_S.float()[:, None] * self.omega_P
            return torch.stack((angle_SP.cos(), angle_SP.sin()))


def rotate(x_SNH: torch.Tensor, turn_2SP: torch.Tensor, back: bool = False) -> torch.Tensor:
    """Rotate the first 2P channels of every head by the token's angles; `back` turns the other way.

    x (S, N, H), turn (2, S, P) from RotaryTime; returns (S, N, H) in the dtype of x.
    """
    cos_SNP, sin_SNP = turn_2SP[0][:, None], turn_2SP[1][:, None]
    if back:
        sin_SNP = -sin_SNP
    turning = 2 * turn_2SP.shape[-1]
    a_SNP, b_SNP = x_SNH[..., 0:turning:2], x_SNH[..., 1:turning:2]
    turned = torch.stack((a_SNP * cos_SNP - b_SNP * sin_SNP, b_SNP * cos_SNP + a_SNP * sin_SNP), dim=-1)
    return torch.cat((turned.flatten(-2).to(x_SNH.dtype), x_SNH[..., turning:]), dim=-1)
