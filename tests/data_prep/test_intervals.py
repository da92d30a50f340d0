"""The algebra of Intervals equals set algebra on a grid of integer cells."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data_prep.session import Intervals

CELLS = 40
pairs = st.lists(st.tuples(st.integers(0, CELLS), st.integers(0, CELLS)), max_size=8)


def cells(intervals: Intervals) -> set[int]:
    return {cell for cell in range(-5, CELLS + 5) for a, b in intervals if a <= cell and cell + 1 <= b}


def is_normal(intervals: Intervals) -> bool:
    """Sorted, disjoint, none empty, none touching the next."""
    return bool((intervals.stop > intervals.start).all() and (intervals.start[1:] > intervals.stop[:-1]).all())


@given(pairs, pairs)
def test_algebra_is_that_of_sets(a, b):
    left, right = Intervals.of(a), Intervals.of(b)
    assert cells(left.merged()) == cells(left) and is_normal(left.merged())
    assert cells(left.intersection(right)) == cells(left) & cells(right)
    assert cells(left.difference(right)) == cells(left) - cells(right)
    assert left.merged().seconds == len(cells(left))


@given(pairs, st.integers(0, 3))
def test_dilation_reaches_the_neighbours(a, by):
    grown = {cell + k for cell in cells(Intervals.of(a)) for k in range(-by, by + 1)}
    assert cells(Intervals.of(a).dilated(by)) == grown


@given(pairs)
def test_contains_is_half_open(a):
    intervals = Intervals.of(a)
    inside = intervals.contains(np.arange(CELLS, dtype=float))
    assert set(np.flatnonzero(inside)) == cells(intervals) & set(range(CELLS))
