"""A painted figure -> PNG and SVG files that stand alone: white ground, letters as outlines, sharp in print."""

from collections.abc import Callable
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from launch.figures import STYLE

PRINT = STYLE | {
    "figure.facecolor": "white",
    "figure.dpi": 200,
    "svg.fonttype": "path",  # a viewer without the font would set other letters
    "axes.labelcolor": "#24292f",
    "xtick.labelcolor": "#24292f",
    "ytick.labelcolor": "#24292f",
}


def save_figure(folder: Path, name: str, size: tuple[float, float], paint: Callable[[Figure], None]) -> list[Path]:
    """Write `name`.png and `name`.svg into the folder, `size` in inches; `paint(figure)` fills an empty Figure."""
    paths = [folder / f"{name}.{kind}" for kind in ("png", "svg")]
    with matplotlib.rc_context(PRINT | {"svg.hashsalt": name}):
        figure = Figure(figsize=size, layout="constrained")
        paint(figure)
        figure.savefig(paths[0], metadata={"Software": None})
        figure.savefig(paths[1], metadata={"Date": None, "Creator": None})
    return paths
