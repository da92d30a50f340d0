"""Unit dropout: which units of a window are kept, drawn from counters, so that any window can be drawn again alone."""

from dataclasses import dataclass

import numpy as np

from sharding.errors import ConfigError

DROPOUT_STREAM = 2  # keeps these random numbers apart from those of the plan (plan.py)
PEAK = 4.0  # density at the mode, relative to 1 at both ends
LEGACY_BOUND = 10.0  # of the published rejection sampling


@dataclass
class UnitDropoutConfig:
    """How many units of a window are kept: x from a density rising linearly from 1 at min to 4 at mode, then falling
    to 1 at max. All are kept where a session has fewer than min units, or fewer than x."""

    min: int = 30
    "units; the fewest that are kept"
    mode: int = 100
    "units; the likeliest number kept"
    max: int = 300
    "units; the most that are asked for"
    legacy: bool = False
    "draw as the published code does: its rejection test flattens the peak from 4 to about 2.3 times the ends"


class UnitDropout:
    """Draws the kept units of windows; a pure function of (seed, epoch, window)."""

    def __init__(self, config: UnitDropoutConfig):
        """Raises ConfigError for bounds out of order."""
        if not 0 < config.min <= config.mode <= config.max:
            raise ConfigError(
                "unit_dropout",
                f"has min {config.min}, mode {config.mode}, max {config.max}",
                "give 0 < min <= mode <= max",
            )
        self.config = config

    def kept(self, units: int, seed: int, epoch: int, window: int) -> np.ndarray:
        """Local numbers (k,) of the units kept out of `units`, rising."""
        if units <= self.config.min:
            return np.arange(units)
        random = np.random.Generator(np.random.Philox(key=[seed, DROPOUT_STREAM], counter=[0, 0, window, epoch]))
        wanted = int(self.draw(random))
        if wanted >= units:
            return np.arange(units)
        return np.sort(random.permutation(units)[:wanted])

    def draw(self, random: np.random.Generator) -> float:
        """A number of units to keep, before it is rounded down."""
        return self._rejected(random) if self.config.legacy else self._inverted(random)

    def _inverted(self, random: np.random.Generator) -> float:
        c = self.config
        side, level = random.random(2)
        # On either side the density is 1 + 3 s for s from 0 at the end to 1 at the mode; its integral is inverted.
        rise = PEAK - 1
        s = (np.sqrt(1 + 2 * rise * level * (1 + rise / 2)) - 1) / rise
        left = side * (c.max - c.min) < c.mode - c.min
        return c.min + s * (c.mode - c.min) if left else c.max - s * (c.max - c.mode)

    def _rejected(self, random: np.random.Generator) -> float:
        c = self.config
        while True:
            place, u, v = random.random(3)
            x = c.min + place * (c.max - c.min)
            if u * LEGACY_BOUND * v <= self.density(x):
                return x

    def density(self, x) -> np.ndarray:
        """Stated density at x, relative to 1 at min and max."""
        return np.interp(x, (self.config.min, self.config.mode, self.config.max), (1, PEAK, 1))
