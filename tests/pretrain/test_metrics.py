"""R2: equal to its definition taken sample by sample, uniform over dimensions, undefined where nothing varies."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pretrain.metrics import mean_of_defined, r2, r2_per_dimension

VALUES = arrays(np.float32, (7, 3), elements=st.floats(-100, 100, width=32))


@given(VALUES, VALUES)
def test_equals_its_definition_sample_by_sample(target, value):
    for k, score in enumerate(r2_per_dimension(target, value)):
        y, z = [float(v) for v in target[:, k]], [float(v) for v in value[:, k]]
        middle = sum(y) / len(y)
        total = sum((a - middle) ** 2 for a in y)
        if len(set(y)) == 1:
            assert np.isnan(score)
        else:
            assert score == pytest.approx(1 - sum((a - b) ** 2 for a, b in zip(y, z)) / total, rel=1e-6, abs=1e-6)


def test_dimensions_count_alike_whatever_their_variance():
    target = np.array([[0, 0], [1, 1000], [2, 0], [3, 1000.0]])
    value = target.copy()
    value[:, 0] = target[:, 0].mean()  # R2 0 in the quiet dimension, 1 in the loud one
    assert r2(target, value) == pytest.approx(0.5)


def test_the_mean_scores_zero_and_the_truth_one():
    target = np.random.default_rng(0).normal(size=(50, 2))
    assert r2(target, target) == 1
    assert r2(target, np.broadcast_to(target.mean(axis=0), target.shape)) == pytest.approx(0)


def test_a_constant_dimension_is_undefined_and_left_out_of_the_mean():
    target = np.stack([np.full(9, 0.1, np.float32), np.arange(9, dtype=np.float32)], axis=1)
    assert np.isnan(r2_per_dimension(target, target)[0])
    assert r2(target, target) == 1
    assert np.isnan(r2(target[:, :1], target[:, :1]))


def test_too_few_samples_have_no_score():
    assert np.isnan(r2(np.zeros((0, 2)), np.zeros((0, 2)))) and np.isnan(r2(np.ones((1, 2)), np.ones((1, 2))))
    assert np.isnan(mean_of_defined([])) and mean_of_defined([1.0, np.nan, 3.0]) == 2
