"""Moments and phases of a trial table, against answers one can check by eye."""

import numpy as np
import pytest

from data_prep.errors import SessionError
from data_prep.recipe import Moment, PhaseRecipe, TrialsRecipe
from data_prep.trials import find_phase, find_trials

TABLE = {
    "start_time": np.array([0.0, 10.0, 20.0, 30.0]),
    "stop_time": np.array([4.0, 14.0, 24.0, 34.0]),
    "target_on_time": np.array([1.0, np.nan, 21.0, 31.0]),
    "go_cue_time": np.array([2.0, 12.0, np.nan, 32.0]),
    "result": np.array(["R", "F", "R", "R"]),
    "success": np.array([True, False, True, True]),
    "id": np.array([1, 2, 3, 4]),
    "tags": np.array(["task,early", "task", "rest", ""]),
    "rt": np.array([300.0, 1, 2, 3]),
}


def test_trials_cut_anew_run_from_target_to_next_target():
    recipe = TrialsRecipe(
        start=Moment("target_on_time"),
        stop=Moment("target_on_time", next=True),
        last_trial_s=1.0,
        valid="result == 'R' and duration <= 15",
    )
    trials = find_trials("here", recipe, TABLE)
    assert list(zip(trials.start, trials.stop)) == [(1, 21), (21, 31), (31, 35)]  # the one without a target is none
    assert trials.valid.tolist() == [False, True, True] and trials.notes == (
        "1 trials without a usable start and stop left out",
    )
    back = find_phase("here", PhaseRecipe(Moment("stop_time"), Moment("target_on_time", next=True)), trials, 1.0)
    assert list(back) == [(24, 31), (34, 35)]


def test_phases_belong_to_the_trials_they_name():
    trials = find_trials("here", TrialsRecipe(valid="result == 'R'"), TABLE)
    reach = {
        which: list(
            find_phase(
                "here", PhaseRecipe(Moment("go_cue_time"), Moment("stop_time", offset_s=0.5), which), trials, 1.0
            )
        )
        for which in ("valid", "invalid", "all")
    }
    assert reach["valid"] == [(2, 4.5), (32, 34.5)] and reach["invalid"] == [(12, 14.5)]
    assert reach["all"] == sorted(reach["valid"] + reach["invalid"])


def test_a_phase_may_be_optional():
    trials = find_trials("here", TrialsRecipe(), TABLE)
    phase = PhaseRecipe(Moment("move_time"), Moment("stop_time"))
    with pytest.raises(SessionError, match="no column 'move_time'"):
        find_phase("here", phase, trials, 1.0)
    optional = PhaseRecipe(phase.start, phase.stop, optional=True)
    assert len(find_phase("here", optional, trials, 1.0)) == 0


def test_trials_come_out_in_order_of_time_with_their_columns():
    shuffled = {name: values[[2, 0, 3, 1]] for name, values in TABLE.items()}
    trials = find_trials("here", TrialsRecipe(factors={"rt": 0.001}), shuffled)
    assert trials.columns["id"].tolist() == [1, 2, 3, 4] and trials.columns["rt"][0] == 0.3
    assert trials.columns["duration"].tolist() == [4, 4, 4, 4]
