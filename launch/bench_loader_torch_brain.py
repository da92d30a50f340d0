"""torch_brain in an environment of its own over the sessions of a shard root -> how fast it makes batches of them."""

import json
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Self

import numpy as np

from data_prep.errors import ConfigError, DataError
from launch.bench_rate import Watched
from sharding.augment import UnitDropoutConfig
from sharding.index import ShardIndex
from sharding.sampling import Sampling
from sharding.window import interval_windows

SCRIPT = Path(__file__).with_name("bench_loader_peer.py")
HOW = "python -m venv peer && peer/bin/pip install pytorch-brain; then peer_python=peer/bin/python"


class TorchBrain:
    """bench_loader_peer.py in a process that lives as long as the context; raises DataError where it fails."""

    def __init__(self, python: str, folder: Path):
        """`folder` is one that export() filled. Raises ConfigError where there is no such Python."""
        self._command, self._folder = [python, str(SCRIPT), str(folder)], folder
        if not Path(python).is_file():
            raise ConfigError("peer_python", f"{python!r} is no file", f"make an environment: {HOW}")

    def __enter__(self) -> Self:
        self._log = open(self._folder / "log.txt", "w+", encoding="utf-8")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._log}
        self._process = subprocess.Popen(self._command, text=True, **pipes)
        return self

    def __exit__(self, *error) -> None:
        self._process.kill()
        self._process.communicate()
        self._log.close()

    def watch(self, workers: int, limit_s: float) -> Watched:
        """Let it make batches for that long."""
        try:
            self._process.stdin.write(f"{workers} {limit_s}\n")
            self._process.stdin.flush()
            told = json.loads(self._process.stdout.readline())
        except (OSError, ValueError):
            last = (self._folder / "log.txt").read_text(encoding="utf-8").strip().splitlines()[-1:]
            raise DataError(
                self._command[0], f"could not run torch_brain: {''.join(last)}", f"make its environment again: {HOW}"
            ) from None
        return Watched(told["windows"], told["tokens"], told["seconds"])


def export(index: ShardIndex, sampling: Sampling, batch_windows: int, dropout: UnitDropoutConfig, folder: Path) -> Path:
    """The train split of every session as the script wants it; what is there of these very shards is kept."""
    folder = folder / f"torch_brain-{index.digest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    files = [f"{row:04d}.npz" for row in range(len(index.sessions))]
    if not all((folder / file).exists() for file in files):
        for row, arrays in _by_session(index, sampling.signal).items():
            np.savez(folder / files[row], **arrays)
    told = [sampling.statistics[name] for name in index.session_ids]
    job = {
        "window_s": sampling.window_s,
        "batch_windows": batch_windows,
        "unit_dropout": [asdict(dropout)[name] for name in ("min", "mode", "max")],
        "sessions": [
            {"file": file, "mean": mean.tolist(), "scale": scale.tolist()} for file, (mean, scale) in zip(files, told)
        ],
    }
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    return folder


def _by_session(index: ShardIndex, signal: str) -> dict[int, dict[str, np.ndarray]]:
    """Session row -> its units, and the spikes and samples of its train intervals end to end, times in seconds."""
    stretches: dict[int, list] = {}
    for stretch in interval_windows(index, signal, "train"):
        stretches.setdefault(stretch.session, []).append(stretch)
    out = {}
    for row, parts in stretches.items():
        start = np.array([part.start_us for part in parts])
        out[row] = {
            "unit_id": np.array(index.unit_ids(index.session_ids[row])),
            "spike_time": np.concatenate([part.spike_time + part.start_us for part in parts]) / 1e6,
            "spike_unit": np.concatenate([part.spike_unit for part in parts]),
            "time": np.concatenate([part.sample_time + part.start_us for part in parts]) / 1e6,
            "value": np.concatenate([part.value for part in parts]),
            "start": start / 1e6,
            "stop": (start + np.array([part.length_us for part in parts])) / 1e6,
        }
    return out
