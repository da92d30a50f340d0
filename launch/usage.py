"""Help texts: the verbs at a glance, and the settings of one verb from its config dataclass."""

import textwrap
from dataclasses import is_dataclass

from launch.fields import Field, field_docs, schema_of, type_name

WIDTH = 110


def overview(verbs: dict) -> str:
    """What `spikeloom --help` prints."""
    lines = [
        "Spikeloom weaves many recordings into one model: NWB sessions in, a finetuned model and its report out.",
        "",
        "usage: spikeloom VERB [CONFIG] [key=value ...] [--dry-run]",
        "",
    ]
    lines += [f"  {name:<10} {verb.help}" for name, verb in verbs.items()]
    lines += [
        "",
        "  spikeloom VERB --help     the settings of a verb: meaning, type and default",
        "  --dry-run                 print the resolved config and what would be done, do nothing",
        "  --version                 print the version",
        "",
        "A section takes a YAML file: spikeloom pretrain FILE model=model/poyo_1m.yaml model.depth=8",
    ]
    return "\n".join(lines)


def verb_usage(name: str, verb, schema: type) -> str:
    """What `spikeloom VERB --help` prints: every setting, one level of sections deep."""
    word = verb.word + " " if verb.word else ""
    taken = f"Without CONFIG it takes configs/{verb.file}; what a file does not say is as below."
    lines = [
        verb.help,
        "",
        f"usage: spikeloom {name} {word}[key=value ...] [--dry-run]",
        f"e.g.   {verb.example}",
        "",
        *([taken, ""] if verb.file else []),
        "settings:",
    ]
    return "\n".join(lines + _settings(schema, "", deeper=True))


def _settings(cls: type, prefix: str, deeper: bool) -> list[str]:
    docs, lines = field_docs(cls), []
    for name, field in schema_of(cls).items():
        doc = docs.get(name, "")
        if field.classes is None:
            lines += _entry(prefix + name, type_name(field.hint), _default(field), doc)
            continue
        lines += _entry(prefix + name, _section_words(field), None if field.make else "must be given", doc)
        if deeper:
            lines += _settings(_shown_class(field), f"{prefix}{name}.", deeper=False)
    return lines


def _entry(key: str, kind: str, default: str | None, doc: str) -> list[str]:
    head = f"  {key}  ({kind})" + (f" = {default}" if default is not None else "")
    return [head, *textwrap.wrap(doc, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)]


def _section_words(field: Field) -> str:
    choices = f", name: {' | '.join(field.classes)}" if field.is_choice else ""
    return f"section{choices}" + (", or null" if field.optional else "")


def _shown_class(field: Field) -> type:
    default = field.make() if field.make else None
    return type(default) if is_dataclass(default) else next(iter(field.classes.values()))


def _default(field: Field) -> str:
    if field.make is None:
        return "must be given"
    value = field.make()
    if isinstance(value, dict) and any(map(is_dataclass, value.values())):
        return "{" + ", ".join(value) + "}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
