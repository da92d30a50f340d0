"""torch_brain's own way over the same windows: Dataset, RandomFixedWindowSampler, UnitDropout, POYO's tokenize, collate.

Run by the Python of an environment that holds pytorch-brain, as `python bench_loader_peer.py FOLDER`; it imports nothing
of this project, whose omegaconf does not go with torch_brain's hydra. FOLDER holds job.json and an .npz a session:

    job.json    {"window_s", "batch_windows", "unit_dropout": [min, mode, max], "sessions": [{"file", "mean", "scale"}]}
    .npz        unit_id (U,) text, spike_time (S,) s, spike_unit (S,), time (n,) s, value (n, 2), start and stop (i,) s of
                the train intervals

The sessions are first stored as temporaldata's HDF5, below FOLDER. Then each line "WORKERS SECONDS" on the standard input
is answered by a line of JSON on the standard output: {"windows", "tokens", "padded", "seconds"}.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from temporaldata import ArrayDict, Data, Interval, IrregularTimeSeries
from torch_brain.data import Dataset, collate
from torch_brain.data.sampler import RandomFixedWindowSampler
from torch_brain.models import POYO
from torch_brain.registry import MODALITY_REGISTRY
from torch_brain.transforms import Compose, UnitDropout

BRAINSET, READOUT = "bench", "cursor_velocity_2d"
WARM_BATCHES = 2  # and as many as stand ready in the workers' queues


def stored(folder: Path, job: dict) -> list[dict]:
    """The sessions as torch_brain reads them; returns what selects and configures them."""
    (folder / BRAINSET).mkdir(exist_ok=True)
    chosen = []
    for session in job["sessions"]:
        arrays, name = np.load(folder / session["file"], allow_pickle=False), Path(session["file"]).stem
        train = Interval(start=arrays["start"], end=arrays["stop"])
        data = Data(
            brainset=Data(id=BRAINSET),
            session=Data(id=name),
            units=ArrayDict(id=arrays["unit_id"].astype("S")),
            spikes=IrregularTimeSeries(
                timestamps=arrays["spike_time"], unit_index=arrays["spike_unit"].astype(np.int64), domain="auto"
            ),
            cursor=IrregularTimeSeries(timestamps=arrays["time"], vel=arrays["value"], domain="auto"),
            domain=train,
            train_domain=train,
        )
        path = folder / BRAINSET / f"{name}.h5"
        if not path.exists():
            data.save(path)
        readout = {"readout_id": READOUT, "normalize_mean": session["mean"], "normalize_std": session["scale"]}
        chosen.append({"selection": [{"brainset": BRAINSET, "session": name}], "config": {"readout": readout}})
    return chosen


def endless(folder: Path, job: dict, workers: int):
    """Batches as POYO's example makes them, epoch after epoch."""
    low, mode, high = job["unit_dropout"]
    chosen, config = stored(folder, job), folder / "sessions.yaml"
    config.write_text(json.dumps(chosen), encoding="utf-8")  # JSON is YAML
    dataset = Dataset(str(folder), config=str(config), split="train")
    dataset.disable_data_leakage_check()
    # POYO's example hands its settings over as plain containers; those of a file stay OmegaConf's, which are far slower.
    for recording, entry in zip(dataset.recording_dict.values(), chosen, strict=True):
        recording["config"] = entry["config"]
    model = POYO(
        sequence_length=job["window_s"],
        readout_spec=MODALITY_REGISTRY[READOUT],
        latent_step=job["window_s"] / 8,
        num_latents_per_step=16,
        dim=64,
    )
    model.unit_emb.initialize_vocab(dataset.get_unit_ids())
    model.session_emb.initialize_vocab(dataset.get_session_ids())
    dataset.transform = Compose([UnitDropout(min_units=low, mode_units=mode, max_units=high), model.tokenize])
    sampler = RandomFixedWindowSampler(
        sampling_intervals=dataset.get_sampling_intervals(),
        window_length=job["window_s"],
        generator=torch.Generator().manual_seed(0),
    )
    loader = torch.utils.data.DataLoader(
        dataset,
        sampler=sampler,
        collate_fn=collate,
        batch_size=job["batch_windows"],
        num_workers=workers,
        drop_last=True,
        persistent_workers=workers > 0,
    )
    while True:
        yield from loader


def watch(batches, workers: int, limit_s: float) -> dict:
    """What came within `limit_s`, after the batches that were ready before."""
    for _ in range(WARM_BATCHES + 2 * workers):
        next(batches)
    windows = tokens = padded = 0
    began = time.perf_counter()
    while time.perf_counter() - began < limit_s:
        inputs = next(batches)["model_inputs"]
        windows, padded = windows + len(inputs["input_mask"]), padded + inputs["input_mask"].numel()
        tokens += int(inputs["input_mask"].sum())
    return {"windows": windows, "tokens": tokens, "padded": padded, "seconds": time.perf_counter() - began}


def main(folder: Path) -> None:
    torch.set_num_threads(1)  # its tensors are small: with more, threads wait for each other (650 windows/s became 350)
    job, running = json.loads((folder / "job.json").read_text(encoding="utf-8")), {}
    for line in sys.stdin:
        workers, limit_s = int(line.split()[0]), float(line.split()[1])
        if workers not in running:
            running[workers] = endless(folder, job, workers)
        print(json.dumps(watch(running[workers], workers, limit_s)), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
