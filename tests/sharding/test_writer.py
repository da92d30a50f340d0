"""Shards: plain webdataset reads them, twice written they are the same bytes, half-written they do not exist."""

import hashlib
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset

from sharding.mapped import MappedMember
from sharding.root import CutSettings, RootWriter, Source
from sharding.segment import arrays, from_sample


def tars(root: Path) -> list[str]:
    return sorted(str(path) for path in root.glob("*.tar"))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves its tars open
def test_plain_webdataset_reads_the_arrays_that_our_reader_maps(index):
    shards, segments = index.mapped(), index.segments
    keys = segments.table.column("key").to_pylist()
    seen = 0
    for sample in webdataset.WebDataset(tars(index.root), shardshuffle=False).decode():
        segment = from_sample(sample)
        row = keys.index(segment.key)
        assert index.session_ids[segments.session[row]] == segment.session
        assert tuple(f"{segment.session}/{unit}" for unit in segment.unit_ids) == index.unit_ids(segment.session)
        assert (segments.start_us[row], segments.stop_us[row], segments.carry_us[row]) == (
            segment.start_us,
            segment.stop_us,
            segment.carry_us,
        )
        for name, array in arrays(segment).items():
            mapped = MappedMember(shards, segments, name).read(row, array.dtype).reshape(array.shape)
            np.testing.assert_array_equal(mapped, array)
        seen += 1
    assert seen == len(index.segments) > 10


def test_every_offset_of_the_index_is_that_of_the_tar(index):
    table = index.segments.table
    for path in tars(index.root):
        with tarfile.open(path) as tar:
            lying = {member.name: (member.offset_data, member.size) for member in tar}
        told = {
            f"{row['key']}.{name}": place
            for row in table.to_pylist()
            if row["shard"] == Path(path).name
            for name, *place in zip(row["member"], row["offset"], row["bytes"])
        }
        assert {name: list(place) for name, place in lying.items()} == told


def test_arrays_lie_where_a_processor_likes_them(index):
    for name in ("spike_time.npy", "cursor_vel.value.npy"):
        first, size = index.segments.member(name)
        assert (first[size > 0] % 64 == 0).all()


def test_writing_twice_gives_the_same_bytes(sessions, root_writer, tmp_path):
    first, second = (root_writer(tmp_path / name, sessions, shard_bytes=60_000) for name in ("a", "b"))
    files = sorted(path.name for path in first.root.iterdir())
    assert len([name for name in files if name.startswith("train")]) > 1
    assert files == sorted(path.name for path in second.root.iterdir())
    for name in files:
        assert (first.root / name).read_bytes() == (second.root / name).read_bytes(), name
    assert first.digest() == second.digest()


def test_shards_stay_below_their_size_and_their_checksums_hold(sessions, root_writer, tmp_path):
    index = root_writer(tmp_path, sessions, shard_bytes=60_000, segment_us=3_000_000)
    for entry in index.meta["shards"]:
        data = (tmp_path / entry["file"]).read_bytes()
        assert len(data) == entry["bytes"] <= 60_000 + tarfile.RECORDSIZE
        assert hashlib.sha256(data).hexdigest() == entry["sha256"]


def test_a_session_lies_in_one_shard_of_each_split_where_it_fits(sessions, root_writer, tmp_path):
    limit = 100_000
    index = root_writer(tmp_path, sessions, shard_bytes=limit, segment_us=3_000_000)
    rows, sizes = index.segments.table.to_pylist(), {}
    for path in tars(tmp_path):
        with tarfile.open(path) as tar:
            for member in tar:
                key = member.name.split(".")[0].rpartition("-")[0]  # session and split
                sizes[key] = sizes.get(key, 0) + 512 + -(-member.size // 512) * 512
    where = {}
    for row in rows:
        where.setdefault(row["key"].rpartition("-")[0], set()).add(row["shard"])
    small = {key for key, size in sizes.items() if size <= limit}
    assert 0 < len(small) < len(sizes)
    assert all(len(where[key]) == 1 for key in small)
    assert all(len(where[key]) > 1 for key in sizes.keys() - small)


FULL_DISK = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
from sharding.errors import ShardError
from sharding.segment import Segment, SignalPart
from sharding.tokens import SpikeTokens
from sharding.writer import ShardWriter
import numpy as np
n = 20_000
time = np.arange(n, dtype=np.int32)
spikes = SpikeTokens(time, np.zeros(n, np.uint16), np.zeros(n, np.uint8))
segment = Segment("k", "s", "train", 0, (0, n), 0, n, n, ("u",), spikes, {})
try:
    with ShardWriter(Path(sys.argv[2]), "train", 10**9) as writer:
        for _ in range(int(sys.argv[3])):
            writer.write(segment)
    print("whole")
except ShardError as error:
    print(error)
"""


def test_a_full_disk_leaves_nothing_and_says_so_in_one_line(tmp_path):
    # the first runs full while writing, the second only when the last buffered bytes are written out
    for limit, segments in ((200_000, 9), (119_000, 1)):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", FULL_DISK, str(limit), str(tmp_path), str(segments)],
            capture_output=True,
            text=True,
            check=True,
        )
        assert "train-000000.tar: could not be written (File too large); free space" in done.stdout
        assert len(done.stdout.splitlines()) == 1 and not done.stderr
        assert list(tmp_path.iterdir()) == []


def test_an_error_in_the_middle_removes_the_unfinished_shard(sessions, tmp_path):
    try:
        with RootWriter(tmp_path, CutSettings()) as root:
            root.add(sessions[0], root.cut(sessions[0]), Source("a", "0"))
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert list(tmp_path.iterdir()) == []
