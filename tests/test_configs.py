"""Every shipped YAML is loaded by the schema of its folder, says what it is for, and survives a round trip."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from data_prep.corpus import CorpusConfig
from data_prep.recipe import Recipe
from data_prep.recipe_check import check_recipe
from launch.config import load, to_yaml
from launch.fields import schema_of
from launch.submit import SubmitConfig
from launch.submit_cluster import ClusterConfig
from pretrain.evaluate import EvaluateConfig
from pretrain.finetune import FinetuneConfig
from pretrain.train import PretrainConfig
from sharding.shard import ShardConfig

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))
WHOLE = {
    "dandisets": Recipe,
    "corpora": CorpusConfig,
    "shards": ShardConfig,
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "evaluate": EvaluateConfig,
    "cluster": ClusterConfig,
    "chains": SubmitConfig,
}
SECTIONS = ("model", "task")  # of PretrainConfig


def name_of(path: Path) -> str:
    return path.relative_to(CONFIGS).as_posix()


def loaded(path: Path) -> Any:
    folder = path.relative_to(CONFIGS).parts[0]
    if folder in SECTIONS:
        return getattr(load(PretrainConfig, None, [f"{folder}={name_of(path)}"]), folder)
    schema = WHOLE[folder]
    asked = [f"{name}=x" for name, field in schema_of(schema).items() if field.make is None and field.hint is str]
    return load(schema, str(path), asked)


def test_there_is_no_yaml_outside_a_folder_with_a_schema():
    assert {path.relative_to(CONFIGS).parts[0] for path in FILES} <= {*WHOLE, *SECTIONS}
    assert not list(CONFIGS.rglob("*.yml")), "name it .yaml"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_shipped_file_loads_and_comes_back(path, tmp_path):
    config = loaded(path)
    again = tmp_path / "again.yaml"
    again.write_text(to_yaml(config), encoding="utf-8")
    assert load(type(config), str(again), []) == config


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_shipped_file_opens_by_saying_what_it_is_for(path):
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ") and len(first) > 20, f"{path}:1: open it with a sentence, as a comment"


@pytest.mark.parametrize("path", [path for path in FILES if "dandisets" in path.parts], ids=name_of)
def test_a_shipped_recipe_could_describe_a_file(path):
    recipe = loaded(path)
    check_recipe(recipe)
    assert path.stem in (recipe.name, recipe.dandiset) or path.stem.startswith(f"{recipe.dandiset}_")


def test_no_two_recipes_share_a_name():
    names = [loaded(path).name for path in FILES if "dandisets" in path.parts]  # it starts every id of a session
    assert len(set(names)) == len(names)


def test_every_section_of_a_training_can_be_swapped_by_a_file():
    @dataclass(frozen=True)
    class Both:
        first: PretrainConfig

    for path in FILES:
        folder = path.relative_to(CONFIGS).parts[0]
        if folder in SECTIONS:
            swapped = load(Both, None, [f"first.{folder}={name_of(path)}"])
            assert getattr(swapped.first, folder) == loaded(path)


def test_a_scale_of_targets_is_a_word_or_a_number(tmp_path):
    (tmp_path / "run.yaml").write_text("task: {scale: 20}\n")
    assert load(PretrainConfig, str(tmp_path / "run.yaml"), []).task.scale == 20.0
    assert load(PretrainConfig, None, ["task.scale=std"]).task.scale == "std"
