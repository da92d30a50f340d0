"""Small files in the layout of Flint, Lindberg, Jordan, Miller and Slutzky (MATLAB 5), and the truth they hold."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.io

HZ, NEURONS = 100.0, 6


def truth(trials: int = 40, seconds: float = 3.0, seed: int = 3) -> list[dict]:
    """A dict a trial: time (k,) s, velocity (k, 2) m/s, spikes: a list of NEURONS arrays of times, s.

    Trials follow each other after a pause of 2 s; the last neuron fires in the first trial only.
    """
    random = np.random.default_rng(seed)
    out = []
    for k in range(trials):
        time = 10.0 + k * (seconds + 2.0) + np.arange(int(seconds * HZ)) / HZ
        velocity = 0.3 * np.stack([np.sin(2 * time), np.cos(3 * time)], axis=1)
        count = [random.poisson(8 * seconds) if n < NEURONS - 1 or k == 0 else 0 for n in range(NEURONS)]
        spikes = [np.sort(random.uniform(time[0], time[-1], n)) for n in count]
        out.append({"time": time, "velocity": velocity, "spikes": spikes})
    return out


def write(path: Path, *, recordings: int = 2, **changes) -> Path:
    """A file of several recording sessions of one day, as the data set has it; extra fields are there and unread."""
    subject = np.empty((recordings, 1), dtype=[("Trial", object)])
    for number in range(recordings):
        trials = truth(seed=3 + number, **changes)
        fields = ("Time", "HandVel", "HandPos", "EMG", "Neuron")
        struct = np.empty((len(trials), 1), dtype=[(name, object) for name in fields])
        for k, trial in enumerate(trials):
            still = np.zeros((len(trial["time"]), 1))
            neuron = np.empty((len(trial["spikes"]), 1), dtype=[("Spike", object)])
            for n, times in enumerate(trial["spikes"]):
                neuron[n, 0]["Spike"] = times[:, None] if len(times) else np.zeros((0, 0))
            struct[k, 0]["Time"] = trial["time"][:, None]
            struct[k, 0]["HandVel"] = np.hstack([trial["velocity"], still])
            struct[k, 0]["HandPos"] = np.hstack([np.cumsum(trial["velocity"], axis=0) / HZ, still])
            struct[k, 0]["EMG"] = np.zeros((0, 0))
            struct[k, 0]["Neuron"] = neuron
        subject[number, 0]["Trial"] = struct
    scipy.io.savemat(path, {"Subject": subject})
    return path


LAYOUTS: dict[str, Callable[[Path], Path]] = {"flint": write}
