"""Tuning as a start: planted lags and directions are recovered, and only fresh units move."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pretrain.checkpoint import load_checkpoint
from pretrain.errors import ConfigError
from pretrain.finetune import FinetuneConfig, finetune
from pretrain.models.poyo import Poyo
from pretrain.train import chosen_sessions, pretrain, sampling_of, vocabularies
from pretrain.tuning import BIN_S, LAGS_S, start_tuned, tuning, tuning_start
from pretrain.wiener import Stretch, stretches
from sharding.statistics import target_statistics
from sharding.vocabulary import Vocabulary
from tests.pretrain.conftest import SIGNAL, tiny_config, tiny_model

BINS = 4000


def recorded(seed: int, weight=None, value=None) -> Stretch:
    """Unit 0 follows x 0.2 s before it moves, unit 1 follows -y at once, unit 2 nothing, unit 3 never fires."""
    random = np.random.default_rng(seed)
    xy = np.stack([np.convolve(random.normal(size=BINS + 40), np.hanning(9), "same")[20:-20] for _ in range(2)], axis=1)
    xy /= xy.std(axis=0)
    ahead = round(0.2 / BIN_S)
    mean = np.stack([2 + np.roll(xy[:, 0], -ahead), 2 - xy[:, 1], np.full(BINS, 2.0), np.zeros(BINS)], axis=1)
    count = random.poisson(mean.clip(0))
    row, unit = np.nonzero(count)
    bin_us = round(BIN_S * 1e6)
    return Stretch(
        start_us=5_000_000,
        stop_us=5_000_000 + BINS * bin_us,
        spike_us=5_000_000 + np.repeat(row, count[row, unit]) * bin_us + bin_us // 2,
        spike_unit=np.repeat(unit, count[row, unit]),
        stamp_us=5_000_000 + np.arange(BINS) * bin_us + bin_us // 2,
        value=(xy if value is None else value).astype(np.float32),
        weight=np.ones(BINS) if weight is None else weight,
        evaluated=np.ones(BINS, bool),
    )


@pytest.mark.parametrize("seed", range(3))
def test_planted_lags_and_directions_are_recovered(seed):
    told = tuning([recorded(seed)], units=4, dims=2).reshape(4, len(LAGS_S), 2)
    at = [np.unravel_index(np.abs(unit).argmax(), unit.shape) for unit in told]
    assert (LAGS_S[at[0][0]], at[0][1]) == (pytest.approx(0.2), 0) and told[0][at[0]] > 0.4
    assert (LAGS_S[at[1][0]], at[1][1]) == (pytest.approx(0.0), 1) and told[1][at[1]] < -0.4
    assert np.abs(told[2]).max() < 0.12 and not told[3].any()


def test_samples_without_weight_and_stretches_too_short_say_nothing():
    whole = recorded(0)
    weight, value = np.ones(BINS), whole.value.copy()
    weight[1000:1200], value[1000:1200] = 0, 1e4  # a jerk of the cursor that the recipe marks
    kept = tuning([recorded(0, weight, value)], 4, 2).reshape(4, len(LAGS_S), 2)
    assert kept[1, 5, 1] == pytest.approx(tuning([whole], 4, 2).reshape(4, len(LAGS_S), 2)[1, 5, 1], abs=0.03)
    short = replace(whole, stop_us=whole.start_us + 100_000)
    assert np.array_equal(tuning([short], 4, 2), np.zeros((4, 2 * len(LAGS_S))))
    assert np.array_equal(tuning([whole, short], 4, 2), tuning([whole], 4, 2))


def opened(root):
    index = chosen_sessions(str(root), ["*"])
    task = tiny_config(root, root).task
    statistics = target_statistics(index, SIGNAL, task.center, task.scale)
    return index, sampling_of(task, 1.0, *vocabularies(index), statistics)


def cosines(x: np.ndarray) -> np.ndarray:
    """Cosine similarity of all pairs of rows."""
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    return x @ x.T


def test_units_tuned_alike_are_told_alike_whatever_the_movements_and_others_apart():
    days = np.stack([tuning([recorded(seed)], 4, 2) for seed in (0, 1)])
    for unit in (0, 1):
        assert np.corrcoef(days[0, unit], days[1, unit])[0, 1] > 0.95
    assert abs(np.corrcoef(days[0, 0], days[0, 1])[0, 1]) < 0.5


def test_the_start_keeps_angles_and_is_the_same_in_every_run(shards):
    index, sampling = opened(shards)
    narrow, wide = (tuning_start(index, sampling, "tiny/a", width) for width in (16, 4096))
    np.testing.assert_array_equal(narrow, tuning_start(index.select(["tiny/a"]), sampling, "tiny/a", 16))
    told = tuning(stretches(index, "tiny/a", sampling, "train"), 12, 2)
    np.testing.assert_allclose(cosines(wide), cosines(told), atol=0.12)  # random directions keep angles


def test_only_fresh_units_move_and_only_where_asked(shards):
    index, sampling = opened(shards)
    models = {}
    for share in (0.0, 0.5, 1.0):
        torch.manual_seed(0)
        models[share] = Poyo(tiny_model(tuned_start=share), sampling.units, sampling.sessions)
        known = Vocabulary(tuple(index.unit_ids("tiny/a")))
        start_tuned(models[share], index, sampling, known)
    weight = {share: model.unit.weight.detach() for share, model in models.items()}
    assert all(torch.equal(weight[share][:13], weight[0.0][:13]) for share in weight)  # row 0 and the known units
    start = torch.from_numpy(tuning_start(index, sampling, "tiny/b", 16))
    torch.testing.assert_close(weight[1.0][13:23], 0.02 * start)
    torch.testing.assert_close(weight[0.5][13:23], 0.5**0.5 * (weight[0.0][13:23] + 0.02 * start))
    others = [name for name, _ in models[0.5].named_parameters() if name != "unit.weight"]
    states = models[0.0].state_dict(), models[0.5].state_dict()
    assert others and all(torch.equal(states[0][name], states[1][name]) for name in others)


def test_a_new_session_starts_tuned_and_leaves_the_old_rows(shards, tmp_path):
    base = pretrain(tiny_config(shards, tmp_path / "base", model=tiny_model(tuned_start=0.5)))
    small = tiny_config(shards, tmp_path / "new", steps=1, sessions=["tiny/c"])
    still = replace(small.optim, lr=1e-12)
    config = FinetuneConfig(
        checkpoint=str(base),
        shards=str(shards),
        run=str(tmp_path / "new"),
        sessions=["tiny/c"],
        mode="unit_id",
        optim=still,
        loader=small.loader,
        trainer=small.trainer,
    )
    old, new = load_checkpoint(base), load_checkpoint(finetune(config))
    weight, count = new.weights["model.unit.weight"], len(old.units)
    assert torch.equal(weight[:count], old.weights["model.unit.weight"])
    index, sampling = opened(shards)
    start = torch.from_numpy(tuning_start(index, sampling, "tiny/c", 16))
    pulled = torch.nn.functional.cosine_similarity(weight[count:], start).mean()
    assert pulled > 0.5  # half of the variance is the tuning's


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_share_that_is_none_is_one_line(share):
    with pytest.raises(ConfigError, match="model.tuned_start"):
        tiny_model(tuned_start=share)
