"""Batch: moved, pinned and pickled as one piece, whatever its tensors lie in; cut into parts that are the whole again."""

import pickle
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sharding.batch import ALIGNED, DTYPES, Batch


def in_one(windows=3, tokens=41, queries=7, dims=2) -> Batch:
    batch = Batch.blank(windows, tokens, queries, dims, 0.5, 4, 99, 12)
    for n, tensor in enumerate(batch.tensors().values()):
        tensor.copy_(torch.arange(n, n + tensor.numel()).reshape(tensor.shape) % 5)
    return batch


def by_hand() -> Batch:
    return replace(in_one(), **{name: tensor.clone() for name, tensor in in_one().tensors().items()})


def replaced() -> Batch:
    return replace(in_one(), target_QK=torch.ones(7, 2), evaluated_Q=torch.ones(7, dtype=torch.bool))


def strided() -> Batch:
    return replace(in_one(), target_QK=in_one().target_QK[::2], stamp_Q=in_one().stamp_Q[1:], place_B=torch.arange(0))


def same(a: Batch, b: Batch) -> bool:
    numbers = [(x.window_s, x.number, x.stop, x.windows, x.idle) for x in (a, b)]
    return numbers[0] == numbers[1] and all(
        tensor.dtype == b.tensors()[name].dtype and torch.equal(tensor, b.tensors()[name])
        for name, tensor in a.tensors().items()
    )


def storages(batch: Batch) -> int:
    return len({tensor.untyped_storage().data_ptr() for tensor in batch.tensors().values()})


def test_a_blank_batch_has_its_sizes_in_one_storage():
    batch = in_one()
    assert (len(batch), batch.window_s, batch.number, batch.stop) == (3, 0.5, 4, 99) and storages(batch) == 1
    assert batch.windows == 12 and not batch.idle
    assert {name: t.dtype for name, t in batch.tensors().items()} == DTYPES
    assert batch.target_QK.shape == (7, 2) and batch.token_unit_S.shape == (41,) and batch.place_B.shape == (3,)
    ends = [
        (t.storage_offset() * t.itemsize, t.storage_offset() * t.itemsize + t.nbytes) for t in batch.tensors().values()
    ]
    assert all(a % ALIGNED == 0 for a, _ in ends) and all(b <= a for (_, b), (a, _) in zip(ends, ends[1:]))
    assert storages(by_hand()) == 13 and same(by_hand(), batch)


@pytest.mark.parametrize(
    "made", [in_one, by_hand, replaced, strided, lambda: in_one(0, 0, 0), lambda: ragged([3]).idled()]
)
def test_any_batch_survives_pickling_and_moving_and_arrives_in_one_storage(made):
    batch = made()
    for moved in (pickle.loads(pickle.dumps(batch)), batch.to("cpu"), pickle.loads(pickle.dumps(batch.to("cpu")))):
        assert same(moved, batch) and storages(moved) == 1


def test_pickling_sends_one_tensor_and_copies_none():
    batch = in_one()
    whole, layout, numbers = batch.__reduce__()[1]
    assert whole.dtype == torch.uint8 and len(layout) == 13 and numbers == (0.5, 4, 99, 12, False)
    assert whole.data_ptr() == batch.token_time_S.data_ptr()


def test_moving_within_a_device_copies_nothing():
    batch = in_one()
    assert batch.to("cpu").token_time_S.data_ptr() == batch.token_time_S.data_ptr()


def ragged(tokens: list[int], seed: int = 0) -> Batch:
    """Windows of so many tokens, each with some queries or none; every number tells its own place."""
    queries = [(seed + n) % 4 for n in range(len(tokens))]
    batch = Batch.blank(len(tokens), sum(tokens), sum(queries), 2, 0.5, 4, 99, 12)
    for tensor in batch.tensors().values():
        tensor.copy_(torch.arange(1, 1 + tensor.numel()).reshape(tensor.shape))
    batch.token_length_B.copy_(torch.tensor(tokens))
    batch.query_length_B.copy_(torch.tensor(queries))
    return batch


def windows_of(batch: Batch) -> list[dict]:
    """Each window's part of a batch, cut out by split()."""
    out = [{"place_B": p, "session_B": s} for p, s in zip(batch.place_B, batch.session_B)]
    for name, tensor in batch.tensors().items():
        if not name.endswith("_B"):
            lengths = batch.token_length_B if name.endswith("_S") else batch.query_length_B
            for window, part in zip(out, tensor.split(lengths.tolist()), strict=True):
                window[name] = part
    return out


def same_windows(ours: list[dict], theirs: list[dict]) -> bool:
    return len(ours) == len(theirs) and all(
        torch.equal(a[name], b[name]) for a, b in zip(ours, theirs) for name in b | a
    )


lengths = st.lists(st.integers(0, 9), min_size=1, max_size=12)


@settings(max_examples=30, deadline=None)
@given(lengths, st.data())
def test_selected_rows_are_the_windows_that_stood_there(tokens, data):
    batch = ragged(tokens, seed=len(tokens))
    rows = data.draw(st.lists(st.integers(0, len(tokens) - 1), max_size=9))
    chosen, windows = batch.selected(rows), windows_of(batch)
    assert same_windows(windows_of(chosen), [windows[row] for row in rows])
    assert (chosen.window_s, chosen.number, chosen.stop, chosen.windows, chosen.idle) == (0.5, 4, 99, 12, False)
    assert {name: tensor.dtype for name, tensor in chosen.tensors().items()} == DTYPES


@settings(max_examples=40, deadline=None)
@given(lengths, st.integers(1, 15))
def test_parts_hold_every_window_once_and_those_left_over_weigh_nothing(tokens, n):
    batch = ragged(tokens)
    parts, windows = batch.parts(n), windows_of(batch)
    working = [part for part in parts if not part.idle]
    assert len(parts) == n and len(working) == min(n, len(tokens))
    held = sorted((w for part in working for w in windows_of(part)), key=lambda w: int(w["place_B"]))
    assert same_windows(held, windows)
    for part in parts[len(working) :]:
        nothing = {"weight_Q": torch.zeros(len(part.weight_Q)), "evaluated_Q": torch.zeros(len(part.weight_Q)).bool()}
        assert part.idle and same_windows(windows_of(replace(part, idle=False)), [windows[0] | nothing])
    assert all((part.number, part.stop, part.windows) == (4, 99, 12) for part in parts)
    held = [len(part.token_time_S) for part in working]
    assert max(held) - min(held) <= max(tokens)


def test_one_part_is_the_batch_itself_and_an_idle_batch_stays_idle():
    batch = ragged([4, 0, 7])
    assert batch.parts(1)[0] is batch
    idle = batch.idled()
    assert len(idle) == 1 and idle.place_B == batch.place_B[0] and not idle.weight_Q.any()
    assert [part.idle for part in idle.parts(3)] == [True] * 3 and all(len(part) == 1 for part in idle.parts(3))


@pytest.mark.gpu
@pytest.mark.parametrize("made", [in_one, by_hand, replaced, strided])
def test_pinning_and_the_copy_to_the_device(made):
    pinned = made().pin_memory()
    assert same(pinned, made()) and all(tensor.is_pinned() for tensor in pinned.tensors().values())
    there = pinned.to("cuda")
    torch.cuda.synchronize()
    assert same(there.to("cpu"), made()) and storages(there) == 1


@pytest.mark.gpu
def test_parts_on_the_device_are_those_cut_before_the_copy():
    batch = ragged([4, 0, 7, 2, 9])
    for here, there in zip(batch.parts(3), batch.to("cuda").parts(3), strict=True):
        assert same(there.to("cpu"), here)
