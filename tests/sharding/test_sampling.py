"""Phases are told by each session's own codes: weights, evaluation and outliers follow the names, not the numbers."""

from dataclasses import replace

import numpy as np
import pytest

from sharding.errors import ConfigError
from sharding.sampling import Sampling, SessionTables
from sharding.statistics import target_statistics
from sharding.tables import SessionTable
from sharding.vocabulary import Vocabulary

NAMES = ("random", "hold", "reach", "outlier")
OTHERS = ("random", "outlier", "hold", "reach", "return")


@pytest.fixture
def merged(index):
    """As if the second session came from another root, whose phases were numbered otherwise."""
    rows = list(index.sessions)
    rows[1] = replace(rows[1], phases=OTHERS, loss_weights={"return": 3.0, "reach": 2.0, "outlier": 0.0})
    rows[2] = replace(rows[2], eval_phases=())
    return replace(index, sessions=SessionTable.of(rows))


def sampling_of(index, **settings):
    units = Vocabulary(tuple(unit for ids in index.all_unit_ids() for unit in ids))
    statistics = target_statistics(index, "cursor_vel", True, "std")
    return Sampling("cursor_vel", 1.0, units, Vocabulary(index.session_ids), statistics, **settings)


def test_a_code_weighs_what_its_name_weighs_in_its_session(merged):
    tables = SessionTables.of(merged, sampling_of(merged))
    np.testing.assert_array_equal(tables.weight[0], np.float32([1, 0.1, 5, 0, 0]))
    np.testing.assert_array_equal(tables.weight[1], np.float32([1, 0, 1, 2, 3]))
    np.testing.assert_array_equal(tables.evaluated[:2], np.array([[0, 0, 1, 0, 0], [0, 0, 0, 1, 0]], bool))
    np.testing.assert_array_equal(tables.evaluated[2], [True] * 4 + [False])  # () is all, but no code beyond the last
    assert tables.weight.dtype == np.float32 and tables.weight.shape == tables.evaluated.shape == (3, 5)
    chosen = sampling_of(merged, phase_weights={"hold": 7.0}, eval_phases=("hold",), use_recipe_weights=False)
    tables = SessionTables.of(merged, chosen)
    np.testing.assert_array_equal(tables.weight[:2], np.float32([[1, 7, 1, 1, 0], [1, 1, 7, 1, 1]]))
    np.testing.assert_array_equal(tables.evaluated.argmax(axis=1), [1, 2, 1])


def test_units_are_found_session_after_session(index):
    for part in (index, index.select(index.session_ids[1:])):
        tables = SessionTables.of(part, sampling_of(index))
        for row, name in enumerate(part.session_ids):
            first, units = tables.first_unit[row], part.sessions[row].units
            expected = sampling_of(index).units.rows(part.unit_ids(name))
            np.testing.assert_array_equal(tables.unit_row[first : first + units], expected)


def test_what_a_sampling_does_not_cover_is_told(index):
    with pytest.raises(ConfigError, match="made/m_0: has no signal 'hand_pos'"):
        SessionTables.of(index, replace(sampling_of(index), signal="hand_pos"))
    with pytest.raises(ConfigError, match="'made/m_2/u0' is not among its 19 names"):
        SessionTables.of(index, _without_last(index))


def _without_last(index):
    sampling = sampling_of(index)
    return replace(sampling, units=Vocabulary(sampling.units.ids[:19]))


def test_a_limit_leaves_out_the_outliers_of_each_session(merged, index, sessions):
    whole, part = index.limited(0.2), merged.limited(0.2)
    told = [row.statistics["cursor_vel"] for row in part.sessions]
    assert told[0].samples == whole.sessions[0].statistics["cursor_vel"].samples
    session, first = sessions[1], part.segments.intervals("train")
    signal, inside = sessions[1].signals["cursor_vel"], False
    for n in np.flatnonzero(part.segments.session[first.first] == 1):
        inside = inside | ((signal.time * 1e6 >= first.start_us[n]) & (signal.time * 1e6 < first.stop_us[n]))
    hold = session.phases["hold"].contains(signal.time) & ~session.phases["outlier"].contains(signal.time)
    hold &= ~session.phases["reach"].contains(signal.time)  # code 1 in the shard: here the outliers by name
    value = signal.value[inside & signal.valid & ~hold].astype(float)
    assert told[1].samples == len(value) != whole.sessions[1].statistics["cursor_vel"].samples
    np.testing.assert_allclose(told[1].mean, value.mean(axis=0))
