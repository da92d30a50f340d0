"""What a run measures, on record: metrics.csv always, wandb when asked (offline needs no account)."""

import csv
import io
import math
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import wandb
from lightning.pytorch.loggers import WandbLogger

from pretrain.errors import ConfigError, DataError

COLUMNS = (
    "step",
    "epoch",
    "windows",
    "seconds",
    "train/loss",
    "train/grad_norm",
    "train/weight_norm",
    "lr",
    "valid/loss",
    "valid/r2",
)


@dataclass(frozen=True)
class TrackingConfig:
    wandb: str = "off"
    "off, offline (kept in the run folder, no account needed) or online"
    project: str = "spikeloom"
    "wandb project"
    label: str = ""
    "name of the run in wandb; empty takes the run folder's name"


class MetricsFile:
    """metrics.csv, appended row by row; rows cut short by a crash, or after the step resumed from, are dropped."""

    def __init__(self, path: str | Path, sessions: Iterable[str], resume_step: int | None):
        """`resume_step` None begins a new file; else rows up to and including that step are kept."""
        self.path = Path(path)
        self.columns = COLUMNS + tuple(f"valid/r2/{session}" for session in sessions)
        kept = [] if resume_step is None else self._rows_until(resume_step)
        self._start = time.monotonic() - (float(kept[-1]["seconds"]) if kept else 0.0)
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(kept)
        fresh = self.path.with_name(f".{self.path.name}.fresh")
        fresh.write_text(text.getvalue())
        os.replace(fresh, self.path)

    def _rows_until(self, step: int) -> list[dict[str, str]]:
        if not self.path.exists():
            return []
        with open(self.path, newline="") as file:
            lines = file.read().splitlines(keepends=True)
        rows = list(csv.DictReader(line for line in lines if line.endswith("\n")))
        return [row for row in rows if int(row["step"]) <= step]

    @property
    def seconds(self) -> float:
        """Seconds of this run, those before an interruption included."""
        return time.monotonic() - self._start

    def append(self, row: dict[str, float]) -> None:
        """Add one row; columns it lacks stay blank."""
        row = {"seconds": f"{self.seconds:.3f}"} | {key: _text(value) for key, value in row.items()}
        try:
            with open(self.path, "a", newline="") as file:
                csv.DictWriter(file, self.columns, lineterminator="\n").writerow(row)
        except OSError as error:
            raise DataError(
                self.path,
                f"cannot be written to ({error.strerror})",
                "free space and run again: it continues from the last saved step",
            ) from None


def _text(value: float) -> str:
    return str(value) if isinstance(value, int) else "" if math.isnan(value) else f"{value:.8g}"


class Tracker:
    """Sends each row of measurements to metrics.csv and, when asked, to wandb."""

    def __init__(self, file: MetricsFile, logger: WandbLogger | None):
        self.file, self.logger = file, logger

    def record(self, row: dict[str, float]) -> None:
        self.file.append(row)
        if self.logger is not None:
            self.logger.log_metrics({key: value for key, value in row.items() if key != "step"}, step=int(row["step"]))

    def close(self) -> None:
        """Finish the wandb run, if there is one, so that the next run of this process starts its own."""
        if self.logger is not None:
            self.logger.experiment.finish()


def wandb_logger(config: TrackingConfig, run: Path, hyperparameters: dict) -> WandbLogger | None:
    """Lightning's wandb logger writing into the run folder, or None where it is off; raises ConfigError.

    The wandb id is kept in the run folder, so that a resumed run continues its own curves.
    """
    if config.wandb == "off":
        return None
    if config.wandb not in ("offline", "online"):
        raise ConfigError("tracking.wandb", f"{config.wandb!r} is not a mode", "take off, offline or online")
    from_file = run / "wandb_id.txt"
    if not from_file.exists():
        from_file.write_text(f"{run.name[:32]}-{os.urandom(4).hex()}".replace(" ", "-"))
    logger = WandbLogger(
        name=config.label or run.name,
        project=config.project,
        save_dir=str(run),
        id=from_file.read_text().strip(),
        offline=config.wandb == "offline",
        resume="allow" if config.wandb == "online" else None,
    )
    try:
        logger.experiment.config.update(hyperparameters, allow_val_change=True)
    except wandb.Error as error:
        raise ConfigError(
            "tracking.wandb",
            f"wandb does not start ({str(error).partition(chr(10))[0]})",
            "run `wandb login` first, or take offline or off",
        ) from None
    return logger
