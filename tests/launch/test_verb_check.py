"""`spikeloom check`: faults are rows and exit code 1; the last line says what was read."""

import re

import pytest

from launch.cli import main


@pytest.fixture
def root(tiny_root, tmp_path):
    return tiny_root(tmp_path / "shards", {"d/s": "s"})


def test_a_good_root_is_one_line_and_exit_code_0(root, capsys):
    assert main(["check", str(root)]) == 0
    told = capsys.readouterr()
    size = sum(path.stat().st_size for path in root.glob("*.tar"))
    pattern = rf"2 files, {size:,} bytes, 2 segments, 50 spikes checked in [\d.]+ s \([\d,]+ MB/s\): no fault\n"
    assert re.fullmatch(pattern, told.out)
    assert "checking 1/2: train-000000.tar" in told.err


def test_each_fault_is_a_row_and_the_exit_code_is_1(root, capsys):
    for name in ("train-000000.tar", "valid-000000.tar"):
        data = bytearray((root / name).read_bytes())
        data[520] ^= 4  # in the json of the first segment
        (root / name).write_bytes(data)
    assert main(["check", str(root)]) == 1
    title, columns, *rows, last = capsys.readouterr().out.splitlines()
    assert title == f"faults of {root}" and columns.split() == ["where", "found"]
    for name in ("train-000000.tar", "valid-000000.tar"):
        digest, segment = (row for row in rows if name in row)
        assert digest.split()[0] == name and "its sha256 is not what the index says" in digest
        assert segment.split()[0] == f"{name}:" and "its json" in segment
    assert last.endswith(": 4 faults") and len(rows) == 4


def test_a_root_that_is_none_is_one_fault(tmp_path, capsys):
    assert main(["check", str(tmp_path)]) == 1
    assert "holds no index.json" in capsys.readouterr().out


def test_a_dry_run_says_how_much_would_be_read(root, capsys):
    assert main(["check", str(root), "--dry-run"]) == 0
    assert f"# would read the 2 shards of {root}, 0 MB, and hold them" in capsys.readouterr().out
    (root / "index.json").unlink()
    assert main(["check", str(root), "--dry-run"]) == 1


def test_without_a_root_there_is_nothing_to_check(capsys):
    assert main(["check"]) == 2
    assert "a shard root is missing" in capsys.readouterr().err
