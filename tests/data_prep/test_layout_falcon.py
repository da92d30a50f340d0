"""FALCON's four motor data sets: their masks, clocks, side-by-side series and counts, against what was written."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_prep.assembly import read_session
from data_prep.errors import SessionError
from data_prep.recipe import Recipe
from launch.config import load
from tests.data_prep.layouts import falcon
from tests.data_prep.layouts.falcon import BIN, H1_START, MUSCLES, SECONDS, TRIAL, UNITS, WITHIN, times, wave

NUMBERS = {"m1": "000941", "m2": "000953", "h1": "000954", "h2": "000950"}


@pytest.fixture(scope="module")
def recipes() -> dict[str, Recipe]:
    return {name: load(Recipe, f"dandisets/{number}.yaml", []) for name, number in NUMBERS.items()}


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("falcon")
    return {name: write(folder / f"{name}-held-in-calib.nwb") for name, write in falcon.LAYOUTS.items()}


@pytest.fixture(scope="module")
def sessions(paths, recipes):
    return {name: read_session(paths[f"falcon_{name}"], recipe) for name, recipe in recipes.items()}


def judged(start: float) -> np.ndarray:
    """Starts and stops (n, 2) of what the masks of M1, M2 and H1 keep; they hold from a bin's stamp to the next one's."""
    begins = start + (np.arange(int(SECONDS / TRIAL)) * TRIAL)
    return np.stack([begins + WITHIN[0], begins + WITHIN[1]], axis=1)


@pytest.mark.parametrize("name", ["m1", "m2", "h1"])
def test_every_spike_of_every_unit_is_there_the_silent_unit_too(sessions, name):
    session, true = sessions[name], falcon.spikes(H1_START if name == "h1" else 0.0)
    assert len(session.units) == UNITS and set(session.units.region) == {"M1"}
    for row, train in enumerate(true):
        np.testing.assert_array_equal(session.spikes.time[session.spikes.unit == row], train)


@pytest.mark.parametrize("name, start", [("m1", 0.0), ("m2", 0.0), ("h1", H1_START - H1_START % TRIAL)])
def test_what_is_judged_is_where_the_mask_is_true(sessions, name, start):
    session = sessions[name]
    assert session.eval_phases == ("evaluated",)
    found, domain = session.phases["evaluated"], session.domain
    expected = [(a, b) for a, b in judged(start) if a > domain.start[0] and b < domain.stop[-1]]
    inside = [(a, b) for a, b in found if a > domain.start[0] + BIN and b < domain.stop[-1] - BIN]
    np.testing.assert_allclose(inside, expected, atol=1e-6)


def test_m1_has_its_muscles_side_by_side_in_the_recipes_order(sessions):
    emg = sessions["m1"].signals["emg"]
    np.testing.assert_array_equal(emg.time, times())
    np.testing.assert_allclose(emg.value, np.abs(wave(times(), len(MUSCLES))), atol=1e-6)
    assert emg.unit_of_measure == "AU"


def test_m1_draws_only_from_trials_with_a_reward(sessions):
    session = sessions["m1"]
    aborted = session.trial_columns["result"] == "A"
    assert aborted.sum() == 1 and np.array_equal(session.trial_columns["is_valid"], ~aborted)
    start, stop = session.trials.start[aborted][0], session.trials.stop[aborted][0]
    for split in ("valid", "test"):
        assert not session.splits[split].contains(np.linspace(start, stop - 1e-3, 50)).any()
    assert session.id == "falcon_m1/MonkeyL-held-in-calib_L-20120924-held-in-calib"


def test_m2_velocity_is_made_per_second(sessions):
    signals = sessions["m2"].signals
    np.testing.assert_allclose(signals["finger_vel"].value, wave(times(), 2) * 0.01 * 50, atol=1e-6)
    np.testing.assert_allclose(signals["finger_pos"].value, 0.5 + 0.4 * wave(times(), 2), atol=1e-6)
    columns = sessions["m2"].trial_columns
    assert columns["tgt_loc.0"][0] == 0 and columns["tgt_loc.1"][0] == 1


def test_h1_clock_is_offset_plus_i_times_rate_and_values_are_not_shifted(sessions):
    time = H1_START + np.arange(round(SECONDS / BIN)) * BIN
    signals = sessions["h1"].signals
    for signal in signals.values():
        np.testing.assert_allclose(signal.time, time, atol=1e-9)
    np.testing.assert_allclose(signals["position"].value, wave(time, 7), atol=1e-6)
    np.testing.assert_allclose(signals["velocity"].value, np.gradient(wave(time, 7), axis=0), atol=1e-7)
    assert set(signals["position"].value.shape[1:]) == {7}


def test_h1_read_by_the_letter_of_nwb_is_refused_for_its_rate(paths, recipes):
    plain = {name: replace(signal, clock="") for name, signal in recipes["h1"].signals.items()}
    with pytest.raises(SessionError, match="50"):
        read_session(paths["falcon_h1"], replace(recipes["h1"], signals=plain))


def test_h2_counts_come_back_bin_by_bin_and_there_is_no_signal(sessions):
    session, (starts, true) = sessions["h2"], falcon.h2_counts()
    assert session.signals == {}
    row = np.searchsorted(starts, session.spikes.time, side="right") - 1
    counts = np.zeros_like(true)
    np.add.at(counts, (row, session.spikes.unit), 1)
    np.testing.assert_array_equal(counts, true)
    inside = session.spikes.time - starts[row]
    assert inside.min() > 0 and inside.max() < BIN


def test_h2_sentences_are_trials_with_their_text_and_the_pauses_are_no_data(sessions):
    session = sessions["h2"]
    assert session.trial_columns["cue"].tolist() == [f"sentence>{k}>of>words" for k in range(falcon.H2_SENTENCES)]
    np.testing.assert_allclose(session.trials.stop - session.trials.start, falcon.H2_BINS * BIN)
    assert session.domain.seconds == pytest.approx(falcon.H2_SENTENCES * falcon.H2_BINS * BIN, abs=0.2)
    assert {name: len(split) for name, split in session.splits.items()} == {"train": 5, "valid": 1, "test": 2}


@pytest.mark.parametrize("name", NUMBERS)
def test_files_that_repeat_other_files_are_passed_over(recipes, name, tmp_path):
    for kind in ("held-in-calib", "held-in-minival", "held-out-calib"):
        (tmp_path / f"sub-X-{kind}").mkdir()
        (tmp_path / f"sub-X-{kind}" / f"sub-X-{kind}_ses-1.nwb").touch()
    found = {path.parent.name for pattern in recipes[name].files for path in tmp_path.glob(pattern)}
    assert found == {"sub-X-held-in-calib", "sub-X-held-out-calib"}
