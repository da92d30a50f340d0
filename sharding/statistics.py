"""TargetStatistics: how the targets of each session are normalised; travels with the checkpoint."""

from dataclasses import dataclass

import numpy as np

from sharding.errors import ConfigError
from sharding.index import ShardIndex

SCALES = ("recipe", "robust", "std")


@dataclass(frozen=True)
class TargetStatistics:
    """Session id -> (mean (K,), scale (K,)) float64; normalised = (value - mean) / scale."""

    of_session: dict[str, tuple[np.ndarray, np.ndarray]]

    def __contains__(self, session_id: str) -> bool:
        return session_id in self.of_session

    def __getitem__(self, session_id: str) -> tuple[np.ndarray, np.ndarray]:
        """(mean, scale) of a session; raises ConfigError where it is not here."""
        if session_id not in self.of_session:
            raise ConfigError(session_id, "has no target statistics", "finetune the checkpoint on it first")
        return self.of_session[session_id]

    def merged(self, other: "TargetStatistics") -> "TargetStatistics":
        """Both together; where both know a session, `other` counts."""
        return TargetStatistics({**self.of_session, **other.of_session})

    def to_json(self) -> dict:
        """Plain lists and strings."""
        return {
            name: {"mean": mean.tolist(), "scale": scale.tolist()} for name, (mean, scale) in self.of_session.items()
        }

    @staticmethod
    def from_json(told: dict) -> "TargetStatistics":
        """The inverse of to_json(), exact."""
        return TargetStatistics(
            {
                name: (np.array(entry["mean"], np.float64), np.array(entry["scale"], np.float64))
                for name, entry in told.items()
            }
        )


def target_statistics(index: ShardIndex, signal: str, center: bool, scale) -> TargetStatistics:
    """Statistics of every session of an index, from its train split.

    scale: "recipe" (the literature's constant where the recipe gives one, else robust), "robust", "std", or a number
    for all. A dimension that never varies gets scale 1. Raises ConfigError for an unknown scale or a session without
    train samples where they are needed.
    """
    number = None if scale in SCALES else _number(scale)
    out = {}
    for session in index.sessions:
        if signal not in session.signals:
            raise ConfigError(session.id, f"has no signal {signal!r}", "leave the session out or choose another signal")
        told, dims = session.statistics[signal], session.signals[signal].dims
        constant = session.target_scale.get(signal) if scale == "recipe" else number
        if not told.samples and (center or constant is None):
            raise ConfigError(session.id, f"has no train sample of {signal}", "give a number as scale, without center")
        if constant is not None:
            chosen = np.full(dims, float(constant))
        else:
            chosen = np.where(told.robust_std > 0, told.robust_std, told.std) if scale != "std" else told.std
        out[session.id] = (told.mean if center else np.zeros(dims), np.where(chosen > 0, chosen, 1.0))
    return TargetStatistics(out)


def _number(scale) -> float:
    try:
        number = float(scale)
    except (TypeError, ValueError):
        number = 0.0
    if not 0 < number < np.inf:
        raise ConfigError("scale", f"is {scale!r}", f"give one of {', '.join(SCALES)} or a number above 0")
    return number
