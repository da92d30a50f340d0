"""Small files in the layout of dandiset 000688 (Perich and Miller), centre-out and random-target, with known truth.

Times are seconds, lengths cm. Every centre-out trial starts at 3 k, shows its target at 3 k + .2, gives the go cue at
3 k + .9 and stops at 3 k + 1.9; random-target trials last 5 s.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from pynwb import NWBFile, TimeSeries
from pynwb.behavior import BehavioralTimeSeries, Position, SpatialSeries

from tests.data_prep.layouts.reaching import (
    Reaches,
    UnitTable,
    add_trials,
    add_units,
    nwb_file,
    out_and_back,
    save,
    tuned_spikes,
)

HZ = 100
UNITS = 8
CO_TRIALS, CO_STEP = 40, 3.0
RT_TRIALS, RT_STEP = 24, 5.5
# centre-out trials that are not valid: failed, incomplete, aborted before the target, without a target id, too long
# (as the two trials after it are not in the table)
FAILED, INCOMPLETE, ABORTED, NO_TARGET, LONG = 5, 11, 17, 23, 29
GAP = (90.55, 93.55)  # s: the cursor is not recorded from here to there, in the trial that is too long
REPEATED = (10.0, 40.0)  # s: times of samples that are there twice
JERK = 20.5  # s: here the acceleration is 2000 cm/s^2 in one axis
AWAY = 95.5  # s: for .1 s the cursor is 12 cm from the centre
RT_INVALID = {3: "F", 9: "I"}  # trial -> result; trial 15 attempted three targets of four


def reaches(task: str = "CO") -> Reaches:
    """The movements of a file: 8 cm out and back, or four steps a trial that add up to nothing."""
    if task == "CO":
        start = np.arange(CO_TRIALS) * CO_STEP
        return out_and_back(start + 1.2, start + 2.2, 0.6, 8.0)
    start = np.repeat(np.arange(RT_TRIALS) * RT_STEP, 4) + np.tile([0.8, 1.8, 2.8, 3.8], RT_TRIALS)
    angle = np.repeat(np.arange(RT_TRIALS), 4) + np.tile(np.arange(4) * np.pi / 2, RT_TRIALS)
    return Reaches(start, np.full(len(start), 0.7), 6 * np.stack([np.cos(angle), np.sin(angle)], axis=1))


def write(
    path: Path,
    task: str = "CO",
    scale: float = 1.0,
    acceleration: bool = True,
    subject: str = "C",
    day: str = "20160909",
) -> Path:
    """The file of a session; `scale` multiplies what is stored (10: somebody wrote millimetres)."""
    label = f"sub-{subject}_ses-{task}-{day}"
    what = {"CO": "Center-out delayed reaching task", "RT": "Random target reaching task"}[task]
    file = nwb_file(label, subject, f"{day[:4]}-{day[4:6]}-{day[6:]}", experiment_description=what, lab="Miller")
    moved, seconds = reaches(task), (CO_TRIALS * CO_STEP if task == "CO" else RT_TRIALS * RT_STEP) + 2.0
    _add_behaviour(file, moved, seconds, scale, acceleration)
    add_trials(file, _center_out() if task == "CO" else _random_target())
    _add_electrodes(file)
    electrodes = [*range(UNITS // 2), *range(96, 96 + UNITS - UNITS // 2)]  # the first half M1, the second PMd
    add_units(file, tuned_spikes(moved, [(0.0, seconds)], UNITS, 25.0), UnitTable(electrodes, waveforms=48))
    return save(file, path)


def sample_times(seconds: float) -> np.ndarray:
    """Times (N,) of the samples: 100 Hz but for one gap, two of them twice."""
    time = np.arange(round(seconds * HZ)) / HZ
    time = time[(time < GAP[0]) | (time >= GAP[1])]
    return np.sort(np.concatenate([time, REPEATED]))


def _add_behaviour(file: NWBFile, moved: Reaches, seconds: float, scale: float, acceleration: bool) -> None:
    time = sample_times(seconds)
    position, velocity, force = moved.position(time), moved.velocity(time), moved.acceleration(time)
    position[(time >= AWAY - 1e-6) & (time < AWAY + 0.1 - 1e-6), 0] += 12.0
    force[np.abs(time - JERK) < 1e-6, 1] += 2000.0
    module = file.create_processing_module("behavior", "Processed Behavioral data")
    series = SpatialSeries(
        name="cursor_pos", data=position * scale, timestamps=time, unit="cm", reference_frame="center of the screen"
    )
    module.add(Position(spatial_series=series))
    speed = TimeSeries(name="cursor_vel", data=velocity * scale, timestamps=series, unit="cm/s")
    module.add(BehavioralTimeSeries(time_series=speed, name="Velocity"))
    if acceleration:
        change = TimeSeries(name="cursor_acc", data=force * scale, timestamps=series, unit="cm/s^2")
        module.add(BehavioralTimeSeries(time_series=change, name="Acceleration"))


def _center_out() -> dict[str, object]:
    start = np.arange(CO_TRIALS) * CO_STEP
    result, target = ["R"] * CO_TRIALS, np.arange(CO_TRIALS) % 8.0
    shown, go, stop = start + 0.2, start + 0.9, start + 1.9
    for row, letter in ((FAILED, "F"), (INCOMPLETE, "I"), (ABORTED, "A")):
        result[row] = letter
    shown[ABORTED], go[ABORTED], go[INCOMPLETE] = np.nan, np.nan, np.nan
    stop[ABORTED] = start[ABORTED] + 0.15
    target[[ABORTED, NO_TARGET]] = np.nan
    rows = [row for row in range(CO_TRIALS) if row not in (LONG + 1, LONG + 2)]  # so the next target is 9 s away
    return {
        "start_time": start[rows],
        "stop_time": stop[rows],
        "target_on_time": shown[rows],
        "go_cue_time": go[rows],
        "target_dir": target[rows] * np.pi / 4,
        "target_id": target[rows],
        "target_corners": np.tile([7.0, 9.0, -1.0, 1.0], (len(rows), 1)),
        "result": [result[row] for row in rows],
    }


def _random_target() -> dict[str, object]:
    start = np.arange(RT_TRIALS) * RT_STEP
    go = start[:, None] + [0.6, 1.6, 2.6, 3.6]
    attempted, result = np.full(RT_TRIALS, 4.0), ["R"] * RT_TRIALS
    for row, letter in RT_INVALID.items():
        result[row] = letter
    go[9], attempted[9], attempted[15] = np.nan, 0.0, 3.0
    return {
        "start_time": start,
        "stop_time": start + 5.0,
        "go_cue_time_array": go,
        "num_attempted": attempted,
        "num_targets": np.full(RT_TRIALS, 4, dtype=np.uint8),
        "target_dir": np.full(RT_TRIALS, np.nan),
        "target_id": np.where(np.isfinite(go), np.tile([0.0, 1, 2, 3], (RT_TRIALS, 1)), np.nan),
        "target_size": np.full(RT_TRIALS, 2.0),
        "result": result,
    }


def _add_electrodes(file: NWBFile) -> None:
    for name in ("bank", "label", "pin"):
        file.add_electrode_column(name, name)
    for region in ("M1", "PMd"):
        device = file.create_device(f"electrode_array_{region}", description=f"96-electrode Utah array in {region}")
        group = file.create_electrode_group(
            f"electrode_group_{region}", description=device.description, location=region, device=device
        )
        for k in range(96):
            bank = "ABC"[k // 32]
            file.add_electrode(
                location=region, group=group, filtering="none", bank=bank, label=f"elec{k}", pin=k % 32 + 1
            )


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "perich_co": write,
    "perich_rt": lambda path: write(path, task="RT"),
}
