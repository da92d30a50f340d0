"""One shard and its rows of the index -> every fault in the file, and the sums from which its sessions' totals follow."""

import hashlib
import mmap
import tarfile
from dataclasses import dataclass

import numpy as np

from sharding.check_found import Fault, ShardFound
from sharding.check_segment import SessionFacts, segment_faults
from sharding.errors import ShardError
from sharding.files import AGAIN, RootFiles

CHUNK = 1 << 20  # bytes read at once
TRIES = 3  # of opening a file that a cache may remove meanwhile


@dataclass(frozen=True)
class ShardJob:
    """A shard to be checked: its entry of index.json, its segments (records of the table), its sessions by id."""

    entry: dict
    rows: list[dict]
    facts: dict[str, SessionFacts]


def check_shard(files: RootFiles, job: ShardJob) -> ShardFound:
    """Read a shard once and hold it against its checksum, its segments' rows and what data have to be.

    Nothing is raised for a damaged file: its faults are told, the sessions that it leaves open too.
    """
    try:
        digest, mapped = _opened(files, job.entry)
    except ShardError as error:
        return _unread(job, error.found)
    except OSError as error:
        return _unread(job, f"cannot be read ({error.strerror})")
    found = ShardFound(bytes=job.entry["bytes"])
    if digest != job.entry["sha256"]:
        found.faults.append(Fault(job.entry["file"], "its sha256 is not what the index says"))
        found.untold |= {row["session"] for row in job.rows}  # whatever they now sum up to, this is why
    with mapped:
        _check_content(mapped, job, found)
    return found


def _opened(files: RootFiles, entry: dict) -> tuple[str, mmap.mmap]:
    """sha256 of a file and a map of it, whose pages are then in memory: the disk is read once."""
    for again in range(TRIES):
        path = files.path(entry)
        try:
            with open(path, "rb") as stream:
                return _digest(stream), mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:  # another process made room in the cache
            if again + 1 == TRIES:
                raise
        except ValueError:  # nothing can be mapped of an empty file
            raise ShardError(path, "is empty", AGAIN) from None
    raise AssertionError("every try returns or raises")


def _unread(job: ShardJob, why: str) -> ShardFound:
    return ShardFound([Fault(job.entry["file"], why)], untold={row["session"] for row in job.rows})


def _digest(stream) -> str:
    digest, chunk = hashlib.sha256(), memoryview(bytearray(CHUNK))
    while size := stream.readinto(chunk):
        digest.update(chunk[:size])
    return digest.hexdigest()


def _check_content(data: mmap.mmap, job: ShardJob, found: ShardFound) -> None:
    """Members against rows, then the segments whose members all lie where their rows say."""
    at, torn = _walked(data)
    lost = 0
    for row in job.rows:
        where = f"{job.entry['file']}: {row['key']}"
        wrong, lacking = [], []
        if len({len(row[name]) for name in ("member", "offset", "bytes", "array_bytes")}) > 1:
            wrong.append("its columns member, offset, bytes and array_bytes are not of one length")
        for member, offset, size in zip(row["member"], row["offset"], row["bytes"]):
            place = at.pop(f"{row['key']}.{member}", None)
            if place is None:
                lacking.append(member)
            elif place != (offset, size):
                wrong.append(
                    f"member {member} has {place[1]} bytes at byte {place[0]}, "
                    f"the index says {size} bytes at byte {offset}"
                )
        lost += len(lacking)
        if lacking and not torn:
            wrong.append(f"has no member {', '.join(lacking)}")
        if not wrong and not lacking:
            wrong = list(segment_faults(data, row, job.facts[row["session"]], found))
        else:
            found.untold.add(row["session"])
        found.faults += [Fault(where, text) for text in wrong]
    if torn:
        found.faults.append(
            Fault(job.entry["file"], f"{torn}; {lost} members that the index names were not found before it")
        )
    found.faults += [Fault(job.entry["file"], f"holds a member {name} that no segment names") for name in at]


def _walked(data: mmap.mmap) -> tuple[dict[str, tuple[int, int]], str]:
    """Name -> (first byte, bytes) of every member of a tar, and where it could not be read further ("" if it could)."""
    members, at = {}, 0
    while at + tarfile.BLOCKSIZE <= len(data):
        block = data[at : at + tarfile.BLOCKSIZE]
        if not block.strip(b"\0"):
            if np.frombuffer(data, np.uint8, offset=at).any():
                return members, f"is no tar from byte {at} on (an empty header before more data)"
            return members, ""
        try:
            member = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            return members, f"is no tar from byte {at} on ({error})"
        at += tarfile.BLOCKSIZE
        if not member.isreg() or member.name in members or not 0 <= member.size <= len(data) - at:
            return members, f"is no tar of ours from byte {at} on (member {member.name!r} of {member.size} bytes)"
        members[member.name] = (at, member.size)
        at += member.size + -member.size % tarfile.BLOCKSIZE
    return members, f"is no tar from byte {at} on (it has no end)"
