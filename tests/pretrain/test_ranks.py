"""Ranks: what they tell each other is the same on all, and who a process is comes from whatever launched it."""

import json
import math
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist

from pretrain.errors import ConfigError, DataError, ToldElsewhere
from pretrain.ranks import ALONE, TOLD, Ranks, joined, launched
from sharding.batches import Share
from tests.pretrain.warm import Warm

WORLDS = 2, 3


@pytest.fixture(scope="module")
def warm():
    with Warm("tests.pretrain.test_ranks") as running:
        yield running


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in [name for name in os.environ if name.startswith("SLURM_") or name in TOLD]:
        monkeypatch.delenv(name)


def arrays(rank: int) -> list[np.ndarray]:
    """Of rows that differ in number, none on rank 1: as evaluations are."""
    random, n = np.random.default_rng(rank), 0 if rank == 1 else 3 + 4 * rank
    frozen = random.random((5, 2))
    frozen.flags.writeable = False  # as what is read from a mapped file
    return [
        random.random((n, 2)).astype(np.float32),
        random.integers(-(2**60), 2**60, n),
        random.random((n, 3)) > 0.5,
        np.zeros((n, 0)),
        random.random((2 * n, 3))[::2],  # not contiguous
        frozen,
    ]


def talk(folder: str) -> None:
    """Everything that ranks can do together, what came of it noted by each."""
    with joined("cpu") as ranks:
        rank = ranks.rank
        found = {
            "who": [rank, ranks.world, ranks.local_rank, ranks.local_world, ranks.leader],
            "sums": ranks.sums(rank + 1, 0.1, math.nan if rank == 1 else 0.0, 2.0**60),
            "most": ranks.most(rank, -rank, True),
            "told": ranks.told({"é": [1.5, None, "x" * 100_000]} if rank == 0 else rank),
            "none": ranks.told(),
            "by_leader": ranks.by_leader(lambda: [os.getpid()]),
        }
        weather = [("sun", 1), ("wind", (2, math.nan))]
        ranks.same("the weather", dict(weather if ranks.leader else weather[::-1]))
        gathered = [ranks.gathered(array) for array in arrays(rank)]
        assert rank == 0 or gathered == [None] * len(gathered)
        if rank == 0:
            for n, parts in enumerate(gathered):
                for other, part in enumerate(parts):
                    expected = arrays(other)[n]
                    assert part.dtype == expected.dtype and part.shape == expected.shape and (part == expected).all()
            assert all(len(parts) == ranks.world for parts in gathered)
        found["waited"] = waited(ranks)
        Path(folder, f"{rank}.json").write_text(json.dumps(found))
    assert not dist.is_initialized()


def waited(ranks: Ranks) -> float:
    """Seconds in a barrier to which rank 0 comes late."""
    began = time.monotonic()
    if ranks.leader:
        time.sleep(0.3)
    ranks.barrier()
    return time.monotonic() - began


@pytest.mark.parametrize("world", WORLDS)
def test_what_ranks_agree_on_is_the_same_on_all(warm, world, tmp_path):
    codes, _ = warm.run(talk, str(tmp_path), ranks=world)
    assert codes == [0] * world
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(world)]
    for rank, told in enumerate(found):
        assert told["who"] == [rank, world, rank, world, rank == 0]
        whole, tenths, broken, large = told["sums"]
        assert whole == sum(range(1, world + 1)) and tenths == pytest.approx(0.1 * world, rel=1e-15)
        assert math.isnan(broken) and large == world * 2.0**60  # float64: float32 would have lost the rank
        assert told["most"] == [world - 1, 0, 1]
        assert told["told"] == {"é": [1.5, None, "x" * 100_000]} and told["none"] is None
        assert told["by_leader"] == found[0]["by_leader"] and told["waited"] >= 0.29


def leader_fails(folder: str) -> None:
    def work():
        if int(os.environ["RANK"]):
            raise AssertionError("only the leader works")
        raise DataError(folder, "is full", "empty it")

    with joined("cpu") as ranks:
        expected = DataError if ranks.leader else ToldElsewhere
        with pytest.raises(expected, match="is full; empty it") as caught:
            ranks.by_leader(work)
        assert caught.value.exit_code == 1
        assert ranks.by_leader(lambda: "on") == "on"  # they are still together


def settings_differ(odd: int) -> None:
    with joined("cpu") as ranks:
        line = "is (not )?that of rank 0, and not the same on all 3 ranks; give all of them the same"
        with pytest.raises(ConfigError, match=f"^rank {ranks.rank}: the shards {line}") as caught:
            ranks.same("the shards", ["a", ranks.rank == odd])
        assert ("is not that" in str(caught.value)) == (ranks.rank == odd if odd else ranks.rank > 0)
        ranks.barrier()


def one_falls(folder: str) -> None:
    with joined("cpu") as ranks:
        if ranks.rank == 1:
            raise DataError(folder, "is gone", "bring it")
        ranks.barrier()


def test_the_leaders_error_ends_all_and_is_told_once(warm, tmp_path):
    assert warm.run(leader_fails, str(tmp_path), ranks=2)[0] == [0, 0]


@pytest.mark.parametrize("odd", [0, 2])
def test_ranks_with_other_settings_are_told_which_differ(warm, odd):
    assert warm.run(settings_differ, odd, ranks=3)[0] == [0, 0, 0]


def test_a_rank_that_falls_out_does_not_leave_the_others_waiting(warm, tmp_path):
    codes, seconds = warm.run(one_falls, str(tmp_path), ranks=3)
    assert codes[1] == 1 and all(codes) and seconds < 20


def test_one_alone_needs_nobody():
    with joined("cpu") as ranks:
        assert ranks is ALONE and ranks.leader and ranks.share == Share() and not dist.is_initialized()
    assert ALONE.sums(1, 2.5) == [1.0, 2.5] and ALONE.most(3) == [3.0] and ALONE.told({"a": 1}) == {"a": 1}
    array = np.arange(3)
    assert ALONE.gathered(array)[0] is array and ALONE.by_leader(lambda: "done") == "done"
    ALONE.same("anything", {"wind": (2, math.nan)})
    ALONE.barrier()
    with pytest.raises(DataError):
        ALONE.by_leader(lambda: (_ for _ in ()).throw(DataError("a", "b", "c")))


# As slurm-wlm 22.05 sets them, read off a real `srun` over two nodes, three tasks.
STEP = {
    "SLURM_JOB_ID": "3154",
    "SLURM_JOB_NAME": "pretrain",
    "SLURM_NTASKS": "3",
    "SLURM_NODEID": "0",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_STEP_TASKS_PER_NODE": "2,1",
    "SLURM_TASKS_PER_NODE": "2,1",
}


def told(monkeypatch, **environment) -> dict[str, str]:
    """torchrun's variables after asking who we are."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for name in TOLD:  # so that they are taken back
        monkeypatch.setenv(name, environment.get(name, ""))
        if name not in environment:
            os.environ.pop(name)
    assert launched() == (int(os.environ.get("WORLD_SIZE", 1)) > 1)
    return {name: os.environ[name] for name in TOLD if name in os.environ}


def test_a_task_of_srun_is_a_rank_by_the_steps_numbers(monkeypatch):
    first = told(monkeypatch, **STEP)
    assert first == {
        "RANK": "1",
        "WORLD_SIZE": "3",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "node1",
        "MASTER_PORT": "18154",
    }
    other = told(monkeypatch, **STEP | {"SLURM_NODEID": "1", "SLURM_PROCID": "2", "SLURM_LOCALID": "0"})
    assert (other["RANK"], other["LOCAL_RANK"], other["LOCAL_WORLD_SIZE"]) == ("2", "0", "1")
    assert [other[name] for name in ("MASTER_ADDR", "MASTER_PORT")] == ["node1", "18154"]  # all meet there


def test_two_steps_and_two_jobs_meet_at_ports_of_their_own(monkeypatch):
    which = [("3154", "0"), ("3154", "1"), ("3155", "0"), ("3155", "1"), ("99999", "4294967290")]
    ports = [int(told(monkeypatch, **STEP | {"SLURM_JOB_ID": j, "SLURM_STEP_ID": s})["MASTER_PORT"]) for j, s in which]
    assert len(set(ports)) == len(ports) and all(15000 <= port < 25000 for port in ports)
    assert told(monkeypatch, **STEP, MASTER_PORT="777", MASTER_ADDR="10.0.0.1")["MASTER_PORT"] == "777"


@pytest.mark.parametrize(
    "per_node, node, tasks",
    [("1(x2)", 1, "1"), ("4", 0, "4"), ("2(x3),1", 2, "2"), ("2(x3),1", 3, "1"), ("1,3", 1, "3")],
)
def test_the_tasks_of_a_node_are_read_from_slurms_short_form(monkeypatch, per_node, node, tasks):
    numbers = {"SLURM_STEP_NUM_TASKS": "7", "SLURM_STEP_TASKS_PER_NODE": per_node, "SLURM_NODEID": str(node)}
    found = told(monkeypatch, **STEP | numbers | {"SLURM_LOCALID": "0"})
    assert found["LOCAL_WORLD_SIZE"] == tasks


def test_a_batch_script_a_single_task_and_a_shell_are_no_ranks(monkeypatch):
    batch = {name: value for name, value in STEP.items() if "STEP" not in name}
    assert told(monkeypatch, **batch | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}) == {}
    alone = {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    assert told(monkeypatch, **STEP | alone) == {}
    leader, follower = os.openpty()
    with os.fdopen(leader), os.fdopen(follower) as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", terminal)  # srun -n3 --pty bash: the other two are other shells, not ranks
        assert told(patch, **STEP, SLURM_PTY_PORT="36231") == {}
        patch.setattr(sys, "stdin", open(os.devnull))  # srun in that shell hands the variable on
        assert told(patch, **STEP, SLURM_PTY_PORT="36231")["RANK"] == "1"
        sys.stdin.close()


def test_torchruns_and_our_own_variables_win_over_those_of_slurm(monkeypatch):
    ours = dict(zip(TOLD, ("3", "4", "1", "2", "10.0.0.7", "29400")))
    assert told(monkeypatch, **STEP, **ours) == ours
    assert told(monkeypatch, RANK="0", WORLD_SIZE="1") == {"RANK": "0", "WORLD_SIZE": "1"}


@pytest.mark.parametrize(
    "change",
    [
        {"RANK": "4"},
        {"RANK": "-1"},
        {"WORLD_SIZE": "four"},
        {"LOCAL_RANK": "2"},
        {"LOCAL_WORLD_SIZE": "5"},
        {"MASTER_ADDR": None},
        {"MASTER_PORT": None},
    ],
)
def test_variables_that_cannot_be_are_one_line(monkeypatch, change):
    ours = dict(zip(TOLD, ("3", "4", "1", "2", "10.0.0.7", "29400"))) | change
    with pytest.raises(ConfigError, match="^the environment: its ranks make no sense .*; unset them, or start by srun"):
        told(monkeypatch, **{name: value for name, value in ours.items() if value is not None})


def test_a_step_of_which_slurm_tells_too_little_is_one_line(monkeypatch):
    with pytest.raises(ConfigError, match="^the environment"):
        told(monkeypatch, SLURM_STEP_ID="0", SLURM_STEP_NUM_TASKS="2")


def test_more_ranks_than_gpus_are_refused_before_they_wait_for_each_other(monkeypatch):
    """The number of GPUs is pretended."""
    for name, value in zip(TOLD, ("3", "4", "3", "4", "10.0.0.7", "29400")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(ConfigError, match="4 ranks on a machine with 2 GPUs; start one a GPU"), joined("cuda"):
        pass
