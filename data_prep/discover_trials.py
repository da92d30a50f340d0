"""A Survey -> the trial table in a recipe's words: which trials are good, their phases, columns in ms, a split, epochs."""

import re
from dataclasses import dataclass, field

import numpy as np

from data_prep.discover_survey import Survey
from data_prep.discover_words import tally, words
from data_prep.errors import MendableError
from data_prep.expression import passes
from data_prep.recipe import DomainRecipe, Moment, PhaseRecipe, SplitsRecipe, TrialsRecipe

GOOD_WORDS = {
    "r",
    "reward",
    "rewarded",
    "success",
    "successful",
    "correct",
    "hit",
    "s",
    "pass",
    "true",
    "ok",
    "complete",
}
BAD_WORDS = {"discard", "discarded", "outlier", "bad", "invalid", "abort", "aborted", "exclude", "excluded", "reject"}
FINE_WORDS = {"success", "successful", "correct", "good", "valid", "rewarded"}
ENOUGH = 20  # good trials from which whole trials are drawn into the splits
_GO, _MOVE = r"go_?cue|^go(_|$)|go_time|go_tone|movement_cue", r"mov(e|ement)_?(on|onset|begin|begins|start)"
_TARGET_ON = r"target_(on|presentation|appear|onset)|tgt_on|instruction_(on|time)|cue_on"
_SPAN = r"(^|_)(rt|reaction|delay|duration|latency|iti|ts|tp|timeout|hold|interval|ms|reach)(_|$)"


@dataclass(frozen=True)
class FoundTrials:
    """Sections that rest on trials and epochs, and what to remark on them."""

    trials: TrialsRecipe = field(default_factory=lambda: TrialsRecipe(table=""))
    phases: dict[str, PhaseRecipe] = field(default_factory=dict)
    eval_phases: list[str] = field(default_factory=list)
    split: SplitsRecipe | None = None
    domain: DomainRecipe = field(default_factory=DomainRecipe)
    remarks: dict[str, list[str]] = field(default_factory=dict)
    seen: str = "trials: none"
    good: int = 0
    overlaps: int = 0  # trials that start before the one above has ended
    falls: int = 0  # trials that start before the one above started


def find_trials_words(survey: Survey) -> FoundTrials:
    """What the tables below intervals/ say; an empty FoundTrials where there is no usable one."""
    domain, domain_remarks = _epochs(survey)
    name = _table(survey)
    if not name:
        return FoundTrials(domain=domain, remarks=domain_remarks)
    table = dict(survey.tables[name])
    remarks: dict[str, list[str]] = {**domain_remarks}
    factors = _milliseconds(survey, name, table, remarks)
    for key, by in factors.items():
        table[key] = table[key] * by
    start, stop = (table[key].astype(np.float64) for key in ("start_time", "stop_time"))
    table["duration"] = stop - start
    with np.errstate(invalid="ignore"):
        usable = stop > start
        falls, overlaps = int(np.sum(np.diff(start) < 0)), int(np.sum(start[1:] < stop[:-1] - 1e-6))
    rows = len(start)
    if not usable.any():
        remarks["trials.table"] = [
            f"none of the {rows} trials of intervals/{name} has both a start and a stop: not used"
        ]
        return FoundTrials(domain=domain, remarks=remarks, seen=f"trials: {rows}, none with a start and a stop")
    valid, good = _valid(table, usable, remarks)
    lasting = np.median((stop - start)[usable])
    remarks.setdefault("trials.table", []).append(f"{rows} trials of {lasting:.3g} s (median)")
    inside = [c for c in table if _within(table, c, start, stop)]
    phases = _phases(inside, remarks)
    unread = survey.unread.get(name, ())
    if unread:
        remarks["trials.table"].append(f"columns left unread: {', '.join(unread[:6])}")
    return FoundTrials(
        trials=TrialsRecipe(table=name, valid=valid, factors=factors),
        phases=phases,
        split=_split_column(table, remarks),
        domain=domain,
        remarks=remarks,
        seen=f"trials: {rows} in intervals/{name}, {good} good, {lasting:.3g} s long (median)",
        good=good,
        overlaps=overlaps,
        falls=falls,
    )


def _table(survey: Survey) -> str:
    """The table of trials: the one of that name, else the longest that is neither epochs nor invalid times."""
    fit = {
        name: len(table["start_time"])
        for name, table in survey.tables.items()
        if {"start_time", "stop_time"} <= set(table) and len(table["start_time"])
    }
    if "trials" in fit:
        return "trials"
    others = [name for name in fit if name not in ("epochs", "invalid_times") and fit[name] >= ENOUGH]
    return max(others, key=lambda name: fit[name], default="")


def _milliseconds(survey: Survey, name: str, table: dict, remarks: dict) -> dict[str, float]:
    """Columns that hold milliseconds, by their description, or as thousand times too long for their trial."""
    with np.errstate(invalid="ignore"):
        lasting = table["stop_time"].astype(np.float64) - table["start_time"]
        longest = np.nanmax(np.append(lasting[lasting > 0], 1.0))
    out = {}
    for key, values in table.items():
        if values.dtype.kind not in "fiu" or key in ("start_time", "stop_time"):
            continue
        about = survey.about.get(name, {}).get(key.split(".")[0], "")
        known = np.abs(values[np.isfinite(values.astype(np.float64))].astype(np.float64))
        said = bool(re.search(r"\b(in )?ms\b|millisecond|\(ms\)", about, re.I)) or key.lower().endswith("_ms")
        span = bool(re.search(_SPAN, key.lower()))
        if not len(known) or np.median(known) == 0:
            continue
        too_long = span and np.median(known) > 20 * longest and np.median(known) < 1000 * longest
        if said or too_long:
            out[key] = 0.001
            why = (
                "the file says ms"
                if said
                else f"unsure: median {np.median(known):g}, trials last {longest:.3g} s at most"
            )
            remarks.setdefault(f"trials.factors.{key}", []).append(f"{why}; to seconds")
    return out


def _valid(table: dict, usable: np.ndarray, remarks: dict) -> tuple[str, int]:
    """The condition of a good trial, and how many meet it; a part that leaves too few is left out and told."""
    parts, notes = [], []
    for key, values in table.items():
        condition = _condition(key, values)
        if condition:
            parts.append(condition)
            notes.append(f"{key}: {tally(values)}")
    kept: list[str] = []
    for part in parts:
        count = _count(table, usable, [*kept, part])
        before = _count(table, usable, kept)
        if count >= max(3, 0.2 * before):
            kept.append(part)
        else:
            notes.append(f"unsure: {part} would leave {count} of {before} trials, so it is not asked for")
    if notes:
        remarks["trials.valid"] = notes
    return " and ".join(kept), _count(table, usable, kept)


def _count(table: dict, usable: np.ndarray, parts: list[str]) -> int:
    try:
        return int(np.sum(passes("trials", table, " and ".join(parts)) & usable))
    except MendableError:
        return 0


def _condition(key: str, values: np.ndarray) -> str:
    """What a good trial has in that column, "" where the column says nothing of it."""
    named, name = set(words(key)), key if key.isidentifier() else f"get({key!r})"
    if values.dtype.kind == "f" and not np.isfinite(values).any():
        return ""
    flags = values.dtype.kind == "b" or (
        values.dtype.kind in "fiu" and np.isin(values[np.isfinite(values)], (0, 1)).all()
    )
    texts = {text.lower() for text in np.unique(values.astype(str)).tolist()} if values.dtype.kind == "U" else set()
    flags = flags or (bool(texts) and texts <= {"true", "false", "0", "1"})
    if flags and named & BAD_WORDS:
        return f"not {name}" if values.dtype.kind == "b" else f"{name} == 0"
    if flags and named & FINE_WORDS:
        return name if values.dtype.kind == "b" else f"{name} == 1"
    if named & {"result", "outcome", "success"} and texts & GOOD_WORDS:
        good = sorted(text for text in np.unique(values).tolist() if text.lower() in GOOD_WORDS)
        return f"{name} == {good[0]!r}" if len(good) == 1 else f"{name} in {tuple(good)!r}"
    return ""


def _within(table: dict, key: str, start: np.ndarray, stop: np.ndarray) -> bool:
    """Whether a column holds moments of its trials: nearly all of its values lie between start and stop."""
    values = table[key]
    if values.dtype.kind != "f" or key in ("start_time", "stop_time", "duration"):
        return False
    known = np.isfinite(values) & np.isfinite(start) & np.isfinite(stop)
    if known.sum() < max(2, 0.05 * len(values)):
        return False
    inside = (values >= start - 0.05) & (values <= stop + 0.05)
    spread = np.ptp(start[known]) > 5 * np.median((stop - start)[known])  # else any small number would lie inside
    return bool(np.mean(inside[known]) > 0.9 and (spread or "time" in key))


def _phases(inside: list[str], remarks: dict) -> dict[str, PhaseRecipe]:
    def find(pattern: str, of: list[str] = inside) -> str:
        return next((c for c in of if re.search(pattern, c.split(".")[0].lower())), "")

    go = find(_GO) or find(_MOVE)
    if not go:
        told = f"; moments within trials: {', '.join(inside)}" if inside else ""
        remarks["phases"] = [f"no column looks like a go cue or the onset of a movement{told}"]
        return {"trial": PhaseRecipe()}
    early = find(_TARGET_ON, [c for c in inside if c != go])
    end = find(r"mov(e|ement)s?_?(end|off|stop)")
    kind = "a go cue" if re.search(_GO, go.lower()) else "the onset of a movement (no go cue in the file)"
    remarks["phases"] = [f"{go} looks like {kind}: it lies within its trials"]
    other = [c for c in inside if c not in (go, early, end)]
    if other:
        remarks["phases"].append(f"other moments within trials: {', '.join(other[:8])}")
    begin = Moment(early) if early else Moment()
    return {
        "hold": PhaseRecipe(begin, Moment(go), optional=True),
        "reach": PhaseRecipe(Moment(go), Moment(end) if end else Moment("stop_time"), optional=True),
    }


def _split_column(table: dict, remarks: dict) -> SplitsRecipe | None:
    """Splits as a column says, where one does."""
    for key, values in table.items():
        if values.dtype.kind != "U" or not re.fullmatch(r"split|data_?split|partition|fold|set", key.lower()):
            continue
        found = {text.lower(): text for text in np.unique(values).tolist()}
        train = [found[w] for w in ("train", "training") if w in found]
        valid = [found[w] for w in ("val", "valid", "validation", "eval") if w in found]
        test = [found[w] for w in ("test", "testing", "heldout") if w in found]
        if not train:
            continue
        remarks["splits.by"] = [f"{key} holds {tally(values)}"]
        if valid and not test:
            test, valid = valid, []
            remarks["splits.by"].append(f"{', '.join(test)} is taken as test, valid is drawn out of train")
        named = {"train": train, "valid": valid, "test": test}
        return SplitsRecipe(by="column", column=key, values={k: v for k, v in named.items() if v}, rest="drop")
    return None


def _epochs(survey: Survey) -> tuple[DomainRecipe, dict[str, list[str]]]:
    """A domain that keeps to the epochs of the task, where a table of epochs tells several kinds apart."""
    table = survey.tables.get("epochs", {})
    tags = table.get("tags", np.zeros(0, dtype=str))
    kinds = np.unique(tags).tolist()
    task = [k for k in kinds if set(words(k)) & {"task", "run", "running", "behavior", "behaviour", "maze", "track"}]
    if len(kinds) < 2 or not task:
        told = {"domain": [f"epochs: {tally(tags)}; not used"]} if len(tags) else {}
        return DomainRecipe(), told
    if len(task) == len(kinds):
        return DomainRecipe(), {"domain": [f"epochs: {tally(tags)}; all of the task"]}
    parts = [f"{text!r} in tags" for text in dict.fromkeys(part for k in task for part in k.split(","))]
    remarks = {"domain.epochs": [f"unsure: epochs are {tally(tags)}; the others look like rest"]}
    return DomainRecipe(epochs_table="epochs", epochs=" or ".join(parts)), remarks
