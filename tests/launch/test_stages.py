"""A chain of stages does each thing once, redoes what its inputs changed, and never clears what is not its own."""

import pytest

from data_prep.errors import ConfigError
from launch.stages import Stages, files_digest


def chain(root, first, second, calls, fails=False):
    """Two stages that note when they work; each writes one file."""
    stages = Stages(root, total=2)

    def work(name):
        def write(folder):
            calls.append(name)
            calls.append(sorted(path.name for path in folder.iterdir()))
            (folder / "half").touch()
            if fails and name == "b":
                raise KeyboardInterrupt
            (folder / "whole").touch()
            return "one file"

        return write

    stages.run("a", "First", {"value": first}, "a", work("a"))
    return stages.run("b", "Second", {"value": second}, "b", work("b"))


def test_second_run_does_nothing(tmp_path, capsys):
    calls = []
    assert chain(tmp_path, 1, 1, calls) == tmp_path / "b"
    assert calls == ["a", [], "b", []]
    capsys.readouterr()
    chain(tmp_path, 1, 1, calls)
    assert len(calls) == 4
    assert capsys.readouterr().out.count("already done (one file)") == 2


def test_change_redoes_what_follows_from_an_empty_folder(tmp_path):
    calls = []
    chain(tmp_path, 1, 1, calls)
    chain(tmp_path, 1, 2, calls)
    assert calls[4:] == ["b", []]
    chain(tmp_path, 2, 2, calls)
    assert calls[6:] == ["a", [], "b", []]


def test_interrupted_stage_finds_what_it_wrote(tmp_path):
    calls = []
    with pytest.raises(KeyboardInterrupt):
        chain(tmp_path, 1, 1, calls, fails=True)
    chain(tmp_path, 1, 1, calls)
    assert calls[4:] == ["b", ["half"]]  # the first is not done again, the second goes on


def test_foreign_files_are_refused_and_left_alone(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="not the demo's"):
        chain(tmp_path, 1, 1, [])
    assert (tmp_path / "b" / "thesis.txt").read_text() == "years of work"


def test_digest_notices_a_changed_file(tmp_path):
    (tmp_path / "one.nwb").write_text("a")
    before = files_digest(tmp_path, "**/*.nwb")
    (tmp_path / "notes.txt").write_text("a")
    assert files_digest(tmp_path, "**/*.nwb") == before
    (tmp_path / "one.nwb").write_text("ab")
    assert files_digest(tmp_path, "**/*.nwb") != before
    assert files_digest(tmp_path / "one.nwb", "**/*.nwb") == files_digest(tmp_path, "**/*.nwb")
