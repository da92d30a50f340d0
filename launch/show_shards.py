"""The index of a shard root -> tables for a person: what is inside in all, by split, by subject and by session."""

import numpy as np

from data_prep.session import SPLITS
from launch.table import print_table
from sharding.index import ShardIndex

MOST_ROWS = 60  # more sessions than this are told by their subjects' sums, unless each is asked for


def show_shards(index: ShardIndex, root, every: bool = False) -> None:
    """Totals of a shard root, sums by split and subject, and its sessions: all of them where `every` is true."""
    print_table(f"shards in {root}", ["", ""], _facts(index))
    _show_splits(index)
    _show_subjects(index)
    if every or len(index.sessions) <= MOST_ROWS:
        _show_sessions(index)
    else:
        print(f"{len(index.sessions):,} sessions: sessions=true gives each a row")
    if index.refused:
        print_table("refused", ["file", "message"], [[row.file, row.message] for row in index.refused])


def _facts(index: ShardIndex) -> list[list]:
    total, units = index.summary(), index.unit_table.chosen().numbers(["held_out", "missing"])
    return [
        ["format", total["format"]],
        ["sessions", total["sessions"]],
        ["units", total["units"]],
        *([f"units {name.replace('_', ' ')}", int(flag.sum())] for name, flag in units.items() if flag.any()),
        ["hours", sum(total["hours"].values())],
        ["spikes", total["spikes"]],
        ["shard files", total["shards"]],
        ["MB", total["bytes"] / 1e6],
        ["bytes per spike, targets included", total["bytes"] / max(total["spikes"], 1)],
        ["segments", total["segments"]],
        ["longest window (s)", index.halo_us / 1e6],
        ["signals", ", ".join(total["signals"])],
        ["phases", ", ".join(total["phases"])],
    ]


def _show_splits(index: ShardIndex) -> None:
    segments, rows = index.segments, []
    for number, split in enumerate(SPLITS):
        mine, hours = segments.split == number, index.sessions.hours(split)
        counts = [int(segments.column(name)[mine].sum()) for name in ("spikes", "targets")]
        rows.append([split, int((hours > 0).sum()), float(hours.sum()), *counts, int(mine.sum())])
    print_table("splits", ["split", "sessions", "hours", "spikes", "targets", "segments"], rows)


def _show_subjects(index: ShardIndex) -> None:
    """Sums by dandiset and subject, where there is more than one of either."""
    hours, groups = np.stack([index.sessions.hours(split) for split in SPLITS], axis=1), {}
    for n, (*place, units, spikes) in enumerate(index.sessions.records("dandiset", "subject", "units", "spikes")):
        before = groups.get(tuple(place), np.zeros(3 + len(SPLITS)))
        groups[tuple(place)] = before + [1, units, spikes, *hours[n]]
    if len(groups) > 1:
        rows = [[*place, *map(int, sums[:3]), *sums[3:].tolist()] for place, sums in sorted(groups.items())]
        columns = ["dandiset", "subject", "sessions", "units", "spikes", *(f"{split} (h)" for split in SPLITS)]
        print_table("subjects", columns, rows)


def _show_sessions(index: ShardIndex) -> None:
    rows = [
        [
            row.id,
            row.subject,
            row.units,
            row.spikes,
            *(row.hours[split] * 60 for split in SPLITS),
            ", ".join(f"{name} {told.dims}-D {told.hz:.0f} Hz ({told.unit_of_measure})" for name, told in signals),
        ]
        for row in index.sessions
        for signals in [row.signals.items()]
    ]
    columns = ["session", "subject", "units", "spikes", *(f"{split} (min)" for split in SPLITS), "signals"]
    print_table("sessions", columns, rows)
