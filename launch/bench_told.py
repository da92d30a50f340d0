"""What was learned -> the table and sentences of `spikeloom bench learn`, as text, Markdown and JSON."""

import json
import math
from dataclasses import asdict
from pathlib import Path

from launch.bench_curves import Learned, Stat, Trained, numbers, reference_of, summary
from launch.bench_machine import circumstances, in_a_line
from launch.table import print_table

FORMAT = 1
NOTE = """\
R² is the mean over dimensions (and sessions) on the validation split, windows every second; a trained model's best is
its best validation, and the Wiener filters were chosen on the very samples they are judged on, which favours both.
Windows are training windows seen. Seconds are those of the training loop, loading and validations included, without the
start of the process, building the model and calibrating it (`seconds` in metrics.csv); of a Wiener filter, those of
fitting and choosing it. Area is the mean of R² (not below 0) over the windows of the recipe's budget. Between two
validations a curve is a straight line. "Wiener" is the centred filter. Values are mean ± sd over seeds."""


def tell(learned: list[Learned], config: dict, folder: Path) -> None:
    """Print the table and a sentence a source; write learn.json, learn.md and the figure into the folder."""
    from launch.figures_learn import save_learning

    folder.mkdir(parents=True, exist_ok=True)
    facts = circumstances() | {"commits": sorted({run.commit for one in learned for run in one.runs if run.commit})}
    columns, table = rows(learned)
    sentences = [line for one in learned for line in told(one)]
    print_table("bench learn", columns, table)
    print("\n" + "\n".join(sentences))
    document = {"format": FORMAT, **facts, "config": config, "sources": [_as_json(one) for one in learned]}
    written = [folder / "learn.json", folder / "learn.md"]
    written[0].write_text(json.dumps(_without_nan(document), indent=1), encoding="utf-8")
    written[1].write_text(markdown(facts, columns, table, sentences), encoding="utf-8")
    written += save_learning(learned, folder)
    print(f"written: {', '.join(map(str, written))}")


def rows(learned: list[Learned]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the table: a row a recipe and one a Wiener filter, source by source."""
    reference = learned[0].recipes[0]
    columns = ["source", "decoder", "runs", "best R²", "final R²", "area", "windows to Wiener"]
    columns += [f"windows to {reference}'s best", "times fewer windows", "times less time", "time"]
    table = []
    for one in learned:
        stats = summary(one)
        table += [_row(one, recipe, stats[recipe]) for recipe in one.recipes]
        for label, linear in one.wiener.items():
            table.append(
                [one.source, label, "", f"{linear.r2:.3f}", *[""] * (len(columns) - 5), duration(linear.seconds)]
            )
    return columns, table


def _row(one: Learned, recipe: str, stats: dict[str, Stat]) -> list[str]:
    runs, finished = one.of(recipe), one.finished(recipe)
    count = str(len(runs)) if len(finished) == len(runs) else f"{len(finished)} of {len(runs)}"
    if not finished:
        return [one.source, recipe, count, "failed", *[""] * 7]
    limit = "not within " + _windows(finished)
    to_wiener = _crossing(stats, "wiener") or (limit if one.level is not None else "")
    to_reference = _crossing(stats, "reference") or (limit if one.finished(one.recipes[0]) else "")
    of_r2 = [_spread(stats[name], "{:.3f}") for name in ("best", "final", "area")]
    times = [_spread(stats[name], "{:.1f}") for name in ("times_fewer_windows", "times_less_time")]
    return [one.source, recipe, count, *of_r2, to_wiener, to_reference, *times, duration(stats["seconds"].mean)]


def _crossing(stats: dict[str, Stat], level: str) -> str:
    """Windows, and the time in brackets, until a level is reached; "" where it never is."""
    windows = _spread(stats[f"{level}_windows"], "{:,.0f}")
    return f"{windows}, {duration(stats[f'{level}_seconds'].mean)}" if windows else ""


def _spread(value: Stat, form: str) -> str:
    """Mean ± sd, and of how many trainings where it is not of all; "" where it is of none."""
    if not value.n:
        return ""
    text = form.format(value.mean)
    if math.isfinite(value.sd):
        text += f" ± {form.format(value.sd)}"
    return text if value.n == value.of else f"{text} ({value.n} of {value.of})"


def _windows(finished: list[Trained]) -> str:
    """The windows that a recipe's trainings saw in all."""
    return f"{finished[0].curve.windows[-1]:,.0f}"


def told(one: Learned) -> list[str]:
    """Sentences on one source: when each recipe passes the Wiener filter, and why a training failed."""
    stats, lines = summary(one), []
    if one.level is not None:
        parts = [_told(one, recipe, stats[recipe]) for recipe in one.recipes if one.finished(recipe)]
        lines += [f"{one.source} (Wiener filter: {one.level:.3f}): {'; '.join(parts)}."] if parts else []
    reasons = dict.fromkeys((run.recipe, run.failed) for run in one.runs if run.failed)
    for recipe, reason in reasons:
        seeds = [str(run.seed) for run in one.of(recipe) if run.failed == reason]
        lines.append(f"{one.source}: {recipe} failed with seed {', '.join(seeds)}: {reason}")
    return lines


def _told(one: Learned, recipe: str, stats: dict[str, Stat]) -> str:
    reference, passed, times = one.recipes[0], stats["wiener_windows"], stats["times_fewer_windows"]
    if passed.n:
        of = f", {passed.n} of {passed.of} trainings" if passed.n < passed.of else ""
        text = f"{recipe} passes it after {passed.mean:,.0f} windows ({duration(stats['wiener_seconds'].mean)}{of})"
    else:
        limit, time = _windows(one.finished(recipe)), duration(stats["seconds"].mean)
        text = f"{recipe} does not pass it within {limit} windows ({time})"
    if recipe != reference and times.n:
        windows = stats["reference_windows"].mean
        text += f" and reaches {reference}'s best after {windows:,.0f} ({times.mean:.1f} times fewer)"
    return text


def duration(seconds: float) -> str:
    """Seconds for a person: 4.2 s, 24 s, 5 min, 2.1 h."""
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def markdown(facts: dict, columns: list[str], table: list[list[str]], sentences: list[str]) -> str:
    """The table under its circumstances, the sentences, and what the numbers mean; empty columns are left out."""
    kept = [n for n in range(len(columns)) if any(row[n] for row in table)]
    commits = ", ".join(commit[:10] + commit[40:] for commit in facts["commits"]) or "unknown"
    lines = [in_a_line(facts) + f", trained by commit {commits}", ""]
    lines += ["| " + " | ".join(columns[n] for n in kept) + " |", "|" + "---|" * len(kept)]
    lines += ["| " + " | ".join(row[n].replace("|", "\\|") for n in kept) + " |" for row in table]
    return "\n".join([*lines, "", *(f"- {line}" for line in sentences), "", NOTE]) + "\n"


def _as_json(one: Learned) -> dict:
    return {
        "source": one.source,
        "sessions": list(one.sessions),
        "digest": one.digest,
        "wiener": {label: asdict(linear) for label, linear in one.wiener.items()},
        "recipes": {
            recipe: {name: asdict(value) for name, value in stats.items()} for recipe, stats in summary(one).items()
        },
        "runs": [_run_as_json(run, one) for run in one.runs],
    }


def _run_as_json(run: Trained, one: Learned) -> dict:
    curve = {name: getattr(run.curve, name).tolist() for name in ("windows", "seconds", "r2")} if run.curve else None
    facts = {"recipe": run.recipe, "seed": run.seed, "budget": run.budget, "failed": run.failed, "commit": run.commit}
    told_of = numbers(run, one.level, reference_of(one, run)) if run.curve and not run.failed else None
    return facts | {"numbers": told_of, "curve": curve}


def _without_nan(value):
    """The same with null for every number that JSON has no word for."""
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
