"""How far a long stage is and how long it will yet take: a bar on a terminal, a plain line for each item in a log file."""

import sys
import time
from collections.abc import Callable

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column


class Remaining:
    """Time that is left, from the time that the finished items took; an item weighs what it is told to (bytes, say).

    Items that were there before cost nothing: they shorten the way and say nothing about the speed.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self.clock, self.began, self.left, self.worked = clock, clock(), 0.0, 0.0

    def begin(self, weight: float) -> None:
        """So much is to be done, from now on."""
        self.began, self.left, self.worked = self.clock(), weight, 0.0

    def step(self, weight: float, worked: bool = True) -> None:
        self.left, self.worked = max(self.left - weight, 0.0), self.worked + weight * worked

    @property
    def seconds(self) -> float | None:
        """None where nothing is finished or nothing is left."""
        if not self.worked or not self.left:
            return None
        return (self.clock() - self.began) * self.left / self.worked

    def __str__(self) -> str:
        seconds = self.seconds
        if seconds is None:
            return ""
        if seconds < 99.5:
            return f"about {seconds:.0f} s left"
        return f"about {seconds / 60:.0f} min left" if seconds < 5970 else f"about {seconds / 3600:.1f} h left"


class ItemProgress:
    """Counts items of a stage on stderr; a context manager, so that the bar is taken away again."""

    def __init__(self, verb: str, total: int | None = None):
        self.verb, self.done, self.remaining = verb, 0, Remaining()
        columns = (
            TextColumn(verb),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
        )
        bar = Progress(*columns, console=Console(stderr=True), transient=True, expand=True)
        self.bar = bar if sys.stderr.isatty() else None
        self.begin(total)

    def __enter__(self) -> "ItemProgress":
        if self.bar is not None:
            self.task = self.bar.add_task("", total=self.weight, count=self._count(), left="")
            self.bar.start()
        return self

    def __exit__(self, *error) -> None:
        if self.bar is not None:
            self.bar.stop()

    def begin(self, total: int | None, weight: float | None = None) -> None:
        """So many items are to come, which weigh so much together (by default 1 each)."""
        self.total, self.weight, self.done = total, weight if weight is not None else total, 0
        self.remaining.begin(self.weight or 0.0)

    def step(self, name: str, weight: float = 1.0, worked: bool = True) -> None:
        """One more item, of that name and weight, is done; `worked` is False where it was done before."""
        self.done += 1
        self.remaining.step(weight, worked)
        self._tell(self.done, name)

    def show(self, done: int, total: int, name: str) -> None:
        """`done` of `total` items are done and `name` comes next; "" where all are done."""
        if total != self.total:
            self.begin(total)
        self.remaining.step(done - self.done)
        self.done = done
        self._tell(done + 1, name)

    def _count(self) -> str:
        return f"{self.done}/{'?' if self.total is None else self.total}"

    def _tell(self, number: int, name: str) -> None:
        left = str(self.remaining)
        if self.bar is not None:
            completed = None if self.weight is None else self.weight - self.remaining.left
            told = {"count": self._count(), "left": left, "description": escape(name)}
            self.bar.update(self.task, completed=completed, total=self.weight, **told)
        elif name:
            print(f"{self.verb} {number}/{self.total}: {name}{left and f' ({left})'}", file=sys.stderr, flush=True)
