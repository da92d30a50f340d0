"""`spikeloom bench diagnose`: what happens inside a model in its first steps -> diagnose.json, diagnose.md and a figure.

OUTPUT/diagnose/diagnose.json      every number: rows of step, block, quantity, value; losses of all steps; settings
OUTPUT/diagnose/diagnose.md        a table a quantity, a row a block, a column a step
OUTPUT/diagnose/diagnose.png, .svg
"""

import json
import math
from dataclasses import replace
from pathlib import Path

from launch.bench_machine import circumstances, in_a_line
from launch.config import as_mapping
from launch.figures_diagnose import save_diagnosis
from launch.progress import ItemProgress
from launch.table import print_table
from pretrain.diagnose import DiagnoseConfig, Diagnosis, diagnose
from pretrain.train import PretrainConfig

# quantity -> what it is, in the order of the tables
MEANING = {
    "valid R2": "R² of the model itself on the valid windows, mean over sessions",
    "loss": "of the batch of the next step, with dropout",
    "probe R2": "R² on valid windows of a ridge regression fitted on train windows: for a sample at time t from all latents "
    "of the step nearest to t, or from the decoder's row",
    "attention entropy": "over the logarithm of the number of keys: 1 is uniform; mean over queries and heads",
    "attention entropy, lowest head": "",
    "attention entropy, highest head": "",
    "attention span (s)": "mean |time of query - time of key|, weighted by attention",
    "attention span if uniform (s)": "the same, did attention weigh all keys alike",
    "share moved by spikes": "share of the second moment that is neither constant nor fixed by place: the next two together",
    "share between windows": "share of the second moment that is the same in all of a window",
    "share within windows": "share of the second moment that changes within windows: all that can tell one time from another",
    "share constant": "|mean|² over mean |row|²",
    "share fixed by place": "share that the latent and its time in the window tell, whatever the spikes",
    "latents alike": "share of what spikes move that is common to all latents of a step",
    "effective rank": "exp of the entropy of the covariance's normalised eigenvalues",
    "effective rank of what spikes move": "the same without what is fixed by place",
    "rms": "root mean square of a row's channels",
    "gradient norm": "root mean square over training batches; `where`: projections to queries and keys, `what`: to values "
    "and outputs",
    "gradient agreement": "|mean gradient|² over mean |gradient|², unbiased: 1 where batches pull alike, 0 at random",
    "update / weight": "norm of the next step's update over the norm of the weights",
}


def diagnosed(training: PretrainConfig, config: DiagnoseConfig, shards: str, folder: Path) -> None:
    """Diagnose a training on the shards, tell its course, and write the files into the folder; raises as `diagnose`."""
    training = replace(training, shards=shards)
    folder.mkdir(parents=True, exist_ok=True)
    with ItemProgress("looking inside", len(set(config.steps))) as progress:

        def told(step: int, measured) -> None:
            score = next(value for _, quantity, value in measured if quantity == "valid R2")
            progress.step(f"step {step}, valid R2 {score:.3f}")

        found = diagnose(training, config, told)
    facts = circumstances()
    content = {
        **facts,
        "sessions": found.sessions,
        "training": as_mapping(training),
        "diagnose": as_mapping(config),
        "losses": found.losses,
        "rows": [
            {"step": step, "block": block, "quantity": quantity, "value": value if math.isfinite(value) else None}
            for step, block, quantity, value in found.rows
        ],
    }
    (folder / "diagnose.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    (folder / "diagnose.md").write_text(as_markdown(found, in_a_line(facts)), encoding="utf-8")
    drawn = save_diagnosis(found, folder)
    columns, rows = _course(found)
    print_table("diagnose", columns, rows)
    print("written: " + ", ".join(str(path) for path in (folder / "diagnose.json", folder / "diagnose.md", *drawn)))


def as_markdown(found: Diagnosis, opening: str) -> str:
    """A table a quantity, blocks down and steps across, after the circumstances and the sessions."""
    lines = [opening, "", f"Sessions: {', '.join(found.sessions)}."]
    for quantity, meaning in MEANING.items():
        values = found.of(quantity)
        if not values:
            continue
        lines += ["", f"**{quantity}**" + (f": {meaning}" if meaning else ""), ""]
        lines += ["| block | " + " | ".join(f"step {step}" for step in found.steps) + " |"]
        lines += ["|---|" + "---:|" * len(found.steps)]
        for block, by_step in values.items():
            cells = (_cell(by_step.get(step)) for step in found.steps)
            lines.append(f"| {block} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.3g}"


def _course(found: Diagnosis) -> tuple[list[str], list[list]]:
    """The few numbers of every step that tell the story."""
    wanted = [
        ("R2", "valid R2", "model"),
        ("loss", "loss", "model"),
        ("probe, encoder", "probe R2", "encoder"),
        ("probe, decoder", "probe R2", "decoder"),
        ("entropy, encoder", "attention entropy", "encoder"),
        ("entropy, decoder", "attention entropy", "decoder"),
        ("moved, encoder", "share moved by spikes", "encoder"),
        ("within windows, decoder", "share within windows", "decoder"),
    ]
    values = [found.of(quantity).get(block, {}) for _, quantity, block in wanted]
    rows = [[step, *(value.get(step) for value in values)] for step in found.steps]
    return ["step", *(title for title, _, _ in wanted)], rows
