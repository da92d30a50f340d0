"""Session -> Segments: cut every contiguous stretch of every split into pieces that own their starts and carry a halo."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from data_prep.session import Session, Signal
from sharding.errors import ShardError
from sharding.segment import PHASE, SIGNAL_NAME, TIME, UNIT, VALUE, WIDE_UNIT, Segment, SignalPart
from sharding.tokens import SPIKE, SpikeTokens, to_microseconds

_PART = 1 << 20  # spikes that are in memory as seconds at a time
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


@dataclass(frozen=True)
class Cut:
    """The segments of a session in the order split, interval, time; each is made, and its spikes are read, when asked
    for, so that a session of any size takes the memory of one segment."""

    session: Session
    phases: tuple[str, ...]  # names by the phase codes of these segments
    hollow: tuple[Segment, ...]  # the segments with arrays of the right shape and no content
    _first: np.ndarray  # (segments,) row of the session's spikes at which each begins
    _signals: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]

    def __len__(self) -> int:
        return len(self.hollow)

    def __iter__(self) -> Iterator[Segment]:
        for segment, first in zip(self.hollow, self._first.tolist()):
            time, unit = (
                np.empty(segment.spikes.time.shape, TIME),
                np.empty(segment.spikes.unit.shape, _unit(self.session)),
            )
            for at in range(0, len(time), _PART):
                here = slice(at, min(at + _PART, len(time)))
                stored = slice(first + here.start, first + here.stop)
                time[here] = to_microseconds(self.session.spikes.time[stored]) - segment.start_us
                unit[here] = self.session.spikes.unit[stored]
            spikes = SpikeTokens(time, unit, segment.spikes.kind)
            parts = {name: _part(coded, segment.start_us, segment.carry_us) for name, coded in self._signals.items()}
            yield replace(segment, spikes=spikes, signals=parts)


def cut(session: Session, *, segment_us: int, halo_us: int, splits, codes: PhaseCodes) -> Cut:
    """Segments of a session; raises ShardError for arrays that break Session's word, before there is any segment.

    A segment owns window starts in [start, stop), at most segment_us long, and carries data to stop + halo_us or the
    end of its interval, whichever comes first. Times are rounded to microseconds before anything is compared.
    """
    _check(session)
    signals = {name: _coded(signal, session, codes) for name, signal in sorted(session.signals.items())}
    pieces = [piece for split in splits for piece in _pieces_of(session, split, segment_us, halo_us)]
    starts, stops = (np.array([getattr(p, name) for p in pieces], np.int64) for name in ("start_us", "carry_us"))
    first, end = np.split(_spikes_before(session, np.concatenate([starts, stops])), 2)
    unit = _unit(session)
    hollow = tuple(
        replace(
            piece,
            spikes=SpikeTokens(_empty(spikes, TIME), _empty(spikes, unit), _empty(spikes, np.uint8, SPIKE)),
            signals={
                name: SignalPart(_empty(n, TIME), _empty((n, value.shape[1]), VALUE), _empty(n, PHASE))
                for name, (stamp, value, _) in signals.items()
                for n in [int(np.diff(np.searchsorted(stamp, (piece.start_us, piece.carry_us)))[0])]
            },
        )
        for piece, spikes in zip(pieces, (end - first).tolist())
    )
    return Cut(session, tuple(codes.names), hollow, first, signals)


def _pieces_of(session: Session, split: str, segment_us: int, halo_us: int) -> Iterator[Segment]:
    """The segments of a split without any data."""
    covered, key, number = session.splits[split].intersection(session.domain), _key(session.id), 0
    for n, (start, stop) in enumerate(zip(to_microseconds(covered.start), to_microseconds(covered.stop))):
        for a, b in _pieces(int(start), int(stop), segment_us):
            yield Segment(
                f"{key}-{split}-{number:06d}",
                session.id,
                split,
                n,
                (int(start), int(stop)),
                a,
                b,
                min(b + halo_us, int(stop)),
                session.units.id,
                SpikeTokens(*(np.zeros(0, dtype) for dtype in (TIME, UNIT, np.uint8))),
                {},
            )
            number += 1


def _unit(session: Session) -> np.dtype:
    return UNIT if len(session.units) <= 2**16 else WIDE_UNIT


def _empty(shape, dtype, value: int = 0) -> np.ndarray:
    """An array of that shape which takes no memory."""
    return np.broadcast_to(np.array(value, dtype), shape)


def _spikes_before(session: Session, at_us: np.ndarray) -> np.ndarray:
    """How many spikes (n,) come before each of these microseconds; raises ShardError where spikes break Session's word."""
    spikes, units = session.spikes, len(session.units)
    if len(spikes.time) != len(spikes.unit):
        _refuse(session, f"{len(spikes.time)} spike times but {len(spikes.unit)} unit numbers")
    before, last = np.zeros(len(at_us), np.int64), -np.inf
    for time, unit in spikes.parts(_PART):
        if not np.isfinite(time).all() or time[0] < last or (time[1:] < time[:-1]).any():
            _refuse(session, "spike times are not sorted")
        if int(unit.max()) >= units:
            _refuse(session, f"a spike of unit number {int(unit.max())} among {units} units")
        before, last = before + np.searchsorted(to_microseconds(time), at_us), time[-1]
    return before


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


def _refuse(session: Session, found: str):
    raise ShardError(session.id, found, "prepare the session again")


def _check(session: Session) -> None:
    """Raise ShardError where arrays break what Session promises; the store is untrusted input."""
    if not len(session.units) or len(set(session.units.id)) != len(session.units):
        _refuse(session, "has no units" if not len(session.units) else "two units have one id")
    for name, signal in session.signals.items():
        if not SIGNAL_NAME.fullmatch(name):
            _refuse(session, f"a signal named {name!r} (wanted: up to 32 of a-z, 0-9, _ and -, a letter first)")
        if np.ndim(signal.value) != 2 or not len(signal.time) == len(signal.value) == len(signal.valid):
            _refuse(
                session,
                f"signal {name}: time {np.shape(signal.time)}, value {np.shape(signal.value)}, "
                f"valid {np.shape(signal.valid)} do not fit together",
            )
        if not np.isfinite(signal.time).all() or (np.diff(signal.time) <= 0).any():
            _refuse(session, f"signal {name}: times do not rise")
