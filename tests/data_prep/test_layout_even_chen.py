"""000121: ragged target columns, columns named like times that are durations, and a velocity derived per stretch."""

from pathlib import Path

import numpy as np
import pytest

from data_prep.assembly import read_session
from data_prep.nwb import read_recording
from data_prep.recipe import Recipe
from data_prep.repairs import clock_reset
from data_prep.session import Session
from launch.config import load
from tests.data_prep.layouts import even_chen
from tests.data_prep.layouts.reaching import tuned_spikes

VALID = np.delete(np.arange(even_chen.TRIALS), even_chen.FAILED)


@pytest.fixture(scope="module")
def recipe(repository) -> Recipe:
    return load(Recipe, str(repository / "configs/dandisets/000121.yaml"), [])


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return even_chen.write(tmp_path_factory.mktemp("even") / "sub-J_ses-20151001.nwb")


@pytest.fixture(scope="module")
def session(file, recipe) -> Session:
    return read_session(file, recipe)


def test_units_regions_and_every_spike(session):
    assert session.id == "even_chen/J_sub-J-ses-20151001"  # session_id is blank, so the file names it
    assert session.units.region == ("M1",) * 3 + ("PMd",) * 3
    truth = tuned_spikes(even_chen.REACHES, [(0.0, even_chen.SECONDS)], even_chen.UNITS, 350.0)
    for unit, train in enumerate(truth):
        assert np.array_equal(session.spikes.time[session.spikes.unit == unit], train)


def test_velocity_is_the_known_derivative_on_both_sides_of_the_pause(session):
    velocity = session.signals["cursor_vel"]
    assert np.array_equal(velocity.time, even_chen.sample_times()) and velocity.unit_of_measure == "mm/s"
    assert np.max(np.abs(velocity.value - even_chen.REACHES.velocity(velocity.time))) < 2
    before, after = session.domain
    assert np.allclose([before[1], after[0]], even_chen.PAUSE, atol=0.002)


def test_phases_end_with_the_first_target_acquired(session):
    start = even_chen.START[VALID]
    assert np.array_equal(np.flatnonzero(session.trial_columns["is_valid"]), VALID)
    for name, first, last in (("hold", 0.2, 0.8), ("reach", 0.8, 1.45), ("return", 1.9, even_chen.LASTS)):
        assert np.allclose(session.phases[name].start, start + first), name
        assert np.allclose(session.phases[name].stop, start + last), name


def test_ragged_columns_are_kept_part_by_part(session):
    columns = session.trial_columns
    assert np.array_equal(np.isfinite(columns["target_acquire_time.1"]), np.arange(even_chen.TRIALS) % 5 == 0)
    assert np.isnan(columns["target_acquire_time.0"][list(even_chen.FAILED)]).all()
    assert np.allclose(columns["target_pos.0"], 80 * np.cos(np.arange(even_chen.TRIALS)))
    assert np.allclose(columns["target_pos.2"], -40)


def test_no_duration_is_taken_for_a_time(file, recipe):
    """A file of this layout whose clock was set back: reach_time and its like stay, go_cue_time moves."""
    recording = read_recording(file, recipe)
    table, half = dict(recording.tables["trials"]), even_chen.TRIALS // 2
    cut = even_chen.START[half]

    def told(time: np.ndarray) -> np.ndarray:
        return np.where(time >= cut, time - cut + 1.0, time)

    for name in ("start_time", "stop_time", "go_cue_time", "target_shown_time", "target_held_time"):
        table[name] = told(table[name])
    series = {k: type(s)(s.place, told(s.time), s.value, s.unit) for k, s in recording.series.items()}
    spoiled = type(recording)(
        **{**vars(recording), "series": series, "tables": {"trials": table}, "spikes": recording.spikes.changed(told)}
    )
    mended = clock_reset(spoiled).tables["trials"]
    assert np.allclose(mended["go_cue_time"] - mended["start_time"], 0.8) and mended["start_time"][half] > cut + 50
    for name, seconds in (("target_hold_time", 0.3), ("fail_time", 2.0), ("reach_time", 1.5)):
        assert np.allclose(mended[name], seconds), name


def test_splits(session):
    counts = {name: np.sum(split.contains(even_chen.START + 1.0)) for name, split in session.splits.items()}
    assert counts == {"train": 26 + 2, "valid": 4, "test": 8}  # failed trials, and time between trials, train
    assert session.splits["train"].seconds > 28 * even_chen.LASTS + 5
