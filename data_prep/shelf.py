"""A folder of stored sessions, and what each was made from -> which may stay, and a place for new ones.

Any number of processes, on any number of machines, may work in one folder. What they do to files that have their
final name, they do one after another under a lock that ends with its process, however that ends; what is
being written lies in `.prepare/run-*/` until it is whole.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_prep.errors import SessionError
from data_prep.recipe import Recipe
from data_prep.store import FORMAT, Stored, describe, list_sessions, session_path

HIDDEN = ".prepare"
ABANDONED_S = 24 * 3600  # where no lock tells, a run that has written nothing for so long is dead


def key_of(digest: str, recipe: Recipe, roster: str = "") -> str:
    """Address of a session by its content: 32 hex digits of the digest of its file (and of its roster), of the recipe
    and of the format it is stored in."""
    return hashlib.sha256(json.dumps([FORMAT, recipe.hash(), digest, roster]).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Shelf:
    """The folder of stored sessions."""

    folder: Path

    def stored(self, recipe: Recipe) -> list[Stored]:
        """Sessions of recipes of this name (and part); a damaged one is none, it will be made anew."""
        found = (_described(path) for path in list_sessions(self.folder))
        return [one for one in found if one is not None and _by(one.provenance) == (recipe.name, recipe.part)]

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Only one process is inside at a time; where the file system has no locks there is none."""
        with open(self.folder / HIDDEN / "lock", "a") as stream:
            with contextlib.suppress(OSError):
                fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def run(self) -> Iterator[Path]:
        """A folder for what this run has half-written; leavings of runs that were killed are removed first."""
        hidden = self.folder / HIDDEN
        hidden.mkdir(exist_ok=True)
        with contextlib.ExitStack() as stack:
            with self.locked():
                _sweep(self.folder)
                staging = Path(tempfile.mkdtemp(prefix=_mine(), dir=hidden))
                alive = stack.enter_context(open(staging / "alive", "a"))
                _hold(alive)
            stack.callback(shutil.rmtree, staging, ignore_errors=True)
            yield staging

    def place(self, staged: Path, session_id: str, outdated: list[Stored]) -> bool:
        """Give a whole session its name and remove those it replaces; False where an equal one came in between.

        Raises SessionError where another file's session has the same id.
        """
        path, own = session_path(session_id, self.folder), describe(staged).provenance
        with self.locked():
            there = _described(path)
            equal = there is not None and there.provenance.get("key") == own["key"]
            if not equal:
                _refuse_namesake(there, own, session_id)
                os.replace(staged, path)
            self._remove([one for one in outdated if one.path != path])
        return not equal

    def remove(self, outdated: list[Stored]) -> None:
        """Remove sessions that an earlier recipe or an earlier version of a file left."""
        if outdated:
            with self.locked():
                self._remove(outdated)

    def _remove(self, outdated: list[Stored]) -> None:
        for one in outdated:
            there = _described(one.path)
            if there is not None and there.provenance == one.provenance:  # and not what another process put there
                one.path.unlink(missing_ok=True)


def origin_of(told: dict[str, str]) -> tuple[str, str]:
    """Which file of which collection a session was made from, whatever version of the collection it was."""
    return told.get("collection") or told.get("source", ""), told.get("file", "")


def _by(told: dict[str, str]) -> tuple[str, int]:
    """Name of the recipe, and which of several recordings in a file it is for."""
    return told.get("recipe", ""), int(told.get("recipe_part", "0"))


def _described(path: Path) -> Stored | None:
    try:
        return describe(path)
    except SessionError:
        return None


def _refuse_namesake(there: Stored | None, own: dict[str, str], session_id: str) -> None:
    """Two files must not claim one id. The same file, or an equal one of another name, may replace itself, and so
    may any file of this source what an earlier recipe made of another one: that one is made anew as well."""
    if there is None:
        return
    told = there.provenance
    redone = told.get("source") == own["source"] and told.get("recipe_hash") != own["recipe_hash"]
    if origin_of(told) != origin_of(own) and told.get("digest") != own["digest"] and not redone:
        raise SessionError(
            session_id,
            f"already stored from {told.get('file')} of {told.get('source')}",
            f"name sessions apart (session: file in the recipe), or remove {there.path.name}",
        )


def _hold(stream) -> bool | None:
    """Whether the lock on an open file is ours now; None where the file system has no locks."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _sweep(folder: Path) -> None:
    """Remove what dead runs left; another machine's only when it is old, for some file systems lock within one machine."""
    old = time.time() - ABANDONED_S
    for run in (folder / HIDDEN).glob("run-*"):
        with contextlib.suppress(OSError):
            busy = run.stat().st_mtime > old  # a folder's time is that of the last file made or removed in it
            with open(run / "alive", "a") as stream:
                held = _hold(stream)
                if held is not False and (not busy or (held and run.name.startswith(_mine()))):
                    shutil.rmtree(run, ignore_errors=True)
    for path in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < old:
                path.unlink()


def _mine() -> str:
    return f"run-{re.sub('[^A-Za-z0-9]', '-', platform.node())}_"
