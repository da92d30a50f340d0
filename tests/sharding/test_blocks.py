"""Blocks: whole sessions, few shards at a time, every window once an epoch, put together anew in each."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharding.mix import MixConfig
from sharding.plan import TrainPlan
from tests.sharding.simulated import SECOND, many_sessions, simulated_index


def shards_of(index, table):
    return index.segments.shard[table.segment]


def split_by_block(plan, epoch):
    """(shards told, windows that come) of each block of an epoch."""
    blocks = plan.blocks(epoch)
    firsts = [first for first, _ in blocks] + [(epoch + 1) * plan.windows]
    assert firsts[0] == epoch * plan.windows and (np.diff(firsts) > 0).all()
    return [(shards, plan.table(np.arange(a, b))) for (_, shards), a, b in zip(blocks, firsts, firsts[1:])]


def atoms_of(index):
    """Shards of the train segments of each group of sessions that begin in one shard, by that shard."""
    train = index.segments.split == 0
    table = index.segments.shard
    atom_of, atoms = {}, {}
    for session, shard in zip(index.segments.session[train].tolist(), table[train].tolist()):
        atom = atom_of.setdefault(session, shard)
        atoms.setdefault(atom, set()).add(shard)
    return atom_of, atoms


lengths = st.lists(st.integers(SECOND, 12 * SECOND), min_size=1, max_size=25)


@settings(max_examples=25, deadline=None)
@given(
    lengths=lengths,
    per_shard=st.integers(1, 9),
    most=st.integers(1, 6),
    epoch=st.integers(0, 2**33),
    seed=st.integers(0, 2**64 - 1),
    mixed=st.booleans(),
)
def test_blocks_hold_exactly_their_sessions_windows_and_each_comes_once(
    index, lengths, per_shard, most, epoch, seed, mixed
):
    rows = [(i, 0, 0, length) for i, length in enumerate(lengths)]
    made = simulated_index(index, [f"s{i}" for i in range(len(rows))], rows, segment_us=2 * SECOND, per_shard=per_shard)
    plan = TrainPlan(made, 1.0, seed, MixConfig(temperature=2.0, max_passes=3) if mixed else None, most)
    atom_of, atoms = atoms_of(made)
    quota = np.zeros(len(rows), int)
    seen, before = set(), None
    for shards, table in split_by_block(plan, epoch):
        sessions = made.segments.session[table.segment]
        assert set(shards_of(made, table).tolist()) <= set(shards) and list(shards) == sorted(set(shards))
        quota += np.bincount(sessions, minlength=len(rows))
        here = {atom_of[s] for s in sessions.tolist()}
        assert not here & seen  # no group of sessions is in two blocks
        seen |= here
        assert set(shards) == set().union(*(atoms[atom] for atom in here))
        assert len(shards) <= most or len(here) == 1
        # A block ends where the next group would have been too much, so the next block cannot fit into it.
        assert before is None or len(before | set(shards)) > most
        before = set(shards)
    np.testing.assert_array_equal(quota, plan.quota)
    whole = TrainPlan(made, 1.0, seed, MixConfig(temperature=2.0, max_passes=3) if mixed else None)
    assert windows_of(plan, epoch) == windows_of(whole, epoch)  # the same windows as without blocks, in another order


def windows_of(plan, epoch):
    table = plan.table(epoch * plan.windows + np.arange(plan.windows))
    return sorted(zip(table.segment.tolist(), table.start_us.tolist()))


@pytest.fixture(scope="module")
def many(index):
    return many_sessions(index, 60, segments=8, segment_us=2 * SECOND)  # three train segments of four in 30 shards


def test_without_blocks_an_epoch_is_one_block_of_all_shards(many):
    plan = TrainPlan(many, 1.0, 0)
    assert plan.blocks(3) == [(3 * plan.windows, tuple(range(len(many.meta["shards"]))))]


def test_blocks_differ_from_epoch_to_epoch_and_windows_are_mixed_within(many):
    plan = TrainPlan(many, 1.0, 0, block_shards=5)
    blocks = [[shards for _, shards in plan.blocks(epoch)] for epoch in range(4)]
    assert all(len(b) == -(-len(many.meta["shards"]) // 5) for b in blocks)
    for a, b in zip(blocks, blocks[1:]):
        assert len(set(a) & set(b)) <= 1
    for _, table in split_by_block(plan, 0):
        session = many.segments.session[table.segment]
        assert (np.diff(session) != 0).mean() > 0.8 and len(set(session.tolist())) >= 5


def test_over_epochs_every_group_stands_everywhere_and_beside_every_other(many):
    plan = TrainPlan(many, 1.0, 1, block_shards=10)
    shards, together, first = len(many.meta["shards"]), np.zeros((30, 30)), np.zeros(30)
    assert shards == 30
    for epoch in range(600):
        for number, (_, block) in enumerate(plan.blocks(epoch)):
            together[np.ix_(block, block)] += 1
            first[list(block)] += number == 0
    pairs = together[~np.eye(30, dtype=bool)] / 600
    assert np.abs(pairs - 9 / 29).max() < 5 * np.sqrt(9 / 29 * 20 / 29 / 600)
    assert np.abs(first / 600 - 1 / 3).max() < 5 * np.sqrt(2 / 9 / 600)


def test_sessions_that_a_mix_leaves_out_are_in_no_block(many):
    left_out = {f"{d}/*": 0.0 for d in ("d00", "d01", "d02")}
    plan = TrainPlan(many, 1.0, 0, MixConfig(weights=left_out), block_shards=4)
    kept = {row for row, name in enumerate(many.session_ids) if name[:3] not in ("d00", "d01", "d02")}
    for shards, table in split_by_block(plan, 0):
        assert set(many.segments.session[table.segment].tolist()) <= kept
        assert set(shards) == set(shards_of(many, table).tolist())


def test_blocks_of_one_size_are_shuffled_each_in_an_order_of_its_own(many):
    plan = TrainPlan(many, 1.0, 0, block_shards=5)
    starts = [table.start_us - table.start_us % SECOND for _, table in split_by_block(plan, 0)]
    assert {len(start) for start in starts} == {len(starts[0])}
    for a, b in zip(starts, starts[1:]):  # all sessions here have the same seconds of data
        assert (np.abs(a - b) < 2 * SECOND).mean() < 0.4
