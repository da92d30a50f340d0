"""Worker processes: each lives for many jobs, one that dies costs its own job only, none outlives who started it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from data_prep.pool import Died, answers


def work(job):
    """A process and a number; but for the jobs that end the process, and the one that takes long."""
    if job == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if job == "gone":
        os._exit(7)
    if job == "raises":
        raise ValueError(job)
    if job == "slow":
        time.sleep(60)
    return os.getpid(), job


def test_every_job_is_answered_by_processes_that_live_on():
    done = dict(answers(work, list(range(20)), workers=2))
    assert {job: number for job, (_, number) in done.items()} == {n: n for n in range(20)}
    processes = {process for process, _ in done.values()}
    assert 1 <= len(processes) <= 2 and os.getpid() not in processes
    assert not any(_lives(process) for process in processes)


def test_a_death_costs_one_job():
    jobs = [1, "killed", 2, "gone", 3, "raises", 4]
    done = dict(answers(work, jobs, workers=1))
    assert [job for job in jobs if isinstance(done[job], Died)] == ["killed", "gone", "raises"]
    assert (done["killed"].exit_code, done["gone"].exit_code, done["raises"].exit_code) == (-9, 7, 1)
    assert str(done["killed"]) == "signal 9" and [done[n][1] for n in (1, 2, 3, 4)] == [1, 2, 3, 4]
    assert done[1][0] != done[2][0] != done[3][0] != done[4][0]


def test_no_job_starts_no_process():
    assert list(answers(work, [], workers=3)) == []


def test_leaving_ends_what_is_running():
    began, running = time.perf_counter(), answers(work, ["first", "slow", "slow"], workers=2)
    job, (process, _) = next(running)
    running.close()
    assert job == "first" and not _lives(process) and time.perf_counter() - began < 20


def test_no_process_outlives_a_killed_parent(tmp_path):
    """The parent dies as `kill -9` has it, its workers being busy."""
    program = (
        "import sys, data_prep.pool as pool, tests.data_prep.test_prepare_pool as here\n"
        "for job, (process, _) in pool.answers(here.work, ['a', 'slow'], workers=1):\n"
        "    print(process, flush=True)\n"
    )
    root = Path(__file__).parents[2]
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=root)
    process = int(parent.stdout.readline())
    assert _lives(process)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    for _ in range(100):
        if not _lives(process):
            break
        time.sleep(0.05)
    assert not _lives(process)


def _lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
