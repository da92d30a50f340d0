"""The processes of one training: who this one is, and the few numbers and arrays they tell each other.

A process learns its rank from the launcher's environment (torchrun's variables, ours set the same, or those of an `srun`
step). What is said here goes over gloo from memory to memory, beside the gradients' own backend, so that a number can be
agreed on without waiting for a GPU.
"""

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)

from pretrain.errors import ConfigError, MendableError, ToldElsewhere
from sharding.batches import Share

T = TypeVar("T")
FIRST_PORT, PORTS = 15000, 10000  # of SLURM's steps: below those that systems give away
TASKS = re.compile(r"(\d+)(?:\(x(\d+)\))?")  # of nodes: 2(x3),1
TOLD = "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"


@dataclass(frozen=True)
class Ranks:
    """This process among the `world` of a training; alone by default, and then every method is the plain thing."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    control: Any = None  # gloo process group of all ranks; None for one alone

    @property
    def leader(self) -> bool:
        """Whether this is the rank that writes files and talks."""
        return self.rank == 0

    @property
    def share(self) -> Share:
        return Share(self.rank, self.world)

    @property
    def environment(self) -> ClusterEnvironment:
        """What Lightning is to believe about the processes, whatever else it finds in the environment."""
        return LightningEnvironment() if self.world == 1 else TorchElasticEnvironment()

    def sums(self, *values: float) -> list[float]:
        """Each number summed over all ranks, in float64."""
        return self._reduced(values, dist.ReduceOp.SUM)

    def most(self, *values: float) -> list[float]:
        """The greatest of each number over all ranks."""
        return self._reduced(values, dist.ReduceOp.MAX)

    def _reduced(self, values: tuple[float, ...], how) -> list[float]:
        if self.world == 1:
            return [float(value) for value in values]
        told = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(told, how, group=self.control)
        return told.tolist()

    def told(self, value: Any = None) -> Any:
        """The leader's value, for all; anything that JSON can say."""
        if self.world == 1:
            return value
        data = json.dumps(value).encode() if self.leader else b""
        size = torch.tensor([len(data)])
        dist.broadcast(size, 0, group=self.control)
        text = torch.frombuffer(bytearray(data), dtype=torch.uint8) if self.leader else None
        text = torch.empty(int(size), dtype=torch.uint8) if text is None else text
        dist.broadcast(text, 0, group=self.control)
        return json.loads(text.numpy().tobytes())

    def by_leader(self, work: Callable[[], T]) -> T:
        """What `work` gives (JSON), done by the leader alone and waited for by all.

        Its MendableError is the leader's to tell; on the others it is ToldElsewhere.
        """
        if self.world == 1:
            return work()
        value, fault = None, None
        if self.leader:
            try:
                value = work()
            except MendableError as error:
                fault = error
        told = self.told([value, [str(fault), fault.exit_code] if fault else None])
        if fault:
            raise fault
        if told[1]:
            raise ToldElsewhere(*told[1])
        return told[0]

    def same(self, what: str, value: Any) -> None:
        """Raise ConfigError on every rank where the ranks do not all have the same value (JSON) of `what`."""
        mine = json.dumps(value, sort_keys=True)
        differs = self.told(mine) != mine
        (any_differs,) = self.most(differs)
        if any_differs:
            raise ConfigError(
                f"rank {self.rank}",
                f"{what} is {'not ' if differs else ''}that of rank 0, and not the same on all {self.world} ranks",
                "give all of them the same files and settings",
            )

    def gathered(self, array: np.ndarray) -> list[np.ndarray] | None:
        """The arrays (n, ...) of all ranks, in order, on the leader; None elsewhere. n may differ, all else may not."""
        if self.world == 1:
            return [array]
        rows = torch.zeros(self.world, dtype=torch.int64)
        rows[self.rank] = len(array)
        dist.all_reduce(rows, group=self.control)
        if not self.leader:
            if array.size:
                mine = np.require(array, requirements=["C", "W"])  # torch warns of memory that it may not write to
                dist.send(torch.from_numpy(mine.reshape(-1).view(np.uint8)), 0, group=self.control)
            return None
        out = [array]
        for rank, n in enumerate(rows.tolist()[1:], 1):
            theirs = np.empty((n, *array.shape[1:]), array.dtype)
            if theirs.size:
                dist.recv(torch.from_numpy(theirs.reshape(-1).view(np.uint8)), rank, group=self.control)
            out.append(theirs)
        return out

    def barrier(self) -> None:
        """Wait for all."""
        self.sums(0.0)


ALONE = Ranks()


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """While inside, the ranks that a launcher started know each other; `device` is "cpu" or "cuda".

    One process that nobody launched is alone. Raises ConfigError for a launcher's variables that make no sense, and for
    more ranks on a machine than it has GPUs.
    """
    rank, world, local_rank, local_world = _numbers()
    if world == 1:
        yield ALONE
        return
    if device == "cuda":
        if local_world > torch.cuda.device_count():
            raise ConfigError(
                "trainer.devices",
                f"{local_world} ranks on a machine with {torch.cuda.device_count()} GPUs",
                "start one a GPU, or take trainer.device=cpu",
            )
        torch.cuda.set_device(local_rank)
    device_id = torch.device("cuda", local_rank) if device == "cuda" else None
    dist.init_process_group("nccl" if device == "cuda" else "gloo", rank=rank, world_size=world, device_id=device_id)
    try:
        yield Ranks(rank, world, local_rank, local_world, dist.new_group(backend="gloo"))
    except BaseException:
        if device == "cuda":
            dist.group.WORLD.abort()  # NCCL's usual end waits for ranks that may never come to it
        raise
    finally:
        dist.destroy_process_group()


def launched() -> bool:
    """Whether a launcher (torchrun, srun, or our own) started this process as one of several ranks."""
    return _numbers()[1] > 1


def _numbers() -> tuple[int, int, int, int]:
    """Rank, world, local rank and local world as the environment tells; under srun also sets torchrun's variables."""
    told = os.environ
    try:
        if "RANK" not in told and _in_step():
            told |= _of_step()
        world = int(told.get("WORLD_SIZE", 1))
        rank, local = int(told.get("RANK", 0)), int(told.get("LOCAL_RANK", 0))
        local_world = int(told.get("LOCAL_WORLD_SIZE", world))
        possible = 0 <= rank < world and 0 <= local < local_world <= world
    except (ValueError, KeyError, IndexError):
        possible = False
    if not possible or (world > 1 and not {"MASTER_ADDR", "MASTER_PORT"} <= told.keys()):
        found = {name: told[name] for name in TOLD if name in told}
        raise ConfigError(
            "the environment", f"its ranks make no sense ({found})", "unset them, or start by srun or torchrun"
        )
    return rank, world, local, local_world


def _in_step() -> bool:
    """Whether this is one of several tasks of an srun step, rather than a batch script or in a shell (srun --pty bash)."""
    told = os.environ
    shell = "SLURM_PTY_PORT" in told and sys.stdin is not None and sys.stdin.isatty()
    return "SLURM_STEP_ID" in told and int(told.get("SLURM_STEP_NUM_TASKS", 1)) > 1 and not shell


def _of_step() -> dict[str, str]:
    """An srun step's numbers by torchrun's names. Any other port of a step or a job on these nodes would do as well."""
    told = os.environ
    job, step = int(told["SLURM_JOB_ID"]), int(told["SLURM_STEP_ID"])
    tasks = [task for n, times in TASKS.findall(told["SLURM_STEP_TASKS_PER_NODE"]) for task in [n] * int(times or 1)]
    address = SLURMEnvironment.resolve_root_node_address(told["SLURM_STEP_NODELIST"])
    return {
        "MASTER_ADDR": told.get("MASTER_ADDR", address),
        "MASTER_PORT": told.get("MASTER_PORT", str(FIRST_PORT + (job + 997 * step) % PORTS)),
        "RANK": told["SLURM_PROCID"],
        "WORLD_SIZE": told["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": told["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": tasks[int(told["SLURM_NODEID"])],
    }
