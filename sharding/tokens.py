"""SpikeTokens: spikes, and the start and end marks of units, as three parallel arrays."""

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
