"""`spikeloom evaluate`: checkpoints and a split -> R2 of every session, beside a Wiener filter on the same samples.

    RUN/results.json      {"format", "split", "signal", "unit_of_measure", "sessions": {id: {"unit_of_measure",
                          "models": {model: {"r2", "r2_per_dim", "samples", ...}}}}, "mean", "sd", "predictions", ...}
    RUN/predictions.npz   "<i>/time", "<i>/target", "<i>/value", "<i>/evaluated", where i counts results["predictions"],
                          a list of {"session", "model"}; "raster/time" and "raster/unit": the spikes of one stretch

R2 is the unweighted mean over dimensions; mean and sd (n - 1) are over sessions. An undefined number is null.
"""

import io
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

from pretrain.checkpoint import load_checkpoint, load_model
from pretrain.errors import ConfigError, ShardError
from pretrain.metrics import mean_of_defined, r2, r2_per_dimension
from pretrain.module import DecodingModule
from pretrain.optim import OptimConfig
from pretrain.outputs import Prediction
from pretrain.run import now, provenance, settings_of, write_whole
from pretrain.stitch import Stitcher, decode
from pretrain.train import chosen_sessions, sampling_of
from pretrain.trainer import accelerator
from pretrain.wiener import WienerConfig, fit_wiener, stretches
from sharding.cache import CacheConfig
from sharding.index import ShardIndex
from sharding.loader import LoaderConfig, eval_loader
from sharding.sampling import Sampling

FORMAT = 1
SPLITS = ("test", "valid", "train")
WIENER = {"Wiener filter": False, "Wiener filter (causal)": True}  # label -> whether it sees the past alone
RASTER_S = 10.0


@dataclass(frozen=True)
class EvaluateConfig:
    run: str = ""
    "run folder; results go there, and what is not given below is taken from it"
    label: str = "POYO"
    "name of the run's model in tables and figures"
    checkpoints: dict[str, str] = field(default_factory=dict)
    "label -> folder of a checkpoint or of its run, to judge several; empty is the run's own"
    shards: str = ""
    "folder of shards, or its URL; empty is what the run was trained on"
    sessions: list[str] = field(default_factory=list)
    "sessions, by glob patterns of their ids; empty are those the run was trained on"
    verify: bool = True
    "compare each shard with its checksum when this machine first reads it"
    cache: CacheConfig = field(default_factory=CacheConfig)
    "where shards of a remote root are kept"
    split: str = "test"
    "split to judge on: test, valid or train"
    step_s: float = 0.5
    "seconds between overlapping windows, whose predictions are averaged"
    wiener: bool = True
    "fit Wiener filters (centred and causal) on each session's train split and judge them on the same samples"
    minutes_of_data: float | None = None
    "minutes of each train split the Wiener filter learns from; null is as many as the run did"
    linear: WienerConfig = field(default_factory=WienerConfig)
    "what the Wiener filter chooses from, on the valid split"
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    "batches"
    device: str = "auto"
    "auto (a GPU where there is one), cpu or cuda"
    threads: int = 0
    "CPU threads of torch; 0 leaves its own choice"


def evaluate(config: EvaluateConfig) -> Path:
    """Judge checkpoints on a split and write results.json and predictions.npz; returns the run folder.

    A session that a checkpoint does not know has no score of it. Raises ConfigError, ShardError, CheckpointError.
    """
    began = time.monotonic()
    config = _completed(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    models = {label: _Model.load(folder, config) for label, folder in config.checkpoints.items()}
    index = _known_sessions(config, models)
    first = next(iter(models.values()))
    found: list[tuple[str, Prediction, dict]] = []
    for label, model in models.items():
        known = [session for session in index.session_ids if session in model.sampling.sessions]
        found += [(label, prediction, {}) for prediction in model.decode(index.select(known), config)]
    if not found:
        raise ShardError(
            config.shards,
            f"no sample of {first.sampling.signal!r} in the {config.split} split",
            "take another split or other sessions",
        )
    notes: list[str] = []
    if config.wiener:
        found += _linear(index, {p.session: (p, models[label].sampling) for label, p, _ in found}, config, notes)
    _write(Path(config.run), index, first.sampling, found, config, notes, time.monotonic() - began)
    return Path(config.run)


@dataclass(frozen=True)
class _Model:
    """A loaded checkpoint and what it takes of a window."""

    module: DecodingModule
    sampling: Sampling

    @staticmethod
    def load(folder: str, config: EvaluateConfig) -> "_Model":
        checkpoint = load_checkpoint(folder)
        model, task = load_model(checkpoint, folder)
        module = DecodingModule(model, task, OptimConfig(), total_steps=1, seed=0)
        sampling = sampling_of(
            task.config, checkpoint.config["window_s"], checkpoint.units, checkpoint.sessions, checkpoint.statistics
        )
        return _Model(module.eval().to(accelerator(config.device)), sampling)

    def decode(self, index: ShardIndex, config: EvaluateConfig) -> list[Prediction]:
        batches = eval_loader(index, self.sampling, config.loader, config.split, config.step_s)
        stitcher = Stitcher(self.sampling.sessions, self.sampling.statistics)
        return decode(self.module, batches, stitcher, self.module.device)


def _completed(config: EvaluateConfig) -> EvaluateConfig:
    """The config with what it leaves open taken from the run folder."""
    if not config.run:
        raise ConfigError("run", "is not given", "give run=FOLDER")
    if not config.checkpoints and not Path(config.run).is_dir():
        raise ConfigError(
            config.run, "no such run folder", "give the folder of a training run, or checkpoints to judge"
        )
    if config.split not in SPLITS:
        raise ConfigError("split", f"{config.split!r} is not a split", f"take one of {', '.join(SPLITS)}")
    run = settings_of(config.run)
    filled = {
        "checkpoints": config.checkpoints or {config.label: config.run},
        "shards": config.shards or run.get("shards", ""),
        "sessions": config.sessions or run.get("sessions", ["*"]),
        "minutes_of_data": config.minutes_of_data or run.get("minutes_of_data"),
    }
    if not filled["shards"]:
        raise ConfigError("shards", "is not given", "give shards=FOLDER, or the folder of a training run as run")
    clash = set(filled["checkpoints"]) & set(WIENER)
    if clash:
        raise ConfigError("checkpoints", f"{clash.pop()!r} is the name of a baseline", "take another label")
    return EvaluateConfig(**{name: getattr(config, name) for name in config.__dataclass_fields__} | filled)


def _known_sessions(config: EvaluateConfig, models: dict[str, _Model]) -> ShardIndex:
    """The chosen sessions that some checkpoint knows; raises ConfigError where there is none, or signals differ."""
    signals = {model.sampling.signal for model in models.values()}
    if len(signals) > 1:
        raise ConfigError("checkpoints", f"they decode {' and '.join(sorted(signals))}", "compare those of one signal")
    index = chosen_sessions(config.shards, config.sessions, verify=config.verify, cache=config.cache)
    known = [session for session in index.session_ids if any(session in m.sampling.sessions for m in models.values())]
    if not known:
        raise ConfigError(
            "sessions",
            f"none of {len(index.session_ids)} is known to a checkpoint",
            "finetune the checkpoint on them first",
        )
    return index.select(known)


def _linear(
    index: ShardIndex, learned: dict[str, tuple[Prediction, Sampling]], config: EvaluateConfig, notes: list[str]
) -> Iterator[tuple[str, Prediction, dict]]:
    """Predictions of the Wiener filters at the very samples the models were judged on."""
    learning = index.limited(config.minutes_of_data) if config.minutes_of_data else index
    for session, (prediction, sampling) in learned.items():
        train, valid = stretches(learning, session, sampling, "train"), stretches(index, session, sampling, "valid")
        judged = stretches(index, session, sampling, config.split)
        stamp = np.concatenate([s.stamp_us for s in judged])
        order = np.argsort(stamp, kind="stable")
        assert np.array_equal(stamp[order], np.rint(prediction.time * 1e6)), "both must be judged on the same samples"
        for label, causal in WIENER.items():
            try:
                fitted = fit_wiener(train, valid, len(index.unit_ids(session)), config.linear, causal)
            except ConfigError as error:
                notes.append(f"{session}: {error}")
                break
            value = np.concatenate([fitted.predict(s) for s in judged])[order].astype(np.float32)
            facts = {"history_s": fitted.history_s, "ridge": list(fitted.ridge), "bin_s": fitted.bin_us * 1e-6}
            yield label, Prediction(session, prediction.time, value, prediction.target, prediction.evaluated), facts


def linear_scores(index: ShardIndex, sampling: Sampling, split: str) -> dict[str, tuple[float, float]]:
    """R2 of each Wiener filter on the evaluated samples of a split, mean over sessions, and the seconds of its fits.

    Histories and ridges are chosen on the valid split: where that is `split`, the filters are favoured. Raises
    ConfigError where a split has too few samples.
    """
    out = {}
    for label, causal in WIENER.items():
        scores, seconds = [], 0.0
        for session in index.session_ids:
            train, valid = stretches(index, session, sampling, "train"), stretches(index, session, sampling, "valid")
            judged = stretches(index, session, sampling, split)
            began = time.monotonic()
            fitted = fit_wiener(train, valid, len(index.unit_ids(session)), WienerConfig(), causal)
            seconds += time.monotonic() - began
            target = np.concatenate([s.value[s.evaluated] for s in judged])
            scores.append(r2(target, np.concatenate([fitted.predict(s)[s.evaluated] for s in judged])))
        out[label] = mean_of_defined(scores), seconds
    return out


def _write(
    run: Path, index: ShardIndex, sampling: Sampling, found, config: EvaluateConfig, notes: list[str], seconds: float
) -> None:
    units = {row.id: row.signals[sampling.signal].unit_of_measure for row in index.sessions}
    sessions = {p.session: {"unit_of_measure": units[p.session], "models": {}} for _, p, _ in found}
    arrays = {}
    for i, (label, p, facts) in enumerate(found):
        sessions[p.session]["models"][label] = _score(p) | facts
        arrays |= {f"{i}/{name}": getattr(p, name) for name in ("time", "target", "value", "evaluated")}
    raster, arrays["raster/time"], arrays["raster/unit"] = _raster(index, found[0][1], sampling, config.split)
    scores = {
        label: [entry["models"][label]["r2"] for entry in sessions.values() if label in entry["models"]]
        for label in dict.fromkeys(label for label, _, _ in found)
    }
    results = {
        "format": FORMAT,
        "split": config.split,
        "signal": sampling.signal,
        "unit_of_measure": units[found[0][1].session] if len(set(units.values())) == 1 else "units of each session",
        "sessions": sessions,
        "mean": {label: mean_of_defined(r2s) for label, r2s in scores.items()},
        "sd": {label: _sd(r2s) for label, r2s in scores.items()},
        "sessions_in_mean": {label: len(r2s) for label, r2s in scores.items()},
        "predictions": [{"session": p.session, "model": label} for label, p, _ in found],
        "raster": raster,
        "notes": notes,
        "config": asdict(config),
        "seconds": round(seconds, 1),
        "finished": now(),
        "provenance": provenance(index),
    }
    run.mkdir(parents=True, exist_ok=True)
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    write_whole(run / "predictions.npz", stream.getvalue())
    write_whole(run / "results.json", json.dumps(_without_nan(results), indent=1).encode())


def _score(p: Prediction) -> dict:
    per_dim = r2_per_dimension(p.target[p.evaluated], p.value[p.evaluated])
    return {"r2": mean_of_defined(per_dim), "r2_per_dim": per_dim.tolist(), "samples": int(p.evaluated.sum())}


def _sd(scores: list[float]) -> float:
    """Standard deviation over sessions (n - 1); NaN for fewer than two."""
    defined = [score for score in scores if not math.isnan(score)]
    return float(np.std(defined, ddof=1)) if len(defined) > 1 else math.nan


def _raster(index: ShardIndex, p: Prediction, sampling: Sampling, split: str) -> tuple[dict, np.ndarray, np.ndarray]:
    """Spikes of the 10 s of a session that hold most evaluated samples, the earliest such: time (s,) s, unit (s,)."""
    best, most = None, -1
    for stretch in stretches(index, p.session, sampling, split):
        stamps = stretch.stamp_us[stretch.evaluated]
        held = np.searchsorted(stamps, stamps + RASTER_S * 1e6) - np.arange(len(stamps))
        if len(held) and held.max() > most:
            best, most = (stretch, int(stamps[held.argmax()])), int(held.max())
    if best is None:
        return None, np.zeros(0), np.zeros(0, np.int64)
    stretch, start = best
    stop = min(start + round(RASTER_S * 1e6), stretch.stop_us)
    i, j = np.searchsorted(stretch.spike_us, (start, stop))
    place = {"session": p.session, "start": start * 1e-6, "stop": stop * 1e-6}
    return place, stretch.spike_us[i:j] * 1e-6, stretch.spike_unit[i:j]


def _without_nan(value):
    """The same with null for every number that JSON has no word for."""
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
