"""Commands run side by side, each a process with a log of its own: none takes others with it when it fails."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

POLL_S = 0.1


@dataclass(frozen=True)
class Job:
    """A command; what it says goes to the end of the file `log`."""

    name: str
    command: tuple[str, ...]
    log: Path


def run_all(jobs: Sequence[Job], at_once: int, threads: int, done: Callable[[Job, str | None], None]) -> None:
    """Run the jobs, `at_once` of them at a time, each on `threads` CPU threads (0: as the libraries choose).

    `done(job, reason)` is called as each ends, with one line on why it failed, else None. An interruption ends them all.
    """
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    waiting, running = list(reversed(jobs)), {}
    with _terminated_as_interrupted():
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    job = waiting.pop()
                    with open(job.log, "ab") as log:
                        running[job] = subprocess.Popen(
                            job.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
                        )
                time.sleep(POLL_S)
                for job in [job for job, process in running.items() if process.poll() is not None]:
                    done(job, _reason(job, running.pop(job).returncode))
        finally:
            for process in running.values():
                process.terminate()
            for process in running.values():
                process.wait()


def _reason(job: Job, code: int) -> str | None:
    """Why a job failed: the last line it said; None where it did not."""
    if code == 0:
        return None
    if code < 0:
        return f"ended by signal {-code} ({signal.Signals(-code).name})"
    lines = [line for line in job.log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].strip().removeprefix("spikeloom: ") if lines else f"exit code {code}"


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM unwinds as Ctrl-C does, so that no process is left behind."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
