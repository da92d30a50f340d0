"""Bench of start-up: corpora that hang together, and numbers of them; how fast is never tested."""

import numpy as np
import pytest

from launch.bench_supply import HOLDING, STEPS, SupplyConfig, corpora, measure, supplied
from launch.bench_supply_corpus import PER_SHARD, Corpus, written
from sharding.index import ShardIndex
from sharding.plan import EvalPlan, TrainPlan
from sharding.window import Reader


def test_a_corpus_is_a_root_without_data(tmp_path):
    corpus = Corpus(sessions=9, segments=30, segment_s=20, units=3)
    index = ShardIndex.open(written(corpus, tmp_path))
    assert len(index.sessions) == 9 and len(index.segments) == 270 and len(index.meta["shards"]) == -(-270 // PER_SHARD)
    assert sum(len(run) for run in index.all_unit_ids()) == 27 and index.unit_ids(index.session_ids[4])[2].endswith(
        "unit002"
    )
    assert sum(sum(s.hours.values()) for s in index.sessions) * 3600 == pytest.approx(9 * 30 * 20)
    # every stretch is five segments of 20 s; four of six are for training
    assert TrainPlan(index, 1.0, seed=0).windows == 9 * 4 * 100
    assert EvalPlan(index, "valid", 1.0, 1.0).windows == 9 * 100
    located = Reader(
        index, "cursor_vel"
    ).segments  # which refuses arrays beyond their shard, or that do not fit together
    assert (np.diff(located["spike_time"][located["shard"] == 0]) > 0).all()
    assert (index.segments.column("carry_us") >= index.segments.stop_us).all()


def test_every_step_is_timed(tmp_path):
    told = measure(written(Corpus(2, units=3), tmp_path))
    assert list(told["seconds"]) == list(told["mb"]) == list(STEPS) and min(told["seconds"].values()) > 0
    assert told["windows"] == 2 * 16 * 60 and told["state_bytes"] < 100


@pytest.mark.slow
def test_start_up_is_told_of_every_corpus(tmp_path):
    config = SupplyConfig(sessions=[4, 2], units=3)
    made = corpora(config)
    assert [corpus.sessions for corpus in made] == [2, 4, 2, 2]
    assert made[2].hours == made[3].hours == 10 * made[0].hours and made[3].segments == made[0].segments
    rows = list(supplied(config, tmp_path))
    assert len(rows) == 4 * (len(STEPS) + len(HOLDING) + 1)
    for number, corpus in enumerate(made):
        mine = [row for row in rows if row[3].startswith(str(corpus))]
        assert len(mine) == len(rows) // 4
        windows = corpus.sessions * corpus.segments * 4 // 6 * corpus.segment_s
        assert f"; {windows:,} windows an epoch" in mine[0][3], number
        assert all(value > 0 for _, value, unit, _ in mine if unit == "s")
        assert [value < 100 for what, value, _, _ in mine if what == "state of the loader"] == [True]
