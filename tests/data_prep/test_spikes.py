"""The merged stream of spikes equals one plain stable sort of them all, for any units and slices, in memory and on disk."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import data_prep.on_disk
import data_prep.session
import data_prep.spikes
from data_prep.errors import SessionError
from data_prep.recording import SpikeTrains
from data_prep.spikes import _stable_order, in_order_of_time

few = st.integers(-20, 20).map(lambda k: k / 4)  # many are equal
any_time = st.one_of(few, st.floats(-1e6, 1e6), st.sampled_from([0.0, -0.0, 1e-300, 5e-324, 1e12]))
trains = st.lists(st.lists(any_time, max_size=30), min_size=1, max_size=6)


def plainly(units: list[list[float]]) -> tuple[np.ndarray, np.ndarray]:
    """Every spike and its unit: units sorted each, then one stable sort of them all."""
    time = np.array([t for train in units for t in sorted(train)], dtype=np.float64)
    unit = np.repeat(np.arange(len(units)), [len(train) for train in units])
    order = np.argsort(time, kind="stable")
    return time[order], unit[order]


def trains_of(units: list) -> SpikeTrains:
    return SpikeTrains.of(np.concatenate([np.asarray(t, float) for t in units]), np.array([len(t) for t in units]))


@pytest.mark.parametrize("in_memory", [1, 16, 1 << 23])
@pytest.mark.parametrize("at_once", [1, 7, 1 << 15])
@given(units=trains)
@settings(max_examples=40)
def test_merging_equals_a_stable_sort(at_once, in_memory, units):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_prep.spikes, "_AT_ONCE", at_once)
        patch.setattr(data_prep.spikes, "_IN_MEMORY", in_memory)
        patch.setattr(data_prep.session, "_PART", 5)
        spikes, faults = in_order_of_time("here", trains_of(units))
        time, unit = plainly(units)
        assert isinstance(spikes.time, np.ndarray) == (len(time) <= in_memory) and len(spikes) == len(time)
        whole = spikes.whole()
        assert np.array_equal(whole.time, time) and np.array_equal(whole.unit, unit)
        parts = list(spikes.parts(4))
        assert np.array_equal(np.concatenate([[], *(t for t, _ in parts)]), time)
        assert np.array_equal(np.concatenate([[], *(u for _, u in parts)]), unit)
        asked = np.array([-1e9, -1.0, 0.0, 0.25, 3.0, 1e9])
        assert np.array_equal(spikes.before(asked), np.searchsorted(time, asked))
        if len(time):
            assert spikes.extent == (time[0], time[-1])
    assert spikes.unit.dtype == np.uint32
    assert faults.falls.tolist() == [int(np.sum(np.diff(train) < 0)) for train in units]
    assert faults.close == sum(int(np.sum(np.diff(np.sort(train)) < 1e-4)) for train in units)


@pytest.mark.parametrize("kind", ["even", "in two bursts", "on a grid", "nearly all alike"])
def test_the_order_by_radix_is_the_stable_order(kind):
    random = np.random.default_rng(0)
    time = {
        "even": random.uniform(0, 60, 30_000),
        "in two bursts": np.concatenate([random.normal(0, 1e-3, 20_000), random.normal(1e6, 1e-9, 9_000)]),
        "on a grid": random.integers(0, 4_000, 30_000) / 30_000,
        "nearly all alike": np.append(np.full(20_000, 0.1 + 0.2), [0.3, 1e300, -1e300]),
    }[kind]
    assert np.array_equal(_stable_order(time), np.argsort(time, kind="stable"))


@pytest.mark.parametrize("in_memory", [1, 1 << 23])
def test_times_that_are_not_finite_are_refused(in_memory, monkeypatch):
    monkeypatch.setattr(data_prep.spikes, "_IN_MEMORY", in_memory)
    with pytest.raises(SessionError, match="here: 1 spike times are not finite"):
        in_order_of_time("here", trains_of([[1.0, 2.0], [3.0, np.nan]]))


def test_a_scratch_file_without_room_is_one_line(monkeypatch):
    monkeypatch.setattr(data_prep.spikes, "_IN_MEMORY", 1)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(data_prep.on_disk.os, "pwrite", full)
    with pytest.raises(SessionError, match=r"here: its spikes are sorted in a file in .*No space left.*set TMPDIR"):
        in_order_of_time("here", trains_of([[1.0, 2.0], [3.0]]))
