"""A MATLAB 5 file of Flint, Lindberg, Jordan, Miller and Slutzky (CRCNS, DREAM: Flint_2012_e1.mat ... e5.mat) -> Recording.

The layout, as the data set's README and the public loaders of it (brainsets' pipeline, NDT3's) tell: Subject is a struct array,
one element a recording session of the day (the files hold 1, 2, 4, 3 and 2); Subject(i).Trial is a struct array with Time
(k x 1, s, 100 Hz), HandVel (k x 3, m/s, the third constant), Neuron (a struct array with Spike, times in s) and more (HandPos,
EMG, LFP). All is monkey C. Terms of CRCNS forbid redistribution, so everyone fetches the files for themselves.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import scipy.io

from data_prep.errors import SessionError
from data_prep.matlab import damage_told, matlab_version, named_series
from data_prep.recipe import Recipe
from data_prep.recording import Recording, SpikeTrains

_UNITS = {"HandVel": "m/s", "HandPos": "m"}


@contextlib.contextmanager
def opened_recording(path: Path, recipe: Recipe, roster: Path | None = None) -> Iterator[Recording]:
    """The recording `recipe.part` of the file; its trials are the table `trials`. Raises SessionError."""
    name = path.name
    if matlab_version(path) != "5":
        raise SessionError(name, "saved as MATLAB 7.3; CRCNS publishes version 5", "fetch it again from CRCNS")
    with damage_told(name):
        held = scipy.io.loadmat(path, variable_names=["Subject"])
    subjects = _elements(held.get("Subject"))
    if not subjects or "Trial" not in (subjects[0].dtype.names or ()):
        raise SessionError(name, "no struct Subject with a Trial in it", "check the recipe's reader")
    if not 0 <= recipe.part < len(subjects):
        raise SessionError(name, f"it holds {len(subjects)} recordings", f"give a part below {len(subjects)}")
    yield _recording(name, _elements(subjects[recipe.part]["Trial"]), len(subjects), recipe)


def _recording(name: str, trials: list[np.void], parts: int, recipe: Recipe) -> Recording:
    times = [_column(trial, "Time", name) for trial in trials]
    if not trials or min(map(len, times)) < 2:
        raise SessionError(name, "a trial has fewer than two samples", "fetch it again")
    step = float(np.median(np.concatenate([np.diff(time) for time in times])))
    starts, stops = np.array([time[0] for time in times]), np.array([time[-1] + step for time in times])
    stops[:-1] = np.minimum(stops[:-1], starts[1:])
    neurons = [_elements(trial["Neuron"]) for trial in trials]
    if len({len(row) for row in neurons}) > 1:
        raise SessionError(name, "its trials have different numbers of neurons", "fetch it again")
    trains = [np.concatenate([_column(row[unit], "Spike", name) for row in neurons]) for unit in range(len(neurons[0]))]
    number = f"s{recipe.part + 1}" if recipe.part else ""
    return Recording(
        name=name,
        subject="",
        session_id="-".join(filter(None, [name.removesuffix(".mat").split("_")[-1], number])),
        identifier=name.removesuffix(".mat"),
        unit_columns={"id": np.array([str(unit + 1) for unit in range(len(trains))])},  # MATLAB counts from 1
        region=("",) * len(trains),
        spikes=SpikeTrains.of(np.concatenate([np.zeros(0), *trains]), np.array([len(train) for train in trains])),
        observed=(np.column_stack([starts, stops]),) * len(trains),
        series=_series(name, trials, times, recipe),
        tables={"trials": {"start_time": starts, "stop_time": stops, "number": np.arange(1, len(trials) + 1)}},
        provenance={"format": "MATLAB 5", "url": "https://crcns.org/data-sets/movements/dream"},
        notes=(f"{parts - 1} other recordings in the file are read with another part",) if parts > 1 else (),
    )


def _series(name: str, trials: list[np.void], times: list[np.ndarray], recipe: Recipe) -> dict:
    """Variables of a trial with a row a sample, trial after trial."""
    fields = [
        field
        for field in trials[0].dtype.names
        if field != "Time" and np.shape(trials[0][field])[:1] == times[0].shape and trials[0][field].dtype.kind in "fiu"
    ]

    def read(field: str) -> tuple[np.ndarray, np.ndarray]:
        return np.concatenate(times), np.concatenate([trial[field] for trial in trials]).astype(np.float64)

    return named_series(name, recipe, {field: _UNITS.get(field, "") for field in fields}, read)


def _elements(struct: np.ndarray | None) -> list[np.void]:
    """Elements of a MATLAB struct array, in MATLAB's order."""
    return [] if struct is None or struct.dtype.names is None else list(struct.ravel(order="F"))


def _column(element: np.void, field: str, name: str) -> np.ndarray:
    if field not in (element.dtype.names or ()):
        raise SessionError(name, f"a struct without {field}", "check the recipe's reader")
    return np.asarray(element[field], dtype=np.float64).ravel()
