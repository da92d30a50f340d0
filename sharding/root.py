"""Sessions -> a shard root: shards, tables and, last of all, the index whose presence says that the root is whole."""

import json
import re
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Self

import numpy as np

from data_prep.session import SPLITS, Session
from sharding.cut import NO_PHASE, PhaseCodes, cut
from sharding.errors import ShardError
from sharding.index import ShardIndex
from sharding.index_meta import FORMAT, INDEX, KIND, TABLES, Refused, meta_digest
from sharding.segment import Segment
from sharding.tables import SEGMENT_SCHEMA, UNIT_SCHEMA
from sharding.tables_rows import SESSION_SCHEMA, SessionRow, SignalRow, SignalStatistics
from sharding.writer import PARTIAL, ShardWriter, write_bytes
from sharding.writer_tables import Records, standing, write_table

_SHARD = re.compile(rf"({'|'.join(SPLITS)})-(\d{{6,}})\.tar")
# What a run writes; tables of format 1 have no digest in their names.
OURS = re.compile(rf"{_SHARD.pattern}|({'|'.join(TABLES)})(-[0-9a-f]{{8}})?\.parquet|\..*{re.escape(PARTIAL)}")


@dataclass(frozen=True)
class CutSettings:
    """What decides the bytes of the shards, beside the sessions."""

    segment_us: int = 60_000_000  # the longest stretch of starts that a segment owns
    halo_us: int = 1_000_000  # the longest window that is served
    shard_bytes: int = 128_000_000
    splits: tuple[str, ...] = SPLITS

    def to_json(self) -> dict:
        return {**asdict(self), "splits": list(self.splits)}


@dataclass(frozen=True)
class Source:
    """The file that a session was read from."""

    file: str
    sha256: str


class RootWriter:
    """Writes one shard root. Use as a context, and call finish() inside it when all sessions are added.

    With `kept`, the index of what stands in the folder, sessions are added to those: its shards stay as they are, new
    ones are numbered on. Entering removes what earlier runs left, without `kept` the index first, so that no rest is
    taken for whole. Only one process may do so at a time: see root_lock.
    """

    def __init__(self, output: Path, settings: CutSettings, kept: ShardIndex | None = None):
        self.output, self.settings, self.kept = output, settings, kept
        self.codes = PhaseCodes(kept.meta["phases"] if kept else (NO_PHASE,))
        self._ids = set(kept.session_ids) if kept else set()
        self._sessions, self._units, self._segments = map(Records, (SESSION_SCHEMA, UNIT_SCHEMA, SEGMENT_SCHEMA))
        self._spikes, self._stack = 0, ExitStack()

    def __enter__(self) -> Self:
        sweep(self.output, self.kept.meta if self.kept else None)
        entries = self.kept.meta["shards"] if self.kept else []
        self._writers = {
            split: self._stack.enter_context(
                ShardWriter(self.output, split, self.settings.shard_bytes, next_number(split, entries))
            )
            for split in self.settings.splits
        }
        return self

    def __exit__(self, *error) -> None:
        self._stack.__exit__(*error)

    @property
    def count(self) -> int:
        """Sessions of the root as it will be."""
        return len(self._ids)

    def cut(self, session: Session) -> list[Segment]:
        """All segments of a session, nothing written yet; raises ShardError for a session that cannot be taken."""
        if session.id in self._ids:
            raise ShardError(
                session.id,
                "is there already, from another file or an earlier state of this one",
                "keep one of the two, or shard without append to replace it",
            )
        segments = list(
            cut(
                session,
                segment_us=self.settings.segment_us,
                halo_us=self.settings.halo_us,
                splits=self.settings.splits,
                codes=self.codes,
            )
        )
        if not segments:
            raise ShardError(
                session.id,
                f"has no time in the splits {', '.join(self.settings.splits)}",
                "look at its recipe's splits",
            )
        return segments

    def add(self, session: Session, segments: list[Segment], source: Source) -> None:
        """Write the segments that cut() gave; raises ShardError where the disk is full."""
        self._segments.add([self._writers[segment.split].write(segment) for segment in segments])
        row = _session_row(session, segments, self.codes, source)
        self._ids.add(session.id)
        self._spikes += row.spikes
        self._sessions.add([row.to_record()])
        self._units.add(_unit_rows(session, segments, 3600 * sum(row.hours.values())))

    def finish(self, refused: list[Refused]) -> None:
        """Complete the last shards, write the tables and then index.json."""
        self._stack.close()
        kept = self.kept
        fresh = {"sessions": self._sessions, "units": self._units, "segments": self._segments}
        tables = {
            name: write_table(
                self.output, name, chain(standing(kept, name, records.schema), records.tables()), records.schema
            )
            for name, records in fresh.items()
        }
        shards = [asdict(file) for writer in self._writers.values() for file in writer.files]
        totals = {name: records.count for name, records in fresh.items()}
        totals |= {"spikes": self._spikes, "bytes": sum(entry["bytes"] for entry in shards)}
        if kept:
            shards = kept.meta["shards"] + shards
            totals = {name: value + kept.meta["totals"][name] for name, value in totals.items()}
        write_index(
            self.output,
            {
                "config": self.settings.to_json(),
                "phases": self.codes.names,
                "totals": totals,
                "refused": [asdict(entry) for entry in refused],
                "tables": {name: asdict(file) for name, file in tables.items()},
                "shards": shards,
            },
        )


def write_index(output: Path, meta: dict) -> None:
    """index.json of a root whose shards and tables are there: the moment at which it holds what `meta` tells."""
    meta = {"kind": KIND, "format": FORMAT, "writer": version("spikeloom"), **meta}
    meta["digest"] = meta_digest(meta)
    write_bytes(output / INDEX, json.dumps(meta, indent=1).encode())


def next_number(split: str, entries: list[dict]) -> int:
    """The number of the first new shard of a split: one above those that these entries of index.json name."""
    found = (_SHARD.fullmatch(entry["file"]) for entry in entries)
    return max((int(name[2]) + 1 for name in found if name and name[1] == split), default=0)


def sweep(output: Path, meta: dict | None = None) -> None:
    """Make the folder and remove shards, tables and half-written files of earlier runs, except what `meta` names.

    Without `meta` all go, the index first, so that no rest is taken for whole. Raises ShardError.
    """
    named = {entry["file"] for entry in [*meta["tables"].values(), *meta["shards"]]} | {INDEX} if meta else set()
    try:
        output.mkdir(parents=True, exist_ok=True)
        if INDEX not in named:
            (output / INDEX).unlink(missing_ok=True)
        for name in sorted(path.name for path in output.iterdir()):
            if OURS.fullmatch(name) and name not in named:
                (output / name).unlink(missing_ok=True)
    except OSError as error:
        raise ShardError(output, f"cannot be written to ({error.strerror})", "choose another output folder") from None


def _session_row(session: Session, segments: list[Segment], codes: PhaseCodes, source: Source) -> SessionRow:
    outlier = codes.names.index("outlier") if "outlier" in codes.names else -1
    signals, statistics = {}, {}
    for name, signal in session.signals.items():
        dims = signal.value.shape[1]
        parts = [np.zeros((0, dims), np.float32)]
        for segment in segments:
            if segment.split == "train":
                part, owned = segment.signals[name], segment.owned_samples(name)
                parts.append(part.value[:owned][part.phase[:owned] != outlier])
        steps = np.diff(signal.time)
        signals[name] = SignalRow(dims, signal.unit_of_measure, float(1 / np.median(steps)) if len(steps) else 0.0)
        statistics[name] = SignalStatistics.of(np.concatenate(parts))
    hours = {split: sum((s.stop_us - s.start_us) / 3600e6 for s in segments if s.split == split) for split in SPLITS}
    return SessionRow(
        session.id,
        session.dandiset,
        session.provenance.get("version", ""),
        session.provenance.get("asset", ""),
        session.subject,
        session.paradigm,
        len(session.units),
        sum(s.owned_spikes for s in segments),
        sum(s.owned_targets for s in segments),
        hours,
        signals,
        statistics,
        {name: scale for name, scale in session.target_scale.items() if name in signals},
        dict(session.loss_weights),
        tuple(session.eval_phases),
        tuple(codes.names),
        source.file,
        source.sha256,
    )


def _unit_rows(session: Session, segments: list[Segment], seconds: float) -> list[dict]:
    spikes = np.zeros(len(session.units), np.int64)
    for segment in segments:
        spikes += np.bincount(segment.spikes.unit[: segment.owned_spikes], minlength=len(session.units))
    units, count = session.units, len(session.units)
    return [
        {
            "id": f"{session.id}/{name}",
            "session": session.id,
            "region": region,
            "quality": quality,
            "electrode": electrode,
            "held_out": bool(held_out),
            "missing": bool(missing),
            "spikes": own,
            "rate": own / seconds,
        }
        for name, region, quality, electrode, held_out, missing, own in zip(
            units.id,
            units.region,
            units.quality,
            units.electrode or ("",) * count,
            units.held_out or (False,) * count,
            units.missing or (False,) * count,
            spikes.tolist(),
        )
    ]
