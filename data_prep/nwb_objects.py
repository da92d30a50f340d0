"""An NWB file through pynwb's objects -> NwbFile: for zarr, which hdmf-zarr opens, and as the reference for nwb_direct."""

import contextlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pynwb
from hdmf.common import DynamicTable, DynamicTableRegion, VectorIndex
from hdmf_zarr import NWBZarrIO

from data_prep.errors import SessionError
from data_prep.nwb_direct import check_version
from data_prep.nwb_layout import NUMBERS, OTHER, REFERENCES, TEXT, Column, NwbFile, StoredSeries, Table, text


@contextlib.contextmanager
def opened_zarr(folder: Path) -> Iterator[NwbFile]:
    """The zarr folder while it is open; raises SessionError for what pynwb cannot read, and for NWB 1."""
    try:
        stated = json.loads((folder / ".zattrs").read_text(encoding="utf-8")).get("nwb_version")
    except (OSError, ValueError) as error:
        raise SessionError(folder.name, f"its .zattrs cannot be read ({error})", "fetch it again") from error
    version = check_version(folder.name, None if stated is None else str(stated))
    with _opened(folder.name, version, lambda: NWBZarrIO(str(folder), mode="r", load_namespaces=True)) as found:
        yield found


@contextlib.contextmanager
def opened_objects(path: Path) -> Iterator[NwbFile]:
    """An HDF5 file while it is open, as pynwb understands it."""
    with _opened(path.name, "", lambda: pynwb.NWBHDF5IO(path, mode="r", load_namespaces=True)) as found:
        yield found


@contextlib.contextmanager
def _opened(name: str, version: str, opener) -> Iterator[NwbFile]:
    with warnings.catch_warnings(record=True) as caught, contextlib.ExitStack() as stack:
        warnings.simplefilter("always")  # kept in the provenance: a file with oddities is read, and they are told
        try:
            io = opener()
            stack.callback(io.close)
            found = _read(name, version or io.nwb_version[0], io.read())
        except Exception as error:  # pynwb meets an invalid file with whatever its parts happen to raise
            lines = str(error).strip().splitlines() or ["no reason given"]
            raise SessionError(
                name,
                f"pynwb cannot read it ({type(error).__name__}: {lines[0][:160]})",
                "validate the file with pynwb, or fetch it again",
            ) from error
        found.warnings.extend(dict.fromkeys(str(w.message).strip().split("\n")[0] for w in caught))
        yield found


def _read(name: str, version: str, nwb: pynwb.NWBFile) -> NwbFile:
    named = [table for table in (nwb.trials, nwb.epochs, nwb.invalid_times) if table is not None]
    intervals = {table.name: table for table in (*(nwb.intervals or {}).values(), *named)}  # some are in two places
    series: dict[str, StoredSeries] = {}
    for top in ("acquisition", "processing", "analysis"):
        for key, container in getattr(nwb, top).items():
            _find_series(f"{top}/{key}", container, series)
    return NwbFile(
        name=name,
        version=version,
        subject=(nwb.subject.subject_id if nwb.subject else "") or "",
        session_id=nwb.session_id or "",
        identifier=nwb.identifier or "",
        start_time=str(nwb.session_start_time),
        description=nwb.session_description or "",
        units=None if nwb.units is None else _units(nwb.units),
        tables={key: _table(table) for key, table in sorted(intervals.items())},
        series=series,
    )


def _table(table: DynamicTable) -> Table:
    return Table(table.name, table.id, {name: _column(table[name]) for name in table.colnames})


def _units(units: pynwb.misc.Units) -> Table:
    table = _table(units)
    if "spike_times" in table.columns:  # their resolution is kept by the table
        table.columns["spike_times"].attributes["resolution"] = units.resolution
    return table


def _column(column) -> Column:
    ends = []
    while isinstance(column, VectorIndex):
        ends.insert(0, column.data)
        column = column.target
    data = column.data if hasattr(column.data, "shape") else np.asarray(column.data)
    holds, locations = OTHER, None
    if _pickled(data):
        holds = REFERENCES
    elif not isinstance(column, pynwb.base.TimeSeriesReferenceVectorData):
        first = data[0] if len(data.shape) == 1 and data.shape[0] else None
        kind = np.dtype(data.dtype).kind
        if isinstance(first, pynwb.ecephys.ElectrodeGroup):
            holds, locations = REFERENCES, lambda: [text(group.location) for group in data[:]]
        elif isinstance(first, (str, bytes)) or kind in "SU" or (kind == "O" and first is None):
            holds = TEXT
        elif kind in "biuf":
            holds = NUMBERS
    attributes = {"description": column.description}
    region = column if isinstance(column, DynamicTableRegion) else None
    return Column(data, holds, tuple(ends), attributes, lambda: region and _table(region.table), locations)


def _pickled(data) -> bool:
    """Whether reading it would unpickle, which may run any code: so hdmf-zarr stores references, and we leave them."""
    filters = getattr(getattr(data, "dataset", data), "filters", None) or ()
    return any(getattr(one, "codec_id", "") == "pickle" for one in filters)


def _find_series(path: str, container, found: dict[str, StoredSeries]) -> None:
    """Add the series at a path or below it, extensions and links included; tables hold none."""
    if isinstance(container, DynamicTable):
        return
    rated, stamped = getattr(container, "rate", None) is not None, getattr(container, "timestamps", None) is not None
    if hasattr(container, "data"):
        if (rated or stamped) and hasattr(container.data, "shape"):
            found[path] = _series(path, container)
        return
    linked = [
        one
        for held in container.fields.values()
        if isinstance(held, dict)
        for one in held.values()
        if getattr(one, "parent", container) is not container
    ]
    for child in (*container.children, *linked):
        _find_series(f"{path}/{child.name}", child, found)


def _series(place: str, series) -> StoredSeries:
    stamped = getattr(series, "timestamps", None)
    return StoredSeries(
        place=place,
        kind=series.neurodata_type,
        data=series.data,
        unit=text(getattr(series, "unit", "")),
        conversion=float(getattr(series, "conversion", None) or 1.0),
        offset=float(getattr(series, "offset", None) or 0.0),
        channel_conversion=getattr(series, "channel_conversion", None),
        timestamps=stamped,
        starting_time=float(getattr(series, "starting_time", None) or 0.0),
        rate=0.0 if stamped is not None else float(series.rate),
        electrodes=_column(series.electrodes) if getattr(series, "electrodes", None) is not None else None,
        description=text(series.description),
        clock=None,
        same=id(series),
    )
