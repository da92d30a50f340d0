"""What a model and a task hand over: Encoded (features) and Prediction (decoded behaviour)."""

from dataclasses import dataclass, field

import numpy as np
import torch


@dataclass(frozen=True)
class Encoded:
    """One feature row per query, and auxiliary losses by name (scalars, already weighted)."""

    feature_QD: torch.Tensor
    losses: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Prediction:
    """Decoded behaviour of one session, one row per distinct sample, in the units of the recording.

    time (n,) float64 s on the session's clock; value and target (n, K) float32; evaluated (n,) bool.
    """

    session: str
    time: np.ndarray
    value: np.ndarray
    target: np.ndarray
    evaluated: np.ndarray
