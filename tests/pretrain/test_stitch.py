"""Stitching: the mean over windows that saw a sample, whatever their order, back in the recording's units."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pretrain.stitch import Stitcher, decode, stitch
from sharding.index import ShardIndex
from sharding.loader import LoaderConfig, eval_loader
from sharding.sampling import Sampling
from sharding.statistics import TargetStatistics, target_statistics
from sharding.vocabulary import Vocabulary


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(-50, 50)), min_size=1), st.randoms())
def test_equals_the_mean_and_ignores_the_order(pairs, random):
    shuffled = random.sample(pairs, len(pairs))
    for order in (pairs, shuffled):
        stamp = np.array([2**53 + s for s, _ in order])  # beyond what a float64 time tells apart
        stamps, value, first = stitch(stamp, np.array([[v, -v] for _, v in order], np.float32))
        expected = {s: np.mean([v for t, v in pairs if t == s]) for s in {s for s, _ in pairs}}
        assert stamps.tolist() == [2**53 + s for s in sorted(expected)]
        np.testing.assert_allclose(value[:, 0], [expected[s] for s in sorted(expected)], rtol=1e-12)
        np.testing.assert_array_equal(value[:, 1], -value[:, 0])
        assert (stamp[first] == stamps).all()


def test_overlapping_windows_give_every_sample_of_the_split_once(shards):
    index = ShardIndex.open(shards).matching(["tiny/[ac]"])
    units = Vocabulary(tuple(unit for session in index.session_ids for unit in index.unit_ids(session)))
    statistics = target_statistics(index, "cursor_vel", center=True, scale="std")
    sampling = Sampling("cursor_vel", 1.0, units, Vocabulary(index.session_ids), statistics)
    batches = list(eval_loader(index, sampling, LoaderConfig(batch_windows=5), "test", 0.25))
    stitcher = Stitcher(sampling.sessions, statistics)
    predictions = decode(lambda batch: batch.target_QK, batches, stitcher, torch.device("cpu"))
    assert [p.session for p in predictions] == ["tiny/a", "tiny/c"]
    for p, hz in zip(predictions, (50, 25)):
        np.testing.assert_array_equal(np.rint(p.time * hz), np.arange(48 * hz, 59 * hz))  # [48, 59) s, each once
        np.testing.assert_array_equal(p.value, p.target)
        assert p.evaluated.all()
    seen = sum(len(batch.stamp_Q) for batch in batches)
    assert seen > 3 * sum(len(p.time) for p in predictions)


def test_order_of_batches_does_not_matter_and_values_are_in_units_of_measure(shards):
    index = ShardIndex.open(shards).matching(["tiny/a"])
    statistics = TargetStatistics({"tiny/a": (np.array([5.0, -5.0]), np.array([2.0, 4.0]))})
    sampling = Sampling("cursor_vel", 1.0, Vocabulary(index.unit_ids("tiny/a")), Vocabulary(("tiny/a",)), statistics)
    batches = list(eval_loader(index, sampling, LoaderConfig(batch_windows=3), "valid", 0.5))
    outputs = [
        torch.randn(len(batch.stamp_Q), 2, generator=torch.Generator().manual_seed(i))
        for i, batch in enumerate(batches)
    ]
    results = []
    for order in (range(len(batches)), reversed(range(len(batches)))):
        stitcher = Stitcher(sampling.sessions, statistics)
        for i in order:
            stitcher.add(batches[i], outputs[i])
        results.append(stitcher.predictions()[0])
    np.testing.assert_array_equal(results[0].value, results[1].value)
    stamp, value = torch.cat([b.stamp_Q for b in batches]).numpy(), torch.cat(outputs).numpy()
    for row in (0, 30, 77):
        mean = value[stamp == round(results[0].time[row] * 1e6)].mean(axis=0)
        assert results[0].value[row] == pytest.approx(mean * [2, 4] + [5, -5], rel=1e-5)
    recorded = torch.cat([b.target_QK for b in batches]).numpy() * [2, 4] + [5, -5]
    assert results[0].target.std() == pytest.approx(recorded.std(), rel=0.1)
