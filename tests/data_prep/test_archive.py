"""What an archive's address means, and that its list is whole, against a server that speaks the archive's API."""

import json
import pickle
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dandi import consts, utils

from data_prep import archive_http
from data_prep.archive_http import Trouble, patiently
from data_prep.errors import ConfigError, MendableError, SessionError
from data_prep.open_source import open_source
from data_prep.recipe import Recipe
from data_prep.source import ArchiveConfig, Source
from tests.data_prep.archive_double import STALL_S, VERSION, Double, Rule, cut, html, stall, status

QUICK = ArchiveConfig(timeout_s=1.0, retries=3, backoff_s=0.01, wait_s=3.0)
RECIPE = Recipe(name="small", dandiset="000001", version=VERSION)
PATHS = [f"sub-{subject}/sub-{subject}_ses-{day}.nwb" for subject in "AB" for day in (1, 2, 3, 4)]


@pytest.fixture
def double():
    """Eight files of two subjects in pages of three, published."""
    double, random = Double(page_size=3), np.random.default_rng(0)
    for path in PATHS:
        double.add(path, random.bytes(1000))
    double.publish()
    with double.serving():
        yield double


def opened(double: Double, tmp_path: Path, where: str = "", config: ArchiveConfig = QUICK, **words) -> Source:
    files, subjects = words.get("files", ["**/*.nwb"]), words.get("subjects", [])
    return open_source(where or double.url(), files, subjects, config, words.get("recipe", RECIPE), tmp_path / "out")


def test_all_pages_of_a_pinned_version_are_listed_with_what_the_archive_states(double, tmp_path):
    source = opened(double, tmp_path)
    assert [asset.path for asset in source.assets] == PATHS
    for asset, stored in zip(source.assets, double.drafted):
        assert (asset.id, asset.size, asset.zarr) == (stored.id, 1000, False)
        assert asset.digest == "sha256:" + stored.digests()["dandi:sha2-256"]
    assert len(double.requests_of("page=")) == 2 and source.notes == ()  # three pages, the first is not numbered
    assert pickle.loads(pickle.dumps(source)).assets == source.assets


def test_the_digest_is_the_etag_until_the_archive_has_computed_a_sha256(double, tmp_path):
    double.published[VERSION][0].sha256 = False
    first, second = opened(double, tmp_path).assets[:2]
    assert first.digest == "dandi-etag:" + double.drafted[0].digests()["dandi:dandi-etag"]
    assert second.digest.startswith("sha256:")


def test_digests_come_one_by_one_where_lists_carry_none(double, tmp_path):
    whole = opened(double, tmp_path).assets
    double.lists_metadata = False
    assert opened(double, tmp_path).assets == whole


@pytest.mark.parametrize(
    "tail, paths",
    [
        ("", PATHS),
        ("/", PATHS),
        (f"/assets/?path={PATHS[1]}", PATHS[1:2]),
        ("/assets/?path=sub-B", PATHS[4:]),
        ("/assets/?glob=*ses-2*", [PATHS[1], PATHS[5]]),
    ],
)
def test_the_addresses_the_client_knows_name_what_they_name(double, tmp_path, tail, paths):
    assert [asset.path for asset in opened(double, tmp_path, double.url() + tail).assets] == paths


def test_an_address_of_one_asset_needs_no_pattern(double, tmp_path):
    one = double.drafted[2]
    source = opened(double, tmp_path, f"{double.url()}/assets/{one.id}/", files=["*.mat"])
    assert [asset.id for asset in source.assets] == [one.id]


def test_dandi_means_the_version_the_recipe_pins_on_the_instance_of_the_config(double, tmp_path):
    config = replace(QUICK, instance=f"{double.base}/api")
    source = opened(double, tmp_path, "dandi", config)
    assert [asset.path for asset in source.assets] == PATHS
    told = source.provenance(source.assets[0])
    assert (told["instance"], told["dandiset"], told["version"]) == (f"{double.base}/api", "000001", VERSION)
    assert (told["asset"], told["path"], told["digest"]) == (
        double.drafted[0].id,
        PATHS[0],
        source.assets[0].digest,
    )
    assert told["collection"] == f"{double.base}/api/dandisets/000001"


@pytest.mark.parametrize("version", ["/@", "@"])
def test_dandi_addresses_give_the_version_behind_a_slash_or_an_at(double, tmp_path, monkeypatch, version):
    known = replace_instance(monkeypatch, double)
    where = f"dandi://{known}/000001{version}{VERSION}".replace("/@", "/")
    assert [asset.path for asset in opened(double, tmp_path, where).assets] == PATHS
    assert [asset.path for asset in opened(double, tmp_path, f"{where}/sub-B/").assets] == PATHS[4:]
    assert [asset.path for asset in opened(double, tmp_path, f"{where}/sub-B").assets] == PATHS[4:]
    assert [asset.path for asset in opened(double, tmp_path, f"{where}/{PATHS[5]}").assets] == [PATHS[5]]
    for inside in ("a.nwb.zarr/units/id", "sub-C/"):
        with pytest.raises(ConfigError, match="address of no version of a dandiset|has no such asset"):
            opened(double, tmp_path, f"{where}/{inside}")


def replace_instance(monkeypatch, double: Double) -> str:
    """Let a name that the client knows lead to the double; gives the name."""

    name = "dandi-api-local-docker-tests"
    utils._get_instance.cache_clear()
    monkeypatch.setitem(consts.known_instances, name, consts.DandiInstance(name, None, f"{double.base}/api"))
    return name


def test_patterns_and_subjects_choose(double, tmp_path):
    assert [a.path for a in opened(double, tmp_path, files=["**/*_ses-[12].nwb"], subjects=["sub-B"]).assets] == PATHS[
        4:6
    ]
    with pytest.raises(ConfigError, match="none of 8 files in .* fits \\*.nwb"):
        opened(double, tmp_path, files=["*.nwb"])
    with pytest.raises(ConfigError, match="no file in .* is of sub-C; choose from A, B"):
        opened(double, tmp_path, subjects=["C"])


def test_siblings_are_those_of_the_folder_asked_for_or_not(double, tmp_path):
    source = opened(double, tmp_path, files=["**/sub-A_ses-1.nwb"])
    assert [asset.path for asset in source.siblings(source.assets[0])] == PATHS[:4]


@pytest.mark.parametrize(
    "tail, found",
    [("000001/versions/draft", "is a draft, which changes"), ("000001", "no version is pinned")],
)
def test_what_may_change_is_refused_in_one_line(double, tmp_path, tail, found):
    with pytest.raises(ConfigError, match=f"{found}; give a published version, or set archive.allow_draft") as refusal:
        opened(double, tmp_path, f"{double.base}/api/dandisets/{tail}")
    assert "\n" not in str(refusal.value)
    with pytest.raises(ConfigError, match="no version is pinned"):
        opened(double, tmp_path, "dandi", recipe=replace(RECIPE, version=""))
    with pytest.raises(ConfigError, match="recipe small: names no dandiset"):
        opened(double, tmp_path, "dandi", recipe=Recipe(name="small"))


def test_a_version_that_is_not_there_is_told_with_those_that_are(double, tmp_path):
    with pytest.raises(ConfigError, match=f"no such version; choose from draft, {VERSION}"):
        opened(double, tmp_path, double.url("0.1.2"))


@pytest.mark.parametrize(
    "where, found",
    [
        ("dandi://nowhere/000001@0.1.2", "no address of a dandiset"),
        ("{base}/api/assets/b7f0/", "the address of no version of a dandiset"),
        ("{base}/api/dandisets/000002/versions/0.1.2/", r"does not show it \(404\)"),
    ],
)
def test_other_addresses_are_refused(double, tmp_path, where, found):
    with pytest.raises(MendableError, match=found):
        opened(double, tmp_path, where.format(base=double.base))


def test_a_server_that_is_no_archive_is_told(double, tmp_path):
    double.rules += [Rule("server-info|api/info", status(404), times=99)]
    with pytest.raises(SessionError, match="does not answer as a DANDI archive"):
        opened(double, tmp_path)


# What goes wrong on the way of a list

LIST = r"GET /api/dandisets/000001/versions/[\d.]+/assets/\?.*metadata"


FIRST = "path&metadata=true$"


@pytest.mark.parametrize(
    "page, fault",
    [
        (FIRST, html),
        (FIRST, cut(300)),
        (FIRST, status(429)),
        ("page=2", status(503)),
        ("page=2", status(500)),
        ("page=2", html),
        ("page=2", cut(0)),
    ],
    ids=["html", "cut", "429", "503 later", "500 later", "html later", "cut later"],
)
def test_a_list_is_asked_for_again_after_a_fault(double, tmp_path, page, fault):
    double.rules += [Rule(page, fault, times=2)]
    assert [asset.path for asset in opened(double, tmp_path).assets] == PATHS
    assert double.rules[0].times == 0


def test_a_stalled_list_is_asked_for_again(double, tmp_path):
    double.rules += [Rule("page=2", stall(100))]
    began = time.monotonic()
    assert [asset.path for asset in opened(double, tmp_path, config=replace(QUICK, timeout_s=0.4)).assets] == PATHS
    assert time.monotonic() - began < STALL_S


def test_an_instance_that_stalls_at_its_first_answer_is_asked_again(double, tmp_path):
    double.rules += [Rule("server-info", stall(10))]
    began = time.monotonic()
    assert [asset.path for asset in opened(double, tmp_path, config=replace(QUICK, timeout_s=0.4)).assets] == PATHS
    assert time.monotonic() - began < STALL_S


@pytest.mark.parametrize(
    "fault, found",
    [
        (status(503), r"answers 503 .* \(tried 3 times\)"),
        (html, "26 bytes of text/html where JSON was due"),
        (cut(100), "its answer was cut"),
        (status(429, Retry_After="60"), r"answers 429 .* \(asks for 60 s more\); .* archive.wait_s"),
    ],
)
def test_patience_ends_in_one_line(double, tmp_path, fault, found):
    double.rules += [Rule(LIST, fault, times=999)]
    with pytest.raises(SessionError, match=found) as refusal:
        opened(double, tmp_path, config=replace(QUICK, retries=2))
    assert "\n" not in str(refusal.value)
    assert len(double.requests_of(LIST)) <= 3


def test_the_wait_a_server_asks_for_is_kept(double, tmp_path):
    double.rules += [Rule(LIST, status(503, Retry_After="1"))]
    began = time.monotonic()
    opened(double, tmp_path)
    assert time.monotonic() - began >= 1.0


# Lists that change while they are read

DRAFT = replace(QUICK, allow_draft=True)


def test_a_list_that_shrinks_between_pages_is_read_again(double, tmp_path):
    # without a second look sub-A_ses-4 would slip from page 2 to page 1 and be in neither
    double.rules += [Rule("page=2", before=lambda: double.remove(PATHS[0]))]
    assert [asset.path for asset in opened(double, tmp_path, double.url("draft"), DRAFT).assets] == PATHS[1:]


def test_a_list_that_loses_its_last_page_is_read_again(double, tmp_path):
    double.rules += [Rule("page=2", before=lambda: [double.remove(path) for path in PATHS[5:]])]
    assert [asset.path for asset in opened(double, tmp_path, double.url("draft"), DRAFT).assets] == PATHS[:5]


def test_an_asset_added_and_one_removed_between_pages_is_noticed_though_the_count_stays(double, tmp_path):
    def change() -> None:
        double.remove(PATHS[0])
        double.add("sub-C/new.nwb", b"new")

    double.rules += [Rule("page=2", before=change)]
    paths = [asset.path for asset in opened(double, tmp_path, double.url("draft"), DRAFT).assets]
    assert paths == [*PATHS[1:], "sub-C/new.nwb"]


def test_an_asset_replaced_between_pages_is_noticed(double, tmp_path):
    double.rules += [Rule("page=2", before=lambda: double.replace(PATHS[0], b"newer"))]
    assert opened(double, tmp_path, double.url("draft"), DRAFT).assets[0].size == 5


def test_a_list_that_never_rests_is_refused(double, tmp_path):
    double.rules += [Rule("page=2", before=lambda: double.add(f"sub-C/{double.changes}.nwb", b"new"), times=999)]
    with pytest.raises(SessionError, match="its list changed while it was read"):
        opened(double, tmp_path, double.url("draft"), DRAFT)


def test_a_page_that_lacks_an_asset_is_refused_where_the_count_says_so(double, tmp_path):
    def shrink(answer):
        content = json.loads(answer.body)
        content["results"] = content["results"][:-1]
        return replace(answer, body=json.dumps(content).encode())

    double.rules += [Rule("page=3", shrink, times=999)]
    with pytest.raises(SessionError, match=r"its list changed while it was read \(7 of 8 assets came\)"):
        opened(double, tmp_path)


def test_an_asset_whose_path_leaves_the_folder_is_refused(double, tmp_path):
    double.published[VERSION].append(replace(double.drafted[0], path="../../evil.nwb", id="e"))
    with pytest.raises(SessionError, match="a path that leaves its folder"):
        opened(double, tmp_path)


# Embargoed dandisets


def test_an_embargoed_dandiset_opens_with_the_token_of_the_clients_variable(double, tmp_path, monkeypatch):
    double.token = "secret"
    monkeypatch.setenv(double.variable, "secret")
    source = opened(double, tmp_path)
    with source.opened(source.assets[0]) as path:
        assert path.read_bytes() == double.drafted[0].blob
    assert not [asked for asked in double.requests_of("/blobs/") if asked.token]
    assert "secret" not in repr(source) and b"secret" not in pickle.dumps(source)


def test_without_a_token_the_refusal_names_the_variable(double, tmp_path):
    double.token = "secret"
    with pytest.raises(SessionError, match=rf"does not show it \(401\); .* env '{double.variable}=") as refusal:
        opened(double, tmp_path)
    assert "\n" not in str(refusal.value)


def test_a_wrong_token_is_told_and_not_printed(double, tmp_path, monkeypatch, capfd):
    double.token = "secret"
    monkeypatch.setenv(double.variable, "wr0ng")
    with pytest.raises(ConfigError, match=rf"{double.variable}: .* refuses this token \(401\)") as refusal:
        opened(double, tmp_path)
    assert "wr0ng" not in str(refusal.value) + "".join(capfd.readouterr())


def test_the_token_of_the_public_archive_is_not_given_to_another(double, tmp_path, monkeypatch):
    monkeypatch.setenv("DANDI_API_KEY", "mine")
    opened(double, tmp_path)
    assert not [asked for asked in double.log if asked.token]


def test_a_long_wait_is_told_as_it_begins(monkeypatch, caplog):
    monkeypatch.setattr(archive_http.time, "sleep", lambda seconds: None)

    def attempt() -> None:
        raise Trouble("no connection")

    with pytest.raises(SessionError, match="tried 4 times"):
        patiently("here", ArchiveConfig(retries=3, backoff_s=2.0), attempt)
    assert len(caplog.messages) == 2 and caplog.messages[0].startswith("here: no connection; trying again in ")
