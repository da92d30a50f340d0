"""A Survey -> where spikes are and what the units table says: source, regions, quality, units held out."""

import re
from dataclasses import dataclass

import numpy as np

from data_prep.discover_survey import SeriesFacts, Survey
from data_prep.discover_words import COUNTS, POWER, tally, words
from data_prep.errors import SessionError
from data_prep.recipe import UnitsRecipe

_AREAS = r"M1|PMd|PMv|S1|SMA|FEF|LIP|PPC|AIP|area ?2|area ?5|DMFC|dlPFC|PFC|OFC|ACC|ALM|V1|V4|MT|IT|CA1|CA3|DG|MEC|STR|thalamus"
HIPPOCAMPUS = r"CA1|CA3|DG|MEC|hippocamp|subicul|HPC"


@dataclass(frozen=True)
class FoundSpikes:
    """The units section and what to remark on it: path within the recipe -> sentences."""

    recipe: UnitsRecipe
    remarks: dict[str, list[str]]
    seen: str  # one line for the head
    counts: SeriesFacts | None = None  # the series of counts, where there is no table
    areas: tuple[str, ...] = ()


def find_spikes(survey: Survey) -> FoundSpikes:
    """Where spikes are; raises SessionError that says what was looked at where there are none."""
    if survey.units and survey.spike_times:
        return _from_table(survey)
    rated = sorted(((_score(one), one) for one in survey.series), key=lambda pair: -pair[0])
    if rated and rated[0][0] > 0:
        return _from_counts(survey, rated[0][1], [one for score, one in rated[1:] if score > 0])
    table = (
        "no units table"
        if not survey.units
        else "a units table without spike_times"
        if "spike_times" not in survey.unit_columns
        else "a units table without a spike"
    )
    looked = ", ".join(one.place for one in survey.series) or "no series at all"
    raise SessionError(
        survey.name, f"no spikes: {table}, and no series of counts among {looked}", "sort or bin its spikes first"
    )


def _score(one: SeriesFacts) -> float:
    """How much a series looks like counts, 0 for not at all: whole numbers from 0 on, many columns, 10 to 100 Hz."""
    named = set(words(one.name))
    if one.dtype not in "iufb" or len(one.shape) != 2 or one.shape[0] < 2 or named & POWER:
        return 0.0
    stored = one.look()
    known = stored[np.isfinite(stored)]
    if not known.size or known.min() < 0 or (known != np.round(known)).any() or known.max() == known.min():
        return 0.0
    hz = one.rate or _hz(one)
    fitting = (hz >= 5 or (one.rate > 0)) + (known.max() < 500)
    return fitting * (3.0 * bool(named & COUNTS) + (one.columns > 10))


def _hz(one: SeriesFacts) -> float:
    step = np.diff(one.times())
    step = step[step > 0]
    return float(1 / np.median(step)) if len(step) else 0.0


def _from_counts(survey: Survey, one: SeriesFacts, others: list[SeriesFacts]) -> FoundSpikes:
    hz = one.rate or _hz(one)
    stored = one.look()
    remarks = {
        "units.source": [
            f"{one.columns} columns of whole numbers from 0 to {np.nanmax(stored):g}, {hz:.4g} Hz: counts of spikes in bins"
        ],
        "units.bin_time": ["unsure: the file does not say whether a time marks the start, centre or stop of its bin"],
    }
    if others:
        remarks["units.source"].append(f"others that look like counts: {', '.join(o.place for o in others[:4])}")
    seen = f"spikes: counts in {1000 / hz:.4g}-ms bins of {one.columns} channels ({one.place}); no units table"
    return FoundSpikes(UnitsRecipe(source=[one.place], bin_time="start"), remarks, seen, one)


def _from_table(survey: Survey) -> FoundSpikes:
    remarks: dict[str, list[str]] = {}
    changed: dict = {"source": ["units"]}
    first, last = survey.spike_extent
    seen = f"spikes: units table, {survey.units} units, {survey.spike_times:,} spikes, {first:.1f} to {last:.1f} s"
    areas = _regions(survey, changed, remarks)
    quality = _quality(survey)
    if quality:
        changed["quality_column"] = quality
        counted = tally(survey.unit_table[quality].astype(str))
        remarks["units.quality_column"] = [f"holds {counted}; all are kept (units.keep would choose)"]
    held = [n for n, v in survey.unit_table.items() if re.search(r"held_?-?out", n, re.I) and v.dtype.kind in "biu"]
    if held:
        changed["held_out"] = held[0]
        count = int(np.sum(survey.unit_table[held[0]].astype(bool)))
        remarks["units.held_out"] = [f"true of {count} of {survey.units} units"]
    if survey.falls:
        remarks["units.source"] = [
            f"unsure: times of its busiest unit fall back {survey.falls} times (unsorted, or a clock that was reset)"
        ]
    return FoundSpikes(UnitsRecipe(**changed), remarks, seen, None, areas)


def _regions(survey: Survey, changed: dict, remarks: dict) -> tuple[str, ...]:
    """Sets region and region_map, and gives the areas that result."""
    told = survey.unit_region
    useful = [source for source, texts in told.items() if len(set(texts)) > 0]
    ids = survey.unit_table["id"].tolist()
    lead = sorted({text[0] for text in ids if text.isdigit()}) if all(len(t) >= 4 and t.isdigit() for t in ids) else []
    if not useful:
        if 1 < len(lead) <= 4:
            changed["region"] = ["id"]
            changed["region_map"] = {f"^{digit}": f"array{digit}" for digit in lead}
            remarks["units.region"] = [
                "unsure: nothing names a region; unit ids begin with the number of an array, it seems"
            ]
        else:
            remarks["units.region"] = ["nothing in the file names a region: all units become `unknown`"]
        return ()
    # the source that tells most regions apart comes first; those that say nothing of their own are left out
    useful.sort(key=lambda source: -len({text for text in told[source] if _area(text)}))
    best = told[useful[0]]
    filled, kept = set(), []
    for source in useful:
        new = {row for row, text in enumerate(told[source]) if text} - filled
        kept, filled = (kept + [source], filled | new) if new else (kept, filled)
    changed["region"] = kept
    remarks["units.region"] = [f"{useful[0]} says {tally(np.array([text or '(nothing)' for text in best]))}"]
    if 1 < len(lead) <= 4:
        remarks["units.region"].append(
            f"unsure: unit ids begin with {' or '.join(lead)}, which may number the arrays; `id` in region would use that"
        )
    wordy = sorted({text for text in best if text and not re.fullmatch(r"[A-Za-z0-9+_-]{1,12}", text)})
    areas = {text: _area(text) for text in wordy}
    if any(area and area != text for text, area in areas.items()):
        changed["region_map"] = {rf"\b{area}\b": area for area in sorted({a for a in areas.values() if a})}
        remarks["units.region_map"] = [f"shortens {wordy[0][:60]!r} and the like"]
    return tuple(sorted({areas.get(text) or text for text in best if text}))


def _area(text: str) -> str:
    found = re.search(rf"\b({_AREAS})\b", text, re.I)
    return found[1] if found else (text if re.fullmatch(r"[A-Za-z0-9+_-]{1,12}", text) else "")


def _quality(survey: Survey) -> str:
    for name, values in survey.unit_table.items():
        if re.fullmatch(r"quality|.*quality.*|.*isolation.*|is_?mua|mua|sort(ed|ing).*|unit_type|label", name, re.I):
            if values.dtype.kind in "Ub" or len(np.unique(values)) <= 6:
                return name
    return ""
