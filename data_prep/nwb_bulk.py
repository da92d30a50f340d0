"""Numbers of units, spikes and samples -> an NWB file of that size in the layout of 000688, written fast; and two
yardsticks for `prepare`: the least work that ingestion can be, and the same work by way of pynwb's objects."""

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import h5py
import numpy as np
import pynwb
from hdmf.common import VectorData
from pynwb.behavior import BehavioralTimeSeries, Position, SpatialSeries
from pynwb.epoch import TimeIntervals
from pynwb.file import Subject

from data_prep.assembly import assemble
from data_prep.nwb import recording_of
from data_prep.nwb_objects import opened_objects
from data_prep.recipe import Recipe
from data_prep.store import save_session

TRIAL_S = 3.0  # from one trial to the next
_MOVES_S = 2.5  # of each: where behaviour is recorded only during trials
_AT_ONCE = 1 << 20  # spikes made at a time


@dataclass(frozen=True)
class BulkConfig:
    """The size of one file."""

    units: int = 130
    "Units, one an electrode."
    hz: float = 13.0
    "Spikes of each unit a second."
    seconds: float = 629.0
    "Length of the recording."
    behaviour_hz: float = 500.0
    "Samples of the cursor's position, velocity and acceleration a second, two columns each."
    in_trials: bool = False
    "Whether behaviour is recorded only during trials."
    waveforms: int = 48
    "Samples (int16) of the waveform of each spike; they are declared, and take no room on disk."
    seed: int = 0
    "Of the spikes."


def write_bulk(path: Path, config: BulkConfig) -> Path:
    """The file; a sound one by pynwb, whose spikes are then exchanged for as many as asked for."""
    file = pynwb.NWBFile(
        session_description="spikes at random, a cursor on a circle",
        identifier=path.stem,
        session_id=path.stem,
        session_start_time=datetime(2020, 1, 1, tzinfo=UTC),
        subject=Subject(subject_id="Bulk", species="Macaca mulatta"),
    )
    _add_behaviour(file, config)
    _add_trials(file, config.seconds)
    group = file.create_electrode_group("M1", "an array", "M1", device=file.create_device("array"))
    for _ in range(config.units):
        file.add_electrode(location="M1", group=group)
    for k in range(config.units):
        about = {"waveforms": np.zeros((1, 1, config.waveforms), np.int16)} if config.waveforms else {}
        file.add_unit(spike_times=[0.0], electrodes=[k], **about)
    path.parent.mkdir(parents=True, exist_ok=True)
    with pynwb.NWBHDF5IO(path, "w") as io:
        io.write(file)
    with h5py.File(path, "r+") as stored:
        _exchange_spikes(stored["units"], config)
    return path


def _add_behaviour(file: pynwb.NWBFile, config: BulkConfig) -> None:
    time = np.arange(round(config.seconds * config.behaviour_hz)) / config.behaviour_hz
    time = time[time % TRIAL_S < _MOVES_S] if config.in_trials else time
    turn = 2 * np.pi / TRIAL_S
    circle = 8 * np.stack([np.cos(turn * time), np.sin(turn * time)], axis=1)
    position = SpatialSeries(
        name="cursor_pos", data=circle, timestamps=time, unit="cm", reference_frame="centre of the screen"
    )
    velocity = {"cursor_vel": turn * circle[:, ::-1] * [-1, 1], "cursor_acc": -(turn**2) * circle}
    module = file.create_processing_module("behavior", "behaviour")
    module.add(Position(spatial_series=position))
    for container, (name, data), unit in zip(("Velocity", "Acceleration"), velocity.items(), ("cm/s", "cm/s^2")):
        series = pynwb.TimeSeries(name=name, data=data, timestamps=position, unit=unit)
        module.add(BehavioralTimeSeries(name=container, time_series=series))


def _add_trials(file: pynwb.NWBFile, seconds: float) -> None:
    start = np.arange(max(int(seconds / TRIAL_S), 1)) * TRIAL_S
    columns = {
        "start_time": start,
        "stop_time": start + 1.9,
        "target_on_time": start + 0.2,
        "go_cue_time": start + 0.9,
        "target_id": np.arange(len(start)) % 8.0,
        "result": ["R"] * len(start),
    }
    made = [VectorData(name=name, description=name, data=data) for name, data in columns.items()]
    file.trials = TimeIntervals(name="trials", description="trials", columns=made)


def _exchange_spikes(units: h5py.Group, config: BulkConfig) -> None:
    random, count = np.random.default_rng(config.seed), round(config.hz * config.seconds)
    total = config.units * count
    ends = np.arange(1, config.units + 1) * count
    times = _exchanged(units, "spike_times", (total,), np.float64)
    for unit in range(config.units):
        gap = random.exponential(size=count + 1)
        place = np.cumsum(gap, out=gap)
        times[unit * count : (unit + 1) * count] = place[:-1] * (config.seconds / place[-1])
    _exchanged(units, "spike_times_index", (config.units,), np.uint64)[:] = ends
    if config.waveforms:
        _exchanged(units, "waveforms", (total, config.waveforms), np.int16)
        _exchanged(units, "waveforms_index_index", (config.units,), np.uint64)[:] = ends
        index = _exchanged(units, "waveforms_index", (total,), np.uint64)
        for first in range(0, total, _AT_ONCE):
            last = min(first + _AT_ONCE, total)
            index[first:last] = np.arange(first + 1, last + 1)


def _exchanged(units: h5py.Group, name: str, shape: tuple[int, ...], dtype: type) -> h5py.Dataset:
    """A dataset of another size under the same name, with the attributes it had; chunks nobody writes take no room."""
    old = units[name]
    attributes = dict(old.attrs)
    del units[name]
    chunks = (min(1 << 17, shape[0]), *shape[1:]) if name == "waveforms" else None  # else contiguous, as pynwb writes
    fresh = units.create_dataset(name, shape, dtype, chunks=chunks)
    fresh.attrs.update(attributes)
    if f"{name}_index" in units:
        units[f"{name}_index"].attrs["target"] = fresh.ref
    return fresh


def least_work(path: Path, output: Path) -> int:
    """Spikes of a file, read, sorted once as 64-bit keys (microseconds and unit) and written raw: no ingestion does less."""
    with h5py.File(path, "r") as file:
        times, ends = file["units/spike_times"][:], file["units/spike_times_index"][:].astype(np.int64)
    bits = int(len(ends)).bit_length()
    key = (times * 1e6).astype(np.int64) << bits
    key |= np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))
    key.sort()
    with open(output, "wb") as stream:
        ((key >> bits) * 1e-6).tofile(stream)
        (key & ((1 << bits) - 1)).astype(np.uint32).tofile(stream)
        os.fsync(stream.fileno())
    return len(key)


def by_objects(path: Path, recipe: Recipe, output: Path) -> int:
    """Spikes of a file that was read through pynwb's objects, assembled and stored as `prepare` does it."""
    with opened_objects(path) as file:
        session = assemble(recording_of(file, recipe), recipe)
        save_session(session, output)
    return len(session.spikes)
