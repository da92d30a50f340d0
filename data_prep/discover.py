"""An NWB file nobody has described -> a proposed recipe, tried on the file itself, as commented YAML."""

import re
import textwrap
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from data_prep.assembly import opened_session
from data_prep.discover_mends import MENDS
from data_prep.discover_signals import Signals, find_signals
from data_prep.discover_spikes import HIPPOCAMPUS, FoundSpikes, find_spikes
from data_prep.discover_survey import Survey, surveyed
from data_prep.discover_text import Remarks, as_yaml
from data_prep.discover_trials import ENOUGH, FoundTrials, find_trials_words
from data_prep.errors import MendableError
from data_prep.recipe import Recipe, SplitsRecipe
from data_prep.session import SPLITS, Session

TRIES = 12  # mends of a proposal that its own file refuses
SHORTEST_BLOCK_S = 4.0  # blocks are no shorter where there is time for five of them


@dataclass(frozen=True)
class Outcome:
    """What a recipe makes of a file, without the arrays."""

    units: int
    spikes: int
    primary: tuple[str, str, int] | None  # the first signal: name, unit of measure, columns
    phases: tuple[str, ...]
    seconds: float  # of the domain
    stretches: int
    splits: dict[str, float]  # seconds of each
    notes: tuple[str, ...]

    @staticmethod
    def of(session: Session) -> "Outcome":
        """The outcome that a session is."""
        signal = next(iter(session.signals.values()), None)
        return Outcome(
            units=len(session.units),
            spikes=len(session.spikes),
            primary=(signal.name, signal.unit_of_measure, signal.value.shape[1]) if signal else None,
            phases=tuple(session.phases),
            seconds=session.domain.seconds,
            stretches=len(session.domain),
            splits={name: session.splits[name].seconds for name in SPLITS},
            notes=tuple(filter(None, session.provenance.get("notes", "").splitlines())),
        )


@dataclass(frozen=True)
class Proposal:
    """A recipe for one file, what is behind it, and what came of trying it."""

    recipe: Recipe
    remarks: Remarks = field(default_factory=dict)  # path within the recipe -> sentences
    blocks: SplitsRecipe = field(default_factory=SplitsRecipe)  # how it would be split by time
    head: tuple[str, ...] = ()
    outcome: Outcome | None = None  # what the recipe makes of the file; None where the file refuses it
    refusal: str = ""  # the last refusal, "" where the file was read

    @property
    def told(self) -> str:
        """In half a line, what came of it."""
        if self.outcome is None:
            return f"its own file refuses it ({self.refusal})"
        unsure = sum(text.startswith("unsure") for texts in self.remarks.values() for text in texts)
        doubts = (
            f"{_count(unsure, 'remark says', 'remarks say')} what it is unsure about"
            if unsure
            else "nothing is marked unsure"
        )
        return f"it reads its own file; {doubts}"

    def text(self) -> str:
        """Commented YAML for `spikeloom prepare`."""
        return as_yaml(self.recipe, self.remarks, list(self.head))


def discover(path: Path, name: str = "") -> Proposal:
    """A recipe for the file, called `name` (else after the file); raises SessionError where there is nothing to read."""
    path = Path(path)
    with surveyed(path) as survey:
        spikes = find_spikes(survey)
        place_first = any(re.search(HIPPOCAMPUS, area, re.I) for area in spikes.areas)
        signals = find_signals(survey, spikes.counts, place_first)
        trials = find_trials_words(survey)
        draft = _draft(survey, spikes, signals, trials, name or _name(path))
    tried = _tried(draft, path)
    return replace(tried, head=tuple(_head(survey, spikes, signals, trials, tried)))


def _name(path: Path) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "_", path.name.split(".")[0]).strip("_-") or "discovered"


def _draft(survey: Survey, spikes: FoundSpikes, signals: Signals, trials: FoundTrials, name: str) -> Proposal:
    recipe = Recipe(
        name=name,
        description=_sayable(_short(survey.description, 100)) or f"Proposed from {survey.name}",
        units=spikes.recipe,
        signals=signals.recipes,
        trials=trials.trials,
        phases={**trials.phases, **signals.masks},
        eval_phases=list(signals.masks),
        domain=replace(trials.domain, signals=signals.domain),
    )
    remarks = _merged(spikes.remarks, signals.remarks, trials.remarks)
    recipe = _named(survey, recipe, remarks)
    recipe = _repaired(survey, signals, trials, recipe, remarks)
    blocks = _blocks(survey, signals)
    if trials.split:
        recipe = replace(recipe, splits=trials.split)
    elif trials.good >= ENOUGH:
        recipe = replace(recipe, splits=SplitsRecipe(by="trial", guard_s=blocks.guard_s))
        remarks["splits"] = [f"whole trials are drawn, from the {trials.good} good ones"]
    else:
        recipe = replace(recipe, splits=blocks)
        remarks["splits"] = [
            f"{trials.good or 'no'} good trials where {ENOUGH} would do: blocks of time are drawn instead"
        ]
    if recipe.domain.observed and survey.observed:
        remarks.setdefault("domain", []).append(
            "the units have obs_intervals; the domain keeps to those that all share"
        )
    return Proposal(recipe, remarks, blocks=blocks)


def _blocks(survey: Survey, signals: Signals) -> SplitsRecipe:
    """Twenty blocks of time, fewer and with a narrower guard where the recording is short."""
    lasting = float(np.diff(survey.spike_extent)[0])
    seconds = min([length for length in (lasting, signals.seconds) if np.isfinite(length)], default=np.inf)
    count = int(np.clip(seconds / SHORTEST_BLOCK_S, 5, 20))
    return SplitsRecipe(by="blocks", blocks=count, guard_s=float(f"{np.clip(seconds / count / 4, 0.1, 1.0):.2g}"))


def _merged(*parts: Remarks) -> Remarks:
    out: Remarks = {}
    for part in parts:
        for key, texts in part.items():
            out.setdefault(key, []).extend(texts)
    return out


def _named(survey: Survey, recipe: Recipe, remarks: Remarks) -> Recipe:
    """How sessions are called: by what the file says of itself, else by its name."""
    if survey.session_id.strip():
        remarks["session"] = [f"sessions are named by session_id, here {survey.session_id.strip()[:60]!r}"]
    elif re.fullmatch(r"[^\n]{1,60}", name := survey.identifier.strip()) and not re.fullmatch(
        r"[0-9a-f-]{32,36}", name, re.I
    ):
        recipe = replace(recipe, session="identifier")
        remarks["session"] = [f"there is no session_id; the identifier is {name!r}"]
    else:
        recipe = replace(recipe, session="file")
        remarks["session"] = ["there is no session_id, and the identifier is no name"]
    if not survey.subject.strip():
        said = re.search(r"sub-([A-Za-z0-9]+)", survey.name)
        recipe = replace(recipe, subject=said[1] if said else "unknown")
        remarks["subject"] = ["the file names no subject" + ("; its own name does" if said else "")]
    paradigm = {
        "center_out": r"cent(er|re)[- _]?out",
        "random_target": r"random[- _]target",
        "maze": r"\bmaze",
        "linear_track": r"linear[- _]track",
        "open_field": r"open[- _](field|arena)",
    }
    found = next((word for word, pattern in paradigm.items() if re.search(pattern, survey.description, re.I)), "")
    if found:
        remarks["paradigm"] = ["from the file's description"]
    return replace(recipe, paradigm=found)


def _repaired(survey: Survey, signals: Signals, trials: FoundTrials, recipe: Recipe, remarks: Remarks) -> Recipe:
    """Repairs for clocks: a reset where trials and series (or spikes) fall back alike, else sorting and dropping."""
    repairs, why = [], []
    resets = trials.overlaps > 0 and (signals.falls == trials.overlaps or (not signals.recipes and survey.falls > 0))
    if resets and trials.falls:
        repairs.append("clock_reset")
        why.append(f"trials and samples start anew {trials.overlaps} times: the clock was reset")
    elif signals.falls:
        repairs.append("sort_timestamps")
        why.append(f"{signals.falls} sample times lie before the one above")
    if signals.repeats or (signals.falls and not resets):
        repairs.append("drop_repeated_timestamps")
        why.append(
            f"{signals.repeats} sample times are repeated" if signals.repeats else "times once sorted may be equal"
        )
    if trials.overlaps and not (resets and trials.falls):
        why.append(
            f"unsure: {trials.overlaps} trials start before the one above has ended (drop_overlapping_trials drops them)"
        )
    if why:
        remarks["repairs"] = why
    return replace(recipe, repairs=repairs)


# ------------------------------------------------------------------------------- trying it on the file


def _tried(draft: Proposal, path: Path) -> Proposal:
    """The proposal after as many mends as its own file asks for; with the outcome, or with the refusal."""
    refusal = ""
    for _ in range(TRIES):
        try:
            with opened_session(path, draft.recipe) as session:
                outcome = Outcome.of(session)
        except MendableError as error:
            refusal = str(error)
            mended = _mended(draft, refusal)
            if mended is None:
                return replace(draft, refusal=refusal)
            draft = mended
            continue
        better = _better_split(draft, outcome)
        if better is None:
            return _lowered(replace(draft, outcome=outcome))
        draft = better
    return replace(draft, refusal=refusal)


def _mended(draft: Proposal, refusal: str) -> Proposal | None:
    """The proposal changed so that this refusal does not come again, with the refusal as a remark; None if no mend is known."""
    for pattern, mend in MENDS:
        if re.search(pattern, refusal):
            changed = mend(draft.recipe, refusal, draft.blocks)
            if changed is not None and changed[0] != draft.recipe:
                recipe, path = changed
                said = _short(refusal.split(": ", 1)[-1], 160)
                remarks = {
                    **draft.remarks,
                    path: [*draft.remarks.get(path, []), f"unsure: changed, as the file said: {said}"],
                }
                return replace(draft, recipe=recipe, remarks=_still_there(remarks, recipe))
    return None


def _still_there(remarks: Remarks, recipe: Recipe) -> Remarks:
    gone = lambda key: key.startswith("signals.") and key.split(".")[1] not in recipe.signals  # noqa: E731
    return {key: texts for key, texts in remarks.items() if not gone(key)}


def _better_split(draft: Proposal, outcome: Outcome) -> Proposal | None:
    """Blocks instead of trials where a split comes out all but empty, and as many as the time allows; None if all is well."""
    recipe, total = draft.recipe, outcome.seconds
    poorest = min(outcome.splits.values())
    enough = min(10.0, 0.02 * total)
    if poorest >= enough:
        return None
    told = f"by {recipe.splits.by} the smallest split would hold {poorest:.1f} s of {total:.0f} s"
    if recipe.splits.by != "blocks":
        splits, path = draft.blocks, "splits"
    elif recipe.splits.guard_s > 0.25:
        splits, path = replace(recipe.splits, guard_s=recipe.splits.guard_s / 2), "splits.guard_s"
    else:
        return None
    remarks = {**draft.remarks, path: [*draft.remarks.get(path, []), told]}
    return replace(draft, recipe=replace(recipe, splits=splits), remarks=remarks)


def _lowered(draft: Proposal) -> Proposal:
    """min_train_s at half of a short file's training time, so that a somewhat shorter one is read too."""
    train = draft.outcome.splits["train"]
    half = float(int(train / 2))
    if half >= draft.recipe.min_train_s:
        return draft
    remarks = {
        **draft.remarks,
        "min_train_s": [f"this file has {train:.0f} s of training time; half of that is asked for"],
    }
    return replace(draft, recipe=replace(draft.recipe, min_train_s=half), remarks=remarks)


# ------------------------------------------------------------------------------- the head


def _head(survey: Survey, spikes: FoundSpikes, signals: Signals, trials: FoundTrials, tried: Proposal) -> list[str]:
    lines = [f"Proposed from one file, {survey.name} (NWB {survey.version}); read it before you use it on others."]
    if survey.description:
        lines.append(f"The file says: {_short(survey.description, 300)}")
    lines += [f"Seen: {text}." for text in (spikes.seen, *signals.seen, trials.seen)]
    if signals.passed_over:
        lines.append(f"Passed over: {_grouped(signals.passed_over)}.")
    made = tried.outcome
    if made is None:
        return [f"REFUSED by its own file: {tried.refusal}", *lines]
    each = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in made.splits.items())
    primary = "no signal, so a session of spikes only"
    if made.primary:
        name, unit, dims = made.primary
        primary = f"primary signal {name}, {_count(dims, 'column', 'columns')} in {unit or 'no unit'}"
    lines.append(
        f"Tried on it: {_count(made.units, 'unit', 'units')}, {made.spikes:,} spikes; {primary}; domain "
        f"{made.seconds:.0f} s in {_count(made.stretches, 'stretch', 'stretches')}; {each}."
    )
    if empty := [name for name, seconds in made.splits.items() if not seconds]:
        lines.append(f"unsure: there is too little for {' and '.join(empty)}, which come out empty.")
    return [*lines, *([f"Noted: {'; '.join(made.notes)}."] if made.notes else [])]


def _grouped(passed: list[tuple[str, str]]) -> str:
    """Places by the reason they were passed over for."""
    places: dict[str, list[str]] = {}
    for place, reason in passed:
        places.setdefault(reason, []).append(place)
    told = (
        f"{', '.join(these[:3])}{f' and {len(these) - 3} more' if len(these) > 3 else ''} ({reason})"
        for reason, these in places.items()
    )
    return "; ".join(told)


def _sayable(text: str) -> str:
    """The text without what a configuration cannot say: `${...}` is refused there, `???` means that nothing is set."""
    return "" if text == "???" else text.replace("${", "$ {")


def _short(text: str, most: int) -> str:
    return textwrap.shorten(text, most, placeholder=" ...")


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"
