"""MATLAB 7.3 files of O'Doherty, Makin and Sabes: every spike, the axes of the finger, and rest, against what was written."""

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from data_prep.assembly import assemble
from data_prep.errors import SessionError
from data_prep.matlab_makin import opened_recording
from data_prep.recipe import Recipe, SignalRecipe
from launch.config import load
from tests.data_prep.layouts.makin import truth, write


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load(Recipe, "dandisets/makin.yaml", [])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("makin")


@pytest.fixture(scope="module")
def session(folder, recipe):
    with opened_recording(write(folder / "indy_20160407_02.mat"), recipe) as recording:
        return assemble(recording, recipe)


def test_every_cell_with_a_spike_is_a_unit_the_hash_too(session):
    true = truth()
    expected = {
        f"{name}/{'unsorted' if cell == 0 else f'sorted_{cell}'}": v for (name, cell), v in true["spikes"].items()
    }
    assert set(session.units.id) == set(expected)
    for row, name in enumerate(session.units.id):
        np.testing.assert_array_equal(session.spikes.time[session.spikes.unit == row], expected[name])
        assert session.units.quality[row] == name.split("/")[1].split("_")[0]
        assert session.units.electrode[row] == name.split("/")[0]


def test_the_name_of_a_channel_is_its_region(folder, recipe):
    path = write(folder / "loco_20170210_03.mat", areas=("M1", "S1"), seconds=20.0)
    with opened_recording(path, recipe) as recording:
        assert set(recording.region) == {"M1", "S1"}
        for name, region in zip(recording.unit_columns["id"], recording.region):
            assert name.startswith(region)
        assert (recording.subject, recording.session_id) == ("loco", "20170210_03")


def test_the_velocity_is_the_gradient_of_the_cursor_in_mm_per_s(session):
    true = truth()
    np.testing.assert_array_equal(session.signals["cursor_vel"].time, true["t"])
    slow = np.gradient(true["cursor"], true["t"], axis=0)
    np.testing.assert_allclose(session.signals["cursor_vel"].value, slow, atol=1e-3)
    assert session.signals["cursor_vel"].unit_of_measure == "mm/s"


def test_the_finger_is_turned_from_z_minus_x_minus_y_to_x_y_z(session, folder, recipe):
    np.testing.assert_allclose(session.signals["finger_pos"].value, truth()["finger"], atol=1e-5)
    angle = SignalRecipe(path=["finger_angle"])
    wider = replace(recipe, signals={**recipe.signals, "finger_angle": angle})
    with opened_recording(write(folder / "six.mat", angles=True, seconds=20.0), wider) as recording:
        np.testing.assert_array_equal(recording.series["finger_angle"].value[0], [10, 20, 30])
        np.testing.assert_allclose(recording.series["finger_pos"].value, truth(20.0)["finger"])
        assert recording.series["finger_angle"].unit == "deg"


def test_rest_of_more_than_ten_seconds_is_left_out_and_a_pause_is_not(session):
    # at rest from 60 s after the start to 72 s: the velocity there is zero
    assert not session.domain.contains(np.array([5 + 61.0, 5 + 71.0])).any()
    assert session.domain.contains(np.array([5 + 59.0, 5 + 73.0])).all()
    assert 107 < session.domain.seconds < 109


def test_blocks_are_dealt_eight_one_one(session):
    splits = {name: split.seconds / session.domain.seconds for name, split in session.splits.items()}
    assert splits["valid"] == pytest.approx(0.1, abs=0.01) and splits["test"] == pytest.approx(0.1, abs=0.01)


def test_spikes_are_read_unit_by_unit_and_waveforms_never(folder, recipe):
    path = write(folder / "indy_1.mat", seconds=20.0)
    with h5py.File(path, "r+") as file:
        del file["wf"]  # nobody misses it
    with opened_recording(path, recipe) as recording:
        first, second, third = recording.spikes.count[:3]
        three = recording.spikes.read(0, 3)
        assert len(three) == first + second + third
        np.testing.assert_array_equal(recording.spikes.read(1, 2), three[first : first + second])
        assert recording.spikes.count.sum() == sum(map(len, truth(20.0)["spikes"].values()))


@pytest.mark.parametrize("lacking", ["t", "spikes", "chan_names", "cursor_pos"])
def test_a_file_that_lacks_a_variable_is_refused_by_its_name(folder, recipe, lacking):
    path = write(folder / f"no_{lacking}.mat", seconds=20.0)
    with h5py.File(path, "r+") as file:
        del file[lacking]
    with pytest.raises(SessionError, match=f"no variable {lacking}"):
        with opened_recording(path, recipe) as recording:
            assemble(recording, recipe)


def test_a_rate_that_is_not_250_hz_is_refused(folder, recipe):
    path = write(folder / "slow.mat", seconds=20.0)
    with h5py.File(path, "r+") as file:
        file["t"][...] = file["t"][...] * 2
    with opened_recording(path, recipe) as recording, pytest.raises(SessionError, match="250"):
        assemble(recording, recipe)


def test_a_cursor_in_centimetres_is_implausible(folder, recipe):
    path = write(folder / "cm.mat")
    with h5py.File(path, "r+") as file:
        file["cursor_pos"][...] = file["cursor_pos"][...] / 100  # metres by mistake
    with opened_recording(path, recipe) as recording, pytest.raises(SessionError, match="99.9 percentile"):
        assemble(recording, recipe)


def test_what_is_no_whole_matlab_file_is_refused_in_one_line(folder, recipe):
    whole = write(folder / "whole.mat", seconds=20.0).read_bytes()
    faults = {"cut": whole[: len(whole) // 2], "empty": b"", "text": b"no MATLAB file" * 20, "header": whole[:512]}
    for name, content in faults.items():
        path = folder / f"{name}.mat"
        path.write_bytes(content)
        with pytest.raises(SessionError) as refusal, opened_recording(path, recipe):
            pass
        assert str(refusal.value).startswith(f"{name}.mat: ") and "\n" not in str(refusal.value)
