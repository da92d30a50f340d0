"""`prepare` from an archive: what is fetched, what is not fetched again, and what a new version changes."""

from dataclasses import replace

import numpy as np
import pytest

from data_prep.errors import ConfigError
from data_prep.prepare import PrepareConfig, prepare, preview
from data_prep.source import ArchiveConfig
from data_prep.store import describe, list_sessions, load_session
from tests.data_prep.archive_double import VERSION, Double

NEXT = "0.260202.0000"
PATHS = [f"sub-Ada/sub-Ada_ses-{day}.nwb" for day in (1, 2, 3)]


@pytest.fixture
def double(nwb):
    """Three files of one dandiset, published."""
    double = Double()
    for path in PATHS:
        double.add(path, nwb(f"made/{path}").read_bytes())
    double.publish()
    with double.serving():
        yield double


@pytest.fixture
def config(double, recipe, tmp_path) -> PrepareConfig:
    archive = ArchiveConfig(instance=f"{double.base}/api", timeout_s=5.0, retries=2, backoff_s=0.01)
    recipe = replace(recipe, session="file", dandiset="000001", version=VERSION)
    return PrepareConfig(recipe=recipe, source="dandi", output=str(tmp_path / "out"), workers=0, archive=archive)


def statuses(report) -> list[str]:
    return [row.status for row in report.rows]


def test_what_is_finished_is_not_asked_for_again(double, config, tmp_path):
    config = replace(config, workers=2)
    first = prepare(config)
    assert statuses(first) == ["read"] * 3 and first.exit_code == 0
    assert [row.file for row in first.rows] == PATHS and not any(row.streamed for row in first.rows)
    assert [row.asset for row in first.rows] == [one.id for one in double.drafted]
    told = describe(list_sessions(tmp_path / "out")[0]).provenance
    assert (told["dandiset"], told["version"], told["file"]) == ("000001", VERSION, PATHS[0])
    assert told["digest"] == first.rows[0].digest == "sha256:" + double.drafted[0].digests()["dandi:sha2-256"]
    double.log.clear()
    assert statuses(prepare(config)) == ["kept"] * 3
    assert not double.requests_of("download|blobs")


def test_a_new_version_costs_what_is_new_in_it(double, config, nwb, tmp_path):
    prepare(config)
    double.replace(PATHS[1], nwb("made/other.nwb", trials=40).read_bytes())
    double.publish(NEXT)
    double.log.clear()
    report = prepare(replace(config, recipe=replace(config.recipe, version=NEXT)))
    assert statuses(report) == ["kept", "read", "kept"] and len(double.requests_of("GET /blobs")) == 1
    versions = [describe(path).provenance["version"] for path in list_sessions(tmp_path / "out")]
    assert versions == [VERSION, NEXT, VERSION]


def test_the_same_bytes_in_a_folder_are_the_same(double, config, tmp_path):
    prepare(config)
    assert statuses(prepare(replace(config, source=str(tmp_path / "made")))) == ["kept"] * 3


def test_a_dry_run_tells_which_version_it_would_read(double, config, tmp_path):
    text = "\n".join(preview(replace(config, part="2/2", subjects=["Ada"])))
    size = sum(one.size for one in double.drafted) / 1e6
    assert f"3 files, {size:.1f} MB, in " in text and f"000001/{VERSION}" in text and "part 2/2 of them: " in text
    assert "makes session small/Ada_sub-Ada_ses-" in text.replace("Ada-ses", "Ada_ses") and not list_sessions(tmp_path)
    with pytest.raises(ConfigError, match="subjects: no file in .* is of sub-Bea"):
        preview(replace(config, subjects=["Bea"]))


def test_streamed_sessions_are_the_same_and_say_so(double, config, tmp_path):
    fetched = prepare(config)
    streaming = replace(config, output=str(tmp_path / "streamed"), archive=replace(config.archive, stream=True))
    report = prepare(streaming)
    assert statuses(report) == ["read"] * 3 and all(row.streamed for row in report.rows)
    assert [row.digest for row in report.rows] == [row.digest for row in fetched.rows]
    assert not list(tmp_path.glob("streamed.downloads"))
    for one, other in zip(list_sessions(tmp_path / "out"), list_sessions(tmp_path / "streamed")):
        here, there = load_session(one), load_session(other)
        assert there.provenance["streamed"] == "yes" and here.provenance["streamed"] == "no"
        assert np.array_equal(here.spikes.time, there.spikes.time) and here.units == there.units
        assert np.array_equal(here.signals["cursor_vel"].value, there.signals["cursor_vel"].value)
    double.log.clear()
    assert statuses(prepare(streaming)) == ["kept"] * 3 and not double.requests_of("download|blobs")
