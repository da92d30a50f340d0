"""Stage 1 over a folder: one bad file stops nothing, finished work is kept, a full disk leaves nothing half-written."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

import data_prep.prepare as stage
import data_prep.shelf as shelf
import data_prep.work as work
from data_prep.errors import ConfigError, RecipeError, SessionError
from data_prep.open_source import open_source
from data_prep.prepare import PrepareConfig, prepare, preview
from data_prep.source import ArchiveConfig
from data_prep.store import describe, list_sessions, load_session


@pytest.fixture
def config(tmp_path, recipe) -> PrepareConfig:
    return PrepareConfig(
        recipe=replace(recipe, session="file"), source=str(tmp_path / "in"), output=str(tmp_path / "out"), workers=0
    )


def statuses(report) -> dict[str, str]:
    return {row.file: row.status for row in report.rows}


def stored(folder: Path) -> list[str]:
    return [path.name for path in list_sessions(folder)]


def seen(folder: Path) -> list[str]:
    """Names in a folder; what prepare keeps under a hidden name for its own use holds nothing but a lock."""
    assert [path.name for path in (folder / ".prepare").iterdir()] == ["lock"]
    return sorted(path.name for path in folder.iterdir() if path.name != ".prepare")


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_files_are_refused_and_the_others_go_on(nwb, config, tmp_path, workers):
    good, deep = nwb("in/good.nwb"), nwb("in/deeper/good2.nwb", trials=47)
    (tmp_path / "in/empty.nwb").touch()
    (tmp_path / "in/text.nwb").write_text("hello")
    (tmp_path / "in/cut.nwb").write_bytes(good.read_bytes()[:50000])
    heard, started = [], []
    report = prepare(replace(config, workers=workers), on_row=heard.append, on_start=started.extend)
    assert statuses(report) == {
        "good.nwb": "read",
        "deeper/good2.nwb": "read",
        "empty.nwb": "refused",
        "text.nwb": "refused",
        "cut.nwb": "refused",
    }
    assert sorted(heard, key=lambda row: row.file) == list(report.rows) and report.exit_code == 1
    assert {asset.path: asset.size for asset in started} == {row.file: row.bytes for row in report.rows}
    assert stored(tmp_path / "out") == ["small__Ada_good.h5", "small__Ada_good2.h5"]
    lines = report.lines()
    assert len(lines) == 6 and lines[-1].startswith("5 files: 2 read, 0 kept, 3 refused; 10 units, 2,000 spikes")
    assert any("empty (0 bytes)" in line for line in lines) and all("\n" not in line for line in lines)
    session = load_session(tmp_path / "out/small__Ada_good2.h5")
    told = json.loads((tmp_path / "out/report.json").read_text())
    assert [row["status"] for row in told["rows"]] == [row.status for row in report.rows]
    assert told["totals"] == told["recipes"]["small"] and told["totals"]["spikes"] == 2 * len(session.spikes) == 2000
    assert told["totals"]["hours"] == pytest.approx(2 * session.domain.seconds / 3600, rel=0.1)
    assert session.provenance["file"] == "deeper/good2.nwb" and session.provenance["source"] == str(tmp_path / "in")
    assert deep.stat().st_size == int(session.provenance["bytes"])
    assert session.provenance["digest"] == told["rows"][1]["digest"] == f"sha256:{work._sha256(deep)}"


def test_what_is_finished_is_kept_until_file_or_recipe_change(nwb, config, tmp_path):
    first, second = nwb("in/a.nwb"), nwb("in/b.nwb", trials=47)
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


def test_another_format_of_what_is_stored_makes_it_anew(nwb, config, tmp_path, monkeypatch):
    nwb("in/a.nwb")
    prepare(config)
    monkeypatch.setattr("data_prep.shelf.FORMAT", 1000)
    assert statuses(prepare(config)) == {"a.nwb": "read"}
    assert statuses(prepare(config)) == {"a.nwb": "kept"}


def test_content_counts_and_not_the_name(nwb, config, tmp_path):
    """A renamed file, and a folder that was moved, need not be read again; nor does a copy."""
    by_content = replace(config, recipe=replace(config.recipe, session="session_id"))
    nwb("in/a.nwb")
    prepare(by_content)
    (tmp_path / "in/a.nwb").rename(tmp_path / "in/z.nwb")
    assert statuses(prepare(by_content)) == {"z.nwb": "kept"}
    (tmp_path / "in").rename(tmp_path / "moved")
    moved = replace(by_content, source=str(tmp_path / "moved"))
    assert statuses(prepare(moved)) == {"z.nwb": "kept"}
    shutil.copy(tmp_path / "moved/z.nwb", tmp_path / "moved/y.nwb")
    report = prepare(moved)
    assert statuses(report) == {"z.nwb": "kept", "y.nwb": "kept"}
    assert (
        report.totals.sessions == 1 and report.totals.units == 5 and stored(tmp_path / "out") == ["small__Ada_day1.h5"]
    )


def test_a_session_named_by_its_file_follows_its_name(nwb, config, tmp_path):
    nwb("in/a.nwb")
    prepare(config)
    (tmp_path / "in/a.nwb").rename(tmp_path / "in/z.nwb")
    assert statuses(prepare(config)) == {"z.nwb": "read"}
    assert stored(tmp_path / "out") == ["small__Ada_z.h5"]


def test_files_of_one_name_in_two_folders_are_two_files(nwb, config, tmp_path):
    """The second folder's recordings must not push out the first one's."""
    nwb("in/a.nwb", subject="Ada")
    nwb("in2/a.nwb", subject="Bea")
    prepare(config)
    assert statuses(prepare(replace(config, source=str(tmp_path / "in2")))) == {"a.nwb": "read"}
    assert stored(tmp_path / "out") == ["small__Ada_a.h5", "small__Bea_a.h5"]
    nwb("in2/a.nwb", subject="Ada")
    report = prepare(replace(config, source=str(tmp_path / "in2")))
    assert "already stored from a.nwb of" in report.rows[0].message
    assert describe(tmp_path / "out/small__Ada_a.h5").provenance["source"] == str(tmp_path / "in")


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
    assert stored(tmp_path / "out") == ["small__Ada_day1.h5"]


def test_ids_may_change_hands(nwb, config, tmp_path):
    """Under a new recipe each of two files takes the name the other's session had; none is lost."""
    nwb("in/a.nwb", session_id="b")
    nwb("in/b.nwb", session_id="a")
    prepare(config)
    report = prepare(replace(config, recipe=replace(config.recipe, session="session_id")))
    assert statuses(report) == {"a.nwb": "read", "b.nwb": "read"}
    files = {path.name: describe(path).provenance["file"] for path in list_sessions(tmp_path / "out")}
    assert files == {"small__Ada_a.h5": "b.nwb", "small__Ada_b.h5": "a.nwb"}


def test_two_recipes_may_share_an_output(nwb, config, tmp_path):
    nwb("in/a.nwb")
    prepare(config)
    prepare(replace(config, recipe=replace(config.recipe, name="other")))
    assert stored(tmp_path / "out") == ["other__Ada_a.h5", "small__Ada_a.h5"]
    told = json.loads((tmp_path / "out/report.json").read_text())
    assert {name: totals["sessions"] for name, totals in told["recipes"].items()} == {"other": 1, "small": 1}
    assert told["totals"]["spikes"] == 2000


def test_two_files_with_one_id_are_not_mixed_up(nwb, config, tmp_path):
    nwb("in/a.nwb", trials=40)
    nwb("in/b.nwb", trials=41)
    report = prepare(replace(config, recipe=replace(config.recipe, session="session_id")))
    assert statuses(report) == {"a.nwb": "read", "b.nwb": "refused"}
    assert "already stored from a.nwb" in report.lines()[1]


def test_a_file_that_changes_while_it_is_read_is_refused(nwb, config, tmp_path, monkeypatch):
    path = nwb("in/a.nwb")
    save = work.save_session

    def meddled(session, folder):
        with open(path, "ab") as stream:
            stream.write(b"more")
        return save(session, folder)

    monkeypatch.setattr(work, "save_session", meddled)
    assert "it changed while it was read" in prepare(config).rows[0].message
    assert seen(tmp_path / "out") == ["report.json"]


def deadly(task, job):
    if job.asset.path == "b.nwb":
        os.kill(os.getpid(), signal.SIGKILL)
    return work.carry_out(task, job)


def test_a_worker_that_dies_is_one_refused_row(nwb, config, tmp_path, monkeypatch):
    """As the kernel kills one when memory runs out; what was stored of an earlier version of its file goes too."""
    for name in ("a", "b", "c"):
        nwb(f"in/{name}.nwb")
    prepare(replace(config, files=["b.nwb"], recipe=replace(config.recipe, loss_weights={"hold": 0.1})))
    monkeypatch.setattr(stage, "carry_out", deadly)
    report = prepare(replace(config, workers=2))
    assert statuses(report) == {"a.nwb": "read", "b.nwb": "refused", "c.nwb": "read"}
    assert report.rows[1].message.startswith("b.nwb: the process that read it died (signal 9); most likely the memory")
    assert stored(tmp_path / "out") == ["small__Ada_a.h5", "small__Ada_c.h5"]
    assert seen(tmp_path / "out") == ["report.json", "small__Ada_a.h5", "small__Ada_c.h5"]


@pytest.mark.parametrize("chosen", [True, False])
def test_temporary_files_lie_beside_the_sessions_unless_a_folder_is_chosen(nwb, config, tmp_path, monkeypatch, chosen):
    nwb("in/a.nwb")
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.delenv("TMPDIR", raising=False)
    if chosen:
        monkeypatch.setenv("TMPDIR", str(tmp_path))
    opened, folders = work.opened_session, []

    def watched(*words):
        folders.append(Path(tempfile.gettempdir()))
        return opened(*words)

    monkeypatch.setattr(work, "opened_session", watched)
    assert prepare(config).exit_code == 0
    assert folders[0] == tmp_path if chosen else folders[0].parent == tmp_path / "out" / ".prepare"


def endless(task, job):
    """What a worker does in the next test."""
    while job.asset.path == "b.nwb":
        pass
    return work.carry_out(task, job)


def test_a_file_that_holds_its_reader_for_ever_is_given_up(nwb, config, tmp_path, monkeypatch):
    for name in ("a", "b", "c"):
        nwb(f"in/{name}.nwb")
    monkeypatch.setattr(stage, "carry_out", endless)
    report = prepare(replace(config, workers=1, limit_s=2.0))
    assert statuses(report) == {"a.nwb": "read", "b.nwb": "refused", "c.nwb": "read"}
    assert report.rows[1].message == "b.nwb: took longer than 2 s; leave it out if it is damaged, or raise limit_s"


def test_a_fault_of_ours_is_told_with_its_trace(nwb, config, tmp_path, monkeypatch):
    nwb("in/a.nwb")
    nwb("in/b.nwb")
    opened = work.opened_session

    def fault(file, *rest):
        if file.name == "a.nwb":
            raise ZeroDivisionError("oh")
        return opened(file, *rest)

    monkeypatch.setattr(work, "opened_session", fault)
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
        [sys.executable, "-c", program, str(tmp_path / "config.pickle")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 1 and done.stderr == "", done.stderr
    assert [line.split()[0] for line in lines] == ["refused", "read", "2"]
    assert "small/Ada_a: cannot be written to" in lines[0] and "File too large" in lines[0] and "make room" in lines[0]
    assert seen(tmp_path / "out") == ["report.json", "small__Ada_b.h5"]
    assert len(load_session(tmp_path / "out/small__Ada_b.h5").spikes.time) == 2


def test_what_dead_runs_left_is_swept(nwb, config, tmp_path):
    """One of this machine at once, one of another machine after a day of silence: its lock may not reach here."""
    nwb("in/a.nwb")
    hidden, mine = tmp_path / "out/.prepare", shelf._mine()
    for name in (f"{mine}dead", f"{mine}alive", "run-elsewhere_new", "run-elsewhere_old"):
        (hidden / name).mkdir(parents=True)
        (hidden / name / "small__Ada_a.h5").write_bytes(b"half")
    for path in (hidden / "run-elsewhere_old", tmp_path / "out/.x.h5.1.tmp", tmp_path / "out/.y.h5.1.tmp"):
        path.touch()
        os.utime(path, (0, 0) if path.name != ".y.h5.1.tmp" else None)
    with open(hidden / f"{mine}alive/alive", "a") as stream:
        assert shelf._hold(stream)
        prepare(config)
    assert sorted(path.name for path in hidden.iterdir()) == sorted(["lock", f"{mine}alive", "run-elsewhere_new"])
    assert [path.name for path in (tmp_path / "out").glob(".*.tmp")] == [".y.h5.1.tmp"]


def test_one_file_as_source(nwb, config, tmp_path):
    report = prepare(replace(config, source=str(nwb("in/a.nwb"))))
    assert statuses(report) == {"a.nwb": "read"}


def test_files_come_from_the_config_or_else_from_the_recipe(nwb, config, tmp_path):
    for name in ("a1", "a2", "b1"):
        nwb(f"in/{name}.nwb")
    recipe = replace(config.recipe, files=["a*.nwb"])
    assert set(statuses(prepare(replace(config, recipe=recipe)))) == {"a1.nwb", "a2.nwb"}
    assert set(statuses(prepare(replace(config, recipe=recipe, files=["*1.nwb"])))) == {"a1.nwb", "b1.nwb"}


def test_sources_that_are_nowhere(config, tmp_path):
    with pytest.raises(SessionError, match="no such file or folder"):
        prepare(config)
    (tmp_path / "in").mkdir()
    with pytest.raises(ConfigError, match="source"):
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
    size = nwb("in/a.nwb").stat().st_size / 1e6
    text = "\n".join(preview(config))
    assert f"1 file, {size:.1f} MB, in {tmp_path / 'in'}" in text
    assert "processing/behavior/Velocity/cursor_vel: (5000, 2) cm/s, about 50 Hz" in text
    assert "intervals/trials: 48 rows; columns start_time" in text and "makes session small/Ada_a of it" in text
    assert not (tmp_path / "out").exists()
    wrong = replace(config.recipe.signals["cursor_vel"], path=["nowhere"], derive_from="")
    text = "\n".join(preview(replace(config, recipe=replace(config.recipe, signals={"v": wrong}))))
    assert "refuses it: a.nwb: no series at nowhere" in text
    shutil.rmtree(tmp_path / "in")
    with pytest.raises(SessionError):
        preview(config)


@pytest.fixture
def roster(config, nwb, tmp_path) -> PrepareConfig:
    """Two sessions in one folder, each with a train file that lists its units and a test file that lacks some."""
    for name in ("ses-1_desc-train", "ses-1_desc-test", "ses-2_desc-train", "ses-2_desc-test"):
        nwb(f"in/sub-A/sub-A_{name}.nwb")
    units = replace(config.recipe.units, roster="*desc-train*")
    return replace(config, recipe=replace(config.recipe, units=units))


def test_the_roster_is_the_file_of_the_same_session_beside_it(roster, tmp_path):
    source = open_source(roster.source, ["**/*test*"], [], ArchiveConfig(), roster.recipe, tmp_path / "out")
    first, second = source.assets
    assert work.roster_of(roster.recipe, source, first).path == "sub-A/sub-A_ses-1_desc-train.nwb"
    assert work.roster_of(roster.recipe, source, second).path == "sub-A/sub-A_ses-2_desc-train.nwb"
    train = source.siblings(first)[1]
    assert train.path == "sub-A/sub-A_ses-1_desc-train.nwb" and work.roster_of(roster.recipe, source, train) is None
    (tmp_path / "in/sub-A/sub-A_ses-2_desc-train.nwb").unlink()
    (tmp_path / "in/sub-A/sub-A_ses-1_desc-train_v2.nwb").touch()
    for asset, count in ((first, "2"), (second, "no")):
        with pytest.raises(SessionError, match=rf"test.nwb: {count} files beside it fit units.roster"):
            work.roster_of(roster.recipe, source, asset)


def test_another_roster_makes_a_session_anew(roster, nwb, tmp_path):
    assert set(statuses(prepare(roster)).values()) == {"read"}
    assert set(statuses(prepare(roster)).values()) == {"kept"}
    train = tmp_path / "in/sub-A/sub-A_ses-1_desc-train.nwb"
    os.utime(train)
    assert set(statuses(prepare(roster)).values()) == {"kept"}
    nwb("in/sub-A/sub-A_ses-1_desc-train.nwb", trials=40)
    changed = [file for file, status in statuses(prepare(roster)).items() if status == "read"]
    assert changed == ["sub-A/sub-A_ses-1_desc-test.nwb", "sub-A/sub-A_ses-1_desc-train.nwb"]
