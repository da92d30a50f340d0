"""A folder of files, or one file -> a source: its assets, found by walking it."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_prep.errors import SessionError
from data_prep.source import ZARR_MARKS, Asset, Source, Wanted


@dataclass(frozen=True)
class FolderSource(Source):
    """Files below a folder."""

    root: str
    assets: tuple[Asset, ...]

    @property
    def name(self) -> str:
        return self.root

    def siblings(self, asset: Asset) -> tuple[Asset, ...]:
        folder = (Path(self.root) / asset.path).parent
        names = sorted(entry.name for entry in folder.iterdir() if entry.is_file() or is_zarr(entry))
        return tuple(_local_asset(Path(self.root), folder / name) for name in names if not name.startswith("."))

    @contextlib.contextmanager
    def opened(self, asset: Asset) -> Iterator[Path]:
        path = Path(self.root) / asset.path
        if not path.exists():
            raise SessionError(
                asset.path, "the file is gone, or a link to nothing", "fetch it (datalad get), or check source"
            )
        yield path

    def provenance(self, asset: Asset) -> dict[str, str]:
        return {"collection": os.path.realpath(self.root)}


def open_folder(where: str, wanted: Wanted) -> FolderSource:
    """Files of a folder that are wanted; a single file is wanted whatever its name."""
    place = Path(where).expanduser()
    if not place.exists():
        raise SessionError(where, "no such file or folder", "check source")
    if place.is_file() or is_zarr(place):
        return FolderSource(str(place.parent), (_local_asset(place.parent, place),))
    paths = {path.relative_to(place).as_posix(): path for path in _walk(place)}
    return FolderSource(str(place), tuple(_local_asset(place, paths[name]) for name in wanted.of(where, paths)))


def is_zarr(path: Path) -> bool:
    return any((path / mark).exists() for mark in ZARR_MARKS)


def _walk(root: Path) -> Iterator[Path]:
    """Files and zarr folders below a folder, links followed once; hidden ones are no data (.part, ._name of macOS)."""
    seen = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        here, inner = Path(folder), [name for name in folders if not name.startswith(".")]
        zarrs = {name for name in inner if is_zarr(here / name)}
        folders[:] = [name for name in inner if name not in zarrs]
        yield from (here / name for name in (*names, *zarrs) if not name.startswith("."))


def _local_asset(root: Path, path: Path) -> Asset:
    name = path.relative_to(root).as_posix()
    try:
        if not path.is_dir():
            told = path.stat()
            return Asset(name, told.st_size, modified=str(told.st_mtime_ns))
    except OSError:  # a link to nothing (git-annex, datalad): refused when it is opened, so that the others go on
        return Asset(name, 0)
    parts = [part.stat() for part in path.rglob("*") if part.is_file()]
    modified = max((part.st_mtime_ns for part in parts), default=0)
    return Asset(name, sum(part.st_size for part in parts), modified=str(modified), zarr=True)
