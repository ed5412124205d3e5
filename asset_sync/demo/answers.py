"""The right answers: what each path asks for, and what the API answers on each plan.

The shapes are those of the vendor's specification; the bars are those of `asset_sync.demo.replay`.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import TypeAlias

from asset_sync.demo import minutes, refusals, replay, wire
from asset_sync.demo.minutes import MINUTE_MS
from asset_sync.demo.replay import BAR_MS, DAY_MS, HOUR_MS, INSTRUMENTS, Bar, Instrument, Market
from asset_sync.demo.wire import Call, Document, Json, Reply


@dataclass(frozen=True, slots=True)
class Plan:
    """What a plan allows."""

    calls: int
    period_seconds: float
    snapshots: bool
    status: str
    """The `status` of full answers."""

    history_days: int | None = None
    """How far back bars go; None for no limit."""


Endpoint: TypeAlias = Callable[[Call, Plan], Reply]


class _RefusedError(Exception):
    """A parameter that the API would reject; holds the API's answer."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.status)
        self.reply = reply


def right_answer(endpoint: Endpoint, call: Call, plan: Plan) -> Reply:
    """Answer a call whose key is good and whose window is not full."""
    if "cursor" in call.query:
        return refusals.bad_request("The parameter 'cursor' is not one that this API gave out")
    try:
        return endpoint(call, plan)
    except _RefusedError as refused:
        return refused.reply


def _aggregates(call: Call, plan: Plan) -> Reply:
    """Bars of one ticker. `limit` counts base bars: minutes, or days from a day on."""
    start_ms, end_ms = _time_in(call, "from"), _time_in(call, "to", end_of_day=True)
    if end_ms < start_ms:
        sentence = "The parameter 'to' cannot be a time that occurs before 'from'"
        return refusals.bad_request(sentence)
    if plan.history_days is not None and start_ms < call.now_ms - plan.history_days * DAY_MS:
        return refusals.outside_timeframe()
    length_ms = _length_ms(call)
    base_bars = length_ms // (DAY_MS if length_ms >= DAY_MS else MINUTE_MS)
    limit = min(_count(call, "limit", 5_000), 50_000)
    size = max(1, limit // base_bars)
    newest_first = call.query.get("sort") == "desc"
    bars = _walk(call, start_ms, end_ms, length_ms, newest_first=newest_first)
    found = list(islice(bars, size + 1))
    reply = _bars_reply(call, plan, [_bar_row(bar) for bar in found[:size]], base_bars)
    if len(found) <= size:
        return reply
    edge = {"to" if newest_first else "from": str(found[size].start_ms)}
    rest = "/v2/aggs/ticker/{ticker}/range/{mult}/{span}/{from}/{to}".format_map(
        {**call.parts, **edge}
    )
    return reply.with_keys(next_url=call.page(rest))


def _walk(
    call: Call, start_ms: int, end_ms: int, length_ms: int, *, newest_first: bool
) -> Iterator[Bar]:
    span = (call.parts["ticker"], start_ms, end_ms, call.now_ms)
    if length_ms == MINUTE_MS:
        return minutes.walk(*span, newest_first=newest_first)
    return replay.walk(*span, length_ms=length_ms, newest_first=newest_first)


def _previous_day(call: Call, plan: Plan) -> Reply:
    """Answer with the last whole UTC day that had bars, stamped at its end."""
    today_ms = call.now_ms - call.now_ms % DAY_MS
    ticker = call.parts["ticker"]
    start_ms = today_ms - 7 * DAY_MS
    bar = replay.newest(ticker, start_ms, today_ms - 1, call.now_ms, length_ms=DAY_MS)
    return _bars_reply(call, plan, [_day_row(ticker, bar)] if bar else [])


def _grouped_daily(call: Call, plan: Plan) -> Reply:
    """Every ticker of a market on one UTC day, stamped at its end."""
    date_ms = _time_in(call, "date")
    bars = [
        (instrument.ticker, replay.day(instrument.ticker, date_ms, call.now_ms))
        for instrument in INSTRUMENTS.values()
        if instrument.market == call.parts["market"]
    ]
    return _bars_reply(call, plan, [_day_row(ticker, bar) for ticker, bar in bars if bar])


def _bars_reply(call: Call, plan: Plan, rows: list[Json], base_bars: int = 1) -> Reply:
    """Wrap rows like all aggregates; without rows there is no `results`, and the status is OK."""
    envelope: Document = {"ticker": call.parts["ticker"]} if "ticker" in call.parts else {}
    envelope |= {
        "queryCount": len(rows) * base_bars,
        "resultsCount": len(rows),
        "adjusted": call.query.get("adjusted", "true") != "false",
        "status": plan.status if rows else "OK",
        "request_id": wire.request_id(),
        "count": len(rows),
    }
    return Reply(200, envelope | {"results": rows} if rows else envelope)


def _bar_row(bar: Bar) -> Document:
    return {
        "v": bar.volume,
        "vw": bar.vwap,
        "o": bar.open,
        "c": bar.close,
        "h": bar.high,
        "l": bar.low,
        "t": bar.start_ms,
        "n": bar.trades,
    }


def _day_row(ticker: str, bar: Bar) -> Document:
    return {"T": ticker} | _bar_row(bar) | {"t": bar.start_ms + DAY_MS - 1}


_MOST_TICKERS = 250


def _snapshot(call: Call, plan: Plan) -> Reply:
    """Answer with last prices and the day's figures, each row judged by itself."""
    if not plan.snapshots:
        return refusals.not_entitled()
    limit = _count(call, "limit", 10)
    if limit > _MOST_TICKERS or len(call.tickers) > _MOST_TICKERS:
        return refusals.bad_request("A snapshot holds at most 250 tickers: 'limit' and 'any_of'")
    reply = _list_reply(call, list(call.tickers or INSTRUMENTS), limit)
    return reply.with_rows([_snapshot_row(str(ticker), call.now_ms) for ticker in reply.rows()])


def _snapshot_row(ticker: str, now_ms: int) -> Document:
    instrument = INSTRUMENTS.get(ticker)
    # A week back there is always a bar: the longest gap is a weekend.
    last = replay.newest(ticker, now_ms - 7 * DAY_MS, now_ms, now_ms)
    if instrument is None or last is None:
        return {"ticker": ticker, "error": "NOT_FOUND", "message": "Ticker not found."}
    row: Document = {
        "market_status": "open" if replay.is_open(ticker, now_ms) else "closed",
        "name": instrument.name,
        "ticker": ticker,
        "type": instrument.market,
        "session": _session(ticker, now_ms),
    }
    updated_ns = min(now_ms, last.start_ms + BAR_MS) * 1_000_000
    if instrument.market is Market.CRYPTO:
        return row | {"last_trade": _last_trade(last, updated_ns)}
    return row | {"last_quote": _last_quote(last.close, 10.0**-instrument.digits, updated_ns)}


def _session(ticker: str, now_ms: int) -> Document:
    """Sum up the UTC day; zeros before its first bar, as the API's after the daily reset."""
    midnight_ms = now_ms - now_ms % DAY_MS
    before = replay.newest(ticker, midnight_ms - 7 * DAY_MS, midnight_ms - 1, now_ms)
    previous = before.close if before else 0.0
    today = replay.day(ticker, now_ms, now_ms)
    change = today.close - previous if today else 0.0
    return {
        "change": round(change, 6),
        "change_percent": round(100 * change / previous, 6) if previous else 0.0,
        "close": today.close if today else 0.0,
        "high": today.high if today else 0.0,
        "low": today.low if today else 0.0,
        "open": today.open if today else 0.0,
        "volume": today.volume if today else 0,
        "previous_close": previous,
    }


def _last_quote(price: float, point: float, updated_ns: int) -> Document:
    """Bid and ask two points apart, the last price in the middle."""
    return {
        "last_updated": updated_ns,
        "timeframe": "REAL-TIME",
        "ask": round(price + point, 8),
        "ask_exchange": 48,
        "bid": round(price - point, 8),
        "bid_exchange": 48,
        "exchange": 48,
    }


def _last_trade(last: Bar, updated_ns: int) -> Document:
    return {
        "conditions": [2],
        "exchange": 1,
        "id": str(updated_ns),
        "last_updated": updated_ns,
        "price": last.close,
        "size": round(last.volume / last.trades, 8),
        "timeframe": "REAL-TIME",
    }


def _ticker_details(call: Call, _: Plan) -> Reply:
    instrument = INSTRUMENTS.get(call.parts["ticker"])
    if instrument is None:
        return refusals.ticker_not_found()
    envelope: Document = {"status": "OK", "request_id": wire.request_id()}
    return Reply(200, envelope | {"results": _reference_row(instrument, call.now_ms)})


def _ticker_list(call: Call, _: Plan) -> Reply:
    """Answer with a page of the tickers that pass every filter; all of them trade."""
    query = call.query
    sort, order = query.get("sort", "ticker"), query.get("order", "asc")
    if sort not in _SORTABLE or order not in {"asc", "desc"}:
        sentence = f"The list is not sorted by '{sort}' in the order '{order}'"
        return refusals.bad_request(sentence)
    rows = [_reference_row(one, call.now_ms) for one in INSTRUMENTS.values()]
    found: list[Json] = [
        *sorted(
            (row for row in rows if _passes(row, query)),
            key=lambda row: str(row.get(sort, "")),
            reverse=order == "desc",
        )
    ]
    reply = _list_reply(call, found, min(_count(call, "limit", 100), 1_000))
    return reply.with_keys(count=len(reply.rows()))


# The parameters on the vendor's page, without those that only stocks have.
_SORTABLE = {
    "ticker",
    "name",
    "market",
    "locale",
    "type",
    "currency_symbol",
    "currency_name",
    "base_currency_symbol",
    "base_currency_name",
    "last_updated_utc",
}


_ONLY_OF_STOCKS = ("type", "exchange", "cusip", "cik")


def _passes(row: Document, query: Mapping[str, str]) -> bool:
    """Whether a row passes the filter; an empty filter passes all."""
    ticker = str(row["ticker"])
    return (
        all((query.get(name) or row[name]) == row[name] for name in ("ticker", "market"))
        and query.get("active", "true") == "true"
        and not any(query.get(name) for name in _ONLY_OF_STOCKS)
        and query.get("search", "").lower() in f"{ticker} {row['name']}".lower()
        and query.get("ticker.gte", ticker) <= ticker <= query.get("ticker.lte", ticker)
        and ("ticker.gt" not in query or ticker > query["ticker.gt"])
        and ("ticker.lt" not in query or ticker < query["ticker.lt"])
    )


def _reference_row(instrument: Instrument, now_ms: int) -> Document:
    midnight = datetime.fromtimestamp(now_ms // DAY_MS * DAY_MS / 1000, tz=UTC)
    return {
        "ticker": instrument.ticker,
        "name": instrument.name,
        "market": instrument.market,
        "locale": "global",
        "active": True,
        "currency_symbol": instrument.quote.code,
        "currency_name": instrument.quote.name,
        "base_currency_symbol": instrument.base.code,
        "base_currency_name": instrument.base.name,
        "last_updated_utc": midnight.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def _list_reply(call: Call, rows: Sequence[Json], limit: int) -> Reply:
    """Wrap one page of rows like the v3 lists, with the address of the next page."""
    first = _count(call, "offset", 0, least=0)
    reply = Reply(
        200,
        {
            "results": list(rows[first : first + limit]),
            "status": "OK",
            "request_id": wire.request_id(),
        },
    )
    if first + limit >= len(rows):
        return reply
    return reply.with_keys(next_url=call.page(offset=str(first + limit)))


def _market_status(call: Call, _: Plan) -> Reply:
    """Answer which markets are open: currencies as in the replay; stocks are always closed."""
    open_now = {
        market: any(
            replay.is_open(instrument.ticker, call.now_ms)
            for instrument in INSTRUMENTS.values()
            if instrument.market is market
        )
        for market in Market
    }
    now = datetime.fromtimestamp(call.now_ms / 1000, tz=UTC)
    return Reply(
        200,
        {
            "afterHours": False,
            "currencies": {
                market.value: "open" if open_ else "closed" for market, open_ in open_now.items()
            },
            "earlyHours": False,
            "exchanges": {"nasdaq": "closed", "nyse": "closed", "otc": "closed"},
            "market": "closed",
            "serverTime": now.isoformat(timespec="seconds"),
        },
    )


def _unknown_path(_: Call, __: Plan) -> Reply:
    return refusals.unknown_path()


# ------------------------------------------------------------------ parameters and paths


_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_UNIX_MS = re.compile(r"\d{1,15}")


def read_moment(text: str, *, end_of_day: bool = False) -> int | None:
    """Unix milliseconds of `YYYY-MM-DD` or of milliseconds; None for anything else."""
    if _UNIX_MS.fullmatch(text):
        return int(text)
    try:
        midnight = datetime.fromisoformat(text) if _DATE.fullmatch(text) else None
    except ValueError:
        return None
    if midnight is None:
        return None
    start_ms = int(midnight.replace(tzinfo=UTC).timestamp()) * 1000
    return start_ms + DAY_MS - 1 if end_of_day else start_ms


def _time_in(call: Call, name: str, *, end_of_day: bool = False) -> int:
    moment = read_moment(call.parts[name], end_of_day=end_of_day)
    if moment is None:
        raise _RefusedError(
            refusals.bad_request(
                f"Could not parse the time parameter: '{name}'. "
                "Use YYYY-MM-DD or Unix MS Timestamps"
            )
        )
    return moment


def _count(call: Call, name: str, default: int, *, least: int = 1) -> int:
    text = call.query.get(name, str(default))
    if not re.fullmatch(r"\d{1,9}", text) or int(text) < least:
        raise _RefusedError(
            refusals.bad_request(f"The parameter '{name}' is not a positive number")
        )
    return int(text)


_SPANS_MS = {"minute": MINUTE_MS, "hour": HOUR_MS, "day": DAY_MS}


def _length_ms(call: Call) -> int:
    """Return the requested length of bars; reject one that the recordings cannot make."""
    length_ms = int(call.parts["mult"]) * _SPANS_MS.get(call.parts["span"], 0)
    of_whole_bars = length_ms and not length_ms % BAR_MS and not DAY_MS % length_ms
    if length_ms != MINUTE_MS and not of_whole_bars:
        sentence = (
            "The stand-in has bars of 1 minute, 5 minutes and of what divides a day into such"
        )
        raise _RefusedError(refusals.bad_request(sentence))
    return length_ms


_AGGS = "/v2/aggs"
_ROUTES: Sequence[tuple[re.Pattern[str], Endpoint]] = [
    (re.compile(pattern), endpoint)
    for pattern, endpoint in (
        (
            _AGGS + r"/ticker/(?P<ticker>[^/]+)/range/(?P<mult>\d{1,4})/(?P<span>[a-z]+)"
            r"/(?P<from>[^/]+)/(?P<to>[^/]+)",
            _aggregates,
        ),
        (_AGGS + r"/ticker/(?P<ticker>[^/]+)/prev", _previous_day),
        (
            _AGGS + r"/grouped/locale/global/market/(?P<market>fx|crypto)/(?P<date>[^/]+)",
            _grouped_daily,
        ),
        (wire.SNAPSHOT_PATH, _snapshot),
        (wire.REFERENCE_PATH, _ticker_list),
        (wire.REFERENCE_PATH + r"/(?P<ticker>[^/]+)", _ticker_details),
        (r"/v1/marketstatus/now", _market_status),
    )
]


def route(path: str) -> tuple[Endpoint, Mapping[str, str]]:
    """Return the function that answers this path, and what the path names."""
    for pattern, endpoint in _ROUTES:
        found = pattern.fullmatch(path)
        if found is not None:
            return endpoint, found.groupdict()
    return _unknown_path, {}
