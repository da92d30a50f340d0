"""Rows into a table for a person: drawn on a terminal, plain aligned lines in a file or a pipe."""

import shutil
import sys
import textwrap
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Prints rows under their columns; numbers stand right, a column without any value is left out."""
    cells = [[as_text(value) for value in row] for row in rows]
    kept = [n for n in range(len(columns)) if not cells or any(row[n] for row in cells)]
    columns = [columns[n] for n in kept]
    numeric = [all(isinstance(row[n], (int, float)) or row[n] is None for row in rows) for n in kept]
    cells = [[row[n] for n in kept] for row in cells]
    if sys.stdout.isatty():
        _draw(title, columns, cells, numeric)
    else:
        _write(title, columns, cells, numeric)


def print_texts(title: str, columns: tuple[str, str], rows: Sequence[tuple[str, str]]) -> None:
    """Prints names and what is said of each: on a terminal each text wrapped below its name, else a table."""
    if not sys.stdout.isatty():
        print_table(title, columns, rows)
        return
    Console().print(f"[bold]{title}[/]")
    width = shutil.get_terminal_size().columns - 1
    for name, said in rows:
        print(f"  {as_text(name)}")
        for line in textwrap.wrap(as_text(said), width - 6, break_long_words=False, break_on_hyphens=False):
            print(f"      {line}")
    print()


def _draw(title, columns, cells, numeric) -> None:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_header=any(columns))
    for name, right in zip(columns, numeric):
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))  # Text: what a file says is never read as markup
    Console().print(table)


def _write(title, columns, cells, numeric) -> None:
    widths = [max(len(line[n]) for line in [columns, *cells]) for n in range(len(columns))]
    print(title)
    for line in [columns, *cells] if any(columns) else cells:
        parts = [cell.rjust(w) if right else cell.ljust(w) for cell, w, right in zip(line, widths, numeric)]
        print("  " + "  ".join(parts).rstrip())


def as_text(value: object) -> str:
    """A cell: grouped digits, four significant ones of a fraction, one printable line of anything else."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    line = " ".join(str(value).split())
    return "".join(letter if letter.isprintable() else "?" for letter in line)  # a file's words never steer a terminal
