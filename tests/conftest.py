"""What every test may ask for: the real recordings, where they are, and quiet single-threaded numerics."""

import gc
import os
import signal
import tempfile
from pathlib import Path

import pytest

# Two test processes on two cores must not start eight threads each; set before any test imports torch or numpy.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")
os.environ.setdefault("WANDB_MODE", "offline")  # no test talks to a server

if "SPIKELOOM_CACHE" not in os.environ:  # one for all test processes, away from the user's own
    _cache = tempfile.TemporaryDirectory(prefix="spikeloom-cache-")
    os.environ["SPIKELOOM_CACHE"] = _cache.name

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # begun in the background of a script: what is begun here is not
    signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).parents[1]


LONG = ("tests/test_readme.py", "tests/launch/test_learn.py", "tests/pretrain/test_strategy.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest is begun first: a test of half a minute that comes last is waited for by all processes."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONG))


def pytest_collection_finish() -> None:
    """What collecting has imported stays: the garbage collector need not walk it again in every test."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real NWB recordings (SPIKELOOM_DATA, else beside the checkout); skips where it is absent."""
    folder = Path(os.environ.get("SPIKELOOM_DATA") or REPOSITORY.parent / "shared" / "data" / "nwb")
    if not folder.is_dir():
        pytest.skip("no real recordings here: set SPIKELOOM_DATA to a folder of NWB files")
    return folder
