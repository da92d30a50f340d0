"""The plan: as many windows as fit, inside their intervals, drawn anew each epoch, told by numbers alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharding.errors import ConfigError
from sharding.plan import sequential_windows, train_windows, windows_per_epoch

SECOND = 1_000_000


def owners(index, table):
    """Whether each window lies in the starts and in the carried data of its segment."""
    segments = index.segments
    stop = np.minimum(table.start_us + SECOND, segments.column("interval_stop_us")[table.segment])
    return (
        (segments.start_us[table.segment] <= table.start_us)
        & (table.start_us < segments.stop_us[table.segment])
        & (stop <= segments.carry_us[table.segment])
    )


def in_intervals(index, table, split):
    """Rows of the split's intervals that the windows lie in."""
    intervals = index.segments.intervals(split)
    session = index.segments.session
    fits = (
        (table.start_us[:, None] >= intervals.start_us)
        & (table.start_us[:, None] + SECOND <= intervals.stop_us)
        & (session[table.segment][:, None] == session[intervals.first])
    )
    assert (fits.sum(axis=1) == 1).all()
    return fits.argmax(axis=1)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**63), epoch=st.integers(0, 2**40))
def test_every_epoch_has_floor_of_length_over_window_windows_of_each_interval(index, seed, epoch):
    table = train_windows(index, seed, epoch, 1.0)
    intervals = index.segments.intervals("train")
    expected = (intervals.stop_us - intervals.start_us) // SECOND
    np.testing.assert_array_equal(np.bincount(in_intervals(index, table, "train"), minlength=len(expected)), expected)
    assert len(table) == windows_per_epoch(index, 1.0) == expected.sum()
    assert owners(index, table).all()


@settings(max_examples=20, deadline=None)
@given(length=st.floats(1.0, 9.0), seed=st.integers(0, 1000))
def test_windows_of_an_interval_overlap_only_where_one_makes_up_at_an_end(root_maker, length, seed):
    index = root_maker(length)
    table = train_windows(index, seed, 0, 1.0)
    interval = index.segments.intervals("train")
    start = np.sort(table.start_us)
    steps = np.diff(start)
    assert (steps > 0).all() and (steps != SECOND).sum() <= 1
    assert start[0] >= interval.start_us[0] and start[-1] + SECOND <= interval.stop_us[0]


@pytest.fixture(scope="module")
def root_maker(session_maker, root_writer, tmp_path_factory):
    return lambda length: root_writer(
        tmp_path_factory.mktemp("one"),
        [session_maker(0, seconds=10.0, splits={"train": [(3.25, 3.25 + length)]})],
        segment_us=4 * SECOND,
    )


def test_the_plan_is_a_function_of_seed_and_epoch_and_offsets_differ(index):
    a, b = train_windows(index, 7, 3, 1.0), train_windows(index, 7, 3, 1.0)
    np.testing.assert_array_equal(a.start_us, b.start_us)
    np.testing.assert_array_equal(a.segment, b.segment)
    for other in (train_windows(index, 7, 4, 1.0), train_windows(index, 8, 3, 1.0)):
        assert len(other) == len(a)
        assert not offsets(index, a) & offsets(index, other)


def offsets(index, table):
    """(interval, part of a second) of the windows that do not stand at an interval's end."""
    interval, whole = in_intervals(index, table, "train"), index.segments.intervals("train")
    inner = (table.start_us > whole.start_us[interval]) & (table.start_us + SECOND < whole.stop_us[interval])
    return set(zip(interval[inner].tolist(), (table.start_us[inner] % SECOND).tolist()))


def test_offsets_are_uniform_over_the_window_and_sessions_are_mixed(index):
    starts = np.concatenate([train_windows(index, 0, epoch, 1.0).start_us[:6] for epoch in range(400)])
    offset = np.sort(starts % SECOND) / SECOND
    assert np.abs(offset - np.linspace(0, 1, len(offset))).max() < 0.05
    session = index.segments.session[train_windows(index, 0, 0, 1.0).segment]
    assert (np.diff(session) != 0).mean() > 0.4


@pytest.mark.parametrize("split", ["train", "valid", "test"])
@pytest.mark.parametrize("step_s", [0.5, 0.3, 1.0])
def test_sequential_windows_hold_every_sample_and_stay_inside(index, split, step_s):
    table = sequential_windows(index, split, 1.0, step_s)
    interval = in_intervals(index, table, split)
    assert owners(index, table).all()
    whole = index.segments.intervals(split)
    for row in range(len(whole.first)):
        start = table.start_us[interval == row]
        assert start[0] == whole.start_us[row] and start[-1] + SECOND == whole.stop_us[row]
        steps = np.diff(start)
        assert (steps[:-1] == round(step_s * SECOND)).all() and (0 < steps).all() and (steps <= step_s * SECOND).all()


def test_an_interval_shorter_than_a_window_is_evaluated_but_not_trained_on(session_maker, root_writer, tmp_path):
    splits = {"train": [(4.0, 4.7), (6.0, 9.0)], "test": [(10.0, 10.4)]}
    index = root_writer(tmp_path, [session_maker(0, seconds=10.0, splits=splits)])
    assert set((train_windows(index, 0, 0, 1.0).start_us >= 6 * SECOND).tolist()) == {True}
    table = sequential_windows(index, "test", 1.0, 0.5)
    assert table.start_us.tolist() == [10 * SECOND] and not len(sequential_windows(index, "valid", 1.0, 0.5))


def test_windows_longer_than_the_halo_and_senseless_steps_are_refused(index):
    with pytest.raises(ConfigError, match="these shards serve windows up to 1.0 s"):
        train_windows(index, 0, 0, 1.5)
    for step in (0, 1.01, -1):
        with pytest.raises(ConfigError, match="step_s"):
            sequential_windows(index, "test", 1.0, step)
