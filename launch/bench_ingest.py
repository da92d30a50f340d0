"""NWB files of many spikes, by `prepare` and by two yardsticks in turn -> spikes a second, memory, and how they compare.

The files are like those of dandiset 000688: 16 sessions of 60 to 200 units at 13 Hz, 17 million spikes in all, a cursor at
100 Hz to 1 kHz. `floor` reads the spike times with h5py, sorts them once as 64-bit keys and writes them raw, without
behaviour, checks or digests: no ingestion does less. `pynwb` opens and reads each file through pynwb's objects and goes on
as `prepare` does. Each runs in processes of its own, one file after another, in the same session of the machine; what
counts is the time at files, without the start of Python.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from data_prep.errors import DataError
from data_prep.nwb_bulk import BulkConfig, by_objects, least_work, write_bulk
from data_prep.recipe import Recipe
from launch.config import load

# Peak memory of a command. A child begins with the peak of the process that forks it: so a small one stands between.
WATCHER = (
    "import resource, subprocess, sys; code = subprocess.call(sys.argv[1:]);"
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)"
)
YARDSTICKS = ("floor", "pynwb")


@dataclass(frozen=True)
class IngestConfig:
    """The files that `bench ingest` makes and reads, where it is given none."""

    recipe: str = "dandisets/000688_co.yaml"
    "YAML of the recipe they are read by"
    sessions: int = 16
    "number of files"
    units: list[int] = field(default_factory=lambda: [60, 200])
    "units of the first and the last file; the others lie between"
    hz: float = 13.0
    "spikes of a unit a second"
    seconds: float = 629.0
    "length of a session"
    behaviour_hz: list[float] = field(default_factory=lambda: [100.0, 250.0, 500.0, 1000.0])
    "samples of behaviour a second, from file to file in turn"


@dataclass(frozen=True)
class Run:
    """One way through all files."""

    spikes: int
    seconds: float  # at files
    wall_s: float  # of the whole process
    peak_mb: float


def made(config: IngestConfig, folder: Path) -> Path:
    """The folder, below `folder`, of the files; those that are there are kept."""
    spread = "-".join(f"{number:g}" for number in (*config.units, config.hz, config.seconds, *config.behaviour_hz))
    target = folder / f"bulk-{config.sessions}x{spread}"
    low, high = config.units[0], config.units[-1]
    for k in range(config.sessions):
        path = target / f"sub-Bulk_ses-CO-{k:02d}.nwb"
        if not path.exists():
            units = round(low + (high - low) * k / max(config.sessions - 1, 1))
            hz = config.behaviour_hz[k % len(config.behaviour_hz)]
            size = BulkConfig(units, config.hz, config.seconds, hz, waveforms=0, seed=k)
            whole = write_bulk(folder / "making" / path.name, size)
            path.parent.mkdir(parents=True, exist_ok=True)
            whole.rename(path)
    return target


def compared(nwb: Path, recipe: str, repeats: int) -> Iterator[tuple[str, float, str, str]]:
    """(what, value, unit, of) of `prepare` over a file or folder, of the yardsticks, and of the ratios to them."""
    runs: dict[str, list[Run]] = {name: [] for name in ("prepare", *YARDSTICKS)}
    for _ in range(repeats):
        for name, found in runs.items():  # in turn, so that what else the machine does meets all alike
            found.append(_run(name, nwb, recipe))
    files = _files(nwb)
    size = sum(path.stat().st_size for path in files)
    of = f"{len(files)} files, {size / 1e6:,.0f} MB, {runs['prepare'][0].spikes:,} spikes, one process, median of {repeats}"
    speed = {name: median(run.spikes / run.seconds for run in found) for name, found in runs.items()}
    yield "ingestion", speed["prepare"], "spikes/s", of
    yield "ingestion", median(size / 1e6 / run.seconds for run in runs["prepare"]), "MB/s", of
    yield "prepare, from start to end", median(run.wall_s for run in runs["prepare"]), "s", of
    yield "prepare, peak memory", median(run.peak_mb for run in runs["prepare"]), "MB", of
    for name, label in zip(YARDSTICKS, ("the floor", "reading through pynwb's objects")):
        yield label, speed[name], "spikes/s", of
        yield f"{label}, peak memory", median(run.peak_mb for run in runs[name]), "MB", of
        yield f"ingestion against {label}", speed["prepare"] / speed[name], "ratio", of


def _files(nwb: Path) -> list[Path]:
    return [nwb] if nwb.is_file() else sorted(nwb.rglob("*.nwb"))


def _run(name: str, nwb: Path, recipe: str) -> Run:
    with TemporaryDirectory() as output:
        words = [recipe, f"source={nwb}", f"output={output}", "workers=0"]
        prepare = ["-m", "launch", "prepare", *words]
        own = ["-m", "launch.bench_ingest", name, str(nwb), recipe, output]
        began = time.perf_counter()
        command = [sys.executable, "-c", WATCHER, sys.executable, *(prepare if name == "prepare" else own)]
        done = subprocess.run(command, capture_output=True, text=True)
        wall_s = time.perf_counter() - began
        if done.returncode:
            raise DataError(nwb, f"refused: {done.stderr.strip()[-300:]}", "measure files that its recipe reads")
        rows = json.loads((Path(output) / "report.json").read_text(encoding="utf-8"))["rows"]
    peak = int(done.stdout.splitlines()[-1]) * (1024 if sys.platform != "darwin" else 1)  # KiB, on macOS bytes
    return Run(sum(row["spikes"] for row in rows), sum(row["took_s"] for row in rows), wall_s, peak / 1e6)


def measure(name: str, nwb: Path, recipe: str, output: Path) -> None:
    """Take every file by a yardstick, and write its times into the output, in the form of a report of `prepare`."""
    words, rows = load(Recipe, recipe, []), []
    for path in _files(nwb):
        began = time.perf_counter()
        spikes = least_work(path, output / "raw") if name == "floor" else by_objects(path, words, output)
        rows.append({"spikes": spikes, "took_s": time.perf_counter() - began})
    (output / "report.json").write_text(json.dumps({"rows": rows}), encoding="utf-8")


if __name__ == "__main__":
    measure(sys.argv[1], Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
