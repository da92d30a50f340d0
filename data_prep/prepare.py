"""Stage 1: a folder of NWB files and a recipe -> a folder of stored sessions, and a report of what became of each file."""

import hashlib
import json
import multiprocessing
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import connection
from pathlib import Path

from data_prep.assembly import read_session
from data_prep.errors import ConfigError, MendableError, SessionError
from data_prep.nwb import look
from data_prep.recipe import Recipe, check_recipe
from data_prep.store import Stored, atomic, describe, list_sessions, save_session

READ, KEPT, REFUSED = "read", "kept", "refused"


@dataclass(frozen=True)
class PrepareConfig:
    """What to read, how, and where to."""

    recipe: Recipe = field(default_factory=Recipe)
    "What the files keep where (a file of configs/dandisets)."
    source: str = ""
    "Folder of NWB files, or one file."
    output: str = "sessions"
    "Folder for the stored sessions; sessions of an unchanged file and recipe found there are kept."
    workers: int = 2
    "Files read at a time, each in a process of its own; 0 reads them in this process, one by one."
    files: list[str] = field(default_factory=lambda: ["**/*.nwb"])
    "Patterns of file names below `source`."


@dataclass(frozen=True)
class Row:
    """What became of one file."""

    file: str  # relative to the source
    status: str  # read, kept or refused
    session: str = ""
    units: int = 0
    spikes: int = 0
    seconds: float = 0.0  # of the domain
    message: str = ""  # why it was refused; what a person should know of it otherwise
    took_s: float = 0.0
    trace: str = ""  # of an error that is ours, not the file's

    @property
    def line(self) -> str:
        if self.status == REFUSED:
            return f"{self.status:8s} {self.file}  {self.message}"
        return (
            f"{self.status:8s} {self.file}  {self.session}  {self.units} units  {self.spikes} spikes  "
            f"{self.seconds:.0f} s" + (f"  ({self.message})" if self.message else "")
        )


@dataclass(frozen=True)
class PrepareReport:
    """One row a file, in order of their names."""

    rows: tuple[Row, ...]
    output: str
    message: str = ""  # of the run itself

    @property
    def refused(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.status == REFUSED)

    @property
    def exit_code(self) -> int:
        """0 where every file became a session, else 1."""
        return 1 if self.refused or self.message else 0

    def lines(self) -> list[str]:
        """The report as text, a line a file and one of totals."""
        count = {status: sum(row.status == status for row in self.rows) for status in (READ, KEPT, REFUSED)}
        good = [row for row in self.rows if row.status != REFUSED]
        total = (
            f"{len(self.rows)} files: {count[READ]} read, {count[KEPT]} kept, {count[REFUSED]} refused; "
            f"{sum(row.units for row in good)} units, {sum(row.spikes for row in good)} spikes, "
            f"{sum(row.seconds for row in good) / 3600:.2f} h in {self.output}"
        )
        return [*(row.line for row in self.rows), total, *([self.message] if self.message else [])]


def prepare(config: PrepareConfig, on_row: Callable[[Row], None] | None = None) -> PrepareReport:
    """Read every file of the source into a stored session; `on_row` hears of each as it is done.

    A file that cannot be read is a refused row and stops nothing. Raises RecipeError or ConfigError for a recipe or
    an output that serves no file, SessionError where the source is not there.
    """
    check_recipe(config.recipe)
    root, files = find_files(config)
    output = Path(config.output)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError("output", f"{output} cannot be made ({error.strerror})", "choose another folder") from error
    _sweep(output)
    stored = _stored(output, config.recipe)
    rows = []
    names = [path.relative_to(root).as_posix() for path in files]
    jobs = [(path, name, config.recipe, output, stored.get(name, [])) for path, name in zip(files, names)]
    for row in _in_processes(jobs, config.workers) if config.workers > 0 else (_prepare_one(*job) for job in jobs):
        rows.append(row)
        if on_row:
            on_row(row)
    report = PrepareReport(tuple(sorted(rows, key=lambda row: row.file)), str(output))
    return _write_report(report, config.recipe, output)


def preview(config: PrepareConfig) -> list[str]:
    """Lines that tell what the first file holds and what the recipe makes of it; nothing is written."""
    check_recipe(config.recipe)
    _, files = find_files(config)
    contents = look(files[0])
    lines = [
        f"{files[0].name}, the first of {len(files)} files, holds",
        f"  {contents.units}",
        *(f"  {line}" for line in (*contents.series, *contents.tables)),
    ]
    try:
        session = read_session(files[0], config.recipe)
    except SessionError as refusal:
        return [*lines, f"the recipe {config.recipe.name} refuses it: {refusal}"]
    signals = (
        f"  {name}: {s.value.shape[1]} columns, {s.unit_of_measure}, {int(s.valid.sum())} samples"
        + (f", derived from {s.derived_from}" if s.derived_from else "")
        for name, s in session.signals.items()
    )
    parts = [f"  phase {name}: {len(p)} times, {p.seconds:.0f} s" for name, p in session.phases.items()]
    splits = ", ".join(f"{name} {split.seconds:.0f} s" for name, split in session.splits.items())
    notes = (f"  note: {note}" for note in session.provenance["notes"].splitlines())
    return [
        *lines,
        f"the recipe {config.recipe.name} makes session {session.id} of it",
        f"  {len(session.units)} units, {len(session.spikes.time)} spikes, {len(session.trials)} trials",
        *signals,
        *parts,
        f"  domain: {len(session.domain)} stretches, {session.domain.seconds:.0f} s; {splits}",
        *notes,
    ]


def find_files(config: PrepareConfig) -> tuple[Path, list[Path]]:
    """Root and files of a source, sorted by name; raises SessionError or ConfigError where there are none."""
    if not config.source:
        raise ConfigError("source", "empty", "say source=<folder of NWB files>")
    source = Path(config.source).expanduser()
    if not source.exists():
        raise SessionError(config.source, "no such file or folder", "check source")
    if source.is_file():
        return source.parent, [source]
    found = sorted({path for pattern in config.files for path in source.glob(pattern) if path.is_file()})
    if not found:
        raise ConfigError("source", f"nothing in {source} matches {', '.join(config.files)}", "check source and files")
    return source, found


def _sweep(output: Path) -> None:
    """Remove what a killed run left half-written; a live one is never an hour at one file."""
    for path in output.glob(".*.tmp"):
        if path.stat().st_mtime < time.time() - 3600:
            path.unlink(missing_ok=True)


def _stored(output: Path, recipe: Recipe) -> dict[str, list[Stored]]:
    """Sessions of this recipe's name in the output, by the file they came from."""
    found: dict[str, list[Stored]] = {}
    for path in list_sessions(output):
        try:
            one = describe(path)
        except SessionError:
            continue  # damaged: it will be written anew, or be refused by whoever reads it
        if one.provenance.get("recipe") == recipe.name:
            found.setdefault(one.provenance.get("file", ""), []).append(one)
    return found


def _in_processes(jobs: list[tuple], workers: int) -> Iterator[Row]:
    """Rows as they are done; each file has a process of its own, so that one that dies takes no other with it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # the heavy imports happen once, not once a file
    waiting, running = list(reversed(jobs)), {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                job, (ours, theirs) = waiting.pop(), context.Pipe(duplex=False)
                process = context.Process(target=_answer, args=(theirs, job), daemon=True)
                process.start()
                theirs.close()
                running[ours] = process, job
            for ours in connection.wait(list(running)):
                process, job = running.pop(ours)
                yield _result(ours, process, job[1])
    finally:
        for process, _ in running.values():
            process.terminate()


def _result(pipe: connection.Connection, process, file: str) -> Row:
    try:
        row = pipe.recv()
        process.join()
    except EOFError:
        process.join()
        death = f"signal {-process.exitcode}" if process.exitcode < 0 else f"exit code {process.exitcode}"
        hint = "try fewer workers" if process.exitcode == -9 else "read it alone with workers=0 to see why"
        row = Row(file, REFUSED, message=f"{file}: the process that read it died ({death}); {hint}")
    finally:
        pipe.close()
    return row


def _answer(pipe: connection.Connection, job: tuple) -> None:
    pipe.send(_prepare_one(*job))
    pipe.close()


def _prepare_one(path: Path, file: str, recipe: Recipe, output: Path, stored: list[Stored]) -> Row:
    """The row of one file, whatever happens to it."""
    began = time.perf_counter()
    try:
        row = _kept(path, file, recipe, stored) or _read(path, file, recipe, output, stored)
    except MendableError as error:
        row = Row(file, REFUSED, message=str(error))
    except Exception as error:  # noqa: BLE001 - ours: the other files go on, the report keeps the traceback
        row = Row(
            file,
            REFUSED,
            message=f"{file}: {type(error).__name__}: {error}; a fault of spikeloom, see report.json",
            trace=traceback.format_exc(),
        )
    if row.status == REFUSED:
        _remove_outdated(stored, None)
    return replace(row, took_s=round(time.perf_counter() - began, 3))


def _kept(path: Path, file: str, recipe: Recipe, stored: list[Stored]) -> Row | None:
    """The row of a file whose session is there already, made by the same recipe from the same bytes."""
    for one in stored if path.is_file() else ():
        told = one.provenance
        if told.get("recipe_hash") != recipe.hash() or told.get("bytes") != str(path.stat().st_size):
            continue
        if told.get("modified_ns") == str(path.stat().st_mtime_ns) or told.get("sha256") == _sha256(path):
            return Row(file, KEPT, one.id, one.units, one.spikes, one.seconds, "; ".join(told["notes"].splitlines()))
    return None


def _read(path: Path, file: str, recipe: Recipe, output: Path, stored: list[Stored]) -> Row:
    session = read_session(path, recipe)
    size, modified = path.stat().st_size, path.stat().st_mtime_ns
    source = {"file": file, "sha256": _sha256(path), "bytes": str(size), "modified_ns": str(modified)}
    session = replace(session, provenance={**session.provenance, **source})
    written = save_session(session, output)
    _remove_outdated(stored, written)
    return Row(
        file,
        READ,
        session.id,
        len(session.units),
        len(session.spikes.time),
        session.domain.seconds,
        "; ".join(session.provenance["notes"].splitlines()),
    )


def _remove_outdated(stored: list[Stored], written: Path | None) -> None:
    """Sessions an earlier recipe or an earlier version of the file left: what is stored must be what the recipe makes."""
    for one in stored:
        if one.path != written:
            one.path.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write_report(report: PrepareReport, recipe: Recipe, output: Path) -> PrepareReport:
    content = {
        "format": 1,
        "recipe": recipe.name,
        "recipe_hash": recipe.hash(),
        "rows": [asdict(r) for r in report.rows],
    }
    try:
        with atomic(output / "report.json", "report.json") as stream:
            stream.write(json.dumps(content, indent=1).encode())
    except SessionError as error:
        return replace(report, message=str(error))
    return report
