"""Loaders: the stream of global batches is one sequence, whoever makes it, however it is shared and wherever it stops."""

import gc
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sharding.augment import UnitDropout, UnitDropoutConfig
from sharding.batches import BEGIN, WHOLE, LoaderState, Share
from sharding.cache import CacheConfig
from sharding.errors import ConfigError
from sharding.index import ShardIndex
from sharding.loader import LoaderConfig, eval_loader, train_loader
from sharding.mix import MixConfig
from sharding.plan import EvalPlan, TrainPlan
from sharding.sampling import Sampling
from sharding.statistics import target_statistics
from sharding.tokens import SPIKE, UNIT_START
from sharding.vocabulary import Vocabulary
from tests.sharding.shard_server import ShardServer

DROPOUT = UnitDropoutConfig(5, 8, 20)
SEED = 3
OF_TOKENS = "token_time_S", "token_unit_S", "token_kind_S"
OF_QUERIES = "query_time_Q", "query_session_Q", "target_QK", "weight_Q", "evaluated_Q", "stamp_Q"
CUTS = {
    "count": dict(batch_windows=8),
    "rest": dict(batch_windows=9, drop_rest=False),
    "tokens": dict(batch_tokens=2500),
    "across": dict(batch_windows=90),
    "mix": dict(batch_windows=7, drop_rest=False, mix=MixConfig(temperature=3.0), block_shards=1),
    "mixed tokens": dict(batch_tokens=3000, mix=MixConfig(weights={"made/m_1": 2.0}), block_shards=2),
}


def sampling_of(index):
    units = Vocabulary(tuple(u for name in index.session_ids for u in index.unit_ids(name)))
    return Sampling(
        "cursor_vel", 1.0, units, Vocabulary(index.session_ids), target_statistics(index, "cursor_vel", False, "recipe")
    )


def loader_of(index, total=12, seed=SEED, start=BEGIN, share=WHOLE, **config):
    config = LoaderConfig(**{"batch_windows": 8, "unit_dropout": DROPOUT} | config)
    return train_loader(index, sampling_of(index), config, seed=seed, total_batches=total, start=start, share=share)


def batches(index, **config):
    return list(loader_of(index, **config))


def same(a, b) -> bool:
    numbers = [(x.window_s, x.number, x.stop, x.windows, x.idle) for x in (a, b)]
    return numbers[0] == numbers[1] and all(
        torch.equal(tensor, b.tensors()[name]) for name, tensor in a.tensors().items()
    )


def windows_of(batch) -> list[dict]:
    """Each window's part of a batch."""
    out = [{"place_B": p, "session_B": s} for p, s in zip(batch.place_B.tolist(), batch.session_B.tolist())]
    for names, length in ((OF_TOKENS, batch.token_length_B), (OF_QUERIES, batch.query_length_B)):
        for name in names:
            for window, part in zip(out, getattr(batch, name).split(length.tolist())):
                window[name] = part
    return out


def assert_union(shares, whole) -> None:
    """The shares, ordered by place, are the global batch, bit for bit; idle ones are its first window, weightless."""
    assert {(s.number, s.stop, s.windows) for s in shares} == {(whole.number, whole.stop, len(whole))}
    assert all(same(s, whole.idled()) for s in shares if s.idle)
    shares = [s for s in shares if not s.idle] + [s.selected([]) for s in shares if s.idle]
    counts = [len(s) for s in shares]
    assert max(counts) - min(counts) <= 1
    union = sorted((w for share in shares for w in windows_of(share)), key=lambda w: w["place_B"])
    expected = windows_of(whole)
    assert [w["place_B"] for w in union] == [w["place_B"] for w in expected]
    for ours, theirs in zip(union, expected):
        assert all(torch.equal(torch.as_tensor(ours[name]), torch.as_tensor(theirs[name])) for name in theirs)


@pytest.fixture(scope="module")
def index(sessions, root_writer, tmp_path_factory):
    """As everywhere, but in several shards, so that there are blocks of them."""
    return root_writer(tmp_path_factory.mktemp("blocks"), sessions, segment_us=7_000_000, shard_bytes=60_000)


@pytest.fixture(scope="module")
def whole(index):
    """The one-rank run of each way to cut, 24 batches."""
    return lru_cache(None)(lambda cut: batches(index, total=24, prefetch=0, **CUTS[cut]))


runs = st.lists(st.tuples(st.integers(1, 4), st.integers(0, 7), st.integers(0, 3)), min_size=1, max_size=4)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.sampled_from(sorted(CUTS)), runs=runs)
def test_ranks_stop_anywhere_and_others_go_on_with_the_very_same_batches(index, whole, cut, runs):
    """Each run: ranks, batches until it stops, prefetch."""
    told, at = {"batch": 0, "place": 0}, 0
    for ranks, taken, prefetch in runs:
        loaders = [
            loader_of(
                index,
                total=24,
                prefetch=prefetch,
                share=Share(rank, ranks),
                start=LoaderState(told["batch"], told["place"]),
                **CUTS[cut],
            )
            for rank in range(ranks)
        ]
        if at:
            for loader in loaders:
                loader.load_state_dict(told)
        streams = [iter(loader) for loader in loaders]
        for _ in range(min(taken, 24 - at)):
            assert_union([next(stream) for stream in streams], whole(cut)[at])
            at += 1
        states = [json.loads(json.dumps(loader.state_dict())) for loader in loaders]
        told = states[0]
        assert all(state == told for state in states)  # whatever each of them has made ahead
        assert told["batch"] == at and all(isinstance(value, int) and 0 <= value < 2**63 for value in told.values())
        for stream in streams:
            stream.close()


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")  # on fewer cores
@pytest.mark.parametrize(
    "cut, workers, ranks, prefetch",
    [
        ("tokens", 2, 1, 1),
        ("rest", 3, 1, 0),
        pytest.param("count", 1, 1, 2, marks=pytest.mark.slow),
        pytest.param("tokens", 1, 2, 2, marks=pytest.mark.slow),
    ],
)
def test_workers_give_the_batches_of_none_from_any_batch_on(index, whole, cut, workers, ranks, prefetch):
    first = loader_of(index, total=24, **CUTS[cut])
    with closing(iter(first)) as stream:
        for _ in range(5):
            next(stream)
    loaders = [
        loader_of(index, total=13, workers=workers, prefetch=prefetch, share=Share(rank, ranks), **CUTS[cut])
        for rank in range(ranks)
    ]
    for loader in loaders:
        loader.load_state_dict(first.state_dict())
    found = list(zip(*loaders, strict=True))
    assert len(found) == 8
    for shares, expected in zip(found, whole(cut)[5:]):
        assert_union(shares, expected)


def test_workers_killed_in_the_middle_of_a_training_change_no_batch(index, whole, monkeypatch, caplog):
    looking = torch.utils.data.dataloader._MultiProcessingDataLoaderIter._try_get_data
    monkeypatch.setattr(looking, "__defaults__", (0.3,))  # s between looks whether workers live; 5 is long for a test
    loader, found = loader_of(index, total=24, workers=2, **CUTS["tokens"]), []
    for batch in loader:
        found.append(batch)
        assert loader.state == LoaderState(len(found), batch.stop)
        if len(found) in (3, 14):
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    assert len(found) == 24 and all(map(same, found, whole("tokens")))
    assert [record.name for record in caplog.records] == ["spikeloom"] * 2


def test_workers_go_on_where_the_training_is_asked_to_stop(index, whole, caplog):
    loader, found = loader_of(index, total=24, workers=2, **CUTS["tokens"]), []
    for batch in loader:
        found.append(batch)
        workers = {process.pid for process in multiprocessing.active_children()}
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT) if len(found) in (3, 14) else ():
            for worker in workers:
                os.kill(worker, number)
    assert len(found) == 24 and all(map(same, found, whole("tokens"))) and not caplog.records


ASKED = """
import os, signal, sys
from sharding.loader_workers import Workers

class Numbers:
    def __call__(self, number):
        return number

if __name__ == "__main__":
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    for n in Workers(Numbers(), 2, 1).batches(iter(range(400))):
        if n in (3, 50, 200):
            for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
                os.killpg(0, number)
    print(n)
"""


@pytest.mark.slow
def test_a_signal_to_every_process_of_a_training_ends_none_of_the_loaders(tmp_path, repository):
    """As SLURM sends it: to workers, to the process that starts them and to the one that watches shared memory."""
    (tmp_path / "asked.py").write_text(ASKED)
    done = subprocess.run(
        [sys.executable, tmp_path / "asked.py"],
        capture_output=True,
        text=True,
        timeout=100,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(repository)},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "399\n", "")


def test_the_state_of_any_batch_can_be_saved_later_from_the_batch_alone(index, whole):
    loader = loader_of(index, total=24, **CUTS["tokens"])
    trained = next(iter(loader))
    told = loader.state_dict(LoaderState(trained.number + 1, trained.stop))
    again = loader_of(index, total=24, **CUTS["tokens"])
    again.load_state_dict(told)
    assert all(same(ours, theirs) for ours, theirs in zip(again, whole("tokens")[1:], strict=True))
    assert told == {**told, "batch": 1, "place": trained.stop}


def test_another_sequence_is_refused_by_its_fingerprint_and_speed_is_not_part_of_it(index):
    told = loader_of(index).state_dict()
    for change in (
        dict(seed=4),
        dict(batch_windows=7),
        dict(batch_tokens=900),
        dict(drop_rest=False),
        dict(unit_dropout=None),
        dict(mix=MixConfig()),
        dict(block_shards=1),
        dict(unit_dropout=UnitDropoutConfig(5, 8, 21)),
    ):
        with pytest.raises(ConfigError, match="the run: was begun with other batches .*; give the settings"):
            loader_of(index, **change).load_state_dict(told)
    with pytest.raises(ConfigError, match="the run"):
        loader_of(index.select(index.session_ids[:2])).load_state_dict(told)
    loader_of(index, workers=2, prefetch=5, share=Share(1, 3)).load_state_dict(told)


def test_batches_of_an_epoch_are_its_plan_in_order_and_the_last_partial_one_is_dropped(index):
    plan, sessions = TrainPlan(index, 1.0, SEED), Vocabulary(index.session_ids)
    per_epoch = plan.windows // 8
    assert plan.windows % 8 and loader_of(index).epoch_windows == plan.windows
    found = batches(index, total=2 * per_epoch, unit_dropout=None)
    for epoch in (0, 1):
        mine = found[epoch * per_epoch : (epoch + 1) * per_epoch]
        table = plan.table(epoch * plan.windows + np.arange(per_epoch * 8))
        expected = sessions.rows([index.session_ids[s] for s in index.segments.session[table.segment]])
        assert torch.cat([b.session_B for b in mine]).tolist() == expected.tolist()
        assert torch.cat([b.place_B for b in mine]).tolist() == table.place.tolist()
        assert mine[-1].stop == (epoch + 1) * plan.windows


def test_the_windows_of_a_batch_are_told_by_their_places(index):
    loader = loader_of(index, unit_dropout=None)
    for batch in list(loader)[:2]:
        table = loader.windows(batch.place_B.numpy())
        first = batch.query_length_B.cumsum(0) - batch.query_length_B  # of each window that has a query
        stamp_us = batch.stamp_Q[first] - (batch.query_time_Q[first].double() * 1e6).round().long()
        assert table.start_us.tolist() == stamp_us.tolist() and batch.query_length_B.all()
        expected = [index.session_ids[row - 1] for row in batch.session_B]  # row 0 is for unknown ones
        assert [index.session_ids[s] for s in index.segments.session[table.segment]] == expected


def test_without_dropping_an_epoch_is_every_window_once(index):
    plan = TrainPlan(index, 1.0, SEED)
    found = batches(index, total=-(-plan.windows // 9), batch_windows=9, drop_rest=False)
    assert torch.cat([b.place_B for b in found]).tolist() == list(range(plan.windows))
    assert len(found[-1]) == plan.windows % 9 and found[-1].stop == plan.windows


def test_unit_dropout_takes_spikes_and_marks_away_and_nothing_else(index):
    full, less = batches(index, unit_dropout=None), batches(index)
    dropout = UnitDropout(DROPOUT)
    units = Vocabulary(tuple(u for n in index.session_ids for u in index.unit_ids(n)))
    for f, p in zip((w for b in full for w in windows_of(b)), (w for b in less for w in windows_of(b)), strict=True):
        assert all(torch.equal(f[name], p[name]) for name in OF_QUERIES)
        kept = dropout.kept(int((f["token_kind_S"] == UNIT_START).sum()), SEED, p["place_B"])
        first = units.rows(index.unit_ids(index.session_ids[f["session_B"] - 1]))
        stays = torch.isin(f["token_unit_S"], torch.from_numpy(first[kept]))
        assert all(torch.equal(f[name][stays], p[name]) for name in OF_TOKENS)
    assert sum((b.token_kind_S == SPIKE).sum() for b in less) < sum((b.token_kind_S == SPIKE).sum() for b in full)


def test_a_corpus_smaller_than_a_batch_spans_epochs_and_none_at_all_is_refused(index):
    one = index.select(index.session_ids[:1])
    windows = TrainPlan(one, 1.0, SEED).windows
    found = batches(one, total=4, batch_windows=windows + 5, unit_dropout=None)
    assert [len(b) for b in found] == [windows + 5] * 4
    start = LoaderState(2, 2 * (windows + 5))
    assert all(map(same, found[2:], batches(one, start=start, total=4, batch_windows=windows + 5, unit_dropout=None)))
    with pytest.raises(ConfigError, match="holds no train interval of 1.0 s in the 1 chosen sessions"):
        batches(one.limited(0.01))


@pytest.mark.parametrize("change", [dict(batch_windows=0), dict(batch_tokens=-1), dict(workers=-1), dict(prefetch=-1)])
def test_numbers_that_cannot_be_meant_are_refused(index, change):
    with pytest.raises(ConfigError, match=f"loader.{next(iter(change))}: is "):
        loader_of(index, **change)


def test_fewer_windows_than_ranks_are_refused_and_rare_small_batches_leave_ranks_idle(index):
    with pytest.raises(ConfigError, match="loader.batch_windows: is 3 for 4 ranks; give at least 4"):
        loader_of(index, batch_windows=3, share=Share(0, 4))
    alone = [batches(index, total=5, batch_tokens=1, share=Share(rank, 3)) for rank in range(3)]
    expected = batches(index, total=5, batch_tokens=1)
    assert [len(b) for b in expected] == [1] * 5
    for shares, batch in zip(zip(*alone, strict=True), expected, strict=True):
        assert [len(s) for s in shares] == [1] * 3 and sorted(s.idle for s in shares) == [False, True, True]
        assert not any(s.weight_Q.any() or s.evaluated_Q.any() for s in shares if s.idle)
        assert_union(shares, batch)


@pytest.mark.parametrize("config", [LoaderConfig(8, unit_dropout=DROPOUT), LoaderConfig(batch_tokens=4000)])
@pytest.mark.parametrize("ranks", [1, 2, 3, 200])
def test_evaluation_gives_every_window_to_just_one_rank_without_dropout(index, config, ranks):
    sampling, plan = sampling_of(index), EvalPlan(index, "valid", 1.0, 0.5)
    found = [list(eval_loader(index, sampling, config, "valid", 0.5, Share(rank, ranks))) for rank in range(ranks)]
    counts = [sum(map(len, mine)) for mine in found]
    assert sum(counts) == plan.windows and max(counts) - min(counts) <= 1 and all(len(b) for m in found for b in m)
    windows = sorted((w for mine in found for b in mine for w in windows_of(b)), key=lambda w: w["place_B"])
    assert [w["place_B"] for w in windows] == list(range(plan.windows))
    units = {name: len(index.unit_ids(name)) for name in index.session_ids}
    for window in windows:
        assert (window["token_kind_S"] == UNIT_START).sum() == units[index.session_ids[window["session_B"] - 1]]
    stamps = {(int(s), int(t)) for w in windows for s, t in zip(w["query_session_Q"], w["stamp_Q"])}
    valid = index.segments.split == 1
    assert len(stamps) == int(index.segments.column("targets")[valid].sum())  # every sample, halos not counted


def test_evaluation_batches_have_the_size_that_was_asked_for_and_can_be_taken_one_by_one(index):
    loader = eval_loader(index, sampling_of(index), LoaderConfig(8), "valid", 0.5)
    found = list(loader)
    assert [len(b) for b in found[:-1]] == [8] * (len(found) - 1) and len(loader) == len(found)
    assert all(map(same, found, loader)) and same(loader[2], found[2])  # again, and one alone
    mine = list(eval_loader(index, sampling_of(index), LoaderConfig(8), "valid", 0.5, Share(1, 3)))
    assert {len(b) for b in mine[:-1]} == {3}


def test_workers_evaluate_again_and_again(index):
    loader = eval_loader(index, sampling_of(index), LoaderConfig(8, workers=2), "test", 0.5)
    here = list(eval_loader(index, sampling_of(index), LoaderConfig(8), "test", 0.5))
    for _ in range(2):
        assert all(map(same, loader, here)) and len(list(loader)) == len(here)


def test_kept_workers_end_with_their_loader(index):
    """Without the garbage collector: in a circle of references torch would wait ten seconds for them."""
    loader = eval_loader(index, sampling_of(index), LoaderConfig(8, workers=2), "test", 0.5)
    before = {process.pid for process in multiprocessing.active_children()}
    assert len(list(loader)) == len(loader)
    assert len({process.pid for process in multiprocessing.active_children()} - before) == 2
    gc.collect()
    gc.disable()
    try:
        del loader
        assert not {process.pid for process in multiprocessing.active_children()} - before
    finally:
        gc.enable()


@pytest.fixture(scope="module")
def url(index):
    server = ShardServer({path.name: path.read_bytes() for path in Path(index.root).iterdir()})
    server.start()
    yield server.url
    server.stop()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_root_on_a_server_gives_the_batches_of_a_folder_from_a_cache_of_two_blocks(
    index, whole, url, tmp_path, workers
):
    two = 2 * max(entry["bytes"] for entry in index.meta["shards"])  # and the tables
    assert sum(entry["bytes"] for entry in index.meta["shards"]) > 2 * two
    cache = CacheConfig(folder=str(tmp_path), limit_gb=two / 1e9 + 1e-4)
    remote = ShardIndex.open(url, cache=cache)
    loader = loader_of(remote, total=24, workers=workers, **CUTS["mix"])
    loader.load_state_dict(loader_of(index, start=LoaderState(3), total=24, **CUTS["mix"]).state_dict())
    found = list(loader)
    assert len(found) == 21 and all(map(same, found, whole("mix")[3:]))
    with pytest.raises(ConfigError, match="block_shards"):  # all shards at a time would be fetched again and again
        loader_of(remote, **CUTS["count"])


def test_making_batches_leaves_the_models_random_stream_alone(index):
    torch.manual_seed(0)
    expected = torch.rand(3)
    for config in (dict(), dict(prefetch=0), dict(workers=1)):
        torch.manual_seed(0)
        batches(index, total=2, **config)
        assert torch.equal(torch.rand(3), expected)


def test_a_batch_survives_pickling_and_moving(index):
    batch = batches(index, total=1)[0]
    assert same(pickle.loads(pickle.dumps(batch)), batch)
    assert same(batch.to("cpu"), batch)
    empty = replace(batch, target_QK=batch.target_QK[:0], evaluated_Q=batch.evaluated_Q[:3])
    assert same(pickle.loads(pickle.dumps(empty)), empty)
