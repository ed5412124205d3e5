"""The errors that answers without data stand for, and their messages."""

import json
from dataclasses import dataclass

from asset_sync.provider.errors import (
    FeedDenied,
    KeyRefused,
    ProviderError,
    RateLimited,
    Rejected,
    TickerUnknown,
    TimeRangeDenied,
    Unanswered,
    Unavailable,
)
from asset_sync.provider.polygon.http import Reply
from asset_sync.secret import Secret

_MAX_TEXT = 200

# A proxy or Cloudflare sends these if the API does not answer; it may read the request later.
_UNANSWERED = {504, 522, 523, 524}
# The same request would get the same answer: bad request, method not allowed, not acceptable,
# gone, length required, content too large, URI too long, unsupported media type, expectation
# failed, unprocessable content, header fields too large (RFC 9110 and 6585).
_NOT_TO_BE_REPEATED = frozenset({400, 405, 406, 410, 411, 413, 414, 415, 417, 422, 431})


@dataclass(frozen=True, slots=True)
class CallContext:
    """What an error's message says about its call."""

    asked: str
    """The tickers, as the message names them."""

    host: str

    key: Secret
    """The key is removed from the server's text, which may repeat it."""


def refusal(reply: Reply, call: CallContext) -> ProviderError:
    """Return the error that a status other than 200 stands for."""
    body = _json_object(reply.text)
    said = _message_in(body)
    match reply.status:
        case 429:
            return RateLimited(reply.retry_after_seconds, call.asked)
        case 401:
            return _key_refused(call)
        # Proxies and firewalls answer 403 as well, with a page, with plain text or with nothing.
        case 403 if body is not None and "status" in body:
            return _denied(said, call.asked)
        case 404 if body is not None:
            return unknown(call.asked)
        case status if status in _NOT_TO_BE_REPEATED:
            return _refusal_by_message(said, call) or _rejected(said, call.asked, call.key, status)
    return _not_from_api(reply.status, call)


def refusal_in_answer(body: dict[str, object], call: CallContext) -> ProviderError | None:
    """Return the error that an answer with HTTP 200 carries in its `status`, if any."""
    said = _message_in(body)
    match body.get("status"):
        case "NOT_AUTHORIZED":
            return _denied(said, call.asked)
        case "NOT_FOUND":
            return unknown(call.asked)
        case "ERROR":
            return _refusal_by_message(said, call) or _rejected(said, call.asked, call.key)
    return None


def _refusal_by_message(said: str, call: CallContext) -> ProviderError | None:
    """Return the error that the API's message names, whatever its status; None if it names none."""
    message = said.lower()
    if "api key" in message:
        return _key_refused(call)
    if "exceeded the maximum requests" in message:
        return RateLimited(None, call.asked)
    if any(hint in message for hint in ("not entitled", *_TIME_DENIED)):
        return _denied(said, call.asked)
    return None


def refusal_of_row(row: dict[str, object], ticker: str, key: Secret) -> ProviderError | None:
    """Return the error in one row of a snapshot, if any; the other rows are not affected."""
    match row.get("error"):
        case None:
            return None
        case "NOT_FOUND":
            return unknown(ticker)
        case "NOT_ENTITLED":
            return _denied("", ticker)
    return _rejected(_message_in(row), ticker, key)


def _not_from_api(status: int, call: CallContext) -> Unavailable:
    did = f"{call.host} answers {status} for {call.asked}"
    if status == 404:  # noqa: PLR2004
        return Unavailable(
            f"{did}, but not as the API does; check POLYGON_BASE_URL", tried_again=False
        )
    if 300 <= status < 400:  # noqa: PLR2004
        return Unavailable(
            f"{did}, a redirect, which is not followed because the other host would get the key;"
            " check POLYGON_BASE_URL",
            tried_again=False,
        )
    kind = Unanswered if status in _UNANSWERED else Unavailable
    return kind(did)


def unknown(asked: str) -> TickerUnknown:
    """Return the error for a ticker that the API does not have."""
    return TickerUnknown(f"The API does not know {asked}; check the ticker in assets.toml.")


def _rejected(said: str, asked: str, key: Secret, status: int = 400) -> Rejected:
    reason = safe_text(said, key)
    quoted = f' and says "{reason}"' if reason else " and does not say why"
    if status == 400:  # noqa: PLR2004
        return Rejected(f"The API rejects the call for {asked}{quoted}; check its ticker.")
    return Rejected(
        f"The API answers {status} to the call for {asked}{quoted};"
        " check its ticker, and POLYGON_BASE_URL."
    )


def _key_refused(call: CallContext) -> KeyRefused:
    source = call.key.source or "POLYGON_API_KEY"
    return KeyRefused(
        f"The API does not accept the key in the call for {call.asked}; check {source}."
    )


_TIME_DENIED = ("before end of day", "timeframe")


def _denied(said: str, asked: str) -> ProviderError:
    if any(hint in said.lower() for hint in _TIME_DENIED):
        return TimeRangeDenied(
            f"The plan of this key does not include the requested time range of {asked}: the range"
            " reaches into the current day (UTC) or too far back; change the plan."
        )
    return FeedDenied(
        f"The plan of this key does not include this data for {asked}; change the plan, or switch"
        " the asset off (enabled = false)."
    )


def _json_object(text: str) -> dict[str, object] | None:
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _message_in(body: dict[str, object] | None) -> str:
    """Return the server's own text, from `message` or `error`."""
    for name in ("message", "error"):
        said = (body or {}).get(name)
        if isinstance(said, str) and said:
            return said
    return ""


def safe_text(said: str, key: Secret) -> str:
    """Return the server's text for a message: one line, printable, short, and without the key."""
    secret = key.reveal()
    if secret:
        said = said.replace(secret, "***")
    printable = "".join(c if c.isprintable() else " " for c in said[: _MAX_TEXT * 5])
    return " ".join(printable.split())[:_MAX_TEXT]
