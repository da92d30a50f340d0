"""Corpora: what the shipped ones list, and what becomes of sessions that are there, missing or damaged."""

import json
import re
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from data_prep.corpus import CorpusConfig, MemberConfig, check_corpus, place_of, prepare_corpus
from data_prep.errors import ConfigError
from data_prep.recipe import Recipe
from data_prep.source import ArchiveConfig
from data_prep.store import list_sessions, load_session
from launch.config import load
from pretrain.train import PretrainConfig
from tests.data_prep.archive_double import VERSION, Double
from tests.data_prep.layouts import flint, makin, perich


def listed(corpus: CorpusConfig, held_out: bool) -> dict[str, list[str]]:
    return {m.recipe.name: m.held_out if held_out else m.sessions for m in corpus.members}


@pytest.fixture(scope="module")
def shipped() -> dict[str, CorpusConfig]:
    return {name: load(CorpusConfig, f"corpora/{name}.yaml", []) for name in ("poyo_mp", "poyo_1")}


def test_poyo_mp_is_the_public_list_less_two_days_and_monkey_t(shipped):
    train, held_out = listed(shipped["poyo_mp"], False), listed(shipped["poyo_mp"], True)
    assert {name: len(names) for name, names in train.items()} == {"perich_miller_co": 76, "perich_miller_rt": 21}
    assert {name: len(names) for name, names in held_out.items()} == {"perich_miller_co": 8, "perich_miller_rt": 6}
    subjects = {name.split("_")[0] for names in train.values() for name in names}
    assert subjects == {"sub-C", "sub-M", "sub-J"}
    assert sum(name.startswith("sub-T_") for names in held_out.values() for name in names) == 12
    assert {"sub-C_ses-CO-20161013", "sub-C_ses-CO-20161021"} <= set(held_out["perich_miller_co"])


def test_poyo_1_is_poyo_mp_and_three_laboratories_more(shipped):
    mp, one = shipped["poyo_mp"], shipped["poyo_1"]
    assert one.members[: len(mp.members)] == mp.members
    more = {m.recipe.name: len(m.sessions) for m in one.members[len(mp.members) :]}
    assert more == {"churchland_shenoy": 9, "makin": 47, "flint": 5}
    assert sum(len(m.sessions) for m in one.members) == 158  # the number of the paper


def test_a_name_of_a_session_says_its_task_as_its_recipe_does(shipped):
    for member in shipped["poyo_mp"].members:
        task = {"perich_miller_co": "_ses-CO-", "perich_miller_rt": "_ses-RT-"}[member.recipe.name]
        assert all(task in name for name in (*member.sessions, *member.held_out))


def test_pretraining_leaves_out_exactly_what_the_corpora_hold_out(shipped):
    training = load(PretrainConfig, "pretrain/poyo_mp.yaml", [])
    assert training.sessions == ["*"]
    for corpus in shipped.values():
        for held_out in (False, True):
            for recipe, names in listed(corpus, held_out).items():
                for name in names:
                    subject = name.split("_")[0].removeprefix("sub-")
                    identity = f"{recipe}/{subject}_{name.replace('_', '-')}"
                    assert any(fnmatchcase(identity, pattern) for pattern in training.exclude) == held_out, identity


def test_ids_of_real_names_are_left_out_of_pretraining_where_the_corpus_holds_them_out(shipped, tmp_path):
    kept, held_out = (
        "sub-C_ses-CO-20160909",
        ["sub-C_ses-CO-20161013", "sub-T_ses-CO-20130819", "sub-T_ses-RT-20130820"],
    )
    for name in (kept, *held_out):
        subject, task, day = re.fullmatch(r"sub-(\w)_ses-(\w\w)-(\d+)", name).groups()
        perich.write(
            tmp_path / "000688" / f"sub-{subject}" / f"{name}_behavior+ecephys.nwb", task, subject=subject, day=day
        )
    output = str(tmp_path / "out")
    report = prepare_corpus(replace(shipped["poyo_mp"], root=str(tmp_path), output=output, workers=0))
    assert (len(report.ids(held_out=False)), len(report.ids(held_out=True))) == (1, 3)
    assert len(report.missing) == 111 - 4
    training = load(PretrainConfig, "pretrain/poyo_mp.yaml", [])
    for held in (False, True):
        for identity in report.ids(held_out=held):
            assert any(fnmatchcase(identity, pattern) for pattern in training.exclude) == held, identity


def test_pretraining_on_the_corpora_is_the_papers_recipe_otherwise():
    training = load(PretrainConfig, "pretrain/poyo_mp.yaml", [])
    assert replace(training, exclude=[]) == load(PretrainConfig, "pretrain/paper_mp.yaml", [])


@pytest.fixture(scope="module")
def recipes() -> dict[str, Recipe]:
    return {name: load(Recipe, f"dandisets/{name}.yaml", []) for name in ("makin", "flint")}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Three sound sessions, one damaged, and one that nobody asked for."""
    folder = tmp_path_factory.mktemp("root")
    for name in ("makin", "flint/deeper"):
        (folder / name).mkdir(parents=True)
    for name in ("indy_20160407_02", "loco_20170210_03", "loco_20170213_02"):
        makin.write(folder / "makin" / f"{name}.mat")
    flint.write(folder / "flint" / "deeper" / "Flint_2012_e1.mat")
    flint.write(folder / "flint" / "Flint_2012_e5.mat")
    damaged = makin.write(folder / "makin" / "indy_20160411_01.mat").read_bytes()
    (folder / "makin" / "indy_20160411_01.mat").write_bytes(damaged[: len(damaged) // 2])
    return folder


@pytest.fixture
def corpus(root, recipes, tmp_path) -> CorpusConfig:
    members = [
        MemberConfig(
            recipe=recipes["makin"],
            folder="makin",
            file="**/{}.mat",
            sessions=["indy_20160407_02", "indy_20160411_01", "indy_20160411_02"],
            held_out=["loco_20170210_03"],
        ),
        MemberConfig(recipe=recipes["flint"], folder="flint", file="**/{}.mat", sessions=["Flint_2012_e1"]),
    ]
    return CorpusConfig(name="small", root=str(root), output=str(tmp_path / "out"), workers=0, members=members)


def test_only_what_is_listed_is_read_and_what_is_missing_is_named(corpus):
    report = prepare_corpus(corpus)
    assert report.ids(held_out=False) == ["makin/indy_20160407-02", "flint/C_e1"]
    assert report.ids(held_out=True) == ["makin/loco_20170210-03"]
    assert {load_session(path).id for path in list_sessions(Path(corpus.output))} == {
        *report.ids(held_out=False),
        *report.ids(held_out=True),
    }
    why = {one.name: one.why for one in report.missing}
    assert set(why) == {"indy_20160411_01", "indy_20160411_02"}
    assert "indy_20160411_01.mat" in why["indy_20160411_01"] and "fetch it again" in why["indy_20160411_01"]
    assert why["indy_20160411_02"] == "no file **/indy_20160411_02.mat"
    assert report.exit_code == 1


def test_the_corpus_file_tells_the_ids_and_the_missing(corpus):
    report = prepare_corpus(corpus)
    told = json.loads((Path(corpus.output) / "corpus.json").read_text())
    assert told["pretraining"] == report.ids(held_out=False) and told["held_out"] == report.ids(held_out=True)
    assert [one["session"] for one in told["missing"]] == ["indy_20160411_01", "indy_20160411_02"]


def test_a_source_that_is_not_there_stops_no_other(corpus):
    makin_member, flint_member = corpus.members
    gone = replace(corpus, members=[replace(makin_member, folder="nowhere"), flint_member])
    report = prepare_corpus(gone)
    assert report.ids(held_out=False) == ["flint/C_e1"]
    assert all("no folder" in one.why and "nowhere" in one.why for one in report.missing)
    empty = replace(corpus, members=[replace(makin_member, sessions=["indy_19990101_01"], held_out=[]), flint_member])
    assert [one.name for one in prepare_corpus(empty).missing] == ["indy_19990101_01"]


def test_a_whole_corpus_exits_with_0_and_is_kept_the_second_time(corpus):
    whole = replace(corpus, members=[replace(corpus.members[0], sessions=["indy_20160407_02"]), corpus.members[1]])
    first, second = prepare_corpus(whole), prepare_corpus(whole)
    assert first.exit_code == second.exit_code == 0
    assert {row.status for one in first.sessions for row in one.rows} == {"read"}
    assert {row.status for one in second.sessions for row in one.rows} == {"kept"}


def test_a_pattern_takes_every_file_that_fits(corpus):
    members = [replace(corpus.members[0], sessions=["loco_*"], held_out=[])]
    report = prepare_corpus(replace(corpus, members=members))
    assert report.ids(held_out=False) == ["makin/loco_20170210-03", "makin/loco_20170213-02"]
    assert report.exit_code == 0


def test_a_dandiset_without_a_folder_is_fetched_unless_that_is_switched_off(corpus, shipped):
    perich = shipped["poyo_mp"].members[0]
    assert place_of(corpus, perich) == "dandi"
    assert place_of(replace(corpus, fetch=False), perich) == ""
    assert place_of(corpus, corpus.members[0]) == str(Path(corpus.root) / "makin")
    assert place_of(replace(corpus, root="nowhere"), corpus.members[0]) == ""  # it is on no archive


def test_of_an_archive_only_the_listed_files_are_fetched(nwb, recipe, tmp_path):
    double = Double()
    paths = [f"sub-A/sub-A_ses-{day}_behavior+ecephys.nwb" for day in (1, 2, 3)]
    for day, path in enumerate(paths):
        double.add(path, nwb(f"made/{day}.nwb", session_id=f"day{day}").read_bytes())
    double.publish()
    member = MemberConfig(
        recipe=replace(recipe, dandiset="000001", version=VERSION),
        file="**/{}_behavior+ecephys.nwb",
        sessions=["sub-A_ses-2", "sub-A_ses-9"],
    )
    with double.serving():
        archive = ArchiveConfig(instance=f"{double.base}/api", timeout_s=5.0, retries=2, backoff_s=0.01)
        config = CorpusConfig(name="far", output=str(tmp_path / "out"), workers=0, archive=archive, members=[member])
        report = prepare_corpus(config)
        fetched = {asked.path for asked in double.requests_of("blobs")}
        gone = prepare_corpus(replace(config, members=[replace(member, sessions=["sub-A_ses-9"])]))
    assert report.ids(held_out=False) == ["small/Ada_day1"] and len(fetched) == 1
    assert [one.name for one in report.missing] == ["sub-A_ses-9"]
    assert "none of 3 files" in gone.missing[0].why and gone.exit_code == 1


@pytest.mark.parametrize(
    "change, found",
    [
        (lambda c: replace(c, members=[]), "no members"),
        (lambda c: replace(c, members=[c.members[0], c.members[0]]), "two members have the recipe makin"),
        (lambda c: replace(c, members=[replace(c.members[0], held_out=["indy_20160407_02"])]), "listed twice"),
        (lambda c: replace(c, members=[replace(c.members[0], sessions=[], held_out=[])]), "no sessions"),
        (lambda c: replace(c, members=[replace(c.members[0], file="**/*.mat")]), "has no {}"),
    ],
)
def test_a_corpus_that_no_files_could_satisfy_is_refused(corpus, change, found):
    with pytest.raises(ConfigError, match=found):
        check_corpus(change(corpus))


def test_the_shipped_corpora_are_sound(shipped):
    for corpus in shipped.values():
        check_corpus(corpus)
