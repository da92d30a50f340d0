"""The shard root, the sessions chosen of it, and the batches that a training would make -> findings."""

import hashlib
import time
from pathlib import Path

import numpy as np

from launch.doctor_case import LOOKED_AT, Case, Finding, fault, fine, in_bytes, skipped, warning
from launch.doctor_machine import cores
from sharding.check import CheckConfig, check
from sharding.files import files_at
from sharding.index import ShardIndex

SAMPLED = 3  # shards that are read whole
READING_S = 5.0  # after which no further one is begun
ALONE = 1 << 30  # bytes that one process reads as fast as several that must be started first


def shards(case: Case) -> list[Finding]:
    """Whether the root can be read and is what its index says; raises ShardError."""
    root = case.config.shards
    if not root:
        return [skipped("no shards are given: shards=FOLDER")]
    index = ShardIndex.open(root, cache=case.config.cache)  # sizes of a folder's shards are compared here
    told = index.summary()
    hours = ", ".join(f"{hours:.2g} h {split}" for split, hours in told["hours"].items())
    out = [
        fine(
            f"{told['sessions']:,} sessions, {told['units']:,} units, {told['spikes']:,} spikes, {hours} "
            f"in {told['shards']:,} shards, {in_bytes(told['bytes'])}"
        )
    ]
    if case.remote:
        return [*out, skipped("shards of a server are compared with their checksum whenever they come")]
    return out + _sampled(index)


def every_shard(case: Case) -> list[Finding]:
    """Every byte of the root, where the config asks for it: that may take as long as the root is large."""
    if not case.config.full:
        return [skipped("full=true reads every byte")]
    root = case.config.shards
    size = sum(entry["bytes"] for entry in case.index.meta["shards"])
    found = check(CheckConfig(root, cores() if size > ALONE else 1, case.config.cache))
    told = f"{found.files:,} shards read in {found.seconds:.0f} s"
    if not found.faults:
        return [fine(f"{told}: no fault")]
    first = found.faults[0]
    told = f"{told}: {len(found.faults)} faults, first {first.where}: {first.found}"
    return [fault(told, f"`spikeloom check {root}` tells all; copy or write the shards again")]


def _sampled(index: ShardIndex) -> list[Finding]:
    """A few shards read whole, evenly over the root."""
    entries, files = index.meta["shards"], files_at(index.root, verify=False)
    chosen = sorted({int(n) for n in np.linspace(0, len(entries) - 1, min(SAMPLED, len(entries)))})
    began, size, read = time.monotonic(), 0, 0
    for entry in (entries[n] for n in chosen):
        if read and time.monotonic() - began > READING_S:
            break
        with open(files.path(entry), "rb") as stream:
            good = hashlib.file_digest(stream, "sha256").hexdigest() == entry["sha256"]
        if not good:
            do = f"copy or write the shards again; `spikeloom check {index.root}` tells what else"
            return [fault(f"{Path(entry['file']).name}: its sha256 is not what the index says", do)]
        size, read = size + entry["bytes"], read + 1
    rate = in_bytes(size / max(time.monotonic() - began, 1e-6))
    return [fine(f"{read} of {len(entries):,} shards match their checksum, read at {rate}/s; all have the right size")]


def sessions(case: Case) -> list[Finding]:
    """Those chosen, and whether the task can be trained and validated on them; raises ConfigError."""
    index, signal = case.index, case.config.task.signal
    dims = index.sessions.dims(signal)
    lacking = [index.session_ids[row] for row in np.flatnonzero(dims == 0)]
    if lacking:
        told = f"{len(lacking)} of {len(dims)} sessions have no signal {signal!r}: {', '.join(lacking[:3])}"
        signals = ", ".join(sorted(index.sessions.names("signals"))) or "none"
        return [fault(told, f"set task.signal to one of {signals}, or exclude them")]
    units = int(index.sessions.column("units").sum())
    out = [fine(f"{len(dims)} sessions, {units:,} units, {signal} of {case.dims} dimensions")]  # dims: raises
    hours = index.sessions.hours("train")
    empty = [index.session_ids[row] for row in np.flatnonzero(hours == 0)]
    if empty:
        told = f"{len(empty)} sessions have nothing to train on: {', '.join(empty[:3])}"
        out.append(warning(told, "exclude them: their units never learn"))
    if not index.sessions.hours("valid").any():
        out.append(
            warning("no session has anything to validate on", "the last weights are kept; split the sessions anew")
        )
    return out


def batches(case: Case) -> list[Finding]:
    """Global batches against ranks and parts; raises ConfigError where none can be made."""
    config, steps = case.config, case.config.trainer.steps
    config.loader.check(case.world)
    if not case.readable:
        told = (
            f"{case.load.windows} windows a rank and part by the index; more would take fetching shards: full=true does"
        )
        return [skipped(told) if config.loader.batch_tokens else fine(told)]
    windows, epoch = np.mean([share.windows for share in case.shares]), case.new_loader().epoch_windows
    told = f"{windows:,.0f} windows a batch, {epoch / windows:,.1f} batches an epoch"
    out = [fine(f"{told}, {steps * windows / epoch:,.1f} epochs in {steps:,} steps")]
    share, parts = len(case.shares[0]), config.trainer.accumulate
    if parts > share:
        out.append(warning(f"a rank's {share} windows make no {parts} parts", "lower trainer.accumulate"))
    if any(not np.isfinite(share.target_QK.numpy()).all() for share in case.shares):
        out.append(fault(f"targets of the first {LOOKED_AT} batches are not all finite", "look by `spikeloom check`"))
    if not any(float(share.weight_Q.sum()) for share in case.shares):
        out.append(warning("every target of the first batches has weight 0", "look at task.phase_weights"))
    return out
