"""Shard roots of sessions of ten seconds, for the verbs that look at roots."""

from pathlib import Path

import numpy as np
import pytest

from data_prep.session import Intervals, Session, Spikes, Units
from sharding.root import CutSettings, RootWriter, Source


def _session(name: str, subject: str, held_out: bool, missing: bool) -> Session:
    """Three units, 50 spikes of the first of them; 7.2 s of train, 2.8 s of valid."""
    return Session(
        id=name,
        dandiset=name.split("/")[0],
        subject=subject,
        paradigm="reach",
        units=Units(
            ("a", "b", "c"), ("M1",) * 3, ("",) * 3, held_out=(held_out, False, False), missing=(False, False, missing)
        ),
        spikes=Spikes(np.linspace(0.1, 9.9, 50), np.zeros(50, np.uint32)),
        signals={},
        trials=Intervals.of([]),
        trial_columns={},
        phases={},
        domain=Intervals.of([(0.0, 10.0)]),
        splits={"train": Intervals.of([(0, 7.2)]), "valid": Intervals.of([(7.2, 10)]), "test": Intervals.of([])},
    )


@pytest.fixture
def tiny_root():
    """tiny_root(folder, {session id: subject}, held_out, missing) writes shards; the ids of these have such a unit."""

    def write(folder: Path, subjects: dict[str, str], held_out=(), missing=()) -> Path:
        with RootWriter(folder, CutSettings()) as root:
            for name, subject in subjects.items():
                session = _session(name, subject, name in held_out, name in missing)
                root.add(session, root.cut(session), Source(f"{name}.h5", "0" * 64))
            root.finish([])
        return folder

    return write
