"""A place that files come from (a folder, a file, a pinned version of a dandiset) -> its assets, and each opened for reading."""

import contextlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from data_prep.errors import ConfigError

ZARR_MARKS = (".zgroup", ".zmetadata", "zarr.json")  # a folder with one of them is one zarr file


@dataclass(frozen=True)
class Asset:
    """One file of a source, or one folder that is a zarr file."""

    path: str  # below the source, with "/"
    size: int  # bytes
    digest: str = ""  # sha256:HEX, dandi-etag:MD5-PARTS or dandi-zarr-checksum:...; "" where nobody computed one
    id: str = ""  # the archive's; "" in a folder
    modified: str = ""  # an archive's ISO time; a folder's modification time in ns
    zarr: bool = False


@dataclass(frozen=True)
class RemoteFile:
    """A file that is read over the network, as far as it is asked for."""

    name: str
    stream: BinaryIO  # seekable
    size: int  # bytes of the whole


@dataclass(frozen=True)
class ArchiveConfig:
    """How a DANDI archive is asked; folders of files need none of it."""

    instance: str = "dandi"
    "Archive that `source=dandi` means: a name the dandi client knows, or the URL of an instance."
    allow_draft: bool = False
    "Whether a draft may be read; its list of files is then frozen in <output>.<dandiset>.lock.json."
    stream: bool = False
    "Read over the network only what a session needs, with nothing stored; no digest can be checked then."
    cache: str = ""
    "Folder of downloads; empty: <output>.downloads beside the output."
    keep_files: bool = True
    "Whether a download stays in the cache once it is read."
    timeout_s: float = 30.0
    "Seconds without a byte after which a request counts as stalled."
    retries: int = 6
    "Further tries of a failed request; a download that gained ground counts anew."
    backoff_s: float = 1.0
    "Seconds before the first further try, doubled from try to try."
    wait_s: float = 300.0
    "Most seconds waited between the tries of one request; a server that asks for more is not waited for."


class Source(ABC):
    """Files of one collection. A Source can be pickled and holds no connection, so workers open assets themselves."""

    name: str  # where the files are, for people
    assets: tuple[Asset, ...]  # those asked for, by path
    notes: tuple[str, ...] = ()  # what a person should know of the listing, such as a draft that has moved on

    @abstractmethod
    def siblings(self, asset: Asset) -> tuple[Asset, ...]:
        """Every asset in the same folder, asked for or not."""

    @abstractmethod
    def opened(self, asset: Asset) -> contextlib.AbstractContextManager[Path | RemoteFile]:
        """The asset, whole and verified as a path, or as a remote file; raises SessionError where it cannot be had."""

    @abstractmethod
    def provenance(self, asset: Asset) -> dict[str, str]:
        """Where it came from; ask after it was opened, which adds what was learnt then."""


@dataclass(frozen=True)
class Wanted:
    """Which paths of a source are asked for."""

    files: tuple[str, ...]  # patterns
    subjects: tuple[str, ...] = ()  # X or sub-X; none: all

    def of(self, where: str, paths: Iterable[str]) -> list[str]:
        """The paths that fit a pattern and a subject, sorted; raises ConfigError where none does."""
        patterns = [pattern_of(text) for text in self.files]
        paths = list(paths)
        fitting = sorted(path for path in paths if any(pattern.fullmatch(path) for pattern in patterns))
        if not fitting:
            raise ConfigError(
                "source",
                f"none of {len(paths)} files in {where} fits {', '.join(self.files)}",
                "check source and files",
            )
        if not self.subjects:
            return fitting
        there = {path: subjects_of(path) for path in fitting}
        asked = [subject.removeprefix("sub-") for subject in self.subjects]
        known = set().union(*there.values())
        for subject in asked:
            if subject not in known:
                raise ConfigError(
                    "subjects",
                    f"no file in {where} is of sub-{subject}",
                    f"choose from {', '.join(sorted(known)) or 'nothing: no path there names a subject'}",
                )
        return [path for path in fitting if there[path] & set(asked)]


def subjects_of(path: str) -> set[str]:
    """X of every sub-X in a path (sub-C/sub-C_ses-1.nwb)."""
    return set(re.findall(r"(?:^|/)sub-([^/_.]+)", path))


def pattern_of(text: str) -> re.Pattern:
    """A pattern of paths as a regular expression; `*` and `?` stay within a folder, `**/` is any number of folders."""
    if text.startswith("/") or ".." in text.split("/"):
        raise ConfigError("files", f"pattern {text!r} leaves the source", "write it as below the source (**/*.nwb)")
    out, k = "", 0
    while k < len(text):
        if text.startswith("**/", k):
            out, k = out + "(?:[^/]+/)*", k + 3
        elif text.startswith("**", k):
            out, k = out + ".*", k + 2
        elif text[k] == "[" and (end := text.find("]", k + 2)) > 0:
            inner = text[k + 1 : end].replace("\\", r"\\")
            out, k = out + "[" + ("^" + inner[1:] if inner[0] == "!" else inner) + "]", end + 1
        else:
            out, k = out + {"*": "[^/]*", "?": "[^/]"}.get(text[k], re.escape(text[k])), k + 1
    try:
        return re.compile(out)
    except re.error as error:
        raise ConfigError("files", f"pattern {text!r} is none ({error})", "write it like **/sub-[AB]*.nwb") from error
