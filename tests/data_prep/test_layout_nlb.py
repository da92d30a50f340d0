"""Neural Latents Benchmark: train and test files of each set by one recipe; units align, its split column is kept."""

from pathlib import Path

import numpy as np
import pytest

from data_prep.assembly import read_session
from data_prep.recipe import Recipe
from data_prep.session import Intervals, Session
from launch.config import load
from tests.data_prep.layouts import nlb

RECIPES = {"maze": "000128", "maze_large": "000138", "rtt": "000129", "bump": "000127", "rsg": "000130"}
KINDS = ("maze", "rtt", "bump", "rsg")


def recipe(repository: Path, name: str) -> Recipe:
    return load(Recipe, str(repository / f"configs/dandisets/{name}.yaml"), [])


@pytest.fixture(scope="module")
def sessions(tmp_path_factory, repository):
    """(kind, part) -> session, each file written and read once; test files with their train file as roster."""
    folder, made = tmp_path_factory.mktemp("nlb"), {}

    def give(kind: str, part: str = "train") -> Session:
        if (kind, part) not in made:
            path = folder / f"{kind}_desc-{part}.nwb"
            nlb.write(path, kind, part)
            roster = None if part == "train" else folder / f"{kind}_desc-train.nwb"
            if roster is not None and not roster.exists():
                nlb.write(roster, kind)
            made[kind, part] = read_session(path, recipe(repository, RECIPES[kind]), roster)
        return made[kind, part]

    return give


def pairs(intervals: Intervals) -> np.ndarray:
    return np.stack([intervals.start, intervals.stop], axis=1)


def rows_in(session: Session, split: str, middle: np.ndarray) -> list[int]:
    """Trials whose middle (n,) lies in a split."""
    return np.flatnonzero(session.splits[split].contains(middle)).tolist()


# ------------------------------------------------------------------------------------- every set


@pytest.mark.parametrize("kind", KINDS)
def test_the_test_file_has_the_units_of_the_train_file_and_says_which_are_missing(sessions, kind):
    train, test = sessions(kind), sessions(kind, "test")
    held_out = tuple(row in nlb.HELD_OUT for row in range(nlb.UNITS))
    assert train.units.id == test.units.id == tuple(str(one) for one in nlb.SETS[kind].ids)
    assert train.units.held_out == test.units.held_out == held_out
    assert test.units.missing == held_out and not any(train.units.missing)
    assert train.units.region == test.units.region
    fired = np.bincount(test.spikes.unit, minlength=nlb.UNITS)
    assert np.array_equal(fired == 0, held_out)  # no spike went to another unit's row


@pytest.mark.parametrize("kind", KINDS)
def test_the_test_file_is_spikes_on_a_clock_of_its_own(sessions, kind):
    test, (before, after) = sessions(kind, "test"), nlb.SETS[kind].window
    length = after - before
    assert test.signals == {} and test.id != sessions(kind).id
    assert np.allclose(pairs(test.splits["test"]), [[0, nlb.TEST_TRIALS * length]], atol=1e-5)
    assert len(test.splits["train"]) == len(test.splits["valid"]) == 0
    assert np.allclose(test.trials.start, np.arange(nlb.TEST_TRIALS) * length)


@pytest.mark.parametrize("kind", KINDS)
def test_val_is_judged_and_train_is_dealt_in_train_and_valid(sessions, kind):
    session = sessions(kind)
    split, middle = session.trial_columns["split"], (session.trials.start + session.trials.stop) / 2
    good = session.trial_columns["is_valid"]
    assert rows_in(session, "test", middle) == np.flatnonzero((split == "val") & good).tolist()
    dealt = sorted(rows_in(session, "train", middle) + rows_in(session, "valid", middle))
    assert dealt == np.flatnonzero((split == "train") & good).tolist()
    share = len(rows_in(session, "valid", middle)) / len(dealt)
    assert abs(share - 0.2) < 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_domain_is_where_units_were_observed_and_behaviour_is_known(sessions, kind):
    session = sessions(kind)
    expected = {
        "maze": nlb.MAZE_TRIALS * nlb.MAZE_LASTS - (nlb.LOST[1] - nlb.LOST[0]),
        "rtt": nlb.RTT_TRIALS * nlb.RTT_CUT,
        "bump": nlb.BUMP_TRIALS * nlb.BUMP_STEP - (nlb.BUMP_HOLE[1] - nlb.BUMP_HOLE[0]),
        "rsg": nlb.RSG_TRIALS * nlb.RSG_STEP,
    }[kind]
    assert abs(session.domain.seconds - expected) < 0.05


@pytest.mark.parametrize("name", RECIPES.values())
def test_one_recipe_for_both_files_and_a_pinned_version(repository, name):
    one = recipe(repository, name)
    assert one.dandiset == name and one.version.split(".")[1] in ("220113", "241017")
    assert one.units.roster and one.units.held_out == "heldout" and one.session == "file"


# ------------------------------------------------------------------------------------- each set


def test_maze_regions_come_from_the_ids_as_its_electrodes_are_wrong(sessions):
    """M1's units may point at PMd's electrodes; by the first digit of the id both kinds of file read alike."""
    told_wrong, right = sessions("maze").units, sessions("maze_large").units
    assert told_wrong.region == right.region == ("PMd",) * 4 + ("M1",) * 4
    assert told_wrong.electrode == right.electrode == ("1", "11", "12", "34", "97", "103", "167", "189")


def test_maze_velocity_positions_and_what_is_judged(sessions):
    session = sessions("maze")
    hand, lost = session.signals["hand_vel"], nlb.LOST
    missing = (hand.time >= lost[0] - 1e-6) & (hand.time < lost[1] - 1e-6)
    assert np.array_equal(~hand.valid, missing) and missing.sum() == 20
    truth = nlb.MAZE.velocity(hand.time)
    assert hand.unit_of_measure == "mm/s" and np.max(np.abs(hand.value - truth)[~missing]) < 1e-3
    where = session.signals["hand_pos"]  # the file says metres and a conversion; the numbers are mm
    assert where.unit_of_measure == "mm" and 95 < np.max(np.abs(where.value[where.valid])) < 105
    onset = nlb.MAZE_START + nlb.MAZE_ONSET
    assert np.allclose(pairs(session.phases["decoded"]), np.stack([onset - 0.05, onset + 0.65], axis=1))
    assert session.eval_phases == ("decoded",) and session.target_scale == {"hand_vel": 100}
    assert np.allclose(session.trial_columns["delay"], 700) and np.allclose(session.trial_columns["rt"], 300)  # ms
    assert np.array_equal(session.domain.contains(np.array(lost) + [0.005, 0.005]), [False, True])


def test_maze_ragged_targets_are_kept_number_by_number(sessions):
    """Rows of one to three targets of two coordinates become six columns, NaN where there are fewer targets."""
    columns, count = sessions("maze").trial_columns, 1 + np.arange(nlb.MAZE_TRIALS) % 3
    for part in range(6):
        assert np.array_equal(columns[f"target_pos.{part}"] == 100, count > part // 2)
    assert "target_pos.6" not in columns and np.array_equal(columns["num_targets"], count)


def test_rtt_trials_are_cuts_that_join_up(sessions):
    """Trials follow each other up to rounding: a split is stretches of many trials, valid of runs of ten, not 0.6 s."""
    session = sessions("rtt")
    finger = session.signals["finger_vel"]
    assert np.max(np.abs(finger.value - nlb.RTT.velocity(finger.time))[finger.valid]) < 1e-3
    assert session.signals["finger_pos"].value.shape[1] == 3 and finger.value.shape[1] == 2
    assert session.units.region == ("M1",) * nlb.UNITS and session.eval_phases == ()
    for split in session.splits.values():
        assert (split.stop - split.start > 5.9).all()
    assert np.allclose(pairs(session.splits["test"]), [[36.0, 45.0], [81.1, 90.1]], atol=0.002)
    assert len(session.domain) == 2 and 0.09 < session.domain.start[1] - session.domain.stop[0] < 0.11


def test_bump_signals_and_window(sessions):
    session = sessions("bump")
    hand, force = session.signals["hand_vel"], session.signals["force"]
    assert hand.unit_of_measure == "cm/s" and force.unit_of_measure == "N" and force.value.shape[1] == 3
    assert np.max(np.abs(hand.value - nlb.BUMP.velocity(hand.time))[hand.valid]) < 1e-4
    moved = np.arange(nlb.BUMP_TRIALS) % 10 != 5  # where nothing moves there is no onset, and the split says none
    onset = (nlb.BUMP_START + nlb.BUMP_ONSET)[moved]
    assert np.allclose(pairs(session.phases["decoded"]), np.stack([onset - 0.1, onset + 0.5], axis=1))
    assert not any(split.contains(nlb.BUMP_START[~moved] + 1.0).any() for split in session.splits.values())
    assert session.units.region == ("area2",) * nlb.UNITS


def test_rsg_is_spikes_with_intervals_in_seconds(sessions):
    session = sessions("rsg")
    assert session.signals == {} and session.units.region == ("DMFC",) * nlb.UNITS
    assert session.units.electrode == ()  # units without electrodes
    columns = session.trial_columns
    assert np.allclose(columns["ts"], nlb.RSG_TS) and np.allclose(columns["tp"], nlb.RSG_TP)  # ms in the file
    assert np.allclose(columns["go_time"] - columns["set_time"], columns["tp"])
    good = np.delete(np.arange(nlb.RSG_TRIALS), nlb.RSG_OUTLIERS)
    assert np.array_equal(np.flatnonzero(columns["is_valid"]), good)
    start = good * nlb.RSG_STEP + nlb.RSG_READY
    assert np.allclose(pairs(session.phases["estimate"]), np.stack([start, start + nlb.RSG_TS[good]], axis=1))
    assert np.allclose(session.phases["produce"].stop, start + (nlb.RSG_TS + nlb.RSG_TP)[good])
    left_out = np.array([*nlb.RSG_OUTLIERS, nlb.RSG_NONE]) * nlb.RSG_STEP + 1.0
    assert not any(split.contains(left_out).any() for split in session.splits.values())
