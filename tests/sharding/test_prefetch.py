"""Batches ahead, by a thread or by processes: none lost, none twice, nothing left behind, and no hang when one dies."""

import gc
import logging
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing

import numpy as np
import pytest
import torch

from sharding.batches import ByCount, LoaderState, Span
from sharding.errors import ConfigError, ShardError
from sharding.loader_workers import Handed, Workers
from sharding.prefetch import Announced, ahead, in_turn

SPANS = tuple(ByCount(100, 5).spans(LoaderState(), 12))


def threads():
    return [t for t in threading.enumerate() if t.name == "batches ahead"]


def told(span):
    """Stands for making a batch."""
    return torch.tensor([span.number, span.first])


def numbers(batches):
    return [int(batch[0]) for batch in batches]


class Failing:
    def __init__(self, error, at):
        self.error, self.at = error, at

    def __call__(self, span):
        if span.number == self.at:
            raise self.error
        return told(span)


@pytest.mark.parametrize("depth", [1, 2, 30])
def test_a_thread_hands_over_everything_in_order_and_ends(depth):
    assert numbers(ahead(told, SPANS, depth)) == numbers(in_turn(told, SPANS)) == list(range(12))
    assert not threads()


@pytest.mark.parametrize("depth", [1, 3])
def test_a_thread_is_just_so_many_batches_ahead(depth):
    made = []

    def make(span):
        made.append(span.number)
        return told(span)

    with closing(ahead(make, SPANS, depth)) as batches:
        assert not made  # nothing before the first is asked for
        next(batches)
        until(lambda: len(made) == 1 + depth)
        time.sleep(0.05)
        assert len(made) == 1 + depth
    assert not threads()


def until(true, seconds=30):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_an_error_of_the_thread_arrives_after_the_batches_before_it():
    taken = []
    with pytest.raises(ShardError, match="a.tar: is missing; fetch it"):
        for batch in ahead(Failing(ShardError("a.tar", "is missing", "fetch it"), 4), SPANS, 2):
            taken.append(int(batch[0]))
    assert taken == [0, 1, 2, 3] and not threads()


def test_no_thread_is_left_by_a_consumer_that_stops_fails_or_forgets():
    for _ in ahead(told, SPANS, 2):
        break
    gc.collect()
    assert not threads()

    with pytest.raises(ZeroDivisionError):
        for _ in ahead(told, SPANS, 2):
            raise ZeroDivisionError
    gc.collect()
    assert not threads()

    batches = ahead(told, SPANS, 2)
    next(batches)
    cycle = [batches]
    cycle.append(cycle)
    assert len(threads()) == 1
    del batches, cycle
    gc.collect()
    assert not threads()


LEAVING = """
import sys, time, torch
from sharding.batches import ByCount, LoaderState
from sharding.prefetch import ahead
def make(span):
    time.sleep(0.01)
    return torch.ones(1000)
batches = ahead(make, ByCount(100, 5).spans(LoaderState(), 10**6), 3)
next(batches)
{}
"""


@pytest.mark.parametrize("end, code", [("", 0), ("raise SystemExit(3)", 3), ("keep = [batches]; keep.append(keep)", 0)])
def test_an_interpreter_ends_while_batches_are_being_made(end, code):
    done = subprocess.run([sys.executable, "-c", LEAVING.format(end)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (code, "")


@pytest.fixture
def impatient(monkeypatch):
    """torch looks every 5 s whether its workers live, which is long for a test."""
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.3)
    looking = torch.utils.data.dataloader._MultiProcessingDataLoaderIter._try_get_data
    monkeypatch.setattr(looking, "__defaults__", (0.3,))


class Slow:
    """Writes its process id beside each batch, so that a test can kill it."""

    def __init__(self, folder, dies_at=None, always=False):
        self.folder, self.dies_at, self.always = folder, dies_at, always

    def __call__(self, span: Span):
        mark = self.folder / "died"
        if span.number == self.dies_at and (self.always or not mark.exists()):
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.02)
        return torch.tensor([span.number, span.first, os.getpid()])


@pytest.mark.parametrize("count, dies_at", [(1, 0), pytest.param(2, 7, marks=pytest.mark.slow)])
def test_a_worker_that_kills_itself_once_costs_a_line_and_no_batch(tmp_path, caplog, impatient, count, dies_at):
    with caplog.at_level(logging.WARNING, "spikeloom"):
        found = list(Workers(Slow(tmp_path, dies_at), count, 2).batches(iter(SPANS)))
    assert [b[:2].tolist() for b in found] == [[s.number, s.first] for s in SPANS]
    assert [r.getMessage().partition(" (")[0] for r in caplog.records] == ["a loader worker died"]
    assert not multiprocessing.active_children()


def test_workers_killed_from_outside_at_any_batch_lose_and_double_none(tmp_path, impatient):
    random, found = np.random.default_rng(0), []
    kills = set(random.choice(np.arange(1, 11), 2, replace=False).tolist())
    for batch in Workers(Slow(tmp_path), 2, 2).batches(iter(SPANS)):
        found.append(batch[:2].tolist())
        if len(found) in kills:
            os.kill(int(batch[2]), signal.SIGKILL)
    assert found == [[s.number, s.first] for s in SPANS]


def test_workers_that_die_without_end_are_given_up_in_one_line(tmp_path, impatient):
    taken = []
    with pytest.raises(
        ShardError, match="loader.workers: 3 times in a row a worker died before it made a batch"
    ) as error:
        for batch in Workers(Slow(tmp_path, dies_at=2, always=True), 1, 1).batches(iter(SPANS)):
            taken.append(int(batch[0]))
    assert taken == [0, 1] and "\n" not in str(error.value)
    assert not multiprocessing.active_children()


def test_what_fails_in_a_worker_arrives_as_it_was(tmp_path):
    for error in (ShardError("a.tar", "is missing", "fetch it"), ConfigError("x", "is 1", "give 2")):
        taken = []
        with pytest.raises(type(error)) as raised:
            for batch in Workers(Failing(error, 3), 1, 2).batches(iter(SPANS)):
                taken.append(int(batch[0]))
        assert str(raised.value) == str(error) and taken == [0, 1, 2]
    with pytest.raises(ConnectionError, match="Caught ConnectionError in DataLoader worker"):  # not taken for a death
        list(Workers(Failing(ConnectionError("reset"), 3), 1, 2).batches(iter(SPANS)))
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_kept_workers_serve_again_also_after_one_died_meanwhile(tmp_path, impatient):
    workers = Workers(Slow(tmp_path), 2, 2, keep=True)
    first = list(workers.batches(iter(SPANS)))
    second = list(workers.batches(iter(SPANS[:6])))
    assert {int(b[2]) for b in second} <= {int(b[2]) for b in first}  # the same processes
    os.kill(int(first[0][2]), signal.SIGKILL)
    assert numbers(workers.batches(iter(SPANS))) == list(range(12))
    with closing(workers.batches(iter(SPANS))) as batches:
        next(batches)
    assert numbers(workers.batches(iter(SPANS[3:]))) == list(range(3, 12))  # an abandoned round leaves nothing over
    del workers
    gc.collect()
    until(lambda: not multiprocessing.active_children())


class Table:
    def __init__(self):
        self.large, self.small = np.arange(100_000), np.arange(5)
        self.fixed = np.arange(50_000, dtype=np.float32)
        self.fixed.flags.writeable = False
        self.same = self.large

    def __call__(self, span):
        return torch.from_numpy(self.large[span.first : span.first + 2] + self.small[:2])


def test_large_arrays_cross_through_shared_memory_and_small_ones_by_value():
    table = Table()
    handed = Handed(table)
    assert len(handed.pickled) < 2000 and handed.shared.is_shared()
    assert len(handed.shared) < table.large.nbytes + table.fixed.nbytes + 200
    rebuild, told_ = handed.__reduce__()
    again = rebuild(*told_)
    assert all(np.array_equal(getattr(again, name), getattr(table, name)) for name in ("large", "small", "fixed"))
    assert again.large is again.same and again.large.flags.writeable and not again.fixed.flags.writeable
    assert np.shares_memory(again.large, handed.shared.numpy())
    assert all(array.ctypes.data % 64 == 0 for array in (again.large, again.fixed))
    found = list(Workers(table, 1, 2).batches(iter(SPANS[:3])))
    assert [b.tolist() for b in found] == [[0, 2], [5, 7], [10, 12]]
    assert pickle.loads(pickle.dumps(Span(1, 2, 3, 4))) == Span(1, 2, 3, 4)


class Blocks:
    """A plan of 100 windows an epoch in three blocks, other shards first in every other epoch."""

    windows = 100

    def blocks(self, epoch):
        shards = ((0, 1), (2,), (3, 4)) if epoch % 2 == 0 else ((4, 2), (0, 3), (1,))
        return [(epoch * 100 + first, numbers) for first, numbers in zip((0, 40, 70), shards)]


class Files:
    """Notes what it is told."""

    def __init__(self):
        self.told, self.room = [], None

    def prefetch(self, entries):
        self.told.append("".join(entry["file"] for entry in entries))

    def check_room(self, size):
        self.room = size


def test_a_root_is_told_of_the_shards_of_each_block_and_the_next_before_the_first_batch_of_it():
    files = Files()
    announced = Announced(Blocks(), files, [{"file": name, "bytes": 10**at} for at, name in enumerate("abcde")])
    heard = [(s.first, len(files.told)) for s in announced.passing(ByCount(100, 9).spans(LoaderState(), 22), 0)]
    assert files.told == ["abc", "cde", "dec", "ecad", "adb", "ba"]
    # 11 batches of 9 an epoch: the last of a block may reach into the next, which was told of before
    assert [first for first, _ in heard if first in (0, 45, 72, 100, 145, 172)] == [0, 45, 72, 100, 145, 172]
    assert [told for first, told in heard if first in (0, 45, 72, 100, 145, 172)] == [1, 2, 3, 4, 5, 6]
    files.told.clear()
    next(announced.passing(iter([Span(0, 250, 9, 259)]), 250))  # taken up in the middle of a block of the third epoch
    assert files.told == ["cde"]
    announced.check_room(0)
    assert files.room == 11_100  # c, d and e
    announced.check_room(130)
    assert files.room == 11_101  # of the next epoch: a, c, d and e
