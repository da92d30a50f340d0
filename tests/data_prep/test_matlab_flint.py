"""MATLAB files of Flint and Slutzky: trials, velocity and every spike, against what was written."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from data_prep.assembly import assemble
from data_prep.errors import SessionError
from data_prep.matlab_flint import opened_recording
from data_prep.recipe import Recipe
from launch.config import load
from tests.data_prep.layouts.flint import NEURONS, truth, write


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load(Recipe, "dandisets/flint.yaml", [])


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("flint") / "Flint_2012_e2.mat")


@pytest.fixture(scope="module")
def session(path, recipe):
    with opened_recording(path, recipe) as recording:
        return assemble(recording, recipe)


def test_every_spike_of_every_trial_is_read_silent_neurons_too(session):
    true = truth()
    assert session.units.id == tuple(str(n + 1) for n in range(NEURONS))
    for n in range(NEURONS):
        expected = np.concatenate([trial["spikes"][n] for trial in true])
        np.testing.assert_array_equal(session.spikes.time[session.spikes.unit == n], expected)


def test_velocity_is_two_columns_in_m_per_s_at_the_trials_own_times(session):
    true, signal = truth(), session.signals["cursor_vel"]
    np.testing.assert_array_equal(signal.time, np.concatenate([trial["time"] for trial in true]))
    np.testing.assert_allclose(signal.value, np.concatenate([trial["velocity"] for trial in true]), atol=1e-7)
    assert signal.unit_of_measure == "m/s" and session.target_scale == {"cursor_vel": 0.4}


def test_a_trial_lasts_to_the_end_of_its_last_sample_and_the_pause_is_outside(session):
    starts = [trial["time"][0] for trial in truth()]
    np.testing.assert_allclose(session.trials.start, starts)
    np.testing.assert_allclose(session.trials.stop, np.add(starts, 3.0))
    assert session.domain.difference(session.trials).seconds < 1e-6 * len(starts)
    assert session.domain.seconds == pytest.approx(40 * 3.0, rel=0.01)


def test_whole_trials_are_drawn_seventy_ten_twenty(session):
    for name, count in {"train": 28, "valid": 4, "test": 8}.items():
        assert len(session.splits[name]) == count
        held = session.splits[name].intersection(session.trials)
        assert held.seconds == pytest.approx(session.splits[name].seconds)


def test_each_recording_of_a_day_is_a_part_with_a_name_of_its_own(path, recipe, session):
    assert session.id == "flint/C_e2" and "1 other recordings" in session.provenance["notes"]
    with opened_recording(path, replace(recipe, part=1)) as recording:
        second = assemble(recording, replace(recipe, part=1))
    assert second.id == "flint/C_e2-s2"
    np.testing.assert_array_equal(
        second.spikes.time[second.spikes.unit == 0], np.concatenate([t["spikes"][0] for t in truth(seed=4)])
    )
    with pytest.raises(SessionError, match="holds 2 recordings"), opened_recording(path, replace(recipe, part=2)):
        pass


def test_trials_that_disagree_on_their_neurons_are_refused(tmp_path, path, recipe):
    held = scipy.io.loadmat(path)["Subject"]
    held[0, 0]["Trial"][3, 0]["Neuron"] = held[0, 0]["Trial"][3, 0]["Neuron"][:-1]
    scipy.io.savemat(tmp_path / "Flint_2012_e9.mat", {"Subject": held})
    with pytest.raises(SessionError, match="different numbers of neurons"):
        with opened_recording(tmp_path / "Flint_2012_e9.mat", recipe):
            pass


def test_what_is_no_such_file_is_refused_in_one_line(tmp_path, path, recipe):
    whole = path.read_bytes()
    scipy.io.savemat(tmp_path / "other.mat", {"x": np.zeros(3)})
    for name, content in {"cut": whole[: len(whole) // 2], "header": whole[:128], "text": b"abc" * 100}.items():
        (tmp_path / f"{name}.mat").write_bytes(content)
    for name in ("cut", "header", "text", "other", "absent"):
        with pytest.raises(SessionError) as refusal, opened_recording(tmp_path / f"{name}.mat", recipe):
            pass
        assert str(refusal.value).startswith(f"{name}.mat") and "\n" not in str(refusal.value)
