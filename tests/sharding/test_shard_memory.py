"""A session of 80 million spikes is sharded in the memory of a small one."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from data_prep.session import Intervals, Spikes, Units
from data_prep.store import save_session

SPIKES, UNITS, HZ = 80_000_000, 2000, 13.0


class Made:
    """An array that is worked out where it is sliced."""

    def __init__(self, of, dtype):
        self._of, self.dtype, self.shape = of, np.dtype(dtype), (SPIKES,)

    def __len__(self) -> int:
        return SPIKES

    def __getitem__(self, at):
        return self._of(np.arange(*at.indices(SPIKES))).astype(self.dtype)


SHARD = """
import re, sys
from pathlib import Path
from sharding.shard import ShardConfig, shard
index = shard(ShardConfig(sys.argv[1], sys.argv[2]))
print(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1], index.sessions[0].spikes)
"""


@pytest.mark.slow
def test_eighty_million_spikes_take_less_than_a_gigabyte(session_maker, tmp_path):
    seconds = SPIKES / UNITS / HZ
    splits = {
        "train": [(0, 0.8 * seconds)],
        "valid": [(0.8 * seconds, 0.9 * seconds)],
        "test": [(0.9 * seconds, seconds)],
    }
    small = session_maker(0, units=UNITS, rate=0.001, seconds=seconds, hz=100.0, start=0.0)
    large = replace(
        small,
        units=Units(tuple(f"u{n}" for n in range(UNITS)), ("M1",) * UNITS, ("",) * UNITS),
        spikes=Spikes(
            Made(lambda n: (n + 0.5) / SPIKES * seconds, np.float64), Made(lambda n: n * 2654435761 % UNITS, np.uint32)
        ),
        splits={name: Intervals.of(pairs) for name, pairs in splits.items()},
    )
    save_session(large, tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", SHARD, str(tmp_path), str(tmp_path / "root")], capture_output=True, text=True, check=True
    )
    kilobytes, spikes = map(int, done.stdout.split())
    assert kilobytes < 500_000, f"{kilobytes} kB"
    assert spikes == pytest.approx(SPIKES, abs=10)
