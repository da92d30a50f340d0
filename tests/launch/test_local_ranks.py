"""Processes of one machine: each its own rank, ended together, their exit code and signals as of one program."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from data_prep.errors import ConfigError, DataError
from launch import cli, local_ranks
from launch.local_ranks import rank_told, run_ranks, start_ranks
from pretrain.errors import Stopped, ToldElsewhere

TOLD = "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS"


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in (*TOLD[:-1], local_ranks.STARTER):
        monkeypatch.delenv(name, raising=False)


def python(code: str, *words) -> list[str]:
    return [sys.executable, "-c", "import os, signal, sys, time\n" + code, *map(str, words)]


def parent(code: str, count: int, **more) -> subprocess.Popen:
    """A process of its own that starts `count` ranks of some code, and ends with their exit code."""
    start = f"from launch.local_ranks import start_ranks; sys.exit(start_ranks({python(code)!r}, {count}))"
    return subprocess.Popen(python(start), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)


def wait_for(paths: list[Path]) -> None:
    limit = time.monotonic() + 30
    while not all(path.exists() for path in paths):
        assert time.monotonic() < limit, "the ranks did not start"
        time.sleep(0.01)


def test_every_rank_is_told_who_it_is_and_shares_the_cores(tmp_path):
    code = f"import json; json.dump(dict(os.environ), open({str(tmp_path)!r} + '/' + os.environ['RANK'], 'w'))"
    assert start_ranks(python(code), 3) == 0
    told = [json.loads((tmp_path / str(rank)).read_text()) for rank in range(3)]
    assert [(t["RANK"], t["LOCAL_RANK"], t["WORLD_SIZE"], t["LOCAL_WORLD_SIZE"]) for t in told] == [
        (str(rank), str(rank), "3", "3") for rank in range(3)
    ]
    assert len({(t["MASTER_ADDR"], t["MASTER_PORT"], t[local_ranks.STARTER]) for t in told}) == 1
    assert all(t["OMP_NUM_THREADS"] == os.environ["OMP_NUM_THREADS"] for t in told)  # what the user set stays


def test_rank_0_has_the_terminal_and_the_others_only_their_complaints():
    rank = "os.environ['RANK']"
    done = parent(f"print('out', {rank}); print('err', {rank}, file=sys.stderr); sys.exit(bool(sys.stdin.read()))", 3)
    out, err = done.communicate(timeout=30)
    assert done.returncode == 0 and out == "out 0\n"
    assert sorted(err.splitlines()) == ["err 0", "err 1", "err 2"]


@pytest.mark.parametrize(
    "code, expected",
    [
        ("sys.exit(0)", 0),
        ("sys.exit(75)", 75),
        ("sys.exit(3 if rank == 1 else 0)", 3),
        ("time.sleep(0.5 * rank); sys.exit(4 + rank)", 4),  # others fail because one did
        ("os.kill(os.getpid(), 9) if rank == 1 else time.sleep(0.3); sys.exit(1)", 137),
    ],
)
def test_the_exit_code_is_the_first_failures(code, expected, capfd):
    assert start_ranks(python("rank = int(os.environ['RANK'])\n" + code), 2) == expected
    found = capfd.readouterr().err
    killed = "spikeloom: rank 1: was ended by SIGKILL (out of memory?); run the same command again"
    assert (killed in found) if expected == 137 else not found


def test_ranks_that_wait_for_one_that_died_are_ended_soon(monkeypatch, capfd):
    """They first have time to say what they know, are then asked, and killed at last."""
    monkeypatch.setattr(local_ranks, "ALONE_S", 0.8)
    monkeypatch.setattr(local_ranks, "ENDING_S", 0.5)
    code = """
rank = int(os.environ["RANK"])
asked = lambda *_: print("asked", rank, file=sys.stderr, flush=True)
signal.signal(signal.SIGTERM, asked)
if rank == 2:
    time.sleep(0.3)
    sys.exit(7)
elif rank == 1:
    time.sleep(0.6)
    print("alone", file=sys.stderr, flush=True)
    sys.exit(1)
while True:
    time.sleep(1)
"""
    began = time.monotonic()
    assert start_ranks(python(code), 3) == 7
    assert 1.3 < time.monotonic() - began < 10
    assert capfd.readouterr().err.split("\n")[:2] == ["alone", "asked 0"]


WAITING = """
from pathlib import Path
here, rank = Path({folder!r}), os.environ["RANK"]
def note(number, frame):
    with open(here / f"signals{{rank}}", "a") as file:
        file.write(signal.Signals(number).name + "\\n")
    if number == signal.SIGTERM:
        time.sleep(0.2)
        sys.exit(75)
for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
    signal.signal(number, note)
(here / f"pid{{rank}}.fresh").write_text(str(os.getpid()))
(here / f"pid{{rank}}.fresh").rename(here / f"pid{{rank}}")
while True:
    time.sleep(0.05)
"""


def test_a_signal_to_the_group_reaches_every_rank_just_once(tmp_path):
    """Ctrl-C goes to all processes of a terminal's group: a rank that got it twice would drop its save."""
    running = parent(WAITING.format(folder=str(tmp_path)), 2, start_new_session=True)
    wait_for([tmp_path / f"pid{rank}" for rank in range(2)])
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
        os.killpg(running.pid, number)
        time.sleep(0.15)
    assert running.communicate(timeout=30) == ("", "") and running.returncode == 75
    expected = ["SIGINT", "SIGUSR1", "SIGTERM"]  # a terminal that went away is a request to stop
    assert [(tmp_path / f"signals{rank}").read_text().split() for rank in range(2)] == [expected] * 2


FOLLOWING = "from launch.local_ranks import _follow_starter\n_follow_starter()\n" + WAITING


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent is gone")
def test_ranks_stop_by_themselves_when_their_starter_is_killed(tmp_path):
    running = parent(FOLLOWING.format(folder=str(tmp_path)), 2)
    pids = [tmp_path / f"pid{rank}" for rank in range(2)]
    wait_for(pids)
    running.kill()
    running.communicate()
    limit = time.monotonic() + 10
    while any(Path(f"/proc/{path.read_text()}").exists() for path in pids):
        assert time.monotonic() < limit, "ranks were left behind"
        time.sleep(0.02)
    assert [(tmp_path / f"signals{rank}").read_text().split() for rank in range(2)] == [["SIGTERM"]] * 2


def test_the_port_is_nobody_elses_until_rank_0_listens_on_it():
    import socket

    with local_ranks._port() as port:
        with socket.socket() as other, pytest.raises(OSError):
            other.bind(("127.0.0.1", port))
        with socket.socket() as ours:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            ours.bind(("0.0.0.0", port))
            ours.listen()


def test_one_device_and_a_rank_go_on_in_their_own_process(monkeypatch):
    assert run_ranks(1, "cpu") is None and run_ranks(1, "auto") is None
    for name, value in zip(TOLD, ("1", "4", "1", "4", "127.0.0.1", "29500")):
        monkeypatch.setenv(name, value)
    assert run_ranks(4, "cpu") is None  # torchrun or we ourselves started it


@pytest.mark.parametrize(
    "gpus, devices, device, count",
    [(0, 0, "auto", 1), (4, 0, "auto", 4), (4, 0, "cuda", 4), (4, 2, "cuda", 2), (1, 3, "cpu", 3), (0, 2, "auto", 2)],
)
def test_how_many_ranks_are_meant(monkeypatch, gpus, devices, device, count):
    """The number of GPUs is pretended; nothing else is asked of torch."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    assert local_ranks._count(devices, device) == count


@pytest.mark.parametrize(
    "devices, device, line",
    [
        (-1, "cpu", "trainer.devices: is -1; give a number of processes, or 0 for every GPU"),
        (3, "cuda", "trainer.devices: is 3, and this machine has 2 GPUs; give at most 2, or trainer.device=cpu"),
        (0, "cpu", "trainer.devices: 0 means every GPU, and device is cpu; give the number of processes"),
    ],
)
def test_numbers_that_cannot_be_had_are_refused(monkeypatch, devices, device, line):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(ConfigError) as caught:
        run_ranks(devices, device)
    assert str(caught.value) == line


def test_the_rank_of_a_line_is_what_the_launcher_says(monkeypatch):
    assert rank_told() == 0
    monkeypatch.setenv("SLURM_PROCID", "2")  # also of a batch script, which is no rank
    assert rank_told() == 0
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "3")
    assert rank_told() == 2
    monkeypatch.setenv("RANK", "1")
    assert rank_told() == 1


@pytest.mark.parametrize(
    "rank, error, code, line",
    [
        ("0", DataError("a", "b", "c"), 1, "spikeloom: a: b; c\n"),
        ("3", DataError("a", "b", "c"), 1, "[rank 3] spikeloom: a: b; c\n"),
        ("3", ToldElsewhere("a: b; c", 2), 2, ""),
        ("0", Stopped("run", "stopped", "go on"), 75, "spikeloom: run: stopped; go on\n"),
        ("3", Stopped("run", "stopped", "go on"), 75, ""),
        ("3", KeyboardInterrupt(), 130, ""),
    ],
)
def test_what_a_rank_says_of_its_end(monkeypatch, capsys, rank, error, code, line):
    def fails(argv):
        raise error

    monkeypatch.setattr(cli, "_run", fails)
    monkeypatch.setenv("RANK", rank)
    assert cli.main(["x"]) == code
    assert capsys.readouterr().err == line


def test_every_line_of_a_ranks_traceback_says_whose_it_is(monkeypatch, capsys):
    monkeypatch.setattr(cli, "_run", lambda argv: [][0])
    monkeypatch.setenv("RANK", "2")
    assert cli.main(["x"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("[rank 2] ") for line in lines) and "IndexError" in lines[-1]


def test_handlers_are_those_from_before_and_what_was_ignored_stays_ignored():
    before = signal.getsignal(signal.SIGTERM)
    ignored = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        seen = []
        look = threading.Timer(0.2, lambda: seen.append([signal.getsignal(n) for n in local_ranks.PASSED_ON]))
        look.start()
        assert start_ranks(python("time.sleep(0.4)"), 1) == 0
        assert signal.SIG_IGN in seen[0] and before not in seen[0] and signal.getsignal(signal.SIGTERM) is before
    finally:
        signal.signal(signal.SIGHUP, ignored)
