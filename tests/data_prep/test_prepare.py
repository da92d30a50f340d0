"""Stage 1 over a folder: one bad file stops nothing, finished work is kept, a full disk leaves nothing half-written."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

import data_prep.prepare as stage
from data_prep.errors import ConfigError, RecipeError, SessionError
from data_prep.prepare import PrepareConfig, prepare, preview
from data_prep.store import list_sessions, load_session


@pytest.fixture
def config(tmp_path, recipe) -> PrepareConfig:
    return PrepareConfig(
        recipe=replace(recipe, session="file"), source=str(tmp_path / "in"), output=str(tmp_path / "out"), workers=0
    )


def statuses(report) -> dict[str, str]:
    return {row.file: row.status for row in report.rows}


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_files_are_refused_and_the_others_go_on(nwb, config, tmp_path, workers):
    good, deep = nwb("in/good.nwb"), nwb("in/deeper/good2.nwb")
    (tmp_path / "in/empty.nwb").touch()
    (tmp_path / "in/text.nwb").write_text("hello")
    (tmp_path / "in/cut.nwb").write_bytes(good.read_bytes()[:50000])
    heard = []
    report = prepare(replace(config, workers=workers), on_row=heard.append)
    assert statuses(report) == {
        "good.nwb": "read",
        "deeper/good2.nwb": "read",
        "empty.nwb": "refused",
        "text.nwb": "refused",
        "cut.nwb": "refused",
    }
    assert sorted(heard, key=lambda row: row.file) == list(report.rows) and report.exit_code == 1
    assert [path.name for path in list_sessions(tmp_path / "out")] == ["small__Ada_good.h5", "small__Ada_good2.h5"]
    lines = report.lines()
    assert len(lines) == 6 and lines[-1].startswith("5 files: 2 read, 0 kept, 3 refused; 10 units, 2000 spikes")
    assert any("empty (0 bytes)" in line for line in lines) and all("\n" not in line for line in lines)
    told = json.loads((tmp_path / "out/report.json").read_text())
    assert [row["status"] for row in told["rows"]] == [row.status for row in report.rows]
    session = load_session(tmp_path / "out/small__Ada_good2.h5")
    assert session.provenance["file"] == "deeper/good2.nwb" and len(session.provenance["sha256"]) == 64
    assert deep.stat().st_size == int(session.provenance["bytes"])


def test_what_is_finished_is_kept_until_file_or_recipe_change(nwb, config, tmp_path):
    first, second = nwb("in/a.nwb"), nwb("in/b.nwb")
    assert set(statuses(prepare(config)).values()) == {"read"}
    before = {path: path.stat().st_mtime_ns for path in list_sessions(tmp_path / "out")}
    assert set(statuses(prepare(config)).values()) == {"kept"}
    assert before == {path: path.stat().st_mtime_ns for path in list_sessions(tmp_path / "out")}
    os.utime(first)  # touched, yet the same bytes
    assert set(statuses(prepare(config)).values()) == {"kept"}
    nwb("in/b.nwb", trials=40)
    assert statuses(prepare(config)) == {"a.nwb": "kept", "b.nwb": "read"}
    list_sessions(tmp_path / "out")[0].write_bytes(b"damaged")
    assert statuses(prepare(config)) == {"a.nwb": "read", "b.nwb": "kept"}
    other = replace(config, recipe=replace(config.recipe, loss_weights={"hold": 0.1}))
    assert set(statuses(prepare(other)).values()) == {"read"}
    assert prepare(other).exit_code == 0 and second.exists()


def test_a_session_whose_file_went_bad_does_not_linger(nwb, config, tmp_path):
    path = nwb("in/a.nwb")
    prepare(config)
    path.write_bytes(b"")
    assert statuses(prepare(config)) == {"a.nwb": "refused"}
    assert list_sessions(tmp_path / "out") == []


def test_a_session_that_got_another_id_leaves_no_twin(nwb, config, tmp_path):
    nwb("in/a.nwb")
    prepare(config)
    prepare(replace(config, recipe=replace(config.recipe, session="session_id")))
    assert [path.name for path in list_sessions(tmp_path / "out")] == ["small__Ada_day1.h5"]


def test_two_recipes_may_share_an_output(nwb, config, tmp_path):
    nwb("in/a.nwb")
    prepare(config)
    prepare(replace(config, recipe=replace(config.recipe, name="other")))
    assert [path.name for path in list_sessions(tmp_path / "out")] == ["other__Ada_a.h5", "small__Ada_a.h5"]


def test_two_files_with_one_id_are_not_mixed_up(nwb, config, tmp_path):
    nwb("in/a.nwb", trials=40)
    nwb("in/b.nwb", trials=41)
    report = prepare(replace(config, recipe=replace(config.recipe, session="session_id")))
    assert statuses(report) == {"a.nwb": "read", "b.nwb": "refused"}
    assert "already stored from a.nwb" in report.lines()[1]


def test_a_worker_that_dies_is_one_refused_row(nwb, config, tmp_path):
    for name in ("a", "b", "c"):
        nwb(f"in/{name}.nwb")
    (tmp_path / "deadly.py").write_text(
        "import os, data_prep.prepare as stage\n"
        "def die(path, *rest):\n"
        "    os.kill(os.getpid(), 9) if path.name == 'b.nwb' else None\n"
        "    return read(path, *rest)\n"
        "read, stage._read = stage._read, die\n"
    )
    (tmp_path / "config.pickle").write_bytes(pickle.dumps(replace(config, workers=2)))
    program = (
        "import pathlib, pickle, sys, data_prep.prepare as stage\n"
        "stage.__name__ = 'deadly'\n"  # the module that worker processes start from
        "config = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())\n"
        "print(*stage.prepare(config).lines(), sep='\\n')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "config.pickle")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{os.getcwd()}"},
        timeout=60,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["read", "refused", "read", "3"], done.stdout + done.stderr
    assert "b.nwb: the process that read it died (signal 9); try fewer workers" in lines[1]


def test_a_fault_of_ours_is_told_with_its_trace(nwb, config, tmp_path, monkeypatch):
    nwb("in/a.nwb")
    nwb("in/b.nwb")
    read = stage.read_session

    def fault(path, recipe):
        if path.name == "a.nwb":
            raise ZeroDivisionError("oh")
        return read(path, recipe)

    monkeypatch.setattr(stage, "read_session", fault)
    report = prepare(config)
    assert statuses(report) == {"a.nwb": "refused", "b.nwb": "read"}
    assert "ZeroDivisionError: oh; a fault of spikeloom" in report.rows[0].message
    assert "in fault" in json.loads((tmp_path / "out/report.json").read_text())["rows"][0]["trace"]


def test_a_full_disk_leaves_nothing_half_written(nwb, config, tmp_path):
    """The largest file the process may write is smaller than a session, as `ulimit -f` has it."""
    nwb("in/a.nwb")
    nwb("in/b.nwb", trials=40, spikes=[[1.0, 99.0]], time=[k / 2 for k in range(200)])
    (tmp_path / "config.pickle").write_bytes(pickle.dumps(config))
    program = (
        "import pathlib, pickle, resource, sys, data_prep.prepare as stage\n"
        "config = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))\n"
        "report = stage.prepare(config)\n"
        "print(*report.lines(), sep='\\n')\n"
        "sys.exit(report.exit_code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, str(tmp_path / "config.pickle")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 1 and done.stderr == "", done.stderr
    assert [line.split()[0] for line in lines] == ["refused", "read", "2"]
    assert "small/Ada_a: cannot be written to" in lines[0] and "File too large" in lines[0] and "make room" in lines[0]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["report.json", "small__Ada_b.h5"]
    assert len(load_session(tmp_path / "out/small__Ada_b.h5").spikes.time) == 2


def test_a_killed_runs_leavings_are_swept(nwb, config, tmp_path):
    nwb("in/a.nwb")
    old, fresh = tmp_path / "out/.x.h5.1.tmp", tmp_path / "out/.y.h5.2.tmp"
    old.parent.mkdir()
    for path in (old, fresh):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    prepare(config)
    assert not old.exists() and fresh.exists() and len(list_sessions(tmp_path / "out")) == 1


def test_one_file_as_source(nwb, config, tmp_path):
    report = prepare(replace(config, source=str(nwb("in/a.nwb"))))
    assert statuses(report) == {"a.nwb": "read"}


def test_sources_that_are_nowhere(config, tmp_path):
    with pytest.raises(SessionError, match="no such file or folder"):
        prepare(config)
    (tmp_path / "in").mkdir()
    with pytest.raises(ConfigError, match="matches"):
        prepare(config)
    with pytest.raises(ConfigError, match="source: empty"):
        prepare(replace(config, source=""))
    with pytest.raises(RecipeError):
        prepare(replace(config, recipe=replace(config.recipe, name="")))


def test_an_output_that_cannot_be(nwb, config, tmp_path):
    nwb("in/a.nwb")
    (tmp_path / "out").write_text("a file")
    with pytest.raises(ConfigError, match="cannot be made"):
        prepare(config)


def test_preview_tells_what_is_there_and_what_becomes_of_it(nwb, config, tmp_path):
    nwb("in/a.nwb")
    text = "\n".join(preview(config))
    assert "processing/behavior/Velocity/cursor_vel: (5000, 2) cm/s, about 50 Hz" in text
    assert "intervals/trials: 48 rows; columns start_time" in text and "makes session small/Ada_a of it" in text
    assert not (tmp_path / "out").exists()
    wrong = replace(config.recipe.signals["cursor_vel"], path=["nowhere"], derive_from="")
    text = "\n".join(preview(replace(config, recipe=replace(config.recipe, signals={"v": wrong}))))
    assert "refuses it: a.nwb: no series at nowhere" in text
    shutil.rmtree(tmp_path / "in")
    with pytest.raises(SessionError):
        preview(config)
