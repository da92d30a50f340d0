"""A chain of commands as dependent jobs of a real SLURM: in order, and none after one that failed."""

import json
from itertools import pairwise

import pytest
import yaml

from data_prep.synthetic import SyntheticConfig, write_sessions
from tests.slurm.submitted import submit

pytestmark = pytest.mark.slurm
SHORT = ["model.depth=1", "trainer.steps=4", "trainer.val_every=4", "trainer.save_every=4", "trainer.device=cpu"]


def chain(folder) -> list[str]:
    """The words that submit four commands, from the NWB files in a folder to the scores of a run."""
    prepare = [f"source={folder / 'nwb'}", f"output={folder / 'sessions'}", "recipe.min_train_s=1", "workers=0"]
    shard = [f"sessions={folder / 'sessions'}", f"output={folder / 'shards'}"]
    train = [f"shards={folder / 'shards'}", f"run={folder / 'run'}", *SHORT]
    steps = [
        {"verb": "prepare", "config": "dandisets/synthetic.yaml", "settings": prepare},
        {"verb": "shard", "settings": shard},
        {"verb": "pretrain", "config": "pretrain/demo.yaml", "settings": train},
        {"verb": "evaluate", "settings": [f"run={folder / 'run'}", "step_s=1", "device=cpu"]},
    ]
    (folder / "chain.yaml").write_text(yaml.safe_dump({"steps": steps}))
    return [str(folder / "chain.yaml")]


def test_a_chain_leads_from_nwb_files_to_scores(cluster, tmp_path):
    write_sessions(tmp_path / "nwb", SyntheticConfig(minutes=0.5, sessions=2))
    jobs = [cluster.wait(job) for job in submit(*chain(tmp_path))]
    told = [(tmp_path / name / "logs").glob("*.log") for name in ("sessions/submit", "shards/submit", "run/submit")]
    assert [facts["JobState"] for facts in jobs] == ["COMPLETED"] * 4, [
        path.read_text() for logs in told for path in logs
    ]
    assert all(before["EndTime"] <= after["StartTime"] for before, after in pairwise(jobs))
    scores = json.loads((tmp_path / "run" / "results.json").read_text())
    assert len(scores["sessions"]) == 2


def test_a_step_that_fails_leaves_the_rest_undone(cluster, tmp_path):
    (tmp_path / "nwb").mkdir()
    (tmp_path / "nwb" / "broken.nwb").write_text("no NWB")
    jobs = [cluster.wait(job) for job in submit(*chain(tmp_path))]
    assert [facts["JobState"] for facts in jobs] == ["FAILED", "CANCELLED", "CANCELLED", "CANCELLED"]
    assert not list((tmp_path / "shards").glob("*.tar")) and not (tmp_path / "run" / "metrics.csv").exists()
