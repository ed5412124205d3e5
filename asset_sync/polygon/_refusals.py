"""What an answer other than data means: which error, with which words."""

import json
from dataclasses import dataclass

from asset_sync.polygon._errors import (
    FeedDenied,
    KeyRefused,
    ProviderError,
    RateLimited,
    Rejected,
    TickerUnknown,
    TodayDenied,
    Unavailable,
)
from asset_sync.polygon._http import Reply
from asset_sync.settings import Secret

_MAX_WORDS = 200


@dataclass(frozen=True, slots=True)
class Call:
    """What a sentence about a call needs to know."""

    asked: str
    """The tickers, as the sentence names them."""

    host: str

    key: Secret
    """To be taken out of the server's words, should it send them back."""


def refusal(reply: Reply, call: Call) -> ProviderError:
    """Return the error that a status other than 200 stands for."""
    body = _object(reply.text)
    match reply.status:
        case 429:
            return RateLimited(reply.retry_after_seconds, call.asked)
        case 401:
            return _key_refused(call)
        # A company's proxy and a firewall answer 403 as well, with a page.
        case 403 if body is not None or not _is_page(reply.text):
            return _denied(_said(body), call.asked)
        case 404 if body is not None:
            return unknown(call.asked)
        case 400:
            return _rejected(_said(body), call.asked, call.key)
    return _not_the_api(reply.status, call)


def refusal_in_answer(body: dict[str, object], call: Call) -> ProviderError | None:
    """Return the error that an answer with HTTP 200 carries in its `status`, if any."""
    asked = call.asked
    said = _said(body)
    match body.get("status"):
        case "NOT_AUTHORIZED":
            return _denied(said, asked)
        case "NOT_FOUND":
            return unknown(asked)
        case "ERROR" if "api key" in said.lower():
            return _key_refused(call)
        case "ERROR" if "exceeded the maximum requests" in said.lower():
            return RateLimited(None, asked)
        case "ERROR":
            return _rejected(said, asked, call.key)
    return None


def refusal_of_row(row: dict[str, object], ticker: str, key: Secret) -> ProviderError | None:
    """Return the error that one row of a snapshot carries, if any; the other rows stand."""
    match row.get("error"):
        case None:
            return None
        case "NOT_FOUND":
            return unknown(ticker)
        case "NOT_ENTITLED":
            return _denied("", ticker)
    return _rejected(_said(row), ticker, key)


def _not_the_api(status: int, call: Call) -> Unavailable:
    did = f"{call.host} answers {status} for {call.asked}"
    if status == 404:  # noqa: PLR2004
        return Unavailable(f"{did}, but not as the API does; check POLYGON_BASE_URL.")
    if 300 <= status < 400:  # noqa: PLR2004
        return Unavailable(
            f"{did}, a redirect, which is not followed since the key would go with it;"
            " check POLYGON_BASE_URL."
        )
    return Unavailable(f"{did}; it is tried again.")


def unknown(asked: str) -> TickerUnknown:
    """Return the error for a ticker that the API does not have."""
    return TickerUnknown(f"The API does not know {asked}; check the ticker in assets.toml.")


def _rejected(said: str, asked: str, key: Secret) -> Rejected:
    reason = words(said, key)
    quoted = f' and says "{reason}"' if reason else " and does not say why"
    return Rejected(f"The API rejects the question for {asked}{quoted}; check its ticker.")


def _key_refused(call: Call) -> KeyRefused:
    source = call.key.source or "POLYGON_API_KEY"
    return KeyRefused(f"The API does not accept the key, asked for {call.asked}; check {source}.")


def _denied(said: str, asked: str) -> ProviderError:
    if any(hint in said.lower() for hint in ("before end of day", "timeframe")):
        return TodayDenied(
            f"The plan of this key does not include the time asked for {asked}: today before its"
            " end, or too long ago; ask up to yesterday (UTC), or change the plan."
        )
    return FeedDenied(
        f"The plan of this key does not include this data for {asked};"
        " use the feed that it has (bars), or change the plan."
    )


def _object(text: str) -> dict[str, object] | None:
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _is_page(text: str) -> bool:
    return text.lstrip().startswith("<")


def _said(body: dict[str, object] | None) -> str:
    """Return the server's words, which stand under either of two names."""
    for name in ("message", "error"):
        said = (body or {}).get(name)
        if isinstance(said, str) and said:
            return said
    return ""


def words(said: str, key: Secret) -> str:
    """Return what fits into a sentence: one line, printable, short, and without the key."""
    secret = key.reveal()
    if secret:
        said = said.replace(secret, "***")
    printable = "".join(c if c.isprintable() else " " for c in said[: _MAX_WORDS * 5])
    return " ".join(printable.split())[:_MAX_WORDS]
