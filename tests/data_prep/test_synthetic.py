"""The synthetic sessions are readable NWB, heterogeneous as promised, and carry the tuning that their truth tells."""

import json

import h5py
import numpy as np
import pytest
from pynwb import NWBHDF5IO

from data_prep.errors import ConfigError
from data_prep.synthetic import MAX_RATE, PLANS, TRUTH, SyntheticConfig, write_sessions


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic")
    paths = write_sessions(folder, SyntheticConfig(minutes=1.5, seed=3))
    assert sorted(folder.iterdir()) == sorted([*paths, folder / TRUTH])  # and no half-written file
    return folder


@pytest.fixture(scope="module")
def truth(folder):
    return json.loads((folder / TRUTH).read_text())


def arrays(path):
    """What a test needs of a file: spike times per unit, obs_intervals of unit 0, behaviour and its clock."""
    with h5py.File(path) as file:
        units = file["units"]
        spikes = np.split(units["spike_times"][:], units["spike_times_index"][:-1])
        seen = units["obs_intervals"][: units["obs_intervals_index"][0]]
        behaviour = file["processing/behavior"]
        position = behaviour["Position/cursor_pos"]
        if "timestamps" in position:
            time = position["timestamps"][:]
        else:
            time = (
                position["starting_time"][()]
                + np.arange(len(position["data"])) / position["starting_time"].attrs["rate"]
            )
        speed = behaviour["Velocity/cursor_vel"] if "Velocity" in behaviour else None
        velocity, unit = (speed["data"][:], speed["data"].attrs["unit"]) if speed is not None else (None, None)
        return spikes, seen, time, position["data"][:], velocity, (position["data"].attrs["unit"], unit)


def test_sessions_differ_as_promised(folder, truth):
    found = {plan.name: arrays(folder / f"{plan.name}.nwb") for plan in PLANS}
    assert len({plan.animal for plan in PLANS}) == 3 and len(found) == 8
    assert {len(spikes) for spikes, *_ in found.values()} >= {30, 120}
    assert {round(1 / np.median(np.diff(time))) for _, _, time, *_ in found.values()} == {50, 100, 250}
    assert {units for *_, units in found.values()} == {("cm", "cm/s"), ("mm", "mm/s"), ("cm", None)}
    for plan in PLANS:
        spikes, seen, time, position, *_ = found[plan.name]
        assert len(position) == len(time) and np.all(np.diff(time) > 0)
        assert len(seen) == plan.gaps + 1 and np.sum(np.diff(time) > 1) == plan.gaps
        assert sum(len(times) == 0 for times in spikes) == 1
        for times in spikes:
            assert np.all(np.diff(times) > 0)
            assert np.all(np.any((times[:, None] >= seen[:, 0]) & (times[:, None] < seen[:, 1]), axis=1))


def test_velocity_is_the_derivative_of_position_in_the_stated_unit(folder):
    for plan in PLANS:
        _, _, time, position, velocity, (length, _) = arrays(folder / f"{plan.name}.nwb")
        stretch = slice(0, np.argmax(np.diff(time) > 1) or len(time))
        slope = np.gradient(position[stretch], time[stretch], axis=0)
        assert 8 < np.ptp(position, axis=0).mean() / {"cm": 1, "mm": 10}[length] < 40  # targets at 8 cm
        if velocity is not None:
            error = slope[2:-2] - velocity[stretch][2:-2]
            assert np.std(error) < 0.03 * np.std(velocity)


def test_trials_are_ordered_and_inside_the_recording(folder):
    with NWBHDF5IO(folder / f"{PLANS[1].name}.nwb", "r") as io:
        file = io.read()
        trials = file.trials.to_dataframe()
        seen = file.units["obs_intervals"][0]
        regions = {file.electrodes["location"][int(e)] for e in file.units["electrodes"].target.data[:]}
    assert regions == {"M1", "PMd"}
    assert set(trials.result) == {"R", "F"} and (trials.result == "R").mean() > 0.7
    order = trials[["start_time", "target_on_time", "go_cue_time", "stop_time"]].to_numpy()
    assert np.all(np.diff(order, axis=1) > 0)
    assert np.all(order[1:, 0] >= order[:-1, 3])
    assert all(np.any((start >= seen[:, 0]) & (stop < seen[:, 1])) for start, stop in order[:, [0, 3]])


def test_tuning_is_recovered_from_the_file(folder, truth):
    errors = []
    for plan in (PLANS[0], PLANS[6], PLANS[7]):
        spikes, _, time, _, velocity, _ = arrays(folder / f"{plan.name}.nwb")
        edges = np.arange(0, 90.01, 0.05)
        centre = (edges[1:] + edges[:-1]) / 2
        for times, unit in zip(spikes, truth[plan.name]["units"]):
            v = np.stack([np.interp(centre + unit["lag_s"], time, velocity[:, k]) for k in range(2)], axis=1)
            design = np.column_stack([np.ones(len(v)), v, np.hypot(*v.T)])
            weight = np.linalg.lstsq(design, np.histogram(times, edges)[0], rcond=None)[0]
            if unit["tuned"] and unit["baseline_hz"] > 4:
                off = np.angle(np.exp(1j * (np.arctan2(weight[2], weight[1]) - unit["preferred_rad"])))
                errors.append(abs(np.degrees(off)))
    assert len(errors) > 60
    assert np.median(errors) < 6 and np.max(errors) < 35


def test_untuned_units_fire_at_their_baseline(folder, truth):
    checked = 0
    for plan in PLANS:
        spikes, seen, *_ = arrays(folder / f"{plan.name}.nwb")
        seconds = np.diff(seen).sum()
        for times, unit in zip(spikes, truth[plan.name]["units"]):
            assert len(times) / seconds < MAX_RATE
            if not unit["tuned"]:
                expected = unit["baseline_hz"] * seconds
                assert abs(len(times) - expected) <= 4.5 * np.sqrt(expected)
                checked += 1
    assert checked > 20


def test_same_seed_same_session_other_seed_other_session(folder, tmp_path):
    def first(config, name):
        spikes, _, _, position, *_ = arrays(write_sessions(tmp_path / name, config)[0])
        return np.concatenate(spikes), position

    base = SyntheticConfig(minutes=0.5, seed=3, sessions=1)
    (spikes, position), (again, position_again) = first(base, "a"), first(base, "b")
    assert np.array_equal(spikes, again) and np.array_equal(position, position_again)
    other, _ = first(SyntheticConfig(minutes=0.5, seed=4, sessions=1), "c")
    assert not np.array_equal(spikes, other)


@pytest.mark.parametrize("config", [SyntheticConfig(sessions=9), SyntheticConfig(minutes=0)])
def test_values_out_of_range_are_told_in_one_line(tmp_path, config):
    with pytest.raises(ConfigError, match="asked for; choose"):
        write_sessions(tmp_path / "none", config)
    assert not (tmp_path / "none").exists()
