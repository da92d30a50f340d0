"""The segments of a session, as they are written -> its row and those of its units: counts, hours, statistics."""

import numpy as np

from data_prep.session import SPLITS, Session
from sharding.segment import Segment
from sharding.tables_rows import SessionRow, SignalRow, SignalStatistics


class Tally:
    """Counts what the segments own; of the data only the train samples are kept, for their statistics."""

    def __init__(self, session: Session, phases: tuple[str, ...]):
        self._session, self._phases = session, phases
        self._outlier = phases.index("outlier") if "outlier" in phases else -1
        self._spikes, self._targets = np.zeros(len(session.units), np.int64), 0
        self._hours = dict.fromkeys(SPLITS, 0.0)
        self._train: dict[str, list[np.ndarray]] = {name: [] for name in session.signals}

    def add(self, segment: Segment) -> None:
        """Count the next segment."""
        unit = segment.spikes.unit[: segment.owned_spikes]
        self._spikes += np.bincount(unit, minlength=len(self._spikes))
        self._targets += segment.owned_targets
        self._hours[segment.split] += (segment.stop_us - segment.start_us) / 3600e6
        if segment.split == "train":
            for name, part in segment.signals.items():
                owned = segment.owned_samples(name)
                self._train[name].append(part.value[:owned][part.phase[:owned] != self._outlier])

    def session_row(self, source: str, sha256: str) -> SessionRow:
        """The session, read from a stored session of that file name and sha256."""
        session, signals, statistics = self._session, {}, {}
        for name, signal in session.signals.items():
            dims, steps = signal.value.shape[1], np.diff(signal.time)
            signals[name] = SignalRow(dims, signal.unit_of_measure, float(1 / np.median(steps)) if len(steps) else 0.0)
            statistics[name] = SignalStatistics.of(
                np.concatenate([np.zeros((0, dims), np.float32), *self._train[name]])
            )
        return SessionRow(
            session.id,
            session.dandiset,
            session.provenance.get("version", ""),
            session.provenance.get("asset", ""),
            session.subject,
            session.paradigm,
            len(session.units),
            int(self._spikes.sum()),
            self._targets,
            self._hours,
            signals,
            statistics,
            {name: scale for name, scale in session.target_scale.items() if name in signals},
            dict(session.loss_weights),
            tuple(session.eval_phases),
            self._phases,
            source,
            sha256,
        )

    def unit_records(self) -> list[dict]:
        """A record of tables.UNIT_SCHEMA for every unit."""
        session, units, seconds = self._session, self._session.units, 3600 * sum(self._hours.values())
        none, no = ("",) * len(units), (False,) * len(units)
        columns = {
            "id": [f"{session.id}/{name}" for name in units.id],
            "session": [session.id] * len(units),
            "region": units.region,
            "quality": units.quality,
            "electrode": units.electrode or none,
            "held_out": [bool(told) for told in units.held_out or no],
            "missing": [bool(told) for told in units.missing or no],
            "spikes": self._spikes.tolist(),
            "rate": (self._spikes / seconds).tolist(),
        }
        return [dict(zip(columns, values)) for values in zip(*columns.values())]
