"""Streams of shards: the same segments, windows and batches as through the index, and nothing else."""

import io
import json
import pickle
import tarfile
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sharding.augment import UnitDropoutConfig
from sharding.errors import ConfigError, ShardError
from sharding.mapped import MappedMember
from sharding.pack import pack
from sharding.plan import EvalPlan, TrainPlan, window_length_us
from sharding.sampling import Sampling, SessionTables
from sharding.segment import arrays
from sharding.statistics import target_statistics
from sharding.stream import Jittered, Stepped, shuffled, stream_segments, stream_windows
from sharding.stream_batch import StreamDropout, stream_batches
from sharding.vocabulary import Vocabulary
from sharding.window import Reader

SIGNAL = "cursor_vel"
ARRAYS = ("units", "spike_time", "spike_unit", "sample_time", "value", "phase")


@pytest.fixture(scope="module")
def root(sessions, root_writer, tmp_path_factory):
    """Several small shards."""
    return root_writer(tmp_path_factory.mktemp("several"), sessions, segment_us=7_000_000, shard_bytes=100_000)


@pytest.fixture(scope="module")
def urls(root):
    return {s: sorted(map(str, root.root.glob(f"{s}-*.tar"))) for s in ("train", "valid", "test")}


@pytest.fixture(scope="module")
def decoded(urls):
    return list(stream_segments(urls["train"]))


@pytest.fixture(scope="module")
def sampling(root):
    units = Vocabulary(tuple(u for name in root.session_ids for u in root.unit_ids(name)))
    statistics = target_statistics(root, SIGNAL, True, "std")
    return Sampling(SIGNAL, 1.0, units, Vocabulary(root.session_ids), statistics)


def of_index(root, table, signal=SIGNAL, length=1_000_000):
    """(session id, start) -> Window, through plan and reader."""
    reader = Reader(root, signal)
    windows = (reader.window(s, t, length) for s, t in zip(table.segment.tolist(), table.start_us.tolist()))
    return {(root.session_ids[w.session], w.start_us): w for w in windows}


def assert_equal(streamed, wanted):
    """The same windows, each with the same arrays of the same types."""
    assert len(streamed) == len(wanted)
    for one in streamed:
        window, same = one.window, wanted[one.session, one.window.start_us]
        assert window.length_us == same.length_us
        for name in ARRAYS:
            a, b = getattr(window, name), getattr(same, name)
            assert np.array_equal(a, b) and a.dtype == b.dtype, name


def test_segments_are_those_of_the_mapped_reader(root, urls):
    table = root.segments
    row = {key: number for number, key in enumerate(table.table.column("key").to_pylist())}
    segments = [segment for split in urls.values() for segment in stream_segments(split)]
    assert sorted(segment.key for segment in segments) == sorted(row)
    mapped = {name: MappedMember(root.mapped(), table, name) for name in arrays(segments[0])}
    for segment in segments:
        assert segment.session == root.session_ids[table.session[row[segment.key]]]
        assert (segment.start_us, segment.stop_us, segment.carry_us) == tuple(
            int(table.column(name)[row[segment.key]]) for name in ("start_us", "stop_us", "carry_us")
        )
        assert [f"{segment.session}/{unit}" for unit in segment.unit_ids] == list(root.unit_ids(segment.session))
        for name, array in arrays(segment).items():
            assert np.array_equal(array.ravel(), mapped[name].read(row[segment.key], array.dtype)), name


@pytest.mark.parametrize("epoch", [0, 1, 5])
@pytest.mark.parametrize("window_s", [1.0, 0.37])
def test_the_windows_of_a_pass_are_those_of_the_plan(root, urls, epoch, window_s):
    plan, length = TrainPlan(root, window_s, seed=11), window_length_us(root, window_s)
    wanted = of_index(root, plan.table(epoch * plan.windows + np.arange(plan.windows)), length=length)
    everything = [*urls["valid"], *urls["train"], *urls["test"]]
    streamed = list(stream_windows(stream_segments(everything), SIGNAL, Jittered(window_s, 11, epoch)))
    assert len(wanted) == plan.windows > 50
    assert_equal(streamed, wanted)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(0, 10**6), st.integers(1, 1_000_000))
def test_every_pass_has_the_windows_of_the_plan(root, decoded, seed, epoch, window_us):
    window_us = max(window_us, 20_000)  # some thousand windows are enough
    plan = TrainPlan(root, window_us / 1e6, seed)
    table = plan.table(epoch * plan.windows + np.arange(plan.windows))
    wanted = zip(root.segments.session[table.segment].tolist(), table.start_us.tolist())
    streamed = stream_windows(decoded, SIGNAL, Jittered(window_us / 1e6, seed, epoch))
    assert sorted((root.session_ids.index(w.session), w.window.start_us) for w in streamed) == sorted(wanted)


@pytest.mark.parametrize(("split", "window_s", "step_s"), [("valid", 1.0, 0.5), ("test", 0.8, 0.3)])
def test_the_windows_of_evaluation_are_those_of_the_plan(root, urls, split, window_s, step_s):
    plan, length = EvalPlan(root, split, window_s, step_s), window_length_us(root, window_s)
    wanted = of_index(root, plan.table(np.arange(plan.windows)), length=length)
    assert_equal(list(stream_windows(stream_segments(urls[split]), SIGNAL, Stepped(window_s, step_s, split))), wanted)


def test_batches_are_those_of_pack(root, urls, sampling):
    told = {session.id: session for session in root.sessions}
    windows = list(stream_windows(stream_segments(urls["train"]), SIGNAL, Jittered(1.0, 3)))
    batches = list(stream_batches(windows, sampling, 16, told))
    assert [len(batch) for batch in batches] == [16] * (len(windows) // 16) + [len(windows) % 16]
    tables = SessionTables.of(root, sampling)
    places = np.array([w.place for w in windows])
    for n, batch in enumerate(batches):
        some = windows[16 * n : 16 * (n + 1)]
        ready = [replace(w.window, session=root.session_ids.index(w.session)) for w in some]
        same = pack(ready, tables, places[16 * n : 16 * (n + 1)], n)
        for name, tensor in same.tensors().items():
            assert torch.equal(getattr(batch, name), tensor), name


def test_unit_dropout_goes_by_the_window_not_by_its_turn(urls, sampling):
    plain = replace(sampling, use_recipe_weights=False)
    windows = list(stream_windows(stream_segments(urls["train"]), SIGNAL, Jittered(1.0, 3)))
    dropout = StreamDropout(UnitDropoutConfig(3, 5, 9), 7)

    def lengths(some, size):
        batches = stream_batches(some, plain, size, {}, dropout)
        return {int(p): int(n) for b in batches for p, n in zip(b.place_B, b.token_length_B)}

    there, back = lengths(windows, 8), lengths(windows[::-1], 5)
    assert there == back and len(there) == len(windows)
    whole = [2 * len(w.window.units) + len(w.window.spike_time) for w in windows]
    assert sum(there.values()) < 0.7 * sum(whole)
    later = stream_windows(stream_segments(urls["train"]), SIGNAL, Jittered(1.0, 3, 1))
    assert not {w.place for w in later} & {w.place for w in windows}


def test_a_buffer_shuffles_and_loses_nothing(urls):
    windows = list(stream_windows(stream_segments(urls["train"]), SIGNAL, Jittered(1.0, 3)))
    order = [w.place for w in windows]
    first, again, other = ([w.place for w in shuffled(windows, 40, seed)] for seed in (1, 1, 2))
    assert first == again != other and sorted(first) == sorted(order) and first != order
    assert [s.key for s in stream_segments(urls["train"], 1)] != [s.key for s in stream_segments(urls["train"])]


def test_workers_share_the_shards_between_them(urls, monkeypatch):
    whole, parts = [s.key for s in stream_segments(urls["train"])], []
    for worker in range(3):
        monkeypatch.setenv("WORKER", str(worker))
        monkeypatch.setenv("NUM_WORKERS", "3")
        parts.append({s.key for s in stream_segments(urls["train"])})
    assert all(parts) and sorted(key for part in parts for key in part) == sorted(whole)


def test_no_url_runs_a_command(tmp_path, served):
    made = tmp_path / "made"
    for url in (
        f"pipe:touch {made}",
        f"x::pipe:touch {made}",
        ["a.tar", f"pipe:touch {made}"],
        f"{{pipe:touch {made},b}}",
    ):
        with pytest.raises(ConfigError, match="no commands"):
            list(stream_segments(url))
    for url in ("s3://bucket/a.tar", "scp:host/a.tar", "file:/etc/passwd", "${HOME}/a.tar", []):
        with pytest.raises(ConfigError):
            list(stream_segments(url))
    with pytest.raises(ShardError):
        list(stream_segments([f"{served}/a.tar';touch${{IFS}}{made};'".replace("$", "")]))
    assert not made.exists()


def test_members_of_other_kinds_are_not_decoded(urls, tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path / "sprung").touch, ()

    shard = tmp_path / "trap.tar"
    data = pickle.dumps(Trap())
    with tarfile.open(urls["valid"][0]) as old, tarfile.open(shard, "w") as new:
        for member in old:
            new.addfile(member, old.extractfile(member))
            key = member.name.partition(".")[0]
            if member.name.endswith(".json"):
                for name in ("pyd", "pickle", "pth", "json.gz"):
                    trap = tarfile.TarInfo(f"{key}.extra.{name}")
                    trap.size = len(data)
                    new.addfile(trap, io.BytesIO(data))
    keys = [s.key for s in stream_segments(str(shard))]
    assert keys == [s.key for s in stream_segments(urls["valid"][:1])] and not (tmp_path / "sprung").exists()


def test_a_shard_cut_short_anywhere_is_told(urls, tmp_path):
    whole = Path(urls["train"][0]).read_bytes()
    with tarfile.open(urls["train"][0]) as shard:
        ends = [m.offset for m in shard] + [m.offset_data for m in shard]
    random = np.random.default_rng(0)
    shard = tmp_path / "cut.tar"
    for size in {0, 1, 512, 10240, len(whole) - 512, *random.choice(ends, 20), *random.integers(0, len(whole), 20)}:
        shard.write_bytes(whole[: int(size)])
        with pytest.raises(ShardError, match="cut.tar: "):
            list(stream_segments(str(shard)))
    with pytest.raises(ShardError, match="gone.tar: "):
        list(stream_segments(str(tmp_path / "gone.tar")))


def test_arrays_that_cannot_be_are_told(urls, tmp_path):
    shard = tmp_path / "odd.tar"
    for name, odd in (
        ("spike_time.npy", np.array([5, 3], np.int32)),
        ("spike_unit.npy", np.array([9999, 0], np.uint16)),
        ("spike_time.npy", np.zeros(3, np.float64)),
        ("cursor_vel.value.npy", np.zeros((2, 2), np.float32)),
        ("json", {"start_us": 10**15}),
        ("json", {"interval_us": []}),
        ("json", {"interval_us": ["a", "b"]}),
    ):
        stream = io.BytesIO()
        if name != "json":
            np.save(stream, odd)
        with tarfile.open(urls["valid"][0]) as old, tarfile.open(shard, "w") as new:
            for member in old:
                data = old.extractfile(member).read()
                if member.name.endswith(name):
                    data = json.dumps(json.loads(data) | odd).encode() if name == "json" else stream.getvalue()
                member.size = len(data)
                new.addfile(member, io.BytesIO(data))
        with pytest.raises(ShardError, match="odd.tar: (segment .* holds |cannot be read)"):
            list(stream_segments(str(shard)))


def test_what_a_stream_cannot_give_is_refused(urls, sampling):
    jittered, plain = Jittered(1.0, 3), replace(sampling, use_recipe_weights=False)

    def windows(choice=jittered, signal=SIGNAL):
        return stream_windows(stream_segments(urls["train"]), signal, choice)

    for found, made in (
        ("no signal", windows(signal="hand")),
        ("serve windows up to 1.0 s", windows(Jittered(2.5, 3))),
        ("window_s", windows(Jittered(0.0, 3))),
        ("phases that nobody named", stream_batches(windows(), sampling, 4, {})),
        ("not among its 0 names", stream_batches(windows(), replace(plain, units=Vocabulary()), 4, {})),
    ):
        with pytest.raises(ConfigError, match=found):
            list(made)
    with pytest.raises(ConfigError, match="step_s"):
        list(stream_windows(stream_segments(urls["valid"]), SIGNAL, Stepped(1.0, 1.5)))


@pytest.fixture(scope="module")
def served(root):
    """The address of a server of the root's files; under /short it breaks off in the middle of them."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            file = root.root / self.path.rpartition("/")[2]
            data = file.read_bytes() if file.exists() else b""
            self.send_response(200 if data else 404)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 20480 * 10240] if self.path.startswith("/short") else data)

        def log_message(self, *told):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_shards_come_over_http(root, urls, served):
    pattern = f"{served}/train-{{000000..{len(urls['train']) - 1:06d}}}.tar"
    for here, there in zip(stream_segments(urls["train"]), stream_segments(pattern), strict=True):
        assert here.key == there.key and here.unit_ids == there.unit_ids
        assert all(np.array_equal(a, b) for a, b in zip(arrays(here).values(), arrays(there).values()))
    for url, found in (
        (f"{served}/short/train-000000.tar", "bytes are missing|unexpected end"),
        (f"{served}/x.tar", "404"),
    ):
        with pytest.raises(ShardError, match=found):
            list(stream_segments(url))
