"""Embedding table that grows with a Vocabulary; row 0 stands for nothing, is zero and gets no gradient."""

import torch
from torch import nn
from torch.nn.functional import embedding


class GrowingTable(nn.Module):
    """`weight` (E, D); rows from 1 are drawn from N(0, std^2)."""

    def __init__(self, rows: int, width: int, std: float):
        super().__init__()
        self.std = std
        self.weight = nn.Parameter(torch.zeros(1, width))
        self.grow(rows)

    def grow(self, rows: int) -> None:
        """Add fresh rows up to `rows` in all; the old ones keep every bit."""
        fresh = self.weight.new_empty(rows - len(self.weight), self.weight.shape[1]).normal_(0.0, self.std)
        self.weight = nn.Parameter(torch.cat((self.weight.detach(), fresh)), requires_grad=self.weight.requires_grad)

    def forward(self, row: torch.Tensor) -> torch.Tensor:
        """Rows (..., D) for indices (...)."""
        return embedding(row, self.weight, padding_idx=0)
