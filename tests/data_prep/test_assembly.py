"""An NWB file and a recipe become the Session one can work out by hand; what cannot is refused in one line."""

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from pynwb import NWBFile, TimeSeries

from data_prep.assembly import read_session
from data_prep.errors import RecipeError, SessionError
from data_prep.recipe import (
    DomainRecipe,
    OutlierRecipe,
    PhaseRecipe,
    Recipe,
    SignalRecipe,
    SplitsRecipe,
    StillRecipe,
    TrialsRecipe,
    UnitsRecipe,
)


def refused(path: Path, recipe: Recipe) -> str:
    """The one line with which a file is refused."""
    with pytest.raises(SessionError) as refusal:
        read_session(path, recipe)
    assert "\n" not in str(refusal.value) and str(refusal.value).startswith(path.name)
    return str(refusal.value)


def with_signal(recipe: Recipe, name: str = "cursor_vel", **changes) -> Recipe:
    return replace(recipe, signals={**recipe.signals, name: replace(recipe.signals[name], **changes)})


def test_a_sound_file(nwb, recipe):
    session = read_session(nwb(), recipe)
    assert session.id == "small/Ada_day1" and session.subject == "Ada" and session.dandiset == "small"
    assert (
        session.units.id == ("0", "1", "2", "3", "4") and session.units.region == ("M1",) * 5
    )  # group, then electrode
    assert len(session.spikes.time) == 1000 and (np.diff(session.spikes.time) >= 0).all()
    assert np.bincount(session.spikes.unit).tolist() == [200] * 5
    time = session.signals["cursor_vel"].time
    truth = 10 * np.stack([np.cos(time), -np.sin(time)], axis=1)
    assert np.allclose(session.signals["cursor_vel"].value, truth, atol=1e-5)
    assert session.signals["cursor_vel"].value.dtype == np.float32 and session.signals["cursor_vel"].derived_from == ""
    assert len(session.trials) == 48 and session.trial_columns["is_valid"].sum() == 42
    assert np.isclose(session.phases["reach"].seconds, 42 * 1.4)
    assert session.provenance["recipe_hash"] == recipe.hash() and session.provenance["nwb_version"].startswith("2.")


def test_each_spike_keeps_its_unit(nwb, recipe):
    spikes = [np.sort(np.random.default_rng(k).uniform(0, 100, 50)) for k in range(3)]
    session = read_session(nwb(spikes=spikes), recipe)
    for k, times in enumerate(spikes):
        assert np.array_equal(session.spikes.time[session.spikes.unit == k], times)


def test_a_velocity_that_is_not_there_is_derived(nwb, recipe):
    session = read_session(nwb(velocity=False), recipe)
    velocity = session.signals["cursor_vel"]
    truth = 10 * np.stack([np.cos(velocity.time), -np.sin(velocity.time)], axis=1)
    assert velocity.derived_from == "cursor_pos" and velocity.unit_of_measure == "cm/s"
    assert np.abs(velocity.value - truth)[1:-1].max() < 0.01
    assert list(session.signals) == ["cursor_vel", "cursor_pos"]  # in the recipe's order


@pytest.mark.parametrize("unit, conversion, offset", [("mm/s", 1.0, 0.0), ("m/s", 1.0, 0.0), ("cm/s", 2.0, 3.0)])
def test_values_are_converted(nwb, recipe, unit, conversion, offset):
    raw = np.random.default_rng(0).normal(size=(5000, 2))
    session = read_session(nwb(velocity=raw, unit=unit, conversion=conversion, offset=offset), recipe)
    per_cm = {"mm/s": 0.1, "m/s": 100.0, "cm/s": 1.0}[unit]
    truth = (raw * conversion + offset) * per_cm
    assert np.allclose(session.signals["cursor_vel"].value, truth, rtol=1e-6)


def test_a_wrong_unit_attribute_is_overruled_or_caught(nwb, recipe):
    path = nwb(unit="mm/s")  # its values are cm/s
    assert np.isclose(
        np.abs(read_session(path, with_signal(recipe, stated_unit="cm/s")).signals["cursor_vel"].value).max(),
        10,
        rtol=1e-3,
    )
    assert "99.9 percentile is 1 cm/s, the recipe expects 5 to 300" in refused(
        path, with_signal(recipe, plausible=[5.0, 300.0])
    )
    assert "unit of measure is 'furlongs'" in refused(nwb(name="odd.nwb", unit="furlongs"), recipe)


def test_a_rate_and_starting_time_make_timestamps(nwb, recipe):
    session = read_session(nwb(rate=50.0, starting_time=7.0), recipe)
    assert np.allclose(session.signals["cursor_vel"].time, 7 + np.arange(5000) / 50)


def test_linked_timestamps_are_followed(nwb, recipe):
    def link(file: NWBFile) -> None:
        position = file.processing["behavior"]["Position"]["cursor_pos"]
        file.add_acquisition(TimeSeries(name="linked", data=np.ones((5000, 1)), unit="V", timestamps=position))

    linked = replace(recipe, signals={**recipe.signals, "linked": SignalRecipe(path=["acquisition/linked"])})
    session = read_session(nwb(change=link), linked)
    assert np.array_equal(session.signals["linked"].time, session.signals["cursor_pos"].time)


def test_a_gap_splits_the_domain_and_no_derived_velocity_crosses_it(nwb, recipe):
    time = np.concatenate([np.arange(2500) / 50, 60 + np.arange(2000) / 50])
    jump = np.stack([np.where(time < 55, 0.0, 100.0), np.zeros(4500)], axis=1)  # still, but elsewhere after the gap
    session = read_session(nwb(time=time, velocity=False, position=jump), recipe)
    assert np.allclose(list(session.domain), [(0, 49.99), (59.99, 99.99)], atol=0.2)
    assert np.abs(session.signals["cursor_vel"].value).max() < 1e-9


def test_missing_values_are_marked_and_a_hole_of_them_splits_the_domain(nwb, recipe):
    velocity = np.ones((5000, 2))
    velocity[1000:1500, 0] = np.nan
    session = read_session(nwb(velocity=velocity), recipe)
    assert (
        not session.signals["cursor_vel"].valid[1000:1500].any() and session.signals["cursor_vel"].valid.sum() == 4500
    )
    assert len(session.domain) == 2 and not session.domain.contains(np.array([21.0, 25.0, 29.0])).any()


def test_the_domain_is_what_all_units_share(nwb, blocks):
    session = read_session(nwb(observed=[[0.0, 30.0], [40.0, 90.0]]), blocks)
    assert np.allclose(list(session.domain), [(0, 30), (40, 90)])
    everywhere = replace(blocks, domain=DomainRecipe(observed=False))
    assert read_session(nwb(observed=[[0.0, 30.0], [40.0, 90.0]]), everywhere).domain.seconds > 99


def test_the_domain_keeps_to_epochs_and_leaves_rest_out(nwb, blocks):
    def epochs(file: NWBFile) -> None:
        file.add_epoch(start_time=0.0, stop_time=80.0, tags=["task", "run"])
        file.add_epoch(start_time=80.0, stop_time=100.0, tags=["rest"])

    velocity = np.ones((5000, 2))
    velocity[1000:2000] = 0
    path = nwb(velocity=velocity, change=epochs)
    rule = DomainRecipe(epochs_table="epochs", epochs="'task' in tags", still=StillRecipe("cursor_vel", 0.5, 10.0))
    assert np.allclose(list(read_session(path, replace(blocks, domain=rule)).domain), [(0, 20), (40, 80)], atol=0.03)


def test_outliers_are_a_phase(nwb, recipe):
    velocity = np.ones((5000, 2))
    velocity[700] = 500.0
    rules = replace(recipe, outliers=[OutlierRecipe("cursor_vel", norm_above=300)])
    session = read_session(nwb(velocity=velocity), rules)
    assert list(session.phases)[-1] == "outlier"
    time = session.signals["cursor_vel"].time
    assert np.flatnonzero(session.phases["outlier"].contains(time)).tolist() == [700]


def test_units_by_condition_column_and_count(nwb, recipe):
    def quality(file: NWBFile) -> None:
        file.add_unit_column(name="quality", description="how good", data=["good", "mua", "good", "noise", "good"])

    path = nwb(change=quality, spikes=[np.linspace(1, 99, n) for n in (9, 8, 3, 7, 6)])
    kept = UnitsRecipe(keep="quality == 'good'", min_spikes=5)
    session = read_session(path, replace(recipe, units=kept))
    assert session.units.id == ("0", "4") and session.units.quality == ("good", "good")
    assert np.bincount(session.spikes.unit).tolist() == [9, 6]


def test_regions_come_from_the_first_source_that_knows_and_may_be_renamed(nwb, recipe):
    only = replace(recipe, units=UnitsRecipe(region=["electrodes"], region_map={"^M1$": "primary motor"}))
    assert read_session(nwb(), only).units.region == ("unknown", "primary motor", "unknown", "primary motor", "unknown")
    assert read_session(nwb("none.nwb", electrodes=False), recipe).units.region == ("unknown",) * 5


def test_a_silent_unit_is_kept_and_told(nwb, recipe):
    session = read_session(nwb(spikes=[[], np.linspace(0, 99, 50), []]), recipe)
    assert len(session.units) == 3 and "2 units have no spikes" in session.provenance["notes"]


def test_unsorted_spike_times_are_sorted_and_told(nwb, recipe):
    session = read_session(nwb(spikes=[[5.0, 3.0, 90.0, 1.0], [2.0, 50.0]]), recipe)
    assert session.spikes.time.tolist() == [1, 2, 3, 5, 50, 90] and session.spikes.unit.tolist() == [0, 1, 0, 0, 1, 0]
    assert "spike times of 1 units were not sorted" in session.provenance["notes"]


def test_spikes_only(nwb, blocks):
    session = read_session(nwb(velocity=False, position=False), replace(blocks, signals={}))
    assert session.signals == {} and 95 < session.domain.seconds < 100


def test_no_session_id_falls_back_to_the_identifier(nwb, recipe):
    session = read_session(nwb("ses y.nwb", session_id=None, subject=""), recipe)
    assert session.id == "small/unknown_ses-y.nwb"


# ------------------------------------------------------------------------------------------- bad files


def test_a_missing_file(tmp_path, recipe):
    assert "no such file" in refused(tmp_path / "none.nwb", recipe)


def test_an_empty_file(tmp_path, recipe):
    path = tmp_path / "empty.nwb"
    path.touch()
    assert "empty (0 bytes)" in refused(path, recipe)


def test_a_file_that_is_not_hdf5(tmp_path, recipe):
    path = tmp_path / "text.nwb"
    path.write_text("start_time,stop_time\n" * 100)
    assert "not an HDF5 file" in refused(path, recipe)


def test_an_hdf5_file_that_is_not_nwb(tmp_path, recipe):
    path = tmp_path / "other.nwb"
    with h5py.File(path, "w") as file:
        file["x"] = 1
    assert "without nwb_version" in refused(path, recipe)


@pytest.mark.parametrize("as_attribute", [True, False])
def test_nwb_1(tmp_path, recipe, as_attribute):
    path = tmp_path / "old.nwb"
    with h5py.File(path, "w") as file:
        if as_attribute:
            file.attrs["nwb_version"] = "1.0.6"
        else:
            file["nwb_version"] = b"NWB-1.0.5"
    assert "only NWB 2 is read" in refused(path, recipe)


@pytest.mark.parametrize("part", [0.3, 0.9, 0.999])
def test_a_truncated_file(nwb, recipe, part):
    path = nwb()
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    assert "truncated" in refused(path, recipe)


def test_a_file_that_lacks_what_no_session_needs_is_read(nwb, recipe):
    path = nwb()
    with h5py.File(path, "r+") as file:
        del file["session_start_time"]
    assert len(read_session(path, recipe).spikes) == 1000


def test_damage_inside_the_file(nwb, recipe):
    path = nwb(change=lambda file: None)
    with h5py.File(path, "r+") as file:
        del file["units/spike_times"]
        file["units/spike_times"] = h5py.SoftLink("/nowhere")
    assert refused(path, recipe)


def test_no_units(nwb, recipe):
    assert "no units table" in refused(nwb(spikes=[]), recipe)


def test_an_index_that_does_not_fit(nwb, recipe):
    path = nwb()
    with h5py.File(path, "r+") as file:
        file["units/spike_times_index"][-1] = 7
    assert "index ends at" in refused(path, recipe)


def test_a_series_that_is_not_there_lists_those_that_are(nwb, recipe):
    line = refused(nwb(), with_signal(recipe, path=["processing/behavior/hand_vel"], derive_from=""))
    assert "no series at processing/behavior/hand_vel" in line and "processing/behavior/Velocity/cursor_vel" in line
    line = refused(nwb("bare.nwb", velocity=False, position=False), recipe)
    assert "no series at processing/behavior/Velocity/cursor_vel or cursor_pos" in line


def test_a_path_that_stands_for_two(nwb, recipe):
    def twin(file: NWBFile) -> None:
        file.add_acquisition(TimeSeries(name="cursor_pos", data=np.ones((10, 2)), unit="cm", rate=10.0))

    assert "'cursor_pos' stands for acquisition/cursor_pos and processing" in refused(nwb(change=twin), recipe)


def test_behaviour_that_is_nowhere_finite(nwb, recipe):
    path = nwb(velocity=np.full((5000, 2), np.nan))
    assert "none of its 5000 samples is finite" in refused(path, with_signal(recipe, derive_from=""))


def test_timestamps_in_disorder_are_refused_unless_a_repair_is_named(nwb, recipe):
    time = np.arange(5000) / 50
    back, again = time.copy(), time.copy()
    back[[100, 101]] = back[[101, 100]]
    again[200] = again[199]
    assert "go back in time 1 times" in refused(nwb(time=back), recipe)
    assert "repair sort_timestamps" in refused(nwb(time=back), recipe)
    path = nwb("again.nwb", time=again)
    assert "1 timestamps are repeated" in refused(path, recipe)
    mended = read_session(path, replace(recipe, repairs=["sort_timestamps", "drop_repeated_timestamps"]))
    assert len(mended.signals["cursor_vel"].time) == 4999 and "repeated time dropped" in mended.provenance["notes"]


def test_timestamps_that_are_not_finite(nwb, recipe):
    time = np.arange(5000) / 50
    time[3] = np.nan
    assert "timestamps are not finite" in refused(nwb(time=time), recipe)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_spikes_that_are_not_finite(nwb, recipe, bad):
    assert "finite" in refused(nwb(spikes=[[1.0, bad, 99.0], [2.0]]), recipe)


def test_a_session_with_one_trial(nwb, recipe, blocks):
    assert "1 usable trials" in refused(nwb(trials=1), recipe)
    assert read_session(nwb(trials=1), blocks).splits["test"].seconds > 10


def test_a_trial_column_that_is_not_there(nwb, recipe):
    wrong = replace(recipe, trials=replace(recipe.trials, valid="outcome == 'R'"))
    assert "no column 'outcome'; choose from" in refused(nwb(), wrong)


def test_too_little_to_train_on(nwb, recipe):
    with pytest.raises(SessionError, match="of training time, 500 s are asked for"):
        read_session(nwb(), replace(recipe, min_train_s=500))


def test_nothing_left_of_the_domain(nwb, recipe):
    assert "nothing is left of observed 2.0 s, cursor_vel 100.0 s" in refused(nwb(observed=[[500.0, 502.0]]), recipe)


@pytest.mark.parametrize(
    "change, line",
    [
        ({"repairs": ["polish"]}, "repairs names 'polish'; choose from"),
        ({"eval_phases": ["grasp"]}, "eval_phases names 'grasp'"),
        ({"name": ""}, "name is ''"),
        ({"loss_weights": {"rech": 5.0}}, "loss_weights names 'rech'"),
        ({"outliers": [OutlierRecipe("hand")]}, "outliers.signal names 'hand'"),
        ({"signals": {"a": SignalRecipe(derive_from="b"), "b": SignalRecipe(derive_from="a")}}, "derives from itself"),
        ({"signals": {"a": SignalRecipe()}}, "neither path nor derive_from"),
        ({"units": UnitsRecipe(region_map={"(": "M1"})}, "region_map has '('"),
        ({"signals": {"a/b": SignalRecipe(path=["x"])}}, "'a/b' is no name"),
        ({"signals": {"a": SignalRecipe(path=["x"], factor=0.0)}}, "signals.a has factor 0"),
        ({"signals": {"a": SignalRecipe(path=["x"], clock="ticks")}}, "signals.a.clock names 'ticks'"),
        ({"units": UnitsRecipe(bin_time="end")}, "units.bin_time names 'end'; choose from centre, start, stop"),
        ({"phases": {"hold": PhaseRecipe(invert=True)}, "eval_phases": []}, "phases.hold has no mask"),
        ({"splits": SplitsRecipe(by="column", column="s", values={"train": ["a"], "test": ["a"]})}, "to two splits"),
        (
            {"units": UnitsRecipe(keep="quality.lower() == 'good'")},
            "recipe small units.keep: a call of 'quality.lower'",
        ),
        ({"trials": TrialsRecipe(valid="result = 'R'")}, "recipe small trials.valid: \"result = 'R'\" is no condition"),
        ({"domain": DomainRecipe(epochs="tags['task']")}, "recipe small domain.epochs: [...] that is not column[k]"),
    ],
)
def test_recipes_no_file_could_serve(nwb, recipe, change, line):
    with pytest.raises(RecipeError) as refusal:
        read_session(nwb(), replace(recipe, **change))
    assert line in str(refusal.value)
