"""RunRecord -> figures: matplotlib drawings whose colours the page's style sheet can turn light or dark.

Every model keeps one colour through all figures. The palette is Okabe and Ito's, told apart by colour-blind readers;
linear baselines are always orange, the truth always in the colour of the text.
"""

import io
import re
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from launch.record import Curve, RunRecord

INK, MUTED, RULE = "#1b1f24", "#6a737d", "#d8dee4"
BASELINES = ("#d55e00", "#e69f00")
PALETTE = ("#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#7b6fd0", "#8c6d31")
VARIABLES = (
    {INK: "--ink", MUTED: "--muted", RULE: "--rule"}
    | {colour: f"--b{i}" for i, colour in enumerate(BASELINES)}
    | {colour: f"--c{i}" for i, colour in enumerate(PALETTE)}
)
STYLE = {
    "font.size": 9.5,
    "font.family": "DejaVu Sans",
    "svg.fonttype": "none",
    "text.parse_math": False,  # names come from files
    "text.color": INK,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.solid_capstyle": "round",
    "path.simplify_threshold": 0.3,
}
LOWEST_R2 = -0.3  # bars and curves below it are cut there, the number is still written
FALLBACK_STRETCH_S = 10.0
DIMENSIONS = ("x", "y", "z")


@dataclass(frozen=True)
class Drawing:
    """One finished figure: its name, the text for who cannot see it, SVG for the page, PNG for slides."""

    name: str
    alt: str
    svg: str
    png: bytes


def is_baseline(model: str) -> bool:
    return "wiener" in model.lower()


def colours(names) -> dict[str, str]:
    """One colour a name, in order; the linear baselines have their own."""
    out = {}
    for wanted, palette in ((False, PALETTE), (True, BASELINES)):
        kind = [name for name in names if is_baseline(name) == wanted]
        out |= {name: palette[i % len(palette)] for i, name in enumerate(kind)}
    return out


def dimension_names(count: int) -> list[str]:
    return list(DIMENSIONS[:count]) if count <= len(DIMENSIONS) else [str(k + 1) for k in range(count)]


def draw(name: str, alt: str, size: tuple[float, float], paint) -> Drawing:
    """A drawing of `size` inches; `paint(figure)` fills an empty Figure."""
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=size, layout="constrained")
        paint(figure)
        svg, png = io.StringIO(), io.BytesIO()
        FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
        figure.set_facecolor("white")  # a slide may be dark, the page decides for itself
        FigureCanvasAgg(figure).print_png(png, metadata={"Software": None})
    return Drawing(name, alt, _for_page(svg.getvalue(), name), png.getvalue())


def _for_page(svg: str, name: str) -> str:
    """The <svg> element alone: scalable, transparent, no metadata, its ids its own, its colours those of the page."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1), count=1
    )
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = svg.replace("font: ", "font-kerning: normal; font: ").replace("'DejaVu Sans'", "var(--sans)")
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg


# ------------------------------------------------------------------------------------------------ scores


def draw_scores(record: RunRecord, colour: dict[str, str]) -> Drawing:
    """Test R2 of every model in every session, as bars with their number."""
    results = record.results
    sessions, models = list(results.scores), results.models
    rows = len(sessions) * (len(models) + 0.9)

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        lowest = 0.0
        for s, session in enumerate(sessions):
            for m, model in enumerate(models):
                score = results.scores[session].get(model)
                if score is None:
                    continue
                y, shown = s * (len(models) + 0.9) + m, max(score.r2, LOWEST_R2) if np.isfinite(score.r2) else 0.0
                lowest = min(lowest, shown)
                axes.barh(y, shown, height=0.82, color=colour[model], label=model if s == 0 else None)
                axes.annotate(
                    f"{score.r2:.3f}" if np.isfinite(score.r2) else "–",
                    (max(shown, 0), y),
                    (4, 0),
                    textcoords="offset points",
                    va="center",
                    color=INK,
                )
        axes.set_yticks(
            [s * (len(models) + 0.9) + (len(models) - 1) / 2 for s in range(len(sessions))], sessions, color=INK
        )
        axes.set_ylim(rows - 0.9 + 0.1, -0.9)
        axes.set_xlim(lowest * 1.1, 1.06)
        axes.set_xlabel(f"test R² of {results.signal}, mean over dimensions")
        axes.tick_params(length=0)
        axes.spines["left"].set_visible(False)
        axes.spines["bottom"].set_visible(False)
        axes.axvline(0, color=MUTED, linewidth=0.8)
        axes.grid(axis="x")

    alt = f"Bars of test R² for {len(sessions)} sessions and {len(models)} models; the numbers are in the table."
    return draw("scores", alt, (8.6, 0.7 + 0.235 * rows), paint)


# ------------------------------------------------------------------------------------------------ curves


def draw_curves(record: RunRecord, colour: dict[str, str]) -> Drawing:
    """Training loss and validation R2, against steps on the left and time on the right."""
    panels = [("train/loss", "training loss"), ("valid/r2", "validation R²")]
    panels = [panel for panel in panels if any(curve.known("step", panel[0]) for curve in record.curves.values())]
    clocks = [("step", "training step", 1.0), ("seconds", "minutes", 1 / 60)]

    def paint(figure: Figure) -> None:
        grid = figure.subplots(len(panels), 2, sharey="row", sharex="col", squeeze=False)
        for row, (name, title) in enumerate(panels):
            for column, (clock, clock_title, factor) in enumerate(clocks):
                axes = grid[row, column]
                for label, curve in record.curves.items():
                    _paint_curve(axes, curve, clock, factor, name, label, colour[label])
                axes.grid(axis="y")
                axes.margins(x=0.02)
                if row == len(panels) - 1:
                    axes.set_xlabel(clock_title)
            grid[row, 0].set_title(title)
            _limit(grid[row, 0], name, [curve for curve in record.curves.values()])

    alt = f"Training loss and validation R² of {', '.join(record.curves)} against training steps and minutes."
    return draw("curves", alt, (8.6, 0.5 + 2.1 * len(panels)), paint)


def _paint_curve(axes, curve: Curve, clock: str, factor: float, name: str, label: str, colour: str) -> None:
    known = curve.known(clock, name)
    if known is None:
        return
    x, y = known[0] * factor, known[1]
    if name == "valid/r2":
        axes.plot(x, y, color=colour, linewidth=1.6, marker="o", markersize=3.2, label=label)
        return
    if len(y) > 20:  # single batches are noisy: they stay visible, the line is their running mean
        axes.plot(x, y, color=colour, linewidth=0.6, alpha=0.3)
        y = _running_mean(y, max(len(y) // 30, 3))
    axes.plot(x, y, color=colour, linewidth=1.6, label=label)


def _running_mean(value: np.ndarray, window: int) -> np.ndarray:
    """Mean over `window` values around each one, over what there is at the ends; (n,) -> (n,)."""
    total = np.concatenate([[0.0], np.cumsum(value)])
    at = np.arange(len(value))
    first, last = np.maximum(at - window // 2, 0), np.minimum(at + window // 2 + 1, len(value))
    return (total[last] - total[first]) / (last - first)


def _limit(axes, name: str, curves: list[Curve]) -> None:
    """Keep a wild beginning from flattening the rest."""
    known = [found[1] for curve in curves if (found := curve.known("step", name))]
    low, high = min(y.min() for y in known), max(y.max() for y in known)
    if name == "valid/r2":
        axes.set_ylim(max(low, LOWEST_R2) - 0.03, max(high, LOWEST_R2) + 0.05)
    elif low > 0:
        typical = max(np.percentile(y, 98) for y in known)
        axes.set_ylim(0, max(typical, 1.02 * low) * 1.08)


# ------------------------------------------------------------------------------------------------ decoding


def stretch_of(record: RunRecord) -> tuple[str, float, float] | None:
    """Session, start and stop (s) of the test stretch to show; the raster's where there is one."""
    if record.raster and any(session == record.raster.session for session, _ in record.traces):
        return record.raster.session, record.raster.start, record.raster.stop
    for (session, _), trace in record.traces.items():
        if len(trace.time):
            return session, float(trace.time[0]), float(trace.time[0]) + FALLBACK_STRETCH_S
    return None


def draw_decoding(record: RunRecord, models: list[str], colour: dict[str, str]) -> Drawing:
    """One test stretch: every spike, and below it on the same clock the true signal and what the models decoded."""
    session, start, stop = stretch_of(record)
    shown = {model: record.traces[session, model] for model in models if (session, model) in record.traces}
    first = next(iter(shown.values()))
    dims = min(first.target.shape[1], len(DIMENSIONS))
    raster, unit = record.raster, record.results.unit_of_measure.get(session, "")
    heights = ([2.2] if raster else []) + [1.0] * dims

    def paint(figure: Figure) -> None:
        grid = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
        if raster:
            _paint_raster(grid[0], raster.time - start, raster.unit)
        names = dimension_names(first.target.shape[1])
        low, high = _range([first.target, *(trace.value for trace in shown.values())], first.time, start, stop)
        for k, axes in enumerate(grid[-dims:]):
            for model, trace in shown.items():
                _paint_trace(axes, trace.time - start, trace.value[:, k], stop - start, colour[model], 1.5)
            _paint_trace(axes, first.time - start, first.target[:, k], stop - start, INK, 1.1)
            axes.set_ylabel(f"{names[k]}  ({unit})" if unit else names[k])
            _shade(axes, first.time[first.evaluated] - start, stop - start)
            axes.axhline(0, color=RULE, linewidth=0.6, zorder=0)
            axes.set_ylim(low, high)
        grid[-1].set_xlim(0, stop - start)
        grid[-1].set_xlabel("seconds")
        figure.align_ylabels(grid)

    alt = f"{stop - start:.0f} s of test data of {session}: spikes of all units, true and decoded {record.results.signal}."
    return draw("decoding", alt, (8.6, 0.5 + 1.25 * sum(heights)), paint)


def _range(values: list[np.ndarray], time: np.ndarray, start: float, stop: float) -> tuple[float, float]:
    """One range for all dimensions, so that none looks larger than it is."""
    kept = (time >= start) & (time < stop)
    seen = np.concatenate([value[kept].ravel() for value in values if len(value) == len(time)])
    seen = seen[np.isfinite(seen)]
    low, high = (float(seen.min()), float(seen.max())) if len(seen) else (0.0, 1.0)
    room = 0.06 * (high - low) or 1.0
    return low - room, high + room


def _shade(axes, time: np.ndarray, until: float) -> None:
    """A tint behind the samples that are judged, `time` (n,) s, where they are not all there is."""
    time = time[(time >= 0) & (time < until)]
    if len(time) < 2:
        return
    step = np.median(np.diff(time))
    breaks = np.flatnonzero(np.diff(time) > 3 * step)
    for first, last in zip(time[np.append(0, breaks + 1)], time[np.append(breaks, -1)]):
        if last - first < until - 2 * step:
            axes.axvspan(first - step / 2, last + step / 2, color=RULE, alpha=0.45, linewidth=0, zorder=0)


def _paint_raster(axes, time: np.ndarray, unit: np.ndarray) -> None:
    # one path with breaks: thousands of separate lines would make the page heavy
    x = np.repeat(time, 3)
    y = np.stack([unit - 0.45, unit + 0.45, np.full(len(unit), np.nan)], axis=1).ravel()
    axes.plot(x, y, color=INK, linewidth=0.7, solid_capstyle="butt")
    axes.set_ylabel("unit")
    axes.set_ylim((unit.max() if len(unit) else 0) + 1, -1)
    axes.tick_params(axis="x", length=0)
    axes.spines["bottom"].set_visible(False)


def _paint_trace(axes, time: np.ndarray, value: np.ndarray, until: float, colour: str, width: float) -> None:
    """The part of a trace in [0, until), its line broken where samples are missing."""
    kept = (time >= 0) & (time < until)
    time, value = time[kept], value[kept].astype(np.float64)
    if len(time) > 1:
        step = np.diff(time)
        breaks = np.flatnonzero(step > 3 * np.median(step)) + 1
        time, value = np.insert(time, breaks, np.nan), np.insert(value, breaks, np.nan)
    axes.plot(time, value, color=colour, linewidth=width)


def save_pngs(drawings: list[Drawing], folder: Path) -> None:
    """Write each drawing as `<name>.png` into the folder."""
    folder.mkdir(exist_ok=True)
    for drawing in drawings:
        (folder / f"{drawing.name}.png").write_bytes(drawing.png)
