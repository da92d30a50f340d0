"""How far a long stage is: a moving bar on a terminal, a plain line for each item in a log file."""

import sys

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class ItemProgress:
    """Counts items of a stage on stderr; a context manager, so that the bar is taken away again."""

    def __init__(self, verb: str, total: int | None = None):
        self.verb, self.total, self.done = verb, total, 0
        columns = (
            TextColumn(verb),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
        )
        self.bar = Progress(*columns, console=Console(stderr=True), transient=True) if sys.stderr.isatty() else None

    def __enter__(self) -> "ItemProgress":
        if self.bar is not None:
            self.task = self.bar.add_task("", total=self.total)
            self.bar.start()
        return self

    def __exit__(self, *error) -> None:
        if self.bar is not None:
            self.bar.stop()

    def step(self, name: str) -> None:
        """One more item, of that name, is done."""
        self.done += 1
        self._tell(self.done, self.total, name)

    def show(self, done: int, total: int, name: str) -> None:
        """`done` of `total` items are done and `name` comes next; "" where all are done."""
        self._tell(done if self.bar else done + 1, total, name)

    def _tell(self, number: int, total: int | None, name: str) -> None:
        if self.bar is not None:
            self.bar.update(self.task, completed=number, total=total, description=escape(name))
        elif name:
            print(f"{self.verb} {number}/{total}: {name}", file=sys.stderr, flush=True)
