"""Arrays of a real SLURM, submitted: one element fails, the others are done, and which failed and why is told."""

import json
from dataclasses import replace

import pytest

from data_prep.store import list_sessions
from data_prep.synthetic import SyntheticConfig, write_sessions
from launch.submit_state import DONE, FAILED, array_state
from pretrain.train import pretrain
from tests.pretrain.conftest import SIGNAL, make_session, make_shards, tiny_config
from tests.slurm.submitted import spikeloom, submit

pytestmark = pytest.mark.slurm
PREPARE = ("prepare", "dandisets/synthetic.yaml", "recipe.min_train_s=1", "workers=0")
FINETUNE = ("finetune", "finetune/demo.yaml", "each=session", "wait=true", "freeze_steps=1")
SHORT = ("trainer.steps=4", "trainer.val_every=4", "trainer.save_every=2", "trainer.device=cpu")


def test_prepare_reads_every_file_once_and_tells_which_part_had_a_broken_one(cluster, tmp_path):
    """The second array, of another length, finds all of it done."""
    write_sessions(tmp_path / "nwb", SyntheticConfig(minutes=0.5, sessions=4))
    (tmp_path / "nwb" / "broken.nwb").write_text("no NWB")
    out = tmp_path / "out"
    for parts, status in ((3, "read"), (2, "kept")):
        (job,) = submit(*PREPARE, f"source={tmp_path / 'nwb'}", f"output={out}", f"parts={parts}")
        for element in range(parts):
            cluster.wait(f"{job}_{element}")
        elements = array_state(out / "submit")
        assert sorted(one.state for one in elements) == [DONE] * (parts - 1) + [FAILED], elements
        (failed,) = (one for one in elements if one.state == FAILED)
        assert failed.exit_code == 1 and "broken.nwb" in failed.log.read_text()
        told = json.loads((out / "report.json").read_text())
        assert told["parts"] == parts and told["missing_parts"] == []
        assert sorted(row["status"] for row in told["rows"]) == sorted([*[status] * 4, "refused"])
        assert len(list_sessions(out)) == 4


def test_finetuning_a_session_each_tells_which_session_failed_and_why(cluster, tmp_path):
    """The third session has no such behaviour; the other two are adapted all the same."""
    c = make_session("c", seed=3)
    c = replace(c, signals={"hand_pos": replace(c.signals[SIGNAL], name="hand_pos")})
    shards = make_shards(tmp_path, [make_session("a", seed=1), make_session("b", seed=2), c])
    known = pretrain(tiny_config(shards, tmp_path / "known", steps=1, sessions=["tiny/a"]))
    runs = tmp_path / "runs"
    words = [*FINETUNE, *SHORT, f"checkpoint={known}", f"shards={shards}", f"run={runs}"]
    code, out, fault = spikeloom("submit", "cluster/cpu.yaml", *words)
    a, b, c = array_state(runs / "submit")
    assert [(one.name, one.state) for one in (a, b, c)] == [("tiny/a", DONE), ("tiny/b", DONE), ("tiny/c", FAILED)]
    assert c.exit_code == 2 and f"has no signal '{SIGNAL}'" in c.said
    assert code == 1 and "2 done, 1 failed" in out, out + fault
    finished = [json.loads((runs / f"tiny__{name}" / "provenance.json").read_text())["finished"] for name in "ab"]
    assert all(finished) and not (runs / "tiny__c" / "checkpoint").exists()
