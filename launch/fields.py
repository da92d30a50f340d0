"""A config dataclass, read as a schema: which fields it has, which are sections, and the sentence under each."""

import ast
import inspect
import re
import textwrap
import types
import typing
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Any, Literal, Union


@dataclass(frozen=True)
class Field:
    """One setting. A section has `classes`: choice name -> dataclass, or {"": dataclass} where there is no choice."""

    name: str
    hint: Any
    optional: bool
    classes: dict[str, type] | None
    make: Any  # () -> default value, or None where the setting must be given

    @property
    def is_choice(self) -> bool:
        return self.classes is not None and "" not in self.classes


@cache
def schema_of(cls: type) -> dict[str, Field]:
    """The settings of a config dataclass, by name, in order."""
    hints = typing.get_type_hints(cls)
    out = {}
    for item in fields(cls):
        if not item.init:
            continue
        hint = hints[item.name]
        bare = without_none(hint)
        classes = item.metadata.get("choices") or ({"": bare} if is_dataclass(bare) else None)
        out[item.name] = Field(item.name, hint, bare is not hint or hint is type(None), classes, _maker(item))
    return out


def _maker(item):
    if item.default_factory is not NO_DEFAULT:
        return item.default_factory
    if item.default is not NO_DEFAULT:
        return lambda: item.default
    return None


def without_none(hint):
    """`X` for `X | None` and for `X`."""
    if typing.get_origin(hint) in (Union, types.UnionType):
        kept = [arg for arg in typing.get_args(hint) if arg is not type(None)]
        if len(kept) < len(typing.get_args(hint)):
            return Union[tuple(kept)]  # noqa: UP007 - of a tuple of types
    return hint


def options_of(hint) -> tuple:
    """The members of a union without None; a type that is no union is its own only option."""
    bare = without_none(hint)
    return typing.get_args(bare) if typing.get_origin(bare) in (Union, types.UnionType) else (bare,)


def element_of(hint):
    """The element type of list[X], tuple[X, ...] and the value type of dict[K, X]; None for anything else."""
    bare = without_none(hint)
    origin, args = typing.get_origin(bare), typing.get_args(bare)
    if origin in (list, tuple) and args:
        return args[0]
    return args[1] if origin is dict else None


def in_words(hint) -> str:
    """What a value of this type looks like, for a person."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(in_words(arg) for arg in args)
    if origin is Literal:
        return " or ".join(repr(arg) for arg in args)
    if origin in (list, tuple) and args:
        return f"a list, each {in_words(args[0])}"
    if origin is dict:
        return f"a mapping, each value {in_words(args[1])}"
    words = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        type(None): "null",
        list: "a list",
        tuple: "a list",
        dict: "a mapping",
    }
    return words.get(hint, "a mapping" if is_dataclass(hint) else getattr(hint, "__name__", str(hint)))


def type_name(hint) -> str:
    """A short name of the type, as one would write it."""
    if isinstance(hint, type) and not typing.get_args(hint):
        return hint.__name__
    return re.sub(r"\b(\w+\.)+", "", str(hint))  # without the modules of its parts


@cache
def field_docs(cls: type) -> dict[str, str]:
    """The string literal under each field of a dataclass (its bases' too), on one line; {} where there is no source."""
    docs = {}
    for base in reversed(cls.__mro__):
        if not is_dataclass(base):
            continue
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body
        except (OSError, TypeError):
            continue
        for item, below in zip(body, body[1:]):
            is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            if isinstance(item, ast.AnnAssign) and is_text:
                docs[item.target.id] = " ".join(str(below.value.value).split())
    return docs
