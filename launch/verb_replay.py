"""`spikeloom replay`: where, in a step whose loss was not finite, the numbers stopped being finite, and on which windows."""

from collections import Counter

from launch.table import print_table
from launch.verb import Verb

BEFORE = 2  # modules shown before the first that is not finite
AFTER = 6


def _schema() -> type:
    from pretrain.replay import ReplayConfig

    return ReplayConfig


def _run(config) -> int:
    from launch.config import load
    from pretrain.replay import replay, schema_of

    settings = load(schema_of(config.run), f"{config.run}/config.yaml", [])
    return show_replayed(replay(config, settings))


def show_replayed(replayed) -> int:
    """Prints what a replay saw; 0 where it met what the alarm told of, 1 where all was finite."""
    begin = f"the save of step {replayed.begin}" if replayed.begin else "the beginning"
    print(
        f"replayed from {begin} to step {replayed.step}: the loss is {replayed.loss:.8g}, "
        f"the gradient's norm {replayed.norm:.4g}"
    )
    for bad in replayed.batch:
        print(f"the batch's {bad}")
    _print("outputs of modules, in the order in which they are computed", replayed.outputs)
    _print("gradients, from the loss on", replayed.gradients)
    sessions = Counter(window["session"] for window in replayed.windows)
    rows = [
        [name, count, *_span(window["start_us"] for window in replayed.windows if window["session"] == name)]
        for name, count in sessions.items()
    ]
    print_table(f"windows of step {replayed.step}", ["session", "windows", "first start (s)", "last start (s)"], rows)
    if replayed.finite:
        print(
            f"all is finite here: step {replayed.alarm} went wrong for a reason that lies in that machine or its ranks"
        )
    return 1 if replayed.finite else 0


def _span(starts) -> tuple[float, float]:
    starts = sorted(starts)
    return starts[0] / 1e6, starts[-1] / 1e6


def _print(title: str, seen) -> None:
    """A row a tensor, those around the first that is not finite; nothing where all are finite."""
    first = next((at for at, numbers in enumerate(seen) if not numbers.finite), None)
    if first is None:
        largest = max(seen, key=lambda numbers: numbers.largest)
        print(f"{title}: all {len(seen)} finite, up to {largest.largest:.3g} in {largest.name}")
        return
    shown = seen[max(first - BEFORE, 0) : first + AFTER]
    bad = sum(not numbers.finite for numbers in seen)
    columns = ["name", "largest", "NaN", "infinite", "numbers"]
    rows = [[n.name, f"{n.largest:.3g}", n.nan, n.infinite, n.size] for n in shown]
    print_table(f"{title}: {bad} of {len(seen)} not finite", columns, rows)


def _plan(config) -> list[str]:
    from pretrain.replay import schema_of

    schema_of(config.run)
    return [f"would take the steps of {config.run} again that led to {config.alarm or 'its latest alarm'}"]


REPLAY = Verb(
    "take a run's steps again up to one whose loss was not finite, and see where it begins",
    "spikeloom replay run=runs/pretrain",
    _schema,
    _run,
    _plan,
    needs="run=FOLDER",
)
