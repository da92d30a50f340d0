"""An NWB 2 file and a recipe -> Recording: vectors are read flat in one go, waveforms and raw traces never."""

import contextlib
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np
import pynwb
from pynwb.core import VectorIndex

from data_prep.errors import SessionError
from data_prep.recipe import Recipe, SignalRecipe
from data_prep.recording import Recording, Series, SpikeTrains

_WIDEST_COLUMN = 4  # a table column with more values a row is not a property of the row but data: left unread


def read_recording(path: Path, recipe: Recipe) -> Recording:
    """Everything the recipe names in the file, in the file's order; raises SessionError in one line for a bad file."""
    name = path.name
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")  # kept in the provenance: a file with oddities is read, and they are told
        with _opened(path) as (version, nwb), _damage_told(name):
            count, times = _spikes(name, nwb)
            series = {
                key: found
                for key, signal in recipe.signals.items()
                if (found := _find_series(name, nwb, key, signal)) is not None
            }
            recording = Recording(
                name=name,
                series=series,
                spikes=SpikeTrains.of(times, count),
                subject=(nwb.subject.subject_id if nwb.subject else "") or "",
                session_id=nwb.session_id or "",
                identifier=nwb.identifier or "",
                unit_columns={"id": np.asarray(nwb.units.id[:]).astype(str), **_columns(nwb.units, skip="id")},
                region=_regions(nwb.units, recipe.units.region),
                observed=_observed(nwb.units),
                tables={table.name: _columns(table) for table in _tables(nwb)},
                provenance={
                    "nwb_version": version,
                    "identifier": nwb.identifier or "",
                    "session_start_time": str(nwb.session_start_time),
                    "spike_resolution_s": str(nwb.units.resolution or ""),
                },
            )
    said = dict.fromkeys(str(w.message).strip().split("\n")[0] for w in caught)
    return replace(recording, provenance={**recording.provenance, "reader_warnings": "\n".join(said)})


@dataclass(frozen=True)
class Contents:
    """What a file holds, for a person who writes a recipe: one line an item."""

    units: str
    series: tuple[str, ...]
    tables: tuple[str, ...]


def look(path: Path) -> Contents:
    """Names, shapes, rates and units of measure of everything a recipe could name; raises SessionError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # read_recording tells them
        with _opened(path) as (_, nwb), _damage_told(path.name):
            units = (
                "no units table"
                if nwb.units is None
                else f"{len(nwb.units)} units; columns {', '.join(nwb.units.colnames)}"
            )
            series = tuple(
                f"{place}: {tuple(s.data.shape)} {s.unit}, {_rate(s)}"
                for place, s in sorted(_all_series(nwb).items())
                if hasattr(s.data, "shape")
            )
            tables = tuple(f"intervals/{t.name}: {len(t)} rows; columns {', '.join(t.colnames)}" for t in _tables(nwb))
            return Contents(units, series, tables)


def _rate(series) -> str:
    if series.timestamps is None:
        return f"{series.rate:g} Hz"
    step = np.median(np.diff(series.timestamps[:1000])) if len(series.timestamps) > 1 else np.nan
    return f"about {1 / step:.4g} Hz" if step > 0 else "no rate"


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[str, pynwb.NWBFile]]:
    """The NWB version and the file through pynwb; raises SessionError for what is missing, empty, truncated, not NWB or NWB 1."""
    name = path.name
    if not path.is_file():
        raise SessionError(name, "no such file", f"check the path {path}")
    if path.stat().st_size == 0:
        raise SessionError(name, "the file is empty (0 bytes)", "fetch it again")
    if not h5py.is_hdf5(path):
        raise SessionError(name, "not an HDF5 file, so not NWB", "leave it out, or fetch it again")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        fault = "truncated" if "truncated" in str(error) else "damaged"
        raise SessionError(name, f"the file is {fault} ({_first_line(error)})", "fetch it again") from error
    with file:
        version = _check_version(name, file)
        try:
            io = pynwb.NWBHDF5IO(file=file, mode="r", load_namespaces=True)
            nwb = io.read()
        except Exception as error:  # pynwb meets an invalid file with whatever its parts happen to raise
            raise SessionError(
                name,
                f"pynwb cannot read it ({type(error).__name__}: {_first_line(error)})",
                "validate the file with pynwb, or fetch it again",
            ) from error
        with io:
            yield version, nwb


def _check_version(name: str, file: h5py.File) -> str:
    version = file.attrs.get("nwb_version", file["nwb_version"][()] if "nwb_version" in file else None)
    version = version.decode(errors="replace") if isinstance(version, bytes) else version
    if version is None:
        raise SessionError(name, "an HDF5 file without nwb_version, so not NWB", "leave it out")
    number = re.search(r"\d+", str(version))
    if number and int(number[0]) < 2:
        raise SessionError(name, f"NWB version {version}; only NWB 2 is read", "convert it to NWB 2 first")
    return str(version)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else "no reason given"


@contextlib.contextmanager
def _damage_told(name: str) -> Iterator[None]:
    """HDF5 meets a damaged stretch only when it is read."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise SessionError(
            name, f"a part of the file cannot be read ({_first_line(error)})", "fetch it again"
        ) from error


def _spikes(name: str, nwb: pynwb.NWBFile) -> tuple[np.ndarray, np.ndarray]:
    """Spikes of each unit (U,) int64, and their times (S,) float64 s, unit after unit."""
    if nwb.units is None or len(nwb.units) == 0:
        raise SessionError(name, "no units table, so no spikes", "leave it out")
    if "spike_times" not in nwb.units.colnames:
        raise SessionError(name, "the units table has no spike_times", "leave it out")
    index = nwb.units["spike_times"]
    if not isinstance(index, VectorIndex):
        raise SessionError(name, "spike_times has no index, so nobody knows which unit fired", "leave it out")
    ends, times = np.asarray(index.data[:]).astype(np.int64), np.asarray(index.target.data[:], dtype=np.float64)
    count = np.diff(ends, prepend=0)
    if len(ends) != len(nwb.units) or (count < 0).any() or ends[-1] != len(times):
        raise SessionError(
            name, f"spike_times holds {len(times)} times, its index ends at {ends[-1:].tolist()}", "fetch it again"
        )
    return count, times


def _observed(units) -> tuple[np.ndarray, ...]:
    if "obs_intervals" not in units.colnames:
        return ()
    index = units["obs_intervals"]
    rows = np.asarray(index.target.data[:], dtype=np.float64).reshape(-1, 2)
    return tuple(np.split(rows, np.asarray(index.data[:]).astype(np.int64)[:-1]))


def _regions(units, sources: list[str]) -> tuple[str, ...]:
    """Text (U) of the first source that says something about the unit, "" where none does."""
    found = [""] * len(units)
    for source in sources:
        for row, text in enumerate(_region_texts(units, source)):
            if not found[row] and text.strip().lower() not in ("", "unknown", "n/a", "na", "none", "nan"):
                found[row] = text.strip()
    return tuple(found)


def _region_texts(units, source: str) -> list[str]:
    if source not in units.colnames:
        return []
    if source == "electrode_group":
        return [str(group.location or "") for group in units[source].data[:]]
    if source != "electrodes":
        return _columns(units, only=source).get(source, np.zeros(0)).astype(str).tolist()
    index = units[source]
    region = index.target if isinstance(index, VectorIndex) else index
    rows, ends = np.asarray(region.data[:]), np.asarray(index.data[:]).astype(np.int64)
    if not isinstance(index, VectorIndex):  # one electrode a unit needs no index
        ends = np.arange(1, len(rows) + 1)
    if "location" not in region.table.colnames:
        return []
    location = _columns(region.table, only="location")["location"]
    first = np.concatenate([[0], ends[:-1]])
    return [str(location[rows[a]]) if b > a and 0 <= rows[a] < len(location) else "" for a, b in zip(first, ends)]


def _tables(nwb: pynwb.NWBFile) -> list:
    """Tables below intervals/, each once: pynwb keeps some of them in two places."""
    named = [t for t in (nwb.trials, nwb.epochs, nwb.invalid_times) if t is not None]
    return list({table.name: table for table in (*(nwb.intervals or {}).values(), *named)}.values())


def _columns(table, skip: str = "", only: str = "") -> dict[str, np.ndarray]:
    """Columns with one number, truth value or text a row; narrow ones are split (pos.0, pos.1), texts joined by ','."""
    out = {}
    for name in table.colnames:
        if name == skip or (only and name != only):
            continue
        column = table[name]
        if isinstance(column, VectorIndex):
            texts = column.target.data[:1]
            if len(texts) and isinstance(texts[0], (str, bytes)):
                out[name] = np.array([",".join(map(_text, row)) for row in column[:]], dtype=str)
            continue
        shape = getattr(column.data, "shape", None) or np.shape(column.data)
        if len(shape) > 2 or (len(shape) == 2 and shape[1] > _WIDEST_COLUMN):
            continue
        values = np.asarray(column.data[:])
        if values.dtype.kind in "SO":
            if values.ndim > 1 or not all(isinstance(value, (str, bytes)) for value in values):
                continue  # references to other objects
            values = np.array([_text(value) for value in values], dtype=str)
        if values.ndim == 2:
            out.update({f"{name}.{k}": values[:, k] for k in range(values.shape[1])})
        else:
            out[name] = values
    return out


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else str(value)


def _all_series(nwb: pynwb.NWBFile) -> dict[str, pynwb.TimeSeries]:
    """Every time series below acquisition, processing and analysis, by its path."""
    out = {}

    def descend(path: str, container) -> None:
        if isinstance(container, pynwb.TimeSeries):
            out[path] = container
        for child in container.children:
            if child.name not in ("timestamps", "data"):
                descend(f"{path}/{child.name}", child)

    for top in ("acquisition", "processing", "analysis"):
        for key, container in getattr(nwb, top).items():
            descend(f"{top}/{key}", container)
    return out


def _find_series(name: str, nwb: pynwb.NWBFile, key: str, signal: SignalRecipe) -> Series | None:
    every = _all_series(nwb)
    for place in signal.path:
        hits = [path for path in every if path == place or path.endswith("/" + place)]
        if len(hits) > 1:
            raise SessionError(
                name, f"{place!r} stands for {' and '.join(sorted(hits))}", f"give signals.{key}.path more of the path"
            )
        if hits:
            return _series(name, hits[0], every[hits[0]])
    if not signal.required or signal.derive_from:
        return None
    raise SessionError(
        name,
        f"no series at {' or '.join(signal.path)}",
        f"point signals.{key}.path at one of: {', '.join(sorted(every)) or 'none, it has no series'}",
    )


def _series(name: str, place: str, series: pynwb.TimeSeries) -> Series:
    shape = getattr(series.data, "shape", None) or np.shape(series.data)
    if len(shape) not in (1, 2) or shape[0] == 0:
        raise SessionError(name, f"{place} has data of shape {tuple(shape)}", "name a series of samples x columns")
    value = np.asarray(series.data[:])
    if value.dtype.kind not in "fiub":
        raise SessionError(name, f"{place} holds no numbers", "name another series")
    value = value.astype(np.float64).reshape(shape[0], -1) * series.conversion + (series.offset or 0.0)
    if series.timestamps is not None:
        time = np.asarray(series.timestamps[:], dtype=np.float64)
    else:
        if not (series.rate and series.rate > 0):
            raise SessionError(name, f"{place} has neither timestamps nor a rate", "name another series")
        time = series.starting_time + np.arange(len(value)) / series.rate
    if len(time) != len(value):
        raise SessionError(name, f"{place} has {len(value)} samples but {len(time)} timestamps", "fetch it again")
    return Series(place, time, value, str(series.unit or ""))
