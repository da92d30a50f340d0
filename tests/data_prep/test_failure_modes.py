"""The sixteen ways in which published files fail, each on a small file that has the fault: mended, told or refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from pynwb import NWBFile, TimeSeries

from data_prep.assembly import read_session
from data_prep.errors import SessionError
from data_prep.recipe import Moment, PhaseRecipe, Recipe, SplitsRecipe, TrialsRecipe, UnitsRecipe
from data_prep.session import Session


def refused(path: Path, recipe: Recipe) -> str:
    """The one line with which a file is refused."""
    with pytest.raises(SessionError) as refusal:
        read_session(path, recipe)
    assert "\n" not in str(refusal.value) and str(refusal.value).startswith(path.name)
    return str(refusal.value)


def told(session: Session) -> str:
    """What a person is told of the session."""
    return session.provenance["notes"]


def train_of(session: Session, unit: int) -> np.ndarray:
    """Spike times of one unit."""
    return session.spikes.time[session.spikes.unit == unit]


def with_signal(recipe: Recipe, **changes) -> Recipe:
    return replace(recipe, signals={**recipe.signals, "cursor_vel": replace(recipe.signals["cursor_vel"], **changes)})


# 1 -------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def counts() -> np.ndarray:
    """Spike counts (bins of 20 ms, units)."""
    return np.random.default_rng(1).poisson(0.3, size=(5000, 4))


def test_1_without_a_units_table_spikes_come_from_a_series_of_counts(nwb, blocks, counts):
    def binned(file: NWBFile) -> None:
        file.add_acquisition(TimeSeries(name="binned_spikes", data=counts.astype(np.uint8), unit="count", rate=50.0))

    session = read_session(nwb(spikes=[], change=binned), blocks)
    assert len(session.units) == 4 and len(session.spikes) == counts.sum()
    for unit in range(4):
        bins = np.floor(train_of(session, unit) * 50 + 1e-9).astype(int)
        assert np.array_equal(np.bincount(bins, minlength=5000), counts[:, unit])


def test_1_without_units_and_counts_there_is_nothing_to_read(nwb, blocks):
    assert "units" in refused(nwb(spikes=[]), blocks)


# 2 -------------------------------------------------------------------------------------------------------------------


def test_2_without_electrodes_the_region_is_unknown_and_nothing_else_is_lost(nwb, recipe):
    bare, full = read_session(nwb(electrodes=False), recipe), read_session(nwb("full.nwb"), recipe)
    assert bare.units.region == ("unknown",) * 5 and full.units.region == ("M1",) * 5
    assert not any(bare.units.electrode)
    assert np.array_equal(bare.spikes.time, full.spikes.time) and bare.units.id == full.units.id


# 3 -------------------------------------------------------------------------------------------------------------------


def test_3_ragged_trial_columns_become_numbered_ones(nwb, recipe):
    """Every trial k has k % 5 go cues, 0.1 s apart; good are those that have four, their hold ends at the first."""
    cues = [[2.0 * k + 0.3 + 0.1 * i for i in range(k % 5)] for k in range(48)]

    def ragged(file: NWBFile) -> None:
        file.add_trial_column(
            name="go_cues",
            description="s",
            data=[cue for row in cues for cue in row],
            index=np.cumsum([*map(len, cues)]),
        )

    rules = replace(
        recipe,
        trials=TrialsRecipe(valid="count(go_cues) == 4 and go_cues[3] - go_cues[0] > 0.29"),
        phases={"hold": PhaseRecipe(Moment(), Moment("go_cues[0]")), "last": PhaseRecipe(Moment("go_cues.3"))},
    )
    session = read_session(nwb(change=ragged), rules)
    good = [k for k in range(48) if k % 5 == 4]
    assert np.flatnonzero(session.trial_columns["is_valid"]).tolist() == good
    assert np.allclose(list(session.phases["hold"]), [(2.0 * k, 2.0 * k + 0.3) for k in good])
    assert np.allclose(session.phases["last"].start, [2.0 * k + 0.6 for k in good])
    assert np.isnan(session.trial_columns["go_cues.0"][0]) and session.trial_columns["go_cues.1"][2] == cues[2][1]


# 4 -------------------------------------------------------------------------------------------------------------------


def test_4_times_that_repeat_or_go_back_are_refused_or_mended_as_the_recipe_says(nwb, recipe):
    time = np.arange(5000) / 50
    value = np.stack([10 * np.cos(time), -10 * np.sin(time)], axis=1)
    order = np.arange(5000)
    order[[300, 301]] = order[[301, 300]]
    order[400] = order[399]  # written twice
    path = nwb(time=time[order], velocity=value[order])
    assert "go back in time 1 times, first after 6.02 s; add the repair sort_timestamps" in refused(path, recipe)
    assert "1 timestamps are repeated" in refused(path, replace(recipe, repairs=["sort_timestamps"]))
    mended = read_session(path, replace(recipe, repairs=["sort_timestamps", "drop_repeated_timestamps"]))
    velocity, there = mended.signals["cursor_vel"], np.delete(np.arange(5000), 400)
    assert np.array_equal(velocity.time, time[there]) and np.allclose(velocity.value, value[there], atol=1e-5)


# 5 -------------------------------------------------------------------------------------------------------------------


def test_5_behaviour_that_is_nowhere_finite_is_refused_or_left_out(nwb, recipe):
    path = nwb(velocity=np.full((5000, 2), np.nan))
    alone = with_signal(recipe, derive_from="")
    assert "none of its 5000 samples is finite" in refused(path, alone)
    session = read_session(path, with_signal(alone, required=False))
    assert list(session.signals) == ["cursor_pos"]
    assert "cursor_vel is left out: none of its 5000 samples is finite" in told(session)
    derived = read_session(path, recipe)  # of the position, which is sound
    assert derived.signals["cursor_vel"].derived_from == "cursor_pos" and derived.signals["cursor_vel"].valid.all()


# 6 -------------------------------------------------------------------------------------------------------------------


def test_6_a_unit_without_spikes_keeps_its_row(nwb, recipe):
    spikes = [[], np.linspace(0, 99, 40), [], np.linspace(1, 98, 30), []]
    session = read_session(nwb(spikes=spikes), recipe)
    assert session.units.id == ("0", "1", "2", "3", "4") and "3 units have no spikes" in told(session)
    for unit, truth in enumerate(spikes):
        assert np.array_equal(train_of(session, unit), truth)
    fewer = read_session(nwb(spikes=spikes), replace(recipe, units=UnitsRecipe(min_spikes=1)))
    assert fewer.units.id == ("1", "3")


def test_6_no_spike_at_all_is_refused(nwb, recipe):
    assert "its 2 units have no spikes" in refused(nwb(spikes=[[], []]), recipe)


# 7 -------------------------------------------------------------------------------------------------------------------


def test_7_one_trial_cannot_be_drawn_from_but_blocks_of_time_can(nwb, recipe):
    path = nwb(trials=1)
    assert "1 usable trials to share between 3 splits; split it by blocks of time" in refused(path, recipe)
    session = read_session(path, replace(recipe, splits=SplitsRecipe(by="blocks", blocks=10)))
    assert len(session.trials) == 1 and list(session.phases["reach"]) == [(0.5, 1.9)]
    assert all(split.seconds > 5 for split in session.splits.values())


# 8 -------------------------------------------------------------------------------------------------------------------


def test_8_waveforms_are_never_read(nwb, recipe):
    """They lie in a file that is not there: whoever touched them would fail."""
    path = nwb(waveforms=8)
    with h5py.File(path, "r+") as file:
        units = file["units"]
        about, shape = dict(units["waveforms"].attrs), units["waveforms"].shape
        del units["waveforms"]
        lost = units.create_dataset("waveforms", shape, "i2", external=[("nowhere.raw", 0, 2 * 1000 * 8)])
        lost.attrs.update(about)
        units["waveforms_index"].attrs["target"] = lost.ref
        with pytest.raises(OSError):
            lost[:1]
    assert len(read_session(path, recipe).spikes) == 1000


# 9 -------------------------------------------------------------------------------------------------------------------


def test_9_a_rate_and_a_start_other_than_zero_give_the_times(nwb, recipe):
    session = read_session(nwb(rate=50.0, starting_time=3.0), recipe)
    for name in ("cursor_vel", "cursor_pos"):
        assert np.allclose(session.signals[name].time, 3.0 + np.arange(5000) / 50, atol=1e-9)
    assert session.domain.start[0] > 2.98


# 10 ------------------------------------------------------------------------------------------------------------------


def test_10_a_rate_that_holds_the_period_is_named_and_read_where_the_recipe_says_so(nwb, recipe):
    """t = offset + i * rate, as FALCON H1 stores it."""
    value = np.random.default_rng(0).normal(size=(4500, 2))
    path = nwb(position=False, velocity=value, rate=0.02, offset=5.0)
    line = refused(path, recipe)
    assert "its rate holds the period: add clock: period" in line and "of session small/Ada_day1" in line
    asked = with_signal(recipe, clock="period", rated_hz=50.0, derive_from="")
    velocity = read_session(path, asked).signals["cursor_vel"]
    assert np.allclose(velocity.time, 5.0 + np.arange(4500) * 0.02) and np.allclose(velocity.value, value, atol=1e-6)


# 11 ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stated, truly, factor", [("mm/s", "cm/s", 10.0), ("m/s", "cm/s", 0.01), ("cm/s", "mm/s", 0.1)]
)
def test_11_a_swapped_unit_of_measure_is_caught_and_the_likely_one_is_named(nwb, recipe, stated, truly, factor):
    """Speeds of 40 cm/s, in `truly`, where the file says `stated`."""
    in_truly = 40.0 * {"cm/s": 1.0, "mm/s": 10.0}[truly]
    path = nwb(velocity=np.full((5000, 2), in_truly / np.sqrt(2)), unit=stated)
    line = refused(path, with_signal(recipe, plausible=[15.0, 100.0]))
    assert "cursor_vel of session small/Ada_day1" in line
    assert f"it looks like {truly}, stated is {stated}; set stated_unit: {truly} if so" in line
    mended = read_session(path, with_signal(recipe, plausible=[15.0, 100.0], stated_unit=truly))
    assert np.allclose(np.linalg.norm(mended.signals["cursor_vel"].value, axis=1), 40.0)


# 12 ------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reset_file(tmp_path_factory, write_nwb) -> Path:
    """A recording of twice 48 s whose clock starts anew: trials, spikes and behaviour fall back to 0."""
    half = np.arange(48 * 50) / 50
    spikes = [np.concatenate([np.arange(0.5 + k / 9, 48, 0.7)] * 2) for k in range(4)]

    def again(file: NWBFile) -> None:
        for k in range(24):
            file.add_trial(start_time=2.0 * k, stop_time=2.0 * k + 1.9, go_cue_time=2.0 * k + 0.5, result="R")

    path = tmp_path_factory.mktemp("reset") / "reset.nwb"
    return write_nwb(path, time=np.concatenate([half, half]), spikes=spikes, trials=24, change=again)


def test_12_a_clock_that_starts_anew_is_refused_with_the_repair_to_add(reset_file, recipe, blocks):
    assert "add the repair clock_reset" in refused(reset_file, recipe)
    untold = replace(recipe, repairs=["sort_timestamps", "drop_repeated_timestamps"])
    assert "fall back 1 times: the clock was reset; add the repair clock_reset" in refused(reset_file, untold)


def test_12_trials_alone_tell_it_too(nwb, recipe):
    """Spikes and behaviour run on; only the trial table starts anew, in the midst of the trials before."""

    def again(file: NWBFile) -> None:
        for k in range(20):
            file.add_trial(start_time=2.0 * k + 0.7, stop_time=2.0 * k + 2.1, go_cue_time=2.0 * k + 1.0, result="R")

    line = refused(nwb(trials=24, change=again), recipe)
    assert "they start anew 1 times, first after row 23" in line and "add the repair clock_reset" in line


def test_12_with_the_repair_the_second_block_follows_a_minute_later(reset_file, recipe):
    session = read_session(reset_file, replace(recipe, repairs=["clock_reset"]))
    assert len(session.trials) == 48 and len(session.domain) == 2
    first, second = (session.trials.start[:24], session.trials.start[24:])
    shift = second[0] - first[0]
    assert np.allclose(second - shift, first) and 48 + 59 < shift < 48 + 61
    for unit in range(4):
        a, b = np.split(train_of(session, unit), 2)
        assert np.allclose(b - shift, a)
    assert "clock reset 1 times" in told(session)


def test_12_trials_in_another_order_than_that_of_time_are_no_reset(nwb, recipe):
    def late(file: NWBFile) -> None:
        for k in (30, 28, 26, 29, 27, 25):
            file.add_trial(start_time=2.0 * k, stop_time=2.0 * k + 1.9, go_cue_time=2.0 * k + 0.5, result="R")

    session = read_session(nwb(trials=24, change=late), recipe)
    assert session.trials.start.tolist() == [2.0 * k for k in (*range(24), *range(25, 31))]


def test_12_disorder_among_neighbouring_spikes_is_no_reset(nwb, recipe):
    spikes = [np.linspace(1 + k / 9, 98, 600) for k in range(4)]
    for one in spikes:
        one[[20, 21]] = one[[21, 20]]
    session = read_session(nwb(spikes=spikes), recipe)
    assert "spike times of 4 units were not sorted" in told(session)
    assert all(np.array_equal(train_of(session, k), np.sort(spikes[k])) for k in range(4))


# 13 ------------------------------------------------------------------------------------------------------------------


def names(ids: list[str], held_out: list[bool]) -> Callable[[NWBFile], None]:
    """A change that gives units a name, and says which are held out."""

    def change(file: NWBFile) -> None:
        file.add_unit_column(name="label", description="label", data=ids)
        file.add_unit_column(name="heldout", description="withheld in the test file", data=held_out)

    return change


def test_13_units_of_a_test_file_stand_as_in_the_train_file_and_the_withheld_are_missing(nwb, recipe):
    random = np.random.default_rng(3)
    spikes = {name: np.sort(random.uniform(0, 100, 60)) for name in "abcde"}
    train = nwb(
        "x_train.nwb", spikes=list(spikes.values()), change=names([*"abcde"], [False, True, False, True, False])
    )
    fewer = {name: spikes[name] / 2 for name in "eca"}  # another order, without the withheld ones
    test = nwb("x_test.nwb", spikes=list(fewer.values()), change=names([*"eca"], [False] * 3))
    rules = replace(
        recipe, units=UnitsRecipe(id_column="label", held_out="heldout", roster="*_train.nwb", min_spikes=1)
    )
    whole, part = read_session(train, rules), read_session(test, rules, train)
    assert whole.units.id == part.units.id == tuple("abcde")
    assert whole.units.held_out == (False, True, False, True, False) and whole.units.missing == ()
    assert part.units.missing == (False, True, False, True, False)
    for unit, name in enumerate("abcde"):
        assert np.array_equal(train_of(whole, unit), spikes[name])
        assert np.array_equal(train_of(part, unit), fewer.get(name, []))
    assert "2 units of the roster are not in this file" in told(part) and "no spikes" not in told(part)


# 14 ------------------------------------------------------------------------------------------------------------------


def test_14_trial_columns_that_some_files_lack(nwb, recipe):
    def discarded(file: NWBFile) -> None:
        file.add_trial_column(name="discard", description="by hand", data=[k % 4 == 0 for k in range(48)])
        file.add_trial_column(name="move_time", description="s", data=[2.0 * k + 0.8 for k in range(48)])

    rules = replace(
        recipe,
        trials=TrialsRecipe(valid="result == 'R' and not get(discard, False)", factors={"rt": 0.001}),
        phases={**recipe.phases, "move": PhaseRecipe(Moment("move_time"), Moment("stop_time"), optional=True)},
    )
    more, fewer = read_session(nwb("more.nwb", change=discarded), rules), read_session(nwb(), rules)
    assert more.trial_columns["is_valid"].sum() == 30 and fewer.trial_columns["is_valid"].sum() == 42
    assert len(more.phases["move"]) == 30 and len(fewer.phases["move"]) == 0
    assert "trials have no column rt" in told(fewer)
    strict = replace(rules, trials=TrialsRecipe(valid="not discard"))
    assert "no column 'discard'; choose from duration, go_cue_time, result" in refused(nwb(), strict)


# 15 ------------------------------------------------------------------------------------------------------------------


def test_15_a_test_file_without_behaviour_is_a_session_of_its_observed_trials(nwb, recipe):
    def held(file: NWBFile) -> None:
        file.add_trial_column(name="split", description="of the benchmark", data=["test"] * 48)

    observed = [[2.0 * k, 2.0 * k + 1.9] for k in range(48)]
    path = nwb(velocity=False, position=False, observed=observed, change=held)
    rules = replace(
        with_signal(recipe, required=False),
        splits=SplitsRecipe(by="column", column="split", values={"train": ["train"], "test": ["test"]}, rest="drop"),
        min_train_s=0.0,
        eval_phases=["reach"],
    )
    session = read_session(path, rules)
    assert session.signals == {} and np.allclose(list(session.domain), observed)
    assert [len(session.splits[name]) for name in ("train", "valid", "test")] == [0, 0, 42]  # 6 trials failed
    assert "no cursor_vel: the domain rests on the obs_intervals alone" in told(session)
    bare = read_session(nwb("bare.nwb", velocity=False, position=False), replace(rules, splits=SplitsRecipe(blocks=10)))
    assert 98 < bare.domain.seconds < 100 and "rests on the spikes alone" in told(bare)
    assert "no trial has split in ['train']" in refused(path, replace(rules, min_train_s=1.0))


# 16 ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.999])
def test_16_a_truncated_download_is_refused_with_what_to_do(nwb, recipe, part):
    path = nwb()
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    assert "fetch it again" in refused(path, recipe)


def test_16_a_download_whose_end_is_zeros_is_refused(nwb, recipe):
    path = nwb()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2))
    assert refused(path, recipe)


# none ----------------------------------------------------------------------------------------------------------------


def test_of_a_file_without_faults_nothing_is_told(nwb, recipe):
    session = read_session(nwb(), recipe)
    assert told(session) == "" and session.domain.seconds > 99
    assert session.units.held_out == session.units.missing == ()
