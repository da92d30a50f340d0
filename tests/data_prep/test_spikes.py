"""The merged stream of spikes equals one plain stable sort of them all, for any units and slices."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import data_prep.spikes
from data_prep.recording import SpikeTrains
from data_prep.spikes import in_order_of_time

trains = st.lists(st.lists(st.integers(-20, 20), max_size=30), min_size=1, max_size=6)


@pytest.mark.parametrize("at_once", [1, 7, 1 << 16])
@given(units=trains)
def test_merging_equals_a_stable_sort(at_once, units):
    count = np.array([len(train) for train in units])
    time = np.array([t for train in units for t in train], dtype=np.float64)
    order = np.lexsort([np.repeat(np.arange(len(units)), count), time])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_prep.spikes, "_AT_ONCE", at_once)
        spikes, unsorted = in_order_of_time("here", SpikeTrains.of(time, count))
    assert np.array_equal(spikes.time, time[order]) and spikes.unit.dtype == np.uint32
    assert np.array_equal(spikes.unit, np.repeat(np.arange(len(units)), count)[order])
    assert unsorted == sum(train != sorted(train) for train in units)
