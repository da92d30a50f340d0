"""Units of measure as files spell them -> the factor between two of them."""

import re

from data_prep.errors import SessionError

# name -> (quantity, size in its SI unit)
_SIZES = {
    "m": ("length", 1.0),
    "meter": ("length", 1.0),
    "metre": ("length", 1.0),
    "cm": ("length", 1e-2),
    "centimeter": ("length", 1e-2),
    "centimetre": ("length", 1e-2),
    "mm": ("length", 1e-3),
    "millimeter": ("length", 1e-3),
    "millimetre": ("length", 1e-3),
    "um": ("length", 1e-6),
    "micrometer": ("length", 1e-6),
    "rad": ("angle", 1.0),
    "radian": ("angle", 1.0),
    "deg": ("angle", 0.017453292519943295),
    "degree": ("angle", 0.017453292519943295),
    "n": ("force", 1.0),
    "newton": ("force", 1.0),
    "mn": ("force", 1e-3),
}


def split_unit(text: str) -> tuple[str, int]:
    """("cm/s^2") -> ("cm", 2): the unit without its seconds, and the power of 1/s it had."""
    plain = text.strip().lower().replace("²", "^2").replace("µ", "u")
    found = re.fullmatch(r"(.+?)(?:\s*/\s*|\s+per\s+)(?:s|sec|seconds?)(?:\s*(?:\^|\*\*)?\s*([1-4]))?", plain)
    base, power = (found[1], int(found[2] or 1)) if found else (plain, 0)
    base = base.strip()
    return (base[:-1] if base.endswith("s") and base[:-1] in _SIZES else base), power


def factor(where: str, stated: str, wanted: str) -> float:
    """What values in `stated` are multiplied with to be in `wanted`; raises SessionError where no rule says."""
    (base, power), (to_base, to_power) = split_unit(stated), split_unit(wanted)
    if (base, power) == (to_base, to_power):
        return 1.0
    quantity, size = _SIZES.get(base, (None, 0.0))
    to_quantity, to_size = _SIZES.get(to_base, (None, 0.0))
    if power != to_power or quantity is None or quantity != to_quantity:
        raise SessionError(
            where,
            f"its unit of measure is {stated!r}, the recipe asks for {wanted!r}",
            "say what it really is with stated_unit, or ask for another unit",
        )
    return size / to_size


def per_second(unit: str) -> str:
    """Unit of the rate of change: cm -> cm/s, cm/s -> cm/s^2."""
    base, power = split_unit(unit)
    return f"{base}/s" if power == 0 else f"{base}/s^{power + 1}"
