"""Errors a user can mend: one line, *where: what was found; what to do*.

MendableError            the command line prints it in one line and exits with its `exit_code`
├── ConfigError    (2)   a command, key or value of a configuration
│   └── RecipeError (2)  a recipe that cannot describe any file
└── DataError      (1)   an input file
    ├── SessionError     an NWB file or a stored session
    ├── ShardError       a shard or its index             (sharding/errors.py)
    └── CheckpointError  a checkpoint                     (pretrain/errors.py)
"""


class MendableError(Exception):
    """Something the user can put right, told in one line."""

    exit_code = 1

    def __init__(self, where: object, found: str, do: str):
        super().__init__(f"{where}: {found}; {do}")
        self.where, self.found, self.do = where, found, do

    def __reduce__(self):  # so that it crosses from a worker process unchanged
        return type(self), (self.where, self.found, self.do)


class ConfigError(MendableError):
    exit_code = 2


class RecipeError(ConfigError):
    pass


class DataError(MendableError):
    exit_code = 1


class SessionError(DataError):
    pass
