"""Bench: numbers that agree with what they were measured on; how large they are is never tested."""

import json

import pytest

from launch.bench import BenchConfig, bench
from launch.bench_loader import OURS
from launch.bench_machine import machine
from launch.cli import main
from launch.config import load

SMALL = ["minutes=0.5", "sessions=1", "repeats=1", "recipe=small.yaml"]


@pytest.fixture
def small(tmp_path, monkeypatch, repository):
    """A working directory whose small.yaml takes half a minute of recording for a session."""
    text = (repository / "configs" / "dandisets" / "synthetic.yaml").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("min_train_s")]
    (tmp_path / "small.yaml").write_text("\n".join([*lines, "min_train_s: 1"]), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_sizes_are_those_of_the_files(small, capsys):
    assert main(["bench", "size", *SMALL]) == 0
    told = json.loads((small / "bench" / "bench.json").read_text(encoding="utf-8"))
    value = {(m["what"], m["unit"]): m["value"] for m in told["measurements"]}
    nwb = sum(path.stat().st_size for path in (small / "bench").rglob("*.nwb"))
    shards = sum(path.stat().st_size for path in (small / "bench" / "shards").iterdir())
    assert value["NWB files", "MB"] == nwb / 1e6 and value["shards and index", "MB"] == shards / 1e6
    assert value["shards against NWB", "ratio"] == shards / nwb
    row = json.loads((small / "bench" / "sessions" / "report.json").read_text(encoding="utf-8"))["rows"][0]
    assert value["NWB files", "bytes/spike"] == nwb / row["spikes"]
    # four bytes of time and two of unit, once or, in the seconds that two segments carry, twice
    assert 6 <= value["spikes in shards", "bytes/spike"] < 6.5 < value["shards and index", "bytes/spike"]
    assert "shards against NWB" in capsys.readouterr().out
    assert "| shards against NWB |" in (small / "bench" / "bench.md").read_text(encoding="utf-8")


def test_what_cannot_be_measured_is_refused(small, capsys):
    assert main(["bench", "lodaer"]) == 2
    assert "did you mean loader?" in capsys.readouterr().err


def test_the_machine_is_named():
    assert " cores" in machine()


def test_ingestion_is_compared_over_the_files_it_made(small):
    words = ["repeats=1", "ingest.sessions=2", "ingest.seconds=60", "ingest.units=[4, 6]", "ingest.behaviour_hz=[50]"]
    measured = bench(load(BenchConfig, None, ["what=ingest", *words]))
    value = {(m.what, m.unit): m.value for m in measured}
    assert len(list((small / "bench").rglob("*.nwb"))) == 2
    assert all("2 files" in m.of and f"{(4 + 6) * 60 * 13:,} spikes" in m.of and m.value > 0 for m in measured)
    ours, floor = value["ingestion", "spikes/s"], value["the floor", "spikes/s"]
    assert value["ingestion against the floor", "ratio"] == ours / floor


@pytest.mark.slow
def test_every_part_measures_something(small):
    ingest = ["ingest.sessions=2", "ingest.seconds=100", "ingest.units=[4, 6]", "ingest.behaviour_hz=[50]"]
    quick = ["seconds=0.2", "workers=[1]", "training.trainer.steps=8", "training.loader.batch_windows=4"]
    measured = bench(load(BenchConfig, None, [*SMALL, *ingest, *quick]))
    wanted = {"ingestion", "prepare, peak memory", OURS, "floor, sliced", "training", "NWB files", "spikes in shards"}
    assert {m.what for m in measured} >= wanted
    assert all(m.value >= 0 for m in measured)
    assert (small / "bench" / "loader.png").is_file()


@pytest.mark.slow
def test_start_up_is_measured_and_written(small):
    assert main(["bench", "supply", "supply.sessions=[2]", "supply.units=3"]) == 0
    told = json.loads((small / "bench" / "bench.json").read_text(encoding="utf-8"))
    assert {m["of"].partition(",")[0] for m in told["measurements"]} == {"2 sessions"}
    assert "| open the index |" in (small / "bench" / "bench.md").read_text(encoding="utf-8")
