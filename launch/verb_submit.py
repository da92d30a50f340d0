"""`spikeloom submit`: a verb, or a chain of them, as jobs of a SLURM cluster."""

import json
import re

from data_prep.errors import ConfigError
from launch.verb import Verb

OF_STEP = ("parts", "each")  # settings of the step, not of the verb that it runs


def read_words(words: list[str]) -> tuple[str | None, list[str]]:
    """The chain file, if there is one, and the settings of SubmitConfig that the words after `submit` stand for.

    CLUSTER VERB [CONFIG] [key=value ...] is a chain of one step: settings are the verb's, but for those of `cluster`,
    `parts`, `each` and `wait`. CLUSTER CHAIN.yaml takes no others. Raises ConfigError.
    """
    settings = [word for word in words if re.match(r"[A-Za-z_][\w.-]*=", word)]
    cluster, verb, *files = [word for word in words if word not in settings] + [None] * 2
    for missing, name in ((cluster, "a cluster"), (verb, "a command, or the file of a chain,")):
        if missing is None:
            raise ConfigError("spikeloom submit", f"{name} is missing", "see spikeloom submit --help")
    files = [file for file in files if file is not None]
    if len(files) > 1:
        raise ConfigError("spikeloom submit", f"two files: {files[0]} and {files[1]}", "give one, then key=value")
    own = [text for text in settings if _key(text) in ("cluster", "wait")]
    if verb.endswith((".yaml", ".yml")):
        if files or len(own) < len(settings):
            other = files[0] if files else next(text for text in settings if text not in own)
            do = "write it in the chain; only cluster.KEY=value and wait=true stand beside it"
            raise ConfigError(f"{verb} {other}", "a chain takes no settings of its steps", do)
        return verb, [f"cluster={cluster}", *own]
    step = {"verb": verb, "config": files[0] if files else None}
    step["settings"] = [text for text in settings if _key(text) not in ("cluster", "wait", *OF_STEP)]
    for text in settings:
        if _key(text) in OF_STEP:
            key, _, value = text.partition("=")
            step[key] = int(value) if value.isdigit() else value
    return None, [f"cluster={cluster}", *own, "steps=" + json.dumps([step], ensure_ascii=False)]


def _key(text: str) -> str:
    return re.split(r"[.=]", text)[0]


def _schema() -> type:
    from launch.submit import SubmitConfig

    return SubmitConfig


def _jobs(config) -> list:
    from launch.submit import job_of

    if not config.steps:
        raise ConfigError("steps", "there is none", "list at least one: {verb: pretrain, settings: [run=RUN, ...]}")
    return [job_of(step, config.cluster) for step in config.steps]


def _run(config) -> int:
    from launch.submit import submit
    from launch.submit_state import DONE, await_end, show_submitted

    jobs = _jobs(config)
    for job, number in zip(jobs, submit(jobs)):
        print(f"job {number}: {job.verb}, in {job.folder}")
    if not config.wait:
        return 0
    ended = []
    for job in jobs:
        ended += await_end(job.folder)
        show_submitted(job.folder)
    return 0 if all(one.state == DONE for one in ended) else 1


def _plan(config) -> list[str]:
    lines = []
    for job in _jobs(config):
        lines += [f"would write {job.folder} and run {job.command}"]
        for name, text in job.files.items():
            lines += ["", f"{name}:", *("  " + line for line in text.splitlines())]
        lines += [""]
    return lines


SUBMIT = Verb(
    "run a command, or a chain of commands, as jobs of a SLURM cluster",
    "spikeloom submit cluster/gpu.yaml pretrain pretrain/paper_mp.yaml shards=SHARDS run=RUN cluster.nodes=2",
    _schema,
    _run,
    _plan,
    word="CLUSTER VERB [CONFIG] | CLUSTER CHAIN.yaml",
    needs="a cluster and a command",
    reads=read_words,
)
