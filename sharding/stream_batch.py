"""Streamed windows -> packed Batches, by a checkpoint's vocabularies and statistics; sessions are met as they come."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Protocol

import numpy as np

from sharding.augment import UnitDropout, UnitDropoutConfig
from sharding.batch import Batch
from sharding.errors import ConfigError
from sharding.pack import pack
from sharding.sampling import Sampling, SessionTables, by_code
from sharding.segment import PHASE
from sharding.stream import StreamedWindow

CODES = np.iinfo(PHASE).max + 1  # that a phase can have


class Phases(Protocol):
    """What tables.SessionRow tells of the phases of a session, and the shards do not."""

    phases: tuple[str, ...]  # names by code
    loss_weights: dict[str, float]
    eval_phases: tuple[str, ...]


@dataclass(frozen=True)
class StreamDropout:
    """Unit dropout drawn from counters as elsewhere, by StreamedWindow.place: for one (session, start, pass) always the
    same units are kept, whichever worker reads it, but others than at the window's place in a TrainPlan."""

    config: UnitDropoutConfig
    seed: int


def stream_batches(
    windows: Iterable[StreamedWindow],
    sampling: Sampling,
    size: int,
    told: Mapping[str, Phases],
    dropout: StreamDropout | None = None,
) -> Iterator[Batch]:
    """Batches of `size` windows in the order they come, the last one smaller; `place_B` is StreamedWindow.place.

    `told` has the phases of sessions by id, such as rows of sessions.parquet. A session that it lacks weighs 1
    everywhere and is evaluated everywhere; ConfigError is raised where the sampling wants it otherwise, and for a
    session that vocabularies or statistics do not cover.
    """
    met, windows = _Sessions(sampling, told), iter(windows)
    drop = UnitDropout(dropout.config) if dropout else None
    number = 0
    while some := list(islice(windows, size)):
        kept = [w.window if drop is None else _dropped(w, drop, dropout.seed) for w in some]
        ready = [replace(window, session=met.row(streamed)) for window, streamed in zip(kept, some)]
        yield pack(ready, met.tables, np.array([streamed.place for streamed in some]), number)
        number += 1


def _dropped(streamed: StreamedWindow, drop: UnitDropout, seed: int):
    kept = drop.kept(len(streamed.unit_ids), seed, streamed.place)
    return streamed.window if len(kept) == len(streamed.unit_ids) else streamed.window.keeping(kept)


class _Sessions:
    """The SessionTables of all sessions met so far."""

    def __init__(self, sampling: Sampling, told: Mapping[str, Phases]):
        self._sampling, self._told, self._row = sampling, told, {}
        self.tables: SessionTables | None = None

    def row(self, streamed: StreamedWindow) -> int:
        """The session's row of the tables, which is added where it is new."""
        if streamed.session not in self._row:
            new = self._table(streamed)
            if self.tables is not None:
                if new.mean.shape != self.tables.mean[:1].shape:
                    raise ConfigError(
                        self._sampling.signal,
                        f"has {new.mean.shape[1]} and {self.tables.mean.shape[1]} dimensions over sessions",
                        "choose sessions that agree",
                    )
                new = replace(new, first_unit=new.first_unit + len(self.tables.unit_row))
                both = zip(vars(self.tables).items(), vars(new).values())
                new = SessionTables(**{name: np.concatenate((old, more)) for (name, old), more in both})
            self._row[streamed.session], self.tables = len(self._row), new
        return self._row[streamed.session]

    def _table(self, streamed: StreamedWindow) -> SessionTables:
        sampling, name = self._sampling, streamed.session
        mean, scale = sampling.statistics[name]
        dims = streamed.window.value.shape[1]
        if len(mean) != dims:
            raise ConfigError(
                name,
                f"has statistics of {len(mean)} dimensions, {sampling.signal} has {dims}",
                "take statistics of the same signal",
            )
        weight, evaluated = self._of_codes(name)
        return SessionTables(
            sampling.units.rows(f"{name}/{unit}" for unit in streamed.unit_ids),
            np.zeros(1, np.int64),
            sampling.sessions.rows([name]),
            mean[None],
            scale[None],
            weight[None],
            evaluated[None],
        )

    def _of_codes(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Loss weight float32 and whether it is evaluated, bool, of every phase code (CODES,)."""
        sampling, known = self._sampling, self._told.get(name)
        if known is None:
            if sampling.use_recipe_weights or sampling.phase_weights or sampling.eval_phases:
                raise ConfigError(
                    name,
                    "has phases that nobody named, and the sampling weighs or chooses phases",
                    "give the row of sessions.parquet, or a sampling without recipe weights and phases",
                )
            return np.ones(CODES, np.float32), np.ones(CODES, bool)
        codes = (*known.phases, *[""] * (CODES - len(known.phases)))
        weight, evaluated = by_code(codes, known.loss_weights, known.eval_phases, sampling)
        return np.array(weight, np.float32), np.array(evaluated)
