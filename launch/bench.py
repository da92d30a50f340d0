"""`spikeloom bench`: how fast this machine ingests, loads and trains, how large shards are: a table, JSON and Markdown.

Everything is measured through the entry points a user has: `prepare` in a process of its own, the training loader, and
a real short `pretrain`. Synthetic sessions by default; a folder of NWB files and its recipe where given.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

from data_prep.errors import ConfigError
from data_prep.prepare import PrepareConfig
from launch.bench_diagnose import diagnosed
from launch.bench_ingest import IngestConfig, compared, made
from launch.bench_learn import LearnConfig, learn
from launch.bench_loader import LoaderBench
from launch.bench_loader import compared as loaders_compared
from launch.bench_machine import circumstances, in_a_line
from launch.bench_sessions import SYNTHETIC_RECIPE, reading_of, shards_of, simulated
from launch.bench_size import sizes
from launch.bench_supply import SupplyConfig, supplied
from launch.bench_survive import SurviveConfig, survived
from launch.files import did_you_mean
from launch.record import read_metrics
from launch.table import as_text, print_table
from pretrain.diagnose import DiagnoseConfig
from pretrain.train import PretrainConfig, chosen_sessions, pretrain, sampling_of, vocabularies
from sharding.index import ShardIndex
from sharding.statistics import target_statistics

PARTS = ("ingest", "loader", "train", "size")
APART = ("supply", "survive")  # no part of "all": of corpora rather than the sessions, and of many trainings
# What takes longer is no part of "all" either. Each is called with the config and the folder of its results.
STUDIES: dict[str, Callable[["BenchConfig", Path], None]] = {
    "learn": lambda config, folder: learn(config.learn, folder),
    "diagnose": lambda config, folder: diagnosed(config.training, config.diagnose, _shards_to_diagnose(config), folder),
}
WARM_STEPS = 5  # left out of the measurement


def _training() -> PretrainConfig:
    plain = PretrainConfig()
    return replace(
        plain,
        trainer=replace(
            plain.trainer, steps=30, val_every=1_000_000, save_every=1_000_000, log_every=1, threads=1, device="cpu"
        ),
    )


@dataclass(frozen=True)
class BenchConfig:
    what: str = "all"
    """ingest, loader, train, size, or all of these; supply: start-up by corpus size; survive: saves, stops and strategies;
    learn, diagnose: how recipes learn"""
    output: str = "bench"
    "folder of the sessions, shards and results"
    nwb: str = ""
    "your own NWB files: a folder, or one file; empty simulates sessions"
    recipe: str = SYNTHETIC_RECIPE
    "YAML of the dandiset that the NWB files belong to"
    minutes: float = 10.0
    "length of each simulated session, minutes"
    sessions: int = 3
    "simulated sessions, 1 to 8"
    repeats: int = 3
    "times the files are ingested, and each loader is watched; the median counts"
    ingest: IngestConfig = field(default_factory=IngestConfig)
    "what `bench ingest` makes and reads and `bench loader` loads, where `nwb` is empty"
    seconds: float = 4.0
    "how long each loader is watched at a time, seconds"
    workers: list[int] = field(default_factory=lambda: [1, 2])
    "numbers of loader workers to compare with none"
    peer_python: str = ""
    "the Python of an environment with pytorch-brain, which `bench loader` then compares with; empty leaves it out"
    training: PretrainConfig = field(default_factory=_training)
    "what is trained and how; its shards and run are set here"
    supply: SupplyConfig = field(default_factory=SupplyConfig)
    "the corpora of `bench supply`"
    survive: SurviveConfig = field(default_factory=SurviveConfig)
    "the trainings of `bench survive`: `training`, spread, stopped and continued"
    learn: LearnConfig = field(default_factory=LearnConfig)
    "what `bench learn` compares"
    diagnose: DiagnoseConfig = field(default_factory=DiagnoseConfig)
    "where `bench diagnose` looks while it trains `training`"


@dataclass(frozen=True)
class Measurement:
    """One number with its unit, and what it was measured with."""

    what: str
    value: float
    unit: str
    of: str


def bench(config: BenchConfig) -> list[Measurement]:
    """Measure, print the table and write bench.json and bench.md into the output; raises what the stages raise.

    A study writes into a folder of its own below the output instead, and gives no measurements.
    """
    options = ("all", *PARTS, *APART, *STUDIES)
    if config.what not in options:
        raise ConfigError("what", f"{config.what!r} cannot be measured", did_you_mean(config.what, options))
    folder = Path(config.output)
    if config.what in STUDIES:
        STUDIES[config.what](config, folder / config.what)
        return []
    wanted = PARTS if config.what == "all" else (config.what,)
    out = list(_ingestion(config)) if "ingest" in wanted else []
    out += _loading(config) if "loader" in wanted else []
    if "supply" in wanted:
        out += (Measurement(*row) for row in supplied(config.supply, folder / "supply"))
    if "survive" in wanted:
        shards = config.survive.shards or str(shards_of(_reading(config), folder).root)
        out += (Measurement(*row) for row in survived(config.survive, config.training, shards))
    if "train" in wanted or "size" in wanted:
        reading = _reading(config)
        index = shards_of(reading, folder)
        out += _training_speed(config, index) if "train" in wanted else []
        out += (Measurement(*row) for row in sizes(reading, index)) if "size" in wanted else []
    print_table("bench", ["what", "value", "unit", "of"], [[m.what, m.value, m.unit, m.of] for m in out])
    _write(folder, out)
    if "loader" in wanted:
        _draw({m.what: m.value for m in out if m.unit == "windows/s" and m.what != "training"}, folder)
    return out


def _draw(rates: dict[str, float], folder: Path) -> None:
    from launch.figures_loader import save_rates

    print(f"written: {', '.join(map(str, save_rates(rates, folder)))}")


def _reading(config: BenchConfig) -> PrepareConfig:
    """How the NWB files are read that the config gives, or that are simulated."""
    folder = Path(config.output)
    nwb = Path(config.nwb) if config.nwb else simulated(folder, config.sessions, config.minutes)
    return reading_of(nwb, config.recipe, folder)


def _shards_to_diagnose(config: BenchConfig) -> str:
    return config.diagnose.shards or str(shards_of(_reading(config), Path(config.output)).root)


def _ingestion(config: BenchConfig) -> Iterator[Measurement]:
    """`prepare` over the config's NWB files, or over those of `ingest`, beside what no reader can beat and beside pynwb."""
    nwb = Path(config.nwb) if config.nwb else made(config.ingest, Path(config.output))
    recipe = config.recipe if config.nwb else config.ingest.recipe
    for what, value, unit, of in compared(nwb, recipe, config.repeats):
        yield Measurement(what, value, unit, of)


def _loading(config: BenchConfig) -> Iterator[Measurement]:
    """Loaders over the sessions of the config's NWB files, or of those of `ingest`; their shards are kept."""
    training, folder = config.training, Path(config.output)
    if config.nwb:
        reading = reading_of(config.nwb, config.recipe, folder)
    else:
        folder /= "loader"
        reading = reading_of(made(config.ingest, folder.parent), config.ingest.recipe, folder)
    index = chosen_sessions(str(shards_of(reading, folder).root), training.sessions, training.exclude)
    statistics = target_statistics(index, training.task.signal, training.task.center, training.task.scale)
    sampling = sampling_of(training.task, training.window_s, *vocabularies(index), statistics)
    rest = config.workers, config.seconds, config.repeats, config.peer_python, folder
    for row in chain(loaders_compared(LoaderBench(index, sampling, training.loader, *rest)), sizes(reading, index)):
        yield Measurement(*row)


def _training_speed(config: BenchConfig, index: ShardIndex) -> Iterator[Measurement]:
    """A real short pretraining: windows a second by its own metrics.csv, loader included, validation left out."""
    training = config.training
    with TemporaryDirectory() as folder:
        run = pretrain(replace(training, shards=str(index.root), run=f"{folder}/run"))
        curve = read_metrics(run / "metrics.csv")
        facts = json.loads((run / "checkpoint" / "checkpoint.json").read_text(encoding="utf-8"))
    step, windows, seconds = curve.known("step", "windows", "seconds")
    steady = (step >= WARM_STEPS) & (step < training.trainer.steps)
    rate = (windows[steady][-1] - windows[steady][0]) / (seconds[steady][-1] - seconds[steady][0])
    threads = training.trainer.threads or "all"
    of = (
        f"{training.model.name}, width {training.model.width}, depth {training.model.depth}, "
        f"{len(facts['units']):,} units, batches of {training.loader.batch_windows}, {threads} threads"
    )
    yield Measurement("training", float(rate), "windows/s", of)


def _write(folder: Path, measurements: list[Measurement]) -> None:
    facts = circumstances()
    folder.mkdir(parents=True, exist_ok=True)
    content = {**facts, "measurements": [asdict(m) for m in measurements]}
    (folder / "bench.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    lines = [
        in_a_line(facts),
        "",
        "| what | value | unit | of |",
        "|---|---|---|---|",
    ]
    lines += [f"| {m.what} | {as_text(m.value)} | {m.unit} | {m.of} |" for m in measurements]
    (folder / "bench.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"written: {folder / 'bench.json'}, {folder / 'bench.md'}")
