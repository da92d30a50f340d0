"""Unit dropout: the stated density, the published one, and numbers that belong to a window."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharding.augment import UnitDropout, UnitDropoutConfig
from sharding.errors import ConfigError


def histogram(config, edges, draws=30_000):
    drawn = UnitDropout(config).drawn(0, np.arange(draws))
    assert drawn.min() >= config.min and drawn.max() <= config.max
    return np.histogram(drawn, edges)[0] / draws


def share(density, edges):
    """Probability of each bin under a density known up to its scale."""
    x = np.linspace(edges[0], edges[-1], 200_001)
    whole = np.concatenate(([0], np.cumsum((density(x)[1:] + density(x)[:-1]) / 2)))
    return np.diff(np.interp(edges, x, whole / whole[-1]))


def triangle(x):
    return np.interp(x, (30, 100, 300), (1, 4, 1))


def published(x):
    """Accepting u <= f / (10 v) with u, v uniform happens with probability c (1 - ln c), c = f / 10."""
    c = triangle(x) / 10
    return c * (1 - np.log(c))


@pytest.mark.parametrize("legacy, density", [(False, triangle), (True, published)])
def test_numbers_of_units_follow_the_density(legacy, density):
    edges = np.array([30, 50, 75, 100, 130, 170, 220, 260, 300])
    found = histogram(UnitDropoutConfig(30, 100, 300, legacy), edges)
    expected = share(density, edges)
    np.testing.assert_allclose(found, expected, atol=4 * np.sqrt(expected.max() / 30_000))


def test_the_published_peak_is_2_3_times_the_ends_instead_of_4():
    assert published(100.0) / published(30.0) == pytest.approx(2.32, abs=0.01)


bounds = st.lists(st.integers(1, 300), min_size=3, max_size=3).map(sorted)
seeds, places = st.integers(0, 2**64 - 1), st.integers(0, 2**62)


@settings(max_examples=100, deadline=None)
@given(units=st.integers(0, 400), seed=seeds, place=places, bounds=bounds, legacy=st.booleans())
def test_kept_units_are_some_of_the_units_and_belong_to_the_place(units, seed, place, bounds, legacy):
    config = UnitDropoutConfig(*bounds, legacy)
    kept = UnitDropout(config).kept(units, seed, place)
    np.testing.assert_array_equal(kept, UnitDropout(config).kept(units, seed, place))
    assert (np.diff(kept) > 0).all() and set(kept.tolist()) <= set(range(units))
    assert len(kept) == units if units <= config.min else config.min <= len(kept) <= min(units, config.max)


@settings(max_examples=50, deadline=None)
@given(
    units=st.lists(st.integers(0, 400), min_size=1, max_size=20),
    seed=seeds,
    first=places,
    bounds=bounds,
    legacy=st.booleans(),
)
def test_numbers_kept_are_told_for_many_windows_at_once(units, seed, first, bounds, legacy):
    dropout, place = UnitDropout(UnitDropoutConfig(*bounds, legacy)), first + 7 * np.arange(len(units))
    alone = [len(dropout.kept(u, seed, p)) for u, p in zip(units, place.tolist())]
    assert dropout.counts(np.array(units), seed, place).tolist() == alone


@pytest.mark.parametrize("legacy", [False, True])
def test_a_larger_session_keeps_the_number_asked_for_and_a_smaller_one_all(legacy):
    dropout, place = UnitDropout(UnitDropoutConfig(30, 100, 300, legacy)), np.arange(2000)
    asked = np.floor(dropout.drawn(4, place))
    np.testing.assert_array_equal(dropout.counts(np.full(2000, 1000), 4, place), asked)
    np.testing.assert_array_equal(dropout.counts(np.full(2000, 120), 4, place), np.minimum(asked, 120))
    np.testing.assert_array_equal(dropout.counts(np.full(2000, 30), 4, place), 30)


def test_every_set_of_kept_units_is_equally_likely():
    dropout = UnitDropout(UnitDropoutConfig(3, 3, 3))
    sets = Counter(tuple(dropout.kept(7, 0, place).tolist()) for place in range(3500))
    assert set(sets) == set(combinations(range(7), 3))
    expected = 3500 / 35
    chi_square = sum((often - expected) ** 2 / expected for often in sets.values())
    assert chi_square < 34 + 5 * np.sqrt(2 * 34)  # mean and five standard deviations of 34 degrees of freedom


def test_every_unit_is_kept_equally_often_and_windows_differ():
    dropout = UnitDropout(UnitDropoutConfig(10, 20, 40))
    often = np.zeros(50)
    for place in range(1500):
        often[dropout.kept(50, 0, place)] += 1
    assert np.abs(often / often.mean() - 1).max() < 0.17
    one = dropout.kept(50, 0, 1).tolist()
    assert all(dropout.kept(50, 0, place).tolist() != one for place in (2, 1 + 2**32, 1 + 2**40))
    assert dropout.kept(50, 1, 1).tolist() != one


def test_equal_bounds_keep_just_that_many_and_bounds_out_of_order_are_refused():
    for legacy in (False, True):
        assert len(UnitDropout(UnitDropoutConfig(20, 20, 20, legacy)).kept(50, 0, 0)) == 20
    with pytest.raises(ConfigError, match="give 0 < min <= mode <= max"):
        UnitDropout(UnitDropoutConfig(100, 30, 300))


def test_the_draws_are_these_wherever_and_whenever_they_are_made():
    dropout = UnitDropout(UnitDropoutConfig(4, 5, 6))
    drawn = [dropout.kept(12, 42, place).tolist() for place in (0, 1, 2**33)]
    assert drawn == [[2, 3, 4, 5, 7], [2, 4, 5, 7, 8], [0, 2, 3, 8, 10]]  # old runs are replayed by this
