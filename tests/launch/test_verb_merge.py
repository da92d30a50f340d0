"""`spikeloom merge`: any number of roots into one that check passes; a dry run writes nothing."""

import pytest

from launch.cli import main


@pytest.fixture
def roots(tiny_root, tmp_path):
    return [str(tiny_root(tmp_path / name, {f"{name}/s": name})) for name in ("a", "b", "c, d")]


def test_three_roots_become_one(roots, tmp_path, capsys):
    assert main(["merge", *roots, f"output={tmp_path / 'all'}"]) == 0
    told = capsys.readouterr()
    for name in ("a/s", "b/s", "c, d/s"):
        assert name in told.out
    assert "joining 6/6: valid-000002.tar" in told.err
    assert main(["check", str(tmp_path / "all")]) == 0
    assert "6 files, " in capsys.readouterr().out


def test_a_dry_run_says_what_would_be_linked_and_writes_nothing(roots, tmp_path, capsys):
    words = ["merge", *roots, f"output={tmp_path / 'all'}", "--dry-run"]
    assert main(words) == 0
    assert (
        f"# would join 3 sessions of 3 roots into {tmp_path / 'all'}: hard links to 6 shards" in capsys.readouterr().out
    )
    assert main([*words, "link=copy"]) == 0
    assert ": copies of 6 shards, " in capsys.readouterr().out
    assert not (tmp_path / "all").exists()


@pytest.mark.parametrize(
    "words, code, fault",
    [
        ([], 2, "two or more shard roots and output=FOLDER is missing"),
        (["A"], 2, "roots: are 1; give two or more shard roots to join"),
        (["A", "B"], 2, "output: is not given; give the folder of the joined root"),
        (["A", "A", "output=OUT"], 1, "1 sessions are in two roots: a/s; leave one"),
        (["A", "http://127.0.0.1:1/x", "output=OUT"], 2, "is on a server, only folders can be joined"),
    ],
)
def test_what_cannot_be_joined_is_one_line(roots, tmp_path, capsys, words, code, fault):
    places = {"A": roots[0], "B": roots[1], "output=OUT": f"output={tmp_path / 'all'}"}
    assert main(["merge", *(places.get(word, word) for word in words)]) == code
    err = capsys.readouterr().err
    assert fault in err and len(err.strip().splitlines()) == 1
    assert not (tmp_path / "all").exists()
