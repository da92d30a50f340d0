"""Memory of a node, the system's limits, clock and text encoding -> findings."""

import locale
import os
import re
import resource
import shutil
import sys
import time
from pathlib import Path

import psutil
import torch

from launch.doctor_case import Case, Finding, fault, fine, in_bytes, skipped, warning
from pretrain.estimate import Estimate
from sharding.mapped import open_shards

SPARE = 0.9  # of what is free may be planned for
WORKER = 400 << 20  # bytes of a process that makes batches: Python, numpy and torch, mostly its own
LOADED = 200 << 20  # bytes that a training loads and keeps beyond what the doctor has: measured, 100 to 150 MB
DRIVER = 1 << 30  # bytes of host memory that CUDA takes in each process
SHARED = Path("/dev/shm")
GROUPS = Path("/sys/fs/cgroup")
FILES = 1024  # that a training may want to have open at a time, besides shards
DAY_S = 86400
UNITS = {"K": 10, "M": 20, "G": 30, "T": 40}  # SLURM's sizes are powers of two


def memory_room(case: Case) -> list[Finding]:
    """The estimate for a rank against its device, and that for all ranks of a node against the host."""
    need, here = case.estimate, case.load
    told = f"a rank computes {here.windows} windows, {here.tokens:,} tokens, {here.queries:,} queries at a time"
    parts = {
        "weights": need.weights + need.average,
        "gradients": need.gradients,
        "optimiser": need.optimizer,
        "activations": need.activations + need.working,
    }
    sizes = ", ".join(f"{name} {in_bytes(size)}" for name, size in parts.items())
    rows = [_on_host(case, need)] if case.device == "cpu" else [_on_device(case, need), _on_host(case, need)]
    return [fine(told), fine(sizes), *rows]


def _on_device(case: Case, need: Estimate) -> Finding:
    told = f"{in_bytes(need.device)} of GPU memory a rank"
    if case.device_here == "cpu":
        return skipped(f"{told}: compare with the GPUs of the cluster")
    free = min(torch.cuda.mem_get_info(number)[0] for number in range(min(case.local_world, torch.cuda.device_count())))
    told = f"{told}, {in_bytes(free)} free"
    return fine(told) if need.device < SPARE * free else fault(told, _less(case))


def _on_host(case: Case, need: Estimate) -> Finding:
    rank = psutil.Process().memory_info().rss + LOADED + case.config.loader.workers * WORKER + need.host
    rank += need.device if case.device == "cpu" else DRIVER
    node = case.local_world * rank + 2 * need.save  # the leader puts a save together, beside a copy that is written
    free, whose = host_memory(case)
    told = f"{in_bytes(node)} of host memory for the ranks of a node ({case.local_world}), {in_bytes(free)} {whose}"
    return fine(told) if node < SPARE * free else fault(told, _less(case))


def _less(case: Case) -> str:
    accumulate = case.config.trainer.accumulate
    return f"take trainer.accumulate={2 * accumulate}: as many parts, the same numbers; or more ranks, or fewer windows"


def host_memory(case: Case) -> tuple[float, str]:
    """Bytes that a training may take on a node, and who says so."""
    cluster = case.config.cluster
    if cluster:
        told = bytes_of(cluster.memory)
        return (told, "by cluster.memory") if told else (float("inf"), "(cluster.memory says nothing)")
    free, limit = psutil.virtual_memory().available, _group_limit()
    return (limit, "left in this job's or container's limit") if limit < free else (free, "free here")


def bytes_of(size: str) -> int:
    """SLURM's sizes, "64G" (a bare number is MB), as bytes; 0 where none is said."""
    match = re.fullmatch(r"(\d+)([KMGT]?)B?", size.upper())
    return int(match[1]) << UNITS[match[2] or "M"] if match else 0


def _group_limit() -> float:
    """Bytes that the control groups of this process still allow; infinite where they say nothing."""
    groups = dict(line.split(":", 2)[1:] for line in _text(Path("/proc/self/cgroup")).splitlines())
    left = float("inf")
    places = [(GROUPS, groups.get("", "/"), "memory.max", "memory.current")]
    places.append((GROUPS / "memory", groups.get("memory", "/"), "memory.limit_in_bytes", "memory.usage_in_bytes"))
    for root, own, most, now in places:
        folder = root / own.strip("/")
        for place in (folder, *folder.parents):
            limit, used = _text(place / most).strip(), _text(place / now).strip()
            if limit.isdigit() and used.isdigit():
                left = min(left, int(limit) - int(used))
            if place == root:
                break
    return left


def limits(case: Case) -> list[Finding]:
    """Open files, and the shared memory that workers hand batches over in."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES + open_shards()
    told = f"{soft:,} open files a process"
    out = [fine(told) if soft >= wanted else warning(told, f"run `ulimit -n {min(hard, 4 * wanted)}` in the job")]
    loader = case.config.loader
    if not loader.workers or not SHARED.is_dir():
        return [*out, fine("no worker processes, so no shared memory is needed")]
    if "shares" not in vars(case):
        return [*out, skipped("how large batches are is not known")]
    size = max(sum(tensor.nbytes for tensor in share.tensors().values()) for share in case.shares)
    wanted = case.local_world * loader.workers * (max(loader.prefetch, 1) + 1) * size
    free = shutil.disk_usage(SHARED).free
    told = f"{in_bytes(free)} free in {SHARED}, {loader.workers} workers a rank fill {in_bytes(wanted)}"
    do = "give the container more (--shm-size), or take fewer loader.workers"
    return [*out, fine(told) if wanted < SPARE * free else fault(told, do)]


def clock(case: Case) -> list[Finding]:
    """A clock behind the files' times breaks certificates and whatever compares times; text must be UTF-8."""
    newest = max(path.stat().st_mtime for path in Path(__file__).parent.glob("*.py"))
    out, zone = [], time.strftime("%Y-%m-%d %H:%M %Z")
    if time.time() < newest - DAY_S:
        out.append(fault(f"the clock says {zone}, before this program was written", "set the clock"))
    encodings = {sys.getfilesystemencoding().lower(), locale.getpreferredencoding(False).lower()}
    if encodings - {"utf-8", "utf8"}:
        do = "export LC_ALL=C.UTF-8, or PYTHONUTF8=1"
        out.append(warning(f"text is read as {' and '.join(sorted(encodings))}, not UTF-8", do))
    return out or [fine(f"{zone}, UTF-8")]


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
