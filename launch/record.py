"""A run folder -> RunRecord: what a report may tell of a run, every part of it optional.

The files are taken as untrusted: plain text, JSON and arrays without pickle; a part that is absent is None or empty.
"""

import csv
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.errors import DataError

FORMAT = 1  # of results.json


@dataclass(frozen=True)
class Curve:
    """A metrics.csv: named columns (rows,) float64, NaN where a row says nothing; `step` is always there."""

    columns: dict[str, np.ndarray]

    def known(self, *names: str) -> tuple[np.ndarray, ...] | None:
        """The columns of those names in the rows where all of them are known; None where there is no such row."""
        if any(name not in self.columns for name in names):
            return None
        values = np.stack([self.columns[name] for name in names])
        values = values[:, np.isfinite(values).all(axis=0)]
        return tuple(values) if values.shape[1] else None


@dataclass(frozen=True)
class Score:
    """What one model reached on one session: `r2` is the mean over dimensions of `r2_per_dim`; NaN where undefined."""

    r2: float
    r2_per_dim: tuple[float, ...]
    samples: int


@dataclass(frozen=True)
class Trace:
    """Stitched predictions of one session: time (N,) s, target and value (N, K), evaluated (N,) bool."""

    time: np.ndarray
    target: np.ndarray
    value: np.ndarray
    evaluated: np.ndarray


@dataclass(frozen=True)
class Raster:
    """Spikes of one stretch [start, stop) s of a session: time (S,) s, unit (S,) row of its unit table."""

    session: str
    start: float
    stop: float
    time: np.ndarray
    unit: np.ndarray


@dataclass(frozen=True)
class Results:
    """Test scores by session, then by model; `mean` by model; `unit_of_measure` by session."""

    split: str
    signal: str
    unit_of_measure: dict[str, str]
    scores: dict[str, dict[str, Score]]
    mean: dict[str, float]
    notes: tuple[str, ...] = ()

    @property
    def models(self) -> list[str]:
        """Every model of any session, in the order in which the file names them."""
        return list(dict.fromkeys(model for models in self.scores.values() for model in models))


@dataclass(frozen=True)
class RunRecord:
    folder: Path
    configs: dict[str, str]  # label -> YAML text of the run, and of the runs whose curves are shown
    provenance: dict[str, object]
    curves: dict[str, Curve]  # label -> metrics
    results: Results | None
    traces: dict[tuple[str, str], Trace]  # (session, model)
    raster: Raster | None


def read_run(folder: Path | str, curves: dict[str, Path] | None = None) -> RunRecord:
    """Read a run folder, and the metrics.csv of other runs where `curves` names them by label.

    Raises DataError for a folder that is not there, and for a file that cannot be what its name says.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(folder, "no such run folder", "give the folder that pretrain, finetune or evaluate wrote")
    paths = dict(curves) if curves is not None else {"training": folder / "metrics.csv"}
    document = _read_json(folder / "results.json")
    results = _results(document, folder / "results.json") if document else None
    traces, raster = _predictions(folder / "predictions.npz", document) if document else ({}, None)
    return RunRecord(
        folder=folder,
        configs=_configs({"": folder} | {label: Path(path).parent for label, path in paths.items()}),
        provenance=_read_json(folder / "provenance.json") or (document or {}).get("provenance") or {},
        curves={label: curve for label, path in paths.items() if (curve := read_metrics(path))},
        results=results,
        traces=traces,
        raster=raster,
    )


def _configs(folders: dict[str, Path]) -> dict[str, str]:
    """The config.yaml of each folder, each file once."""
    files = {folder / "config.yaml": label for label, folder in reversed(folders.items())}
    told = {
        label: path.read_text(encoding="utf-8", errors="replace") for path, label in files.items() if path.is_file()
    }
    return dict(reversed(told.items()))


def read_metrics(path: Path | str) -> Curve | None:
    """The columns of a metrics.csv; None where there is no such file or no row in it."""
    path = Path(path)
    if not path.is_file():
        return None
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in (rows[0] if rows else ()) if name]
    columns = {name: np.array([_number(row.get(name)) for row in rows]) for name in names}
    return Curve(columns) if "step" in columns else None


def _number(text: str | None) -> float:
    try:
        return float(text) if text else np.nan
    except ValueError:
        return np.nan


def _read_json(path: Path) -> dict | None:
    if not path.is_file():
        return None
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise DataError(path, "not a JSON object", "run the verb that wrote it again")
    return document


def _results(document: dict, path: Path) -> Results:
    if document.get("format") != FORMAT:
        raise DataError(path, f"format {document.get('format')!r}, not {FORMAT}", "run `spikeloom evaluate` again")
    try:
        return Results(
            split=str(document["split"]),
            signal=str(document["signal"]),
            unit_of_measure={
                str(session): str(entry.get("unit_of_measure", document["unit_of_measure"]))
                for session, entry in document["sessions"].items()
            },
            scores={
                str(session): {str(model): _score(score) for model, score in entry["models"].items()}
                for session, entry in document["sessions"].items()
            },
            mean={str(model): _defined(r2) for model, r2 in document["mean"].items()},
            notes=tuple(str(note) for note in document.get("notes", ())),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(path, f"a part is missing or malformed ({error!r})", "run `spikeloom evaluate` again") from None


def _score(score: dict) -> Score:
    return Score(_defined(score["r2"]), tuple(_defined(r2) for r2 in score["r2_per_dim"]), int(score["samples"]))


def _defined(r2: float | None) -> float:
    return np.nan if r2 is None else float(r2)  # JSON has no word for what is undefined but null


def _predictions(path: Path, document: dict) -> tuple[dict[tuple[str, str], Trace], Raster | None]:
    if not path.is_file():
        return {}, None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            traces = {
                (str(name["session"]), str(name["model"])): Trace(
                    *(arrays[f"{i}/{field}"] for field in ("time", "target", "value", "evaluated"))
                )
                for i, name in enumerate(document.get("predictions", []))
            }
            raster = None
            if stretch := document.get("raster"):
                raster = Raster(
                    str(stretch["session"]),
                    float(stretch["start"]),
                    float(stretch["stop"]),
                    arrays["raster/time"],
                    arrays["raster/unit"],
                )
    except (KeyError, TypeError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            path, f"not the predictions of these results ({error!r})", "run `spikeloom evaluate` again"
        ) from None
    return traces, raster
