"""A config's strategy, chosen for the ranks and the device at hand."""

import os

from pretrain.errors import ConfigError
from pretrain.ranks import Ranks
from pretrain.strategy import PRECISIONS, Spread, StrategyConfig, plain


def spread(config: StrategyConfig, ranks: Ranks, accelerator: str, precision: str, *, freezes: bool) -> Spread:
    """The strategy of a config for these ranks; `accelerator` is "cpu" or "cuda".

    `freezes` says that what is trained changes during the training. Raises ConfigError for what cannot be had.
    """
    if precision not in PRECISIONS:
        raise ConfigError("trainer.precision", f"{precision!r} is no precision here", f"take {' or '.join(PRECISIONS)}")
    if not config.name.startswith("zero"):
        return plain(ranks, accelerator, precision, freezes=freezes)
    if freezes:
        raise ConfigError(
            "trainer.strategy.name",
            f"{config.name} shares out what is trained once and for all, and here some of it is frozen at first",
            "take ddp, or freeze nothing",
        )
    os.environ["DS_ACCELERATOR"] = accelerator  # DeepSpeed takes a GPU where there is one, asked for or not
    from pretrain.strategy_zero import spread_zero

    return spread_zero(config, ranks, accelerator, precision)
