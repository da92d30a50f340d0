"""Small files in the layout of dandiset 000121 (Even-Chen and Shenoy), a relative of 000070, with known truth.

Times are seconds, lengths mm. Trial k starts at 2.5 k, shows its target at + .2, gives the go cue at + .8; the hand moves
from + 1.0 to + 1.4, acquires the target at + 1.45, holds it until + 1.9; the trial stops at + 2.2. Behaviour goes on
between trials, but for one pause.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from pynwb import NWBFile, TimeSeries
from pynwb.behavior import Position, SpatialSeries
from pynwb.ecephys import LFP, ElectricalSeries

from tests.data_prep.layouts.reaching import (
    UnitTable,
    add_trials,
    add_units,
    nwb_file,
    out_and_back,
    references,
    save,
    tuned_spikes,
)

HZ = 1000
UNITS, TRIALS, STEP, LASTS = 6, 40, 2.5, 2.2
SECONDS = TRIALS * STEP
PAUSE = (52.25, 52.45)  # s: no samples; it lies between two trials
FAILED = (4, 21)
START = np.arange(TRIALS) * STEP
REACHES = out_and_back(START + 1.0, START + 1.95, 0.4, 80.0)


def sample_times() -> np.ndarray:
    """Times (N,) of the samples: 1 kHz but for the pause."""
    time = np.arange(round(SECONDS * HZ)) / HZ
    return time[(time < PAUSE[0]) | (time >= PAUSE[1])]


def write(path: Path) -> Path:
    """The file of a session."""
    file = nwb_file(None, "J", "2015-10-01", session_description="no description", institution="Stanford University")
    groups = _add_electrodes(file)
    series = _add_behaviour(file)
    time = sample_times()
    first = np.searchsorted(time, START)
    spans = [[(int(at), round(LASTS * HZ))] * len(series) for at in first]
    add_trials(file, _trials(), references(series, spans))
    electrodes = [k * 192 // UNITS for k in range(UNITS)]  # the first half M1, the second PMd
    trains = tuned_spikes(REACHES, [(0.0, SECONDS)], UNITS, 350.0)
    seen = [[[0.0, SECONDS]]] * UNITS
    add_units(file, trains, UnitTable(electrodes, [groups[row // 96] for row in electrodes], seen))
    reward = TimeSeries(name="juice_reward", data=np.zeros(10), rate=10.0, unit="none")
    file.add_stimulus(reward)
    return save(file, path)


def _add_behaviour(file: NWBFile) -> list[SpatialSeries]:
    time = sample_times()
    cursor = REACHES.position(time)
    place = Position(name="Position")
    file.create_processing_module("behavior", "contains monkey movement data").add(place)
    hand = np.concatenate([cursor, np.full((len(time), 1), -40.0)], axis=1)
    made = []
    for name, data in (("Cursor", cursor), ("DecodePos", 0 * cursor), ("Eye", 0.1 * cursor), ("Hand", hand)):
        clock = made[0] if made else time
        made.append(SpatialSeries(name=name, data=data, timestamps=clock, reference_frame="screen", unit="meters"))
        place.add_spatial_series(made[-1])
    return made


def _trials() -> dict[str, object]:
    success = np.ones(TRIALS, dtype=np.uint8)
    success[list(FAILED)] = 0
    held = np.where(success == 1, START + 1.9, np.nan)
    # the first target of some trials is acquired twice, of failed ones never
    acquired = [START[k] + np.array([1.45] if k % 5 else [1.45, 1.6]) for k in range(TRIALS)]
    for row in FAILED:
        acquired[row] = np.zeros(0)
    return {
        "start_time": START,
        "stop_time": START + LASTS,
        "target_shown_time": START + 0.2,
        "go_cue_time": START + 0.8,
        "target_acquire_time": acquired,
        "target_held_time": held,
        "target_hold_time": np.full(TRIALS, 0.3),  # this and the next two are durations, for all their names
        "fail_time": np.full(TRIALS, 2.0),
        "reach_time": np.full(TRIALS, 1.5),
        "is_successful": success,
        "target_pos": [np.array([80.0 * np.cos(k), 80.0 * np.sin(k), -40.0]) for k in range(TRIALS)],
        "target_size": [np.full(3, 10.0)] * TRIALS,
        "barrier_points": [np.zeros(6)] * TRIALS,
        "task_id": np.full(TRIALS, 1.0),
        "version_id": np.full(TRIALS, 2.0),
    }


def _add_electrodes(file: NWBFile) -> list:
    for name in ("gain", "offset"):
        file.add_electrode_column(name, name)
    groups, container = [], LFP(name="LFP")
    for name, region in (("1", "M1"), ("2", "PMd")):
        device = file.create_device(f"Utah Array({region})", description="96 channel utah array")
        about = f"array corresponding to device implanted at {region}"
        groups.append(file.create_electrode_group(name, description=about, location=region, device=device))
        for _ in range(96):
            where = {"x": 0.0, "y": 0.0, "z": 0.0, "imp": 0.0, "filtering": "none"}
            file.add_electrode(location=region, group=groups[-1], gain=1.0, offset=0.0, **where)
    file.create_processing_module("ecephys", "Intermediate data from extracellular recordings").add(container)
    for region in ("M1", "PMd"):
        rows = file.create_electrode_table_region(list(range(96)), "electrode_table_region")
        data = np.zeros((10, 96), dtype=np.int16)
        container.add_electrical_series(ElectricalSeries(name=f"{region}_1", data=data, electrodes=rows, rate=1000.0))
    return groups


LAYOUTS: dict[str, Callable[[Path], Path]] = {"even_chen": write}
