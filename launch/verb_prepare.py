"""`spikeloom prepare` and `spikeloom shard`: NWB files into stored sessions, those into shards."""

from launch.verb import Verb

OPENING = 1e6  # bytes that take about as long to read as a file takes to open


def _prepare_schema() -> type:
    from data_prep.prepare import PrepareConfig

    return PrepareConfig


def _prepare(config) -> int:
    from data_prep.prepare import KEPT, prepare
    from launch.progress import ItemProgress
    from launch.show import show_prepared

    def begin(assets) -> None:
        progress.begin(len(assets), sum(asset.size + OPENING for asset in assets))

    with ItemProgress("reading") as progress:
        report = prepare(config, lambda row: progress.step(row.file, row.bytes + OPENING, row.status != KEPT), begin)
    show_prepared(report)
    return report.exit_code


def _plan_prepare(config) -> list[str]:
    from data_prep.prepare import preview

    return [f"would write sessions to {config.output}", *preview(config)]


def _shard_schema() -> type:
    from sharding.shard import ShardConfig

    return ShardConfig


def _shard(config) -> int:
    from launch.progress import ItemProgress
    from launch.show_shards import show_shards
    from sharding.shard import shard

    with ItemProgress("sharding") as progress:
        index = shard(config, progress.show)
    show_shards(index, config.output)
    return 1 if index.refused else 0


def _plan_shard(config) -> list[str]:
    return [
        f"would cut the sessions of {config.sessions} into segments and write shards of about "
        f"{config.shard_mb:g} MB to {config.output}"
    ]


PREPARE = Verb(
    "read NWB files by a recipe into stored sessions",
    "spikeloom prepare configs/dandisets/limblab_wf.yaml source=nwb output=sessions",
    _prepare_schema,
    _prepare,
    _plan_prepare,
    word="RECIPE",
    positional="recipe",
    needs="a recipe",
)

SHARD = Verb(
    "cut stored sessions into shards of segments, with an index",
    "spikeloom shard sessions=sessions output=shards",
    _shard_schema,
    _shard,
    _plan_shard,
    needs="sessions=FOLDER output=FOLDER",
)
