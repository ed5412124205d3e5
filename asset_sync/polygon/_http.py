"""One GET and its whole answer, or the sentence that says why there is none."""

import http.client
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import requests
from requests.auth import AuthBase
from urllib3.exceptions import HTTPError

from asset_sync import __version__
from asset_sync.polygon._deadline import Deadline, DeadlineAdapter
from asset_sync.polygon._errors import Unavailable
from asset_sync.settings import Secret

MAX_BODY_BYTES = 16 * 1024 * 1024
"""Decoded. The largest honest answer, 50,000 bars, has about 7 MB."""

MAX_RETRY_AFTER_SECONDS = 3600.0

# What a chunk of a gzip bomb can grow to, with a urllib3 older than 2.6, is a thousand times this.
_CHUNK_BYTES = 16 * 1024

# All that requests and what it stands on have been seen to raise. ValueError covers UnicodeError.
_FAILURES = (requests.RequestException, HTTPError, http.client.HTTPException, OSError, ValueError)


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back, whole and decompressed; nothing in it is to be trusted."""

    status: int

    text: str = field(repr=False)
    """Empty when an error's body did not arrive whole: its status says enough."""

    retry_after_seconds: float | None


class Http:
    """The one session, which holds the key, follows nothing and repeats nothing."""

    def __init__(
        self,
        *,
        base_url: str,
        api_key: Secret,
        connect_timeout_seconds: float,
        read_timeout_seconds: float,
        call_timeout_seconds: float,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self.host = _host(base_url)
        self._timeouts = (connect_timeout_seconds, read_timeout_seconds)
        self.call_timeout_seconds = call_timeout_seconds
        self._session = _Session()
        self._session.auth = _Bearer(api_key)
        self._session.headers.update(
            {
                "User-Agent": f"asset-sync/{__version__}",
                "Accept": "application/json",
                "Accept-Encoding": "gzip",
            }
        )
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, DeadlineAdapter())

    def close(self) -> None:
        self._session.close()

    def get(self, endpoint: str, asked: str) -> Reply:
        """Return the answer to one GET of `endpoint`, whatever its status.

        `asked` names the tickers in the sentence of the `Unavailable` that is raised when no
        whole answer arrives in time and size.
        """
        with Deadline(self.call_timeout_seconds) as deadline:
            outcome = self._exchange(endpoint)
        # Raised out here, where no exception is being handled: one that came along as context
        # would hold the request, whose headers hold the key.
        if deadline.expired:
            why = f"it took longer than {self.call_timeout_seconds:.3g} s in all"
        elif isinstance(outcome, Reply):
            return outcome
        else:
            why = outcome
        raise Unavailable(f"No answer from {self.host} for {asked}: {why}; it is tried again.")

    def _exchange(self, endpoint: str) -> Reply | str:
        """Return the reply, or why there is none."""
        try:
            with self._session.get(
                self.base_url + endpoint,
                timeout=self._timeouts,
                allow_redirects=False,  # another host would be sent the key
                stream=True,
            ) as response:
                text, broken = _read(response)
                status = response.status_code
                if broken and status == requests.codes.ok:
                    return broken
                return Reply(status, text, _retry_after_seconds(response))
        except _FAILURES as error:
            return _reason(error)


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> str | None:  # noqa: ARG002
        """Know of no redirect: requests would read its whole body, however large, to prepare one.

        That happens even with `allow_redirects=False`.
        """
        return None


class _Bearer(AuthBase):
    """Sets the header; an auth of the session's own also keeps a .netrc from setting another.

    The environment stays trusted otherwise: HTTPS_PROXY and REQUESTS_CA_BUNDLE are the user's.
    """

    def __init__(self, key: Secret) -> None:
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._key.reveal()}"
        return request


def _read(response: requests.Response) -> tuple[str, str]:
    """Return the whole body, or "" and why it is not to be had."""
    # Nothing else was offered; a chain of encodings multiplies what a small body can grow to.
    encoding = response.headers.get("Content-Encoding", "").strip().lower()
    if encoding not in {"", "identity", "gzip", "x-gzip", "deflate"}:
        return "", "its answer is compressed in a way that was not asked for"
    body = bytearray()
    try:
        for chunk in response.iter_content(_CHUNK_BYTES):
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                return "", f"its answer is larger than {MAX_BODY_BYTES >> 20} MiB"
    except _FAILURES as error:
        return "", _reason(error)
    # Text from here on: 7 MB of bytes beside it would count in the memory that a run may take.
    return body.decode("utf-8-sig", errors="replace"), ""


def _retry_after_seconds(response: requests.Response) -> float | None:
    """Return what the server asks to wait, at most an hour: seconds or a date (RFC 9110, 10.2.3).

    A date is measured from the server's own `Date`; the host's clock decides nothing.
    """
    asked = response.headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", asked):
        seconds = float(asked)
    else:
        until, now = _moment(asked), _moment(response.headers.get("Date", ""))
        if until is None or now is None:
            return None
        seconds = (until - now).total_seconds()
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_SECONDS)


def _moment(date: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(date)
    except (ValueError, TypeError, OverflowError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _host(base_url: str) -> str:
    """Return the name for sentences: a URL may carry a password."""
    try:
        return urlsplit(base_url).hostname or "the API"
    except ValueError:
        return "the API"


# The first that fits; a time-out while connecting is both a Timeout and a ConnectionError.
_REASONS: tuple[tuple[type[requests.RequestException], str], ...] = (
    (requests.exceptions.InvalidURL, "its address is no URL, check POLYGON_BASE_URL"),
    (requests.exceptions.MissingSchema, "its address is no URL, check POLYGON_BASE_URL"),
    (requests.exceptions.InvalidSchema, "no way to it, check POLYGON_BASE_URL and the proxy"),
    (requests.exceptions.ProxyError, "the proxy did not connect to it, check HTTPS_PROXY"),
    (requests.exceptions.ConnectTimeout, "it did not accept the connection in time"),
    (requests.exceptions.Timeout, "it stopped sending before the answer was whole"),
    (requests.exceptions.ContentDecodingError, "its answer is not the gzip that it says it is"),
    (requests.exceptions.ChunkedEncodingError, "the connection broke before the answer was whole"),
)


def _reason(error: BaseException) -> str:
    """Say what went wrong in our own words: theirs quote addresses, a proxy's with its password."""
    for kind, words in _REASONS:
        if isinstance(error, kind):
            return words
    if isinstance(error, requests.exceptions.SSLError):
        return f"no TLS connection that can be trusted{_detail(error)}"
    return f"the connection failed{_detail(error)}"


def _detail(error: BaseException) -> str:
    """Return the operating system's word for it: "Connection refused", "Name not known"."""
    seen: set[int] = set()
    found = ""
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        if isinstance(current, OSError) and current.strerror:
            found = f" ({current.strerror})"
        current = current.__cause__ or current.__context__
    return found
