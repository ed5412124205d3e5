"""One GET and its whole answer, or a sentence that says why there is none."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import requests
from requests.auth import AuthBase

from asset_sync.clock import monotonic
from asset_sync.provider.access import Access
from asset_sync.provider.deadline import FAILURES, Deadline, Session, reason
from asset_sync.provider.errors import NotSent, Unanswered, Unavailable
from asset_sync.secret import Secret

MAX_BODY_BYTES = 16 * 1024 * 1024
"""Decoded. The largest real answer, 50,000 bars, has about 7 MB."""

MAX_RETRY_AFTER_SECONDS = 3600.0

# A chunk of a gzip bomb can grow to a thousand times this with a urllib3 older than 2.6.
_CHUNK_BYTES = 16 * 1024

_SETTING = "POLYGON_BASE_URL"


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, whole and decompressed, but not checked."""

    status: int

    text: str = field(repr=False)
    """Empty if the body of an error did not arrive whole: its status is enough."""

    retry_after_seconds: float | None


@dataclass(frozen=True, slots=True)
class _NoReply:
    """The reason why there is no usable answer."""

    why: str

    arrived: bool = False
    """Whether an answer came that cannot be used: then the API has counted the call."""


class Http:
    """The client's one session: it holds the key, follows no redirect and repeats no request."""

    def __init__(self, access: Access) -> None:
        self.base_url = access.base_url.rstrip("/")
        self.host = _host(access.base_url)
        self._timeouts = (access.connect_timeout_seconds, access.read_timeout_seconds)
        self.call_timeout_seconds = access.call_timeout_seconds
        self.may_send: Callable[[], bool] = lambda: True
        self._session = Session(
            {"Accept": "application/json", "Accept-Encoding": "gzip"}, _Bearer(access.key)
        )

    def close(self) -> None:
        """Close the connection."""
        self._session.close()

    def get(self, endpoint: str, asked: str) -> Reply:
        """Return the answer to one GET of `endpoint`, whatever its status.

        `asked` names the tickers in an error's sentence. Raises `NotSent` or `Unanswered`, and
        `Unavailable` for an answer that cannot be used, for example one that is too large.
        """
        with Deadline(self.call_timeout_seconds, self.may_send) as deadline:
            outcome = self._exchange(endpoint)
        # Raised here, outside of any exception handler: an exception as context would hold the
        # request, whose headers hold the key.
        if deadline.expired:
            failure = _NoReply(f"it took longer than {self.call_timeout_seconds:.3g} s in all")
        elif isinstance(outcome, Reply):
            return outcome
        else:
            failure = outcome
        what = f"No answer from {self.host} for {asked}: {failure.why}"
        if failure.arrived:
            raise Unavailable(what)
        if deadline.sent_at is None:
            raise NotSent(what)
        raise Unanswered(what, monotonic() - deadline.sent_at)

    def _exchange(self, endpoint: str) -> Reply | _NoReply:
        """Return the reply, or why there is none."""
        try:
            with self._session.get(
                self.base_url + endpoint,
                timeout=self._timeouts,
                allow_redirects=False,  # another host would get the key
                stream=True,
            ) as response:
                text = _read(response)
                if isinstance(text, _NoReply):
                    if response.status_code == requests.codes.ok:
                        return text
                    text = ""
                return Reply(response.status_code, text, _retry_after_seconds(response))
        except FAILURES as error:
            return _NoReply(reason(error, setting=_SETTING))


class _Bearer(AuthBase):
    """Sets the header that holds the key."""

    def __init__(self, key: Secret) -> None:
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._key.reveal()}"
        return request


def _read(response: requests.Response) -> str | _NoReply:
    """Return the whole body, or why it cannot be read."""
    # The request asks for gzip only. Several encodings, one in another, would let a small body grow
    # without a limit.
    encoding = response.headers.get("Content-Encoding", "").strip().lower()
    if encoding not in {"", "identity", "gzip", "x-gzip", "deflate"}:
        return _NoReply("its answer is compressed in a way that was not asked for", arrived=True)
    body = bytearray()
    try:
        for chunk in response.iter_content(_CHUNK_BYTES):
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                return _NoReply(
                    f"its answer is larger than {MAX_BODY_BYTES >> 20} MiB", arrived=True
                )
    except FAILURES as error:
        arrived = isinstance(error, requests.exceptions.ContentDecodingError)
        return _NoReply(reason(error, setting=_SETTING), arrived=arrived)
    # Only the text is kept: the bytes would take another 7 MB of memory.
    return body.decode("utf-8-sig", errors="replace")


def _retry_after_seconds(response: requests.Response) -> float | None:
    """Return how long the server asks to wait, at most an hour (RFC 9110, 10.2.3).

    If it is a date, the seconds are counted from the server's own `Date`, not from this host's
    clock.
    """
    asked = response.headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", asked):
        seconds = float(asked)
    else:
        until, now = _read_date(asked), _read_date(response.headers.get("Date", ""))
        if until is None or now is None:
            return None
        seconds = (until - now).total_seconds()
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_SECONDS)


def _read_date(date: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(date)
    except (ValueError, TypeError, OverflowError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _host(base_url: str) -> str:
    """Return the host's name for messages: the whole URL may contain a password."""
    try:
        return urlsplit(base_url).hostname or "the API"
    except ValueError:
        return "the API"
