"""A few real steps of the configured model on real batches, on the device at hand -> what a step will take."""

import math
import time

import torch

from launch.doctor_case import Case, Finding, Trial, fault, fine, in_bytes, in_time, skipped, warning
from launch.doctor_machine import cores
from pretrain.models.registry import MODELS
from pretrain.module import DecodingModule
from pretrain.tasks.registry import TASKS
from sharding.batch import Batch

FIRST = 4  # windows of the smallest part that is tried
FULL = 3  # whole parts that are timed where there is time
SLOW_SUPPLY = 0.8  # of a step: batches that take longer to make are waited for


class Steps:
    """A fresh model and its optimiser, as one rank alone has them."""

    def __init__(self, case: Case):
        config, sampling = case.config, case.sampling
        torch.manual_seed(config.seed)
        model = MODELS[config.model.name][1](config.model, sampling.units, sampling.sessions)
        task = TASKS[config.task.name][1](config.task, model.width, case.dims)
        self.module = DecodingModule(model, task, config.optim, config.trainer.steps, config.seed)
        self.device = torch.device(case.device_here)
        self.module.to(self.device).train()
        self.optimizer = self.module.configure_optimizers()["optimizer"]
        self.rounded = config.trainer.precision == "bf16-mixed"

    def step(self, part: Batch) -> tuple[float, float]:
        """Loss of a part, and seconds that it took to step by it."""
        began = time.monotonic()
        part = part.to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.rounded):
            loss, _ = self.module.losses(part)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return float(loss.detach()), self._since(began)

    def decode(self, part: Batch) -> float:
        """Seconds that decoding a part takes, as in validation."""
        self.module.eval()
        began = time.monotonic()
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.rounded):
            self.module(part.to(self.device))
        seconds = self._since(began)
        self.module.train()
        return seconds

    def _since(self, began: float) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.monotonic() - began


def trial(case: Case) -> list[Finding]:
    """Steps by ever more windows of the largest part, until all of it was taken or the time for it would not do."""
    limit = case.config.trial_s
    if not limit or not case.readable:
        return [skipped("trial_s=0" if not limit else "shards would have to be fetched first: full=true does")]
    threads = torch.get_num_threads()
    shared = case.local_world if case.device == "cpu" and not case.config.cluster else 1
    torch.set_num_threads(case.config.trainer.threads or max(1, cores() // shared))
    try:
        return _tried(case, limit)
    finally:
        torch.set_num_threads(threads)


def _tried(case: Case, limit: float) -> list[Finding]:
    began, steps, part = time.monotonic(), Steps(case), case.part
    windows = min(FIRST, len(part))
    steps.step(part.selected(range(windows)))  # what is made or loaded once
    loss, seconds = steps.step(part.selected(range(windows)))
    while windows < len(part):
        more = min(2 * windows, len(part))
        if time.monotonic() - began + 3 * seconds * more / windows > limit:
            break
        loss, seconds = steps.step(part.selected(range(more)))
        windows = more
    if not math.isfinite(loss):
        return [fault(f"the loss of the first steps is {loss}", "lower optim.lr, and look at the targets")]
    times = [seconds]
    while windows == len(part) and len(times) < FULL and time.monotonic() - began + seconds < limit:
        times.append(steps.step(part)[1])
    decoded_s = steps.decode(part.selected(range(windows))) / windows
    parts_s = min(times) * len(part) / windows * case.config.trainer.accumulate
    case.trial = Trial(parts_s, _supply_s(case), decoded_s, case.device_here)
    return _told(case, windows, loss)


def _supply_s(case: Case) -> float:
    """Seconds that making one share takes in one process."""
    began = time.monotonic()
    count = len(list(case.new_loader()))
    return (time.monotonic() - began) / count


def _told(case: Case, windows: int, loss: float) -> list[Finding]:
    tried, whole = case.trial, len(case.part)
    share = f"{windows} of {whole} windows" if windows < whole else f"all {whole} windows"
    told = f"a step of one rank takes {in_time(tried.step_s)} on {tried.device} (by {share} of a part), loss {loss:.3g}"
    out = [fine(told)]
    if tried.device == "cuda":
        most = torch.cuda.max_memory_allocated()
        out.append(fine(f"{in_bytes(most)} of GPU memory taken, {in_bytes(case.estimate.device)} estimated"))
    if tried.device != case.device:
        out.append(warning(f"taken on the {tried.device}, not on the cluster's GPUs", "ask again in a job of one node"))
    loader = case.config.loader
    makers = loader.workers or 1
    if tried.batch_s > SLOW_SUPPLY * tried.step_s * makers:
        wanted = math.ceil(tried.batch_s / max(tried.step_s, 1e-6)) + 1
        told = f"a batch takes {in_time(tried.batch_s)} to make, with {makers} at work steps wait for it"
        out.append(warning(told, f"take loader.workers={wanted}"))
    return out


def pace(case: Case) -> float:
    """Seconds from step to step: batches are made beside the steps where they are made ahead."""
    tried, loader = case.trial, case.config.loader
    if loader.workers or loader.prefetch:
        return max(tried.step_s, tried.batch_s / max(loader.workers, 1))
    return tried.step_s + tried.batch_s
