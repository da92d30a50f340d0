"""A Recipe and remarks by path -> commented YAML: what differs from the defaults, with what was seen beside each line."""

import re
import textwrap
from dataclasses import fields, is_dataclass
from typing import Any

_WIDTH = 118
_INLINE = 96  # a section this short stands on one line
_PLAIN = re.compile(r"[A-Za-z_/][A-Za-z0-9_./ -]*")
_WORDS = {"true", "false", "null", "yes", "no", "on", "off", "y", "n", "nan", "inf"}

_ALWAYS = {("PhaseRecipe", "start"), ("PhaseRecipe", "stop"), ("Moment", "column")}  # clearer said than left out

Remarks = dict[str, list[str]]


def as_yaml(recipe, remarks: Remarks, head: list[str]) -> str:
    """YAML text that the config loader turns back into the recipe; remarks on what is not printed end its section."""
    lines = [line for text in head for line in _comment(text, "")]
    tree = _changed(recipe, type(recipe)())
    spaced = {"units", "signals", "repairs", "trials", "phases", "domain", "splits"}
    for name in (field.name for field in fields(recipe)):
        if name in tree or _below(remarks, name):
            lines += [""] if name in spaced else []
            lines += _entry(name, tree.get(name), name, remarks, "") if name in tree else _loose(remarks, name, "")
    return "\n".join(lines) + "\n"


def _changed(value, default) -> dict[str, Any]:
    """Nested dicts of the fields that differ from the default's."""
    out = {}
    for field in fields(value):
        own, usual = getattr(value, field.name), getattr(default, field.name)
        if own == usual and (type(value).__name__, field.name) not in _ALWAYS:
            continue
        out[field.name] = _plain(own, usual)
    return out


def _plain(own, usual=None):
    if is_dataclass(own) and getattr(own, "mask", None):
        return {key: item for key, item in _changed(own, type(own)()).items() if key not in ("start", "stop")}
    if is_dataclass(own):
        return _changed(own, usual if type(usual) is type(own) else type(own)())
    if isinstance(own, dict):
        return {key: _plain(item) for key, item in own.items()}
    return [_plain(item) for item in own] if isinstance(own, (list, tuple)) else own


def _below(remarks: Remarks, path: str) -> list[str]:
    return [key for key in remarks if key == path or key.startswith(path + ".")]


def _entry(name: str, value, path: str, remarks: Remarks, indent: str) -> list[str]:
    own = remarks.get(path, [])
    inner = [key for key in _below(remarks, path) if key != path]
    flat = f"{indent}{_scalar(name)}: {_flow(value)}"
    if not isinstance(value, dict) or not value or (not inner and len(flat) <= _INLINE and "." in path):
        beside = _clean(own[0]) if len(own) == 1 and len(flat) + len(own[0]) + 3 <= _WIDTH else ""
        above = [] if beside else [line for text in own for line in _comment(text, indent)]
        return [*above, flat + (f" # {beside}" if beside else "")]
    lines = [line for text in own for line in _comment(text, indent)] + [f"{indent}{_scalar(name)}:"]
    for key, item in value.items():
        lines += _entry(key, item, f"{path}.{key}", remarks, indent + "  ")
    told = {k for key in value for k in _below(remarks, f"{path}.{key}")}
    for key in inner:
        if key not in told:
            lines += [line for text in remarks[key] for line in _comment(_about(key, path, text), indent + "  ")]
    return lines


def _loose(remarks: Remarks, path: str, indent: str) -> list[str]:
    """Remarks on a section that is left at its defaults."""
    return [
        line
        for key in _below(remarks, path)
        for text in remarks[key]
        for line in _comment(_about(key, "", text), indent)
    ]


def _about(key: str, path: str, text: str) -> str:
    return f"{key.removeprefix(path + '.') if path else key}: {text}"


def _comment(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        _clean(text), _WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}#   ", break_on_hyphens=False
    ) or [f"{indent}#"]


def _clean(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))


def _flow(value) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_scalar(key)}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return _scalar(value)


def _scalar(value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    if not isinstance(value, str):
        return str(value)
    if _PLAIN.fullmatch(value) and value == value.strip() and value.lower() not in _WORDS:
        return value
    return '"' + "".join(map(_escaped, value)) + '"'


def _escaped(letter: str) -> str:
    """A letter between double quotes; what does not print is escaped, so that no control code reaches a terminal."""
    if letter in '"\\':
        return "\\" + letter
    return letter if letter.isprintable() else f"\\U{ord(letter):08x}"
