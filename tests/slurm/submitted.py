"""Commands given to the cluster as a user gives them, and the processes of a job that runs."""

import csv
import os
import re
import time
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import psutil
from safetensors.numpy import load_file

from launch.cli import main
from tests.slurm.cluster import Cluster

PATIENCE_S = 180.0  # a busy machine needs its time
COMPUTED = ("step", "epoch", "windows", "tokens", "train/", "valid/", "lr")  # columns that no clock decides


def submit(*words: str, to: str = "cluster/cpu.yaml") -> list[str]:
    """`spikeloom submit` with a cluster and more words, in this process; gives the numbers of the jobs."""
    code, out, fault = spikeloom("submit", to, *words)
    assert code == 0, fault
    return re.findall(r"^job (\d+):", out, flags=re.MULTILINE)


def spikeloom(*words: str) -> tuple[int, str, str]:
    """The exit code of a command, what it printed, and what it complained of."""
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as fault:
        code = main(list(words))
    return code, out.getvalue(), fault.getvalue()


def resubmit(cluster: Cluster, run: Path) -> str:
    """The run's own submit.sh, called once more; gives the job's number."""
    done = cluster.run("bash", run / "submit" / "submit.sh")
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-1]


def logs(run: Path) -> str:
    """All that the jobs of a folder said."""
    return "\n".join(path.read_text() for path in sorted((run / "submit" / "logs").iterdir()))


def until(what: str, look):
    """What `look` gives, as soon as it is true; AssertionError after PATIENCE_S."""
    end = time.monotonic() + PATIENCE_S
    while not (found := look()):
        assert time.monotonic() < end, f"no {what} within {PATIENCE_S:g} s"
        time.sleep(0.001)
    return found


def rows(run: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv, but for what clocks say; [] before there are any."""
    path = run / "metrics.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [{key: row[key] for key in row if key.startswith(COMPUTED)} for row in csv.DictReader(file)]


def await_step(run: Path, step: int) -> None:
    """Wait until the run has told of this step."""
    until(f"step {step} in {run}", lambda: any(int(row["step"] or 0) >= step for row in rows(run)))


def assert_same(run: Path, other: Path, step: int) -> None:
    """Two runs ended at `step` with equal bits of weights, optimiser state and average, and equal rows, each once."""
    name = Path("saves", f"step-{step:08d}.safetensors")
    here, there = load_file(run / name), load_file(other / name)
    assert here.keys() == there.keys() and {key.partition("/")[0] for key in here} >= {"weights", "optimizer"}
    different = [key for key in here if not np.array_equal(here[key], there[key])]
    assert not different, f"{len(different)} of {len(here)} tensors differ: {different[:5]}"
    assert rows(run) == rows(other)
    steps = [int(row["step"]) for row in rows(run)]
    assert steps == sorted(set(steps)) and steps[-1] == step


def leader_of(job: str) -> psutil.Process:
    """The process of rank 0 of a training that runs as this job."""

    def look() -> psutil.Process | None:
        for process in psutil.process_iter(["name"]):
            try:  # the batch script and srun are told of the command too, and have other names
                told = process.environ() if process.info["name"] == "spikeloom" else {}
            except psutil.Error:  # it has just ended
                continue
            if (told.get("SLURM_JOB_ID"), told.get("SLURM_PROCID")) == (job, "0"):
                return process
        return None

    return until(f"rank 0 of job {job}", look)


def has_pending(process: psutil.Process, number: int) -> bool:
    """Whether a signal waits for a process, which is stopped, to go on."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    waiting = re.findall(r"^(?:SigPnd|ShdPnd):\s*(\w+)", status, flags=re.MULTILINE)
    return any(int(mask, 16) >> (number - 1) & 1 for mask in waiting)


def writing(run: Path) -> list[str]:
    """The files of saves that are being written, or were when their writer was killed."""
    try:
        return os.listdir(run / "saves" / ".writing")
    except FileNotFoundError:
        return []
