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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pretrain.errors import MendableError

ROOT = Path(__file__).parents[2]
GRACE_S = 2.0  # that the ranks left over have before they are killed too
PATIENCE_S = 300.0


@dataclass(frozen=True)
class Moment:
    """When and how a signal is sent: `seconds` after the start and, from then on, once a path fits `pattern`."""

    seconds: float = 0.0
    folder: str = ""
    pattern: str = ""  # empty: at once
    signal: int = signal.SIGKILL
    rank: int = 0  # that receives it

    def come(self, elapsed_s: float) -> bool:
        return elapsed_s >= self.seconds and (not self.pattern or any(Path(self.folder).glob(self.pattern)))


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
            return
        pickle.dump(_done(work, arguments, moment, ranks), answers)
        answers.flush()


def _done(work: Callable, arguments: tuple, moment: Moment | None, ranks: int) -> tuple[list[int], float]:
    started, port = time.monotonic(), _free_port()
    running = {_forked(work, arguments, _environment(rank, ranks, port)): rank for rank in range(ranks)}
    pids, codes, last = list(running), [0] * ranks, None
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        now = time.monotonic() - started
        if pid:
            codes[running.pop(pid)] = os.waitstatus_to_exitcode(status)
            last = now
        elif moment and moment.come(now):
            if pids[moment.rank] in running:
                os.kill(pids[moment.rank], moment.signal)
            moment = None
        elif now > PATIENCE_S or (last is not None and now - last > GRACE_S):
            for left in running:
                os.kill(left, signal.SIGKILL)
        elif not (moment and moment.pattern):
            time.sleep(0.001)
    return codes, time.monotonic() - started


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
