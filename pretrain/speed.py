"""Steps and their times -> windows and tokens a second, FLOP/s and MFU, time waited for data, memory; over all ranks.

FLOPs are those of the matrix products that the model computes: linear layers and attention, two for a multiplication and
its addition, three times a forward pass for a step. Norms, activations, rotations, dropout, the optimiser and the
projections of what repeats (contents of distinct units and sessions, under 2 % of a step) are not counted, nor what a kernel
computes a second time. MFU is their rate over the peak of the devices, for dense products in the precision at hand.
"""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import psutil
import torch

from pretrain.models.poyo import PoyoConfig
from pretrain.module import DecodingModule
from pretrain.ranks import Ranks
from pretrain.tracking import TrackingConfig
from sharding.batch import Batch

STEP_PASSES = 3  # a backward pass is two products for each of the forward pass
# Dense peaks in TFLOP/s from the maker's data sheets, without sparsity; the first whose words are all in a device's name.
PEAKS = {  # name: (bfloat16, TF32, float32)
    "B200": (2250.0, 1100.0, 75.0),
    "H200 NVL": (835.0, 417.0, 60.0),
    "H200": (989.4, 494.7, 66.9),
    "GH200": (989.4, 494.7, 66.9),
    "H100 NVL": (835.0, 417.0, 60.0),
    "H100 PCIe": (756.0, 378.0, 51.2),
    "H100": (989.4, 494.7, 66.9),
    "H800": (989.4, 494.7, 66.9),
    "A100": (312.0, 156.0, 19.5),
    "A800": (312.0, 156.0, 19.5),
    "A40": (149.7, 74.8, 37.4),
    "A30": (165.0, 82.0, 10.3),
    "A10": (125.0, 62.5, 31.2),
    "RTX A6000": (154.8, 77.4, 38.7),
    "L40S": (362.0, 183.0, 91.6),
    "L40": (181.0, 90.5, 90.5),
    "L4": (121.0, 60.0, 30.3),
    "RTX 4090": (165.2, 82.6, 82.6),
    "RTX 3090": (71.0, 35.6, 35.6),
}
OTHERS = {"Laptop", "MIG", "D"}  # words of names that say: less than the device whose name this holds


def flops(
    config: PoyoConfig, *, windows: int, tokens: int, queries: int, window_s: float, dims: int, pairs: int = 0
) -> float:
    """Of a forward pass of POYO and its readout over so many windows, their tokens and their queries.

    `pairs` are the distinct (unit, kind) contents projected for the tokens, left out where they are not known. That
    every window has the same latents makes attention's products linear in tokens and in queries.
    """
    width, cross = config.width, config.cross_heads * config.head_width
    inner = config.self_heads * config.head_width
    a_window = round(window_s / config.latent_step_s) * config.latents_per_step
    latents = windows * a_window
    feed_forward = 6 * config.ff_multiple * width**2  # a row: inward to value and gate, outward
    encoder = 4 * pairs * width * cross + 4 * a_window * tokens * cross + latents * (2 * cross * width + feed_forward)
    layer = latents * (8 * width * inner + 4 * a_window * inner + feed_forward)
    decoder = latents * 4 * width * cross + queries * (4 * a_window * cross + 2 * cross * width + feed_forward)
    return float(encoder + config.depth * layer + decoder + queries * 2 * width * dims)


def peak_flops(device: torch.device, precision: str, told_tflops: float) -> float | None:
    """FLOP/s of one device at its best: as told where it is, else by its name; None where that is not known."""
    if told_tflops:
        return told_tflops * 1e12
    return named_peak(torch.cuda.get_device_name(device), precision) if device.type == "cuda" else None


def named_peak(name: str, precision: str) -> float | None:
    """FLOP/s of the GPU of that name; None where it is not among PEAKS.

    Products in float32 count as TF32 where torch is allowed to round them so.
    """
    words = set(re.split(r"[\s-]+", name))
    found = next((peaks for known, peaks in PEAKS.items() if set(known.split()) <= words and not OTHERS & words), None)
    if found is None:
        return None
    bf16, tf32, float32 = found
    rounded = torch.get_float32_matmul_precision() != "highest"
    return 1e12 * (bf16 if precision.startswith("bf16") else tf32 if rounded else float32)


def meter_of(module: DecodingModule, ranks: Ranks, device: str, precision: str, tracking: TrackingConfig) -> "Meter":
    """The meter of a training; FLOPs are counted for models of which that is known."""
    here = torch.device(device, ranks.local_rank) if device == "cuda" else torch.device(device)
    config = module.model.config
    count = partial(flops, config, dims=module.task.linear.out_features) if isinstance(config, PoyoConfig) else None
    return Meter(ranks, count, peak_flops(here, precision, tracking.peak_tflops))


class Meter:
    """Counts this rank's steps; a row is of all ranks, since the row before."""

    def __init__(self, ranks: Ranks, flops: Callable[..., float] | None = None, peak: float | None = None):
        """flops(windows=, tokens=, queries=, window_s=) of a forward pass; `peak` FLOP/s of one device."""
        self.ranks, self.flops, self.peak = ranks, flops, peak
        self.tokens = 0  # of all ranks, up to the last row
        self._process, self._host = psutil.Process(), 0.0
        self.start()

    def start(self) -> None:
        """Begin here, between two steps; the batch at hand was waited for before."""
        self._reset()
        self._at_hand = True

    def _reset(self) -> None:
        self._windows = self._tokens = self._steps = 0
        self._flops = self._waited = self._elsewhere = 0.0
        self._began = time.perf_counter()

    def begin(self, waited_s: float) -> None:
        """A step begins, whose batch was waited for so long."""
        self._steps += 1
        self._waited += 0.0 if self._at_hand else waited_s
        self._at_hand = False

    def note(self, batch: Batch) -> None:
        """A batch of the step, or a part of it, was trained on; one that idles counts for nothing."""
        if batch.idle:
            return
        tokens, queries = len(batch.token_time_S), len(batch.query_time_Q)
        self._windows += len(batch)
        self._tokens += tokens
        if self.flops is not None:
            counts = dict(windows=len(batch), tokens=tokens, queries=queries, window_s=batch.window_s)
            self._flops += STEP_PASSES * self.flops(**counts)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is done inside is no part of a step."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._elsewhere += time.perf_counter() - began

    def row(self) -> dict[str, float]:
        """Columns of metrics.csv, since the last row; to be asked by all ranks together.

        speed/tflops (of all devices) and speed/mfu only where FLOPs and peak are known, memory/device_gb only on a GPU.
        """
        taken = max(time.perf_counter() - self._began - self._elsewhere, 1e-9)
        counts = (self._windows, self._tokens, self._flops, self._waited, taken)
        windows, tokens, flops, waited, over_ranks = self.ranks.sums(*counts)
        taken = over_ranks / self.ranks.world
        self.tokens += round(tokens)
        row = {
            "tokens": self.tokens,
            "speed/windows_s": windows / taken,
            "speed/tokens_s": tokens / taken,
            "speed/step_s": taken / max(self._steps, 1),
            "speed/wait_share": waited / over_ranks,
        }
        if self.flops is not None:
            row["speed/tflops"] = flops / taken / 1e12
            if self.peak:
                row["speed/mfu"] = flops / taken / (self.peak * self.ranks.world)
        row |= self._memory()
        self._reset()
        return row

    def _memory(self) -> dict[str, float]:
        """GB of the rank that has most: of a process (its workers aside) at any row yet, of a GPU at any time."""
        self._host = max(self._host, self._process.memory_info().rss / 1e9)
        on_gpu = torch.cuda.is_initialized()
        host, device = self.ranks.most(self._host, torch.cuda.max_memory_allocated() / 1e9 if on_gpu else 0.0)
        return {"memory/host_gb": host} | ({"memory/device_gb": device} if device else {})

    def state_dict(self) -> dict[str, int]:
        """Tokens of the steps so far, those after the last row included; to be asked by all ranks together."""
        return {"tokens": self.tokens + round(self.ranks.sums(self._tokens)[0])}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.tokens = state["tokens"]
