"""Batch: windows packed end to end, without padding; the one thing a model reads.

THE dimension legend, used in sharding/batch.py, nn/, models/ and tasks/ (a tensor's name ends in its letters):

    B windows   S packed spike tokens   Q packed queries   L latents of a window   T time bins   U units
    D width     N heads                 H head width       K target dimensions     E embedding rows
"""

from dataclasses import dataclass, fields, replace

import torch


@dataclass(frozen=True)
class Batch:
    """B windows. Times are float32 seconds from the window's start; tokens of a window lie together, as do queries."""

    token_time_S: torch.Tensor  # float32
    token_unit_S: torch.Tensor  # int64 row of the unit vocabulary
    token_kind_S: torch.Tensor  # int64: tokens.SPIKE, UNIT_START, UNIT_END
    token_length_B: torch.Tensor  # int64, tokens of each window; sums to S
    query_time_Q: torch.Tensor  # float32
    query_session_Q: torch.Tensor  # int64 row of the session vocabulary
    query_length_B: torch.Tensor  # int64, queries of each window; sums to Q
    target_QK: torch.Tensor  # float32, normalised: (value - mean) / scale of the session's TargetStatistics
    weight_Q: torch.Tensor  # float32 >= 0, loss weight from the phase of the sample
    evaluated_Q: torch.Tensor  # bool, whether the sample lies in an evaluation phase
    stamp_Q: torch.Tensor  # int64 microseconds on the session's clock, exact: stitching goes by this
    session_B: torch.Tensor  # int64 row of the session vocabulary
    place_B: torch.Tensor  # int64, where each window stands in its plan (plan.WindowTable): what can be replayed
    window_s: float  # length of every window, seconds
    number: int = 0  # of the global batch that this is a share of, or all of
    stop: int = 0  # the place in the plan at which the next global batch begins: where a resumed run goes on

    def __reduce__(self):
        """Cross to another process as one tensor: every tensor of its own costs a file descriptor and a handshake."""
        parts, layout = [], []
        for tensor in self.tensors().values():
            raw = tensor.contiguous().reshape(-1).view(torch.uint8)
            parts += [raw, raw.new_zeros(-len(raw) % 8)]  # a view of wider numbers must begin at a multiple of them
            layout.append((tensor.dtype, tuple(tensor.shape), len(raw)))
        return _rebuilt, (torch.cat(parts), tuple(layout), (self.window_s, self.number, self.stop))

    def tensors(self) -> dict[str, torch.Tensor]:
        """All tensors by name; the other fields are plain numbers."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.type is torch.Tensor}

    def to(self, device) -> "Batch":
        return replace(self, **{name: t.to(device, non_blocking=True) for name, t in self.tensors().items()})

    def pin_memory(self) -> "Batch":
        return replace(self, **{name: tensor.pin_memory() for name, tensor in self.tensors().items()})

    def __len__(self) -> int:
        return len(self.token_length_B)


def _rebuilt(raw: torch.Tensor, layout: tuple, numbers: tuple) -> Batch:
    tensors, at = [], 0
    for dtype, shape, length in layout:
        tensors.append(raw[at : at + length].view(dtype).reshape(shape))
        at += length + -length % 8
    return Batch(*tensors, *numbers)
