"""Arrays that are too large for memory -> an unlinked scratch file, and arrays that are read from it when sliced."""

import os
import tempfile
import weakref

import numpy as np

from data_prep.errors import SessionError


class Scratch:
    """A nameless file in the folder for temporary files (TMPDIR); it is gone when nothing refers to it any more.

    Raises SessionError, which names `where`, when there is no room for it.
    """

    def __init__(self, where: str):
        self.where = where
        try:
            self.descriptor, path = tempfile.mkstemp(prefix="spikeloom-")
            os.unlink(path)
        except OSError as error:
            raise self._full(error) from error
        weakref.finalize(self, os.close, self.descriptor)

    def write(self, array: np.ndarray, offset: int) -> None:
        """Put the array at that byte."""
        left = memoryview(np.ascontiguousarray(array)).cast("B")
        try:
            while left:
                done = os.pwrite(self.descriptor, left, offset)
                left, offset = left[done:], offset + done
        except OSError as error:
            raise self._full(error) from error

    def read(self, dtype: np.dtype, count: int, offset: int) -> np.ndarray:
        """So many numbers from that byte on."""
        out = np.empty(count, dtype)
        left = memoryview(out).cast("B")
        while left:
            done = os.preadv(self.descriptor, [left], offset)
            assert done, "nothing is read that was not written"
            left, offset = left[done:], offset + done
        return out

    def _full(self, error: OSError) -> SessionError:
        found = (
            f"its spikes are sorted in a file in {tempfile.gettempdir()}, which cannot be written ({error.strerror})"
        )
        return SessionError(self.where, found, "make room there, or set TMPDIR to another folder")


class OnDisk:
    """A one-dimensional array in a Scratch; a slice of it, or an item, is read when asked for."""

    def __init__(self, scratch: Scratch, dtype: type, count: int, offset: int):
        self.scratch, self.dtype, self.shape, self.offset = scratch, np.dtype(dtype), (count,), offset

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, which: slice | int) -> np.ndarray:
        if not isinstance(which, slice):
            at = range(len(self))[which]
            return self[at : at + 1][0]
        first, last, step = which.indices(len(self))
        part = self.scratch.read(self.dtype, max(last - first, 0), self.offset + first * self.dtype.itemsize)
        return part[::step] if step > 0 else self[:][which]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self[:].astype(dtype or self.dtype, copy=False)

    def put(self, first: int, values: np.ndarray) -> None:
        """Write values (n,) from that item on."""
        self.scratch.write(values.astype(self.dtype, copy=False), self.offset + first * self.dtype.itemsize)
