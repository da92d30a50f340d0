"""Files in memory -> a DANDI archive on loopback: its API, signed blob addresses, a log of requests, and faults on demand.

A `Rule` says which requests (a regular expression on "METHOD path?query"), how often, and what goes wrong; without
rules everything is as the real archive's: pages, redirects to signed addresses, Range, a new id for a replaced file.
"""

import contextlib
import hashlib
import json
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

from zarr_checksum.tree import ZarrChecksumTree

DANDISET, VERSION = "000001", "0.260101.0000"
PART = 64 << 20  # bytes of an upload in parts, of which the etag tells
STALL_S = 20.0  # a stalled server gives up by itself then
TIME = "2026-01-01T00:00:00+00:00"


@dataclass(frozen=True)
class Asked:
    """A request, and what became of it."""

    method: str
    path: str
    query: dict[str, str]
    range: str  # "" for none
    token: str  # Authorization; "" for none
    host: str
    status: int = 0
    sent: int = 0  # bytes of the body

    @property
    def text(self) -> str:
        return f"{self.method} {self.path}" + (f"?{urlencode(self.query)}" if self.query else "")


@dataclass(frozen=True)
class Answer:
    """What is sent: the body up to `cut_at`, then the end of the connection, or up to `stall_at`, then nothing."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut_at: int | None = None
    stall_at: int | None = None


@dataclass
class Rule:
    """What goes wrong with the requests that fit, after `skip` of them, `times` times."""

    fits: str
    answer: Callable[[Answer], Answer] = lambda answer: answer
    before: Callable[[], None] = lambda: None  # done to the archive before it answers
    asked: Callable[[Asked], Asked] = lambda asked: asked
    times: int = 1
    skip: int = 0


def status(code: int, **headers: str) -> Callable[[Answer], Answer]:
    told = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda answer: Answer(code, b'{"detail": "fault"}', {"Content-Type": "application/json"} | told)


def html(answer: Answer) -> Answer:
    return Answer(200, b"<html>please log in</html>", {"Content-Type": "text/html"})


def flip(at: int) -> Callable[[Answer], Answer]:
    """One bit of one byte is another."""
    return lambda answer: replace(answer, body=answer.body[:at] + bytes([answer.body[at] ^ 1]) + answer.body[at + 1 :])


def cut(at: int) -> Callable[[Answer], Answer]:
    return lambda answer: replace(answer, cut_at=at)


def stall(at: int) -> Callable[[Answer], Answer]:
    return lambda answer: replace(answer, stall_at=at)


def no_range(asked: Asked) -> Asked:
    """The server does not know of ranges."""
    return replace(asked, range="")


@dataclass
class Stored:
    """An asset: a blob, or the entries of a zarr."""

    path: str
    blob: bytes = b""
    entries: dict[str, bytes] | None = None
    sha256: bool = True  # whether the archive has computed it yet
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    key: str = field(default_factory=lambda: str(uuid.uuid4()))  # of the blob or zarr
    claims: dict[str, str] = field(default_factory=dict)  # digests stated instead of the true ones

    @property
    def size(self) -> int:
        return len(self.blob) if self.entries is None else sum(map(len, self.entries.values()))

    def digests(self) -> dict[str, str]:
        if self.entries is not None:
            tree = ZarrChecksumTree()
            for name, data in self.entries.items():
                tree.add_leaf(Path(name), len(data), hashlib.md5(data).hexdigest())
            return {"dandi:dandi-zarr-checksum": str(tree.process())} | self.claims
        parts = [hashlib.md5(self.blob[k : k + PART]).digest() for k in range(0, len(self.blob), PART)]
        sha = {"dandi:sha2-256": hashlib.sha256(self.blob).hexdigest()} if self.sha256 else {}
        return {"dandi:dandi-etag": f"{hashlib.md5(b''.join(parts)).hexdigest()}-{len(parts)}"} | sha | self.claims

    def row(self) -> dict:
        kind = {"blob": None, "zarr": self.key} if self.entries is not None else {"blob": self.key, "zarr": None}
        return {"asset_id": self.id, "path": self.path, "size": self.size, "created": TIME, "modified": TIME} | kind


class Double:
    """The archive, its server and its log."""

    def __init__(self, page_size: int = 3, dandiset: str = DANDISET):
        self.page_size, self.dandiset, self.rules, self.log = page_size, dandiset, [], []
        self.drafted: list[Stored] = []
        self.published: dict[str, list[Stored]] = {}
        self.known: dict[str, Stored] = {}  # by id, also those that no version has any more
        self.changes = 0
        self.token = ""  # an embargoed dandiset's
        self.signature = 0  # raised when signed addresses expire
        self.lists_metadata = True  # whether lists carry metadata when asked to
        self.closing, self.counting = threading.Event(), threading.Lock()
        handler = type("Handler", (_Handler,), {"double": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def url(self, version: str = VERSION) -> str:
        return f"{self.base}/api/dandisets/{self.dandiset}/versions/{version}"

    @property
    def variable(self) -> str:
        """The environment variable in which the client looks for this instance's token."""
        return f"127.0.0.1:{self.server.server_port}_API_KEY"

    def add(self, path: str, blob: bytes = b"", **about) -> Stored:
        stored = Stored(path, blob, **about)
        self.drafted.append(stored)
        self.known[stored.id] = stored
        self.changes += 1
        return stored

    def remove(self, path: str) -> None:
        self.drafted = [one for one in self.drafted if one.path != path]
        self.changes += 1

    def replace(self, path: str, blob: bytes) -> Stored:
        self.remove(path)
        return self.add(path, blob)

    def publish(self, version: str = VERSION) -> None:
        self.published[version] = list(self.drafted)

    def version(self, name: str) -> dict:
        stored = self.drafted if name == "draft" else self.published[name]
        modified = f"2026-01-01T00:00:{self.changes % 60:02d}+00:00" if name == "draft" else TIME
        told = {"version": name, "name": "a test", "asset_count": len(stored), "created": TIME, "modified": modified}
        return told | {"size": sum(one.size for one in stored), "status": "Pending" if name == "draft" else "Published"}

    def bytes_of(self, fits: str) -> int:
        """Bytes sent in answer to the requests that fit."""
        return sum(asked.sent for asked in self.log if re.search(fits, asked.text))

    def requests_of(self, fits: str) -> list[Asked]:
        return [asked for asked in self.log if re.search(fits, asked.text)]

    @contextlib.contextmanager
    def serving(self) -> Iterator["Double"]:
        self.thread.start()
        try:
            yield self
        finally:
            self.closing.set()
            self.server.shutdown()
            self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two packets, and the second must not wait for the first
    double: Double

    def log_message(self, *words) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(address.query, keep_blank_values=True).items()}
        words = self.headers.get("Range", ""), self.headers.get("Authorization", ""), self.headers["Host"]
        asked = Asked(self.command, unquote(address.path), query, *words)
        rule = next((rule for rule in self.double.rules if re.search(rule.fits, asked.text) and self._due(rule)), None)
        if rule:
            rule.before()
        answer = answer_of(self.double, rule.asked(asked) if rule else asked)
        answer = rule.answer(answer) if rule else answer
        with self.double.counting:
            place = len(self.double.log)
            self.double.log.append(replace(asked, status=answer.status))
        for sent in self._send(answer):
            self.double.log[place] = replace(self.double.log[place], sent=sent)

    def _due(self, rule: Rule) -> bool:
        with self.double.counting:
            if rule.skip > 0:
                rule.skip -= 1
                return False
            due = rule.times > 0
            rule.times -= due
            return due

    def _send(self, answer: Answer) -> Iterator[int]:
        """Bytes of the body sent so far, told just before they are: who has received them finds them in the log."""
        self.send_response(answer.status)
        for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        ends = [end for end in (answer.cut_at, answer.stall_at) if end is not None]
        body = b"" if self.command == "HEAD" else answer.body[: min(ends, default=len(answer.body))]
        for k in range(0, len(body), 1 << 16):
            yield min(k + (1 << 16), len(body))
            try:
                self.wfile.write(body[k : k + (1 << 16)])
            except ConnectionError:
                yield k
                break
        if answer.stall_at is not None:
            self.double.closing.wait(STALL_S)
        if ends:
            self.close_connection = True


def answer_of(double: Double, asked: Asked) -> Answer:
    """What the archive and its storage answer when nothing goes wrong."""
    base = f"http://{asked.host}"
    if asked.path in ("/server-info", "/api/info/"):
        services = {"api": {"url": f"{base}/api"}, "webui": None, "jupyterhub": None}
        versions = {"version": "0.70.0", "cli-minimal-version": "0.60.0", "cli-bad-versions": []}
        return _json({**versions, "schema_version": "0.7.0", "schema_url": "", "services": services})
    if asked.path.startswith("/blobs/"):
        return _blob(double, asked)
    if asked.token and asked.token != f"token {double.token}":
        return _json({"detail": "Invalid token."}, 401)
    if asked.path == "/api/auth/token":
        return _json({"token": double.token})
    if double.token and not asked.token:
        return _json({"detail": "Authentication credentials were not provided."}, 401)
    found = re.fullmatch(rf"/api/dandisets/{double.dandiset}/(?:versions/(?:([\w.]+)/)?(.*))?", asked.path)
    if found:
        return _dandiset(double, asked, base, found[1], found[2])
    found = re.fullmatch(r"/api/assets/([\w-]+)/(info/|download/)?", asked.path)
    if found and found[1] in double.known:
        return _asset(double, base, double.known[found[1]], found[2])
    return _zarr(double, asked, base)


def _dandiset(double: Double, asked: Asked, base: str, version: str | None, rest: str | None) -> Answer:
    if rest is None:
        newest = max(double.published, default=None)
        status = {"contact_person": "A, B", "embargo_status": "EMBARGOED" if double.token else "OPEN"}
        versions = {"draft_version": double.version("draft")}
        versions["most_recent_published_version"] = newest and double.version(newest)
        return _json({"identifier": double.dandiset, "created": TIME, "modified": TIME, **status, **versions})
    if version is None:
        return _page(double, asked, base, [double.version(name) for name in ("draft", *double.published)])
    if version != "draft" and version not in double.published:
        return _json({"detail": "Not found."}, 404)
    stored = double.drafted if version == "draft" else double.published[version]
    if rest == "info/":
        return _json({**double.version(version), "asset_validation_errors": [], "version_validation_errors": []})
    if rest == "assets/":
        rows = [
            one.row()
            | ({"metadata": _metadata(one, base)} if "metadata" in asked.query and double.lists_metadata else {})
            for one in sorted(stored, key=lambda one: one.path)
        ]
        return _page(double, asked, base, rows)
    found = re.fullmatch(r"assets/([\w-]+)/(info/|download/)?", rest)
    one = next((one for one in stored if found and one.id == found[1]), None)
    return _asset(double, base, one, found[2]) if one else _json({"detail": "Not found."}, 404)


def _asset(double: Double, base: str, stored: Stored, what: str | None) -> Answer:
    if what == "download/":
        if stored.entries is not None:
            return _json({"detail": "a zarr has no single file"}, 400)
        return _signed(double, base, stored.key)
    if what == "info/":
        return _json({**stored.row(), "metadata": _metadata(stored, base)})
    return _json(_metadata(stored, base))


def _metadata(stored: Stored, base: str) -> dict:
    urls = [f"{base}/api/assets/{stored.id}/download/", f"{base}/blobs/{stored.key}"]
    return {"path": stored.path, "contentSize": stored.size, "digest": stored.digests(), "contentUrl": urls}


def _zarr(double: Double, asked: Asked, base: str) -> Answer:
    found = re.fullmatch(r"/api/zarr/([\w-]+)/files(/?)", asked.path)
    stored = next((one for one in double.known.values() if found and one.key == found[1]), None)
    if stored is None:
        return _json({"detail": "Not found."}, 404)
    if not found[2]:  # as the archive's framework does
        return Answer(301, headers={"Location": f"{base}{asked.path}/?{urlencode(asked.query)}"})
    prefix = asked.query.get("prefix", "")
    if asked.query.get("download"):
        return _signed(double, base, f"{stored.key}/{prefix}")
    rows = [
        {"Key": name, "LastModified": TIME, "ETag": hashlib.md5(data).hexdigest(), "Size": len(data)}
        for name, data in sorted(stored.entries.items())
        if name.startswith(prefix)
    ]
    return _page(double, asked, base, rows)


def _signed(double: Double, base: str, key: str) -> Answer:
    query = urlencode({"X-Amz-Signature": double.signature})
    return Answer(302, headers={"Location": f"{base}/blobs/{key}?{query}"})


def _blob(double: Double, asked: Asked) -> Answer:
    """The storage: signed addresses only, no token beside a signature, ranges."""
    if asked.token:
        return Answer(400, b"<Error>Only one auth mechanism allowed</Error>")
    if asked.query.get("X-Amz-Signature") != str(double.signature) or asked.method == "HEAD":
        return Answer(403, b"<Error>Request has expired</Error>")
    key, _, entry = asked.path.removeprefix("/blobs/").partition("/")
    stored = next((one for one in double.known.values() if one.key == key), None)
    if stored is None:
        return Answer(404, b"<Error>NoSuchKey</Error>")
    blob = stored.entries[entry] if entry else stored.blob
    span = re.fullmatch(r"bytes=(\d+)-(\d*)", asked.range)
    if not span:
        return Answer(200, blob)
    first, last = int(span[1]), min(int(span[2] or len(blob)), len(blob) - 1)
    if first >= len(blob):
        return Answer(416, headers={"Content-Range": f"bytes */{len(blob)}"})
    return Answer(206, blob[first : last + 1], {"Content-Range": f"bytes {first}-{last}/{len(blob)}"})


def _page(double: Double, asked: Asked, base: str, rows: list[dict]) -> Answer:
    size, page = int(asked.query.get("page_size", double.page_size)), int(asked.query.get("page", 1))
    if page > 1 and (page - 1) * size >= len(rows):
        return _json({"detail": "Invalid page."}, 404)
    more = f"{base}{asked.path}?{urlencode({**asked.query, 'page': page + 1})}" if page * size < len(rows) else None
    count = len(rows) if page == 1 else None  # as the archive does
    return _json({"count": count, "next": more, "previous": None, "results": rows[(page - 1) * size : page * size]})


def _json(content: object, status: int = 200) -> Answer:
    return Answer(status, json.dumps(content).encode(), {"Content-Type": "application/json"})
