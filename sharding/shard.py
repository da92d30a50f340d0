"""Stage 2: stored sessions -> a shard root; a finished root is kept, new sessions are added to it, bad ones are told."""

import hashlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.errors import MendableError
from data_prep.part import part_of
from data_prep.session import SPLITS
from data_prep.store import list_sessions, opened_session
from sharding.errors import ConfigError, ShardError
from sharding.files import LocalFiles
from sharding.index import ShardIndex
from sharding.index_meta import INDEX, Refused, read_meta
from sharding.root import CutSettings, RootWriter, Source
from sharding.root_lock import writing
from sharding.tokens import to_microseconds

LONGEST_S = 2**31 / 1e6  # what int32 microseconds can tell
Progress = Callable[[int, int, str], None]  # sessions done, of how many, name of the one that comes next


@dataclass
class ShardConfig:
    """What is cut and how."""

    sessions: str | list[str] = ""
    "folder of stored sessions, or a list of such folders and single stored sessions"
    output: str = ""
    "folder of the shards; made where it is missing"
    segment_s: float = 60.0
    "seconds; the longest stretch of window starts that a segment owns"
    halo_s: float = 1.0
    "seconds; the longest window that the shards will serve"
    shard_mb: float = 128.0
    "megabytes (1e6 bytes); a shard is closed before it grows larger, unless one segment alone is larger"
    splits: list[str] = field(default_factory=lambda: list(SPLITS))
    "splits that are written"
    append: bool = False
    "add these sessions to the root, which keeps those it has; without it all that it holds has to be given again"
    part: str = ""
    "i/N or slurm: take only this share of the stored sessions, for array jobs; an output for each part, then merge"


def shard(config: ShardConfig, progress: Progress = lambda done, total, name: None) -> ShardIndex:
    """Write the stored sessions as shards and return their index; `index.refused` tells what was left out and why.

    A whole root of equal settings that holds these sessions is kept as it is, in whatever order they are given; one
    that holds some of them gets the others, in new shards. Without `append` it is written anew where settings differ, a
    shard is damaged or a session that it holds was changed. Raises ConfigError for settings that make no sense,
    ShardError where nothing could be written, and where sessions would be lost that are not given.
    """
    settings, output, files = _settings(config), Path(config.output), _stored(config)
    given = {file: Source(file.name, _sha256(file)) for file in files}
    work = _planned(output, settings, given, config)
    if work.complete:
        return work.kept
    with writing(output):
        work = _planned(output, settings, given, config)  # as the run before, if there was one, left it
        if work.complete:
            return work.kept
        refused = list(work.refused)
        with RootWriter(output, settings, work.kept) as root:
            for number, file in enumerate(work.files):
                progress(number, len(work.files), file.name)
                with ExitStack() as stack:
                    try:
                        session = stack.enter_context(opened_session(file))
                        segments = root.cut(session)
                    except MendableError as error:
                        refused.append(Refused(file.name, str(error), given[file].sha256))
                    else:
                        root.add(session, segments, given[file])
            if files and not root.count:
                raise ShardError(
                    output, f"no session could be sharded: {refused[0].message}", "prepare the sessions again"
                )
            root.finish(refused)
    progress(len(work.files), len(work.files), "")
    return ShardIndex.open(output)


@dataclass(frozen=True)
class _Work:
    """What is to be done to a folder."""

    kept: ShardIndex | None  # what stands there and stays
    files: list[Path]  # stored sessions to add to it
    refused: list[Refused]  # of an earlier run, which still hold

    @property
    def complete(self) -> bool:
        return self.kept is not None and not self.files


def _planned(output: Path, settings: CutSettings, given: dict[Path, Source], config: ShardConfig) -> _Work:
    """Which of the given sessions are missing from what stands in the folder; all of them where that cannot stay."""
    afresh = _Work(None, list(given), [])
    if not (output / INDEX).exists():
        return afresh
    try:
        meta = read_meta(LocalFiles(output))
        here = _sources(ShardIndex.of(LocalFiles(output), meta))
    except ShardError as error:  # not to be overwritten unasked: it may be another's, or of another format
        raise ShardError(error.where, error.found, "delete it or choose another output folder") from None
    differing = _differing(meta["config"], settings)
    if config.append and differing:
        raise ShardError(output, f"was cut with {differing}", "append with equal settings")
    try:
        kept = ShardIndex.open(output)
    except ShardError:  # a shard is missing or cut short
        if config.append:
            raise
        _refuse_loss(output, here, given, config)
        return afresh
    if not config.append and (differing or not here <= set(given.values())):
        _refuse_loss(output, here, given, config)
        return afresh
    told = {Source(entry.file, entry.sha256): entry for entry in kept.refused}
    refused = [entry for source, entry in told.items() if config.append or source in given.values()]
    return _Work(kept, [file for file, source in given.items() if source not in here | set(told)], refused)


def _sources(index: ShardIndex) -> set[Source]:
    return {Source(*source) for source in index.sessions.records("source", "source_sha256")}


def _refuse_loss(output: Path, here: set[Source], given: dict[Path, Source], config: ShardConfig) -> None:
    """Raise ShardError where writing anew would lose sessions: these may be all that is left of them."""
    if config.part and not all(part_of(config.part).has(source.file) for source in here):
        raise ShardError(output, "holds sessions of another part", "give each part an output of its own, then merge")
    lost = sorted({source.file for source in here} - {source.file for source in given.values()})
    if lost:
        some = ", ".join(lost[:3]) + (", ..." if len(lost) > 3 else "")
        raise ShardError(
            output,
            f"holds {len(lost)} sessions that are not given ({some})",
            "give append=true to keep them, or delete it to begin anew",
        )


def _differing(old: dict, settings: CutSettings) -> str:
    new = settings.to_json()
    return ", ".join(f"{name} {old.get(name)} (now {new[name]})" for name in new if old.get(name) != new[name])


def _settings(config: ShardConfig) -> CutSettings:
    """What of the config decides the bytes of the shards; raises ConfigError."""
    if not config.output:
        raise ConfigError("output", "is not given", "give the folder of the shards, output=FOLDER")
    for name in ("segment_s", "halo_s", "shard_mb"):
        if not getattr(config, name) > 0:
            raise ConfigError(name, f"is {getattr(config, name)}", "give a number above 0")
    if config.segment_s + config.halo_s >= LONGEST_S:
        raise ConfigError(
            "segment_s",
            f"with halo_s is {config.segment_s + config.halo_s} s",
            f"stay below {LONGEST_S:.0f} s together",
        )
    unknown = [split for split in config.splits if split not in SPLITS]
    if unknown or not config.splits:
        raise ConfigError("splits", f"is {list(config.splits)}", f"choose among {', '.join(SPLITS)}")
    return CutSettings(
        int(to_microseconds(config.segment_s)),
        int(to_microseconds(config.halo_s)),
        round(config.shard_mb * 1e6),
        tuple(s for s in SPLITS if s in config.splits),
    )


def _stored(config: ShardConfig) -> list[Path]:
    """The stored sessions of this part, in order; raises ShardError where a place holds none."""
    given = [config.sessions] if isinstance(config.sessions, str) else list(config.sessions)
    if not any(given):
        raise ConfigError("sessions", "is not given", "give the folder that `spikeloom prepare` wrote, sessions=FOLDER")
    files = []
    for place in map(Path, given):
        if not place.exists():
            raise ShardError(place, "does not exist", "give the folder that `spikeloom prepare` wrote")
        found = list_sessions(place) if place.is_dir() else [place]
        if not found:
            raise ShardError(place, "holds no stored session", "run `spikeloom prepare` into it first")
        files += found
    if not config.part:
        return files
    part = part_of(config.part)
    return [file for file in files if part.has(file.name)]


def _sha256(file: Path) -> str:
    try:
        with open(file, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ShardError(file, f"cannot be read ({error.strerror})", "prepare the session again") from None
