"""The verbs: which config each takes, what it runs, and what it says it would do.

A verb imports its floor inside its functions, so that `spikeloom --help` loads no torch and no NWB library.
"""

from launch.verb import Verb
from launch.verb_check import CHECK
from launch.verb_corpus import CORPUS
from launch.verb_discover import DISCOVER, INSPECT
from launch.verb_doctor import DOCTOR
from launch.verb_export import EXPORT
from launch.verb_merge import MERGE
from launch.verb_replay import REPLAY
from launch.verb_submit import SUBMIT

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


def _pretrain_schema() -> type:
    from pretrain.train import PretrainConfig

    return PretrainConfig


def _pretrain(config) -> int:
    def train() -> str:
        from pretrain.train import pretrain

        return pretrain(config)

    return _by_ranks(config, train)


def _by_ranks(config, train) -> int:
    """Train here, or as several processes of this machine where the config asks for them."""
    from launch.local_ranks import rank_told, run_ranks

    code = run_ranks(config.trainer.devices, config.trainer.device)
    if code is not None:
        return code
    run = train()
    return _reported(run) if rank_told() == 0 else 0


def _plan_pretrain(config) -> list[str]:
    return [f"would train {config.model.name} for {config.trainer.steps:,} steps into {config.run}", *_chosen(config)]


def _chosen(config) -> list[str]:
    """The sessions that a training would use, read from the index of its shards."""
    from pretrain.train import chosen_sessions

    sessions = chosen_sessions(config.shards, config.sessions, config.exclude, cache=config.cache).sessions
    return [
        f"on {len(sessions)} sessions of {config.shards}:",
        *(f"  {row.id}  {row.units} units, {row.hours['train'] * 60:.1f} min of training data" for row in sessions),
    ]


def _finetune_schema() -> type:
    from pretrain.finetune import FinetuneConfig

    return FinetuneConfig


def _finetune(config) -> int:
    def train() -> str:
        from pretrain.finetune import finetune

        return finetune(config)

    return _by_ranks(config, train)


def _plan_finetune(config) -> list[str]:
    return [
        f"would adapt {config.checkpoint} ({config.mode}) for {config.trainer.steps:,} steps into {config.run}",
        *_chosen(config),
    ]


def _evaluate_schema() -> type:
    from pretrain.evaluate import EvaluateConfig

    return EvaluateConfig


def _evaluate(config) -> int:
    from pretrain.evaluate import evaluate

    return _reported(evaluate(config))


def _plan_evaluate(config) -> list[str]:
    return [f"would judge the checkpoint of {config.run} on the {config.split} split; results and report go there too"]


def _reported(run) -> int:
    """Writes the report of a run folder and shows the run."""
    from launch.report import write_report
    from launch.show import show_run

    page = write_report(run)
    show_run(run)
    print(f"report: {page}")
    return 0


def _show_schema() -> type:
    from launch.show import ShowConfig

    return ShowConfig


def _show(config) -> int:
    from launch.show import show

    show(config)
    return 0


def _plan_show(config) -> list[str]:
    return [f"would show {config.path}"]


def _demo_schema() -> type:
    from launch.demo import DemoConfig

    return DemoConfig


def _demo(config) -> int:
    from launch.demo import demo

    demo(config)
    return 0


def _plan_demo(config) -> list[str]:
    source = config.nwb or "eight synthetic sessions"
    return [f"would take {source} through prepare, shard, pretrain, finetune and evaluate below {config.output}"]


def _bench_schema() -> type:
    from launch.bench import BenchConfig

    return BenchConfig


def _bench(config) -> int:
    from launch.bench import bench

    bench(config)
    return 0


def _plan_bench(config) -> list[str]:
    return [f"would measure {config.what} and write {config.output}"]


VERBS = {
    "prepare": Verb(
        "read NWB files by a recipe into stored sessions",
        "spikeloom prepare configs/dandisets/limblab_wf.yaml source=nwb output=sessions",
        _prepare_schema,
        _prepare,
        _plan_prepare,
        word="RECIPE",
        positional="recipe",
        needs="a recipe",
    ),
    "corpus": CORPUS,
    "discover": DISCOVER,
    "inspect": INSPECT,
    "shard": Verb(
        "cut stored sessions into shards of segments, with an index",
        "spikeloom shard sessions=sessions output=shards",
        _shard_schema,
        _shard,
        _plan_shard,
        needs="sessions=FOLDER output=FOLDER",
    ),
    "check": CHECK,
    "merge": MERGE,
    "pretrain": Verb(
        "train a model on the sessions of a shard root",
        "spikeloom pretrain shards=shards run=runs/pretrain exclude='*HELD_OUT'",
        _pretrain_schema,
        _pretrain,
        _plan_pretrain,
        needs="shards=FOLDER run=FOLDER",
        file="pretrain/fast.yaml",
    ),
    "finetune": Verb(
        "adapt a checkpoint to sessions it never saw",
        "spikeloom finetune checkpoint=runs/pretrain shards=shards sessions='*NEW' run=runs/finetune",
        _finetune_schema,
        _finetune,
        _plan_finetune,
        needs="checkpoint=FOLDER shards=FOLDER run=FOLDER",
        file="finetune/fast.yaml",
    ),
    "evaluate": Verb(
        "judge a run on held-out intervals beside a Wiener filter, and write its report",
        "spikeloom evaluate run=runs/finetune",
        _evaluate_schema,
        _evaluate,
        _plan_evaluate,
        needs="run=FOLDER",
    ),
    "export": EXPORT,
    "replay": REPLAY,
    "submit": SUBMIT,
    "doctor": DOCTOR,
    "show": Verb(
        "say what a path holds: a session, shards, a checkpoint or a run",
        "spikeloom show shards",
        _show_schema,
        _show,
        _plan_show,
        word="PATH",
        positional="path",
        needs="a path",
    ),
    "demo": Verb(
        "the whole way on synthetic sessions, or on a folder of your own NWB files",
        "spikeloom demo output=demo",
        _demo_schema,
        _demo,
        _plan_demo,
    ),
    "bench": Verb(
        "measure speed and sizes here, compare how fast recipes learn, or look inside a training",
        "spikeloom bench loader",
        _bench_schema,
        _bench,
        _plan_bench,
        word="[WHAT]",
        positional="what",
    ),
}
