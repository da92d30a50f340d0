"""Ranked candidates -> the signals of a recipe, the primary one first, with what was measured of each as remarks."""

from dataclasses import dataclass, field, replace

import numpy as np

from data_prep.discover_series import HAND, Candidate, FoundSeries, Measure, agreement, find_series, measure
from data_prep.discover_survey import SeriesFacts, Survey
from data_prep.discover_text import Remarks
from data_prep.discover_words import SPATIAL, signal_name
from data_prep.measure import factor
from data_prep.recipe import PhaseRecipe, SignalRecipe

LIMITS = "a fifth to five times of what is seen here: a cm/mm swap falls outside"
MOST = 6  # signals proposed; further ones are named in the head


@dataclass(frozen=True)
class Signals:
    """Sections that rest on series."""

    recipes: dict[str, SignalRecipe] = field(default_factory=dict)
    masks: dict[str, PhaseRecipe] = field(default_factory=dict)
    domain: list[str] = field(default_factory=list)
    remarks: Remarks = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)
    passed_over: list[tuple[str, str]] = field(default_factory=list)
    falls: int = 0
    repeats: int = 0
    seconds: float = np.inf  # that the domain's signal is there, where there is one


def find_signals(survey: Survey, counts: SeriesFacts | None, place_first: bool) -> Signals:
    """The signals of a file; with `place_first` a position comes before its velocity (place cells)."""
    found = find_series(survey, counts)
    ranked = sorted(found.ranked, key=lambda c: _rank(c, place_first))
    if not ranked:
        masks, remarks = _masks(found, counts)
        return Signals(masks=masks, remarks=remarks, seen=["behaviour: none"], passed_over=found.passed_over)
    chosen = ranked[:MOST]
    steady = max([*found.seldom, *chosen], key=lambda c: c.timing.covered_s)
    if steady not in chosen and chosen[0].timing.covered_s < min(300, 0.5 * steady.timing.covered_s):
        chosen = [*chosen[: MOST - 1], steady]  # not to be decoded: the domain rests on it
    taken, names = set(), {}
    for one in chosen:
        names[one.place] = signal_name([f.place for f in one.facts], one.meaning, taken)
        taken.add(names[one.place])
    recipes, remarks = {}, {}
    for one in chosen:
        name = names[one.place]
        recipes[name], told = _recipe(one, names, chosen, not recipes)
        remarks |= {f"signals.{name}.{key}".rstrip("."): texts for key, texts in told.items()}
    recipes = _derived(chosen[0], names, recipes, remarks, place_first)
    if place_first:
        remarks["signals"] = ["unsure: place cells, so the position comes first; put the velocity first to decode that"]
    domain, told = _domain(chosen, names, recipes)
    masks, mask_remarks = _masks(found, counts)
    others = [(c.short_place, "also a candidate, left out") for c in ranked[MOST:]]
    return Signals(
        recipes,
        masks,
        domain,
        remarks | mask_remarks | ({"domain.signals": told} if told else {}),
        [f"{names[c.place]}: {c.short_place}, {_columns(c)}, {c.timing.told}" for c in chosen],
        [*others, *(pair for pair in found.passed_over if pair[0] not in names)],
        found.falls,
        found.repeats,
        steady.timing.covered_s if domain else chosen[0].timing.covered_s,
    )


def _rank(one: Candidate, place_first: bool) -> tuple:
    first = place_first and one.meaning.quantity == "position" and one.meaning.effector in SPATIAL
    return (0 if first else 1, one.meaning.rank, one.place)


def _recipe(one: Candidate, names: dict, chosen: list[Candidate], primary: bool) -> tuple[SignalRecipe, Remarks]:
    """The signal, and remarks by field ("" is the signal itself)."""
    known = measure(one)
    recipe = SignalRecipe(
        path=[one.place],
        unit=known.unit,
        stated_unit=known.stated_unit,
        conversion=known.conversion,
        clock="period" if one.timing.period else "",
        gap=one.timing.gap,
        required=primary,
    )
    told: Remarks = {"": [f"{one.timing.told}; unit {one.unit!r}, 99.9 percentile of the norm {one.size():.4g}"]}
    place = (
        "stated_unit" if known.stated_unit else "conversion" if not known.conversion else "unit" if known.unit else ""
    )
    told.setdefault(place, []).extend(known.remarks)
    if one.timing.period:
        told["clock"] = [
            f"the rate of {one.facts[0].rate:g} reads as a period: t = start + i * rate fits the spikes, "
            "samples at that rate would outlast them many times"
        ]
    if one.finite < 1:
        told[""].append(f"{100 * (1 - one.finite):.2g} % of its samples are missing")
    if one.timing.gap > 1.5:
        told["gap"] = [f"pauses of up to {one.timing.gap:g} intervals are many and short: let pass"]
    recipe = _against_position(one, chosen, recipe, told)
    if primary and (spare := _spare(one, chosen, recipe)):
        recipe = replace(recipe, derive_from=names[spare.place])
        told["derive_from"] = ["where a file has no velocity"]
    return (_plausible(one, known, recipe, told) if primary else recipe), told


def _against_position(one: Candidate, chosen: list[Candidate], recipe: SignalRecipe, told: Remarks) -> SignalRecipe:
    """Whether a velocity is the rate of change of a position beside it; per-sample velocities get their factor."""
    if one.meaning.quantity != "velocity":
        return recipe
    for other in chosen:
        if other.meaning.quantity != "position" or other.meaning.effector != one.meaning.effector:
            continue
        found = agreement(one, other)
        if found is None or found[1] < 0.8:
            continue
        slope, correlation = found
        said = f"the rate of change of {other.short_place} is {slope:.3g} times it (correlation {correlation:.2f})"
        if abs(slope / one.timing.hz - 1) < 0.15 and abs(slope - 1) > 0.5 and _same_length(one, other):
            told["factor"] = [f"unsure: {said}, so it is per sample: made per second"]
            known = f"{other.unit}/s" if other.unit and not recipe.unit else recipe.stated_unit
            return replace(recipe, factor=round(one.timing.hz, 3), stated_unit=known)
        unit = _unit_by(slope, other) if recipe.stated_unit else ""
        if unit and unit != recipe.stated_unit:
            told["stated_unit"] = [f"unsure: the attribute says {one.unit!r}; {said}, so it is in {unit}"]
            return replace(recipe, unit=unit, stated_unit=unit)
        told[""].append(said)
    return recipe


def _spare(one: Candidate, chosen: list[Candidate], recipe: SignalRecipe) -> Candidate | None:
    """A position whose rate of change is this velocity, units of measure included; None where none is."""
    if one.meaning.quantity != "velocity" or recipe.factor != 1 or not recipe.unit:
        return None
    for other in chosen:
        known, found = measure(other), agreement(one, other) if other.meaning.quantity == "position" else None
        if found is None or not known.unit or not known.conversion:
            continue
        expected = factor("", recipe.unit, "m/s") / factor("", known.unit, "m")
        if found[1] > 0.9 and abs(found[0] / expected - 1) < 0.1:
            return other
    return None


def _unit_by(slope: float, position: Candidate) -> str:
    """The unit of a velocity, from a position whose own unit makes sense and how many times it changes as fast."""
    known = measure(position)
    if known.stated_unit or not known.unit or not HAND[0] <= known.speed <= HAND[1]:
        return ""
    size = slope * factor("", known.unit, "m")
    return next((f"{unit}/s" for unit, m in (("m", 1.0), ("cm", 0.01), ("mm", 0.001)) if abs(size / m - 1) < 0.05), "")


def _columns(one: Candidate) -> str:
    count = one.value.shape[1]
    return f"{count} columns" if count != 1 else "1 column"


def _same_length(one: Candidate, other: Candidate) -> bool:
    return one.unit.split("/")[0].strip().lower() == other.unit.split("/")[0].strip().lower() or not measure(one).unit


def _plausible(one: Candidate, known: Measure, recipe: SignalRecipe, told: Remarks) -> SignalRecipe:
    """Limits that catch a cm/mm swap in the files to come."""
    size = one.size() * recipe.factor / (1 if known.conversion else one.facts[0].conversion)
    if not known.unit or not np.isfinite(size) or size <= 0 or not HAND[0] <= known.speed <= HAND[1]:
        return recipe
    told["plausible"] = [LIMITS]
    return replace(recipe, plausible=[float(f"{size * by:.2g}") for by in (0.2, 5.0)])


def _derived(first: Candidate, names: dict, recipes: dict, remarks: Remarks, place_first: bool) -> dict:
    """The velocity of a primary position, put first, where the file has none."""
    name = names[first.place]
    if first.meaning.quantity != "position" or place_first or recipes[name].factor != 1:
        return recipes
    base = name.removesuffix("_position").removesuffix("_pos")
    velocity = f"{base}_vel" if f"{base}_vel" not in recipes else f"{name}_vel"
    known, number = measure(first), first.speed()
    made = SignalRecipe(derive_from=name)
    told = [f"the file has no velocity of it: central differences of {name}, stretch by stretch"]
    if known.unit:
        made = replace(made, unit=f"{known.unit}/s")
        if HAND[0] <= known.speed <= HAND[1] and np.isfinite(number):
            scale = 1 if known.conversion else 1 / first.facts[0].conversion
            limits = [float(f"{number * scale * by:.2g}") for by in (0.2, 5.0)]
            made = replace(made, plausible=limits)
            told.append(f"99.9 percentile of its norm {number * scale:.4g}; plausible: {LIMITS}")
    recipes[name] = replace(recipes[name], plausible=[])
    remarks.pop(f"signals.{name}.plausible", None)
    remarks[f"signals.{velocity}"] = told
    return {velocity: made, **recipes}


def _domain(chosen: list[Candidate], names: dict, recipes: dict) -> tuple[list[str], list[str]]:
    """The signal the domain rests on: another one than the first where that one is there in snatches only."""
    first = chosen[0]
    best = max(chosen, key=lambda c: c.timing.covered_s)
    if first.timing.covered_s >= 0.5 * best.timing.covered_s or first.timing.covered_s > 300:
        return [], []
    told = (
        f"{names[first.place]} is there in snatches ({first.timing.covered_s:.0f} s in stretches of a second), "
        f"{names[best.place]} for {best.timing.covered_s:.0f} s: the domain rests on that"
    )
    recipes[names[best.place]] = replace(recipes[names[best.place]], required=True)
    return [names[best.place]], [told]


def _masks(found: FoundSeries, counts: SeriesFacts | None) -> tuple[dict[str, PhaseRecipe], Remarks]:
    """Evaluation masks as phases."""
    phases, remarks = {}, {}
    for one in found.masks:
        if "eval" not in one.name.lower():
            continue
        true = float(np.mean(one.look().astype(bool)))
        about = f"; the file says: {one.description[:120]}" if one.description else ""
        clock = {"clock": "period"} if 0 < one.rate < 1 else {}
        phases["eval"] = PhaseRecipe(mask=[one.place], optional=True, **clock)
        remarks["phases.eval"] = [
            f"unsure: true for {100 * true:.0f} % of its samples, taken as what is evaluated{about}"
        ]
    return phases, remarks
