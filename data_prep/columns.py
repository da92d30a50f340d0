"""A column of a table -> truth values, numbers or texts, whichever way its file spelled them; and how two compare."""

import math

import numpy as np

from data_prep.errors import SessionError

_MISSING_TEXTS = ("", "nan")
_TRUTHS = {"true": 1.0, "false": 0.0}

Table = dict[str, np.ndarray]  # column -> values (n,)


def column(where: str, table: Table, name: str) -> np.ndarray:
    """One column of a table; raises SessionError that lists the columns there are."""
    if name not in table:
        raise SessionError(where, f"no column {name!r}", f"choose from {', '.join(sorted(table)) or 'none'}")
    return table[name]


def plain(where: str, values: np.ndarray) -> np.ndarray:
    """A column as bool, float64 or text."""
    if values.ndim != 1 or values.dtype.kind not in "biufSOU":
        shape = f"{values.dtype} of shape {values.shape}"
        raise SessionError(where, f"a column of {shape} cannot be compared", "choose another column")
    if values.dtype.kind in "iuf":
        return values.astype(np.float64)
    if values.dtype.kind in "SO":
        texts = (v.decode("utf-8", errors="replace") if isinstance(v, bytes) else str(v) for v in values.tolist())
        return np.array(["" if text == "None" else text for text in texts], dtype=str)
    return values


def numbers(where: str, values: np.ndarray) -> np.ndarray:
    """A column (n,) as float64, texts as the numbers they spell; raises SessionError where they are words."""
    values = plain(where, values)
    number = as_number(values)
    if values.dtype.kind == "U" and known(values).any() and np.isnan(number).all():
        raise holds_text(where, where.split()[-1], values, "name a column of numbers")
    return number


def truths(where: str, values: np.ndarray) -> np.ndarray:
    """A column (n,) as truth values: numbers other than 0, texts that spell such a number or True."""
    with np.errstate(all="ignore"):
        return as_truth(where, where.split()[-1], plain(where, values))


def is_one_of(where: str, values: np.ndarray, texts: list[str]) -> np.ndarray:
    """Which values (n,) equal one of the texts, or the number it spells."""
    values = plain(where, values)
    number = as_number(values)
    hits = [equal(values, np.full(len(values), str(text))) | (number == _spelled(str(text))) for text in texts]
    return np.any(hits, axis=0) if hits else np.zeros(len(values), dtype=bool)


def known(values: np.ndarray) -> np.ndarray:
    """Which values (n,) are neither NaN nor empty text."""
    if values.dtype.kind == "U":
        return np.array([text.strip().lower() not in _MISSING_TEXTS for text in values.tolist()], dtype=bool)
    return ~np.isnan(values.astype(np.float64))


def as_number(values: np.ndarray) -> np.ndarray:
    """Values (n,) float64; a text is the number it spells, NaN for a word."""
    if values.dtype.kind != "U":
        return values.astype(np.float64)
    return np.array([_spelled(text.strip().lower()) for text in values.tolist()], dtype=np.float64)


def _spelled(text: str) -> float:
    try:
        return _TRUTHS[text] if text in _TRUTHS else float(text.replace("_", "x"))  # float() would take 1_000
    except ValueError:
        return math.nan


def equal(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Which pairs (n,) are equal: two texts letter by letter, else as numbers."""
    if left.dtype.kind == right.dtype.kind == "U":
        return left == right
    return as_number(left) == as_number(right)  # a word is NaN, so equals no number


def has_tag(tag: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Where a text holds the tag among its comma-joined parts; a number does where it equals it."""
    if values.dtype.kind != "U":
        return equal(tag, values)
    pairs = zip(tag.tolist(), values.tolist())
    return np.array([one == text or one in map(str.strip, text.split(",")) for one, text in pairs], dtype=bool)


def as_truth(where: str, what: str, values: np.ndarray) -> np.ndarray:
    """Values (n,) as truth: a number where it is known and not 0, a text where it spells such a number or True."""
    if values.dtype.kind == "b":
        return values
    number = as_number(values)
    if values.dtype.kind == "U" and (np.isnan(number) & known(values)).any():
        raise holds_text(where, what, values[np.isnan(number) & known(values)], "compare it with ==")
    return (number != 0) & ~np.isnan(number)


def holds_text(where: str, what: str, values: np.ndarray, do: str) -> SessionError:
    """The refusal of words where numbers or truth values are needed."""
    shown = ", ".join(sorted(set(values.tolist()))[:3])
    return SessionError(where, f"`{what[:60]}` holds text ({shown[:60]})", do)
