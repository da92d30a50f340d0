"""`spikeloom show` and the table of `spikeloom prepare`: what a path holds, in the numbers of the data."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep.prepare import PrepareReport, Row
from data_prep.store import load_session
from data_prep.synthetic import SyntheticConfig, write_sessions
from launch.cli import main
from launch.show import show_prepared
from pretrain.checkpoint import Checkpoint, save_checkpoint
from sharding.index import ShardIndex
from sharding.statistics import TargetStatistics
from sharding.vocabulary import Vocabulary

RECIPE = "configs/dandisets/synthetic.yaml"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with one NWB file and a file that is none, prepared and sharded; and the exit code of prepare."""
    root = tmp_path_factory.mktemp("made")
    write_sessions(root / "nwb", SyntheticConfig(minutes=0.5, sessions=1))
    (root / "nwb" / "broken.nwb").write_bytes(b"not HDF5")
    code = main(
        [
            "prepare",
            RECIPE,
            f"source={root / 'nwb'}",
            f"output={root / 'sessions'}",
            "recipe.min_train_s=1",
            "workers=0",
        ]
    )
    assert main(["shard", f"sessions={root / 'sessions'}", f"output={root / 'shards'}"]) == 0
    return root, code


@pytest.fixture
def shown(capsys):
    """shown(path, ...) runs `spikeloom show` and gives the exit code, stdout and stderr."""

    def run(*words):
        capsys.readouterr()
        code = main(["show", *map(str, words)])
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


def test_prepare_tells_what_it_read_and_refused_and_exits_1(made, capsys):
    root, code = made
    assert code == 1
    again = main(["prepare", RECIPE, f"source={root / 'nwb'}", f"output={root / 'sessions'}", "recipe.min_train_s=1"])
    out = capsys.readouterr().out
    assert again == 1
    assert "sub-Ada_ses-CO-01.nwb  kept    synthetic/Ada_CO-01" in out
    assert "broken.nwb  not an HDF5 file" in out.split("refused\n")[1]
    assert "2 files: 0 read, 1 kept, 1 refused" in out


@pytest.fixture
def terminal(monkeypatch):
    """terminal(columns): from now on stdout is a terminal of that width."""

    def wide(columns: int) -> None:
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setenv("TERM", "dumb")

    return wide


def report_of(good: int) -> PrepareReport:
    """So many sessions of long names, one with a note; and a file refused for a long reason that names long places."""
    places = ", ".join(f"processing/behavior/A_rather_long_name/cursor_velocity_{n}" for n in range(4))
    names = [f"sub-Chewie/sub-Chewie_ses-CO-201610{n:02d}_behavior+ecephys.nwb" for n in range(good)]
    rows = [
        Row(name, "read", f"perich/Chewie_CO-201610{n:02d}", 96, 1_000_000, 1800.0, recipe="perich")
        for n, name in enumerate(names)
    ]
    rows[0] = replace(rows[0], message="11 units have no spikes; 16809 of 81154 spikes lie outside the domain")
    bad = "sub-A/bad.nwb"
    rows.append(Row(bad, "refused", message=f"{bad}: no series at x; choose among {places}", recipe="perich"))
    return PrepareReport(tuple(rows), "out")


@pytest.mark.parametrize("columns", [80, 120])
def test_what_prepare_tells_fits_a_terminal(terminal, capsys, columns):
    terminal(columns)
    show_prepared(report_of(3))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns
    assert sum("96  " in line and "1,000,000" in line for line in lines) == 3  # a session is one line
    text = "\n".join(lines)
    refused = text.split("refused\n")[1].splitlines()
    assert refused[0].strip() == "sub-A/bad.nwb" and refused[1].strip().startswith("no series at x; choose among")
    assert "processing/behavior/A_rather_long_name/cursor_velocity_3" in text  # places are not broken in two
    assert text.index("perich/Chewie_CO-20161002") < text.index("11 units have no spikes") < text.index("refused\n")
    assert lines[-1] == "4 files: 3 read, 0 kept, 1 refused; 288 units, 3,000,000 spikes, 1.50 h in out"


def test_hundreds_of_sessions_are_told_as_a_sum(terminal, capsys):
    terminal(80)
    show_prepared(report_of(300))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"300 files read or kept, each a row in {Path('out') / 'report.json'}" and len(lines) < 15
    assert "sub-A/bad.nwb" in lines[2] and lines[-1].startswith("301 files: 300 read, 0 kept, 1 refused")


def test_recipes_are_summed_apart(capsys):
    rows = [Row(f"{n}.nwb", "read", f"{name}/{n}", n, 10 * n, 3600.0, recipe=name) for n, name in ((1, "a"), (2, "b"))]
    rows += [Row("3.nwb", "refused", message="3.nwb: bad; mend it", recipe="b")]
    show_prepared(PrepareReport(tuple(rows), "out"))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["recipe", "sessions", "units", "spikes", "hours", "read", "kept", "refused"] in lines
    assert ["a", "1", "1", "10", "1", "1", "0", "0"] in lines and ["b", "1", "2", "20", "1", "1", "0", "1"] in lines


def test_dry_run_of_prepare_reads_one_file_and_writes_nothing(made, tmp_path, capsys):
    file = made[0] / "nwb" / "sub-Ada_ses-CO-01.nwb"
    words = [RECIPE, f"source={file}", f"output={tmp_path / 'out'}", "recipe.min_train_s=1", "--dry-run"]
    assert main(["prepare", *words]) == 0
    out = capsys.readouterr().out
    assert "cursor_vel" in out and "# the recipe synthetic makes session synthetic/Ada_CO-01 of it" in out
    assert not (tmp_path / "out").exists()


def test_a_stored_session(made, shown):
    path = next((made[0] / "sessions").glob("*.h5"))
    session = load_session(path)
    code, out, _ = shown(path)
    assert code == 0
    assert f"session {session.id}" in out
    assert f"{len(session.spikes.time):,}" in out
    assert "cursor_vel     2  cm/s  100" in out


def test_a_folder_of_sessions_tells_of_a_damaged_one_and_goes_on(made, shown, tmp_path):
    whole = next((made[0] / "sessions").glob("*.h5"))
    shutil.copy(whole, tmp_path / "a.h5")
    (tmp_path / "b.h5").write_bytes(whole.read_bytes()[:1000])
    code, out, _ = shown(tmp_path)
    assert code == 0
    assert "synthetic/Ada_CO-01" in out and "b.h5" in out


def test_a_shard_root(made, shown):
    code, out, _ = shown(made[0] / "shards")
    index = ShardIndex.open(made[0] / "shards")
    lines = [line.split() for line in out.splitlines()]
    spikes, size = index.summary()["spikes"], index.summary()["bytes"]
    assert code == 0
    assert ["spikes", f"{spikes:,}"] in lines
    assert ["bytes", "per", "spike,", "targets", "included", f"{size / spikes:.4g}"] in lines
    by_split = {line[0]: line[1:] for line in lines if line and line[0] in ("train", "valid", "test")}
    assert {line[0] for line in by_split.values()} == {"1"}  # one session has each
    assert sum(int(line[2].replace(",", "")) for line in by_split.values()) == spikes
    assert "synthetic/Ada_CO-01" in out and "subjects" not in out  # of one subject there are no sums
    assert "units held out" not in out and "units missing" not in out


@pytest.fixture
def many(tiny_root, tmp_path):
    """A shard root of 62 tiny sessions, of two subjects in one dandiset and one in another."""
    subjects = {f"{'000001' if n else '000002'}/s_{n}": "x" if n % 2 else "y" for n in range(62)}
    return tiny_root(tmp_path / "many", subjects, held_out=[*subjects][:2], missing=[*subjects][:5])


def test_many_sessions_are_told_by_their_subjects(many, shown):
    code, out, _ = shown(many)
    lines = [line.split() for line in out.splitlines()]
    assert code == 0
    assert ["units", "held", "out", "2"] in lines and ["units", "missing", "5"] in lines
    # dandiset, subject, sessions, units, spikes, hours of train and valid (there are none of test)
    wanted = {("000001", "x"): 31, ("000001", "y"): 30, ("000002", "y"): 1}
    for (dandiset, subject), count in wanted.items():
        row = [dandiset, subject, str(count), str(3 * count), f"{50 * count:,}"]
        (line,) = [line for line in lines if line[:5] == row]
        assert [float(cell) for cell in line[5:7]] == pytest.approx([count * 7.2 / 3600, count * 2.8 / 3600], rel=1e-3)
    assert "000001/s_3" not in out and "62 sessions: sessions=true gives each a row" in out
    assert all(f"/s_{n} " in shown(many, "sessions=true")[1] for n in (0, 3, 61))


def test_a_shard_root_on_a_server(made, shown):
    root = made[0] / "shards"
    assert shown(f"file://{root}")[1].splitlines()[1:] == shown(root)[1].splitlines()[1:]


def test_a_checkpoint(shown, tmp_path):
    statistics = TargetStatistics({"s/1": (np.zeros(2), np.ones(2))})
    config = {"model": {"name": "poyo"}, "task": {"name": "regression", "signal": "cursor_vel"}}
    config |= {"window_s": 1.0, "dims": 2}
    save_checkpoint(
        tmp_path / "c",
        Checkpoint(
            {"model.x": torch.zeros(3, 4)}, config, Vocabulary(("s/1/u1", "s/1/u2")), Vocabulary(("s/1",)), statistics
        ),
    )
    code, out, _ = shown(tmp_path / "c")
    assert code == 0
    lines = {line.split("  ")[1].strip(): line.split()[-1] for line in out.splitlines() if line.count("  ") > 1}
    assert lines["parameters"] == "12" and lines["units"] == "2" and lines["signal"] == "cursor_vel"


def test_a_run_that_was_stopped_and_what_went_wrong_in_it(shown, tmp_path):
    run = tmp_path / "run"
    (run / "saves").mkdir(parents=True)
    (run / "saves" / "step-00000300.safetensors").touch()
    (run / "metrics.csv").write_text("step,train/loss,valid/r2\n100,0.5,0.1\n300,0.25,0.4\n")
    told = {
        "started": "2026-01-01T00:00:00+00:00",
        "resumed": ["2026-01-02T00:00:00+00:00"],
        "ranks": 2,
        "strategy": "ddp",
    }
    (run / "provenance.json").write_text(json.dumps(told))
    alarm = {"step": 200, "kind": "fall", "names": ["task.linear.bias"], "line": "weight norms fall: task.linear.bias"}
    (run / "alarms.jsonl").write_text(json.dumps(alarm) + "\n")
    code, out, _ = shown(run)
    assert code == 0 and "1 times, the last at 2026-01-02T00:00:00+00:00" in out and "2, ddp" in out
    assert "step 300" in out and "0.25" in out and "alarm at step 200: weight norms fall: task.linear.bias" in out


def test_a_run(shown, tmp_path):
    (tmp_path / "metrics.csv").write_text("step,train/loss,valid/r2\n0,,0.1\n10,0.5,\n20,0.25,0.625\n")
    score = {"r2": 0.75, "r2_per_dim": [0.7, 0.8], "samples": 9}
    (tmp_path / "results.json").write_text(
        json.dumps(
            {
                "format": 1,
                "split": "test",
                "signal": "cursor_vel",
                "unit_of_measure": "cm/s",
                "mean": {"POYO": 0.75},
                "sessions": {"s/1": {"models": {"POYO": score}}},
            }
        )
    )
    code, out, _ = shown(tmp_path)
    assert code == 0
    for line in (
        "best validation R2  0.625",
        "last training loss   0.25",
        "R2 of cursor_vel on the test split",
        "s/1      0.75",
    ):
        assert line in out


@pytest.mark.parametrize(
    "name, content, code, hint",
    [
        ("x.nwb", b"", 1, "spikeloom prepare RECIPE"),
        ("x.txt", b"", 1, "not a stored session"),
        ("x.h5", b"", 1, "x.h5"),
        ("absent", None, 2, "no such file or folder"),
        ("empty/x.txt", b"", 1, "nothing of Spikeloom's"),
    ],
)
def test_what_is_none_of_ours_is_one_line(shown, tmp_path, name, content, code, hint):
    path = tmp_path / name
    if content is not None:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    got, _, err = shown(path.parent if "/" in name else path)
    assert got == code and hint in err and err.count("\n") == 1
