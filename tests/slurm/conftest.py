"""A SLURM cluster for the tests of this folder: brought up once for each test process, gone with it; and tiny shards."""

import os
from pathlib import Path

import pytest

from tests.pretrain.conftest import make_session, make_shards
from tests.slurm.cluster import Cluster, why_not


@pytest.fixture(scope="session")
def cluster():
    """A running two-node SLURM that `sbatch` and its like talk to; skips where none can be brought up."""
    if reason := why_not():
        pytest.skip(reason)
    with pytest.MonkeyPatch.context() as patch, Cluster() as running:
        for name in [name for name in os.environ if name.startswith(("SLURM_", "SBATCH_", "SRUN_"))]:
            patch.delenv(name)  # of a job that runs the tests
        for name, value in running.environment.items():
            patch.setenv(name, value)
        yield running


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> Path:
    """Three tiny sessions with planted tuning: tiny/a, tiny/b, tiny/c."""
    sessions = [make_session(name, units, seed=units) for name, units in (("a", 12), ("b", 10), ("c", 14))]
    return make_shards(tmp_path_factory.mktemp("tiny"), sessions)
