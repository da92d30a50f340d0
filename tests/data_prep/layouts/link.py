"""Small files in the layout of dandiset 001201 (LINK): counts of threshold crossings, no units table; the truth they hold.

Bins of 20 ms, stamped with the mean of their milliseconds. Of 120 s the trials between 60 and 66 s were taken out, as LINK
does with trials of other runs, so that there is a gap.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from pynwb import NWBFile, TimeSeries
from pynwb.ecephys import ElectricalSeries
from pynwb.file import Subject

from tests.data_prep.layouts.reaching import add_trials, references, save

BIN, CHANNELS, TRIAL, TRIALS = 0.02, 12, 2.0, 60
TAKEN_OUT = (30, 31, 32)  # trials that are not in the file
START = 100.0  # s: the experiment's clock does not begin with the run


def truth() -> dict[str, np.ndarray]:
    """time (N,) s, the middle of the bin; position and velocity (N, 2): index, then middle-ring-small; counts (N, CHANNELS).

    Position is flexion from 0 to 1, velocity its change in one bin.
    """
    random = np.random.default_rng(1)
    bins = np.arange(round(TRIAL * TRIALS / BIN))
    kept = ~np.isin(bins * BIN // TRIAL, TAKEN_OUT)
    time = (START + bins * BIN + 0.0095)[kept]
    phase = np.stack([1.1 * time, 1.7 * time + 1], axis=1)
    velocity = 0.4 * np.cos(phase) * [1.1, 1.7] * BIN
    drive = np.stack([np.cos(k) * velocity[:, 0] + np.sin(k) * velocity[:, 1] for k in range(CHANNELS)], axis=1)
    counts = random.poisson(np.clip(0.5 + 30 * drive, 0.02, None))
    counts[:, -1] = 0  # a dead channel
    return {"time": time, "position": 0.5 + 0.4 * np.sin(phase), "velocity": velocity, "counts": counts}


def write(path: Path, *, old: bool = False, style: str = "CO", unit: str = "flexion units per time bin") -> Path:
    """A file as it is now (everything in analysis), or as the first ones were (processing modules, fingers named mrp)."""
    true, fingers = truth(), ("index", "mrp" if old else "mrs")
    rows = "\n".join(f"{k}      {style}" for k in range(TRIALS))  # LINK's writer put a whole column into its identifier
    file = NWBFile(
        session_description=f"Neural and behavioral data for target style {style}",
        identifier=f"2021-10-15_{style if old else rows}_nwb",
        session_start_time=datetime(2021, 10, 15, tzinfo=UTC),
        subject=Subject(subject_id="Monkey N", species="Macaca mulatta", sex="M", description="Monkey N"),
    )
    region = _electrodes(file, old)
    series = []
    for column, finger in enumerate(fingers):
        for kind, stated in (("position", "flexion units"), ("velocity", unit)):
            value = true[kind][:, column : column + 1]
            series.append(TimeSeries(name=f"{finger}_{kind}", data=value, unit=stated, timestamps=true["time"]))
    power = 5.0 + true["counts"]
    if old:
        about = {"unit": "n.a.", "timestamps": true["time"]}
        neural = [TimeSeries(name="SpikingBandPower", data=power, **about)]
        neural.append(TimeSeries(name="ThresholdCrossings", data=true["counts"], **about))
        behaviour = file.create_processing_module(name="behavior", description="Processed behavioral data")
        ephys = file.create_processing_module(name="ecephys", description="Binned (20ms) and processed neural data")
        for module, members in ((behaviour, series), (ephys, neural)):
            for one in members:
                module.add(one)
    else:
        about = {"electrodes": region, "timestamps": true["time"]}
        neural = [ElectricalSeries(name="SpikingBandPower", data=power * 0.25, conversion=1e-6, **about)]
        neural.append(ElectricalSeries(name="ThresholdCrossings", data=true["counts"], **about))
        for one in (*series, *neural):
            file.add_analysis(one)
    _trials(file, [*series, *neural], true["time"], fingers[1], style)
    return save(file, path)


def _electrodes(file: NWBFile, old: bool):
    place = "Hand area of primary motor cortex" if old else "Hand area of M1"
    groups = []
    for name in ("Utah Array",) if old else ("lateral", "medial"):
        device = file.create_device(name=name)
        groups.append(file.create_electrode_group(name=name, description=name, location=place, device=device))
    for k in range(CHANNELS):
        file.add_electrode(id=k, location=place, filtering="", group=groups[k % len(groups)])
    return file.create_electrode_table_region(region=list(range(CHANNELS)), description="All recorded contacts")


def _trials(file: NWBFile, series: list, time: np.ndarray, finger: str, style: str) -> None:
    numbers = np.array([k for k in range(TRIALS) if k not in TAKEN_OUT])
    first = np.searchsorted(time, START + numbers * TRIAL)
    last = np.searchsorted(time, START + (numbers + 1) * TRIAL) - 1
    columns = {
        "start_time": time[first],
        "stop_time": time[last],  # LINK: the time of the last bin
        "trial_number": numbers + 1,
        "trial_count": last - first + 1,
        "run_id": np.ones(len(numbers), dtype=np.int64),
        "index_target_position": np.linspace(0.2, 0.8, len(numbers)),
        f"{finger}_target_position": np.linspace(0.8, 0.2, len(numbers)),
        "target_style": [style] * len(numbers),
        "trial_timeout": np.full(len(numbers), 5000),  # ms
    }
    spans = [[(int(a), int(b - a + 1))] * len(series) for a, b in zip(first, last)]
    add_trials(file, columns, references(series, spans))


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "link": write,
    "link_old": lambda path: write(path, old=True),
}
