"""A chain of named stages below one folder, each done once: a stamp says what it was done with, and a second run skips it.

A stage's key is a digest of what it is given and of the key of the stage before it, so a change anywhere redoes all that
follows. A stage that was cut short finds what it had written and goes on from there; one begun with other settings starts
from an empty folder.
"""

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from rich.console import Console

from data_prep.errors import ConfigError

STAMPS = ".stages"


@dataclass
class Stages:
    """The chain below `root`; `total` is how many stages the user is told to expect."""

    root: Path
    total: int
    console: Console = field(default_factory=lambda: Console(file=sys.stdout, highlight=False, soft_wrap=True))
    key: str = ""
    number: int = 0

    def run(self, name: str, title: str, given: dict, folder: str, work: Callable[[Path], str]) -> Path:
        """Do the stage, or skip it when it is done; gives its folder below the root.

        `given` (JSON) is what the outcome depends on; `work(folder)` does it and returns a few words on the outcome.
        Raises ConfigError where the folder holds something that no stage wrote.
        """
        self.number += 1
        self.key = hashlib.sha256(
            json.dumps([self.key or version("spikeloom"), name, given], sort_keys=True).encode()
        ).hexdigest()
        output, stamp = self.root / folder, self.root / STAMPS / f"{name}.json"
        known = _read(stamp)
        heading = f"[{self.number}/{self.total}] {title}"
        if known.get("key") == self.key and known.get("done") and output.is_dir():
            self.tell(f"{heading}: already done ({known['done']})", indent=0)
            return output
        self._make_room(output, known)
        _write(stamp, {"key": self.key})
        self.tell(f"{heading} ...", indent=0)
        began = time.monotonic()
        done = work(output)
        seconds = time.monotonic() - began
        _write(stamp, {"key": self.key, "done": done, "seconds": round(seconds, 1)})
        self.tell(f"{done}, {seconds:.0f} s")
        return output

    def tell(self, line: str, indent: int = 6) -> None:
        """Print one line below the stage's heading; what a file says is never read as markup."""
        self.console.print(" " * indent + line, markup=False)

    def _make_room(self, output: Path, known: dict) -> None:
        """Keep what an interrupted stage of the same key left; clear what another left; refuse what is not ours."""
        if not output.is_dir() or not any(output.iterdir()) or known.get("key") == self.key:
            output.mkdir(parents=True, exist_ok=True)
            return
        if "key" not in known:
            raise ConfigError(output, "it holds files that are not the demo's", "give another output=, or remove them")
        shutil.rmtree(output)
        output.mkdir(parents=True)


def files_digest(source: Path, pattern: str) -> list[list]:
    """Name, size and time of change of a file, or of the files below a folder that fit the pattern."""
    files = sorted(path for path in source.glob(pattern) if path.is_file()) if source.is_dir() else [source]
    return [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in files]


def _read(stamp: Path) -> dict:
    try:
        known = json.loads(stamp.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _write(stamp: Path, content: dict) -> None:
    stamp.parent.mkdir(parents=True, exist_ok=True)
    part = stamp.with_name(stamp.name + ".part")
    part.write_text(json.dumps(content), encoding="utf-8")
    os.replace(part, stamp)
