"""Batch: windows packed end to end, without padding; the one thing a model reads.

THE dimension legend, used in sharding/batch.py, nn/, models/ and tasks/ (a tensor's name ends in its letters):

    B windows   S packed spike tokens   Q packed queries   L latents of a window   T time bins   U units
    D width     N heads                 H head width       K target dimensions     E embedding rows
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from sharding.batches import all_shares

ALIGNED = 64  # bytes: the tensors of a batch begin at multiples of them in the storage that all share
DTYPES = {
    "token_time_S": torch.float32,
    "token_unit_S": torch.int64,
    "token_kind_S": torch.int64,
    "token_length_B": torch.int64,
    "query_time_Q": torch.float32,
    "query_session_Q": torch.int64,
    "query_length_B": torch.int64,
    "target_QK": torch.float32,
    "weight_Q": torch.float32,
    "evaluated_Q": torch.bool,
    "stamp_Q": torch.int64,
    "session_B": torch.int64,
    "place_B": torch.int64,
}


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
    windows: int = 0  # of the whole global batch; more than there are here where this is a share or a part of it
    idle: bool = False  # the window here is another share's or part's, and counts for nothing: all its weights are 0

    @staticmethod
    def blank(windows: int, tokens: int, queries: int, dims: int, *numbers) -> "Batch":
        """A batch of these sizes whose numbers are still to be written, all in one storage: one copy, one pin moves it.

        numbers: window_s, number, stop, windows and idle, as above.
        """
        sizes = {"B": (windows,), "S": (tokens,), "Q": (queries,), "QK": (queries, dims)}
        layout, at = [], 0
        for name, dtype in DTYPES.items():
            shape = sizes[name.rpartition("_")[2]]
            layout.append((dtype, shape, at))
            at += _rounded(dtype.itemsize * math.prod(shape))
        memory = np.empty(at or ALIGNED, np.uint8)  # in huge pages where it is large, which torch would not ask for
        return Batch(*_views(torch.from_numpy(memory), layout), *numbers)

    def __reduce__(self):
        """Cross to another process as one tensor: every tensor of its own costs a file descriptor and a handshake."""
        return _rebuilt, (*self._whole(), self._numbers())

    def tensors(self) -> dict[str, torch.Tensor]:
        """All tensors by name; the other fields are plain numbers."""
        return {name: getattr(self, name) for name in DTYPES}

    def to(self, device) -> "Batch":
        whole, layout = self._whole()
        return _rebuilt(whole.to(device, non_blocking=True), layout, self._numbers())

    def pin_memory(self) -> "Batch":
        whole, layout = self._whole()
        return _rebuilt(whole.pin_memory(), layout, self._numbers())

    def __len__(self) -> int:
        return len(self.token_length_B)

    def selected(self, rows) -> "Batch":
        """The windows in rows (b,), in that order; everything else stays."""
        row_B = torch.as_tensor(rows, dtype=torch.int64, device=self.place_B.device)
        row = {"B": row_B, "S": _within(self.token_length_B, row_B), "Q": _within(self.query_length_B, row_B)}
        row["QK"] = row["Q"]
        chosen = {name: tensor[row[name.rpartition("_")[2]]] for name, tensor in self.tensors().items()}
        return replace(self, **chosen)

    def idled(self) -> "Batch":
        """The first window alone, weighing nothing: for a rank or a part that has none, to do what the others do."""
        alone = self.selected([0])
        nothing = {"weight_Q": torch.zeros_like(alone.weight_Q), "evaluated_Q": torch.zeros_like(alone.evaluated_Q)}
        return replace(alone, **nothing, idle=True)

    def parts(self, n: int) -> list["Batch"]:
        """Micro-batches: the windows dealt into n of much the same tokens; those left over where there are fewer idle.

        At its cheapest before the batch moves to a device, which would have to be waited for.
        """
        if n == 1:
            return [self]
        dealt = all_shares(self.token_length_B.cpu().numpy(), n)
        return [self.selected(rows) if len(rows) else self.idled() for rows in dealt]

    def _numbers(self) -> tuple:
        return self.window_s, self.number, self.stop, self.windows, self.idle

    def _whole(self) -> tuple[torch.Tensor, list]:
        """All tensors as one of uint8, and where each lies in it: the storage that they share, or one made here."""
        tensors = list(self.tensors().values())
        storage = tensors[0].untyped_storage()
        shared = all(t.is_contiguous() and t.untyped_storage().data_ptr() == storage.data_ptr() for t in tensors)
        if shared and storage.nbytes() % ALIGNED == 0:
            whole = torch.empty(0, dtype=torch.uint8, device=tensors[0].device).set_(storage)
            return whole, [(t.dtype, tuple(t.shape), t.storage_offset() * t.itemsize) for t in tensors]
        parts, layout, at = [], [], 0
        for tensor in tensors:
            raw = tensor.contiguous().reshape(-1).view(torch.uint8)
            parts += [raw, raw.new_zeros(_rounded(len(raw)) - len(raw))]
            layout.append((tensor.dtype, tuple(tensor.shape), at))
            at += _rounded(len(raw))
        return torch.cat(parts), layout


def _within(length_B: torch.Tensor, row_B: torch.Tensor) -> torch.Tensor:
    """Where the tokens (or queries) of the windows in rows lie among those of all windows, end to end."""
    length, first = length_B[row_B], (length_B.cumsum(0) - length_B)[row_B]
    shift = (first - length.cumsum(0) + length).repeat_interleave(length)
    return torch.arange(len(shift), device=shift.device) + shift


def _rounded(size: int) -> int:
    return size + -size % ALIGNED


def _views(whole: torch.Tensor, layout: list) -> list[torch.Tensor]:
    """The tensors (dtype, shape, first byte) that lie in a tensor of uint8."""
    typed = {dtype: whole.view(dtype) for dtype in {dtype for dtype, _, _ in layout}}
    return [
        typed[dtype].as_strided(shape, (1,) if len(shape) == 1 else (shape[1], 1), first // dtype.itemsize)
        for dtype, shape, first in layout
    ]


def _rebuilt(whole: torch.Tensor, layout: list, numbers: tuple) -> Batch:
    return Batch(*_views(whole, layout), *numbers)
