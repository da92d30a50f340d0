"""Saves: everything a run needs to go on, in one safetensors file a step, whole or absent; the last few are kept.

    FOLDER/step-00000300.safetensors   tensors by name; in its metadata the facts (JSON) and a CRC-32 of facts and tensors
    FOLDER/.writing/                   where a file stands until it is whole

A file is written aside, flushed to the disk and renamed, and the folder flushed after it: a writer that is killed, or a
machine that loses its power, leaves the saves that were there. Tensors are full, in float32 and by the parameters' names,
whatever number of processes wrote them. Nothing is unpickled. What cannot be read is a CheckpointError of one line.
"""

import json
import logging
import os
import re
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from pretrain.errors import CheckpointError

FORMAT = 1
WRITING = ".writing"
LOG = logging.getLogger("spikeloom")
BEGIN_AGAIN = "remove the saves to begin the run again"


@dataclass(frozen=True)
class Save:
    """One save, open to be read; `facts` are those it was written with, beside "format" and "step"."""

    path: Path
    step: int
    facts: dict

    def tensors(self, part: str = "") -> dict[str, torch.Tensor]:
        """The tensors named PART/..., without that beginning; all, by their whole names, where no part is given.

        They are mapped from the file, which is never written to through them. Raises CheckpointError.
        """
        begin = f"{part}/" if part else ""
        with _reading(self.path), safetensors.safe_open(self.path, framework="pt") as file:
            return {name.removeprefix(begin): file.get_tensor(name) for name in file.keys() if name.startswith(begin)}

    def check(self) -> None:
        """Read all bytes; raises CheckpointError where they are not those that were written."""
        with _reading(self.path), safetensors.safe_open(self.path, framework="pt") as file:
            told = file.metadata()
        if told.get("crc32") != _checksum(told["facts"], self.tensors()):
            raise CheckpointError(self.path, "its bytes are not those that were written", BEGIN_AGAIN)


class Saves:
    """The saves of a run; one process writes them, any may read."""

    def __init__(self, folder: str | Path, keep: int = 2):
        self.folder, self.keep = Path(folder), keep

    def clear(self) -> None:
        """Remove what killed writers left unfinished; for the one process that is about to write."""
        shutil.rmtree(self.folder / WRITING, ignore_errors=True)

    def write(self, step: int, tensors: dict[str, torch.Tensor], facts: dict) -> Path:
        """Keep `tensors` and `facts` (JSON) as the save of a step, in the place of an older one, and of the saves before
        it the newest `keep - 1`. Saves of later steps go: the run was continued from before them.

        Raises CheckpointError where it cannot be written; then the saves are as they were.
        """
        path = self.folder / _name(step)
        aside = self.folder / WRITING / path.name
        text = json.dumps({"format": FORMAT, "step": step} | facts)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        with _writing(path):
            try:
                aside.parent.mkdir(parents=True, exist_ok=True)
                safetensors.torch.save_file(tensors, aside, {"facts": text, "crc32": _checksum(text, tensors)})
                aside.chmod(0o644)  # the library keeps others out; a save is as readable as its run folder
                flush(aside)
                os.replace(aside, path)
            finally:
                self.clear()
            flush(self.folder)
            self._prune(step)
        return path

    def steps(self) -> list[int]:
        """Steps that have a save, in order."""
        found = (re.fullmatch(r"step-(\d{8,})\.safetensors", path.name) for path in self.folder.glob("step-*"))
        return sorted(int(match[1]) for match in found if match)

    def at(self, step: int) -> Save:
        """The save of a step, its bytes not yet compared with those written; raises CheckpointError."""
        path = self.folder / _name(step)
        with _reading(path), safetensors.safe_open(path, framework="pt") as file:
            told = file.metadata() or {}
        try:
            facts = json.loads(told["facts"])
            number, written = facts["format"], facts["step"]
        except (KeyError, TypeError, ValueError):
            raise CheckpointError(path, "not a save of a run", "give the folder of a run") from None
        if number != FORMAT:
            do = "continue with the version of spikeloom that began the run"
            raise UnknownFormat(path, f"format {number!r}, not {FORMAT}", do)
        if written != step:
            raise CheckpointError(path, f"holds step {written}", "give it back its name")
        return Save(path, step, facts)

    def newest(self, until: int | None = None) -> Save | None:
        """The save of the latest step (not after `until`) whose bytes are those that were written; None without saves.

        A damaged one is passed over with a warning. Raises CheckpointError where none is whole, or another version wrote
        them.
        """
        steps = [step for step in reversed(self.steps()) if until is None or step <= until]
        fault = None
        for step in steps:
            try:
                save = self.at(step)
                save.check()
                return save
            except UnknownFormat:
                raise
            except CheckpointError as error:
                fault = error
                LOG.warning("%s: %s; it is passed over", error.where, error.found)
        if fault:
            raise CheckpointError(self.folder, f"no save is whole ({fault.where.name}: {fault.found})", BEGIN_AGAIN)
        return None

    def _prune(self, step: int) -> None:
        before = [other for other in self.steps() if other <= step]
        for other in self.steps():
            if other not in before[-self.keep :]:
                (self.folder / _name(other)).unlink(missing_ok=True)


class UnknownFormat(CheckpointError):
    """A save of another version."""


def _name(step: int) -> str:
    return f"step-{step:08d}.safetensors"


def _checksum(facts: str, tensors: dict[str, torch.Tensor]) -> str:
    """CRC-32, in hexadecimal, of the facts and of all names, kinds, shapes and bytes in the order of names."""
    crc = zlib.crc32(facts.encode())
    for name, tensor in sorted(tensors.items()):
        crc = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), crc)
        crc = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy(), crc)
    return f"{crc:08x}"


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(path, f"cannot be read ({error.strerror or error})", BEGIN_AGAIN) from None
    except safetensors.SafetensorError as error:
        raise CheckpointError(path, f"not whole ({str(error).partition(chr(10))[0]})", BEGIN_AGAIN) from None


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, safetensors.SafetensorError) as error:
        number = re.search(r"os error (\d+)", str(error))  # how the library tells one of the system
        found = getattr(error, "strerror", None) or (os.strerror(int(number[1])) if number else str(error))
        do = "free space and run again: it continues from the last saved step"
        raise CheckpointError(path, f"could not be written ({found})", do) from None


def flush(path: Path) -> None:
    """Have the system put a file's bytes, or a folder's names, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
