"""Domain and trials -> train, valid and test: disjoint, seeded, with guard bands between them."""

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np

from data_prep.columns import column, is_one_of
from data_prep.errors import SessionError
from data_prep.recipe import SplitsRecipe
from data_prep.session import SPLITS, Intervals
from data_prep.trials import Trials


def split_domain(
    where: str, recipe: SplitsRecipe, domain: Intervals, trials: Trials, min_s: float, min_train_s: float = 30.0
) -> dict[str, Intervals]:
    """train, valid and test inside the domain, `guard_s` apart as the recipe says; pieces under `min_s` dropped.

    A file that a trial column splits may lack train and valid where `min_train_s` is 0. Raises SessionError where there
    is too little to split.
    """
    if recipe.by == "blocks":
        drawn = _by_blocks(where, recipe, domain)
    else:
        drawn = _by_trial(where, recipe, domain, trials, min_train_s)
    splits, taken = {}, Intervals.of([])
    for name in reversed(SPLITS):  # test keeps all it drew, valid yields to test, train to both
        guard_s = recipe.guard_s if recipe.guard == "any" or name == "train" else 0.0
        free = drawn[name].intersection(domain).difference(taken.dilated(guard_s))
        taken = Intervals.of([*taken, *drawn[name]]).merged()
        splits[name] = rounded(free, min_s)
    return {name: splits[name] for name in SPLITS}


def rounded(intervals: Intervals, min_s: float) -> Intervals:
    """Intervals with ends on whole microseconds, the grain of shards; those that then touch are joined, and those
    shorter than `min_s` seconds left out."""
    start, stop = np.ceil(intervals.start * 1e6 - 1e-3) / 1e6, np.floor(intervals.stop * 1e6 + 1e-3) / 1e6
    whole = Intervals.of(zip(start, stop)).merged()
    kept = np.round((whole.stop - whole.start) * 1e6) >= max(1, round(min_s * 1e6))
    return Intervals(whole.start[kept], whole.stop[kept])


def sizes(count: int, shares: tuple[float, ...]) -> list[int]:
    """How many of `count` go to each share: rounded, the remainder to the largest, none of them empty if that can be."""
    out = [round(count * share) for share in shares]
    out[int(np.argmax(out))] += count - sum(out)
    for k, share in enumerate(shares):
        if share > 0 and out[k] == 0 and max(out) > 1:
            out[int(np.argmax(out))] -= 1
            out[k] = 1
    return out


def blocks(domain: Intervals, count: int) -> list[Intervals]:
    """The domain cut into `count` parts of equal summed duration, in order of time; a part may span gaps."""
    whole = domain.merged()
    laid = np.concatenate([[0.0], np.cumsum(whole.stop - whole.start)])  # the domain end to end, without its gaps
    cuts = np.linspace(0.0, laid[-1], count + 1)
    parts = []
    for low, high in pairwise(cuts):
        first, last = np.searchsorted(laid, low, "right") - 1, np.searchsorted(laid, high, "left")
        shift = whole.start[first:last] - laid[first:last]
        parts.append(
            Intervals.of(
                zip(np.maximum(low, laid[first:last]) + shift, np.minimum(high, laid[first + 1 : last + 1]) + shift)
            )
        )
    return parts


def _by_blocks(where: str, recipe: SplitsRecipe, domain: Intervals) -> dict[str, Intervals]:
    parts = blocks(domain, recipe.blocks)
    order = np.random.default_rng(recipe.seed).permutation(len(parts))
    return _deal(where, recipe, order, parts, "blocks")


def _deal(
    where: str, recipe: SplitsRecipe, order: np.ndarray, parts: Sequence[Iterable[tuple[float, float]]], what: str
) -> dict[str, Intervals]:
    shares = tuple(getattr(recipe, name) for name in SPLITS)
    if len(order) < sum(share > 0 for share in shares):
        raise SessionError(
            where,
            f"{len(order)} usable {what} to share between {sum(s > 0 for s in shares)} splits",
            "raise splits.blocks" if what == "blocks" else "split it by blocks of time (splits.by=blocks)",
        )
    ends = np.cumsum(sizes(len(order), shares))
    dealt = zip(SPLITS, np.split(order, ends[:-1]))
    return {name: Intervals.of(pair for k in part for pair in parts[k]) for name, part in dealt}


def _by_trial(
    where: str, recipe: SplitsRecipe, domain: Intervals, trials: Trials, min_train_s: float
) -> dict[str, Intervals]:
    parts = _clipped(domain.merged(), trials)
    inside = np.array([len(part) > 0 for part in parts], dtype=bool)
    usable = np.flatnonzero(inside & trials.valid)
    if recipe.by == "column":
        chosen = _by_column(where, recipe, trials, usable, min_train_s)
        drawn = {name: Intervals.of(pair for k in rows for pair in parts[k]) for name, rows in chosen.items()}
    else:
        runs = _runs(usable, recipe.run)
        order = np.random.default_rng(recipe.seed).permutation(len(runs))
        together = [[pair for k in rows for pair in parts[k]] for rows in runs]
        drawn = _deal(where, recipe, order, together, "trials" if recipe.run == 1 else f"runs of {recipe.run} trials")
    if recipe.rest == "train":
        drawn["train"] = domain.difference(Intervals.of([*drawn["valid"], *drawn["test"]]))
    return drawn


def _clipped(domain: Intervals, trials: Trials) -> list[list[tuple[float, float]]]:
    """The parts of a merged domain in each trial, as pairs; a trial sees few stretches, so only those are touched."""
    first = np.searchsorted(domain.stop, trials.start, "right").tolist()
    last = np.searchsorted(domain.start, trials.stop, "left").tolist()
    pairs, out = list(domain), []
    for low, high, start, stop in zip(first, last, trials.start.tolist(), trials.stop.tolist()):
        clipped = ((max(a, start), min(b, stop)) for a, b in pairs[low:high])
        out.append([(a, b) for a, b in clipped if b > a])
    return out


def _by_column(
    where: str, recipe: SplitsRecipe, trials: Trials, usable: np.ndarray, min_train_s: float
) -> dict[str, np.ndarray]:
    """Rows of the trials of each split as a column names them; a split it does not name is drawn out of train."""
    values = column(where, trials.columns, recipe.column)
    chosen = {name: usable[is_one_of(where, values[usable], recipe.values.get(name, []))] for name in SPLITS}
    if not len(chosen["train"]) and (min_train_s > 0 or not any(map(len, chosen.values()))):
        raise SessionError(
            where,
            f"no trial has {recipe.column} in {recipe.values.get('train', [])}",
            f"the column holds {', '.join(sorted(set(values.astype(str).tolist()))[:5])}",
        )
    unnamed = [name for name in SPLITS if name not in recipe.values]
    shares = tuple(getattr(recipe, name) for name in ("train", *unnamed))
    runs = _runs(chosen["train"], recipe.run)
    order = np.random.default_rng(recipe.seed).permutation(len(runs))
    ends = np.cumsum(sizes(len(order), tuple(share / sum(shares) for share in shares)))
    dealt = (np.concatenate([chosen["train"][:0], *(runs[k] for k in part)]) for part in np.split(order, ends[:-1]))
    return chosen | dict(zip(("train", *unnamed), dealt))


def _runs(rows: np.ndarray, length: int) -> list[np.ndarray]:
    """Rows (n,) in pieces of `length`, the last one shorter where they do not come out even."""
    return [rows[first : first + length] for first in range(0, len(rows), length)]
