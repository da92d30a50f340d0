"""`spikeloom merge`: shard roots joined into one, with links to the shards they have."""

from launch.verb import Verb


def _schema() -> type:
    from sharding.merge import MergeConfig

    return MergeConfig


def _run(config) -> int:
    from launch.progress import ItemProgress
    from launch.show_shards import show_shards
    from sharding.merge import merge

    with ItemProgress("joining") as progress:
        index = merge(config, progress.show)
    show_shards(index, config.output)
    return 0


def _plan(config) -> list[str]:
    from sharding.merge import join

    joined = join(config)
    size = sum(entry["bytes"] for _, entry in joined.shards)
    how = "copies of" if config.link == "copy" else f"{config.link} links to"
    return [
        f"would join {joined.meta['totals']['sessions']:,} sessions of {len(joined.parts)} roots into {config.output}: "
        f"{how} {len(joined.shards):,} shards, {size / 1e6:,.0f} MB"
    ]


MERGE = Verb(
    "join shard roots into one without writing their data again",
    "spikeloom merge shards more_shards output=all_shards",
    _schema,
    _run,
    _plan,
    word="ROOT ROOT ...",
    positional="roots",
    many=True,
    needs="two or more shard roots and output=FOLDER",
)
