"""NWB files, simulated where none are given, into the shards that a benchmark measures on."""

import sys
from pathlib import Path

from data_prep.errors import DataError
from data_prep.prepare import PrepareConfig, prepare
from data_prep.synthetic import SyntheticConfig, write_sessions
from launch.config import load
from sharding.index import ShardIndex
from sharding.shard import ShardConfig, shard

SYNTHETIC_RECIPE = "dandisets/synthetic.yaml"


def simulated(folder: Path, sessions: int, minutes: float) -> Path:
    """The folder, below `folder`, of that many simulated sessions as NWB files; those that are there are kept."""
    target = folder / f"nwb-{sessions}x{minutes:g}min"
    if not (target / "truth.json").exists():
        print(f"simulating {sessions} session{'s' if sessions > 1 else ''} ...", file=sys.stderr)
        write_sessions(target, SyntheticConfig(minutes=minutes, sessions=sessions))
    return target


def reading_of(nwb: Path | str, recipe: str, folder: Path) -> PrepareConfig:
    """How those NWB files are read into FOLDER/sessions; raises ConfigError."""
    paths = [f"source={nwb}", f"output={folder / 'sessions'}"]
    return load(PrepareConfig, recipe, paths, positional="recipe")


def shards_of(reading: PrepareConfig, folder: Path) -> ShardIndex:
    """Prepare what the reading names and shard it into FOLDER/shards; raises DataError where no file could be read."""
    report = prepare(reading)
    if not any(row.status != "refused" for row in report.rows):
        raise DataError(reading.source, f"none of its {len(report.rows)} files could be read", report.rows[0].message)
    return shard(ShardConfig(sessions=reading.output, output=str(folder / "shards")))
