"""YAML files and key=value settings into typed config dataclasses, and back.

One rule: *a section is a mapping, or the path of the file that holds it*. A section is a field whose type is a
dataclass, or one declared with metadata={"choices": {name: dataclass}}, whose key `name` selects the dataclass.
What a file or a setting does not say keeps its default; a path swaps the whole section. Nothing is inherited,
interpolated, imported or evaluated, and an unknown key is refused.
"""

import enum
import re
import typing
from dataclasses import is_dataclass, make_dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from data_prep.errors import ConfigError
from launch.fields import Field, element_of, in_words, options_of, schema_of, without_none
from launch.files import COMMAND_LINE, did_you_mean, find_file

T = TypeVar("T")
A_SECTION = "a mapping or the path of a YAML file"
A_FILE = "a YAML file of key: value lines"
UNSET = "???"  # OmegaConf's mark of a value that must be given


def load(schema: type[T], file: str | None, overrides: list[str], positional: str | None = None) -> T:
    """An object of `schema` from a YAML file (or the defaults) and key=value settings.

    With `positional` the file holds that one field, not the whole config. Settings that swap a section are applied
    before those that set a key in it, else in their order. Raises ConfigError.
    """
    settings = [_split(text) for text in overrides]
    tree = _defaults(schema)
    if file is not None and positional is not None:
        settings.insert(0, (positional.split("."), file))
    elif file is not None:
        tree = _merge_mapping(schema, tree, *_read(find_file(file, COMMAND_LINE)), key="")
    for keys, text in sorted(settings, key=lambda setting: 0 if _swaps(setting[1]) else 1):
        tree = _set(schema, tree, keys, text, ".".join(keys))
    return _build(schema, tree, "")


def as_mapping(config) -> dict:
    """The config as nested dicts and lists of plain values; a chosen section carries its `name`."""
    return _defaults_of(config)


def to_yaml(config) -> str:
    """The config as YAML that `load` turns back into an equal object."""
    return OmegaConf.to_yaml(OmegaConf.create(as_mapping(config)))


# ------------------------------------------------------------------------------------------------ files


def _read(path: Path) -> tuple[dict, str]:
    """The mapping a YAML file holds, as plain values, and the file's name."""
    try:
        data = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else path
        raise ConfigError(where, f"not valid YAML ({getattr(error, 'problem', error)})", "mend that line") from None
    except UnicodeDecodeError:
        raise ConfigError(path, "not a text file", "give a YAML file") from None
    except OmegaConfBaseException as error:
        raise ConfigError(path, str(error).splitlines()[0], "write plain values, without ${...} or tags") from None
    except OSError as error:
        raise ConfigError(path, f"it cannot be read ({error.strerror})", f"give {A_FILE}") from None
    if not isinstance(data, dict):
        raise ConfigError(path, f"it holds a {type(data).__name__}", f"give {A_FILE}")
    return data, str(path)


# ------------------------------------------------------------------------------------------------ command line


def _split(text: str) -> tuple[list[str], str]:
    key, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[^\s.=]+(\.[^.=]+)*", key):
        raise ConfigError(text, "not a setting", "write key=value, for example batch=32")
    return key.split("."), value


def _swaps(text: str) -> bool:
    return text.endswith((".yaml", ".yml"))


def _parsed(text: str, hint, key: str):
    """The value that the text of a setting stands for; text is kept as it is where text is wanted."""
    if _is_texts(hint) and text != "null" and "${" not in text and not {"'", '"', "{"} & set(text):
        inside = text[1:-1] if text.startswith("[") and text.endswith("]") else text
        return [part for part in map(str.strip, inside.split(",")) if part]
    try:
        value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]), resolve=False)["value"]
    except (yaml.YAMLError, OmegaConfBaseException):
        if without_none(hint) is str and "${" not in text:
            return text
        raise ConfigError(key, f"{text!r} cannot be read", f"give {in_words(hint)}") from None
    options = options_of(hint)
    is_text = str in options and not {int, float, bool} & set(options)
    is_text = is_text and (options == (str,) or not isinstance(value, (list, dict)))
    return text if is_text and not isinstance(value, str) and not (value is None and options != (hint,)) else value


def _is_texts(hint) -> bool:
    """Whether a list of texts is wanted: such a list may be typed bare, `a` or `a,b`, with a glob's star in front too."""
    bare = without_none(hint)
    return typing.get_origin(bare) in (list, tuple) and element_of(bare) is str


def _set(cls: type, tree: dict, keys: list[str], text: str, key: str) -> dict:
    """The tree with one setting from the command line applied."""
    field = _field(cls, keys[0], tree, key, COMMAND_LINE)
    current = tree[field.name]
    if len(keys) == 1:
        value = text if field.classes and _swaps(text) else _parsed(text, field.hint, key)
        return {**tree, field.name: _merge_field(field, current, value, COMMAND_LINE, key)}
    section = key.rsplit(".", len(keys) - 1)[0]
    if field.classes:
        if current in (None, UNSET):
            current = _start(field, {}, COMMAND_LINE, section)
        inner = _set(_class_of(field, current, COMMAND_LINE, section), current, keys[1:], text, key)
        if field.is_choice and keys[1] == "name" and inner["name"] != current["name"]:
            inner = _start(field, {"name": inner["name"]}, COMMAND_LINE, section)
        return {**tree, field.name: inner}
    if typing.get_origin(without_none(field.hint)) is not dict:
        raise ConfigError(key, f"{section} has no keys of its own", f"give {in_words(field.hint)}")
    entries = {} if current in (None, UNSET) else current
    return {**tree, field.name: {**entries, **_entry(element_of(field.hint), entries, keys[1:], text, key)}}


def _entry(element, entries: dict, keys: list[str], text: str, key: str) -> dict:
    """One entry of a mapping field, set from the command line; a plain entry's name may hold dots."""
    if is_dataclass(element) and len(keys) > 1:
        return {keys[0]: _set(element, entries.get(keys[0], _defaults(element)), keys[1:], text, key)}
    if is_dataclass(element):
        return {keys[0]: _merge_field(_entry_field(element), UNSET, _parsed(text, element, key), COMMAND_LINE, key)}
    return {".".join(keys): _merge_leaf(element, _parsed(text, element, key), COMMAND_LINE, key)}


def _entry_field(element) -> Field:
    return Field("", element, False, {"": without_none(element)}, None)


# ------------------------------------------------------------------------------------------------ merging


def _merge_mapping(cls: type, tree: dict, data: dict, source: str, key: str) -> dict:
    """The tree of a dataclass with a mapping laid over it, checked key by key."""
    out = dict(tree)
    for name, value in data.items():
        inner = f"{key}.{name}" if key else str(name)
        field = _field(cls, name, tree, inner, source)
        out[name] = _merge_field(field, out[name], value, source, inner)
    return out


def _merge_field(field: Field, current, value, source: str, key: str):
    if value is None and field.optional:
        return None
    if field.classes is None:
        return _merge_leaf(field.hint, value, source, key)
    if isinstance(value, str):  # a path: the file holds the whole section, whatever stood here before
        value, source = _read(find_file(value, source))
        current = UNSET
    if not isinstance(value, dict):
        raise ConfigError(_where(source, key), f"{_shown(value)} is not a section", f"give {A_SECTION}")
    if current in (None, UNSET) or (field.is_choice and value.get("name", current["name"]) != current["name"]):
        current = _start(field, value, source, key)
    return _merge_mapping(_class_of(field, current, source, key), current, value, source, key)


def _start(field: Field, value: dict, source: str, key: str) -> dict:
    """The defaults of the dataclass that the mapping `value` selects."""
    name = {"name": value.get("name")} if field.is_choice else {}
    return {**_defaults(_class_of(field, name, source, key)), **name}


def _class_of(field: Field, tree: dict, source: str, key: str) -> type:
    if not field.is_choice:
        return field.classes[""]
    name = tree.get("name")
    if name not in field.classes:
        found = "it says no name" if name is None else f"there is no {_shown(name)}"
        raise ConfigError(_where(source, f"{key}.name"), found, did_you_mean(str(name), field.classes))
    return field.classes[name]


def _field(cls: type, name, tree: dict, key: str, source: str) -> Field:
    schema = schema_of(cls)
    if name in schema:
        return schema[name]
    if name == "name" and "name" in tree:  # the selector of a choice whose dataclass does not store it
        return Field("name", str, False, None, None)
    inner = [path for path in _paths(tree) if path.split(".")[-1] == name]
    do = "did you mean " + " or ".join(inner[:3]) + "?" if inner else did_you_mean(str(name), schema)
    raise ConfigError(_where(source, key), "no such key", do)


def _paths(tree: dict) -> list[str]:
    return [
        path
        for name, value in tree.items()
        for path in ([f"{name}.{inner}" for inner in _paths(value)] if isinstance(value, dict) else [str(name)])
    ]


def _merge_leaf(hint, value, source: str, key: str):
    """The value as the hint wants it, in plain lists, dicts and values; raises ConfigError."""
    element = element_of(hint)
    if is_dataclass(without_none(element)):
        entry = _entry_field(element)
        if isinstance(value, dict) and typing.get_origin(without_none(hint)) is dict:
            return {name: _merge_field(entry, UNSET, inner, source, f"{key}.{name}") for name, inner in value.items()}
        if isinstance(value, list) and typing.get_origin(without_none(hint)) is not dict:
            return [_merge_field(entry, UNSET, inner, source, f"{key}[{n}]") for n, inner in enumerate(value)]
        raise _wrong(hint, value, source, key)
    if _holds(value, lambda text: isinstance(text, str) and "${" in text):
        found, do = f"{_shown(value)} holds ${{...}}", "write the value itself: nothing is interpolated"
        raise ConfigError(_where(source, key), found, do)
    options = [option for option in options_of(hint) if _fits(option, value)]
    for option in [hint] if len(options_of(hint)) == 1 or not options else options:
        try:
            return _converted(option, value)
        except (OmegaConfBaseException, TypeError, ValueError):
            pass
    raise _wrong(hint, value, source, key)


def _fits(option, value) -> bool:
    """Whether a member of a union is of the value's own kind: a list for lists, a mapping for mappings."""
    kind = typing.get_origin(option) or option
    return isinstance(value, list) == (kind in (list, tuple)) and isinstance(value, dict) == (kind is dict)


def _converted(hint, value):
    if _holds(value, lambda item: item is not None and not isinstance(item, (str, int, float, bool, enum.Enum))):
        raise TypeError
    leaf = OmegaConf.structured(_leaf(hint))
    OmegaConf.update(leaf, "value", _eased(hint, value), merge=False)
    return _plain(OmegaConf.to_container(leaf)["value"])


def _wrong(hint, value, source: str, key: str) -> ConfigError:
    return ConfigError(_where(source, key), f"{_shown(value)} is not {in_words(hint)}", f"give {in_words(hint)}")


@cache
def _leaf(hint):
    return make_dataclass("Leaf", [("value", hint, UNSET)])


def _eased(hint, value):
    """Numbers where numbers are wanted, but never a number or a flag taken for text."""
    inner, options = element_of(hint), options_of(hint)
    if inner is not None and isinstance(value, list):
        return [_eased(inner, item) for item in value]
    if inner is not None and isinstance(value, dict):
        return {key: _eased(inner, item) for key, item in value.items()}
    if options == (str,) and not isinstance(value, (str, type(None))):
        raise TypeError
    if float in options and int not in options and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value


def _holds(value, test) -> bool:
    if isinstance(value, dict):
        return any(_holds(item, test) for item in (*value.keys(), *value.values()))
    if isinstance(value, (list, tuple)):
        return any(_holds(item, test) for item in value)
    return test(value)


def _where(source: str, key: str) -> str:
    return f"{source}: {key}" if source else key


def _shown(value) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


# ------------------------------------------------------------------------------------------------ objects


def _defaults(cls: type) -> dict:
    """The default of every field of a dataclass as plain values; UNSET where a value must be given."""
    return {name: _plain_field(field, field.make() if field.make else UNSET) for name, field in schema_of(cls).items()}


def _defaults_of(config) -> dict:
    return {name: _plain_field(field, getattr(config, name)) for name, field in schema_of(type(config)).items()}


def _plain_field(field: Field, value):
    out = _plain(value)
    if field.is_choice and is_dataclass(value):
        name = next((name for name, cls in field.classes.items() if cls is type(value)), None)
        out = {"name": name, **out}
    return out


def _plain(value):
    if is_dataclass(value):
        return _defaults_of(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value.name if isinstance(value, enum.Enum) else value


def _build(cls: type[T], tree: dict, key: str) -> T:
    """The dataclass that a complete tree describes."""
    values = {}
    for name, field in schema_of(cls).items():
        inner = f"{key}.{name}" if key else name
        value = tree[name]
        if isinstance(value, str) and value == UNSET:
            want = A_SECTION if field.classes else in_words(field.hint)
            raise ConfigError(inner, "it is not set", f"give {inner}=..., {want}")
        if field.classes and value is not None:
            value = _build(_class_of(field, value, COMMAND_LINE, inner), value, inner)
        elif value is not None:
            value = _shaped(field.hint, value, inner)
        values[name] = value
    return cls(**values)


def _shaped(hint, value, key: str) -> Any:
    """Plain lists and mappings as the tuples and dataclasses that the hint names."""
    bare = without_none(hint)
    origin, args = typing.get_origin(bare), typing.get_args(bare)
    if is_dataclass(bare):
        return _build(bare, value, key)
    if isinstance(value, list):
        inner = [_shaped(args[0] if args else Any, item, f"{key}[{n}]") for n, item in enumerate(value)]
        return tuple(inner) if origin is tuple or bare is tuple else inner
    if isinstance(value, dict) and origin is dict:
        return {name: _shaped(args[1], item, f"{key}.{name}") for name, item in value.items()}
    if isinstance(bare, type) and issubclass(bare, enum.Enum):
        return bare[value]
    return value
