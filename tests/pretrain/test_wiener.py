"""Wiener filter: the closed form's solutions, planted tuning recovered, the past alone where causal, intervals kept."""

from dataclasses import replace

import numpy as np
import pytest

from pretrain.errors import ConfigError
from pretrain.metrics import r2, r2_per_dimension
from pretrain.wiener import (
    BinnedTrain,
    LaggedDesign,
    Stretch,
    WienerConfig,
    fit_wiener,
    ridge_by_bidiagonalisation,
    stretches,
)
from sharding.index import ShardIndex
from sharding.sampling import Sampling
from sharding.statistics import target_statistics
from sharding.vocabulary import Vocabulary

UNITS = 40


def make_stretch(
    seed: int,
    start_s: float,
    seconds: float,
    hz: float = 50.0,
    lag_s: float = 0.1,
    units: int = UNITS,
    tuning_seed: int = 0,
    gap: bool = False,
) -> Stretch:
    """Poisson spikes whose rates are linear in the velocity `lag_s` later; velocity is a slow random sum of sines."""
    random, tuned = np.random.default_rng(seed), np.random.default_rng(tuning_seed)
    period = 1 / hz
    stamp = start_s + np.arange(0.013, seconds - 0.01, period)  # samples are not on the edges of the interval
    if gap:
        stamp = stamp[(stamp < start_s + 4) | (stamp > start_s + 7.03)]
    phase, rate = random.uniform(0, 6.28, (2, 8)), random.uniform(0.1, 1.0, (2, 8))

    def velocity(t):
        return 10 * np.sin(6.28 * rate[..., None] * t + phase[..., None]).sum(axis=1).T / 2

    fine = start_s + np.arange(0, seconds, 0.002)
    hertz = np.clip(25 + velocity(fine + lag_s) @ tuned.normal(size=(2, units)), 0, None)
    row, unit = np.nonzero(random.poisson(hertz * 0.002))
    spike_us = np.rint(fine[row] * 1e6).astype(np.int64)
    return Stretch(
        round(start_s * 1e6),
        round((start_s + seconds) * 1e6),
        spike_us,
        unit,
        np.rint(stamp * 1e6).astype(np.int64),
        velocity(stamp).astype(np.float32),
        np.ones(len(stamp)),
        np.ones(len(stamp), bool),
    )


def explicit_design(grid: BinnedTrain, design: LaggedDesign) -> np.ndarray:
    lags = design.first_lag + np.arange(design.lags)
    x = np.stack([grid.counts_GU[design.rows - lag] for lag in lags], axis=1)
    return x.reshape(len(design.rows), -1).astype(float)


@pytest.mark.parametrize("first_lag", [0, -3])
@pytest.mark.parametrize("ridge", [1e-2, 1.0, 1e3])
def test_equals_the_closed_form(first_lag, ridge):
    train = [make_stretch(1, 5, 12, units=6), make_stretch(2, 30, 9, units=6, gap=True)]
    train[1] = replace(train[1], weight=np.random.default_rng(0).choice([0.0, 0.5, 5.0], len(train[1].weight)))
    grid = BinnedTrain.of(train, 6, 20_000.0, room=8)
    weight_RLUK, bias_RK = grid.ridge_solutions(first_lag, 6, [ridge], iterations=200)
    design = LaggedDesign(grid, first_lag, 6)
    x, y, w = explicit_design(grid, design), grid.target_GK[design.rows], grid.weight_G[design.rows]
    w = w * len(w) / w.sum()
    # with a column of ones, whose weight is not penalised, by least squares on stacked rows
    ones = np.hstack([x, np.ones((len(x), 1))])
    penalty = np.sqrt(ridge) * np.eye(x.shape[1], x.shape[1] + 1)
    stacked = np.vstack([np.sqrt(w)[:, None] * ones, penalty])
    expected = np.linalg.lstsq(stacked, np.vstack([np.sqrt(w)[:, None] * y, np.zeros((x.shape[1], 2))]), rcond=None)[0]
    np.testing.assert_allclose(weight_RLUK[0].reshape(-1, 2), expected[:-1], atol=2e-4 * np.abs(expected[:-1]).max())
    np.testing.assert_allclose(bias_RK[0], expected[-1], atol=1e-3)


class Plain:
    """A dense matrix as a design."""

    def __init__(self, matrix):
        self.forward, self.transposed = matrix.__matmul__, matrix.T.__matmul__


def test_more_features_than_samples_and_all_strengths_at_once():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(30, 80)), random.normal(size=30)
    strengths = [1e-2, 1.0, 1e2, 1e6]
    found = ridge_by_bidiagonalisation(Plain(x), y, strengths, iterations=100)
    for ridge, solution in zip(strengths, found):
        expected = np.linalg.solve(x.T @ x + ridge * np.eye(80), x.T @ y)
        np.testing.assert_allclose(solution, expected, rtol=1e-6, atol=1e-9)
    assert not ridge_by_bidiagonalisation(Plain(x), np.zeros(30), strengths, 10).any()


def test_forward_and_transposed_are_adjoint():
    grid = BinnedTrain.of([make_stretch(1, 0, 8, gap=True)], UNITS, 20_000.0, room=12)
    design = LaggedDesign(grid, -5, 10)
    random = np.random.default_rng(0)
    v, u = random.normal(size=10 * UNITS), random.normal(size=len(design.rows))
    assert design.forward(v) @ u == pytest.approx(v @ design.transposed(u), rel=1e-4)


@pytest.mark.parametrize("hz", [20.0, 50.0, 100.0, 250.0])
def test_planted_tuning_is_recovered_at_any_rate_of_behaviour(hz):
    train, valid, test = make_stretch(1, 0, 80, hz), make_stretch(2, 200, 15, hz), make_stretch(3, 300, 30, hz)
    scores = {}
    for causal in (True, False):
        fitted = fit_wiener([train], [valid], UNITS, WienerConfig(), causal)
        assert fitted.bin_us == pytest.approx(max(20_000, 1e6 / hz), rel=1e-3)
        scores[causal] = r2(test.value, fitted.predict(test))
    assert min(scores.values()) > 0.9


def test_causal_ignores_the_future_and_centred_does_not():
    train, valid, test = make_stretch(1, 0, 40), make_stretch(2, 100, 20), make_stretch(3, 200, 10)
    now = test.stamp_us[250]
    past = test.spike_us < now
    other = replace(test, spike_us=test.spike_us[past], spike_unit=test.spike_unit[past])
    for causal in (True, False):
        fitted = fit_wiener([train], [valid], UNITS, WienerConfig(history_s=[0.2]), causal)
        same = (fitted.predict(test)[:251] == fitted.predict(other)[:251]).all(axis=1)
        assert same.all() == causal and same[:240].all()


def test_nothing_outside_the_interval_is_seen():
    train, valid, test = make_stretch(1, 0, 40), make_stretch(2, 100, 20), make_stretch(3, 200, 10)
    outside = np.array([test.start_us - 5000, test.stop_us + 5000])
    wider = replace(
        test,
        spike_us=np.concatenate([outside[:1], test.spike_us, outside[1:]]),
        spike_unit=np.concatenate([[0], test.spike_unit, [1]]),
    )
    for causal in (True, False):
        fitted = fit_wiener([train], [valid], UNITS, WienerConfig(history_s=[1.0]), causal)
        np.testing.assert_array_equal(fitted.predict(wider), fitted.predict(test))
        wide = fit_wiener(
            [
                replace(
                    train,
                    spike_us=np.concatenate([[-5000], train.spike_us]),
                    spike_unit=np.concatenate([[0], train.spike_unit]),
                )
            ],
            [valid],
            UNITS,
            WienerConfig(history_s=[1.0]),
            causal,
        )
        np.testing.assert_array_equal(wide.weight_LUK, fitted.weight_LUK)


def test_predictions_are_the_sum_over_bins_that_end_at_the_sample():
    """Against counting spikes bin by bin around each sample."""
    test = make_stretch(3, 200, 6, hz=33.0, units=5)
    fitted = fit_wiener(
        [make_stretch(1, 0, 30, hz=33.0, units=5)],
        [make_stretch(2, 100, 10, hz=33.0, units=5)],
        5,
        WienerConfig(history_s=[0.5]),
        causal=False,
    )
    value = fitted.predict(test)
    for row in (0, 3, 70, 120, len(value) - 1):
        total = fitted.bias_K.copy()
        for lag, weight_UK in enumerate(fitted.weight_LUK, start=fitted.first_lag):
            stop = test.stamp_us[row] - lag * fitted.bin_us
            if stop - fitted.bin_us >= test.start_us - 1 and stop <= test.stop_us + 1:
                inside = (test.spike_us >= stop - fitted.bin_us) & (test.spike_us < stop)
                count = np.minimum(np.bincount(test.spike_unit[inside], minlength=5), fitted.most_U)
                total += (count - fitted.mean_U) / fitted.std_U @ weight_UK
        assert value[row] == pytest.approx(total, abs=0.3)  # bins of 30.3 ms are told on a grid of 1.5 ms


def test_a_unit_silent_in_training_weighs_nothing():
    train = make_stretch(1, 0, 40)
    heard = train.spike_unit != 7
    silent = replace(train, spike_us=train.spike_us[heard], spike_unit=train.spike_unit[heard])
    fitted = fit_wiener([silent], [make_stretch(2, 100, 20)], UNITS, WienerConfig(), causal=True)
    assert not fitted.weight_LUK[:, 7].any() and np.isfinite(fitted.predict(make_stretch(3, 200, 10))).all()


def test_a_unit_that_bursts_beyond_its_training_does_not_carry_the_prediction_away():
    train, valid, test = make_stretch(1, 0, 40), make_stretch(2, 100, 20), make_stretch(3, 200, 20)
    few = (train.spike_unit != 7) | (np.cumsum(train.spike_unit == 7) <= 3)  # unit 7 fires three times in training
    nearly = replace(train, spike_us=train.spike_us[few], spike_unit=train.spike_unit[few])
    burst_us = np.repeat(np.arange(201_000_000, 219_000_000, 20_000), 20)
    spike_us = np.concatenate((test.spike_us, burst_us))
    unit, order = np.concatenate((test.spike_unit, np.full(len(burst_us), 7))), np.argsort(spike_us, kind="stable")
    bursting = replace(test, spike_us=spike_us[order], spike_unit=unit[order])
    fitted = fit_wiener([nearly], [valid], UNITS, WienerConfig(), causal=True)
    assert r2(test.value, fitted.predict(bursting)) > r2(test.value, fitted.predict(test)) - 0.3


def test_ridge_and_history_are_chosen_on_validation():
    """Shuffled targets in training carry nothing: the strongest ridge is right, and R2 stays about zero."""
    train, valid = make_stretch(1, 0, 40), make_stretch(2, 100, 20)
    random = np.random.default_rng(0)
    noise = replace(train, value=random.permutation(train.value))
    fitted = fit_wiener([noise], [valid], UNITS, WienerConfig(), causal=True)
    assert min(fitted.ridge) >= 1e4
    assert abs(r2(valid.value, fitted.predict(valid))) < 0.1


def test_a_dimension_that_does_not_vary_decides_nothing():
    flat = [
        replace(s, value=np.stack([s.value[:, 0], np.zeros(len(s.value), np.float32)], axis=1))
        for s in (make_stretch(1, 0, 40), make_stretch(2, 100, 20))
    ]
    fitted = fit_wiener(flat[:1], flat[1:], UNITS, WienerConfig(), causal=True)
    scores = r2_per_dimension(flat[1].value, fitted.predict(flat[1]))
    assert scores[0] > 0.5 and np.isnan(scores[1])


def test_too_little_to_learn_from_is_one_line():
    stretch = make_stretch(1, 0, 10)
    nothing = replace(stretch, weight=np.zeros(len(stretch.weight)), evaluated=np.zeros(len(stretch.evaluated), bool))
    with pytest.raises(ConfigError, match="train split"):
        fit_wiener([nothing], [stretch], UNITS, WienerConfig(), True)
    with pytest.raises(ConfigError, match="valid split"):
        fit_wiener([stretch], [nothing], UNITS, WienerConfig(), True)


def test_stretches_are_the_whole_intervals_of_the_shards(shards):
    index = ShardIndex.open(shards)
    session = index.select(["tiny/b"])
    sampling = Sampling(
        "cursor_vel",
        1.0,
        Vocabulary(index.unit_ids("tiny/b")),
        Vocabulary(("tiny/b",)),
        target_statistics(session, "cursor_vel", False, "std"),
    )
    (stretch,) = stretches(index, "tiny/b", sampling, "train")  # of four segments
    assert (stretch.start_us, stretch.stop_us) == (0, 35_000_000)
    np.testing.assert_array_equal(stretch.stamp_us, np.arange(0, 35_000_000, 20_000))
    assert (np.diff(stretch.spike_us) >= 0).all() and stretch.weight.all() and stretch.evaluated.all()
