"""The list of a draft's files, frozen once -> the same files in every later run, and a word of what the draft did since."""

import json
import os
import tempfile
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from data_prep.errors import ConfigError
from data_prep.source import Asset

FORMAT = 1


@dataclass(frozen=True)
class Lock:
    """What a draft held when it was first read."""

    api: str  # address of the instance
    dandiset: str
    frozen: str  # ISO time
    assets: tuple[Asset, ...]  # all of them, whatever was asked for


def lock_path(output: Path, dandiset: str) -> Path:
    """Beside the output, so that it goes where the sessions go and can be kept with them."""
    return output.with_name(f"{output.name}.{dandiset}.lock.json")


def read_lock(path: Path, api: str, dandiset: str) -> Lock | None:
    """The lock, None where there is none; raises ConfigError for one that is not this dandiset's."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}")
        assets = tuple(Asset(**asset) for asset in content["assets"])
        lock = Lock(content["api"], content["dandiset"], content["frozen"], assets)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(path, f"is no lock file ({error})", "delete it to freeze the draft anew") from error
    if (lock.api.rstrip("/"), lock.dandiset) != (api.rstrip("/"), dandiset):
        raise ConfigError(
            path,
            f"freezes {lock.dandiset} of {lock.api}, not {dandiset} of {api}",
            "choose another output or delete it",
        )
    return lock


def freeze(path: Path, api: str, dandiset: str, assets: tuple[Asset, ...]) -> Lock:
    """Write the lock, whole or not at all; where another process was first, its lock counts. Raises ConfigError."""
    content = {"format": FORMAT, "api": api, "dandiset": dandiset, "version": "draft"}
    content |= {"frozen": datetime.now(UTC).isoformat(timespec="seconds"), "assets": [asdict(one) for one in assets]}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", encoding="utf-8") as stream:
            json.dump(content, stream, indent=1)
            stream.flush()
            os.fsync(stream.fileno())
            os.chmod(stream.name, 0o644)
            try:
                os.link(stream.name, path)  # unlike a rename, this never replaces what another process froze
            except FileExistsError:
                pass
    except OSError as error:
        raise ConfigError(path, f"cannot be written ({error.strerror})", "choose another output") from error
    lock = read_lock(path, api, dandiset)
    if lock is None:
        raise ConfigError(path, "vanished while it was written", "run it again")
    return lock


def moved_on(lock: Lock, now: tuple[Asset, ...]) -> list[str]:
    """One line each for files replaced in, removed from and added to the draft since it was frozen."""
    then, today = {one.path: one for one in lock.assets}, {one.path: one for one in now}
    changes = {
        "replaced": [path for path in then if path in today and today[path].id != then[path].id],
        "removed": [path for path in then if path not in today],
        "added": [path for path in today if path not in then],
    }
    kept = {
        "replaced": "the frozen ones are read",
        "removed": "they are read all the same",
        "added": "they are not read",
    }
    return [
        f"the draft of {lock.dandiset} has moved on since {lock.frozen}: {len(paths)} {kind} "
        f"({', '.join(paths[:3])}{', ...' if len(paths) > 3 else ''}), {kept[kind]}"
        for kind, paths in changes.items()
        if paths
    ]
