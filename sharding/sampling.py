"""Sampling: what is taken of a window, and with which vocabularies, statistics and weights it is told to a model."""

from dataclasses import dataclass, field

import numpy as np

from sharding.errors import ConfigError
from sharding.index import ShardIndex
from sharding.statistics import TargetStatistics
from sharding.vocabulary import Vocabulary


@dataclass(frozen=True)
class Sampling:
    """The choices of a model and a task that shape a batch; none of them needs other shards."""

    signal: str
    window_s: float
    units: Vocabulary  # of global unit ids
    sessions: Vocabulary
    statistics: TargetStatistics
    phase_weights: dict[str, float] = field(default_factory=dict)  # phase -> loss weight, over the recipe's
    eval_phases: tuple[str, ...] = ()  # phases that are evaluated; () is what the recipe says
    use_recipe_weights: bool = True


@dataclass(frozen=True)
class SessionTables:
    """A Sampling as arrays by session row of an index; what pack() gathers from."""

    unit_row: np.ndarray  # rows of the unit vocabulary, all sessions end to end, int64
    first_unit: np.ndarray  # (sessions,) where a session begins in unit_row
    session_row: np.ndarray  # (sessions,) row of the session vocabulary, int64
    mean: np.ndarray  # (sessions, K) float64
    scale: np.ndarray  # (sessions, K) float64
    weight: np.ndarray  # (sessions, phases) float32
    evaluated: np.ndarray  # (sessions, phases) bool

    @staticmethod
    def of(index: ShardIndex, sampling: Sampling) -> "SessionTables":
        """Look everything up once; raises ConfigError for what vocabulary, statistics or signal do not cover."""
        rows = [sampling.units.rows(index.unit_ids(name)) for name in index.session_ids]
        told = [sampling.statistics[name] for name in index.session_ids]
        dims = {session.signals[sampling.signal].dims for session in index.sessions}
        if len(dims) > 1:
            raise ConfigError(
                sampling.signal,
                f"has {' and '.join(map(str, sorted(dims)))} dimensions over sessions",
                "choose sessions that agree",
            )
        for name, (mean, _) in zip(index.session_ids, told):
            if {len(mean)} != dims:
                raise ConfigError(
                    name,
                    f"has statistics of {len(mean)} dimensions, {sampling.signal} has {dims.pop()}",
                    "take statistics of the same signal",
                )
        lengths = np.array([len(r) for r in rows], np.int64)
        phases = index.phase_names
        return SessionTables(
            np.concatenate(rows),
            np.cumsum(lengths) - lengths,
            sampling.sessions.rows(index.session_ids),
            np.stack([mean for mean, _ in told]),
            np.stack([scale for _, scale in told]),
            np.array([_weights(session, sampling, phases) for session in index.sessions], np.float32),
            np.array([_evaluated(session, sampling, phases) for session in index.sessions], bool),
        )


def _weights(session, sampling: Sampling, phases) -> list[float]:
    advised = session.loss_weights if sampling.use_recipe_weights else {}
    weights = {**advised, **sampling.phase_weights}
    return [weights.get(phase, 1.0) for phase in phases]


def _evaluated(session, sampling: Sampling, phases) -> list[bool]:
    wanted = sampling.eval_phases or session.eval_phases
    return [not wanted or phase in wanted for phase in phases]
