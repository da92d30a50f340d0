"""What a person calls a source (a folder, `dandi`, an address) -> that source, opened by whoever knows its kind."""

import re
from collections.abc import Sequence
from pathlib import Path

from data_prep.errors import ConfigError
from data_prep.folder import open_folder
from data_prep.recipe import Recipe
from data_prep.source import ArchiveConfig, Source, Wanted


def open_source(
    where: str, files: Sequence[str], subjects: Sequence[str], archive: ArchiveConfig, recipe: Recipe, output: Path
) -> Source:
    """The source `where` names: `dandi` (the recipe's dandiset), a dandi:// or http(s):// URL, a folder or a file.

    `files` are patterns of paths ("**/*.nwb": `*` stays within a folder, `**` does not), `subjects` names X of sub-X.
    Raises ConfigError where nothing fits them, SessionError where the place cannot be reached.
    """
    if not where:
        raise ConfigError(
            "source", "empty", "say source=<folder of NWB files>, source=dandi or the URL of a dandiset's version"
        )
    if is_archive(where):
        from data_prep.archive import open_archive  # half a second of imports that a folder needs none of

        return open_archive(where, Wanted(tuple(files), tuple(subjects)), archive, recipe, output)
    return open_folder(where, Wanted(tuple(files), tuple(subjects)))


def is_archive(where: str) -> bool:
    """Whether a source is an archive's; a folder of the name dandi is ./dandi."""
    return where == "dandi" or re.match(r"(dandi|https?)://|[A-Za-z-]+:\d{6}(/|$)", where) is not None
