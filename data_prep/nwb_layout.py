"""What the NWB layout keeps in a file: tables, their columns and series; names are at hand, arrays are read when sliced."""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

# An array on disk: it has shape and dtype, and slicing it reads it (h5py.Dataset, a zarr array, numpy).
Stored = Any
NUMBERS, TEXT, REFERENCES, OTHER = "numbers", "text", "references", "other"


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    data: Stored
    holds: str  # NUMBERS, TEXT, REFERENCES, or OTHER for what no row can be told by
    ends: tuple[
        Stored, ...
    ] = ()  # of ragged columns, where each row ends in `data`; a second one ends rows of the first
    attributes: Mapping[str, Any] = field(default_factory=dict)
    refers: "Callable[[], Table | None]" = lambda: None  # the table whose rows the numbers are
    locations: Callable[[], list[str]] | None = None  # where the referenced electrode groups are

    @property
    def description(self) -> str:
        return text(self.attributes.get("description"))

    @property
    def resolution(self) -> float:
        """Of spike times, s; 0 where the file does not say."""
        return float(self.attributes.get("resolution") or 0.0)


@dataclass(frozen=True)
class Table:
    """One table; `columns` are in the order the file names them in."""

    name: str
    ids: Stored
    columns: dict[str, Column]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class StoredSeries:
    """One series below acquisition, processing or analysis."""

    place: str  # its path in the file
    kind: str  # neurodata_type
    data: Stored
    unit: str
    conversion: float
    offset: float
    channel_conversion: Stored | None  # (K,) further factors, one a column
    timestamps: Stored | None
    starting_time: float
    rate: float  # 0 where there are timestamps
    electrodes: Column | None  # rows (K,) of the electrode table
    description: str
    clock: Hashable | None  # equal for series that share their timestamps; None where nobody knows
    same: Hashable  # equal for one series found at two places, through a link

    def times(self) -> np.ndarray:
        """Times (N,) float64 s of its samples, by the letter of NWB; NaN where there is no rate."""
        if self.timestamps is not None:
            return np.asarray(self.timestamps[:], dtype=np.float64)
        return self.starting_time + np.arange(self.data.shape[0]) / (self.rate if self.rate > 0 else np.nan)


@dataclass(frozen=True)
class NwbFile:
    """One file."""

    name: str
    version: str
    subject: str
    session_id: str
    identifier: str
    start_time: str
    description: str
    units: Table | None
    tables: dict[str, Table]  # below intervals/
    series: dict[str, StoredSeries]  # by place
    clocks: dict[Hashable, np.ndarray] = field(default_factory=dict)  # timestamps that were read, by StoredSeries.clock
    warnings: list[str] = field(default_factory=list)  # of the library that read it, one line each


def text(value: object) -> str:
    """Text of what files keep for it."""
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    return "" if value is None else str(value)
