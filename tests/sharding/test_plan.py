"""The plan: every window once, drawn anew each epoch, told by numbers alone and equal to a list made in plain Python."""

import pickle
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharding.counter import PASS, SHUFFLE, key_of, permuted, words
from sharding.errors import ConfigError
from sharding.jitter import interval_offset, session_words
from sharding.mix import MixConfig
from sharding.plan import EvalPlan, TrainPlan, window_length_us
from tests.sharding.simulated import SECOND, many_sessions, simulated_index
from tests.sharding.test_jitter import starts_one_by_one


def epoch_of(plan, epoch):
    return plan.table(epoch * plan.windows + np.arange(plan.windows))


def as_set(index, table):
    """(session id, start) of every window; no two may agree."""
    ids = np.array(index.session_ids, object)[index.segments.session[table.segment]]
    found = set(zip(ids.tolist(), table.start_us.tolist()))
    assert len(found) == len(table)
    return found


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


def listed(index, seed, epoch, quota=None):
    """(segment, start) of the windows of an epoch in order, every window of every pass listed one by one."""
    table, passes = index.segments, {}
    intervals = {}
    names = ("interval", "interval_start_us", "interval_stop_us", "start_us")
    columns = [table.session.tolist(), table.split.tolist(), *(table.column(name).tolist() for name in names)]
    for row, (session, split, number, start, stop, first) in enumerate(zip(*columns)):
        if split == 0:
            intervals.setdefault((session, number), (start, stop, []))[2].append((first, row))

    def windows(session, passed):
        if (session, passed) not in passes:
            found = passes[session, passed] = []
            name = session_words(index.session_ids[session])
            for (owner, number), (start, stop, pieces) in intervals.items():
                if owner == session:
                    offset = int(interval_offset(seed, name, number, passed, SECOND))
                    for at in starts_one_by_one(stop - start, SECOND, offset):
                        row = max(piece for piece in pieces if piece[0] <= start + at)[1]
                        found.append((row, start + at))
        return passes[session, passed]

    slots = []
    for session, name in enumerate(index.session_ids):
        size = len(windows(session, 0))
        share = size if quota is None else int(quota[session])
        for number in range(epoch * share, (epoch + 1) * share):
            passed, nth = divmod(number, size)
            if share != size:
                nth = int(permuted(nth, size, (passed, 0, *session_words(name)), key_of(seed, PASS)))
            slots.append(windows(session, passed)[nth])
    order = permuted(np.arange(len(slots)), len(slots), (*words(epoch), 0, 0), key_of(seed, SHUFFLE))
    return [slots[slot] for slot in order.tolist()]


@st.composite
def interval_rows(draw):
    """Rows for simulated_index: sessions with few and many intervals, also shorter than a window, also without train."""
    rows = []
    for session in range(draw(st.integers(1, 6))):
        for split in (0, 1, 2):
            start = draw(st.integers(0, 10)) * SECOND
            for length in draw(st.lists(st.integers(100_000, 9 * SECOND), max_size=4)):
                rows.append((session, split, start, start + length))
                start += length + draw(st.integers(1, SECOND))
    return rows


def made(index, rows, **settings):
    sessions = max((row[0] for row in rows), default=0) + 1
    of = [(f"d{i % 2}", f"s{i % 3}") for i in range(sessions)]
    return simulated_index(index, [f"d{i % 2}/s{i % 3}_{i}" for i in range(sessions)], rows, of=of, **settings)


@settings(max_examples=60, deadline=None)
@given(rows=interval_rows(), seed=st.integers(0, 2**64 - 1), epoch=st.integers(0, 3), warm=st.booleans())
def test_the_plan_equals_a_list_of_all_windows_made_one_by_one(index, rows, seed, epoch, warm):
    index = made(index, rows, segment_us=2 * SECOND)
    for mix in (None, MixConfig(temperature=3.0, by="dandiset" if warm else "session")):
        plan = TrainPlan(index, 1.0, seed, mix)
        table = epoch_of(plan, epoch)
        expected = listed(index, seed, epoch, plan.quota if mix else None)
        assert list(zip(table.segment.tolist(), table.start_us.tolist())) == expected
        assert plan.windows == len(expected)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**64 - 1), epoch=st.integers(0, 2**40))
def test_every_epoch_has_floor_of_length_over_window_windows_of_each_interval(index, seed, epoch):
    table = epoch_of(TrainPlan(index, 1.0, seed), epoch)
    intervals = index.segments.intervals("train")
    expected = (intervals.stop_us - intervals.start_us) // SECOND
    np.testing.assert_array_equal(np.bincount(in_intervals(index, table, "train"), minlength=len(expected)), expected)
    assert len(table) == expected.sum() and owners(index, table).all()


@settings(max_examples=20, deadline=None)
@given(
    places=st.lists(st.one_of(st.integers(0, 8999), st.integers(4090, 4100)), min_size=1, max_size=60),
    block=st.sampled_from([0, 2]),
    mixed=st.booleans(),
)
def test_any_places_in_any_order_give_the_same_windows(index, places, block, mixed):
    rows = [(s, 0, 0, (30 + s) * SECOND + 500_000) for s in range(8)]
    index = made(index, rows, segment_us=8 * SECOND, per_shard=6)
    plan = TrainPlan(index, 1.0, 7, MixConfig(temperature=2.0) if mixed else None, block)
    whole = plan.table(np.arange(9000))
    for way in (plan, pickle.loads(pickle.dumps(plan))):
        table = way.table(np.array(places))
        assert table.place.tolist() == places
        np.testing.assert_array_equal(table.segment, whole.segment[places])
        np.testing.assert_array_equal(table.start_us, whole.start_us[places])
    assert not len(plan.table(np.zeros(0, np.int64)))


def test_epochs_and_seeds_differ_in_offsets_and_order(index):
    table = epoch_of(TrainPlan(index, 1.0, 7), 3)
    for other in (epoch_of(TrainPlan(index, 1.0, 7), 4), epoch_of(TrainPlan(index, 1.0, 8), 3)):
        assert len(other) == len(table)
        assert not offsets(index, table) & offsets(index, other)
        order = (in_intervals(index, t, "train") for t in (table, other))
        assert (np.not_equal(*order)).mean() > 0.3


def offsets(index, table):
    """(interval, part of a second) of the windows that do not stand at an interval's end."""
    interval, whole = in_intervals(index, table, "train"), index.segments.intervals("train")
    inner = (table.start_us > whole.start_us[interval]) & (table.start_us + SECOND < whole.stop_us[interval])
    return set(zip(interval[inner].tolist(), (table.start_us[inner] % SECOND).tolist()))


def test_offsets_are_uniform_over_the_window_and_sessions_are_mixed(index):
    plan = TrainPlan(index, 1.0, 0)
    place = (np.arange(400)[:, None] * plan.windows + np.arange(6)).ravel()
    offset = np.sort(plan.table(place).start_us % SECOND) / SECOND
    assert np.abs(offset - np.linspace(0, 1, len(offset))).max() < 0.05
    session = index.segments.session[epoch_of(plan, 0).segment]
    assert (np.diff(session) != 0).mean() > 0.4


def test_a_session_has_the_same_windows_whatever_stands_beside_it_and_in_whatever_row(index):
    whole = as_set(index, epoch_of(TrainPlan(index, 1.0, 5), 2))
    for chosen in (index.session_ids[1:], index.session_ids[:1]):
        few = index.select(chosen)
        assert as_set(few, epoch_of(TrainPlan(few, 1.0, 5), 2)) == {w for w in whole if w[0] in chosen}
    rows = [(s, 0, s * SECOND, (s + 6) * SECOND + 333_333) for s in range(4)]
    ahead = simulated_index(index, list("abcd"), rows)
    turned = simulated_index(index, list("dcba"), [(3 - s, *row) for s, *row in reversed(rows)])
    assert as_set(ahead, epoch_of(TrainPlan(ahead, 1.0, 5), 1)) == as_set(
        turned, epoch_of(TrainPlan(turned, 1.0, 5), 1)
    )


def test_a_limit_of_train_minutes_leaves_the_windows_that_lie_before_it(index):
    short = index.limited(10 / 60)
    whole, kept = (as_set(i, epoch_of(TrainPlan(i, 1.0, 5), 0)) for i in (index, short))
    assert 0 < len(kept) < len(whole)
    ends = in_ends(short)
    assert len(kept - whole) <= len(ends)  # only a window that makes up for another stands elsewhere


def in_ends(index):
    return index.segments.intervals("train").first


def test_windows_of_a_mix_are_each_seen_once_before_any_is_seen_twice_and_shares_hold(index):
    index = made(index, [(s, 0, 0, n * SECOND) for s, n in enumerate((5, 40, 13, 90))], segment_us=7 * SECOND)
    plan = TrainPlan(index, 1.0, 11, MixConfig(temperature=4.0, max_passes=4))
    assert plan.quota[0] > 5 and plan.quota[3] < 90 and plan.quota.sum() == plan.windows == 148
    table = plan.table(np.arange(40 * plan.windows))
    session = index.segments.session[table.segment]
    np.testing.assert_array_equal(np.bincount(session), 40 * plan.quota)
    for row, size in enumerate((5, 40, 13, 90)):
        seen = Counter()
        for epoch in range(40):
            mine = session[epoch * 148 : (epoch + 1) * 148] == row
            # Offsets are drawn anew each pass; the window's number within the interval is what comes back.
            seen.update(nth_of(table.start_us[epoch * 148 : (epoch + 1) * 148][mine], size))
            assert sum(seen.values()) == (epoch + 1) * plan.quota[row]
            assert max(seen.values()) - min(seen[nth] for nth in range(size)) <= 1


def nth_of(start_us, size):
    """Numbers of windows in an interval of whole seconds from 0: the last one, which makes up, stands at an end."""
    at_end = (start_us == 0) | (start_us == (size - 1) * SECOND)
    return np.where(at_end, size - 1, start_us // SECOND).tolist()


def test_a_mix_at_temperature_1_changes_nothing(index):
    plain, mixed = TrainPlan(index, 1.0, 5), TrainPlan(index, 1.0, 5, MixConfig())
    for name in ("segment", "start_us"):
        np.testing.assert_array_equal(getattr(epoch_of(plain, 2), name), getattr(epoch_of(mixed, 2), name))


@pytest.mark.parametrize("split", ["train", "valid", "test"])
@pytest.mark.parametrize("step_s", [0.5, 0.3, 1.0])
def test_evaluation_windows_hold_every_sample_and_stay_inside(index, split, step_s):
    plan = EvalPlan(index, split, 1.0, step_s)
    table = plan.table(np.arange(plan.windows))
    interval = in_intervals(index, table, split)
    assert owners(index, table).all()
    whole = index.segments.intervals(split)
    for row in range(len(whole.first)):
        start = table.start_us[interval == row]
        assert start[0] == whole.start_us[row] and start[-1] + SECOND == whole.stop_us[row]
        steps = np.diff(start)
        assert (steps[:-1] == round(step_s * SECOND)).all() and (0 < steps).all() and (steps <= step_s * SECOND).all()
    some = np.array([plan.windows - 1, 0, plan.windows // 2])
    for way in (plan, pickle.loads(pickle.dumps(plan))):
        np.testing.assert_array_equal(way.table(some).start_us, table.start_us[some])
        np.testing.assert_array_equal(way.table(some).segment, table.segment[some])


@settings(max_examples=60, deadline=None)
@given(rows=interval_rows(), step_us=st.integers(10_000, SECOND))
def test_evaluation_windows_equal_those_listed_one_by_one(index, rows, step_us):
    index = made(index, rows, segment_us=3 * SECOND)
    plan = EvalPlan(index, "test", 1.0, step_us / SECOND)
    expected = []
    for session, split, start, stop in rows:
        if split == 2:
            starts = [*range(start, stop - SECOND, step_us), stop - SECOND] if stop - start >= SECOND else [start]
            expected += [(session, at) for at in starts]
    table = plan.table(np.arange(plan.windows))
    assert list(zip(index.segments.session[table.segment].tolist(), table.start_us.tolist())) == expected
    assert owners(index, table).all()


def test_an_interval_shorter_than_a_window_is_evaluated_but_not_trained_on(session_maker, root_writer, tmp_path):
    splits = {"train": [(4.0, 4.7), (6.0, 9.0)], "test": [(10.0, 10.4)]}
    index = root_writer(tmp_path, [session_maker(0, seconds=10.0, splits=splits)])
    assert set((epoch_of(TrainPlan(index, 1.0, 0), 0).start_us >= 6 * SECOND).tolist()) == {True}
    assert EvalPlan(index, "test", 1.0, 0.5).table(np.arange(1)).start_us.tolist() == [10 * SECOND]
    assert EvalPlan(index, "test", 1.0, 0.5).windows == 1 and EvalPlan(index, "valid", 1.0, 0.5).windows == 0


def measured(index, window_s):
    """A plan in use, and the most bytes that lay in memory at a time while it was built and used."""
    tracemalloc.start()
    plan = TrainPlan(index, window_s, 0)
    plan.table(np.arange(2000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return plan, peak


def test_what_a_plan_holds_does_not_grow_with_the_number_of_windows(index):
    index = many_sessions(index, 200)
    TrainPlan(index, 1.0, 0)  # reads the columns of the index
    (long, little), (short, more) = measured(index, 1.0), measured(index, 0.01)
    assert short.windows == 100 * long.windows and more < 1.1 * little
    size = len(pickle.dumps(long))
    assert abs(len(pickle.dumps(short)) - size) < 100 and size < 40 * len(index.segments)
    whole, fine = (EvalPlan(index, "valid", 1.0, step) for step in (1.0, 0.01))
    assert fine.windows > 90 * whole.windows and abs(len(pickle.dumps(fine)) - len(pickle.dumps(whole))) < 100


def test_windows_longer_than_the_halo_and_senseless_steps_seeds_and_blocks_are_refused(index):
    for length in (1.5, 0, -1):
        with pytest.raises(ConfigError, match="these shards serve windows up to 1.0 s"):
            TrainPlan(index, length, 0)
    assert window_length_us(index, 1.0) == SECOND
    for step in (0, 1.01, -1):
        with pytest.raises(ConfigError, match="step_s"):
            EvalPlan(index, "test", 1.0, step)
    with pytest.raises(ConfigError, match="seed: is -1"):
        TrainPlan(index, 1.0, -1)
    with pytest.raises(ConfigError, match="block_shards: is -1"):
        TrainPlan(index, 1.0, 0, block_shards=-1)


def test_sessions_without_train_windows_give_an_empty_plan(index):
    for rows in ([(0, 0, 0, SECOND // 2)], [(0, 1, 0, 5 * SECOND)]):
        for block in (0, 2):
            plan = TrainPlan(made(index, rows), 1.0, 0, block_shards=block)
            assert plan.windows == 0 and plan.blocks(0) == [] and not len(plan.table(np.arange(0)))
