"""Unit dropout: the stated density, the published one, and numbers that belong to a window."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharding.augment import UnitDropout, UnitDropoutConfig
from sharding.errors import ConfigError


def histogram(config, edges, draws=30_000):
    dropout, random = UnitDropout(config), np.random.default_rng(0)
    drawn = np.array([dropout.draw(random) for _ in range(draws)])
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


@settings(max_examples=100, deadline=None)
@given(units=st.integers(0, 400), epoch=st.integers(0, 2**40), window=st.integers(0, 2**40))
def test_kept_units_are_some_of_the_units_and_belong_to_the_window(units, epoch, window):
    dropout = UnitDropout(UnitDropoutConfig(30, 100, 300))
    kept = dropout.kept(units, 5, epoch, window)
    np.testing.assert_array_equal(kept, UnitDropout(UnitDropoutConfig(30, 100, 300)).kept(units, 5, epoch, window))
    assert (np.diff(kept) > 0).all() and set(kept.tolist()) <= set(range(units))
    assert len(kept) == units if units <= 30 else 30 <= len(kept) <= units


def test_every_unit_is_kept_equally_often_and_windows_differ():
    dropout = UnitDropout(UnitDropoutConfig(10, 20, 40))
    often = np.zeros(50)
    for window in range(3000):
        often[dropout.kept(50, 0, 0, window)] += 1
    assert np.abs(often / often.mean() - 1).max() < 0.12
    assert dropout.kept(50, 0, 0, 1).tolist() != dropout.kept(50, 0, 1, 1).tolist()
    assert dropout.kept(50, 0, 0, 1).tolist() != dropout.kept(50, 1, 0, 1).tolist()


def test_equal_bounds_keep_just_that_many_and_bounds_out_of_order_are_refused():
    assert len(UnitDropout(UnitDropoutConfig(20, 20, 20)).kept(50, 0, 0, 0)) == 20
    with pytest.raises(ConfigError, match="give 0 < min <= mode <= max"):
        UnitDropout(UnitDropoutConfig(100, 30, 300))
