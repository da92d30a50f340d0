"""Compiled loops over the windows of a batch: mapped shards -> the numbers of a Batch, the same as window and pack give.

Nothing here is imported but what belongs to Numba: compiled code is kept on disk and knows only of changes of this file,
so constants of other files come in as arguments. A window takes no Python, and the interpreter's lock is not held.

Shards are read by bare addresses. `window._located` has checked that every array lies within its shard, `BatchMaker` that
the shard still has its length; numbers read from a shard are checked here before they point anywhere.
"""

import sys
from typing import NamedTuple

import numba
import numpy as np
from numba.core import cgutils, types
from numba.core.caching import FunctionCache
from numba.extending import intrinsic

NARROW = 65_536  # units of a session whose numbers have two bytes
assert sys.byteorder == "little"  # as shards are

FALLING, UNKNOWN_UNIT, REPEATED, UNKNOWN_PHASE = 1, 2, 3, 4  # what count() and fill() return for damage; 0 for none

# Philox4x32-10 as in counter.py; numbers are typed because Numba makes float64 of uint64 and int64.
M0, M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
W0, W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
MASK, SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)
HIGH, UP, LOW = np.uint64(5), np.uint64(26), np.uint64(6)


class Asked(NamedTuple):
    """The windows of a batch (n,): rows of window.LOCATED, addresses of their shards, starts, places; their length."""

    row: np.ndarray
    address: np.ndarray
    start_us: np.ndarray
    place: np.ndarray
    length_us: int


class Dropout(NamedTuple):
    """UnitDropoutConfig, the key, and the parts and constants of augment.py."""

    on: bool
    key: tuple[int, int]
    bounds: tuple[float, float, float]  # min, mode, max
    legacy: bool
    peak: float
    legacy_bound: float
    parts: tuple[int, int, int]  # second counter words: triangle, legacy, choice


class Known(NamedTuple):
    """By session: units, phases, and the arrays of sampling.SessionTables; read only."""

    units: np.ndarray
    phases: np.ndarray
    unit_row: np.ndarray
    first_unit: np.ndarray
    session_row: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    weight: np.ndarray
    evaluated: np.ndarray


class Found(NamedTuple):
    """What count() leaves for fill()."""

    ends: np.ndarray  # (n, 4) first and stop spike, first and stop sample, in the arrays of the segment
    units: np.ndarray  # (n,) kept
    spikes: np.ndarray  # (n,) of kept units
    kept: np.ndarray  # whether each unit is kept, 0 or 1, all windows end to end


class Filled(NamedTuple):
    """The arrays of a Batch, by its names; place_B is the caller's."""

    token_time_S: np.ndarray
    token_unit_S: np.ndarray
    token_kind_S: np.ndarray
    token_length_B: np.ndarray
    query_time_Q: np.ndarray
    query_session_Q: np.ndarray
    query_length_B: np.ndarray
    target_QK: np.ndarray
    weight_Q: np.ndarray
    evaluated_Q: np.ndarray
    stamp_Q: np.ndarray
    session_B: np.ndarray


class Kept(FunctionCache):
    """Compiled code on disk, which need not work: where it fails (a full disk, a network's folder), compile anew."""

    def load_overload(self, signature, target):
        try:
            return super().load_overload(signature, target)
        except Exception:  # whatever can be wrong with a file
            return None

    def save_overload(self, signature, code) -> None:
        try:
            super().save_overload(signature, code)
        except Exception:
            pass


def compiled(function):
    """Compile at the first call, and keep it on disk where there is a folder for that."""
    dispatcher = numba.njit(nogil=True, error_model="numpy")(function)
    try:
        dispatcher._cache = Kept(function)  # as cache=True would, with a FunctionCache
    except RuntimeError:  # neither the package, nor the user's folder, nor NUMBA_CACHE_DIR can be written to
        pass
    return dispatcher


@intrinsic
def pointer(typing, address):
    """An int64 address as void*."""

    def code(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), code


@compiled
def count(asked, known, dropout):
    """Which spikes, samples and units each window has: (damage, number of the damaged window, Found)."""
    windows, total = len(asked.row), 0
    for b in range(windows):
        total += known.units[asked.row[b].session]
    found = Found(
        np.empty((windows, 4), np.int64),
        np.empty(windows, np.int64),
        np.empty(windows, np.int64),
        np.empty(total, np.uint8),
    )
    at = 0
    for b in range(windows):
        row = asked.row[b]
        first = asked.start_us[b] - row.start_us
        stop = max(first, min(first + asked.length_us, row.carry_us - row.start_us))
        time = numba.carray(pointer(asked.address[b] + row.spike_time), row.spikes, np.int32)
        i, j = searched(time, first), searched(time, stop)
        if j < i:
            return FALLING, b, found
        time = numba.carray(pointer(asked.address[b] + row.time), row.samples, np.int32)
        a, z = searched(time, first), searched(time, stop)
        if z < a:
            return REPEATED, b, found
        found.ends[b, 0], found.ends[b, 1], found.ends[b, 2], found.ends[b, 3] = i, j, a, z
        units = known.units[row.session]
        kept = found.kept[at : at + units]
        found.units[b] = choose(kept, asked.place[b], dropout)
        found.spikes[b] = j - i
        if found.units[b] < units:
            address = pointer(asked.address[b] + row.spike_unit)
            if units > NARROW:
                found.spikes[b] = counted(numba.carray(address, row.spikes, np.uint32)[i:j], kept)
            else:
                found.spikes[b] = counted(numba.carray(address, row.spikes, np.uint16)[i:j], kept)
            if found.spikes[b] < 0:
                return UNKNOWN_UNIT, b, found
        at += units
    return 0, 0, found


@compiled
def fill(asked, known, found, out, kinds, begin):
    """Write the numbers of every window into `out`, at the places that `found` says; (damage, window, end).

    kinds: numbers of a start mark, an end mark and a spike. begin, end: windows, tokens and queries before and after.
    """
    before, t, q = begin
    at = 0
    for b in range(len(asked.row)):
        session, units = asked.row[b].session, known.units[asked.row[b].session]
        kept, first_unit = found.kept[at : at + units], known.first_unit[session]
        out.session_B[before + b] = known.session_row[session]
        marks = found.units[b]
        out.token_length_B[before + b] = 2 * marks + found.spikes[b]
        out.query_length_B[before + b] = found.ends[b, 3] - found.ends[b, 2]
        out.token_time_S[t : t + marks] = 0
        out.token_time_S[t + marks : t + 2 * marks] = asked.length_us / 1e6
        stop = t + 2 * marks + found.spikes[b]
        out.token_kind_S[t : t + marks] = kinds[0]
        out.token_kind_S[t + marks : t + 2 * marks] = kinds[1]
        out.token_kind_S[t + 2 * marks : stop] = kinds[2]
        for unit in range(units):
            if kept[unit]:
                out.token_unit_S[t] = out.token_unit_S[t + marks] = known.unit_row[first_unit + unit]
                t += 1
        t += marks
        damage = fill_spikes(asked, b, known, found, kept, out.token_time_S[t:stop], out.token_unit_S[t:stop])
        if damage:
            return damage, b, begin
        t = stop
        damage = fill_queries(asked, b, known, found, q, out)
        if damage:
            return damage, b, begin
        q += found.ends[b, 3] - found.ends[b, 2]
        at += units
    return 0, 0, (before + len(asked.row), t, q)


@compiled
def fill_spikes(asked, b, known, found, kept, out_time, out_unit):
    """Spikes of one window into its part of the token arrays."""
    row, i, j = asked.row[b], found.ends[b, 0], found.ends[b, 1]
    time = numba.carray(pointer(asked.address[b] + row.spike_time), row.spikes, np.int32)[i:j]
    first = asked.start_us[b] - row.start_us
    rows = known.unit_row[known.first_unit[row.session] : known.first_unit[row.session] + len(kept)]
    address = pointer(asked.address[b] + row.spike_unit)
    if falls(time):
        return FALLING
    if found.units[b] == len(kept):
        for s in range(len(time)):
            out_time[s] = (time[s] - first) * 1e-6
        if len(kept) > NARROW:
            inside = looked_up(numba.carray(address, row.spikes, np.uint32)[i:j], rows, out_unit)
        else:
            inside = looked_up(numba.carray(address, row.spikes, np.uint16)[i:j], rows, out_unit)
    elif len(kept) > NARROW:
        inside = sieved(time, numba.carray(address, row.spikes, np.uint32)[i:j], first, kept, rows, out_time, out_unit)
    else:
        inside = sieved(time, numba.carray(address, row.spikes, np.uint16)[i:j], first, kept, rows, out_time, out_unit)
    return 0 if inside else UNKNOWN_UNIT


@compiled
def fill_queries(asked, b, known, found, q, out):
    """Samples of one window into the query arrays from q on."""
    row, a, z = asked.row[b], found.ends[b, 2], found.ends[b, 3]
    session, dims = row.session, out.target_QK.shape[1]
    time = numba.carray(pointer(asked.address[b] + row.time), row.samples, np.int32)
    phase = numba.carray(pointer(asked.address[b] + row.phase), row.samples, np.uint8)
    value = numba.carray(pointer(asked.address[b] + row.value), (row.samples, dims), np.float32)
    first = asked.start_us[b] - row.start_us
    for n in range(a, z):
        if n > a and time[n] <= time[n - 1]:
            return REPEATED
        code = phase[n]
        if code >= known.phases[session]:
            return UNKNOWN_PHASE
        out.query_time_Q[q] = (time[n] - first) * 1e-6
        out.query_session_Q[q] = known.session_row[session]
        out.weight_Q[q] = known.weight[session, code]
        out.evaluated_Q[q] = known.evaluated[session, code]
        out.stamp_Q[q] = time[n] + row.start_us
        for k in range(dims):
            out.target_QK[q, k] = (value[n, k] - known.mean[session, k]) / known.scale[session, k]
        q += 1
    return 0


@compiled
def searched(time, wanted):
    """How many times of a rising array lie before `wanted`; some number in range where the array does not rise."""
    low, high = 0, len(time)
    while low < high:
        middle = (low + high) // 2
        if time[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low


@compiled
def falls(time):
    fallen = False
    for s in range(1, len(time)):
        fallen |= time[s] < time[s - 1]
    return fallen


@compiled
def counted(unit, kept):
    """Spikes of kept units; -1 where one is of a unit beyond them all."""
    spikes = 0
    for s in range(len(unit)):
        if unit[s] >= len(kept):
            return -1
        spikes += kept[unit[s]]
    return spikes


@compiled
def looked_up(unit, rows, out):
    """Vocabulary rows of spikes; whether all units are among them."""
    for s in range(len(unit)):
        if unit[s] >= len(rows):
            return False
        out[s] = rows[unit[s]]
    return True


@compiled
def sieved(time, unit, first, kept, rows, out_time, out_unit):
    """Times and vocabulary rows of the spikes of kept units; whether all units are known."""
    at = 0
    for s in range(len(unit)):
        if at == len(out_time):  # all are found, and what is written below beyond the last one has no place
            break
        if unit[s] >= len(kept):
            return False
        out_time[at], out_unit[at] = (time[s] - first) * 1e-6, rows[unit[s]]
        at += kept[unit[s]]  # without a branch, which a processor could only guess
    return True


@compiled
def choose(kept, place, dropout):
    """Mark the units kept of all len(kept) in a window, as UnitDropout.kept; how many."""
    units, wanted = len(kept), kept_count(len(kept), place, dropout)
    low, high = np.uint64(place) & MASK, np.uint64(place) >> SHIFT
    if wanted == units:
        kept[:] = 1
        return units
    left = np.uint64(wanted)
    for unit in range(0, units, 4):
        word = philox(np.uint64(unit // 4 + 1), np.uint64(dropout.parts[2]), low, high, dropout.key)
        for u in range(unit, min(unit + 4, units)):
            chosen = word[u - unit] * np.uint64(units - u) < left << SHIFT
            kept[u] = chosen
            left -= np.uint64(chosen)
    return wanted


@compiled
def kept_count(units, place, dropout):
    if not dropout.on or units <= dropout.bounds[0]:
        return units
    return min(units, int(np.floor(drawn(np.uint64(place) & MASK, np.uint64(place) >> SHIFT, dropout))))


@compiled
def drawn(low, high, dropout):
    """The number of units asked for, before it is rounded down, as UnitDropout.drawn."""
    least, mode, most = dropout.bounds
    rise = dropout.peak - 1
    if not dropout.legacy:
        word = philox(np.uint64(0), np.uint64(dropout.parts[0]), low, high, dropout.key)
        side, level = uniform(word[0], word[1]), uniform(word[2], word[3])
        s = (np.sqrt(1 + 2 * rise * level * (1 + rise / 2)) - 1) / rise
        return least + s * (mode - least) if side * (most - least) < mode - least else most - s * (most - mode)
    attempt = np.uint64(0)
    while True:
        one = philox(attempt, np.uint64(dropout.parts[1]), low, high, dropout.key)
        two = philox(attempt + np.uint64(1), np.uint64(dropout.parts[1]), low, high, dropout.key)
        x = least + uniform(one[0], one[1]) * (most - least)
        up, down = (x - least) / max(mode - least, 1.0), (most - x) / max(most - mode, 1.0)
        density = 1 + rise * (up if x < mode else down)
        if uniform(one[2], one[3]) * dropout.legacy_bound * uniform(two[0], two[1]) <= density:
            return x
        attempt += np.uint64(2)


@compiled
def uniform(high, low):
    """In [0, 1) with 53 bits, of two random words."""
    return np.float64(((high >> HIGH) << UP) + (low >> LOW)) * 2.0**-53


@compiled
def philox(c0, c1, c2, c3, key):
    """Four random words of a counter, all as uint64."""
    k0, k1 = np.uint64(key[0]), np.uint64(key[1])
    for _ in range(10):
        a, b = M0 * c0, M1 * c2
        c0, c1, c2, c3 = (b >> SHIFT) ^ c1 ^ k0, b & MASK, (a >> SHIFT) ^ c3 ^ k1, a & MASK
        k0, k1 = (k0 + W0) & MASK, (k1 + W1) & MASK
    return c0, c1, c2, c3
