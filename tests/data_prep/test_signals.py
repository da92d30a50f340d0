"""Rates of change, resampling and outliers against known curves and slow references; nothing crosses a gap."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.errors import SessionError
from data_prep.measure import factor, per_second, swaps
from data_prep.recipe import OutlierRecipe
from data_prep.signals import (
    at_rest,
    covered,
    differentiate,
    grown,
    marked,
    outliers,
    resample,
    sample_interval,
    stretches,
)


def broken_clock(lengths: list[int], hz: float = 100.0, pause: float = 0.5) -> np.ndarray:
    """Stretches of samples at `hz`, `pause` seconds apart."""
    starts = np.cumsum([0.0, *(n / hz + pause for n in lengths[:-1])])
    return np.concatenate([start + np.arange(n) / hz for start, n in zip(starts, lengths)])


def test_velocity_of_a_sinusoid_is_its_cosine():
    time = np.arange(0, 10, 0.01)
    value = np.stack([np.sin(2 * np.pi * time), 3 * np.cos(np.pi * time)], axis=1)
    truth = np.stack([2 * np.pi * np.cos(2 * np.pi * time), -3 * np.pi * np.sin(np.pi * time)], axis=1)
    assert np.abs(differentiate(time, value, 1.5) - truth)[1:-1].max() < 0.01


@given(st.lists(st.integers(2, 9), min_size=2, max_size=5), st.integers(0, 4), st.floats(-1e3, 1e3))
def test_a_derivative_never_crosses_a_gap(lengths, which, jump):
    """Moving one stretch up and down leaves every velocity as it was, so none looks across its ends."""
    time = broken_clock(lengths)
    value = np.sin(time)[:, None]
    moved = value.copy()
    first, last = stretches(time, 1.5)[which % len(lengths)]
    moved[first:last] += jump
    assert len(stretches(time, 1.5)) == len(lengths)
    assert np.allclose(differentiate(time, value, 1.5), differentiate(time, moved, 1.5), atol=1e-6 * (1 + abs(jump)))


def test_a_lone_sample_has_no_velocity():
    time = broken_clock([5, 1, 5])
    assert np.isnan(differentiate(time, time[:, None], 1.5)[5, 0])
    assert np.allclose(np.delete(differentiate(time, time[:, None], 1.5), 5), 1.0)


def test_covered_time_is_that_of_the_samples():
    time = broken_clock([100, 50])
    assert np.isclose(covered(time, 1.5).seconds, 1.5)
    assert covered(time, 1.5).contains(time).all() and len(covered(time, 1.5)) == 2


def test_resampling_down_is_the_mean_of_what_lies_around():
    time = np.arange(1000) / 100
    value = np.random.default_rng(0).normal(size=(1000, 2))
    new_time, new = resample(time, value, 20.0, 1.5)
    assert np.allclose(np.diff(new_time), 0.05)
    for t, row in zip(new_time, new):
        around = (time >= t - 0.025 - 1e-9) & (time < t + 0.025 - 1e-9)
        assert np.allclose(row, value[around].mean(axis=0))


def test_resampling_down_silences_what_it_could_only_alias():
    time = np.arange(1000) / 100
    assert np.abs(resample(time, np.sin(2 * np.pi * 20 * time)[:, None], 20.0, 1.5)[1][1:-1]).max() < 1e-9


def test_resampling_up_follows_the_line_and_stays_in_its_stretch():
    time = broken_clock([10, 10], hz=10, pause=5.0)
    new_time, new = resample(time, 2 * time[:, None], 40.0, 1.5)
    assert np.allclose(new[:, 0], 2 * new_time)
    assert covered(time, 1.5).contains(new_time).all()


def test_missing_values_stay_missing_when_resampled():
    time, value = np.arange(100) / 100, np.ones((100, 1))
    value[50] = np.nan
    for hz in (20.0, 400.0):
        new_time, new = resample(time, value, hz, 1.5)
        bad = new_time[np.isnan(new[:, 0])]
        assert len(bad) and np.abs(bad - 0.5).max() < 0.05


@pytest.mark.parametrize("lost", range(6))
def test_no_more_than_two_lost_samples_are_ever_filled(lost):
    """However long a pause the recipe lets pass: beyond two lost samples nothing is known between their neighbours."""
    time = np.delete(np.arange(40) / 10, range(20, 20 + lost))
    new_time, new = resample(time, np.sin(time)[:, None], 40.0, 30.0)
    inside = (new_time > 1.9 + 1e-6) & (new_time < 2.0 + lost / 10 - 1e-6)
    assert inside.sum() == 4 * (lost + 1) - 1
    assert np.isfinite(new[~inside]).all() and np.isnan(new[inside]).all() == (lost > 2)
    assert np.isfinite(new[inside]).all() == (lost <= 2)
    moved = np.where(time < 1.95, time, time + 100.0)[:, None]
    rate = differentiate(time, moved, 30.0)
    assert np.isfinite(rate).all() and (np.abs(rate - 1).max() < 1e-9) == (lost > 2)


@given(st.lists(st.booleans(), min_size=1, max_size=30), st.integers(0, 6))
def test_growing_a_mask_equals_the_plain_loop(bits, width):
    mask = np.array(bits)
    plain = np.array(
        [
            any(bits[j] for j in range(max(i - width // 2, 0), min(i + width - width // 2 + 1, len(bits))))
            for i in range(len(bits))
        ]
    )
    assert np.array_equal(grown(mask, width), plain)


@given(st.lists(st.booleans(), min_size=2, max_size=30), st.lists(st.integers(1, 9), min_size=1, max_size=3))
def test_marked_intervals_hold_exactly_the_marked_samples(bits, lengths):
    time = broken_clock([*lengths, 30])[: len(bits)]
    mask = np.array(bits)[: len(time)]
    assert np.array_equal(marked(time, mask, 1.5).contains(time), mask)


def test_outliers_by_acceleration_and_by_position():
    time = np.arange(1000) / 100
    value = np.stack([np.sin(time), np.zeros(1000)], axis=1)
    value[500] += 50.0  # a jerk: a rate of change of 2500 on both sides
    jerk = outliers(OutlierRecipe("v", derivative=1, norm_above=1500, dilate=2), time, value, 1.5)
    assert set(np.flatnonzero(jerk)) == {498, 499, 500, 501, 502}
    assert set(np.flatnonzero(outliers(OutlierRecipe("v", any_above=10), time, value, 1.5))) == {500}
    wide = outliers(OutlierRecipe("v", any_above=10, dilate=40, erode=10), time, value, 1.5)
    assert wide.sum() == 31 and wide[485:516].all()


def test_missing_samples_are_no_outliers():
    value = np.full((10, 1), np.nan)
    assert not outliers(OutlierRecipe("v", norm_above=1), np.arange(10.0), value, 1.5).any()


def test_rest_is_long_stillness_only():
    time = np.arange(0, 60, 0.1)
    speed = np.where(((time > 10) & (time < 30)) | ((time > 40) & (time < 45)), 0.1, 5.0)[:, None]
    ((start, stop),) = at_rest(time, speed, 1.5, 1.0, 10.0)
    assert 9.9 < start < 10.2 and 29.9 < stop < 30.1


@pytest.mark.parametrize(
    "stated, wanted, truth",
    [
        ("mm/s", "cm/s", 0.1),
        ("m/s", "cm/s", 100),
        ("meters", "cm", 100),
        ("cm/s^2", "m/s**2", 0.01),
        ("Millimeters per second", "cm/s", 0.1),
        ("degrees", "rad", np.pi / 180),
        ("pixels", "pixels", 1),
        ("flexion", "flexion", 1),
        ("cm s^-1", "mm/s", 10),
        ("cm s-1", "mm/s", 10),
        ("m·s⁻¹", "cm/s", 100),
        ("centimeters/second", "m/s", 0.01),
        ("N", "mN", 1000),
        ("Nm", "N*m", 1),
        ("N-m", "N*mm", 1000),
        ("newton meters", "N*cm", 100),
        ("deg/s", "rad/s", np.pi / 180),
        ("uV", "mV", 1e-3),
        ("µV", "volts", 1e-6),
        ("cm", "cm", 1),
    ],
)
def test_units_of_measure(stated, wanted, truth):
    assert np.isclose(factor("here", stated, wanted), truth)


@pytest.mark.parametrize(
    "stated, wanted", [("pixels", "cm"), ("cm", "cm/s"), ("unknown", "cm/s"), ("deg", "cm"), ("nm", "N*m")]
)
def test_units_of_measure_without_a_rule_are_refused(stated, wanted):
    with pytest.raises(SessionError, match="unit of measure"):
        factor("here", stated, wanted)


@pytest.mark.parametrize("stated", ["cm/s", "mm", "deg", "m/s^2", "furlongs", "N*m", "centimeters"])
def test_swaps_are_the_other_units_of_the_same_quantity(stated):
    for other, times in swaps(stated).items():
        assert np.isclose(factor("here", other, stated), times) and times != 1
    assert set(swaps("cm/s")) == {"m/s", "mm/s", "um/s"} and swaps("furlongs") == {}


def test_unit_of_a_rate_of_change():
    assert (
        per_second("cm") == "cm/s" and per_second("mm/s") == "mm/s^2" and factor("here", per_second("m"), "cm/s") == 100
    )


def test_the_interval_of_a_long_series_is_that_of_most_of_its_samples():
    step = np.tile([0.001, 0.003, 0.003], 30_000)  # intervals that take turns, and pauses
    step[::900] = 5.0
    assert sample_interval(np.cumsum(step)) == pytest.approx(0.003)
    assert sample_interval(np.cumsum(step)) == pytest.approx(float(np.median(step)))
