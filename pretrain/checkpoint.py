"""Checkpoint: weights as safetensors beside one JSON file, written whole or not at all; and back to a model and a task.

    FOLDER/model.safetensors   weights, named model.* and task.*
    FOLDER/checkpoint.json     format number, config, vocabularies, statistics, commit, versions, sha256 of the weights

A new checkpoint is written to a temporary folder, flushed, and renamed; the one it replaces stands aside as
`FOLDER.previous` for the moment between two renames, and is read from there should the writer die in it. Nothing is
unpickled. What does not fit is a CheckpointError of one line.
"""

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass, field, fields
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import nn

from pretrain.errors import CheckpointError, ConfigError
from pretrain.models.registry import MODELS
from pretrain.saves import flush
from pretrain.tasks.registry import TASKS
from sharding.statistics import TargetStatistics
from sharding.vocabulary import Vocabulary

FORMAT = 1
WEIGHTS, FACTS = "model.safetensors", "checkpoint.json"
_KEYS = ("config", "units", "sessions", "statistics", "commit", "versions", "weights")
_CONFIG_KEYS = {"model": dict, "task": dict, "window_s": (int, float), "dims": int}


@dataclass(frozen=True)
class Checkpoint:
    """Everything needed to decode again. config: {"model", "task", "window_s", "dims", "run": the run's own}."""

    weights: dict[str, torch.Tensor]  # "model.*" and "task.*", on the CPU
    config: dict
    units: Vocabulary
    sessions: Vocabulary
    statistics: TargetStatistics
    format: int = FORMAT
    commit: str = "unknown"
    versions: dict[str, str] = field(default_factory=dict)


def checkpoint_of(model: nn.Module, task: nn.Module, **facts) -> Checkpoint:
    """A Checkpoint holding copies of the two modules' weights; `facts` are its other fields."""
    weights = {
        f"{part}.{name}": tensor.detach().cpu().clone()
        for part, module in (("model", model), ("task", task))
        for name, tensor in module.state_dict().items()
    }
    return Checkpoint(weights=weights, **facts)


def save_checkpoint(folder: str | Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint folder atomically, in the place of an older one if there is; raises CheckpointError."""
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        fresh.chmod(0o755)  # mkdtemp keeps others out; a checkpoint is as readable as its run folder
        data = safetensors.torch.save({name: tensor.contiguous() for name, tensor in checkpoint.weights.items()})
        _write(fresh / WEIGHTS, data)
        facts = {
            "format": checkpoint.format,
            "config": checkpoint.config,
            "units": list(checkpoint.units.ids),
            "sessions": list(checkpoint.sessions.ids),
            "statistics": checkpoint.statistics.to_json(),
            "commit": checkpoint.commit,
            "versions": checkpoint.versions,
            "weights": {"file": WEIGHTS, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()},
        }
        _write(fresh / FACTS, json.dumps(facts, indent=1).encode())
        flush(fresh)
        _swap(fresh, folder)
    except OSError as error:
        raise CheckpointError(folder, f"could not be written ({error.strerror})", "free space and run again") from None
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def load_checkpoint(folder: str | Path) -> Checkpoint:
    """Read a checkpoint folder, or that of a run folder; raises CheckpointError for what is not whole or not ours."""
    folder = _find(Path(folder))
    facts = _read_facts(folder / FACTS)
    path = folder / WEIGHTS
    try:
        data = path.read_bytes()
        expected = facts["weights"]
        if len(data) != expected["bytes"] or hashlib.sha256(data).hexdigest() != expected["sha256"]:
            raise CheckpointError(
                path, f"{len(data)} bytes that are not the {expected['bytes']} written", "copy it again"
            )
        return Checkpoint(
            weights=safetensors.torch.load(data),
            config=facts["config"],
            units=Vocabulary(tuple(facts["units"])),
            sessions=Vocabulary(tuple(facts["sessions"])),
            statistics=TargetStatistics.from_json(facts["statistics"]),
            format=facts["format"],
            commit=facts["commit"],
            versions=facts["versions"],
        )
    except OSError as error:
        raise CheckpointError(path, f"cannot be read ({error.strerror})", "copy the whole checkpoint folder") from None
    except safetensors.SafetensorError as error:
        raise CheckpointError(path, f"not safetensors ({error})", "copy it again") from None
    except (KeyError, TypeError, ValueError, AttributeError, ConfigError) as error:
        raise CheckpointError(folder / FACTS, f"cannot be understood ({error})", "copy it again") from None


def load_model(checkpoint: Checkpoint, where: object = "checkpoint") -> tuple[nn.Module, nn.Module]:
    """The model and the task of a checkpoint, with its weights, in evaluation mode; raises CheckpointError."""
    config = checkpoint.config
    try:
        model_config = rebuilt(MODELS, config["model"], "model")
        task_config = rebuilt(TASKS, config["task"], "task")
        model = MODELS[model_config.name][1](model_config, checkpoint.units, checkpoint.sessions)
        task = TASKS[task_config.name][1](task_config, model.width, config["dims"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        found = str(error).partition("\n")[0]
        raise CheckpointError(where, f"its config builds no model ({found})", "use the version that wrote it") from None
    for part, module in (("model", model), ("task", task)):
        _fill(module, part, checkpoint.weights, where)
    return model.eval(), task.eval()


def rebuilt(registry: dict[str, tuple[type, type]], values: dict, section: str):
    """The configuration dataclass that `values` (with its `name`) were written from; raises CheckpointError."""
    name = values.get("name")
    if name not in registry:
        raise CheckpointError(f"{section}.name", f"{name!r} is not known here", f"one of {', '.join(registry)}")
    schema = registry[name][0]
    unknown = set(values) - {f.name for f in fields(schema)}
    if unknown:
        raise CheckpointError(section, f"unknown settings {sorted(unknown)}", "use the version that wrote it")
    return schema(**values)


def _fill(module: nn.Module, part: str, weights: dict[str, torch.Tensor], where: object) -> None:
    own = module.state_dict()
    given = {name.removeprefix(f"{part}."): weight for name, weight in weights.items() if name.startswith(f"{part}.")}
    for name in sorted(own.keys() | given.keys()):
        if name not in own or name not in given:
            found = f"{part}.{name} is {'not in the weights' if name in own else 'unknown to the config'}"
        elif own[name].shape != given[name].shape:
            found = f"{part}.{name} is {tuple(given[name].shape)} where the config says {tuple(own[name].shape)}"
        else:
            continue
        raise CheckpointError(where, found, "take weights and config from one checkpoint")
    module.load_state_dict(given)


def _find(folder: Path) -> Path:
    """The folder that holds the checkpoint: itself, its `checkpoint/`, or the one set aside by a writer that died."""
    for candidate in (folder, folder / "checkpoint"):
        for place in (candidate, candidate.with_name(candidate.name + ".previous")):
            if (place / FACTS).is_file():
                return place
    found = "no checkpoint.json in it" if folder.is_dir() else "no such folder"
    raise CheckpointError(folder, found, "give a checkpoint folder or the folder of a run that has one")


def _read_facts(path: Path) -> dict:
    try:
        facts = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(path, f"not readable JSON ({error})", "copy it again") from None
    number = facts.get("format") if isinstance(facts, dict) else None
    if number != FORMAT:
        raise CheckpointError(path, f"format {number!r}, not {FORMAT}", "use the version of spikeloom that wrote it")
    missing = [key for key in _KEYS if key not in facts]
    config = facts.get("config") if isinstance(facts.get("config"), dict) else {}
    missing += [f"config.{key}" for key, kind in _CONFIG_KEYS.items() if not isinstance(config.get(key), kind)]
    if missing:
        raise CheckpointError(path, f"lacks {', '.join(missing)}", "copy the checkpoint again, or train anew")
    return facts


def _swap(fresh: Path, folder: Path) -> None:
    previous = folder.with_name(folder.name + ".previous")
    if folder.exists():
        shutil.rmtree(previous, ignore_errors=True)
        os.rename(folder, previous)
    os.rename(fresh, folder)
    flush(folder.parent)
    shutil.rmtree(previous, ignore_errors=True)


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
