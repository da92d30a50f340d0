"""A file and a recipe -> Recording: the reader that the recipe names opens it."""

from contextlib import AbstractContextManager
from pathlib import Path

from data_prep import matlab_flint, matlab_makin, nwb
from data_prep.errors import SessionError
from data_prep.recipe import Recipe
from data_prep.recording import Recording
from data_prep.source import RemoteFile

_READERS = {
    "nwb": nwb.opened_recording,
    "makin": matlab_makin.opened_recording,
    "flint": matlab_flint.opened_recording,
}


def opened_recording(
    file: Path | RemoteFile, recipe: Recipe, roster: Path | RemoteFile | None = None
) -> AbstractContextManager[Recording]:
    """Everything the recipe names in the file; spikes may be read while the context lasts. Raises SessionError."""
    if recipe.reader != "nwb" and not isinstance(file, Path):
        raise SessionError(
            file.name, "MATLAB files cannot be streamed", "fetch it into a folder and give that as source"
        )
    return _READERS[recipe.reader](file, recipe, roster)
