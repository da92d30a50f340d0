"""Places -> global batches -> shares: nothing lost, nothing twice, budgets kept, ranks in balance."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharding.batches import (
    CHUNK,
    ByCount,
    ByTokens,
    LoaderState,
    Share,
    all_shares,
    imbalance,
    packing_efficiency,
    share_of,
)
from sharding.errors import ConfigError

lengths = st.lists(st.integers(0, 900), min_size=1, max_size=60)


def tokens_of(epoch):
    """Tokens of any places, a little other in every epoch."""
    heavy = np.array(epoch, np.int64)
    return lambda place: heavy[place % len(heavy)] + place // len(heavy) % 7


def slowly(windows, budget, tokens, total):
    """Window by window, as one would do it by hand: (first, windows) of each batch."""
    out, first = [], 0
    while len(out) < total:
        count, held = 1, tokens(np.array([first]))[0]
        while (first + count) % windows:
            more = tokens(np.array([first + count]))[0]
            if held + more > budget:
                break
            count, held = count + 1, held + more
        out.append((first, count))
        first += count
    return out


@given(lengths, st.integers(1, 2000), st.integers(0, 30))
def test_a_budget_takes_the_windows_that_a_slow_loop_would(epoch, budget, stop):
    cut, tokens = ByTokens(len(epoch), budget, tokens_of(epoch)), tokens_of(epoch)
    spans = list(cut.spans(LoaderState(), 40))
    assert [(s.first, s.windows) for s in spans] == slowly(len(epoch), budget, tokens, 40)
    assert [s.number for s in spans] == list(range(40)) and all(s.stop == s.first + s.windows for s in spans)
    for span in spans:
        held = tokens(span.places)
        assert held.sum() <= budget or len(held) == 1
        assert span.first // len(epoch) == (span.stop - 1) // len(epoch)  # one epoch
    state = spans[stop].after
    assert list(cut.spans(LoaderState(**json.loads(json.dumps(asdict(state)))), 40)) == spans[stop + 1 :]


def test_a_budget_is_told_in_chunks_never_window_by_window():
    asked = []
    cut = ByTokens(100_000, 32_000, lambda place: asked.append(len(place)) or np.full(len(place), 1000))
    assert sum(s.windows for s in cut.spans(LoaderState(), 3000)) == 96_000
    assert len(asked) <= 96_000 / CHUNK + 1


@given(st.integers(1, 80), st.integers(1, 50), st.booleans(), st.integers(0, 29))
def test_batches_by_count_cover_whole_epochs_or_drop_what_is_left(windows, size, drop, stop):
    cut = ByCount(windows, size, drop)
    spans = list(cut.spans(LoaderState(), 30))
    held = np.concatenate([s.places for s in spans])
    assert (np.diff(held) > 0).all()
    sizes = [s.windows for s in spans]
    if drop:
        assert set(sizes) == {size}
        lost = np.setdiff1d(np.arange(held[-1]), held)
        whole = windows // size * size
        assert (lost % windows >= whole).all() if windows >= size else not len(lost)
        per_epoch = windows // size
    else:
        assert np.array_equal(held, np.arange(len(held)))
        per_epoch = -(-windows // size)
        assert sum(sizes[:per_epoch]) == min(windows, sum(sizes)) and max(sizes) <= size
    starts = [s.first for s in spans]
    assert [s.stop for s in spans[:-1]] == starts[1:]  # a resumed run goes on where the next begins
    if windows >= size or not drop:
        assert [s.first for s in spans[::per_epoch]] == [windows * e for e in range(len(spans[::per_epoch]))]
    # the place follows from the number
    assert cut.state(LoaderState(stop, 123)) == LoaderState(stop, starts[stop])
    assert list(cut.spans(spans[stop].after, 30)) == spans[stop + 1 :]


@given(st.lists(st.integers(0, 5000), max_size=70), st.integers(1, 9))
def test_shares_are_a_partition_of_near_equal_counts(tokens, of):
    tokens = np.array(tokens, np.int64)
    shares = all_shares(tokens, of)
    assert np.array_equal(np.sort(np.concatenate(shares)), np.arange(len(tokens)))
    counts = [len(s) for s in shares]
    assert max(counts) - min(counts) <= 1 and all((np.diff(s) > 0).all() for s in shares)
    assert all(np.array_equal(share_of(tokens, Share(rank, of)), s) for rank, s in enumerate(shares))
    sums = np.array([tokens[s].sum() for s in shares])
    if len(tokens) >= of:  # swaps only help: the fullest share is no fuller than the bound of any dealing by size
        rounds = np.sort(tokens)[::-1][::of]
        assert sums.max() <= rounds.sum()


def test_shares_of_windows_of_very_different_sizes_are_in_balance():
    random = np.random.default_rng(0)
    for of, windows, most in ((2, 32, 0.01), (4, 32, 0.02), (8, 128, 0.01), (64, 2048, 0.01)):
        found = []
        for _ in range(20):
            tokens = random.lognormal(7, 0.5, windows).astype(np.int64) + 100  # tenfold between small and large
            found.append(imbalance(np.array([tokens[s].sum() for s in all_shares(tokens, of)])))
        plain = imbalance(tokens.reshape(of, -1).sum(axis=1))
        assert np.median(found) < most < plain


def test_what_is_reported_of_batches_is_plain_arithmetic():
    assert imbalance(np.array([90, 110, 100])) == pytest.approx(0.1)
    assert imbalance(np.zeros(3)) == 0
    assert packing_efficiency(np.array([800, 1000]), 1000) == pytest.approx(0.9)


@pytest.mark.parametrize("rank, of", [(-1, 2), (2, 2), (0, 0)])
def test_a_share_that_cannot_be_is_refused(rank, of):
    with pytest.raises(ConfigError, match="share: is rank"):
        Share(rank, of)
