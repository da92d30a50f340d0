"""Session -> Segments: cut every contiguous stretch of every split into pieces that own their starts and carry a halo."""

import hashlib
import re
from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from data_prep.session import Session, Signal
from sharding.errors import ShardError
from sharding.segment import PHASE, SIGNAL_NAME, TIME, UNIT, VALUE, WIDE_UNIT, Segment, SignalPart
from sharding.tokens import SPIKE, SpikeTokens, to_microseconds

NO_PHASE = "random"  # phase code 0: no named phase covers the sample


class PhaseCodes:
    """Phase name -> uint8 code, numbered as the names first come; "random" is 0."""

    def __init__(self, names=(NO_PHASE,)):
        self.names = list(names)

    def of(self, name: str) -> int:
        """The code of a phase; raises ShardError beyond 256 names."""
        if name not in self.names:
            if len(self.names) == 256:
                raise ShardError(f"phase {name!r}", "is the 257th name of a phase", "name fewer phases in the recipes")
            self.names.append(name)
        return self.names.index(name)


def cut(session: Session, *, segment_us: int, halo_us: int, splits, codes: PhaseCodes) -> Iterator[Segment]:
    """Segments of a session in the order split, interval, time; raises ShardError for arrays that break Session's word.

    A segment owns window starts in [start, stop), at most segment_us long, and carries data to stop + halo_us or the
    end of its interval, whichever comes first. Times are rounded to microseconds before anything is compared.
    """
    _check(session)
    spike_us = to_microseconds(session.spikes.time)
    unit = session.spikes.unit.astype(UNIT if len(session.units) <= 2**16 else WIDE_UNIT)
    signals = {name: _coded(signal, session, codes) for name, signal in sorted(session.signals.items())}
    key = _key(session.id)
    for split in splits:
        covered = session.splits[split].intersection(session.domain)
        number = 0
        for n, (start, stop) in enumerate(zip(to_microseconds(covered.start), to_microseconds(covered.stop))):
            for a, b in _pieces(int(start), int(stop), segment_us):
                carry = min(b + halo_us, int(stop))
                i, j = np.searchsorted(spike_us, (a, carry))
                spikes = SpikeTokens((spike_us[i:j] - a).astype(TIME), unit[i:j], np.full(j - i, SPIKE, np.uint8))
                yield Segment(
                    f"{key}-{split}-{number:06d}",
                    session.id,
                    split,
                    n,
                    (int(start), int(stop)),
                    a,
                    b,
                    carry,
                    session.units.id,
                    spikes,
                    {name: _part(coded, a, carry) for name, coded in signals.items()},
                )
                number += 1


def _pieces(start: int, stop: int, longest: int) -> Iterator[tuple[int, int]]:
    """Near-equal consecutive pieces of [start, stop), none longer than `longest`."""
    count = -(-(stop - start) // longest)
    edges = [start + (stop - start) * i // count for i in range(count + 1)] if count else []
    yield from pairwise(edges)


def _coded(signal: Signal, session: Session, codes: PhaseCodes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Stamps int64 us, values float32 (n, K), phase codes uint8 of the usable samples of a signal."""
    value = np.asarray(signal.value, dtype=VALUE)
    stamp = to_microseconds(signal.time)
    usable = np.asarray(signal.valid, dtype=bool) & np.isfinite(value).all(axis=1)
    usable[1:] &= stamp[1:] > stamp[:-1]  # two samples of one microsecond could not be told apart
    stamp, value = stamp[usable], value[usable]
    phase = np.zeros(len(stamp), PHASE)
    for name, intervals in session.phases.items():  # in rising precedence: the later one counts
        code = codes.of(name)
        whole = intervals.merged()
        start, stop = to_microseconds(whole.start), to_microseconds(whole.stop)
        at = np.searchsorted(start, stamp, side="right") - 1
        if len(start):
            phase[(at >= 0) & (stamp < stop[at])] = code
    return stamp, value, phase


def _part(coded, start: int, stop: int) -> SignalPart:
    stamp, value, phase = coded
    i, j = np.searchsorted(stamp, (start, stop))
    return SignalPart((stamp[i:j] - start).astype(TIME), value[i:j], phase[i:j])


def _key(session_id: str) -> str:
    """A tar-safe name of a session: readable, and distinct where the readable parts collide."""
    readable = re.sub(r"[^A-Za-z0-9_]+", "-", session_id).strip("-")[:32]
    return f"{readable}-{hashlib.sha256(session_id.encode()).hexdigest()[:8]}"


def _check(session: Session) -> None:
    """Raise ShardError where arrays break what Session promises; the store is untrusted input."""

    def refuse(found: str):
        raise ShardError(session.id, found, "prepare the session again")

    spikes = session.spikes
    if not len(session.units) or len(set(session.units.id)) != len(session.units):
        refuse("has no units" if not len(session.units) else "two units have one id")
    if len(spikes.time) != len(spikes.unit):
        refuse(f"{len(spikes.time)} spike times but {len(spikes.unit)} unit numbers")
    if not np.isfinite(spikes.time).all() or (np.diff(spikes.time) < 0).any():
        refuse("spike times are not sorted")
    if len(spikes.unit) and int(spikes.unit.max()) >= len(session.units):
        refuse(f"a spike of unit number {int(spikes.unit.max())} among {len(session.units)} units")
    for name, signal in session.signals.items():
        if not SIGNAL_NAME.fullmatch(name):
            refuse(f"a signal named {name!r} (wanted: up to 32 of a-z, 0-9, _ and -, a letter first)")
        if np.ndim(signal.value) != 2 or not len(signal.time) == len(signal.value) == len(signal.valid):
            refuse(
                f"signal {name}: time {np.shape(signal.time)}, value {np.shape(signal.value)}, "
                f"valid {np.shape(signal.valid)} do not fit together"
            )
        if not np.isfinite(signal.time).all() or (np.diff(signal.time) <= 0).any():
            refuse(f"signal {name}: times do not rise")
