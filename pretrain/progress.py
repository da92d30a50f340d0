"""How far a run is: one live line on a terminal, plain lines in a log file."""

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

LINE_EVERY_S = 20.0


class StepProgress:
    """Steps done of all, with loss, validation R2, windows/s and time left; use as a context."""

    def __init__(self, total: int, start: int):
        self.total, self.start = total, start
        self.console = Console(stderr=True)
        self._began = self._last_line = time.monotonic()
        columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"))
        self._bar = Progress(*columns, console=self.console, transient=True) if self.console.is_terminal else None

    def __enter__(self) -> "StepProgress":
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task("", total=self.total, completed=self.start)
        return self

    def __exit__(self, *error) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, step: int, windows: int, loss: float | None, r2: float | None, told: bool) -> None:
        """Show a step; `windows` were trained on since the start, `told` asks for a plain line now (else one comes
        every 20 s)."""
        now = time.monotonic()
        if self._bar is None and not told and now - self._last_line < LINE_EVERY_S:
            return
        done, elapsed = step - self.start, max(now - self._began, 1e-9)
        parts = [f"loss {loss:.4f}"] if loss is not None else []
        parts += [f"valid R2 {r2:.3f}"] if r2 is not None else []
        if done > 0:
            parts.append(f"{windows / elapsed:.0f} windows/s")
            parts.append(f"{_duration((self.total - step) * elapsed / done)} left")
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description="  ".join(parts))
        else:
            self._last_line = now
            self.console.print(f"step {step}/{self.total}  " + "  ".join(parts), highlight=False, soft_wrap=True)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
