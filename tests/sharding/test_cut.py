"""Cutting: every window of a split belongs to one segment that carries all of it; nothing else is carried."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.session import Intervals, Signal, Spikes
from data_prep.store import opened_session, save_session
from sharding.cut import PhaseCodes, cut
from sharding.errors import ShardError
from sharding.segment import arrays, encoded, encoded_sizes, to_sample

SPLITS = ("train", "valid", "test")


def segments_of(session, segment_us=7_000_000, halo_us=1_000_000, codes=None):
    return list(cut(session, segment_us=segment_us, halo_us=halo_us, splits=SPLITS, codes=codes or PhaseCodes()))


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 400), min_size=1, max_size=6),
    gaps=st.lists(st.integers(0, 30), min_size=6, max_size=6),
    segment=st.integers(1, 150),
    halo=st.integers(1, 60),
)
def test_every_start_has_one_owner_that_carries_its_window_and_no_owner_leaves_its_interval(
    session_maker, lengths, gaps, segment, halo
):
    edges, at = [], 100
    for length, gap in zip(lengths, gaps):  # intervals of the three splits in turn, in tenths of a second
        edges.append((at, at + length))
        at += length + gap
    splits = {name: [(a / 10, b / 10) for a, b in edges[i::3]] for i, name in enumerate(SPLITS)}
    session = replace(
        session_maker(seconds=1.0),
        domain=Intervals.of([(0, 1000)]),
        splits={name: Intervals.of(pairs) for name, pairs in splits.items()},
    )
    segments = segments_of(session, segment * 100_000, halo * 100_000)
    for name in SPLITS:
        mine = [s for s in segments if s.split == name]
        for start, stop in session.splits[name].merged():
            start, stop = round(start * 1e6), round(stop * 1e6)
            for first in range(start, stop, 100_000):
                owners = [s for s in mine if s.start_us <= first < s.stop_us]
                assert len(owners) == 1
                assert owners[0].carry_us == min(owners[0].stop_us + halo * 100_000, stop)
                assert owners[0].interval_us == (start, stop)
        assert sum(s.stop_us - s.start_us for s in mine) == round(session.splits[name].merged().seconds * 1e6)
        assert all(s.stop_us - s.start_us <= segment * 100_000 for s in mine)


def test_spikes_and_samples_are_those_of_the_session_with_invalid_ones_left_out(session_maker):
    session = session_maker(3)
    signal = session.signals["cursor_vel"]
    value = signal.value.copy()
    value[100] = np.nan, 1.0
    session = replace(session, signals={"cursor_vel": replace(signal, value=value)})
    for segment in segments_of(session):
        low, high = segment.start_us / 1e6, segment.carry_us / 1e6
        stored = segment.spikes.time.astype(np.int64) + segment.start_us
        inside = (np.rint(session.spikes.time * 1e6) >= segment.start_us) & (
            np.rint(session.spikes.time * 1e6) < segment.carry_us
        )
        assert np.abs(stored / 1e6 - session.spikes.time[inside]).max() <= 0.5e-6 + 1e-9
        np.testing.assert_array_equal(segment.spikes.unit, session.spikes.unit[inside])
        part = segment.signals["cursor_vel"]
        usable = signal.valid & np.isfinite(value).all(axis=1) & (signal.time >= low) & (signal.time < high)
        np.testing.assert_array_equal(part.value, value[usable])
        np.testing.assert_allclose(part.time / 1e6 + low, signal.time[usable], atol=0.6e-6)


def test_the_later_phase_counts_where_two_overlap(session_maker):
    session, codes = session_maker(4), PhaseCodes()
    for segment in segments_of(session, codes=codes):
        part = segment.signals["cursor_vel"]
        for time, code in zip((part.time.astype(np.int64) + segment.start_us) / 1e6, part.phase):
            covering = [name for name, intervals in session.phases.items() if intervals.contains(np.array([time]))[0]]
            assert codes.names[code] == (covering[-1] if covering else "random")
    assert codes.names == ["random", "hold", "reach", "outlier"]


def test_times_before_zero_and_on_a_large_clock_keep_their_microseconds(session_maker):
    for start in (-7.5, 1.7e9):
        session = session_maker(5, start=start, seconds=12.0)
        stamps = np.concatenate(
            [
                s.start_us + s.signals["cursor_vel"].time[: s.owned_samples("cursor_vel")].astype(np.int64)
                for s in segments_of(session)
            ]
        )
        signal = session.signals["cursor_vel"]
        covered = sum(signal.valid & part.contains(signal.time) for part in session.splits.values()) > 0
        np.testing.assert_array_equal(np.sort(stamps), np.rint(signal.time[covered] * 1e6))


def test_more_units_than_16_bits_count_get_wider_numbers(session_maker):
    session = session_maker(6, units=70_000, rate=0.01, seconds=8.0)
    segments = segments_of(session)
    assert {s.spikes.unit.dtype for s in segments} == {np.dtype("uint32")}
    assert max(s.spikes.unit.max() for s in segments) > 2**16


def test_spikes_on_disk_are_cut_as_those_in_memory_however_few_are_read_at_a_time(session_maker, tmp_path, monkeypatch):
    whole = session_maker(8, rate=40.0)
    expected = [arrays(segment) for segment in segments_of(whole)]
    path = save_session(whole, tmp_path)
    for part in (97, 1 << 20):
        monkeypatch.setattr("sharding.cut._PART", part)
        with opened_session(path) as session:
            assert not isinstance(session.spikes.time, np.ndarray)
            found = [arrays(segment) for segment in segments_of(session)]
        assert len(found) == len(expected)
        for one, other in zip(found, expected):
            assert list(one) == list(other)
            for name in one:
                assert one[name].dtype == other[name].dtype
                np.testing.assert_array_equal(one[name], other[name])


def test_spikes_that_fall_back_from_one_part_to_the_next_are_refused(session_maker, monkeypatch):
    session = session_maker(8)
    time = session.spikes.time.copy()
    time[100] = time[101] = time[99] - 0.001
    monkeypatch.setattr("sharding.cut._PART", 100)
    with pytest.raises(ShardError, match="spike times are not sorted"):
        segments_of(replace(session, spikes=Spikes(time, session.spikes.unit)))


def test_hollow_segments_tell_the_size_of_what_will_be_written(session_maker):
    session = session_maker(9, signals=("cursor_vel", "hand_pos"), dims=3)
    planned = cut(session, segment_us=9_000_000, halo_us=1_000_000, splits=SPLITS, codes=PhaseCodes())
    for hollow, segment in zip(planned.hollow, planned, strict=True):
        sizes = {name: len(data) for name, data in encoded(to_sample(segment)).items()}
        assert encoded_sizes(to_sample(hollow)) == sizes


BROKEN = {
    "not sorted": lambda s: replace(s, spikes=Spikes(s.spikes.time[::-1], s.spikes.unit)),
    "among 12 units": lambda s: replace(s, spikes=Spikes(s.spikes.time, s.spikes.unit + np.uint32(9))),
    "spike times but": lambda s: replace(s, spikes=Spikes(s.spikes.time, s.spikes.unit[1:])),
    "do not rise": lambda s: replace(s, signals={"x": _signal([0, 0, 1])}),
    "do not fit": lambda s: replace(s, signals={"x": replace(_signal([0, 1, 2]), valid=np.ones(2, bool))}),
    "a signal named": lambda s: replace(s, signals={"Cursor.vel": _signal([0, 1, 2])}),
    "two units have one id": lambda s: replace(s, units=replace(s.units, id=("a",) * 12)),
}


def _signal(time):
    return Signal("x", np.array(time, float), np.zeros((len(time), 1), np.float32), "cm", np.ones(len(time), bool))


@pytest.mark.parametrize("found", BROKEN)
def test_a_session_that_breaks_its_word_is_refused_in_one_line(session_maker, found):
    with pytest.raises(ShardError, match=found) as caught:
        segments_of(BROKEN[found](session_maker(0)))
    assert "\n" not in str(caught.value)
