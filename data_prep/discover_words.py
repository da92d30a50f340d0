"""Names of series -> what they probably are: which quantity, of which part of the body, and whether neural at all."""

import re
from dataclasses import dataclass

import numpy as np

NEURAL = {
    "lfp", "eeg", "ecog", "raw", "waveform", "waveforms", "spike", "spikes", "spiking", "threshold", "crossing",
    "crossings", "electrical", "voltage", "ephys", "ecephys", "counts", "unit", "units", "neural", "sbp", "binned",
}  # fmt: skip
NEURAL_KINDS = {"ElectricalSeries", "SpikeEventSeries", "LFP", "FilteredEphys", "RoiResponseSeries"}
COUNTS = {"threshold", "crossing", "crossings", "binned", "counts", "count", "spikes", "spike", "tx"}
POWER = {"power", "sbp", "band"}

QUANTITIES = {  # first hit wins; the number ranks them, small is sought first
    "velocity": (0.0, {"vel", "velocity", "velocities", "speed"}),
    "acceleration": (12.0, {"acc", "acceleration", "accelerations", "accel"}),
    "emg": (8.0, {"emg", "muscle", "muscles"}),
    "force": (9.0, {"force", "forces", "torque", "torques", "grip", "load"}),
    "position": (
        2.5,
        {
            "pos",
            "position",
            "positions",
            "kinematics",
            "location",
            "ang",
            "angle",
            "angles",
            "xy",
            "coordinates",
            "len",
        },
    ),
}
OTHER = 14.0
EFFECTORS = {
    "target": (30.0, {"target", "targets", "goal", "cue", "reference"}),
    "label": (
        30.0,
        {"trial", "num", "number", "id", "code", "label", "timestamp", "timestamps", "sync", "ttl", "clock"},
    ),
    "eye": (30.0, {"eye", "eyes", "gaze", "pupil", "saccade"}),
    "decoder": (20.0, {"decoder", "decoded", "decode", "state", "intended"}),
    "muscle": (6.0, {"muscle", "muscles", "emg"}),
    "joint": (5.0, {"joint", "joints", "elbow", "shoulder"}),
    "cursor": (0.0, {"cursor"}),
    "hand": (1.0, {"hand", "endpoint", "manipulandum", "handle"}),
    "wrist": (2.0, {"wrist"}),
    "finger": (2.0, {"finger", "fingers", "index", "mrs", "mrp", "thumb", "little", "middle", "ring"}),
    "body": (3.0, {"arm", "head", "body", "led", "animal", "running", "wheel", "tip"}),
}
PLAIN = 3.0
BORED = 20.0  # from this rank on a series is told of, not proposed
SPATIAL = {"cursor", "hand", "wrist", "finger", "body", ""}  # parts whose speed a person can judge, in m/s


@dataclass(frozen=True)
class Meaning:
    """What a place's words say."""

    quantity: str  # velocity, position ... or ""
    effector: str  # cursor, hand ... or ""
    rank: float
    neural: bool


def words(text: str) -> list[str]:
    """Lower-case words of a name: OpenLoopKinematics -> open, loop, kinematics; cursor_vel -> cursor, vel."""
    return [w.lower() for w in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", text)]


def meaning(place: str, kind: str = "") -> Meaning:
    """What a series at that place probably is; its own name counts before those of its containers."""
    *containers, name = place.split("/")
    own, around = set(words(name)), set(words(" ".join(containers[1:])))
    quantity = _first(QUANTITIES, own) or _first(QUANTITIES, around)
    effector = _first(EFFECTORS, own) or _first(EFFECTORS, around - {"state"})
    rank = QUANTITIES.get(quantity, (OTHER,))[0] + EFFECTORS.get(effector, (PLAIN,))[0]
    neural = kind in NEURAL_KINDS or bool((own | around) & NEURAL)
    return Meaning(quantity, effector, rank, neural and quantity not in ("emg", "velocity"))


def _first(table: dict, found: set[str]) -> str:
    return next((name for name, (_, known) in table.items() if found & known), "")


def signal_name(places: list[str], kind: Meaning, taken: set[str]) -> str:
    """A name for the recipe: cursor_vel of Velocity/cursor_vel, hand_pos of Position/Hand, finger_vel of two fingers."""
    own = words(places[0].rsplit("/", 1)[-1])
    short = {"velocity": "vel", "position": "pos", "acceleration": "acc"}
    if len(places) > 1:
        parts = [kind.effector or "joined", short.get(kind.quantity, kind.quantity)]
        parts = [kind.quantity] if kind.quantity == "emg" else parts
    else:
        known = any(set(own) & known for _, known in QUANTITIES.values())
        parts = own if known or not kind.quantity else [*own, short.get(kind.quantity, kind.quantity)]
    name = "_".join(filter(None, parts)) or "signal"
    if name in ("random", "outlier") or name in taken:
        container = "_".join(words(places[0].split("/")[-2])) if "/" in places[0] else "other"
        name = f"{container}_{name}"
    count, base = 2, name
    while name in taken:
        name, count = f"{base}_{count}", count + 1
    return name


def tally(values: np.ndarray, most: int = 5) -> str:
    """'R 613, F 80': how often each value of a column (n,) occurs, the commonest first."""
    names, counts = np.unique(values.astype(str), return_counts=True)
    order = np.argsort(-counts, kind="stable")
    told = [f"{' '.join(names[k].split())[:40] or '(empty)'} {counts[k]}" for k in order[:most]]
    return ", ".join(told) + (f" and {len(names) - most} others" if len(names) > most else "")
