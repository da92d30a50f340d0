"""Small files in the layouts of the FALCON benchmark: M1 (000941), M2 (000953), H1 (000954), H2 (000950), with known truth.

All have behaviour in bins of 20 ms in `acquisition` and a mask eval_mask of the bins that are judged.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from pynwb import NWBFile, TimeSeries
from pynwb.behavior import BehavioralTimeSeries
from pynwb.file import Subject

from tests.data_prep.layouts.reaching import UnitTable, add_trials, add_units, save

BIN, UNITS, SECONDS = 0.02, 6, 96.0
MUSCLES = [
    *("APL", "BCPs", "DLTa", "DLTp", "ECRB", "ECU", "EDC", "FCR"),
    *("FCU", "FDI", "FDPr", "FDPu", "Hypoth", "PECmaj", "TCPlat", "Thenar"),
]
TRIAL, WITHIN = 6.0, (0.5, 5.0)  # s: a trial of M1 and M2 begins every 6 s; the mask is true from .5 to 5 s of it
H1_START, H1_PERIOD = 3.0, 0.02  # what H1 writes as `offset` and as `rate`
H2_CHANNELS, H2_SENTENCES, H2_BINS, H2_PAUSE = 10, 8, 700, 500  # bins of a sentence, and of the pause after it


def times(start: float = 0.0) -> np.ndarray:
    """The stamps (N,) s of the bins of M1, M2 and H1."""
    return start + np.arange(round(SECONDS / BIN)) * BIN


def wave(time: np.ndarray, columns: int) -> np.ndarray:
    """(N, columns) of slow movement, each column its own frequency, about 1 in size."""
    return np.stack([np.sin(time * (0.7 + 0.2 * k) + k) for k in range(columns)], axis=1)


def spikes(start: float = 0.0) -> list[np.ndarray]:
    """Times (s,) of each unit; the last one is silent."""
    random = np.random.default_rng(4)
    return [np.sort(random.uniform(start, start + SECONDS, 900)) for _ in range(UNITS - 1)] + [np.zeros(0)]


def within(time: np.ndarray) -> np.ndarray:
    """The mask (N,) of M1, M2 and H1."""
    return (time % TRIAL >= WITHIN[0] - 1e-9) & (time % TRIAL < WITHIN[1] - 1e-9)


def write_m1(path: Path) -> Path:
    """Reach to grasp: 16 muscles, each a series of its own; trials with their events."""
    file = _file("L_20120924_held_in_calib", "MonkeyL_held_in_calib", "monkey performing reach-to-grasp task")
    time = times()
    _beside(file, "preprocessed_emg", MUSCLES, np.abs(wave(time, 16)), time, "mV")
    _mask(file, "Timesteps to KEEP covariates (for training, eval).", within(time), timestamps=time)
    start = np.arange(int(SECONDS / TRIAL)) * TRIAL
    add_trials(
        file,
        {
            "start_time": start,
            "stop_time": start + 5.0,
            "gocue_time": start + 1.0,
            "move_onset_time": start + 1.3,
            "contact_time": start + 2.0,
            "reward_time": start + 4.0,
            "result": ["A" if k == 3 else "R" for k in range(len(start))],
            "number": np.arange(len(start), dtype=np.uint16),
            "tgt_loc": np.linspace(-90.0, 90.0, len(start)),
            "tgt_obj": ["Sphere", "Button"] * (len(start) // 2),
            "obj_id": np.tile([3, 4], len(start) // 2),
            "condition_id": np.arange(len(start)) % 5,
        },
    )
    _electrodes(file, ["H_electrode_group", "I_electrode_group"], "M1")
    _units(file, spikes())
    return save(file, path)


def write_m2(path: Path) -> Path:
    """Two finger groups: position and velocity, each finger a series of its own; targets two numbers a trial."""
    file = _file("MonkeyN_10-19-13:00_held_in", "MonkeyN_held_in_calib", "M2 data", session_id="2020-10-19_Run1")
    time = times()
    for name, value in (("finger_pos", 0.5 + 0.4 * wave(time, 2)), ("finger_vel", 0.01 * wave(time, 2))):
        _beside(file, name, ["index", "mrs"], value, time, "AU")
    _mask(file, "Timesteps to keep covariates (for training, eval).", within(time), timestamps=time)
    start = np.arange(int(SECONDS / TRIAL)) * TRIAL
    target = np.stack([np.linspace(0, 1, len(start)), np.linspace(1, 0, len(start))], axis=1).astype(np.float32)
    columns = {"start_time": start, "stop_time": start + 5.0, "tgt_loc": target, "trial_num": np.arange(len(start))}
    add_trials(file, columns)
    _electrodes(file, ["M1_array"], "M1")
    _units(file, spikes())
    return save(file, path)


def write_h1(path: Path) -> Path:
    """Open-loop kinematics whose clock is misused: `rate` holds the period and `offset` the start. No trials, epochs."""
    file = _file("HumanPitt-held_in-calib_01-01-11:17_set1", "HumanPitt-held-in-calib", "FALCON H1. Open loop 7DoF.")
    time, clock = times(H1_START), {"rate": H1_PERIOD, "offset": H1_START, "unit": "arbitrary"}
    about = {"description": "tx,ty,tz,rx,g1,g2,g3", **clock}
    pose = TimeSeries(name="OpenLoopKinematics", data=wave(time, 7), **about)
    file.add_acquisition(pose)
    velocity = np.gradient(wave(time, 7), axis=0)
    file.add_acquisition(TimeSeries(name="OpenLoopKinematicsVelocity", data=velocity, **about))
    file.add_acquisition(TimeSeries(name="TrialNum", data=(time // TRIAL).astype(np.int64), **clock))
    # the description says "ignore"; the benchmark's own loader keeps what is true
    _mask(
        file, "Timesteps to ignore covariates (for training, eval). Neural data is not affected.", within(time), **clock
    )
    for k in range(int(SECONDS / TRIAL)):
        begin = H1_START + k * TRIAL
        for tag, low, high in (("Intertrial", 0.0, 0.5), ("Reach", 0.5, 6.0)):
            file.add_epoch(start_time=begin + low, stop_time=begin + high, tags=[tag], timeseries=[pose])
    add_units(file, spikes(H1_START), UnitTable())
    return save(file, path)


def h2_counts() -> tuple[np.ndarray, np.ndarray]:
    """Stamps (N,) s of the bins' starts, with a pause of 10 s after each sentence, and counts (N, H2_CHANNELS)."""
    bins = np.concatenate([k * (H2_BINS + H2_PAUSE) + np.arange(H2_BINS) for k in range(H2_SENTENCES)])
    return bins * BIN, np.random.default_rng(5).poisson(0.4, (len(bins), H2_CHANNELS))


def write_h2(path: Path) -> Path:
    """Handwriting: counts in bins and no units; each trial carries the sentence that was to be written."""
    file = _file("T5_2022.05.18_held_in_calib", "T5_held_in_calib", "human BCI participant, attempted handwriting")
    time, counts = h2_counts()
    about = {"description": "Threshold crossings aggregated in 20ms bins", "unit": "int"}
    file.add_acquisition(TimeSeries(name="binned_spikes", data=counts, timestamps=time, **about))
    _mask(file, "Timesteps to KEEP covariates (for training, eval).", np.ones(len(time), bool), timestamps=time)
    edges = time.reshape(H2_SENTENCES, H2_BINS)
    columns = {
        "start_time": edges[:, 0],
        "stop_time": edges[:, -1],  # H2: the stamp of the last bin
        "cue": [f"sentence>{k}>of>words" for k in range(H2_SENTENCES)],
        "block_num": np.arange(H2_SENTENCES) // 4,
    }
    add_trials(file, columns)
    return save(file, path)


def _file(identifier: str, subject: str, description: str, session_id: str | None = None) -> NWBFile:
    return NWBFile(
        session_description=description,
        identifier=identifier,
        session_id=session_id,
        session_start_time=datetime(2020, 10, 19, 13, tzinfo=UTC),
        subject=Subject(subject_id=subject, species="Macaca mulatta", sex="M", description="none"),
    )


def _beside(file: NWBFile, name: str, columns: list[str], value: np.ndarray, time: np.ndarray, unit: str) -> None:
    """A container of one series a column."""
    container = BehavioralTimeSeries(name=name)
    for k, column in enumerate(columns):
        container.add_timeseries(TimeSeries(name=column, data=value[:, k], timestamps=time, unit=unit))
    file.add_acquisition(container)


def _mask(file: NWBFile, description: str, value: np.ndarray, **clock) -> None:
    clock["unit"] = "bool"
    file.add_acquisition(TimeSeries(name="eval_mask", description=description, data=value, **clock))


def _electrodes(file: NWBFile, groups: list[str], place: str) -> None:
    device = file.create_device(name="array")
    made = [file.create_electrode_group(name=g, description=g, location="Motor Cortex", device=device) for g in groups]
    for k in range(UNITS):
        file.add_electrode(id=k, location=place, filtering="unknown", group=made[k % len(made)])


def _units(file: NWBFile, trains: list[np.ndarray]) -> None:
    observed = [np.array([[0.0, SECONDS]])] * len(trains)
    add_units(file, trains, UnitTable(electrodes=range(UNITS), observed=observed))


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "falcon_m1": write_m1,
    "falcon_m2": write_m2,
    "falcon_h1": write_h1,
    "falcon_h2": write_h2,
}
