"""`trainer.devices=N` -> N processes on this machine, each the same command line again, as one rank of a training.

The process that starts them only watches: it passes signals on, ends the others when one fails, and gives the exit code
of the first that failed. Rank 0 owns the terminal; of the others only what they say on stderr is seen.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from data_prep.errors import ConfigError
from pretrain.errors import MendableError, Stopped, ToldElsewhere

STARTER = "SPIKELOOM_STARTER"  # in a rank's environment: the id of the process that started it
LOOK_S = 0.02  # between two looks at the ranks
ALONE_S = (
    5.0  # that the others have, once one has failed, to end by themselves: they say why, or notice that it is gone
)
ENDING_S = 5.0  # that they have after being asked to
PASSED_ON = {
    signal.SIGINT: signal.SIGINT,
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGUSR1: signal.SIGUSR1,
    signal.SIGHUP: signal.SIGTERM,  # the terminal went away: save and stop
}
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def run_ranks(devices: int, device: str) -> int | None:
    """Run this command as `devices` ranks, one a GPU where there are GPUs, and give its exit code.

    None where this process is to go on itself: it is to be alone, or is already a rank. 0 devices are all GPUs. Raises
    ConfigError for numbers that this machine cannot give.
    """
    from pretrain.ranks import launched

    if launched():
        _follow_starter()
        return None
    count = _count(devices, device)
    return None if count == 1 else start_ranks([sys.executable, *sys.orig_argv[1:]], count)


def start_ranks(command: list[str], count: int) -> int:
    """Run a command as ranks 0 to count - 1 of this machine until all have ended; 0 or the first failure's exit code."""
    ranks: list[subprocess.Popen] = []
    with _port() as port, _passing_on(ranks) as asked:
        told = os.environ | {
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            STARTER: str(os.getpid()),
        }
        told.setdefault("OMP_NUM_THREADS", str(max(1, cores() // count)))
        try:
            for rank in range(count):
                ranks.append(_started(command, told | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, rank))
            return _watched(ranks, asked)
        finally:
            _end(ranks, signal.SIGKILL)


def rank_told() -> int:
    """This process's rank as its environment tells it; 0 where it tells none."""
    alone = os.environ.get("SLURM_STEP_NUM_TASKS", "1") == "1"
    rank = os.environ.get("RANK") or ("0" if alone else os.environ.get("SLURM_PROCID", "0"))
    return int(rank) if rank.isdecimal() else 0


def told_by_another(error: MendableError) -> bool:
    """Whether another rank says it, so that this one ends in silence."""
    return isinstance(error, ToldElsewhere) or (isinstance(error, Stopped) and rank_told() > 0)


def _count(devices: int, device: str) -> int:
    import torch

    gpus = 0 if device == "cpu" else torch.cuda.device_count()
    if devices == 0 and device == "cpu":
        raise ConfigError("trainer.devices", "0 means every GPU, and device is cpu", "give the number of processes")
    if devices < 0:
        raise ConfigError("trainer.devices", f"is {devices}", "give a number of processes, or 0 for every GPU")
    if gpus and devices > gpus:
        found = f"is {devices}, and this machine has {gpus} GPUs"
        raise ConfigError("trainer.devices", found, f"give at most {gpus}, or trainer.device=cpu")
    return devices or max(gpus, 1)


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _port() -> Iterator[int]:
    """A port on which rank 0 can listen, and that nobody else is given meanwhile: bound, but not listened on."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as rank 0 will: then both may have it
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@contextmanager
def _passing_on(ranks: list[subprocess.Popen]) -> Iterator[list[int]]:
    """While inside, signals go to the ranks, which have sessions of their own, so that each reaches each just once.

    Gives the signals that came so far.
    """
    asked: list[int] = []

    def pass_on(number: int, frame: object) -> None:
        asked.append(number)
        for rank in ranks:
            rank.send_signal(PASSED_ON[number])  # does nothing where it has ended

    # one that is ignored (nohup) stays so
    before = {number: signal.getsignal(number) for number in PASSED_ON}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, pass_on)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _started(command: list[str], environment: dict[str, str], rank: int) -> subprocess.Popen:
    out = None if rank == 0 else subprocess.DEVNULL
    return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=out, start_new_session=True)


def _watched(ranks: list[subprocess.Popen], asked: list[int]) -> int:
    """Wait for all; where one fails, end the others."""
    first, since, measures = None, 0.0, [(ALONE_S, signal.SIGTERM), (ALONE_S + ENDING_S, signal.SIGKILL)]
    while True:
        left = [rank for rank in ranks if rank.poll() is None]
        failed = [(rank.returncode > 0, n) for n, rank in enumerate(ranks) if rank.returncode]
        if failed and first is None:
            first, since = min(failed)[1], time.monotonic()  # one that was killed is why others failed with it
        if not left:
            break
        if first is not None and measures and time.monotonic() - since > measures[0][0]:
            _end(left, measures.pop(0)[1])
        time.sleep(LOOK_S)
    if first is None:
        return 0
    code = ranks[first].returncode
    if code < 0 and not asked:
        _say_killed(first, -code)
    return code if code > 0 else 128 - code


def _say_killed(rank: int, number: int) -> None:
    why = " (out of memory?)" if number == signal.SIGKILL else ""
    what = f"rank {rank}: was ended by {signal.Signals(number).name}{why}"
    print(f"spikeloom: {what}; run the same command again to go on from the last save", file=sys.stderr)


def _end(ranks: list[subprocess.Popen], number: int) -> None:
    """Ask ranks to end; with SIGKILL their own processes too."""
    for rank in ranks:
        if rank.poll() is None:
            os.killpg(rank.pid, number) if number == signal.SIGKILL else rank.send_signal(number)
    if number == signal.SIGKILL:
        for rank in ranks:
            rank.wait()


def _follow_starter() -> None:
    """Make a rank that we started stop, with a save, when its starter is gone: a killed one could not pass that on."""
    starter = os.environ.get(STARTER)
    if starter is None or sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(starter):  # gone before we asked
        os.kill(os.getpid(), signal.SIGTERM)
