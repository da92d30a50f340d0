"""`spikeloom doctor`: a row for everything that would fail after an hour in the queue, and exit code 1 where something would."""

import time
from collections import Counter

from launch.table import print_table
from launch.verb import Verb


def _schema() -> type:
    from launch.doctor_case import DoctorConfig

    return DoctorConfig


def _run(config) -> int:
    from launch import doctor
    from launch.progress import ItemProgress

    began = time.monotonic()
    with ItemProgress("checking", len(doctor.CHECKS)) as progress:
        rows = doctor.examine(config, doctor.CHECKS, progress.step)
    return show_examined(rows, time.monotonic() - began)


def show_examined(rows, seconds: float) -> int:
    """Prints the rows and how many there are of each state; gives the exit code."""
    cells = [[row.check, row.finding.state, row.finding.found, row.finding.do] for row in rows]
    print_table("what a training would find here", ["check", "state", "found", "do"], cells)
    count = Counter(row.finding.state for row in rows)
    faults, warnings = count["FAULT"], count["warning"]
    print(f"{faults} fault{'s' * (faults != 1)}, {warnings} warning{'s' * (warnings != 1)} in {seconds:.0f} s")
    return 1 if faults else 0


def _plan(config) -> list[str]:
    shards = config.shards or "no shards (shards=FOLDER)"
    reads = "reading every byte of them" if config.full else "reading a few of them"
    return [
        f"would look at this machine and at {shards}, {reads}",
        f"would take steps on trial for up to {config.trial_s:g} s, and write nothing but a probe that it removes",
    ]


DOCTOR = Verb(
    "look for what would fail after an hour in the queue: versions, memory, disk, shards, time",
    "spikeloom doctor pretrain/paper_mp.yaml shards=shards run=runs/mp cluster=cluster/gpu.yaml",
    _schema,
    _run,
    _plan,
    file="pretrain/fast.yaml",
)
