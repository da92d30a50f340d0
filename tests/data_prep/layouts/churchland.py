"""Small files in the layout of dandiset 000070 (Churchland and Shenoy), mazes at 1 kHz, with known truth.

Times are seconds, lengths mm. On the true clock trial k starts at 2.5 k, shows its target at + .2, gives the go cue at
+ .9, moves from + 1.1 to + 1.6 and stops at + 2.1; nothing is recorded until the next one, while the hand goes back.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pynwb import NWBFile
from pynwb.behavior import Position, SpatialSeries
from pynwb.ecephys import ElectricalSeries, FilteredEphys

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
UNITS, TRIALS, STEP, LASTS = 8, 40, 2.5, 2.1
DISCARDED, FAILED = 6, 13
JUMP = 10  # trial in which the cursor jumps by 5 mm for one sample, 1.9 s after its start
RESET, RESTART = 20, 5.0  # from this trial on the clock of the variant `reset` starts anew, at this time
OVERLAP, EARLY = 3, 1.5  # in the variant `overlap` the trial after this one is told so many seconds too early
BAD = 7  # the unit whose spikes do not show the reset, or show one where there is none


@dataclass(frozen=True)
class Variant:
    """How the five table layouts of the dandiset differ."""

    segments: int  # of LFP, of each array
    hand: int  # columns of Hand: x,y; x,y,z; or two points of three
    target: str = "uint8"  # type of target_positions
    maze: bool = True  # whether the columns about the maze are there
    day: str = "2009-09-12"


VARIANTS = {
    1: Variant(2, 2),
    2: Variant(3, 3, day="2009-08-12"),
    3: Variant(4, 3, "int16", day="2009-09-10"),
    4: Variant(3, 6, "int16", maze=False, day="2009-09-20"),
    5: Variant(2, 2, "int16", maze=False, day="2009-09-22"),
}
START = np.arange(TRIALS) * STEP  # on the true clock
REACHES = out_and_back(START + 1.1, START + 2.12, 0.35, 100.0)


def told(time: np.ndarray, reset: bool, overlap: bool) -> np.ndarray:
    """What the file says for true times (N,): its clock starts anew, or one trial is told too early."""
    out = np.array(time, dtype=np.float64)
    if overlap:
        out[(time >= START[OVERLAP + 1]) & (time < START[OVERLAP + 2])] -= EARLY
    if reset:
        out[time >= START[RESET]] += RESTART - START[RESET]
    return out


def sample_times() -> np.ndarray:
    """True times (N,) of the samples: 1 kHz during trials."""
    return (START[:, None] + np.arange(round(LASTS * HZ)) / HZ).reshape(-1)


def spike_times() -> list[np.ndarray]:
    """True spike times of each unit, during trials."""
    return tuned_spikes(REACHES, [(start, start + LASTS) for start in START], UNITS, 400.0)


def write(path: Path, variant: int = 1, reset: bool = False, overlap: bool = False, bad_unit: bool = False) -> Path:
    """The file of a session in one of the five table layouts, its clock sound or not."""
    kind = VARIANTS[variant]
    file = nwb_file(None, "Nitschke", kind.day, session_description="", institution="Stanford University")
    groups = _add_electrodes(file)

    def clock(time: np.ndarray) -> np.ndarray:
        return told(time, reset, overlap)

    series = _add_behaviour(file, kind, clock(sample_times()))
    size = round(LASTS * HZ)
    add_trials(file, _trials(kind, clock), references(series, [[(k * size, size)] * 3 for k in range(TRIALS)]))
    trains = [clock(train) for train in spike_times()]
    if bad_unit:
        true = spike_times()[BAD]
        trains[BAD] = true if reset else told(true, reset=True, overlap=False)
    electrodes = [k * 192 // UNITS for k in range(UNITS)]  # the first half PMd, the second M1
    seen = np.stack([clock(START), clock(START) + LASTS], axis=1)
    about = UnitTable(electrodes, [groups[row // 96] for row in electrodes], [seen] * UNITS)
    add_units(file, trains, about)
    _add_lfp(file, kind.segments)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pynwb minds a position of six columns, which some of these files have
        return save(file, path)


def _add_behaviour(file: NWBFile, kind: Variant, time: np.ndarray) -> list[SpatialSeries]:
    true = sample_times()
    cursor = REACHES.position(true)
    cursor[np.abs(true - START[JUMP] - 1.9) < 1e-6, 1] += 5.0
    place = Position(name="Position")
    file.create_processing_module("behavior", "contains monkey movement data").add(place)
    where = np.tile(cursor, (1, 3))[:, : kind.hand] + 0.5
    made = []
    for name, data in (("Cursor", cursor), ("Hand", where), ("Eye", cursor * 0.1)):
        # what pynwb writes where nobody said a unit; the numbers are mm
        clock = made[0] if made else time
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as in write
            made.append(SpatialSeries(name=name, data=data, timestamps=clock, reference_frame="screen", unit="meters"))
        place.add_spatial_series(made[-1])
    return made


def _trials(kind: Variant, clock: Callable[[np.ndarray], np.ndarray]) -> dict[str, object]:
    flag = np.zeros(TRIALS, dtype=np.uint8)
    discard, success = flag.copy(), flag + np.uint8(1)
    discard[DISCARDED], success[FAILED] = 1, 0
    begins, ends = clock(START) + 1.1, clock(START) + 1.6
    begins[FAILED], ends[FAILED] = np.nan, np.nan
    targets = [np.full((1 + k % 3, 2), k, dtype=kind.target) for k in range(TRIALS)]
    out = {
        "start_time": clock(START),
        "stop_time": clock(START) + LASTS,
        "trial_type": (flag + np.arange(TRIALS) % 27).astype(np.uint8),
        "task_success": success,
        "discard_trial": discard,
        "target_presentation_time": clock(START) + 0.2,
        "go_cue_time": clock(START) + 0.9,
        "move_begins_time": begins,
        "move_ends_time": ends,
        "reaction_time": np.where(success == 1, 0.2, np.nan),  # a duration, for all its name
        "target_size": flag + np.uint8(8),
        "maze_num_targets": np.array([len(rows) for rows in targets], dtype=np.uint8),
        "maze_num_barriers": flag + np.uint8(2),
        "hit_target_position": np.array([rows[0] for rows in targets], dtype=np.int16),
        "target_positions": targets,
        "frame_details": [np.full((5, 1, 1), 90, dtype=np.int16)] * TRIALS,
        "barrier_info": [np.full((2 + k % 4, 4), 1.5) for k in range(TRIALS)],
    }
    if kind.maze:
        names = ("trial_version", "maze_condition", "novel_maze", "proto_trial", "correct_reach")
        out |= {name: flag + np.uint8(1) for name in names}
    return out


def _add_electrodes(file: NWBFile) -> list:
    for name in ("gain", "offset"):
        file.add_electrode_column(name, name)
    groups = []
    for name, region in (("1", "PMd"), ("2", "M1")):
        device = file.create_device(f"Utah Array({region})", description="96 channel utah array")
        about = f"array corresponding to device implanted at {region}"
        groups.append(file.create_electrode_group(name, description=about, location=region, device=device))
        for _ in range(96):
            where = {"x": 0.0, "y": 0.0, "z": 0.0, "imp": 0.0, "filtering": "none"}
            file.add_electrode(location=region, group=groups[-1], gain=1.0, offset=0.0, **where)
    return groups


def _add_lfp(file: NWBFile, segments: int) -> None:
    """LFP in pieces that nobody can put on the clock."""
    container = FilteredEphys(name="Processed")
    file.create_processing_module("ecephys", "Intermediate data from extracellular recordings").add(container)
    for array in "AB":
        rows = file.create_electrode_table_region(list(range(96)), "electrode_table_region")
        for k in range(segments):
            data = np.zeros((10, 96), dtype=np.int16)
            container.add_electrical_series(
                ElectricalSeries(name=f"{array}{k + 1:03d}", data=data, electrodes=rows, rate=1000.0, starting_time=0.0)
            )


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    **{f"churchland_{k}": lambda path, k=k: write(path, variant=k) for k in VARIANTS},
    "churchland_reset": lambda path: write(path, reset=True, bad_unit=True),
}
