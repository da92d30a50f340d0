"""An NWB 2 file in HDF5 -> NwbFile: the datasets that the layout defines, found without the library that writes them.

pynwb takes a second to import and about 50 ms to open a file: it resolves the whole specification and builds an object for
everything there is. The layout itself is short: a table is a group that names its columns, a ragged column NAME has its row
ends in NAME_index, a series is a group with data and timestamps or starting_time. tests/data_prep/test_nwb.py holds that
both ways of reading give the same Recording.
"""

import contextlib
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import h5py
import numpy as np

from data_prep.errors import SessionError
from data_prep.nwb_layout import NUMBERS, OTHER, REFERENCES, TEXT, Column, NwbFile, StoredSeries, Table, text
from data_prep.source import RemoteFile

_ELECTRODES = "general/extracellular_ephys/electrodes"


@contextlib.contextmanager
def opened_hdf5(file: Path | RemoteFile) -> Iterator[NwbFile]:
    """The file while it is open; raises SessionError for what is missing, empty, truncated, not NWB or NWB 1."""
    name = file.name
    if isinstance(file, Path):
        if not file.is_file():
            raise SessionError(name, "no such file", f"check the path {file}")
        if file.stat().st_size == 0:
            raise SessionError(name, "the file is empty (0 bytes)", "fetch it again")
        if not h5py.is_hdf5(file):
            raise SessionError(name, "not an HDF5 file, so not NWB", "leave it out, or fetch it again")
    try:
        opened = h5py.File(file if isinstance(file, Path) else file.stream, "r")
    except OSError as error:
        if "signature not found" in str(error):
            raise SessionError(name, "not an HDF5 file, so not NWB", "leave it out, or fetch it again") from error
        fault = "truncated" if "truncated" in str(error) else "damaged"
        raise SessionError(name, f"the file is {fault} ({_first_line(error)})", "fetch it again") from error
    with opened:
        with damage_told(name):
            version = check_version(name, _version(opened))
            found = _read(name, version, opened)
        yield found


@contextlib.contextmanager
def damage_told(name: str) -> Iterator[None]:
    """HDF5 meets a damaged stretch only when it is read, and tells it in several ways."""
    try:
        yield
    except (OSError, RuntimeError, KeyError) as error:
        raise SessionError(
            name, f"a part of the file cannot be read ({_first_line(error)})", "fetch it again"
        ) from error


def check_version(name: str, version: str | None) -> str:
    """The version that a file states; raises SessionError where it states none, or NWB 1."""
    if version is None:
        raise SessionError(name, "an HDF5 file without nwb_version, so not NWB", "leave it out")
    number = re.search(r"\d+", version)
    if number and int(number[0]) < 2:
        raise SessionError(name, f"NWB version {version}; only NWB 2 is read", "convert it to NWB 2 first")
    return version


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else "no reason given"


def _version(file: h5py.File) -> str | None:
    stated = file.attrs.get("nwb_version", file["nwb_version"][()] if "nwb_version" in file else None)
    return None if stated is None else text(stated)


def _read(name: str, version: str, file: h5py.File) -> NwbFile:
    groups = file.get("intervals", {})
    tables = {key: table for key in groups if (table := _table(file, groups[key])) is not None}
    series: dict[str, StoredSeries] = {}
    for top in ("acquisition", "processing", "analysis"):
        if isinstance(group := _child(file, top), h5py.Group):
            _find_series(file, group, top, series, frozenset())
    return NwbFile(
        name=name,
        version=version,
        subject=_scalar(file, "general/subject/subject_id"),
        session_id=_scalar(file, "general/session_id"),
        identifier=_scalar(file, "identifier"),
        start_time=_moment(_scalar(file, "session_start_time")),
        description=_scalar(file, "session_description"),
        units=_table(file, file["units"]) if "units" in file else None,
        tables=tables,
        series=series,
    )


def _scalar(file: h5py.File, path: str) -> str:
    """Text at a path, "" where there is none."""
    held = file.get(path)
    return text(held[()]) if isinstance(held, h5py.Dataset) and held.shape == () else ""


def _moment(stated: str) -> str:
    """A moment as Python writes it, whatever spelling of ISO 8601 the file uses; as it is where it is none."""
    try:
        return str(datetime.fromisoformat(stated))
    except ValueError:
        return stated


def _child(group: h5py.Group, key: str) -> h5py.Group | h5py.Dataset | None:
    """A member; None where a link leads nowhere. What is there and cannot be opened is damage: KeyError."""
    try:
        return group[key]
    except KeyError:
        if isinstance(group.get(key, getlink=True), (h5py.SoftLink, h5py.ExternalLink)):
            return None
        raise


def _same(thing: h5py.Group | h5py.Dataset) -> tuple[int, bytes]:
    info = h5py.h5o.get_info(thing.id)
    return info.fileno, bytes(str(info.addr), "ascii")


def _table(file: h5py.File, group: object) -> Table | None:
    """The table in a group; None where it is none."""
    if not isinstance(group, h5py.Group) or "colnames" not in group.attrs:
        return None
    names = [text(name) for name in np.atleast_1d(group.attrs["colnames"])]
    columns = {}
    for name in names:
        data = _child(group, name) if name in group else None
        if isinstance(data, h5py.Dataset):
            ends, index = [], f"{name}_index"
            while index in group and index not in names:
                ends.append(group[index])
                index += "_index"
            columns[name] = _column(file, data, tuple(ends))
    first = next((c.ends[-1] if c.ends else c.data for c in columns.values()), ())
    ids = group["id"] if "id" in group else np.arange(len(first))
    return Table(group.name.rsplit("/", 1)[-1], ids, columns)


def _column(file: h5py.File, data: h5py.Dataset, ends: tuple[h5py.Dataset, ...] = ()) -> Column:
    attributes, dtype, locations = data.attrs, data.dtype, None
    if h5py.check_string_dtype(dtype) is not None:
        holds = TEXT
    elif h5py.check_ref_dtype(dtype) is not None:
        holds, locations = REFERENCES, lambda: _locations(file, data)
    else:
        holds = NUMBERS if dtype.kind in "biuf" else OTHER

    def refers() -> Table | None:
        reference = attributes.get("table")
        if isinstance(reference, h5py.Reference) and reference:
            return _table(file, file[reference])
        return _table(file, file.get(_ELECTRODES))

    return Column(data, holds, ends, attributes, refers, locations)


def _locations(file: h5py.File, references: h5py.Dataset) -> list[str]:
    """Attribute `location` of each referenced group, "" where it has none."""
    return [text(file[one].attrs.get("location")) if one else "" for one in references[:]]


def _find_series(
    file: h5py.File, group: h5py.Group, path: str, found: dict[str, StoredSeries], above: frozenset
) -> None:
    """Add every series below a group, extensions and links included; tables hold none."""
    above |= {_same(group)}  # a link may lead back
    for key in group:
        child, place = _child(group, key), f"{path}/{key}"
        if not isinstance(child, h5py.Group) or "colnames" in child.attrs or _same(child) in above:
            continue
        if "data" in child and ("timestamps" in child or "starting_time" in child):
            if isinstance(data := _child(child, "data"), h5py.Dataset):
                found[place] = _series(file, child, data, place)
        else:
            _find_series(file, child, place, found, above)


def _series(file: h5py.File, group: h5py.Group, data: h5py.Dataset, place: str) -> StoredSeries:
    timestamps = _child(group, "timestamps") if "timestamps" in group else None
    start = _child(group, "starting_time") if timestamps is None else None
    electrodes = _child(group, "electrodes") if "electrodes" in group else None
    factors = _child(group, "channel_conversion") if "channel_conversion" in group else None
    return StoredSeries(
        place=place,
        kind=text(group.attrs.get("neurodata_type")),
        data=data,
        unit=text(data.attrs.get("unit")),
        conversion=float(data.attrs.get("conversion", 1.0)),
        offset=float(data.attrs.get("offset", 0.0)),
        channel_conversion=factors,
        timestamps=timestamps,
        starting_time=float(start[()]) if start is not None else 0.0,
        rate=float(start.attrs.get("rate", 0.0)) if start is not None else 0.0,
        electrodes=_column(file, electrodes) if isinstance(electrodes, h5py.Dataset) else None,
        description=text(group.attrs.get("description")),
        clock=_same(timestamps) if timestamps is not None else None,
        same=_same(group),
    )
