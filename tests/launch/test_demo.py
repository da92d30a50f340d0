"""The demo goes from NWB files to a report, does nothing twice, and works on files it did not make."""

import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.errors import ConfigError, SessionError
from launch.demo import ALONE, MODES, SYNTHETIC_RECIPE, DemoConfig, _training, demo, hold_out

PRETRAIN = """
model: {name: poyo, width: 16, depth: 1, latents_per_step: 2, cross_heads: 1, self_heads: 1, head_width: 16}
loader: {batch_windows: 4}
trainer: {steps: 4, val_every: 4, save_every: 4, log_every: 1, threads: 1, device: cpu}
"""
FINETUNE = """
loader: {batch_windows: 4}
freeze_steps: 1
trainer: {steps: 3, val_every: 3, save_every: 3, log_every: 1, threads: 1, device: cpu}
"""


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("settings")
    (folder / "pretrain.yaml").write_text(PRETRAIN)
    (folder / "finetune.yaml").write_text(FINETUNE)
    return {"pretrain": str(folder / "pretrain.yaml"), "finetune": str(folder / "finetune.yaml"), "workers": 0}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, settings):
    """A whole demo with a model too small to learn anything."""
    output = tmp_path_factory.mktemp("demo") / "out"
    config = DemoConfig(output=str(output), minutes=1.5, **settings)
    demo(config)
    return output, config


def test_held_out_sessions_are_judged_beside_the_linear_filter(whole):
    output, _ = whole
    results = json.loads((output / "report" / "results.json").read_text())
    assert set(results["sessions"]) == {"synthetic/Cleo_CO-01", "synthetic/Cleo_CO-02"}
    for entry in results["sessions"].values():
        assert {*MODES.values(), "Wiener filter"} <= set(entry["models"])
        assert len({score["samples"] for score in entry["models"].values()}) == 1
        assert entry["models"]["Wiener filter"]["r2"] > 0.3
    page = (output / "report" / "report.html").read_text()
    assert all(label in page for label in ("pretraining", *MODES.values()))


def test_pretraining_never_sees_the_held_out_animal(whole):
    output, _ = whole
    sessions = json.loads((output / "runs" / "pretrain" / "checkpoint" / "checkpoint.json").read_text())
    assert "Cleo" not in json.dumps(sessions)


def test_second_run_reuses_every_stage(whole, capsys):
    output, config = whole
    made = {
        path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file() and "report" not in path.parts
    }
    demo(config)
    out = capsys.readouterr().out
    assert out.count("already done") == 7 and "[7/7]" in out and "report.html" in out
    assert made == {path: path.stat().st_mtime_ns for path in made}


def test_single_file_is_learned_from_scratch(whole, settings, tmp_path, capsys):
    nwb = tmp_path / "nwb"
    nwb.mkdir()
    shutil.copy(whole[0] / "nwb" / "sub-Bix_ses-CO-03.nwb", nwb)
    page = demo(DemoConfig(output=str(tmp_path / "out"), nwb=str(nwb), recipe=SYNTHETIC_RECIPE, **settings))
    assert "[4/4]" in capsys.readouterr().out and page.is_file()
    results = json.loads((page.parent / "results.json").read_text())
    assert list(results["sessions"]) == ["synthetic/Bix_CO-03"]
    assert {ALONE, "Wiener filter"} <= set(results["mean"])


@given(st.lists(st.text(min_size=1), unique=True, min_size=1, max_size=9))
def test_hold_out_takes_the_last_by_name_and_leaves_something(sessions):
    known, new = hold_out(sessions)
    assert known + new == sorted(sessions) and known
    assert len(new) == {1: 0, 2: 1, 3: 1}.get(len(sessions), 2)


@pytest.mark.parametrize(
    "given, error",
    [
        ({"nwb": "here"}, "recipe: not given"),
        ({"recipe": SYNTHETIC_RECIPE}, "recipe: given without nwb"),
        ({"nwb": "nowhere", "recipe": SYNTHETIC_RECIPE}, "nowhere: no such folder"),
    ],
)
def test_missing_input_is_told_in_one_line(tmp_path, given, error):
    with pytest.raises(ConfigError, match=error):
        demo(DemoConfig(output=str(tmp_path / "out"), **given))
    assert not (tmp_path / "out").exists()


def test_folder_without_nwb_files_is_refused(tmp_path, settings):
    (tmp_path / "nwb").mkdir()
    with pytest.raises((ConfigError, SessionError), match="nwb"):
        demo(DemoConfig(output=str(tmp_path / "out"), nwb=str(tmp_path / "nwb"), recipe=SYNTHETIC_RECIPE, **settings))


def test_your_own_recordings_are_decoded_by_the_first_signal_of_their_recipe(tmp_path):
    nwb = DemoConfig(nwb=str(tmp_path), recipe="dandisets/nstat_hc.yaml")
    task = _training(nwb, tmp_path, ["a"], nwb.recipe, {"position": None, "velocity": None}).task
    assert (task.signal, task.center) == ("position", True)
    with pytest.raises(ConfigError, match="nstat_hc.yaml: names no signal to decode"):
        _training(nwb, tmp_path, ["a"], nwb.recipe, {})
    assert _training(DemoConfig(), tmp_path, ["a"], "", {}).task.signal == "cursor_vel"
