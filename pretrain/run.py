"""The run folder: its resolved config, its provenance, and whether to begin, continue or leave it as finished."""

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import yaml

from pretrain.errors import ConfigError, DataError
from pretrain.saves import Saves
from sharding.index import ShardIndex

# Settings that may differ when a run is continued: they say where and how fast, not what is computed.
FREE = (
    "run:",
    "shards:",
    "verify:",
    "cache.",
    "trainer.threads:",
    "trainer.device:",
    "trainer.devices:",
    "trainer.strategy",
    "trainer.accumulate:",
    "trainer.save_every:",
    "trainer.keep:",
    "loader.workers:",
    "loader.prefetch:",
    "tracking.",
)
OLD_SAVE = "last.ckpt"
_PACKAGES = ("spikeloom", "torch", "lightning", "deepspeed", "numpy")


class Run:
    """One run folder and the resolved config it belongs to."""

    def __init__(self, folder: str | Path, config):
        self.folder = Path(folder)
        self.config = json.loads(json.dumps(asdict(config)))  # tuples become lists, as they do in the file
        self.saves = self.folder / "saves"
        self.checkpoint = self.folder / "checkpoint"

    @property
    def finished(self) -> bool:
        return bool(_read_json(self.folder / "provenance.json").get("finished"))

    def check(self) -> None:
        """Raise ConfigError where the folder belongs to a run of other settings, naming what differs."""
        there = settings_of(self.folder)
        different = [key for key in _differences(there, self.config) if not key.startswith(FREE)]
        if there and different:
            raise ConfigError(
                self.folder,
                f"a run with other settings is there ({', '.join(different[:8])})",
                "give the settings it was begun with, or another run folder",
            )

    def open(self, index: ShardIndex) -> None:
        """Make or take up the folder. Raises ConfigError where its run was begun on other shards, or by an older version."""
        self.folder.mkdir(parents=True, exist_ok=True)
        begun_on = _read_json(self.folder / "provenance.json").get("shards", {}).get("digest", index.digest())
        if self.saves.exists() and begun_on != index.digest():
            raise ConfigError(self.folder, "its run was begun on other shards than these", "give another run folder")
        if (self.folder / OLD_SAVE).exists():
            found = f"holds {OLD_SAVE}, an unfinished run of an older version"
            raise ConfigError(self.folder, found, "finish it with that version, or give another run folder")
        Saves(self.saves).clear()
        for left in self.folder.glob(f".{self.checkpoint.name}.*"):  # of writers that were killed
            shutil.rmtree(left, ignore_errors=True)
        write_whole(self.folder / "config.yaml", yaml.safe_dump(self.config, sort_keys=False).encode())
        self._note(started=now(), finished=None, **provenance(index))

    def close(self, **facts) -> None:
        """Mark the run finished, with the facts of its end."""
        self._note(finished=now(), **facts)

    def _note(self, **facts) -> None:
        path = self.folder / "provenance.json"
        known = _read_json(path)
        if known.get("started") and "started" in facts:
            facts["resumed"] = known.get("resumed", []) + [facts.pop("started")]
        write_whole(path, json.dumps(known | facts, indent=1).encode())


def provenance(index: ShardIndex) -> dict:
    """Versions, commit, command, machine and the shards' digest: what a result needs beside it."""
    return {
        "versions": versions(),
        "python": platform.python_version(),
        "commit": commit(),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "machine": {
            "system": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
        },
        "shards": {"root": str(index.root), "digest": index.digest()},
    }


def versions() -> dict[str, str]:
    """Versions of spikeloom and of the packages that decide its numbers."""
    out = {}
    for package in _PACKAGES:
        try:
            out[package] = version(package)
        except PackageNotFoundError:  # run from a folder, not installed
            out[package] = "unknown"
    return out


def commit() -> str:
    """The git commit of the code that runs, with "+changes" where files differ from it; "unknown" outside git."""
    root = Path(__file__).resolve().parent.parent
    questions = (("rev-parse", "--show-toplevel"), ("rev-parse", "HEAD"), ("status", "--porcelain", "-uno"))
    try:
        top, head, changes = (
            subprocess.run(
                ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10, check=True
            ).stdout.strip()
            for words in questions
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    if Path(top) != root:  # installed inside somebody else's repository
        return "unknown"
    return head + ("+changes" if changes else "")


def write_whole(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; raises DataError where there is no room or no right to."""
    fresh = path.with_name(f".{path.name}.fresh")
    try:
        fresh.write_bytes(data)
        os.replace(fresh, path)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise DataError(path, f"could not be written ({error.strerror})", "free space or take another folder") from None


def settings_of(folder: str | Path) -> dict:
    """The resolved config of the run that a folder holds; {} where it holds none."""
    path = Path(folder) / "config.yaml"
    try:
        found = yaml.safe_load(path.read_text()) if path.exists() else {}
    except (yaml.YAMLError, UnicodeDecodeError):
        found = None
    if not isinstance(found, dict):
        raise ConfigError(path, "not the config of a run", "take another run folder")
    return found


def _differences(old: dict, new: dict, above: str = "") -> list[str]:
    out = []
    for key in dict.fromkeys([*old, *new]):
        a, b, name = old.get(key), new.get(key), f"{above}{key}"
        if isinstance(a, dict) and isinstance(b, dict):
            out += _differences(a, b, f"{name}.")
        elif a != b:
            out.append(f"{name}: {a!r} there, {b!r} here")
    return out


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def now() -> str:
    """The time, to the second, in ISO 8601 (UTC)."""
    return datetime.now(UTC).isoformat(timespec="seconds")
