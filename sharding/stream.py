"""Shard URLs -> Segments -> Windows -> Batches by webdataset's own pipeline, one shard after the other, without an index.

    urls = "/data/shards/train-{000000..000041}.tar"                        (or https://..., or a list)
    segments = stream_segments(urls, shuffle_seed=7)
    windows = shuffled(stream_windows(segments, "cursor_vel", Jittered(1.0, seed=7, passed=0)), 4000, seed=7)
    batches = stream_batches(windows, sampling, 32, told, StreamDropout(config, seed=7))

The windows of a pass are those that TrainPlan gives for its seed; their order is the shards', but for the buffer.
Nothing counts them: no resuming in the middle, no batches alike for any number of ranks, no balanced ranks. Shards are
split over torch's ranks and workers as webdataset does it, each shard to one of them: with fewer shards than workers
some get nothing, and passes differ in length.
"""

import hashlib
import random
import re
import tarfile
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import IO

import numpy as np
import webdataset
from webdataset.shardlists import expand_urls
from webdataset.tariterators import group_by_keys, tar_file_expander

from sharding.errors import ConfigError, ShardError
from sharding.jitter import interval_offset, interval_starts, session_words
from sharding.segment import PHASE, TIME, UNIT, VALUE, WIDE_UNIT, Segment, from_sample
from sharding.tokens import to_microseconds
from sharding.window import Window

TIMEOUT_S = 60.0  # that a server may be silent
MEMBERS = re.compile(r".*\.(json|npy)")  # no other member is decoded: some of webdataset's decoders run code
BAD_SHARD = (tarfile.TarError, OSError, HTTPException, ValueError, TypeError, webdataset.DecodingError)
AGAIN = "copy or write the shard again"


@dataclass(frozen=True)
class StreamedWindow:
    """A window of a stream, with what an index would tell of it."""

    session: str
    unit_ids: tuple[str, ...]  # ids within the session, in the order that the window's units count
    place: int  # 63 bits for (session, start, pass), not a place of a plan: what draws unit dropout
    window: Window  # its `session` is 0: there is no index whose row it could be


@dataclass(frozen=True)
class Jittered:
    """The train windows of a pass over all shards, those of TrainPlan (without a mix) in epoch `passed` for the seed."""

    window_s: float
    seed: int
    passed: int = 0

    split = "train"

    def starts(self, segment: Segment, window_us: int) -> np.ndarray:
        """(n,) int64 from the start of the segment's interval, over all of the interval."""
        drawn = interval_offset(self.seed, session_words(segment.session), segment.interval, self.passed, window_us)
        start, stop = segment.interval_us
        return interval_starts(stop - start, window_us, int(drawn))


@dataclass(frozen=True)
class Stepped:
    """The windows of EvalPlan: every `step_s` and one that ends with its interval."""

    window_s: float
    step_s: float
    split: str = "valid"

    passed = 0

    def starts(self, segment: Segment, window_us: int) -> np.ndarray:
        """(n,) int64 from the start of the segment's interval, over all of the interval."""
        step = int(to_microseconds(self.step_s))
        if not 0 < step <= window_us:
            raise ConfigError(
                "step_s", f"is {self.step_s}", f"give seconds above 0 and up to the window's {self.window_s}"
            )
        room = max(segment.interval_us[1] - segment.interval_us[0] - window_us, 0)
        return np.minimum(np.arange(room // step + 1 + (room % step > 0)) * step, room)


def stream_segments(urls: str | Iterable[str], shuffle_seed: int | None = None) -> Iterator[Segment]:
    """The segments of the shards at `urls` (paths or http(s), braces expanded), in a shard's order.

    A seed shuffles the shards. Raises ConfigError for what is no such URL, ShardError for a shard that is missing, cut
    short or damaged; without an index there is no checksum that would tell every flipped bit.
    """
    shards = webdataset.SimpleShardList(_checked(urls), seed=shuffle_seed)
    now = _OpenShard()
    pipeline = webdataset.DataPipeline(
        shards,
        webdataset.split_by_node,
        webdataset.split_by_worker,
        now.opened,
        lambda sources: tar_file_expander(sources, select_files=MEMBERS.fullmatch),
        group_by_keys,
        webdataset.decode(),
    )
    try:
        for sample in pipeline:
            segment = from_sample(sample)
            _check(segment, now.url)
            yield segment
    except BAD_SHARD as error:
        raise ShardError(now.url, f"cannot be read ({_reason(error)})", AGAIN) from None
    finally:
        now.close()


def stream_windows(segments: Iterable[Segment], signal: str, choice: Jittered | Stepped) -> Iterator[StreamedWindow]:
    """The chosen windows of every segment of the choice's split, in time order; other segments are passed over.

    Raises ConfigError for a session without the signal and for a window longer than the shards carry.
    """
    length = int(to_microseconds(choice.window_s))
    if length <= 0:
        raise ConfigError("window_s", f"is {choice.window_s}", "give seconds above 0")
    for segment in segments:
        if segment.split != choice.split:
            continue
        if signal not in segment.signals:
            known = ", ".join(segment.signals) or "none"
            raise ConfigError(segment.session, f"has no signal {signal!r}", f"choose among {known}")
        starts = segment.interval_us[0] + choice.starts(segment, length)
        for start in starts[(starts >= segment.start_us) & (starts < segment.stop_us)].tolist():
            place = _place(segment.session, start, choice.passed)
            yield StreamedWindow(segment.session, segment.unit_ids, place, _cut(segment, signal, start, length))


def shuffled(windows: Iterable[StreamedWindow], buffer: int, seed: int) -> Iterator[StreamedWindow]:
    """The same windows, each drawn from a buffer of so many; with a buffer of a pass or more, in any order."""
    return webdataset.shuffle(buffer, initial=buffer, rng=random.Random(seed))(iter(windows))


def _checked(urls: str | Iterable[str]) -> list[str]:
    """All URLs, braces expanded; raises ConfigError for any that is neither a path nor http(s)."""
    given = [urls] if isinstance(urls, str) else list(urls)
    out = []
    for text in given:
        if "$" in text:  # which webdataset would replace by what the environment holds
            raise ConfigError("urls", f"{text!r} holds a $", "write the path out")
        out += expand_urls(text)
    for url in (*given, *out):
        if "pipe:" in url or (re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", url) and not re.match(r"https?://", url)):
            raise ConfigError("urls", f"{url!r} is no path and no http(s) URL", "give paths or http(s)://; no commands")
    if not out:
        raise ConfigError("urls", "name no shard", "give at least one, as /data/train-{000000..000009}.tar")
    return out


class _OpenShard:
    """A stage that opens shard after shard, ourselves: webdataset would run a command (curl) for an http URL."""

    def __init__(self):
        self.url, self._stream = "", None

    def opened(self, sources: Iterable[dict]) -> Iterator[dict]:
        for source in sources:
            self.close()
            self.url = source["url"]
            self._stream = _Remote(self.url) if self.url.startswith("http") else _local(Path(self.url))
            yield {"url": self.url, "stream": self._stream}

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()


def _local(path: Path) -> IO[bytes]:
    """A local shard; raises ShardError where it does not end as a tar does."""
    stream = open(path, "rb")
    size = stream.seek(0, 2)
    stream.seek(max(size - 2 * tarfile.BLOCKSIZE, 0))
    if size % tarfile.RECORDSIZE or any(stream.read()):
        stream.close()
        raise ShardError(path, "is cut short", AGAIN)
    stream.seek(0)
    return stream


class _Remote:
    """The body of an http(s) URL; raises OSError where it ends before the length that the server told."""

    def __init__(self, url: str):
        self._body = urllib.request.urlopen(url, timeout=TIMEOUT_S)
        told = self._body.headers.get("Content-Length")
        self._left = int(told) if told else None

    def close(self) -> None:
        self._body.close()

    def read(self, size: int) -> bytes:
        data = self._body.read(size)
        if self._left is not None:
            self._left -= len(data)
            if not data and size and self._left:
                raise OSError(f"{self._left} bytes are missing at its end")
        return data


def _check(segment: Segment, url: str) -> None:
    """Raise ShardError for arrays that cannot be a segment's: they would be read past their ends."""
    spikes, found = segment.spikes, ""
    bounds = [*segment.interval_us[:1], segment.start_us, segment.stop_us, segment.carry_us, *segment.interval_us[1:]]
    whole = all(type(number) is int for number in (*bounds, segment.interval))
    if not whole or not isinstance(segment.session, str) or len(bounds) != 5 or bounds != sorted(bounds):
        found = f"bounds {bounds}"
    elif spikes.time.dtype != TIME or spikes.unit.dtype not in (UNIT, WIDE_UNIT) or spikes.time.ndim != 1:
        found = f"spikes of type {spikes.time.dtype} and {spikes.unit.dtype}"
    elif spikes.time.shape != spikes.unit.shape or (np.diff(spikes.time) < 0).any():
        found = "spike times that fall, or not a unit for each"
    elif len(spikes) and int(spikes.unit.max()) >= len(segment.unit_ids):
        found = "a spike of a unit that its session does not have"
    for name, part in segment.signals.items():
        types = (part.time.dtype, part.value.dtype, part.phase.dtype) == (TIME, VALUE, PHASE)
        sizes = part.value.ndim == 2 and part.time.shape == part.phase.shape == part.value.shape[:1]
        if not types or not sizes or (np.diff(part.time) <= 0).any():
            found = f"a signal {name} whose arrays do not fit together"
    if found:
        raise ShardError(url, f"segment {segment.key} holds {found}", AGAIN)


def _cut(segment: Segment, signal: str, start_us: int, length_us: int) -> Window:
    """The window of a segment from start_us on, as window.Reader cuts it."""
    part, spikes, first = segment.signals[signal], segment.spikes, start_us - segment.start_us
    if min(start_us + length_us, segment.interval_us[1]) > segment.carry_us:
        carried = (segment.carry_us - segment.stop_us) / 1e6
        raise ConfigError("window_s", f"is {length_us / 1e6}", f"these shards serve windows up to {carried} s")
    ends = np.array((first, min(start_us + length_us, segment.carry_us) - segment.start_us), TIME)
    i, j = spikes.time.searchsorted(ends)
    a, b = part.time.searchsorted(ends)
    return Window(
        0,
        start_us,
        length_us,
        np.arange(len(segment.unit_ids)),
        spikes.time[i:j] - ends[0],
        spikes.unit[i:j],
        part.time[a:b] - ends[0],
        part.value[a:b],
        part.phase[a:b],
    )


def _place(session: str, start_us: int, passed: int) -> int:
    told = f"{passed} {start_us} {session}".encode()
    return int.from_bytes(hashlib.sha256(told).digest()[:8], "little") >> 1


def _reason(error: BaseException) -> str:
    return str(error.strerror) if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0][:200]
