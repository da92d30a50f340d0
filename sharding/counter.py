"""Counters and keys -> random words: any draw can be made alone, in any order, on any process.

Philox4x32-10 is the generator of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). The shuffle is
the generalised Feistel network of Black and Rogaway, "Ciphers with arbitrary finite domains" (CT-RSA 2002).
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from sharding.errors import ConfigError

# Streams: what is drawn for one purpose says nothing about another.
PLAN, SHUFFLE, UNIT_DROPOUT, PASS, BLOCKS = 1, 2, 3, 4, 5

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)  # what the key is raised by from round to round
ROUNDS = 10
MASK = np.uint64(0xFFFFFFFF)
SHIFT = np.uint64(32)

SHUFFLE_ROUNDS = 24  # large sizes need 8; with 24 every order of five things comes equally often too
GOLDEN = 0x9E3779B97F4A7C15  # 2**64 over the golden ratio: sets the rounds of a shuffle apart
LARGEST = 2**62  # places that can be shuffled


def philox(counter: Sequence, key: Sequence) -> np.ndarray:
    """Four random words (4, ...) uint32 of each counter.

    counter: four numbers or arrays below 2**32; key: two; all are broadcast against each other.
    """
    *c, k0, k1 = np.broadcast_arrays(*(np.asarray(word, np.uint64) for word in (*counter, *key)))
    m0, m1 = map(np.uint64, MULTIPLIERS)
    for _ in range(ROUNDS):
        a, b = m0 * c[0], m1 * c[2]
        c = (b >> SHIFT) ^ c[1] ^ k0, b & MASK, (a >> SHIFT) ^ c[3] ^ k1, a & MASK
        k0, k1 = k0 + np.uint64(WEYL[0]) & MASK, k1 + np.uint64(WEYL[1]) & MASK
    return np.stack(c).astype(np.uint32)


def words(number) -> tuple[np.ndarray, np.ndarray]:
    """The low and the high 32 bits of whole numbers in [0, 2**64), as uint64 arrays: two words of a counter."""
    number = np.asarray(number).astype(np.uint64)
    return number & MASK, number >> SHIFT


@lru_cache(64)
def key_of(seed: int, stream: int) -> tuple[int, int]:
    """The key of a stream under a seed, two whole numbers below 2**32; raises ConfigError for a seed out of range."""
    if not 0 <= seed < 2**64:
        raise ConfigError("seed", f"is {seed}", "give a whole number from 0 to 2**64 - 1")
    # Drawn, not put together, since seed and stream have more bits than a key: neighbours have nothing in common.
    drawn = philox((seed & 0xFFFFFFFF, seed >> 32, stream, 0), (0, 0))
    return int(drawn[0]), int(drawn[1])


def below(high, low, n) -> np.ndarray:
    """Whole numbers in [0, n), int64, of two random words each; n up to 2**31, number or array."""
    n, high, low = (np.asarray(word).astype(np.uint64) for word in (n, high, low))
    return (high * n + (low * n >> SHIFT) >> SHIFT).astype(np.int64)


def uniform(high, low) -> np.ndarray:
    """Numbers in [0, 1) with 53 bits, float64, of two random words each."""
    high, low = np.asarray(high, np.uint64), np.asarray(low, np.uint64)
    return ((high >> np.uint64(5) << np.uint64(26)) + (low >> np.uint64(6))).astype(np.float64) * 2.0**-53


def permuted(position, size, counter: Sequence, key: Sequence) -> np.ndarray:
    """Where a random bijection of [0, size) takes each position, int64; which bijection, counter and key say.

    position, size (1 to 2**62), the four words of counter and the two of key are numbers or arrays, broadcast against
    each other. Nothing is listed: time and memory go with the positions asked for, not with size.
    """
    high_a, low_a, high_b, low_b = philox(counter, key).astype(np.uint64)
    parts = np.broadcast_arrays(position, size, high_a << SHIFT | low_a, high_b << SHIFT | low_b)
    shape = parts[0].shape
    at, size, *keys = (part.ravel() for part in parts)
    at, size = at.astype(np.int64), size.astype(np.int64)
    columns = np.ceil(np.sqrt(size)).astype(np.int64)
    rows = -(-size // columns)
    # The grid of rows and columns has a few cells more than there are positions. Who lands in one of them walks on
    # until back among the positions; the walks of a bijection never meet.
    left = np.arange(len(at))
    while len(left):
        moved = _walked(at[left], rows[left], columns[left], [k[left] for k in keys])
        at[left] = moved
        left = left[moved >= size[left]]
    return at.reshape(shape)


def _walked(at: np.ndarray, rows: np.ndarray, columns: np.ndarray, keys: list) -> np.ndarray:
    """One step of the walk: row and column in turn are moved on, modulo their number, by a hash of the other."""
    row, column = (part.astype(np.uint64) for part in np.divmod(at, columns))
    rows, columns = rows.astype(np.uint64), columns.astype(np.uint64)
    for number in range(SHUFFLE_ROUNDS):
        key = keys[number % 2] + np.uint64(number * GOLDEN % 2**64)
        if number % 2:
            column += (_hashed(row + key) >> SHIFT) * columns >> SHIFT
            column -= np.where(column >= columns, columns, np.uint64(0))
        else:
            row += (_hashed(column + key) >> SHIFT) * rows >> SHIFT
            row -= np.where(row >= rows, rows, np.uint64(0))
    return (row * columns + column).astype(np.int64)


def _hashed(word: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele et al. 2014): every bit of the word reaches every bit of the hash."""
    word = (word ^ word >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ word >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return word ^ word >> np.uint64(31)
