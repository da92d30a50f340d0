"""Vocabulary: names of units or sessions <-> rows of an embedding table.

Row 0 is "no such thing": padding, always zero. The Vocabulary is data that loader, embedding and checkpoint share.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sharding.errors import ConfigError


@dataclass(frozen=True)
class Vocabulary:
    """Names in row order; the first name has row 1."""

    ids: tuple[str, ...] = ()

    def __post_init__(self):
        if len(set(self.ids)) != len(self.ids):
            raise ConfigError("vocabulary", "a name occurs twice", "give every unit and session a name of its own")

    def __len__(self) -> int:
        """Rows of a table that serves this vocabulary, row 0 included."""
        return len(self.ids) + 1

    @cached_property
    def _row(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.ids, start=1)}

    def __contains__(self, name: str) -> bool:
        return name in self._row

    def rows(self, ids: Iterable[str]) -> np.ndarray:
        """Rows (n,) int64 of the given names; raises ConfigError for a name that is not here."""
        try:
            return np.fromiter(map(self._row.__getitem__, ids), np.int64)
        except KeyError as missing:
            raise ConfigError(
                "vocabulary",
                f"{missing.args[0]!r} is not among its {len(self.ids)} names",
                "finetune the checkpoint on the shards that hold it",
            ) from None

    def extended(self, ids: Iterable[str]) -> "Vocabulary":
        """A vocabulary with the names it lacks added at the end, so that old rows keep their place."""
        return Vocabulary(self.ids + tuple(dict.fromkeys(name for name in ids if name not in self._row)))
