"""Batches through slots of shared memory: each arrives whole, stays as it is, and few of them bring memory along."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sharding.batch import Batch
from sharding.loader_slots import Slots, Taken


def batch_of(number, tokens, queries, windows=2):
    """A batch of random bytes of these sizes."""
    batch = Batch.blank(windows, tokens, queries, 2, 1.0, number, 10 * number)
    random = np.random.default_rng(number)
    for tensor in batch.tensors().values():
        tensor.copy_(torch.from_numpy(random.integers(0, 2, tuple(tensor.shape))))
    return batch


def same(a, b):
    return (a.number, a.stop, a.window_s) == (b.number, b.stop, b.window_s) and all(
        torch.equal(tensor, b.tensors()[name]) for name, tensor in a.tensors().items()
    )


@given(
    sizes=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 40)), min_size=1, max_size=20),
    asked=st.integers(1, 3),
    workers=st.integers(1, 3),
)
def test_batches_of_any_sizes_arrive_and_stay_when_their_slots_are_used_again(sizes, asked, workers):
    """Each worker has `asked` batches laid before the oldest is taken, one more while that is copied."""
    made = [batch_of(number, *size) for number, size in enumerate(sizes)]
    slots, taken = [Slots(worker, asked + 1) for worker in range(workers)], Taken()
    laid, found = [], []
    for number in range(len(made) + asked * workers):
        if number < len(made):
            laid.append(slots[number % workers].laid(made[number]))
        if number >= asked * workers:
            found.append(taken.batch(laid[number - asked * workers]))
    assert all(map(same, found, made)) and len(found) == len(made)


def test_memory_crosses_once_for_batches_of_much_the_same_size():
    slots, taken, random = Slots(0, 4), Taken(), np.random.default_rng(0)
    laid = []
    for number in range(40):
        laid.append(slots.laid(batch_of(number, 1000 + random.integers(0, 100), 50)))
        assert same(taken.batch(laid[-1]), batch_of(number, len(taken.batch(laid[-1]).token_time_S), 50))
    assert sum(one.memory is not None for one in laid) == 4
    assert all(len(pickle.dumps(one)) < 4096 for one in laid if one.memory is None)  # a pipe takes that as a whole
    grown = slots.laid(batch_of(99, 5000, 50))
    assert grown.memory is not None and same(taken.batch(grown), batch_of(99, 5000, 50))


def test_a_slot_that_was_used_again_too_early_is_noticed():
    slots, taken = Slots(0, 2), Taken()
    first, *_ = [slots.laid(batch_of(number, 100, 5)) for number in range(3)]
    with pytest.raises(AssertionError, match="used again before its batch was taken"):
        taken.batch(first)
