"""Units of measure as files spell them -> the factor between two of them."""

import re

from data_prep.errors import SessionError

# quantity -> name -> size in its SI unit; the first spelling of a size is the one to tell people
_QUANTITIES: dict[str, dict[str, float]] = {
    "length": {
        "m": 1.0, "meter": 1.0, "metre": 1.0,
        "cm": 1e-2, "centimeter": 1e-2, "centimetre": 1e-2,
        "mm": 1e-3, "millimeter": 1e-3, "millimetre": 1e-3,
        "um": 1e-6, "micrometer": 1e-6, "micron": 1e-6,
    },
    "angle": {"rad": 1.0, "radian": 1.0, "deg": 0.017453292519943295, "degree": 0.017453292519943295},
    "force": {"n": 1.0, "newton": 1.0, "mn": 1e-3},
    "torque": {"n*m": 1.0, "n*cm": 1e-2, "n*mm": 1e-3},
    "voltage": {"v": 1.0, "volt": 1.0, "mv": 1e-3, "millivolt": 1e-3, "uv": 1e-6, "microvolt": 1e-6},
}  # fmt: skip
_SIZES = {name: (quantity, size) for quantity, names in _QUANTITIES.items() for name, size in names.items()}
_PER_SECOND = r"(?:\s*/\s*|\s+per\s+)(?:s|sec|seconds?)(?:\s*(?:\^|\*\*)?\s*([1-4]))?"
_INVERSE = r"[\s.*]*\bs(?:ec)?\s*(?:\^|\*\*)?\s*-\s*([1-4])"  # cm s^-1
_TORQUE = r"(?:n|newtons?)[\s.*-]?(?:m|mm|cm|met(?:er|re)s?)"


def split_unit(text: str) -> tuple[str, int]:
    """("cm/s^2") -> ("cm", 2): the unit without its seconds, and the power of 1/s it had."""
    plain = text.strip().replace("²", "^2").replace("µ", "u").replace("μ", "u").replace("·", "*").replace("⁻¹", "^-1")
    joined = re.fullmatch(r"N(m|mm|cm)", plain)  # nm would be something else
    plain = f"n*{joined[1]}" if joined else plain.lower()
    found = re.fullmatch(rf"(.+?)(?:{_PER_SECOND})", plain) or re.fullmatch(rf"(.+?){_INVERSE}", plain)
    base, power = (found[1], int(found[2] or 1)) if found else (plain, 0)
    base = base.strip()
    if len(base) > 2 and re.fullmatch(_TORQUE, base):
        arm = re.search(r"(mm|cm|m)(?:et(?:er|re)s?)?$", base)[1]
        base = f"n*{arm}"
    return (base[:-1] if base.endswith("s") and base[:-1] in _SIZES else base), power


def swaps(stated: str) -> dict[str, float]:
    """Units one may have meant instead of `stated` -> what values are multiplied with if so: mm/s for cm/s 0.1."""
    base, power = split_unit(stated)
    quantity, size = _SIZES.get(base, ("", 1.0))
    told = {value: name for name, value in reversed(_QUANTITIES.get(quantity, {}).items())}
    over = {0: "", 1: "/s"}.get(power, f"/s^{power}")
    return {name + over: value / size for value, name in told.items() if value != size}


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
