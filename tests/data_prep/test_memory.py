"""A file of 80 million spikes with waveforms beside them is prepared in less than a gigabyte; a small one in the same way."""

import subprocess
import sys

import numpy as np
import pytest

import data_prep.session
import data_prep.spikes
from data_prep.assembly import opened_session, read_session
from data_prep.nwb_bulk import BulkConfig, least_work, write_bulk
from data_prep.nwb_objects import opened_objects
from data_prep.store import load_session, save_session

CHURCHLAND = BulkConfig(units=192, hz=115.75, seconds=3600.0, behaviour_hz=1000.0, in_trials=True)  # as in 000070
# Peak of a command. A child begins with the peak of the process that forks it, so a small one stands between.
WATCHER = (
    "import resource, subprocess, sys; code = subprocess.call(sys.argv[1:]);"
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)"
)


@pytest.mark.slow
def test_eighty_million_spikes_take_less_than_a_gigabyte(tmp_path):
    path = write_bulk(tmp_path / "nwb" / "big_ses-CO-1.nwb", CHURCHLAND)
    words = ["dandisets/000688_co.yaml", f"source={path}", f"output={tmp_path / 'sessions'}", "workers=0"]
    command = [sys.executable, "-m", "launch", "prepare", *words]
    done = subprocess.run([sys.executable, "-c", WATCHER, *command], capture_output=True, text=True)
    assert done.returncode == 0 and "80,006,400 spikes" in done.stdout, done.stderr
    peak = int(done.stdout.splitlines()[-1]) * (1024 if sys.platform != "darwin" else 1)  # KiB, on macOS bytes
    assert peak < 1e9, f"{peak / 1e6:.0f} MB"


def test_a_session_that_stays_on_disk_is_stored_like_one_in_memory(nwb, recipe, tmp_path, monkeypatch):
    path, plain = nwb(), tmp_path / "plain"
    plain.mkdir()
    session = read_session(path, recipe)
    whole = save_session(session, plain).read_bytes()
    monkeypatch.setattr(data_prep.spikes, "_IN_MEMORY", 64)
    monkeypatch.setattr(data_prep.session, "_PART", 100)
    with opened_session(path, recipe) as long:
        assert not isinstance(long.spikes.time, np.ndarray) and len(long.spikes) == 1000
        stored = save_session(long, tmp_path)
    assert stored.read_bytes() == whole
    assert np.array_equal(load_session(stored).spikes.time, session.spikes.time)
    assert isinstance(read_session(path, recipe).spikes.time, np.ndarray)


def test_a_file_made_for_measurements_is_sound_and_as_large_as_asked_for(tmp_path):
    path = write_bulk(tmp_path / "a.nwb", BulkConfig(units=3, hz=50.0, seconds=20.0, behaviour_hz=100.0))
    with opened_objects(path) as file:
        assert file.units is not None and len(file.units) == 3 and "waveforms" in file.units.columns
        assert file.units.columns["waveforms"].data.shape == (3000, 48)
        assert len(file.series) == 3 and len(file.tables["trials"]) == 6
    assert least_work(path, tmp_path / "raw") == 3000 and (tmp_path / "raw").stat().st_size == 3000 * 12
