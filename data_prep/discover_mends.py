"""A recipe and why its own file refuses it -> the recipe changed in that point, and where; the words of refusals are the keys."""

import re
from collections.abc import Callable
from dataclasses import replace

from data_prep.recipe import Recipe, SplitsRecipe

Mend = Callable[[Recipe, str, SplitsRecipe], tuple[Recipe, str] | None]


def _with_repair(name: str) -> Mend:
    def mend(recipe: Recipe, _: str, blocks: SplitsRecipe):
        return None if name in recipe.repairs else (replace(recipe, repairs=[*recipe.repairs, name]), "repairs")

    return mend


def _without_reset(recipe: Recipe, _: str, blocks: SplitsRecipe):
    repairs = [name for name in recipe.repairs if name != "clock_reset"]
    return replace(recipe, repairs=["sort_timestamps", "drop_repeated_timestamps", *repairs]), "repairs"


def _by_blocks(recipe: Recipe, _: str, blocks: SplitsRecipe):
    return replace(recipe, splits=blocks), "splits"


def _shorter(recipe: Recipe, _: str, blocks: SplitsRecipe):
    if recipe.domain.min_s > 0.2:
        return replace(recipe, domain=replace(recipe.domain, min_s=recipe.domain.min_s / 2)), "domain.min_s"
    if recipe.domain.observed:
        return replace(recipe, domain=replace(recipe.domain, observed=False, min_s=1.0)), "domain.observed"
    if recipe.domain.epochs:
        return replace(recipe, domain=replace(recipe.domain, epochs_table="", epochs="")), "domain"
    return None


def _less_training(recipe: Recipe, refusal: str, blocks: SplitsRecipe):
    found = re.search(r"([\d.]+) s of training time", refusal)
    if not found or float(found[1]) < 2:
        return _by_blocks(recipe, refusal, blocks) if recipe.splits.by != "blocks" else None
    return replace(recipe, min_train_s=float(int(0.5 * float(found[1])))), "min_train_s"


def _no_eval(recipe: Recipe, refusal: str, blocks: SplitsRecipe):
    found = re.search(r"phase (\w+) never occurs", refusal)
    kept = [name for name in recipe.eval_phases if not found or name != found[1]]
    return replace(recipe, eval_phases=kept), "eval_phases"


def _any_size(recipe: Recipe, refusal: str, blocks: SplitsRecipe):
    named = [name for name in recipe.signals if re.search(rf"\b{name}\b", refusal)]
    changed = {n: replace(s, plausible=[]) if n in named else s for n, s in recipe.signals.items()}
    return replace(recipe, signals=changed), f"signals.{named[0]}" if named else "signals"


def _no_condition(recipe: Recipe, _: str, blocks: SplitsRecipe):
    return replace(recipe, trials=replace(recipe.trials, valid="")), "trials.valid"


def _without_signal(recipe: Recipe, refusal: str, blocks: SplitsRecipe):
    """Leave out the signal that a refusal names, and what is derived from it; not the only one."""
    head = refusal.split(":")[0]
    named = {n for n, s in recipe.signals.items() if re.search(rf"\b{n}\b", head) or any(p in refusal for p in s.path)}
    named |= {n for n, s in recipe.signals.items() if s.derive_from in named}
    kept = {name: one for name, one in recipe.signals.items() if name not in named}
    if not named:
        return None
    domain = replace(recipe.domain, signals=[name for name in recipe.domain.signals if name in kept])
    return replace(recipe, signals=kept, domain=domain), "signals"


MENDS: tuple[tuple[str, Mend], ...] = (
    (r"timestamps go back", _with_repair("sort_timestamps")),
    (r"timestamps are repeated", _with_repair("drop_repeated_timestamps")),
    (r"clock resets", _without_reset),
    (r"usable trials|no trial has|test are empty", _by_blocks),
    (r"s of training time", _less_training),
    (r"nothing is left of", _shorter),
    (r"never occurs in its domain", _no_eval),
    (r"99\.9 percentile", _any_size),
    (r" trials: no column", _no_condition),
    (r"samples is finite|no series|columns|unit of measure|samples but|timestamps|sample times", _without_signal),
)
