"""A Diagnosis -> one figure: attention, information, spread and pull of every block, over the first steps."""

import math
from dataclasses import dataclass
from pathlib import Path

from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from launch.figures import INK, MUTED, PALETTE
from launch.figures_print import save_figure
from pretrain.diagnose import Diagnosis

LAYERS = ("#c3b8ea", "#43378f")  # from the first, light, to the last, dark
OTHERS = {
    "unit embedding": PALETTE[3],
    "latent": PALETTE[5],
    "encoder": PALETTE[0],
    "decoder": PALETTE[1],
    "session embedding": MUTED,
    "readout": PALETTE[2],
}
DOTTED, DASHED = (0, (1, 1.3)), (0, (4, 1.6))
LOWEST_R2 = -0.1
TICK_ROOM = 0.11  # of the axis, between two labels


@dataclass(frozen=True)
class Panel:
    """One quantity of some blocks: "rows", of what passes through them, or "weights", whole or by "parts"."""

    title: str
    quantity: str
    of: str = "rows"
    log: bool = False

    def shows(self, block: str) -> bool:
        if self.of == "rows":
            return True
        return block.endswith((", where", ", what")) == (self.of == "parts") and not block.endswith(" ff")


PANELS = (
    Panel("entropy of attention, 1: uniform", "attention entropy"),
    Panel("R² of the model and of linear probes", "probe R2"),
    Panel("share that spikes move", "share moved by spikes", log=True),
    Panel("share that changes within windows", "share within windows", log=True),
    Panel("effective rank of what spikes move", "effective rank of what spikes move", log=True),
    Panel("gradient: where and what to attend", "gradient norm", "parts", log=True),
    Panel("gradient norm", "gradient norm", "weights", log=True),
    Panel("update of a step / weights", "update / weight", "weights", log=True),
)


def save_diagnosis(found: Diagnosis, folder: Path) -> list[Path]:
    """Write diagnose.png and diagnose.svg into the folder."""
    depth = sum(block.startswith("layer ") for block in found.of("attention entropy"))

    def paint(figure: Figure) -> None:
        grid = figure.subplots(2, math.ceil(len(PANELS) / 2))
        for panel, axes in zip(PANELS, grid.flat):
            _paint(axes, panel, found, depth)
        for axes in grid[-1]:
            axes.set_xlabel("steps taken")
        figure.legend(handles=_handles(depth), loc="outside upper left", ncols=6, handlelength=1.8, columnspacing=1.6)

    return save_figure(folder, "diagnose", (12.0, 5.9), paint)


def _paint(axes, panel: Panel, found: Diagnosis, depth: int) -> None:
    for block, by_step in found.of(panel.quantity).items():
        if panel.shows(block):
            values = [value if value > 0 or not panel.log else math.nan for value in by_step.values()]
            axes.plot(list(by_step), values, marker="o", markersize=2.2, **look_of(block, depth))
    axes.set_title(panel.title, fontsize=9.5)
    if panel.quantity == "probe R2":
        own = found.of("valid R2")["model"]
        axes.plot(list(own), [max(value, LOWEST_R2) for value in own.values()], color=INK, linewidth=2.2, zorder=5)
        axes.axhline(0, color=MUTED, linewidth=0.6, zorder=0)
        axes.set_ylim(bottom=max(axes.get_ylim()[0], LOWEST_R2 - 0.02))
    axes.grid(axis="y")
    _scale_steps(axes, found.steps)
    if panel.log:
        _scale_values(axes)


def _scale_steps(axes, steps: list[int]) -> None:
    """By square roots: the first steps lie close together and matter as much as later ones."""
    axes.set_xscale("function", functions=(lambda x: abs(x) ** 0.5, lambda x: x**2))
    shown = [steps[0]]
    for step in steps[1:]:
        if step**0.5 - shown[-1] ** 0.5 >= TICK_ROOM * steps[-1] ** 0.5:
            shown.append(step)
    axes.set_xlim(0, steps[-1] * 1.03 or 1)
    axes.xaxis.set_major_locator(FixedLocator(shown))
    axes.xaxis.set_minor_locator(NullLocator())


def _scale_values(axes) -> None:
    """Logarithmic, with plain numbers."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 60 else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def look_of(block: str, depth: int) -> dict:
    """Colour by block, layers from light to dark; dashed before a block's feed-forward, dotted for where it attends."""
    name = block.partition(",")[0]
    whole = name.removesuffix(" attention").removesuffix(" ff")
    if whole.startswith("layer "):
        at = (int(whole.split()[1]) - 1) / max(depth - 1, 1)
        colour = tuple(a + at * (b - a) for a, b in zip(*map(to_rgb, LAYERS)))
    else:
        colour = OTHERS[whole]
    style = DOTTED if block.endswith(", where") else DASHED if name != whole else "-"
    return {"color": colour, "linestyle": style, "linewidth": 1.1 if whole.startswith("layer ") else 1.6}


def _handles(depth: int) -> list[Line2D]:
    layers = [f"layer {number}" for number in ((1, depth) if depth > 1 else range(1, depth + 1))]
    blocks = ["unit embedding", "latent", "encoder", *layers, "decoder", "session embedding", "readout"]
    handles = [Line2D([], [], label=block, **look_of(block, depth)) for block in blocks]
    handles.append(Line2D([], [], color=INK, linewidth=2.2, label="the model"))
    handles.append(Line2D([], [], color=INK, linewidth=1.4, linestyle=DASHED, label="before its feed-forward"))
    handles.append(Line2D([], [], color=INK, linewidth=1.4, linestyle=DOTTED, label="where (queries, keys)"))
    return handles
