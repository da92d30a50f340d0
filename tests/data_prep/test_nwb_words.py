"""What a recipe can ask of a file beyond paths: counts for spikes, clocks, masks, series side by side, rosters, regions."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pynwb import NWBFile, TimeSeries
from pynwb.ecephys import ElectricalSeries

from data_prep.errors import SessionError
from data_prep.nwb import read_recording
from data_prep.nwb_spikes import _spread
from data_prep.recipe import PhaseRecipe, Recipe, SignalRecipe, UnitsRecipe
from data_prep.recording import Recording


def read(path: Path, roster: Path | None = None, **words) -> Recording:
    return read_recording(path, Recipe(name="x", **words), roster)


def refused(path: Path, roster: Path | None = None, **words) -> str:
    with pytest.raises(SessionError) as refusal:
        read(path, roster, **words)
    assert str(refusal.value).startswith(path.name)
    return str(refusal.value)


@pytest.fixture
def counted(nwb) -> Callable[..., Path]:
    """Write a file without units, with counts (bins, 3) at 10 Hz."""

    def give(counts, electrodes: bool = False, time=None, **about) -> Path:
        def change(file: NWBFile) -> None:
            clock = {"rate": 10.0} if time is None else {"timestamps": time}
            if not electrodes:
                file.add_analysis(TimeSeries(name="binned_spikes", data=counts, unit="count", **clock, **about))
                return
            for k, region in enumerate(("M1", "PMd", "unknown")):
                file.add_electrode(location=region, group=file.electrode_groups["M1"], id=10 * k)
            region = file.create_electrode_table_region([2, 0, 1], "three")
            file.add_analysis(ElectricalSeries(name="ThresholdCrossings", data=counts, electrodes=region, **clock))

        return nwb(change=change, spikes=[], position=False, velocity=False, trials=0)

    return give


COUNTS = np.array([[0, 1, 3], [2, 0, 0], [0, 0, 1], [1, 1, 1]], dtype=np.uint8)


@pytest.mark.parametrize("bin_time, shift", [("start", 0.0), ("centre", -0.05), ("stop", -0.1)])
def test_counts_are_spread_evenly_inside_their_bins(counted, bin_time, shift):
    path = counted(COUNTS, time=np.array([1.0, 1.1, 1.2, 5.0]), conversion=1e-6)  # nothing between 1.3 and 5 s
    found = read(path, units=UnitsRecipe(bin_time=bin_time))
    for train, expected in zip(
        found.spikes.trains(),
        ([1.125, 1.175, 5.05], [1.05, 5.05], [1 + 1 / 60, 1.05, 1 + 5 / 60, 1.25, 5.05]),
    ):
        np.testing.assert_allclose(train, np.array(expected) + shift)
    for rows in found.observed:
        np.testing.assert_allclose(rows, np.array([[1.0, 1.3], [5.0, 5.1]]) + shift)
    assert found.unit_columns["id"].tolist() == ["ch001", "ch002", "ch003"] and found.electrode == ()
    assert found.provenance["spikes_from"] == "analysis/binned_spikes"
    assert float(found.provenance["spike_resolution_s"]) == pytest.approx(0.1)


def test_counts_of_electrodes_have_their_ids_and_regions(counted):
    found = read(counted(COUNTS, electrodes=True))
    assert found.unit_columns["id"].tolist() == list(found.electrode) == ["20", "0", "10"]
    assert found.region == ("unknown", "M1", "PMd") and found.spikes.count.tolist() == [3, 2, 5]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=20))
def test_counting_the_spread_spikes_gives_the_counts_back(count):
    start = 3.0 + 0.02 * np.arange(len(count))
    time = _spread(start, np.array(count, dtype=np.uint8), 0.02)
    assert np.histogram(time, np.append(start, start[-1] + 0.02))[0].tolist() == count
    assert (np.diff(time) > 0).all()


@pytest.mark.parametrize(
    "value, told", [(0.5, r"1 values that are no counts \(0.5\)"), (-1, "no counts"), (np.nan, r"\(nan\)")]
)
def test_what_is_no_count_is_refused(counted, value, told):
    counts = COUNTS.astype(float)
    counts[1, 2] = value
    with pytest.raises(SessionError, match=told):
        read(counted(counts))
    assert read(counted(COUNTS.astype(float))).spikes.count.tolist() == [3, 2, 5]


def test_sources_of_spikes_are_probed_in_the_recipes_order(nwb, counted):
    path = counted(COUNTS)
    assert "no units table, so no spikes" in refused(path, units=UnitsRecipe(source=["units"]))
    assert "no series at there, so no spikes" in refused(path, units=UnitsRecipe(source=["units", "there"]))

    def change(file: NWBFile) -> None:
        file.add_acquisition(TimeSeries(name="binned_spikes", data=COUNTS, unit="count", rate=10.0))

    both = nwb("both.nwb", change=change)
    assert len(read(both).spikes) == 5
    assert len(read(both, units=UnitsRecipe(source=["binned_spikes", "units"])).spikes) == 3


def test_regions_come_from_the_first_source_that_says_something(nwb):
    def change(file: NWBFile) -> None:
        file.add_unit_column("area", "where", data=["n/a", "S1", "", "S1", "nan"])

    path = nwb(change=change)
    assert read(path, units=UnitsRecipe(region=["electrodes"])).region == ("", "M1", "", "M1", "")
    assert read(path, units=UnitsRecipe(region=["area", "electrodes"])).region == ("", "S1", "", "S1", "")
    assert read(path, units=UnitsRecipe(region=["area", "electrode_group"])).region == ("M1", "S1", "M1", "S1", "M1")
    assert read(path, units=UnitsRecipe(region=["id"])).region == ("0", "1", "2", "3", "4")


def test_conversion_offset_and_a_clock_that_holds_the_period(nwb):
    value = np.arange(8.0).reshape(4, 2)
    path = nwb(position=False, velocity=value, rate=0.5, offset=3.0, conversion=10.0)

    def signal(**words):
        return read(path, signals={"v": SignalRecipe(path=["cursor_vel"], **words)}).series["v"]

    assert np.array_equal(signal().value, value * 10 + 3) and signal().time.tolist() == [0, 2, 4, 6]
    assert np.array_equal(signal(conversion=False).value, value)
    assert np.array_equal(signal(clock="period").value, value * 10)
    assert signal(clock="period").time.tolist() == [3, 3.5, 4, 4.5]


def test_places_joined_by_a_plus_stand_side_by_side(nwb):
    path = nwb()
    one = read(path, signals={"all": SignalRecipe(path=["nowhere + cursor_vel", "cursor_vel + cursor_pos"])})
    each = read(path, signals={k: SignalRecipe(path=[k]) for k in ("cursor_vel", "cursor_pos")}).series
    both = np.concatenate([each["cursor_vel"].value, each["cursor_pos"].value], axis=1)
    assert np.array_equal(one.series["all"].value, both)

    def slower(file: NWBFile) -> None:
        file.add_acquisition(TimeSeries(name="slow", data=np.zeros(10), unit="a", rate=1.0))

    words = {"signals": {"all": SignalRecipe(path=["cursor_vel + slow"])}}
    assert "are sampled at different times" in refused(nwb("slow.nwb", change=slower), **words)


def test_a_place_that_stands_for_two_series_is_refused(nwb):
    def again(file: NWBFile) -> None:
        file.add_acquisition(TimeSeries(name="cursor_vel", data=np.zeros(10), unit="a", rate=1.0))

    path = nwb(change=again)
    line = refused(path, signals={"v": SignalRecipe(path=["cursor_vel"])})
    assert "stands for acquisition/cursor_vel and processing/behavior/Velocity/cursor_vel" in line
    assert "signals.v.path" in line


def test_a_mask_holds_from_a_sample_to_the_next_and_not_across_a_gap(nwb):
    time = np.array([0.0, 0.1, 0.2, 0.3, 2.0, 2.1])

    def change(file: NWBFile) -> None:
        truth = np.array([False, True, True, True, False, True])
        file.add_acquisition(TimeSeries(name="eval_mask", data=truth, unit="bool", timestamps=time))
        number = np.array([0, np.nan, 1, 0, 2, 0])
        file.add_acquisition(TimeSeries(name="misused", data=number, unit="bool", rate=0.5, starting_time=7.0))

    phases = {
        "judged": PhaseRecipe(mask=["nowhere", "eval_mask"]),
        "misused": PhaseRecipe(mask=["misused"], clock="period"),
        "absent": PhaseRecipe(mask=["nowhere"]),
    }
    masks = read(nwb(change=change), phases=phases).masks
    assert list(masks) == ["judged", "misused"]
    np.testing.assert_allclose(list(masks["judged"]), [(0.1, 0.4), (2.1, 2.2)])
    np.testing.assert_allclose(list(masks["misused"]), [(8.0, 8.5), (9.0, 9.5)])


def test_units_take_the_rosters_order_columns_and_regions(nwb):
    def named(ids: str, heldout: list[bool] | None = None) -> Callable[[NWBFile], None]:
        def change(file: NWBFile) -> None:
            file.add_unit_column("label", "name", data=[*ids])
            if heldout:
                file.add_unit_column("heldout", "withheld", data=heldout)

        return change

    whole = [[0.5, 1.0], [2.0], [3.0, 4.0, 5.0]]
    roster = nwb("train.nwb", spikes=whole, change=named("abc", [False, True, False]))
    path = nwb("test.nwb", spikes=[[7.0], [8.0, 9.0]], change=named("ca"), electrodes=False)
    units = UnitsRecipe(id_column="label")
    found = read(path, roster, units=units)
    assert found.unit_columns["label"].tolist() == ["a", "b", "c"]
    assert found.unit_columns["heldout"].tolist() == [False, True, False]
    assert found.missing == (False, True, False) and found.spikes.count.tolist() == [2, 0, 1]
    assert [train.tolist() for train in found.spikes.trains()] == [[8.0, 9.0], [], [7.0]]
    assert found.spikes.kept(np.array([False, True, True])).read(0, 2).tolist() == [7.0]
    assert found.region == read(roster, units=units).region
    assert "unit b is not in the roster (1 are not)" in refused(roster, path, units=units)
    assert "has no column label" in refused(nwb(), roster, units=units)
    alike = replace(units, id_column="twin")

    def twins(file: NWBFile) -> None:
        file.add_unit_column("twin", "not a name", data=["a"] * 5)

    assert "two units share one twin" in refused(
        nwb("twins.nwb", change=twins), nwb("twins.nwb", change=twins), units=alike
    )
