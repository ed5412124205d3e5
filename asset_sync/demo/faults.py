"""Everything that is not a right answer: the API's own refusals, and faults on demand.

A fault is what the server does instead of a right answer. `FAULTS` lists them by name; a spec says
when one strikes: `NAME` always, `NAME:3` the first three requests, `NAME@C:EURUSD` only that
ticker, `NAME:3@C:EURUSD` both.
"""

import gzip
import json
import math
import re
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol, TypeAlias
from urllib.parse import urlencode

from asset_sync.demo.replay import BAR_MS, DAY_MS
from asset_sync.errors import AssetSyncError

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
Document: TypeAlias = dict[str, Json]

FOREIGN_HOST = "https://stand-in.invalid"
"""Nobody's host (RFC 6761): a client that sends its key there has been caught."""

SNAPSHOT_PATH = "/v3/snapshot"
REFERENCE_PATH = "/v3/reference/tickers"

JSON, HTML, TEXT = "application/json", "text/html", "text/plain; charset=utf-8"


class StandInError(AssetSyncError):
    """The stand-in was asked for something it does not have."""


# ------------------------------------------------------------------ a call and what answers it


@dataclass(frozen=True, slots=True)
class Call:
    """One request with a good key, as far as an answer depends on it."""

    path: str
    parts: Mapping[str, str]
    """What the path names: the ticker, the range, the date."""

    query: Mapping[str, str]
    """The parameters, those inside a cursor included, the key excluded."""

    tickers: tuple[str, ...]
    until_ms: int | None
    """The end of the range asked for, where it is one that can be read."""

    now_ms: int
    period_seconds: float

    address: str
    """What the client calls this server: `http://127.0.0.1:8765`."""

    def page(self, path: str | None = None, address: str | None = None, **changes: str) -> str:
        """Make a `next_url`: this call, some parameters changed, hidden in a cursor, no key.

        It leads to this server under the name that the client used: some clients follow it with
        their key. The API's own names its public host. The cursor has no padding, like the API's.
        """
        cursor = urlsafe_b64encode(urlencode({**self.query, **changes}).encode()).decode()
        return f"{address or self.address}{path or self.path}?cursor={cursor.rstrip('=')}"


class Wire(Protocol):
    """The connection to a client; writing to one that has gone raises ConnectionError."""

    def head(self, reply: "Reply", length: int, *, encoding: str | None = None) -> None:
        """Send the status line and the headers, announcing `length` bytes."""

    def write(self, data: bytes) -> None:
        """Send a piece of the body at once."""

    def give_up(self, seconds: float) -> bool:
        """Wait that long; True as soon as the server stops or the client has gone."""

    def accepts_gzip(self) -> bool:
        """Whether the client said so."""

    def hang_up(self) -> None:
        """Close the connection after what has been sent."""

    def reset(self) -> None:
        """Close the connection now, with a TCP reset."""


_GZIP_FROM_BYTES = 1024


def send_whole(wire: Wire, reply: "Reply") -> None:
    """Send the whole body at once, compressed where that is wanted and worth it."""
    body, encoding = reply.payload(), None
    if len(body) > _GZIP_FROM_BYTES and wire.accepts_gzip():
        body, encoding = gzip.compress(body, compresslevel=1), "gzip"
    wire.head(reply, len(body), encoding=encoding)
    wire.write(body)


@dataclass(frozen=True, slots=True)
class Reply:
    """What is sent back, and how."""

    status: int
    """The HTTP status; 0 where the client never gets to see one."""

    body: Document | bytes
    content_type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()
    send: Callable[[Wire, "Reply"], None] = send_whole

    def payload(self) -> bytes:
        """Return the body as bytes; NaN and Infinity go out as broken servers send them."""
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()

    def rows(self) -> list[Json]:
        """Return the `results` of a list answer; none where there are none."""
        found = self.body.get("results") if isinstance(self.body, dict) else None
        return found if isinstance(found, list) else []

    def with_rows(self, rows: list[Json]) -> "Reply":
        """Return the same answer with other `results`."""
        return self.with_keys(results=rows)

    def with_keys(self, **changes: Json) -> "Reply":
        """Return the same answer with some top-level keys set, unless it is no JSON object."""
        if not isinstance(self.body, dict):
            return self
        return replace(self, body={**self.body, **changes})


def request_id() -> str:
    """As the API makes them: 32 hexadecimal digits."""
    return uuid.uuid4().hex


# ------------------------------------------------------------------ the API's own refusals


def bad_request(sentence: str) -> Reply:
    """Refuse with 400 and a sentence."""
    return _error(400, sentence)


def no_key() -> Reply:
    """Refuse with 401 a request that names no key."""
    return _error(401, "API Key was not provided")


def unknown_key() -> Reply:
    """Refuse with 401 a key that is not, or no longer, one."""
    return _error(401, "Unknown API Key")


def not_entitled() -> Reply:
    """Refuse with 403 what the plan does not hold, such as snapshots on a free key."""
    return _not_authorized("You are not entitled to this data.", "massive.com")


def outside_timeframe() -> Reply:
    """Refuse with 403 a range that starts before the plan's history does."""
    return _not_authorized("Your plan doesn't include this data timeframe.", "polygon.io")


def ticker_not_found() -> Reply:
    """Refuse with 404 as the reference pages do."""
    return _not_found("Ticker not found.")


def unknown_path() -> Reply:
    """Refuse with 404 as the router does, which knows no JSON."""
    return Reply(404, b"404 page not found\n", TEXT)


def rate_limited() -> Reply:
    """Refuse with 429; the API says neither how long to wait nor how much is left."""
    return _error(
        429,
        "You've exceeded the maximum requests per minute, please wait or upgrade your "
        "subscription to continue. https://polygon.io/pricing",
    )


def _error(status: int, sentence: str) -> Reply:
    return Reply(status, {"status": "ERROR", "request_id": request_id(), "error": sentence})


def _not_authorized(sentence: str, host: str) -> Reply:
    message = f"{sentence} Please upgrade your plan at https://{host}/pricing"
    return Reply(403, {"status": "NOT_AUTHORIZED", "request_id": request_id(), "message": message})


def _not_found(message: str) -> Reply:
    return Reply(404, {"status": "NOT_FOUND", "request_id": request_id(), "message": message})


# ------------------------------------------------------------------ the registry of faults

Answer: TypeAlias = Callable[[Call, Reply], Reply]
"""From the call and the right answer to what is sent instead."""


def _always(_: Call) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Fault:
    """One way in which the API, or what stands between, lets a client down."""

    name: str
    about: str
    """What happens, in a line."""

    answer: Answer
    applies: Callable[[Call], bool]
    counts: bool
    """Whether the call counts against the key's window; a 401 does not."""


FAULTS: dict[str, Fault] = {}


def _fault(
    name: str, *, applies: Callable[[Call], bool] = _always, counts: bool = True
) -> Callable[[Answer], Answer]:
    """Register a function under the name by which users ask for it."""

    def register(answer: Answer) -> Answer:
        about = (answer.__doc__ or "").strip().rstrip(".")
        FAULTS[name] = Fault(name, about, answer, applies, counts)
        return answer

    return register


@_fault("rate-limit")
def _rate_limit(_: Call, __: Reply) -> Reply:
    """Refuse with 429, as the API sends it."""
    return rate_limited()


@_fault("rate-limit-empty")
def _rate_limit_empty(_: Call, __: Reply) -> Reply:
    """Refuse with 429, without a body."""
    return Reply(429, b"")


@_fault("rate-limit-retry-after")
def _rate_limit_retry_after(call: Call, _: Reply) -> Reply:
    """Refuse with 429 and a Retry-After of one window."""
    seconds = math.ceil(call.period_seconds)
    return replace(rate_limited(), headers=(("Retry-After", str(seconds)),))


@_fault("key-revoked", counts=False)
def _key_revoked(_: Call, __: Reply) -> Reply:
    """Refuse with 401: the key is no longer one."""
    return unknown_key()


@_fault("forbidden")
def _forbidden(_: Call, __: Reply) -> Reply:
    """Refuse with 403: the plan does not hold this data."""
    return not_entitled()


def _reaches_into_today(call: Call) -> bool:
    return call.until_ms is not None and call.until_ms >= call.now_ms - call.now_ms % DAY_MS


@_fault("today", applies=_reaches_into_today)
def _today(_: Call, __: Reply) -> Reply:
    """Refuse with 403 ranges that reach into today (UTC)."""
    return _not_authorized("Attempted to request today's data before end of day.", "polygon.io")


@_fault("timeframe")
def _timeframe(_: Call, __: Reply) -> Reply:
    """Refuse with 403: the range starts before the plan's history."""
    return outside_timeframe()


@_fault("not-found")
def _data_not_found(_: Call, __: Reply) -> Reply:
    """Answer 404, as JSON."""
    return _not_found("Data not found.")


@_fault("server-error")
def _server_error(_: Call, __: Reply) -> Reply:
    """Answer 500, without a body."""
    return Reply(500, b"")


_BAD_GATEWAY = b"<html><body><h1>502 Bad Gateway</h1></body></html>\n"


@_fault("bad-gateway")
def _bad_gateway(_: Call, __: Reply) -> Reply:
    """Answer 502, with a proxy's HTML page."""
    return Reply(502, _BAD_GATEWAY, HTML)


@_fault("html")
def _html(_: Call, __: Reply) -> Reply:
    """Answer 200, with an HTML page to log in."""
    return Reply(200, b"<!doctype html><title>Welcome</title><p>Please log in.\n", HTML)


@_fault("redirect")
def _redirect(call: Call, _: Reply) -> Reply:
    """Redirect with 302 to another host."""
    return Reply(302, b"", HTML, (("Location", f"{FOREIGN_HOST}{call.path}"),))


def _is_five_minutes(call: Call) -> bool:
    return (call.parts.get("mult"), call.parts.get("span")) == ("5", "minute")


@_fault("five-minutes-empty", applies=_is_five_minutes)
def _five_minutes_empty(call: Call, right: Reply) -> Reply:
    """Answer without rows where five-minute bars are asked for; minute bars come."""
    return _empty(call, right)


@_fault("end-of-day")
def _end_of_day(call: Call, right: Reply) -> Reply:
    """Send bars up to the end of yesterday (UTC) only, as to a key with end-of-day data."""
    midnight_ms = call.now_ms - call.now_ms % DAY_MS
    rows = right.rows()
    kept = [row for row in rows if not _starts_from(row, midnight_ms)]
    if len(kept) == len(rows):
        return right
    if not kept:
        return _empty(call, right)
    counts: Document = {"resultsCount": len(kept), "count": len(kept)}
    return right.with_rows(kept).with_keys(**counts)


def _starts_from(row: Json, at_ms: int) -> bool:
    start_ms = row.get("t") if isinstance(row, dict) else None
    return isinstance(start_ms, int) and start_ms >= at_ms


@_fault("bad-json")
def _bad_json(_: Call, right: Reply) -> Reply:
    """Answer 200, with JSON that stops in the middle."""
    body = right.payload()
    return Reply(right.status, body[: len(body) // 2])


# ------------------------------------------------------------------ faults of the transport


@_fault("truncated")
def _truncated(_: Call, right: Reply) -> Reply:
    """Close the connection in the middle of the body."""

    def send(wire: Wire, reply: Reply) -> None:
        body = reply.payload()
        wire.head(reply, len(body))
        wire.write(body[: len(body) // 2])
        wire.hang_up()

    return replace(right, send=send)


@_fault("reset")
def _reset(_: Call, __: Reply) -> Reply:
    """Reset the connection without an answer."""
    return Reply(0, b"", send=lambda wire, _: wire.reset())


_LOOK_EVERY_SECONDS = 0.05


@_fault("stall")
def _stall(_: Call, __: Reply) -> Reply:
    """Keep silent until the client gives up."""

    def send(wire: Wire, _: Reply) -> None:
        while not wire.give_up(_LOOK_EVERY_SECONDS):
            pass
        wire.hang_up()

    return Reply(0, b"", send=send)


_DRIP_SECONDS = 0.02
_DRIP_PADDING = b" " * 100_000


@_fault("drip")
def _drip(_: Call, right: Reply) -> Reply:
    """Send the right answer, one byte every 20 ms, for more than half an hour."""

    def send(wire: Wire, reply: Reply) -> None:
        body = _DRIP_PADDING + reply.payload()
        wire.head(reply, len(body))
        for place in range(len(body)):
            wire.write(body[place : place + 1])
            if wire.give_up(_DRIP_SECONDS):
                wire.hang_up()
                return

    return replace(right, send=send)


_HUGE_BYTES = 100 * 1024 * 1024
_OPENING, _ENDING = b'{"status":"OK","results":[', b"]}"


@_fault("huge")
def _huge(_: Call, __: Reply) -> Reply:
    """Send 100 MB, nearly all of it blanks."""

    def send(wire: Wire, reply: Reply) -> None:
        wire.head(reply, _HUGE_BYTES)
        left = _HUGE_BYTES - len(_OPENING) - len(_ENDING)
        wire.write(_OPENING)
        blanks = b" " * 65_536
        while left > 0:
            wire.write(blanks[:left])
            left -= len(blanks)
        wire.write(_ENDING)

    return Reply(200, b"", send=send)


_BOMB_MEMBER_BYTES = 8 * 1024 * 1024
_BOMB_MEMBERS = 128


@lru_cache(maxsize=1)
def _bomb() -> bytes:
    """1 GiB in 1 MB: a gzip file may have many members, so the same one will do 128 times."""
    member = gzip.compress(b" " * _BOMB_MEMBER_BYTES)
    return gzip.compress(_OPENING) + member * _BOMB_MEMBERS + gzip.compress(_ENDING)


@_fault("gzip-bomb")
def _gzip_bomb(_: Call, __: Reply) -> Reply:
    """Send 1 MB of gzip that unfolds to 1 GiB."""

    def send(wire: Wire, reply: Reply) -> None:
        wire.head(reply, len(_bomb()), encoding="gzip")
        wire.write(_bomb())

    return Reply(200, b"", send=send)


# ------------------------------------------------------------------ faults of paging


@_fault("endless-next-url")
def _endless_next_url(call: Call, right: Reply) -> Reply:
    """Say in every answer that there is one more page."""
    following = int(call.query.get("page", "1")) + 1
    return right.with_keys(next_url=call.page(page=str(following)))


@_fault("foreign-next-url", applies=lambda call: "page" not in call.query)
def _foreign_next_url(call: Call, right: Reply) -> Reply:
    """Say that the next page is on another host; there is one and no more."""
    return right.with_keys(next_url=call.page(address=FOREIGN_HOST, page="2"))


_SHORT_PAGE = 2


@_fault("short-pages", applies=lambda call: call.path == REFERENCE_PATH)
def _short_pages(call: Call, right: Reply) -> Reply:
    """Send the list of tickers two rows a page."""
    rows = right.rows()
    if len(rows) <= _SHORT_PAGE:
        return right
    following = int(call.query.get("offset", "0")) + _SHORT_PAGE
    return right.with_rows(rows[:_SHORT_PAGE]).with_keys(
        next_url=call.page(offset=str(following)), count=_SHORT_PAGE
    )


# ------------------------------------------------------------------ faults of the figures


@_fault("nan")
def _nan(_: Call, right: Reply) -> Reply:
    """Send NaN as the newest price."""
    return _with_last_price(right, lambda _: math.nan)


@_fault("infinity")
def _infinity(_: Call, right: Reply) -> Reply:
    """Send Infinity as the newest price."""
    return _with_last_price(right, lambda _: math.inf)


@_fault("negative")
def _negative(_: Call, right: Reply) -> Reply:
    """Send the newest price below zero."""
    return _with_last_price(right, lambda price: -price)


@_fault("high-below-low")
def _high_below_low(_: Call, right: Reply) -> Reply:
    """Send the newest bar with its high below its low."""

    def spoil(row: Document) -> None:
        session = row.get("session")
        figures, high, low = (
            (session, "high", "low") if isinstance(session, dict) else (row, "h", "l")
        )
        floor = figures.get(low)
        if isinstance(floor, int | float):
            figures[high] = floor * 0.99

    return _with_last_row(right, spoil)


@_fault("future")
def _future(call: Call, right: Reply) -> Reply:
    """Stamp the newest figures with a time of tomorrow."""
    tomorrow_ms = (call.now_ms + DAY_MS) // BAR_MS * BAR_MS

    def spoil(row: Document) -> None:
        if "t" in row:
            row["t"] = tomorrow_ms
        for holder in _children(row, "last_quote", "last_trade"):
            holder["last_updated"] = tomorrow_ms * 1_000_000

    return _with_last_row(right, spoil)


@_fault("unordered")
def _unordered(_: Call, right: Reply) -> Reply:
    """Send the rows in the wrong order: the second half before the first."""
    rows = right.rows()
    middle = len(rows) // 2
    return right.with_rows([*rows[middle:], *rows[:middle]]) if rows else right


@_fault("duplicate")
def _duplicate(_: Call, right: Reply) -> Reply:
    """Send the newest bar twice, first as it was, then as it is."""
    rows = right.rows()
    if not rows:
        return right
    earlier = deepcopy(rows[-1])
    if isinstance(earlier, dict) and "o" in earlier:
        earlier["c"] = earlier["o"]
    return right.with_rows([*rows[:-1], earlier, rows[-1]])


OTHER_TICKER = "C:ILSCHF"
"""What `other-ticker` answers for: one that exists at the API and not here."""


@_fault("other-ticker")
def _other_ticker(_: Call, right: Reply) -> Reply:
    """Answer about a ticker that nobody asked for."""

    def spoil(row: Document) -> None:
        for key in ("T", "ticker"):
            if key in row:
                row[key] = OTHER_TICKER

    named = isinstance(right.body, dict) and "ticker" in right.body
    return _with_last_row(right.with_keys(ticker=OTHER_TICKER) if named else right, spoil)


@_fault("not-entitled", applies=lambda call: call.path == SNAPSHOT_PATH)
def _not_entitled(_: Call, right: Reply) -> Reply:
    """Say in the last row of a snapshot that the plan does not hold this ticker."""

    def spoil(row: Document) -> None:
        ticker = row.get("ticker")
        row.clear()
        row |= {
            "ticker": ticker,
            "error": "NOT_ENTITLED",
            "message": "Not entitled to this ticker.",
        }

    return _with_last_row(right, spoil)


@_fault("wrong-shape")
def _wrong_shape(_: Call, right: Reply) -> Reply:
    """Answer 200, with rows in a shape that nobody has promised."""
    return right.with_keys(results={"rows": right.rows()})


@_fault("empty")
def _empty(_: Call, right: Reply) -> Reply:
    """Answer 200 without rows, as for a market that has been closed all the time."""
    if not isinstance(right.body, dict) or isinstance(right.body.get("results"), dict):
        return right  # details of one ticker are no rows
    kept = {key: value for key, value in right.body.items() if key not in ("results", "next_url")}
    counts: Document = {key: 0 for key in ("queryCount", "resultsCount", "count") if key in kept}
    return replace(right, body={**kept, **counts})


def _with_last_row(right: Reply, spoil: Callable[[Document], None]) -> Reply:
    rows = right.rows()
    if not rows:
        return right
    last = deepcopy(rows[-1])
    if isinstance(last, dict):
        spoil(last)
    return right.with_rows([*rows[:-1], last])


def _with_last_price(right: Reply, change: Callable[[float], float]) -> Reply:
    """Change each last price of the newest row: close, bid and trade."""

    def spoil(row: Document) -> None:
        for holder in (row, *_children(row, "session", "last_quote", "last_trade")):
            for key in ("c", "close", "bid", "price"):
                price = holder.get(key)
                if isinstance(price, int | float):
                    holder[key] = change(price)

    return _with_last_row(right, spoil)


def _children(row: Document, *names: str) -> list[Document]:
    found = (row.get(name) for name in names)
    return [child for child in found if isinstance(child, dict)]


# ------------------------------------------------------------------ which fault strikes when


@dataclass(slots=True)
class _Rule:
    fault: Fault
    left: int | None
    ticker: str | None

    def strikes(self, call: Call) -> bool:
        return (
            self.left != 0
            and (self.ticker is None or self.ticker in call.tickers)
            and self.fault.applies(call)
        )


_SPEC = re.compile(r"(?P<name>[a-z-]+)(?::(?P<left>[1-9]\d{0,8}))?(?:@(?P<ticker>[^@\s]+))?")


class FaultPlan:
    """The faults in force; the first that fits a call strikes. Not thread-safe."""

    def __init__(self, specs: Iterable[str] = ()) -> None:
        """Raise StandInError for a spec that is none."""
        self.specs = tuple(specs)
        self._rules = [_rule(spec) for spec in self.specs]

    def take(self, call: Call) -> Fault | None:
        """Return the fault that strikes this call, used up by one; None for a right answer."""
        for rule in self._rules:
            if rule.strikes(call):
                if rule.left is not None:
                    rule.left -= 1
                return rule.fault
        return None


def _rule(spec: str) -> _Rule:
    found = _SPEC.fullmatch(spec)
    if found is None or found["name"] not in FAULTS:
        raise StandInError(
            f"“{spec}” is no fault: write NAME, NAME:COUNT, NAME@TICKER or NAME:COUNT@TICKER, "
            f"where NAME is one of {', '.join(sorted(FAULTS))}."
        )
    left = found["left"]
    return _Rule(FAULTS[found["name"]], int(left) if left else None, found["ticker"])
