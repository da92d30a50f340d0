"""The report is one file that needs nothing else, tells the numbers of results.json, and escapes what files say."""

import csv
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.errors import DataError
from launch.figures import BASELINES, VARIABLES, colours
from launch.record import Results, Score, read_run
from launch.report import compare, headline, write_report

MODELS = ("POYO, full finetuning", "POYO, unit identification", "Wiener filter", "Wiener filter (causal)")
SESSIONS = ("synthetic/Cleo_CO-01", "synthetic/Cleo_CO-02")


def write_metrics(path, steps, best, seed, seconds_per_step=0.11):
    """A metrics.csv as a run of `steps` steps leaves it: a loss every step, a validation score now and then."""
    random = np.random.default_rng(seed)
    names = ["step", "epoch", "windows", "seconds", "train/loss", "lr", "valid/loss", "valid/r2"]
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        for step in range(1, steps + 1, 5):
            loss = 0.15 + 1.1 * np.exp(-3 * step / steps) * random.lognormal(0, 0.12)
            row = {"step": step, "epoch": step // 40, "windows": 32 * step, "seconds": seconds_per_step * step}
            writer.writerow(row | {"train/loss": loss, "lr": 1e-3})
            if step % 50 == 1:
                r2 = best - (best + 0.6) * np.exp(-4 * step / steps)
                writer.writerow(row | {"valid/loss": loss * 1.05, "valid/r2": r2})
    return path


def reaches(seconds, hz, random):
    """Time (N,) s and velocity (N, 2): bumps in eight directions with a gap in the middle."""
    time = np.arange(round(seconds * hz)) / hz
    time = np.concatenate([time, time + seconds + 20.0])
    value = np.zeros((len(time), 2))
    for onset in np.arange(0.5, time[-1], 1.4):
        s = np.clip((time - onset) / random.uniform(0.5, 0.8), 0, 1)
        angle = random.integers(8) * np.pi / 4
        value += (240 * s**2 * (1 - s) ** 2)[:, None] * np.array([np.cos(angle), np.sin(angle)])
    return time, value


def fake_run(folder, r2=(0.871, 0.812, 0.823, 0.774), sessions=SESSIONS, models=MODELS):
    """A run folder with everything that pretrain, finetune and evaluate leave."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    document = {"format": 1, "split": "test", "signal": "cursor_vel", "unit_of_measure": "cm/s", "sessions": {}}
    document |= {"predictions": [], "mean": {}}
    arrays = {}
    for session in sessions:
        time, target = reaches(20, 100, random)
        entry = {}
        for model, score in zip(models, r2):
            noise = np.sqrt(max(1 - score, 0.01)) * target.std()
            value = target + noise * np.convolve(random.normal(0, 3, len(time)), np.ones(15) / 15, "same")[:, None]
            per_dim = [score + random.uniform(-0.02, 0.02) for _ in range(2)]
            entry[model] = {"r2": float(np.mean(per_dim)), "r2_per_dim": per_dim, "samples": len(time)}
            i = len(document["predictions"])
            document["predictions"].append({"session": session, "model": model})
            fields = {"time": time, "target": target, "value": value, "evaluated": np.linalg.norm(target, axis=1) > 0.5}
            arrays |= {f"{i}/{name}": array for name, array in fields.items()}
        document["sessions"][session] = {"models": entry}
    for model in models:
        document["mean"][model] = float(np.mean([s["models"][model]["r2"] for s in document["sessions"].values()]))
    document["raster"] = {"session": sessions[0], "start": 3.0, "stop": 13.0}
    rates = random.lognormal(1.8, 0.6, 74)
    spikes = [np.sort(random.uniform(3, 13, random.poisson(10 * rate))) for rate in rates]
    arrays["raster/time"] = np.concatenate(spikes)
    arrays["raster/unit"] = np.repeat(np.arange(74), [len(s) for s in spikes])
    np.savez(folder / "predictions.npz", **arrays)
    (folder / "results.json").write_text(json.dumps(document))
    (folder / "config.yaml").write_text("seed: 42\nmodel:\n  name: poyo\n  width: 64\n  depth: 4\nsteps: 1500\n")
    provenance = {
        "spikeloom": "0.1.0",
        "commit": "1decba3",
        "command": "spikeloom demo",
        "versions": {"torch": "2.13.0"},
    }
    (folder / "provenance.json").write_text(json.dumps(provenance))
    write_metrics(folder / "metrics.csv", 1500, 0.85, 1)
    return folder


class Page(HTMLParser):
    """Everything in a page that could load something, its ids, its tables' cells and its text."""

    def __init__(self, text):
        super().__init__()
        self.loads, self.ids, self.references, self.tags, self.rows, self.words = [], [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "data", "srcset", "action", "poster", "background"):
                self.loads.append(value)
            if name == "id":
                self.ids.append(value)
            self.references += re.findall(r"url\(#([^)]*)\)", value or "")
        self.references += [value[1:] for value in self.loads if value.startswith("#")]

    def handle_data(self, data):
        self.words.append(data)
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fake_run(tmp_path_factory.mktemp("report") / "run")


@pytest.fixture(scope="module")
def page(run):
    return write_report(run).read_text(encoding="utf-8")


def test_page_needs_nothing_but_itself(page):
    found = Page(page)
    assert all(value.startswith("#") for value in found.loads)
    assert not {"script", "link", "iframe", "img", "object", "embed", "base"} & set(found.tags)
    assert not re.search(r"url\(\s*['\"]?(?!#)", page) and "@import" not in page
    assert not re.search(r"https?://", page.replace("http://www.w3.org/", ""))
    assert len(found.ids) == len(set(found.ids))
    assert set(found.references) <= set(found.ids)
    assert found.tags.count("svg") == 3


def test_numbers_are_those_of_results(run, page):
    document = json.loads((run / "results.json").read_text())
    found = Page(page)
    rows = [[cell.strip() for cell in row] for row in found.rows]
    for session, entry in document["sessions"].items():
        for model, score in entry["models"].items():
            numbers = [f"{value:.3f}" for value in (*score["r2_per_dim"], score["r2"])]
            told = [row for row in rows if row[-5:] == [model, *numbers, f"{score['samples']:,}"]]
            assert told, (session, model)
        assert any(row[0] == session for row in rows if row)
    text = " ".join(found.words)
    for model, mean in document["mean"].items():
        assert f"{mean:.3f}" in text and f"{model}, mean R²" in text


def test_colours_in_figures_are_those_of_the_page(page):
    drawn = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    assert not re.search(r"(stroke|fill): #(?!000000)", drawn)  # all turn light and dark with the page
    assert set(re.findall(r"var\((--[a-z0-9-]+)\)", drawn)) <= set(VARIABLES.values()) | {"--sans"}
    assert "clip-path" in drawn


def test_pngs_lie_beside_the_page(run, page):
    for name in ("scores", "decoding", "curves"):
        assert (run / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert not list(run.glob("*.part"))


@pytest.mark.parametrize(
    "r2, words",
    [
        ((0.871, 0.812, 0.823, 0.774), "POYO, full finetuning beats the Wiener filter"),
        ((0.671, 0.612, 0.823, 0.774), "POYO, full finetuning loses to the Wiener filter"),
    ],
)
def test_headline_says_who_wins(tmp_path, r2, words):
    record = read_run(fake_run(tmp_path / "run", r2))
    comparison = compare(record.results)
    assert headline(record, comparison)[0].startswith(words)
    assert comparison.wins == (2 if "beats" in words else 0)
    assert f"of {comparison.sessions} sessions" in headline(record, comparison)[1]


@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)), min_size=1, max_size=12))
def test_wins_draws_and_losses_add_up(pairs):
    scores = {
        f"s{i}": {"POYO": Score(a, (a, a), 10), "Wiener filter": Score(b, (b, b), 10)} for i, (a, b) in enumerate(pairs)
    }
    mean = {name: float(np.mean([m[name].r2 for m in scores.values()])) for name in ("POYO", "Wiener filter")}
    found = compare(Results("test", "cursor_vel", {}, scores, mean))
    losses = sum(a - b <= -0.0005 for a, b in pairs)
    assert found.wins + found.draws + losses == found.sessions == len(pairs)
    assert np.isclose(found.difference, np.mean([a - b for a, b in pairs]))


def test_undefined_scores_are_left_out_of_the_answer(tmp_path):
    run = fake_run(tmp_path / "run")
    document = json.loads((run / "results.json").read_text())
    document["sessions"][SESSIONS[1]]["models"][MODELS[0]] = {"r2": None, "r2_per_dim": [None, 0.5], "samples": 3}
    document["notes"] = ["one session is too short"]
    (run / "results.json").write_text(json.dumps(document))
    text = write_report(run).read_text()
    assert "nan" not in "".join(Page(text).words).lower() and "one session is too short" in text
    assert compare(read_run(run).results).sessions == 1


def test_run_without_evaluation_tells_its_training(tmp_path):
    run = fake_run(tmp_path / "run")
    for name in ("results.json", "predictions.npz", "config.yaml", "provenance.json"):
        (run / name).unlink()
    text = write_report(run).read_text()
    assert "Best validation R² 0.8" in text and "not evaluated" in text
    assert text.count("<svg") == 1


@pytest.mark.parametrize("absent", ["metrics.csv", "predictions.npz", "config.yaml", "provenance.json"])
def test_each_part_may_be_absent(tmp_path, absent):
    run = fake_run(tmp_path / "run")
    (run / absent).unlink()
    assert "beats the Wiener filter" in write_report(run).read_text()


def test_empty_run_says_that_nothing_was_measured(tmp_path):
    assert "Nothing measured yet" in write_report(tmp_path).read_text()


def test_several_stages_appear_with_the_colours_of_their_models(tmp_path):
    run = fake_run(tmp_path / "run")
    stages = {"pretraining": 3, MODELS[1]: 4, MODELS[0]: 5}
    paths = {label: write_metrics(tmp_path / f"{i}.csv", 300, 0.8, i) for label, i in stages.items()}
    text = write_report(run, curves=paths, title="Demo").read_text()
    assert all(label in text for label in stages) and "<title>Demo" in text
    shades = colours([*MODELS, *stages])
    assert len(set(shades.values())) == 5
    assert (shades["Wiener filter"], shades["Wiener filter (causal)"]) == BASELINES
    assert text.count("Resolved configuration") == 1


def test_text_from_files_is_escaped(tmp_path):
    evil = "<script>alert('$x^$')</script>\"&"
    run = fake_run(tmp_path / "run", sessions=(evil,), models=(f"POYO {evil}", "Wiener filter"))
    (run / "config.yaml").write_text(f"name: {evil}</pre>")
    (run / "provenance.json").write_text(json.dumps({evil: {evil: evil}}))
    text = write_report(run, title=evil).read_text()
    assert "<script" not in text and "&lt;script&gt;" in text
    assert "script" not in Page(text).tags


@pytest.mark.parametrize(
    "name, content",
    [
        ("results.json", "{"),
        ("results.json", '{"format": 2}'),
        ("results.json", '{"format": 1, "split": "test"}'),
        ("provenance.json", "[]"),
        ("predictions.npz", "no zip"),
    ],
)
def test_malformed_files_are_told_in_one_line(tmp_path, name, content):
    run = fake_run(tmp_path / "run")
    (run / name).write_text(content)
    with pytest.raises(DataError, match=name) as caught:
        write_report(run)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 1


def test_missing_run_is_told_in_one_line(tmp_path):
    with pytest.raises(DataError, match="no such run folder"):
        write_report(tmp_path / "none")
