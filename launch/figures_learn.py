"""What was learned -> one figure: validation R2 against windows and against seconds, a column a source."""

from functools import reduce
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from launch.bench_curves import Learned, Trained, first_reached
from launch.figures import BASELINES, INK, MUTED, PALETTE
from launch.figures_print import save_figure

DASHES = ("-", (0, (5, 1.6)), (0, (1.2, 1.2)))  # once the palette is used up
LINEAR_DASHES = ("-", (0, (4, 2)))
LOWEST_R2 = -0.06
LEGEND_INCHES = 1.6  # room of one entry of the legend
LOG_FROM = 5.0  # a row is on a log scale where its crossings, or its ends, differ by more than this


def save_learning(learned: list[Learned], folder: Path) -> list[Path]:
    """Write learn.png and learn.svg into the folder."""
    named = dict.fromkeys(recipe for one in learned for recipe in one.recipes)
    look = {
        recipe: {"color": PALETTE[i % len(PALETTE)], "linestyle": DASHES[i // len(PALETTE) % len(DASHES)]}
        for i, recipe in enumerate(named)
    }
    recipes = [Line2D([], [], linewidth=1.9, label=recipe, **style) for recipe, style in look.items()]
    shown = [recipes, _other_handles(learned)]
    width = max(2.9 * len(learned) + 0.5, 5.2)
    room, count = max(int(width / LEGEND_INCHES), 2), sum(map(len, shown))
    columns = count if count <= room else min(room, max(map(len, shown)))
    handles = _in_rows(shown, columns)

    def paint(figure: Figure) -> None:
        grid = figure.subplots(2, len(learned), squeeze=False, sharey="col")
        for row, clock in enumerate(("windows", "seconds")):
            logarithmic = _is_log(learned, clock)
            for axes, one in zip(grid[row], learned):
                _paint(axes, one, clock, look, logarithmic)
            grid[row, 0].set_ylabel("validation R²")
        for axes, one in zip(grid[0], learned):
            axes.set_title(one.source, fontweight="bold")
        figure.legend(handles=handles, loc="outside upper left", ncols=columns, handlelength=1.7, columnspacing=1.3)

    return save_figure(folder, "learn", (width, 5.0 + 0.22 * len(handles) / columns), paint)


def _in_rows(groups: list[list[Line2D]], columns: int) -> list[Line2D]:
    """The groups one after another, or each in rows of its own where one row is too short, as matplotlib fills columns."""
    nothing = Line2D([], [], linestyle="none", label=" ")
    if sum(map(len, groups)) > columns:
        groups = [group + [nothing] * (-len(group) % columns) for group in groups]
    handles = [handle for group in groups for handle in group]
    return [handle for column in range(columns) for handle in handles[column::columns]]


def mean_curve(runs: list[Trained], clock: str) -> tuple[np.ndarray, np.ndarray]:
    """The mean over seeds of windows or seconds and of R2, over the validations that all of them have; both (n,)."""
    shared = reduce(np.intersect1d, [run.curve.windows for run in runs])
    kept = [np.isin(run.curve.windows, shared) for run in runs]
    return tuple(
        np.mean([getattr(run.curve, name)[known] for run, known in zip(runs, kept)], axis=0) for name in (clock, "r2")
    )


def _paint(axes, one: Learned, clock: str, look: dict[str, dict], logarithmic: bool) -> None:
    for linear, colour, dashes in zip(one.wiener.values(), BASELINES, LINEAR_DASHES):
        axes.axhline(linear.r2, color=colour, linestyle=dashes, linewidth=1.3, zorder=1)
    for recipe in one.recipes:
        for run in one.of(recipe):
            if run.curve is not None and (run.failed or len(one.of(recipe)) > 1):
                _paint_seed(axes, run, clock, look[recipe])
        if finished := one.finished(recipe):
            x, y = mean_curve(finished, clock)
            axes.plot(x, y, linewidth=1.9, zorder=4, **look[recipe])
            at = first_reached(x, y, one.level) if one.level is not None else None
            if at:
                axes.plot(at, one.level, "o", markersize=5, color=look[recipe]["color"], zorder=5)
                axes.plot(at, one.level, "o", markersize=2, color="white", zorder=6)
    _frame(axes, one, clock, logarithmic)


def _paint_seed(axes, run: Trained, clock: str, look: dict) -> None:
    x = getattr(run.curve, clock)
    axes.plot(x, run.curve.r2, linewidth=0.7, alpha=0.45, zorder=3, **look)
    if run.failed:
        axes.plot(x[-1], max(run.curve.r2[-1], LOWEST_R2 / 2), "x", markersize=6, color=look["color"], zorder=5)


def _frame(axes, one: Learned, clock: str, logarithmic: bool) -> None:
    curves = [run.curve for run in one.runs if run.curve]
    highest = max([linear.r2 for linear in one.wiener.values()] + [curve.best for curve in curves] + [0.1])
    axes.set_ylim(LOWEST_R2, min(highest * 1.08, 1.0) if highest < 1 else 1.02)
    axes.axhline(0, color=MUTED, linewidth=0.6, zorder=0)
    axes.grid(axis="y")
    last = max((getattr(curve, clock)[-1] for curve in curves), default=1.0)
    axes.set_xlabel("windows seen" if clock == "windows" else "seconds")
    if logarithmic and (starts := [getattr(curve, clock)[1] for curve in curves if len(curve.r2) > 1]):
        axes.set_xscale("log")
        axes.set_xlim(min(starts), last * 1.05)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if last / min(starts) < 200 else (1,)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_xlim(0, last * 1.02)
        axes.locator_params(axis="x", nbins=5)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))


def short(value: float) -> str:
    """A number for an axis: 500, 2k, 1.5M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def _is_log(learned: list[Learned], clock: str) -> bool:
    """Whether recipes differ so much in when they learn that a linear axis would press one into its edge."""
    for one in learned:
        means = [mean_curve(finished, clock) for recipe in one.recipes if (finished := one.finished(recipe))]
        when = [first_reached(x, y, one.level) for x, y in means] if one.level is not None else []
        marks = [x for x in when if x] + [x[-1] for x, _ in means]
        if marks and max(marks) > LOG_FROM * min(marks):
            return True
    return False


def _other_handles(learned: list[Learned]) -> list[Line2D]:
    labels = dict.fromkeys(label for one in learned for label in one.wiener)
    handles = [
        Line2D([], [], color=colour, linestyle=dashes, linewidth=1.3, label=label)
        for label, colour, dashes in zip(labels, BASELINES, LINEAR_DASHES)
    ]
    if any(run.failed for one in learned for run in one.runs):
        handles.append(Line2D([], [], color=INK, marker="x", linestyle="none", label="failed"))
    return handles
