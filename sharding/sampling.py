"""Sampling: what is taken of a window, and with which vocabularies, statistics and weights it is told to a model."""

from collections.abc import Iterator
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
    weight: np.ndarray  # (sessions, most phases) float32, by each session's own codes; 0 beyond them
    evaluated: np.ndarray  # (sessions, most phases) bool, likewise; False beyond them

    @staticmethod
    def of(index: ShardIndex, sampling: Sampling) -> "SessionTables":
        """Look everything up once; raises ConfigError for what vocabulary, statistics or signal do not cover."""
        of_session = index.sessions.dims(sampling.signal)
        for row in np.flatnonzero(of_session == 0):
            raise ConfigError(index.session_ids[row], f"has no signal {sampling.signal!r}", "leave the session out")
        dims = set(of_session.tolist())
        if len(dims) > 1:
            raise ConfigError(
                sampling.signal,
                f"has {' and '.join(map(str, sorted(dims)))} dimensions over sessions",
                "choose sessions that agree",
            )
        told = [sampling.statistics[name] for name in index.session_ids]
        for name, (mean, _) in zip(index.session_ids, told):
            if {len(mean)} != dims:
                raise ConfigError(
                    name,
                    f"has statistics of {len(mean)} dimensions, {sampling.signal} has {dims.pop()}",
                    "take statistics of the same signal",
                )
        weight, evaluated = _by_phase(index, sampling)
        lengths = index.sessions.column("units")
        return SessionTables(
            np.concatenate([np.zeros(0, np.int64), *_unit_rows(index, sampling.units)]),
            np.cumsum(lengths) - lengths,
            sampling.sessions.rows(index.session_ids),
            np.stack([mean for mean, _ in told]),
            np.stack([scale for _, scale in told]),
            weight,
            evaluated,
        )


def _unit_rows(index: ShardIndex, units: Vocabulary) -> Iterator[np.ndarray]:
    """Rows of the vocabulary of all units of the index in order, in runs.

    Where the vocabulary lists them in the same order, as one made from this index does, none is looked up.
    """
    at = 0
    for ids in index.all_unit_ids():
        alike = list(units.ids[at : at + len(ids)]) == ids
        yield np.arange(at + 1, at + 1 + len(ids)) if alike else units.rows(ids)
        at += len(ids)


def _by_phase(index: ShardIndex, sampling: Sampling) -> tuple[np.ndarray, np.ndarray]:
    """Loss weight and whether it is evaluated, (sessions, most phases), of each phase code of each session."""
    kinds: dict[tuple, int] = {}  # sessions of one recipe are alike: what their rows hold is told once
    row = [
        kinds.setdefault((tuple(p), tuple((w["phase"], w["weight"]) for w in weights), tuple(e)), len(kinds))
        for p, weights, e in index.sessions.records("phases", "loss_weights", "eval_phases")
    ]
    most = max(len(phases) for phases, _, _ in kinds)
    weight, evaluated = np.zeros((len(kinds), most), np.float32), np.zeros((len(kinds), most), bool)
    for kind, (phases, advised, evaluates) in enumerate(kinds):
        told = by_code(phases, dict(advised), evaluates, sampling)
        weight[kind, : len(phases)], evaluated[kind, : len(phases)] = told
    return weight[row], evaluated[row]


def by_code(phases, advised: dict[str, float], evaluates, sampling: Sampling) -> tuple[list[float], list[bool]]:
    """Loss weight and whether it is evaluated of each of a session's phases, whose recipe advises and evaluates so."""
    weights = {**(advised if sampling.use_recipe_weights else {}), **sampling.phase_weights}
    wanted = sampling.eval_phases or evaluates
    return [weights.get(phase, 1.0) for phase in phases], [not wanted or phase in wanted for phase in phases]
