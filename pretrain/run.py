"""The run folder: its resolved config, its provenance, and whether to begin, continue or leave it as finished."""

import json
import os
import platform
import shlex
import subprocess
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import yaml

from pretrain.errors import ConfigError
from sharding.index import ShardIndex

# Settings that may differ when a run is continued: they say where and how fast, not what is computed.
FREE = ("run:", "shards:", "trainer.threads:", "trainer.device:", "trainer.save_every:", "loader.workers:", "tracking.")
_PACKAGES = ("spikeloom", "torch", "lightning", "numpy")


class Run:
    """One run folder and the resolved config it belongs to."""

    def __init__(self, folder: str | Path, config):
        self.folder = Path(folder)
        self.config = json.loads(json.dumps(asdict(config)))  # tuples become lists, as they do in the file
        self.resume_file = self.folder / "last.ckpt"
        self.checkpoint = self.folder / "checkpoint"

    @property
    def finished(self) -> bool:
        return bool(_read_json(self.folder / "provenance.json").get("finished"))

    def check(self) -> None:
        """Raise ConfigError where the folder belongs to a run of other settings, naming what differs."""
        kept = self.folder / "config.yaml"
        if not kept.exists():
            return
        different = [key for key in _differences(yaml.safe_load(kept.read_text()) or {}, self.config)
                     if not key.startswith(FREE)]
        if different:
            raise ConfigError(self.folder, f"a run with other settings is there ({', '.join(different[:8])})",
                              "give the settings it was begun with, or another run folder")

    def open(self, index: ShardIndex) -> bool:
        """Make or take up the folder; True where an interrupted run is to be continued.

        Raises ConfigError where its run was begun on other shards.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        begun_on = _read_json(self.folder / "provenance.json").get("shards", {}).get("digest", index.digest())
        if self.resume_file.exists() and begun_on != index.digest():
            raise ConfigError(self.folder, "its run was begun on other shards than these", "give another run folder")
        write_text(self.folder / "config.yaml", yaml.safe_dump(self.config, sort_keys=False))
        self._note(started=_now(), finished=None, **provenance(index))
        return self.resume_file.exists()

    def close(self, **facts) -> None:
        """Mark the run finished, with the facts of its end."""
        self._note(finished=_now(), **facts)

    def _note(self, **facts) -> None:
        path = self.folder / "provenance.json"
        known = _read_json(path)
        if known.get("started") and "started" in facts:
            facts["resumed"] = known.get("resumed", []) + [facts.pop("started")]
        write_text(path, json.dumps(known | facts, indent=1))


def provenance(index: ShardIndex) -> dict:
    """Versions, commit, command, machine and the shards' digest: what a result needs beside it."""
    return {
        "versions": versions(), "python": platform.python_version(), "commit": commit(),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "machine": {"system": platform.platform(), "processor": platform.processor() or platform.machine(),
                    "cores": os.cpu_count()},
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
            subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10, check=True)
            .stdout.strip() for words in questions)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    if Path(top) != root:  # installed inside somebody else's repository
        return "unknown"
    return head + ("+changes" if changes else "")


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    fresh = path.with_name(f".{path.name}.fresh")
    try:
        fresh.write_text(text)
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


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


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
