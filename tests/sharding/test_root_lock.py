"""One run writes a root at a time: the second is told who the first is, and a dead one holds nothing."""

import os
import platform
import signal
import subprocess
import sys
import threading
import time

import pytest

from sharding.errors import ShardError
from sharding.root_lock import LOCK, writing

HOLD = """
import sys, time
from pathlib import Path
from sharding.root_lock import writing
with writing(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_the_second_run_is_refused_in_one_line_that_names_the_first(holder, tmp_path):
    told = f"is being written by process {holder.pid} on {platform.node()}; wait"
    with pytest.raises(ShardError, match=told) as caught, writing(tmp_path):
        pass
    assert "\n" not in str(caught.value) and holder.poll() is None


def test_a_killed_run_holds_nothing(holder, tmp_path):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert (tmp_path / LOCK).exists()  # it could not clean up
    with writing(tmp_path):
        with pytest.raises(ShardError, match=f"process {os.getpid()} on"), writing(tmp_path):
            pass
    assert list(tmp_path.iterdir()) == []


def test_an_error_inside_gives_the_root_free(tmp_path):
    with pytest.raises(KeyboardInterrupt), writing(tmp_path / "deep" / "root"):
        raise KeyboardInterrupt
    with writing(tmp_path / "deep" / "root"):
        pass


def test_of_many_that_come_and_go_only_one_is_inside_at_a_time(tmp_path):
    inside, most, refused = [0], [0], [0]

    def come_and_go():
        for _ in range(200):
            try:
                with writing(tmp_path):
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                    time.sleep(1e-5)
                    inside[0] -= 1
            except ShardError:
                refused[0] += 1

    threads = [threading.Thread(target=come_and_go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 1 and refused[0] < 800


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with (
        pytest.raises(ShardError, match="cannot be written to .*choose another output folder"),
        writing(tmp_path / "file" / "root"),
    ):
        pass
