"""Sessions -> a shard root: shards, tables and, last of all, the index whose presence says that the root is whole."""

import json
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Self

import numpy as np

from data_prep.session import SPLITS, Session
from sharding.cut import PhaseCodes, cut
from sharding.errors import ShardError
from sharding.index import FORMAT, KIND, Refused, meta_digest
from sharding.segment import Segment
from sharding.tables import SEGMENT_SCHEMA, SESSION_SCHEMA, UNIT_SCHEMA, SessionRow, SignalRow, SignalStatistics
from sharding.writer import PARTIAL, ShardWriter, write_bytes, write_table


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

    Entering removes what an earlier run left in the folder, the index first, so that no rest is taken for whole.
    """

    def __init__(self, output: Path, settings: CutSettings):
        self.output, self.settings, self.codes = output, settings, PhaseCodes()
        self._sessions: list[dict] = []
        self._units: list[dict] = []
        self._order: dict[str, int] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        _clear(self.output)
        self._writers = {
            split: self._stack.enter_context(ShardWriter(self.output, split, self.settings.shard_bytes))
            for split in self.settings.splits
        }
        return self

    def __exit__(self, *error) -> None:
        self._stack.__exit__(*error)

    def cut(self, session: Session) -> list[Segment]:
        """All segments of a session, nothing written yet; raises ShardError for a session that cannot be taken."""
        if session.id in self._order:
            raise ShardError(session.id, "is there twice", "keep one of the stored sessions of this id")
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
        for segment in segments:
            self._writers[segment.split].write(segment)
        row = _session_row(session, segments, self.codes, source)
        self._order[session.id] = len(self._order)
        self._sessions.append(row.to_record())
        self._units += _unit_rows(session, segments, 3600 * sum(row.hours.values()))

    def finish(self, sources: list[Source], refused: list[Refused]) -> None:
        """Complete the last shards, write the tables and then index.json."""
        self._stack.close()
        shards = [file for writer in self._writers.values() for file in writer.files]
        segments = sorted(
            (row for writer in self._writers.values() for row in writer.rows),
            key=lambda row: (self._order[row["session"]], SPLITS.index(row["split"]), row["key"]),
        )
        tables = [
            write_table(self.output / "sessions.parquet", self._sessions, SESSION_SCHEMA),
            write_table(self.output / "units.parquet", self._units, UNIT_SCHEMA),
            write_table(self.output / "segments.parquet", segments, SEGMENT_SCHEMA),
        ]
        meta = {
            "kind": KIND,
            "format": FORMAT,
            "writer": version("spikeloom"),
            "config": self.settings.to_json(),
            "phases": self.codes.names,
            "totals": {
                "sessions": len(self._sessions),
                "units": len(self._units),
                "segments": len(segments),
                "spikes": sum(row["spikes"] for row in segments),
                "bytes": sum(file.bytes for file in shards),
            },
            "sources": [asdict(source) for source in sources],
            "refused": [asdict(entry) for entry in refused],
            "tables": [asdict(file) for file in tables],
            "shards": [asdict(file) for file in shards],
        }
        meta["digest"] = meta_digest(meta)
        write_bytes(self.output / "index.json", json.dumps(meta, indent=1).encode())


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
        source.file,
        source.sha256,
    )


def _unit_rows(session: Session, segments: list[Segment], seconds: float) -> list[dict]:
    spikes = np.zeros(len(session.units), np.int64)
    for segment in segments:
        spikes += np.bincount(segment.spikes.unit[: segment.owned_spikes], minlength=len(session.units))
    units = session.units
    return [
        {
            "id": f"{session.id}/{name}",
            "session": session.id,
            "region": region,
            "quality": quality,
            "spikes": int(count),
            "rate": count / seconds,
        }
        for name, region, quality, count in zip(units.id, units.region, units.quality, spikes)
    ]


def _clear(output: Path) -> None:
    """Make the folder and remove shards of an earlier run, the index first, so that no rest is taken for whole."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        old = [output / "index.json", *(output / f"{table}.parquet" for table in ("sessions", "units", "segments"))]
        for split in SPLITS:
            old += output.glob(f"{split}-[0-9][0-9][0-9][0-9][0-9][0-9].tar")
        for file in [*old, *output.glob(f".*{PARTIAL}")]:
            file.unlink(missing_ok=True)
    except OSError as error:
        raise ShardError(output, f"cannot be written to ({error.strerror})", "choose another output folder") from None
