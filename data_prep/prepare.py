"""Stage 1: a source of NWB files and a recipe -> a folder of stored sessions, and a report of what became of each file."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from data_prep.assembly import opened_session
from data_prep.errors import ConfigError, SessionError
from data_prep.nwb import look
from data_prep.open_source import open_source
from data_prep.part import Part, part_of
from data_prep.pool import Died, answers
from data_prep.recipe import Recipe
from data_prep.recipe_check import check_recipe
from data_prep.report import KEPT, READ, REFUSED, PrepareReport, Row, write_report
from data_prep.session import Session
from data_prep.shelf import Shelf
from data_prep.source import ArchiveConfig, Asset, Source
from data_prep.work import Job, Task, carry_out, described, jobs_of, roster_of

__all__ = ["KEPT", "READ", "REFUSED", "PrepareConfig", "PrepareReport", "Row", "find_files", "prepare", "preview"]


@dataclass(frozen=True)
class PrepareConfig:
    """What to read, how, and where to."""

    recipe: Recipe = field(default_factory=Recipe)
    "What the files keep where (a file of configs/dandisets)."
    source: str = ""
    "Folder of NWB files or one file; `dandi` for the recipe's dandiset; or the URL of a dandiset's version on any instance."
    output: str = "sessions"
    "Folder for the stored sessions; those found there that were made from the same bytes by the same recipe are kept."
    workers: int = 2
    "Files read at a time, each in a process of its own; 0 reads them in this process, one by one."
    files: list[str] = field(default_factory=list)
    "Patterns of file names below `source`; empty takes the recipe's own."
    subjects: list[str] = field(default_factory=list)
    "Subjects to read (X of sub-X in a path); empty takes all."
    part: str = "1/1"
    "Which share of the files is read: i/N, the same in every process that is told so; `slurm` takes it from the array job."
    archive: ArchiveConfig = field(default_factory=ArchiveConfig)
    "How a DANDI archive is asked."
    limit_s: float = 14400.0
    "Seconds after which a file (its download included) is given up and refused, where workers read: it may be damaged."


def prepare(
    config: PrepareConfig,
    on_row: Callable[[Row], None] | None = None,
    on_start: Callable[[list[Asset]], None] | None = None,
) -> PrepareReport:
    """Read every file of the source into a stored session; `on_start` hears of the files, `on_row` of each that is done.

    A file that cannot be read is a refused row and stops nothing. Raises RecipeError or ConfigError for a recipe or
    an output that serves no file, SessionError where the source is not there.
    """
    check_recipe(config.recipe)
    part, source = part_of(config.part), _source(config)
    assets, shelf, rows = _share(source, part), Shelf(Path(config.output)), []
    if on_start:
        on_start(assets)
    with _writable(shelf) as staging:
        task = Task(config.recipe, source, shelf, staging)
        for row in _rows(task, jobs_of(source, assets, shelf.stored(config.recipe)), config):
            rows.append(row)
            if on_row:
                on_row(row)
        report = PrepareReport(
            rows=tuple(sorted(rows, key=lambda row: row.file)),
            output=config.output,
            recipe=config.recipe.name,
            recipe_hash=config.recipe.hash(),
            source=source.name,
            part=part,
            notes=tuple(source.notes),
        )
        try:
            with shelf.locked():
                return write_report(report)
        except SessionError as error:
            return replace(report, message=str(error))


def preview(config: PrepareConfig) -> list[str]:
    """Lines that tell which files would be read, what the first one holds and what the recipe makes of it.

    No session is written; a file of an archive is fetched into its cache, or streamed.
    """
    check_recipe(config.recipe)
    part, source = part_of(config.part), _source(config)
    assets = _share(source, part)
    lines = [f"{_sum(source.assets)} in {source.name}", *(f"note: {note}" for note in source.notes)]
    if part.count > 1:
        lines.append(f"part {part} of them: {_sum(assets)}")
    first = (assets or list(source.assets))[0]
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(source.opened(first))
            if config.recipe.reader == "nwb":
                contents = look(file)
                lines += [f"{first.path}, the first of them, holds", f"  {contents.units}"]
                lines += [f"  {line}" for line in (*contents.series, *contents.tables)]
            roster = roster_of(config.recipe, source, first)
            beside = stack.enter_context(source.opened(roster)) if roster else None
            session = stack.enter_context(opened_session(file, config.recipe, beside))
            return [*lines, *_facts(session, config.recipe.name)]
        except SessionError as refusal:
            return [*lines, f"the recipe {config.recipe.name} refuses it: {refusal}"]


def find_files(config: PrepareConfig) -> tuple[Path, list[Path]]:
    """Root and files of a source on this machine, sorted by name; raises ConfigError or SessionError for none."""
    source = _source(config)
    if not Path(source.name).is_dir():
        raise ConfigError("source", f"{source.name} is no folder on this machine", "give a folder of files")
    return Path(source.name), [Path(source.name) / asset.path for asset in source.assets]


def _source(config: PrepareConfig) -> Source:
    files = config.files or config.recipe.files
    return open_source(config.source, files, config.subjects, config.archive, config.recipe, Path(config.output))


def _share(source: Source, part: Part) -> list[Asset]:
    return [asset for asset in source.assets if part.has(asset.path)]


def _sum(assets) -> str:
    count = len(assets)
    return f"{count} file{'' if count == 1 else 's'}, {sum(asset.size for asset in assets) / 1e6:,.1f} MB,"


@contextlib.contextmanager
def _writable(shelf: Shelf) -> Iterator[Path]:
    """The folder of this run's half-written files; raises ConfigError where the output can hold none."""
    with contextlib.ExitStack() as stack:
        try:
            shelf.folder.mkdir(parents=True, exist_ok=True)
            staging = stack.enter_context(shelf.run())
        except OSError as error:
            told = f"{shelf.folder} cannot be made or written ({error.strerror})"
            raise ConfigError("output", told, "choose another folder") from error
        yield staging


def _rows(task: Task, jobs: list[Job], config: PrepareConfig) -> Iterator[Row]:
    """Rows as they are done; the largest files come first where several processes share them, so that none ends late."""
    workers = config.workers
    if workers <= 0:
        yield from (carry_out(task, job) for job in jobs)
        return
    jobs = sorted(jobs, key=lambda job: -job.asset.size) if workers > 1 else jobs
    modules = [carry_out.__module__, type(task.source).__module__]
    with contextlib.closing(answers(partial(carry_out, task), jobs, workers, modules, config.limit_s)) as done:
        for job, answer in done:
            yield _of_the_dead(task, job, answer, config.limit_s) if isinstance(answer, Died) else answer


def _of_the_dead(task: Task, job: Job, death: Died, limit_s: float) -> Row:
    file, found = job.asset.path, f"the process that read it died ({death})"
    hint = "read it alone with workers=0 to see why"
    if death.overdue:
        found, hint = f"took longer than {limit_s:g} s", "leave it out if it is damaged, or raise limit_s"
    elif death.exit_code == -9:
        hint = "most likely the memory did not suffice: try fewer workers"
    task.shelf.remove(list(job.own))
    return described(Row(file, REFUSED, message=f"{file}: {found}; {hint}"), task, job)


def _facts(session: Session, recipe: str) -> list[str]:
    signals = (
        f"  {name}: {s.value.shape[1]} columns, {s.unit_of_measure}, {int(s.valid.sum())} samples"
        + (f", derived from {s.derived_from}" if s.derived_from else "")
        for name, s in session.signals.items()
    )
    splits = ", ".join(f"{name} {split.seconds:.0f} s" for name, split in session.splits.items())
    return [
        f"the recipe {recipe} makes session {session.id} of it",
        f"  {len(session.units)} units, {len(session.spikes)} spikes, {len(session.trials)} trials",
        *signals,
        *(f"  phase {name}: {len(p)} times, {p.seconds:.0f} s" for name, p in session.phases.items()),
        f"  domain: {len(session.domain)} stretches, {session.domain.seconds:.0f} s; {splits}",
        *(f"  note: {note}" for note in session.provenance["notes"].splitlines()),
    ]
