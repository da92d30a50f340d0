"""`prepare` as a real SLURM array: every file is read once, and the element that had to refuse one is told."""

import json
from pathlib import Path

import pytest

from data_prep.store import list_sessions
from data_prep.synthetic import SyntheticConfig, write_sessions

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slurm


def test_an_array_reads_every_file_once(cluster, tmp_path):
    """The broken file's element alone fails; the second array, of another length, finds all of it done."""
    write_sessions(tmp_path / "nwb", SyntheticConfig(minutes=0.5, sessions=6))
    (tmp_path / "nwb" / "broken.nwb").write_text("no NWB")
    out = tmp_path / "out"
    words = [ROOT / "slurm" / "prepare.sbatch", "configs/dandisets/synthetic.yaml", tmp_path / "nwb", out]
    for last, status in ((3, "read"), (1, "kept")):
        options = ["--parsable", "--wait", f"--array=0-{last}", "--cpus-per-task=1", "--mem-per-cpu=500M"]
        log = f"--output={tmp_path}/%A_%a.log"
        done = cluster.run("sbatch", *options, log, *words, "recipe.min_train_s=1", cwd=ROOT, timeout=120)
        job = done.stdout.strip()
        elements = [cluster.wait(f"{job}_{element}") for element in range(last + 1)]
        logs = {int(path.stem.split("_")[1]): path.read_text() for path in tmp_path.glob(f"{job}_*.log")}
        failed = [at for at, facts in enumerate(elements) if facts["JobState"] == "FAILED"]
        assert done.returncode == 1 and len(failed) == 1, (done.stderr, logs)
        assert elements[failed[0]]["ExitCode"] == "1:0" and "broken.nwb" in logs[failed[0]], logs
        assert not any("broken.nwb" in text for element, text in logs.items() if element not in failed)
        told = json.loads((out / "report.json").read_text())
        assert told["parts"] == last + 1 and told["missing_parts"] == [], logs
        assert sorted(row["status"] for row in told["rows"]) == sorted([*[status] * 6, "refused"])
        assert len(list_sessions(out)) == 6 and any("all parts are done" in text for text in logs.values())
