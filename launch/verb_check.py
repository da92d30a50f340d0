"""`spikeloom check`: every fault of a shard root as a row, and what was read to find it."""

from launch.table import print_table
from launch.verb import Verb


def _schema() -> type:
    from sharding.check import CheckConfig

    return CheckConfig


def _run(config) -> int:
    from launch.progress import ItemProgress
    from sharding.check import check

    with ItemProgress("checking") as progress:
        checked = check(config, progress.begin, progress.step)
    show_checked(config.root, checked)
    return 1 if checked.faults else 0


def show_checked(root: str, checked) -> None:
    """Prints a row a fault, and last how much was checked in which time."""
    if checked.faults:
        print_table(f"faults of {root}", ["where", "found"], [[fault.where, fault.found] for fault in checked.faults])
    faults = "no fault" if not checked.faults else f"{len(checked.faults):,} faults"
    speed = f"{checked.bytes / 1e6 / max(checked.seconds, 1e-9):,.0f} MB/s"
    print(
        f"{checked.files:,} files, {checked.bytes:,} bytes, {checked.segments:,} segments, {checked.spikes:,} spikes "
        f"checked in {checked.seconds:.1f} s ({speed}): {faults}"
    )


def _plan(config) -> list[str]:
    from sharding.check import shards_of

    files, size = shards_of(config.root)
    return [f"would read the {files:,} shards of {config.root}, {size / 1e6:,.0f} MB, and hold them against the index"]


CHECK = Verb(
    "hold every byte of a shard root against its index, and the index against itself",
    "spikeloom check shards",
    _schema,
    _run,
    _plan,
    word="ROOT",
    positional="root",
    needs="a shard root",
)
