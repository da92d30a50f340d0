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
from launch.verb_prepare import PREPARE, SHARD
from launch.verb_replay import REPLAY
from launch.verb_submit import SUBMIT
from launch.verb_train import EVALUATE, FINETUNE, PRETRAIN


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
    "prepare": PREPARE,
    "corpus": CORPUS,
    "discover": DISCOVER,
    "inspect": INSPECT,
    "shard": SHARD,
    "check": CHECK,
    "merge": MERGE,
    "pretrain": PRETRAIN,
    "finetune": FINETUNE,
    "evaluate": EVALUATE,
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
