"""WindowTable -> Batch: reads, drops units, packs; the batch of some windows is a pure function of them."""

import logging
from collections.abc import Iterator
from functools import cached_property

import numpy as np

from sharding.augment import CHOICE, LEGACY, LEGACY_BOUND, PEAK, TRIANGLE, UnitDropout, UnitDropoutConfig
from sharding.batch import Batch
from sharding.counter import UNIT_DROPOUT, key_of
from sharding.errors import ShardError
from sharding.files import AGAIN
from sharding.index import ShardIndex
from sharding.mapped import open_shards
from sharding.pack import pack
from sharding.plan import WindowTable, window_length_us
from sharding.sampling import Sampling, SessionTables
from sharding.window import FALLING, KINDS, REPEATED, UNKNOWN_PHASE, UNKNOWN_UNIT, Reader

try:
    from sharding import kernel
except ImportError as missing:  # such as a numpy that is newer than Numba knows
    logging.getLogger("spikeloom").warning("batches are made without Numba, many times slower (%s)", missing)
    kernel = None
else:
    DAMAGES = {
        kernel.FALLING: FALLING,
        kernel.UNKNOWN_UNIT: UNKNOWN_UNIT,
        kernel.REPEATED: REPEATED,
        kernel.UNKNOWN_PHASE: UNKNOWN_PHASE,
    }

OF_A_PROCESS = ("_known", "_dropout")  # made again where a maker arrives


class BatchMaker:
    """Makes packed batches of the windows of an index; one a process, shards are opened when first needed.

    Crosses to another process as plain arrays.
    """

    def __init__(
        self, index: ShardIndex, sampling: Sampling, seed: int = 0, unit_dropout: UnitDropoutConfig | None = None
    ):
        """Raises ConfigError for what vocabularies, statistics or signals do not cover, ShardError for broken tables."""
        self.length_us = window_length_us(index, sampling.window_s)
        self.reader = Reader(index, sampling.signal)
        self.tables = SessionTables.of(index, sampling)
        if (np.diff(np.append(self.tables.first_unit, len(self.tables.unit_row))) != self.reader.units).any():
            raise ShardError(index.root, "its tables count other units than they list", AGAIN)
        self.seed, self.dropout = seed, UnitDropout(unit_dropout) if unit_dropout else None
        self.compiled = True  # where Numba is; False: window after window, by window.py and pack.py

    def batch(self, windows: WindowTable, number: int = 0, stop: int = 0) -> Batch:
        """The packed batch of these windows, in this order; `number` and `stop` go into it as they are.

        Raises ShardError for a shard that is not there any more, or whose bytes cannot be right.
        """
        if not len(windows):
            return self._blank(0, 0, 0, number, stop)
        if self.compiled and kernel is not None:
            return self._filled(windows, number, stop)
        rows = zip(windows.place.tolist(), windows.segment.tolist(), windows.start_us.tolist())
        return pack([self._window(*row) for row in rows], self.tables, windows.place, number, stop)

    def tokens(self, windows: WindowTable) -> np.ndarray:
        """(n,) int64: tokens that each window has in a batch, counted in the shards; raises ShardError as batch() does."""
        if not self.compiled or kernel is None:
            rows = zip(windows.place.tolist(), windows.segment.tolist(), windows.start_us.tolist())
            alone = [self._window(*row) for row in rows]
            return np.array([2 * len(window.units) + len(window.spike_time) for window in alone], np.int64)
        out = [2 * found.units + found.spikes for _, _, _, found in self._counted(windows)]
        return np.concatenate([np.zeros(0, np.int64), *out])

    def _window(self, place: int, segment: int, start_us: int):
        window = self.reader.window(segment, start_us, self.length_us)
        if self.dropout is None:
            return window
        kept = self.dropout.kept(len(window.units), self.seed, place)
        return window if len(kept) == len(window.units) else window.keeping(kept)

    def _filled(self, windows: WindowTable, number: int, stop: int) -> Batch:
        """All windows at once, by compiled loops."""
        counted = list(self._counted(windows))
        tokens = sum(int(2 * found.units.sum() + found.spikes.sum()) for *_, found in counted)
        queries = sum(int((found.ends[:, 3] - found.ends[:, 2]).sum()) for *_, found in counted)
        batch = self._blank(len(windows), tokens, queries, number, stop)
        out = {name: tensor.numpy() for name, tensor in batch.tensors().items()}
        out.pop("place_B")[:] = windows.place
        out, begin = kernel.Filled(**out), (0, 0, 0)
        for part, asked, held, found in counted:
            if len(counted) > 1:
                asked, held = self._asked(windows, part)
            damage, at, begin = kernel.fill(asked, self._known, found, out, KINDS, begin)
            self._refuse(damage, windows.segment[part], at)
        del held  # the addresses were good until here
        return batch

    def _blank(self, windows: int, tokens: int, queries: int, number: int, stop: int) -> Batch:
        dims = self.tables.mean.shape[1]
        return Batch.blank(windows, tokens, queries, dims, self.length_us / 1e6, number, stop, windows)

    def _counted(self, windows: WindowTable) -> Iterator[tuple]:
        """What compiled loops were asked of each part of the windows, the shards held for it, and what they found."""
        parts = self._parts(windows)
        for part in parts:
            asked, held = self._asked(windows, part)
            damage, at, found = kernel.count(asked, self._known, self._dropout)
            self._refuse(damage, windows.segment[part], at)
            yield part, asked, held if len(parts) == 1 else None, found

    @staticmethod
    def _parts(windows: WindowTable) -> list[slice]:
        """Consecutive windows that need not more shards at a time than a process should hold open."""
        size = open_shards()
        return [slice(a, a + size) for a in range(0, len(windows), size)]

    def _asked(self, windows: WindowTable, part: slice) -> tuple:
        """What compiled loops ask of a part of the windows, and the shards, whose addresses are good while they are held."""
        row = self.reader.segments[windows.segment[part]]
        shard = row["shard"].tolist()
        held = {number: self.reader.shard(number) for number in set(shard)}
        at = {number: array.__array_interface__["data"][0] for number, array in held.items()}
        address = np.array([at[number] for number in shard], np.int64)
        start_us, place = (np.array(array[part], np.int64) for array in (windows.start_us, windows.place))
        return kernel.Asked(row, address, start_us, place, self.length_us), held

    def _refuse(self, damage: int, segment: np.ndarray, at: int) -> None:
        if damage:
            raise self.reader.damaged(int(segment[at]), DAMAGES[damage])

    @cached_property
    def _known(self):
        arrays = {"units": self.reader.units, "phases": self.reader.phases, **vars(self.tables)}
        # compiled code is made for read-only arrays or for others; those that came from another process are read-only
        return kernel.Known(**{name: _read_only(array) for name, array in arrays.items()})

    @cached_property
    def _dropout(self):
        c = self.dropout.config if self.dropout else UnitDropoutConfig()
        return kernel.Dropout(
            self.dropout is not None,
            key_of(self.seed, UNIT_DROPOUT),
            (float(c.min), float(c.mode), float(c.max)),
            c.legacy,
            PEAK,
            LEGACY_BOUND,
            (TRIANGLE, LEGACY, CHOICE),
        )

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name not in OF_A_PROCESS}


def _read_only(array: np.ndarray) -> np.ndarray:
    array = np.ascontiguousarray(array).view()
    array.flags.writeable = False
    return array
