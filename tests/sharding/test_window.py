"""Windows: what a slow look into the Session gives."""

import os

import numpy as np
import pytest

from sharding.errors import ConfigError, ShardError
from sharding.plan import EvalPlan, TrainPlan
from sharding.tokens import SPIKE, UNIT_END, UNIT_START
from sharding.window import Reader, interval_windows


def slow_window(session, start_us: int, stop_us: int):
    """(spike microseconds from start, unit), (sample microseconds, value) of a session, one by one."""
    spikes = [
        (round(t * 1e6) - start_us, int(u))
        for t, u in zip(session.spikes.time.tolist(), session.spikes.unit)
        if start_us <= round(t * 1e6) < stop_us
    ]
    signal = session.signals["cursor_vel"]
    samples = [
        (round(t * 1e6) - start_us, tuple(v))
        for t, v, ok in zip(signal.time.tolist(), signal.value.tolist(), signal.valid)
        if ok and start_us <= round(t * 1e6) < stop_us
    ]
    return spikes, samples


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_window_holds_what_the_session_holds(index, sessions, split):
    reader = Reader(index, "cursor_vel")
    plan = TrainPlan(index, 1.0, 1) if split == "train" else EvalPlan(index, split, 1.0, 0.5)
    table = plan.table(np.arange(plan.windows))
    for segment, start in list(zip(table.segment.tolist(), table.start_us.tolist()))[::5]:
        window = reader.window(segment, start, 1_000_000)
        spikes, samples = slow_window(sessions[window.session], start, start + 1_000_000)
        assert list(zip(window.spike_time.tolist(), window.spike_unit.tolist())) == spikes
        assert list(zip(window.sample_time.tolist(), map(tuple, window.value.tolist()))) == samples
        assert len(spikes) > 10 and len(samples) > 30


def test_tokens_mark_every_unit_the_silent_one_too(index, sessions):
    window = Reader(index, "cursor_vel").window(0, int(index.segments.start_us[0]), 1_000_000)
    tokens, units = window.tokens, len(sessions[0].units)
    silent = tokens.unit == units - 1
    assert list(zip(tokens.time[silent].tolist(), tokens.kind[silent].tolist())) == [(0.0, UNIT_START), (1.0, UNIT_END)]
    for kind, time in ((UNIT_START, 0.0), (UNIT_END, 1.0)):
        assert sorted(tokens.unit[tokens.kind == kind].tolist()) == list(range(units))
        assert set(tokens.time[tokens.kind == kind].tolist()) == {time}
    spikes = tokens.kind == SPIKE
    assert len(tokens) == 2 * units + spikes.sum()
    np.testing.assert_array_equal(tokens.time[spikes], (window.spike_time / 1e6).astype(np.float32))


def test_a_window_without_some_units_is_the_window_of_a_session_without_them(index):
    whole = Reader(index, "cursor_vel").window(0, int(index.segments.start_us[0]), 1_000_000)
    kept = np.array([0, 3, 7, 10])
    part = whole.keeping(kept)
    spikes = np.isin(whole.spike_unit, kept)
    np.testing.assert_array_equal(part.spike_time, whole.spike_time[spikes])
    np.testing.assert_array_equal(part.spike_unit, whole.spike_unit[spikes])
    assert part.units.tolist() == kept.tolist() and len(part.tokens) == 8 + spikes.sum()
    assert part.value is whole.value
    assert len(part.keeping(kept[:0]).tokens) == 0


def test_a_shard_cut_short_while_it_is_mapped_is_told_before_it_is_read(sessions, root_writer, tmp_path):
    index = root_writer(tmp_path, sessions[:1])
    reader, start = Reader(index, "cursor_vel"), int(index.segments.start_us[0])
    reader.window(0, start, 1_000_000)
    os.truncate(tmp_path / "train-000000.tar", 4096)
    with pytest.raises(ShardError, match="train-000000.tar: has 4096 bytes since it was opened, its index says"):
        reader.window(0, start, 1_000_000)


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_stretches_are_the_whole_intervals_joined_over_segments(index, sessions, split):
    intervals = index.segments.intervals(split)
    found = list(interval_windows(index, "cursor_vel", split))
    assert [(w.start_us, w.start_us + w.length_us) for w in found] == list(zip(intervals.start_us, intervals.stop_us))
    assert intervals.segments.max() > 1
    for window in found:
        spikes, samples = slow_window(sessions[window.session], window.start_us, window.start_us + window.length_us)
        assert list(zip(window.spike_time.tolist(), window.spike_unit.tolist())) == spikes
        assert list(zip(window.sample_time.tolist(), map(tuple, window.value.tolist()))) == samples


def test_a_missing_signal_and_a_shard_that_shrank_are_told(sessions, root_writer, tmp_path):
    index = root_writer(tmp_path, sessions[:1])
    with pytest.raises(ConfigError, match=f"{sessions[0].id}: has no signal 'hand_pos'; choose among cursor_vel"):
        Reader(index, "hand_pos")
    shard = tmp_path / "train-000000.tar"
    shard.write_bytes(shard.read_bytes()[:-1000])  # after the index was opened
    with pytest.raises(ShardError, match="train-000000.tar: has \\d+ bytes, its index says"):
        Reader(index, "cursor_vel").window(0, int(index.segments.start_us[0]), 1_000_000)
    shard.unlink()
    with pytest.raises(ShardError, match="train-000000.tar: is missing"):
        Reader(index, "cursor_vel").window(0, int(index.segments.start_us[0]), 1_000_000)
