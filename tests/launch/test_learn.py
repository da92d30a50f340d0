"""Learn: crossings and areas of known curves, and a real small grid that is trained once and survives a divergence."""

import json
import os
import sys
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.errors import ConfigError
from launch.bench_curves import Learned, LearningCurve, Linear, Trained, first_reached, numbers, stat, summary
from launch.bench_grid import Job, run_all
from launch.bench_learn import LearnConfig, LearnRecipe, _in_turn
from launch.bench_told import markdown, rows, told
from launch.cli import main
from launch.config import load
from pretrain.evaluate import EvaluateConfig, evaluate

TINY = """\
model: {name: poyo, width: 16, depth: 1, latents_per_step: 2, cross_heads: 1, self_heads: 1, head_width: 8}
optim: {name: adamw, lr: 1.0e-3}
loader: {batch_windows: 4}
trainer: {log_every: 1}
"""
STUDY = """\
sources: {ada: {minutes: 1, recipe: small.yaml}}
recipes:
  plain: {config: tiny.yaml}
  slow: {config: tiny.yaml, settings: [optim.lr=1e-5, loader.batch_windows=2], windows: 6}
  wild: {config: tiny.yaml, settings: [optim.lr=1e30], seeds: [8]}
windows: 16
points: 2
seeds: [7]
jobs: 2
threads: 1
"""


def curve(r2, every=100.0) -> LearningCurve:
    windows = every * np.arange(len(r2))
    return LearningCurve(windows, windows / 10, np.array(r2, np.float64))


def learned(**runs: Trained) -> Learned:
    filters = {"Wiener filter": Linear(0.5, 2.0), "Wiener filter (causal)": Linear(0.4, 1.0)}
    return Learned("ada", ("ada",), "0", filters, list(runs.values()))


# ------------------------------------------------------------------------------------------------ pure functions


def test_a_recipe_may_have_seeds_of_its_own_and_every_recipe_learns_once_before_any_learns_twice():
    recipes = {"long": LearnRecipe("a.yaml", seeds=[5]), "short": LearnRecipe("b.yaml")}
    assert _in_turn(LearnConfig(recipes=recipes, seeds=[1, 2])) == [(5, "long"), (1, "short"), (2, "short")]


@pytest.mark.parametrize(
    "level, at", [(-1.0, 0.0), (0.0, 0.0), (0.25, 25.0), (0.5, 50.0), (1.0, 100.0), (1.5, 250.0), (2.0, 300.0)]
)
def test_a_level_is_reached_where_the_straight_lines_reach_it_first(level, at):
    assert first_reached(np.array([0.0, 100, 200, 300]), np.array([0.0, 1.0, 1.0, 2.0]), level) == pytest.approx(at)


def test_a_level_above_the_curve_is_never_reached():
    assert first_reached(np.array([0.0, 1.0]), np.array([0.1, 0.2]), 0.3) is None


@given(st.lists(st.floats(-2, 1), min_size=2, max_size=20), st.floats(-2, 1))
def test_before_a_crossing_all_is_below_and_at_it_the_curve_is_at_the_level(r2, level):
    x, y = np.arange(len(r2)) * 7.0, np.array(r2)
    at = first_reached(x, y, level)
    if at is None:
        assert (y < level).all()
        return
    assert (y[x < at - 1e-6] < level).all()
    assert np.interp(at, x, y) == pytest.approx(max(level, y[0] if at == 0 else level), abs=1e-6)


@pytest.mark.parametrize("r2, area", [([0.5, 0.5, 0.5], 0.5), ([0, 1], 0.5), ([-3, -1, 0], 0), ([-9, 0, 1], 0.25)])
def test_area_is_the_mean_of_r2_and_nothing_is_lost_by_a_bad_start(r2, area):
    assert curve(r2).area == pytest.approx(area)


def test_numbers_of_a_curve_that_learns_twice_as_fast_as_the_reference():
    reference, fast = Trained("paper", 1, 400, curve([0, 0.2, 0.4, 0.6, 0.8])), Trained("fast", 1, 400, None)
    fast = Trained("fast", 1, 400, curve([0, 0.4, 0.8, 0.9, 0.7]))
    found = numbers(fast, 0.6, reference)
    assert (found["best"], found["final"], found["best_windows"]) == (0.9, 0.7, 300)
    assert found["wiener_windows"] == pytest.approx(150) and found["wiener_seconds"] == pytest.approx(15)
    assert found["reference_windows"] == pytest.approx(200) and found["times_fewer_windows"] == pytest.approx(2)
    assert found["times_less_time"] == pytest.approx(2) and found["seconds"] == 40
    of_itself = numbers(reference, 0.9, reference)
    assert of_itself["wiener_windows"] is None and of_itself["times_fewer_windows"] == 1
    untrained = Trained("flat", 1, 400, curve([0.1, 0, 0]))
    assert numbers(fast, None, untrained)["times_less_time"] is None
    assert numbers(reference, None, fast)["times_fewer_windows"] is None  # it never is as good as 0.9


def test_stat_counts_what_is_defined():
    assert stat([1.0, 3.0, None]).mean == 2 and stat([1.0, 3.0, None]).sd == pytest.approx(2**0.5)
    assert (stat([1.0, 3.0, None]).n, stat([1.0, 3.0, None]).of) == (2, 3)
    assert np.isnan(stat([None]).mean)


def test_a_training_is_compared_with_its_own_seed_or_else_with_the_best_of_the_reference():
    one = learned(
        a=Trained("paper", 1, 200, curve([0, 0.2, 0.4])),
        b=Trained("paper", 5, 200, curve([0, 0.3, 0.6])),
        c=Trained("fast", 1, 200, curve([0, 0.8, 0.8])),
        d=Trained("fast", 2, 200, curve([0, 0.8, 0.8])),
    )
    stats = summary(one)["fast"]["reference_windows"]
    assert stats.n == 2 and stats.mean == pytest.approx((50 + 75) / 2)


def test_a_seed_that_failed_is_left_out_of_the_means_and_of_the_pairs():
    one = learned(
        a=Trained("paper", 1, 200, curve([0, 0.2, 0.6])),
        b=Trained("paper", 2, 200, curve([0, 9.0]), failed="step 100: the loss is nan"),
        c=Trained("fast", 1, 200, curve([0, 0.6, 0.7])),
        d=Trained("fast", 2, 200, curve([0, 0.3, 0.4])),
    )
    stats = summary(one)
    assert stats["paper"]["best"].mean == 0.6 and stats["paper"]["best"].of == 1
    assert (stats["fast"]["wiener_windows"].n, stats["fast"]["wiener_windows"].of) == (1, 2)
    assert stats["fast"]["times_fewer_windows"].n == 1  # seed 2 is never as good
    columns, table = rows([one])
    cell = {row[1]: dict(zip(columns, row)) for row in table}
    assert cell["paper"]["runs"] == "1 of 2" and cell["fast"]["best R²"] == "0.550 ± 0.212"
    assert cell["paper"]["windows to Wiener"] == "175, 18 s" and cell["Wiener filter"]["best R²"] == "0.500"
    assert cell["fast"]["windows to Wiener"] == "83 (1 of 2), 8.3 s"
    assert told(one) == [
        "ada (Wiener filter: 0.500): paper passes it after 175 windows (18 s); fast passes it after 83 windows "
        "(8.3 s, 1 of 2 trainings) and reaches paper's best after 100 (2.0 times fewer).",
        "ada: paper failed with seed 2: step 100: the loss is nan",
    ]


def test_what_is_never_reached_is_told_with_how_long_it_was_waited_for():
    one = learned(a=Trained("a|b", 1, 200, curve([0, 0.1, 0.2])))
    assert told(one) == ["ada (Wiener filter: 0.500): a|b does not pass it within 200 windows (20 s)."]
    facts = {"command": "c", "machine": "m", "date": "2026-01-01T00:00:00", "versions": {}, "commits": []}
    text = markdown(facts, *rows([one]), told(one))
    assert "| a\\|b | 1 | 0.200 | 0.200 | 0.100 | not within 200 |" in text


# ------------------------------------------------------------------------------------------------ processes


def python(folder, name: str, code: str) -> Job:
    return Job(name, (sys.executable, "-c", code), folder / f"{name}.log")


def test_a_job_that_fails_gives_its_last_line_and_the_others_go_on(tmp_path):
    ends = {}
    jobs = [
        python(tmp_path, "good", "print('fine')"),
        python(tmp_path, "bad", "import sys; print('spikeloom: x: no; do y', file=sys.stderr); sys.exit(1)"),
        python(tmp_path, "killed", "import os; os.kill(os.getpid(), 9)"),
    ]
    run_all(jobs, at_once=2, threads=1, done=lambda job, reason: ends.update({job.name: reason}))
    assert ends == {"good": None, "bad": "x: no; do y", "killed": "ended by signal 9 (SIGKILL)"}
    assert (tmp_path / "good.log").read_text() == "fine\n"


def test_an_interruption_leaves_no_process_behind(tmp_path):
    sleeper = f"import os, time; open(r'{tmp_path}/pid', 'w').write(str(os.getpid())); time.sleep(60)"
    waiter = f"import os, time\nwhile not os.path.exists(r'{tmp_path}/pid'): time.sleep(0.01)"

    def interrupted(job, reason):
        raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_all([python(tmp_path, "a", sleeper), python(tmp_path, "b", waiter)], 2, 1, interrupted)
    assert time.monotonic() - began < 50
    while not (text := (tmp_path / "pid").read_text()):
        time.sleep(0.01)
    with pytest.raises(ProcessLookupError):
        os.kill(int(text), 0)


# ------------------------------------------------------------------------------------------------ a real grid


@pytest.fixture(scope="module")
def study(tmp_path_factory, repository):
    """The working directory of a grid that was run, and its exit code."""
    folder = tmp_path_factory.mktemp("learn")
    recipe = (repository / "configs" / "dandisets" / "synthetic.yaml").read_text(encoding="utf-8")
    lines = [line for line in recipe.splitlines() if not line.startswith("min_train_s")]
    (folder / "small.yaml").write_text("\n".join([*lines, "min_train_s: 1"]), encoding="utf-8")
    (folder / "tiny.yaml").write_text(TINY, encoding="utf-8")
    (folder / "study.yaml").write_text(STUDY, encoding="utf-8")
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield folder, main(["bench", "learn", "learn=study.yaml"])
    finally:
        os.chdir(before)


def test_budgets_are_kept_and_a_divergence_is_a_row(study):
    folder, code = study
    (source,) = json.loads((folder / "bench" / "learn" / "learn.json").read_text())["sources"]
    run = {run["recipe"]: run for run in source["runs"]}
    assert code == 1 and list(run) == ["plain", "slow", "wild"]
    assert run["plain"]["curve"]["windows"] == [0, 8, 16] and run["slow"]["curve"]["windows"] == [0, 4, 6]
    assert np.isfinite(run["plain"]["curve"]["r2"]).all() and run["plain"]["failed"] is None
    assert "loss is" in run["wild"]["failed"] and run["wild"]["numbers"] is None
    told = (folder / "bench" / "learn" / "learn.md").read_text()
    assert "| ada | wild | 0 of 1 | failed |" in told and "not within 16" in told
    for picture in ("learn.png", "learn.svg"):
        assert (folder / "bench" / "learn" / picture).stat().st_size > 10_000


def test_the_wiener_filters_are_those_of_evaluate_on_the_validation_samples(study):
    folder, _ = study
    (source,) = json.loads((folder / "bench" / "learn" / "learn.json").read_text())["sources"]
    run = evaluate(EvaluateConfig(run="bench/learn/runs/ada/plain/7", split="valid", threads=1))
    mean = json.loads((run / "results.json").read_text())["mean"]
    assert {label: linear["r2"] for label, linear in source["wiener"].items()} == pytest.approx(
        {label: r2 for label, r2 in mean.items() if label != "POYO"}, abs=1e-5
    )


def test_what_is_finished_is_not_trained_again_and_may_be_asked_less_of(study, capsys):
    folder, _ = study
    runs = folder / "bench" / "learn" / "runs" / "ada"
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("metrics.csv")}
    (folder / "less.yaml").write_text("".join(line for line in STUDY.splitlines(True) if "wild" not in line))
    assert main(["bench", "learn", "learn=less.yaml"]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in runs.rglob("metrics.csv")} and len(before) == 3
    said = capsys.readouterr()
    assert "fitting" not in said.err and "training" not in said.err
    assert "plain does not pass it within 16 windows" in said.out and not list(runs.rglob("slow/7/last.ckpt"))


@pytest.mark.parametrize(
    "setting, found",
    [
        ("learn.windows=32", "a run with other settings is there (trainer.steps: 4 there, 8 here"),
        ("learn.sources.ada.minutes=1.5", "it was trained on other shards or sessions"),
    ],
)
def test_a_folder_of_other_trainings_is_refused_before_anything_runs(study, capsys, setting, found):
    assert main(["bench", "learn", "learn=less.yaml", setting]) == 2
    assert found in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong, found",
    [
        ({"seeds": []}, "learn.seeds: is empty"),
        ({"points": 0}, "learn.points: is 0"),
        ({"recipes": {"../a": LearnRecipe("x.yaml")}}, "learn: '../a': cannot name a folder"),
    ],
)
def test_a_study_that_makes_no_sense_is_refused(wrong, found):
    with pytest.raises(ConfigError, match=found):
        LearnConfig(**wrong)


def test_the_default_study_is_a_session_and_two_recipes():
    config = load(LearnConfig, None, [])
    assert list(config.recipes) == ["paper", "fast"] and config.sources == {}


def test_help_names_the_recipes_of_the_default_study(capsys):
    assert main(["bench", "--help"]) == 0
    assert "learn.recipes  (dict[str, LearnRecipe]) = {paper, fast}" in capsys.readouterr().out
