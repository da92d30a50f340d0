"""The SLURM array of `prepare`: what the script runs, and, where there is a SLURM, the array itself."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from data_prep.store import list_sessions
from data_prep.synthetic import SyntheticConfig, write_sessions

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "slurm" / "prepare.sbatch"


def run(command: list, **more) -> subprocess.CompletedProcess:
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, **more)


def test_bash_reads_the_script():
    done = run(["bash", "-n", SCRIPT])
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="no shellcheck here")
def test_shellcheck_finds_nothing():
    done = run(["shellcheck", SCRIPT])
    assert done.returncode == 0, done.stdout


def test_what_the_script_runs(tmp_path):
    """With a `spikeloom` that tells its words, one a line: paths with spaces stay whole, settings follow."""
    fake = tmp_path / "bin" / "spikeloom"
    fake.parent.mkdir()
    fake.write_text('#!/bin/bash\nprintf "%s\\n" "$PWD" "$@"\n')
    fake.chmod(0o755)
    environment = {**os.environ, "PATH": f"{fake.parent}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(tmp_path)}
    words = ["r.yaml", "my files", "out", "archive.stream=true"]
    done = run(["bash", SCRIPT, *words], env={**environment, "SLURM_CPUS_PER_TASK": "4"}, cwd=ROOT)
    want = ["prepare", "r.yaml", "source=my files", "output=out", "part=slurm", "workers=4", "archive.stream=true"]
    assert done.stdout.splitlines() == [str(tmp_path), *want], done.stderr
    short = run(["bash", SCRIPT, "r.yaml"], env=environment)
    assert short.returncode == 2 and short.stderr.startswith("usage: sbatch --array=0-15")


@pytest.mark.slurm
def test_an_array_reads_every_file_once(tmp_path):
    """Two tasks at a time of a real array; the second array, of another length, finds all of it done."""
    write_sessions(tmp_path / "nwb", SyntheticConfig(minutes=0.5, sessions=6))
    (tmp_path / "nwb" / "broken.nwb").write_text("no NWB")
    out = tmp_path / "out"
    words = [SCRIPT, "configs/dandisets/synthetic.yaml", tmp_path / "nwb", out, "recipe.min_train_s=1"]
    for last, status in ((3, "read"), (1, "kept")):
        submit = ["sbatch", "--wait", f"--array=0-{last}", "--cpus-per-task=1", "--mem-per-cpu=500M"]
        done = run([*submit, f"--output={tmp_path}/%A_%a.log", *words], cwd=ROOT, timeout=300)
        logs = "\n".join(path.read_text() for path in tmp_path.glob("*.log"))
        assert done.returncode == 1, done.stderr + logs  # the broken file
        told = json.loads((out / "report.json").read_text())
        assert told["parts"] == last + 1 and told["missing_parts"] == [], logs
        assert sorted(row["status"] for row in told["rows"]) == sorted([*[status] * 6, "refused"])
        assert len(list_sessions(out)) == 6 and "all parts are done" in logs
