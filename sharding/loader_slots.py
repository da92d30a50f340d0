"""Batch of a worker -> batch of the training process, through shared memory that is made once and used in turn.

torch would make new shared memory for every batch and hand its file descriptor over with a handshake, which takes longer
than making the batch.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from sharding.batch import Batch

STAMP = 64  # bytes at the start of a slot: the number of what lies in it, then the batch
SPARE = 5, 4  # a slot is made so much larger than the batch that it is made for: others are not all smaller


@dataclass(frozen=True)
class Laid:
    """Where a batch lies: what crosses between the processes."""

    slot: tuple[int, int]  # worker, slot
    memory: torch.Tensor | None  # of the slot, where it is new
    stamp: int
    size: int  # bytes
    rebuild: Callable[..., Batch]
    rest: tuple  # what it takes beside the bytes


class Slots:
    """A worker's own; `count` must be more than the batches that it may be asked for before the first is taken."""

    def __init__(self, worker: int, count: int):
        self._worker, self._memory, self._laid = worker, [torch.empty(0, dtype=torch.uint8)] * count, 0

    def laid(self, batch: Batch) -> Laid:
        """The batch, copied into the slot whose turn it is."""
        rebuild, (whole, *rest) = batch.__reduce__()
        self._laid += 1
        number, size = self._laid % len(self._memory), len(whole)
        new = len(self._memory[number]) < STAMP + size
        if new:
            self._memory[number] = torch.empty(STAMP + size * SPARE[0] // SPARE[1], dtype=torch.uint8).share_memory_()
        lies = self._memory[number].numpy()
        lies[:8].view(np.int64)[:] = self._laid
        lies[STAMP : STAMP + size] = whole.numpy()
        fresh = self._memory[number] if new else None
        return Laid((self._worker, number), fresh, self._laid, size, rebuild, tuple(rest))


class Taken:
    """The slots of all workers as the training process knows them."""

    def __init__(self):
        self._memory: dict[tuple[int, int], torch.Tensor] = {}

    def batch(self, laid: Laid) -> Batch:
        """A copy of the batch, page-locked where there is a CUDA device; the slot is free then."""
        if laid.memory is not None:
            self._memory[laid.slot] = laid.memory
        memory = self._memory[laid.slot]
        if torch.cuda.is_available():
            whole = torch.empty(laid.size, dtype=torch.uint8, pin_memory=True)
        else:
            whole = torch.from_numpy(np.empty(laid.size, np.uint8))
        lies = memory.numpy()
        whole.numpy()[:] = lies[STAMP : STAMP + laid.size]  # torch would copy with all its threads, and wait for them
        assert int(lies[:8].view(np.int64)[0]) == laid.stamp, "a slot was used again before its batch was taken"
        return laid.rebuild(whole, *laid.rest)
