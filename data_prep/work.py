"""One asset of a source -> its session, stored, and a row of what became of it; or the session that is there already."""

import contextlib
import fnmatch
import hashlib
import os
import re
import tempfile
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from data_prep.assembly import opened_session
from data_prep.errors import MendableError, SessionError
from data_prep.recipe import Recipe
from data_prep.report import KEPT, READ, REFUSED, Row
from data_prep.session import Session
from data_prep.shelf import Shelf, key_of, origin_of
from data_prep.source import Asset, Source
from data_prep.store import Stored, save_session


@dataclass(frozen=True)
class Task:
    """What all jobs of a run share."""

    recipe: Recipe
    source: Source
    shelf: Shelf
    staging: Path  # folder for what is being written


@dataclass(frozen=True)
class Job:
    """An asset, and the stored sessions that may be its own."""

    asset: Asset
    own: tuple[Stored, ...] = ()  # made from it, of whatever version: those that are not kept must go
    like: tuple[Stored, ...] = ()  # made from other files of its size: copies, or itself under an earlier name


def jobs_of(source: Source, assets: list[Asset], stored: list[Stored]) -> list[Job]:
    """Each asset with what is stored of it."""
    own: dict[tuple[str, str], list[Stored]] = {}
    like: dict[str, list[Stored]] = {}
    for one in stored:
        own.setdefault(origin_of(one.provenance), []).append(one)
        like.setdefault(one.provenance.get("bytes", ""), []).append(one)
    jobs = []
    for asset in assets:
        mine = own.get(origin_of(_origin(source, asset)), [])
        alike = (one for one in like.get(str(asset.size), []) if one not in mine)
        jobs.append(Job(asset, tuple(mine), tuple(alike)))
    return jobs


def carry_out(task: Task, job: Job) -> Row:
    """The row of one asset, whatever happens to it."""
    began, asset = time.perf_counter(), job.asset
    try:
        with _scratch_in(task.staging):
            row = _Work(task, job).row()
    except MendableError as error:
        row = Row(asset.path, REFUSED, message=str(error))
    except MemoryError:
        hint = "try fewer workers, or a machine with more of it"
        row = Row(asset.path, REFUSED, message=f"{asset.path}: the memory does not suffice for it; {hint}")
    except Exception as error:  # noqa: BLE001 - ours: the other files go on, the report keeps the traceback
        message = f"{asset.path}: {type(error).__name__}: {error}; a fault of spikeloom, see report.json"
        row = Row(asset.path, REFUSED, message=message, trace=traceback.format_exc())
    if row.status == REFUSED:
        with contextlib.suppress(OSError):
            task.shelf.remove(list(job.own))  # what is stored must be what the recipe makes of the file as it is
    return described(replace(row, took_s=round(time.perf_counter() - began, 3)), task, job)


@contextlib.contextmanager
def _scratch_in(folder: Path) -> Iterator[None]:
    """Temporary files lie where sessions are written: /tmp is memory on many clusters. TMPDIR overrules it."""
    before = tempfile.tempdir
    tempfile.tempdir = before if "TMPDIR" in os.environ else str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


def described(row: Row, task: Task, job: Job) -> Row:
    """The row with where its asset came from."""
    asset = job.asset
    return replace(
        row,
        recipe=task.recipe.name,
        bytes=asset.size,
        asset=asset.id,
        digest=row.digest or asset.digest,
        source=task.source.name,
    )


def roster_of(recipe: Recipe, source: Source, asset: Asset) -> Asset | None:
    """The file beside an asset whose unit table the recipe asks for; None where it asks for none, or for this one.

    Names that tell a session (`ses-...`) must tell the same one. Raises SessionError where no file or several fit.
    """
    pattern = recipe.units.roster
    if not pattern or fnmatch.fnmatch(Path(asset.path).name, pattern):
        return None
    found = [one for one in source.siblings(asset) if fnmatch.fnmatch(Path(one.path).name, pattern)]
    mine = _session_in(asset.path)
    found = [one for one in found if not mine or _session_in(one.path) in ("", mine)]
    if len(found) != 1:
        told = f"{len(found) or 'no'} files beside it fit units.roster {pattern!r}"
        raise SessionError(asset.path, told, "correct the pattern, or fetch the file that lists all units")
    return found[0]


def _session_in(path: str) -> str:
    found = re.search(r"(?:^|_)ses-([^_.]+)", Path(path).name)
    return found[1] if found else ""


def _origin(source: Source, asset: Asset) -> dict[str, str]:
    return {**source.provenance(asset), "source": source.name, "file": asset.path}


class _Work:
    """The steps of one job."""

    def __init__(self, task: Task, job: Job):
        self.task, self.job, self.asset = task, job, job.asset
        self.roster = roster_of(task.recipe, task.source, job.asset)

    def row(self) -> Row:
        return self._kept() or self._read()

    def _read(self) -> Row:
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(self.task.source.opened(self.asset))
            roster = stack.enter_context(self.task.source.opened(self.roster)) if self.roster else None
            digests = stack.enter_context(ThreadPoolExecutor(1)).submit(self._digests, file, roster)
            if any(one.provenance.get("bytes") == str(self.asset.size) for one in (*self.job.own, *self.job.like)):
                if kept := self._kept(digests.result()):  # touched or renamed, yet the same bytes: no need to read it
                    return kept
            session = stack.enter_context(opened_session(file, self.task.recipe, roster))
            session = self._with_provenance(session, digests.result(), streamed=not isinstance(file, Path))
            staged = save_session(session, self.task.staging)
            self._refuse_changed(file)
        status = READ if self.task.shelf.place(staged, session.id, [*self.job.own, *self._renamed(session)]) else KEPT
        told = session.provenance
        notes = "; ".join(told.get("notes", "").splitlines())
        counts = len(session.units), len(session.spikes), session.domain.seconds
        streamed = told["streamed"] == "yes"
        return Row(self.asset.path, status, session.id, *counts, notes, digest=told["digest"], streamed=streamed)

    def _kept(self, digests: tuple[str, str] | None = None) -> Row | None:
        """The row of an asset whose session is there, made from the same bytes, by the same recipe, in this format."""
        for one in (*self.job.own, *self.job.like):
            told = one.provenance
            digest, roster = digests or (_known(self.asset, told, ""), _known(self.roster, told, "roster_"))
            if told.get("key") != key_of(digest, self.task.recipe, roster) or not self._same_name(one):
                continue
            self.task.shelf.remove([other for other in self.job.own if other.path != one.path])
            notes = "; ".join(told.get("notes", "").splitlines())
            counts = one.units, one.spikes, one.seconds
            streamed = told.get("streamed") == "yes"
            return Row(self.asset.path, KEPT, one.id, *counts, notes, digest=told["digest"], streamed=streamed)
        return None

    def _same_name(self, one: Stored) -> bool:
        """Whether the name of the session does not come from a name that its file no longer has."""
        before = Path(one.provenance["file"]).stem
        return before == Path(self.asset.path).stem or not one.id.endswith(f"_{before}")

    def _renamed(self, session: Session) -> list[Stored]:
        """Sessions of the same bytes under a name that the source no longer has."""
        names, digest = {asset.path for asset in self.task.source.assets}, session.provenance["digest"]
        return [
            one
            for one in self.job.like
            if one.provenance.get("digest") == digest and one.provenance["file"] not in names
        ]

    def _digests(self, file: object, roster: object) -> tuple[str, str]:
        return _digest(self.asset, file), (_digest(self.roster, roster) if self.roster else "")

    def _with_provenance(self, session: Session, digests: tuple[str, str], streamed: bool) -> Session:
        told = {
            **session.provenance,
            **_origin(self.task.source, self.asset),
            "bytes": str(self.asset.size),
            "modified": self.asset.modified,
            "digest": digests[0],
            "streamed": "yes" if streamed else "no",
            "recipe_part": str(self.task.recipe.part),
        }
        if self.roster:
            told |= {"roster": self.roster.path, "roster_digest": digests[1]}
            told |= {"roster_bytes": str(self.roster.size), "roster_modified": self.roster.modified}
        return replace(session, provenance={**told, "key": key_of(digests[0], self.task.recipe, digests[1])})

    def _refuse_changed(self, file: object) -> None:
        if self.asset.digest or not isinstance(file, Path) or not file.is_file():
            return
        now = file.stat()
        if (now.st_size, str(now.st_mtime_ns)) != (self.asset.size, self.asset.modified):
            raise SessionError(
                self.asset.path, "it changed while it was read", "run the command again when it is whole"
            )


def _known(asset: Asset | None, told: dict[str, str], prefix: str) -> str:
    """The digest of an asset without reading it: the archive's, or the one of before if size and date are as then."""
    if asset is None:
        return ""
    seen = (told.get(f"{prefix}bytes"), told.get(f"{prefix}modified"), told.get(prefix.removesuffix("_") or "file"))
    unchanged = seen == (str(asset.size), asset.modified, asset.path)
    return asset.digest or (told.get(f"{prefix}digest", "") if unchanged else "")


def _digest(asset: Asset, file: object) -> str:
    """The digest of an asset's bytes; of a folder (zarr) that of the names and digests in it."""
    if asset.digest:
        return asset.digest
    if not isinstance(file, Path):
        return f"unchecked:{asset.id}:{asset.size}:{asset.modified}"
    if file.is_file():
        return f"sha256:{_sha256(file)}"
    parts = [
        f"{path.relative_to(file).as_posix()} {_sha256(path)}" for path in sorted(file.rglob("*")) if path.is_file()
    ]
    return f"sha256-of-list:{hashlib.sha256(chr(10).join(parts).encode()).hexdigest()}"


def _sha256(path: Path) -> str:
    try:
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise SessionError(
            path.name, f"it cannot be read ({error.strerror})", "look at the file and its disk"
        ) from error
