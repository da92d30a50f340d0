"""Windows a second of the loaders that `spikeloom bench loader` compared -> one figure of bars."""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from launch.figures import BASELINES, INK, MUTED, PALETTE
from launch.figures_print import save_figure

# What a name begins with -> the colour of its bar: ours, the floor that no loader reaches, the others.
COLOURS = {"ours": PALETTE[0], "floor": MUTED}
ROOM = 1.17  # length of the axis, longest bars: room for its number


def save_rates(rates: dict[str, float], folder: Path) -> list[Path]:
    """Write loader.png and loader.svg into the folder; rates are windows a second (> 0) by name, drawn from the top."""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        names, values = list(rates), list(rates.values())
        colours = [next((c for start, c in COLOURS.items() if name.startswith(start)), BASELINES[0]) for name in names]
        axes.barh(range(len(names)), values, color=colours, height=0.7)
        for row, value in enumerate(values):
            axes.annotate(f"{value:,.0f}", (value, row), (4, 0), textcoords="offset points", va="center", color=INK)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_xlim(0, max(values) * ROOM)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.set_xlabel("windows a second")
        axes.tick_params(axis="y", length=0)

    return save_figure(folder, "loader", (7.2, 0.9 + 0.3 * len(rates)), paint)
