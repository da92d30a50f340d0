"""Windows of an interval: as many as fit, inside it, from an offset that only session, interval and pass decide."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sharding.jitter import interval_offset, interval_starts, nth_start, session_words

WINDOW, SECOND = 1000, 1_000_000


def starts_one_by_one(length: int, window: int, offset: int) -> list[int]:
    starts = [offset + i * window for i in range(length // window)]
    if starts and starts[-1] + window > length:
        free_before, free_after = offset, length - (offset + (len(starts) - 1) * window)
        starts[-1] = length - window if free_after > free_before else 0
    return starts


@settings(max_examples=300, deadline=None)
@given(length=st.integers(0, 12 * WINDOW), offset=st.integers(0, WINDOW - 1))
def test_floor_of_length_over_window_windows_lie_inside_and_only_one_overlaps(length, offset):
    starts = interval_starts(length, WINDOW, offset)
    assert starts.tolist() == starts_one_by_one(length, WINDOW, offset)
    assert len(starts) == length // WINDOW and ((0 <= starts) & (starts + WINDOW <= length)).all()
    steps = np.diff(np.sort(starts))
    assert (steps > 0).all() and (steps != WINDOW).sum() <= 1


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(WINDOW, 9 * WINDOW), min_size=1, max_size=9), seed=st.integers(0, 2**64 - 1))
def test_windows_of_many_intervals_are_told_at_once(lengths, seed):
    length, session = np.array(lengths), session_words("a/b")
    offset = interval_offset(seed, session, np.arange(len(length)), 3, WINDOW)
    nth = length // WINDOW - 1
    found = nth_start(nth, length, WINDOW, offset)
    for i, whole in enumerate(lengths):
        one = int(interval_offset(seed, session, i, 3, WINDOW))
        assert offset[i] == one and found[i] == starts_one_by_one(whole, WINDOW, one)[-1]


def test_offsets_are_even_over_intervals_and_passes_and_differ_between_sessions_and_seeds():
    names = [session_words(f"made/m_{i}") for i in range(40)]
    assert len(set(names)) == 40
    numbers = [
        interval_offset(seed, name, np.arange(50)[:, None], np.arange(20), WINDOW) for name in names for seed in (0, 1)
    ]
    offsets = np.array(numbers)
    assert offsets.min() == 0 and offsets.max() == WINDOW - 1
    often = np.bincount(offsets.ravel() // 10, minlength=100)
    expected = often.mean()
    assert ((often - expected) ** 2 / expected).sum() < 99 + 5 * np.sqrt(2 * 99)
    for axis in range(3):  # neighbours in session or seed, interval and pass agree no more often than by chance
        assert (np.diff(offsets, axis=axis) == 0).mean() < 2 / WINDOW


def test_the_words_of_a_session_are_the_first_bits_of_its_sha256():
    assert session_words("") == (0x42C4B0E3, 0x141CFC98)  # e3b0c44298fc1c14...


def test_offsets_are_these_wherever_and_whenever_they_are_drawn():
    at = ((0, 0), (1, 0), (0, 1), (0, 2**32 + 1))  # passes begin again after 2**32
    drawn = [int(interval_offset(7, session_words("made/m_0"), number, passed, SECOND)) for number, passed in at]
    assert drawn == [218060, 13692, 236280, 236280]
