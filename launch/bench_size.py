"""What sessions take on disk, as NWB files, stored sessions and shards: megabytes, and bytes for each of their spikes."""

import json
from collections.abc import Iterator
from pathlib import Path

from data_prep.prepare import PrepareConfig, find_files
from sharding.index import ShardIndex

SPIKE_MEMBERS = ("spike_time.npy", "spike_unit.npy")


def sizes(reading: PrepareConfig, index: ShardIndex) -> Iterator[tuple[str, float, str, str]]:
    """(what, value, unit, of) of the files that were read, of the sessions made of them, and of their shards."""
    spikes = sum(row.spikes for row in index.sessions)
    nwb = sum(path.stat().st_size for path in find_files(reading)[1])
    sessions = sum(path.stat().st_size for path in Path(reading.output).glob("*.h5"))
    shards = sum(path.stat().st_size for path in Path(index.root).iterdir() if path.is_file())
    of = f"{len(index.sessions)} sessions, {spikes:,} spikes in shards"
    yield "NWB files", nwb / 1e6, "MB", of
    yield "stored sessions", sessions / 1e6, "MB", of
    yield "shards and index", shards / 1e6, "MB", of
    yield "shards against NWB", shards / nwb, "ratio", of
    report = json.loads((Path(reading.output) / "report.json").read_text(encoding="utf-8"))
    recorded = sum(row["spikes"] for row in report["rows"])
    alone = sum(int(index.segments.member(name)[1].clip(0).sum()) for name in SPIKE_MEMBERS)
    whole = f"all that is in them, behaviour too, over {recorded:,} spikes"
    yield "NWB files", nwb / recorded, "bytes/spike", whole
    yield "stored sessions", sessions / recorded, "bytes/spike", whole
    yield "shards and index", shards / spikes, "bytes/spike", f"likewise, over the {spikes:,} spikes of the splits"
    yield (
        "spikes in shards",
        alone / spikes,
        "bytes/spike",
        "their times and units alone, what is carried twice included",
    )
