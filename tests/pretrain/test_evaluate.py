"""Evaluation: scores are those of the arrays written beside them, models and baselines stand on the same samples."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from pretrain.errors import CheckpointError, ConfigError, ShardError
from pretrain.evaluate import EvaluateConfig, evaluate
from pretrain.metrics import r2, r2_per_dimension
from pretrain.train import pretrain
from pretrain.wiener import WienerConfig
from tests.pretrain.conftest import make_session, make_shards, tiny_config

QUICK = WienerConfig(history_s=[0.2], ridge=[1.0, 1e3], iterations=20)


@pytest.fixture(scope="module")
def judged(pretrained, tmp_path_factory):
    """(run folder, results, arrays) of a run evaluated with nothing but its folder given."""
    run = shutil.copytree(pretrained, tmp_path_factory.mktemp("judged") / "run")
    assert evaluate(EvaluateConfig(run=str(run), linear=QUICK, device="cpu")) == run
    with np.load(run / "predictions.npz", allow_pickle=False) as arrays:
        return run, json.loads((run / "results.json").read_text()), dict(arrays)


def test_every_session_has_every_model(judged):
    _, results, _ = judged
    assert results["format"] == 1 and results["split"] == "test" and results["unit_of_measure"] == "cm/s"
    assert list(results["sessions"]) == ["tiny/a", "tiny/b"]  # those the run was trained on
    for entry in results["sessions"].values():
        assert list(entry["models"]) == ["POYO", "Wiener filter", "Wiener filter (causal)"]
        assert entry["models"]["POYO"]["samples"] == 11 * 50


def test_scores_are_those_of_the_arrays_and_means_are_over_sessions(judged):
    _, results, arrays = judged
    for i, name in enumerate(results["predictions"]):
        target, value, evaluated = (arrays[f"{i}/{key}"] for key in ("target", "value", "evaluated"))
        score = results["sessions"][name["session"]]["models"][name["model"]]
        assert score["r2_per_dim"] == pytest.approx(r2_per_dimension(target[evaluated], value[evaluated]))
        assert score["r2"] == pytest.approx(np.mean(score["r2_per_dim"]))
    for model, mean in results["mean"].items():
        scores = [entry["models"][model]["r2"] for entry in results["sessions"].values()]
        assert mean == pytest.approx(np.mean(scores)) and results["sd"][model] == pytest.approx(np.std(scores, ddof=1))


def test_all_models_of_a_session_stand_on_the_same_samples_as_recorded(judged):
    _, results, arrays = judged
    for session, seed, units in (("tiny/a", 1, 12), ("tiny/b", 2, 10)):
        signal = make_session("x", units, seed=seed).signals["cursor_vel"]
        inside = (signal.time >= 48) & (signal.time < 59)
        for i, name in enumerate(results["predictions"]):
            if name["session"] == session:
                np.testing.assert_allclose(arrays[f"{i}/time"], signal.time[inside], atol=1e-6)
                np.testing.assert_allclose(arrays[f"{i}/target"], signal.value[inside], rtol=1e-5, atol=1e-4)


def test_the_linear_filter_decodes_linear_tuning(judged):
    _, results, _ = judged
    assert results["mean"]["Wiener filter"] > 0.5 > results["mean"]["POYO"]  # POYO here took eight steps


def test_the_raster_is_the_spikes_of_ten_seconds(judged):
    _, results, arrays = judged
    place = results["raster"]
    assert place["session"] == "tiny/a" and place["stop"] - place["start"] == pytest.approx(10)
    spikes = make_session("a", 12, seed=1).spikes
    inside = (spikes.time >= place["start"] - 5e-7) & (spikes.time < place["stop"] - 5e-7)
    np.testing.assert_allclose(arrays["raster/time"], spikes.time[inside], atol=1e-6)
    np.testing.assert_array_equal(arrays["raster/unit"], spikes.unit[inside])


def test_several_checkpoints_stand_beside_each_other(shards, pretrained, tmp_path):
    other = pretrain(tiny_config(shards, tmp_path / "other", steps=2, sessions=["tiny/[bc]"]))
    config = EvaluateConfig(
        run=str(tmp_path / "both"),
        checkpoints={"one": str(pretrained), "two": str(other)},
        shards=str(shards),
        sessions=["*"],
        split="valid",
        wiener=False,
        device="cpu",
    )
    results = json.loads((evaluate(config) / "results.json").read_text())
    assert {session: list(entry["models"]) for session, entry in results["sessions"].items()} == {
        "tiny/a": ["one"],
        "tiny/b": ["one", "two"],
        "tiny/c": ["two"],
    }
    assert results["sessions_in_mean"] == {"one": 2, "two": 2}


def test_validation_in_training_and_evaluation_agree(pretrained, tmp_path):
    """The best R2 of metrics.csv is what evaluating the exported weights on the same split gives."""
    run = shutil.copytree(pretrained, tmp_path / "run")
    results = json.loads(
        (evaluate(EvaluateConfig(run=str(run), split="valid", wiener=False, device="cpu")) / "results.json").read_text()
    )
    best = json.loads((run / "provenance.json").read_text())["best"]["valid/r2"]
    assert results["mean"]["POYO"] == pytest.approx(best, abs=1e-5)


def test_undefined_scores_are_null_and_the_rest_goes_on(tmp_path):
    session = make_session("flat", seconds=40)
    signal = session.signals["cursor_vel"]
    value = signal.value.copy()
    value[:, 1] = 3
    root = make_shards(tmp_path, [replace(session, signals={"cursor_vel": replace(signal, value=value)})])
    run = pretrain(tiny_config(root, tmp_path / "run", steps=1, sessions=["*"]))
    text = (evaluate(EvaluateConfig(run=str(run), linear=QUICK, device="cpu")) / "results.json").read_text()
    assert "NaN" not in text
    score = json.loads(text)["sessions"]["tiny/flat"]["models"]["POYO"]
    assert score["r2_per_dim"][1] is None and score["r2"] == pytest.approx(score["r2_per_dim"][0])
    with np.load(run / "predictions.npz") as arrays:
        assert r2(arrays["0/target"], arrays["0/value"]) == pytest.approx(score["r2"])


def test_a_session_without_valid_split_has_no_filter_and_says_so(tmp_path):
    root = make_shards(tmp_path, [make_session("a", seconds=40)], splits=["train", "test"])
    run = pretrain(tiny_config(root, tmp_path / "run", steps=2, sessions=["*"]))
    evaluate(EvaluateConfig(run=str(run), linear=QUICK, device="cpu"))
    results = json.loads((run / "results.json").read_text())
    assert list(results["sessions"]["tiny/a"]["models"]) == ["POYO"]
    assert "valid split: has no samples" in results["notes"][0]


@pytest.mark.parametrize(
    "change, error, found",
    [
        ({"run": ""}, ConfigError, "run: is not given"),
        ({"run": "/nowhere"}, ConfigError, "no such run folder"),
        ({"checkpoints": {"x": "/nowhere"}}, CheckpointError, "no such folder"),
        ({"checkpoints": {"Wiener filter": "x"}}, ConfigError, "name of a baseline"),
        ({"sessions": ["tiny/c"]}, ConfigError, "none of 1 is known"),
        ({"sessions": ["x"]}, ConfigError, "no session fits"),
        ({"split": "exam"}, ConfigError, "'exam'"),
    ],
)
def test_what_cannot_be_meant_is_one_line(pretrained, change, error, found):
    with pytest.raises(error, match=found):
        evaluate(replace(EvaluateConfig(run=str(pretrained), device="cpu"), **change))
    assert not (pretrained / "results.json").exists()


def test_a_split_without_samples_is_one_line(shards, pretrained, tmp_path):
    root = make_shards(tmp_path, [make_session("a", 12, seed=1)], splits=["train"])
    with pytest.raises(ShardError, match="no sample of 'cursor_vel' in the test split"):
        evaluate(EvaluateConfig(run=str(pretrained), shards=str(root), sessions=["*"], device="cpu"))
