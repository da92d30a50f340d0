"""How far a run is: one live line on a terminal, plain lines in a log file."""

import math
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

LINE_EVERY_S = 20.0
SHOWN = {"train/loss": "loss {:.4f}", "valid/r2": "R2 {:.3f}", "speed/tokens_s": "{:,.0f} tokens/s"}


class StepProgress:
    """Steps done of all, with loss, validation R2, tokens/s and time left; use as a context."""

    def __init__(self, total: int, start: int, quiet: bool = False):
        """`quiet` ones show nothing: those of all ranks but one."""
        self.total, self.start, self.quiet = total, start, quiet
        self.console = Console(stderr=True)
        self._latest: dict[str, float] = {}
        self._began = self._last_line = time.monotonic()
        columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"))
        live = self.console.is_terminal and not quiet
        self._bar = Progress(*columns, console=self.console, transient=True) if live else None

    def __enter__(self) -> "StepProgress":
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task("", total=self.total, completed=self.start)
        return self

    def __exit__(self, *error) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, step: int, row: dict[str, float], told: bool) -> None:
        """Show a step with what its row of metrics brings, and the latest of what it lacks.

        `told` asks for a plain line now; else one comes every 20 s.
        """
        self._latest |= {name: row[name] for name in SHOWN if not math.isnan(row.get(name, math.nan))}
        now = time.monotonic()
        if self.quiet or (self._bar is None and not told and now - self._last_line < LINE_EVERY_S):
            return
        parts = [text.format(self._latest[name]) for name, text in SHOWN.items() if name in self._latest]
        done = step - self.start
        if done > 0:
            parts.append(f"{_duration((self.total - step) * (now - self._began) / done)} left")
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description="  ".join(parts))
        else:
            self._last_line = now
            self.console.print(f"step {step}/{self.total}  " + "  ".join(parts), highlight=False, soft_wrap=True)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours:02d} h"
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
