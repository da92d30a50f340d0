"""Bench of loaders: what each of them loads is the same; how fast is never tested."""

import ast
import json
import os
import stat
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from data_prep.errors import ConfigError, DataError
from launch import bench_loader_webdataset
from launch.bench_loader import AHEAD, BUDGET, OURS, LoaderBench, compared
from launch.bench_loader_balance import balanced, budgeted
from launch.bench_loader_floor import Floor
from launch.bench_loader_torch_brain import SCRIPT, TorchBrain, export
from launch.bench_rate import Rates, Watched, in_turn, watch
from pretrain.train import vocabularies
from sharding.augment import UnitDropoutConfig
from sharding.loader import LoaderConfig
from sharding.plan import TrainPlan
from sharding.sampling import Sampling
from sharding.statistics import target_statistics
from sharding.window import Reader
from tests.sharding.conftest import make_session, write_root

DROPOUT = UnitDropoutConfig(3, 5, 9)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    made = [make_session(0, seconds=30.0), make_session(1, units=7, hz=50.0, seconds=40.0)]
    return write_root(tmp_path_factory.mktemp("shards"), made, segment_us=7_000_000)


@pytest.fixture(scope="module")
def sampling(index):
    return Sampling("cursor_vel", 1.0, *vocabularies(index), target_statistics(index, "cursor_vel", True, "std"))


@pytest.fixture(scope="module")
def plain(index):
    """The windows of the first epoch by (session, start), as the reader cuts them."""
    plan, reader = TrainPlan(index, 1.0, seed=0), Reader(index, "cursor_vel")
    table = plan.table(np.arange(plan.windows))
    windows = [reader.window(s, t, 1_000_000) for s, t in zip(table.segment.tolist(), table.start_us.tolist())]
    return table, windows


def test_the_floor_slices_the_windows_of_the_plan(index, plain):
    floor, (table, windows) = Floor(index, "cursor_vel", 1.0), plain
    copied = floor.copied(table)
    for window, views in zip(windows, floor.sliced(table)):
        base = [
            views[0] - window.spike_time,
            views[2] - window.sample_time,
        ]  # told from the segment's start, not the window's
        assert all(len(set(shift.tolist())) <= 1 for shift in base)
        for view, wanted in zip((views[1], views[3], views[4]), (window.spike_unit, window.value, window.phase)):
            assert np.array_equal(view, wanted)
        assert not any(view.flags.writeable or view.flags.owndata for view in views if view.size)
    assert len(copied[0]) == len(copied[1]) == sum(len(window.spike_time) for window in windows)
    assert np.array_equal(copied[3], np.concatenate([window.value for window in windows]))
    batches = list(islice(floor.batches(8), 12))
    assert all(len(batch) == 8 for batch in batches) and batches[0].start_us.tolist() == table.start_us[:8].tolist()


def test_a_tar_of_windows_holds_those_of_the_plan(index, sampling, plain, tmp_path):
    path = bench_loader_webdataset.written(index, sampling, tmp_path)
    assert bench_loader_webdataset.written(index, sampling, tmp_path) == path
    everything = UnitDropoutConfig(100, 100, 100)
    batches = bench_loader_webdataset.batches(path, index, sampling, len(plain[1]), everything)
    streamed = bench_loader_webdataset.streamed(index, sampling, len(plain[1]), everything)
    tokens = [2 * len(window.units) + len(window.spike_time) for window in plain[1]]
    first, again, stream = next(batches), next(batches), next(streamed)
    assert first.token_length_B.tolist() == again.token_length_B.tolist() == tokens
    assert first.stamp_Q.tolist() == again.stamp_Q.tolist() and sorted(stream.token_length_B.tolist()) == sorted(tokens)
    assert sorted(stream.stamp_Q.tolist()) == sorted(first.stamp_Q.tolist())
    dropped = next(bench_loader_webdataset.batches(path, index, sampling, len(plain[1]), DROPOUT))
    starts = [(dropped.token_kind_S == kind).sum() for kind in (1, 2)]
    assert starts[0] == starts[1] < 0.8 * sum(len(window.units) for window in plain[1])


def test_sessions_for_torch_brain_hold_the_train_split(index, sampling, tmp_path):
    folder = export(index, sampling, 16, DROPOUT, tmp_path)
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    assert job["unit_dropout"] == [3, 5, 9] and job["batch_windows"] == 16 and len(job["sessions"]) == 2
    segments = index.segments
    for row, session in enumerate(job["sessions"]):
        arrays = np.load(folder / session["file"])
        mine = (segments.session == row) & (segments.split == 0)
        assert len(arrays["spike_time"]) == len(arrays["spike_unit"]) == segments.column("spikes")[mine].sum()
        assert len(arrays["time"]) == len(arrays["value"]) == segments.column("targets")[mine].sum()
        for name in ("spike_time", "time"):
            inside = np.searchsorted(arrays["start"], arrays[name], side="right") - 1
            assert (arrays[name] < arrays["stop"][inside]).all() and (np.diff(arrays[name]) >= 0).all()
        assert arrays["unit_id"].tolist() == list(index.unit_ids(index.session_ids[row]))
        mean, scale = sampling.statistics[index.session_ids[row]]
        assert session["mean"] == mean.tolist() and session["scale"] == scale.tolist()


def test_the_script_for_torch_brain_needs_nothing_of_ours():
    tree = ast.parse(SCRIPT.read_text(encoding="utf-8"))
    names = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    allowed = {"json", "sys", "time", "pathlib", "numpy", "torch", "temporaldata", "torch_brain"}
    assert {name.partition(".")[0] for name in names} == allowed


def python(folder: Path, body: str) -> str:
    """A program that stands in for the Python of another environment."""
    path = folder / "python"
    path.write_text(f"#!{sys.executable}\nimport sys\n{body}\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_torch_brain_answers_from_its_own_process(tmp_path):
    answer = 'print(\'{"windows": \' + line.split()[0] + \', "tokens": 6, "padded": 8, "seconds": 0.5}\', flush=True)'
    with TorchBrain(python(tmp_path, f"for line in sys.stdin: {answer}"), tmp_path) as peer:
        assert peer.watch(4, 0.5) == Watched(4, 6, 0.5) and peer.watch(2, 0.5).windows == 2
    with TorchBrain(python(tmp_path, "sys.exit('no such module')"), tmp_path) as peer:
        with pytest.raises(DataError, match="no such module"):
            peer.watch(0, 0.5)
    with pytest.raises(ConfigError, match="pip install pytorch-brain"):
        TorchBrain(str(tmp_path / "none"), tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(
    "SPIKELOOM_PEER_PYTHON" not in os.environ, reason="needs the Python of an environment with pytorch-brain"
)
def test_torch_brain_makes_batches_of_our_sessions(index, sampling, tmp_path):
    folder = export(index, sampling, 4, DROPOUT, tmp_path)
    with TorchBrain(os.environ["SPIKELOOM_PEER_PYTHON"], folder) as peer:
        for workers in (0, 2):
            seen = peer.watch(workers, 0.5)
            assert seen.windows > 0 and seen.windows % 4 == 0 and 20 < seen.tokens / seen.windows < 200


def test_rates_are_medians_of_rounds():
    def rates(*windows):
        return Rates(tuple(Watched(n, 10 * n, 2.0) for n in windows))

    ours, other = rates(8, 2, 6), rates(2, 1, 6)
    assert ours.windows == 3.0 and ours.tokens == 30.0 and "1 to 4 windows/s" in str(ours)
    assert ours.against(other) == 2.0  # of 4, 2, 1
    order = []
    found = in_turn({name: lambda name=name: order.append(name) or Watched(1, 1, 1.0) for name in "ab"}, 3)
    assert order == list("ababab") and len(found["b"].looks) == 3


def test_what_was_ready_before_is_not_watched():
    asked = iter(range(1000))
    seen = watch(asked, 0.0, lambda number: (1, number), ready=5)
    assert seen.windows == 1 and seen.tokens == 7  # after 2 to warm up and 5 that were ready


class Counted:
    """Windows of as many tokens as told."""

    def __init__(self, tokens):
        self.tokens, self.plan = np.asarray(tokens), type("Plan", (), {"windows": len(tokens)})

    def of(self, places):
        return self.tokens[places % len(self.tokens)]


def test_balance_is_told_by_tokens():
    rows = list(balanced(Counted([10] * 64), 1))
    assert [value for _, value, _, _ in rows] == [0.0] * 4 and "64 ranks" in rows[-1][3]
    two = next(balanced(Counted([100, 300, 300, 100]), 2))
    assert two[1] == 0.0 and "dealt in order 0.0%" in two[3]
    two = next(balanced(Counted([300, 300, 100, 100]), 2))
    assert two[1] == 0.0 and "dealt in order 50.0%" in two[3]
    told = {(what, of.partition(":")[0]): value for what, value, _, of in budgeted(Counted([10] * 60), 35, 4)}
    assert [round(value, 3) for value in told.values()] == [85.714, 85.714, 0.0, 0.0]


def test_loaders_are_compared_in_one_run(index, sampling, tmp_path, capsys):
    told_of(index, sampling, tmp_path, [])
    assert "torch_brain is left out" in capsys.readouterr().err


@pytest.mark.slow
def test_workers_are_compared_with_none(index, sampling, tmp_path):
    told_of(index, sampling, tmp_path, [1, 2])


def told_of(index, sampling, folder, workers):
    config = LoaderConfig(batch_windows=4, unit_dropout=DROPOUT)
    rows = list(compared(LoaderBench(index, sampling, config, workers, 0.02, 1, "", folder)))
    rate = {what: value for what, value, unit, _ in rows if unit == "windows/s"}
    others = ["floor, sliced", "floor, copied", "WebDataset, a sample a window", "WebDataset, our shards as a stream"]
    names = [f"ours, {n} worker{'s' if n > 1 else ''}" for n in workers]
    assert list(rate) == [OURS, AHEAD, BUDGET, *names, *others] and min(rate.values()) > 0
    ratio = {what: value for what, value, unit, _ in rows if unit == "ratio"}
    assert ratio[f"{OURS} / {others[0]}"] == pytest.approx(rate[OURS] / rate[others[0]]) and len(ratio) == 8
