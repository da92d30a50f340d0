"""Target statistics: which numbers divide the targets of a session."""

import json

import numpy as np
import pytest

from sharding.errors import ConfigError
from sharding.statistics import TargetStatistics, target_statistics


@pytest.fixture(scope="module")
def scaled(session_maker, root_writer, tmp_path_factory):
    known, plain = session_maker(0, scale={"cursor_vel": 20.0}), session_maker(1)
    flat = session_maker(2)
    flat.signals["cursor_vel"].value[:, 1] = 3.0
    unseen = session_maker(3, splits={"test": [(4, 20)]})
    return root_writer(tmp_path_factory.mktemp("scaled"), [known, plain, flat, unseen])


def test_the_literature_divides_where_it_spoke_else_the_robust_std(scaled):
    seen = scaled.select(scaled.session_ids[:3])
    recipe, robust, std = (target_statistics(seen, "cursor_vel", False, s) for s in ("recipe", "robust", "std"))
    known, plain, flat = seen.session_ids
    assert recipe[known][1].tolist() == [20.0, 20.0] and recipe[known][0].tolist() == [0.0, 0.0]
    told = seen.session(plain).statistics["cursor_vel"]
    np.testing.assert_array_equal(recipe[plain][1], told.robust_std)
    np.testing.assert_array_equal(robust[plain][1], told.robust_std)
    np.testing.assert_array_equal(std[plain][1], told.std)
    assert robust[flat][1][1] == std[flat][1][1] == 1.0 and robust[flat][1][0] > 1.0
    centred = target_statistics(seen, "cursor_vel", True, 2.5)
    np.testing.assert_array_equal(centred[flat][0], seen.session(flat).statistics["cursor_vel"].mean)
    assert centred[flat][0][1] == pytest.approx(3.0) and centred[known][1].tolist() == [2.5, 2.5]


def test_statistics_survive_json_exactly_and_the_later_counts_when_merged(scaled):
    first = target_statistics(scaled.select(scaled.session_ids[:2]), "cursor_vel", True, "robust")
    again = TargetStatistics.from_json(json.loads(json.dumps(first.to_json())))
    for name in first.of_session:
        for a, b in zip(first[name], again[name]):
            np.testing.assert_array_equal(a, b)
    other = target_statistics(scaled.select(scaled.session_ids[1:3]), "cursor_vel", False, 7)
    merged = first.merged(other)
    assert [name in merged for name in scaled.session_ids] == [True, True, True, False]
    assert merged[scaled.session_ids[1]][1].tolist() == [7.0, 7.0]
    np.testing.assert_array_equal(merged[scaled.session_ids[0]][1], first[scaled.session_ids[0]][1])


def test_what_cannot_be_told_is_refused(scaled):
    with pytest.raises(ConfigError, match="has no train sample of cursor_vel; give a number as scale"):
        target_statistics(scaled, "cursor_vel", False, "robust")
    assert scaled.session_ids[3] in target_statistics(scaled, "cursor_vel", False, 2)
    for scale in ("recipes", 0, -1.0, None):
        with pytest.raises(ConfigError, match="give one of recipe, robust, std or a number above 0"):
            target_statistics(scaled, "cursor_vel", False, scale)
    with pytest.raises(ConfigError, match="has no signal 'x'"):
        target_statistics(scaled, "x", False, 1)
    with pytest.raises(ConfigError, match="m_9: has no target statistics"):
        TargetStatistics({})["made/m_9"]
