"""The command line: help at once, one line and the right exit code for what a user can mend."""

import errno
import subprocess
import sys
from dataclasses import dataclass, field, replace

import pytest

from data_prep.errors import SessionError
from launch import cli
from launch.commands import VERBS, Verb
from launch.config import load
from launch.table import print_table


@dataclass(frozen=True)
class Net:
    name: str = "net"
    depth: int = 6
    "blocks of the stack"


@dataclass(frozen=True)
class ToyConfig:
    output: str
    "folder to write"
    steps: int = 10
    """optimizer steps,
    on two lines"""
    fast: bool = False
    net: Net = field(default_factory=Net, metadata={"choices": {"net": Net}})
    "the model"


@pytest.fixture
def toy(monkeypatch):
    """A verb `toy` that does whatever its list holds: raises an exception, or notes the config."""
    script, calls = [], []

    def run(config) -> int:
        calls.append(config)
        for act in script:
            raise act
        return 0

    verb = Verb("toy with it", "spikeloom toy output=x", lambda: ToyConfig, run, lambda _: ["would toy"], needs="x")
    monkeypatch.setitem(VERBS, "toy", verb)
    return script, calls


def test_help_lists_every_verb_and_loads_no_floor():
    code = (
        "import sys, launch.cli; status = launch.cli.main(['--help']);"
        "heavy = {'torch', 'pynwb', 'h5py', 'lightning', 'numpy', 'pyarrow', 'webdataset'} & set(sys.modules);"
        "sys.exit(status or (sorted(heavy) and str(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name, verb in VERBS.items():
        assert name in done.stdout and verb.help in done.stdout


def test_python_m_launch_is_the_same_program():
    done = subprocess.run([sys.executable, "-m", "launch", "--version"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("spikeloom ")


def test_help_of_a_verb_tells_meaning_type_and_default(toy, capsys):
    assert cli.main(["toy", "--help"]) == 0
    out = capsys.readouterr().out
    for line in (
        "  output  (str) = must be given\n      folder to write",
        "  steps  (int) = 10",
        "      optimizer steps, on two lines",
        "  fast  (bool) = false",
        "  net  (section, name: net)",
        "  net.depth  (int) = 6\n      blocks of the stack",
    ):
        assert line in out


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_help_text_with_every_setting_explained(verb, capsys):
    assert cli.main([verb, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    settings = lines[lines.index("settings:") + 1 :]
    bare = [
        line
        for line, below in zip(settings, settings[1:] + [""])
        if line.startswith("  ") and line[2] != " " and not below.startswith("      ") and ".name " not in line
    ]
    assert not bare, f"write a string under these fields: {bare}"


def test_a_verb_runs_with_its_settings(toy):
    _, calls = toy
    assert cli.main(["toy", "output=o", "net.depth=2"]) == 0
    assert calls == [ToyConfig(output="o", net=Net(depth=2))]


def test_a_verb_of_many_words_gets_each_as_it_was_typed(toy, monkeypatch):
    @dataclass(frozen=True)
    class ManyConfig:
        places: list[str] = field(default_factory=list)
        "what is joined"
        output: str = ""
        "folder"

    _, calls = toy
    many = replace(VERBS["toy"], schema=lambda: ManyConfig, positional="places", many=True)
    monkeypatch.setitem(VERBS, "toy", many)
    words = ["a,b", "/x y", "it's", 'say "so"', "[c]", "7", "back\\slash", "größe😀", "null", "true", "e: f"]
    assert cli.main(["toy", *words, "output=o"]) == cli.main(["toy", "one", "output=o"]) == 0
    assert cli.main(["toy", "places=[a,b]", "output=o"]) == 0
    assert [config.places for config in calls] == [words, ["one"], ["a", "b"]]


def test_a_verb_without_a_config_takes_its_own_file(toy, tmp_path, monkeypatch, capsys):
    _, calls = toy
    for name in ("own", "given"):
        (tmp_path / f"{name}.yaml").write_text(f"steps: {len(name)}\n")
    own, given = str(tmp_path / "own.yaml"), str(tmp_path / "given.yaml")
    monkeypatch.setitem(VERBS, "toy", replace(VERBS["toy"], file=own))
    assert cli.main(["toy", "output=o"]) == cli.main(["toy", given, "output=o"]) == 0
    assert [config.steps for config in calls] == [3, 5]
    assert cli.main(["toy", "--help"]) == 0
    assert f"Without CONFIG it takes configs/{own}" in capsys.readouterr().out


@pytest.mark.parametrize("verb", [name for name, verb in VERBS.items() if verb.file])
def test_the_file_a_verb_takes_by_itself_is_shipped(verb):
    load(VERBS[verb].schema(), VERBS[verb].file, [])


def test_dry_run_prints_the_resolved_config_and_does_nothing(toy, capsys):
    _, calls = toy
    assert cli.main(["toy", "output=o", "--dry-run"]) == 0
    assert capsys.readouterr().out == (
        "output: o\nsteps: 10\nfast: false\nnet:\n  name: net\n  depth: 6\n# would toy\n"
    )
    assert calls == []


@pytest.mark.parametrize(
    "argv, line",
    [
        (["pretian"], "spikeloom pretian: no such command; did you mean pretrain?"),
        (["toy", "output=o", "stepz=3"], "stepz: no such key; did you mean steps?"),
        (["toy", "output=o", "steps=x"], "steps: 'x' is not a whole number; give a whole number"),
        (["toy", "steps=1"], "output: it is not set; give output=..., text"),
        (["toy"], "spikeloom toy: x is missing; see spikeloom toy --help"),
        (["toy", "--dryrun"], "--dryrun: no such option; did you mean --dry-run?"),
        (["toy", "--steps=3"], "--steps=3: no such option; write settings as key=value, without dashes"),
        (["toy", "a.yaml", "b.yaml"], "spikeloom toy: two files: a.yaml and b.yaml; give one, then key=value"),
        (["toy", "absent.yaml"], "absent.yaml: no such file; check the path"),
    ],
)
def test_a_wrong_command_is_one_line_and_exit_code_2(toy, capsys, argv, line):
    assert cli.main(argv) == 2
    assert capsys.readouterr().err == f"spikeloom: {line}\n"


@pytest.mark.parametrize(
    "error, code, line",
    [
        (SessionError("a.nwb", "it is\n cut short", "fetch it again"), 1, "a.nwb: it is cut short; fetch it again"),
        (
            OSError(errno.ENOSPC, "No space left on device", "x.tar"),
            1,
            "x.tar: the disk is full or the file too large for it; free some space and run the command again",
        ),
        (
            OSError("Can't write data (errno = 28, error message = 'No space left on device')"),
            1,
            "output: the disk is full or the file too large for it; free some space and run the command again",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "/x"),
            1,
            "/x: it may not be written or read (Permission denied); give a path of your own",
        ),
    ],
)
def test_a_fault_of_the_data_or_the_disk_is_one_line_and_exit_code_1(toy, capsys, error, code, line):
    script, _ = toy
    script.append(error)
    assert cli.main(["toy", "output=o"]) == code
    assert capsys.readouterr().err == f"spikeloom: {line}\n"


def test_what_nobody_can_mend_keeps_its_traceback(toy):
    script, _ = toy
    script.append(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        cli.main(["toy", "output=o"])


def test_an_interrupt_is_quiet(toy, capsys):
    script, _ = toy
    script.append(KeyboardInterrupt())
    assert cli.main(["toy", "output=o"]) == 130
    assert capsys.readouterr().err == ""


def test_a_table_is_plain_lines_away_from_a_terminal(capsys):
    print_table("files", ["file", "spikes", "message"], [["a.nwb", 12345, ""], ["long name.nwb", 7, None]])
    want = "files\n  file           spikes\n  a.nwb          12,345\n  long name.nwb       7\n"
    assert capsys.readouterr().out == want


def test_a_file_s_words_never_steer_the_terminal(capsys):
    print_table("files", ["file"], [["a\x1b[2Jb\nc"]])
    assert "\x1b" not in capsys.readouterr().out
