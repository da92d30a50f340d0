"""A part of the work ("3/16", or a task of a SLURM array) -> the assets that this process reads."""

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from data_prep.errors import ConfigError


@dataclass(frozen=True)
class Part:
    """One of several processes that share the assets of a source; counted from 1."""

    number: int = 1
    count: int = 1

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def has(self, path: str) -> bool:
        """Whether the asset of that path is this part's.

        A hash of the path decides, and nothing else: processes that start hours apart, while files come and go,
        still read each file once and leave none out.
        """
        return int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big") % self.count == self.number - 1


def part_of(text: str, environment: Mapping[str, str] = os.environ) -> Part:
    """The part that a config names; raises ConfigError."""
    if text == "slurm":
        return _of_slurm(environment)
    found = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    if not found:
        raise ConfigError("part", f"{text!r} is no part", "write i/N, such as 3/16, or slurm inside an array job")
    number, count = map(int, found.groups())
    if not 1 <= number <= count:
        raise ConfigError(
            "part", f"there is no part {text}", f"count from 1/{max(count, 1)} to {max(count, 1)}/{max(count, 1)}"
        )
    return Part(number, count)


def _of_slurm(environment: Mapping[str, str]) -> Part:
    names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_COUNT")
    try:
        task, first, count = (int(environment[name]) for name in names)
        step = int(environment.get("SLURM_ARRAY_TASK_STEP", "1"))
    except (KeyError, ValueError) as error:
        do = "submit it as an array (sbatch --array=0-15 ...), or write part=i/N, as spikeloom submit does"
        raise ConfigError("part", f"slurm, but {' or '.join(names)} is not set", do) from error
    place, rest = divmod(task - first, max(step, 1))
    if rest or not 0 <= place < count:
        do = "submit a range without holes; what is finished already is kept, so any range of any length will do"
        raise ConfigError("part", f"task {task} is not one of {count} from {first} in a row", do)
    return Part(place + 1, count)
