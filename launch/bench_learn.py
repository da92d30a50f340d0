"""`spikeloom bench learn`: recipes x sessions x seeds -> how fast each learns, beside the Wiener filters."""

from dataclasses import dataclass, field
from pathlib import Path

from data_prep.errors import ConfigError
from launch.bench_sessions import SYNTHETIC_RECIPE


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


def _recipes() -> dict[str, LearnRecipe]:
    return {"paper": LearnRecipe("pretrain/paper.yaml"), "fast": LearnRecipe("pretrain/fast.yaml")}


@dataclass(frozen=True)
class LearnConfig:
    sources: dict[str, LearnSource] = field(default_factory=dict)
    "label -> what is learned: shards or NWB files, sessions, task; empty is one simulated session"
    recipes: dict[str, LearnRecipe] = field(default_factory=_recipes)
    "label -> how: YAML of a pretraining and settings laid over it; the first is the reference of the others"
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


def learn(config: LearnConfig, folder: Path) -> None:
    """Train what is not trained yet, then write learn.json, learn.md and the figure into the folder."""
    raise ConfigError("what", "learn cannot be run yet", "measure another part")
