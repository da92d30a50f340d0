"""Tables of an NWB file -> columns with one number, truth value or text a row, and what they say of where a unit is."""

import numpy as np

from data_prep.nwb_layout import NUMBERS, TEXT, Column, Table, text

_WIDEST = 16  # a column with more values a row is not a property of the row but data: left unread
UNIT_DATA = ("spike_times", "obs_intervals", "electrodes", "waveforms", "id")  # columns that are more than a property
_SAYS_NOTHING = ("", "unknown", "n/a", "na", "none", "nan")


def columns(table: Table, skip: tuple[str, ...] = ()) -> tuple[dict[str, np.ndarray], list[str]]:
    """Columns (n rows,) by name, and a note for each that does not fit the rows.

    What has up to 16 numbers a row is split: pos (n, 2) into pos.0 and pos.1, a ragged column into as many as its
    longest row has, NaN where a row is shorter. Texts of a row are joined by ",". Everything else is left unread.
    """
    out: dict[str, np.ndarray] = {}
    notes = []
    for name, column in table.columns.items():
        if name not in skip:
            found = _read(name, column)
            misfit = [len(values) for values in found.values() if len(values) != len(table)]
            if misfit:
                notes.append(f"column {name} of {table.name} has {misfit[0]} rows of {len(table)}: left out")
            else:
                out |= found
    return out, notes


def ends_of(column: Column) -> np.ndarray:
    """Where each row of a ragged column ends, (n,) int64."""
    return np.asarray(column.ends[0][:]).astype(np.int64)


def _read(name: str, column: Column) -> dict[str, np.ndarray]:
    shape = tuple(column.data.shape)
    if len(column.ends) > 1 or not shape or column.holds not in (NUMBERS, TEXT):
        return {}
    if column.ends:
        return _ragged(name, column, shape)
    if column.holds == TEXT:
        return {name: _texts(column.data[:])} if len(shape) == 1 else {}
    if int(np.prod(shape[1:])) > _WIDEST:
        return {}
    values = np.asarray(column.data[:])
    return {name: values} if len(shape) == 1 else _split(name, values.reshape(shape[0], -1))


def _ragged(name: str, column: Column, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    ends = ends_of(column)
    size = np.diff(ends, prepend=0)
    if not len(ends) or (size < 0).any() or ends[-1] > shape[0]:
        return {}
    if column.holds == TEXT:
        if len(shape) > 1:
            return {}
        rows = np.split(_texts(column.data[: ends[-1]]), ends[:-1])
        return {name: np.array([",".join(row) for row in rows], dtype=str)}
    each = int(np.prod(shape[1:]))
    width = int(size.max()) * each
    if not 0 < width <= _WIDEST:
        return {}
    rows = np.repeat(np.arange(len(ends)), size)
    within = np.arange(ends[-1]) - np.repeat(ends - size, size)
    out = np.full((len(ends), width // each, each), np.nan)
    out[rows, within] = np.asarray(column.data[: ends[-1]]).reshape(-1, each)
    return _split(name, out.reshape(len(ends), width))


def _split(name: str, values: np.ndarray) -> dict[str, np.ndarray]:
    return {f"{name}.{k}": values[:, k] for k in range(values.shape[1])}


def _texts(values: np.ndarray) -> np.ndarray:
    return np.array([text(value) for value in values], dtype=str)


def ids(table: Table) -> np.ndarray:
    """Ids (n,) as texts."""
    return np.asarray(table.ids[:]).astype(str)


def regions(units: Table, sources: list[str]) -> tuple[str, ...]:
    """Text (U) of the first source that says something about the unit, "" where none does."""
    found = [""] * len(units)
    for source in sources:
        if all(found):
            break
        for row, said in enumerate(_region_texts(units, source)[: len(found)]):
            if not found[row] and said.strip().lower() not in _SAYS_NOTHING:
                found[row] = said.strip()
    return tuple(found)


def _region_texts(units: Table, source: str) -> list[str]:
    if source == "id":
        return ids(units).tolist()
    if source not in units.columns:
        return []
    column = units.columns[source]
    if column.locations is not None:
        return column.locations()
    if source == "electrodes":
        return of_electrodes(column, "location")
    return _read(source, column).get(source, np.zeros(0)).astype(str).tolist()


def electrodes(units: Table) -> tuple[str, ...]:
    """Id (U) of the first electrode of each unit, "" where it has none; () where the table does not say."""
    column = units.columns.get("electrodes")
    found = of_electrodes(column, "id") if column is not None else []
    return tuple(found) if len(found) == len(units) else ()


def of_electrodes(column: Column, name: str) -> list[str]:
    """What a column of the electrode table says of the first electrode of each row, "" where there is none."""
    table = column.refers()
    if table is None or (name != "id" and name not in table.columns):
        return []
    told = ids(table) if name == "id" else _read(name, table.columns[name]).get(name, np.zeros(0)).astype(str)
    rows = np.asarray(column.data[:]).astype(np.int64)
    ends = ends_of(column) if column.ends else np.arange(1, len(rows) + 1)  # one electrode a unit needs no index
    first = np.concatenate([[0], ends[:-1]]) if len(ends) else ends
    return [
        str(told[rows[a]]) if b > a and a < len(rows) and 0 <= rows[a] < len(told) else "" for a, b in zip(first, ends)
    ]
