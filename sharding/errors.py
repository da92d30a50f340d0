"""Errors of the supply; the tree is drawn in data_prep/errors.py."""

from data_prep.errors import ConfigError, DataError, MendableError

__all__ = ["ConfigError", "DataError", "MendableError", "ShardError"]


class ShardError(DataError):
    pass
