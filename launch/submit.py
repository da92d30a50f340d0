"""A verb and its config -> a job of SLURM: a folder that anyone can read and submit again.

FOLDER/submit/ (of the folder that the verb writes; FOLDER/submit_evaluate/ of a run that is judged) holds

    config.yaml    the resolved config of the verb, as it is run
    env.sh         the environment of its processes
    submit.sh      the call of sbatch; `bash submit.sh` submits again, and what is finished is left as it is
    elements.tsv   of an array: a line an element, its name and what is set for it
    sessions.txt   of an array over sessions: their ids
    jobs.txt       the jobs that were submitted, the latest last
    logs/  ends/   what each job said, and how it ended (slurm/job.sbatch writes it)
"""

import hashlib
import json
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path

from data_prep.errors import ConfigError
from launch.config import load, to_yaml
from launch.files import did_you_mean
from launch.submit_cluster import ClusterConfig, environment_of, options_of
from launch.submit_state import JOBS
from launch.verb import Verb
from launch.verb_corpus import CORPUS
from launch.verb_prepare import PREPARE, SHARD
from launch.verb_train import EVALUATE, FINETUNE, PRETRAIN

SCRIPT = Path(__file__).parents[1] / "slurm" / "job.sbatch"
AFTER = ("ok", "any")


@dataclass(frozen=True)
class Step:
    """One command of a chain, as a job."""

    verb: str = ""
    "the command: prepare, corpus, shard, pretrain, finetune or evaluate"
    config: str | None = None
    "its file; null is what the command takes where none is given"
    settings: list[str] = field(default_factory=list)
    "its settings, each as key=value"
    parts: int = 1
    "of prepare: elements of an array that share the files"
    each: str = ""
    "of finetune: `session` gives every chosen session a run of its own, in an array"
    after: str = "ok"
    "start when the step before has ended well (ok), or has ended at all (any): prepare fails where it refused a file"
    cluster: ClusterConfig | None = None
    "where it runs, if not where the whole chain does"


@dataclass(frozen=True)
class SubmitConfig:
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    "the cluster, a file of configs/cluster; cluster.KEY=value sets a key of it"
    steps: list[Step] = field(default_factory=list)
    "commands, each a job that waits for the one before; `submit CLUSTER VERB [CONFIG] [key=value ...]` is a chain of one"
    wait: bool = False
    "wait until the last job has ended, tell how each ended, and fail where one failed"


@dataclass(frozen=True)
class Kind:
    """A verb, and what submitting has to know of it: the setting that names its folder, and what its job takes."""

    verb: Verb
    place: str
    training: bool = False  # tasks are ranks; asked to stop before the time limit
    gpus: bool = False
    folder: str = "submit"


KINDS = {
    "prepare": Kind(PREPARE, "output"),
    "corpus": Kind(CORPUS, "output"),
    "shard": Kind(SHARD, "output"),
    "pretrain": Kind(PRETRAIN, "run", training=True, gpus=True),
    "finetune": Kind(FINETUNE, "run", training=True, gpus=True),
    "evaluate": Kind(EVALUATE, "run", gpus=True, folder="submit_evaluate"),
}


@dataclass(frozen=True)
class Job:
    """What is written and told to SLURM; nothing of it has happened yet."""

    verb: str
    folder: Path  # absolute
    files: dict[str, str]
    after: str

    @property
    def command(self) -> str:
        return f"bash {shlex.quote(str(self.folder / 'submit.sh'))}"


# ------------------------------------------------------------------------------------------------ what is submitted


def job_of(step: Step, cluster: ClusterConfig) -> Job:
    """The job of a step, its config resolved and checked as far as can be without its data; raises ConfigError."""
    if step.verb not in KINDS:
        raise ConfigError(f"submit {step.verb}".strip(), "no command for a cluster", did_you_mean(step.verb, KINDS))
    if step.after not in AFTER:
        raise ConfigError("after", f"{step.after!r} is not known", f"use one of: {', '.join(AFTER)}")
    cluster = step.cluster or cluster
    kind = KINDS[step.verb]
    verb = kind.verb
    config = load(verb.schema(), step.config or verb.file, step.settings, positional=verb.positional)
    place = getattr(config, kind.place)
    if not place:
        raise ConfigError(f"submit {step.verb}", f"{kind.place} is not given", f"give {kind.place}=FOLDER")
    folder = Path(place).absolute() / kind.folder
    files = {"config.yaml": to_yaml(getattr(config, verb.positional) if verb.positional else config)}
    elements = _elements(step, config)
    if elements:
        files["elements.tsv"] = "".join("\t".join(words) + "\n" for words in elements)
    if step.each:
        files["sessions.txt"] = "".join(f"{name}\n" for name, *_ in elements)
    if kind.training and not elements:
        _check_run(config)
    files["env.sh"] = environment_of(cluster)
    words = [step.verb, str(folder / "config.yaml"), *_words(step, config, verb.positional, cluster)]
    files["submit.sh"] = _script(folder, kind, len(elements), cluster, words)
    return Job(step.verb, folder, files, step.after)


def _words(step: Step, config, positional: str | None, cluster: ClusterConfig) -> list[str]:
    """What follows config.yaml: nothing where it is the whole config; else the settings of all but the field that it is."""
    if positional is None:
        return []
    words = [text for text in step.settings if re.split(r"[.=]", text)[0] != positional]
    own = any(text.startswith("workers=") for text in words) or not hasattr(config, "workers")
    return words if own else [*words, f"workers={cluster.cpus_per_task}"]


def _elements(step: Step, config) -> list[list[str]]:
    """Name and words of every element of an array; [] where the step is no array."""
    if step.each not in ("", "session") or (step.each and step.verb != "finetune"):
        raise ConfigError("each", f"{step.each!r} of {step.verb}", "only finetune takes each=session")
    if step.parts < 1 or (step.parts > 1 and step.verb != "prepare"):
        raise ConfigError("parts", f"{step.parts} of {step.verb}", "only prepare is shared among parts, one at least")
    if step.each:
        return _sessions(config)
    return [[f"part {n}", f"part={n}/{step.parts}"] for n in range(1, step.parts + 1)] if step.parts > 1 else []


def _sessions(config) -> list[list[str]]:
    from pretrain.train import chosen_sessions

    ids = chosen_sessions(config.shards, config.sessions, config.exclude, cache=config.cache).session_ids
    names = [re.sub(r"[^A-Za-z0-9._+-]", "-", name.replace("/", "__")).lstrip(".-") for name in ids]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError("each", f"several sessions would have the run folder {twice}", "submit them one by one")
    return [
        [name, "sessions=" + json.dumps([escape(name)]), "exclude=[]", f"run={Path(config.run) / folder}"]
        for name, folder in zip(ids, names)
    ]


def _check_run(config) -> None:
    """Raises ConfigError where the run folder belongs to a run of other settings: now, not after an hour in the queue."""
    from pretrain.train import open_run

    open_run(config)


def _script(folder: Path, kind: Kind, elements: int, cluster: ClusterConfig, words: list[str]) -> str:
    digest = hashlib.sha256(str(folder).encode()).hexdigest()[:6]
    log = "%A_%a" if elements else "%j"
    at_once = f"%{cluster.at_once}" if cluster.at_once else ""
    options = [
        f"--job-name={words[0]}-{folder.parent.name}-{digest}",
        "--dependency=singleton",  # of that name one at a time: two jobs never write one folder
        f"--chdir={Path.cwd()}",
        f"--output={folder / 'logs' / log}.log",
        "--open-mode=append",
        *([f"--array=0-{elements - 1}{at_once}"] if elements else []),
        *options_of(cluster, kind.training, kind.gpus),
    ]
    most = cluster.max_requeues if cluster.requeue else 0
    call = [*map(shlex.quote, options), '"$@"', *map(shlex.quote, [str(SCRIPT), str(folder), str(most)])]
    call.append(shlex.join(words))
    return (
        "#!/bin/bash\n"
        "# Submits this folder's job, with more options of sbatch where they are given, and prints its number. Once more is\n"
        "# allowed at any time: it waits for the job that is there, leaves what is finished and goes on with what is not.\n"
        "set -euo pipefail\n"
        "job=$(sbatch --parsable \\\n  " + " \\\n  ".join(call) + ")\n"
        f'echo "${{job%%;*}}" | tee -a {shlex.quote(str(folder / JOBS))}\n'
    )


# ------------------------------------------------------------------------------------------------ submitting


def write(job: Job) -> None:
    """The folder of a job, its files replaced where it was there; raises ConfigError."""
    try:
        for name in ("logs", "ends"):
            (job.folder / name).mkdir(parents=True, exist_ok=True)
        for name in ("elements.tsv", "sessions.txt"):
            (job.folder / name).unlink(missing_ok=True)
        for name, text in job.files.items():
            (job.folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        do = "give a folder that you may write to and that the nodes see"
        raise ConfigError(job.folder, f"cannot be written ({error.strerror})", do) from None


def submit(jobs: list[Job]) -> list[str]:
    """Write all folders, then hand the jobs to SLURM, each waiting for the one before; gives their numbers.

    Where one is refused those before it are cancelled: ConfigError, with what sbatch said.
    """
    if not shutil.which("sbatch"):
        do = "submit from a login node of the cluster; --dry-run shows what would be submitted"
        raise ConfigError("sbatch", "there is no SLURM on this machine", do)
    for job in jobs:
        write(job)
    numbers = []
    for job in jobs:
        done = subprocess.run(
            ["bash", str(job.folder / "submit.sh"), *_dependency(job, numbers)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            if numbers:
                subprocess.run(["scancel", *numbers], capture_output=True, check=False)
            said = done.stderr.strip().removeprefix("sbatch: error: ").replace("\n", " ") or "nothing"
            do = "mend the settings of cluster, or see sbatch --help" + (
                f"; {', '.join(numbers)} cancelled" if numbers else ""
            )
            raise ConfigError(f"sbatch of {job.verb}", f"it said: {said}", do)
        numbers.append(done.stdout.split()[-1])
    return numbers


def _dependency(job: Job, numbers: list[str]) -> list[str]:
    """The options that let a job wait for the last of `numbers`; one whose wait can never end is cancelled by SLURM."""
    if not numbers:
        return []
    return [f"--dependency=after{job.after}:{numbers[-1]},singleton", "--kill-on-invalid-dep=yes"]
