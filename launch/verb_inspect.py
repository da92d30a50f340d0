"""A stored session, or an NWB file and its recipe -> tables of its facts and a picture."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.assembly import opened_session
from data_prep.errors import ConfigError
from data_prep.recipe import Recipe
from data_prep.session import SPLITS, Session, Signal
from data_prep.store import atomic, load_session
from launch.figures_session import session_png
from launch.figures_session_facts import count_in_domain
from launch.table import print_table


@dataclass(frozen=True)
class InspectConfig:
    """What to look at, and where the picture goes."""

    path: str = ""
    "A stored session (.h5), or an NWB file together with `recipe`."
    recipe: Recipe | None = None
    "Recipe that reads the NWB file (a file of configs/dandisets, or one that discover wrote)."
    output: str = ""
    "PNG file to write; empty: the name of the session's file, in this folder."


def picture_path(config: InspectConfig) -> Path:
    """Where the picture is written."""
    return Path(config.output or Path(config.path).stem + ".png")


def inspect(config: InspectConfig) -> Path:
    """Print what there is to know of a session and save its picture; gives the picture's path."""
    path, picture = Path(config.path), picture_path(config)
    if picture.suffix != ".png":
        raise ConfigError("output", f"{picture} is no PNG file", "give a name that ends in .png")
    if not picture.parent.is_dir():
        raise ConfigError("output", f"there is no folder {picture.parent}", "make it first")
    if config.recipe is None and path.suffix != ".h5":
        do = "say recipe=FILE.yaml (spikeloom discover proposes one), or give a stored session"
        raise ConfigError(config.path, "not a stored session (.h5)", do)
    if config.recipe is None:
        _shown(load_session(path), picture)
    else:
        with opened_session(path, config.recipe) as session:
            _shown(session, picture)
    return picture


def _shown(session: Session, picture: Path) -> None:
    show_facts(session)
    with atomic(picture, picture.name) as stream:
        stream.write(session_png(session))
    print(f"picture: {picture}")


def show_facts(session: Session) -> None:
    """Tables of a session: what it is, units, rates, signals, trials, phases, splits, where it came from, notes."""
    count = count_in_domain(session)
    first, last = float(session.domain.start.min()), float(session.domain.stop.max())
    good = session.trial_columns.get("is_valid")
    silent = int(np.sum(count == 0))
    print_table(
        f"session {session.id}",
        ["", ""],
        [
            ["subject", session.subject],
            ["paradigm", session.paradigm],
            ["units", len(session.units)],
            ["spikes", len(session.spikes)],
            ["spikes in the domain", int(count.sum())],
            ["silent units", silent],
            ["domain", f"{session.domain.seconds / 3600:.3f} h, {_stretches(len(session.domain))}"],
            ["from, to (s)", f"{round(first, 3) + 0.0:.3f}, {last:.3f}"],
            ["trials", len(session.trials)],
            ["good trials", None if good is None else int(np.sum(good))],
            ["trial columns", ", ".join(session.trial_columns)],
        ],
    )
    _show_units(session, count)
    print_table(
        "signals",
        ["signal", "dims", "unit", "Hz", "samples", "valid (%)", "median", "99 %", "99.9 %", "from"],
        [_signal_row(signal) for signal in session.signals.values()],
    )
    print_table(
        "phases",
        ["phase", "intervals", "minutes", "loss weight", "evaluated"],
        [_phase_row(session, name) for name in session.phases],
    )
    print_table(
        "splits",
        ["split", "intervals", "minutes", "share (%)"],
        [_split_row(session, name) for name in SPLITS],
    )
    notes = session.provenance.get("notes", "").splitlines()
    told = [[key.replace("_", " "), value] for key, value in session.provenance.items() if value and key != "notes"]
    print_table("where it came from", ["", ""], told)
    if notes:
        print_table("notes", [""], [[note] for note in notes])


def _stretches(count: int) -> str:
    return f"{count:,} stretches" if count != 1 else "1 stretch"


def _show_units(session: Session, count: np.ndarray) -> None:
    """Units by region and quality, with quantiles of their rates inside the domain."""
    units, rate = session.units, count / max(session.domain.seconds, 1e-9)
    kinds = sorted({(region, quality) for region, quality in zip(units.region, units.quality)})
    kinds_of = list(zip(units.region, units.quality))
    flags = {name: np.array(getattr(units, name) or [False] * len(units)) for name in ("held_out", "missing")}
    rows = []
    for kind in [*kinds, None] if len(kinds) > 1 else kinds:
        mine = np.array([kind in (None, other) for other in kinds_of])
        rows.append(
            [
                *(kind or ("all", "")),
                int(mine.sum()),
                *(int(flag[mine].sum()) or None for flag in flags.values()),
                int(np.sum(count[mine] == 0)) or None,
                *(float(value) for value in np.percentile(rate[mine], (5, 25, 50, 75, 95))),
            ]
        )
    columns = ["region", "quality", "units", "held out", "missing", "silent"]
    print_table("units, and quantiles of their rates (Hz)", [*columns, "5 %", "25 %", "50 %", "75 %", "95 %"], rows)


def _signal_row(signal: Signal) -> list:
    norm = np.sqrt(np.sum(signal.value[signal.valid].astype(np.float64) ** 2, axis=1))
    sizes = [float(value) for value in np.percentile(norm, (50, 99, 99.9))] if len(norm) else [None] * 3
    hz = float(1 / np.median(np.diff(signal.time))) if len(signal.time) > 1 else None
    return [
        signal.name,
        signal.value.shape[1],
        signal.unit_of_measure,
        hz,
        len(signal.time),
        100 * float(signal.valid.mean()),
        *sizes,
        signal.derived_from,
    ]


def _phase_row(session: Session, name: str) -> list:
    phase = session.phases[name]
    judged = not session.eval_phases or name in session.eval_phases
    weight = session.loss_weights.get(name, 1.0)
    return [name, len(phase), phase.seconds / 60, weight, "yes" if judged else "no"]


def _split_row(session: Session, name: str) -> list:
    split = session.splits[name]
    return [name, len(split), split.seconds / 60, 100 * split.seconds / max(session.domain.seconds, 1e-9)]
