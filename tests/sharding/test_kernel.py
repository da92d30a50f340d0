"""Compiled draws: the same words and the same kept units as the plain twins."""

import errno

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharding import counter, kernel
from sharding.augment import CHOICE, LEGACY, LEGACY_BOUND, PEAK, TRIANGLE, UnitDropout, UnitDropoutConfig

WORD = st.integers(0, 2**32 - 1)


@settings(max_examples=100, deadline=None)
@given(st.tuples(WORD, WORD, WORD, WORD), st.tuples(WORD, WORD))
def test_words_are_those_of_the_plain_generator(at, key):
    drawn = kernel.philox(*map(np.uint64, at), key)
    assert [int(word) for word in drawn] == counter.philox(at, key).tolist()
    assert kernel.uniform(drawn[0], drawn[1]) == counter.uniform(drawn[0], drawn[1])


@settings(max_examples=200, deadline=None)
@given(
    bounds=st.lists(st.integers(1, 90), min_size=3, max_size=3).map(sorted),
    legacy=st.booleans(),
    units=st.integers(0, 200),
    seed=st.integers(0, 2**64 - 1),
    place=st.integers(0, 2**62),
)
def test_kept_units_are_those_of_the_plain_draw(bounds, legacy, units, seed, place):
    config = UnitDropoutConfig(*bounds, legacy)
    key = counter.key_of(seed, counter.UNIT_DROPOUT)
    parts = (TRIANGLE, LEGACY, CHOICE)
    dropout = kernel.Dropout(True, key, tuple(map(float, bounds)), legacy, PEAK, LEGACY_BOUND, parts)
    marked = np.full(units, 7, np.uint8)
    number = kernel.choose(marked, place, dropout)
    expected = UnitDropout(config).kept(units, seed, place)
    assert np.flatnonzero(marked).tolist() == expected.tolist() and number == len(expected)
    assert set(marked.tolist()) <= {0, 1}


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 50)), st.integers(-5, 2**40))
def test_a_search_counts_the_earlier_times(times, wanted):
    rising = np.array(sorted(times), np.int32)
    assert kernel.searched(rising, wanted) == (rising < wanted).sum()
    assert 0 <= kernel.searched(np.array(times, np.int32), wanted) <= len(times)


@pytest.mark.parametrize("times, falls", [([], False), ([3], False), ([3, 3, 4], False), ([3, 4, 3], True)])
def test_equal_times_do_not_fall(times, falls):
    assert kernel.falls(np.array(times, np.int32)) == falls


def doubled(number):
    return 2 * number


def test_compiled_code_is_kept_and_where_that_fails_it_is_compiled_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    assert kernel.compiled(doubled)(4) == 8
    again = kernel.compiled(doubled)
    assert again(4) == 8 and sum(again.stats.cache_hits.values()) == 1
    for file in tmp_path.rglob("*.nb?"):
        file.write_bytes(file.read_bytes()[:20])
    anew = kernel.compiled(doubled)
    assert anew(4) == 8 and not anew.stats.cache_hits

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("numba.core.caching.IndexDataCacheFile.save", full)
    monkeypatch.setattr("numba.core.caching.IndexDataCacheFile.load", full)
    assert kernel.compiled(doubled)(4) == 8

    def none(*args):
        raise RuntimeError("cannot cache function: no locator available")

    monkeypatch.setattr("numba.core.caching.CacheImpl.__init__", none)
    assert kernel.compiled(doubled)(4) == 8
