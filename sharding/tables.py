"""Rows of the shard index: sessions, their signals and segments, as dataclasses and as parquet tables."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pyarrow as pa

from data_prep.session import SPLITS

_FLOATS = pa.list_(pa.float64())
_SIGNAL = pa.struct(
    [
        ("name", pa.string()),
        ("dims", pa.int32()),
        ("unit_of_measure", pa.string()),
        ("hz", pa.float64()),
        ("samples", pa.int64()),
        ("mean", _FLOATS),
        ("std", _FLOATS),
        ("robust_std", _FLOATS),
        ("scale", pa.float64()),
    ]
)
SESSION_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("dandiset", pa.string()),
        ("version", pa.string()),
        ("asset", pa.string()),
        ("subject", pa.string()),
        ("paradigm", pa.string()),
        ("units", pa.int64()),
        ("spikes", pa.int64()),
        ("targets", pa.int64()),
        ("hours", pa.struct([(split, pa.float64()) for split in SPLITS])),
        ("signals", pa.list_(_SIGNAL)),
        ("loss_weights", pa.list_(pa.struct([("phase", pa.string()), ("weight", pa.float64())]))),
        ("eval_phases", pa.list_(pa.string())),
        ("source", pa.string()),
        ("source_sha256", pa.string()),
    ]
)
UNIT_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("session", pa.string()),
        ("region", pa.string()),
        ("quality", pa.string()),
        ("spikes", pa.int64()),
        ("rate", pa.float64()),
    ]
)
_TEXT = pa.dictionary(pa.int32(), pa.string())
SEGMENT_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("session", _TEXT),
        ("split", _TEXT),
        ("shard", _TEXT),
        ("interval", pa.int32()),
        ("interval_start_us", pa.int64()),
        ("interval_stop_us", pa.int64()),
        ("start_us", pa.int64()),
        ("stop_us", pa.int64()),
        ("carry_us", pa.int64()),
        ("spikes", pa.int64()),
        ("targets", pa.int64()),
        # a member an entry, in the order of the tar; an array fills the last bytes of its member
        ("member", pa.list_(_TEXT)),
        ("offset", pa.list_(pa.int64())),
        ("bytes", pa.list_(pa.int64())),
        ("array_bytes", pa.list_(pa.int64())),
    ]
)


@dataclass(frozen=True)
class SignalStatistics:
    """Of the train samples outside outliers: mean, std, robust_std (K,) float64; NaN where there is no sample.

    robust_std is the span between the 2.5 % and 97.5 % quantiles over 3.92, which is the std of a Gaussian. A median
    absolute deviation would vanish for velocities, because an animal rests more than half of the time.
    """

    samples: int
    mean: np.ndarray
    std: np.ndarray
    robust_std: np.ndarray

    @staticmethod
    def of(value: np.ndarray) -> "SignalStatistics":
        """Statistics of values (n, K)."""
        if not len(value):
            nothing = np.full(value.shape[1], np.nan)
            return SignalStatistics(0, nothing, nothing, nothing)
        exact = value.astype(np.float64)
        low, high = np.quantile(exact, (0.025, 0.975), axis=0)
        return SignalStatistics(len(value), exact.mean(axis=0), exact.std(axis=0), (high - low) / 3.92)


@dataclass(frozen=True)
class SignalRow:
    """What a session's signal is: dims K, unit of measure, median rate in Hz."""

    dims: int
    unit_of_measure: str
    hz: float


@dataclass(frozen=True)
class SessionRow:
    """A session of a shard root."""

    id: str
    dandiset: str
    version: str
    asset: str
    subject: str
    paradigm: str
    units: int
    spikes: int  # in all splits, halos not counted
    targets: int  # samples of all signals in all splits, halos not counted
    hours: dict[str, float]  # split -> hours covered
    signals: dict[str, SignalRow]
    statistics: dict[str, SignalStatistics]  # signal -> over the train split
    target_scale: dict[str, float]  # signal -> divisor of the literature, where the recipe gives one
    loss_weights: dict[str, float]  # phase -> weight the recipe advises (1 if absent)
    eval_phases: tuple[str, ...]  # phases the recipe evaluates on; () is all
    source: str  # name of the stored session's file
    source_sha256: str

    def to_record(self) -> dict:
        record = {name: getattr(self, name) for name in SESSION_SCHEMA.names if name not in ("signals", "loss_weights")}
        record["eval_phases"] = list(self.eval_phases)
        record["loss_weights"] = [{"phase": p, "weight": w} for p, w in self.loss_weights.items()]
        record["signals"] = [
            {
                "name": name,
                "dims": row.dims,
                "unit_of_measure": row.unit_of_measure,
                "hz": row.hz,
                "samples": told.samples,
                "mean": told.mean.tolist(),
                "std": told.std.tolist(),
                "robust_std": told.robust_std.tolist(),
                "scale": self.target_scale.get(name),
            }
            for name, row in self.signals.items()
            for told in [self.statistics[name]]
        ]
        return record

    @staticmethod
    def from_record(record: dict) -> "SessionRow":
        signals = {s["name"]: s for s in record["signals"]}
        return SessionRow(
            **{
                **record,
                "signals": {n: SignalRow(s["dims"], s["unit_of_measure"], s["hz"]) for n, s in signals.items()},
                "statistics": {
                    n: SignalStatistics(
                        s["samples"], *(np.array(s[k], dtype=np.float64) for k in ("mean", "std", "robust_std"))
                    )
                    for n, s in signals.items()
                },
                "target_scale": {n: s["scale"] for n, s in signals.items() if s["scale"] is not None},
                "loss_weights": {w["phase"]: w["weight"] for w in record["loss_weights"]},
                "eval_phases": tuple(record["eval_phases"]),
            }
        )


@dataclass(frozen=True)
class IntervalTable:
    """Contiguous stretches of a split: start_us, stop_us (n,) int64 on the session's clock; first (n,) segment row."""

    start_us: np.ndarray
    stop_us: np.ndarray
    first: np.ndarray
    segments: np.ndarray  # (n,) how many segments, consecutive from `first`


@dataclass(frozen=True)
class SegmentTable:
    """The segments of an index in the order session, split, interval, time: an Arrow table with numpy columns."""

    table: pa.Table
    session_ids: tuple[str, ...]  # what `session` counts

    def __len__(self) -> int:
        return self.table.num_rows

    def take(self, keep: np.ndarray, session_ids: tuple[str, ...]) -> "SegmentTable":
        """Only the segments where the mask (n,) is true."""
        return SegmentTable(self.table.filter(pa.array(keep)).combine_chunks(), session_ids)

    def replaced(self, **columns: np.ndarray) -> "SegmentTable":
        """The same segments with other numbers in the named columns."""
        table = self.table
        for name, value in columns.items():
            at = table.schema.get_field_index(name)
            table = table.set_column(at, table.schema.field(at), pa.array(value, table.schema.field(at).type))
        return replace(self, table=table)

    def column(self, name: str) -> np.ndarray:
        """A column of numbers (n,)."""
        return self.table.column(name).to_numpy()

    def codes(self, name: str, names) -> np.ndarray:
        """A column of text as rows (n,) int64 of `names`; -1 where it is none of them."""
        column = self.table.column(name).combine_chunks()
        row = {text: i for i, text in enumerate(names)}
        of_code = np.array([row.get(text, -1) for text in column.dictionary.to_pylist()], dtype=np.int64)
        return of_code[column.indices.to_numpy()] if len(of_code) else np.zeros(0, np.int64)

    @cached_property
    def session(self) -> np.ndarray:
        return self.codes("session", self.session_ids)

    @cached_property
    def split(self) -> np.ndarray:
        """Row of data_prep.session.SPLITS."""
        return self.codes("split", SPLITS)

    @cached_property
    def start_us(self) -> np.ndarray:
        return self.column("start_us")

    @cached_property
    def stop_us(self) -> np.ndarray:
        return self.column("stop_us")

    @cached_property
    def carry_us(self) -> np.ndarray:
        return self.column("carry_us")

    def intervals(self, split: str) -> IntervalTable:
        """The contiguous stretches of a split over all sessions, in order."""
        rows = np.flatnonzero(self.split == SPLITS.index(split))
        identity = np.stack([self.session[rows], self.column("interval")[rows]])
        new = np.ones(len(rows), bool)
        new[1:] = (identity[:, 1:] != identity[:, :-1]).any(axis=0)
        at = np.flatnonzero(new)
        return IntervalTable(
            self.column("interval_start_us")[rows[at]],
            self.column("interval_stop_us")[rows[at]],
            rows[at],
            np.diff(np.append(at, len(rows))),
        )

    def member(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Where the array of a member lies in its shard: first byte and bytes (n,) int64; -1 where there is none."""
        lists = self.table.column("member").combine_chunks()
        flat = lists.flatten()
        wanted = {i for i, text in enumerate(flat.dictionary.to_pylist()) if text == name}
        hit = np.flatnonzero(np.isin(flat.indices.to_numpy(), list(wanted)))
        counts = lists.value_lengths().to_numpy()
        row = np.repeat(np.arange(len(self)), counts)[hit]
        offset, size, array = (self._flat(column)[hit] for column in ("offset", "bytes", "array_bytes"))
        first, length = np.full((2, len(self)), -1, dtype=np.int64)
        first[row], length[row] = offset + size - array, array
        return first, length

    def member_ends(self) -> np.ndarray:
        """(n,) byte of its shard at which the last member of each segment ends."""
        ends = self._flat("offset") + self._flat("bytes")
        first = np.cumsum(np.append(0, self.table.column("offset").combine_chunks().value_lengths().to_numpy()))
        return np.maximum.reduceat(ends, first[:-1]) if len(self) else ends

    def _flat(self, name: str) -> np.ndarray:
        return self.table.column(name).combine_chunks().flatten().to_numpy()
