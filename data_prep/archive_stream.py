"""An asset of an archive -> a file that is read over the network, as far as it is asked for."""

import contextlib
import io
import re
from collections.abc import Iterator

import remfile
import requests

from data_prep.archive_fetch import check_status
from data_prep.archive_http import PatientSession, Trouble, as_trouble, patiently
from data_prep.errors import SessionError
from data_prep.source import ArchiveConfig, Asset, RemoteFile

MOST_AHEAD = 1 << 20  # bytes of one request: what is read ahead of a dataset is of the next one, perhaps raw data
MOST_KEPT = 1 << 26  # bytes held in memory


class Ranges:
    """Byte ranges of one asset, in the form of the session that remfile asks; counts what was fetched.

    Each answer is checked: remfile itself looks at its length alone, and has no time-out.
    """

    def __init__(self, archive: PatientSession, url: str, asset: Asset, config: ArchiveConfig):
        self._archive, self._url, self._asset, self._config = archive, url, asset, config
        self._storage = PatientSession(config, "")  # knows no token
        self._address = ""  # signed, and valid for some hours
        self.fetched = 0  # bytes
        self.failure: SessionError | None = None

    def get_url(self) -> str:
        """The address, which remfile asks for before each request; `get` finds the signed one itself."""
        return self._url

    def get(self, url: str, headers: dict[str, str]) -> requests.Response:
        """The bytes of a range; a failure is kept, and answered with a status that remfile does not try again."""
        try:
            return patiently(self._asset.path, self._config, lambda: self._range(headers["Range"]))
        except SessionError as error:
            self.failure, refusal = error, requests.Response()
            refusal.status_code, refusal.reason = 400, "given up"
            return refusal

    def close(self) -> None:
        self._storage.close()

    def _range(self, span: str) -> requests.Response:
        session, address = self._found()
        first, last = (int(end) for end in re.findall(r"\d+", span))
        words = {"Range": span, "Accept-Encoding": "identity"}
        # streamed: where the range is ignored, the status is seen before the whole file is taken in
        with session.get(address, headers=words, stream=True, allow_redirects=False) as answer:
            if answer.status_code in (400, 403) and session is self._storage:
                self._address = ""
                raise Trouble(f"its storage refuses the signed address ({answer.status_code})")
            check_status(answer, self._asset)
            if answer.status_code != 206:
                raise SessionError(
                    self._asset.path, "its storage ignores ranges, so it cannot be streamed", "set archive.stream=false"
                )
            told = answer.headers.get("Content-Range", "")
            if told != f"bytes {first}-{last}/{self._asset.size}":
                raise Trouble(f"its storage answers {told!r} to {span} of {self._asset.size} bytes")
            with as_trouble():
                self.fetched += len(answer.content)
        return answer

    def _found(self) -> tuple[PatientSession, str]:
        """Who asks for the bytes, and where they are: mostly in a storage that the archive redirects to."""
        address = self._address or self._url
        for _ in range(5):
            if not address.startswith(self._archive.api + "/"):
                self._address = address
                return self._storage, address
            words = {"Range": "bytes=0-0", "Accept-Encoding": "identity"}
            with self._archive.get(address, headers=words, stream=True, allow_redirects=False) as answer:
                if not answer.is_redirect:  # the instance serves the bytes itself
                    check_status(answer, self._asset)
                    return self._archive, address
                address = requests.compat.urljoin(address, answer.headers["Location"])
        raise SessionError(self._asset.path, "its address redirects without an end", "tell the archive")


class RemoteBytes(io.RawIOBase):
    """A readable, seekable stream over remfile, which fetches blocks and keeps those used last."""

    def __init__(self, ranges: Ranges, size: int):
        self._file = remfile.File(ranges, _size=size, _max_chunk_size=MOST_AHEAD, _max_cache_size=MOST_KEPT)
        self._file.session = ranges
        self._size, self._place = size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        return self._place

    def readinto(self, buffer) -> int:
        count = max(0, min(len(buffer), self._size - self._place))
        if count:
            self._file.seek(self._place)
            buffer[:count] = self._file.read(count)
            self._place += count
        return count


@contextlib.contextmanager
def streamed(
    archive: PatientSession, url: str, asset: Asset, config: ArchiveConfig
) -> Iterator[tuple[RemoteFile, Ranges]]:
    """The asset as a remote file, and what tells how much of it was fetched; raises SessionError where it cannot be."""
    ranges = Ranges(archive, url, asset, config)
    stream = RemoteBytes(ranges, asset.size)
    try:
        stream.read(min(8, asset.size))  # so that a storage without ranges is refused before anyone reads
        yield RemoteFile(asset.path, stream, asset.size), ranges
    except Exception as error:
        if ranges.failure:  # the reader only saw that it could not read
            raise ranges.failure from error
        raise
    finally:
        stream.close()
        ranges.close()
