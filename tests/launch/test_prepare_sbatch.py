"""The batch script of `prepare`: what it runs (tests/slurm/ runs the array itself)."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

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
