"""The results of several runs judged on the same samples -> one run folder that tells of them together."""

import json
import shutil
from pathlib import Path

import numpy as np

from data_prep.errors import DataError
from launch.figures import is_baseline


def gather(runs: dict[str, Path], folder: Path) -> Path:
    """Write into `folder` the results and predictions of the runs, each run's learned model under its label.

    The linear baselines, the raster, config and provenance are those of the first run. Raises DataError where the runs
    were not evaluated on the same signal and split.
    """
    folder.mkdir(parents=True, exist_ok=True)
    first = next(iter(runs.values()))
    documents = {label: json.loads((run / "results.json").read_text(encoding="utf-8")) for label, run in runs.items()}
    merged = {key: value for key, value in documents[next(iter(runs))].items() if key not in ("sessions", "mean")}
    merged |= {"sessions": {}, "mean": {}, "predictions": []}
    arrays: dict[str, np.ndarray] = {}
    for label, document in documents.items():
        if any(document.get(key) != merged.get(key) for key in ("format", "split", "signal")):
            raise DataError(
                runs[label], f"not judged on what {first} was", "evaluate both on the same signal and split"
            )
        _add_scores(merged, document, label, baselines=runs[label] == first)
        _add_predictions(merged, arrays, document, runs[label], label, baselines=runs[label] == first)
    # learned models first, then the baselines, each in the order of the runs
    merged["mean"] = dict(sorted(merged["mean"].items(), key=lambda item: is_baseline(item[0])))
    for entry in merged["sessions"].values():
        entry["models"] = dict(sorted(entry["models"].items(), key=lambda item: is_baseline(item[0])))
    with open(folder / "predictions.npz", "wb") as file:
        np.savez(file, **arrays)
    (folder / "results.json").write_text(json.dumps(merged, indent=1), encoding="utf-8")
    for name in ("config.yaml", "provenance.json"):
        shutil.copyfile(first / name, folder / name)
    return folder


def _add_scores(merged: dict, document: dict, label: str, baselines: bool) -> None:
    for session, entry in document["sessions"].items():
        told = merged["sessions"].setdefault(session, {"models": {}})
        for model, score in entry["models"].items():
            if baselines or not is_baseline(model):
                told["models"][model if is_baseline(model) else label] = score
    for model, mean in document["mean"].items():
        if baselines or not is_baseline(model):
            merged["mean"][model if is_baseline(model) else label] = mean


def _add_predictions(merged: dict, arrays: dict, document: dict, run: Path, label: str, baselines: bool) -> None:
    with np.load(run / "predictions.npz", allow_pickle=False) as stored:
        for i, name in enumerate(document["predictions"]):
            if not baselines and is_baseline(name["model"]):
                continue
            model = name["model"] if is_baseline(name["model"]) else label
            for key in stored.files:
                if key.startswith(f"{i}/"):
                    arrays[f"{len(merged['predictions'])}/{key.partition('/')[2]}"] = stored[key]
            merged["predictions"].append(name | {"model": model})
        if baselines:
            arrays |= {key: stored[key] for key in stored.files if key.startswith("raster/")}
