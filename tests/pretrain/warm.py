"""Real processes to be killed, at some milliseconds each: one that has imported everything forks them.

A fork of the test process itself would copy the locks of its threads; a process of its own for each takes seconds.
"""

import os
import pickle
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pretrain.errors import MendableError

ROOT = Path(__file__).parents[2]
GRACE_S = 5.0  # that the others have to end by themselves when a rank failed
PATIENCE_S = 300.0
ENDED = 0  # the number of no process


@dataclass(frozen=True)
class Moment:
    """When a process gets a signal: once paths in `folder` fit each pattern, one after another, and `seconds` after that."""

    seconds: float = 0.0
    folder: str = ""
    patterns: tuple[str, ...] = ()
    signal: int = signal.SIGKILL
    rank: int = 0  # that gets it


class Warm:
    """Runs functions in fresh forks of a process that has imported `module`; a context manager."""

    def __init__(self, module: str):
        self.module = module

    def __enter__(self) -> "Warm":
        command = [sys.executable, "-c", f"import {self.module}; from tests.pretrain.warm import serve; serve()"]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        return self

    def __exit__(self, *_) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def run(self, work: Callable, *arguments, moment: Moment | None = None, ranks: int = 1) -> tuple[list[int], float]:
        """Exit codes (negative: the signal that ended it) of one process a rank, and the seconds they took."""
        pickle.dump((work, arguments, moment, ranks), self._process.stdin)
        self._process.stdin.flush()
        return pickle.load(self._process.stdout)


def serve() -> None:
    """Jobs from the standard input, one after another, until it ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the jobs print is no answer
    while True:
        try:
            work, arguments, moment, ranks = pickle.load(sys.stdin.buffer)
        except EOFError:
            os._exit(0)  # at once: nothing here needs the seconds in which all that was imported is taken down
        pickle.dump(_done(work, arguments, moment, ranks), answers)
        answers.flush()


def _done(work: Callable, arguments: tuple, moment: Moment | None, ranks: int) -> tuple[list[int], float]:
    started, port = time.monotonic(), _free_port()
    running = {_forked(work, arguments, _environment(rank, ranks, port)): rank for rank in range(ranks)}
    pids, codes, failed = list(running), [0] * ranks, None
    strikes = _strikes(moment, pids) if moment else iter(())
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        now = time.monotonic()
        if pid:
            codes[running.pop(pid)] = os.waitstatus_to_exitcode(status)
            failed = failed or (now if status else None)
        elif now - (failed or now) > GRACE_S or now - started > PATIENCE_S:
            for left in running:
                os.kill(left, signal.SIGKILL)
        target = next(strikes, ENDED)
        if target is None:
            continue
        if target in running:  # not yet waited for, so that the number is still its own
            os.kill(target, moment.signal)
        time.sleep(0.002)
    return codes, time.monotonic() - started


def _strikes(moment: Moment, pids: list[int]) -> Iterator[int | None]:
    """The process to be struck once its moment has come; None each time before."""
    for pattern in moment.patterns:
        while not any(Path(moment.folder).glob(pattern)):
            time.sleep(0.0005)
            yield None
    come = time.monotonic() + moment.seconds
    while time.monotonic() < come:
        time.sleep(0.001)
        yield None
    yield pids[moment.rank]


def _forked(work: Callable, arguments: tuple, environment: dict[str, str]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.environ.update(environment)
        work(*arguments)
        code = 0
    except MendableError as error:
        print(error, file=sys.stderr)
        code = error.exit_code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    """What a launcher tells the ranks of one machine; nothing where there is one."""
    if ranks == 1:
        return {}
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port}
    return {name: str(value) for name, value in names.items()} | {"MASTER_ADDR": "127.0.0.1"}


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
