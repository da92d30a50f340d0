"""A Session -> its distributions, each painted into one panel: rates, intervals between spikes, speed, place."""

from collections.abc import Iterator

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from data_prep.session import Session, Signal
from launch.figures import INK, MUTED, PALETTE
from launch.figures_session_facts import intervals_of, regions

PANEL_HEIGHT, PLACE_HEIGHT = 0.95, 2.0  # inches
REGION_COLOURS = (PALETTE[0], PALETTE[1], PALETTE[2], PALETTE[5], PALETTE[4], PALETTE[3])
INTENSITY = LinearSegmentedColormap.from_list("intensity", ["#ffffff", PALETTE[3], PALETTE[0], "#08304f"])


def region_colours(session: Session) -> dict[str, str]:
    """One colour a region, the commonest first."""
    return {name: REGION_COLOURS[k % len(REGION_COLOURS)] for k, name in enumerate(regions(session))}


def panels(session: Session, rate: np.ndarray) -> Iterator[tuple]:
    """Title, height and painter of the distributions that this session has."""
    yield "firing rates", PANEL_HEIGHT, lambda axes: _paint_rates(axes, session, rate)
    yield "interspike intervals", PANEL_HEIGHT, lambda axes: _paint_intervals(axes, session)
    signals = list(session.signals.values())
    velocity = next((s for s in signals if "/s" in s.unit_of_measure and "^" not in s.unit_of_measure), None)
    velocity = velocity or next((s for s in signals if "vel" in s.name), None)
    if velocity is not None:
        unit = velocity.unit_of_measure
        yield f"speed, {velocity.name}", PANEL_HEIGHT, lambda axes: _paint_speed(axes, session, velocity, unit)
    position = next((s for s in signals if s.value.shape[1] >= 2 and ("pos" in s.name)), None)
    if position is not None:
        yield f"density of {position.name}", PLACE_HEIGHT, lambda axes: _paint_place(axes, session, position)
    elif signals and velocity is None:
        yield (
            f"size of {signals[0].name}",
            lambda axes: _paint_speed(axes, session, signals[0], signals[0].unit_of_measure),
        )


def _paint_rates(axes, session: Session, rate: np.ndarray) -> None:
    active = rate[rate > 0]
    low, high = (active.min(), active.max()) if len(active) else (0.1, 10.0)
    low, high = (low / 2, high * 2) if high < 3 * low else (low * 0.9, high * 1.1)
    edges = np.geomspace(max(low, 1e-3), high, 25)
    regions = np.array(session.units.region, dtype=object)
    colours = region_colours(session)
    parts = [rate[(regions == region) & (rate > 0)] for region in colours]
    axes.hist(parts, edges, stacked=True, color=list(colours.values()), alpha=0.85, label=list(colours), linewidth=0)
    axes.set_xscale("log")
    _plain_logs(axes)
    axes.set_xlabel("Hz", labelpad=1)
    axes.set_ylabel("units")
    axes.yaxis.get_major_locator().set_params(integer=True, nbins=4)
    silent = int(np.sum(rate == 0))
    told = [f"median {np.median(active):.2g} Hz"] * bool(len(active)) + [f"{silent} silent"] * bool(silent)
    _corner(axes, ", ".join(told))


def _corner(axes, text: str) -> None:
    """A number beside the title of a panel."""
    axes.annotate(text, (1, 1), (0, 4), "axes fraction", "offset points", ha="right", va="bottom", color=MUTED)


def _plain_logs(axes) -> None:
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    low, high = axes.get_xlim()
    if high / max(low, 1e-12) < 100:
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))


def _paint_intervals(axes, session: Session) -> None:
    count, edges, short = intervals_of(session)
    axes.stairs(count / max(count.sum(), 1), edges * 1000, fill=True, color=MUTED, alpha=0.55)
    axes.set_xscale("log")
    _plain_logs(axes)
    axes.set_xlim(0.1, 10000)
    axes.set_xticks([1, 10, 100, 1000])
    axes.minorticks_off()
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.axvline(1, color=PALETTE[2], linewidth=0.9)
    axes.set_xlabel("ms", labelpad=1)
    _corner(axes, f"{100 * short:.2g} % < 1 ms")


def _inside(session: Session, signal: Signal) -> np.ndarray:
    """Valid values (n, K) inside the domain."""
    return signal.value[signal.valid & session.domain.contains(signal.time)].astype(np.float64)


def _paint_speed(axes, session: Session, signal: Signal, unit: str) -> None:
    norm = np.sqrt(np.sum(_inside(session, signal) ** 2, axis=1))
    if not len(norm):
        return
    high = float(np.percentile(norm, 99.9))
    axes.hist(
        norm, np.linspace(0, 1.15 * high or 1.0, 50), color=PALETTE[0], alpha=0.75, density=True, linewidth=0, log=True
    )
    axes.axvline(high, color=INK, linewidth=0.8, linestyle=(0, (2, 2)))
    axes.set_yticks([])
    axes.minorticks_off()
    axes.spines["left"].set_visible(False)
    axes.set_ylabel("log density")
    axes.set_xlabel(unit or "no unit", labelpad=1)
    _corner(axes, f"99.9 %: {high:.3g}" if high < 1000 else f"99.9 %: {high:,.0f}")


def _paint_place(axes, session: Session, signal: Signal) -> None:
    value = _inside(session, signal)[:, :2]
    if not len(value):
        return
    low, high = np.percentile(value, (0.05, 99.95), axis=0)
    room = 0.05 * np.maximum(high - low, 1e-9)
    counts, x, y = np.histogram2d(*value.T, bins=70, range=list(zip(low - room, high + room)))
    axes.pcolormesh(x, y, np.log1p(counts).T, cmap=INTENSITY, linewidth=0, rasterized=True)
    axes.set_aspect("equal", adjustable="box", anchor="NW")
    axes.locator_params(nbins=4)
    unit = signal.unit_of_measure or "no unit"
    axes.set_xlabel(f"x ({unit})", labelpad=1)
    axes.set_ylabel(f"y ({unit})")
