"""Which files a folder offers, by pattern and subject, and what each path pattern means."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.errors import ConfigError, SessionError
from data_prep.open_source import is_archive, open_source
from data_prep.recipe import Recipe
from data_prep.source import ArchiveConfig, Source, pattern_of, subjects_of


def folder(where: Path, files: list[str] = ("**/*.nwb",), subjects: list[str] = ()) -> Source:
    return open_source(str(where), files, subjects, ArchiveConfig(), Recipe(name="small"), where / "out")


@pytest.fixture
def tree(tmp_path):
    """Files of two subjects, a zarr folder, hidden files and others."""
    names = ["sub-A/sub-A_ses-1.nwb", "sub-A/sub-A_ses-2.nwb", "sub-AB/sub-AB_ses-1.nwb", "top.nwb", "notes.txt"]
    names += ["sub-A/._sub-A_ses-1.nwb", ".cache/x.nwb", "sub-A/.y.nwb.part"]
    for name in [*names, "z.nwb.zarr/.zgroup", "z.nwb.zarr/a.nwb"]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path


def paths(source: Source) -> list[str]:
    return [asset.path for asset in source.assets]


def test_a_folder_gives_what_fits_by_path_and_nothing_hidden(tree):
    assert paths(folder(tree)) == [
        "sub-A/sub-A_ses-1.nwb",
        "sub-A/sub-A_ses-2.nwb",
        "sub-AB/sub-AB_ses-1.nwb",
        "top.nwb",
    ]
    assert paths(folder(tree, ["*.nwb"])) == ["top.nwb"]
    assert paths(folder(tree, ["sub-*/*_ses-1.nwb", "top.*"])) == [
        "sub-A/sub-A_ses-1.nwb",
        "sub-AB/sub-AB_ses-1.nwb",
        "top.nwb",
    ]
    assert paths(folder(tree, subjects=["A"])) == ["sub-A/sub-A_ses-1.nwb", "sub-A/sub-A_ses-2.nwb"]
    assert paths(folder(tree, subjects=["sub-AB"])) == ["sub-AB/sub-AB_ses-1.nwb"]


def test_an_asset_of_a_folder_is_its_file(tree):
    source = folder(tree)
    one = source.assets[0]
    path = tree / one.path
    assert (one.size, one.modified, one.digest, one.id) == (21, str(path.stat().st_mtime_ns), "", "")
    with source.opened(one) as opened:
        assert opened == path
    assert source.provenance(one) == {"collection": os.path.realpath(tree)}
    assert [a.path for a in source.siblings(one)] == ["sub-A/sub-A_ses-1.nwb", "sub-A/sub-A_ses-2.nwb"]
    assert pickle.loads(pickle.dumps(source)) == source


def test_a_zarr_folder_is_one_asset(tree):
    (zarr,) = folder(tree, ["**/*.zarr"]).assets
    assert (zarr.path, zarr.zarr, zarr.size) == ("z.nwb.zarr", True, len("z.nwb.zarr/.zgroup" + "z.nwb.zarr/a.nwb"))
    assert folder(tree / "z.nwb.zarr").assets == (zarr,)
    newest = max((tree / "z.nwb.zarr" / name).stat().st_mtime_ns for name in (".zgroup", "a.nwb"))
    assert zarr.modified == str(newest)


def test_a_single_file_needs_no_pattern(tree):
    source = folder(tree / "notes.txt")
    assert paths(source) == ["notes.txt"] and source.root == str(tree)


def test_linked_folders_are_followed_once(tree, tmp_path_factory):
    away = tmp_path_factory.mktemp("away")
    (away / "sub-C.nwb").write_bytes(b"c")
    (tree / "linked").symlink_to(away)
    (away / "back").symlink_to(tree)
    assert paths(folder(tree, ["linked/**/*.nwb"])) == ["linked/sub-C.nwb"]


def test_a_link_to_nothing_is_refused_when_it_is_opened_and_stops_no_other(tree):
    (tree / "annexed.nwb").symlink_to(tree / "nowhere")
    source = folder(tree, ["*.nwb"])
    assert paths(source) == ["annexed.nwb", "top.nwb"]
    with pytest.raises(SessionError, match="annexed.nwb: the file is gone, or a link to nothing; fetch it"):
        with source.opened(source.assets[0]):
            pass


@pytest.mark.parametrize(
    "files, subjects, found",
    [
        (["*.mat"], [], "source: none of 6 files in .* fits \\*.mat"),
        (["**/*.nwb"], ["C"], "subjects: no file in .* is of sub-C; choose from A, AB"),
        (["top.nwb"], ["A"], "no file in .* is of sub-A; choose from nothing"),
        (["/etc/*"], [], "files: pattern '/etc/\\*' leaves the source"),
        (["../*.nwb"], [], "files: pattern '../\\*.nwb' leaves the source"),
        (["[z-a].nwb"], [], "files: pattern '\\[z-a\\].nwb' is none"),
    ],
)
def test_what_fits_nothing_is_refused(tree, files, subjects, found):
    with pytest.raises(ConfigError, match=found):
        folder(tree, files, subjects)


def test_a_place_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(SessionError, match="no such file or folder; check source"):
        folder(tmp_path / "none")
    with pytest.raises(ConfigError, match="source: empty"):
        open_source("", [], [], ArchiveConfig(), Recipe(name="small"), tmp_path)


@pytest.mark.parametrize(
    "pattern, fits, fails",
    [
        ("*.nwb", ["a.nwb"], ["b/a.nwb", "a.nwbx", "a,nwb"]),
        ("**/*.nwb", ["a.nwb", "b/a.nwb", "b/c/a.nwb"], ["a.nwb/c"]),
        ("**/a?.nwb", ["ab.nwb", "x/ab.nwb"], ["a.nwb", "xab.nwb", "a/.nwb"]),
        ("x/**/y", ["x/y", "x/a/y", "x/a/b/y"], ["xy", "x/ay"]),
        ("x/**", ["x/y", "x/a/y"], ["x", "y/x"]),
        ("[ab]*", ["a", "bc"], ["c", "a/b"]),
        ("[!ab]", ["c"], ["a", "cc"]),
        ("[a", ["[a"], ["a"]),
        ("a.(b)+", ["a.(b)+"], ["a.bb"]),
    ],
)
def test_patterns_mean_what_a_shell_means(pattern, fits, fails):
    matches = pattern_of(pattern).fullmatch
    assert all(matches(path) for path in fits) and not any(matches(path) for path in fails)


def test_patterns_agree_with_pathlib(tree):
    for pattern in ("**/*.nwb", "*.nwb", "*/*", "sub-?/*", "**/sub-A_ses-[13].nwb", "sub-A/**/*.nwb"):
        known = {path.relative_to(tree).as_posix() for path in tree.glob(pattern) if path.is_file()}
        known = {
            path for path in known if not any(part.startswith(".") for part in path.split("/")) and "z.nwb" not in path
        }
        assert set(paths(folder(tree, [pattern]))) == known


def test_subjects_of_a_path():
    assert subjects_of("sub-Jenkins/sub-Jenkins_ses-1.nwb") == {"Jenkins"}
    assert subjects_of("a/sub-C.nwb") == {"C"} and subjects_of("mysub-C/x.nwb") == set()


@pytest.mark.parametrize("where", ["dandi", "dandi://dandi/000688@0.1.2", "https://x/api", "DANDI:000688/0.1.2"])
def test_what_is_an_archive(where):
    assert is_archive(where)


@pytest.mark.parametrize("where", ["./dandi", "/data/dandi", "C:nwb", "dandiset"])
def test_what_is_a_folder(where):
    assert not is_archive(where)


def test_a_folder_is_listed_without_the_cost_of_the_archives_client():
    code = (
        "import sys; from data_prep.open_source import open_source; assert not {'dandi', 'requests'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0
