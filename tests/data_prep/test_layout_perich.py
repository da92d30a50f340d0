"""000688: both recipes read files of that layout as the POYO papers cut them, from target to target, outliers marked."""

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from data_prep.assembly import read_session
from data_prep.errors import SessionError
from data_prep.nwb import read_recording
from data_prep.recipe import Recipe
from data_prep.repairs import aborted_before_target
from data_prep.session import Intervals, Session
from launch.config import load
from tests.data_prep.layouts import perich
from tests.data_prep.layouts.reaching import tuned_spikes

SKIPPED = (perich.LONG + 1, perich.LONG + 2)  # not in the file
RECIPES = ("000688_co", "000688_rt")
INVALID = (perich.FAILED, perich.INCOMPLETE, perich.ABORTED, perich.NO_TARGET, perich.LONG)
VALID = np.array([k for k in range(perich.CO_TRIALS) if k not in (*INVALID, *SKIPPED)])


def recipe(repository: Path, name: str) -> Recipe:
    return load(Recipe, str(repository / f"configs/dandisets/{name}.yaml"), [])


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return perich.write(tmp_path_factory.mktemp("co") / "sub-C_ses-CO-20160909_behavior+ecephys.nwb")


@pytest.fixture(scope="module")
def center_out(file, repository) -> Session:
    return read_session(file, recipe(repository, "000688_co"))


@pytest.fixture(scope="module")
def random_target(tmp_path_factory, repository) -> Session:
    path = perich.write(tmp_path_factory.mktemp("rt") / "sub-M_ses-RT-20160909_behavior+ecephys.nwb", "RT", subject="M")
    return read_session(path, recipe(repository, "000688_rt"))


def pairs(intervals: Intervals) -> np.ndarray:
    return np.stack([intervals.start, intervals.stop], axis=1)


def gap_between(one: Intervals, other: Intervals) -> float:
    """Shortest time in s between two sets of intervals, negative where they overlap."""
    return min(max(a - d, c - b) for a, b in one for c, d in other)


def test_the_two_recipes_share_the_files_by_their_names(repository):
    names = ["sub-C/sub-C_ses-CO-20160909_behavior+ecephys.nwb", "sub-M/sub-M_ses-RT-20140114_behavior+ecephys.nwb"]
    taken = [[name for name in names if Path(name).match(recipe(repository, one).files[0])] for one in RECIPES]
    assert taken == [names[:1], names[1:]]
    assert {(r.dandiset, r.version) for r in (recipe(repository, one) for one in RECIPES)} == {
        ("000688", "0.250122.1735")
    }


def test_units_regions_and_every_spike(file, center_out):
    with h5py.File(file) as stored:  # the layout's burden is there: waveforms, doubly indexed
        assert stored["units/waveforms"].dtype == np.int16 and "waveforms_index_index" in stored["units"]
        assert len(stored["units/waveforms"]) == 48 * len(stored["units/spike_times"])
    assert center_out.id == "perich_miller_co/C_sub-C-ses-CO-20160909" and center_out.subject == "C"
    assert center_out.units.region == ("M1",) * 4 + ("PMd",) * 4
    truth = tuned_spikes(perich.reaches(), [(0.0, perich.CO_TRIALS * perich.CO_STEP + 2.0)], perich.UNITS, 25.0)
    for unit, train in enumerate(truth):
        assert np.array_equal(center_out.spikes.time[center_out.spikes.unit == unit], train)


def test_velocity_is_that_of_the_hand_and_a_gap_splits_the_domain(center_out):
    cursor = center_out.signals["cursor_vel"]
    truth = perich.reaches().velocity(cursor.time)
    assert cursor.unit_of_measure == "cm/s" and np.max(np.abs(cursor.value - truth)) < 1e-4
    assert np.max(np.abs(truth)) > 20  # there is a movement to be wrong about
    assert len(np.unique(cursor.time)) == len(cursor.time) == len(perich.sample_times(122.0)) - len(perich.REPEATED)
    assert np.allclose(
        pairs(center_out.domain), [[0, perich.GAP[0]], [perich.GAP[1], cursor.time[-1]]], atol=1.01 / perich.HZ
    )


def test_spikes_lead_to_the_direction_their_unit_prefers(center_out):
    """Spikes and velocity share one clock: the mean velocity at a unit's spikes points where the unit is tuned to."""
    cursor = center_out.signals["cursor_vel"]
    for unit in range(perich.UNITS):
        time = center_out.spikes.time[center_out.spikes.unit == unit]
        mean = np.mean(cursor.value[np.clip(np.searchsorted(cursor.time, time), 0, len(cursor.time) - 1)], axis=0)
        preferred = np.array([np.cos(2 * np.pi * unit / perich.UNITS), np.sin(2 * np.pi * unit / perich.UNITS)])
        assert mean @ preferred / np.linalg.norm(mean) > 0.9


def test_trials_go_from_target_to_target_and_only_good_ones_are_valid(center_out):
    valid = center_out.trial_columns["is_valid"]
    shown = perich.CO_STEP * VALID + 0.2
    assert np.allclose(center_out.trials.start[valid], shown)
    stop = shown + perich.CO_STEP
    stop[VALID == perich.ABORTED - 1] -= 0.3  # the next one never got its target: a second after this one's stop
    stop[-1] = perich.CO_STEP * VALID[-1] + 1.9 + 1.0  # nor has the last trial a next one
    assert np.allclose(center_out.trials.stop[valid], stop)
    assert len(center_out.trials) == perich.CO_TRIALS - len(SKIPPED) and np.sum(~valid) == len(INVALID)


def test_a_trial_aborted_before_its_target_ends_the_one_before(file, repository):
    """Its target_on_time becomes a second after the stop above it, its own stop if that is earlier, or its start if
    nothing is above it; known times stay."""
    recording = read_recording(file, recipe(repository, "000688_co"))
    table = {
        "start_time": np.array([1.0, 5.0, 8.0, 9.2, 12.0]),
        "stop_time": np.array([2.0, 7.0, 8.5, 11.0, 14.0]),
        "target_on_time": np.array([np.nan, 5.5, np.nan, np.nan, 12.5]),
    }
    mended = aborted_before_target(replace(recording, tables={"trials": table}))
    assert mended.tables["trials"]["target_on_time"].tolist() == [1.0, 5.5, 8.0, 9.5, 12.5]
    late = {**table, "start_time": table["start_time"] + [0, 0, -0.6, 0, 0], "stop_time": table["stop_time"] - 0.6}
    shown = aborted_before_target(replace(recording, tables={"trials": late})).tables["trials"]["target_on_time"]
    assert shown[2] == min(6.4 + 1, 7.9)


def test_phases_of_a_reach(center_out):
    start, phases = perich.CO_STEP * VALID, center_out.phases
    assert np.allclose(pairs(phases["hold"]), np.stack([start + 0.2, start + 0.9], axis=1))
    assert np.allclose(pairs(phases["reach"]), np.stack([start + 0.9, start + 1.9], axis=1))
    assert np.allclose(phases["return"].start, start + 1.9)
    assert np.allclose(phases["return"].stop, center_out.trials.stop[center_out.trial_columns["is_valid"]])
    invalid = np.array([perich.CO_STEP * k + 0.2 for k in INVALID])
    invalid[INVALID.index(perich.ABORTED)] -= 0.3  # begins where the trial before it ends
    assert np.allclose(phases["invalid"].start, np.sort(invalid))


def test_outliers_are_the_jerk_and_the_excursion(center_out):
    """A run of 10 samples beyond 10 cm grows by 400 and shrinks by 100; one sample of 2000 cm/s^2 grows by 2."""
    jerk, away = pairs(center_out.phases["outlier"])
    assert np.allclose(jerk, [perich.JERK - 0.01, perich.JERK + 0.02])
    assert np.allclose(away, [perich.AWAY - 1.5, perich.AWAY + 0.1 + 1.5])
    assert list(center_out.phases)[-1] == "outlier"  # outranks the others


def test_splits_are_those_of_the_papers(center_out, file, repository):
    splits, trials = center_out.splits, center_out.trials
    middle = (trials.start + 1.5)[center_out.trial_columns["is_valid"]]
    drawn = {name: np.sum(split.contains(middle)) for name, split in splits.items()}
    assert drawn["test"] == round(0.2 * len(VALID)) and drawn["valid"] == round(0.1 * len(VALID))
    held_out = Intervals.of([*splits["valid"], *splits["test"]])
    assert gap_between(splits["train"], held_out) >= 1.0 - 1e-6
    invalid = trials.start[~center_out.trial_columns["is_valid"]] + 0.1
    assert not held_out.contains(invalid).any()
    assert splits["train"].contains(np.array([99.0, 97.0])).any()  # time between trials trains as well
    again = read_session(file, recipe(repository, "000688_co"))
    assert all(np.array_equal(pairs(again.splits[name]), pairs(split)) for name, split in splits.items())


def test_weights_scale_and_evaluation_of_the_papers(center_out, random_target):
    assert center_out.loss_weights == {
        "random": 1,
        "hold": 0.1,
        "reach": 5,
        "return": 1,
        "invalid": 0.1,
        "outlier": 0,
    }
    assert center_out.eval_phases == ("reach",) and random_target.eval_phases == ("random",)
    assert random_target.loss_weights == {"random": 1, "hold": 0.1, "outlier": 0}
    assert center_out.target_scale == random_target.target_scale == {"cursor_vel": 20}


def test_random_target_trials(random_target):
    """Valid: rewarded, four targets attempted, 2 to 10 s; hold: until the first go cue, in every trial that has one."""
    start = np.arange(perich.RT_TRIALS) * perich.RT_STEP
    bad = [*perich.RT_INVALID, 15]
    assert np.allclose(
        random_target.trials.start[random_target.trial_columns["is_valid"]], np.delete(start, bad), atol=1e-9
    )
    has_go = np.delete(start, 9)
    assert np.allclose(pairs(random_target.phases["hold"]), np.stack([has_go, has_go + 0.6], axis=1))
    assert random_target.paradigm == "random_target" and random_target.subject == "M"


def test_a_file_in_millimetres_is_refused_by_name(tmp_path, repository):
    path = perich.write(tmp_path / "sub-C_ses-CO-20990101.nwb", scale=10.0)
    with pytest.raises(SessionError, match=r"sub-C_ses-CO-20990101.nwb cursor_.*looks like mm, stated is cm"):
        read_session(path, recipe(repository, "000688_co"))


def test_acceleration_is_derived_where_the_file_has_none(file, repository, center_out):
    """The stored acceleration is the rate of change of the velocity, so leaving it out changes little."""
    plain = recipe(repository, "000688_co")
    without = replace(plain, signals={**plain.signals, "cursor_acc": replace(plain.signals["cursor_acc"], path=[])})
    derived, stored = read_session(file, without).signals["cursor_acc"], center_out.signals["cursor_acc"]
    near = np.abs(stored.time - perich.JERK) > 0.05  # the jerk is in the stored one alone
    assert derived.derived_from == "cursor_vel" and derived.unit_of_measure == "cm/s^2"
    assert np.percentile(np.abs(derived.value - stored.value)[near], 99) < 5 < 100 < np.max(stored.value[near])
