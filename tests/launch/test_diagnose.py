"""Diagnose: one small training from NWB files to the files it writes, which all tell the same numbers."""

import json
import math

import pytest

from launch.bench_diagnose import MEANING, as_markdown
from launch.cli import main
from launch.figures_diagnose import PANELS, look_of
from pretrain.diagnose import Diagnosis

TINY = """\
model: {name: poyo, width: 16, depth: 2, latents_per_step: 2, cross_heads: 1, self_heads: 1, head_width: 8}
loader: {batch_windows: 4}
trainer: {device: cpu, threads: 1, steps: 2}
"""
WORDS = [
    "recipe=small.yaml",
    "minutes=1",
    "sessions=1",
    "training=tiny.yaml",
    "diagnose.steps=[0, 3]",
    "diagnose.train_windows=8",
    "diagnose.valid_windows=4",
    "diagnose.gradient_batches=2",
]


@pytest.fixture(scope="module")
def told(tmp_path_factory, repository):
    """The folder after `bench diagnose`, its diagnose.json and what was printed."""
    folder = tmp_path_factory.mktemp("diagnose")
    text = (repository / "configs" / "dandisets" / "synthetic.yaml").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("min_train_s")]
    (folder / "small.yaml").write_text("\n".join([*lines, "min_train_s: 1"]), encoding="utf-8")
    (folder / "tiny.yaml").write_text(TINY, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["bench", "diagnose", *WORDS]) == 0
    return folder / "bench" / "diagnose"


def test_every_step_tells_every_quantity_of_its_blocks(told):
    content = json.loads((told / "diagnose.json").read_text(encoding="utf-8"))
    assert len(content["sessions"]) == 1 and content["training"]["model"]["depth"] == 2
    assert len(content["losses"]) == 4 and all(math.isfinite(loss) for loss in content["losses"])
    seen = {step: [(r["block"], r["quantity"]) for r in content["rows"] if r["step"] == step] for step in (0, 3)}
    assert seen[0] == seen[3] and len(set(seen[0])) == len(seen[0])
    assert {quantity for _, quantity in seen[0]} == set(MEANING)
    loss = next(r["value"] for r in content["rows"] if r["step"] == 3 and r["quantity"] == "loss")
    assert loss == content["losses"][3]


def test_the_markdown_tells_the_numbers_of_the_json(told):
    content = json.loads((told / "diagnose.json").read_text(encoding="utf-8"))
    text = (told / "diagnose.md").read_text(encoding="utf-8")
    value = {(r["step"], r["block"]): r["value"] for r in content["rows"] if r["quantity"] == "attention entropy"}
    assert f"| encoder | {value[0, 'encoder']:.3g} | {value[3, 'encoder']:.3g} |" in text
    assert text.count("| block | step 0 | step 3 |") == len(MEANING)


def test_the_figure_is_drawn_once_for_eyes_and_once_for_print(told):
    assert (told / "diagnose.png").read_bytes()[:4] == b"\x89PNG"
    assert "<svg" in (told / "diagnose.svg").read_text(encoding="utf-8")
    assert {panel.quantity for panel in PANELS} <= set(MEANING)


def test_a_number_that_is_not_one_is_an_empty_cell():
    found = Diagnosis(("a",), [(0, "decoder", "probe R2", math.nan), (5, "decoder", "probe R2", 0.25)], [1.0])
    assert "| decoder |  | 0.25 |" in as_markdown(found, "")


def test_layers_darken_with_depth():
    brightness = [sum(look_of(f"layer {number}", 6)["color"]) for number in range(1, 7)]
    assert brightness == sorted(brightness, reverse=True) and len(set(brightness)) == 6
