"""A chain of stages does each thing once, redoes what its inputs changed, and never clears what is not its own."""

import json

import numpy as np
import pytest

from data_prep.errors import ConfigError, DataError
from launch.gather import gather
from launch.record import read_run
from launch.stages import Stages, files_digest


def chain(root, first, second, calls, fails=False):
    """Two stages that note when they work; each writes one file."""
    stages = Stages(root, total=2)

    def work(name):
        def write(folder):
            calls.append(name)
            calls.append(sorted(path.name for path in folder.iterdir()))
            (folder / "half").touch()
            if fails and name == "b":
                raise KeyboardInterrupt
            (folder / "whole").touch()
            return "one file"

        return write

    stages.run("a", "First", {"value": first}, "a", work("a"))
    return stages.run("b", "Second", {"value": second}, "b", work("b"))


def test_second_run_does_nothing(tmp_path, capsys):
    calls = []
    assert chain(tmp_path, 1, 1, calls) == tmp_path / "b"
    assert calls == ["a", [], "b", []]
    capsys.readouterr()
    chain(tmp_path, 1, 1, calls)
    assert len(calls) == 4
    assert capsys.readouterr().out.count("already done (one file)") == 2


def test_change_redoes_what_follows_from_an_empty_folder(tmp_path):
    calls = []
    chain(tmp_path, 1, 1, calls)
    chain(tmp_path, 1, 2, calls)
    assert calls[4:] == ["b", []]
    chain(tmp_path, 2, 2, calls)
    assert calls[6:] == ["a", [], "b", []]


def test_interrupted_stage_finds_what_it_wrote(tmp_path):
    calls = []
    with pytest.raises(KeyboardInterrupt):
        chain(tmp_path, 1, 1, calls, fails=True)
    chain(tmp_path, 1, 1, calls)
    assert calls[4:] == ["b", ["half"]]  # the first is not done again, the second goes on


def test_foreign_files_are_refused_and_left_alone(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="not the demo's"):
        chain(tmp_path, 1, 1, [])
    assert (tmp_path / "b" / "thesis.txt").read_text() == "years of work"


def test_digest_notices_a_changed_file(tmp_path):
    (tmp_path / "one.nwb").write_text("a")
    before = files_digest(tmp_path, "**/*.nwb")
    (tmp_path / "notes.txt").write_text("a")
    assert files_digest(tmp_path, "**/*.nwb") == before
    (tmp_path / "one.nwb").write_text("ab")
    assert files_digest(tmp_path, "**/*.nwb") != before
    assert files_digest(tmp_path / "one.nwb", "**/*.nwb") == files_digest(tmp_path, "**/*.nwb")


def judged(folder, r2, signal="cursor_vel"):
    """A run folder as evaluate leaves it: one session, the model and the Wiener filter."""
    folder.mkdir()
    names = [{"session": "d/a_1", "model": "POYO"}, {"session": "d/a_1", "model": "Wiener filter"}]
    score = {"r2": r2, "r2_per_dim": [r2, r2], "samples": 4}
    base = {"r2": 0.5, "r2_per_dim": [0.5, 0.5], "samples": 4}
    document = {"format": 1, "split": "test", "signal": signal, "unit_of_measure": "cm/s", "predictions": names}
    document["sessions"] = {"d/a_1": {"models": {"POYO": score, "Wiener filter": base}}}
    document["mean"] = {"POYO": r2, "Wiener filter": 0.5}
    document["raster"] = {"session": "d/a_1", "start": 0.0, "stop": 1.0}
    (folder / "results.json").write_text(json.dumps(document))
    arrays = {"raster/time": np.array([0.1, 0.2]), "raster/unit": np.array([0, 1])}
    for i, value in enumerate((r2, 0.5)):
        arrays |= {f"{i}/time": np.arange(4) / 4, f"{i}/target": np.zeros((4, 2)), f"{i}/evaluated": np.ones(4, bool)}
        arrays[f"{i}/value"] = np.full((4, 2), value)
    np.savez(folder / "predictions.npz", **arrays)
    (folder / "config.yaml").write_text("seed: 1\n")
    (folder / "provenance.json").write_text("{}")
    return folder


def test_gathered_results_keep_every_number_under_its_label(tmp_path):
    runs = {"full": judged(tmp_path / "full", 0.9), "unit_id": judged(tmp_path / "unit_id", 0.7)}
    record = read_run(gather(runs, tmp_path / "all"))
    assert record.results.mean == {"full": 0.9, "unit_id": 0.7, "Wiener filter": 0.5}
    assert record.results.models == ["full", "unit_id", "Wiener filter"]
    assert {model: trace.value[0, 0] for (_, model), trace in record.traces.items()} == record.results.mean
    assert record.raster.unit.tolist() == [0, 1] and record.config == "seed: 1\n"


def test_results_on_different_signals_are_not_mixed(tmp_path):
    runs = {"full": judged(tmp_path / "full", 0.9), "other": judged(tmp_path / "other", 0.7, signal="position")}
    with pytest.raises(DataError, match="not judged on what"):
        gather(runs, tmp_path / "all")
