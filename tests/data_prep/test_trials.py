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


def test_trials_that_start_anew_amid_earlier_ones_tell_of_a_reset_but_epochs_may_be_nested():
    """Two blocks and their five runs each, in one table: as trials they would lie upon each other."""
    start = np.array([0.0, 50.0, *range(0, 100, 10)])
    table = {"start_time": start, "stop_time": start + np.array([50.0, 50.0, *[9.0] * 10])}
    with pytest.raises(
        SessionError, match="start anew 1 times, first after row 1, .* the clock was reset; add the repair"
    ):
        find_trials("here", TrialsRecipe(), table)
    assert len(find_trials("here", TrialsRecipe(table="epochs"), table).start) == 12
    apart = {name: values[2:][[5, 6, 7, 0, 1, 2]] for name, values in table.items()}
    assert find_trials("here", TrialsRecipe(), apart).start.tolist() == [0, 10, 20, 50, 60, 70]


def test_moments_in_texts_and_in_parts_of_a_column():
    table = {**TABLE, "go.0": np.array(["1.5", "", "21.5", "nan"]), "go.1": np.array([b"2", b"12", b"22", b"32"])}
    trials = find_trials("here", TrialsRecipe(), table)
    phase = PhaseRecipe(Moment("go[0]"), Moment("go.1"))
    assert list(find_phase("here", phase, trials, 1.0)) == [(1.5, 2.0), (21.5, 22.0)]
    assert len(find_phase("here", PhaseRecipe(Moment("go[2]"), Moment("go.1"), optional=True), trials, 1.0)) == 0
    with pytest.raises(SessionError, match=r"no column 'go\.2'"):
        find_phase("here", PhaseRecipe(Moment("go[2]")), trials, 1.0)
    with pytest.raises(SessionError, match="holds text .F, R.; name a column of numbers"):
        find_phase("here", PhaseRecipe(Moment("result")), trials, 1.0)


def test_factors_scale_a_column_and_its_parts_and_pass_over_what_is_not_there():
    table = {**TABLE, "cue.0": np.array([1.0, 2.0, 3.0, 4.0]), "cue.1": np.array([5.0, 6.0, 7.0, np.nan])}
    trials = find_trials("here", TrialsRecipe(factors={"cue": 0.001, "rt": 0.01, "delay": 0.001}), table)
    assert np.allclose(trials.columns["cue.0"], [0.001, 0.002, 0.003, 0.004]) and trials.columns["rt"][0] == 3.0
    assert trials.notes == ("trials have no column delay, which trials.factors names",)


def test_trials_come_out_in_order_of_time_with_their_columns():
    shuffled = {name: values[[2, 0, 3, 1]] for name, values in TABLE.items()}
    trials = find_trials("here", TrialsRecipe(factors={"rt": 0.001}), shuffled)
    assert trials.columns["id"].tolist() == [1, 2, 3, 4] and trials.columns["rt"][0] == 0.3
    assert trials.columns["duration"].tolist() == [4, 4, 4, 4]
