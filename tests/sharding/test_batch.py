"""Batch: moved, pinned and pickled as one piece, whether its tensors lie in one storage or each in its own."""

import pickle
from dataclasses import replace

import pytest
import torch

from sharding.batch import ALIGNED, DTYPES, Batch


def in_one(windows=3, tokens=41, queries=7, dims=2) -> Batch:
    batch = Batch.blank(windows, tokens, queries, dims, 0.5, 4, 99)
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
    return (a.window_s, a.number, a.stop) == (b.window_s, b.number, b.stop) and all(
        tensor.dtype == b.tensors()[name].dtype and torch.equal(tensor, b.tensors()[name])
        for name, tensor in a.tensors().items()
    )


def storages(batch: Batch) -> int:
    return len({tensor.untyped_storage().data_ptr() for tensor in batch.tensors().values()})


def test_a_blank_batch_has_its_sizes_in_one_storage():
    batch = in_one()
    assert (len(batch), batch.window_s, batch.number, batch.stop) == (3, 0.5, 4, 99) and storages(batch) == 1
    assert {name: t.dtype for name, t in batch.tensors().items()} == DTYPES
    assert batch.target_QK.shape == (7, 2) and batch.token_unit_S.shape == (41,) and batch.place_B.shape == (3,)
    ends = [
        (t.storage_offset() * t.itemsize, t.storage_offset() * t.itemsize + t.nbytes) for t in batch.tensors().values()
    ]
    assert all(a % ALIGNED == 0 for a, _ in ends) and all(b <= a for (_, b), (a, _) in zip(ends, ends[1:]))
    assert storages(by_hand()) == 13 and same(by_hand(), batch)


@pytest.mark.parametrize("made", [in_one, by_hand, replaced, strided, lambda: in_one(0, 0, 0)])
def test_any_batch_survives_pickling_and_moving_and_arrives_in_one_storage(made):
    batch = made()
    for moved in (pickle.loads(pickle.dumps(batch)), batch.to("cpu"), pickle.loads(pickle.dumps(batch.to("cpu")))):
        assert same(moved, batch) and storages(moved) == 1


def test_pickling_sends_one_tensor_and_copies_none():
    batch = in_one()
    whole, layout, numbers = batch.__reduce__()[1]
    assert whole.dtype == torch.uint8 and len(layout) == 13 and numbers == (0.5, 4, 99)
    assert whole.data_ptr() == batch.token_time_S.data_ptr()


def test_moving_within_a_device_copies_nothing():
    batch = in_one()
    assert batch.to("cpu").token_time_S.data_ptr() == batch.token_time_S.data_ptr()


@pytest.mark.gpu
@pytest.mark.parametrize("made", [in_one, by_hand, replaced, strided])
def test_pinning_and_the_copy_to_the_device(made):
    pinned = made().pin_memory()
    assert same(pinned, made()) and all(tensor.is_pinned() for tensor in pinned.tensors().values())
    there = pinned.to("cuda")
    torch.cuda.synchronize()
    assert same(there.to("cpu"), made()) and storages(there) == 1
