"""ShardIndex: what a shard root holds (sessions, units, segments, statistics), without opening a shard."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import compute, parquet

from data_prep.session import SPLITS
from sharding.errors import ConfigError, ShardError
from sharding.files import AGAIN, LocalFiles, RootFiles
from sharding.mapped import MappedMember, MappedShards
from sharding.segment import PHASE, TIME, VALUE
from sharding.tables import SegmentTable, SessionRow, SignalStatistics

FORMAT = 1
KIND = "spikeloom shards"


@dataclass(frozen=True)
class Refused:
    """A stored session that could not be sharded, and why."""

    file: str
    message: str


@dataclass(frozen=True)
class ShardIndex:
    """The sessions of a shard root, or some of them; every other product of the supply is made from this."""

    root: Path
    meta: dict  # index.json as written: format, config, phases, totals, files with bytes and sha256
    sessions: tuple[SessionRow, ...]
    segments: SegmentTable
    units: pa.Table  # tables.UNIT_SCHEMA
    limit_us: int | None = None  # microseconds of train data kept of each session; None is all

    @property
    def files(self) -> RootFiles:
        """Where the shard files are."""
        return LocalFiles(self.root)

    @staticmethod
    def open(root, verify: bool = False) -> "ShardIndex":
        """The index of a shard root; raises ShardError for what is missing, cut short or of another format.

        Sizes of all files and digests of the tables are always checked; `verify` checks the digests of the shards too.
        """
        root = Path(root)
        meta = read_meta(root)
        for entry in meta["tables"] + meta["shards"]:
            _check_file(root / entry["file"], entry, digest=verify or entry in meta["tables"])
        try:
            tables = {e["file"]: parquet.read_table(root / e["file"]) for e in meta["tables"]}
            sessions = tuple(map(SessionRow.from_record, tables["sessions.parquet"].to_pylist()))
            segments = SegmentTable(tables["segments.parquet"], tuple(s.id for s in sessions))
            index = ShardIndex(root, meta, sessions, segments, tables["units.parquet"])
            index._check_segments()
            return index
        except (KeyError, TypeError, pa.ArrowException) as error:
            raise ShardError(root, f"its tables do not fit format {FORMAT} ({error})", AGAIN) from None

    @property
    def session_ids(self) -> tuple[str, ...]:
        return self.segments.session_ids

    @property
    def phase_names(self) -> tuple[str, ...]:
        """Names by phase code; 0 is "random": no phase."""
        return tuple(self.meta["phases"])

    @property
    def refused(self) -> tuple[Refused, ...]:
        """Stored sessions that were not sharded when this root was written."""
        return tuple(Refused(**entry) for entry in self.meta["refused"])

    @property
    def halo_us(self) -> int:
        """The longest window that these shards serve, microseconds."""
        return self.meta["config"]["halo_us"]

    @cached_property
    def _by_id(self) -> dict[str, SessionRow]:
        return {session.id: session for session in self.sessions}

    def session(self, session_id: str) -> SessionRow:
        """One session; raises ConfigError where it is not here."""
        self._known([session_id])
        return self._by_id[session_id]

    @cached_property
    def _unit_rows(self) -> dict[str, tuple[int, int]]:
        of = self.units.column("session").to_numpy(zero_copy_only=False)
        new = np.flatnonzero(np.append(True, of[1:] != of[:-1])) if len(of) else np.zeros(0, int)
        return {of[a]: (a, b) for a, b in zip(new.tolist(), np.append(new[1:], len(of)).tolist())}

    def unit_ids(self, session_id: str) -> tuple[str, ...]:
        """Global ids "<session id>/<unit id>" of a session's units, in the order that its spikes count them."""
        first, stop = self._unit_rows.get(session_id, (0, 0))
        return tuple(self.units.column("id").slice(first, stop - first).to_pylist())

    def select(self, session_ids) -> "ShardIndex":
        """The same files with only these sessions, in the order of this index; raises ConfigError for an unknown one."""
        wanted = set(session_ids)
        self._known(wanted)
        rows = [row for row, session in enumerate(self.sessions) if session.id in wanted]
        ids = tuple(self.session_ids[row] for row in rows)
        units = compute.is_in(self.units.column("session"), value_set=pa.array(ids, pa.string()))
        return replace(
            self,
            sessions=tuple(self.sessions[row] for row in rows),
            units=self.units.filter(units),
            segments=self.segments.take(np.isin(self.segments.session, rows), ids),
        )

    def matching(self, patterns) -> "ShardIndex":
        """The sessions whose id fits any glob pattern; raises ConfigError for a pattern that fits none."""
        patterns, ids = [patterns] if isinstance(patterns, str) else list(patterns), []
        for pattern in patterns:
            fitting = [name for name in self.session_ids if fnmatchcase(name, pattern)]
            if not fitting:
                raise ConfigError(self.root, f"no session fits {pattern!r}", f"choose among {_some(self.session_ids)}")
            ids += fitting
        return self.select(ids)

    def limited(self, train_minutes: float) -> "ShardIndex":
        """Only the first minutes of each session's train split, in time order, the last stretch clipped.

        Other splits stay whole; counts and statistics of sessions are told anew from what is left, those of units are
        not. Raises ConfigError for no time.
        """
        if not train_minutes > 0:
            raise ConfigError("train_minutes", f"is {train_minutes}", "give a positive number of minutes")
        limit = round(train_minutes * 60e6)
        table, whole = self.segments, self.segments.intervals("train")
        left = np.zeros(len(whole.first), np.int64)
        used = np.zeros(len(self.sessions), np.int64)
        for i, session in enumerate(table.session[whole.first]):  # an interval is minutes long: few of them
            left[i] = min(whole.stop_us[i] - whole.start_us[i], limit - used[session])
            used[session] += left[i]
        stop = np.full(len(table), np.iinfo(np.int64).max)
        rows = np.concatenate([np.arange(a, a + n) for a, n in zip(whole.first, whole.segments)] or [[]]).astype(int)
        stop[rows] = np.repeat(whole.start_us + left, whole.segments)
        clipped = {name: np.minimum(table.column(name), stop) for name in ("interval_stop_us", "stop_us", "carry_us")}
        kept = table.start_us < stop
        segments = table.replaced(**clipped).take(kept, self.session_ids)
        shorter = np.flatnonzero((clipped["stop_us"] < table.stop_us)[kept])
        cut = replace(self, segments=_recounted(replace(self, segments=segments), shorter), limit_us=limit)
        return replace(cut, sessions=tuple(_retold(cut)))

    def mapped(self) -> MappedShards:
        """The shard files, mapped when first read."""
        return MappedShards(self.files, self.meta["shards"])

    def digest(self) -> str:
        """sha256 that changes with any byte of the root, the selection of sessions and the limit: for provenance."""
        chosen = json.dumps([self.meta["digest"], self.session_ids, self.limit_us])
        return hashlib.sha256(chosen.encode()).hexdigest()

    def summary(self) -> dict:
        """Totals of the sessions in this index: what `show` prints."""
        return {
            "sessions": len(self.sessions),
            "units": sum(s.units for s in self.sessions),
            "spikes": int(self.segments.column("spikes").sum()),
            "targets": int(self.segments.column("targets").sum()),
            "hours": {split: sum(s.hours[split] for s in self.sessions) for split in SPLITS},
            "segments": len(self.segments),
            "shards": len(self.meta["shards"]),
            "bytes": sum(entry["bytes"] for entry in self.meta["shards"]),
            "signals": sorted({name for s in self.sessions for name in s.signals}),
            "phases": list(self.phase_names),
            "format": self.meta["format"],
        }

    def _check_segments(self) -> None:
        """Raise ShardError where segments name what is not there: such an index would lead readers astray."""
        files = {entry["file"]: entry["bytes"] for entry in self.meta["shards"]}
        shard = self.segments.codes("shard", tuple(files))
        ends = self.segments.member_ends()
        if len(shard) and min(shard.min(), self.segments.session.min(), self.segments.split.min()) < 0:
            raise ShardError(self.root, "its segments name a shard, session or split that is not there", AGAIN)
        if (ends > np.array([*files.values(), 0])[shard]).any():
            raise ShardError(self.root, "its segments lie beyond the end of their shards", AGAIN)

    def _known(self, ids) -> None:
        for name in ids:
            if name not in self._by_id:
                raise ConfigError(self.root, f"holds no session {name!r}", f"choose among {_some(self.session_ids)}")


def read_meta(root: Path) -> dict:
    """index.json, checked against its own digest; raises ShardError."""
    path = root / "index.json"
    try:
        meta = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ShardError(root, "holds no index.json, so no complete shards", "run `spikeloom shard` into it") from None
    except (OSError, ValueError) as error:
        raise ShardError(path, f"cannot be read ({error})", AGAIN) from None
    if not isinstance(meta, dict) or meta.get("kind") != KIND:
        raise ShardError(path, "is not an index of Spikeloom shards", "give the folder that `spikeloom shard` wrote")
    if meta.get("format") != FORMAT:
        raise ShardError(
            path,
            f"is of format {meta.get('format')}, this version reads format {FORMAT}",
            "write the shards again with this version, or use the version that wrote them",
        )
    if meta.get("digest") != meta_digest(meta):
        raise ShardError(path, "was changed after it was written", AGAIN)
    for entry in meta["tables"] + meta["shards"]:
        if Path(entry["file"]).name != entry["file"]:
            raise ShardError(path, f"names a file outside its folder, {entry['file']!r}", AGAIN)
    return meta


def meta_digest(meta: dict) -> str:
    """sha256 of index.json without its own digest."""
    rest = {name: value for name, value in meta.items() if name != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _check_file(path: Path, entry: dict, digest: bool) -> None:
    try:
        size = path.stat().st_size
        if size != entry["bytes"]:
            raise ShardError(path, f"has {size} bytes, its index says {entry['bytes']}", AGAIN)
        if digest:
            with open(path, "rb") as stream:
                if hashlib.file_digest(stream, "sha256").hexdigest() != entry["sha256"]:
                    raise ShardError(path, "its sha256 is not what the index says", AGAIN)
    except FileNotFoundError:
        raise ShardError(path, "is missing", AGAIN) from None
    except OSError as error:
        raise ShardError(path, f"cannot be read ({error.strerror})", AGAIN) from None


def _recounted(index: ShardIndex, rows: np.ndarray) -> SegmentTable:
    """The segments with spikes and targets counted again in those rows."""
    segments, shards = index.segments, index.mapped()
    spikes, targets = segments.column("spikes").copy(), segments.column("targets").copy()
    names = {name for session in index.sessions for name in session.signals}
    times = [MappedMember(shards, segments, f"{name}.time.npy") for name in names]
    spike_time = MappedMember(shards, segments, "spike_time.npy")
    for row in rows.tolist():
        owned = segments.stop_us[row] - segments.start_us[row]
        spikes[row] = np.searchsorted(spike_time.read(row, TIME), owned)
        targets[row] = sum(np.searchsorted(time.read(row, TIME), owned) for time in times if time.bytes_of(row) > 0)
    return segments.replaced(spikes=spikes, targets=targets)


def _retold(index: ShardIndex) -> Iterator[SessionRow]:
    """Session rows with counts, train hours and statistics of the index's own segments."""
    segments, outlier = index.segments, index.phase_names.index("outlier") if "outlier" in index.phase_names else -1
    shards, counts = index.mapped(), {}
    for name in ("spikes", "targets"):
        counts[name] = np.bincount(segments.session, segments.column(name), len(index.sessions)).astype(int).tolist()
    members = {
        name: [MappedMember(shards, segments, f"{name}.{part}.npy") for part in ("time", "value", "phase")]
        for name in {name for session in index.sessions for name in session.signals}
    }
    train = segments.split == SPLITS.index("train")
    for row, session in enumerate(index.sessions):
        mine, told = np.flatnonzero(train & (segments.session == row)), {}
        for name, signal in session.signals.items():
            parts = [np.zeros((0, signal.dims), np.float32)]
            for segment in mine.tolist():
                time, value, phase = (m.read(segment, t) for m, t in zip(members[name], (TIME, VALUE, PHASE)))
                n = int(np.searchsorted(time, segments.stop_us[segment] - segments.start_us[segment]))
                parts.append(value.reshape(-1, signal.dims)[:n][phase[:n] != outlier])
            told[name] = SignalStatistics.of(np.concatenate(parts))
        hours = float((segments.stop_us[mine] - segments.start_us[mine]).sum() / 3600e6)
        yield replace(
            session,
            statistics=told,
            hours={**session.hours, "train": hours},
            **{name: counts[name][row] for name in counts},
        )


def _some(names) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
