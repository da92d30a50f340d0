"""Assets read over the network: the same numbers, few of the bytes, and refusals where the storage cannot do it."""

import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import h5py
import numpy as np
import pytest
from pynwb import NWBHDF5IO, NWBFile, TimeSeries
from pynwb.behavior import BehavioralTimeSeries

from data_prep.assembly import read_session
from data_prep.errors import SessionError
from data_prep.open_source import open_source
from data_prep.recipe import Recipe
from data_prep.source import ArchiveConfig, Source
from tests.data_prep.archive_double import STALL_S, VERSION, Double, Rule, cut, no_range, stall, status

QUICK = ArchiveConfig(timeout_s=1.0, retries=3, backoff_s=0.01, wait_s=3.0, stream=True)
BYTES = "GET /blobs/"
SPIKES = np.sort(np.random.default_rng(0).uniform(0, 100, 50_000))


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> bytes:
    """A file of .4 MB of spikes between 12 MB of waveforms and 12 MB of raw traces."""
    path, raw = tmp_path_factory.mktemp("stream") / "a.nwb", np.random.default_rng(1).integers(-99, 99, 6 << 20)
    with h5py.File(path, "w") as file:
        file["units/waveforms"] = raw.astype(np.int16)
        file["units/spike_times"] = SPIKES
        file["acquisition/raw/data"] = raw.astype(np.int16)
        file["processing/behavior/vel"] = np.arange(1000.0)
    return path.read_bytes()


@pytest.fixture
def double(recording):
    double = Double()
    double.add("a.nwb", recording)
    double.publish()
    with double.serving():
        yield double


def listed(double: Double, tmp_path: Path, **changes) -> Source:
    config = replace(QUICK, **changes)
    return open_source(double.url(), ["*.nwb"], [], config, Recipe(name="small"), tmp_path / "out")


def spikes(source: Source) -> np.ndarray:
    with source.opened(source.assets[0]) as remote, h5py.File(remote.stream) as file:
        assert file["processing/behavior/vel"][-1] == 999
        return file["units/spike_times"][:]


def test_only_what_is_read_crosses_the_network(double, tmp_path, recording):
    source = listed(double, tmp_path)
    assert np.array_equal(spikes(source), SPIKES)
    fetched = double.bytes_of(BYTES)
    assert SPIKES.nbytes < fetched < 3_000_000 < len(recording) / 8
    told = source.provenance(source.assets[0])
    assert (told["streamed"], told["digest_checked"]) == ("yes", "not verified: streamed")
    assert told["bytes_fetched"] == str(fetched)
    assert not (tmp_path / "out.downloads").exists()
    assert all(asked.range for asked in double.requests_of(BYTES))


@pytest.fixture(scope="module")
def nwb(tmp_path_factory) -> bytes:
    """A session of .1 MB of spikes and behaviour, 10 MB of waveforms and 16 MB of raw traces, as pynwb writes it."""
    path, random = tmp_path_factory.mktemp("nwb") / "a.nwb", np.random.default_rng(2)
    about = {"session_description": "a test", "identifier": "a", "session_id": "day1"}
    file = NWBFile(**about, session_start_time=datetime(2020, 1, 1, tzinfo=UTC))
    raw = random.integers(-99, 99, (1 << 18, 32)).astype(np.int16)
    file.add_acquisition(TimeSeries(name="raw", data=raw, unit="V", rate=30000.0))
    for _ in range(10):
        shapes = random.normal(size=(250, 1, 500))
        file.add_unit(spike_times=np.sort(random.uniform(0, 100, 250)), waveforms=[[w for w in one] for one in shapes])
    time = np.arange(5000) / 50
    velocity = TimeSeries(
        name="cursor_vel", data=np.stack([np.sin(time), np.cos(time)], 1), unit="cm/s", timestamps=time
    )
    module = file.create_processing_module(name="behavior", description="behaviour")
    module.add(BehavioralTimeSeries(time_series=velocity, name="Velocity"))
    with NWBHDF5IO(path, "w") as io:
        io.write(file)
    return path.read_bytes()


def test_the_reader_takes_spikes_and_behaviour_and_leaves_waveforms_and_raw_traces(nwb, tmp_path, blocks):
    double = Double()
    double.add("a.nwb", nwb)
    double.publish()
    with double.serving():
        source, whole = listed(double, tmp_path), listed(double, tmp_path, stream=False)
        with source.opened(source.assets[0]) as file:
            streamed = read_session(file, blocks)
        fetched = double.bytes_of(BYTES)
        with whole.opened(whole.assets[0]) as file:
            fetched_whole = read_session(file, blocks)
    assert np.array_equal(streamed.spikes.time, fetched_whole.spikes.time) and len(streamed.spikes.time) == 2500
    for name, signal in fetched_whole.signals.items():
        assert np.array_equal(streamed.signals[name].value, signal.value)
    assert fetched < 2_000_000 < len(nwb) / 12


def test_the_stream_is_a_file(double, tmp_path, recording):
    source = listed(double, tmp_path)
    with source.opened(source.assets[0]) as remote:
        assert (remote.name, remote.size) == ("a.nwb", len(recording))
        random = np.random.default_rng(3)
        for start, count in zip(random.integers(0, len(recording), 20), random.integers(0, 300_000, 20)):
            remote.stream.seek(start)
            assert remote.stream.read(count) == recording[start : start + count]
            assert remote.stream.tell() == min(start + count, len(recording))
        remote.stream.seek(-5, 2)
        assert remote.stream.read() == recording[-5:]
        assert remote.stream.read(1) == b""


@pytest.mark.parametrize("fault", [status(503), status(429), cut(50), stall(0)], ids=["503", "429", "cut", "stall"])
def test_a_range_is_asked_for_again_after_a_fault(double, tmp_path, fault):
    double.rules += [Rule(BYTES, fault, skip=2, times=2)]
    began = time.monotonic()
    assert np.array_equal(spikes(listed(double, tmp_path, timeout_s=0.4)), SPIKES)
    assert time.monotonic() - began < STALL_S  # it did not wait for the server to give up
    assert double.rules[0].times == 0


def test_a_signed_address_that_expired_is_found_anew(double, tmp_path):
    source = listed(double, tmp_path)
    with source.opened(source.assets[0]) as remote:
        double.signature += 1
        remote.stream.seek(5_000_000)
        assert remote.stream.read(10) == double.drafted[0].blob[5_000_000:5_000_010]
    assert len(double.requests_of("/download/")) == 2


def test_a_storage_without_ranges_is_refused_before_it_sends_the_file(double, tmp_path):
    double.rules += [Rule(BYTES, asked=no_range, times=9)]
    with pytest.raises(SessionError, match="a.nwb: its storage ignores ranges, .*; set archive.stream=false") as no:
        spikes(listed(double, tmp_path))
    assert "\n" not in str(no.value)
    assert len(double.requests_of(BYTES)) == 1


def test_an_answer_to_another_range_is_never_taken_for_data(double, tmp_path):
    def shifted(answer):
        return replace(answer, body=answer.body[1:] + b"x", headers={"Content-Range": "bytes 1-8/9"})

    double.rules += [Rule(BYTES, shifted)]
    assert np.array_equal(spikes(listed(double, tmp_path)), SPIKES)


def test_when_patience_ends_the_reader_is_told_of_the_network_not_of_its_file(double, tmp_path):
    source = listed(double, tmp_path, retries=1)
    with pytest.raises(SessionError, match=r"a.nwb: answers 503 .* \(tried 2 times\)"):
        with source.opened(source.assets[0]) as remote, h5py.File(remote.stream) as file:
            double.rules += [Rule(BYTES, status(503), times=99)]
            file["units/spike_times"][:]


def test_a_token_stays_with_the_archive(double, tmp_path, monkeypatch):
    double.token = "secret"
    monkeypatch.setenv(double.variable, "secret")
    assert np.array_equal(spikes(listed(double, tmp_path)), SPIKES)
    assert {asked.token for asked in double.requests_of(BYTES)} == {""}


def test_a_zarr_asset_is_fetched_all_the_same(double, tmp_path):
    double.add("b.nwb.zarr", entries={".zgroup": b"{}"})
    double.publish()
    source = open_source(double.url(), ["*.zarr"], [], QUICK, Recipe(name="small"), tmp_path / "out")
    with source.opened(source.assets[0]) as folder:
        assert (folder / ".zgroup").read_bytes() == b"{}"
    assert source.provenance(source.assets[0])["streamed"] == "no"
    assert VERSION in source.name
