"""Rows of what became of each file -> the report of a run: totals for people, report.json for programs.

A run of one part of N writes `report.NAME.part-i-of-N.json` and then puts `report.json` together from the parts that
are there; the last part to finish thereby writes the whole.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from data_prep.part import Part
from data_prep.store import atomic

READ, KEPT, REFUSED = "read", "kept", "refused"
FORMAT = 2


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
    recipe: str = ""
    bytes: int = 0
    asset: str = ""  # its id in the archive
    digest: str = ""  # of its bytes
    source: str = ""  # the folder or the version of a dandiset it came from
    streamed: bool = False  # read over the network, without a file here and without a check of its bytes

    @property
    def line(self) -> str:
        if self.status == REFUSED:
            return f"{self.status:8s} {self.file}  {self.message}"
        return (
            f"{self.status:8s} {self.file}  {self.session}  {self.units} units  {self.spikes} spikes  "
            f"{self.seconds:.0f} s" + (f"  ({self.message})" if self.message else "")
        )


@dataclass(frozen=True)
class Totals:
    """Sums over rows; a session that two equal files gave counts once."""

    files: int
    read: int
    kept: int
    refused: int
    sessions: int
    units: int
    spikes: int
    hours: float

    @staticmethod
    def of(rows: Iterable[Row]) -> "Totals":
        rows = list(rows)
        good = {row.session: row for row in rows if row.status != REFUSED}.values()
        return Totals(
            len(rows),
            *(sum(row.status == status for row in rows) for status in (READ, KEPT, REFUSED)),
            len(good),
            sum(row.units for row in good),
            sum(row.spikes for row in good),
            sum(row.seconds for row in good) / 3600,
        )

    @property
    def line(self) -> str:
        return (
            f"{self.files} files: {self.read} read, {self.kept} kept, {self.refused} refused; "
            f"{self.units:,} units, {self.spikes:,} spikes, {self.hours:.2f} h"
        )


@dataclass(frozen=True)
class PrepareReport:
    """One row a file, in order of their names."""

    rows: tuple[Row, ...]
    output: str
    message: str = ""  # of the run itself
    recipe: str = ""
    recipe_hash: str = ""
    source: str = ""
    notes: tuple[str, ...] = ()  # of the source, which a person should hear
    part: Part = Part()
    missing: tuple[int, ...] = ()  # parts that have no report yet

    @property
    def refused(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.status == REFUSED)

    @property
    def exit_code(self) -> int:
        """0 where every file became a session, else 1."""
        return 1 if self.refused or self.message else 0

    @property
    def totals(self) -> Totals:
        return Totals.of(self.rows)

    def by_recipe(self) -> dict[str, Totals]:
        """Totals of each recipe, by name."""
        names = sorted({row.recipe for row in self.rows})
        return {name: Totals.of(row for row in self.rows if row.recipe == name) for name in names}

    def last_lines(self) -> list[str]:
        """What the whole came to."""
        lines = [f"{self.totals.line} in {self.output}"]
        if self.part.count > 1:
            lines.append(f"this was part {self.part}; " + _others(self.part, self.missing))
        return [*lines, *self.notes, *([self.message] if self.message else [])]

    def lines(self) -> list[str]:
        """The report as text, a line a file and one of totals."""
        return [*(row.line for row in self.rows), *self.last_lines()]


def _others(part: Part, missing: tuple[int, ...]) -> str:
    if not missing:
        return "all parts are done, and report.json has every file"
    return f"{len(missing)} of {part.count} parts have not ended yet; report.json has the files of the others"


def write_report(report: PrepareReport) -> PrepareReport:
    """Write a run's report into its output folder, beside those of other recipes and parts; gives it with `missing`.

    To be called by one process at a time (shelf.Shelf.locked). Raises SessionError where it cannot be written.
    """
    folder, rows = Path(report.output), report.rows
    missing: tuple[int, ...] = ()
    if report.part.count > 1:
        _write(_part_file(folder, report, report.part.number), report, rows, ())
        parts = {n: _rows(_part_file(folder, report, n), report) for n in range(1, report.part.count + 1)}
        missing = tuple(n for n, found in parts.items() if found is None)
        rows = tuple(sorted((row for found in parts.values() for row in found or ()), key=lambda row: row.file))
    others = tuple(row for row in _rows(folder / "report.json") or () if row.recipe != report.recipe)
    _write(folder / "report.json", report, (*others, *rows), missing)
    return replace(report, missing=missing)


def _part_file(folder: Path, report: PrepareReport, number: int) -> Path:
    name = re.sub(r"[^A-Za-z0-9_+-]", "-", report.recipe)
    return folder / f"report.{name}.part-{number}-of-{report.part.count}.json"


def _write(path: Path, report: PrepareReport, rows: tuple[Row, ...], missing: tuple[int, ...]) -> None:
    whole = PrepareReport(rows, report.output)
    content = {
        "format": FORMAT,
        "recipe": report.recipe,
        "recipe_hash": report.recipe_hash,
        "source": report.source,
        "notes": list(report.notes),
        "parts": report.part.count,
        "missing_parts": list(missing),
        "totals": asdict(whole.totals),
        "recipes": {name: asdict(totals) for name, totals in whole.by_recipe().items()},
        "rows": [asdict(row) for row in rows],
    }
    with atomic(path, path.name) as stream:
        stream.write(json.dumps(content, indent=1).encode())


def _rows(path: Path, same: PrepareReport | None = None) -> list[Row] | None:
    """Rows of a report; None where there is none, or none of this format, or of another recipe or source than `same`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            return None
        if same and (content["recipe_hash"], content["source"]) != (same.recipe_hash, same.source):
            return None
        names = {field.name for field in fields(Row)}
        return [Row(**{name: value for name, value in row.items() if name in names}) for row in content["rows"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # of a version to come, or no report at all: nothing to add to
