"""A path -> tables for a person: a stored session, a folder of them, a shard root, a checkpoint or a run."""

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.errors import ConfigError, DataError, MendableError
from data_prep.prepare import REFUSED, PrepareReport
from data_prep.session import Session
from data_prep.store import list_sessions, load_session
from launch.record import Results, read_run
from launch.show_shards import show_shards
from launch.submit_state import show_submitted, submitted
from launch.table import as_text, print_table, print_texts
from sharding.index import ShardIndex

RUN_FILES = ("results.json", "provenance.json", "metrics.csv", "config.yaml")
MOST_ROWS = 60  # more good files than this are told as a sum
KINDS = "a stored session (.h5), a folder of them, a shard root (or its URL), a checkpoint folder or a run folder"


@dataclass(frozen=True)
class ShowConfig:
    path: str
    "What to look at: a stored session (.h5), a folder of them, a shard root (or its URL), a checkpoint or run folder."
    sessions: bool = False
    "Give every session of a shard root a row, however many there are."


def show(config: ShowConfig) -> None:
    """Prints what a path holds; raises DataError for what is none of ours or is damaged."""
    if "://" in config.path:
        index = ShardIndex.open(config.path)
        show_shards(index, index.root, config.sessions)
        return
    path = Path(config.path)
    if not path.exists():
        raise ConfigError(path, "no such file or folder", f"give {KINDS}")
    if path.is_file():
        show_file(path)
    elif (path / "index.json").exists():
        show_shards(ShardIndex.open(path), path, config.sessions)
    elif (path / "checkpoint.json").exists():
        show_checkpoint(path)
    elif any((path / name).exists() for name in RUN_FILES) or submitted(path):
        if any((path / name).exists() for name in RUN_FILES):
            show_run(path)
        for folder in submitted(path):
            show_submitted(folder)
    elif list_sessions(path):
        show_sessions(path)
    else:
        raise DataError(path, "it holds nothing of Spikeloom's", f"give {KINDS}")


def show_file(path: Path) -> None:
    """One stored session; any other file is refused with what to do about it."""
    if path.suffix == ".nwb":
        do = f"see what a recipe finds in it: spikeloom prepare RECIPE source={path} output=sessions --dry-run"
        raise DataError(path, "an NWB file, not yet a session", do)
    if path.suffix != ".h5":
        raise DataError(path, "not a stored session", f"give {KINDS}")
    show_session(load_session(path))


def show_session(session: Session) -> None:
    """Facts, units by region, signals and splits of one session."""
    minutes, rate = session.domain.seconds / 60, len(session.spikes) / max(session.domain.seconds, 1e-9)
    print_table(
        f"session {session.id}",
        ["", ""],
        [
            ["subject", session.subject],
            ["paradigm", session.paradigm],
            ["recorded (min)", minutes],
            ["units", len(session.units)],
            ["spikes", len(session.spikes)],
            ["rate of a unit (Hz)", rate / max(len(session.units), 1)],
            ["trials", len(session.trials)],
            *([key.replace("_", " "), value] for key, value in session.provenance.items() if value),
        ],
    )
    regions, counts = np.unique(np.array(session.units.region, dtype=str), return_counts=True)
    print_table("units", ["region", "units"], list(zip(regions.tolist(), counts.tolist())))
    print_table(
        "signals",
        ["signal", "dims", "unit", "Hz", "samples", "valid (%)", "lowest", "highest", "from"],
        [_signal_row(signal) for signal in session.signals.values()],
    )
    print_table(
        "splits",
        ["split", "intervals", "minutes"],
        [[name, len(part), part.seconds / 60] for name, part in session.splits.items()],
    )
    print_table(
        "phases",
        ["phase", "intervals", "minutes", "loss weight", "evaluated"],
        [
            [
                name,
                len(part),
                part.seconds / 60,
                session.loss_weights.get(name, 1.0),
                "yes" if not session.eval_phases or name in session.eval_phases else "no",
            ]
            for name, part in session.phases.items()
        ],
    )


def _signal_row(signal) -> list:
    value = signal.value[signal.valid]
    low, high = (float(value.min()), float(value.max())) if value.size else (None, None)
    hz = float(1 / np.median(np.diff(signal.time))) if len(signal.time) > 1 else None
    share = 100 * float(signal.valid.mean()) if len(signal.valid) else None
    return [
        signal.name,
        signal.value.shape[1],
        signal.unit_of_measure,
        hz,
        len(signal.time),
        share,
        low,
        high,
        signal.derived_from,
    ]


def show_sessions(folder: Path) -> None:
    """A row for each stored session of a folder; one that is damaged is told in its row, the others go on."""
    rows = []
    for path in list_sessions(folder):
        try:
            session = load_session(path)
        except MendableError as error:
            rows.append([path.name, None, None, None, None, None, f"{error.found}; {error.do}"])
            continue
        rows.append(
            [
                session.id,
                session.subject,
                len(session.units),
                len(session.spikes),
                session.domain.seconds / 60,
                ", ".join(session.signals),
                "",
            ]
        )
    print_table(
        f"{len(rows)} sessions in {folder}",
        ["session", "subject", "units", "spikes", "minutes", "signals", "refused"],
        rows,
    )


def show_prepared(report: PrepareReport) -> None:
    """What `prepare` read, kept from before, and at last what it refused, and why; many good files only as their sum."""
    good = [row for row in report.rows if row.status != REFUSED]
    if len(good) > MOST_ROWS:
        print(f"{len(good)} files read or kept, each a row in {Path(report.output) / 'report.json'}")
    elif good:
        _show_good(good, report.output)
    if report.refused:
        why = [(row.file, row.message.removeprefix(f"{row.file}: ")) for row in report.refused]
        print_texts("refused", ("file", "why"), why)
    totals = report.by_recipe()
    if len(totals) > 1:
        names = ("sessions", "units", "spikes", "hours", "read", "kept", "refused")
        sums = [(name, *(getattr(total, key) for key in names)) for name, total in totals.items()]
        print_table("recipes", ["recipe", *names], sums)
    print("\n".join(report.last_lines()))


def _show_good(rows: list, output: str) -> None:
    """A row each; on a terminal notes stand below, and files are left out where they have no room beside sessions."""
    columns = ["file", "status", "session", "units", "spikes", "hours", "note"]
    cells = [[r.file, r.status, r.session, r.units, r.spikes, round(r.seconds / 3600, 3), r.message] for r in rows]
    drawn = sys.stdout.isatty()
    last = len(columns) - drawn
    needed = sum(3 + max(len(as_text(row[n])) for row in [columns, *cells]) for n in range(last))
    first = 1 if drawn and needed >= shutil.get_terminal_size().columns else 0
    print_table(f"sessions in {output}", columns[first:last], [row[first:last] for row in cells])
    notes = [(row.session, row.message) for row in rows if row.message]
    if drawn and notes:
        print_texts("notes", ("session", "note"), notes)


def show_checkpoint(folder: Path) -> None:
    """What a checkpoint decodes, from how many units and sessions, and its size."""
    from pretrain.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(folder)
    numbers = sum(tensor.numel() for tensor in checkpoint.weights.values())
    parts = {part: checkpoint.config.get(part) or {} for part in ("model", "task")}
    print_table(
        f"checkpoint {folder}",
        ["", ""],
        [
            ["format", checkpoint.format],
            ["commit", checkpoint.commit],
            ["model", parts["model"].get("name")],
            ["task", parts["task"].get("name")],
            ["signal", parts["task"].get("signal")],
            ["window (s)", checkpoint.config.get("window_s")],
            ["parameters", numbers],
            ["units", len(checkpoint.units) - 1],
            ["sessions", len(checkpoint.sessions) - 1],
        ],
    )
    print_table("sessions", ["session"], [[name] for name in checkpoint.sessions.ids])


def show_run(folder) -> None:
    """How far a run came, what went wrong in it, and its test scores where it was evaluated."""
    record = read_run(folder)
    told = record.provenance
    rows = [["started", told.get("started")], ["finished", told.get("finished")]]
    if told.get("resumed"):
        rows.append(["continued", f"{len(told['resumed'])} times, the last at {told['resumed'][-1]}"])
    if told.get("ranks"):
        rows.append(["ranks", f"{told['ranks']}, {told['strategy']}"])
    for label, curve in record.curves.items():
        rows += _curve_rows(curve, "" if len(record.curves) == 1 else f"{label}: ")
    saves = sorted(Path(folder).glob("saves/step-*.safetensors"))
    if saves and not told.get("finished"):
        rows.append(["newest save", f"step {int(saves[-1].stem.rpartition('-')[2])}"])
    print_table(f"run {folder}", ["", ""], [row for row in rows if row[1] is not None])
    for alarm in _alarms(Path(folder)):
        print(f"alarm at step {alarm['step']}: {alarm['line']}")
    if record.results is not None:
        show_results(record.results)


def _alarms(folder: Path) -> list[dict]:
    """Those of a run, as they stand in alarms.jsonl; none where it cannot be read."""
    try:
        return [json.loads(line) for line in (folder / "alarms.jsonl").read_text().splitlines()]
    except (OSError, ValueError):
        return []


def _curve_rows(curve, label: str) -> list[list]:
    rows = [[f"{label}steps", int(np.nanmax(curve.columns["step"]))]]
    loss, r2 = curve.known("train/loss"), curve.known("valid/r2")
    if loss is not None:
        rows.append([f"{label}last training loss", float(loss[0][-1])])
    if r2 is not None:
        rows.append([f"{label}best validation R2", float(np.max(r2[0]))])
    return rows


def show_results(results: Results) -> None:
    """R2 of every model on every session of the evaluated split, and the mean."""
    rows = [
        [session, *(scores[model].r2 if model in scores else None for model in results.models)]
        for session, scores in results.scores.items()
    ]
    rows.append(["mean", *(results.mean.get(model) for model in results.models)])
    print_table(f"R2 of {results.signal} on the {results.split} split", ["session", *results.models], rows)
