"""Where and when a benchmark ran: command, machine, date and versions, as data and as one line of Markdown."""

import os
import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path


def circumstances() -> dict:
    """Command, machine, date (ISO 8601, UTC) and versions of this process."""
    return {
        "command": shlex.join(["spikeloom", *sys.argv[1:]]),
        "machine": machine(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name: version(name) for name in ("spikeloom", "torch", "numpy")},
    }


def in_a_line(facts: dict) -> str:
    """Those circumstances as the line above a table."""
    told = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    return f"`{facts['command']}`, {facts['date'][:10]}, {facts['machine']}, {told}"


def machine() -> str:
    """Processor, cores and memory in words."""
    names = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    kb = [int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")]
    memory = f", {kb[0] / 2**20:.0f} GiB" if kb else ""
    return f"{names[0] if names else platform.machine()}, {cores} cores{memory}, {platform.system()}"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
