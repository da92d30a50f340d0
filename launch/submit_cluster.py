"""ClusterConfig -> what SLURM is told of a job: sbatch's options, and env.sh, the environment of its processes."""

import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.errors import ConfigError

_SECRET = re.compile(r"\b\w*(KEY|TOKEN|SECRET|PASSWORD|PASSWD)\w*=(?!\s|$|\$|['\"]\$)", re.IGNORECASE)
_PLAIN_PATH = re.compile(r"[\w$/.{}:+~-]+")


@dataclass(frozen=True)
class ClusterConfig:
    """One partition of a SLURM cluster, and how much of it a job takes."""

    partition: str = ""
    "sbatch --partition; empty is the cluster's own choice, here and below"
    account: str = ""
    "sbatch --account"
    qos: str = ""
    "sbatch --qos"
    nodes: int = 1
    "nodes of a training; every other command takes one"
    tasks_per_node: int = 1
    "ranks of a training on a node: as many as its GPUs"
    gpus_per_node: int | str = 0
    "GPUs of a node, a number or kind:number; prepare, corpus and shard take none, evaluate one"
    cpus_per_task: int = 1
    "cores of a rank (its loader workers use them), or of another command's process"
    memory: str = ""
    "sbatch --mem, of a node, such as 64G"
    time: str = ""
    "sbatch --time: hours:minutes:seconds, or days-hours, in quotes; a training goes on after it in another job"
    signal_s: int = 120
    "seconds before the end of that time at which a training is asked to save and stop; 0 never"
    requeue: bool = True
    "whether a job that lost its node, or a training that saved at its time limit, is queued again"
    max_requeues: int = 100
    "times that a training may queue itself again"
    at_once: int = 0
    "elements of an array that may run at the same time; 0 is as many as there is room for"
    exclude: str = ""
    "sbatch --exclude: nodes to keep off"
    constraint: str = ""
    "sbatch --constraint: features of nodes"
    extra: list[str] = field(default_factory=list)
    "more options of sbatch, each as one would type it: --reservation=NAME"
    setup: list[str] = field(default_factory=list)
    "lines of bash before the command: module load ..., source .../activate; never a password or key"
    scratch: str = ""
    "folder on the nodes' own disks that holds cached shards (SPIKELOOM_CACHE); may name variables: /scratch/$USER"

    def __post_init__(self):
        for name, least in dict(
            nodes=1, tasks_per_node=1, cpus_per_task=1, signal_s=0, max_requeues=0, at_once=0
        ).items():
            if getattr(self, name) < least:
                raise ConfigError(f"cluster.{name}", f"{getattr(self, name)} is too few", f"give at least {least}")
        if not re.fullmatch(r"(\w+:)?\d+", str(self.gpus_per_node)):
            raise ConfigError("cluster.gpus_per_node", f"{self.gpus_per_node!r} is no number", "give 4, or kind:4")
        for option in self.extra:
            if not option.startswith("-"):
                raise ConfigError("cluster.extra", f"{option!r} is no option", "write it as for sbatch: --name=value")
        for line in self.setup:
            if found := _SECRET.search(line):
                found = f"it would write {found[0]}... into a file"
                do = "keep secrets in your environment, which sbatch passes on, or in their tool's own file (wandb login)"
                raise ConfigError("cluster.setup", found, do)
        if self.scratch and not _PLAIN_PATH.fullmatch(self.scratch):
            do = "give a path of letters, digits and $VARIABLES"
            raise ConfigError("cluster.scratch", f"{self.scratch!r} is no plain path", do)


def options_of(cluster: ClusterConfig, training: bool, gpus: bool) -> list[str]:
    """The options of sbatch that a cluster asks for: `training` takes all its nodes and ranks, any other job one task.

    `gpus`: whether the job takes GPUs at all; one that is no training takes one.
    """
    kind, number = _gpus(cluster)
    number = (number if training else min(number, 1)) if gpus else 0
    told = {
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "nodes": cluster.nodes if training else 1,
        "ntasks-per-node": cluster.tasks_per_node if training else 1,
        "gpus-per-node": f"{kind}{number}" if number else "",
        "cpus-per-task": cluster.cpus_per_task,
        "mem": cluster.memory,
        "time": cluster.time,
        "signal": f"USR1@{cluster.signal_s}" if training and cluster.signal_s else "",
        "exclude": cluster.exclude,
        "constraint": cluster.constraint,
    }
    options = [f"--{name}={value}" for name, value in told.items() if value != ""]
    return [*options, "--requeue" if cluster.requeue else "--no-requeue", *cluster.extra]


def environment_of(cluster: ClusterConfig) -> str:
    """env.sh: the Python environment that submits, what the cluster sets up on top of it, and where shards are cached."""
    lines = [
        "# The environment of the job's processes: each job sources it before its command.",
        f'export PATH="{Path(sys.executable).parent}:$PATH"',
        *cluster.setup,
        *([f'export SPIKELOOM_CACHE="{_home(cluster.scratch)}"'] if cluster.scratch else []),
    ]
    return "\n".join(lines) + "\n"


def _gpus(cluster: ClusterConfig) -> tuple[str, int]:
    """("h100:", 4) of "h100:4"; ("", 4) of 4."""
    kind, colon, number = str(cluster.gpus_per_node).rpartition(":")
    return kind + colon, int(number)


def _home(path: str) -> str:
    """The path with a leading ~ as a variable: bash leaves it alone in quotes."""
    return "$HOME" + path[1:] if path.startswith("~") else path
