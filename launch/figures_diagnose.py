"""A Diagnosis -> one figure: attention, information, spread and pull of every block, over the first steps."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from launch.figures import INK, MUTED, PALETTE
from launch.figures_print import save_figure
from pretrain.diagnose import Diagnosis

ENCODER, DECODER, LAYERS = PALETTE[0], PALETTE[1], ("#c9bfe8", "#4b3f9e")  # layers from light to dark
OTHERS = {"unit embedding": PALETTE[3], "latent": PALETTE[5], "readout": PALETTE[2], "session embedding": MUTED}
FLOOR_R2 = -0.12


@dataclass(frozen=True)
class Panel:
    """One quantity; `kept` says which blocks are drawn."""

    title: str
    quantity: str
    log: bool = False
    kept: Callable[[str], bool] = lambda block: True


def _whole(block: str) -> bool:
    return not block.endswith((", where", ", what"))


PANELS = (
    Panel("attention entropy\n(1: uniform)", "attention entropy"),
    Panel("R² of linear probes,\nand of the model", "probe R2"),
    Panel("share of second moment\nthat spikes move", "share moved by spikes", log=True),
    Panel("share that changes\nwithin windows", "share within windows", log=True),
    Panel("effective rank of\nwhat spikes move", "effective rank of what spikes move", log=True),
    Panel("gradient norm: where (···)\nand what (—) to attend", "gradient norm", True, lambda block: not _whole(block)),
    Panel("gradient norm", "gradient norm", True, _whole),
    Panel("update of a step,\nrelative to the weights", "update / weight", True, _whole),
)


def save_diagnosis(found: Diagnosis, folder: Path) -> list[Path]:
    """Write diagnose.png and diagnose.svg into the folder."""
    blocks = list(dict.fromkeys(block for panel in PANELS for block in found.of(panel.quantity) if panel.kept(block)))
    depth = sum(block.startswith("layer ") and _whole(block) for block in blocks)

    def paint(figure: Figure) -> None:
        grid = figure.subplots(2, math.ceil(len(PANELS) / 2), sharex=True)
        for panel, axes in zip(PANELS, grid.flat):
            _paint(axes, panel, found, depth)
        for axes in grid[-1]:
            axes.set_xlabel("steps taken")
        figure.legend(handles=_handles(blocks, depth), loc="outside upper left", ncols=7, handlelength=1.7)

    return save_figure(folder, "diagnose", (11.4, 6.2), paint)


def _paint(axes, panel: Panel, found: Diagnosis, depth: int) -> None:
    for block, by_step in found.of(panel.quantity).items():
        if panel.kept(block):
            axes.plot(list(by_step), list(by_step.values()), marker="o", markersize=2.4, **look_of(block, depth))
    axes.set_title(panel.title)
    if panel.log:
        axes.set_yscale("log")
    if panel.quantity == "probe R2":
        own = found.of("valid R2")["model"]
        axes.plot(list(own), [max(value, FLOOR_R2) for value in own.values()], color=INK, linewidth=2.2, zorder=5)
        axes.axhline(0, color=MUTED, linewidth=0.6, zorder=0)
        axes.set_ylim(bottom=max(axes.get_ylim()[0], FLOOR_R2 - 0.02))
    axes.grid(axis="y")
    # early steps are close together and matter as much as late ones
    axes.set_xscale("function", functions=(lambda x: abs(x) ** 0.5, lambda x: x**2))
    axes.xaxis.set_major_locator(FixedLocator(found.steps))
    axes.xaxis.set_minor_locator(NullLocator())


def look_of(block: str, depth: int) -> dict:
    """Colour by block, layers from light to dark; dashes for the parts of a block."""
    name = block.removesuffix(", where").removesuffix(", what")
    whole = name.removesuffix(" attention").removesuffix(" ff")
    if whole.startswith("layer "):
        at = (int(whole.split()[1]) - 1) / max(depth - 1, 1)
        colour = tuple(a + at * (b - a) for a, b in zip(*map(to_rgb, LAYERS)))
    else:
        colour = {"encoder": ENCODER, "decoder": DECODER, **OTHERS}[whole]
    dashes = (0, (1, 1.2)) if block.endswith(", where") else (0, (4, 1.6)) if name != whole else "-"
    return {"color": colour, "linestyle": dashes, "linewidth": 1.0 if whole.startswith("layer ") else 1.5}


def _handles(blocks: list[str], depth: int) -> list[Line2D]:
    shown = [block for block in blocks if _whole(block)]
    handles = [Line2D([], [], label=block, **look_of(block, depth)) for block in shown]
    return [*handles, Line2D([], [], color=INK, linewidth=2.2, label="the model")]
