"""`spikeloom bench learn`: recipes x sessions x seeds -> how fast each learns, beside the Wiener filters.

Every training is a real `pretrain` in a process of its own, so its seconds are those a user would see. What is finished
is kept: a study that is interrupted, or given more recipes, seeds or sources, goes on from what is there.

    spikeloom bench learn learn=FILE, where the file holds for example
        sources: {spike: {shards: shards, sessions: ['*20120821']}, rat: {shards: rats, task: task/position.yaml}}
        recipes: {paper: {config: pretrain/paper.yaml}, fast: {config: pretrain/fast.yaml, windows: 32000}}
        seeds: [1, 2, 3]

    OUTPUT/learn/learn.json, learn.md, learn.png, learn.svg
    OUTPUT/learn/runs/SOURCE/RECIPE/SEED/        the run folder; its settings and its log lie beside it
    OUTPUT/learn/data/                           shards of the sources that gave none
"""

import hashlib
import json
import os
import shutil
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

from data_prep.errors import ConfigError, DataError
from launch.bench_curves import Learned, LearningCurve, Linear, Trained
from launch.bench_grid import Job, run_all
from launch.bench_sessions import SYNTHETIC_RECIPE, reading_of, shards_of, simulated
from launch.bench_told import tell
from launch.config import as_mapping, load, to_yaml
from launch.progress import ItemProgress
from launch.record import read_metrics
from pretrain.evaluate import linear_scores
from pretrain.train import PretrainConfig, chosen_sessions, open_run, sampling_of, vocabularies
from sharding.index import ShardIndex
from sharding.statistics import target_statistics

VAL_STEP_S = 1.0


@dataclass(frozen=True)
class LearnSource:
    shards: str = ""
    "folder of shards that exist; empty makes them of the NWB files below"
    nwb: str = ""
    "NWB files: a folder, or one file; empty simulates one session"
    recipe: str = SYNTHETIC_RECIPE
    "YAML of the dandiset that the NWB files belong to"
    minutes: float = 20.0
    "length of the simulated session, minutes"
    sessions: list[str] = field(default_factory=lambda: ["*"])
    "sessions that are learned together, by glob patterns of their ids"
    task: str = "task/cursor_velocity.yaml"
    "YAML of the task"


@dataclass(frozen=True)
class LearnRecipe:
    config: str
    "YAML of a pretraining"
    settings: list[str] = field(default_factory=list)
    "key=value settings laid over it"
    windows: int | None = None
    "a budget of its own; null is the common one"
    seeds: list[int] | None = None
    "seeds of its own; null is the common ones"


def _recipes() -> dict[str, LearnRecipe]:
    return {"paper": LearnRecipe("pretrain/paper.yaml"), "fast": LearnRecipe("pretrain/fast.yaml")}


@dataclass(frozen=True)
class LearnConfig:
    sources: dict[str, LearnSource] = field(default_factory=dict)
    "label -> what is learned, {shards or nwb and recipe or minutes, sessions, task}; empty is one simulated session"
    recipes: dict[str, LearnRecipe] = field(default_factory=_recipes)
    "label -> how, {config: YAML of a pretraining, settings: [key=value], windows, seeds}; the first is the reference"
    windows: int = 128_000
    "budget: windows seen by each training"
    points: int = 40
    "validations along the way, besides the one before any step"
    seeds: list[int] = field(default_factory=lambda: [42])
    "every recipe learns every source once with each"
    jobs: int = 1
    "trainings side by side"
    threads: int = 0
    "CPU threads of each; 0 leaves torch's choice, divided by jobs"

    def __post_init__(self):
        for name in ("windows", "points", "jobs"):
            if getattr(self, name) < 1:
                raise ConfigError(f"learn.{name}", f"is {getattr(self, name)}", "give a number of at least 1")
        for name in ("recipes", "seeds"):
            if not getattr(self, name):
                raise ConfigError(f"learn.{name}", "is empty", "name at least one")
        for label in (*self.sources, *self.recipes):  # they name folders
            if label.startswith(".") or any(sign in label for sign in "/\\:"):
                raise ConfigError(f"learn: {label!r}", "cannot name a folder", "use letters, digits, - and _")


@dataclass(frozen=True)
class _Training:
    """One cell of the grid."""

    source: str
    recipe: str
    config: PretrainConfig

    @property
    def name(self) -> str:
        return f"{self.source}/{self.recipe}/{self.config.seed}"

    @property
    def finished(self) -> bool:
        return open_run(self.config) is None

    @property
    def log(self) -> Path:
        return Path(f"{self.config.run}.log")

    @property
    def job(self) -> Job:
        """`pretrain` with exactly these settings."""
        file = Path(f"{self.config.run}.yaml")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(to_yaml(self.config), encoding="utf-8")
        return Job(self.name, (sys.executable, "-m", "launch", "pretrain", str(file)), self.log)

    def outcome(self, failed: str | None) -> Trained:
        run = Path(self.config.run)
        curve = LearningCurve.of(read_metrics(run / "metrics.csv"))
        if curve is None and not failed:
            failed = "nothing was validated; give sessions with a valid split"
        budget = self.config.trainer.steps * self.config.loader.batch_windows
        commit = _provenance(run).get("commit", "")
        return Trained(self.recipe, self.config.seed, budget, curve, failed, commit)


def learn(config: LearnConfig, folder: Path) -> None:
    """Train what is not trained yet, tell the table, and write learn.json, learn.md and the figure into the folder.

    A training that fails is told in the table and the others go on; DataError at the end then. Raises ConfigError
    where the folder holds trainings of other settings or other shards.
    """
    sources = config.sources or {"synthetic": LearnSource()}
    indices = {label: _opened(source, folder) for label, source in sources.items()}
    trainings = [
        _Training(label, recipe, _training(config, source, indices[label], recipe, seed, folder / "runs" / label))
        for label, source in sources.items()
        for seed, recipe in _in_turn(config)
    ]
    for training in trainings:
        _check(training, indices[training.source])
    wiener = {
        label: _wiener(indices[label], source, folder / "runs" / label / "wiener.json")
        for label, source in sources.items()
    }
    failed = _train(trainings, config)
    learned = []
    for label, index in indices.items():
        runs = [training.outcome(failed.get(training.name)) for training in trainings if training.source == label]
        runs.sort(key=lambda run: list(config.recipes).index(run.recipe))
        learned.append(Learned(label, tuple(index.session_ids), index.digest(), wiener[label], runs))
    tell(learned, as_mapping(config), folder)
    if failed:
        found = f"{len(failed)} of {len(trainings)} trainings failed: {', '.join(list(failed)[:5])}"
        raise DataError(folder / "learn.md", found, f"see their .log below {folder / 'runs'}; the others stand")


def _in_turn(config: LearnConfig) -> list[tuple[int, str]]:
    """Seed and recipe of every training of a source: each recipe once, then each with its next seed, and so on."""
    seeds = {label: recipe.seeds or config.seeds for label, recipe in config.recipes.items()}
    rounds = range(max(map(len, seeds.values())))
    return [(seeds[label][nth], label) for nth in rounds for label in seeds if nth < len(seeds[label])]


def _opened(source: LearnSource, folder: Path) -> ShardIndex:
    """The sessions of a source, with their checksums compared; shards are made where it gives none."""
    shards = source.shards
    if not shards:
        made = hashlib.sha256(json.dumps([source.nwb, source.recipe, source.minutes]).encode()).hexdigest()[:8]
        data = folder / "data" / f"{Path(source.nwb).stem if source.nwb else 'simulated'}-{made}"
        nwb = source.nwb or simulated(data, 1, source.minutes)
        shards = str(shards_of(reading_of(nwb, source.recipe, data), data).root)
    return chosen_sessions(shards, source.sessions, verify=True)


def _training(
    config: LearnConfig, source: LearnSource, index: ShardIndex, recipe: str, seed: int, folder: Path
) -> PretrainConfig:
    """The recipe as its file and settings say, laid over the budget, with the same validation for all."""
    given = config.recipes[recipe]
    settings = [f"task={source.task}", "trainer.device=cpu", "loader.workers=0", *given.settings]
    plain = load(PretrainConfig, given.config, settings)
    steps = max((given.windows or config.windows) // plain.loader.batch_windows, 1)
    trainer = replace(
        plain.trainer,
        steps=steps,
        val_every=max(round(steps / config.points), 1),
        val_step_s=VAL_STEP_S,
        threads=_threads(config),
    )
    return replace(
        plain,
        shards=str(index.root),
        run=str(folder / recipe / str(seed)),
        sessions=source.sessions,
        exclude=[],
        verify=False,  # done once for all
        trainer=trainer,
        seed=seed,
    )


def _threads(config: LearnConfig) -> int:
    if config.threads or config.jobs == 1:
        return config.threads
    return max((os.cpu_count() or 1) // config.jobs, 1)


def _check(training: _Training, index: ShardIndex) -> None:
    """Raise ConfigError where the run folder belongs to other settings or other shards."""
    run = Path(training.config.run)
    digest = _provenance(run).get("shards", {}).get("digest", index.digest())
    if training.finished and digest != index.digest():
        raise ConfigError(run, "it was trained on other shards or sessions", "give another output, or remove it")


def _provenance(run: Path) -> dict:
    try:
        return json.loads((run / "provenance.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _wiener(index: ShardIndex, source: LearnSource, file: Path) -> dict[str, Linear]:
    """Both Wiener filters on the validation samples, the centred one first; {} where they cannot be fitted.

    What the file holds is kept as long as shards, sessions and task are the same.
    """
    task = load(PretrainConfig, None, [f"task={source.task}"]).task
    given = [index.digest(), as_mapping(task)]
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if known.get("of") != given:
        print(f"fitting Wiener filters on {len(index.session_ids)} sessions ...", file=sys.stderr)
        statistics = target_statistics(index, task.signal, task.center, task.scale)
        sampling = sampling_of(task, PretrainConfig().window_s, *vocabularies(index), statistics)
        try:
            known = {"of": given, "scores": linear_scores(index, sampling, "valid")}
        except ConfigError as error:
            print(f"no Wiener filter: {error}", file=sys.stderr)
            return {}
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(known), encoding="utf-8")
    return {label: Linear(*score) for label, score in known["scores"].items()}


def _train(trainings: list[_Training], config: LearnConfig) -> dict[str, str]:
    """Run the trainings that are not finished; name -> one line on why it failed."""
    due = {training.name: training for training in trainings if not training.finished}
    failed: dict[str, str] = {}
    with ItemProgress("training", len(due)) as progress:

        def done(job: Job, reason: str | None) -> None:
            if reason:
                failed[job.name] = reason
            else:  # the optimiser's state of a finished run is of no use to anybody
                shutil.rmtree(Path(due[job.name].config.run) / "saves", ignore_errors=True)
            progress.step(job.name + (f": {reason}" if reason else ""))

        run_all([training.job for training in due.values()], config.jobs, _threads(config), done)
    return failed
