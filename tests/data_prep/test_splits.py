"""Splits are disjoint, inside the domain and a guard apart, however domain and trials lie; draws follow the seed."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.errors import SessionError
from data_prep.recipe import SplitsRecipe
from data_prep.session import Intervals
from data_prep.splits import blocks, rounded, sizes, split_domain
from data_prep.trials import NO_TRIALS, Trials

stretch = st.tuples(st.floats(0.0, 5.0), st.floats(0.5, 60.0))  # pause before it, duration


def laid_out(parts) -> Intervals:
    edges = np.cumsum(np.array(parts).reshape(-1))
    return Intervals.of(zip(edges[0::2], edges[1::2]))


def some_trials(count: int, each_s: float = 3.0, gap_s: float = 0.0, columns: dict | None = None) -> Trials:
    start = np.arange(count) * (each_s + gap_s)
    return Trials(start, start + each_s, np.ones(count, bool), columns or {})


def distance(one: Intervals, other: Intervals) -> float:
    return min((max(c - b, a - d) for a, b in one for c, d in other), default=np.inf)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(stretch, min_size=1, max_size=6), st.floats(0, 2), st.integers(4, 20), st.booleans(), st.integers(0, 99)
)
def test_no_window_of_one_split_sees_another(parts, guard, count, by_trial, seed):
    domain = rounded(laid_out(parts), 0.5)
    recipe = SplitsRecipe(by="trial" if by_trial else "blocks", blocks=count, guard_s=guard, seed=seed)
    try:
        splits = split_domain("here", recipe, domain, some_trials(40), min_s=0.5)
    except SessionError as refusal:
        assert by_trial and "usable trials" in refusal.found
        return
    for name, split in splits.items():
        assert split.difference(domain.dilated(2e-6)).seconds == 0
        assert all(stop - start >= 0.5 - 1e-9 for start, stop in split)
        for other in set(splits) - {name}:
            assert distance(split, splits[other]) >= guard - 3e-6


@given(st.lists(stretch, min_size=1, max_size=6), st.integers(1, 12))
def test_blocks_share_the_domain_equally_and_wholly(parts, count):
    domain = laid_out(parts)
    cut = blocks(domain, count)
    assert np.allclose([part.merged().seconds for part in cut], domain.merged().seconds / count)
    assert np.isclose(Intervals.of(pair for part in cut for pair in part).merged().seconds, domain.merged().seconds)
    assert all(a.stop[-1] <= b.start[0] + 1e-9 for a, b in pairwise(cut))


@given(st.integers(3, 500))
def test_sizes_add_up_and_leave_none_empty(count):
    parts = sizes(count, (0.7, 0.1, 0.2))
    assert sum(parts) == count and min(parts) >= 1
    assert np.abs(np.array(parts) - count * np.array([0.7, 0.1, 0.2])).max() <= 1.5


def test_twenty_blocks_are_fourteen_two_four():
    splits = split_domain("here", SplitsRecipe(blocks=20, guard_s=0), Intervals.of([(0, 1200)]), NO_TRIALS, 1.0)
    assert [round(splits[name].seconds) for name in ("train", "valid", "test")] == [840, 120, 240]


def test_the_draw_is_numpys_permutation_of_the_seed():
    order = np.random.default_rng(42).permutation(20)
    splits = split_domain("here", SplitsRecipe(blocks=20, guard_s=0), Intervals.of([(0, 1200)]), NO_TRIALS, 1.0)
    middles = 60.0 * order + 30
    assert splits["train"].contains(middles[:14]).all()
    assert splits["valid"].contains(middles[14:16]).all()
    assert splits["test"].contains(middles[16:]).all()


def test_train_takes_the_time_between_trials_only_if_told():
    domain, trials = Intervals.of([(0, 400)]), some_trials(40, 3.0, 7.0)
    everything = split_domain("here", SplitsRecipe(by="trial"), domain, trials, 1.0)
    only = split_domain("here", SplitsRecipe(by="trial", rest="drop"), domain, trials, 1.0)
    assert only["train"].seconds == 28 * 3 and only["test"].seconds == everything["test"].seconds == 8 * 3
    assert everything["train"].seconds > 250


def test_only_valid_trials_are_drawn_and_the_others_train():
    domain, trials = Intervals.of([(0, 400)]), some_trials(40, 3.0, 7.0)
    bad = Trials(trials.start, trials.stop, np.arange(40) % 2 == 0, {})
    splits = split_domain("here", SplitsRecipe(by="trial"), domain, bad, 1.0)
    wrong = trials.start[1::2] + 1.5
    assert splits["train"].contains(wrong).all()


def test_a_column_names_the_splits_and_the_unnamed_one_is_drawn_from_train():
    domain = Intervals.of([(0, 400)])
    column = np.array(["train"] * 30 + ["val"] * 10)
    recipe = SplitsRecipe(
        by="column",
        column="split",
        values={"train": ["train"], "test": ["val"]},
        train=0.8,
        valid=0.2,
        test=0.0,
        rest="drop",
        guard_s=0,
    )
    splits = split_domain("here", recipe, domain, some_trials(40, 3.0, 7.0, {"split": column}), 1.0)
    assert [round(splits[name].seconds / 3) for name in ("train", "valid", "test")] == [24, 6, 10]
    assert splits["test"].start.min() == 300


def test_one_trial_cannot_be_split():
    with pytest.raises(SessionError, match="1 usable trials to share between 3 splits; split it by blocks of time"):
        split_domain("here", SplitsRecipe(by="trial"), Intervals.of([(0, 100)]), some_trials(1), 1.0)


def test_a_column_that_is_not_there_is_told():
    with pytest.raises(SessionError, match="no column 'split'"):
        split_domain("here", SplitsRecipe(by="column", column="split"), Intervals.of([(0, 100)]), some_trials(9), 1.0)


def test_a_file_of_test_trials_alone_is_split_where_no_training_is_asked_for():
    domain, trials = Intervals.of([(0, 400)]), some_trials(40, 3.0, 7.0, {"split": np.array(["val"] * 40)})
    recipe = SplitsRecipe(by="column", column="split", values={"train": ["train"], "test": ["val"]}, rest="drop")
    splits = split_domain("here", recipe, domain, trials, 1.0, min_train_s=0.0)
    assert [len(splits[name]) for name in ("train", "valid", "test")] == [0, 0, 40]
    with pytest.raises(SessionError, match="no trial has split in .'train'.; the column holds val"):
        split_domain("here", recipe, domain, trials, 1.0, min_train_s=30.0)
    nobody = SplitsRecipe(by="column", column="split", values={"train": ["a"], "test": ["b"]})
    with pytest.raises(SessionError, match="no trial has split"):
        split_domain("here", nobody, domain, trials, 1.0, min_train_s=0.0)


@pytest.mark.parametrize("values", [np.array([1.0, 2.0]), np.array([1, 2]), np.array(["1", "2.0"])])
def test_a_split_may_be_named_by_number(values):
    trials = some_trials(40, 3.0, 7.0, {"split": np.repeat(values, 20)})
    recipe = SplitsRecipe(by="column", column="split", values={"train": ["1"], "valid": [], "test": ["2"]}, rest="drop")
    splits = split_domain("here", recipe, Intervals.of([(0, 400)]), trials, 1.0)
    assert splits["test"].start.min() == 200 and splits["train"].seconds == splits["test"].seconds == 60


@given(st.integers(0, 99), st.floats(0, 2), st.lists(st.sampled_from(["train", "val"]), min_size=40, max_size=40))
def test_shares_drawn_out_of_a_named_split_never_leak(seed, guard, names):
    """Overlapping trials, and a valid split drawn out of train: whoever comes later in the draw yields."""
    trials = some_trials(40, 4.0, -1.0, {"split": np.array(names)})
    recipe = SplitsRecipe(
        by="column", column="split", values={"train": ["train"], "test": ["val"]}, guard_s=guard, seed=seed
    )
    splits = split_domain("here", recipe, Intervals.of([(0, 200)]), trials, 0.5, min_train_s=0.0)
    truth = Intervals.of(
        zip(trials.start[trials.columns["split"] == "val"], trials.stop[trials.columns["split"] == "val"])
    )
    assert splits["test"].difference(truth).seconds == 0 and np.isclose(splits["test"].seconds, truth.merged().seconds)
    for one, other in (("train", "valid"), ("train", "test"), ("valid", "test")):
        assert distance(splits[one], splits[other]) >= guard - 3e-6


@given(st.integers(0, 99), st.floats(0, 2))
def test_a_guard_may_stand_before_train_alone(seed, guard):
    """Then valid and test keep their neighbouring trials whole, and still share no instant; train keeps away from both."""
    trials, domain = some_trials(60, 3.0), Intervals.of([(0, 180)])
    recipe = SplitsRecipe(by="trial", guard_s=guard, guard="train", seed=seed)
    splits = split_domain("here", recipe, domain, trials, 0.5)
    assert np.isclose(splits["valid"].seconds, 6 * 3) and np.isclose(splits["test"].seconds, 12 * 3)
    assert splits["valid"].intersection(splits["test"]).seconds == 0
    assert min(distance(splits["train"], splits[name]) for name in ("valid", "test")) >= guard - 3e-6


@pytest.mark.parametrize("by", ["trial", "column"])
def test_runs_of_short_trials_are_drawn_together(by):
    """Trials of 0.6 s hold no window of 1 s; ten in a row do, in each split."""
    trials = some_trials(200, 0.6, 0.0, {"split": np.array(["train"] * 200)})
    recipe = SplitsRecipe(by=by, column="split", values={"train": ["train"]}, rest="drop", guard_s=0.0, run=10)
    splits = split_domain("here", recipe, Intervals.of([(0, 120)]), trials, 1.0)
    assert [round(splits[name].seconds) for name in ("train", "valid", "test")] == [84, 12, 24]
    for split in splits.values():
        assert (
            np.allclose(split.start / 6, np.round(split.start / 6))
            and np.isclose((split.stop - split.start) % 6, 0).all()
        )


def test_trials_that_touch_but_for_a_rounding_error_are_one_stretch():
    start = np.arange(10) * 0.6
    apart = Intervals.of(zip(start, start + 0.6 - 1e-13))
    assert list(rounded(apart, 1.0)) == [(0.0, 6.0)]
    assert len(rounded(Intervals.of(zip(start, start + 0.59)), 1.0)) == 0


@pytest.mark.parametrize("count", range(3, 60))
def test_sizes_are_the_rounded_shares_and_the_remainder_goes_to_the_largest(count):
    train, valid, test = sizes(count, (0.7, 0.1, 0.2))
    assert train + valid + test == count and min(train, valid, test) >= 1
    if count >= 10:
        assert (valid, test) == (round(count * 0.1), round(count * 0.2))
