"""Stage 2: stored sessions -> a shard root; bad sessions are told and left out, a finished root is kept."""

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from data_prep.errors import MendableError
from data_prep.session import SPLITS
from data_prep.store import list_sessions, load_session
from sharding.errors import ConfigError, ShardError
from sharding.index import Refused, ShardIndex, read_meta
from sharding.root import CutSettings, RootWriter, Source
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


def shard(config: ShardConfig, progress: Progress = lambda done, total, name: None) -> ShardIndex:
    """Write the stored sessions as shards and return their index; `index.refused` tells what was left out and why.

    A complete root of the same sessions and settings is kept as it is; what another run left behind is removed first.
    Raises ConfigError for settings that make no sense, ShardError where nothing could be written.
    """
    settings, output, files = _settings(config), Path(config.output), _stored(config)
    sources = [Source(file.name, _sha256(file)) for file in files]
    if _is_complete(output, settings, sources):
        return ShardIndex.open(output)
    refused = []
    with RootWriter(output, settings) as root:
        for number, (file, source) in enumerate(zip(files, sources)):
            progress(number, len(files), file.name)
            try:
                session = load_session(file)
                segments = root.cut(session)
            except MendableError as error:
                refused.append(Refused(file.name, str(error)))
            else:
                root.add(session, segments, source)
        if len(refused) == len(files):
            raise ShardError(output, f"no session could be sharded: {refused[0].message}", "prepare the sessions again")
        root.finish(sources, refused)
    progress(len(files), len(files), "")
    return ShardIndex.open(output)


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
    """The stored sessions, in order; raises ShardError where there is none."""
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
    return files


def _is_complete(output: Path, settings: CutSettings, sources: list[Source]) -> bool:
    """Whether a whole root of just these sessions and settings stands there; raises for the index of something else."""
    if not (output / "index.json").exists():
        return False
    try:
        meta = read_meta(output)
    except ShardError as error:  # not to be overwritten unasked: it may be another's, or of a newer format
        raise ShardError(error.where, error.found, "delete it or choose another output folder") from None
    if meta["config"] != settings.to_json() or meta["sources"] != [asdict(source) for source in sources]:
        return False
    try:
        ShardIndex.open(output)
    except ShardError:  # a file is missing or cut short: write all again
        return False
    return True


def _sha256(file: Path) -> str:
    try:
        with open(file, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ShardError(file, f"cannot be read ({error.strerror})", "prepare the session again") from None
