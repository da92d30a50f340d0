"""`spikeloom doctor`: what is wrong is a row, whatever else is wrong; the numbers it tells are those of a training."""

import http.server
import json
import os
import threading
import time
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import psutil
import pytest
import torch
import wandb

from launch import doctor, doctor_cluster, doctor_machine, doctor_room, doctor_software
from launch.cli import main
from launch.config import load
from launch.doctor import CHECKS, Check, examine
from launch.doctor_case import FAULT, OK, SKIPPED, WARNING, Case, DoctorConfig, Trial, fault, fine
from launch.submit_cluster import ClusterConfig
from launch.verb_doctor import DOCTOR, show_examined
from pretrain.checkpoint import load_checkpoint
from pretrain.optim import OptimConfig
from pretrain.saves import Saves
from pretrain.strategy import StrategyConfig
from pretrain.train import pretrain
from pretrain.trainer import TrainerConfig
from sharding.loader import LoaderConfig
from tests.pretrain.conftest import SIGNAL, make_session, make_shards, tiny_config

PARTS = ("weights", "optimizer", "average")  # of a save
DEAR = ("packages", "processes")  # processes of their own: asked for where they are what is tested
CLUSTER = ClusterConfig(partition="gpu", time="01:00:00", cpus_per_task=2, memory="4G")


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """Two sessions, a and b, of 12 and 10 units."""
    sessions = [make_session("a", 12, seed=1), make_session("b", 10, seed=2)]
    return make_shards(tmp_path_factory.mktemp("doctor"), sessions)


@pytest.fixture
def config(shards, tmp_path) -> DoctorConfig:
    """A training that is well."""
    return DoctorConfig(**vars(tiny_config(shards, tmp_path / "run")))


def asked(config: DoctorConfig, *names: str) -> dict[str, list]:
    """Findings of these checks, or of all that cost no process, by check."""
    names = names or [name for name in CHECKS if name not in DEAR]
    found: dict[str, list] = {}
    for row in examine(config, {name: CHECKS[name] for name in names}):
        found.setdefault(row.check, []).append(row.finding)
    return found


def states(findings) -> set[str]:
    return {finding.state for finding in findings}


def only(findings, state: str):
    """The one finding of that state."""
    (found,) = [finding for finding in findings if finding.state == state]
    return found


# ---------------------------------------------------------------------------------------------------- the whole


def test_a_training_that_is_well_has_no_fault_and_nothing_is_left_behind(config, tmp_path):
    found = asked(config)
    assert {name: states(findings) for name, findings in found.items() if states(findings) - {OK, SKIPPED}} == {}
    skipped = {name for name, findings in found.items() if SKIPPED in states(findings)}
    assert skipped == {"nccl", "deepspeed", "checksums", "cluster"}
    assert found["sessions"][0].found == f"2 sessions, 22 units, {SIGNAL} of 2 dimensions"
    assert "all 4 windows of a part" in found["trial"][0].found
    assert not list(tmp_path.iterdir())


def test_a_check_that_breaks_or_hangs_is_a_row_and_the_others_are_asked(config):
    never = threading.Event()
    checks = {
        "breaks": Check(lambda case: 1 / 0, 5),
        "hangs": Check(lambda case: never.wait(), 0.2),
        "answers": Check(lambda case: [fine("well")], 5),
        "rests on one that hung": Check(lambda case: [fine("never asked")], 5, after=("answers", "hangs")),
    }
    broke, hung, well, rests = (row.finding for row in examine(config, checks))
    never.set()
    assert broke.state == FAULT and "ZeroDivisionError: division by zero" in broke.found
    assert hung.state == FAULT and hung.found == "gave no answer in 0.2 s"
    assert (well.state, well.found) == (OK, "well")
    assert (rests.state, rests.found) == (SKIPPED, "needs hangs")


def test_the_exit_code_is_1_where_a_fault_stands(config, capsys):
    assert show_examined(examine(config, {"one": Check(lambda case: [fine("well")], 5)}), 1.2) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "0 faults, 0 warnings in 1 s"
    assert show_examined(examine(config, {"one": Check(lambda case: [fault("ill", "mend it")], 5)}), 1.2) == 1
    title, columns, row, last = capsys.readouterr().out.splitlines()
    assert columns.split() == ["check", "state", "found", "do"]
    assert row.split() == ["one", "FAULT", "ill", "mend", "it"] and last == "1 fault, 0 warnings in 1 s"


def test_it_takes_every_shipped_pretraining_and_cluster(repository):
    schema = DOCTOR.schema()
    for file in (repository / "configs/pretrain").glob("*.yaml"):
        assert load(schema, str(file), ["full=true"]).full
    for file in (repository / "configs/cluster").glob("*.yaml"):
        config = load(schema, DOCTOR.file, [f"cluster={file}", "cluster.nodes=2"])
        assert Case(config).world == 2 * config.cluster.tasks_per_node


def test_the_command_prints_a_table_and_gives_the_exit_code(shards, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(doctor, "CHECKS", {name: CHECKS[name] for name in ("clock and text", "shards", "run folder")})
    assert main(["doctor", f"shards={shards}", f"run={tmp_path / 'run'}"]) == 0
    told = capsys.readouterr()
    assert "2 sessions, 22 units" in told.out and told.out.endswith(" s\n") and "0 faults, 0 warnings in" in told.out
    assert main(["doctor", f"shards={tmp_path / 'none'}"]) == 1
    told = capsys.readouterr().out
    assert "holds no index.json" in told and "1 fault, 0 warnings in" in told
    assert main(["doctor", f"shards={shards}", "--dry-run"]) == 0
    assert f"# would look at this machine and at {shards}, reading a few of them" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------- software


def test_other_versions_than_pinned_are_told(config, tmp_path, monkeypatch):
    pins = tmp_path / "constraints.txt"
    pins.write_text(f"# pins\nnumpy==0.1\npsutil=={psutil.__version__}\nnot-installed==1\n")
    monkeypatch.setattr(doctor_software, "CONSTRAINTS", pins)
    monkeypatch.setattr(doctor_software, "_run", lambda command, limit_s: (0, ""))  # pip check: two seconds
    found = only(asked(config, "packages")["packages"], WARNING).found
    assert "numpy" in found and "not 0.1" in found and "psutil" not in found and "not-installed" not in found


def test_two_real_processes_meet(config):
    assert states(asked(config, "processes")["processes"]) == {OK}


@pytest.mark.slow
def test_why_two_real_processes_do_not_meet_is_told(config, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nowhere0")
    found = only(asked(config, "processes")["processes"], FAULT)
    assert "do not meet over gloo" in found.found and "nowhere0" in found.found and "GLOO_SOCKET_IFNAME" in found.do


@pytest.mark.slow
def test_packages_and_deepspeed_are_asked_as_a_training_would_load_them(config):
    spread = replace(config, trainer=replace(config.trainer, strategy=StrategyConfig("zero2")))
    found = asked(spread, "packages", "deepspeed")
    assert states(found["packages"] + found["deepspeed"]) == {OK}
    assert found["deepspeed"][0].found == f"DeepSpeed {version('deepspeed')} loads"


def test_a_command_that_hangs_is_ended_with_what_it_started(tmp_path):
    mark = tmp_path / "pid"
    began = time.monotonic()
    code, told = doctor_software._run(["bash", "-c", f"sleep 60 & echo $! > {mark}; wait"], 0.5)
    assert (code, told) == (124, "no answer in 0.5 s") and time.monotonic() - began < 30
    with suppress(psutil.NoSuchProcess):  # else it is dead soon, and whoever adopted it may never ask
        sleeper = psutil.Process(int(mark.read_text()))
        while sleeper.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() - began < 30
            time.sleep(0.01)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPU")
def test_a_gpu_that_is_not_there_is_told_once(config):
    wants = replace(config, trainer=replace(config.trainer, device="cuda"))
    found = asked(wants)
    faults = [name for name, findings in found.items() if FAULT in states(findings)]
    assert faults == ["torch"] and "torch sees no CUDA device" in only(found["torch"], FAULT).found
    meant = asked(replace(wants, cluster=replace(CLUSTER, gpus_per_node=1)), "torch", "devices")
    assert states(meant["torch"] + meant["devices"]) == {OK}
    fewer = asked(replace(wants, cluster=replace(CLUSTER, gpus_per_node=1, tasks_per_node=2)), "torch", "devices")
    assert "2 ranks a node for 1 GPUs" in only(fewer["devices"], FAULT).found


# ---------------------------------------------------------------------------------------------------- shards, batches


def test_a_damaged_shard_is_named_and_what_rests_on_it_is_not_asked(tmp_path):
    root = make_shards(tmp_path, [make_session("a", 6, seconds=20)])
    config = DoctorConfig(**vars(tiny_config(root, tmp_path / "run", sessions=["*"])))
    data = bytearray((root / "train-000000.tar").read_bytes())
    data[600] ^= 1
    (root / "train-000000.tar").write_bytes(data)
    found = asked(config)
    assert "train-000000.tar: its sha256 is not" in only(found["shards"], FAULT).found
    for name in ("sessions", "batches", "memory", "trial", "duration"):
        assert states(found[name]) == {SKIPPED}
    assert states(found["run folder"]) == {OK}
    (root / "train-000000.tar").write_bytes(data[:-512])
    assert "bytes, its index says" in only(asked(config, "shards")["shards"], FAULT).found


def test_all_bytes_are_read_where_that_is_asked_for(config):
    found = asked(replace(config, full=True), "shards", "checksums")["checksums"]
    assert found[0].state == OK and "3 shards read" in found[0].found and "no fault" in found[0].found


def test_a_signal_that_sessions_lack_is_told_with_those_they_have(config):
    found = asked(replace(config, task=replace(config.task, signal="position")), "sessions", "batches")
    told = only(found["sessions"], FAULT)
    assert "2 of 2 sessions have no signal 'position': tiny/a, tiny/b" in told.found and SIGNAL in told.do
    assert states(found["batches"]) == {SKIPPED}


def test_batches_are_those_of_the_training(config):
    found = asked(config, "sessions", "devices", "batches")["batches"]
    case = Case(config)
    epoch = case.new_loader().epoch_windows / 4
    assert f"4 windows a batch, {epoch:,.1f} batches an epoch, {8 / epoch:,.1f} epochs in 8 steps" == found[0].found
    assert case.load.tokens == max(len(share.token_unit_S) for share in case.shares)
    halved = Case(replace(config, trainer=replace(config.trainer, accumulate=2)))
    assert halved.load.windows == 2 and case.load.tokens / 3 < halved.load.tokens < case.load.tokens


def test_fewer_windows_than_ranks_or_parts_are_told(config):
    few = replace(config, cluster=replace(CLUSTER, nodes=8))
    assert "is 4 for 8 ranks" in only(asked(few, "batches")["batches"], FAULT).found
    parts = replace(config, trainer=replace(config.trainer, accumulate=8))
    assert "4 windows make no 8 parts" in only(asked(parts, "batches")["batches"], WARNING).found


def test_shards_of_a_server_are_not_fetched_for_an_estimate(config, monkeypatch):
    case, fetched = Case(config), Case(config)
    monkeypatch.setattr(Case, "readable", False)  # a server's root; the loader's own tests have a real one
    assert case.load.tokens == pytest.approx(fetched.load.tokens, rel=0.5) and "shares" not in vars(case)
    found = asked(config, "batches", "memory", "trial")
    assert states(found["batches"] + found["memory"]) == {OK} and states(found["trial"]) == {SKIPPED}


# ---------------------------------------------------------------------------------------------------- room


def test_saves_and_checkpoints_are_as_large_as_told_and_the_run_folder_is_known_again(config):
    small = replace(config, trainer=replace(config.trainer, steps=2, val_every=2, save_every=2))
    small = replace(small, optim=OptimConfig(name="lamb", average=0.5))
    case = Case(small)
    need = case.estimate
    folder = pretrain(case.pretraining)
    save = Saves(folder / "saves").newest()
    assert need.save == sum(tensor.nbytes for part in PARTS for tensor in save.tensors(part).values())
    assert 0 < save.path.stat().st_size - need.save < 30_000  # names and facts
    names = doctor_room.names_bytes(case.sampling.units, case.sampling.sessions)
    size = sum(path.stat().st_size for path in (folder / "checkpoint").iterdir())
    assert 0 < size - need.checkpoint - names < 30_000
    assert sum(tensor.nbytes for tensor in load_checkpoint(folder).weights.values()) == need.checkpoint
    assert "finished run" in only(asked(small, "run folder")["run folder"], WARNING).found
    other = only(asked(replace(small, seed=7), "run folder")["run folder"], FAULT)
    assert "a run with other settings is there (seed: 42 there, 7 here)" in other.found
    provenance = json.loads((folder / "provenance.json").read_text())
    (folder / "provenance.json").write_text(json.dumps(provenance | {"finished": None}))
    assert "goes on from step 2 of 2" in asked(small, "run folder")["run folder"][0].found


def test_a_folder_that_cannot_be_written_to_and_a_full_disk_are_faults(config, monkeypatch):
    found = asked(replace(config, run="/proc/run"), "run folder", "saves")
    assert "/proc" in only(found["run folder"], FAULT).found and states(found["saves"]) == {SKIPPED}
    usage = doctor_room.shutil.disk_usage
    # a full disk stands in for one: to fill one takes a file system of our own
    monkeypatch.setattr(doctor_room.shutil, "disk_usage", lambda path: usage(path)._replace(free=1000))
    found = only(asked(config, "run folder", "batches", "saves")["saves"], FAULT)
    assert "1 kB free for 3 saves of" in found.found and "free 1" in found.do


def test_a_model_that_no_memory_holds_is_a_fault_and_is_never_built(config):
    giant = replace(config, model=replace(config.model, width=8192, depth=96))
    found = asked(giant, "batches", "memory", "trial")
    told = only(found["memory"], FAULT)
    assert "of host memory for the ranks of a node (1)" in told.found and "trainer.accumulate=2" in told.do
    assert states(found["trial"]) == {SKIPPED}


def test_the_memory_of_a_job_counts_where_it_is_less_than_the_machines(config, tmp_path, monkeypatch):
    groups = Path("/proc/self/cgroup").read_text().splitlines()
    own = next((line.split(":", 2)[2] for line in groups if line.startswith("0::")), "")
    folder = tmp_path / own.strip("/")
    folder.mkdir(parents=True, exist_ok=True)
    monkeypatch.setattr(doctor_machine, "GROUPS", tmp_path)  # files as the system has them: a group takes rights
    (folder / "memory.max").write_text("max\n")
    (folder / "memory.current").write_text("1000\n")
    case = Case(config)
    assert doctor_machine.host_memory(case)[1] == "free here"
    (folder / "memory.max").write_text("51000\n")
    assert doctor_machine.host_memory(case) == (50000, "left in this job's or container's limit")
    assert doctor_machine.host_memory(Case(replace(config, cluster=CLUSTER))) == (4 << 30, "by cluster.memory")


def test_workers_need_shared_memory_for_their_batches(config, monkeypatch):
    working = replace(config, loader=LoaderConfig(batch_windows=4, workers=2, prefetch=3))
    usage = doctor_machine.shutil.disk_usage
    found = asked(working, "batches", "limits")["limits"]
    assert states(found) == {OK}
    size = max(sum(t.nbytes for t in share.tensors().values()) for share in Case(config).shares)
    assert f"2 workers a rank fill {8 * size / 1e3:.3g} kB" in found[1].found
    monkeypatch.setattr(doctor_machine.shutil, "disk_usage", lambda path: usage(path)._replace(free=7 * size))
    assert "--shm-size" in only(asked(working, "batches", "limits")["limits"], FAULT).do


# ---------------------------------------------------------------------------------------------------- time


def test_a_trial_stops_growing_where_its_time_ends_and_none_is_taken_without(config):
    case = Case(replace(config, loader=LoaderConfig(batch_windows=32), trial_s=1e-9))
    (found,) = CHECKS["trial"].ask(case)
    assert "by 4 of 32 windows of a part" in found.found and case.trial.step_s > 0
    threads = torch.get_num_threads()
    assert CHECKS["trial"].ask(Case(replace(config, trial_s=0.0)))[0].state == SKIPPED
    assert torch.get_num_threads() == threads


def test_a_loss_that_is_not_finite_is_a_fault(config):
    (found,) = CHECKS["trial"].ask(Case(replace(config, optim=OptimConfig(lr=1e30))))
    assert found.state == FAULT and "the loss of the first steps is nan" in found.found


def timed(config: DoctorConfig, trial: Trial):
    case = Case(config)
    case.trial, case.disk_rate = trial, 1e6
    return case, CHECKS["duration"].ask(case)


def test_the_time_of_a_training_is_the_sum_of_what_it_does(config):
    trainer = TrainerConfig(steps=1000, val_every=100, save_every=50, val_step_s=1.0, device="cpu")
    case, found = timed(replace(config, trainer=trainer), Trial(2.0, 3.0, 0.5, "cpu"))
    times = doctor_cluster.times_of(case)
    assert times.steps == 3000  # a batch takes longer than a step: one thread makes them ahead
    valid = 2 * (60 * 0.2 - 1)  # windows of a second, beside each other, in both sessions
    assert times.validations == pytest.approx(11 * valid * 0.5)
    assert times.saves == pytest.approx(20 * case.estimate.save / 1e6)
    assert times.whole == 3000 + times.validations + times.saves
    assert [finding.state for finding in found] == [OK]
    alone = replace(config, trainer=trainer, loader=replace(config.loader, prefetch=0))
    assert doctor_cluster.times_of(timed(alone, Trial(2.0, 3.0, 0.5, "cpu"))[0]).steps == 5000


def test_jobs_of_a_cluster_are_counted_and_what_cannot_end_well_is_told(config):
    trainer = TrainerConfig(steps=10_000, val_every=10_000, save_every=500, device="cpu")
    cluster = replace(CLUSTER, time="02:00:00", signal_s=120)
    trial = Trial(2.0, 0.0, 0.0, "cpu")  # 20,000 s in jobs of 7,200 - 120 - 60 s
    _, found = timed(replace(config, trainer=trainer, cluster=cluster), trial)
    assert found[1].found == "3 jobs of 2 h 0 min: 2 requeues" and states(found) == {OK}
    _, found = timed(replace(config, trainer=trainer, cluster=replace(cluster, max_requeues=1)), trial)
    assert "only 1 requeues are allowed" in only(found, FAULT).found
    _, found = timed(replace(config, trainer=trainer, cluster=replace(cluster, signal_s=0)), trial)
    assert "each job loses up to 17 min" in only(found, WARNING).found
    slow = Trial(300.0, 0.0, 0.0, "cpu")
    _, found = timed(replace(config, trainer=trainer, cluster=replace(cluster, max_requeues=10**6)), slow)
    assert "the signal comes 120 s before" in only(found, FAULT).found and "signal_s=601" in only(found, FAULT).do
    _, found = timed(replace(config, trainer=trainer, cluster=replace(cluster, time="5")), slow)
    assert "a job of 5 min leaves no time" in only(found, FAULT).found


@pytest.mark.parametrize(
    "text, seconds",
    [
        ("30", 1800),
        ("30:15", 1815),
        ("04:00:00", 14400),
        ("2-3", 183600),
        ("1-00:30", 88200),
        ("1-02:03:04", 93784),
        ("infinite", float("inf")),
        ("", float("inf")),
    ],
)
def test_times_are_read_as_slurm_reads_them(text, seconds):
    assert doctor_cluster.seconds_of(text) == seconds


def test_sizes_and_gpus_are_read_as_slurm_writes_them():
    assert [doctor_machine.bytes_of(size) for size in ("64G", "500", "1t", "")] == [64 << 30, 500 << 20, 1 << 40, 0]
    told = ("gpu:h100:4(S:0-1),lustre:1", "gpu:2", "(null)", "gpu:a:1,gpu:b:2")
    assert [doctor_cluster._gpus(gres) for gres in told] == [4, 2, 0, 3]


# ---------------------------------------------------------------------------------------------------- cluster, wandb


@pytest.fixture
def sinfo(tmp_path, monkeypatch):
    """A stand-in that says what it is told to; the real one is asked in tests/slurm."""

    def say(lines: str, code: int = 0) -> None:
        path = tmp_path / "bin/sinfo"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\ncat <<'END'\n{lines}\nEND\nexit {code}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{path.parent}{os.pathsep}{os.environ['PATH']}")

    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    return say


def test_a_partition_that_gives_what_is_asked_for_is_well(config, sinfo):
    sinfo("cpu*|up|infinite|40|64|256000|(null)\ngpu|up|1-00:00:00|8|32+|512000+|gpu:h100:4(S:0)")
    cluster = replace(CLUSTER, gpus_per_node=4, tasks_per_node=4, cpus_per_task=8, nodes=8, memory="500G")
    (found,) = asked(replace(config, cluster=cluster), "cluster")["cluster"]
    assert (found.state, found.found) == (OK, "partition gpu is up: 8 nodes, time limit 1-00:00:00")
    (found,) = asked(replace(config, cluster=replace(CLUSTER, partition="")), "cluster")["cluster"]
    assert found.found.startswith("partition cpu is up")


def test_what_a_partition_does_not_give_is_told_each_by_itself(config, sinfo):
    sinfo("gpu|down|00:30:00|2|4|1000|gpu:1")
    cluster = replace(CLUSTER, gpus_per_node=2, cpus_per_task=8, nodes=3)
    told = [finding.found for finding in asked(replace(config, cluster=cluster), "cluster")["cluster"]]
    assert told == [
        "partition gpu is down",
        "cluster.time is 01:00:00, gpu gives 00:30:00",
        "3 nodes are asked for, gpu has 2",
        "8 cores a node are asked for, gpu has 4",
        "4,096 MB a node are asked for, gpu has 1,000",
        "2 GPUs a node are asked for, gpu has 1",
    ]
    found = only(asked(replace(config, cluster=replace(CLUSTER, partition="big")), "cluster")["cluster"], FAULT)
    assert found.found == "no partition 'big'" and found.do.endswith("one of gpu")
    sinfo("", code=1)
    assert "SLURM does not answer" in only(asked(replace(config, cluster=CLUSTER), "cluster")["cluster"], FAULT).found


class _Answers(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.send_response(404)
        self.end_headers()

    def log_message(self, *words):
        pass


def test_wandb_needs_an_account_and_an_answer_only_where_it_is_online(config, tmp_path, monkeypatch):
    def found(mode: str):
        wandb.teardown()  # it looks at the environment once
        (told,) = asked(replace(config, tracking=replace(config.tracking, wandb=mode)), "wandb")["wandb"]
        return told

    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert found("off").state == found("offline").state == OK
    assert found("online").state == FAULT and "no account for 127.0.0.1" in found("online").found
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1 login user password {'0' * 40}")
    (tmp_path / "netrc").chmod(0o600)
    assert found("online").state == WARNING and "cannot be reached" in found("online").found
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
        assert found("online").state == OK
        server.shutdown()
    wandb.teardown()
