"""Unit dropout: which units of a window are kept, drawn from counters, so that any window can be drawn again alone.

The words of a draw are philox((draw, part, place low, place high), key_of(seed, UNIT_DROPOUT)); sharding/kernel.py
draws the same to the bit. Parts:

    TRIANGLE  draw 0: words 0 and 1 are `side`, 2 and 3 are `level` of the inverted density
    LEGACY    attempt a: words 0 and 1 of draw 2 a are `x`, 2 and 3 are `u`; words 0 and 1 of draw 2 a + 1 are `v`
    CHOICE    unit number u (from 0) has word u % 4 of draw u // 4 + 1
"""

from dataclasses import dataclass

import numpy as np

from sharding.counter import UNIT_DROPOUT, key_of, philox, uniform, words
from sharding.errors import ConfigError

TRIANGLE, LEGACY, CHOICE = 0, 1, 2
PEAK = 4.0  # density at the mode, relative to 1 at both ends
LEGACY_BOUND = 10.0  # of the published rejection sampling


@dataclass
class UnitDropoutConfig:
    """How many units of a window are kept: x from a density rising linearly from 1 at min to 4 at mode, then falling
    to 1 at max. All are kept where a session has no more than min units, or no more than x."""

    min: int = 30
    "units; the fewest that are kept"
    mode: int = 100
    "units; the likeliest number kept"
    max: int = 300
    "units; the most that are asked for"
    legacy: bool = False
    "draw as the published code does: its rejection test flattens the peak from 4 to about 2.3 times the ends"


class UnitDropout:
    """Draws the kept units of windows; a pure function of (seed, place)."""

    def __init__(self, config: UnitDropoutConfig):
        """Raises ConfigError for bounds out of order."""
        if not 0 < config.min <= config.mode <= config.max:
            raise ConfigError(
                "unit_dropout",
                f"has min {config.min}, mode {config.mode}, max {config.max}",
                "give 0 < min <= mode <= max",
            )
        self.config = config

    def kept(self, units: int, seed: int, place: int) -> np.ndarray:
        """Local numbers (k,) of the units kept out of `units` in the window at a place of its plan, rising."""
        wanted = int(self.counts(np.array([units]), seed, np.array([place]))[0])
        if wanted == units:
            return np.arange(units)
        draws = np.arange(1, 1 + -(-units // 4))
        word = philox((draws, CHOICE, *words(place)), key_of(seed, UNIT_DROPOUT)).T.ravel().tolist()
        # Selection sampling (Knuth, The Art of Computer Programming, 3.4.2, algorithm S): every set is equally likely.
        kept = []
        for unit in range(units):
            if word[unit] * (units - unit) < (wanted - len(kept)) << 32:
                kept.append(unit)
        return np.array(kept)

    def counts(self, units: np.ndarray, seed: int, place: np.ndarray) -> np.ndarray:
        """(n,) int64: how many of the units (n,) are kept in the windows at these places (n,)."""
        wanted = np.floor(self.drawn(seed, place)).astype(np.int64)
        return np.where(units <= self.config.min, units, np.minimum(wanted, units))

    def drawn(self, seed: int, place: np.ndarray) -> np.ndarray:
        """(n,) float64 in [min, max]: the number of units asked for at these places, before it is rounded down."""
        key, place = key_of(seed, UNIT_DROPOUT), np.asarray(place)
        return self._rejected(key, place) if self.config.legacy else self._inverted(key, place)

    def _inverted(self, key: tuple[int, int], place: np.ndarray) -> np.ndarray:
        c = self.config
        word = philox((0, TRIANGLE, *words(place)), key)
        side, level = uniform(word[0], word[1]), uniform(word[2], word[3])
        # On either side the density is 1 + 3 s for s from 0 at the end to 1 at the mode; its integral is inverted.
        rise = PEAK - 1
        s = (np.sqrt(1 + 2 * rise * level * (1 + rise / 2)) - 1) / rise
        left = side * (c.max - c.min) < c.mode - c.min
        return np.where(left, c.min + s * (c.mode - c.min), c.max - s * (c.max - c.mode))

    def _rejected(self, key: tuple[int, int], place: np.ndarray) -> np.ndarray:
        c = self.config
        found, left, attempt = np.zeros(len(place)), np.arange(len(place)), 0
        while len(left):
            first = philox((2 * attempt, LEGACY, *words(place[left])), key)
            second = philox((2 * attempt + 1, LEGACY, *words(place[left])), key)
            x = c.min + uniform(first[0], first[1]) * (c.max - c.min)
            u, v = uniform(first[2], first[3]), uniform(second[0], second[1])
            found[left] = x
            left, attempt = left[u * LEGACY_BOUND * v > self.density(x)], attempt + 1
        return found

    def density(self, x: np.ndarray) -> np.ndarray:
        """Stated density at x in [min, max], relative to 1 at both ends."""
        c = self.config
        left, right = max(c.mode - c.min, 1), max(c.max - c.mode, 1)  # a side without width has no x of its own
        return 1 + (PEAK - 1) * np.where(x < c.mode, (x - c.min) / left, (c.max - x) / right)
