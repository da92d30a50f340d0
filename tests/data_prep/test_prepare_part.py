"""Parts of the work: every file in exactly one, whoever asks and whatever else is there; and what a SLURM array says."""

import json
from dataclasses import replace

import pytest

from data_prep.errors import ConfigError
from data_prep.part import Part, part_of
from data_prep.prepare import PrepareConfig, prepare, preview
from data_prep.store import list_sessions

PATHS = [f"sub-{subject}/sub-{subject}_ses-{day}.nwb" for subject in "ABCD" for day in range(100)]


def array(task: int, first: int, last: int, step: int = 1) -> dict[str, str]:
    """What SLURM sets in a task of `--array=first-last:step`."""
    names = ("ID", "MIN", "MAX", "STEP", "COUNT")
    values = (task, first, last, step, len(range(first, last + 1, step)))
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in zip(names, values)}


@pytest.mark.parametrize("count", [1, 2, 7, 16])
def test_every_file_is_in_exactly_one_part(count):
    owners = [[n for n in range(1, count + 1) if Part(n, count).has(path)] for path in PATHS]
    assert all(len(owner) == 1 for owner in owners)
    sizes = [sum(owner == [n] for owner in owners) for n in range(1, count + 1)]
    assert min(sizes) > 0.5 * len(PATHS) / count


def test_a_file_s_part_does_not_depend_on_the_others():
    """Pinned: processes of different releases, or on a folder that grew meanwhile, must agree."""
    assert [n for n, path in enumerate(PATHS[:16]) if Part(3, 4).has(path)] == [1, 3, 8, 12, 15]


@pytest.mark.parametrize(
    "text, environment, want",
    [
        ("1/1", {}, Part(1, 1)),
        ("3/16", {}, Part(3, 16)),
        ("slurm", array(0, 0, 15), Part(1, 16)),
        ("slurm", array(15, 0, 15), Part(16, 16)),
        ("slurm", array(4, 1, 4), Part(4, 4)),
        ("slurm", array(6, 2, 8, step=2), Part(3, 4)),
        ("slurm", array(5, 5, 5), Part(1, 1)),
    ],
)
def test_what_a_part_means(text, environment, want):
    assert part_of(text, environment) == want


@pytest.mark.parametrize(
    "text, environment, told",
    [
        ("0/4", {}, "no part 0/4; count from 1/4 to 4/4"),
        ("5/4", {}, "no part 5/4"),
        ("1/0", {}, "no part 1/0"),
        ("half", {}, "'half' is no part; write i/N"),
        ("slurm", {}, "is not set; submit it as an array"),
        ("slurm", array(1, 0, 1) | {"SLURM_ARRAY_TASK_COUNT": "x"}, "is not set"),
        ("slurm", array(7, 3, 7) | {"SLURM_ARRAY_TASK_COUNT": "2"}, "task 7 is not one of 2 from 3"),  # --array=3,7
        ("slurm", array(3, 2, 8, step=2), "task 3 is not one of 4 from 2"),
    ],
)
def test_what_is_no_part_is_told(text, environment, told):
    with pytest.raises(ConfigError, match="^part: ") as refusal:
        part_of(text, environment)
    assert told in str(refusal.value)


def test_parts_together_are_the_whole(nwb, recipe, tmp_path, monkeypatch):
    """Two parts, one told by its number and one by SLURM; each tells of its own files, report.json of all."""
    for name in "abcde":
        nwb(f"in/{name}.nwb")
    (tmp_path / "in/bad.nwb").write_text("no NWB")
    recipe, out = replace(recipe, session="file"), tmp_path / "out"
    config = PrepareConfig(recipe=recipe, source=str(tmp_path / "in"), output=str(out), workers=0, part="1/2")
    assert any(line.startswith("part 1/2 of them: ") for line in preview(config))
    first = prepare(config)
    assert "1 of 2 parts have not ended yet" in first.lines()[-1] and first.missing == (2,)
    assert json.loads((out / "report.json").read_text())["missing_parts"] == [2]
    for name, value in array(1, 0, 1).items():
        monkeypatch.setenv(name, value)
    second = prepare(replace(config, part="slurm"))
    assert "all parts are done" in second.lines()[-1] and first.exit_code + second.exit_code == 1
    names = [row.file for row in (*first.rows, *second.rows)]
    assert sorted(names) == ["a.nwb", "b.nwb", "bad.nwb", "c.nwb", "d.nwb", "e.nwb"] and first.rows and second.rows
    told = json.loads((out / "report.json").read_text())
    assert [row["file"] for row in told["rows"]] == sorted(names) and told["missing_parts"] == []
    assert told["totals"]["sessions"] == 5 == len(list_sessions(out)) and told["totals"]["refused"] == 1
    assert sorted(path.name for path in out.glob("report.*part*")) == [
        f"report.small.part-{n}-of-2.json" for n in (1, 2)
    ]
    whole = prepare(replace(config, part="1/1"))
    assert whole.totals.kept == 5 and json.loads((out / "report.json").read_text())["parts"] == 1


def test_a_part_of_another_recipe_is_not_counted_in(nwb, recipe, tmp_path):
    nwb("in/a.nwb")
    config = PrepareConfig(recipe=recipe, source=str(tmp_path / "in"), output=str(tmp_path / "out"), workers=0)
    prepare(replace(config, part="1/2"))
    changed = replace(config, recipe=replace(recipe, loss_weights={"hold": 2.0}), part="2/2")
    assert prepare(changed).missing == (1,)
