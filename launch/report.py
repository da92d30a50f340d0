"""A run folder -> report.html: the answer first, then the scores, one stretch of decoding, the training, and how it was made.

The page is one file that needs no network: style and figures are inside it. The figures also appear as PNGs in
`figures/`. Whatever text the run's files hold is escaped. A part that a run does not have is left out of the page.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np

from launch.figures import (
    VARIABLES,
    Drawing,
    colours,
    dimension_names,
    draw_curves,
    draw_decoding,
    draw_scores,
    is_baseline,
    save_pngs,
    stretch_of,
)
from launch.record import Results, RunRecord, read_run

TEMPLATE = "report.html.j2"
DRAW = 0.0005  # R2 differences below it are a draw: they vanish in the three digits shown


@dataclass(frozen=True)
class Comparison:
    """The best learned model against the best linear baseline, over the sessions where both were evaluated."""

    model: str
    baseline: str
    model_r2: float
    baseline_r2: float
    wins: int
    draws: int
    sessions: int

    @property
    def difference(self) -> float:
        return self.model_r2 - self.baseline_r2


def write_report(run: Path | str, curves: dict[str, Path] | None = None, title: str = "") -> Path:
    """Write `report.html` and `figures/*.png` into the run folder; gives the page's path.

    `curves` names metrics.csv files by label in place of the run's own: several stages of training in one page. Raises
    DataError for a run folder that is not there or a file in it that is not what its name says.
    """
    record = read_run(run, curves)
    models = record.results.models if record.results else []
    if curves is None and record.curves:  # the run's own curve takes the colour of the model it trained
        learned = [model for model in models if not is_baseline(model)]
        if len(learned) == 1:
            record.curves[learned[0]] = record.curves.pop("training")
    colour = colours(dict.fromkeys([*models, *record.curves]))
    comparison = compare(record.results) if record.results else None
    drawings = _drawings(record, comparison, colour)
    page = (
        _environment()
        .get_template(TEMPLATE)
        .render(
            title=title or f"Run {record.folder.resolve().name}",
            record=record,
            results=record.results,
            colour={name: f"var({VARIABLES[shade]})" for name, shade in colour.items()},
            comparison=comparison,
            headline=headline(record, comparison),
            tiles=_tiles(record),
            drawings={drawing.name: drawing for drawing in drawings},
            stretch=stretch_of(record),
            traced=_traced(record, comparison),
            partly=any(not trace.evaluated.all() for trace in record.traces.values()),
            table=_table(record.results) if record.results else None,
        )
    )
    save_pngs(drawings, record.folder / "figures")
    path = record.folder / "report.html"
    part = path.with_name(path.name + ".part")
    part.write_text(page, encoding="utf-8")
    os.replace(part, path)
    return path


def compare(results: Results) -> Comparison | None:
    """The learned model and the baseline with the highest means; None where one kind is missing."""
    defined = [model for model, r2 in results.mean.items() if np.isfinite(r2)]
    learned = [model for model in defined if not is_baseline(model)]
    baselines = [model for model in defined if is_baseline(model)]
    if not learned or not baselines:
        return None
    model, baseline = (max(names, key=lambda name: results.mean[name]) for names in (learned, baselines))
    pairs = [(m[model].r2, m[baseline].r2) for m in results.scores.values() if model in m and baseline in m]
    pairs = [pair for pair in pairs if np.isfinite(pair).all()]
    if not pairs:
        return None
    difference = np.array([a - b for a, b in pairs])
    return Comparison(
        model,
        baseline,
        float(np.mean([a for a, _ in pairs])),
        float(np.mean([b for _, b in pairs])),
        wins=int(np.sum(difference >= DRAW)),
        draws=int(np.sum(np.abs(difference) < DRAW)),
        sessions=len(pairs),
    )


def headline(record: RunRecord, comparison: Comparison | None) -> tuple[str, str]:
    """The answer in one sentence, and a second that says how sure or how far; plain when the model loses."""
    results = record.results
    if results is None:
        return _training_headline(record)
    what = f"{results.signal} on the {results.split} split"
    if comparison is None:
        defined = {model: r2 for model, r2 in results.mean.items() if np.isfinite(r2)}
        best = max(defined, key=lambda name: defined[name], default=None)
        if best is None:
            return "No score is defined", "No session has enough evaluated samples that vary."
        return f"{best} reaches a mean R² of {results.mean[best]:.3f}", f"Decoding {what}; nothing to compare it with."
    c = comparison
    verb = {True: "beats", False: "loses to"}[c.difference > 0] if abs(c.difference) >= DRAW else "equals"
    first = f"{c.model} {verb} the {c.baseline}: R² {c.model_r2:.3f} against {c.baseline_r2:.3f}"
    sessions = "the one session" if c.sessions == 1 else f"{c.wins} of {c.sessions} sessions"
    ahead = (
        f"It is {'ahead' if c.wins else 'not ahead'} in {sessions}" if c.sessions == 1 else f"It is ahead in {sessions}"
    )
    draws = f", level in {c.draws}" if c.draws else ""
    return first, f"Mean over sessions, decoding {what}. {ahead}{draws}; the mean difference is {c.difference:+.3f}."


def _training_headline(record: RunRecord) -> tuple[str, str]:
    best = {label: found for label, curve in record.curves.items() if (found := curve.known("step", "valid/r2"))}
    if not best:
        return "Nothing measured yet", "The run holds neither test results nor a validation score."
    label, (step, r2) = max(best.items(), key=lambda item: item[1][1].max())
    k = int(np.argmax(r2))
    return (
        f"Best validation R² {r2[k]:.3f}, at step {step[k]:,.0f}",
        f"Of {label}. The run is not evaluated on its test split yet: `spikeloom evaluate` adds the comparison.",
    )


def _drawings(record: RunRecord, comparison: Comparison | None, colour: dict[str, str]) -> list[Drawing]:
    drawings = []
    if record.results and record.results.scores:
        drawings.append(draw_scores(record, colour))
    if record.results and stretch_of(record):
        drawings.append(draw_decoding(record, _traced(record, comparison), colour))
    if any(curve.known("step", name) for curve in record.curves.values() for name in ("train/loss", "valid/r2")):
        drawings.append(draw_curves(record, colour))
    return drawings


def _traced(record: RunRecord, comparison: Comparison | None) -> list[str]:
    """The models whose traces are drawn: the two compared, or else those that have a trace of the stretch."""
    stretch = stretch_of(record)
    present = [model for session, model in record.traces if stretch and session == stretch[0]]
    compared = [comparison.baseline, comparison.model] if comparison else []
    return [model for model in compared if model in present] or present[:2]


def _tiles(record: RunRecord) -> list[tuple[str, str, str]]:
    """Figure, caption and model of the numbers under the headline; the model is empty where none is meant."""
    tiles = []
    if record.results:
        tiles += [
            (f"{r2:.3f}" if np.isfinite(r2) else "–", f"{model}, mean R²", model)
            for model, r2 in record.results.mean.items()
        ]
        tiles.append((f"{len(record.results.scores)}", "sessions evaluated", ""))
    seconds = windows = 0.0
    for curve in record.curves.values():
        for name in ("seconds", "windows"):
            last = curve.known(name)
            total = float(last[0].max()) if last else 0.0
            seconds, windows = (seconds + total, windows) if name == "seconds" else (seconds, windows + total)
    if windows:
        tiles.append((f"{windows:,.0f}", "training windows", ""))
    if seconds:
        tiles.append((f"{seconds / 60:.1f} min", "training time", ""))
    return tiles


def _table(results: Results) -> dict:
    """Rows of the score table: a row a session and model, then the means; a column a dimension."""
    dims = max((len(score.r2_per_dim) for models in results.scores.values() for score in models.values()), default=0)
    return {
        "dimensions": dimension_names(dims),
        "sessions": results.scores,
        "best": {
            session: max(models, key=lambda model: models[model].r2)
            for session, models in results.scores.items()
            if models
        },
    }


def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
