"""A config, and the machine at hand -> a row for each thing that would fail after an hour in the queue."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from data_prep.errors import MendableError
from launch.doctor_case import FAULT, OK, SKIPPED, Case, Finding, fault, skipped
from launch.doctor_cluster import cluster_room, duration, wandb_account
from launch.doctor_machine import clock, limits, memory_room
from launch.doctor_room import cache_room, run_folder, saves_room
from launch.doctor_software import attention, deepspeed, devices, nccl, packages, processes, torch_build
from launch.doctor_supply import batches, every_shard, sessions, shards
from launch.doctor_trial import trial

MOST_TOLD = 160  # characters of an error that nobody foresaw


@dataclass(frozen=True)
class Check:
    """One question: who answers it, how long that may take, and which questions must have been answered well before."""

    ask: Callable[[Case], list[Finding]]
    limit_s: float
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """What one check found."""

    check: str
    finding: Finding


CHECKS: dict[str, Check] = {
    "packages": Check(packages, 30),
    "torch": Check(torch_build, 30),
    "devices": Check(devices, 60, after=("torch",)),
    "nccl": Check(nccl, 120, after=("devices",)),
    "attention": Check(attention, 10),
    "deepspeed": Check(deepspeed, 120),
    "processes": Check(processes, 60),
    "clock and text": Check(clock, 10),
    "shards": Check(shards, 60),
    "checksums": Check(every_shard, 7 * 86400, after=("shards",)),
    "sessions": Check(sessions, 60, after=("shards",)),
    "batches": Check(batches, 120, after=("sessions", "devices")),
    "run folder": Check(run_folder, 60),
    "saves": Check(saves_room, 30, after=("run folder", "batches")),
    "cache": Check(cache_room, 30, after=("shards",)),
    "memory": Check(memory_room, 30, after=("batches",)),
    "limits": Check(limits, 10),
    "trial": Check(trial, 120, after=("batches", "memory")),
    "cluster": Check(cluster_room, 30),
    "duration": Check(duration, 30, after=("trial",)),
    "wandb": Check(wandb_account, 30),
}


def examine(config, checks: dict[str, Check] = CHECKS, begin: Callable[[str], None] = lambda name: None) -> list[Row]:
    """Rows of all checks of a DoctorConfig, in order; `begin` hears each check's name before it.

    Whatever becomes of one check, the others are asked: an error is a row, and so is no answer in time. Only what rests on
    a check that failed is skipped.
    """
    case, rows, bad = Case(config), [], set()
    for name, check in checks.items():
        begin(name)
        waits_for = [other for other in check.after if other in bad]
        found = [skipped(f"needs {waits_for[0]}")] if waits_for else _answer(check, case)
        rows += [Row(name, finding) for finding in found]
        states = {finding.state for finding in found}
        if FAULT in states or states == {SKIPPED}:
            bad.add(name)
    return rows


def _answer(check: Check, case: Case) -> list[Finding]:
    """What a check finds, in a thread that is left behind where it hangs: on a lost file system, say, or a driver."""
    found: list[Finding] = []
    thread = threading.Thread(target=lambda: found.extend(_caught(check.ask, case)), daemon=True)
    thread.start()
    thread.join(check.limit_s)
    if thread.is_alive():
        return [
            fault(f"gave no answer in {check.limit_s:g} s", "find out what it hangs on: a file system, or a driver")
        ]
    return found or [Finding(OK, "nothing to be said")]


def _caught(ask: Callable[[Case], list[Finding]], case: Case) -> Iterator[Finding]:
    try:
        yield from ask(case)
    except MendableError as error:
        yield fault(f"{error.where}: {error.found}", error.do)
    except Exception as error:  # a check that breaks says nothing of what it should have looked at, and stops no other
        yield fault(
            f"the check broke ({type(error).__name__}: {error})", "run the training's command itself, and report"
        )
