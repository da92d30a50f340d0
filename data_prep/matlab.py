"""What a MATLAB file offers, variable by variable -> the series a recipe names, and faults told in one line."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np

from data_prep.errors import SessionError
from data_prep.recipe import Recipe
from data_prep.recording import Series

_HEADER = 128  # bytes of text that open every MATLAB file since version 5


def matlab_version(path: Path) -> str:
    """ "7.3" (HDF5) or "5" (all before it); raises SessionError for what is no whole MATLAB file."""
    name = path.name
    if not path.is_file():
        raise SessionError(name, "no such file", f"check the path {path}")
    with open(path, "rb") as stream:
        header = stream.read(_HEADER)
    if len(header) < _HEADER:
        raise SessionError(name, f"the file has {len(header)} bytes", "fetch it again")
    if h5py.is_hdf5(path):
        return "7.3"
    if header.startswith(b"MATLAB 7.3"):
        raise SessionError(name, "the file is damaged (MATLAB 7.3 without HDF5 in it)", "fetch it again")
    if not header.startswith(b"MATLAB 5"):
        raise SessionError(name, "not a MATLAB file", "leave it out, or fetch it again")
    return "5"


@contextlib.contextmanager
def damage_told(name: str) -> Iterator[None]:
    """Libraries meet a damaged stretch only when it is read, each with an error of its own kind."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, EOFError) as error:
        lines = str(error).strip().splitlines()
        said = lines[0][:160] if lines else type(error).__name__
        raise SessionError(name, f"a part of the file cannot be read ({said})", "fetch it again") from error


def named_series(
    name: str, recipe: Recipe, offered: dict[str, str], read: Callable[[str], tuple[np.ndarray, np.ndarray]]
) -> dict[str, Series]:
    """The series that the recipe's signals name, read with `read(variable) -> time (N,) s, value (N, K)`.

    `offered` gives each variable's unit of measure. Raises SessionError where a signal that is required has none.
    """
    found = {}
    for key, signal in recipe.signals.items():
        place = next((place for place in signal.path if place in offered), None)
        if place is not None:
            time, value = read(place)
            if len(time) != len(value):
                raise SessionError(name, f"{place} has {len(value)} samples but {len(time)} times", "fetch it again")
            found[key] = Series(place, time, value, offered[place])
        elif signal.required and not signal.derive_from:
            raise SessionError(
                name,
                f"no variable {' or '.join(signal.path)}",
                f"point signals.{key}.path at one of: {', '.join(sorted(offered)) or 'none, it has none'}",
            )
    return found
