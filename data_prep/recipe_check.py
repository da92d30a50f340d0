"""A Recipe -> nothing, or the one line that says which of its words no file could be read by."""

import math
import re

from data_prep.errors import RecipeError
from data_prep.expression import parse
from data_prep.recipe import Recipe, SignalRecipe
from data_prep.repairs import REPAIRS


def check_recipe(recipe: Recipe) -> None:
    """Raise RecipeError for what no file could mend: a name that is not declared, an impossible number."""
    where = f"recipe {recipe.name or '(unnamed)'}"
    if not recipe.name or "/" in recipe.name:
        raise RecipeError(where, f"name is {recipe.name!r}", "give it a name without '/'")
    for name in (*recipe.signals, *recipe.phases):
        if not re.fullmatch(r"[A-Za-z]\w*", name) or name in ("random", "outlier"):
            raise RecipeError(
                where,
                f"{name!r} is no name for a signal or phase",
                "use letters, digits and _; random and outlier are taken",
            )
    signals, phases = set(recipe.signals), {*recipe.phases, "random", "outlier"}
    named = [("outliers.signal", rule.signal, signals) for rule in recipe.outliers]
    named += [("domain.signals", name, signals) for name in recipe.domain.signals]
    named += [("domain.still.signal", recipe.domain.still.signal, signals | {""})]
    named += [("target_scale", name, signals) for name in recipe.target_scale]
    named += [("loss_weights", name, phases) for name in recipe.loss_weights]
    named += [("eval_phases", name, phases) for name in recipe.eval_phases]
    named += [(f"phases.{name}.trials", p.trials, {"valid", "invalid", "all"}) for name, p in recipe.phases.items()]
    named += [("splits.by", recipe.splits.by, {"trial", "blocks", "column"})]
    named += [("splits.guard", recipe.splits.guard, {"any", "train"})]
    named += [("splits.rest", recipe.splits.rest, {"train", "drop"})]
    named += [("splits.values", name, {"train", "valid", "test"}) for name in recipe.splits.values]
    named += [("repairs", name, set(REPAIRS)) for name in recipe.repairs]
    named += [("session", recipe.session, {"session_id", "identifier", "file"})]
    named += [("reader", recipe.reader, {"nwb", "makin", "flint"})]
    named += [("units.bin_time", recipe.units.bin_time, {"start", "centre", "stop"})]
    named += [(f"signals.{name}.clock", signal.clock, {"", "period"}) for name, signal in recipe.signals.items()]
    named += [(f"phases.{name}.clock", phase.clock, {"", "period"}) for name, phase in recipe.phases.items()]
    for key, value, known in named:
        if value not in known:
            raise RecipeError(where, f"{key} names {value!r}", f"choose from {', '.join(sorted(known)) or 'nothing'}")
    for pattern in recipe.units.region_map:
        try:
            re.compile(pattern)
        except re.error as error:
            raise RecipeError(
                where, f"units.region_map has {pattern!r} ({error})", "write a regular expression"
            ) from error
    conditions = {"trials.valid": recipe.trials.valid, "units.keep": recipe.units.keep}
    for key, text in {**conditions, "domain.epochs": recipe.domain.epochs}.items():
        if text.strip():
            parse(f"{where} {key}", text)
    for name in recipe.signals:
        _check_signal(where, name, recipe.signals)
    _check_numbers(where, recipe)


def _check_signal(where: str, name: str, signals: dict[str, SignalRecipe]) -> None:
    signal, chain = signals[name], [name]
    if not signal.path and not signal.derive_from:
        raise RecipeError(where, f"signals.{name} has neither path nor derive_from", "give one of them")
    if len(signal.plausible) not in (0, 2):
        raise RecipeError(where, f"signals.{name}.plausible has {len(signal.plausible)} numbers", "give [low, high]")
    if not (signal.factor and math.isfinite(signal.factor)) or min(signal.hz, signal.rated_hz) < 0:
        raise RecipeError(
            where, f"signals.{name} has factor {signal.factor:g} or a rate below 0", "give a factor but 0, rates >= 0"
        )
    if not signal.gap > 1:
        raise RecipeError(where, f"signals.{name}.gap is {signal.gap:g}", "give more than 1 median sample interval")
    while signal.derive_from:
        if signal.derive_from not in signals:
            raise RecipeError(
                where,
                f"signals.{chain[-1]} derives from {signal.derive_from!r}",
                f"declare it, or choose from {', '.join(sorted(signals))}",
            )
        if signal.derive_from in chain:
            raise RecipeError(where, f"signals.{name} derives from itself", "break the circle")
        chain.append(signal.derive_from)
        signal = signals[signal.derive_from]


def _check_numbers(where: str, recipe: Recipe) -> None:
    splits = recipe.splits
    shares = (splits.train, splits.valid, splits.test)
    if min(shares) < 0 or splits.train <= 0 or abs(sum(shares) - 1) > 1e-6:
        raise RecipeError(where, f"splits are {shares[0]:g} + {shares[1]:g} + {shares[2]:g}", "let them add up to 1")
    if splits.by == "column" and not splits.column:
        raise RecipeError(where, "splits.by is column, splits.column is empty", "name the trial column")
    if min(splits.blocks, splits.run) < 1 or min(splits.guard_s, recipe.domain.min_s) < 0:
        raise RecipeError(
            where,
            "splits.blocks, splits.run, splits.guard_s or domain.min_s is too small",
            "give blocks and run >= 1, seconds >= 0",
        )
    twice = [text for texts in splits.values.values() for text in texts]
    if len(set(twice)) < len(twice):
        raise RecipeError(where, "splits.values gives one value to two splits", "name every value once")
    for name, phase in recipe.phases.items():
        if (phase.invert or phase.clock) and not phase.mask:
            raise RecipeError(where, f"phases.{name} has no mask to invert or time", "name a mask, or leave these out")
    for rule in recipe.outliers:
        if rule.norm_above is None and rule.any_above is None:
            raise RecipeError(where, f"an outlier rule for {rule.signal} has no limit", "give norm_above or any_above")
