"""Small files in the layout of O'Doherty, Cardoso, Makin and Sabes (MATLAB 7.3), and the truth they hold."""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

HZ, CHANNELS, CELLS = 250.0, 4, 5  # per area; the hash and four sorted units a channel


def truth(seconds: float = 120.0, areas: tuple[str, ...] = ("M1",), rest: bool = True, start: float = 5.0) -> dict:
    """t (k,) s, cursor (k, 2) mm, finger (k, 3) x, y, z in cm, and spikes: (channel, cell) -> times (s,) s."""
    random = np.random.default_rng(7)
    t = start + np.arange(int(seconds * HZ)) / HZ
    phase = t - t[0]
    if rest:  # twelve seconds in the middle without a movement
        phase = np.where(phase < seconds / 2, phase, np.maximum(seconds / 2, phase - 12))
    cursor = 60 * np.stack([np.sin(phase), np.cos(1.3 * phase)], axis=1)
    finger = np.column_stack([cursor / 10 + [3, 20], np.full(len(t), 7.0)])
    names = [f"{area} {k + 1:03d}" for area in areas for k in range(CHANNELS)]
    spikes = {}
    for channel, name in enumerate(names):
        for cell in (0, 1, 3)[: 1 + channel % 3]:  # most cells of a real file are empty
            rate = 20.0 if cell == 0 else 5.0
            spikes[name, cell] = np.sort(random.uniform(t[0], t[-1], int(rate * seconds)))
    return {"t": t, "cursor": cursor, "finger": finger, "names": names, "spikes": spikes}


def write(path: Path, *, angles: bool = False, **changes) -> Path:
    """A file as MATLAB saves it with -v7.3: transposed arrays, cells as references, waveforms beside the times."""
    true = truth(**changes)
    with h5py.File(path, "w", userblock_size=512) as file:
        finger = np.stack([true["finger"][:, 2], -true["finger"][:, 0], -true["finger"][:, 1]], axis=1)  # z, -x, -y
        if angles:
            finger = np.column_stack([finger, np.tile([10.0, 20.0, 30.0], (len(finger), 1))])
        target = np.repeat(true["cursor"][::250], 250, axis=0)[: len(true["t"])]
        arrays = {"t": true["t"][:, None], "cursor_pos": true["cursor"], "finger_pos": finger, "target_pos": target}
        for name, value in arrays.items():
            file[name] = value.T
            file[name].attrs["MATLAB_class"] = np.bytes_("double")
        _cells(file, "chan_names", [[_chars(name)] for name in true["names"]])
        cells = [[true["spikes"].get((name, cell)) for cell in range(CELLS)] for name in true["names"]]
        _cells(file, "spikes", [[None if x is None else x[None, :] for x in row] for row in cells])
        _cells(file, "wf", [[None if x is None else np.zeros((48, len(x)), np.int16) for x in row] for row in cells])
    with open(path, "r+b") as stream:
        stream.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64, Created on: a test".ljust(124) + b"\0\x02IM")
    return path


def _chars(text: str) -> np.ndarray:
    return np.array([[ord(letter)] for letter in text], dtype=np.uint16)


def _cells(file: h5py.File, name: str, rows: list[list[np.ndarray | None]]) -> None:
    """A cell array of MATLAB's shape (rows x columns): held transposed, each cell a dataset of the group #refs#."""
    refs = file.require_group("#refs#")
    out = np.empty((len(rows[0]), len(rows)), dtype=h5py.ref_dtype)
    for r, row in enumerate(rows):
        for c, value in enumerate(row):
            held = np.zeros(2, np.uint64) if value is None else value
            cell = refs.create_dataset(f"{name}_{r}_{c}", data=held)
            if value is None:
                cell.attrs["MATLAB_empty"] = np.uint8(1)
            out[c, r] = cell.ref
    file.create_dataset(name, data=out, dtype=h5py.ref_dtype).attrs["MATLAB_class"] = np.bytes_("cell")


LAYOUTS: dict[str, Callable[[Path], Path]] = {"makin": write}
