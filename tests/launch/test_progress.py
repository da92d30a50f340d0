"""Progress: the time left follows the weight of what is done, and what was there before tells nothing of the speed."""

import sys

import pytest

from launch.progress import ItemProgress, Remaining


@pytest.fixture
def clock():
    """A clock to be set: clock.now."""

    class Clock:
        now = 100.0

        def __call__(self) -> float:
            return self.now

    return Clock()


def test_time_left_is_by_weight(clock):
    left = Remaining(clock)
    left.begin(1000)
    assert left.seconds is None and str(left) == ""
    clock.now += 10
    left.step(100)
    assert left.seconds == pytest.approx(90)  # 10 s for each 100
    clock.now += 10
    left.step(700)
    assert left.seconds == pytest.approx(5)
    left.step(200)
    assert left.seconds is None and str(left) == ""


def test_what_was_there_before_says_nothing_of_the_speed(clock):
    left = Remaining(clock)
    left.begin(1000)
    clock.now += 1
    left.step(800, worked=False)
    assert left.seconds is None
    clock.now += 9
    left.step(100)
    assert left.seconds == pytest.approx(10)


@pytest.mark.parametrize(
    "rest, told",
    [(5, "about 5 s left"), (99, "about 99 s left"), (600, "about 10 min left"), (9000, "about 2.5 h left")],
)
def test_time_left_in_words(clock, rest, told):
    left = Remaining(clock)
    left.begin(1 + rest)
    clock.now += 1
    left.step(1)
    assert str(left) == told


def test_a_log_has_a_line_for_each_item_with_the_time_left(capsys, clock):
    with ItemProgress("reading") as progress:
        progress.remaining.clock = clock
        progress.begin(3, 400)
        clock.now += 2
        progress.step("a.nwb", 100)
        progress.step("b.nwb", 100, worked=False)
        progress.step("c.nwb", 200)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["reading 1/3: a.nwb (about 6 s left)", "reading 2/3: b.nwb (about 4 s left)", "reading 3/3: c.nwb"]


def test_items_that_are_told_before_they_are_done(capsys, clock):
    """As `shard` tells them: `done` of `total`, and the one that comes next."""
    with ItemProgress("sharding") as progress:
        progress.remaining.clock = clock
        progress.show(0, 2, "a.h5")
        clock.now += 3
        progress.show(1, 2, "b.h5")
        progress.show(2, 2, "")
    assert capsys.readouterr().err.splitlines() == ["sharding 1/2: a.h5", "sharding 2/2: b.h5 (about 3 s left)"]


def test_a_terminal_has_one_bar_that_goes_away(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    with ItemProgress("reading", 4) as progress:
        progress.step("sub-1_[bold]a-very-long-name-that-no-terminal-of-eighty-columns-has-room-for.nwb")
        progress.bar.refresh()
        assert progress.bar.tasks[0].percentage == 25
        assert progress.bar.tasks[0].fields["count"] == "1/4"
        width = max(len(line) for line in progress.bar.console.render_lines(progress.bar.get_renderable()))
        assert width <= 80
    assert "reading" in capsys.readouterr().err
