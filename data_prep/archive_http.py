"""Requests to an archive that may stall, be cut or be busy -> answers that are whole, or one line of what went wrong.

The dandi client sets no time-out, waits as long as a server says, and takes a cut or an HTML body for an answer. All
of its requests go through its `session`, which is why ours is put there.
"""

import contextlib
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar
from urllib.parse import urlsplit

import requests
from dandi.consts import DandiInstance, known_instances
from dandi.dandiapi import DandiAPIClient
from dandi.dandiarchive import ParsedDandiURL, parse_dandi_url
from dandi.exceptions import CliVersionError, NotFoundError, UnknownURLError
from dandi.utils import get_instance, get_retry_after

from data_prep.errors import ConfigError, SessionError
from data_prep.source import ArchiveConfig

T = TypeVar("T")
LOG = logging.getLogger("spikeloom")
_LONG_S = 3.0  # a person should hear why nothing happens for so long
HOPELESS = (
    requests.exceptions.SSLError,
    requests.exceptions.InvalidURL,
    requests.exceptions.InvalidSchema,
    requests.exceptions.MissingSchema,
    requests.exceptions.TooManyRedirects,
)


class Trouble(Exception):
    """Something that may pass: worth another try."""

    def __init__(self, found: str, after_s: float = 0.0):
        super().__init__(found)
        self.after_s = after_s  # the wait the server asks for
        self.gained = False  # whether ground was won since the last one


def patiently(where: str, config: ArchiveConfig, attempt: Callable[[], T]) -> T:
    """What `attempt` gives, tried anew after a Trouble with doubling waits; raises SessionError when patience ends."""
    tries, waited = 0, 0.0
    while True:
        try:
            return attempt()
        except Trouble as trouble:
            if trouble.gained:
                tries, waited = 0, 0.0
            # spread, so that the many processes of a run do not all come back at once
            pause = max(config.backoff_s * 2**tries * random.uniform(0.75, 1.25), trouble.after_s)
            if tries >= config.retries:
                raise SessionError(
                    where, f"{trouble} (tried {tries + 1} times)", "run it again later; what was fetched is kept"
                ) from trouble
            if waited + pause > config.wait_s:
                raise SessionError(
                    where, f"{trouble} (asks for {pause:.0f} s more)", "run it again later, or raise archive.wait_s"
                ) from trouble
            if pause >= _LONG_S:
                LOG.warning("%s: %s; trying again in %.0f s", where, trouble, pause)
            time.sleep(pause)
            tries, waited = tries + 1, waited + pause


class PatientSession(requests.Session):
    """A session with time-outs, retries and checks of what came; a token goes to the archive's own address only."""

    def __init__(self, config: ArchiveConfig, api: str):
        super().__init__()
        self.config, self.api = config, api.rstrip("/")

    def request(self, method: str, url: str, **words) -> requests.Response:
        """An answer of status below 500; one that streams is tried once, since its reader knows how to go on."""
        words["timeout"] = self.config.timeout_s
        if words.get("stream"):
            return self._once(method, url, **words)
        return patiently(plain(url), self.config, lambda: self._once(method, url, **words))

    def _once(self, method: str, url: str, **words) -> requests.Response:
        try:
            answer = super().request(method, url, **words)
        except HOPELESS as error:
            raise SessionError(plain(url), _told(error), "check the address of the archive") from error
        except requests.RequestException as error:
            raise Trouble(_told(error)) from error
        if answer.status_code in (408, 425, 429) or answer.status_code >= 500:
            answer.close()
            raise Trouble(f"answers {answer.status_code} {answer.reason}", after_s=get_retry_after(answer) or 0)
        if method == "GET" and answer.status_code == 200 and not words.get("stream") and url.startswith(self.api):
            try:
                answer.json()
            except ValueError as error:
                kind = answer.headers.get("Content-Type", "no stated type")
                raise Trouble(f"answers {len(answer.content)} bytes of {kind} where JSON was due") from error
        return answer

    def rebuild_auth(self, prepared_request, response) -> None:
        """Drop the token from a redirect that leaves the API: storage refuses a signed address that carries one."""
        old, new = urlsplit(response.request.url), urlsplit(prepared_request.url)
        stays = old[:2] == new[:2] and prepared_request.url.startswith(self.api + "/") and "ignature" not in new.query
        if not stays:
            prepared_request.headers.pop("Authorization", None)


def plain(url: str) -> str:
    """An address without its query, where a signature may stand."""
    return url.partition("?")[0]


@contextlib.contextmanager
def as_trouble() -> Iterator[None]:
    """Tell what breaks off the reading of a streamed body as a Trouble."""
    try:
        yield
    except requests.RequestException as error:
        raise Trouble(_told(error)) from error


def _told(error: requests.RequestException) -> str:
    """What happened, without the address: it may be signed."""
    if isinstance(error, requests.Timeout) or "timed out" in str(error):
        return "stalled: no byte within archive.timeout_s"
    if isinstance(error, requests.exceptions.ChunkedEncodingError | requests.exceptions.ContentDecodingError):
        return "its answer was cut"
    if isinstance(error, requests.exceptions.SSLError):
        return "its certificate is not accepted"
    if isinstance(error, requests.ConnectionError):
        return "no connection"
    return f"not a request that can be made ({type(error).__name__})"


def find_instance(text: str, config: ArchiveConfig) -> DandiInstance:
    """The instance of a name or URL, as the client finds it; raises ConfigError or SessionError."""
    return _asked(text, config, lambda: get_instance(text))


def parse_url(text: str, config: ArchiveConfig) -> ParsedDandiURL:
    """A URL as the client understands it; raises ConfigError or SessionError."""
    return _asked(text, config, lambda: parse_dandi_url(text))


def _asked(where: str, config: ArchiveConfig, ask: Callable[[], T]) -> T:
    """What the client finds out with requests of its own, which have no session and no time-out: hence a thread."""
    _hush()
    found: list[T | Exception] = []

    def answer() -> None:
        try:
            found.append(ask())
        except Exception as error:  # noqa: BLE001 - handed to the thread that waits
            found.append(error)

    def attempt() -> T:
        found.clear()
        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        thread.join(config.timeout_s)
        if not found:
            raise Trouble("stalled: no answer within archive.timeout_s")
        unknown = isinstance(found[0], KeyError | UnknownURLError | NotFoundError)
        if unknown or "did not redirect" in str(found[0]):
            raise ConfigError(
                where, "no address of a dandiset or archive", f"use dandi://NAME/ID@VERSION with NAME one of "
                f"{', '.join(known_instances)}, or https://SERVER/api/dandisets/ID/versions/VERSION"
            )  # fmt: skip
        if isinstance(found[0], CliVersionError):
            raise ConfigError(where, "the archive refuses this version of the dandi client", "upgrade dandi")
        if isinstance(found[0], Exception):
            raise Trouble("does not answer as a DANDI archive (/server-info)")
        return found[0]

    return patiently(where, config, attempt)


def connect(instance: DandiInstance, config: ArchiveConfig, check_token: bool = False) -> DandiAPIClient:
    """A client with our session and the token of its own environment variable; raises ConfigError for a wrong token."""
    _hush()
    client = DandiAPIClient(dandi_instance=instance)
    agent = client.session.headers["User-Agent"]
    client.session = PatientSession(config, client.api_url)
    client.session.headers["User-Agent"] = agent
    token = os.environ.get(client.api_key_env_var)
    if token and check_token:
        try:
            client.authenticate(token)  # asks the archive whether it is one
        except requests.HTTPError as error:
            raise ConfigError(
                client.api_key_env_var,
                f"{instance.api} refuses this token ({error.response.status_code})",
                f"set a valid one, or unset it: {how_to_set(client)}",
            ) from None
        except SessionError:  # it does not answer now: whoever asks next tells, if the answer is needed
            pass
    if token:
        client.session.headers["Authorization"] = f"token {token}"
    return client


def how_to_set(client: DandiAPIClient) -> str:
    """How a person sets the token; a shell cannot export the name of an instance that is only an address."""
    name = client.api_key_env_var
    return f"export {name}=..." if name.isidentifier() else f"env '{name}=...' spikeloom ..."


def _hush() -> None:
    os.environ.setdefault("DANDI_NO_ET", "1")  # the client's version check phones a third party, without a time-out
    if "DANDI_LOG_LEVEL" not in os.environ:
        logging.getLogger("dandi").setLevel(logging.CRITICAL)  # it logs every failure; we tell the one that matters


@contextlib.contextmanager
def told_of(where: str, client: DandiAPIClient) -> Iterator[None]:
    """Tell what the archive does not show, and why that may be, in one line."""
    try:
        yield
    except (NotFoundError, requests.HTTPError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None) or 404
        do = f"check dandiset and version; if it is embargoed give your token: {how_to_set(client)}"
        if "Authorization" in client.session.headers:
            do = f"check dandiset and version, and that the account of {client.api_key_env_var} may see it"
        raise SessionError(where, f"the archive does not show it ({status})", do) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SessionError(
            where, f"the archive answers in a form that this dandi client does not know ({type(error).__name__})",
            "upgrade dandi, or check that the address is an archive's"
        ) from error  # fmt: skip
