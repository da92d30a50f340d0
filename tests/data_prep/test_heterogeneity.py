"""Every way in which labs differ, and the rule for it: one file that holds the variants, read by recipes that differ.

Two rows of that table have files of their own: how large recordings stay out of memory, and how downloads are verified.
"""

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from data_prep.assembly import read_session
from data_prep.errors import SessionError
from data_prep.recipe import (
    DomainRecipe,
    Moment,
    PhaseRecipe,
    SignalRecipe,
    SplitsRecipe,
    TrialsRecipe,
    UnitsRecipe,
)
from data_prep.session import Session
from tests.data_prep.layouts.everything import RATES, add_everything, counted, wave


@pytest.fixture(scope="module")
def many(tmp_path_factory, write_nwb) -> Path:
    return write_nwb(tmp_path_factory.mktemp("many") / "many.nwb", change=add_everything)


@pytest.fixture
def read(many, recipe):
    """Read that file by a recipe that differs from the plain one."""

    def give(signals: dict[str, SignalRecipe] | None = None, **changes) -> Session:
        whole = DomainRecipe(signals=["cursor_vel"])
        return read_session(
            many, replace(recipe, **{"domain": whole, **changes, "signals": {**recipe.signals, **(signals or {})}})
        )

    return give


def refused(call, *arguments, **keywords) -> str:
    with pytest.raises(SessionError) as refusal:
        call(*arguments, **keywords)
    return str(refusal.value)


# spikes --------------------------------------------------------------------------------------------------------------


def test_spikes_come_from_the_first_source_the_recipe_names(read):
    """The file has a units table and threshold crossings; the order of the recipe decides."""
    assert len(read().units) == 5
    session = read(units=UnitsRecipe(source=["ThresholdCrossings", "units"]))
    assert len(session.units) == 3 and len(session.spikes) == counted().sum()
    for channel in range(3):
        time = session.spikes.time[session.spikes.unit == channel]
        bins = np.floor(time / 0.4 + 1e-9).astype(int)
        assert np.array_equal(np.bincount(bins, minlength=250), counted()[:, channel])


def test_no_source_of_spikes_is_an_error(read):
    assert "binned" in refused(read, units=UnitsRecipe(source=["binned"]))


# unit quality --------------------------------------------------------------------------------------------------------


def test_units_of_any_quality_are_kept_and_flagged_unless_the_recipe_excludes_them(read, nwb, recipe):
    assert read().units.quality == ("good", "MUA", "good", "unsorted", "")
    assert read(units=UnitsRecipe(keep="quality not in ('MUA', 'unsorted')")).units.id == ("0", "2", "4")
    assert read_session(nwb(), recipe).units.quality == ("",) * 5
    assert read_session(nwb(), replace(recipe, units=UnitsRecipe(keep="get(quality, 'good') == 'good'"))).units.id


# region --------------------------------------------------------------------------------------------------------------


def test_regions_by_electrode_by_group_by_the_digit_of_an_id_or_unknown(read):
    by_digit = UnitsRecipe(id_column="label", region=["label"], region_map={"^1": "PMd", "^2": "M1"})
    assert read(units=by_digit).units.region == ("PMd", "PMd", "M1", "M1", "3001")
    rest = replace(by_digit, region_map={"^1": "PMd", "^2": "M1", ".": "unknown"})
    assert read(units=rest).units.region == ("PMd", "PMd", "M1", "M1", "unknown")
    assert read(units=UnitsRecipe(region=["electrodes"])).units.region == ("unknown", "M1", "unknown", "M1", "unknown")
    assert read(units=UnitsRecipe(region=["electrode_group"])).units.region == ("M1",) * 5
    assert read(units=UnitsRecipe(region=["nothing"])).units.region == ("unknown",) * 5
    assert read(units=UnitsRecipe(region=["id"], region_map={"^[01]$": "S1"})).units.region[:3] == ("S1", "S1", "2")


def test_a_unit_knows_its_electrode(read):
    assert read().units.electrode == ("0", "1", "2", "3", "4")


# clock ---------------------------------------------------------------------------------------------------------------


def test_times_stay_on_the_clock_of_their_file(nwb, recipe):
    """A test file whose trials were laid end to end anew is a session of its own: nothing aligns it with another."""
    late = read_session(nwb(time=1000 + np.arange(5000) / 50, spikes=[1000 + np.linspace(0, 99, 90)], trials=0),
                        replace(recipe, splits=SplitsRecipe(blocks=10)))  # fmt: skip
    assert late.domain.start[0] > 999 and late.spikes.time[0] == 1000 and late.splits["train"].start[0] >= 1000


# sampling ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hz", RATES)
def test_a_rate_gives_the_same_times_as_timestamps_do(read, hz):
    places = {name: SignalRecipe(path=[f"{name}_{hz:g}"], rated_hz=hz) for name in ("rated", "timed")}
    session = read(places)
    rated, timed = session.signals["rated"], session.signals["timed"]
    assert np.allclose(rated.time, timed.time, rtol=0, atol=1e-9) and np.array_equal(rated.value, timed.value)
    assert rated.time[0] == 50.0 and len(rated.time) == 2 * hz and np.allclose(np.diff(timed.time), 1 / hz)


@pytest.mark.parametrize("off, fine", [(1.005, True), (0.995, True), (1.02, False), (0.98, False), (2.0, False)])
def test_a_rate_is_verified_within_one_percent(read, off, fine):
    claim = {"timed": SignalRecipe(path=["timed_100"], rated_hz=100 * off)}
    if fine:
        assert len(read(claim).signals["timed"].time) == 200
    else:
        line = refused(read, claim)
        assert "timed of session small/Ada_day1: its median sample interval is 0.01 s (100 Hz), the recipe says" in line


def test_times_in_milliseconds_are_named(nwb, recipe):
    line = refused(read_session, nwb(time=np.arange(5000) / 50 * 1000), recipe)
    assert "its times look like milliseconds" in line and "of session small/Ada_day1" in line


# units of measure ----------------------------------------------------------------------------------------------------


def test_the_recipe_is_believed_before_the_attribute(read):
    signals = read(
        {
            "wrong": SignalRecipe(path=["wrong"], unit="cm/s", stated_unit="mm/s"),  # the file says m/s
            "attribute": SignalRecipe(path=["wrong"], unit="cm/s"),
            "untold": SignalRecipe(path=["untold"], unit="cm/s", stated_unit="m/s"),
            "bins": SignalRecipe(path=["untold"], unit="cm/s", stated_unit="mm/s", factor=50.0),  # per 20-ms bin
            "flexion": SignalRecipe(path=["flexion"], unit="flexion"),
            "deg": SignalRecipe(path=["deg"], unit="rad"),
            "asis": SignalRecipe(path=["untold"]),
        }
    ).signals
    ten = {
        name: np.linalg.norm(signal.value, axis=1) / 10 for name, signal in signals.items() if len(signal.time) == 2000
    }
    truth = {
        "wrong": 0.1,
        "attribute": 100.0,
        "untold": 100.0,
        "bins": 5.0,
        "flexion": 1.0,
        "deg": np.pi / 180,
        "asis": 1,
    }
    for name, factor in truth.items():
        assert np.allclose(ten[name], factor, rtol=1e-5), name
    assert signals["wrong"].unit_of_measure == "cm/s" and signals["asis"].unit_of_measure == "unknown"


@pytest.mark.parametrize("name, unit", [("untold", "unknown"), ("blank", "n/a")])
def test_an_attribute_that_says_nothing_is_not_guessed(read, name, unit):
    line = refused(read, {name: SignalRecipe(path=[name], unit="cm/s")})
    assert f"its unit of measure is {unit!r}, the recipe asks for cm/s" in line.replace("'cm/s'", "cm/s")
    assert "say what it really is with stated_unit" in line


def test_the_speed_of_a_hand_is_checked(read):
    """Nobody reaches at 10 m/s: the 99.9 percentile must be .05 to 3 m/s, in whatever unit one asks for."""
    for unit, scale in (("m/s", 1.0), ("cm/s", 100.0)):
        hand = SignalRecipe(path=["wrong"], unit=unit, plausible=[0.05 * scale, 3.0 * scale])
        line = refused(read, {"hand": hand})
        assert (
            f"hand of session small/Ada_day1: its 99.9 percentile is {10 * scale:g} {unit}, the recipe expects" in line
        )
        assert "it looks like cm/s, stated is m/s; set stated_unit: cm/s if so" in line
        assert read({"hand": replace(hand, stated_unit="cm/s")}).signals["hand"].unit_of_measure == unit
    furlongs = SignalRecipe(path=["untold"], plausible=[0.05, 3.0])
    assert "0.05 to 3; correct stated_unit or plausible" in refused(read, {"hand": furlongs})


# conversion and offset -----------------------------------------------------------------------------------------------


def test_conversion_and_offset_are_applied_unless_the_recipe_says_not_to(read):
    flat = np.arange(2000) / 20
    signals = read(
        {
            "meant": SignalRecipe(path=["scaled"]),
            "raw": SignalRecipe(path=["scaled"], conversion=False),
            "quarter": SignalRecipe(path=["scaled"], conversion=False, factor=0.25, stated_unit="uV", unit="uV"),
        }
    ).signals
    assert np.allclose(signals["meant"].value, wave(flat) * 1e-6 + 0.5)
    assert np.allclose(signals["raw"].value, wave(flat), rtol=1e-6)
    assert np.allclose(signals["quarter"].value, wave(flat) / 4, rtol=1e-6)
    assert signals["quarter"].unit_of_measure == "uV"


# where behaviour lies ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place",
    [
        "flat_vel",
        "processing/behavior/flat_vel",
        "deep_vel",
        "BehavioralTimeSeries/deep_vel",
        "processing/behavior/BehavioralTimeSeries/deep_vel",
        "acquisition/raw_vel",
        "raw_vel",
        "analysis/late_vel",
        "late_vel",
    ],
)
def test_behaviour_is_found_wherever_it_lies(read, place):
    """Any of the names a dandiset used over the years; the first that the file has counts."""
    names = ["old_name", "processing/behavior/Velocity/older_name", place, "Velocity/cursor_vel"]
    found = read({"found": SignalRecipe(path=names)}).signals["found"]
    assert np.allclose(found.value, wave(np.arange(2000) / 20), atol=1e-5)


# what is missing -----------------------------------------------------------------------------------------------------


def test_missing_values_gaps_and_times_between_trials_split_the_domain(nwb, blocks):
    """Sampled during trials only; one trial loses ten samples, one holds a NaN: never is anything filled in."""
    time = np.concatenate([10.0 * k + np.arange(400) / 50 for k in range(10)])
    value = wave(time)
    value[450:460] = np.nan
    value[900, 1] = np.nan
    keep = np.ones(len(time), dtype=bool)
    keep[1300:1310] = False
    session = read_session(nwb(time=time[keep], velocity=value[keep], position=value[keep]), blocks)
    velocity = session.signals["cursor_vel"]
    assert np.array_equal(velocity.time, time[keep]) and velocity.valid.sum() == keep.sum() - 11
    assert not session.domain.contains(np.array([8.5, 19.0, 11.1, 20.0 + 100 / 50, 32.1])).any()
    assert session.domain.contains(np.array([5.0, 10.5, 15.0, 21.0, 23.0, 31.0, 35.0])).all()
    assert len(session.domain) == 13  # ten trials, three of them cut in two


def test_a_file_says_which_times_are_invalid_and_the_recipe_may_keep_them(read):
    assert np.allclose(list(read().domain), [(0.0, 20.0), (25.0, 99.99)], atol=0.2)
    assert "5.0 s of invalid_times left out" in read().provenance["notes"]
    kept = read(domain=DomainRecipe(signals=["cursor_vel"], invalid_times=False))
    assert len(kept.domain) == 1 and "invalid" not in kept.provenance["notes"]


def test_a_mask_is_a_phase_and_may_be_turned_about(read):
    phases = {
        "judged": PhaseRecipe(mask=["eval_mask"]),
        "ignored": PhaseRecipe(mask=["other", "acquisition/eval_mask"], invert=True),
        "never": PhaseRecipe(mask=["no_mask"], optional=True),
    }
    session = read(phases=phases, eval_phases=["judged"])
    flat = np.arange(2000) / 20
    inside = session.domain.contains(flat)
    assert np.array_equal(session.phases["judged"].contains(flat), (flat >= 30) & (flat < 60))
    assert np.array_equal(session.phases["ignored"].contains(flat), ((flat < 30) | (flat >= 60)) & inside)
    assert len(session.phases["never"]) == 0
    assert "no series at no_mask" in refused(read, phases={"never": PhaseRecipe(mask=["no_mask"])})


def test_units_observed_at_different_times_share_the_domain_and_the_loss_is_told(nwb, blocks):
    path = nwb(observed=[[0.0, 60.0]])
    with h5py.File(path, "r+") as file:  # one unit was lost for a while, another came later
        rows = file["units/obs_intervals"][:]
        rows[1] = [0.0, 40.0]
        rows[3] = [10.0, 60.0]
        file["units/obs_intervals"][:] = rows
    session = read_session(path, blocks)
    assert np.allclose(list(session.domain), [(10.0, 40.0)])
    assert (
        "obs_intervals differ between units: 30.0 s that not all of them share left out" in session.provenance["notes"]
    )
    with h5py.File(path, "r+") as file:
        rows[1] = [0.0, 5.0]
        file["units/obs_intervals"][:] = rows
    assert read_session(path, replace(blocks, units=UnitsRecipe(keep="id != 1"))).domain.start[0] == 10.0
    line = refused(read_session, path, blocks)
    assert "its units have 3 different obs_intervals and share no second of 60.0" in line and "units.keep" in line


def test_epochs_by_condition(read):
    one = DomainRecipe(signals=["cursor_vel"], epochs_table="blocks", epochs="run in (1, 3)")
    assert np.allclose(list(read(domain=one).domain), [(10.0, 20.0), (25.0, 70.0)], atol=0.02)


# trials --------------------------------------------------------------------------------------------------------------


def test_trial_columns_of_every_kind(read):
    session = read(
        trials=TrialsRecipe(
            valid="known(when) and flag and kind == 'centre' and 0.3 <= delay_ms < 0.34 and target[0] + target[1] == 0",
            factors={"delay_ms": 0.001},
        ),
        phases={
            "late": PhaseRecipe(Moment("when"), Moment("stop_time")),
            "cue": PhaseRecipe(Moment("cues[1]"), trials="all"),
        },
        splits=SplitsRecipe(blocks=10),
    )
    truth = [k for k in range(48) if k % 4 and k % 2 == 0 and k % 3 and k < 40]
    assert np.flatnonzero(session.trial_columns["is_valid"]).tolist() == truth
    assert np.allclose(session.phases["late"].start, [2.0 * k + 0.7 for k in truth])
    assert np.allclose(session.phases["cue"].start, [2.0 * k + 0.2 for k in range(48) if k % 4 >= 2])
    assert np.allclose(session.trial_columns["delay_ms"], 0.3 + np.arange(48) / 1000)
    assert session.trial_columns["kind"].dtype.kind == "U" and set(session.trial_columns["kind"]) == {
        "centre",
        "corner",
    }


def test_trials_in_milliseconds_are_named_and_read_with_the_factors_it_takes(many, tmp_path, recipe):
    times = ("start_time", "stop_time", "go_cue_time")
    path = tmp_path / "ms.nwb"
    path.write_bytes(many.read_bytes())
    with h5py.File(path, "r+") as file:
        for name in times:
            file[f"intervals/trials/{name}"][:] *= 1000
    line = refused(read_session, path, recipe)
    assert (
        "47 of 48 start after the last spike at 99.9501 s" in line
        and "milliseconds, it seems; add trials.factors" in line
    )
    factors = dict.fromkeys(times, 0.001)
    mended = read_session(path, replace(recipe, trials=replace(recipe.trials, factors=factors)))
    truth = read_session(many, recipe)
    assert np.allclose(mended.trials.start, truth.trials.start, atol=1e-9)
    assert np.allclose(list(mended.phases["reach"]), list(truth.phases["reach"]), atol=1e-9)


def test_a_column_of_words_holds_no_times(read):
    assert "holds text" in refused(read, phases={"kind": PhaseRecipe(Moment("kind"))})


# velocity ------------------------------------------------------------------------------------------------------------


def test_a_velocity_is_read_where_given_and_else_derived_within_each_stretch_and_flagged(nwb, recipe):
    time = np.concatenate([np.arange(2500) / 50, 60 + np.arange(2000) / 50])
    step = np.where(time < 55, 0.0, 500.0)[:, None]
    given = read_session(nwb(time=time, position=wave(time) + step, velocity=-wave(time)), recipe)
    derived = read_session(nwb("derived.nwb", time=time, position=wave(time) + step, velocity=False), recipe)
    assert given.signals["cursor_vel"].derived_from == "" and derived.signals["cursor_vel"].derived_from == "cursor_pos"
    truth = wave(time)[:, ::-1] * [-1, 1]
    assert np.allclose(given.signals["cursor_vel"].value, -wave(time), atol=1e-5)
    assert np.abs(derived.signals["cursor_vel"].value - truth).max() < 0.15  # at the ends of a stretch; 5000 if across


# sign and axes -------------------------------------------------------------------------------------------------------


def test_axes_in_another_order_and_with_another_sign_are_put_right(read):
    """The file has z, -x, -y."""
    signals = read(
        {
            "z": SignalRecipe(path=["finger_pos"], columns=[0]),
            "xy": SignalRecipe(path=["finger_pos"], columns=[1, 2], factor=-1.0),
        }
    ).signals
    assert (signals["z"].value == 3.0).all() and (signals["xy"].value == [1.0, 2.0]).all()


# spikes twice --------------------------------------------------------------------------------------------------------


def test_spikes_of_a_unit_less_than_a_tenth_of_a_millisecond_apart_are_counted_and_kept(nwb, recipe):
    one = np.linspace(1, 99, 200)
    path = nwb(spikes=[np.sort([*one, 5.0, 5.00009, 5.0002]), one, one + 5e-5])
    session = read_session(path, recipe)
    assert len(session.spikes) == 603 and "1 spikes come less than 0.1 ms after" in session.provenance["notes"]
    assert "0.1 ms" not in read_session(nwb("clean.nwb", spikes=[one, one + 5e-5]), recipe).provenance["notes"]


def test_spikes_outside_the_domain_are_counted(nwb, blocks):
    one = np.linspace(0.05, 99.95, 100)  # half of them before 50 s
    session = read_session(nwb(spikes=[one, one + 0.01], observed=[[0.0, 50.0]]), blocks)
    assert "100 of 200 spikes lie outside the domain" in session.provenance["notes"]
    assert session.domain.contains(session.spikes.time).sum() == 100
