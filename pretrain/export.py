"""`spikeloom export`: a run -> one checkpoint folder that loads anywhere, whatever ranks and strategy trained it.

The best weights on validation are the run's own checkpoint. Those of a save are put in its place in that checkpoint,
which tells the config, the vocabularies and the statistics from step 0 on.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from pretrain.checkpoint import FACTS, WEIGHTS, Checkpoint, load_checkpoint, save_checkpoint
from pretrain.errors import CheckpointError, ConfigError
from pretrain.run import settings_of
from pretrain.saves import Save, Saves

SAVES = "saves"  # in a run folder


@dataclass(frozen=True)
class ExportConfig:
    run: str = ""
    "folder of a run, finished or not"
    output: str = ""
    "folder of the checkpoint to write; an older checkpoint there is replaced"
    which: str = "best"
    "best (on validation so far), last (the newest save), or the step of a save"


@dataclass(frozen=True)
class Exported:
    """What was written, and where; `what` says which weights."""

    folder: Path
    what: str


def export(config: ExportConfig) -> Exported:
    """Write one checkpoint folder of a run; raises ConfigError, CheckpointError in one line."""
    run, output = _run_folder(config), _output(config)
    base = load_checkpoint(run)
    if config.which == "best":
        checkpoint, what = base, "the best weights on validation"
    else:
        save = _save(run, config.which)
        part, kind = (
            ("average", "the average of the weights") if save.tensors("average") else ("weights", "the weights")
        )
        checkpoint = replace(base, weights=_fitting(save, part, base))
        what = f"{kind} after step {save.step}"
    save_checkpoint(output, checkpoint)
    return Exported(output, what)


def saved_steps(config: ExportConfig) -> list[int]:
    """Steps of the run that can be exported beside the best."""
    return Saves(_run_folder(config) / SAVES).steps()


def _run_folder(config: ExportConfig) -> Path:
    if not config.run:
        raise ConfigError("run", "is not given", "give run=FOLDER")
    folder = Path(config.run)
    if not settings_of(folder):
        raise ConfigError(folder, "not the folder of a run", "give one that pretrain or finetune wrote")
    return folder


def _output(config: ExportConfig) -> Path:
    """The folder to write, which may hold a checkpoint and nothing else."""
    if not config.output:
        raise ConfigError("output", "is not given", "give output=FOLDER")
    folder = Path(config.output)
    if folder.resolve() == (Path(config.run) / "checkpoint").resolve():
        raise ConfigError(folder, "is the run's own checkpoint", "give another folder")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(folder, "is a file", "give another folder")
    others = sorted({path.name for path in folder.iterdir()} - {FACTS, WEIGHTS}) if folder.exists() else []
    if others:
        raise ConfigError(folder, f"holds what is no checkpoint ({', '.join(others[:3])})", "give a new folder")
    return folder


def _save(run: Path, which: str) -> Save:
    saves = Saves(run / SAVES)
    steps = saves.steps()
    if not steps:
        raise CheckpointError(run, "has no saves", "take which=best, or train on")
    if which == "last":
        return saves.newest()
    if not (which.isascii() and which.isdigit() and int(which) in steps):
        found = f"{which!r} is no save of {run}"
        raise ConfigError("which", found, f"take best, last or one of {', '.join(map(str, steps))}")
    save = saves.at(int(which))
    save.check()
    return save


def _fitting(save: Save, part: str, base: Checkpoint) -> dict[str, torch.Tensor]:
    """Weights of a save that are named and shaped as the checkpoint's."""
    weights = save.tensors(part)
    for name in sorted(weights.keys() | base.weights.keys()):
        one, other = weights.get(name), base.weights.get(name)
        if one is None or other is None or one.shape != other.shape:
            found = f"{part}/{name} is not as in the run's checkpoint"
            raise CheckpointError(save.path, found, "take saves and checkpoint of one run")
    return weights
