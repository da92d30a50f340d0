"""Verb: what a command of the line is made of; each file verb_*.py and launch/commands.py give some."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Verb:
    """One command: help line, the schema of its config, what runs, and the lines of a dry run."""

    help: str
    example: str
    schema: Callable[[], type]
    run: Callable[[Any], int]
    plan: Callable[[Any], list[str]]
    word: str = "[CONFIG]"  # what stands after the verb
    positional: str | None = None  # the field that this word sets; None: it is the file of the whole config
    many: bool = False  # the field is a list, and any number of words may stand there
    needs: str = ""  # what is missing when nothing was given; "" where the defaults suffice
    file: str | None = None  # the shipped config that is taken where none is given; None: the schema's defaults
    # How the words after the verb become its file and settings, where not CONFIG key=value.
    reads: Callable[[list[str]], tuple[str | None, list[str]]] | None = None
