"""Counters: the published generator to the bit, draws that are even, and a shuffle that loses and repeats nothing."""

from math import factorial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharding.counter import LARGEST, SHUFFLE, below, key_of, permuted, philox, uniform, words
from sharding.errors import ConfigError

FULL = 2**32 - 1
KEY = key_of(0, SHUFFLE)
whole = st.integers(0, 2**64 - 1)


@pytest.mark.parametrize(
    "counter, key, expected",
    [
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((FULL,) * 4, (FULL,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_the_generator_gives_the_known_answers_of_random123(counter, key, expected):
    assert " ".join(f"{word:08x}" for word in philox(counter, key)) == expected


@settings(max_examples=30, deadline=None)
@given(counter=st.lists(st.integers(0, FULL), min_size=4, max_size=4), seed=whole, n=st.integers(1, 50))
def test_a_draw_is_the_same_alone_and_among_others(counter, seed, n):
    first = (np.arange(n) + counter[0]) % 2**32
    key = key_of(seed, 7)
    together = philox((first, *counter[1:]), key)
    assert together.shape == (4, n) and together.dtype == np.uint32
    for at in (0, n - 1):
        np.testing.assert_array_equal(philox((int(first[at]), *counter[1:]), key), together[:, at])
    square = philox((first[:, None], counter[1], np.array([counter[2], 5]), counter[3]), key)
    np.testing.assert_array_equal(square[:, :, 0], together)


def test_words_are_the_halves_of_a_number():
    low, high = words(np.array([0, 2**32 - 1, 2**40 + 3, 2**63 - 1]))
    assert low.tolist() == [0, FULL, 3, FULL] and high.tolist() == [0, 0, 256, 2**31 - 1]


def test_keys_of_near_seeds_and_streams_differ_and_seeds_out_of_range_are_refused():
    keys = {key_of(seed, stream) for seed in (*range(2000), 2**32, 2**64 - 1) for stream in (1, 2, 3)}
    assert len(keys) == 3 * 2002 and all(0 <= word < 2**32 for key in keys for word in key)
    for seed in (-1, 2**64):
        with pytest.raises(ConfigError, match="seed: is"):
            key_of(seed, 1)


@settings(max_examples=200, deadline=None)
@given(word=whole, n=st.integers(1, 2**31))
def test_numbers_below_are_the_integer_part_of_the_share(word, n):
    assert int(below(word >> 32, word & FULL, n)) == word * n >> 64
    assert float(uniform(word >> 32, word & FULL)) == (word >> 37 << 26 | (word & FULL) >> 6) / 2**53


def test_draws_are_even():
    a, b, c, d = philox((np.arange(100_000), 0, 0, 0), key_of(3, 1))
    for drawn in (uniform(a, b), uniform(c, d), below(a, d, 1000) / 1000):
        assert chi_square(np.bincount((drawn * 100).astype(int), minlength=100)) < 5
    together = np.histogram2d(uniform(a, b), uniform(c, d), 16, ((0, 1), (0, 1)))[0]
    assert chi_square(together.ravel()) < 5


@settings(max_examples=150, deadline=None)
@given(size=st.integers(1, 3000), number=st.integers(0, FULL), seed=whole)
def test_a_shuffle_brings_every_position_once(size, number, seed):
    moved = permuted(np.arange(size), size, (number, 0, 0, 0), key_of(seed, SHUFFLE))
    np.testing.assert_array_equal(np.sort(moved), np.arange(size))


@settings(max_examples=30, deadline=None)
@given(size=st.one_of(st.sampled_from([2**40, 2**40 + 1, LARGEST]), st.integers(2**31, LARGEST)), seed=whole)
def test_a_shuffle_of_many_positions_stays_inside_and_never_meets(size, seed):
    ends = np.concatenate([np.arange(2000), size - 1 - np.arange(2000), np.linspace(3000, size - 3000, 2000)])
    ends = np.unique(ends.astype(np.int64).clip(0, size - 1))
    moved = permuted(ends, size, (0, 0, 0, 0), key_of(seed, SHUFFLE))
    assert len(np.unique(moved)) == len(ends) and moved.min() >= 0 and moved.max() < size
    assert (moved != ends).mean() > 0.99


@settings(max_examples=40, deadline=None)
@given(data=st.data(), n=st.integers(1, 40))
def test_shuffles_of_many_sizes_at_once_equal_each_alone(data, n):
    size = np.array(data.draw(st.lists(st.integers(1, 2**40), min_size=n, max_size=n)))
    number = np.array(data.draw(st.lists(st.integers(0, 5), min_size=n, max_size=n)))
    position = np.array([data.draw(st.integers(0, int(s) - 1)) for s in size])
    together = permuted(position, size, (number, 1, 2, 3), KEY)
    alone = [int(permuted(p, s, (c, 1, 2, 3), KEY)) for p, s, c in zip(position, size, number)]
    assert together.tolist() == alone
    folded = permuted(position[:, None], size[:, None], (number[:, None], 1, 2, 3), KEY)
    assert folded.shape == (n, 1) and folded.ravel().tolist() == alone


def test_shuffles_are_these_wherever_and_whenever_they_are_made():
    few, many = (permuted(np.arange(size), of, (1, 2, 3, 4), (5, 6)) for size, of in ((10, 10), (3, 2**50)))
    assert few.tolist() == [3, 2, 7, 8, 9, 5, 4, 1, 6, 0] and many.tolist() == [
        862598553997298,
        790022209214517,
        752696189357690,
    ]


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_every_order_of_a_few_things_comes_equally_often(size):
    orders = permuted(np.arange(size)[:, None], size, (np.arange(60_000), 0, 0, 0), KEY)
    _, often = np.unique(orders, axis=1, return_counts=True)
    assert len(often) == factorial(size) and chi_square(often) < 5


@pytest.mark.parametrize("size", [6, 7, 12, 31, 64])
def test_where_neighbours_go_is_even_over_all_pairs_of_places(size):
    draws, middle = 200_000, size // 2
    a, b = permuted(np.array([[middle - 1], [middle]]), size, (np.arange(draws), 0, 0, 0), KEY)
    often = np.bincount(a * size + b, minlength=size * size).reshape(size, size)
    assert not np.diag(often).any()
    assert chi_square(often[~np.eye(size, dtype=bool)]) < 5


@pytest.mark.parametrize("size", [2**14, 100_003, 2**40])
def test_first_places_and_steps_between_neighbours_are_even_in_large_shuffles(size):
    moved = permuted(np.arange(200)[:, None], size, (np.arange(1000), 0, 0, 0), KEY)
    assert chi_square(np.bincount(moved[0] * 64 // size, minlength=64)) < 5
    assert chi_square(np.bincount(moved.ravel() * 64 // size, minlength=64)) < 5
    steps = np.diff(moved, axis=0) % size - 1  # 0 to size - 2
    assert chi_square(np.bincount(steps.ravel() * 64 // (size - 1), minlength=64)) < 5


def chi_square(often: np.ndarray) -> float:
    """Standard deviations by which counts differ more than even chances do; seeds are fixed, 5 is never seen."""
    expected, free = often.sum() / len(often), max(len(often) - 1, 1)
    return float((((often - expected) ** 2 / expected).sum() - free) / np.sqrt(2 * free))
