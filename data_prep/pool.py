"""Jobs and a function -> answers as they are done, from processes that live as long as there is work.

A process that dies costs the one job it had, and another takes its place. None outlives the process that started it,
and none of them hears the keyboard: who started them ends them.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing import connection
from typing import Any


class Died(Exception):
    """A process ended in the middle of a job."""

    def __init__(self, exit_code: int, overdue: bool = False):
        super().__init__(f"signal {-exit_code}" if exit_code < 0 else f"exit code {exit_code}")
        self.exit_code = exit_code
        self.overdue = overdue  # ended by us, as the job took longer than it may


def answers(
    work: Callable[[Any], Any],
    jobs: Iterable[Any],
    workers: int,
    modules: Sequence[str] = (),
    limit_s: float = float("inf"),
) -> Iterator[tuple[Any, Any]]:
    """(job, work(job)) of each job in the order in which they are done; Died in place of an answer that never came.

    `work`, jobs and answers are pickled; what `work` raises ends its process. Leaving the iteration ends all.
    `modules` are what work needs: they are imported once, and every process is a fork of that. A job that takes longer
    than `limit_s` seconds is ended: a damaged file can hold a library in a loop for ever.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*modules])
    waiting, busy, started = deque(jobs), {}, []
    try:
        while waiting or busy:
            while waiting and len(busy) < workers:
                started.append(worker := _Worker(context, work))
                worker.take(waiting, busy)
            for pipe in connection.wait(list(busy), timeout=_first_due(busy.values(), limit_s)):
                worker = busy.pop(pipe)
                job, answer = worker.job, worker.answer()
                worker.take(waiting, busy)  # before the answer is handed on: it shall not wait for who asked
                yield job, answer
            for worker in busy.values():
                worker.end_overdue(limit_s)
    finally:
        for worker in started:
            worker.end(at_once=worker.pipe in busy)


def _first_due(workers: Iterable["_Worker"], limit_s: float) -> float | None:
    """Seconds until the first job has taken too long; None where none ever will."""
    if limit_s == float("inf"):
        return None
    return max(0.0, min((worker.since for worker in workers), default=0.0) + limit_s - time.monotonic()) + 0.01


class _Worker:
    """One process, and our end of the pipe to it."""

    def __init__(self, context, work: Callable[[Any], Any]):
        self.overdue = False
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, work), daemon=True)
        self.process.start()
        theirs.close()

    def take(self, waiting: deque, busy: dict) -> None:
        """The next job, if there is one and the process still lives."""
        if waiting and not self.pipe.closed:
            try:
                self.pipe.send(waiting[0])
            except OSError:
                return  # it died between two jobs; the job is still the next
            self.job, self.since = waiting.popleft(), time.monotonic()
            busy[self.pipe] = self

    def end_overdue(self, limit_s: float) -> None:
        """End the process if its job has taken too long; its answer is then that it died."""
        if time.monotonic() - self.since > limit_s:
            self.overdue = True
            self.process.kill()

    def answer(self) -> Any:
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            self.pipe.close()
            self.process.join()
            return Died(self.process.exitcode, self.overdue)

    def end(self, at_once: bool) -> None:
        if at_once:
            self.process.kill()
        self.pipe.close()  # one that waits for a job hears that there are no more
        self.process.join()


def _serve(pipe: connection.Connection, work: Callable[[Any], Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        pipe.send(work(job))


def _end_with_parent() -> None:
    connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
