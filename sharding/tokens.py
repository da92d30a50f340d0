"""SpikeTokens: spikes, and the start and end marks of units, as three parallel arrays; and the clock they are told by."""

from dataclasses import dataclass

import numpy as np

# Kinds of token (POYO: spike, unit start, unit end); the numbers index the model's kind embedding.
SPIKE, UNIT_START, UNIT_END = 0, 1, 2


@dataclass(frozen=True)
class SpikeTokens:
    """time (S,) int32 microseconds from a segment's or float32 seconds from a window's start; unit (S,); kind (S,)."""

    time: np.ndarray
    unit: np.ndarray
    kind: np.ndarray

    def __len__(self) -> int:
        return len(self.time)


def to_microseconds(seconds) -> np.ndarray:
    """Nearest whole microsecond, int64, of times in float64 seconds; a scalar gives a scalar of numpy."""
    return np.rint(np.asarray(seconds, dtype=np.float64) * 1e6).astype(np.int64)
