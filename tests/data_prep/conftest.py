"""Small NWB files with chosen faults, written by the public library; and the recipe that reads the sound one."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from pynwb import NWBHDF5IO, NWBFile, TimeSeries
from pynwb.behavior import BehavioralTimeSeries, Position, SpatialSeries
from pynwb.file import Subject

from data_prep.recipe import Moment, PhaseRecipe, Recipe, SignalRecipe, SplitsRecipe, TrialsRecipe

# A loaded machine is no fault of the code: no example is timed.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

SECONDS, HZ, UNITS = 100.0, 50.0, 5


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    """Reads what `nwb` writes: velocity, else derived from the position; trials every 2 s."""
    return Recipe(
        name="small",
        signals={
            "cursor_vel": SignalRecipe(
                path=["processing/behavior/Velocity/cursor_vel"], derive_from="cursor_pos", unit="cm/s"
            ),
            "cursor_pos": SignalRecipe(path=["cursor_pos"], unit="cm", required=False),
        },
        trials=TrialsRecipe(valid="result == 'R'"),
        phases={
            "hold": PhaseRecipe(Moment(), Moment("go_cue_time")),
            "reach": PhaseRecipe(Moment("go_cue_time"), Moment("stop_time")),
        },
        splits=SplitsRecipe(by="trial"),
        min_train_s=10,
    )


@pytest.fixture(scope="session")
def blocks(recipe: Recipe) -> Recipe:
    """The same without trials: ten blocks of time."""
    return replace(recipe, trials=TrialsRecipe(table=""), phases={}, splits=SplitsRecipe(blocks=10))


@pytest.fixture
def nwb(tmp_path: Path, plain: bytes) -> Callable[..., Path]:
    """Write a small sound NWB file, but for what the keywords change; give its path."""

    def give(name: str = "small.nwb", **changes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if changes:
            return _write(path, **changes)
        path.write_bytes(plain)
        return path

    return give


@pytest.fixture(scope="session")
def write_nwb() -> Callable[..., Path]:
    """The writer itself, for files that a module writes once: (path, what the keywords change) -> path."""
    return _write


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The sound file: pynwb takes a third of a second for it, so it is written once."""
    return _write(tmp_path_factory.mktemp("plain") / "small.nwb").read_bytes()


def _write(
    path: Path,
    *,
    time=None,
    velocity=None,
    position=None,
    spikes=None,
    trials: int = 48,
    unit: str = "cm/s",
    conversion: float = 1.0,
    offset: float = 0.0,
    rate: float | None = None,
    starting_time: float = 0.0,
    session_id: str | None = "day1",
    subject: str = "Ada",
    electrodes: bool = True,
    observed: list | None = None,
    waveforms: int = 0,
    change: Callable[[NWBFile], None] = lambda file: None,
) -> Path:
    file = NWBFile(
        session_description="a test",
        identifier=path.name,
        session_id=session_id,
        session_start_time=datetime(2020, 1, 1, tzinfo=UTC),
        subject=Subject(subject_id=subject, description="none", species="Macaca mulatta"),
    )
    time = np.arange(SECONDS * HZ) / HZ if time is None else np.asarray(time, dtype=np.float64)
    clock = {"timestamps": time} if rate is None else {"rate": rate, "starting_time": starting_time}
    wave = np.stack([np.sin(time), np.cos(time)], axis=1)
    module = file.create_processing_module(name="behavior", description="behaviour")
    if position is not False:
        value = 10 * wave if position is None else position
        module.add(
            Position(
                spatial_series=SpatialSeries(
                    name="cursor_pos", data=value, reference_frame="centre", unit="cm", **clock
                )
            )
        )
    if velocity is not False:
        value = 10 * wave[:, ::-1] * [1, -1] if velocity is None else velocity
        series = TimeSeries(name="cursor_vel", data=value, unit=unit, conversion=conversion, offset=offset, **clock)
        module.add(BehavioralTimeSeries(time_series=series, name="Velocity"))
    _add_trials(file, trials)
    if spikes is None:
        random = np.random.default_rng(0)
        spikes = [np.sort(random.uniform(0, SECONDS, 200)) for _ in range(UNITS)]
    _add_units(file, spikes, electrodes, observed, waveforms)
    change(file)
    with NWBHDF5IO(path, "w") as io:
        io.write(file)
    return path


def _add_trials(file: NWBFile, count: int) -> None:
    if count:
        file.add_trial_column(name="go_cue_time", description="go cue, s")
        file.add_trial_column(name="result", description="R or F")
    for k in range(count):
        file.add_trial(
            start_time=2.0 * k, stop_time=2.0 * k + 1.9, go_cue_time=2.0 * k + 0.5, result="F" if k % 8 == 7 else "R"
        )


def _add_units(file: NWBFile, spikes: list, electrodes: bool, observed: list | None, waveforms: int) -> None:
    device = file.create_device(name="array")
    group = file.create_electrode_group(name="M1", description="array", location="M1", device=device)
    for k, times in enumerate(spikes):
        about = {} if observed is None else {"obs_intervals": observed}
        if waveforms:
            about |= {"waveforms": np.ones((len(times), 1, waveforms), dtype=np.int16)}
        if electrodes:
            file.add_electrode(location="M1" if k % 2 else "unknown", group=group)
            about |= {"electrodes": [k], "electrode_group": group}
        file.add_unit(spike_times=np.asarray(times, dtype=np.float64), **about)
