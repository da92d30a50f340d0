"""Files in memory -> an HTTP server on loopback that goes wrong on demand and counts what it is asked.

It knows no Range, like Python's own http.server. A Fault is for one request, in the order given; `always` stays.
"""

import contextlib
import hashlib
import threading
import time
from collections import defaultdict, deque
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import numpy as np


@dataclass(frozen=True)
class Fault:
    """`status` answers that; `cut` ends the connection after so many bytes, `stall` sends nothing more; `flip` changes
    that byte; `slow_s` waits so long in the middle; `redirect` sends elsewhere; `body` is sent instead."""

    status: int = 200
    cut: int | None = None
    stall: int | None = None
    flip: int | None = None
    slow_s: float = 0.0
    redirect: str = ""
    body: bytes | None = None


class ShardServer:
    def __init__(self, files: dict[str, bytes]):
        self.files = files
        self.asked: list[str] = []  # names, in the order of their requests
        self.headers: list[dict] = []
        self.queries: list[str] = []
        self.faults: dict[str, deque[Fault]] = defaultdict(deque)
        self.always: dict[str, Fault] = {}
        self.now, self.most = 0, 0  # bodies being sent at once
        self.lock = threading.Lock()
        self.end = threading.Event()
        self._server: ThreadingHTTPServer | None = None
        self.port = 0

    def start(self) -> None:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):  # noqa: N802
                owner.answer(self)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        self.end.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/root"

    def count(self, name: str) -> int:
        return self.asked.count(name)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(request.path)
        name = parts.path.rpartition("/")[2]
        with self.lock:
            self.asked.append(name)
            self.headers.append(dict(request.headers))
            self.queries.append(parts.query)
            fault = self.faults[name].popleft() if self.faults[name] else self.always.get(name, Fault())
            body = self.files.get(name) if fault.body is None else fault.body
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            with contextlib.suppress(ConnectionError):
                self._send(request, body, fault)
        finally:
            with self.lock:
                self.now -= 1

    def _send(self, request: BaseHTTPRequestHandler, body: bytes | None, fault: Fault) -> None:
        if fault.redirect:
            request.send_response(302)
            request.send_header("Location", fault.redirect)
            request.end_headers()
            return
        if body is None or fault.status != 200:
            request.send_error(404 if body is None else fault.status)
            return
        if fault.flip is not None:
            body = body[: fault.flip] + bytes([body[fault.flip] ^ 1]) + body[fault.flip + 1 :]
        request.send_response(200)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if fault.cut is not None:
            request.wfile.write(body[: fault.cut])
        elif fault.stall is not None:
            request.wfile.write(body[: fault.stall])
            request.wfile.flush()
            self.end.wait(20)
        else:
            half = len(body) // 2
            request.wfile.write(body[:half])
            request.wfile.flush()
            if fault.slow_s:
                self.end.wait(fault.slow_s)
            request.wfile.write(body[half:])


def shard_files(count: int = 4, size: int = 100_000, seed: int = 0) -> tuple[dict[str, bytes], list[dict]]:
    """Random files as shards are named, and their entries in an index."""
    random = np.random.default_rng(seed)
    files = {f"train-{i:06d}.tar": random.bytes(size) for i in range(count)}
    return files, [entry_of(name, body) for name, body in files.items()]


def entry_of(name: str, body: bytes) -> dict:
    return {"file": name, "bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}


def until(true, seconds: float = 10.0) -> None:
    """Wait for a state that comes soon; fails where it does not."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.01)


@contextlib.contextmanager
def serving(count: int, size: int):
    """A running server of `count` files of `size` bytes, whose index entries are its `entries`."""
    files, entries = shard_files(count, size)
    server = ShardServer(files)
    server.entries = entries
    server.start()
    yield server
    server.stop()
