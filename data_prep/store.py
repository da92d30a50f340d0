"""Session <-> one HDF5 file: written under a hidden name and renamed when whole, read without pickle."""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO

import h5py
import numpy as np

from data_prep.errors import SessionError
from data_prep.session import Intervals, Session, Signal, Spikes, Units

FORMAT = 1
SUFFIX = ".h5"
_LONGEST_NAME = 160  # of 255 that file systems allow: hidden names add to it


@dataclass(frozen=True)
class Stored:
    """What a stored session says of itself without its arrays being read."""

    path: Path
    id: str
    units: int
    spikes: int
    seconds: float  # of its domain
    provenance: dict[str, str]


def session_path(session_id: str, folder: Path) -> Path:
    """Where a session of that id is stored; the name cannot leave the folder, and a long id is cut to a digest of it."""
    name = re.sub(r"[^A-Za-z0-9._+-]", "-", session_id.replace("/", "__")).lstrip(".-")
    if len(name) > _LONGEST_NAME:
        name = f"{name[: _LONGEST_NAME - 17]}-{hashlib.sha256(session_id.encode()).hexdigest()[:16]}"
    return Path(folder) / (name + SUFFIX)


def list_sessions(folder: Path) -> list[Path]:
    """Stored sessions of a folder, by name; half-written ones have a hidden name and are not among them."""
    return sorted(path for path in Path(folder).glob(f"*{SUFFIX}") if not path.name.startswith("."))


def save_session(session: Session, folder: Path) -> Path:
    """Store a session whole or not at all; raises SessionError where it cannot be written or another file's
    session has the same id."""
    path = session_path(session.id, folder)
    whole = atomic(path, session.id, check=lambda: _refuse_namesake(path, session))
    with whole as stream, h5py.File(stream, "w") as file:
        _write(file, session)
    return path


@contextlib.contextmanager
def atomic(path: Path, where: str, check: Callable[[], None] = lambda: None) -> Iterator[IO[bytes]]:
    """A stream that becomes `path` when the block ends well and leaves nothing when it does not.

    `check` runs just before that and may raise. A `path` that comes into being between the two is checked again.
    """
    hidden = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(hidden, "w+b") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        fresh = not path.exists()
        check()
        if not (fresh and _linked(hidden, path)):
            check()
            os.replace(hidden, path)
    except (OSError, RuntimeError) as error:  # h5py turns some failed writes into RuntimeError
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        raise SessionError(
            where, f"cannot be written to {path.parent} ({reason})", "make room there, or choose another output"
        ) from error
    finally:
        hidden.unlink(missing_ok=True)


def _linked(hidden: Path, path: Path) -> bool:
    """Give the file its name unless another process was faster; False also where there are no hard links."""
    try:
        os.link(hidden, path)
    except OSError:
        return False
    return True


def _refuse_namesake(path: Path, session: Session) -> None:
    """Two files must not claim one id; the same file, or an equal one under another name, may replace itself."""
    if not path.exists():
        return
    try:
        other, own = describe(path).provenance, session.provenance
    except SessionError:
        return  # not a session that could be read: replacing it loses nothing
    if other.get("file") != own.get("file") and other.get("digest") != own.get("digest"):
        raise SessionError(
            session.id,
            f"already stored from {other.get('file')}",
            f"name sessions apart (session: file in the recipe), or remove {path.name}",
        )


def _write(file: h5py.File, session: Session) -> None:
    _write_spikes(file, session.spikes, len(session.units))
    arrays = {}
    for name, signal in session.signals.items():
        _write_times(file, session, name)
        arrays |= {f"signals/{name}/{part}": getattr(signal, part) for part in ("value", "valid")}
    intervals = {
        "trials": session.trials,
        "domain": session.domain,
        **{f"splits/{name}": split for name, split in session.splits.items()},
        **{f"phases/{name}": phase for name, phase in session.phases.items()},
    }
    arrays |= {name: np.stack([part.start, part.stop]) for name, part in intervals.items()}
    arrays |= {f"trial_columns/{k}": values for k, values in enumerate(session.trial_columns.values())}
    for name, values in arrays.items():
        file[name] = np.char.encode(values, "utf-8") if values.dtype.kind == "U" else values
    header = {
        "id": session.id,
        "dandiset": session.dandiset,
        "subject": session.subject,
        "paradigm": session.paradigm,
        "units": asdict(session.units),
        "signals": {name: [s.unit_of_measure, s.derived_from] for name, s in session.signals.items()},
        "trial_columns": list(session.trial_columns),
        "phases": list(session.phases),
        "splits": list(session.splits),
        "loss_weights": session.loss_weights,
        "eval_phases": session.eval_phases,
        "target_scale": session.target_scale,
        "provenance": session.provenance,
        "totals": {"units": len(session.units), "spikes": len(session.spikes), "seconds": session.domain.seconds},
    }
    file["header"] = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
    file.attrs["spikeloom_session"] = FORMAT


def _write_times(file: h5py.File, session: Session, name: str) -> None:
    """Sample times of a signal; those of an earlier one by a second name where they are the same."""
    time = session.signals[name].time
    for earlier, signal in session.signals.items():
        if earlier == name:
            file[f"signals/{name}/time"] = time
            return
        if np.array_equal(signal.time, time):
            file[f"signals/{name}/time"] = file[f"signals/{earlier}/time"]
            return


def _write_spikes(file: h5py.File, spikes: Spikes, units: int) -> None:
    """Both arrays contiguous, part by part: those of a large session are never whole in memory."""
    time = file.create_dataset("spikes/time", (len(spikes),), np.float64)
    unit = file.create_dataset("spikes/unit", (len(spikes),), np.uint16 if units <= 1 << 16 else np.uint32)
    done = 0
    for times, units in spikes.parts():
        here = slice(done, done + len(times))
        time[here], unit[here], done = times, units.astype(unit.dtype), here.stop


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """What goes wrong in a stored session inside, as a SessionError."""
    try:
        yield
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else "damaged or truncated"
        raise SessionError(path.name, reason, "run prepare again") from error


def _header(file: h5py.File, path: Path) -> dict:
    version = file.attrs.get("spikeloom_session")
    if version is None:
        raise SessionError(path.name, "not a stored session", "run prepare again into an empty folder")
    if version != FORMAT:
        raise SessionError(path.name, f"stored in format {version}, this version reads {FORMAT}", "run prepare again")
    return json.loads(file["header"][:].tobytes())


def describe(path: Path) -> Stored:
    """Id, totals and provenance of a stored session; raises SessionError where it is damaged or of another format."""
    path = Path(path)
    with _told(path), h5py.File(path, "r") as file:
        header = _header(file, path)
        totals = header["totals"]
        return Stored(path, header["id"], totals["units"], totals["spikes"], totals["seconds"], header["provenance"])


def load_session(path: Path) -> Session:
    """A stored session; raises SessionError where it is missing, damaged or of another format."""
    with opened_session(path) as session:
        time, unit = session.spikes.time[:], session.spikes.unit[:]
        return replace(session, spikes=Spikes(time, unit.astype(np.uint32)))


@contextlib.contextmanager
def opened_session(path: Path) -> Iterator[Session]:
    """A stored session whose spikes stay on disk: they are read when they are sliced, while the context is open.

    Raises SessionError where it is missing, damaged or of another format, also when spikes are read.
    """
    path = Path(path)
    with contextlib.ExitStack() as stack:
        with _told(path):
            file = stack.enter_context(h5py.File(path, "r"))
            session = _session(file, _header(file, path), path)
        yield session


class _StoredArray:
    """A one-dimensional array of a stored session; a slice of it, or an item, is read when asked for."""

    def __init__(self, dataset: h5py.Dataset, path: Path):
        self._dataset, self._path = dataset, path
        self.dtype, self.shape = dataset.dtype, dataset.shape

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, at):
        with _told(self._path):
            return self._dataset[at]


def _session(file: h5py.File, header: dict, path: Path) -> Session:
    def intervals(name: str) -> Intervals:
        start, stop = file[name][:]
        return Intervals(start, stop)

    signals = {
        name: Signal(
            name,
            *(file[f"signals/{name}/{part}"][:] for part in ("time", "value")),
            unit,
            file[f"signals/{name}/valid"][:],
            derived,
        )
        for name, (unit, derived) in header["signals"].items()
    }
    columns = {name: file[f"trial_columns/{k}"][:] for k, name in enumerate(header["trial_columns"])}
    return Session(
        id=header["id"],
        dandiset=header["dandiset"],
        subject=header["subject"],
        paradigm=header["paradigm"],
        units=Units(**{key: tuple(values) for key, values in header["units"].items()}),
        spikes=Spikes(_StoredArray(file["spikes/time"], path), _StoredArray(file["spikes/unit"], path)),
        signals=signals,
        trials=intervals("trials"),
        domain=intervals("domain"),
        trial_columns={n: np.char.decode(v, "utf-8") if v.dtype.kind == "S" else v for n, v in columns.items()},
        phases={name: intervals(f"phases/{name}") for name in header["phases"]},
        splits={name: intervals(f"splits/{name}") for name in header["splits"]},
        loss_weights=header["loss_weights"],
        eval_phases=tuple(header["eval_phases"]),
        target_scale=header["target_scale"],
        provenance=header["provenance"],
    )
