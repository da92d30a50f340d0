"""What is measured: rows written one by one and continued without doubling, in both files and in wandb, which never stops a
training and is off unless asked."""

import csv
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from lightning import Callback
from matplotlib.image import imread
from wandb.cli.cli import cli as wandb_cli

from pretrain import tracking
from pretrain.errors import ConfigError
from pretrain.outputs import Prediction
from pretrain.progress import StepProgress
from pretrain.traces import busiest, chosen, draw_traces
from pretrain.tracking import MetricsFile, Tracker, TrackingConfig
from pretrain.train import pretrain
from tests.pretrain.conftest import tiny_config


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# ------------------------------------------------------------------------------------------------ files


def test_rows_are_there_as_soon_as_they_are_written(tmp_path):
    file = MetricsFile(tmp_path / "metrics.csv", ["s/1"], None)
    file.append({"step": 1, "train/loss": 0.5})
    file.append({"step": 2, "valid/r2/s/1": 0.25, "valid/r2": float("nan"), "train/grad_norm": float("inf")})
    one, two = read(tmp_path / "metrics.csv")
    assert one["train/loss"] == "0.5" and one["valid/r2/s/1"] == ""
    assert two["valid/r2/s/1"] == "0.25" and two["valid/r2"] == ""  # undefined is blank
    assert list(one)[:5] == ["step", "epoch", "windows", "tokens", "seconds"]
    first, second = lines(tmp_path / "metrics.jsonl")
    assert first.keys() == {"step", "seconds", "train/loss"} and first["step"] == 1 and first["train/loss"] == 0.5
    assert second["valid/r2/s/1"] == 0.25 and "valid/r2" not in second and second["train/grad_norm"] is None


def test_resuming_drops_later_and_torn_rows_and_keeps_the_clock_running(tmp_path):
    path = tmp_path / "metrics.csv"
    file = MetricsFile(path, [], None)
    for step in (1, 2, 3):
        file.append({"step": step, "train/loss": float(step)})
    text = path.read_text().splitlines()
    text[1] = text[1].replace(text[1].split(",")[4], "100.0")
    path.write_text("\n".join([*text, "4,0.1,1"]))  # cut in the middle of a row
    again = MetricsFile(path, [], resume_step=2)
    again.append({"step": 3, "train/loss": 3.5})
    assert [(row["step"], row["train/loss"]) for row in read(path)] == [("1", "1"), ("2", "2"), ("3", "3.5")]
    assert [(row["step"], row["train/loss"]) for row in lines(path.with_suffix(".jsonl"))] == [(1, 1), (2, 2), (3, 3.5)]
    path.write_text("\n".join(text[:2]) + "\n")
    assert MetricsFile(path, [], resume_step=9).seconds >= 100


def test_both_files_say_the_same_however_a_run_was_cut(tmp_path):
    """Between the two files a run may die: the one follows the other when it is taken up."""
    rows = [{"step": step, "windows": 4 * step, "train/loss": step / 7, "valid/r2": 0.1 * step} for step in range(4)]
    for folder, cut in (("whole", None), ("cut", 2)):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / "metrics.csv"
        file = MetricsFile(path, ["a"], None)
        for row in rows[:cut]:
            file.append(row)
        if cut:
            path.with_suffix(".jsonl").write_text('{"step": 0}\n{"ste')
            file = MetricsFile(path, ["a"], resume_step=1)
            for row in rows[cut:]:
                file.append(row)
    whole, cut = (
        [
            {key: value for key, value in row.items() if key != "seconds"}
            for row in lines(tmp_path / name / "metrics.jsonl")
        ]
        for name in ("whole", "cut")
    )
    assert whole == cut and [list(row) for row in whole] == [list(row) for row in cut] and len(whole) == 4


def test_a_new_run_begins_new_files(tmp_path):
    MetricsFile(tmp_path / "metrics.csv", [], None).append({"step": 1})
    MetricsFile(tmp_path / "metrics.csv", [], None)
    assert read(tmp_path / "metrics.csv") == [] and lines(tmp_path / "metrics.jsonl") == []


@pytest.mark.parametrize("setting", [dict(wandb="maybe"), dict(traces_every=-1), dict(peak_tflops=-1.0)])
def test_what_cannot_be_meant_is_refused(setting):
    with pytest.raises(ConfigError, match=f"tracking.{next(iter(setting))}"):
        TrackingConfig(**setting)


# ------------------------------------------------------------------------------------------------ wandb


class CutAt(Callback):
    """Ends a run, as a crash would, before the weights move in a step."""

    def __init__(self, step: int):
        self.step = step

    def on_before_optimizer_step(self, trainer, module, optimizer) -> None:
        if trainer.global_step + 1 == self.step:
            raise InterruptedError(f"cut in step {self.step}")


def records(run: Path, capfd) -> list[list[dict]]:
    """The records of each start of a run that wandb keeps offline, in order, as `wandb leet inspect --json` tells them."""
    out = []
    for log in sorted(run.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns):
        capfd.readouterr()
        with pytest.raises(SystemExit, match="0"):
            wandb_cli.main(["leet", "inspect", "--json", str(log)])
        out.append([json.loads(line) for line in capfd.readouterr().out.splitlines()])
    return out


def points(records: list[dict]) -> list[dict]:
    return [record["history"]["item"] for record in records if record["type"] == "history"]


@pytest.fixture
def quiet_wandb(tmp_path_factory, monkeypatch):
    """Without an account, and with what it keeps for itself in a folder of its own."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path_factory.mktemp("wandb")))


def test_a_run_that_was_cut_gives_wandb_every_point_once(shards, tmp_path, quiet_wandb, capfd):
    """Cut in step 6, after the rows of steps 2 and 4 and the save of step 3: step 4 is taken, written and drawn again."""
    run = tmp_path / "run"
    config = tiny_config(shards, run, tracking=TrackingConfig(wandb="offline", traces_every=4))
    with pytest.raises(InterruptedError):
        pretrain(config, CutAt(6))
    pretrain(config)
    first, second = records(run, capfd)
    assert [point["trainer/global_step"] for point in points(first)] == [0, 2, 4]
    assert [point["trainer/global_step"] for point in points(second)] == [6, 8]
    assert [point["_step"] for point in points(first) + points(second)] == [0, 2, 4, 6, 8]
    (id_,) = {record["run"]["run_id"] for record in first + second if record["type"] == "run"}
    assert id_ == json.loads((run / "wandb.json").read_text())["id"]

    told = {}
    for record in first:
        told |= record["config"]["update"] if record["type"] == "config" else {}
    provenance = json.loads((run / "provenance.json").read_text())
    assert told["optim"]["lr"] == 5e-3 and told["provenance"]["shards_digest"] == provenance["shards"]["digest"]
    assert told["provenance"]["commit"] == provenance["commit"] and "torch" in told["provenance"]["versions"]

    last, row = points(second)[-1], read(run / "metrics.csv")[-1]
    shared = [name for name, text in row.items() if text and name not in ("step", "seconds")]
    assert {"tokens", "speed/tokens_s", "speed/wait_share", "memory/host_gb", "valid/r2/tiny/a"} <= set(shared)
    assert all(last[name] == pytest.approx(float(row[name]), rel=1e-6) for name in shared)
    table = json.loads((run.glob("wandb/offline-run-*/files/" + last["valid/sessions.path"]).__next__()).read_text())
    assert table["columns"] == ["session", "r2"]
    assert table["data"] == [[name, pytest.approx(last[f"valid/r2/{name}"])] for name in ("tiny/a", "tiny/b")]
    assert last["valid/traces._type"] == "image-file" and not [name for name in points(first)[0] if "traces" in name]
    assert sorted(path.name for path in run.glob("traces/*")) == ["step-00000004.png", "step-00000008.png"]
    summary = [record["summary"]["update"] for record in second if record["type"] == "summary"]
    assert any(update.get("best", {}).get("step") in (0, 4, 8) for update in summary)


def test_a_second_cut_before_the_first_is_made_good_repeats_no_point(tmp_path):
    """Rows to step 6 were told; the run went back to 3 and was cut at 5: its file ends at 4, what wandb knows at 6."""
    path, known = tmp_path / "metrics.csv", {"id": "x", "seen": -1}
    MetricsFile(path, [], None).append({"step": 6})
    for resume_step, last in ((3, 4), (3, 5)):
        (tmp_path / "wandb.json").write_text(json.dumps(known))
        known = tracking._known(tmp_path)
        assert known == {"id": "x", "seen": 6}
        MetricsFile(path, [], resume_step).append({"step": last})


DIES = """
import logging, os, signal, sys
from pathlib import Path
import psutil
from pretrain import tracking
folder, config = Path(sys.argv[1]), tracking.TrackingConfig(wandb="offline")
logger = tracking._logger(config, folder, "x", {})
tracker = tracking.Tracker(tracking.MetricsFile(folder / "metrics.csv", ["s"], None), config, logger)
tracker.record({"step": 1, "train/loss": 1.0})
(service,) = [child for child in psutil.Process().children() if "wandb-core" in " ".join(child.cmdline())]
os.kill(service.pid, signal.SIGKILL)
service.wait(10)
for step in (2, 3, 4):
    tracker.judged(step, {"s": 0.5}, [])
    tracker.record({"step": step, "train/loss": 1.0})
tracker.summarise({"best": 1})
tracker.close()
print("went on")
"""


def fresh_process(script: str, folder: Path, **variables: str) -> subprocess.CompletedProcess:
    """A script run with a wandb of its own, which knows nothing of this process's."""
    env = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"} | variables
    return subprocess.run([sys.executable, "-c", script, folder], capture_output=True, text=True, timeout=300, env=env)


@pytest.mark.slow
def test_wandb_that_dies_does_not_stop_a_training(tmp_path, quiet_wandb):
    """Its process is killed, as the system does when memory runs out."""
    apart = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}  # not this process's own
    done = subprocess.run(
        [sys.executable, "-c", DIES, tmp_path], capture_output=True, text=True, timeout=120, env=apart
    )
    assert "went on" in done.stdout, done.stderr
    assert done.stderr.count("the run goes on without it") == 1
    assert [row["step"] for row in read(tmp_path / "metrics.csv")] == ["1", "2", "3", "4"]


def test_an_unreachable_wandb_leaves_the_run_offline(tmp_path, quiet_wandb, monkeypatch, caplog, capfd):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(tracking, "START_S", 1.0)
    with caplog.at_level(logging.WARNING, "spikeloom"):
        logger = tracking._logger(TrackingConfig(wandb="online"), tmp_path, "x", {"lr": 1})
    tracker = Tracker(MetricsFile(tmp_path / "metrics.csv", [], None), TrackingConfig(wandb="online"), logger)
    tracker.record({"step": 1, "train/loss": 0.5})
    tracker.close()
    assert "wandb cannot be reached" in caplog.text and "wandb sync" in caplog.text
    (start,) = records(tmp_path, capfd)
    assert [point["train/loss"] for point in points(start)] == [0.5]


NO_LOGIN = """
import sys
from pathlib import Path
from pretrain import tracking
tracking._logger(tracking.TrackingConfig(wandb="online"), Path(sys.argv[1]), "x", {})
"""


@pytest.mark.slow
def test_wandb_online_without_a_login_is_told_before_anything_is_trained(tmp_path, quiet_wandb):
    """In a process of its own: wandb remembers a key that it has seen."""
    nobody = {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc"), "WANDB_BASE_URL": "http://127.0.0.1:9"}
    done = fresh_process(NO_LOGIN, tmp_path, **nobody)
    assert (
        "ConfigError: tracking.wandb: wandb does not start" in done.stderr and "run `wandb login` first" in done.stderr
    )


def test_wandb_is_off_unless_asked(pretrained):
    assert TrackingConfig().wandb == "off" and not list(pretrained.glob("wandb*"))


# ------------------------------------------------------------------------------------------------ pictures, progress


def prediction(name: str, seconds: float, judged: tuple[float, float], dims: int = 2) -> Prediction:
    time = np.arange(0, seconds, 1 / 64)
    target = np.stack([np.sin(time + k) for k in range(dims)], axis=1).astype(np.float32)
    return Prediction(name, time, target * 0.5, target, (time >= judged[0]) & (time < judged[1]))


def test_the_picture_shows_the_ten_seconds_that_are_judged_most():
    judged = prediction("s", 60.0, (31.0, 55.0))
    shown = judged.time[busiest(judged)]
    assert (
        shown[0] == pytest.approx(31.0)
        and shown[-1] == pytest.approx(41.0, abs=1 / 32)
        and judged.evaluated[busiest(judged)].all()
    )
    unjudged = prediction("s", 5.0, (9.0, 9.0))
    assert len(unjudged.time[busiest(unjudged)]) == len(unjudged.time)


def test_a_picture_has_sessions_side_by_side(tmp_path):
    many = [prediction(f"s{n}", 30.0, (5.0, 25.0), dims=1 + n % 2) for n in range(7)]
    assert [p.session for p in chosen(many)] == ["s0", "s3", "s6"] and chosen(many[:2]) == many[:2]
    (tmp_path / "one.png").write_bytes(draw_traces(many[:1], "step 1"))
    (tmp_path / "many.png").write_bytes(draw_traces(many, "step 1"))
    one, three = imread(tmp_path / "one.png"), imread(tmp_path / "many.png")
    assert three.shape[1] == 3 * one.shape[1] and three[..., :3].std() > 0.05  # not blank


@pytest.mark.parametrize(
    "every, validations, drawn",
    [(0, [0, 100, 200], []), (100, [0, 100, 200], [100, 200]), (250, [0, 100, 200, 300, 400, 500], [300, 500])],
)
def test_pictures_come_at_the_validation_after_each_interval(tmp_path, every, validations, drawn):
    tracker = Tracker(MetricsFile(tmp_path / "metrics.csv", [], None), TrackingConfig(traces_every=every))
    for step in validations:
        tracker.judged(step, {"s": 0.5}, [prediction("s", 12.0, (0.0, 12.0))])
    assert [path.name for path in sorted(tmp_path.glob("traces/*"))] == [f"step-{step:08d}.png" for step in drawn]


def test_a_progress_line_says_what_is_known(capsys, monkeypatch):
    now = iter([0.0, 100.0, 100.0, 119.0])  # begun, and each update
    monkeypatch.setattr("pretrain.progress.time.monotonic", lambda: next(now))
    progress = StepProgress(1000, 500)
    progress.update(510, {"train/loss": 0.5, "speed/tokens_s": 12345.6}, told=True)
    progress.update(520, {"valid/r2": 0.75, "train/loss": float("nan")}, told=True)
    progress.update(530, {"train/loss": 0.25}, told=False)  # not 20 s later
    first, second = capsys.readouterr().err.splitlines()
    assert first == "step 510/1000  loss 0.5000  12,346 tokens/s  1 h 21 min left"
    assert second == "step 520/1000  loss 0.5000  R2 0.750  12,346 tokens/s  40 min 00 s left"
    now = iter([0.0, 1.0])
    StepProgress(1000, 0, quiet=True).update(10, {"train/loss": 0.5}, told=True)
    assert capsys.readouterr().err == ""
