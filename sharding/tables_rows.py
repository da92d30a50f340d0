"""Rows of the table of sessions: what a session is, its signals and their statistics, as dataclasses and as records."""

from dataclasses import dataclass

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
        ("phases", pa.list_(pa.string())),
        ("source", pa.string()),
        ("source_sha256", pa.string()),
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
        told = []
        for column in value.T:  # one after another, for the memory's sake
            exact = column.astype(np.float64)
            low, high = np.quantile(exact, (0.025, 0.975))
            told.append((exact.mean(), exact.std(), (high - low) / 3.92))
        return SignalStatistics(len(value), *np.array(told).reshape(-1, 3).T)


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
    phases: tuple[str, ...]  # names by phase code in this session's shards; 0 is "random": no phase
    source: str  # name of the stored session's file
    source_sha256: str

    def to_record(self) -> dict:
        record = {name: getattr(self, name) for name in SESSION_SCHEMA.names if name not in ("signals", "loss_weights")}
        record |= {"eval_phases": list(self.eval_phases), "phases": list(self.phases)}
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
                "phases": tuple(record["phases"]),
            }
        )
