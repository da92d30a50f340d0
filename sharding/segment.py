"""Segment: one contiguous stretch of one split of one session <-> one WebDataset sample (a dict of tar members)."""

import io
import json
import re
from dataclasses import dataclass

import numpy as np

from sharding.errors import ShardError
from sharding.tokens import SPIKE, SpikeTokens

# Lower case because plain webdataset folds member names; short because a USTAR member name has 100 bytes.
SIGNAL_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")
# How numbers lie in a shard, whatever machine wrote it.
TIME, UNIT, WIDE_UNIT = np.dtype("<i4"), np.dtype("<u2"), np.dtype("<u4")
VALUE, PHASE = np.dtype("<f4"), np.dtype("u1")
SIGNAL_ARRAYS = ("time", "value", "phase")


@dataclass(frozen=True)
class SignalPart:
    """A signal inside a segment: time (n,) int32 microseconds from its start, value (n, K) float32, phase (n,) uint8."""

    time: np.ndarray
    value: np.ndarray
    phase: np.ndarray


@dataclass(frozen=True)
class Segment:
    """Owns the window starts in [start_us, stop_us), carries data in [start_us, carry_us).

    All four bounds are int microseconds on the session's clock; `interval_us` are those of the contiguous stretch of
    the split that the segment was cut from, `interval` its number within (session, split).
    """

    key: str  # WebDataset key, unique in a shard root
    session: str
    split: str
    interval: int
    interval_us: tuple[int, int]
    start_us: int
    stop_us: int
    carry_us: int
    unit_ids: tuple[str, ...]  # ids within the session, in the order that spikes.unit counts
    spikes: SpikeTokens  # time int32 microseconds from start_us, unit uint16 or uint32, kind all SPIKE
    signals: dict[str, SignalPart]

    @property
    def owned_spikes(self) -> int:
        return int(np.searchsorted(self.spikes.time, self.stop_us - self.start_us))

    def owned_samples(self, signal: str) -> int:
        return int(np.searchsorted(self.signals[signal].time, self.stop_us - self.start_us))

    @property
    def owned_targets(self) -> int:
        return sum(map(self.owned_samples, self.signals))


def arrays(segment: Segment) -> dict[str, np.ndarray]:
    """The arrays of a segment by member name, in the order in which they lie in the shard."""
    out = {"spike_time.npy": segment.spikes.time, "spike_unit.npy": segment.spikes.unit}
    for name in sorted(segment.signals):
        for part in SIGNAL_ARRAYS:
            out[f"{name}.{part}.npy"] = getattr(segment.signals[name], part)
    return out


def to_sample(segment: Segment) -> dict:
    """The WebDataset sample of a segment: "__key__", "json" (a dict) and arrays by member name."""
    told = {
        "session": segment.session,
        "split": segment.split,
        "interval": segment.interval,
        "interval_us": list(segment.interval_us),
        "start_us": segment.start_us,
        "stop_us": segment.stop_us,
        "carry_us": segment.carry_us,
        "units": list(segment.unit_ids),
        "signals": sorted(segment.signals),
    }
    return {"__key__": segment.key, "json": told, **arrays(segment)}


def from_sample(sample: dict) -> Segment:
    """The segment of a decoded WebDataset sample; raises ShardError where a member is missing."""
    try:
        told = sample["json"]
        time, unit = sample["spike_time.npy"], sample["spike_unit.npy"]
        signals = {
            name: SignalPart(*(sample[f"{name}.{part}.npy"] for part in SIGNAL_ARRAYS)) for name in told["signals"]
        }
        return Segment(
            sample["__key__"],
            told["session"],
            told["split"],
            told["interval"],
            tuple(told["interval_us"]),
            told["start_us"],
            told["stop_us"],
            told["carry_us"],
            tuple(told["units"]),
            SpikeTokens(time, unit, np.full(len(time), SPIKE, np.uint8)),
            signals,
        )
    except KeyError as missing:
        raise ShardError(
            sample.get("__key__", "sample"), f"has no member {missing.args[0]!r}", "write the shards again"
        ) from None


def encoded(sample: dict) -> dict[str, bytes]:
    """The members of a sample as bytes, in order; the same sample always gives the same bytes."""
    return {name: _bytes(value) for name, value in sample.items() if name != "__key__"}


def encoded_sizes(sample: dict) -> dict[str, int]:
    """Bytes of the members of a sample, told without looking at what its arrays hold."""
    return {name: _size(value) for name, value in sample.items() if name != "__key__"}


def _size(value) -> int:
    if isinstance(value, dict):
        return len(_bytes(value))
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(value))
    return header.tell() + value.nbytes


def _bytes(value) -> bytes:
    if isinstance(value, dict):
        return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.ascontiguousarray(value), version=(1, 0), allow_pickle=False)
    return stream.getvalue()
