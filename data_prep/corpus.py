"""A corpus: dandisets with their recipes and the sessions wanted of each -> stored sessions, and what is missing by name."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.errors import ConfigError, MendableError
from data_prep.prepare import REFUSED, PrepareConfig, Row, prepare
from data_prep.recipe import Recipe
from data_prep.recipe_check import check_recipe
from data_prep.source import ArchiveConfig, pattern_of
from data_prep.store import atomic

CORPUS_FILE = "corpus.json"


@dataclass(frozen=True)
class MemberConfig:
    """The sessions that a corpus takes of one source."""

    recipe: Recipe = field(default_factory=Recipe)
    "How they are read (a file of configs/dandisets)."
    folder: str = ""
    "Folder below the corpus's root that holds the files."
    file: str = "**/{}.nwb"
    "Pattern of a session's file; {} stands for the session's name."
    sessions: list[str] = field(default_factory=list)
    "Names of the sessions to pretrain on; a pattern (sub-C_*) takes every file that fits, and at least one."
    held_out: list[str] = field(default_factory=list)
    "Names of the sessions that are read too, but never pretrained on."


@dataclass(frozen=True)
class CorpusConfig:
    """Which sessions of which sources make one corpus, and where they are stored."""

    name: str = ""
    "Short name."
    description: str = ""
    "One sentence for people."
    root: str = ""
    "Folder that holds a folder of files for each member."
    output: str = "sessions"
    "Folder for the stored sessions; those of an unchanged file and recipe found there are kept."
    workers: int = 2
    "Files read at a time."
    fetch: bool = True
    "Whether a dandiset that has no folder below the root is taken from the archive, listed files only."
    archive: ArchiveConfig = field(default_factory=ArchiveConfig)
    "How the archive is asked."
    members: list[MemberConfig] = field(default_factory=list)
    "The sources, each with a recipe of its own."


@dataclass(frozen=True)
class Expected:
    """A session that the corpus names, and what became of it."""

    recipe: str
    name: str
    held_out: bool
    rows: tuple[Row, ...]  # of the files that fit its name; more than one only for a pattern
    why: str  # why there is none, where there is none

    @property
    def found(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.status != REFUSED)


@dataclass(frozen=True)
class CorpusReport:
    """Every session that was asked for, in the order of the corpus."""

    sessions: tuple[Expected, ...]
    output: str
    notes: tuple[str, ...] = ()  # of the sources and their runs, which a person should hear

    @property
    def missing(self) -> tuple[Expected, ...]:
        return tuple(one for one in self.sessions if not one.found)

    @property
    def exit_code(self) -> int:
        """0 where every session that the corpus names is there, else 1."""
        return 1 if self.missing or any(len(one.found) < len(one.rows) for one in self.sessions) else 0

    def ids(self, held_out: bool) -> list[str]:
        """Ids of the stored sessions to pretrain on, or of those held out."""
        return [row.session for one in self.sessions if one.held_out == held_out for row in one.found]


def prepare_corpus(config: CorpusConfig, on_row: Callable[[Row], None] | None = None) -> CorpusReport:
    """Read every session that the corpus names, and write corpus.json beside the stored sessions.

    A source that is not there makes its sessions missing and stops nothing. Raises ConfigError for a corpus that no
    files could satisfy.
    """
    check_corpus(config)
    sessions, notes = [], []
    for member in config.members:
        expected, said = _prepared(config, member, on_row)
        sessions += expected
        notes += [f"{member.recipe.name}: {note}" for note in said if note]
    report = CorpusReport(tuple(sessions), config.output, tuple(notes))
    _write(config, report)
    return report


def check_corpus(config: CorpusConfig) -> None:
    """Raise ConfigError for a corpus without members, with a recipe or a session twice, or with a recipe at fault."""
    where = f"corpus {config.name or '(unnamed)'}"
    if not config.members:
        raise ConfigError(where, "no members", "give members, each with recipe, folder and sessions")
    recipes = [member.recipe.name for member in config.members]
    for member, recipe in zip(config.members, recipes):
        check_recipe(member.recipe)
        names = [*member.sessions, *member.held_out]
        twice = sorted({name for name in names if names.count(name) > 1})
        if recipes.count(recipe) > 1:
            raise ConfigError(where, f"two members have the recipe {recipe}", "put their sessions into one member")
        if not names:
            raise ConfigError(f"{where} {recipe}", "no sessions", "list them")
        if twice:
            raise ConfigError(f"{where} {recipe}", f"{twice[0]} is listed twice", "list a session once")
        if "{}" not in member.file:
            raise ConfigError(f"{where} {recipe}", f"file {member.file!r} has no {{}}", "say where the name stands")


def place_of(config: CorpusConfig, member: MemberConfig) -> str:
    """Where a member's files are taken from: its folder, else `dandi`; "" where neither is to be had."""
    folder = Path(config.root or ".").expanduser() / member.folder
    if member.folder and folder.is_dir():
        return str(folder)
    return "dandi" if config.fetch and member.recipe.dandiset else ""


def there(config: CorpusConfig, member: MemberConfig) -> list[str] | None:
    """Names of a member's sessions that have a file in its folder; None where they are to come from the archive."""
    place = place_of(config, member)
    if place == "dandi":
        return None
    paths = [path.relative_to(place).as_posix() for path in Path(place).rglob("*")] if place else []
    fit = {name: pattern_of(member.file.replace("{}", name)) for name in (*member.sessions, *member.held_out)}
    return [name for name, pattern in fit.items() if any(map(pattern.fullmatch, paths))]


def _prepared(
    config: CorpusConfig, member: MemberConfig, on_row: Callable[[Row], None] | None
) -> tuple[list[Expected], tuple[str, ...]]:
    """What became of a member's sessions, and what its run has to say besides."""
    names = [(name, False) for name in member.sessions] + [(name, True) for name in member.held_out]
    patterns = {name: member.file.replace("{}", name) for name, _ in names}
    place, rows, why, notes = place_of(config, member), (), "", ()
    if place:
        wanted = PrepareConfig(
            recipe=member.recipe,
            source=place,
            output=config.output,
            workers=config.workers,
            files=list(patterns.values()),
            archive=config.archive,
        )
        try:
            report = prepare(wanted, on_row)
            rows, notes = report.rows, (*report.notes, report.message)
        except MendableError as error:  # nothing there fits, or the archive cannot be reached
            why = str(error)
    else:
        why = f"no folder {Path(config.root or '.') / member.folder}"
    found = []
    for name, held_out in names:
        pattern = pattern_of(patterns[name])
        own = tuple(row for row in rows if pattern.fullmatch(row.file))
        refusals = "; ".join(row.message for row in own if row.status == REFUSED)
        found.append(Expected(member.recipe.name, name, held_out, own, refusals or why or f"no file {patterns[name]}"))
    return found, notes


def _write(config: CorpusConfig, report: CorpusReport) -> None:
    content = {
        "format": 1,
        "corpus": config.name,
        "pretraining": report.ids(held_out=False),
        "held_out": report.ids(held_out=True),
        "missing": [{"recipe": one.recipe, "session": one.name, "why": one.why} for one in report.missing],
    }
    output = Path(config.output)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError("output", f"{output} cannot be made ({error.strerror})", "choose another folder") from error
    with atomic(output / CORPUS_FILE, CORPUS_FILE) as stream:
        stream.write(json.dumps(content, indent=1).encode())
