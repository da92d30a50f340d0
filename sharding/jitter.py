"""A contiguous interval and a pass over it -> the starts of its training windows, with or without an index at hand."""

from hashlib import sha256

import numpy as np

from sharding.counter import PLAN, below, key_of, philox, words


def session_words(session_id: str) -> tuple[int, int]:
    """Two words below 2**32 that stand for a session in a counter: the first 64 bits of its id's sha256."""
    digest = sha256(session_id.encode()).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")


def interval_offset(seed: int, session: tuple, interval, passed, window_us: int) -> np.ndarray:
    """Microseconds in [0, window_us), int64: how far into an interval its first window starts in a pass.

    session: the two session_words; interval: its number within the session's train split; passed: how many passes over
    the session went before. Numbers or arrays. It depends on no other session and on no index.
    """
    low, high = session
    drawn = philox((interval, words(passed)[0], low, high), key_of(seed, PLAN))
    return below(drawn[0], drawn[1], window_us)


def interval_starts(length_us: int, window_us: int, offset: int) -> np.ndarray:
    """Starts (n,) int64 of the floor(length / window) windows of an interval, from the interval's start."""
    return nth_start(np.arange(length_us // window_us), length_us, window_us, offset)


def nth_start(nth, length_us, window_us: int, offset) -> np.ndarray:
    """Where the nth of the floor(length / window) windows starts, from the interval's start; numbers or arrays.

    Windows follow each other from the offset; where that leaves one short of floor(length / window), a window at the
    interval's nearer end makes up for it.
    """
    start = offset + nth * window_us
    left = length_us - start  # what the windows before it leave free at the end; the offset is free before them
    last = np.where(left > offset, length_us - window_us, 0)
    return np.where(left < window_us, last, start)
