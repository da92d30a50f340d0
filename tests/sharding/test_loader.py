"""Loaders: a batch is a function of its number, whoever makes it and whatever came before."""

import pickle
from dataclasses import replace

import pytest
import torch

from sharding.augment import UnitDropout, UnitDropoutConfig
from sharding.errors import ConfigError
from sharding.loader import LoaderConfig, batches_per_epoch, eval_loader, train_loader
from sharding.plan import sequential_windows, train_windows, windows_per_epoch
from sharding.sampling import Sampling
from sharding.statistics import target_statistics
from sharding.tokens import SPIKE, UNIT_START
from sharding.vocabulary import Vocabulary

DROPOUT = UnitDropoutConfig(5, 8, 20)


def sampling_of(index):
    units = Vocabulary(tuple(u for name in index.session_ids for u in index.unit_ids(name)))
    return Sampling(
        "cursor_vel", 1.0, units, Vocabulary(index.session_ids), target_statistics(index, "cursor_vel", False, "recipe")
    )


def same(a, b) -> bool:
    return (a.window_s, a.number, a.stop) == (b.window_s, b.number, b.stop) and all(
        torch.equal(tensor, b.tensors()[name]) for name, tensor in a.tensors().items()
    )


def batches(index, start=0, total=12, seed=3, **config):
    loader = train_loader(
        index,
        sampling_of(index),
        LoaderConfig(**{"batch_windows": 8, "unit_dropout": DROPOUT} | config),
        seed=seed,
        total_batches=total,
        start_batch=start,
    )
    found = list(loader)
    assert len(found) == len(loader) == total - start
    return found


def test_two_workers_give_the_batches_of_none(index):
    here, there = batches(index), batches(index, workers=2)
    assert all(map(same, here, there))
    ours, theirs = (
        list(eval_loader(index, sampling_of(index), LoaderConfig(8, workers), "test", 0.5)) for workers in (0, 2)
    )
    assert len(ours) == len(theirs) and all(map(same, ours, theirs))


@pytest.mark.parametrize("start", [1, 5, 9])
def test_resuming_continues_the_very_same_batches(index, start):
    assert all(map(same, batches(index)[start:], batches(index, start=start)))


def test_batches_of_an_epoch_are_its_plan_in_order_and_the_last_partial_one_is_dropped(index):
    per_epoch = windows_per_epoch(index, 1.0) // 8
    assert batches_per_epoch(index, 1.0, LoaderConfig(8)) == per_epoch and windows_per_epoch(index, 1.0) % 8
    found = batches(index, total=2 * per_epoch, unit_dropout=None)
    sessions = Vocabulary(index.session_ids)
    for epoch in (0, 1):
        plan = train_windows(index, 3, epoch, 1.0)
        rows = torch.cat([b.session_B for b in found[epoch * per_epoch : (epoch + 1) * per_epoch]])
        expected = sessions.rows([index.session_ids[s] for s in index.segments.session[plan.segment]])
        assert rows.tolist() == expected.tolist()[: per_epoch * 8]


def test_unit_dropout_takes_spikes_and_marks_away_and_nothing_else(index):
    whole, less = batches(index, unit_dropout=None), batches(index)
    dropout, position = UnitDropout(DROPOUT), 0
    for full, part in zip(whole, less):
        assert torch.equal(full.target_QK, part.target_QK) and torch.equal(full.stamp_Q, part.stamp_Q)
        for f, p, session in zip(
            *(
                zip(*(t.split(b.token_length_B.tolist()) for t in (b.token_unit_S, b.token_time_S, b.token_kind_S)))
                for b in (full, part)
            ),
            full.session_B.tolist(),
        ):
            units = int((f[2] == UNIT_START).sum())
            per_epoch = windows_per_epoch(index, 1.0) // 8 * 8
            kept = dropout.kept(units, 3, position // per_epoch, position % per_epoch)
            first = Vocabulary(tuple(u for n in index.session_ids for u in index.unit_ids(n))).rows(
                index.unit_ids(index.session_ids[session - 1])
            )
            stays = torch.isin(f[0], torch.from_numpy(first[kept]))
            assert all(torch.equal(before[stays], after) for before, after in zip(f, p))
            position += 1
    assert sum((b.token_kind_S == SPIKE).sum() for b in less) < sum((b.token_kind_S == SPIKE).sum() for b in whole)


def test_a_corpus_smaller_than_a_batch_spans_epochs_and_none_at_all_is_refused(index):
    one = index.select(index.session_ids[:1])
    windows = windows_per_epoch(one, 1.0)
    found = batches(one, total=4, batch_windows=windows + 5, unit_dropout=None)
    assert [len(b) for b in found] == [windows + 5] * 4
    assert all(map(same, found[2:], batches(one, start=2, total=4, batch_windows=windows + 5, unit_dropout=None)))
    with pytest.raises(ConfigError, match="holds no train interval of 1.0 s in the 1 chosen sessions"):
        batches(one.limited(0.01))
    with pytest.raises(ConfigError, match="batch_windows"):
        batches(one, batch_windows=0)


def test_evaluation_covers_every_sample_in_order_without_dropout(index):
    config = LoaderConfig(8, unit_dropout=DROPOUT)
    found = list(eval_loader(index, sampling_of(index), config, "valid", 0.5))
    table = sequential_windows(index, "valid", 1.0, 0.5)
    assert sum(map(len, found)) == len(table) and [len(b) for b in found[:-1]] == [8] * (len(found) - 1)
    stamps = {(int(s), int(t)) for b in found for s, t in zip(b.query_session_Q, b.stamp_Q)}
    row = Vocabulary(index.session_ids)
    _, size = index.segments.member("cursor_vel.phase.npy")
    assert len(stamps) == sum(int(n) for n in size[index.segments.split == 1]) - halo_samples(index)
    units = {name: len(index.unit_ids(name)) for name in index.session_ids}
    for batch in found:
        for session, kinds in zip(batch.session_B.tolist(), batch.token_kind_S.split(batch.token_length_B.tolist())):
            assert (kinds == UNIT_START).sum() == units[row.ids[session - 1]]


def halo_samples(index) -> int:
    """Samples of the valid split that are stored twice."""
    segments = index.segments
    valid = segments.split == 1
    stored = int(segments.member("cursor_vel.phase.npy")[1][valid].sum())
    return stored - int(segments.column("targets")[valid].sum())


def test_making_batches_leaves_the_models_random_stream_alone(index):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    batches(index, total=2)
    assert torch.equal(torch.rand(3), expected)


def test_a_batch_survives_pickling_and_moving(index):
    batch = batches(index, total=1)[0]
    assert same(pickle.loads(pickle.dumps(batch)), batch)
    assert same(batch.to("cpu"), batch)
    empty = replace(batch, target_QK=batch.target_QK[:0], evaluated_Q=batch.evaluated_Q[:3])
    assert same(pickle.loads(pickle.dumps(empty)), empty)
