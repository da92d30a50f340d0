"""Errors of the learning; the tree is drawn in data_prep/errors.py."""

from sharding.errors import ConfigError, DataError, MendableError, ShardError

__all__ = ["CheckpointError", "ConfigError", "DataError", "MendableError", "ShardError", "Stopped", "ToldElsewhere"]
TEMPORARY = 75  # sysexits.h, EX_TEMPFAIL: not done, and worth trying again


class CheckpointError(DataError):
    pass


class Stopped(MendableError):
    """A run that was asked to stop, saved, and goes on when it is started again."""

    exit_code = TEMPORARY


class ToldElsewhere(MendableError):
    """What another rank tells the user: this one ends with its exit code, in silence."""

    def __init__(self, line: str, exit_code: int):
        Exception.__init__(self, line)
        self.exit_code = exit_code

    def __reduce__(self):
        return type(self), (str(self), self.exit_code)
