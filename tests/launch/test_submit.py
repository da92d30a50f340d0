"""Submitting to SLURM, with programs of its names that note what they are told: what is written and asked for.

Real jobs of a real SLURM are run in tests/slurm.
"""

import os
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from data_prep.errors import ConfigError
from data_prep.recipe import Recipe
from launch import cli
from launch.config import load
from launch.submit_cluster import ClusterConfig, environment_of, options_of
from launch.submit_state import submitted
from launch.verb_submit import read_words
from pretrain.finetune import FinetuneConfig
from pretrain.train import PretrainConfig, chosen_sessions

ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "slurm" / "job.sbatch")
CLUSTERS = sorted((ROOT / "configs" / "cluster").glob("*.yaml"))
SMALL = "nodes: 2\ntasks_per_node: 4\ngpus_per_node: h100:4\ncpus_per_task: 3\ntime: '10'\n"
SBATCH = """#!/bin/bash
n=$(ls calls | wc -l)
printf '%s\\0' "$@" >calls/$n
if [[ $* == *--qos=none* ]]; then
  echo "sbatch: error: Batch job submission failed: Invalid qos specification" >&2
  exit 1
fi
echo "$((n + 100))"
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with small.yaml (a cluster), and sbatch and scancel that note their words in `calls`."""
    for folder in ("bin", "calls"):
        (tmp_path / folder).mkdir()
    for name, text in (("sbatch", SBATCH), ("scancel", '#!/bin/bash\necho "$*" >>cancelled\n')):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "small.yaml").write_text(SMALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return tmp_path


def submit(*words: str) -> int:
    return cli.main(["submit", *words])


def calls() -> list[list[str]]:
    """The words of each call of sbatch, in order."""
    files = sorted(Path("calls").iterdir(), key=lambda path: int(path.name))
    return [path.read_text().split("\0")[:-1] for path in files]


# ------------------------------------------------------------------------------------------------ clusters


@pytest.mark.parametrize("path", CLUSTERS, ids=lambda path: path.stem)
@pytest.mark.parametrize("training", [True, False], ids=["training", "other"])
def test_every_shipped_cluster_gives_options_and_an_environment_that_bash_reads(path, training):
    cluster = load(ClusterConfig, str(path), [])
    options = dict(option[2:].partition("=")[::2] for option in options_of(cluster, training, gpus=training))
    assert options["partition"] and options["time"] and options["cpus-per-task"] and options["requeue"] == ""
    assert options["nodes"] == "1" and ("signal" in options) == training
    assert options["ntasks-per-node"] == (str(cluster.tasks_per_node) if training else "1")
    gpus = str(cluster.gpus_per_node) if training and cluster.gpus_per_node else None
    assert options.get("gpus-per-node") == gpus and gpus in (None, options["ntasks-per-node"]), "a rank a GPU"
    bash = 'source() { echo "sourced $1"; }\n' + environment_of(cluster) + 'echo "${SPIKELOOM_CACHE-none}"'
    told = subprocess.run(["bash", "-euc", bash], env={"PATH": "/bin", "USER": "ada"}, capture_output=True, text=True)
    assert told.stdout.splitlines()[-1] == (cluster.scratch.replace("$USER", "ada") or "none"), told.stderr


def test_the_gpu_partition_asks_for():
    cluster = load(ClusterConfig, "cluster/gpu.yaml", ["nodes=2", "account=lab", "extra=[--reservation=day 1]"])
    assert shlex.join(options_of(cluster, training=True, gpus=True)) == (
        "--partition=gpu --account=lab --nodes=2 --ntasks-per-node=4 --gpus-per-node=4 --cpus-per-task=8 --mem=128G "
        "--time=04:00:00 --signal=USR1@120 --requeue '--reservation=day 1'"
    )
    one = options_of(replace(cluster, gpus_per_node="a100:4", requeue=False), training=False, gpus=True)
    assert {"--gpus-per-node=a100:1", "--nodes=1", "--ntasks-per-node=1", "--no-requeue"} < set(one)


@pytest.mark.parametrize(
    "setting, fault",
    [
        (
            "setup=[export WANDB_API_KEY=abcdef]",
            "cluster.setup: it would write WANDB_API_KEY=... into a file; keep secrets",
        ),
        ("setup=[my_token=abc run]", "it would write my_token=... into a file"),
        ("nodes=0", "cluster.nodes: 0 is too few; give at least 1"),
        ("gpus_per_node=four", "cluster.gpus_per_node: 'four' is no number"),
        ("extra=[reservation]", "cluster.extra: 'reservation' is no option"),
        ("scratch=/tmp/$(whoami)", r"cluster.scratch: '/tmp/\$\(whoami\)' is no plain path"),
    ],
)
def test_a_cluster_that_cannot_be_is_refused(setting, fault):
    with pytest.raises(ConfigError, match=fault):
        load(ClusterConfig, None, [setting])


def test_a_variable_of_the_users_own_environment_is_no_secret():
    cluster = load(ClusterConfig, None, ['setup=["export HF_TOKEN=$HF_TOKEN", "export A_KEY=", "module load x"]'])
    assert cluster.setup == ["export HF_TOKEN=$HF_TOKEN", "export A_KEY=", "module load x"]


# ------------------------------------------------------------------------------------------------ one command


def test_a_pretraining_is_a_folder_that_can_be_submitted_again(here, capsys):
    words = ["shards=my shards", "run=runs/mp", "trainer.steps=7"]
    assert submit("small.yaml", "pretrain", "pretrain/demo.yaml", *words, "cluster.nodes=3", "cluster.qos=high") == 0
    folder = here / "runs" / "mp" / "submit"
    assert capsys.readouterr().out == f"job 100: pretrain, in {folder}\n"
    assert {path.name for path in folder.iterdir()} == {
        "config.yaml",
        "env.sh",
        "submit.sh",
        "jobs.txt",
        "logs",
        "ends",
    }
    config = load(PretrainConfig, str(folder / "config.yaml"), [])
    assert config == load(PretrainConfig, "pretrain/demo.yaml", words) and config.shards == "my shards"
    again = subprocess.run(["bash", folder / "submit.sh", "--begin=now+1hour"], capture_output=True, text=True)
    assert again.stdout == "101\n" and (folder / "jobs.txt").read_text() == "100\n101\n"
    first, second = calls()
    assert [word for word in second if word != "--begin=now+1hour"] == first and len(second) == len(first) + 1
    assert first.pop(1).startswith("--job-name=pretrain-mp-")
    assert first == [
        *["--parsable", "--dependency=singleton", f"--chdir={here}", f"--output={folder}/logs/%j.log"],
        *["--open-mode=append", "--qos=high", "--nodes=3", "--ntasks-per-node=4", "--gpus-per-node=h100:4"],
        *["--cpus-per-task=3", "--time=10", "--signal=USR1@120", "--requeue"],
        *[SCRIPT, str(folder), "100", "pretrain", str(folder / "config.yaml")],
    ]
    assert submitted(here / "runs" / "mp") == [folder]


def test_two_runs_of_one_name_do_not_wait_for_each_other(here):
    for run in ("a/mp", "b/mp", "a/mp"):
        submit("small.yaml", "pretrain", "shards=s", f"run={run}")
    first, second, third = (words[1] for words in calls())
    assert first == third != second


def test_a_job_without_requeue_may_not_queue_itself_again(here):
    submit("small.yaml", "pretrain", "shards=s", "run=r", "cluster.requeue=false", "cluster.max_requeues=9")
    (words,) = calls()
    assert "--no-requeue" in words and words[words.index(SCRIPT) + 2] == "0"


def test_prepare_is_an_array_of_parts_on_one_task_each(here):
    recipe = "dandisets/synthetic.yaml"
    settings = ["source=nwb files", "output=out", "recipe.min_train_s=1", "archive.stream=true"]
    assert submit("small.yaml", "prepare", recipe, *settings, "parts=3", "cluster.at_once=2") == 0
    folder = here / "out" / "submit"
    assert (folder / "elements.tsv").read_text() == "part 1\tpart=1/3\npart 2\tpart=2/3\npart 3\tpart=3/3\n"
    read = load(Recipe, str(folder / "config.yaml"), [])
    assert read.min_train_s == 1 and read.name == load(Recipe, recipe, []).name
    (words,) = calls()
    assert {"--array=0-2%2", "--nodes=1", "--ntasks-per-node=1", f"--output={folder}/logs/%A_%a.log"} < set(words)
    assert not [word for word in words if word.startswith(("--gpus", "--signal"))]
    told = [
        "prepare",
        str(folder / "config.yaml"),
        "source=nwb files",
        "output=out",
        "archive.stream=true",
        "workers=3",
    ]
    assert words[words.index(SCRIPT) + 3 :] == told


def test_prepare_in_one_part_is_no_array(here):
    assert submit("small.yaml", "prepare", "dandisets/synthetic.yaml", "source=nwb", "output=out", "parts=3") == 0
    assert submit("small.yaml", "prepare", "dandisets/synthetic.yaml", "source=nwb", "output=out", "workers=1") == 0
    words = calls()[1]
    assert not [word for word in words if word.startswith("--array")] and words[-1] == "workers=1"
    assert not (here / "out" / "submit" / "elements.tsv").exists(), "of the array that was submitted before"


def test_finetuning_each_session_is_an_array_of_runs_that_choose_it_alone(here, tiny_root):
    ids = ["lab/A_1", "lab/A_2", "lab/A-[x],*", "lab/B_1"]
    tiny_root(here / "shards", dict.fromkeys(ids, "A"))
    words = ["finetune/demo.yaml", "checkpoint=c", "shards=shards", "run=runs/ft", "sessions=lab/*", "exclude=*B_1"]
    assert submit("small.yaml", "finetune", *words, "each=session") == 0
    folder = here / "runs" / "ft" / "submit"
    lines = [line.split("\t") for line in (folder / "elements.tsv").read_text().splitlines()]
    chosen = (folder / "sessions.txt").read_text().splitlines()
    assert sorted(chosen) == sorted(ids[:3]) and [line[0] for line in lines] == chosen
    configs = [load(FinetuneConfig, str(folder / "config.yaml"), settings) for _, *settings in lines]
    index = [chosen_sessions(one.shards, one.sessions, one.exclude).session_ids for one in configs]
    assert index == [(name,) for name in chosen]
    runs = {name: one.run for name, one in zip(chosen, configs)}
    assert runs == {"lab/A_1": "runs/ft/lab__A_1", "lab/A_2": "runs/ft/lab__A_2", ids[2]: "runs/ft/lab__A--x---"}
    assert {one.checkpoint for one in configs} == {"c"} and "--array=0-2" in calls()[0]


def test_a_run_is_judged_from_a_folder_of_its_own(here):
    submit("small.yaml", "pretrain", "shards=s", "run=runs/mp")
    submit("small.yaml", "evaluate", "run=runs/mp", "split=valid")
    assert [path.name for path in submitted("runs/mp")] == ["submit", "submit_evaluate"]
    words = calls()[1]
    assert {"--gpus-per-node=h100:1", "--ntasks-per-node=1"} < set(words) and words[-2] == "evaluate"


def test_a_dry_run_prints_every_file_and_writes_none(here, capsys):
    assert submit("small.yaml", "pretrain", "shards=s", "run=runs/mp", "--dry-run") == 0
    out = capsys.readouterr().out
    for line in (
        "  nodes: 2",
        "- verb: pretrain",
        "# config.yaml:",
        "#   shards: s",
        "# env.sh:",
        "#     --time=10 \\",
    ):
        assert line in out.splitlines()
    assert not (here / "runs").exists() and calls() == []


@pytest.mark.parametrize(
    "words, line",
    [
        ([], "spikeloom submit: a cluster is missing; see spikeloom submit --help"),
        (["small.yaml"], "spikeloom submit: a command, or the file of a chain, is missing"),
        (["small.yaml", "pretrian"], "submit pretrian: no command for a cluster; did you mean pretrain?"),
        (["small.yaml", "show", "runs/mp"], "submit show: no command for a cluster; use one of: corpus, evaluate"),
        (["small.yaml", "pretrain", "shards=s"], "submit pretrain: run is not given; give run=FOLDER"),
        (["small.yaml", "evaluate"], "submit evaluate: run is not given; give run=FOLDER"),
        (["small.yaml", "pretrain", "a.yaml", "b.yaml"], "spikeloom submit: two files: a.yaml and b.yaml"),
        (
            ["small.yaml", "pretrain", "shards=s", "run=r", "trainer.stesp=3"],
            "trainer.stesp: no such key; did you mean",
        ),
        (["small.yaml", "pretrain", "shards=s", "run=r", "cluster.node=3"], "cluster.node: no such key; did you mean"),
        (["small.yaml", "pretrain", "shards=s", "run=r", "parts=2"], "parts: 2 of pretrain; only prepare is shared"),
        (["small.yaml", "prepare", "dandisets/synthetic.yaml", "parts=0"], "parts: 0 of prepare; only prepare is"),
        (["small.yaml", "pretrain", "shards=s", "run=r", "each=session"], "each: 'session' of pretrain; only finetune"),
        (["nowhere.yaml", "pretrain"], "nowhere.yaml: no such file"),
        (["small.yaml", "pretrain", "shards=s", "run=small.yaml/x"], "cannot be written (Not a directory)"),
        (
            ["small.yaml", "pretrain", "shards=s", "run=r", "cluster.qos=none"],
            "sbatch of pretrain: it said: Batch job su",
        ),
    ],
)
def test_what_cannot_be_submitted_is_one_line(here, capsys, words, line):
    assert submit(*words) == 2
    error = capsys.readouterr().err
    assert line in error and error.count("\n") == 1


def test_a_run_of_other_settings_is_refused_before_it_waits_in_the_queue(here, capsys):
    (here / "r").mkdir()
    (here / "r" / "config.yaml").write_text("seed: 1\n")
    assert submit("small.yaml", "pretrain", "shards=s", "run=r", "seed=2") == 2
    assert "a run with other settings is there" in capsys.readouterr().err and calls() == []


@pytest.mark.parametrize("code, state", [(0, "done"), (1, "failed")])
def test_one_may_wait_for_the_end_which_is_then_the_commands(here, capsys, code, state):
    (here / "bin" / "squeue").write_text("#!/bin/bash\n")  # it has left the queue
    (here / "bin" / "squeue").chmod(0o755)
    ends = here / "r" / "submit" / "ends"
    ends.mkdir(parents=True)
    (ends / "0.json").write_text(f'{{"job": "100", "exit_code": {code}, "requeues": 2}}')
    assert submit("small.yaml", "pretrain", "shards=s", "run=r", "wait=true") == code
    assert capsys.readouterr().out.splitlines()[-1].split() == ["r", state, str(code), "2"]


def test_a_machine_without_slurm_is_told(here, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert submit("small.yaml", "pretrain", "shards=s", "run=r") == 2
    assert "sbatch: there is no SLURM on this machine; submit from a login node" in capsys.readouterr().err
    assert not (here / "r").exists()


# ------------------------------------------------------------------------------------------------ chains

CHAIN = """steps:
  - verb: prepare
    config: dandisets/synthetic.yaml
    settings: [source=nwb, output=sessions]
    parts: 2
    cluster: cluster/cpu.yaml
  - {verb: shard, settings: [sessions=sessions, output=shards], after: any}
  - {verb: pretrain, config: pretrain/demo.yaml, settings: [shards=shards, run=runs/mp, SEED]}
  - {verb: evaluate, settings: [run=runs/mp]}
"""


def test_a_chain_is_jobs_that_wait_for_each_other(here, capsys):
    (here / "chain.yaml").write_text(CHAIN.replace("SEED", "seed=3"))
    assert submit("small.yaml", "chain.yaml", "cluster.partition=day") == 0
    told = [line.split(",")[0] for line in capsys.readouterr().out.splitlines()]
    assert told == ["job 100: prepare", "job 101: shard", "job 102: pretrain", "job 103: evaluate"]
    waits = [[word for word in words if word.startswith(("--dependency", "--kill"))] for words in calls()]
    alone, last = "--dependency=singleton", "--kill-on-invalid-dep=yes"
    assert waits == [
        [alone],
        [alone, "--dependency=afterany:100,singleton", last],
        [alone, "--dependency=afterok:101,singleton", last],
        [alone, "--dependency=afterok:102,singleton", last],
    ]
    where = [next(word for word in words if word.startswith("--partition")) for words in calls()]
    assert where == ["--partition=cpu", *["--partition=day"] * 3]


@pytest.mark.parametrize("wrong", ["sede=3", "run="])
def test_nothing_of_a_chain_is_submitted_where_a_later_step_is_wrong(here, wrong):
    (here / "chain.yaml").write_text(CHAIN.replace("SEED", wrong))
    assert submit("small.yaml", "chain.yaml") == 2
    assert calls() == [] and not (here / "sessions").exists()


def test_jobs_before_one_that_slurm_refuses_are_cancelled(here, capsys):
    (here / "bad.yaml").write_text("qos: none\n")
    (here / "chain.yaml").write_text(
        CHAIN.replace("SEED", "seed=3").replace("[run=runs/mp]", "[run=runs/mp], cluster: bad.yaml")
    )
    assert submit("small.yaml", "chain.yaml") == 2
    assert (here / "cancelled").read_text() == "100 101 102\n"
    assert "Invalid qos specification; mend the settings of cluster" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, line",
    [
        (
            ["small.yaml", "chain.yaml", "trainer.steps=3"],
            "chain.yaml trainer.steps=3: a chain takes no settings of its steps",
        ),
        (["small.yaml", "chain.yaml", "other.yaml"], "chain.yaml other.yaml: a chain takes no settings of its steps"),
    ],
)
def test_a_chain_says_all_of_its_steps_itself(words, line):
    with pytest.raises(ConfigError, match=line):
        read_words(words)


def test_a_chain_without_steps_and_one_that_waits_for_nothing_known_are_refused(here, capsys):
    (here / "empty.yaml").write_text("wait: true\n")
    (here / "odd.yaml").write_text("steps: [{verb: shard, after: never, settings: [output=o]}]\n")
    assert submit("small.yaml", "empty.yaml") == submit("small.yaml", "odd.yaml") == 2
    errors = capsys.readouterr().err.splitlines()
    assert errors[0].startswith("spikeloom: steps: there is none; list at least one")
    assert errors[1] == "spikeloom: after: 'never' is not known; use one of: ok, any"
