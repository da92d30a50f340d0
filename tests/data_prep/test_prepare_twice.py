"""Real processes that are killed, or that meet in one folder: nothing is lost, redone, doubled or half-written."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from data_prep.prepare import PrepareConfig, prepare
from data_prep.store import describe, list_sessions, load_session

FILES = 8
PROGRAM = (
    "import pathlib, pickle, sys, data_prep.prepare as stage\n"
    "config = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())\n"
    "print(*stage.prepare(config).lines(), sep='\\n')\n"
)


@pytest.fixture
def config(nwb, recipe, tmp_path) -> PrepareConfig:
    for n in range(FILES):
        nwb(f"in/{n:02d}.nwb")
    recipe = replace(recipe, session="file")
    return PrepareConfig(recipe=recipe, source=str(tmp_path / "in"), output=str(tmp_path / "out"), workers=2)


@pytest.fixture
def started(tmp_path):
    """started(config) is a process that prepares; whatever still runs at the end is killed."""
    running = []

    def start(config: PrepareConfig, **more) -> subprocess.Popen:
        file = tmp_path / f"config-{len(running)}.pickle"
        file.write_bytes(pickle.dumps(config))
        command = [sys.executable, "-c", PROGRAM, str(file)]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in list_sessions(folder)}


def wait_for(count: int, folder: Path, process: subprocess.Popen) -> None:
    for _ in range(4000):
        if len(list_sessions(folder)) >= count or process.poll() is not None:
            return
        time.sleep(0.005)


@pytest.mark.parametrize(
    "workers, kills",
    [(2, [3]), *(pytest.param(workers, [1, 4], marks=pytest.mark.slow) for workers in (0, 1, 3))],
)
def test_killed_and_started_again(config, started, tmp_path, workers, kills):
    """Killed in the middle of work; then everything that had been finished stands untouched."""
    config, out, before = replace(config, workers=workers), tmp_path / "out", {}
    for wanted in kills:
        process = started(config)
        wait_for(max(wanted, len(before) + 1), out, process)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        time.sleep(0.2)  # its workers hear of it by themselves
        now = times(out)
        assert before.items() <= now.items() and len(before) < len(now) < FILES
        assert all(len(load_session(out / name).spikes) == 1000 for name in now)
        before = now
    assert list((out / ".prepare").glob("run-*")) and not (out / "report.json").exists()
    report = prepare(config)
    assert report.totals.kept == len(before) and report.totals.read == FILES - len(before) and report.exit_code == 0
    assert before.items() <= times(out).items() and len(times(out)) == FILES
    assert not list((out / ".prepare").glob("run-*")) and not list(out.glob(".*.tmp"))


@pytest.mark.parametrize(
    "parts",
    [("1/1", "1/1"), *(pytest.param(parts, marks=pytest.mark.slow) for parts in (("1/2", "2/2"), ("1/1", "2/2")))],
)
def test_two_processes_meet(config, started, tmp_path, parts):
    """At the same files, at different ones, or at some: each file becomes one whole session."""
    out = tmp_path / "out"
    processes = [started(replace(config, part=part)) for part in parts]
    told = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0] and not any(errors for _, errors in told), told
    assert not any("refused  " in lines for lines, _ in told)
    stored = [describe(path) for path in list_sessions(out)]
    assert Counter(one.provenance["file"] for one in stored) == Counter(f"{n:02d}.nwb" for n in range(FILES))
    assert len({one.id for one in stored}) == FILES == len(stored)
    assert all(len(load_session(one.path).spikes) == 1000 for one in stored)
    if parts == ("1/2", "2/2"):
        rows = json.loads((out / "report.json").read_text())["rows"]
        assert [row["file"] for row in rows] == [f"{n:02d}.nwb" for n in range(FILES)]
    assert prepare(replace(config, workers=0)).totals.kept == FILES


def test_two_files_that_claim_one_id_in_two_processes(config, nwb, started, tmp_path):
    """Whoever is first has it; the other is told, and no session is replaced by another recording."""
    source = tmp_path / "twins"
    for name, trials in (("a", 40), ("b", 41)):
        nwb(f"twins/{name}/x.nwb", trials=trials)
    recipe = replace(config.recipe, session="session_id")
    both = [replace(config, recipe=recipe, source=str(source / name), workers=0) for name in "ab"]
    told = [process.communicate(timeout=60)[0] for process in [started(one) for one in both]]
    assert sorted(lines.split()[0] for lines in told) == ["read", "refused"]
    refused = next(lines for lines in told if lines.startswith("refused"))
    winner = describe(list_sessions(tmp_path / "out")[0]).provenance["source"]
    assert f"already stored from x.nwb of {winner}" in refused and len(list_sessions(tmp_path / "out")) == 1


def test_an_interrupt_ends_at_once_and_leaves_nothing_half_written(config, started, tmp_path):
    out = tmp_path / "out"
    process = started(config, start_new_session=True)
    wait_for(1, out, process)
    began = time.perf_counter()
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: every process hears of it
    process.wait(timeout=20)
    assert time.perf_counter() - began < 5 and process.returncode != 0
    errors = process.stderr.read()
    assert errors.count("KeyboardInterrupt") == 1  # of the process itself, none of its workers
    assert [path.name for path in (out / ".prepare").iterdir()] == ["lock"]
    assert all(len(load_session(path).spikes) == 1000 for path in list_sessions(out))
