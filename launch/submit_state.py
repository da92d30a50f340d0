"""A submitted folder -> how its job, or each element of its array, stands: which failed, and why."""

import json
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from launch.table import print_table

JOBS = "jobs.txt"  # of a submitted folder: the jobs that were submitted, the latest last
WAITING, RUNNING, DONE, STOPPED, FAILED, LOST = "waiting", "running", "done", "stopped", "failed", "lost"
SAVED = 75  # exit code of a run that saved because it was asked to stop
MOST_ROWS = 60  # more elements than this that are well are told as a sum
TAIL = 65536  # bytes of a log that are looked through
ASKED_EVERY_S = (1.0, 15.0)  # at first, and when it takes long
AGAIN = "it has saved and is queued again\n"  # the last words of an attempt (slurm/job.sbatch)
# Lines that say why, the best first: ours, an exception's or a daemon's, a table's sum. And what only says that it ended.
WHY = (r"(\[rank \d+\] )?spikeloom: ", r"(\[rank \d+\] )?[\w.]*(Error|Exception)\b|.*\berror: ", r"\d+ files.*refused")
ONLY_THAT = (
    r"srun: (error: \S+: tasks? [\d,-]+: (Exited|Killed|Terminated)|.*_step_signal|.*aborted)|.*DUE TO JOB REQUEUE"
)


@dataclass(frozen=True)
class Element:
    """One element of an array, or the one job that is none.

    `state`: waiting (in the queue, for the first time or again), running, done, stopped (it saved and left the queue), failed,
    or lost (it left the queue without a word: its node failed, it was cancelled, or what it waited for failed).
    """

    name: str
    state: str
    exit_code: int | None
    requeues: int
    said: str
    "the last line of its log that tells of an error, or the last line, where it is not done"
    log: Path


def submitted(run: str | Path) -> list[Path]:
    """The folders of a run, a shard root or a folder of sessions that were submitted to a cluster."""
    return sorted(path.parent for path in Path(run).glob(f"submit*/{JOBS}"))


def array_state(folder: str | Path) -> list[Element]:
    """Every element of the folder's latest job, in order; [] where none was submitted."""
    folder = Path(folder)
    jobs = _lines(folder / JOBS)
    if not jobs:
        return []
    job, elements = jobs[-1], _lines(folder / "elements.tsv")
    names = [line.split("\t")[0] for line in elements] or [folder.parent.name]
    queue = queued(job)
    return [_element(folder, job, n, name, bool(elements), queue) for n, name in enumerate(names)]


def _element(folder: Path, job: str, number: int, name: str, array: bool, queue: set[int] | None) -> Element:
    log = folder / "logs" / (f"{job}_{number}.log" if array else f"{job}.log")
    note = _note(folder / "ends" / f"{number}.json")
    here = queue is None or number in queue
    if note.get("job") != job:
        return Element(name, WAITING if here else LOST, None, 0, "" if here else said(log) or "it never began", log)
    code = note.get("exit_code")
    if code is None:
        state = RUNNING if here else LOST
    elif code == SAVED:
        state = WAITING if queue and number in queue else STOPPED
    else:
        state = FAILED if code else DONE
    why = said(log) if state in (STOPPED, FAILED, LOST) else ""
    return Element(name, state, code, int(note.get("requeues", 0)), why, log)


def queued(job: str) -> set[int] | None:
    """The elements of a job that SLURM still has to end (0 for a job that is no array); None where it cannot be asked."""
    if not shutil.which("squeue"):
        return None
    words = ["squeue", "--noheader", "--array", f"--jobs={job}", "--format=%K"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode and "Invalid job id" not in done.stderr:
        return None
    return {int(word) if word.isdigit() else 0 for word in done.stdout.split()}


def await_end(folder: str | Path) -> list[Element]:
    """Wait until the folder's latest job has left the queue; gives how its elements ended."""
    pause, longest = ASKED_EVERY_S
    while queued(_lines(Path(folder) / JOBS)[-1]) != set():
        time.sleep(pause)
        pause = min(1.2 * pause, longest)
    return array_state(folder)


def said(log: Path) -> str:
    """The line of a log that tells why its last attempt ended, the last of them, else its last line; "" where there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - TAIL))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    lines = [line.strip() for line in text.rpartition(AGAIN)[2].splitlines()]
    lines = [line for line in lines if line and not re.match(ONLY_THAT, line)]
    for pattern in WHY:
        told = [line for line in lines if re.match(pattern, line)]
        if told:
            return told[-1]
    return lines[-1] if lines else ""


def show_submitted(folder: str | Path) -> None:
    """Prints how each element stands; of many only those that are not done, and the sums."""
    elements = array_state(folder)
    shown = [one for one in elements if one.state != DONE] if len(elements) > MOST_ROWS else elements
    columns = ["job", "state", "exit code", "queued again", "said"]
    rows = [[one.name, one.state, one.exit_code, one.requeues or None, one.said] for one in shown]
    if rows:
        print_table(f"submitted from {folder}", columns, rows)
    counts = [(state, sum(one.state == state for one in elements)) for state in _order(elements)]
    if len(elements) > 1:
        print(", ".join(f"{n} {state}" for state, n in counts))


def _order(elements: list[Element]) -> list[str]:
    there = {one.state for one in elements}
    return [state for state in (DONE, RUNNING, WAITING, STOPPED, FAILED, LOST) if state in there]


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line]
    except OSError:
        return []


def _note(path: Path) -> dict:
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}
