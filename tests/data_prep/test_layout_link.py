"""Dandiset 001201 (LINK): counts per bin become spikes that give the very same counts back, and fingers come in seconds."""

from dataclasses import replace

import numpy as np
import pytest

from data_prep.assembly import read_session
from data_prep.errors import SessionError
from data_prep.recipe import Recipe
from launch.config import load
from tests.data_prep.layouts.link import BIN, CHANNELS, START, TAKEN_OUT, TRIAL, TRIALS, truth, write


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load(Recipe, "dandisets/001201.yaml", [])


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("link")
    new = write(folder / "sub-Monkey-N_ses-20211015_ecephys.nwb")
    return {"new": new, "old": write(folder / "sub-Monkey-N_ses-20211015-old_ecephys.nwb", old=True, style="RD")}


@pytest.fixture(scope="module", params=["new", "old"])
def session(paths, recipe, request):
    return read_session(paths[request.param], recipe)


def test_the_spikes_of_every_bin_are_the_count_of_that_bin(session):
    true = truth()
    starts = true["time"] - BIN / 2
    row = np.searchsorted(starts, session.spikes.time, side="right") - 1
    counts = np.zeros_like(true["counts"])
    np.add.at(counts, (row, session.spikes.unit), 1)
    np.testing.assert_array_equal(counts, true["counts"])
    inside = session.spikes.time - starts[row]
    assert inside.min() > 0 and inside.max() < BIN


def test_units_are_named_by_their_electrodes(paths, recipe):
    assert read_session(paths["new"], recipe).units.id == tuple(str(k) for k in range(CHANNELS))


def test_a_channel_without_a_spike_is_a_unit_too(session):
    assert len(session.units) == CHANNELS == len(set(session.units.id))
    assert set(session.units.region) == {"M1"}
    assert not (session.spikes.unit == CHANNELS - 1).any()


def test_fingers_stand_side_by_side_and_velocity_is_per_second(session):
    true = truth()
    for name, expected, unit in (
        ("finger_vel", true["velocity"] / BIN, "flexion/s"),
        ("finger_pos", true["position"], "flexion"),
    ):
        signal = session.signals[name]
        np.testing.assert_array_equal(signal.time, true["time"])
        np.testing.assert_allclose(signal.value, expected, rtol=1e-6)
        assert signal.unit_of_measure == unit
    slope = np.gradient(session.signals["finger_pos"].value[:1000], BIN, axis=0)  # the two agree with each other
    np.testing.assert_allclose(slope[1:-1], session.signals["finger_vel"].value[1:999], atol=0.01)


def test_the_trials_that_were_taken_out_are_outside_the_domain(session):
    gap = START + TRIAL * TAKEN_OUT[0], START + TRIAL * (TAKEN_OUT[-1] + 1)
    assert not session.domain.contains(np.linspace(gap[0] + BIN, gap[1] - BIN, 50)).any()
    assert session.domain.seconds == pytest.approx(TRIAL * (TRIALS - len(TAKEN_OUT)), abs=0.1)


def test_trials_cover_their_bins_and_times_in_milliseconds_become_seconds(session):
    assert len(session.trials) == TRIALS - len(TAKEN_OUT)
    np.testing.assert_allclose(session.trials.stop - session.trials.start, TRIAL)
    np.testing.assert_allclose(session.trial_columns["trial_timeout"], 5.0)
    assert {name for name in session.trial_columns if "target_position" in name} >= {"index_target_position"}


def test_a_session_is_named_by_its_file_as_the_identifier_is_a_printed_column(paths, recipe):
    session = read_session(paths["new"], recipe)
    assert session.id == "link/Monkey-N_sub-Monkey-N-ses-20211015-ecephys"
    assert "\n" in session.provenance["identifier"]


def test_a_velocity_that_is_per_second_already_is_refused(paths, recipe):
    twice = replace(recipe.signals["finger_vel"], factor=50 * 50)
    wrong = replace(recipe, signals={**recipe.signals, "finger_vel": twice})
    with pytest.raises(SessionError, match="99.9 percentile"):
        read_session(paths["new"], wrong)
