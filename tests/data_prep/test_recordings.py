"""Every shipped recipe reads every file of its folder, with the units and spikes the manifest counts."""

import json
from pathlib import Path

import numpy as np
import pytest

from data_prep.assembly import read_session
from data_prep.recipe import Recipe
from data_prep.session import Session
from data_prep.synthetic import SyntheticConfig, write_sessions
from launch.config import load

QUICK = (
    "limblab_wf/sub-Spike_ses-WF-20120820.nwb",
    "myow_perich/sub-Chewie_ses-CO-20131003.nwb",
    "nstat_hc/sub-nSTAT1_ses-PlaceCell1.nwb",
    "original/sub-anm369963_ses-20170228.nwb",
)


def recipe_of(repository: Path, name: str) -> Recipe:
    return load(Recipe, str(repository / f"configs/dandisets/{name}.yaml"), [])


def assert_counts(session: Session, row: dict) -> None:
    assert abs(len(session.units) - row["units"]) <= 0.01 * row["units"]
    assert abs(len(session.spikes.time) - row["spikes"]) <= 0.01 * row["spikes"]
    assert len(session.trials) in (row["trials"], 0)  # one file has trials that never stop
    assert session.domain.seconds <= row["observed_s"] + 0.1  # rounded there
    assert all(split.seconds > 10 for split in session.splits.values())


def rows(real_data: Path) -> dict[str, dict]:
    manifest = real_data.parent / "manifest.json"
    if not manifest.is_file():
        pytest.skip("no manifest.json beside the recordings")
    return {row["file"]: row for row in json.loads(manifest.read_text())}


@pytest.mark.parametrize("file", QUICK)
def test_counts_of_one_file_a_kind(repository, real_data, file):
    row = rows(real_data)[file]
    assert_counts(read_session(real_data / file, recipe_of(repository, file.split("/")[0])), row)


@pytest.mark.slow
def test_counts_of_every_file(repository, real_data):
    for file, row in rows(real_data).items():
        session = read_session(real_data / file, recipe_of(repository, file.split("/")[0]))
        assert_counts(session, row)
        assert (session.signals == {}) == file.startswith("original/")


def test_velocity_derived_here_is_the_velocity_stored(repository, real_data):
    """limblab_wf stores central differences of the position as velocity, so ours of the same must agree."""
    path = real_data / QUICK[0]
    recipe = load(
        Recipe,
        str(repository / "configs/dandisets/limblab_wf.yaml"),
        ["signals.cursor_vel.path=[]", "signals.cursor_vel.derive_from=cursor_pos"],
    )
    derived = read_session(path, recipe).signals["cursor_vel"]
    stored = read_session(path, recipe_of(repository, "limblab_wf")).signals["cursor_vel"]
    assert derived.derived_from == "cursor_pos"
    assert np.abs(derived.value - stored.value)[1:-1].max() < 1e-2


def test_one_recipe_reads_the_synthetic_sessions(repository, tmp_path):
    """Whatever their rate and unit of measure, the cursor comes out in cm/s; derived velocity is like the stored one."""
    recipe = load(Recipe, str(repository / "configs/dandisets/synthetic.yaml"), ["min_train_s=10"])
    sessions = [read_session(path, recipe) for path in write_sessions(tmp_path, SyntheticConfig(minutes=1.0))]
    assert len({session.id for session in sessions}) == 8
    speeds = [float(np.std(session.signals["cursor_vel"].value)) for session in sessions]
    assert max(speeds) < 2 * min(speeds) and all(s.signals["cursor_vel"].unit_of_measure == "cm/s" for s in sessions)
    derived = [session for session in sessions if session.signals["cursor_vel"].derived_from]
    gaps = [session for session in sessions if len(session.domain) > 1]
    assert len(derived) == 1 and len(gaps) == 1
    for session in sessions:
        assert session.eval_phases == ("reach",) and session.phases["reach"].seconds > 5
        assert {"hold", "reach", "return", "invalid", "outlier"} == set(session.phases)
