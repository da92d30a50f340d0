"""The bytes of one segment and its row of the index -> what is wrong in them, and what they add to their session's sums."""

import json
import mmap
import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import numpy as np

from sharding.check_found import Moments, SessionSums, ShardFound
from sharding.segment import PHASE, SIGNAL_ARRAYS, TIME, UNIT, VALUE, WIDE_UNIT

# As numpy writes format 1.0, which is all that shards hold: magic, length of the header, a dict of three entries.
HEADER = re.compile(
    rb"\x93NUMPY\x01\x00.{2}\{'descr': '([^']+)', 'fortran_order': False, 'shape': \((\d{1,18}(?:, \d{1,18})?),?\), \} *\n",
    re.DOTALL,
)


@dataclass(frozen=True)
class SessionFacts:
    """What the tables say of a session, as far as its segments can be held against it."""

    units: int
    unit_ids: tuple[str, ...]  # within the session; () where the table of units cannot tell
    dims: dict[str, int]  # signal -> K
    phases: int  # how many codes there are
    outlier: int  # the code whose samples are in no statistics; -1 where there is none


def segment_faults(data: mmap.mmap, row: dict, facts: SessionFacts, found: ShardFound) -> Iterator[str]:
    """What is wrong inside a segment; its spikes and samples are added to the sums of its session."""
    found.segments += 1
    named = ["json", "spike_time.npy", "spike_unit.npy"]
    named += [f"{name}.{part}.npy" for name in sorted(facts.dims) for part in SIGNAL_ARRAYS]
    if row["member"] != named:
        found.untold.add(row["session"])
        yield f"its members are {', '.join(row['member'])}, its session's signals ask for {', '.join(named)}"
        return
    yield from _told_faults(data[row["offset"][0] : row["offset"][0] + row["bytes"][0]], row, facts)
    arrays, unread = {}, []
    wide = UNIT if facts.units <= 2**16 else WIDE_UNIT
    kinds = {"spike_time.npy": (TIME, 0), "spike_unit.npy": (wide, 0)}
    for name, dims in facts.dims.items():
        kinds |= {f"{name}.time.npy": (TIME, 0), f"{name}.value.npy": (VALUE, dims), f"{name}.phase.npy": (PHASE, 0)}
    for n, member in enumerate(named[1:], 1):
        array = _array(data, row["offset"][n], row["bytes"][n], row["array_bytes"][n], *kinds[member])
        if isinstance(array, str):
            unread.append(f"{member} {array}")
        else:
            arrays[member] = array
    yield from unread
    if unread:
        found.untold.add(row["session"])
        return
    sums = SessionSums(np.zeros(facts.units, np.int64))
    yield from _spike_faults(arrays, row, sums, found)
    yield from _signal_faults(arrays, row, facts, sums, found)
    before = found.sums.get(row["session"])
    found.sums[row["session"]] = before.joined(sums) if before else sums


def _told_faults(text: bytes, row: dict, facts: SessionFacts) -> Iterator[str]:
    """What the segment's own json says otherwise than the tables."""
    wanted = {name: row[name] for name in ("session", "split", "interval", "start_us", "stop_us", "carry_us")}
    wanted["interval_us"] = [row["interval_start_us"], row["interval_stop_us"]]
    wanted |= {"units": list(facts.unit_ids), "signals": sorted(facts.dims)}
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        yield "its json cannot be read"
        return
    if not isinstance(told, dict) or told.keys() != wanted.keys():
        yield f"its json does not hold just {', '.join(sorted(wanted))}"
        return
    known = [name for name in wanted if name != "units" or facts.unit_ids]
    if other := [name for name in known if told[name] != wanted[name]]:
        yield f"its json says another {', '.join(other)} than the tables"


def _array(data: mmap.mmap, offset: int, size: int, array_bytes: int, dtype: np.dtype, dims: int) -> np.ndarray | str:
    """The array of a member, (n,) or (n, dims) where dims > 0; or what is wrong with it."""
    match = HEADER.match(data, offset, offset + size)  # of a match, npy's own length of the header follows
    if not match:
        return "has no npy header"
    text, numbers = match[1].decode("latin1"), match[2].decode()
    shape = tuple(map(int, numbers.split(",")))
    if text != dtype.str or len(shape) != (2 if dims else 1) or (dims and shape[1] != dims):
        return f"is {text} {shape}, wanted is {dtype.str} {(f'(n, {dims})' if dims else '(n,)')}"
    begin = match.end()
    header = int.from_bytes(data[offset + 8 : offset + 10], "little") + 10
    if header != begin - offset or begin + prod(shape) * dtype.itemsize != offset + size:
        return f"is {text} {shape}, which does not fill its {size} bytes"
    if array_bytes != offset + size - begin:
        return f"holds {offset + size - begin} bytes of numbers, the index says {array_bytes}"
    # A copy, so that no view keeps the map open
    return np.frombuffer(data[begin : offset + size], dtype).reshape(shape)


def _spike_faults(arrays: dict, row: dict, sums: SessionSums, found: ShardFound) -> Iterator[str]:
    time, unit = arrays["spike_time.npy"], arrays["spike_unit.npy"]
    if len(time) != len(unit):
        yield f"{len(time)} spike times but {len(unit)} unit numbers"
        return
    if (time[1:] < time[:-1]).any():
        yield "its spike times fall back"
    yield from _outside("spike", time, row)
    owned = time < row["stop_us"] - row["start_us"]
    if (count := int(owned.sum())) != row["spikes"]:
        yield f"owns {count} spikes, the index says {row['spikes']}"
    found.spikes += count
    if len(unit) and int(unit.max()) >= len(sums.unit_spikes):
        yield f"a spike of unit number {int(unit.max())} among {len(sums.unit_spikes)} units"
        found.untold.add(row["session"])
        return
    sums.unit_spikes += np.bincount(unit[owned], minlength=len(sums.unit_spikes))


def _signal_faults(arrays: dict, row: dict, facts: SessionFacts, sums: SessionSums, found: ShardFound) -> Iterator[str]:
    targets = 0
    for name in facts.dims:
        time, value, phase = (arrays[f"{name}.{part}.npy"] for part in SIGNAL_ARRAYS)
        if not len(time) == len(value) == len(phase):
            yield f"signal {name}: {len(time)} times, {len(value)} values, {len(phase)} phases"
            continue
        if (time[1:] <= time[:-1]).any():
            yield f"signal {name}: its times do not rise"
        yield from _outside(f"sample of signal {name}", time, row)
        finite = bool(np.isfinite(value).all())
        if not finite:
            found.untold.add(row["session"])
            yield f"signal {name}: a value is not finite"
        if len(phase) and int(phase.max()) >= facts.phases:
            yield f"signal {name}: phase code {int(phase.max())} among {facts.phases} phases"
        owned = time < row["stop_us"] - row["start_us"]
        targets += int(owned.sum())
        if row["split"] == "train" and finite:
            sums.train[name] = Moments.of(value[owned & (phase != facts.outlier)])
    if targets != row["targets"]:
        yield f"owns {targets} targets, the index says {row['targets']}"


def _outside(what: str, time: np.ndarray, row: dict) -> Iterator[str]:
    """Every time has to lie in [0, carry), in microseconds from the segment's start."""
    carried = row["carry_us"] - row["start_us"]
    if len(time) and (time.min() < 0 or time.max() >= carried):
        count = int(((time < 0) | (time >= carried)).sum())
        yield f"{count} times of a {what} lie outside the {carried / 1e6:g} s that it carries"
