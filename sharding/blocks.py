"""Sessions and the shards they lie in -> blocks of an epoch: few shards are read at a time, and others each epoch."""

from dataclasses import dataclass

import numpy as np

from sharding.counter import permuted, words


@dataclass(frozen=True)
class Layout:
    """An epoch before it is shuffled: blocks one after another, in each its sessions, in each its windows."""

    first: np.ndarray  # (blocks,) int64 position of a block's first window
    stop: np.ndarray  # (blocks,) int64 position after its last
    session: np.ndarray  # (n,) int64 rows of the index, in order
    until: np.ndarray  # (n,) int64 position after the session's last window
    shards: tuple[tuple[int, ...], ...]  # of each block, rising

    @staticmethod
    def of(order: np.ndarray, quota: np.ndarray, count: np.ndarray, shards) -> "Layout":
        """Sessions in `order`, cut into blocks of `count` (blocks,) sessions; quota: windows by session."""
        until = np.cumsum(quota[order])
        stop = until[np.cumsum(count) - 1]
        return Layout(np.append(0, stop[:-1]), stop, order, until, shards)


@dataclass(frozen=True)
class Atoms:
    """Sessions that are never parted by blocks, since they begin in one shard; plain arrays."""

    atom: np.ndarray  # (n,) int64, of each session that has windows
    session: np.ndarray  # (n,) int64 rows of the index, rising
    shard: np.ndarray  # (m,) int64 numbers of shards, those of an atom together, rising
    first: np.ndarray  # (atoms + 1,) int64: where an atom begins in `shard`

    @staticmethod
    def of(session: np.ndarray, shard: np.ndarray) -> "Atoms":
        """The atoms of segments, given by the session and the shard of each (n,), sessions rising."""
        new = np.flatnonzero((np.diff(session, prepend=-1) != 0) | (np.diff(shard, prepend=-1) != 0))
        session, shard = session[new], shard[new]
        rows, begin = np.unique(session, return_index=True)
        _, atom = np.unique(shard[begin], return_inverse=True)
        most = int(shard.max(initial=0)) + 1
        pairs = np.unique(np.repeat(atom, np.diff(np.append(begin, len(session)))) * most + shard)
        return Atoms(atom, rows, pairs % most, np.searchsorted(pairs // most, np.arange(atom.max(initial=-1) + 2)))

    def whole(self, quota: np.ndarray) -> Layout:
        """An epoch as one block; none where there is no window."""
        count = np.full(min(len(self.session), 1), len(self.session))
        return Layout.of(self.session, quota, count, (tuple(np.unique(self.shard).tolist()),) * len(count))

    def layout(self, quota: np.ndarray, most: int, epoch: int, key: tuple[int, int]) -> Layout:
        """The blocks of an epoch: atoms in an order drawn for it, together while they lie in at most `most` shards."""
        atoms = len(self.first) - 1
        order = permuted(np.arange(atoms), atoms, (*words(epoch), 0, 0), key)
        rank = np.empty(atoms, np.int64)
        rank[order] = np.arange(atoms)
        blocks, block = [], np.empty(atoms, np.int64)
        for atom in order.tolist():
            shards = self.shard[self.first[atom] : self.first[atom + 1]].tolist()
            if not blocks or len(blocks[-1].union(shards)) > most:
                blocks.append(set())
            blocks[-1].update(shards)
            block[atom] = len(blocks) - 1
        sessions = np.argsort(rank[self.atom], kind="stable")
        count = np.bincount(block[self.atom], minlength=len(blocks))
        return Layout.of(self.session[sessions], quota, count, tuple(tuple(sorted(shards)) for shards in blocks))
