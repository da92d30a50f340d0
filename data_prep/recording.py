"""Recording: the raw pieces of one file, in the file's order and clock, before anything is judged or cut."""

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Series:
    """One series as found: time (N,) float64 s, value (N, K) float64 with conversion and offset applied."""

    place: str  # where in the file
    time: np.ndarray
    value: np.ndarray
    unit: str  # unit of measure as the file states it


@dataclass(frozen=True)
class Recording:
    """Everything a recipe asked for. Arrays of a table all have its number of rows."""

    name: str  # file name, the "where" of errors
    subject: str
    session_id: str
    identifier: str
    unit_columns: dict[str, np.ndarray]  # (U,) each, "id" among them
    region: tuple[str, ...]  # (U,) text of the file, "" where it does not say
    spike_time: np.ndarray  # (S,) float64 s, unit after unit, in the file's order
    spike_count: np.ndarray  # (U,) int64, spikes of each unit; sums to S
    observed: tuple[np.ndarray, ...]  # (U) arrays (n, 2) of obs_intervals; () where the file has none
    series: dict[str, Series]  # by the recipe's name
    tables: dict[str, dict[str, np.ndarray]]  # trials, epochs ...: column -> values
    provenance: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # what a person should hear of, one sentence each
