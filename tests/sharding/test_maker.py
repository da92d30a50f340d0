"""BatchMaker: compiled batches are the plain ones to the bit; damage is told and never followed."""

import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sharding.augment import UnitDropoutConfig
from sharding.errors import ShardError
from sharding.index import ShardIndex
from sharding.maker import BatchMaker
from sharding.plan import EvalPlan, TrainPlan, WindowTable
from sharding.sampling import Sampling
from sharding.statistics import target_statistics
from sharding.tokens import SPIKE, UNIT_START
from sharding.vocabulary import Vocabulary

DROPOUT = UnitDropoutConfig(5, 8, 20)
CHOICES = (None, DROPOUT, replace(DROPOUT, legacy=True))


def sampling_of(index, window_s=1.0) -> Sampling:
    units = Vocabulary(tuple(u for name in reversed(index.session_ids) for u in index.unit_ids(name)))
    told = target_statistics(index, "cursor_vel", True, "robust")
    return Sampling("cursor_vel", window_s, units, Vocabulary(index.session_ids[::-1]), told)


def both(index, dropout=None, window_s=1.0, seed=5) -> tuple[BatchMaker, BatchMaker]:
    compiled, plain = (BatchMaker(index, sampling_of(index, window_s), seed, dropout) for _ in range(2))
    assert compiled.compiled
    plain.compiled = False
    return compiled, plain


def assert_same(one, other) -> None:
    assert (one.window_s, one.number, one.stop) == (other.window_s, other.number, other.stop)
    for name, tensor in one.tensors().items():
        expected = other.tensors()[name]
        assert (tensor.dtype, tensor.shape) == (expected.dtype, expected.shape), name
        assert tensor.numpy().tobytes() == expected.numpy().tobytes(), name


def rows(table: WindowTable, at) -> WindowTable:
    return WindowTable(table.place[at], table.segment[at], table.start_us[at])


def train_table(index, epochs=2, window_s=1.0) -> WindowTable:
    plan = TrainPlan(index, window_s, 3)
    return plan.table(np.arange(epochs * plan.windows))


@pytest.mark.parametrize("dropout", CHOICES)
def test_compiled_batches_are_the_plain_ones_to_the_bit(index, dropout):
    compiled, plain = both(index, dropout)
    table = train_table(index)
    for first in range(0, len(table), 17):
        part = rows(table, slice(first, first + 17))
        assert_same(compiled.batch(part, 4, 99), plain.batch(part, 4, 99))


@pytest.mark.parametrize(
    "made", [{"dims": 1, "hz": 50.0}, {"dims": 3, "hz": 1000.0}, {"units": 1}, {"units": 66_000, "rate": 0.02}]
)
@pytest.mark.parametrize("dropout", CHOICES)
def test_any_dimensions_rates_and_numbers_of_units(made, dropout, session_maker, root_writer, tmp_path):
    sessions = [session_maker(n, seconds=8.0, name=f"made/x_{n}", **made) for n in range(2)]
    index = root_writer(tmp_path, sessions)
    compiled, plain = both(index, dropout)
    batch = compiled.batch(table := rows(train_table(index), slice(0, 8)))
    assert_same(batch, plain.batch(table))
    assert batch.target_QK.shape == (batch.query_length_B.sum(), made.get("dims", 2)) and len(batch.target_QK)
    if made.get("units", 0) > 2**16 and dropout is None:
        assert (batch.token_kind_S == UNIT_START).sum() == 8 * 66_000
        assert batch.token_unit_S[batch.token_kind_S == SPIKE].max() > 2**16


@settings(max_examples=60, deadline=None)
@given(data=st.data(), dropout=st.sampled_from(CHOICES), window_s=st.sampled_from([0.001, 0.3, 1.0]))
def test_windows_drawn_anywhere(index, data, dropout, window_s):
    segments = index.segments
    draw = data.draw
    segment = np.array(draw(st.lists(st.integers(0, len(segments) - 1), min_size=0, max_size=6)), np.int64)
    start = np.array(
        [draw(st.integers(int(segments.start_us[s]), int(segments.stop_us[s]) - 1)) for s in segment], np.int64
    )
    place = np.array([draw(st.integers(0, 2**60)) for _ in segment], np.int64)
    table = WindowTable(place, segment, start)
    compiled, plain = both(index, dropout, window_s, draw(st.integers(0, 2**64 - 1)))
    whole = compiled.batch(table)
    assert_same(whole, plain.batch(table))
    alone = [compiled.batch(rows(table, slice(n, n + 1))) for n in range(len(table))]
    for name, tensor in whole.tensors().items():  # a window is the same whatever stands beside it
        assert torch.equal(tensor, torch.cat([tensor[:0], *(one.tensors()[name] for one in alone)])), name


def test_no_windows_and_windows_without_samples_make_batches_too(index, session_maker, root_writer, tmp_path):
    for maker in both(index):
        batch = maker.batch(WindowTable(*np.zeros((3, 0), np.int64)), 3, 8)
        assert len(batch) == 0 and batch.target_QK.shape == (0, 2) and (batch.number, batch.stop) == (3, 8)
        assert batch.window_s == 1.0 and not sum(map(torch.numel, batch.tensors().values()))
    slow = root_writer(tmp_path, [session_maker(hz=2.0)])
    compiled, plain = both(slow, window_s=0.1)
    batch = compiled.batch(table := train_table(slow, window_s=0.1))
    assert_same(batch, plain.batch(table))
    assert 0 in batch.query_length_B.tolist() and 1 in batch.query_length_B.tolist()


def test_a_batch_of_more_shards_than_may_be_open_comes_in_parts(sessions, root_writer, tmp_path, monkeypatch):
    index = root_writer(tmp_path, sessions, segment_us=3_000_000, shard_bytes=20_000)
    assert len(index.meta["shards"]) > 12
    expected = BatchMaker(index, sampling_of(index), 1, DROPOUT).batch(table := train_table(index))
    monkeypatch.setattr("sharding.maker.open_shards", lambda: 5)
    maker = BatchMaker(index, sampling_of(index), 1, DROPOUT)
    for _ in range(2):
        assert_same(maker.batch(table), expected)


def test_evaluation_windows_that_reach_beyond_their_interval_hold_what_it_holds(index):
    compiled, plain = both(index)
    plan = EvalPlan(index, "valid", 1.0, 0.5)
    table = plan.table(np.arange(plan.windows))
    assert_same(compiled.batch(table), plain.batch(table))


@pytest.mark.parametrize("protocol", [2, 5])
def test_a_maker_makes_the_same_batches_in_another_process_from_read_only_arrays(index, protocol):
    maker, table = BatchMaker(index, sampling_of(index), 1, DROPOUT), rows(train_table(index), slice(0, 9))
    expected, buffers = maker.batch(table), []
    told = pickle.dumps(maker, protocol, **({"buffer_callback": buffers.append} if protocol == 5 else {}))
    there = pickle.loads(told, buffers=[bytes(b) for b in buffers])
    assert_same(there.batch(table), expected)
    assert len(told) < 100_000


def test_threads_share_a_maker(index):
    maker, table = BatchMaker(index, sampling_of(index), 1, DROPOUT), train_table(index)
    parts = [rows(table, slice(first, first + 8)) for first in range(0, len(table), 8)]
    expected = [maker.batch(part) for part in parts]
    with ThreadPoolExecutor(4) as threads:
        for one, other in zip(threads.map(BatchMaker(index, sampling_of(index), 1, DROPOUT).batch, parts), expected):
            assert_same(one, other)


def test_tokens_are_counted_as_batches_have_them(index, monkeypatch):
    table = train_table(index, epochs=2)
    for dropout in (None, DROPOUT):
        maker, plain = both(index, dropout)
        counted = maker.tokens(table)
        assert counted.dtype == np.int64
        np.testing.assert_array_equal(counted, maker.batch(table).token_length_B.numpy())
        np.testing.assert_array_equal(plain.tokens(table), counted)
        monkeypatch.setattr("sharding.maker.open_shards", lambda: 5)  # windows at a time
        np.testing.assert_array_equal(maker.tokens(table), counted)
        monkeypatch.undo()
        assert maker.tokens(rows(table, slice(0, 0))).tolist() == []


def test_a_shard_cut_short_while_it_is_mapped_is_told(sessions, root_writer, tmp_path):
    index = root_writer(tmp_path, sessions)
    table = rows(train_table(index), slice(0, 16))
    makers = both(index)
    for maker in makers:
        maker.batch(table)
    os.truncate(tmp_path / "train-000000.tar", 4096)
    for maker in (*makers, BatchMaker(index, sampling_of(index))):
        with pytest.raises(ShardError, match="train-000000.tar: has 4096 bytes"):
            maker.batch(table)


def overwritten(root: Path, index: ShardIndex, member: str, position: int, number) -> None:
    """One number of the first segment's array written over, in the shard's file."""
    first, _ = index.segments.member(member)
    name = index.meta["shards"][int(index.segments.shard[0])]
    with open(root / name["file"], "r+b") as file:
        file.seek(int(first[0]) + position * number.nbytes)
        file.write(number.tobytes())


@pytest.mark.parametrize(
    "member, position, number, told",
    [
        ("spike_unit", 3, np.uint16(65_535), "a spike of a unit that its session does not have"),
        ("spike_unit", 3, np.uint16(12), "a spike of a unit that its session does not have"),
        ("spike_time", 4, np.int32(-(2**31)), "spike times that fall"),
        ("cursor_vel.time", 7, np.int32(5), "sample times that do not rise"),
        ("cursor_vel.phase", 7, np.uint8(4), "a phase code without a name"),
        ("cursor_vel.phase", 7, np.uint8(255), "a phase code without a name"),
    ],
)
@pytest.mark.parametrize("dropout", [None, DROPOUT])
def test_damage_is_told_and_never_followed(member, position, number, told, dropout, sessions, root_writer, tmp_path):
    index = root_writer(tmp_path, sessions)
    key = index.segments.table.column("key")[0].as_py()
    table = WindowTable(np.zeros(1, np.int64), np.zeros(1, np.int64), index.segments.start_us[:1])
    makers = both(index, dropout)
    assert_same(*(maker.batch(table) for maker in makers))
    overwritten(tmp_path, index, f"{member}.npy", position, number)  # after its sha256 was compared
    for maker in makers:
        with pytest.raises(ShardError, match=f"train-000000.tar: segment {key} holds {told}; run `spikeloom check"):
            maker.batch(table)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), often=st.sampled_from([1.0, 0.01, 0.001]))
def test_shards_of_noise_give_an_error_or_a_batch_and_never_a_crash(seed, often, noisy):
    root, index, arrays, makers = noisy
    with open(root / "train-000000.tar", "r+b") as file:
        random = np.random.default_rng(seed)
        for first, bytes_ in arrays:
            noise = random.integers(0, 256, len(bytes_), np.uint8)
            file.seek(first)
            file.write(np.where(random.random(len(bytes_)) < often, noise, bytes_).tobytes())
    table = train_table(index)
    for maker in makers:
        for first in range(0, len(table), 7):
            try:
                batch = maker.batch(rows(table, slice(first, first + 7)))
            except ShardError as error:
                assert "holds" in str(error)
            else:
                assert 0 < batch.token_unit_S.min() and batch.token_unit_S.max() <= 12 * 3
                assert 0 <= batch.token_time_S.min() and batch.token_time_S.max() <= 1


@pytest.fixture(scope="module")
def noisy(session_maker, root_writer, tmp_path_factory):
    root = tmp_path_factory.mktemp("noise")
    index = root_writer(root, [session_maker(n, seconds=6.0, name=f"made/n_{n}") for n in range(3)])
    arrays, whole = [], np.fromfile(root / "train-000000.tar", np.uint8)
    for member in ("spike_time", "spike_unit", "cursor_vel.time", "cursor_vel.phase"):
        first, size = (of[index.segments.split == 0].tolist() for of in index.segments.member(f"{member}.npy"))
        arrays += [(a, whole[a : a + n]) for a, n in zip(first, size)]
    makers = [BatchMaker(index, sampling_of(index), 0, dropout) for dropout in (None, DROPOUT)]
    for maker in makers:
        maker.batch(train_table(index))  # the sha256 of shards is compared when they are first read
    return root, index, arrays, makers


def test_without_numba_the_batches_are_the_same_and_it_is_told_once(index, tmp_path):
    maker, table = BatchMaker(index, sampling_of(index), 1, DROPOUT), rows(train_table(index), slice(0, 9))
    (tmp_path / "numba.py").write_text("raise ImportError('Numba needs NumPy 2.3 or less')")
    (tmp_path / "maker.pickle").write_bytes(pickle.dumps((BatchMaker, (maker, table))))
    code = (
        "import pickle, sys; from pathlib import Path; import sharding.maker\n"
        "cls, (maker, table) = pickle.loads(Path(sys.argv[1]).read_bytes())\n"
        "assert sharding.maker.kernel is None\n"
        "Path(sys.argv[2]).write_bytes(pickle.dumps(maker.batch(table).token_time_S.numpy()))"
    )
    here = Path(__file__).parents[2]
    found = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "maker.pickle", tmp_path / "time.pickle"],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{here}"},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    assert found.stderr.splitlines() == [
        "batches are made without Numba, many times slower (Numba needs NumPy 2.3 or less)"
    ]
    np.testing.assert_array_equal(
        pickle.loads((tmp_path / "time.pickle").read_bytes()), maker.batch(table).token_time_S
    )
