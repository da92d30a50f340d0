"""Known tuning -> NWB files: centre-out sessions of three simulated animals, differing on purpose, the truth beside them.

The cursor is a sum of minimum-jerk submovements. A unit fires, at time t, with the rate

    baseline * exp(depth * cos(direction - preferred) * speed / 20 + speed_gain * speed / 20)      [Hz]

of the velocity at t + lag (cm/s), saturating at 200 Hz; spikes are drawn by thinning. `truth.json` beside the files
tells every unit's numbers, so that a test can ask for them back.
"""

import json
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import h5py
import numpy as np
from pynwb import NWBHDF5IO, NWBFile, TimeSeries
from pynwb.behavior import BehavioralTimeSeries, Position, SpatialSeries
from pynwb.core import DynamicTableRegion, VectorData, VectorIndex
from pynwb.file import Subject
from pynwb.misc import Units

from data_prep.errors import ConfigError

TRUTH = "truth.json"
GRID_HZ = 1000  # of the simulated cursor; 50, 100 and 250 Hz divide it
REACH_CM = 8.0
TARGETS = 8
SPEED_UNIT = 20.0  # cm/s in which depth and speed gain are counted
MAX_RATE = 200.0  # Hz
PAUSE_S = 41.3  # how long the recording with gaps stands still at each gap
FIRST_DAY = datetime(2020, 1, 6, 9, 0, tzinfo=UTC)


@dataclass(frozen=True)
class SyntheticConfig:
    minutes: float = 5.0
    "Recorded time of each session, minutes."
    seed: int = 0
    "Seed of everything random; the same seed gives the same movements and spikes."
    sessions: int = 8
    "How many of the eight sessions to write, from the first (1 to 8)."


@dataclass(frozen=True)
class _Plan:
    """How one session differs from the others."""

    animal: str
    label: str
    units: int
    hz: int
    length: str = "cm"
    regions: tuple[str, ...] = ("M1", "PMd")
    gaps: int = 0
    velocity: bool = True
    clock: str = "timestamps"  # or "rate": a starting time and a rate in place of timestamps

    @property
    def name(self) -> str:
        return f"sub-{self.animal}_ses-{self.label}"


PLANS = (
    _Plan("Ada", "CO-01", units=62, hz=100),
    _Plan("Ada", "CO-02", units=88, hz=100, gaps=2),
    _Plan("Ada", "CO-03", units=45, hz=250),
    _Plan("Bix", "CO-01", units=120, hz=50, length="mm", regions=("M1",), clock="rate"),
    _Plan("Bix", "CO-02", units=97, hz=50, length="mm", regions=("M1",), clock="rate"),
    _Plan("Bix", "CO-03", units=30, hz=100, regions=("M1",), velocity=False),
    _Plan("Cleo", "CO-01", units=74, hz=100, clock="rate"),
    _Plan("Cleo", "CO-02", units=56, hz=250, length="mm"),
)


@dataclass(frozen=True)
class _Trial:
    start_time: float  # s, as all times here
    stop_time: float
    target_on_time: float
    go_cue_time: float
    target_dir: float  # rad
    result: str  # "R" reached, "F" fell short


@dataclass(frozen=True)
class _Cursor:
    """One uninterrupted stretch: position (N, 2) cm and velocity (N, 2) cm/s at GRID_HZ from `start`, and its trials."""

    start: float
    position: np.ndarray
    velocity: np.ndarray
    trials: list[_Trial]

    @property
    def stop(self) -> float:
        return self.start + len(self.position) / GRID_HZ


def write_sessions(folder: Path | str, config: SyntheticConfig = SyntheticConfig()) -> list[Path]:
    """Write the sessions as NWB files named `sub-<animal>_ses-<label>.nwb`, and `truth.json`; give the files' paths.

    Each file appears under its name only when whole. Raises ConfigError for values outside their range.
    """
    if not 1 <= config.sessions <= len(PLANS):
        raise ConfigError("sessions", f"{config.sessions} asked for", f"choose 1 to {len(PLANS)}")
    if not 0.5 <= config.minutes <= 600:
        raise ConfigError("minutes", f"{config.minutes} asked for", "choose 0.5 to 600")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths, truth = [], {}
    for number, plan in enumerate(PLANS[: config.sessions]):
        random = np.random.default_rng([config.seed, number])
        stretches = _stretches(plan, config.minutes * 60, random)
        units = _units(plan, random)
        spikes = [np.concatenate([_spikes(unit, cursor, random) for cursor in stretches]) for unit in units]
        file = _nwb_file(plan, number, config.seed, stretches, units, spikes)
        paths.append(_write(file, folder / f"{plan.name}.nwb"))
        truth[plan.name] = {"length": plan.length, "hz": plan.hz, "gaps": plan.gaps, "units": units}
    _replace(folder / TRUTH, lambda part: part.write_text(json.dumps(truth, indent=1), encoding="utf-8"))
    return paths


def _stretches(plan: _Plan, seconds: float, random: np.random.Generator) -> list[_Cursor]:
    parts = plan.gaps + 1
    length = round(seconds / parts, 1)  # a whole number of samples at every rate
    return [_cursor(k * (length + PAUSE_S), length, random) for k in range(parts)]


def _cursor(start: float, seconds: float, random: np.random.Generator) -> _Cursor:
    """Centre-out trials with wandering in between, for `seconds` from `start`."""
    moves: list[tuple[float, float, np.ndarray]] = []  # onset s, duration s, displacement (2,) cm
    trials: list[_Trial] = []
    origin = random.normal(0, 1.0, 2)
    where, now = origin.copy(), random.uniform(0.3, 1.0)

    def move(onset: float, to: np.ndarray, duration: float) -> float:
        """A main submovement that errs and a correction that overlaps it; the time at which both are over."""
        nonlocal where
        main = (to - where) * random.uniform(0.8, 1.0) + random.normal(0, 0.4, 2)
        moves.append((onset, duration, main))
        moves.append((onset + 0.55 * duration, 0.7 * duration, to - where - main))
        where = to
        return onset + 1.25 * duration

    while now < seconds - 5.0:
        target_on = now + random.uniform(0.1, 0.3)
        go = target_on + random.uniform(0.3, 0.8)
        direction = random.integers(TARGETS) * 2 * np.pi / TARGETS
        reached = random.random() > 0.08
        reach = REACH_CM * (1.0 if reached else random.uniform(0.3, 0.7))
        goal = reach * np.array([np.cos(direction), np.sin(direction)]) + random.normal(0, 0.4, 2)
        stop = move(go + random.uniform(0.15, 0.3), goal, random.uniform(0.35, 0.75)) + random.uniform(0.1, 0.3)
        trials.append(_Trial(*(start + t for t in (now, stop, target_on, go)), direction, "R" if reached else "F"))
        now = stop + random.uniform(0.05, 0.3)
        for _ in range(random.poisson(1.2)):
            now = move(now, random.normal(0, 4.0, 2), random.uniform(0.35, 0.8)) + random.uniform(0, 0.2)
        now = move(now, random.normal(0, 0.4, 2), random.uniform(0.45, 0.9)) + random.uniform(0.05, 0.3)
    for onset, duration, pause in random.uniform((0, 0.4, 0.3), (seconds, 0.9, 1.2), (round(3 * seconds), 3)):
        away = random.normal(0, 0.4, 2)  # an arm is never quite at rest: small excursions and back
        moves += [(onset, duration, away), (onset + pause, duration, -away)]
    position, velocity = _sum_of_submovements(moves, round(seconds * GRID_HZ))
    return _Cursor(start, position + origin, velocity, trials)


def _sum_of_submovements(moves, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Position (samples, 2) cm from the first position, and velocity cm/s: each move along 10 s^3 - 15 s^4 + 6 s^5."""
    position, velocity, reached = np.zeros((samples, 2)), np.zeros((samples, 2)), np.zeros((samples + 1, 2))
    for onset, duration, displacement in moves:
        first, last = round(onset * GRID_HZ), min(round((onset + duration) * GRID_HZ) + 1, samples)
        s = np.clip((np.arange(first, last) / GRID_HZ - onset) / duration, 0, 1)[:, None]
        position[first:last] += displacement * s**3 * (10 - 15 * s + 6 * s**2)
        reached[last] += displacement
        velocity[first:last] += displacement / duration * 30 * s**2 * (1 - s) ** 2
    return position + np.cumsum(reached, axis=0)[:samples], velocity


def _units(plan: _Plan, random: np.random.Generator) -> list[dict]:
    """Every unit's truth; one in twelve has no tuning, and one in the middle never fires."""
    units = []
    for k in range(plan.units):
        region = plan.regions[k * len(plan.regions) // plan.units]
        tuned, silent = random.random() > 1 / 12, k == plan.units // 2
        units.append(
            {
                "id": f"ch{k + 1:03d}a",
                "region": region,
                "tuned": bool(tuned and not silent),
                "baseline_hz": 0.0 if silent else float(random.lognormal(np.log(8) - 0.5 * 0.6**2, 0.6)),
                "preferred_rad": float(random.uniform(-np.pi, np.pi)),
                "depth": float(random.uniform(0.5, 1.2)) if tuned and not silent else 0.0,
                "speed_gain": float(random.normal(0.15, 0.1)) if tuned and not silent else 0.0,
                # positive: the unit leads the movement; premotor units lead by more
                "lag_s": float(random.uniform(0.05, 0.15) if region == "PMd" else random.uniform(-0.05, 0.12)),
            }
        )
    return units


def _spikes(unit: dict, cursor: _Cursor, random: np.random.Generator) -> np.ndarray:
    """Sorted spike times, s, of one unit over one stretch: a Poisson process at the bound, thinned to the rate."""
    preferred = np.array([np.cos(unit["preferred_rad"]), np.sin(unit["preferred_rad"])])
    fastest = np.max(np.hypot(*cursor.velocity.T)) / SPEED_UNIT
    bound = min(MAX_RATE, unit["baseline_hz"] * np.exp((unit["depth"] + max(unit["speed_gain"], 0.0)) * fastest))
    seconds = cursor.stop - cursor.start
    time = np.sort(random.uniform(0, seconds, random.poisson(bound * seconds)))
    sample = np.clip(((time + unit["lag_s"]) * GRID_HZ).astype(np.int64), 0, len(cursor.velocity) - 1)
    velocity = cursor.velocity[sample] / SPEED_UNIT
    log_gain = unit["depth"] * (velocity @ preferred) + unit["speed_gain"] * np.hypot(*velocity.T)
    kept = random.random(len(time)) * bound < np.minimum(unit["baseline_hz"] * np.exp(log_gain), MAX_RATE)
    return np.unique(cursor.start + time[kept])


def _nwb_file(plan: _Plan, number: int, seed: int, stretches: list[_Cursor], units: list[dict], spikes) -> NWBFile:
    day = FIRST_DAY + timedelta(days=number)
    file = NWBFile(
        session_description="Simulated centre-out reaching with known tuning; no animal was recorded.",
        identifier=f"spikeloom-synthetic-{seed}-{plan.name}",
        session_start_time=day,
        file_create_date=day,
        session_id=plan.label,
        lab="Spikeloom",
        subject=Subject(subject_id=plan.animal, description="a simulation", age="P5Y", sex="U"),
    )
    _add_behaviour(file, plan, stretches)
    _add_trials(file, stretches)
    _add_units(file, plan, stretches, units, spikes)
    return file


def _add_behaviour(file: NWBFile, plan: _Plan, stretches: list[_Cursor]) -> None:
    step, factor = GRID_HZ // plan.hz, {"cm": 1.0, "mm": 10.0}[plan.length]
    position = np.concatenate([s.position[::step] for s in stretches]).astype(np.float32) * np.float32(factor)
    velocity = np.concatenate([s.velocity[::step] for s in stretches]).astype(np.float32) * np.float32(factor)
    time = np.concatenate([s.start + np.arange(len(s.position[::step])) / plan.hz for s in stretches])
    clock = {"timestamps": time} if plan.clock == "timestamps" else {"starting_time": 0.0, "rate": float(plan.hz)}
    series = SpatialSeries(
        name="cursor_pos",
        description=f"cursor position, {plan.hz} Hz",
        data=position,
        unit=plan.length,
        reference_frame="centre target",
        **clock,
    )
    module = file.create_processing_module("behavior", "processed behavioral data")
    module.add(Position(spatial_series=series, name="Position"))
    if not plan.velocity:
        return
    if plan.clock == "timestamps":
        clock = {"timestamps": series}  # one array in the file, linked
    speed = TimeSeries(
        name="cursor_vel",
        description=f"cursor velocity, {plan.hz} Hz",
        data=velocity,
        unit=f"{plan.length}/s",
        **clock,
    )
    module.add(BehavioralTimeSeries(time_series=speed, name="Velocity"))


def _add_trials(file: NWBFile, stretches: list[_Cursor]) -> None:
    for name, description in (
        ("target_on_time", "outer target on, s"),
        ("go_cue_time", "go cue, s"),
        ("target_dir", "direction of the target, rad"),
        ("result", "R reward, F fail"),
    ):
        file.add_trial_column(name, description)
    for trial in (trial for stretch in stretches for trial in stretch.trials):
        file.add_trial(**asdict(trial))


def _add_units(file: NWBFile, plan: _Plan, stretches: list[_Cursor], units: list[dict], spikes) -> None:
    device = file.create_device(name="simulated array")
    groups = {
        region: file.create_electrode_group(region, description=f"array in {region}", location=region, device=device)
        for region in plan.regions
    }
    for unit in units:
        file.add_electrode(location=unit["region"], group=groups[unit["region"]])
    # whole columns: adding unit by unit takes pynwb five times as long
    observed = np.array([(stretch.start, stretch.stop) for stretch in stretches])
    count = np.arange(1, len(units) + 1)
    times = VectorData(name="spike_times", description="spike times of each unit, s", data=np.concatenate(spikes))
    seen = VectorData(
        name="obs_intervals", description="when each unit was recorded, s", data=np.tile(observed, (len(units), 1))
    )
    file.units = Units(
        name="units",
        description="simulated neurons, one an electrode",
        id=list(range(len(units))),
        columns=[
            VectorData(name="unit_name", description="label of the unit", data=[unit["id"] for unit in units]),
            VectorData(name="quality", description="good: one neuron", data=["good"] * len(units)),
            times,
            VectorIndex(name="spike_times_index", target=times, data=np.cumsum([len(s) for s in spikes])),
            seen,
            VectorIndex(name="obs_intervals_index", target=seen, data=count * len(observed)),
            *_electrodes_of_units(file, count),
        ],
    )


def _electrodes_of_units(file: NWBFile, count: np.ndarray) -> tuple[DynamicTableRegion, VectorIndex]:
    region = DynamicTableRegion(
        name="electrodes", description="the electrode of each unit", data=count - 1, table=file.electrodes
    )
    return region, VectorIndex(name="electrodes_index", target=region, data=count)


def _write(file: NWBFile, path: Path) -> Path:
    def fill(part: Path) -> None:
        with h5py.File(part, "w") as handle, NWBHDF5IO(file=handle, mode="w") as io:
            io.write(file)

    return _replace(path, fill)


def _replace(path: Path, fill) -> Path:
    """Let `fill` write a file beside `path`, then put it in its place whole."""
    part = path.with_name(path.name + ".part")
    try:
        fill(part)
        with open(part, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path
