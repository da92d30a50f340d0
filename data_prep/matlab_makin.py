"""A MATLAB 7.3 file of O'Doherty, Cardoso, Makin and Sabes (Zenodo 10.5281/zenodo.3854034) -> Recording.

From the record's own description of its variables: chan_names (n x 1 cell of texts such as "M1 001"), cursor_pos and
target_pos (k x 2, mm), finger_pos (k x 3 or k x 6: z, -x, -y in cm, then azimuth, elevation and roll), spikes (n x u cell of
times in s; the first column holds what was not sorted, the "hash"), t (k x 1, s, 250 Hz) and wf (waveforms; never read). HDF5
holds every array transposed and a cell array as references. Empty cells are no units, as in the POYO papers' pipeline.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from data_prep.errors import SessionError
from data_prep.matlab import damage_told, matlab_version, named_series
from data_prep.recipe import Recipe
from data_prep.recording import Recording, SpikeTrains

_UNITS = {"cursor_pos": "mm", "target_pos": "mm", "finger_pos": "cm", "finger_angle": "deg"}


@contextlib.contextmanager
def opened_recording(path: Path, recipe: Recipe, roster: Path | None = None) -> Iterator[Recording]:
    """Everything the recipe names in the file; spike times are read while the context lasts. Raises SessionError."""
    name = path.name
    if matlab_version(path) != "7.3":
        raise SessionError(name, "not MATLAB 7.3, so none of this source", "check the recipe's reader")
    with contextlib.ExitStack() as stack:
        with damage_told(name):
            recording = _recording(name, stack.enter_context(h5py.File(path, "r")), recipe)
        yield recording


def _recording(name: str, file: h5py.File, recipe: Recipe) -> Recording:
    for variable in ("t", "spikes", "chan_names"):
        if variable not in file:
            raise SessionError(name, f"no variable {variable}", "check the recipe's reader")
    channels = [_text(file[ref]) for ref in file["chan_names"][()].ravel()]
    cells = file["spikes"][()]  # (unit, channel) references
    if cells.ndim != 2 or cells.shape[1] != len(channels):
        raise SessionError(name, f"spikes of shape {cells.shape}, {len(channels)} channel names", "fetch it again")
    rows = [(c, u) for c in range(cells.shape[1]) for u in range(cells.shape[0]) if _count(file[cells[u, c]])]
    if not rows:
        raise SessionError(name, "none of its cells holds a spike", "leave the file out")
    trains = [file[cells[u, c]] for c, u in rows]

    def read(first: int, last: int) -> np.ndarray:
        with damage_told(name):
            return np.concatenate([np.zeros(0), *(train[()].ravel() for train in trains[first:last])])

    subject, _, session = name.removesuffix(".mat").partition("_")  # indy_20160407_02
    return Recording(
        name=name,
        subject=subject,
        session_id=session,
        identifier=name.removesuffix(".mat"),
        unit_columns={
            "id": np.array([f"{channels[c]}/{'unsorted' if u == 0 else f'sorted_{u}'}" for c, u in rows]),
            "quality": np.array(["unsorted" if u == 0 else "sorted" for _, u in rows]),
        },
        electrode=tuple(channels[c] for c, _ in rows),
        region=tuple(channels[c].split(" ")[0] for c, _ in rows),
        spikes=SpikeTrains(np.array([_count(train) for train in trains], dtype=np.int64), read),
        observed=(),
        series=_series(name, file, recipe),
        tables={},
        provenance={"format": "MATLAB 7.3", "doi": "10.5281/zenodo.3854034"},
    )


def _series(name: str, file: h5py.File, recipe: Recipe) -> dict:
    time = file["t"][()].ravel().astype(np.float64)

    def read(variable: str) -> tuple[np.ndarray, np.ndarray]:
        held = "finger_pos" if variable == "finger_angle" else variable
        value = file[held][()].astype(np.float64).T
        if variable == "finger_pos":  # z, -x, -y as the tracker says -> x, y, z
            value = np.stack([-value[:, 1], -value[:, 2], value[:, 0]], axis=1)
        return time, value[:, 3:6] if variable == "finger_angle" else value

    offered = {variable: unit for variable, unit in _UNITS.items() if variable in file}
    if "finger_pos" in file and file["finger_pos"].shape[0] == 6:
        offered["finger_angle"] = _UNITS["finger_angle"]
    return named_series(name, recipe, offered, read)


def _count(cell: h5py.Dataset) -> int:
    """Spikes in a cell; MATLAB stores an empty one as its shape, with a mark."""
    return 0 if "MATLAB_empty" in cell.attrs else int(cell.size)


def _text(cell: h5py.Dataset) -> str:
    return "".join(map(chr, cell[()].ravel()))
