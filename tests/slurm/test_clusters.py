"""Every file of configs/cluster, submitted to a real SLURM that has such nodes: it takes the job as it is meant.

The GPU node exists on paper alone, so that jobs for it are looked at and wait.
"""

from pathlib import Path

import pytest
import yaml

from tests.slurm.submitted import spikeloom, submit

pytestmark = pytest.mark.slurm
ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "configs" / "cluster").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_slurm_takes_a_training_for_two_nodes(cluster, path, tmp_path):
    told = yaml.safe_load(path.read_text())
    words = [f"shards={tmp_path / 'shards'}", f"run={tmp_path / 'run'}", "cluster.nodes=2", "cluster.extra=[--hold]"]
    (job,) = submit("pretrain", *words, to=f"cluster/{path.name}")
    facts = cluster.job(job)
    assert cluster.run("scancel", job).returncode == 0
    assert facts["JobState"] == "PENDING" and facts["Reason"] == "JobHeldUser"
    assert (facts["Partition"], facts["NumNodes"].partition("-")[0]) == (told["partition"], "2")
    gpus = told.get("gpus_per_node")
    assert facts.get("TresPerNode") == (f"gres:gpu:{gpus}" if gpus else None)
    assert int(facts["NumTasks"]) == 2 * told["tasks_per_node"] and facts["Requeue"] == "1"
    assert int(facts["NumCPUs"]) >= 2 * told["tasks_per_node"] * told["cpus_per_task"]


def test_what_slurm_refuses_is_told_in_its_words(cluster, tmp_path):
    words = ["pretrain", f"shards={tmp_path}", f"run={tmp_path / 'run'}", "cluster.partition=nowhere"]
    code, _, told = spikeloom("submit", "cluster/cpu.yaml", *words)
    assert code == 2 and told.count("\n") == 1
    assert told.startswith("spikeloom: sbatch of pretrain: it said: ")
    assert "invalid partition specified: nowhere" in told
