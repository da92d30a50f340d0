"""Mixes: quotas that sum, caps that hold, and shares in proportion among those that no cap binds."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sharding.errors import ConfigError
from sharding.mix import MixConfig, quotas
from sharding.plan import TrainPlan
from tests.sharding.simulated import SECOND, simulated_index


def sessions_of(of):
    """Id, dandiset and subject of sessions of these (dandiset, subject)."""
    return [(f"{d}/{s}_{i}", d, s) for i, (d, s) in enumerate(of)]


def test_an_epoch_of_temperature_1_without_caps_is_every_window_once():
    windows = np.random.default_rng(0).integers(0, 5000, 3000)
    sessions = sessions_of([(f"d{i % 7}", f"s{i % 100}") for i in range(3000)])
    for by in ("session", "subject", "dandiset"):
        np.testing.assert_array_equal(quotas(sessions, windows, MixConfig(by=by)), windows)


def test_shares_go_with_windows_to_the_power_of_one_over_temperature():
    sessions, windows = sessions_of([("a", "x"), ("b", "x"), ("c", "x")]), np.array([100, 400, 2500])
    assert quotas(sessions, windows, MixConfig(temperature=2.0)).tolist() == [375, 750, 1875]  # as 10 : 20 : 50
    assert quotas(sessions, windows, MixConfig(temperature=1e9)).tolist() == [1000, 1000, 1000]
    assert quotas(sessions, windows, MixConfig(temperature=1e-3)).tolist() == [0, 0, 3000]
    heavier = MixConfig(weights={"a/*": 5.0, "b/*": 5.0})  # as 500 : 2,000 : 2,500
    assert quotas(sessions, windows, heavier).tolist() == [300, 1200, 1500]


def test_what_a_cap_cuts_off_goes_to_the_others_in_proportion():
    sessions, windows = sessions_of([("a", "x"), ("b", "x"), ("c", "x")]), np.array([100, 200, 700])
    assert quotas(sessions, windows, MixConfig(max_share=0.4)).tolist() == [200, 400, 400]
    assert quotas(sessions, windows, MixConfig(max_share=0.4, max_passes=2.5)).tolist() == [200, 400, 400]
    assert quotas(sessions, windows, MixConfig(temperature=1e9, max_passes=2)).tolist() == [200, 400, 400]
    assert quotas(sessions, windows, MixConfig(weights={"c/*": 0})).tolist() == [333, 667, 0]


def test_groups_share_by_windows_and_factors_within():
    sessions = sessions_of([("a", "x"), ("a", "x"), ("a", "y"), ("b", "x")])
    windows = np.array([10, 30, 160, 200])
    by_dandiset = MixConfig(by="dandiset", temperature=1e9, weights={"b/*": 3.0})
    assert quotas(sessions, windows, by_dandiset).tolist() == [5, 15, 80, 300]
    by_subject = MixConfig(by="subject", temperature=1e9)  # x of a and x of b are two animals
    assert quotas(sessions, np.array([10, 30, 160, 220]), by_subject).tolist() == [35, 105, 140, 140]
    favoured = MixConfig(by="dandiset", weights={"a/x_0": 7.0})  # of a: 70 + 30 + 160
    assert quotas(sessions, windows, favoured).tolist() == [61, 26, 139, 174]
    bounded = MixConfig(by="dandiset", weights={"a/x_0": 7.0, "*_0": 2.0}, max_passes=2)  # 14 times, but two passes
    assert quotas(sessions, windows, bounded)[0] == 20


GROUP = st.tuples(st.sampled_from("ab"), st.sampled_from("xyz"))


@st.composite
def mixes(draw):
    return MixConfig(
        by=draw(st.sampled_from(["session", "subject", "dandiset"])),
        temperature=draw(st.sampled_from([0.5, 1.0, 1.7, 5.0, 100.0])),
        weights=draw(st.dictionaries(st.sampled_from(["*", "*/x*", "a/*", "*_0"]), st.sampled_from([0, 0.1, 1, 7]))),
        max_share=draw(st.floats(0.1, 1.0)),
        max_passes=draw(st.sampled_from([0.0, 1.0, 1.3, 2.0, 10.0])),
    )


@settings(max_examples=300, deadline=None)
@given(of=st.lists(GROUP, min_size=1, max_size=12), data=st.data(), mix=mixes())
def test_quotas_sum_keep_the_caps_and_equal_shares_filled_step_by_step(of, data, mix):
    of[0] = ("a", "x")
    windows = np.array(data.draw(st.lists(st.integers(0, 500), min_size=len(of), max_size=len(of))))
    sessions, total = sessions_of(of), int(windows.sum())
    try:
        found = quotas(sessions, windows, mix)
    except ConfigError as error:
        assert "allows" in str(error) or "leave no window" in str(error)
        expected = filled_step_by_step(sessions, windows, mix)
        assert expected is None or sum(expected.values()) < total - 1e-6
        return
    assume(total)
    assert found.sum() == total and (found >= 0).all() and not found[windows == 0].any()
    if mix.max_passes:
        assert (found <= np.ceil(mix.max_passes * windows - 1e-9)).all()
    expected, groups = filled_step_by_step(sessions, windows, mix), {}
    for session, number in zip(sessions, found.tolist()):
        groups[name_of(session, mix.by)] = groups.get(name_of(session, mix.by), 0) + number
    for name, number in groups.items():
        assert abs(number - expected[name]) < 1 + 1e-6 and number <= np.ceil(mix.max_share * total - 1e-9)


def name_of(session, by):
    name, dandiset, subject = session
    return {"session": name, "dandiset": dandiset}.get(by, f"{dandiset}/{subject}")


def factor_of(session, mix):
    """Of the four patterns that the test draws from."""
    name, dandiset, subject = session
    fits = {"*": True, "*/x*": subject == "x", "a/*": dandiset == "a", "*_0": name.endswith("_0")}
    return np.prod([1.0] + [factor for pattern, factor in mix.weights.items() if fits[pattern]])


def filled_step_by_step(sessions, windows, mix):
    """Share of each group: given out in proportion, again and again, until no group is above its cap."""
    total, groups = int(windows.sum()), {}
    for session, number in zip(sessions, windows.tolist()):
        group = groups.setdefault(name_of(session, mix.by), [0, 0.0, 0.0])
        wanted = number * factor_of(session, mix)
        group[0], group[1] = group[0] + number, group[1] + wanted
        group[2] += (np.ceil(mix.max_passes * number - 1e-9) if mix.max_passes else total) if wanted else 0
    most = np.ceil(mix.max_share * total - 1e-9)
    weight = {n: g[1] / g[0] * g[0] ** (1 / mix.temperature) for n, g in groups.items() if g[1] > 0}
    cap = {name: min(groups[name][2], most) for name in weight}
    share, open_ = dict.fromkeys(groups, 0.0), set(weight)
    if not open_:
        return None
    while open_:
        left = total - sum(share[name] for name in set(weight) - open_)
        level = left / sum(weight[name] for name in open_)
        full = {name for name in open_ if weight[name] * level > cap[name]}
        for name in full or open_:
            share[name] = cap[name] if full else weight[name] * level
        open_ -= full or set(open_)
    return share


def test_caps_that_leave_an_epoch_without_windows_are_refused_with_their_numbers():
    sessions, windows = sessions_of([("a", "x"), ("b", "x")]), np.array([100, 200])
    with pytest.raises(ConfigError, match="allows 270 of an epoch's 300 windows: 2 groups by session, max_share 0.45"):
        quotas(sessions, windows, MixConfig(max_share=0.45))
    with pytest.raises(ConfigError, match="allows 200 of an epoch's 300 windows: 1 groups"):
        quotas(sessions, windows, MixConfig(weights={"b/*": 0}, max_passes=2))
    with pytest.raises(ConfigError, match="leave no window of any session"):
        quotas(sessions, windows, MixConfig(weights={"*": 0}))
    assert quotas(sessions, np.zeros(2, np.int64), MixConfig()).tolist() == [0, 0]


def test_a_pattern_that_fits_nothing_is_refused_with_what_is_near():
    sessions = sessions_of([("perich", f"s{i}") for i in range(9)])
    with pytest.raises(ConfigError, match=r"no session fits 'perich/s8_9'; choose among perich/s8_8, .* and 6 more"):
        quotas(sessions, np.full(9, 3), MixConfig(weights={"perich/s8_9": 2.0}))


@pytest.mark.parametrize(
    "setting",
    [
        {"by": "animal"},
        {"temperature": 0.0},
        {"temperature": float("inf")},
        {"temperature": float("nan")},
        {"max_share": 0.0},
        {"max_share": 1.1},
        {"max_passes": 0.5},
        {"max_passes": -1.0},
        {"weights": {"*": -1.0}},
        {"weights": {"*": float("nan")}},
    ],
)
def test_numbers_that_make_no_sense_are_refused(setting):
    with pytest.raises(ConfigError, match=f"mix.{next(iter(setting))}"):
        MixConfig(**setting)


@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=6), temperature=st.sampled_from([0.7, 2.0, 50.0]))
def test_over_epochs_every_session_comes_as_often_as_its_quota_says(index, lengths, temperature):
    made = simulated_index(
        index, [f"s{i}" for i in range(len(lengths))], [(i, 0, 0, n * SECOND) for i, n in enumerate(lengths)]
    )
    plan = TrainPlan(made, 1.0, 3, MixConfig(temperature=temperature))
    expected = np.array([float(Fraction(n)) ** (1 / temperature) for n in lengths])
    assert np.abs(plan.quota - plan.windows * expected / expected.sum()).max() < 1
    session = made.segments.session[plan.table(np.arange(12 * plan.windows)).segment].reshape(12, -1)
    for epoch in session:
        np.testing.assert_array_equal(np.bincount(epoch, minlength=len(lengths)), plan.quota)
