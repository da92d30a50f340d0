"""SLURM's partition, a job's time against the training's, and wandb's account -> findings."""

import math
import netrc
import os
import platform
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import wandb

from launch.doctor_case import Case, Finding, fault, fine, in_time, skipped, warning
from launch.doctor_machine import bytes_of
from launch.doctor_trial import pace
from launch.submit_cluster import ClusterConfig
from sharding.plan import EvalPlan

START_S = 60.0  # that a job takes to start and to resume, at a guess
DISK_RATE = 2e8  # bytes a second, where nothing was measured
REACH_S = 5.0
PARTITION = "%P|%a|%l|%D|%c|%m|%G"  # sinfo: name (* the default), state, time, nodes, cores, MB and GPUs of a node


def cluster_room(case: Case) -> list[Finding]:
    """Whether the partition that the cluster's file names is there, and gives what it asks for."""
    cluster, job = case.config.cluster, os.environ.get("SLURM_JOB_ID")
    here = [fine(f"inside job {job} on {os.environ.get('SLURM_JOB_PARTITION', '?')}")] if job else []
    if cluster is None:
        return here or [skipped("no cluster is given: cluster=cluster/gpu.yaml")]
    if shutil.which("sinfo") is None:
        return [*here, warning("no SLURM here to ask", "ask again on the cluster's login node")]
    told, silent = _sinfo()
    if silent:
        return [*here, fault(f"SLURM does not answer ({silent})", "ask again on the cluster's login node")]
    named = [row for row in told if row["name"] == cluster.partition or (row["default"] and not cluster.partition)]
    if not named:
        names = ", ".join(dict.fromkeys(row["name"] for row in told)) or "none"
        return [*here, fault(f"no partition {cluster.partition!r}", f"set cluster.partition to one of {names}")]
    lacking = _lacking(cluster, named)
    if lacking:
        return [*here, *(fault(found, do) for found, do in lacking)]
    name, nodes = named[0]["name"], sum(_number(row["nodes"]) for row in named)
    return [*here, fine(f"partition {name} is up: {nodes} nodes, time limit {named[0]['time']}")]


def _sinfo() -> tuple[list[dict], str]:
    """Rows of sinfo, one a partition and kind of node; and why there are none, where it does not answer."""
    command = ["sinfo", "--noheader", f"--format={PARTITION}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    if done.returncode:
        return [], (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    rows = [line.strip().split("|") for line in done.stdout.splitlines() if line.count("|") == PARTITION.count("|")]
    keys = ("name", "state", "time", "nodes", "cores", "mb", "gres")
    return [dict(zip(keys, row)) | {"name": row[0].rstrip("*"), "default": row[0].endswith("*")} for row in rows], ""


def _lacking(cluster: ClusterConfig, rows: list[dict]) -> list[tuple[str, str]]:
    """What no node of the partition gives, and what to do about it."""
    out, name = [], rows[0]["name"]
    if not sum(_number(row["nodes"]) for row in rows):
        return [(f"partition {name} has no nodes now", "wait, or take another partition")]
    if not any(row["state"] == "up" for row in rows):
        out.append((f"partition {name} is {rows[0]['state']}", "wait, or take another partition"))
    limit, asked = seconds_of(rows[0]["time"]), seconds_of(cluster.time)
    if asked > limit and cluster.time:
        out.append((f"cluster.time is {cluster.time}, {name} gives {rows[0]['time']}", "ask for less"))
    gpus = int(str(cluster.gpus_per_node).rpartition(":")[2])
    wants = {
        "nodes": (cluster.nodes, sum(_number(row["nodes"]) for row in rows)),
        "cores a node": (cluster.tasks_per_node * cluster.cpus_per_task, max(_number(row["cores"]) for row in rows)),
        "MB a node": (bytes_of(cluster.memory) >> 20, max(_number(row["mb"]) for row in rows)),
        "GPUs a node": (gpus, max(_gpus(row["gres"]) for row in rows)),
    }
    out += [
        (f"{want:,} {what} are asked for, {name} has {there:,}", "ask for less, or take another partition")
        for what, (want, there) in wants.items()
        if want > there
    ]
    return out


def _number(text: str) -> int:
    return int(re.match(r"\d*", text)[0] or 0)  # "64+": nodes of several kinds


def _gpus(gres: str) -> int:
    """GPUs of a node by its generic resources: 4 of "gpu:h100:4(S:0-1),lustre:1"."""
    return sum(int(match) for match in re.findall(r"\bgpu(?::[^:,(]+)?:(\d+)", gres))


def seconds_of(time: str) -> float:
    """SLURM's times (minutes, minutes:seconds, hours:minutes:seconds, days-hours, ...) in seconds; "" has no end."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time)
    if match is None:
        return math.inf
    days, *rest = (int(part or 0) for part in match.groups())
    if match[1] is not None or match[4] is not None:
        hours, minutes, seconds = rest
    else:
        hours, minutes, seconds = 0, rest[0], rest[1]
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


@dataclass(frozen=True)
class Times:
    """Seconds of a whole training, by what they go to."""

    steps: float
    validations: float
    saves: float
    one_save: float

    @property
    def whole(self) -> float:
        return self.steps + self.validations + self.saves


def duration(case: Case) -> list[Finding]:
    """How long the training will take by its trial, and how many jobs of the cluster's time that is."""
    times, trainer = times_of(case), case.config.trainer
    told = (
        f"about {in_time(times.whole)} in all: steps {in_time(times.steps)}, validations {in_time(times.validations)}, "
        f"saves {in_time(times.saves)}; what ranks tell each other comes on top"
    )
    limit, signal_s = _limit(case)
    out = [fine(told if case.world > 1 else told.partition(";")[0])]
    if math.isinf(limit):
        return out
    usable, last = limit - signal_s - START_S, pace(case) + times.one_save
    if usable <= last:
        do = "raise cluster.time" if case.config.cluster else "ask for a longer job"
        return [*out, fault(f"a job of {in_time(limit)} leaves no time for a step and a save", do)]
    jobs = math.ceil(times.whole / usable)
    out.append(fine(f"{jobs} jobs of {in_time(limit)}: {jobs - 1} requeues"))
    cluster = case.config.cluster
    if signal_s and last > signal_s:
        do = f"set cluster.signal_s={math.ceil(2 * last)}"
        out.append(fault(f"a step and a save take {in_time(last)}, the signal comes {signal_s} s before the end", do))
    if jobs > 1 and not signal_s:
        lost = min(trainer.save_every * pace(case), usable)
        out.append(
            warning(f"no signal before the end: each job loses up to {in_time(lost)}", "set cluster.signal_s=120")
        )
    if cluster and jobs - 1 > (cluster.max_requeues if cluster.requeue else 0):
        out.append(
            fault(f"only {cluster.max_requeues * cluster.requeue} requeues are allowed", "raise cluster.max_requeues")
        )
    return out


def times_of(case: Case) -> Times:
    """What the trial says of the whole training, from where it stands."""
    config, trainer = case.config, case.config.trainer
    windows = EvalPlan(case.index, "valid", config.window_s, trainer.val_step_s).windows
    one_save = case.estimate.save / (case.disk_rate or DISK_RATE)
    return Times(
        steps=trainer.steps * pace(case),
        validations=(1 + math.ceil(trainer.steps / trainer.val_every)) * windows / case.world * case.trial.window_s,
        saves=math.ceil(trainer.steps / trainer.save_every) * one_save,
        one_save=one_save,
    )


def _limit(case: Case) -> tuple[float, int]:
    """Seconds of a job, and how long before its end it is told: by the cluster's file, or of the job that this is."""
    cluster = case.config.cluster
    if cluster:
        return seconds_of(cluster.time), cluster.signal_s
    begin, end = (os.environ.get(f"SLURM_JOB_{edge}_TIME", "") for edge in ("START", "END"))
    return (float(end) - float(begin) if begin.isdigit() and end.isdigit() else math.inf), 0


def wandb_account(case: Case) -> list[Finding]:
    """Whether what is measured can go where it is meant to; what is measured stands in metrics.csv in any case."""
    mode = case.config.tracking.wandb
    if mode == "off":
        return [fine("off: metrics.csv and metrics.jsonl alone")]
    if mode == "offline":
        return [fine("offline: kept in the run folder, `wandb sync` sends it later")]
    where = wandb.setup().settings.base_url
    host = urlsplit(where).hostname
    if not _has_key(host):
        return [fault(f"no account for {host}", "run `wandb login`, or take tracking.wandb=offline")]
    try:
        with urllib.request.urlopen(urllib.request.Request(where, method="HEAD"), timeout=REACH_S):
            pass
    except urllib.error.HTTPError:
        pass  # it answers
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        do = "open the way, or take tracking.wandb=offline and `wandb sync` it later"
        return [warning(f"{host} cannot be reached from {platform.node()} ({reason})", do)]
    return [fine(f"online: {host} answers, and there is an account for it")]


def _has_key(host: str) -> bool:
    """Whether wandb would find a key: in the environment, or where `wandb login` leaves it. It is not looked at."""
    if any(os.environ.get(name) for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")):
        return True
    try:
        return netrc.netrc(os.environ.get("NETRC") or Path.home() / ".netrc").authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
