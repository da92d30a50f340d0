"""A Session -> one picture of it: the whole recording at a glance, some seconds of spikes and signals, and distributions."""

import io
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from data_prep.session import SPLITS, Intervals, Session, Signal
from launch.figures import INK, MUTED, PALETTE, RULE, STYLE, dimension_names
from launch.figures_session_facts import between, extent, raster_order, rates, representative
from launch.figures_session_panels import PLACE_HEIGHT, panels, region_colours

DPI = 150
BIG, MIDDLE, SMALL = 14.0, 9.5, 8.0  # points: the title, titles of panels, everything else
LOOK = STYLE | {
    "font.size": SMALL,
    "axes.titlesize": MIDDLE,
    "axes.titlepad": 4,
    "axes.labelsize": SMALL,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.fontsize": SMALL,
    "figure.facecolor": "white",
}
SPLIT_COLOURS = {"train": "#b9c4cf", "valid": PALETTE[3], "test": PALETTE[0]}
DIMENSION_COLOURS = (PALETTE[0], PALETTE[2], PALETTE[1])
PHASE_TINTS = ("#fbf0d0", "#d9e9f7", "#e6f2e3", "#f1e7f6", "#fae5de", "#eceef1")
FEW_SECONDS = 120.0  # a recording shorter than that is shown in seconds
OUTSIDE, SHOWN = "#eff1f3", PALETTE[2]
QUIET = ("invalid", "outlier", "random")  # phases that are no part of a good trial: grey
MOST_SIGNALS, MOST_LINES = 3, 3


def session_png(session: Session) -> bytes:
    """The picture of a session as the bytes of a PNG file."""
    with matplotlib.rc_context(LOOK):
        png = io.BytesIO()
        FigureCanvasAgg(paint_session(session)).print_png(png, metadata={"Software": None})
    return png.getvalue()


# ------------------------------------------------------------------------------------------------ layout, in inches


WIDTH, LEFT, RIGHT, EDGE = 12.0, 0.82, 9.25, 0.2
OVERVIEW_TOP, RATE_HEIGHT, BANDS_HEIGHT = 1.0, 0.78, 0.5
BODY_TOP = OVERVIEW_TOP + RATE_HEIGHT + BANDS_HEIGHT + 0.85
SIGNAL_HEIGHT, SIGNAL_GAP = 0.86, 0.34
PANEL_GAP = 0.68


def _signals(session: Session) -> list[Signal]:
    return list(session.signals.values())[:MOST_SIGNALS]


def _axes(figure: Figure, left: float, top: float, width: float, height: float, sharex=None):
    """Axes whose upper left corner lies so many inches from the figure's."""
    wide, tall = figure.get_size_inches()
    return figure.add_axes((left / wide, 1 - (top + height) / tall, width / wide, height / tall), sharex=sharex)


def paint_session(session: Session) -> Figure:
    """The picture as a Figure, to be drawn under LOOK."""
    rate = rates(session)
    every = list(panels(session, rate))
    right = sum(height for _, height, _ in every) + PANEL_GAP * (len(every) - 1)
    below = max(1, len(_signals(session))) * (SIGNAL_HEIGHT + SIGNAL_GAP)
    raster = max(float(np.clip(0.8 + 0.022 * len(session.units), 0.9, 3.4)), right - below)
    figure = Figure(figsize=(WIDTH, BODY_TOP + max(raster + below, right) + 0.5), dpi=DPI)
    shown = representative(session)
    _head(figure, session)
    _paint_overview(figure, session, shown)
    _paint_stretch(figure, session, rate, shown, raster)
    top = BODY_TOP
    spare = max(0.0, raster + below - right) / max(len(every), 1)
    for title, height, paint in every:
        axes = _axes(figure, RIGHT, top, WIDTH - EDGE - RIGHT, height + (spare if height < PLACE_HEIGHT else 0.0))
        axes.set_title(title)
        paint(axes)
        top += height + spare + PANEL_GAP
    return figure


def _head(figure: Figure, session: Session) -> None:
    height = figure.get_size_inches()[1]
    valid = session.trial_columns.get("is_valid")
    good = f" ({int(np.sum(valid)):,} good)" if valid is not None and not np.all(valid) else ""
    facts = [
        f"subject {session.subject}",
        "" if session.paradigm == "unknown" else session.paradigm.replace("_", " "),
        f"{len(session.units):,} {'unit' if len(session.units) == 1 else 'units'}",
        f"{len(session.spikes):,} spikes",
        _lasting(session.domain),
        f"{len(session.trials):,} trials{good}" if len(session.trials) else "no trials",
    ]
    place = EDGE / WIDTH
    figure.text(place, 1 - 0.16 / height, session.id, size=BIG, weight="bold", color=INK, va="top")
    figure.text(place, 1 - 0.45 / height, "   ·   ".join(filter(None, facts)), size=MIDDLE, color=MUTED, va="top")


# ------------------------------------------------------------------------------------------------ the whole recording


@dataclass(frozen=True)
class _Clock:
    """Time on the overview: minutes since the beginning, or seconds where there are few of them."""

    first: float
    last: float

    @property
    def unit(self) -> tuple[float, str]:
        return (60.0, "minutes") if self.last - self.first >= FEW_SECONDS else (1.0, "seconds")

    def at(self, time):
        return (time - self.first) / self.unit[0]

    def bars(self, intervals: Intervals) -> list[tuple[float, float]]:
        return [(self.at(start), self.at(stop) - self.at(start)) for start, stop in intervals]


def _paint_overview(figure: Figure, session: Session, shown: tuple[float, float]) -> None:
    """Population rate, and below it splits and trials, over the whole recording."""
    clock = _Clock(*extent(session))
    width = WIDTH - LEFT - EDGE
    upper = _axes(figure, LEFT, OVERVIEW_TOP, width, RATE_HEIGHT)
    lower = _axes(figure, LEFT, OVERVIEW_TOP + RATE_HEIGHT, width, BANDS_HEIGHT)
    _paint_rate(upper, session, clock)
    _paint_bands(lower, session, clock)
    gaps = Intervals.of([(clock.first, clock.last)]).difference(session.domain)
    part = shown[1] - shown[0] < 0.95 * (clock.last - clock.first)
    for axes in (upper, lower):
        top = axes.get_ylim()[1]
        axes.set_xlim(0, max(clock.at(clock.last), 1e-6))
        axes.broken_barh(clock.bars(gaps), (0, top), color=OUTSIDE, linewidth=0, zorder=0)
        if part:
            bar = clock.bars(Intervals.of([shown]))
            axes.broken_barh(bar, (0, top), color=to_rgba(SHOWN, 0.18), linewidth=0, zorder=4)
    handles = [Patch(color=SPLIT_COLOURS[name], label=f"{name} {_lasting(session.splits[name])}") for name in SPLITS]
    handles += [Patch(color=OUTSIDE, label="outside the domain")] if gaps.seconds > 0.5 else []
    handles += [Patch(color=to_rgba(SHOWN, 0.25), label="shown below")] if part else []
    _legend(upper, handles=handles, ncols=len(handles))


def _lasting(intervals: Intervals) -> str:
    seconds = intervals.seconds
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"


def _paint_rate(axes, session: Session, clock: _Clock) -> None:
    edges = np.linspace(clock.first, clock.last, 601)
    rate = np.diff(session.spikes.before(edges)) / np.diff(edges) / max(len(session.units), 1)
    axes.fill_between(clock.at(edges[:-1]), rate, step="post", color=RULE, linewidth=0)
    axes.step(clock.at(edges[:-1]), rate, where="post", color=MUTED, linewidth=0.7)
    axes.set_ylim(0, max(float(np.percentile(rate, 99.5)) * 1.25, 1e-3))
    axes.locator_params(axis="y", nbins=3)
    axes.set_ylabel("Hz a unit")
    axes.set_title("whole recording")
    axes.tick_params(axis="x", length=0, labelbottom=False)
    axes.spines["bottom"].set_visible(False)


def _paint_bands(axes, session: Session, clock: _Clock) -> None:
    for name in SPLITS:
        axes.broken_barh(clock.bars(session.splits[name]), (1.2, 0.65), color=SPLIT_COLOURS[name], linewidth=0)
    _paint_trials(axes, session, clock)
    axes.set_ylim(0, 2.2)
    axes.set_yticks([1.52, 0.57], ["splits", "trials"])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(10, steps=[1, 2, 5, 10]))
    axes.set_xlabel(clock.unit[1], labelpad=1)


def _legend(axes, **words) -> None:
    """A legend in one line above the axes, on the right."""
    usual = {"handlelength": 1.0, "columnspacing": 1.3, "handletextpad": 0.5, "borderaxespad": 0.0, "borderpad": 0.0}
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1.0 + 0.05 / _inches(axes)), **(usual | words))


def _inches(axes) -> float:
    return axes.get_position().height * axes.figure.get_size_inches()[1]


def _paint_trials(axes, session: Session, clock: _Clock) -> None:
    if not len(session.trials):
        axes.text(0.004, 0.57, "none", color=MUTED, va="center", transform=axes.get_yaxis_transform())
        return
    valid = np.asarray(session.trial_columns.get("is_valid", np.ones(len(session.trials), dtype=bool)), dtype=bool)
    edge = 0.2 if len(valid) < 300 else 0.0
    for good, colour in ((False, "#c3c9d0"), (True, "#4a5058")):
        chosen = Intervals(session.trials.start[valid == good], session.trials.stop[valid == good])
        parts = Intervals.of(part for trial in chosen for part in session.domain.intersection(Intervals.of([trial])))
        axes.broken_barh(clock.bars(parts), (0.25, 0.65), facecolor=colour, edgecolor="white", linewidth=edge)


# ------------------------------------------------------------------------------------------------ some seconds


def _paint_stretch(figure: Figure, session: Session, rate: np.ndarray, shown: tuple[float, float], tall: float) -> None:
    start, stop = shown
    width = RIGHT - 0.95 - LEFT
    raster = _axes(figure, LEFT, BODY_TOP, width, tall)
    _paint_raster(raster, session, rate, shown)
    raster.set_title(f"{stop - start:.0f} s from {_clock(start - extent(session)[0])}")
    panels, top = [raster], BODY_TOP + tall
    for signal in _signals(session) or [None]:
        axes = _axes(figure, LEFT, top + SIGNAL_GAP, width, SIGNAL_HEIGHT, sharex=raster)
        _paint_signal(axes, signal, shown) if signal else _paint_population(axes, session, shown)
        panels.append(axes)
        top += SIGNAL_GAP + SIGNAL_HEIGHT
    seen = _shade(panels, session, shown)
    if seen:
        _legend(raster, handles=[Patch(color=colour, label=name) for name, colour in seen.items()], ncols=8)
    for axes in panels[:-1]:
        axes.tick_params(axis="x", length=0, labelbottom=False)
        axes.spines["bottom"].set_visible(False)
    panels[-1].set_xlim(0, stop - start)
    panels[-1].xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10]))
    panels[-1].set_xlabel("seconds", labelpad=1)
    figure.align_ylabels(panels[1:])


def _paint_population(axes, session: Session, shown: tuple[float, float]) -> None:
    """Rate of all units together, where there is no behaviour to show."""
    edges = np.linspace(*shown, 201)
    rate = np.diff(session.spikes.before(edges)) / np.diff(edges) / max(len(session.units), 1)
    time = (edges[:-1] + edges[1:]) / 2 - shown[0]
    axes.fill_between(time, rate, step="mid", color=RULE, linewidth=0)
    axes.step(time, rate, where="mid", color=MUTED, linewidth=0.8)
    axes.set_ylim(0, max(float(rate.max()) * 1.1, 1e-3))
    axes.locator_params(axis="y", nbins=3)
    axes.set_title(f"rate of all units, in bins of {1000 * (edges[1] - edges[0]):.0f} ms")
    axes.set_ylabel("Hz a unit")


def _clock(seconds: float) -> str:
    return f"{int(seconds // 60)}:{seconds % 60:04.1f} min"


def _paint_raster(axes, session: Session, rate: np.ndarray, shown: tuple[float, float]) -> None:
    order = raster_order(session, rate)
    place = np.empty(len(order))
    place[order] = np.arange(len(order))
    time, unit = between(session, *shown)
    tall = _inches(axes) * 72 / max(len(order), 1)  # points a unit
    x = np.repeat(time - shown[0], 3)  # one path with breaks is drawn faster than thousands of lines
    y = np.stack([place[unit] - 0.42, place[unit] + 0.42, np.full(len(unit), np.nan)], axis=1).ravel()
    axes.plot(x, y, color=INK, linewidth=float(np.clip(tall / 6, 0.4, 0.9)), solid_capstyle="butt")
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0, pad=9)
    axes.spines["left"].set_visible(False)
    ticks, labels, first = [], [], 0
    for region, colour in region_colours(session).items():
        count = session.units.region.count(region)
        bar = Rectangle((-0.0075, first - 0.5), 0.005, count, color=colour, linewidth=0, clip_on=False)
        bar.set_transform(axes.get_yaxis_transform())
        axes.add_patch(bar)
        if first:
            axes.axhline(first - 0.5, color="white", linewidth=1.2)
        if count * tall > 9:
            ticks.append(first + (count - 1) / 2)
            labels.append(f"{region[:11]}\n{count}" if count * tall > 22 else f"{region[:7]} {count}")
        first += count
    axes.set_yticks(ticks, labels)


def _paint_signal(axes, signal: Signal, shown: tuple[float, float]) -> None:
    first, last = np.searchsorted(signal.time, shown)
    time, value = signal.time[first:last] - shown[0], signal.value[first:last].astype(np.float64)
    value[~signal.valid[first:last]] = np.nan
    step = float(np.median(np.diff(signal.time))) if len(signal.time) > 1 else 1.0
    breaks = np.flatnonzero(np.diff(time) > 3 * step) + 1
    time, value = np.insert(time, breaks, np.nan), np.insert(value, breaks, np.nan, axis=0)
    dims = value.shape[1]
    names = dimension_names(dims) if dims > 1 else [""]
    axes.set_title(signal.name + (f", derived from {signal.derived_from}" if signal.derived_from else ""), color=INK)
    axes.set_ylabel(signal.unit_of_measure[:16] if dims <= MOST_LINES else "columns")
    if dims > MOST_LINES:
        _paint_columns(axes, time, value, signal)
    else:
        for k in range(dims):
            axes.plot(time, value[:, k], color=DIMENSION_COLOURS[k], linewidth=1.1, label=names[k] or None)
        low, high = axes.get_ylim()
        if low < 0 < high:
            axes.axhline(0, color=RULE, linewidth=0.6, zorder=0.5)
        axes.locator_params(axis="y", nbins=3)
    if 1 < dims <= MOST_LINES:
        _legend(axes, ncols=dims)


def _paint_columns(axes, time: np.ndarray, value: np.ndarray, signal: Signal) -> None:
    """Many columns one above the other, each scaled to its own spread over the session."""
    known = signal.value[signal.valid]
    low, high = np.percentile(known, (1, 99), axis=0)
    scaled = (value - (low + high) / 2) / np.maximum(high - low, 1e-9)
    dims = value.shape[1]
    axes.plot(time, dims - 1 - np.arange(dims) + 0.9 * np.clip(scaled, -0.6, 0.6), color=PALETTE[0], linewidth=0.7)
    axes.set_yticks([dims - 1, 0], ["1", str(dims)])
    axes.set_ylim(-0.7, dims - 0.3)


def _shade(panels: list, session: Session, shown: tuple[float, float]) -> dict[str, str]:
    """Tints of the phases behind every panel; gives those that occur. Time outside the domain is grey."""
    start, stop = shown
    window = Intervals.of([shown])
    names = [name for name in session.phases if name not in QUIET]
    tint = {name: PHASE_TINTS[k % (len(PHASE_TINTS) - 1)] for k, name in enumerate(names)}
    tint |= {name: PHASE_TINTS[-1] for name in session.phases if name in QUIET}
    seen, covered = {}, Intervals.of([])
    for name in reversed(list(session.phases)):  # the later phase counts where two overlap
        part = session.phases[name].intersection(window).difference(covered)
        covered = Intervals.of([*covered, *part]).merged()
        for a, b in part:
            for axes in panels:
                axes.axvspan(a - start, b - start, color=tint[name], linewidth=0, zorder=0)
        if len(part):
            seen[name] = tint[name]
    for a, b in window.difference(session.domain):
        for axes in panels:
            axes.axvspan(a - start, b - start, color=OUTSIDE, linewidth=0, zorder=0)
    return {name: tint[name] for name in session.phases if name in seen}
