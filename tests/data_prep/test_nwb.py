"""Reading NWB by its layout gives what pynwb's own objects give, value for value, on every file there is to try."""

import importlib
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from hdmf_zarr import NWBZarrIO
from pynwb import NWBHDF5IO, NWBFile, TimeSeries
from pynwb.ecephys import ElectricalSeries
from pynwb.epoch import TimeIntervals

from data_prep.errors import SessionError
from data_prep.nwb import look, opened_file, read_recording, recording_of
from data_prep.nwb_layout import NwbFile
from data_prep.nwb_objects import opened_objects
from data_prep.recipe import PhaseRecipe, Recipe, SignalRecipe, UnitsRecipe
from data_prep.recording import Recording
from data_prep.source import RemoteFile
from data_prep.synthetic import SyntheticConfig, write_sessions

LAYOUTS = ("churchland", "even_chen", "falcon", "link", "nlb", "perich")


def all_of(file: NwbFile) -> Recipe:
    """A recipe that names every series of a file that holds numbers, as a signal, and one as a mask."""
    usable = [
        place
        for place, one in sorted(file.series.items())
        if np.dtype(one.data.dtype).kind in "biuf" and 0 < len(one.data.shape) < 3 and one.data.shape[0]
    ]
    signals = {f"signal_{k}": SignalRecipe(path=[place]) for k, place in enumerate(usable)}
    narrow = [place for place in usable if len(file.series[place].data.shape) == 1]
    masks = {f"mask_{k}": PhaseRecipe(mask=[place]) for k, place in enumerate(narrow[:1])}
    counts = [place for place in usable if place.split("/")[-1] in ("ThresholdCrossings", "binned_spikes")]
    units = UnitsRecipe(source=["units", *counts], region=["electrodes", "electrode_group", "location", "id"])
    return Recipe(name="all", signals=signals, phases=masks, units=units)


def assert_equal(one, other, where: str = "") -> None:
    """The same types, names, orders and values, all the way down."""
    assert type(one) is type(other), where
    if isinstance(one, np.ndarray):
        assert one.dtype == other.dtype or one.dtype.kind == other.dtype.kind == "U", where
        np.testing.assert_array_equal(one, other, err_msg=where)
    elif isinstance(one, dict):
        assert list(one) == list(other), where
        for key in one:
            assert_equal(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, (tuple, list)):
        assert len(one) == len(other), where
        for k, (a, b) in enumerate(zip(one, other)):
            assert_equal(a, b, f"{where}[{k}]")
    elif hasattr(one, "__dataclass_fields__"):
        for part in fields(one):
            assert_equal(getattr(one, part.name), getattr(other, part.name), f"{where}.{part.name}")
    else:
        assert one == other, where


def comparable(recording: Recording) -> dict:
    """Everything in it; but for what the library that read it had to say."""
    trains = recording.spikes
    parts = {part.name: getattr(recording, part.name) for part in fields(recording) if part.name != "spikes"}
    told = {key: value for key, value in recording.provenance.items() if key != "reader_warnings"}
    return {**parts, "provenance": told, "count": trains.count, "time": trains.read(0, len(trains))}


def assert_both_readers_agree(path: Path) -> Recording:
    with opened_file(path) as direct, opened_objects(path) as objects:
        assert sorted(direct.series) == sorted(objects.series) and list(direct.tables) == list(objects.tables)
        recipe = all_of(direct)
        read = recording_of(direct, recipe)
        assert_equal(comparable(read), comparable(recording_of(objects, recipe)), path.name)
        assert len(read.series) == len(recipe.signals) and len(read.masks) == len(recipe.phases)
    return read


@pytest.mark.filterwarnings("ignore")  # what pynwb thinks of published files
def test_both_readers_agree_on_real_files(real_data):
    files = sorted(real_data.glob("*/*.nwb"), key=lambda path: path.stat().st_size)
    assert files
    for path in {path.parent: path for path in reversed(files)}.values():  # the smallest of a folder
        assert assert_both_readers_agree(path).spikes.count.sum() > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_both_readers_agree_on_every_real_file(real_data):
    for path in real_data.glob("*/*.nwb"):
        assert_both_readers_agree(path)


def test_both_readers_agree_on_synthetic_sessions(tmp_path):
    for path in write_sessions(tmp_path, SyntheticConfig(minutes=0.5, sessions=2)):
        assert_both_readers_agree(path)


@pytest.mark.slow
@pytest.mark.parametrize("module", LAYOUTS)
def test_both_readers_agree_on_the_layouts_of_dandisets(module, tmp_path):
    for name, write in importlib.import_module(f"tests.data_prep.layouts.{module}").LAYOUTS.items():
        assert_both_readers_agree(write(tmp_path / f"{name}.nwb"))


def rich(file: NWBFile) -> None:
    """What a plain file lacks: every kind of column, links, series of every clock, tables beside the trials."""
    time = np.arange(50) / 10
    plain = TimeSeries(name="eye", data=np.arange(50, dtype=np.int16), unit="a", timestamps=time, conversion=0.5)
    file.add_acquisition(plain)
    linked = TimeSeries(name="pupil", data=plain, unit="a", timestamps=plain)
    file.processing["behavior"].add(linked)
    file.add_acquisition(TimeSeries(name="lever", data=time > 2, unit="n", rate=10.0, starting_time=3.0))
    region = file.create_electrode_table_region([3, 0], "two of five")
    traces = ElectricalSeries(
        name="power", data=np.ones((50, 2)), electrodes=region, rate=10.0, channel_conversion=[2.0, 3.0]
    )
    file.add_analysis(traces)
    n = len(file.trials)
    file.add_trial_column("ragged", "numbers", data=list(range(n - 1)), index=[0, *range(1, n)])
    file.add_trial_column("words", "texts", data=["a", "b"] * n, index=list(range(2, 2 * n + 1, 2)))
    file.add_trial_column("wide", "not a property", data=np.zeros((n, 30)))
    file.add_trial_column("target", "x, y", data=np.arange(2.0 * n).reshape(n, 2))
    file.add_trial_column("good", "truth", data=[k % 3 == 0 for k in range(n)])
    file.add_unit_column("deep", "ragged twice", data=[[[k], [k, 1]] for k in range(5)], index=2)
    file.add_unit_column("label", "text", data=list("abcde"))
    table = TimeIntervals(name="bouts", description="others")
    table.add_column("strength", "number")
    table.add_interval(start_time=1.0, stop_time=2.0, strength=7, timeseries=[plain])
    file.add_time_intervals(table)
    file.add_epoch(1.0, 2.0, ["task", "rest"])
    file.add_invalid_time_interval(start_time=5.0, stop_time=6.0)


@pytest.fixture(scope="module")
def rich_file(tmp_path_factory, write_nwb) -> Path:
    observed = [[0.0, 40.0], [50.0, 100.0]]
    return write_nwb(tmp_path_factory.mktemp("rich") / "rich.nwb", observed=observed, change=rich, rate=50.0)


def test_both_readers_agree_on_every_kind_of_column_and_series(rich_file):
    read = assert_both_readers_agree(rich_file)
    assert set(read.tables) == {"trials", "epochs", "invalid_times", "bouts"}
    trials = read.tables["trials"]
    assert {"ragged.0", "words", "target.0", "target.1", "good"} <= set(trials)
    assert set(read.tables["bouts"]) == {"start_time", "stop_time", "strength"}
    assert not {"wide", "wide.0", "ragged"} & set(trials) and "deep" not in read.unit_columns
    assert np.isnan(trials["ragged.0"][0]) and trials["ragged.0"][1:4].tolist() == [0, 1, 2]
    assert trials["words"][0] == "a,b" and read.tables["epochs"]["tags"].tolist() == ["task,rest"]
    assert read.region == ("M1",) * 5 and read.electrode == ("0", "1", "2", "3", "4")
    assert len(read.observed) == 5 and read.observed[0].tolist() == [[0.0, 40.0], [50.0, 100.0]]
    found = {series.place: series for series in read.series.values()}
    assert np.array_equal(found["acquisition/eye"].value[:, 0], np.arange(50) * 0.5)
    pupil = found["processing/behavior/pupil"]
    assert np.array_equal(pupil.value[:, 0], np.arange(50) * 0.5) and np.array_equal(pupil.time, np.arange(50) / 10)
    assert np.array_equal(found["analysis/power"].value[0], [2.0, 3.0])
    assert found["acquisition/lever"].time[0] == 3.0


@pytest.mark.parametrize("electrodes", [False, True])
def test_a_zarr_folder_is_read_like_the_file_it_was_made_of(write_nwb, tmp_path, electrodes):
    """But for references to electrode groups: hdmf-zarr pickles them, and nothing is ever unpickled."""
    observed = [[0.0, 40.0], [50.0, 100.0]]
    path = write_nwb(tmp_path / "file.nwb", electrodes=electrodes, rate=50.0, starting_time=2.0, observed=observed)
    folder = tmp_path / "zarr" / "file.nwb"
    with NWBHDF5IO(path, "r") as source, NWBZarrIO(str(folder), "w") as target:
        target.export(src_io=source, write_args={"link_data": False})
    with opened_file(path) as file:
        recipe = all_of(file)
    plain, zarr = read_recording(path, recipe), read_recording(folder, recipe)
    if electrodes:
        assert plain.region == ("M1",) * 5 and zarr.region == (
            "0",
            "M1",
            "2",
            "M1",
            "4",
        )  # their group, or else their id
        plain = replace(plain, region=zarr.region)
    assert_equal(comparable(zarr), comparable(plain))


def test_other_folders_and_broken_zarr_are_refused(tmp_path, recipe):
    folder = tmp_path / "a.nwb"
    folder.mkdir()
    with pytest.raises(SessionError, match="a.nwb: a folder that is no zarr file"):
        read_recording(folder, recipe)
    (folder / ".zattrs").write_text("{}")
    with pytest.raises(SessionError, match="a.nwb: .*nwb_version"):
        read_recording(folder, recipe)
    (folder / ".zattrs").write_text('{"nwb_version": "2.7.0"}')
    with pytest.raises(SessionError, match="a.nwb: pynwb cannot read it"):
        read_recording(folder, recipe)


def test_a_stream_is_read_like_the_file(nwb, recipe):
    path = nwb()
    with open(path, "rb") as stream:
        remote = RemoteFile(path.name, stream, path.stat().st_size)
        assert_equal(comparable(read_recording(remote, recipe)), comparable(read_recording(path, recipe)))
        assert look(remote) == look(path)


def test_reading_imports_no_pynwb(nwb):
    """Nor, with it, a second of every process."""
    code = (
        "import sys; from pathlib import Path; from data_prep.assembly import read_session;"
        "from data_prep.nwb import read_recording; from data_prep.recipe import Recipe;"
        f"assert len(read_recording(Path({str(nwb())!r}), Recipe(name='x')).spikes) == 5;"
        "sys.exit(bool({'pynwb', 'hdmf', 'zarr'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-W", "error", "-c", code]).returncode == 0


def test_links_that_lead_nowhere_or_in_a_circle_are_passed_over(nwb, recipe):
    path = nwb()
    sound = comparable(read_recording(path, recipe))
    with h5py.File(path, "r+") as file:
        file["processing/behavior/lost"] = h5py.SoftLink("/nowhere")
        file["processing/behavior/abroad"] = h5py.ExternalLink("nowhere.nwb", "/x")
        file["processing/behavior/Position/circle"] = h5py.SoftLink("/processing")
        file["acquisition/again"] = h5py.SoftLink("/processing/behavior/Velocity")  # one series at two places
    assert_equal(comparable(read_recording(path, recipe)), sound)


def test_a_table_whose_columns_differ_in_length_keeps_those_that_fit(nwb, recipe):
    path = nwb()
    with h5py.File(path, "r+") as file:
        del file["intervals/trials/go_cue_time"]
        file["intervals/trials/go_cue_time"] = np.zeros(7)
    read = read_recording(path, recipe)
    assert "go_cue_time" not in read.tables["trials"] and len(read.tables["trials"]["result"]) == 48
    assert read.notes == ("column go_cue_time of trials has 7 rows of 48: left out",)
