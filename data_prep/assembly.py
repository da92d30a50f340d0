"""Recording + Recipe -> Session: mends, units, signals, trials, domain, phases and splits, in this order."""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from data_prep.behaviour import find_signals
from data_prep.checks import check_session
from data_prep.domain import find_domain
from data_prep.errors import SessionError
from data_prep.readers import opened_recording
from data_prep.recipe import PhaseRecipe, Recipe
from data_prep.recipe_check import check_recipe
from data_prep.recording import Recording
from data_prep.repairs import repair
from data_prep.session import Intervals, Session, Signal
from data_prep.signals import marked, outliers
from data_prep.source import RemoteFile
from data_prep.splits import split_domain
from data_prep.trials import Trials, check_clock, find_phase, find_trials
from data_prep.unit_table import find_units, keep_units


@contextlib.contextmanager
def opened_session(
    file: Path | RemoteFile, recipe: Recipe, roster: Path | RemoteFile | None = None
) -> Iterator[Session]:
    """The session a recipe sees in a file, checked, while that is open; raises SessionError or RecipeError in one line.

    `roster` is the file whose units these are (recipe.units.roster). Spikes of a large session stay on disk.
    """
    check_recipe(recipe)
    with opened_recording(file, recipe, roster) as recording:
        yield assemble(recording, recipe)


def read_session(file: Path | RemoteFile, recipe: Recipe, roster: Path | RemoteFile | None = None) -> Session:
    """The same, whole in memory and the file closed."""
    with opened_session(file, recipe, roster) as session:
        return replace(session, spikes=session.spikes.whole())


def assemble(recording: Recording, recipe: Recipe) -> Session:
    """The session a checked recipe sees in a recording, checked; raises SessionError."""
    recording, where = keep_units(repair(recording, recipe.repairs), recipe.units), recording.name
    units, spikes, notes = find_units(recording, recipe.units)
    if len(spikes) == 0:
        raise SessionError(where, f"its {len(units)} units have no spikes", "leave the file out")
    name = f"{recipe.name}/{_session_name(recording, recipe)}"
    signals, told = find_signals(recording, recipe, name, spikes.extent)
    notes += told
    trials = find_trials(f"{where} trials", recipe.trials, recording.tables.get(recipe.trials.table, {}))
    check_clock(f"{where} trials", trials, spikes.extent)
    notes += trials.notes
    domain, told = find_domain(recording, recipe, signals, spikes.extent)
    notes += told
    phases = _phases(recording, recipe, trials, signals, domain)
    missing = [name for name in recipe.eval_phases if name in phases and len(phases[name].intersection(domain)) == 0]
    if missing and signals:  # a test file without behaviour has nothing to be evaluated on
        raise SessionError(
            where,
            f"phase {missing[0]} never occurs in its domain, and is what is evaluated",
            "look at phases and trials.valid of the recipe",
        )
    outside = len(spikes) - int(np.sum(spikes.before(domain.stop) - spikes.before(domain.start)))
    if outside > 0.001 * len(spikes):  # the half sample before the first and after the last one is not news
        notes.append(f"{outside} of {len(spikes)} spikes lie outside the domain")
    session = Session(
        id=name,
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
        splits=split_domain(where, recipe.splits, domain, trials, recipe.domain.min_s, recipe.min_train_s),
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


def _phases(
    recording: Recording, recipe: Recipe, trials: Trials, signals: dict[str, Signal], domain: Intervals
) -> dict[str, Intervals]:
    """Phases of trials and of masks in the recipe's order, outliers last."""
    phases, found = {}, Intervals.of([])
    for name, phase in recipe.phases.items():
        if phase.mask:
            phases[name] = _masked(recording, name, phase, domain)
        else:
            phases[name] = find_phase(f"{recording.name} trials", phase, trials, recipe.trials.last_trial_s)
    for rule in recipe.outliers:
        if rule.signal in signals:
            signal, gap = signals[rule.signal], recipe.signals[rule.signal].gap
            mask = outliers(rule, signal.time, signal.value, gap)
            found = Intervals.of([*found, *marked(signal.time, mask, gap)])
    return {**phases, "outlier": found.merged()} if recipe.outliers else phases


def _masked(recording: Recording, name: str, phase: PhaseRecipe, domain: Intervals) -> Intervals:
    """Where the true/false series of the phase is true; inverted, the time of the domain where it is not."""
    if name not in recording.masks:
        if phase.optional:
            return Intervals.of([])
        raise SessionError(
            recording.name,
            f"no series at {' or '.join(phase.mask)}",
            f"correct phases.{name}.mask, or make it optional",
        )
    return domain.difference(recording.masks[name]) if phase.invert else recording.masks[name]
