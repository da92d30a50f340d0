"""The README is run: every command of its bash blocks, in order, on recordings small enough for a test.

A command is taken as written; SMALL appends settings that make it short, and `make` is asked what it would do.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from data_prep.synthetic import SyntheticConfig, write_sessions
from launch.cli import main
from launch.commands import VERBS
from tests.data_prep.archive_double import Double
from tests.data_prep.layouts import perich

ROOT = Path(__file__).parents[1]
AS_HERE = {**os.environ, "PYTHONPATH": str(ROOT)}
README = (ROOT / "README.md").read_text(encoding="utf-8")
FILES = ("sub-Ada_ses-CO-01", "sub-Bix_ses-CO-03", "sub-Cleo_ses-CO-02")  # of eight: one an animal
SHORT = [
    "trainer.steps=4",
    "trainer.val_every=2",
    "trainer.save_every=4",
    "trainer.log_every=2",
    "trainer.val_step_s=1",
    "loader.batch_windows=2",
]
SMALL = {
    "prepare": ["recipe.min_train_s=1", "workers=0"],
    "pretrain": ["model=model/poyo_tiny.yaml", *SHORT],
    "finetune": ["freeze_steps=2", *SHORT],
    "evaluate": ["step_s=1"],
    "bench": ["minutes=1", "sessions=1", "repeats=1"],
    "doctor": ["model=model/poyo_tiny.yaml", "loader.batch_windows=2", "trial_s=1"],
}


def commands(text: str) -> list[str]:
    """The command lines of the fenced bash blocks of a Markdown text."""
    blocks = re.findall(r"^```bash\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line and not line.startswith("#")]


def words_of(command: str, archive: str, server: str) -> list[str]:
    """The words after `spikeloom`, made short where the command would do something; DANDI is the archive of that URL,
    example.org the server of that URL."""
    words = shlex.split(command.replace("https://example.org", server))[1:]
    if {"--help", "--version"} & set(words) or words[
        0
    ] == "submit":  # submit --dry-run takes no more settings than it shows
        return words
    where = [f"archive.instance={archive}", "archive.retries=1"] if "source=dandi" in words else []
    return words + where + SMALL.get(words[0], [])


def starts_ranks(command: str) -> bool:
    """Whether it starts itself again, once a rank, which takes a process of its own."""
    return "trainer.devices=" in command


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """The URL of an archive that speaks as DANDI does and holds two sessions in the layout of 000688."""
    double = Double(dandiset="000688")
    for subject in ("C", "T"):
        name = f"sub-{subject}/sub-{subject}_ses-CO-20130819_behavior+ecephys.nwb"
        path = perich.write(tmp_path_factory.mktemp("perich") / "co.nwb", subject=subject)
        double.add(name, path.read_bytes())
    double.publish("0.250122.1735")
    with double.serving():
        yield f"{double.base}/api"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A directory as the README leaves one after `make demo`, with three short sessions for the eight."""
    root = tmp_path_factory.mktemp("readme")
    written = write_sessions(root / "all", SyntheticConfig(minutes=0.7, sessions=8))
    (root / "demo" / "nwb").mkdir(parents=True)
    for path in written:
        if path.stem in FILES:
            shutil.move(path, root / "demo" / "nwb")
    return root


@pytest.fixture(scope="module")
def server(workplace):
    """The URL of a server that serves the workplace."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=workplace)) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_the_commands_of_the_readme_run_in_their_order(workplace, archive, server, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    ran = [line for line in commands(README) if line.startswith("spikeloom ")]
    for command in ran:
        if not starts_ranks(command):
            assert main(words_of(command, archive, server)) == 0, f"{command}\n{capsys.readouterr().err}"
    untold = {"demo", "replay"}  # replay is for a run that went wrong: tests/pretrain/test_replay.py
    assert {shlex.split(line)[1] for line in ran} >= set(VERBS) - untold, "a verb is missing from the README"
    assert (workplace / "runs" / "finetune" / "report.html").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.parametrize("command", [line for line in commands(README) if starts_ranks(line)])
def test_the_readme_starts_ranks_as_a_user_does(workplace, archive, server, tmp_path, command):
    (tmp_path / "demo").symlink_to(workplace / "demo")
    needed = [line for line in commands(README) if line.startswith(("spikeloom prepare", "spikeloom shard"))][:2]
    for line in (*needed, command):
        words = words_of(line, archive, server)
        done = subprocess.run(
            [sys.executable, "-m", "launch", *words], cwd=tmp_path, env=AS_HERE, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{line}\n{done.stderr}"


def test_the_recipe_of_the_readme_reads_a_file(workplace, tmp_path, capsys):
    (recipe,) = re.findall(r"^```yaml\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    (tmp_path / "mine.yaml").write_text(recipe)
    file = workplace / "demo" / "nwb" / f"{FILES[0]}.nwb"
    settings = [f"source={file}", f"output={tmp_path / 'sessions'}", "recipe.min_train_s=1", "workers=0"]
    assert main(["prepare", str(tmp_path / "mine.yaml"), *settings]) == 0
    assert "mine/Ada_CO-01" in capsys.readouterr().out


@pytest.mark.parametrize("command", [line for line in commands(README) if line.startswith("make ")])
def test_make_knows_its_targets(command):
    done = subprocess.run([*shlex.split(command), "-n"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ("spikeloom demo" if "demo" in command else "-m pytest") in done.stdout


def test_the_readme_shows_no_other_kind_of_command():
    first = {line.split()[0] for line in commands(README)}
    assert first <= {"make", "spikeloom", "source"}, "a command that no test runs"


def test_files_and_folders_named_in_the_readme_exist():
    named = re.findall(r"`((?:configs|data_prep|sharding|pretrain|launch|tests)/[\w/.]*)`|\]\(([\w.]+)\)", README)
    named += [(path, "") for line in commands(README) for path in re.findall(r"configs/[\w/]+\.yaml", line)]
    assert len(named) > 8
    assert not [name for pair in named for name in pair if name and not (ROOT / name).exists()]


@pytest.mark.slow
def test_the_demo_itself(tmp_path, monkeypatch, capsys):
    """What `make demo` runs, whole: minutes on two cores."""
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "output=demo"]) == 0
    assert (tmp_path / "demo" / "report" / "report.html").is_file()
    capsys.readouterr()
    assert main(["demo", "output=demo"]) == 0  # again: every stage is already done
    assert "..." not in "\n".join(line for line in capsys.readouterr().out.splitlines() if line.startswith("["))
