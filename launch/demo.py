"""`spikeloom demo`: NWB files -> sessions -> shards -> a pretrained model -> two adapted ones -> scores and a report.

Without a folder of NWB files it simulates eight sessions of three animals and adapts to the animal that pretraining never
saw. Every stage is done once; a second call goes on where the first stopped. Like any verb it imports the floors inside
its functions: `--help` and the first line of the first stage come at once.
"""

import glob
import time
from dataclasses import dataclass, replace
from pathlib import Path

from data_prep.errors import ConfigError, DataError
from launch.config import as_mapping, load
from launch.record import Results, read_run
from launch.report import compare, headline, write_report
from launch.stages import Stages, files_digest
from launch.table import print_table

SYNTHETIC_RECIPE = "dandisets/synthetic.yaml"
PRETRAINING = "pretraining"
MODES = {"unit_id": "POYO, unit identification", "full": "POYO, full finetuning"}
ALONE = "POYO"


@dataclass(frozen=True)
class DemoConfig:
    output: str = "demo"
    "folder of everything the demo writes"
    nwb: str = ""
    "your own NWB files: a folder, or one file; empty simulates eight sessions"
    recipe: str = ""
    "YAML of the dandiset, which says what the NWB files keep where; needed with nwb"
    minutes: float = 5.0
    "length of each simulated session, minutes"
    pretrain: str = "pretrain/demo.yaml"
    "YAML of the pretraining"
    finetune: str = "finetune/demo.yaml"
    "YAML of both finetunings"
    workers: int = 2
    "processes that read NWB files"
    seed: int = 42
    "of the simulation and of the training"


def demo(config: DemoConfig) -> Path:
    """Run all stages below `config.output`, print the table of test R2, and give the path of the report.

    The last two sessions by name are held out from pretraining (the last one where there are fewer than four). A single
    session is learned from scratch. Raises whatever a stage raises; what is done stays done.
    """
    from data_prep.prepare import PrepareConfig
    from sharding.index import ShardIndex

    began = time.monotonic()
    nwb, recipe = _source(config)
    stages = Stages(Path(config.output), total=_count_stages(config, nwb))
    if not config.nwb:
        nwb = _simulate(stages, config)
    preparing = load(PrepareConfig, recipe, [], positional="recipe")
    shards = _shards(stages, config, nwb, preparing)
    known, new = hold_out(ShardIndex.open(shards).session_ids)
    training = _training(config, shards, known, recipe, preparing.recipe.signals)
    runs = _learn(stages, config, training, known, new)
    report = _judge(stages, runs, shards, new or known)
    metrics = {label: run / "metrics.csv" for label, run in runs.items()}
    page = write_report(report, curves=metrics, title=_title(config, known, new))
    _tell(report, page, time.monotonic() - began)
    return page


def hold_out(sessions) -> tuple[list[str], list[str]]:
    """Sessions to pretrain on and sessions to adapt to: the last two by name, of two or three the last, of one none."""
    ordered = sorted(sessions)
    held = 2 if len(ordered) >= 4 else min(len(ordered) - 1, 1)
    return ordered[: len(ordered) - held], ordered[len(ordered) - held :]


def _source(config: DemoConfig) -> tuple[Path, str]:
    if not config.nwb:
        if config.recipe:
            raise ConfigError("recipe", "given without nwb", "give nwb=FOLDER too, or neither")
        return Path(config.output) / "nwb", SYNTHETIC_RECIPE
    if not config.recipe:
        raise ConfigError("recipe", "not given", "give recipe=configs/dandisets/NAME.yaml that fits the files of nwb")
    if not Path(config.nwb).exists():
        raise ConfigError(config.nwb, "no such folder or file", "give nwb=FOLDER that holds NWB files")
    return Path(config.nwb), config.recipe


def _count_stages(config: DemoConfig, nwb: Path) -> int:
    if not config.nwb:
        return 7
    alone = len(files_digest(nwb, "**/*.nwb")) == 1
    return 4 if alone else 6


def _simulate(stages: Stages, config: DemoConfig) -> Path:
    from data_prep.synthetic import SyntheticConfig, write_sessions

    synthetic = SyntheticConfig(minutes=config.minutes, seed=config.seed)

    def work(folder: Path) -> str:
        return f"{len(write_sessions(folder, synthetic))} NWB files of three simulated animals"

    return stages.run("synthetic", "Simulate sessions", as_mapping(synthetic), "nwb", work)


def _shards(stages: Stages, config: DemoConfig, nwb: Path, plain) -> Path:
    """NWB files into sessions as `plain`, a PrepareConfig, says, those into shards; gives the folder of the shards."""
    from data_prep.prepare import prepare
    from sharding.shard import ShardConfig, shard

    def read(folder: Path) -> str:
        reading = replace(plain, source=str(nwb), output=str(folder), workers=config.workers)
        report = prepare(reading, on_row=lambda row: stages.tell(row.line))
        good = len(report.rows) - len(report.refused)
        if not good:
            raise DataError(nwb, f"none of {len(report.rows)} NWB files could be read", "see the lines above")
        return f"{good} sessions of {len(report.rows)} files"

    given = {"config": as_mapping(plain), "files": files_digest(nwb, "**/*.nwb")}
    sessions = stages.run("prepare", "Read the NWB files", given, "sessions", read)

    def cut(folder: Path) -> str:
        index = shard(replace(cutting, sessions=str(sessions), output=str(folder)))
        units = sum(len(index.unit_ids(session)) for session in index.session_ids)
        return f"{len(index.session_ids)} sessions and {units:,} units in shards"

    cutting = ShardConfig()
    return stages.run("shard", "Cut them into shards", as_mapping(cutting), "shards", cut)


def _training(config: DemoConfig, shards: Path, known: list[str], recipe: str, signals: dict):
    """The PretrainConfig of the demo: on your own recordings it decodes, about its mean, the first signal of the recipe."""
    from pretrain.train import PretrainConfig

    plain = load(PretrainConfig, config.pretrain, [])
    if config.nwb and config.pretrain == DemoConfig.pretrain:
        if not signals:
            raise ConfigError(recipe, "names no signal to decode", "name one under signals")
        plain = replace(plain, task=replace(plain.task, signal=next(iter(signals)), center=True))
    return replace(plain, shards=str(shards), seed=config.seed, sessions=_exactly(known), exclude=[])


def _learn(stages: Stages, config: DemoConfig, training, known: list[str], new: list[str]) -> dict[str, Path]:
    """Pretrain as `training` says, and adapt in both ways where sessions are held out; run folders by label."""
    from pretrain.finetune import FinetuneConfig, finetune
    from pretrain.train import pretrain

    base = stages.run(
        "pretrain",
        f"Pretrain on {_sessions(known)}" if new else f"Train on {known[0]}",
        as_mapping(training),
        "runs/pretrain",
        lambda folder: _best(pretrain(replace(training, run=str(folder)))),
    )
    if not new:
        return {ALONE: base}
    runs = {PRETRAINING: base}
    paths = {"shards": training.shards, "seed": config.seed, "checkpoint": str(base)}
    plain = replace(load(FinetuneConfig, config.finetune, []), **paths, sessions=_exactly(new))
    for mode, label in MODES.items():
        adapting = replace(plain, mode=mode, exclude=[])
        runs[label] = stages.run(
            mode,
            f"Adapt to {_sessions(new)} by {label.partition(', ')[2]}",
            as_mapping(adapting),
            f"runs/{mode}",
            lambda folder, adapting=adapting: _best(finetune(replace(adapting, run=str(folder)))),
        )
    return runs


def _judge(stages: Stages, runs: dict[str, Path], shards: Path, sessions: list[str]) -> Path:
    """Evaluate the adapted models beside the linear one; gives the folder of the results."""
    from pretrain.evaluate import EvaluateConfig, evaluate

    judged = {label: runs[label] for label in [*reversed(MODES.values()), ALONE] if label in runs}

    def work(folder: Path) -> str:
        folders = {label: str(run) for label, run in judged.items()}
        evaluate(EvaluateConfig(str(folder), checkpoints=folders, shards=str(shards), sessions=_exactly(sessions)))
        comparison = compare(read_run(folder, {}).results)
        return (
            f"mean test R2 {comparison.model_r2:.3f} against {comparison.baseline_r2:.3f}" if comparison else "no score"
        )

    given = {"sessions": sessions, "models": list(judged)}
    return stages.run("evaluate", "Judge them beside a Wiener filter", given, "report", work)


def _best(run: Path) -> str:
    curve = read_run(run).curves.get("training")
    known = curve.known("step", "valid/r2") if curve else None
    return "nothing to validate on" if known is None else f"best validation R2 {known[1].max():.3f}"


def _tell(report: Path, page: Path, seconds: float) -> None:
    """Print scores, the answer in words, and where the page is."""
    record = read_run(report, {})
    results: Results = record.results
    rows = [
        [session, *(round(models[model].r2, 3) if model in models else None for model in results.models)]
        for session, models in results.scores.items()
    ]
    rows.append(["mean", *(round(results.mean[model], 3) for model in results.models)])
    print_table(f"\nTest R2 of {results.signal}", ["session", *results.models], rows)
    print(f"\n{headline(record, compare(results))[0]}.\nReport: {page} ({seconds / 60:.1f} minutes in all)")


def _exactly(sessions: list[str]) -> list[str]:
    return [glob.escape(session) for session in sessions]


def _sessions(sessions: list[str]) -> str:
    return f"{len(sessions)} sessions" if len(sessions) > 1 else sessions[0]


def _title(config: DemoConfig, known: list[str], new: list[str]) -> str:
    source = Path(config.nwb).name if config.nwb else "simulated sessions"
    if not new:
        return f"Spikeloom demo: {source}, one session"
    return f"Spikeloom demo: {source}, pretrained on {len(known)}, adapted to {len(new)}"
