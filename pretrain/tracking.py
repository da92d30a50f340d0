"""What a run measures, on record: metrics.csv and metrics.jsonl always, wandb when asked (offline needs no account).

    RUN/metrics.csv     a row a step that measured something; what it did not measure is blank
    RUN/metrics.jsonl   the same rows, an object a line, without what is blank
    RUN/wandb.json      the run's id there, and the step up to which it has been told
    RUN/wandb/          wandb's own files, one folder each time the run was started
    RUN/traces/         pictures of decoded behaviour

A run that was interrupted continues its own wandb run. Rows reach metrics.csv before wandb: those that a resumed run drops
and measures again were sent before, have the same numbers, and are not sent twice. A run kept offline (asked for, or because
wandb could not be reached) goes to wandb later, all its starts in one, by `wandb sync RUN/wandb/offline-run-*`.
"""

import csv
import io
import json
import logging
import math
import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import wandb
from lightning.pytorch.loggers import WandbLogger

from pretrain.errors import ConfigError, DataError
from pretrain.outputs import Prediction
from pretrain.run import Run, commit, versions, write_whole
from sharding.index import ShardIndex

LOG = logging.getLogger("spikeloom")
METRICS = "metrics.csv"
MODES = ("off", "offline", "online")
COLUMNS = (
    "step",
    "epoch",
    "windows",
    "tokens",
    "seconds",
    "train/loss",
    "train/grad_norm",
    "train/weight_norm",
    "lr",
    "valid/loss",
    "valid/r2",
    "speed/windows_s",
    "speed/tokens_s",
    "speed/step_s",
    "speed/wait_share",
    "speed/tflops",
    "speed/mfu",
    "memory/host_gb",
    "memory/device_gb",
)
COUNTS = ("step", "windows", "tokens")  # whole numbers
MEASURED = ("seconds", "speed/", "memory/")  # columns, by how they begin, that two equal runs do not have alike
AXIS = "trainer/global_step"  # the horizontal axis that Lightning's logger gives all curves
SESSION = "valid/r2/"  # how the columns of sessions begin
START_S, FINISH_S = 60.0, 30.0  # wandb is waited for, at the start (then the run stays offline) and at the end
OFFLINE_S = 300.0  # its own process, at the start, on a machine however busy


@dataclass(frozen=True)
class TrackingConfig:
    wandb: str = "off"
    "off, offline (kept in the run folder, no account needed) or online"
    project: str = "spikeloom"
    "wandb project"
    label: str = ""
    "name of the run in wandb; empty takes the run folder's name"
    traces_every: int = 1000
    "steps between pictures of decoded behaviour, each taken at the validation that follows; 0 takes none"
    peak_tflops: float = 0.0
    "peak of one device in TFLOP/s, of which speed/mfu is the used share; 0 knows that of some GPUs by their names"

    def __post_init__(self):
        if self.wandb not in MODES:
            raise ConfigError("tracking.wandb", f"{self.wandb!r} is not a mode", f"take one of {', '.join(MODES)}")
        for name in ("traces_every", "peak_tflops"):
            if getattr(self, name) < 0:
                raise ConfigError(f"tracking.{name}", f"is {getattr(self, name)}", "give 0 or more")


# ------------------------------------------------------------------------------------------------ files


class MetricsFile:
    """metrics.csv and, beside it, metrics.jsonl, appended row by row; rows cut short by a crash, or after the step resumed
    from, are dropped from both."""

    def __init__(self, path: str | Path, sessions: Iterable[str], resume_step: int | None):
        """`resume_step` None begins new files; else rows up to and including that step are kept."""
        self.path = Path(path)
        self.lines = self.path.with_suffix(".jsonl")
        self.columns = COLUMNS + tuple(SESSION + session for session in sessions)
        kept = [] if resume_step is None else [row for row in rows_of(self.path) if int(row["step"]) <= resume_step]
        self._start = time.monotonic() - (float(kept[-1]["seconds"]) if kept else 0.0)
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(kept)
        write_whole(self.path, text.getvalue().encode())
        write_whole(self.lines, "".join(map(self._line, kept)).encode())

    @property
    def seconds(self) -> float:
        """Seconds of this run, those before an interruption included."""
        return time.monotonic() - self._start

    def append(self, row: dict[str, float]) -> None:
        """Add one row; columns it lacks stay blank."""
        row = {"seconds": f"{self.seconds:.3f}"} | {key: _text(value) for key, value in row.items()}
        text = io.StringIO()
        csv.DictWriter(text, self.columns, lineterminator="\n").writerow(row)
        for path, line in ((self.path, text.getvalue()), (self.lines, self._line(row))):
            try:
                with open(path, "a", newline="") as file:
                    file.write(line)
            except OSError as error:
                raise DataError(
                    path,
                    f"cannot be written to ({error.strerror})",
                    "free space and run again: it continues from the last saved step",
                ) from None

    def flush(self) -> None:
        """Bring both files to the disk: before a save is, so that no save goes on after rows that a loss of power took."""
        for path in (self.path, self.lines):
            with open(path, "rb") as file:
                os.fsync(file.fileno())

    def _line(self, row: dict[str, str]) -> str:
        """A row of the CSV file as a line of the other; what JSON has no word for (infinity) is null."""
        there = [name for name in self.columns if row.get(name)]
        told = {name: int(row[name]) if name in COUNTS else float(row[name]) for name in there}
        return json.dumps({name: value if math.isfinite(value) else None for name, value in told.items()}) + "\n"


def rows_of(path: Path) -> list[dict[str, str]]:
    """The whole rows of a metrics.csv; none where there is no such file."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        lines = file.read().splitlines(keepends=True)
    return list(csv.DictReader(line for line in lines if line.endswith("\n")))


def _text(value: float) -> str:
    return str(value) if isinstance(value, int) else "" if math.isnan(value) else f"{value:.8g}"


# ------------------------------------------------------------------------------------------------ tracker


class Tracker:
    """Sends what is measured to the run's files and, when asked, to wandb, whose faults never stop a training."""

    def __init__(self, file: MetricsFile, config: TrackingConfig, logger: WandbLogger | None = None, seen: int = -1):
        """`seen` is the step up to which wandb knows the run."""
        self.file, self.config, self.logger, self.seen = file, config, logger, seen
        self.folder = file.path.parent
        self._told = logger is not None  # whether wandb is still told
        self._media: dict = {}

    def judged(self, step: int, scores: dict[str, float], predictions: Sequence[Prediction]) -> None:
        """A validation: the R2 of sessions, and what was decoded, which is pictured where a picture is due."""
        if self._told:
            self._media["valid/sessions"] = wandb.Table(columns=["session", "r2"], data=[*scores.items()])
        if predictions and self._picture_due(step):
            from pretrain.traces import draw_traces

            picture = self.folder / "traces" / f"step-{step:08d}.png"
            picture.parent.mkdir(exist_ok=True)
            write_whole(picture, draw_traces(predictions, f"step {step}"))
            if self._told:
                self._media["valid/traces"] = wandb.Image(str(picture))

    def _picture_due(self, step: int) -> bool:
        every = self.config.traces_every
        there = [int(path.stem.rpartition("-")[2]) for path in self.folder.glob("traces/step-*.png")]
        earlier = [other for other in there if other < step]  # later ones are of steps that are taken again
        return every > 0 and step // every > max(earlier, default=0) // every

    def record(self, row: dict[str, float]) -> None:
        """A row of the files; with it wandb gets what was judged at the same step."""
        self.file.append(row)
        step = int(row["step"])
        told = {name: value for name, value in row.items() if name != "step"} | self._media | {AXIS: step}
        self._media = {}
        if step > self.seen:  # wandb's own count of steps is ours too: a later start goes on where an earlier one was
            self._safely(lambda: self.logger.experiment.log(told, step=step))

    def summarise(self, facts: dict) -> None:
        """What is to stand beside the run as a whole."""
        self._safely(lambda: self.logger.experiment.summary.update(facts))

    def close(self) -> None:
        """Finish the wandb run, if there is one, so that the next run of this process starts its own."""
        self._safely(lambda: self.logger.experiment.finish())

    def _safely(self, tell: Callable[[], object]) -> None:
        if not self._told:
            return
        try:
            tell()
        except Exception as error:  # whatever wandb may raise: it is not worth a training of days
            self._told = False
            LOG.warning("wandb fails (%s); the run goes on without it, its files have all", _first_line(error))


def tracker_of(config: TrackingConfig, run: Run, index: ShardIndex, resume_step: int | None) -> Tracker:
    """The tracker of a run that is begun (`resume_step` None) or continued; for the one process that writes.

    Raises ConfigError where wandb is asked for and lacks a login.
    """
    path = run.folder / METRICS
    if config.wandb == "off":
        return Tracker(MetricsFile(path, index.session_ids, resume_step), config)
    known = _known(run.folder)
    write_whole(run.folder / "wandb.json", json.dumps(known).encode())  # before the rows are dropped that tell it
    provenance = {"commit": commit(), "shards_digest": index.digest(), "versions": versions()}
    logger = _logger(config, run.folder, known["id"], run.config | {"provenance": provenance})
    return Tracker(MetricsFile(path, index.session_ids, resume_step), config, logger, known["seen"])


def _known(folder: Path) -> dict:
    """The wandb id of a run folder, made where there is none yet, and the step up to which wandb was told: that of the
    last row, or an earlier start's last row."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads((folder / "wandb.json").read_text())
        steps = [int(row["step"]) for row in rows_of(folder / METRICS)]
        return {"id": str(found["id"]), "seen": max([int(found["seen"]), *steps])}
    name = re.sub(r"[^\w.-]", "-", folder.resolve().name)[:32]
    return {"id": f"{name}-{os.urandom(4).hex()}", "seen": -1}


def _logger(config: TrackingConfig, folder: Path, id_: str, told: dict) -> WandbLogger:
    """Lightning's wandb logger, its run begun or taken up; offline where wandb cannot be reached."""

    def start(mode: str) -> WandbLogger:
        logger = WandbLogger(
            name=config.label or folder.resolve().name,
            project=config.project,
            save_dir=str(folder),
            id=id_,
            mode=mode,
            resume="allow" if mode == "online" else None,
            settings=wandb.Settings(init_timeout=START_S if mode == "online" else OFFLINE_S, finish_timeout=FINISH_S),
        )
        logger.experiment.config.update(told, allow_val_change=True)
        return logger

    try:
        return start(config.wandb)
    except wandb.errors.UsageError as error:
        found = f"wandb does not start ({_first_line(error)})"
        raise ConfigError("tracking.wandb", found, "run `wandb login` first, or take offline or off") from None
    except wandb.errors.CommError as error:
        LOG.warning(
            "wandb cannot be reached (%s); this start of the run is kept offline: `wandb sync %s` sends it later",
            _first_line(error),
            folder / "wandb" / "offline-run-*",
        )
        wandb.teardown()  # else the id stays in use by the start that failed
        return start("offline")


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
