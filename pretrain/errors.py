"""Errors of the learning; the tree is drawn in data_prep/errors.py."""

from sharding.errors import ConfigError, DataError, MendableError, ShardError

__all__ = ["CheckpointError", "ConfigError", "DataError", "MendableError", "ShardError"]


class CheckpointError(DataError):
    pass
