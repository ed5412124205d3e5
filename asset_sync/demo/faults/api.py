"""Faults of the API: it refuses, redirects, or answers in another way than documented."""

import math
from dataclasses import replace

from asset_sync.demo import wire
from asset_sync.demo.faults.figures import _empty
from asset_sync.demo.faults.registry import fault
from asset_sync.demo.refusals import (
    _not_authorized,
    _not_found,
    not_entitled,
    outside_timeframe,
    rate_limited,
    unknown_key,
)
from asset_sync.demo.replay import DAY_MS
from asset_sync.demo.wire import HTML, Call, Document, Json, Reply


@fault("rate-limit")
def _rate_limit(_: Call, __: Reply) -> Reply:
    """Refuse with 429, as the API sends it."""
    return rate_limited()


@fault("rate-limit-empty")
def _rate_limit_empty(_: Call, __: Reply) -> Reply:
    """Refuse with 429, without a body."""
    return Reply(429, b"")


@fault("rate-limit-retry-after")
def _rate_limit_retry_after(call: Call, _: Reply) -> Reply:
    """Refuse with 429 and a Retry-After of one window."""
    seconds = math.ceil(call.period_seconds)
    return replace(rate_limited(), headers=(("Retry-After", str(seconds)),))


@fault("key-revoked", counts=False)
def _key_revoked(_: Call, __: Reply) -> Reply:
    """Refuse with 401: the key is not valid any more."""
    return unknown_key()


@fault("forbidden")
def _forbidden(_: Call, __: Reply) -> Reply:
    """Refuse with 403: the plan does not include this data."""
    return not_entitled()


def _reaches_into_today(call: Call) -> bool:
    return call.until_ms is not None and call.until_ms >= call.now_ms - call.now_ms % DAY_MS


@fault("today", applies=_reaches_into_today)
def _today(_: Call, __: Reply) -> Reply:
    """Refuse with 403 ranges that reach into today (UTC)."""
    return _not_authorized("Attempted to request today's data before end of day.", "polygon.io")


@fault("timeframe")
def _timeframe(_: Call, __: Reply) -> Reply:
    """Refuse with 403: the range starts before the plan's history."""
    return outside_timeframe()


@fault("not-found")
def _data_not_found(_: Call, __: Reply) -> Reply:
    """Answer 404, as JSON."""
    return _not_found("Data not found.")


@fault("server-error")
def _server_error(_: Call, __: Reply) -> Reply:
    """Answer 500, without a body."""
    return Reply(500, b"")


_BAD_GATEWAY = b"<html><body><h1>502 Bad Gateway</h1></body></html>\n"


@fault("bad-gateway")
def _bad_gateway(_: Call, __: Reply) -> Reply:
    """Answer 502, with a proxy's HTML page."""
    return Reply(502, _BAD_GATEWAY, HTML)


@fault("html")
def _html(_: Call, __: Reply) -> Reply:
    """Answer 200, with an HTML log-in page."""
    return Reply(200, b"<!doctype html><title>Welcome</title><p>Please log in.\n", HTML)


@fault("redirect")
def _redirect(call: Call, _: Reply) -> Reply:
    """Redirect with 302 to another host."""
    return Reply(302, b"", HTML, (("Location", f"{wire.FOREIGN_HOST}{call.path}"),))


def _is_five_minutes(call: Call) -> bool:
    return (call.parts.get("mult"), call.parts.get("span")) == ("5", "minute")


@fault("five-minutes-empty", applies=_is_five_minutes)
def _five_minutes_empty(call: Call, right: Reply) -> Reply:
    """Answer requests for five-minute bars without rows, and requests for minute bars rightly."""
    return _empty(call, right)


@fault("end-of-day")
def _end_of_day(call: Call, right: Reply) -> Reply:
    """Send bars only up to the end of yesterday (UTC), as for a key with end-of-day data."""
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


@fault("bad-json")
def _bad_json(_: Call, right: Reply) -> Reply:
    """Answer 200, with JSON that stops in the middle."""
    body = right.payload()
    return Reply(right.status, body[: len(body) // 2])
