"""`spikeloom inspect`: the numbers it prints are those of the session, and its picture can be read."""

import io
from dataclasses import replace
from itertools import combinations

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.image import imread
from matplotlib.text import Text

from data_prep.session import Intervals, Session, Signal, Spikes, Units
from data_prep.store import save_session
from data_prep.synthetic import SyntheticConfig, write_sessions
from launch.cli import main
from launch.figures_session import LOOK, paint_session, session_png
from launch.figures_session_facts import between, count_in_domain, intervals_of, raster_order, rates, representative

SECONDS = 300.0
LONG = "a_signal_with_a_rather_long_name"


def made(units: int = 20, regions: tuple[str, ...] = ("M1", "PMd"), signals: int = 2, hz: float = 5.0) -> Session:
    """A session with a gap, trials every three seconds and as many signals as asked for, one of them of 16 columns."""
    random = np.random.default_rng(units)
    count = random.poisson(random.lognormal(np.log(hz), 0.7, units) * SECONDS)
    count[0] = max(count[0], 50)
    time, unit = random.uniform(0, SECONDS, count.sum()), np.repeat(np.arange(units), count).astype(np.uint32)
    order = np.argsort(time)
    t = np.arange(0, SECONDS, 0.02)
    wave = np.stack([np.sin(t), np.cos(t)], axis=1).astype(np.float32)
    every = {
        "cursor_vel": Signal("cursor_vel", t, 10 * wave, "cm/s", np.arange(len(t)) % 100 > 3),
        "cursor_pos": Signal("cursor_pos", t, 8 * wave, "cm", np.ones(len(t), dtype=bool)),
        LONG: Signal(LONG, t, np.tile(wave, 8), "arbitrary units", np.ones(len(t), dtype=bool), "cursor_pos"),
        "fourth": Signal("fourth", t, wave[:, :1], "N", np.ones(len(t), dtype=bool)),
    }
    trials = Intervals.of([(3.0 * k, 3.0 * k + 2.5) for k in range(100)]) if signals else Intervals.of([])
    phases = {"hold": Intervals(trials.start, trials.start + 0.8), "reach": Intervals(trials.start + 0.8, trials.stop)}
    return Session(
        id="made/Ada_by-hand",
        dandiset="made",
        subject="Ada",
        paradigm="center_out",
        units=Units(
            tuple(map(str, range(units))), tuple(regions[k % len(regions)] for k in range(units)), ("good",) * units
        ),
        spikes=Spikes(time[order], unit[order]),
        signals=dict(list(every.items())[:signals]),
        trials=trials,
        trial_columns={"is_valid": np.arange(len(trials)) % 5 > 0} if len(trials) else {},
        phases={**phases, "outlier": Intervals.of([(100.2, 101.0)])} if signals else {},
        domain=Intervals.of([(0, 140), (160, SECONDS)]),
        splits={
            "train": Intervals.of([(0, 140), (160, 220)]),
            "valid": Intervals.of([(220, 240)]),
            "test": Intervals.of([(240, SECONDS)]),
        },
        provenance={"file": "by-hand.nwb", "recipe": "made", "notes": "one thing\nanother thing"},
    )


REGIONS = ("M1", "PMd", "S1", "area 2 of a long name", "DMFC", "FEF", "V4")
SESSIONS = {
    "usual": lambda: made(),
    "one unit": lambda: made(1, ("CA1",), signals=0),
    "three units": lambda: made(3, ("unknown",), signals=1),
    "many units": lambda: made(300, REGIONS, signals=4, hz=2),
    "dense": lambda: made(90, ("M1",), hz=60),
    "short": lambda: cut_short(made()),
}


def cut_short(session: Session) -> Session:
    """Nine seconds of it."""
    end = int(session.spikes.before(np.array([9.0]))[0])
    whole, none = Intervals.of([(0, 9)]), Intervals.of([])
    return replace(
        session,
        spikes=Spikes(session.spikes.time[:end], session.spikes.unit[:end]),
        domain=whole,
        splits={"train": whole, "valid": none, "test": none},
    )


@pytest.mark.parametrize("name", SESSIONS)
def test_no_words_of_the_picture_touch_each_other_or_its_edge(name):
    with matplotlib.rc_context(LOOK):
        figure = paint_session(SESSIONS[name]())
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    page, renderer = figure.bbox, canvas.get_renderer()
    texts = [one for one in figure.findobj(Text) if one.get_visible() and one.get_text().strip()]
    ticks = {id(text) for axes in figure.axes for text in hidden_tick_labels(axes)}
    boxes = [(one.get_text(), one.get_window_extent(renderer)) for one in texts if id(one) not in ticks]
    assert len(boxes) > 15
    for text, box in boxes:
        assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1, text
    for (one, a), (other, b) in combinations(boxes, 2):
        wide, tall = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        assert wide < 1 or tall < 1, f"{one!r} and {other!r} overlap"


def hidden_tick_labels(axes):
    """Labels of ticks beyond the limits of an axis, which are not drawn."""
    for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
            if not min(low, high) - 1e-9 <= tick.get_loc() <= max(low, high) + 1e-9:
                yield from (tick.label1, tick.label2)


def test_counts_and_rates_are_those_inside_the_domain():
    session = made()
    inside = session.domain.contains(session.spikes.time)
    expected = [int(np.sum(inside & (session.spikes.unit == u))) for u in range(20)]
    assert count_in_domain(session).tolist() == expected
    assert rates(session) == pytest.approx(np.array(expected) / 280.0)


def test_intervals_are_those_of_each_unit_though_spikes_come_in_parts(monkeypatch):
    session = made()
    trains = [np.sort(session.spikes.time[session.spikes.unit == u]) for u in range(20)]
    gaps = np.concatenate([np.diff(train) for train in trains])
    whole = Spikes.parts
    monkeypatch.setattr(Spikes, "parts", lambda self, at_most=0: whole(self, 1000))
    count, edges, short = intervals_of(session)
    assert count.sum() == len(gaps[gaps <= 10.0])
    assert np.histogram(np.maximum(gaps, edges[0]), edges)[0].tolist() == count.tolist()
    assert short == pytest.approx(np.mean(gaps < 0.001))


def test_spikes_of_a_stretch_are_those_between_its_ends():
    session = made()
    time, unit = between(session, 100.0, 120.0)
    chosen = (session.spikes.time >= 100) & (session.spikes.time < 120)
    assert np.array_equal(time, session.spikes.time[chosen]) and np.array_equal(unit, session.spikes.unit[chosen])


def test_a_picture_reads_no_more_than_a_part_of_the_spikes_at_a_time(monkeypatch):
    """Of a large session the arrays are on disk: slices of them are read, never the whole."""

    class Watched(np.ndarray):
        largest = 0

        def __getitem__(self, which):
            if isinstance(which, slice):
                Watched.largest = max(Watched.largest, len(range(*which.indices(len(self)))))
            return np.asarray(self)[which]

    session = made(hz=20)
    spikes = Spikes(session.spikes.time.view(Watched), session.spikes.unit.view(Watched))
    whole = Spikes.parts
    monkeypatch.setattr(Spikes, "parts", lambda self, at_most=0: whole(self, 5000))
    assert session_png(replace(session, spikes=spikes)) == session_png(session)
    assert 5000 <= Watched.largest < 0.2 * len(session.spikes)


def test_the_seconds_shown_lie_where_there_are_data():
    session = made()
    start, stop = representative(session)
    assert stop - start == 20.0
    assert session.domain.intersection(Intervals.of([(start, stop)])).seconds == pytest.approx(20.0)
    start, stop = representative(SESSIONS["dense"]())
    assert 8.0 <= stop - start < 20.0, "a dense raster shows less time"


def test_rows_of_the_raster_go_by_region_then_by_rate():
    session = made(9, ("S1", "M1", "M1"))
    rate = rates(session)
    order = raster_order(session, rate)
    assert [session.units.region[u] for u in order] == ["M1"] * 6 + ["S1"] * 3
    assert all(rate[a] >= rate[b] for a, b in zip(order[:5], order[1:6]))


def test_inspect_prints_what_is_in_a_stored_session_and_saves_a_picture(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    session = made()
    units = replace(session.units, held_out=(True,) * 4 + (False,) * 16)
    path = save_session(replace(session, units=units), tmp_path)
    assert main(["inspect", str(path)]) == 0
    out = capsys.readouterr().out
    count = count_in_domain(session)
    assert f"spikes in the domain  {count.sum():,}" in out and "good trials           80" in out
    low, middle, high = np.percentile(count[::2] / 280.0, (5, 50, 95))
    line = next(line for line in out.splitlines() if line.split()[:2] == ["M1", "good"])
    assert line.split()[2:4] == ["10", "2"]
    assert all(f"{value:.4g}" in line.split() for value in (low, middle, high))
    assert "cursor_vel     2  cm/s  50   15,000         96      10" in out
    assert "another thing" in out and "by-hand.nwb" in out
    picture = imread(io.BytesIO((tmp_path / f"{path.stem}.png").read_bytes()))
    assert picture.shape[1] == 1800 and picture[..., :3].min() < 0.2


def test_inspect_reads_an_nwb_file_by_its_recipe(tmp_path, capsys):
    path = write_sessions(tmp_path, SyntheticConfig(minutes=1.0, sessions=1))[0]
    out = tmp_path / "picture.png"
    words = ["inspect", str(path), "recipe=configs/dandisets/synthetic.yaml", "recipe.min_train_s=10", f"output={out}"]
    assert main(words) == 0
    assert "session synthetic/Ada_CO-01" in capsys.readouterr().out
    assert out.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "words, said",
    [
        (["file.nwb"], "not a stored session (.h5); say recipe=FILE.yaml"),
        (["absent.h5"], "no such file"),
        (["absent.h5", "output=picture.jpg"], "is no PNG file"),
        (["absent.h5", "output=nowhere/picture.png"], "there is no folder nowhere"),
    ],
)
def test_what_inspect_cannot_do_is_one_line(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", *words]) in (1, 2)
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


def test_the_same_session_gives_the_same_bytes():
    session = made(3, signals=1)
    assert session_png(session) == session_png(session)
