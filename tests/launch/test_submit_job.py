"""slurm/job.sbatch with programs of SLURM's names: which ends it makes of which exit codes, and what is read off them after.

`srun` here runs the tasks one after the other, and answers with the highest exit code, as the real one does.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from launch import submit_state
from launch.submit_state import array_state, await_end, queued, said, show_submitted

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "slurm").glob("*.sbatch"))
SCRIPT = ROOT / "slurm" / "job.sbatch"
PROGRAMS = {
    "srun": """echo "$*" >>told
while [[ $1 == --* ]]; do shift; done
most=0
for ((n = 0; n < ${TASKS:-1}; n++)); do
  SLURM_PROCID=$n "$@"
  code=$?
  if ((code > most)); then most=$code; fi
done
exit "$most"
""",
    "spikeloom": """printf '%s\\n' "$@" >words
echo "$FROM_ENV ${!SLURM_STEP_@} ${SLURM_PTY_PORT:-}" >environment
codes=(${CODES:-0})
exit "${codes[SLURM_PROCID]}"
""",
    "scontrol": 'echo "$*" >>requeued\nexit "${REFUSED:-0}"\n',
    "squeue": 'if [[ $* == *%T* ]]; then echo "${STATE-RUNNING}"; else cat queue; fi\n',
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with a submitted folder, and a PATH of pretended programs before the real ones."""
    for folder in ("bin", "run/submit/ends", "run/submit/logs"):
        (tmp_path / folder).mkdir(parents=True)
    for name, text in PROGRAMS.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{text}")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "run" / "submit" / "env.sh").write_text("export FROM_ENV='of env.sh'\n")
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return tmp_path


def job(here: Path, *words: str, most: int = 2, **environment) -> subprocess.CompletedProcess:
    """The script, run as SLURM would run it as job 7."""
    environment = {**os.environ, "SLURM_JOB_ID": "7", **{name: str(value) for name, value in environment.items()}}
    command = ["bash", SCRIPT, here / "run" / "submit", str(most), *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def note(here: Path, element: int = 0) -> dict:
    return json.loads((here / "run" / "submit" / "ends" / f"{element}.json").read_text())


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_the_scripts_are_plain_bash(script):
    assert subprocess.run(["bash", "-n", script], capture_output=True).returncode == 0
    if shutil.which("shellcheck"):
        done = subprocess.run(["shellcheck", script], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


# ------------------------------------------------------------------------------------------------ the script


def test_the_command_runs_in_its_environment_and_ends_as_the_job(here):
    done = job(here, "pretrain", "my config.yaml", SLURM_CPUS_PER_TASK=6, SLURM_STEP_ID=0, SLURM_PTY_PORT=9)
    assert (done.returncode, done.stderr) == (0, "")
    assert (here / "words").read_text() == "pretrain\nmy config.yaml\n"
    assert (here / "environment").read_text().strip() == "of env.sh", "nothing of the step that sbatch was called from"
    assert "--kill-on-bad-exit=1 --cpus-per-task=6 bash -c" in (here / "told").read_text()
    assert note(here) == {"job": "7", "exit_code": 0, "requeues": 0}
    assert [path.name for path in (here / "run" / "submit" / "ends").iterdir()] == ["0.json"]


@pytest.mark.parametrize(
    "codes, more, code, requeued",
    [
        ("0 0", {}, 0, False),
        ("1 0", {}, 1, False),
        ("75 75", {}, 75, True),
        ("75 138", {}, 75, True),  # USR1 before the second rank listened
        ("75 0", {}, 75, True),
        ("75 2", {}, 2, False),  # one failed, and its end was the reason that the others were asked to stop
        ("75 137", {}, 137, False),  # one was killed, for want of memory
        ("75 75", {"SLURM_RESTART_COUNT": 1}, 75, True),
        ("75 75", {"SLURM_RESTART_COUNT": 2}, 75, False),  # as often as is allowed
        ("75 75", {"STATE": "COMPLETING"}, 75, False),  # scancel: it shall not come back
        ("75 75", {"STATE": ""}, 75, False),  # nobody answers
        ("75 75", {"REFUSED": 1}, 75, True),
    ],
)
def test_only_a_training_that_was_asked_to_stop_goes_back_into_the_queue(here, codes, more, code, requeued):
    done = job(here, "pretrain", "c", TASKS=2, CODES=codes, **more)
    assert done.returncode == code, done.stderr
    assert (here / "requeued").exists() == requeued
    assert note(here) == {"job": "7", "exit_code": code, "requeues": more.get("SLURM_RESTART_COUNT", 0)}
    goes_on = f"bash {here}/run/submit/submit.sh goes on"
    assert (goes_on in done.stderr) == (code == 75 and (not requeued or "REFUSED" in more))


def test_an_element_takes_the_words_of_its_own_line(here):
    lines = ['a\tsessions=["a b"]\trun=runs/a', 'b\tsessions=["b"]\texclude=[]\trun=runs/b c']
    (here / "run" / "submit" / "elements.tsv").write_text("\n".join(lines) + "\n")
    array = {"SLURM_JOB_ID": "8", "SLURM_ARRAY_JOB_ID": "7"}
    for element in (0, 1):
        job(here, "finetune", "c.yaml", SLURM_ARRAY_TASK_ID=element, CODES=element, **array)
        assert (here / "words").read_text().splitlines() == ["finetune", "c.yaml", *lines[element].split("\t")[1:]]
    assert note(here, 0) == {"job": "7", "exit_code": 0, "requeues": 0}
    assert note(here, 1) == {"job": "7", "exit_code": 1, "requeues": 0}


def test_an_element_queues_itself_again_and_not_the_array(here):
    """The last element's SLURM_JOB_ID is the array's, which scontrol would take for all of them."""
    (here / "run" / "submit" / "elements.tsv").write_text("a\nb\n")
    job(here, "finetune", "c.yaml", SLURM_ARRAY_JOB_ID=7, SLURM_ARRAY_TASK_ID=1, CODES=75)
    job(here, "pretrain", "c.yaml", CODES=75)
    assert (here / "requeued").read_text() == "requeue 7_1\nrequeue 7\n"


def test_an_environment_without_the_program_says_so(here):
    (here / "run" / "submit" / "env.sh").write_text("PATH=/usr/bin:/bin\n")
    done = job(here, "pretrain", "c")
    assert done.returncode == 2 and "env.sh: after it there is no spikeloom on the PATH" in done.stderr
    assert note(here)["exit_code"] == 2


def test_too_few_words_are_told_how_it_is_called(here):
    done = subprocess.run(["bash", SCRIPT, "x"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("usage: sbatch [options] slurm/job.sbatch FOLDER")


@pytest.mark.parametrize("name, state, back", [("SIGUSR1", "RUNNING", True), ("SIGTERM", "COMPLETING", False)])
def test_a_signal_is_the_runs_to_answer(here, name, state, back):
    """As SLURM sends it: to every process of a task, its shell too; SIGTERM to the batch script besides."""
    tasks = '#!/bin/bash\ntrap : TERM\nwhile [[ $1 == --* ]]; do shift; done\nsetsid --wait "$@" &\nwait $!; wait $!\n'
    asked = "until [[ ${asked:-} ]]; do sleep 0.05; done\nsleep 0.2\n: >saved\nexit 75\n"
    (here / "bin" / "srun").write_text(tasks)
    (here / "bin" / "spikeloom").write_text(
        f"#!/bin/bash\ntrap asked=1 USR1 TERM\necho $PPID >group\n: >ready\n{asked}"
    )
    environment = {**os.environ, "SLURM_JOB_ID": "7", "STATE": state}
    command = ["bash", SCRIPT, here / "run" / "submit", "2", "pretrain", "c"]
    process = subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 20
    while not (here / "ready").exists() and time.monotonic() < until:
        time.sleep(0.02)
    if name == "SIGTERM":
        os.killpg(process.pid, signal.SIGTERM)
    os.killpg(int((here / "group").read_text()), getattr(signal, name))
    assert process.wait(20) == 75
    assert (here / "saved").exists() and (here / "requeued").exists() == back
    assert note(here)["exit_code"] == 75


# ------------------------------------------------------------------------------------------------ how it stands


def an_array(here: Path, *names: str) -> Path:
    folder = here / "run" / "submit"
    (folder / "jobs.txt").write_text("5\n7\n")
    (folder / "elements.tsv").write_text("".join(f"{name}\tpart=x\n" for name in names))
    return folder


def put(folder: Path, element: int, code: int | None, log: str = "", job: str = "7", requeues: int = 0) -> None:
    told = {"job": job, "exit_code": code, "requeues": requeues}
    (folder / "ends" / f"{element}.json").write_text(json.dumps(told))
    (folder / "logs" / f"7_{element}.log").write_text(log)


def test_the_state_of_an_array_tells_which_failed_and_why(here, capsys):
    folder = an_array(here, "done", "failed", "running", "lost", "old", "stopped", "cancelled", "waiting", "again")
    put(folder, 0, 0, "spikeloom: all is well\n")
    put(
        folder,
        1,
        1,
        "step 1\nspikeloom: shards/x.tar: damaged; fetch it again\nsrun: error: n1: task 0: Exited with exit code 1\n",
    )
    put(folder, 2, None)
    put(folder, 3, None, "step 9\nslurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 12:00 DUE TO TIME LIMIT ***\n")
    put(folder, 4, 1, job="5")  # of the submission before
    put(folder, 5, 75, "step 3\n", requeues=4)
    put(folder, 8, 75, "spikeloom: it saved\n", requeues=1)
    (here / "queue").write_text("2\n4\n7\n8\n")
    elements = {one.name: (one.state, one.exit_code, one.said) for one in array_state(folder)}
    assert elements == {
        "done": ("done", 0, ""),
        "failed": ("failed", 1, "spikeloom: shards/x.tar: damaged; fetch it again"),
        "running": ("running", None, ""),
        "lost": ("lost", None, "slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 12:00 DUE TO TIME LIMIT ***"),
        "old": ("waiting", None, ""),
        "stopped": ("stopped", 75, "step 3"),
        "cancelled": ("lost", None, "it never began"),
        "waiting": ("waiting", None, ""),
        "again": ("waiting", 75, ""),
    }
    show_submitted(folder)
    assert capsys.readouterr().out.splitlines()[-1] == "1 done, 1 running, 3 waiting, 1 stopped, 1 failed, 2 lost"


def test_of_many_elements_those_that_are_well_are_only_counted(here, capsys):
    folder = an_array(here, *(f"session {n}" for n in range(70)))
    for n in range(70):
        put(folder, n, int(n == 33), "RuntimeError: no\n")
    (here / "queue").write_text("")
    show_submitted(folder)
    out = capsys.readouterr().out.splitlines()
    assert out[-2].split()[:4] == ["session", "33", "failed", "1"] and out[-1] == "69 done, 1 failed" and len(out) == 4


def test_what_the_script_notes_is_what_is_read(here):
    """A job that is no array: fails, then is submitted again and done."""
    folder = here / "run" / "submit"
    (here / "queue").write_text("")
    assert array_state(folder) == []
    for number, code, state in ((7, 2, "failed"), (8, 0, "done")):
        (folder / "jobs.txt").write_text(f"6\n{number}\n")
        assert [one.state for one in array_state(folder)] == ["lost"]  # nothing was noted of this job
        job(here, "pretrain", "c", CODES=code, SLURM_JOB_ID=number)
        (one,) = array_state(folder)
        assert (one.name, one.state, one.exit_code) == ("run", state, code)
        assert one.log == folder / "logs" / f"{number}.log"


@pytest.mark.parametrize(
    "log, line",
    [
        ("", ""),
        ("one\n\ntwo\n", "two"),
        ("Traceback (most recent call last):\n  File x\nRuntimeError: out of it\nbye\n", "RuntimeError: out of it"),
        (
            "[rank 1] torch.OutOfMemoryError: CUDA\nsrun: error: n: task 1: Exited with exit code 1\n",
            "[rank 1] torch.OutOf",
        ),
        ("[rank 1] spikeloom: a: b; c\nRuntimeError: peer has gone\n", "[rank 1] spikeloom: a: b; c"),
        ("spikeloom: job 7: it has saved and is queued again\nstep 3\nValueError: x\n", "ValueError: x"),
        ("step 3\nslurmstepd-n1: error: *** JOB 7 ON n1 CANCELLED AT 12:00 DUE TO JOB REQUEUE ***\n", "step 3"),
        (
            "srun: error: n1: tasks 0-3: Killed\nslurmstepd: error: Detected 1 oom_kill event\n",
            "slurmstepd: error: Detected",
        ),
        ("3 files: 2 read, 0 kept, 1 refused; 4 units\nthis was part 2/2\n", "3 files: 2 read, 0 kept, 1 refused"),
        ("x" * 70_000 + "\nspikeloom: \xff: late; do\n", "spikeloom: "),
    ],
)
def test_what_is_quoted_of_a_log_says_why_it_ended(tmp_path, log, line):
    path = tmp_path / "log"
    path.write_bytes(log.encode("latin-1"))
    assert said(path).startswith(line) and (line or said(path) == "")


def test_a_queue_that_cannot_be_asked_is_not_taken_for_an_empty_one(here):
    for lines, found in (
        ("echo 0; echo 3", {0, 3}),
        ("echo N/A", {0}),
        ("echo slurm_load_jobs error: Invalid job id specified >&2; exit 1", set()),
        ("echo slurm_load_jobs error: Unable to contact slurm controller >&2; exit 1", None),
    ):
        (here / "bin" / "squeue").write_text(f"#!/bin/bash\n{lines}\n")
        assert queued("7") == found
    folder = an_array(here, "one", "two")
    put(folder, 0, None)
    assert [one.state for one in array_state(folder)] == ["running", "waiting"]


def test_waiting_lasts_until_the_queue_is_empty(here, monkeypatch):
    monkeypatch.setattr(submit_state, "ASKED_EVERY_S", (0.01, 0.02))
    (here / "bin" / "squeue").write_text(
        "#!/bin/bash\necho >>asked; n=$(wc -l <asked)\n((n == 2)) && exit 1\n((n < 4)) && echo 0\nexit 0\n"
    )
    folder = an_array(here, "one")
    put(folder, 0, 0)
    assert [one.state for one in await_end(folder)] == ["done"]
    assert (
        len((here / "asked").read_text()) == 5
    )  # in the queue, no answer, in the queue, gone; and once for the states
