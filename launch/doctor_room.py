"""The folders that a training writes to -> whether they can be written, at what rate, and whether there is room enough."""

import os
import shutil
import time
import uuid
from pathlib import Path

from launch.doctor_case import Case, Finding, fault, fine, in_bytes, skipped, warning
from pretrain.estimate import names_bytes
from pretrain.run import Run
from pretrain.saves import Saves
from sharding.cache import GB

PROBE = 16 << 20  # bytes written to see how fast a disk is
EXTRA = 100 << 20  # bytes of metrics, figures and logs
FEW_FILES = 1000


def run_folder(case: Case) -> list[Finding]:
    """Whether the run may begin or go on there, and whether its saves have room."""
    if not case.config.run:
        return [skipped("no run folder is given: run=FOLDER")]
    out = [_standing(case)]
    place = _existing(Path(case.config.run))
    try:
        case.disk_rate = probed(place)
    except OSError as error:
        return [
            *out,
            fault(f"{place}: {error.strerror}", "take a folder that can be written to, renamed in and flushed"),
        ]
    out.append(fine(f"written, flushed and renamed there at {in_bytes(case.disk_rate)}/s"))
    files = os.statvfs(place).f_favail
    if 0 < files < FEW_FILES:
        out.append(fault(f"{place}: only {files} more files may be made", "remove files, or take another disk"))
    return out


def saves_room(case: Case) -> list[Finding]:
    """Whether saves and checkpoints have room, each once more while a new one takes the place of an old one."""
    need, keep = case.estimate, case.config.trainer.keep
    checkpoint = need.checkpoint + names_bytes(case.sampling.units, case.sampling.sessions)
    free = shutil.disk_usage(_existing(Path(case.config.run))).free
    wanted = (keep + 1) * need.save + 2 * checkpoint + EXTRA
    told = (
        f"{in_bytes(free)} free for {keep + 1} saves of {in_bytes(need.save)}, 2 checkpoints of {in_bytes(checkpoint)}"
    )
    return [fine(told) if free > wanted else fault(told, f"free {in_bytes(wanted - free)}, or lower trainer.keep")]


def cache_room(case: Case) -> list[Finding]:
    """The folder where shards of a server are kept, and where it is remembered which were compared with their checksum."""
    config, place = case.config.cache, _existing(case.config.cache.path)
    try:
        probed(place)
    except OSError as error:
        do = "set cache.folder or SPIKELOOM_CACHE to a folder on a disk of this machine"
        if case.remote:
            return [fault(f"{config.path}: {error.strerror}", do)]
        return [warning(f"{config.path}: {error.strerror}; every process compares every shard anew", do)]
    if not case.remote:
        return [fine(f"{config.path} can be written to; shards of a folder are not copied there")]
    whole = sum(entry["bytes"] for entry in case.index.meta["shards"])
    free, wanted = shutil.disk_usage(place).free, min(whole, config.limit_bytes)
    told = f"{config.path}: {in_bytes(free)} free for {in_bytes(wanted)} of {in_bytes(whole)} of shards"
    if free < wanted:
        return [warning(told, f"free some, or set cache.limit_gb={free / GB * 0.8:.0f}")]
    if whole > config.limit_bytes:
        do = "raise cache.limit_gb, or set loader.block_shards so that few are wanted at a time"
        return [warning(f"{told}; the others are fetched again every epoch", do)]
    return [fine(told)]


def probed(folder: Path) -> float:
    """Bytes a second of a file written, flushed and renamed in a folder, of which nothing is left; raises OSError."""
    name = f".doctor-{uuid.uuid4().hex}"
    aside, path = folder / name, folder / f"{name}.whole"
    data = os.urandom(1 << 20)
    began = time.monotonic()
    try:
        with open(aside, "wb") as file:
            for _ in range(PROBE // len(data)):
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return PROBE / max(time.monotonic() - began, 1e-6)
    finally:
        aside.unlink(missing_ok=True)
        path.unlink(missing_ok=True)


def _standing(case: Case) -> Finding:
    """What the folder holds already; raises ConfigError where that is a run of other settings."""
    run = Run(case.config.run, case.pretraining)
    run.check()
    if run.finished:
        return warning(f"{run.folder} holds the finished run", "give another run folder to train again")
    saves = Saves(run.saves).steps()
    if saves:
        return fine(f"goes on from step {saves[-1]:,} of {case.config.trainer.steps:,}")
    return fine(f"begins at step 0 in {run.folder}")


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    folder = folder.absolute()
    return next(place for place in (folder, *folder.parents) if place.is_dir())
