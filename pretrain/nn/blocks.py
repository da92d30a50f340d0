"""Feed-forward block with a gated activation, as POYO uses it after every attention."""

import torch
from torch import nn
from torch.nn.functional import gelu


class FeedForward(nn.Module):
    """LayerNorm, Linear to twice `multiple` widths, half of it gating the other by gelu, dropout, Linear back."""

    def __init__(self, width: int, multiple: int, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inward = nn.Linear(width, 2 * multiple * width)
        self.dropout = nn.Dropout(dropout)
        self.outward = nn.Linear(multiple * width, width)

    def forward(self, x_SD: torch.Tensor) -> torch.Tensor:
        """Outputs (S, D) for rows (S, D)."""
        value, gate = self.inward(self.norm(x_SD)).chunk(2, dim=-1)
        return self.outward(self.dropout(value * gelu(gate)))
