"""The bars of `bench loader`: as long as the rates, in their order, told by numbers, ours apart from the others."""

from matplotlib.figure import Figure

from launch import figures_loader
from launch.figures_loader import save_rates

RATES = {"ours, in process": 59_899.0, "floor, sliced": 154_093.4, "torch_brain, in process": 851.5}


def test_bars_are_as_long_as_the_rates(monkeypatch, tmp_path):
    figure = Figure()
    monkeypatch.setattr(figures_loader, "save_figure", lambda folder, name, size, paint: paint(figure))
    save_rates(RATES, tmp_path)
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == list(RATES.values())
    assert [label.get_text() for label in axes.get_yticklabels()] == list(RATES) and axes.yaxis_inverted()
    assert [note.get_text() for note in axes.texts] == ["59,899", "154,093", "852"]
    assert axes.get_xlim()[0] == 0 and len({bar.get_facecolor() for bar in axes.patches}) == 3


def test_it_is_written_as_png_and_svg(tmp_path):
    assert sorted(path.name for path in save_rates(RATES, tmp_path)) == ["loader.png", "loader.svg"]
    assert all(path.stat().st_size > 3000 for path in tmp_path.iterdir())
