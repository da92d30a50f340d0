"""`spikeloom corpus`: the table names what is missing, the exit code says so, and a dry run tells where files come from."""

from pathlib import Path

import pytest

from launch.cli import main
from tests.data_prep.layouts import flint, makin

CORPUS = """# A corpus of two laboratories for a test, one of them at home.
name: small
members:
  - recipe: dandisets/makin.yaml
    folder: makin
    file: "**/{}.mat"
    sessions: [indy_20160407_02, indy_20160411_01]
    held_out: [loco_20170210_03]
  - recipe: dandisets/flint.yaml
    folder: flint
    file: "**/{}.mat"
    sessions: [Flint_2012_e1]
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("root")
    (folder / "makin").mkdir()
    (folder / "flint").mkdir()
    for name in ("indy_20160407_02", "loco_20170210_03"):
        makin.write(folder / "makin" / f"{name}.mat")
    flint.write(folder / "flint" / "Flint_2012_e1.mat")
    (folder / "small.yaml").write_text(CORPUS)
    return folder


def test_it_reads_what_is_there_and_names_what_is_not(root, tmp_path, capsys):
    code = main(["corpus", str(root / "small.yaml"), f"root={root}", f"output={tmp_path / 'out'}", "workers=0"])
    said = capsys.readouterr().out
    assert code == 1
    totals = said[: said.index("\nmissing\n")]  # the second table names them
    table = {line.split()[0]: line.split()[1:5] for line in totals.splitlines() if line.startswith("  ")}
    assert table["makin"] == ["3", "2", "1", "0"]  # expected, found, missing, refused
    assert table["flint"] == ["1", "1", "0", "0"] and table["all"] == ["4", "3", "1", "0"]
    assert "indy_20160411_01" in said and "no file **/indy_20160411_01.mat" in said
    assert "2 sessions to pretrain on, 1 held out" in said
    assert (tmp_path / "out" / "corpus.json").exists()


def test_it_ends_with_0_where_all_is_there(root, tmp_path, capsys):
    (root / "whole.yaml").write_text(CORPUS.replace(", indy_20160411_01", ""))
    assert main(["corpus", str(root / "whole.yaml"), f"root={root}", f"output={tmp_path / 'out'}", "workers=0"]) == 0
    assert "missing\n" not in capsys.readouterr().out


def test_a_dry_run_says_where_each_source_is_and_writes_nothing(root, tmp_path, capsys):
    output = tmp_path / "out"
    assert main(["corpus", "corpora/poyo_1.yaml", f"root={root}", f"output={output}", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert f"makin: 47 sessions to pretrain on, 0 held out, from {root / 'makin'}, where 2 of 47 files are" in said
    assert "perich_miller_co: 76 sessions to pretrain on, 8 held out, from dandiset 000688/" in said
    assert main(["corpus", "corpora/poyo_1.yaml", "root=/nowhere", "fetch=false", "--dry-run"]) == 0
    assert "from nowhere: there is no folder 000688 below root=/nowhere" in capsys.readouterr().out
    assert not output.exists()


@pytest.mark.parametrize(
    "text, fault",
    [
        (CORPUS.replace("folder: makin", "foldr: makin"), "members[0].foldr: no such key"),
        (CORPUS.replace("dandisets/makin.yaml", "dandisets/makim.yaml"), "makim.yaml"),
        ("# None.\nname: none\n", "no members"),
    ],
)
def test_a_fault_in_a_corpus_is_one_line_that_says_where(root, tmp_path, capsys, text, fault):
    (root / "fault.yaml").write_text(text)
    assert main(["corpus", str(root / "fault.yaml"), f"root={root}", f"output={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err
    assert fault in error and len(error.strip().splitlines()) == 1
