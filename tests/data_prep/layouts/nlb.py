"""Small train and test files in the layouts of the Neural Latents Benchmark (000127 to 000130, 000138 to 000140).

Times are seconds on the true clock of the train file; the test file tells its trials one after another from zero. The
held-out units of the train file are absent from the test file, and so is behaviour.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pynwb import NWBFile, TimeSeries
from pynwb.behavior import SpatialSeries

from tests.data_prep.layouts.reaching import (
    UnitTable,
    add_trials,
    add_units,
    nwb_file,
    out_and_back,
    save,
    tuned_spikes,
)

HZ = 1000
UNITS, HELD_OUT = 8, (2, 5, 7)  # rows of the held-out units
HELD_IN = tuple(row for row in range(UNITS) if row not in HELD_OUT)
TEST_TRIALS = 12

# maze: trial k at 3 k, for 2.4 s; target at + .2, go at + .9, movement from + 1.2
MAZE_TRIALS, MAZE_STEP, MAZE_LASTS, MAZE_ONSET = 30, 3.0, 2.4, 1.2
MAZE_IDS = (1001, 1011, 1012, 1034, 2001, 2007, 2071, 2093)  # the first digit is the array: 1 PMd, 2 M1
MAZE_START = np.arange(MAZE_TRIALS) * MAZE_STEP
MAZE = out_and_back(MAZE_START + MAZE_ONSET, MAZE_START + 2.45, 0.5, 100.0)
LOST = (31.0, 31.02)  # s: hand position and velocity are NaN

# rtt: 600-ms cuts of two segments, the second after .1 s of NaN
RTT_TRIALS, RTT_CUT, RTT_SEGMENTS, RTT_HOLE = 150, 0.6, 2, 0.1
# bump: trial k at 2.5 k, for 2.2 s; every third is bumped and has no target; one in ten does not move
BUMP_TRIALS, BUMP_STEP, BUMP_LASTS = 40, 2.5, 2.2
BUMP_START = np.arange(BUMP_TRIALS) * BUMP_STEP
BUMP_ONSET = np.where(np.arange(BUMP_TRIALS) % 3 == 0, 0.5, 1.0)  # s after the start
BUMP = out_and_back(BUMP_START + BUMP_ONSET, BUMP_START + 1.7, 0.4, 8.0)
BUMP_HOLE = (50.0, 50.1)  # s: between two segments, NaN
# rsg: trial k at 4 k, for 3.6 s; ready at + .8, set at + .8 + ts, go at set + tp
RSG_TRIALS, RSG_STEP, RSG_LASTS, RSG_READY = 40, 4.0, 3.6, 0.8
RSG_TS = 0.48 + 0.08 * (np.arange(RSG_TRIALS) % 5)  # s; the file says ms
RSG_TP = RSG_TS + 0.02 * (np.arange(RSG_TRIALS) % 3 - 1)
RSG_OUTLIERS, RSG_NONE = (3, 14), 20


def split_column(count: int, none: tuple[int, ...] = ()) -> list[str]:
    """The benchmark's column: every fourth trial is val, the others train, some none."""
    return ["none" if row in none else "val" if row % 4 == 3 else "train" for row in range(count)]


@dataclass(frozen=True)
class Pair:
    """What the train and test file of a set share."""

    session_id: str
    subject: str
    day: str
    regions: tuple[str, ...]  # of the arrays
    ids: tuple[int, ...]
    electrodes: tuple[int, ...] | None  # row of each unit as the file tells it
    window: tuple[float, float]  # of a test trial, s around its time 0
    align: str = ""  # column of the test file that holds time 0; "" its start


SETS = {
    # the electrodes of M1's units, rows 96 to 191, are told 96 too low in one of the two
    "maze": Pair(
        "full", "Jenkins", "2009-09-25", ("PMd", "M1"), MAZE_IDS, (1, 11, 12, 34, 1, 7, 71, 93), (-0.25, 0.45)
    ),
    "maze_large": Pair(
        "large", "Jenkins", "2009-10-06", ("PMd", "M1"), MAZE_IDS, (1, 11, 12, 34, 97, 103, 167, 189), (-0.25, 0.45)
    ),
    "rtt": Pair("20170202_02", "Indy", "2017-02-02", ("M1",), tuple(range(1, 9)), tuple(range(8)), (0.0, 0.6)),
    "bump": Pair("20171207", "Han", "2017-12-07", ("area 2",), tuple(range(8)), tuple(range(8)), (-0.1, 0.5)),
    "rsg": Pair("20161211", "Haydn", "2016-12-11", ("DMFC",) * 3, tuple(range(8)), None, (-1.5, 0.0)),
}
ALIGN = {"maze": "move_onset_time", "maze_large": "move_onset_time", "bump": "move_onset_time", "rsg": "go_time"}


def rtt_start() -> np.ndarray:
    """Starts (n,) of the 600-ms trials, with the rounding errors of a running sum."""
    start = np.cumsum(np.full(RTT_TRIALS, RTT_CUT)) - RTT_CUT
    return start + RTT_HOLE * (np.arange(RTT_TRIALS) >= RTT_TRIALS // RTT_SEGMENTS)


RTT_SECONDS = RTT_TRIALS * RTT_CUT + RTT_HOLE
RTT = out_and_back(np.arange(0.2, RTT_SECONDS - 1, 1.2), np.arange(0.8, RTT_SECONDS - 1, 1.2), 0.5, 60.0)


def write_train(path: Path, kind: str = "maze") -> Path:
    """The train file of a set: maze, maze_large, rtt, bump or rsg."""
    return {
        "maze": _write_maze,
        "maze_large": lambda path: _write_maze(path, "maze_large"),
        "rtt": _write_rtt,
        "bump": _write_bump,
        "rsg": _write_rsg,
    }[kind](path)


def write_test(path: Path, kind: str = "maze") -> Path:
    """The test file of a set: held-in units, trials of one length end to end, no behaviour."""
    pair = SETS[kind]
    file = _file(pair, "test")
    before, after = -pair.window[0], pair.window[1]
    start = np.arange(TEST_TRIALS) * (before + after)
    columns = {"start_time": start, "stop_time": start + before + after, "split": ["test"] * TEST_TRIALS}
    if kind in ALIGN:
        columns[ALIGN[kind]] = start + before
    add_trials(file, columns)
    seen = np.stack([columns["start_time"], columns["stop_time"]], axis=1)
    trains = tuned_spikes(MAZE, [tuple(row) for row in seen], UNITS, 400.0)
    _add_units(file, pair, [trains[row] for row in HELD_IN], seen, HELD_IN)
    return save(file, path)


def write(path: Path, kind: str = "maze", part: str = "train") -> Path:
    """Either file of a set."""
    return write_train(path, kind) if part == "train" else write_test(path, kind)


def _file(pair: Pair, part: str) -> NWBFile:
    file = nwb_file(pair.session_id, pair.subject, pair.day, session_description=f"{part} file")
    for k, region in enumerate(pair.regions):
        name = f"electrode_array_{region}_{k}" if len(pair.regions) > 1 else "electrode_array"
        device = file.create_device(name, description="96-electrode Utah array")
        group = file.create_electrode_group(
            name.replace("array", "group"), description="electrodes", location=region, device=device
        )
        for _ in range(96):
            file.add_electrode(location=region, group=group, x=0.0, y=0.0, z=0.0, imp=0.0, filtering="none")
    return file


def _add_units(file: NWBFile, pair: Pair, trains: list, seen: np.ndarray, rows: tuple[int, ...]) -> None:
    about = UnitTable(
        electrodes=None if pair.electrodes is None else [pair.electrodes[row] for row in rows],
        observed=[seen] * len(rows),
        ids=[pair.ids[row] for row in rows],
        columns={"heldout": [row in HELD_OUT for row in rows]},
    )
    add_units(file, trains, about)


def _add_series(file: NWBFile, name: str, data: np.ndarray, clock: dict) -> None:
    """A flat series below processing/behavior; positions say metres and a conversion, as the benchmark's files do."""
    module = file.processing.get("behavior") or file.create_processing_module("behavior", "Processed behavioral data")
    if name.endswith("_pos"):
        module.add(SpatialSeries(name=name, data=data, reference_frame="screen", unit="m", conversion=0.001, **clock))
    else:
        module.add(TimeSeries(name=name, data=data, unit="unknown", **clock))


def _write_maze(path: Path, kind: str = "maze") -> Path:
    file = _file(SETS[kind], "train")
    time = (MAZE_START[:, None] + np.arange(round(MAZE_LASTS * HZ)) / HZ).reshape(-1)
    lost = (time >= LOST[0] - 1e-6) & (time < LOST[1] - 1e-6)
    hand, speed = MAZE.position(time), MAZE.velocity(time)
    for name, data in (("hand_vel", speed), ("hand_pos", hand), ("cursor_pos", hand * 1.1), ("eye_pos", hand * 0.5)):
        _add_series(file, name, np.where(lost[:, None] & name.startswith("hand"), np.nan, data), {"timestamps": time})
    start, count = MAZE_START, np.arange(MAZE_TRIALS)
    add_trials(
        file,
        {
            "start_time": start,
            "stop_time": start + MAZE_LASTS,
            "success": np.ones(MAZE_TRIALS, dtype=bool),
            "target_on_time": start + 0.2,
            "go_cue_time": start + 0.9,
            "move_onset_time": start + MAZE_ONSET,
            "rt": np.full(MAZE_TRIALS, 300),  # ms, as is the next
            "delay": np.full(MAZE_TRIALS, 700),
            "trial_type": count % 9,
            "trial_version": count % 3,
            "maze_id": count % 9 + 76,
            "num_targets": 1 + count % 3,
            "target_pos": [np.full((1 + k % 3, 2), 100, dtype=np.int16) for k in count],
            "num_barriers": 2 + count % 2,
            "barrier_pos": [np.full((2 + k % 2, 4), 10) for k in count],
            "active_target": 0 * count,
            "split": split_column(MAZE_TRIALS),
        },
    )
    seen = np.stack([start, start + MAZE_LASTS], axis=1)
    trains = tuned_spikes(MAZE, [tuple(row) for row in seen], UNITS, 400.0)
    _add_units(file, SETS[kind], trains, seen, tuple(range(UNITS)))
    return save(file, path)


def _write_rtt(path: Path) -> Path:
    file = _file(SETS["rtt"], "train")
    time = np.arange(round(RTT_SECONDS * HZ)) / HZ
    middle = RTT_TRIALS // RTT_SEGMENTS * RTT_CUT
    hole = (time >= middle - 1e-6) & (time < middle + RTT_HOLE - 1e-6)
    finger = np.concatenate([RTT.position(time), np.full((len(time), 1), 20.0)], axis=1)
    clock = {"rate": float(HZ), "starting_time": 0.0}
    for name, data in (
        ("cursor_pos", finger[:, :2]),
        ("finger_pos", finger),
        ("finger_vel", RTT.velocity(time)),
        ("target_pos", finger[:, :2]),
    ):
        _add_series(file, name, np.where(hole[:, None], np.nan, data), clock)
    start = rtt_start()
    # val is the fifth fifth of each segment: 600-ms trials of one split follow each other
    split = ["val" if row % 75 >= 60 else "train" for row in range(RTT_TRIALS)]
    add_trials(file, {"start_time": start, "stop_time": start + RTT_CUT, "split": split})
    seen = np.array([[0.0, middle], [middle + RTT_HOLE, RTT_SECONDS]])
    _add_units(file, SETS["rtt"], tuned_spikes(RTT, seen.tolist(), UNITS, 200.0), seen, tuple(range(UNITS)))
    return save(file, path)


def _write_bump(path: Path) -> Path:
    file = _file(SETS["bump"], "train")
    seconds = BUMP_TRIALS * BUMP_STEP
    time = np.arange(round(seconds * HZ)) / HZ
    hole = (time >= BUMP_HOLE[0] - 1e-6) & (time < BUMP_HOLE[1] - 1e-6)
    hand, speed = BUMP.position(time), BUMP.velocity(time)
    clock = {"rate": float(HZ), "starting_time": 0.0}
    wide = np.tile(hand, (1, 4))
    for name, data in (
        ("hand_pos", hand),
        ("hand_vel", speed),
        ("force", wide[:, :6]),
        ("joint_ang", wide[:, :7]),
        ("joint_vel", wide[:, :7]),
        ("muscle_len", wide),
        ("muscle_vel", wide),
    ):
        _add_series(file, name, np.where(hole[:, None], np.nan, data), clock)
    add_trials(file, _bump_trials())
    seen = np.array([[0.0, BUMP_HOLE[0]], [BUMP_HOLE[1], seconds]])
    _add_units(file, SETS["bump"], tuned_spikes(BUMP, seen.tolist(), UNITS, 30.0), seen, tuple(range(UNITS)))
    return save(file, path)


def _bump_trials() -> dict[str, object]:
    count, bumped = np.arange(BUMP_TRIALS), np.arange(BUMP_TRIALS) % 3 == 0
    still = count % 10 == 5
    return {
        "start_time": BUMP_START,
        "stop_time": BUMP_START + BUMP_LASTS,
        "ctr_hold_bump": bumped,
        "ctr_hold": np.full(BUMP_TRIALS, 0.4),
        "bump_time": np.where(bumped, BUMP_START + 0.4, np.nan),
        "bump_dir": np.where(bumped, 45.0 * (count % 8), np.nan),
        "cond_dir": 45.0 * (count % 8),
        "target_on_time": np.where(bumped, np.nan, BUMP_START + 0.3),
        "go_cue_time": np.where(bumped, np.nan, BUMP_START + 0.7),
        "target_dir": np.where(bumped, np.nan, 45.0 * (count % 8)),
        "move_onset_time": np.where(still, np.nan, BUMP_START + BUMP_ONSET),
        "result": ["A" if row else "R" for row in still],
        "split": split_column(BUMP_TRIALS, tuple(np.flatnonzero(still))),
    }


def _write_rsg(path: Path) -> Path:
    file = _file(SETS["rsg"], "train")
    start, count = np.arange(RSG_TRIALS) * RSG_STEP, np.arange(RSG_TRIALS)
    ready = start + RSG_READY
    ms = np.full(RSG_TRIALS, 1000.0)
    add_trials(
        file,
        {
            "start_time": start,
            "stop_time": start + RSG_LASTS,
            "fix_on_time": start + 0.1,
            "fix_time": start + 0.2,
            "target_on_time": start + 0.4,
            "ready_time": ready,
            "set_time": ready + RSG_TS,
            "go_time": ready + RSG_TS + RSG_TP,
            "target_acq_time": ready + RSG_TS + RSG_TP + 0.1,
            "reward_time": np.where(count % 6 == 0, np.nan, start + 3.2),
            "bad_time": np.full(RSG_TRIALS, np.nan),
            "ts": 1000 * RSG_TS,  # ms, as are the next
            "tp": 1000 * RSG_TP,
            "iti": np.where(count % 2, 1220.0, 500.0),
            "fix_time_dur": 0.2 * ms,
            "target_time_dur": 0.4 * ms,
            "reward_dur": 0.1 * ms,
            "is_eye": count % 4 < 2,
            "is_short": count % 2 == 0,
            "is_outlier": np.isin(count, RSG_OUTLIERS),
            "theta": 180.0 * (count % 2),
            "split": split_column(RSG_TRIALS, (RSG_NONE,)),
        },
    )
    seen = np.array([[0.0, 80.0], [80.0, RSG_TRIALS * RSG_STEP]])
    _add_units(file, SETS["rsg"], tuned_spikes(MAZE, seen.tolist(), UNITS, 400.0), seen, tuple(range(UNITS)))
    return save(file, path)


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    **{f"nlb_{kind}": lambda path, kind=kind: write_train(path, kind) for kind in SETS if kind != "maze_large"},
    "nlb_maze_test": write_test,
    "nlb_rsg_test": lambda path: write_test(path, "rsg"),
}
