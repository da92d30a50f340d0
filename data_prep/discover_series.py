"""A Survey -> candidate signals, ranked: rates, pauses, units of measure and whether a body could move like that."""

from dataclasses import dataclass, field

import numpy as np

from data_prep.discover_survey import SeriesFacts, Survey
from data_prep.discover_words import BORED, SPATIAL, Meaning, meaning
from data_prep.errors import SessionError
from data_prep.measure import factor, per_second, split_unit
from data_prep.signals import covered, differentiate

SLOWEST, FASTEST = 5.0, 2100.0  # Hz of behaviour
WIDEST = 32  # columns of behaviour; more are channels
HAND = (0.05, 3.0)  # m/s, 99.9 percentile of the speed of a hand (specs of the formats)
TYPICAL = 0.6  # m/s, in the middle of what reaching sessions show
GAPS = (1.5, 3.0, 6.0, 12.0)  # median intervals that a pause may last, tried in this order
_NOTHING = ("", "unknown", "n/a", "na", "none", "nan", "?", "-", "unspecified", "not specified", "unitless")


@dataclass(frozen=True)
class Timing:
    """What the sample times of a series are like."""

    hz: float  # 1 / median interval
    falls: int  # times that lie before the one above
    repeats: int
    start: float
    stop: float
    gap: float  # the gap word that keeps most of it together
    covered_s: float  # in stretches of at least a second, with that gap
    stretches: int
    period: bool = False  # rate misused for the period

    @property
    def told(self) -> str:
        faults = [f"its times go back in {self.falls} places"] * bool(self.falls)
        faults += [f"{self.repeats} of its times are repeated"] * bool(self.repeats)
        pieces = f"{self.stretches:,} stretches" if self.stretches != 1 else "1 stretch"
        return f"{self.hz:.4g} Hz, {pieces} of together {self.covered_s:.0f} s" + "".join(f", {f}" for f in faults)


@dataclass(frozen=True)
class Candidate:
    """One series, or several of one column each that belong together."""

    facts: tuple[SeriesFacts, ...]
    meaning: Meaning
    timing: Timing
    value: np.ndarray  # (n, K), conversion and offset applied
    time: np.ndarray  # (n,)
    finite: float  # share of samples without a missing value

    @property
    def place(self) -> str:
        return " + ".join(one.place for one in self.facts)

    @property
    def short_place(self) -> str:
        more = len(self.facts) - 1
        return self.facts[0].place + (f" and {more} more beside it" if more else "")

    @property
    def unit(self) -> str:
        return self.facts[0].unit.strip()

    def size(self) -> float:
        """99.9 percentile of the norm, as the file's numbers stand."""
        return _size(self.value)

    def speed(self) -> float:
        """99.9 percentile of the speed in the file's unit (per second), of a position by differences; NaN where unknown."""
        if self.meaning.quantity != "position":
            return self.size() if self.meaning.quantity == "velocity" else np.nan
        step, moved = np.diff(self.time), np.diff(self.value, axis=0)
        kept = (step > 0) & (step < self.timing.gap / max(self.timing.hz, 1e-9))
        return _size(moved[kept] / step[kept, None]) if kept.any() else np.nan


@dataclass(frozen=True)
class FoundSeries:
    """Candidates in order of rank, true/false masks, and why the rest is neither."""

    ranked: list[Candidate]
    masks: list[SeriesFacts]
    passed_over: list[tuple[str, str]]  # place, reason
    seldom: list[Candidate] = field(default_factory=list)  # behaviour that nobody decodes, in order
    falls: int = 0
    repeats: int = 0
    periods: list[str] = field(default_factory=list)  # places whose rate is a period


def _size(value: np.ndarray) -> float:
    norm = np.sqrt(np.sum(value**2, axis=1))
    norm = norm[np.isfinite(norm)]
    return float(np.percentile(norm, 99.9)) if len(norm) else np.nan


def find_series(survey: Survey, used: SeriesFacts | None) -> FoundSeries:
    """Every series of the file judged; `used` holds the spikes and is none of them."""
    kept, masks, passed = [], [], []
    for one in survey.series:
        if one is used:
            continue
        reason, is_mask = _why_not(one)
        if is_mask:
            masks.append(one)
        elif reason:
            passed.append((one.place, reason))
        else:
            kept.append(one)
    groups = _joined(kept)
    candidates = []
    for group in groups:
        found = _candidate(group, survey)
        if isinstance(found, str):
            passed.append((group[0].place, found))
        else:
            candidates.append(found)
    candidates.sort(key=lambda c: (c.meaning.rank, c.place))
    proposed = [c for c in candidates if c.meaning.rank < BORED]
    passed += [(c.place, "seldom what is decoded") for c in candidates if c.meaning.rank >= BORED]
    return FoundSeries(
        proposed,
        masks,
        passed,
        [c for c in candidates if c.meaning.rank >= BORED],
        falls=max((c.timing.falls for c in proposed), default=0),
        repeats=max((c.timing.repeats for c in proposed), default=0),
        periods=[c.place for c in proposed if c.timing.period],
    )


def _why_not(one: SeriesFacts) -> tuple[str, bool]:
    """Why a series is no behaviour ("" if it may be), and whether it is a true/false mask."""
    if one.dtype not in "fiub" or not one.shape or len(one.shape) > 2 or one.shape[0] < 2:
        return f"shape {one.shape}, no numbers by time", False
    named = meaning(one.place, one.kind)
    stored = one.look() if one.columns <= WIDEST else np.zeros((0, 1))
    known = stored[np.isfinite(stored.astype(np.float64))]
    if one.columns == 1 and (one.dtype == "b" or (known.size and np.isin(known, (0, 1)).all())):
        is_mask = "mask" in one.name.lower() or (one.dtype == "b" and not named.neural)
        return "true or false", is_mask
    if named.neural:
        return "neural, by its name or kind", False
    if one.columns > WIDEST:
        return f"{one.columns} columns, so channels rather than behaviour", False
    if not known.size:
        return "every value is missing", False
    if known.max() == known.min():
        return f"it never changes (always {known.max():g})", False
    return "", False


def _joined(kept: list[SeriesFacts]) -> list[list[SeriesFacts]]:
    """Series of one column that stand side by side with equal times, grouped; the others alone."""
    groups: dict[tuple, list[SeriesFacts]] = {}
    for one in kept:
        named = meaning(one.place, one.kind)
        key = (one.place.rpartition("/")[0], named.quantity, named.effector, one.shape[0], one.unit, one.rate)
        groups.setdefault(key if one.columns == 1 and named.quantity else (one.place,), []).append(one)
    out = []
    for group in groups.values():
        clocks = [one.times() for one in group] if len(group) > 1 else []
        if all(len(c) == len(clocks[0]) and np.array_equal(c, clocks[0]) for c in clocks[1:]):
            out.append(group)
        else:
            out += [[one] for one in group]
    return out


def _candidate(group: list[SeriesFacts], survey: Survey) -> Candidate | str:
    """The candidate, or why it is none."""
    time, value = group[0].times(), np.concatenate([one.values() for one in group], axis=1)
    period = _is_period(group[0], survey.spike_extent)
    if period:
        time = (group[0].offset or group[0].starting_time) + np.arange(len(time)) * group[0].rate
        value = value - np.array([one.offset for one in group for _ in range(one.columns)])
    if len(time) != group[0].shape[0]:
        return f"{group[0].shape[0]} samples but {len(time)} times"
    if not np.isfinite(time).all():
        return f"{int(np.sum(~np.isfinite(time)))} of its times are not finite"
    timing = _timing(time, value, period)
    if timing.hz < SLOWEST or timing.hz > FASTEST:
        return f"{timing.hz:.3g} Hz, behaviour is sampled at {SLOWEST:g} to 1000 Hz"
    good = np.isfinite(value).all(axis=1)
    if not good.any():
        return "no sample is whole (values missing everywhere)"
    return Candidate(
        tuple(group), meaning(group[0].place, group[0].kind), timing, value, time[: len(value)], float(good.mean())
    )


def _is_period(one: SeriesFacts, extent: tuple[float, float]) -> bool:
    """Whether `rate` reads as a period: the series would outlast the spikes many times, and as a period fits them."""
    if not (0 < one.rate < 1):
        return False
    lasting = extent[1] - extent[0] if np.isfinite(extent).all() else np.nan
    return not np.isfinite(lasting) or (
        one.shape[0] / one.rate > 5 * lasting and 0.3 < one.shape[0] * one.rate / max(lasting, 1e-9) < 3
    )


def _timing(time: np.ndarray, value: np.ndarray, period: bool) -> Timing:
    step = np.diff(time)
    moved = np.abs(step[step != 0])  # backwards too: times that only fall have a rate
    hz = float(1 / np.median(moved)) if len(moved) else 0.0
    falls, repeats = int(np.sum(step < 0)), int(np.sum(step == 0))
    there = np.ones(len(time), dtype=bool)  # of a long series only the beginning is looked at
    there[: len(value)] = np.isfinite(value).all(axis=1)
    ordered = np.unique(time[there])
    tried = []
    for gap in GAPS:
        parts = covered(ordered, gap)
        long = (parts.stop - parts.start) >= 1.0
        tried.append((gap, float(np.sum((parts.stop - parts.start)[long])), len(parts)))
    most = max(seconds for _, seconds, _ in tried)
    fewest = tried[-1][2]  # pauses of a few lost frames are no reason to cut a recording into pieces
    gap, seconds, pieces = next(one for one in tried if one[1] >= 0.97 * most and one[2] <= 1.5 * fewest + 2)
    return Timing(hz, falls, repeats, float(time.min()), float(time.max()), gap, seconds, pieces, period)


# ------------------------------------------------------------------------------- units of measure


@dataclass(frozen=True)
class Measure:
    """Unit words for a signal's recipe, and why."""

    stated_unit: str = ""
    unit: str = ""
    conversion: bool = True
    factor: float = 1.0
    plausible: tuple[float, float] | None = None
    remarks: tuple[str, ...] = ()
    speed: float = np.nan  # m/s, 99.9 percentile, where it can be told


def measure(one: Candidate) -> Measure:
    """Which unit of measure to believe: the file's where it is one, else the one in which a hand could move so fast."""
    quantity, spatial = one.meaning.quantity, one.meaning.effector in SPATIAL
    power = {"velocity": 1, "acceleration": 2}.get(quantity, 0)
    base, stated_power = split_unit(one.unit)
    metres = _metres(base)
    if metres is None:
        if base.lower() in _NOTHING and spatial and quantity in ("velocity", "position"):
            return _decided(one, power)
        said = f"the file's unit is {one.unit!r}: kept as it is" if base.lower() not in _NOTHING else ""
        return Measure(remarks=(said or "unsure: the file states no unit of measure, and nothing here tells it",))
    own = base if power == 0 else f"{base}/s" if power == 1 else f"{base}/s^{power}"
    stated = own if stated_power != power else ""
    remarks = [f"the attribute says {one.unit!r}, without 'per second'"] if stated else []
    speed = one.speed() * metres
    if not spatial or not np.isfinite(speed):
        return Measure(stated, own, remarks=tuple(remarks))
    if HAND[0] <= speed <= HAND[1]:
        remarks.append(f"99.9 % of speeds are below {speed:.3g} m/s, as of a hand ({HAND[0]:g} to {HAND[1]:g})")
        return Measure(stated, own, remarks=tuple(remarks), speed=speed)
    raw = speed / abs(one.facts[0].conversion)
    if one.facts[0].conversion != 1 and HAND[0] <= raw <= HAND[1]:
        remarks.append(
            f"unsure: with the file's conversion {one.facts[0].conversion:g} 99.9 % of speeds are below {speed:.3g} m/s, "
            f"without it below {raw:.3g} m/s, as of a hand: left out"
        )
        return Measure(stated, own, conversion=False, remarks=tuple(remarks), speed=raw)
    if one.unit.lower() in ("meters", "m", "metres") and speed > HAND[1]:  # what pynwb writes where nobody says a unit
        told = f"the attribute says {one.unit!r}, the writer's default, in which speeds reach {speed:.3g} m/s, not a hand's"
        return _decided(one, power, told)
    remarks.append(
        f"unsure: 99.9 % of speeds are below {speed:.3g} m/s, a hand's would be {HAND[0]:g} to {HAND[1]:g}; "
        "say stated_unit if the attribute is wrong"
    )
    return Measure(stated, own, remarks=tuple(remarks), speed=speed)


def _metres(base: str) -> float | None:
    try:
        return factor("", base, "m")
    except SessionError:
        return None


def _decided(one: Candidate, power: int, why: str = "") -> Measure:
    """The unit in which the speed is nearest to a reaching hand's, where one makes it a hand's at all."""
    number = one.speed()
    why = why or f"the attribute says {one.unit!r}"
    if one.meaning.quantity == "position" and one.meaning.effector == "finger" and _within_one(one.value):
        return Measure(remarks=(f"unsure: {why}; values lie in 0 to 1, so probably normalised: no unit",))
    fits = {u: number * m for u, m in (("m", 1.0), ("cm", 0.01), ("mm", 0.001)) if HAND[0] <= number * m <= HAND[1]}
    if not fits:
        return Measure(
            remarks=(f"unsure: {why}, and 99.9 % of speeds below {number:.3g} a second fit no unit of a hand",)
        )
    best = min(fits, key=lambda unit: abs(np.log(fits[unit] / TYPICAL)))
    unit = best if power == 0 else per_second(best)
    others = "; ".join(f"{name} would mean {speed:.3g} m/s" for name, speed in fits.items() if name != best)
    told = f"unsure: {why}; 99.9 % of speeds are below {number:.4g}, in {best}/s {fits[best]:.3g} m/s as of a hand"
    return Measure(unit, unit, remarks=(told + (f" ({others})" if others else ""),), speed=fits[best])


def _within_one(value: np.ndarray) -> bool:
    known = value[np.isfinite(value)]
    return bool(len(known)) and np.percentile(known, 1) >= -0.1 and np.percentile(known, 99) <= 1.1


def agreement(velocity: Candidate, position: Candidate) -> tuple[float, float] | None:
    """(slope, correlation) of the position's rate of change against the velocity, where both share their samples."""
    if velocity.value.shape != position.value.shape or not np.array_equal(velocity.time, position.time):
        return None
    if velocity.timing.falls or velocity.timing.repeats:
        return None
    rate = differentiate(position.time, position.value, velocity.timing.gap)
    good = np.isfinite(rate).all(axis=1) & np.isfinite(velocity.value).all(axis=1)
    a, b = velocity.value[good].ravel(), rate[good].ravel()
    if len(a) < 100 or not a.any() or not b.any():
        return None
    return float(a @ b / (a @ a)), float(a @ b / np.sqrt((a @ a) * (b @ b)))
