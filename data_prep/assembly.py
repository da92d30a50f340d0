"""Recording + Recipe -> Session: mends, units, signals, trials, domain, phases and splits, in this order."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from data_prep.checks import check_session, check_times
from data_prep.errors import SessionError
from data_prep.expression import passes
from data_prep.measure import factor, per_second
from data_prep.nwb import read_recording
from data_prep.recipe import Recipe, SignalRecipe, UnitsRecipe, check_recipe
from data_prep.recording import Recording
from data_prep.repairs import repair
from data_prep.session import Intervals, Session, Signal, Spikes, Units
from data_prep.signals import at_rest, covered, differentiate, marked, outliers, resample
from data_prep.spikes import in_order_of_time
from data_prep.splits import rounded, split_domain
from data_prep.trials import Trials, find_phase, find_trials


def read_session(path: Path, recipe: Recipe) -> Session:
    """The session a recipe sees in an NWB file, checked; raises SessionError or RecipeError in one line."""
    check_recipe(recipe)
    return assemble(read_recording(path, recipe), recipe)


def assemble(recording: Recording, recipe: Recipe) -> Session:
    """The session a checked recipe sees in a recording, checked; raises SessionError."""
    recording, where = repair(recording, recipe.repairs), recording.name
    units, spikes, notes = _units(recording, recipe.units)
    signals = _signals(recording, recipe)
    trials = find_trials(f"{where} trials", recipe.trials, recording.tables.get(recipe.trials.table, {}))
    if trials.left_out:
        notes.append(f"{trials.left_out} trials without a usable start and stop left out")
    domain = _domain(recording, recipe, spikes, signals)
    phases = _phases(where, recipe, trials, signals)
    missing = [name for name in recipe.eval_phases if name in phases and len(phases[name].intersection(domain)) == 0]
    if missing:
        raise SessionError(
            where,
            f"phase {missing[0]} never occurs in its domain, and is what is evaluated",
            "look at phases and trials.valid of the recipe",
        )
    outside = len(spikes) - int(np.sum(spikes.before(domain.stop) - spikes.before(domain.start)))
    if outside > 0.001 * len(spikes):  # the half sample before the first and after the last one is not news
        notes.append(f"{outside} of {len(spikes)} spikes lie outside the domain")
    session = Session(
        id=f"{recipe.name}/{_session_name(recording, recipe)}",
        dandiset=recipe.name,
        subject=recording.subject.strip() or recipe.subject or "unknown",
        paradigm=recipe.paradigm,
        units=units,
        spikes=spikes,
        signals=signals,
        trials=Intervals(trials.start, trials.stop),
        trial_columns={**trials.columns, "is_valid": trials.valid} if len(trials.start) else {},
        phases=phases,
        domain=domain,
        splits=split_domain(where, recipe.splits, domain, trials, recipe.domain.min_s),
        loss_weights=dict(recipe.loss_weights),
        eval_phases=tuple(recipe.eval_phases),
        target_scale={name: scale for name, scale in recipe.target_scale.items() if name in signals},
        provenance={
            **recording.provenance,
            "file": recording.name,
            "dandiset": recipe.dandiset,
            "version": recipe.version,
            "recipe": recipe.name,
            "recipe_hash": recipe.hash(),
            "notes": "\n".join([*recording.notes, *notes]),
        },
    )
    check_session(session, recipe.min_train_s)
    return session


def _session_name(recording: Recording, recipe: Recipe) -> str:
    """ "<subject>_<session>" in characters that are safe in ids and file names."""
    subject = recording.subject.strip() or recipe.subject or "unknown"
    stem = recording.name.removesuffix(".nwb")
    name = {"file": stem, "identifier": recording.identifier, "session_id": recording.session_id}[recipe.session]
    name = name.strip() or recording.identifier.strip() or stem
    return "_".join(re.sub(r"[^A-Za-z0-9.+-]+", "-", text).strip("-.") or "unknown" for text in (subject, name))


def _units(recording: Recording, recipe: UnitsRecipe) -> tuple[Units, Spikes, list[str]]:
    """Kept units, their spikes in order of time, and what was done."""
    where, columns, count = recording.name, recording.unit_columns, recording.spikes.count
    if recipe.id_column not in columns:
        raise SessionError(f"{where} units", f"no column {recipe.id_column!r}", f"choose from {', '.join(columns)}")
    keep = passes(f"{where} units", columns, recipe.keep) & (count >= recipe.min_spikes)
    if not keep.any():
        raise SessionError(where, f"none of its {len(keep)} units is kept", "look at units.keep and units.min_spikes")
    notes = [] if keep.all() else [f"{int(np.sum(~keep))} of {len(keep)} units left out by the recipe"]
    spikes, unsorted = in_order_of_time(where, recording.spikes.kept(keep))
    if unsorted:
        notes.append(f"spike times of {unsorted} units were not sorted")
    quality = columns.get(recipe.quality_column, np.full(len(count), "")).astype(str)
    rows = np.flatnonzero(keep)
    table = Units(
        id=tuple(columns[recipe.id_column].astype(str)[rows].tolist()),
        region=tuple(_region(recording.region[row], recipe.region_map) for row in rows),
        quality=tuple(quality[rows].tolist()),
    )
    silent = int(np.sum(count[rows] == 0))
    if silent:
        notes.append(f"{silent} units have no spikes")
    return table, spikes, notes


def _region(text: str, region_map: dict[str, str]) -> str:
    return next((region for pattern, region in region_map.items() if re.search(pattern, text)), text) or "unknown"


def _signals(recording: Recording, recipe: Recipe) -> dict[str, Signal]:
    """Signals in the recipe's order, in its units of measure; derived ones from those before resampling."""
    full: dict[str, Signal] = {}

    def find(name: str) -> Signal | None:
        if name not in full:
            wanted, series = recipe.signals[name], recording.series.get(name)
            where = f"{recording.name} {name}"
            if series is not None:
                check_times(f"{where} ({series.place})", series.time)
                full[name] = _signal(where, name, wanted, series.time, series.value, wanted.stated_unit or series.unit)
            elif wanted.derive_from and (source := find(wanted.derive_from)) is not None:
                rate = differentiate(source.time, source.value, recipe.signals[wanted.derive_from].gap)
                unit = wanted.stated_unit or per_second(source.unit_of_measure)
                made = _signal(where, name, wanted, source.time, rate, unit)
                full[name] = replace(made, derived_from=wanted.derive_from)
            elif wanted.required:
                places = " or ".join([*wanted.path, f"{wanted.derive_from} (to derive it from)"])
                raise SessionError(recording.name, f"no series at {places}", f"correct signals.{name} of the recipe")
        return full.get(name)

    found = {name: signal for name in recipe.signals if (signal := find(name)) is not None}
    return {name: _resampled(signal, recipe.signals[name]) for name, signal in found.items()}


def _signal(where: str, name: str, recipe: SignalRecipe, time, value, stated: str) -> Signal:
    if recipe.columns:
        if max(recipe.columns) >= value.shape[1] or min(recipe.columns) < 0:
            raise SessionError(where, f"it has {value.shape[1]} columns", f"correct signals.{name}.columns")
        value = value[:, recipe.columns]
    unit = recipe.unit or stated
    value = value * factor(where, stated, unit) if recipe.unit else value
    valid = np.isfinite(value).all(axis=1)
    if not valid.any():
        raise SessionError(where, f"none of its {len(time)} samples is finite", "leave the file or the signal out")
    if recipe.plausible:
        size = float(np.percentile(np.sqrt(np.sum(value[valid] ** 2, axis=1)), 99.9))
        if not recipe.plausible[0] <= size <= recipe.plausible[1]:
            raise SessionError(
                where,
                f"its 99.9 percentile is {size:.4g} {unit}, the recipe expects "
                f"{recipe.plausible[0]:g} to {recipe.plausible[1]:g}",
                "correct stated_unit or plausible, or leave the file out",
            )
    return Signal(name, time, value, unit, valid)


def _resampled(signal: Signal, recipe: SignalRecipe) -> Signal:
    time, value = signal.time, signal.value
    if recipe.hz > 0:
        time, value = resample(time, value, recipe.hz, recipe.gap)
    return replace(signal, time=time, value=value.astype(np.float32), valid=np.isfinite(value).all(axis=1))


def _domain(recording: Recording, recipe: Recipe, spikes: Spikes, signals: dict[str, Signal]) -> Intervals:
    """Where units were observed, signals are contiguous, the right epoch runs and the animal is not at rest."""
    rule, where = recipe.domain, recording.name
    if len(spikes.time) == 0:
        raise SessionError(where, f"its {len(recording.spikes)} units have no spikes", "leave the file out")
    first, last = float(spikes.time[0]), float(spikes.time[-1])
    observed = _observed(recording.observed) if rule.observed and recording.observed else None
    steps = {"observed": Intervals.of([(first, last + 1e-6)]) if observed is None else observed}
    for name in rule.signals or list(recipe.signals)[:1]:
        if name not in signals:
            raise SessionError(where, f"no signal {name}, which its domain rests on", "correct domain.signals")
        steps[name] = covered(signals[name].time[signals[name].valid], recipe.signals[name].gap)
    if rule.epochs_table:
        table = recording.tables.get(rule.epochs_table, {})
        if not table:
            raise SessionError(where, f"no table intervals/{rule.epochs_table}", "correct domain.epochs_table")
        chosen = passes(f"{where} {rule.epochs_table}", table, rule.epochs)
        steps["epochs"] = Intervals.of(zip(table["start_time"][chosen], table["stop_time"][chosen]))
    domain = steps["observed"]
    for part in steps.values():
        domain = domain.intersection(part)
    if rule.still.signal in signals:
        calm = signals[rule.still.signal]
        gap = recipe.signals[rule.still.signal].gap
        domain = domain.difference(at_rest(calm.time, calm.value, gap, rule.still.below, rule.still.longer_than_s))
    kept = rounded(domain, rule.min_s)
    if len(kept) == 0:
        each = ", ".join(f"{name} {part.merged().seconds:.1f} s" for name, part in steps.items())
        raise SessionError(
            where, f"nothing is left of {each} in stretches of {rule.min_s:g} s", "correct the domain section"
        )
    return kept


def _observed(rows_of_units: tuple[np.ndarray, ...]) -> Intervals | None:
    """Times at which every unit was observed; units that say nothing were always observed, None if none says."""
    distinct = {rows.tobytes(): rows for rows in rows_of_units if len(rows)}  # nearly always one and the same list
    whole = None
    for rows in distinct.values():
        whole = Intervals.of(rows) if whole is None else whole.intersection(Intervals.of(rows))
    return whole


def _phases(where: str, recipe: Recipe, trials: Trials, signals: dict[str, Signal]) -> dict[str, Intervals]:
    place = f"{where} trials"
    phases = {
        name: find_phase(place, phase, trials, recipe.trials.last_trial_s) for name, phase in recipe.phases.items()
    }
    found = Intervals.of([])
    for rule in recipe.outliers:
        if rule.signal in signals:
            signal, gap = signals[rule.signal], recipe.signals[rule.signal].gap
            mask = outliers(rule, signal.time, signal.value, gap)
            found = Intervals.of([*found, *marked(signal.time, mask, gap)])
    return {**phases, "outlier": found.merged()} if recipe.outliers else phases
