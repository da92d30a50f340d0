"""One file in which everything differs at once: sources, places, rates, units of measure and kinds of columns."""

import numpy as np
from pynwb import NWBFile, TimeSeries
from pynwb.behavior import BehavioralTimeSeries, SpatialSeries
from pynwb.epoch import TimeIntervals

RATES = (50.0, 100.0, 250.0, 1000.0)
LABELS = ["1001", "1002", "2001", "2002", "3001"]
QUALITY = ["good", "MUA", "good", "unsorted", ""]


def wave(time: np.ndarray) -> np.ndarray:
    """A circle of radius 10, once in 2 pi seconds: (n, 2)."""
    return 10 * np.stack([np.cos(time), np.sin(time)], axis=1)


def counted() -> np.ndarray:
    """Threshold crossings in 250 bins of 0.4 s on three channels."""
    return np.random.default_rng(5).integers(0, 4, size=(250, 3))


def add_everything(file: NWBFile) -> None:
    """Units with labels and qualities, one motion at several places, rates and units, trials of every kind."""
    file.add_unit_column(name="label", description="leading digit is the array", data=LABELS)
    file.add_unit_column(name="quality", description="of the sorting", data=QUALITY)
    behavior, flat = file.processing["behavior"], np.arange(2000) / 20
    behavior.add(TimeSeries(name="flat_vel", data=wave(flat), unit="cm/s", rate=20.0))
    behavior["Position"].add_spatial_series(
        SpatialSeries(name="finger_pos", data=np.stack([np.full(2000, k) for k in (3.0, -1.0, -2.0)], axis=1), rate=20.0,
                      reference_frame="z, -x, -y", unit="cm")
    )  # fmt: skip
    behavior.add(
        BehavioralTimeSeries(
            time_series=TimeSeries(name="deep_vel", data=wave(flat), unit="cm/s", rate=20.0),
            name="BehavioralTimeSeries",
        )
    )
    file.add_acquisition(TimeSeries(name="raw_vel", data=wave(flat), unit="cm/s", rate=20.0))
    file.add_analysis(TimeSeries(name="late_vel", data=wave(flat), unit="cm/s", rate=20.0))
    for hz in RATES:
        time = np.arange(2 * hz) / hz  # two seconds suffice
        file.add_acquisition(TimeSeries(name=f"rated_{hz:g}", data=wave(time), unit="m/s", rate=hz, starting_time=50.0))
        file.add_acquisition(TimeSeries(name=f"timed_{hz:g}", data=wave(time), unit="m/s", timestamps=50.0 + time))
    for name, unit in (
        ("untold", "unknown"),
        ("blank", "n/a"),
        ("wrong", "m/s"),
        ("flexion", "flexion"),
        ("deg", "deg"),
    ):
        file.add_acquisition(TimeSeries(name=name, data=wave(flat), unit=unit, rate=20.0))
    scaled = {"conversion": 1e-6, "offset": 0.5}
    file.add_acquisition(TimeSeries(name="scaled", data=wave(flat), unit="V", rate=20.0, **scaled))
    file.add_acquisition(TimeSeries(name="ThresholdCrossings", data=counted(), unit="count", rate=2.5))
    mask = TimeSeries(name="eval_mask", data=(flat >= 30) & (flat < 60), unit="bool", rate=20.0)
    file.add_acquisition(mask)
    numbers = np.arange(48)
    trial_columns = {
        "delay_ms": 300.0 + numbers,
        "when": np.where(numbers % 4 == 0, np.nan, 2.0 * numbers + 0.7),
        "flag": numbers % 2 == 0,
        "kind": [b"centre" if k % 3 else b"corner" for k in numbers.tolist()],
        "target": np.stack([numbers * 1.0, -numbers * 1.0], axis=1),
    }
    for name, data in trial_columns.items():
        file.add_trial_column(name=name, description=name, data=data)
    cues = [[2.0 * k + 0.2 * i for i in range(k % 4)] for k in numbers.tolist()]
    ends = np.cumsum([len(row) for row in cues])
    file.add_trial_column(name="cues", description="s", data=[cue for row in cues for cue in row], index=ends)
    file.add_invalid_time_interval(start_time=20.0, stop_time=25.0)
    odd = TimeIntervals(name="blocks", description="runs")
    odd.add_column(name="run", description="number")
    odd.add_row(start_time=10.0, stop_time=70.0, run=1)
    odd.add_row(start_time=70.0, stop_time=90.0, run=2)
    file.add_time_intervals(odd)
