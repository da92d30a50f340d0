"""`spikeloom bench survive`: what it costs a training to be saved, stopped and continued, by strategy and processes.

Every strategy trains by the command a user would give, is asked to stop by SIGUSR1 after two thirds of its steps, and is
started again. Times are read off its metrics.csv, which gets a row every step here: what a step after a save takes longer
than others is the cost of the save; what passes between the request and the first step of the second start, less one
step, is what the stop costs, start of Python and opening of the shards included.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from data_prep.errors import ConfigError, DataError
from launch.config import to_yaml
from launch.local_ranks import cores
from launch.record import Curve, read_metrics
from pretrain.train import PretrainConfig

WARM_STEPS = 5  # left out of the measurement
LOOK_S = 0.005  # between two looks at metrics.csv
NEVER = 1_000_000  # steps
ASKED = 75  # the exit code of a training that was asked to stop
Row = tuple[str, float, str, str]  # what, value, unit, of


@dataclass(frozen=True)
class SurviveConfig:
    """What `bench survive` trains."""

    shards: str = ""
    "folder of shards to train on; empty simulates sessions"
    processes: int = 2
    "processes among which strategies spread a training; the cores of this machine are shared out among them"
    strategies: list[str] = field(default_factory=lambda: ["ddp", "zero1", "zero2", "zero3"])
    "strategies that are measured beside one process alone"
    steps: int = 90
    "steps of each training"
    save_every: int = 10
    "steps between saves"


@dataclass(frozen=True)
class Setup:
    """How a training is spread."""

    strategy: str
    processes: int
    threads: int  # of each process

    def __str__(self) -> str:
        name = "one device" if self.strategy == "auto" else self.strategy
        processes = f"{self.processes} process{'es' if self.processes > 1 else ''}"
        return f"{name}, {processes} of {self.threads} thread{'s' if self.threads > 1 else ''}"


@dataclass(frozen=True)
class Speeds:
    """What metrics.csv tells of a training that runs without a stop."""

    windows_s: float
    step_s: float
    save_s: float  # that a save holds the training up
    wait_share: float  # of the time, spent waiting for data


def survived(config: SurviveConfig, training: PretrainConfig, shards: str) -> Iterator[Row]:
    """Every number of every setup; raises ConfigError for steps too few, DataError where a training fails."""
    if config.save_every < 2 or config.steps // 3 * 2 < WARM_STEPS + 3 * config.save_every:
        found = f"{config.steps} steps with a save every {config.save_every}"
        raise ConfigError("survive.steps", found, "give steps for five saves at least, two steps apart or more")
    for setup in setups(config):
        print(f"training: {setup} ...", file=sys.stderr)
        with TemporaryDirectory() as folder:
            yield from _measured(setup, config, _spread(training, setup, config, shards, f"{folder}/run"), Path(folder))


def setups(config: SurviveConfig) -> list[Setup]:
    """One process with all cores; one with as many as each of several would have; then these, by strategy."""
    each = max(1, cores() // config.processes)
    alone = dict.fromkeys((Setup("auto", 1, cores()), Setup("auto", 1, each)))
    return [*alone, *(Setup(name, config.processes, each) for name in config.strategies)]


def speeds(curve: Curve, stopped: int, save_every: int) -> Speeds:
    """Of the steps after the first few up to `stopped`; the curve has a row for each of them."""
    step, windows, seconds, wait = curve.known("step", "windows", "seconds", "speed/wait_share")
    took = np.diff(seconds, prepend=np.nan)
    steady = (step > WARM_STEPS) & (step <= stopped)
    saved = steady & ((step - 1) % save_every == 0)  # the save of the step before lies in its time
    plain = steady & ~saved
    step_s = float(np.median(took[plain]))
    return Speeds(
        windows_s=float(np.diff(windows, prepend=0)[plain].sum() / took[plain].sum()),
        step_s=step_s,
        save_s=float(np.median(took[saved])) - step_s,
        wait_share=float(np.average(wait[plain], weights=took[plain])),
    )


def _spread(training: PretrainConfig, setup: Setup, config: SurviveConfig, shards: str, run: str) -> PretrainConfig:
    trainer = replace(
        training.trainer,
        steps=config.steps,
        save_every=config.save_every,
        val_every=NEVER,
        log_every=1,
        keep=1,
        devices=setup.processes,
        threads=setup.threads,
        strategy=replace(training.trainer.strategy, name=setup.strategy),
    )
    return replace(training, shards=shards, run=run, trainer=trainer)


def _measured(setup: Setup, config: SurviveConfig, training: PretrainConfig, folder: Path) -> Iterator[Row]:
    """Two starts of one run, a request to stop between them."""
    run, file = Path(training.run), folder / "config.yaml"
    file.write_text(to_yaml(training), encoding="utf-8")
    with _Training(file) as process:
        _await_step(process, run, config.steps * 2 // 3)
        asked = time.monotonic()
        process.send_signal(signal.SIGUSR1)
        _ended(process, run, ASKED)
        stop_s = time.monotonic() - asked
    stopped = _last_step(run)
    began = time.monotonic()
    with _Training(file) as process:
        _await_step(process, run, stopped + 1)
        start_s = time.monotonic() - began
        _ended(process, run, 0)
    found = speeds(read_metrics(run / "metrics.csv"), stopped, config.save_every)
    size = max(path.stat().st_size for path in (run / "saves").iterdir())
    of = str(setup)
    yield "training", found.windows_s, "windows/s", of
    yield "waiting for data", 100 * found.wait_share, "%", of
    yield "a step", found.step_s, "s", of
    yield "a save", found.save_s, "s", of
    yield "a save", size / 1e6, "MB", of
    yield "from a request to stop to the end", stop_s, "s", of
    yield "from a second start to its first step", start_s, "s", of
    yield "lost by a stop", stop_s + start_s - found.step_s, "s", of


class _Training(subprocess.Popen):
    """The command that trains by a config file; a context that leaves none behind."""

    def __init__(self, file: Path):
        command = [sys.executable, "-m", "launch", "pretrain", str(file)]
        environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        with (file.parent / "log").open("w", encoding="utf-8") as log:
            super().__init__(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log)

    def __exit__(self, *error) -> None:
        self.terminate()  # does nothing where it has ended
        super().__exit__(*error)


def _await_step(process: subprocess.Popen, run: Path, step: int) -> None:
    while _last_step(run) < step:
        if process.poll() is not None:
            _ended(process, run, None)
        time.sleep(LOOK_S)


def _last_step(run: Path) -> int:
    """The step of the last whole row of metrics.csv; -1 where there is none."""
    try:
        lines = (run / "metrics.csv").read_text(encoding="utf-8").split("\n")[1:-1]
    except FileNotFoundError:
        return -1
    return int(lines[-1].partition(",")[0]) if lines else -1


def _ended(process: subprocess.Popen, run: Path, expected: int | None) -> None:
    """Wait for the end; raise where it is not the expected one."""
    code = process.wait()
    if code == expected:
        return
    if code == 0:
        raise ConfigError("survive.steps", "the training ended before it could be stopped", "give more")
    said = (run.parent / "log").read_text(encoding="utf-8", errors="replace").strip()
    raise DataError("the training", f"ended with exit code {code}: {said[-500:]}", "try `spikeloom pretrain` alone")
