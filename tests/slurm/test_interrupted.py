"""A pretraining on two nodes of a real SLURM: equal to a local one, and equal again whatever interrupts it.

`whole` is the run that nothing interrupted. Every other run is the same training, cut somewhere: weights, optimiser and
average must be equal to the bit, and every row of its metrics must stand there once.
"""

import json
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml

from tests.slurm.submitted import (
    PATIENCE_S,
    assert_same,
    await_step,
    has_pending,
    leader_of,
    logs,
    resubmit,
    submit,
    until,
    writing,
)

pytestmark = pytest.mark.slurm
STEPS = 120
HELD_S = 45.0
EARLY = 10  # a step that is told of soon, with most of the run still to come
TRAINING = {
    "model": {"name": "poyo", "width": 16, "depth": 1, "latents_per_step": 2}
    | {"cross_heads": 1, "self_heads": 1, "head_width": 16},
    "sessions": ["tiny/[ab]"],
    "optim": {"name": "lamb", "lr": 5e-3, "average": 0.9},
    "loader": {"batch_windows": 4},
    "trainer": {"steps": STEPS, "val_every": 60, "save_every": 20, "log_every": 5, "device": "cpu", "threads": 1},
}


@pytest.fixture(scope="module")
def training(shards, tmp_path_factory) -> list[str]:
    """The words of a training without its run folder."""
    path = tmp_path_factory.mktemp("training") / "training.yaml"
    path.write_text(yaml.safe_dump(TRAINING))
    return ["pretrain", str(path), f"shards={shards}"]


@pytest.fixture(scope="module")
def whole(cluster, training, tmp_path_factory) -> Path:
    """The run folder of two ranks on two nodes."""
    run = tmp_path_factory.mktemp("whole") / "run"
    (job,) = submit(*training, f"run={run}", "cluster.nodes=2")
    facts = cluster.wait(job)
    assert facts["JobState"] == "COMPLETED" and facts["NodeList"] == "node[1-2]", logs(run)
    return run


def begin(training, run: Path, *more: str) -> str:
    """Submit the training; gives its job once it has made some steps."""
    (job,) = submit(*training, f"run={run}", "cluster.nodes=2", *more)
    await_step(run, EARLY)
    return job


def finish(cluster, job: str, run: Path, whole: Path, restarts: int) -> None:
    """Wait for the end of a job that was interrupted and queued again at least so often, and compare."""
    facts = cluster.wait(job)
    assert facts["JobState"] == "COMPLETED" and int(facts["Restarts"]) >= restarts, logs(run)
    assert_same(run, whole, STEPS)


def test_two_nodes_compute_what_two_local_processes_do(cluster, training, whole, tmp_path):
    run = tmp_path / "local"
    done = cluster.run(sys.executable, "-m", "launch", *training, f"run={run}", "trainer.devices=2")
    assert done.returncode == 0, done.stderr
    told = [json.loads((folder / "provenance.json").read_text()) for folder in (run, whole)]
    assert [facts["ranks"] for facts in told] == [2, 2]
    assert_same(run, whole, STEPS)


def test_a_run_near_its_time_limit_ends_the_same(cluster, training, whole, tmp_path):
    """30 s after its start, or up to 60 s, for SLURM looks at time limits every 30 s, it is asked to stop; until then rank 0
    is held still, for the run would be done before. Not for longer: on a busy machine it may have been asked already, and
    is to have time to save."""
    run = tmp_path / "run"
    job = begin(training, run, "cluster.time='00:02:00'", "cluster.signal_s=90")
    leader = leader_of(job)
    leader.suspend()
    held_until = time.monotonic() + HELD_S
    with suppress(psutil.NoSuchProcess, FileNotFoundError):  # SLURM may wake it itself, and it is gone before we look
        while time.monotonic() < held_until and not has_pending(leader, signal.SIGUSR1):
            time.sleep(0.01)
        leader.resume()
    finish(cluster, job, run, whole, restarts=1)
    assert "it has saved and is queued again" in logs(run)


def test_a_run_ended_in_the_middle_of_a_save_goes_on_from_a_whole_one(cluster, training, whole, tmp_path):
    """Rank 0 is held still while it writes, so that it ends there: first by scancel, which lets it save in peace, then,
    submitted again, by SIGKILL as for want of memory, which leaves the file unfinished."""
    run = tmp_path / "run"
    job = begin(training, run)
    leader = caught_writing(job, run)
    assert cluster.run("scancel", job).returncode == 0
    assert cluster.wait(job)["JobState"] == "CANCELLED", logs(run)
    leader.wait(PATIENCE_S)
    assert not writing(run) and "which is saved; run the same command again" in logs(run)  # whichever rank heard it
    job = resubmit(cluster, run)
    caught_writing(job, run).kill()
    assert cluster.wait(job)["JobState"] == "FAILED", logs(run)
    assert writing(run)
    finish(cluster, resubmit(cluster, run), run, whole, restarts=0)
    assert not writing(run)


def caught_writing(job: str, run: Path) -> psutil.Process:
    """Rank 0 of a job, suspended while it writes a save."""
    leader = leader_of(job)

    def look() -> bool:
        if writing(run):
            leader.suspend()
            until("standstill", lambda: leader.status() == psutil.STATUS_STOPPED)
            if writing(run):
                return True
            leader.resume()
        return False

    until("save in the making", look)
    return leader


@pytest.mark.slow
def test_a_run_signalled_and_then_robbed_of_a_node_ends_the_same(cluster, training, whole, tmp_path):
    """What its job saved it goes on from, and where SLURM queues it again by itself it goes on from its last save."""
    run, node = tmp_path / "run", ("NodeName=node2", "Reason=test")
    job = begin(training, run)
    assert cluster.run("scancel", "--signal=USR1", job).returncode == 0
    until("second start", lambda: cluster.job(job)["Restarts"] == "1" and cluster.job(job)["JobState"] == "RUNNING")
    await_step(run, 2 * STEPS // 3)
    assert cluster.run("scontrol", "update", *node, "State=DOWN").returncode == 0
    cluster.wait(job, states=("PENDING",))
    cluster.run("scontrol", "update", *node, "State=RESUME")  # refused where it has come back by itself
    finish(cluster, job, run, whole, restarts=2)
    assert "stopped by SIGUSR1 after step" in logs(run)
