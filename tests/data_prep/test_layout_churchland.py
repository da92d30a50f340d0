"""000070: one recipe reads its five table layouts; velocity never crosses a pause, clocks are mended, bad units dropped."""

import numpy as np
import pytest

from data_prep.assembly import read_session
from data_prep.recipe import Recipe
from data_prep.session import Intervals, Session
from launch.config import load
from tests.data_prep.layouts import churchland

LASTS, ROWS = churchland.LASTS, np.arange(churchland.TRIALS)
VALID = np.delete(ROWS, [churchland.DISCARDED, churchland.FAILED])
PAIR = (churchland.OVERLAP, churchland.OVERLAP + 1)
SAMPLES = round(LASTS * churchland.HZ)


@pytest.fixture(scope="module")
def recipe(repository) -> Recipe:
    return load(Recipe, str(repository / "configs/dandisets/000070.yaml"), [])


@pytest.fixture(scope="module")
def session(tmp_path_factory, recipe) -> Session:
    """A file with a sound clock."""
    return read_session(churchland.write(tmp_path_factory.mktemp("sound") / "sub-N_ses-1.nwb"), recipe)


@pytest.fixture(scope="module")
def mended(tmp_path_factory, recipe) -> Session:
    """A file as of 2009-09-10: two trials overlap, later the clock starts anew, and one unit does not show it."""
    path = tmp_path_factory.mktemp("reset") / "sub-N_ses-3.nwb"
    return read_session(churchland.write(path, 3, reset=True, overlap=True, bad_unit=True), recipe)


def pairs(intervals: Intervals) -> np.ndarray:
    return np.stack([intervals.start, intervals.stop], axis=1)


def rebased(time: np.ndarray) -> np.ndarray:
    """Where true times belong after the mend: from the reset on, 60 s after the end of the last trial before it."""
    first = churchland.START[churchland.RESET]
    end = churchland.START[churchland.RESET - 1] + LASTS
    return np.where(time >= first, time - first + end + 60.0, time)


def assert_velocity(session: Session, true_time: np.ndarray) -> None:
    """The velocity is the known derivative, to 2 mm/s; at both ends of a trial the hand rests, exactly, though it is 100
    mm away at the start of the next one."""
    value, truth = session.signals["cursor_vel"].value, churchland.REACHES.velocity(true_time)
    jump = np.abs(true_time - churchland.START[churchland.JUMP] - 1.9) < 0.002
    assert np.max(np.abs(value - truth)[~jump]) < 2 < 400 < np.max(np.linalg.norm(truth, axis=1))
    ends = value.reshape(-1, SAMPLES, 2)[:, [0, -1]]
    assert np.max(np.abs(ends)) < 1e-6


def test_units_regions_and_every_spike(session):
    assert session.units.region == ("PMd",) * 4 + ("M1",) * 4
    for unit, train in enumerate(churchland.spike_times()):
        assert np.array_equal(session.spikes.time[session.spikes.unit == unit], train)


def test_velocity_is_derived_within_trials_and_never_across_pauses(session):
    velocity = session.signals["cursor_vel"]
    assert velocity.derived_from == "cursor_pos" and velocity.unit_of_measure == "mm/s"
    assert np.allclose(velocity.time, churchland.sample_times(), atol=1e-9)
    assert_velocity(session, velocity.time)
    assert np.allclose(pairs(session.domain)[:, 0], churchland.START, atol=1e-3) and len(session.domain) == len(ROWS)
    assert np.allclose(session.domain.stop - session.domain.start, LASTS, atol=1e-3)


def test_phases_of_successful_trials_that_are_not_discarded(session):
    start = churchland.START[VALID]
    assert np.array_equal(np.flatnonzero(session.trial_columns["is_valid"]), VALID)
    for name, first, last in (("hold", 0.2, 0.9), ("reach", 1.1, 1.6), ("return", 1.6, LASTS)):
        assert np.allclose(pairs(session.phases[name]), np.stack([start + first, start + last], axis=1))
    assert session.loss_weights == {"hold": 0.1, "reach": 5, "return": 1, "outlier": 1}
    assert session.eval_phases == () and session.target_scale == {"cursor_vel": 800}


def test_a_jump_of_the_cursor_is_an_outlier(session):
    """One sample 5 mm away bends the acceleration of two samples on either side; 50 samples are added around them."""
    (jump,) = pairs(session.phases["outlier"])
    assert np.allclose(jump, churchland.START[churchland.JUMP] + 1.9 + np.array([-0.027, 0.028]), atol=1e-6)


def test_splits_are_whole_trials_and_failed_ones_train(session):
    counts = {name: np.sum(split.contains(churchland.START + 1.0)) for name, split in session.splits.items()}
    assert counts == {"train": 26 + 2, "valid": 4, "test": 8}  # of 38 good trials; the remainder to the largest
    assert session.splits["train"].contains(churchland.START[[churchland.DISCARDED, churchland.FAILED]] + 1.0).all()
    for split in session.splits.values():
        assert np.allclose(split.stop - split.start, LASTS, atol=1e-3)


def test_a_reset_clock_goes_on_60_s_after_the_block_before(mended):
    kept = np.delete(ROWS, PAIR)
    assert np.allclose(mended.trials.start, rebased(churchland.START[kept]))
    assert np.allclose(mended.trial_columns["go_cue_time"], rebased(churchland.START[kept]) + 0.9)
    known = np.isfinite(mended.trial_columns["reaction_time"])
    assert np.allclose(mended.trial_columns["reaction_time"][known], 0.2)  # a duration is not moved
    true = churchland.sample_times().reshape(-1, SAMPLES)[kept].reshape(-1)
    assert np.allclose(mended.signals["cursor_vel"].time, rebased(true), atol=1e-9)
    assert_velocity(mended, true)
    assert np.allclose(pairs(mended.domain)[:, 0], rebased(churchland.START[kept]), atol=1e-3)


def test_spikes_follow_the_mended_clock_and_the_unit_that_does_not_is_dropped(mended):
    assert mended.units.id == tuple(str(k) for k in range(churchland.UNITS) if k != churchland.BAD)
    lost = churchland.START[churchland.OVERLAP], churchland.START[churchland.OVERLAP + 1] + LASTS
    for unit, train in enumerate(churchland.spike_times()[: churchland.BAD]):
        kept = train[(train < lost[0]) | (train > lost[1])]
        assert np.allclose(mended.spikes.time[mended.spikes.unit == unit], rebased(kept), atol=1e-9)
    notes = mended.provenance["notes"]
    assert "1 units without matching resets dropped" in notes and "clock reset 1 times" in notes


def test_two_trials_that_overlap_are_dropped_with_what_was_recorded_in_them(mended):
    assert len(mended.trials) == churchland.TRIALS - 2
    assert "trials 4 and 5 overlap: dropped with their samples and spikes" in mended.provenance["notes"]
    a, b = churchland.START[churchland.OVERLAP], churchland.START[churchland.OVERLAP + 2]
    assert not ((mended.spikes.time >= a) & (mended.spikes.time < b)).any()
    assert not mended.domain.contains(np.linspace(a, b, 50)[:-1]).any()


@pytest.mark.parametrize("variant", [4, *(pytest.param(k, marks=pytest.mark.slow) for k in (2, 3, 5))])
def test_the_table_layouts_give_one_session(tmp_path, recipe, session, variant):
    """Hand of two, three or six columns, fewer columns about the maze; and a unit that falls back for no reason."""
    other = read_session(churchland.write(tmp_path / "sub-N_ses-1.nwb", variant, bad_unit=True), recipe)
    assert np.array_equal(other.signals["cursor_vel"].value, session.signals["cursor_vel"].value)
    assert all(np.array_equal(pairs(other.splits[name]), pairs(split)) for name, split in session.splits.items())
    assert all(np.array_equal(pairs(other.phases[name]), pairs(phase)) for name, phase in session.phases.items())
    assert other.units.id == session.units.id[: churchland.BAD]
    assert ("maze_condition" in other.trial_columns) == churchland.VARIANTS[variant].maze
