"""Tiny sessions with planted linear tuning, their shards, and configs that train in seconds."""

from pathlib import Path

import numpy as np
import pytest

from data_prep.session import Intervals, Session, Signal, Spikes, Units
from data_prep.store import save_session
from pretrain.models.poyo import PoyoConfig
from pretrain.optim import OptimConfig
from pretrain.train import PretrainConfig, pretrain
from pretrain.trainer import TrainerConfig
from sharding.loader import LoaderConfig
from sharding.shard import ShardConfig, shard

SIGNAL = "cursor_vel"


def make_session(
    name: str, units: int = 12, seconds: float = 60.0, hz: float = 50.0, seed: int = 0, gain_hz: float = 8.0
) -> Session:
    """Poisson units whose rate is linear in a smooth 2-D velocity; splits are blocks with 1 s between them."""
    random = np.random.default_rng(seed)
    time = np.arange(round(seconds * hz)) / hz
    phase, rate = random.uniform(0, 2 * np.pi, (2, 6)), random.uniform(0.2, 1.2, (2, 6))
    value = np.sin(2 * np.pi * rate[..., None] * time + phase[..., None]).sum(axis=1).T
    value = (10 * value / value.std(axis=0)).astype(np.float32)
    tuning = random.normal(size=(2, units))
    hertz = np.clip(20 + gain_hz * (value / 10) @ tuning, 0, None)
    counts = random.poisson(hertz / hz)  # spikes of [t - 1/hz, t): what moves now was in the bin before
    row, unit = np.nonzero(counts)
    row, unit = np.repeat(row, counts[row, unit]), np.repeat(unit, counts[row, unit])
    spike = np.maximum(time[row] - random.uniform(0, 1 / hz, len(row)), 0)
    order = np.argsort(spike, kind="stable")
    edges = np.array([0, 0.6, 0.8, 1.0]) * seconds
    splits = {split: Intervals.of([(a, b - 1)]) for split, a, b in zip(("train", "valid", "test"), edges, edges[1:])}
    return Session(
        id=f"tiny/{name}",
        dandiset="tiny",
        subject=name,
        paradigm="random",
        trials=Intervals.of([]),
        trial_columns={},
        units=Units(tuple(f"u{i}" for i in range(units)), ("unknown",) * units, ("",) * units),
        spikes=Spikes(spike[order], unit[order].astype(np.uint32)),
        signals={SIGNAL: Signal(SIGNAL, time, value, "cm/s", np.ones(len(time), bool))},
        phases={},
        domain=Intervals.of([(0, seconds)]),
        splits=splits,
    )


def make_shards(folder: Path, sessions: list[Session], **settings) -> Path:
    """Stored sessions and their shards below a folder; the root of the shards."""
    (folder / "sessions").mkdir(parents=True)
    for session in sessions:
        save_session(session, folder / "sessions")
    shard(ShardConfig(sessions=str(folder / "sessions"), output=str(folder / "shards"), segment_s=10.0, **settings))
    return folder / "shards"


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> Path:
    """Three sessions a, b, c of 10 to 14 units; c at half the rate of behaviour."""
    sessions = [make_session("a", 12, seed=1), make_session("b", 10, seed=2), make_session("c", 14, hz=25.0, seed=3)]
    return make_shards(tmp_path_factory.mktemp("tiny"), sessions)


def tiny_model(**settings) -> PoyoConfig:
    return PoyoConfig(
        **{
            "width": 16,
            "depth": 1,
            "latents_per_step": 2,
            "cross_heads": 1,
            "self_heads": 1,
            "head_width": 16,
            "attention_dropout": 0.1,
            "ff_dropout": 0.1,
            "residual_dropout": 0.1,
        }
        | settings
    )


def tiny_config(shards: Path, run: Path, steps: int = 8, **settings) -> PretrainConfig:
    return PretrainConfig(
        **{
            "shards": str(shards),
            "run": str(run),
            "sessions": ["tiny/[ab]"],
            "model": tiny_model(),
            "optim": OptimConfig(name="adamw", lr=5e-3),
            "loader": LoaderConfig(batch_windows=4),
            "trainer": TrainerConfig(steps=steps, val_every=4, save_every=3, log_every=2, device="cpu", threads=1),
        }
        | settings
    )


@pytest.fixture(scope="session")
def pretrained(shards, tmp_path_factory) -> Path:
    """A finished run on sessions a and b."""
    return pretrain(tiny_config(shards, tmp_path_factory.mktemp("runs") / "pretrained"))
