"""Reads the body of an answer into plain types; implausible data is left out or is an error."""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby, pairwise
from operator import itemgetter
from urllib.parse import urlsplit

from asset_sync.hours import BAR_LENGTH
from asset_sync.provider.answers import (
    Bar,
    BarsAnswer,
    Flaw,
    LeftOut,
    Listed,
    Quote,
    SnapshotAnswer,
    TickersAnswer,
)
from asset_sync.provider.errors import ProviderError, TickerUnknown, Unavailable, Unreadable
from asset_sync.provider.polygon.endpoints import MAX_BASE_BARS, REFERENCE_PATH, unix_ms
from asset_sync.provider.polygon.http import Reply
from asset_sync.provider.polygon.refusals import (
    CallContext,
    refusal,
    refusal_in_answer,
    refusal_of_row,
    safe_text,
    unknown,
)
from asset_sync.secret import Secret

MINUTE_MS = 60 * 1000
BAR_MS = BAR_LENGTH // timedelta(milliseconds=1)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MAX_TRADES = 2**31 - 1
_MAX_TICKER = 64
# Wider than the prices of all pairs: from a token in dollars to a bitcoin in the weakest currency.
_LEAST_PRICE, _MOST_PRICE = 1e-12, 1e12
# A thousand times the volume of the most traded token in five minutes.
_MOST_VOLUME = 1e18
# The provider rounds each price by itself: open and close may lie outside of low to high by this
# share.
_ROUNDING = 1e-6
# A cursor has about 200 characters; servers reject addresses longer than about this.
_MAX_QUERY = 8000

# The smallest number that is read as ns, us, ms or s (all are after 1973), and the factor and the
# divisor that convert it to us.
_TO_MICROSECONDS = ((10**17, 1, 1000), (10**14, 1, 1), (10**11, 1000, 1), (0, 10**6, 1))


def read_bars(
    reply: Reply,
    call: CallContext,
    ticker: str,
    start: datetime,
    end: datetime,
    *,
    by_minute: bool = False,
) -> BarsAnswer:
    """Return the plausible bars of `ticker` that start in the requested range.

    With `by_minute` the answer holds minute bars, of which five-minute bars are made.

    Other bars are left out and counted by `Flaw`. Raises `Unreadable` if no bar is left, if the
    bars are another ticker's, and if an answer without bars does not say `resultsCount` 0, as all
    recorded empty answers do.
    """
    body = _answer(reply, call, hook=_minute_or_object if by_minute else _bar_or_object)
    rows = _results(body, call)
    named = body.get("ticker")
    if named != ticker and (rows or named is not None):
        raise Unreadable(
            f"The API answered with bars of another ticker than {ticker}, which are not stored;"
            " check the ticker in assets.toml."
        )
    if not rows and not _says_empty(body):
        raise Unreadable(
            f"The API answered for {ticker} without bars but does not say that there are none"
            " (resultsCount 0), so nothing was stored."
        )
    # The provider widens a range to whole bars, so it includes the bar that contains the start.
    first = unix_ms(start) // BAR_MS * BAR_MS
    last = unix_ms(end)
    bars: list[Bar] = []
    flaws: Counter[Flaw] = Counter()
    for row in rows:
        if not isinstance(row, Bar):
            flaws[row if isinstance(row, Flaw) else Flaw.UNREADABLE] += 1
        elif not first <= row.start_ms <= last:
            flaws[Flaw.OUT_OF_RANGE] += 1
        else:
            bars.append(row)
    left_out = tuple(LeftOut(flaw, flaws[flaw]) for flaw in Flaw if flaw in flaws)
    if rows and not bars:
        raise Unreadable(
            f"None of the {len(rows)} bars that the API sent for {ticker} can be true"
            f" ({', '.join(map(str, left_out))}); check the ticker in assets.toml."
        )
    ascending = _ascending(bars)
    return BarsAnswer(
        ticker=ticker,
        bars=_five_minutes(ascending) if by_minute else ascending,
        complete=not body.get("next_url") and not _is_full(body),
        left_out=left_out,
        repeats=len(ascending) < len(bars),
    )


def _is_full(body: Mapping[str, object]) -> bool:
    """Whether the answer is made of as many minute bars as one may be made of."""
    count = body.get("queryCount")
    return isinstance(count, int) and count >= MAX_BASE_BARS


def read_snapshots(reply: Reply, call: CallContext, tickers: Sequence[str]) -> SnapshotAnswer:
    """Return for each of `tickers` its quote, or the reason why there is none.

    Rows of other tickers are ignored. A ticker without a row is `TickerUnknown`, or `Unreadable`
    if some row names no ticker.
    """
    quotes: dict[str, Quote] = {}
    refused: dict[str, ProviderError] = {}
    nameless = False
    for row in _results(_answer(reply, call), call):
        ticker = row.get("ticker") if isinstance(row, dict) else None
        if not isinstance(row, dict) or not isinstance(ticker, str):
            nameless = True
        elif ticker in tickers:
            outcome = refusal_of_row(row, ticker, call.key) or _quote(row, ticker)
            if isinstance(outcome, Quote):
                quotes[ticker] = outcome
            else:
                refused[ticker] = outcome
    for ticker in tickers:
        if ticker not in quotes and ticker not in refused:
            refused[ticker] = _no_price(ticker) if nameless else unknown(ticker)
    return SnapshotAnswer(
        quotes, {ticker: error for ticker, error in refused.items() if ticker not in quotes}
    )


def read_exists(reply: Reply, call: CallContext, ticker: str) -> bool:
    """Return whether the reference knows `ticker`."""
    try:
        details = _answer(reply, call).get("results")
    except TickerUnknown:
        return False
    if not isinstance(details, dict) or details.get("ticker") != ticker:
        raise Unreadable(
            f"The API's reference answered for {ticker} with something else;"
            " check the ticker in assets.toml."
        )
    return True


def read_tickers(reply: Reply, call: CallContext) -> TickersAnswer:
    """Return a page of the list, without rows that name no ticker or an inactive one.

    Raises `Unreadable` if no row is left, or if the next page is not a page of the list: otherwise
    an incomplete list would look complete.
    """
    try:
        body = _answer(reply, call)
    except TickerUnknown:  # the call did not ask for a ticker
        body = {}
    rows = _results(body, call)
    tickers = tuple(listed for row in rows if (listed := _listed(row, call.key)) is not None)
    if rows and not tickers:
        raise _unknown_format(call)
    return TickersAnswer(tickers, _next_page(body.get("next_url"), call))


def _answer(
    reply: Reply, call: CallContext, hook: Callable[[dict[str, object]], object] | None = None
) -> dict[str, object]:
    """Return the answer's JSON object, or raise the error that the answer stands for."""
    if reply.status != 200:  # noqa: PLR2004
        raise refusal(reply, call)
    body: object = None
    try:
        body = json.loads(reply.text, object_hook=hook)
    except (ValueError, RecursionError):  # raised below, without the body as its context
        is_json = False
    else:
        is_json = True
    if not is_json:
        raise Unavailable(
            f"{call.host} did not answer in JSON when asked for {call.asked}: a proxy or a log-in"
            " page of the network answered, or the answer is incomplete"
        )
    if not isinstance(body, dict):
        raise _unknown_format(call)
    refused = refusal_in_answer(body, call)
    if refused is not None:
        del body  # some tools report locals with a traceback, and the body may contain the key
        raise refused
    return body


def _results(body: dict[str, object], call: CallContext) -> list[object]:
    """Return the rows; none if `results` is missing, null or [] and the status is good."""
    rows = body.get("results")
    status = body.get("status")
    # Free plans get DELAYED, with full results; some v3 answers come without a status.
    if isinstance(rows, list) and status in (None, "OK", "DELAYED"):
        return rows
    if rows is None and status in ("OK", "DELAYED"):
        return []
    raise _unknown_format(call)


def _listed(row: object, key: Secret) -> Listed | None:
    if not isinstance(row, dict) or row.get("active") is False:
        return None
    ticker, name = row.get("ticker"), row.get("name")
    if (
        not isinstance(ticker, str)
        or not ticker.isprintable()
        or not 0 < len(ticker) <= _MAX_TICKER
    ):
        return None
    line = safe_text(name, key) if isinstance(name, str) else ""
    return Listed(ticker, line.rstrip() or ticker)


def _next_page(url: object, call: CallContext) -> str | None:
    """Return path and query of a `next_url`; its host is ignored: only the API's host is asked."""
    if url is None or url == "":
        return None
    path = query = ""
    if isinstance(url, str):
        try:
            parts = urlsplit(url)
        except ValueError:
            pass
        else:
            path = parts.path
            query = "&".join(
                part for part in parts.query.split("&") if not part.lower().startswith("apikey=")
            )
    if path != REFERENCE_PATH or not re.fullmatch(rf"[!-~]{{1,{_MAX_QUERY}}}", query):
        raise Unreadable(
            f"The API gives an unknown address for the next page of {call.asked};"
            " a newer asset-sync may read it."
        )
    return f"{path}?{query}"


def _unknown_format(call: CallContext) -> Unreadable:
    return Unreadable(
        f"The API answered for {call.asked} in an unknown format; a newer asset-sync may read it."
    )


def _says_empty(body: dict[str, object]) -> bool:
    count = body.get("resultsCount")
    return type(count) is int and count == 0


def _minute_or_object(row: dict[str, object]) -> object:
    """Do what `_bar_or_object` does for the bar of a minute."""
    return _bar_or_object(row, MINUTE_MS)


def _bar_or_object(row: dict[str, object], length_ms: int = BAR_MS) -> object:
    """Turn the dict of a bar into a `Bar` or a `Flaw` as soon as it is read.

    50,000 dicts would take 30 MB.
    """
    if "t" not in row:
        return row
    start = row["t"]
    open_, high = _number(row.get("o")), _number(row.get("h"))
    low, close = _number(row.get("l")), _number(row.get("c"))
    volume = _number(row.get("v"))
    if (
        type(start) is not int
        or open_ is None
        or high is None
        or low is None
        or close is None
        or volume is None
    ):
        return Flaw.UNREADABLE
    if not 0 <= volume <= _MOST_VOLUME:
        return Flaw.VOLUME
    flaw = _flaw(open_, high, low, close)
    if flaw is None and start % length_ms:
        flaw = Flaw.OFF_THE_MARK
    if flaw is not None:
        return flaw
    vwap, trades = _price(row.get("vw")), _trades(row.get("n"))
    return Bar(start, open_, high, low, close, volume, vwap, trades)


def _flaw(open_: float, high: float, low: float, close: float) -> Flaw | None:
    """Return why the figures of a bar cannot be true, None if they can."""
    # Nearly all bars are in order, and the checks below take longer.
    if _LEAST_PRICE <= low <= open_ <= high <= _MOST_PRICE and low <= close <= high:
        return None
    if high < low:
        return Flaw.HIGH_BELOW_LOW
    if min(low, open_, close) < _LEAST_PRICE or max(high, open_, close) > _MOST_PRICE:
        return Flaw.PRICE
    if min(open_, close) < low * (1 - _ROUNDING) or max(open_, close) > high * (1 + _ROUNDING):
        return Flaw.OPEN_OR_CLOSE
    return None


def _five_minutes(minutes: Sequence[Bar]) -> tuple[Bar, ...]:
    """Return the five-minute bars that these bars of single minutes make."""
    return tuple(
        _together(start_ms, list(group))
        for start_ms, group in groupby(minutes, key=lambda bar: bar.start_ms // BAR_MS * BAR_MS)
    )


def _together(start_ms: int, parts: Sequence[Bar]) -> Bar:
    volume = sum(bar.volume for bar in parts)
    weighed = [(bar.vwap, bar.volume) for bar in parts if bar.vwap is not None]
    weight = sum(share for _, share in weighed)
    trades = [bar.trades for bar in parts if bar.trades is not None]
    return Bar(
        start_ms,
        parts[0].open,
        max(bar.high for bar in parts),
        min(bar.low for bar in parts),
        parts[-1].close,
        volume,
        sum(vwap * share for vwap, share in weighed) / weight if weight else None,
        sum(trades) if trades else None,
    )


def _ascending(bars: list[Bar]) -> tuple[Bar, ...]:
    if all(bar.start_ms < later.start_ms for bar, later in pairwise(bars)):
        return tuple(bars)
    latest = {bar.start_ms: bar for bar in bars}
    return tuple(sorted(latest.values(), key=itemgetter(0)))


def _quote(row: dict[str, object], ticker: str) -> Quote | Unreadable:
    quote, trade, session = (_child(row, name) for name in ("last_quote", "last_trade", "session"))
    bid, ask = _price(quote.get("bid")), _price(quote.get("ask"))
    middle = _middle(bid, ask) if bid is not None and ask is not None else None
    close = _price(session.get("close"))
    high, low = _price(session.get("high")), _price(session.get("low"))
    if high is not None and low is not None and high < low:
        high = low = None
    # Take the first source that has a price and a time. The most direct source comes first. Crypto
    # has trades, forex has quotes, and a quiet market may have neither.
    for price, source in ((_price(trade.get("price")), trade), (middle, quote), (close, row)):
        at = _updated_at(source) or _updated_at(row) or _updated_at(_child(row, "last_minute"))
        if price is not None and at is not None:
            return Quote(
                ticker=ticker,
                bid=bid,
                ask=ask,
                last_price=price,
                daily_open=_price(session.get("open")),
                daily_high=high,
                daily_low=low,
                daily_close=close,
                at=at,
            )
    return _no_price(ticker)


def _middle(bid: float, ask: float) -> float:
    """Return the price halfway between the two, without rounding errors of floats."""
    return float(f"{(bid + ask) / 2:.12g}")


def _no_price(ticker: str) -> Unreadable:
    return Unreadable(
        f"The API's snapshot of {ticker} has no price with a time; the bars feed may have one."
    )


def _child(row: dict[str, object], name: str) -> dict[str, object]:
    child = row.get(name)
    return child if isinstance(child, dict) else {}


def _updated_at(source: dict[str, object]) -> datetime | None:
    for name in ("last_updated", "sip_timestamp", "participant_timestamp"):
        at = _read_time(source.get(name))
        if at is not None:
            return at
    return None


def _read_time(value: object) -> datetime | None:
    """Read a Unix time; its size shows its unit."""
    number = value if type(value) is int else _number(value)
    if number is None or number <= 0:
        return None
    times, per = next((times, per) for least, times, per in _TO_MICROSECONDS if number >= least)
    try:
        return _EPOCH + timedelta(microseconds=int(number * times // per))
    except OverflowError:
        return None


def _number(value: object) -> float | None:
    """Return a finite JSON number as a float; None for anything else, including a bool."""
    if type(value) is float:
        return value if math.isfinite(value) else None
    if type(value) is not int:
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def _price(value: object) -> float | None:
    """Return a plausible price, else None; the provider sends 0 while there is no price yet."""
    number = _number(value)
    return number if number is not None and _LEAST_PRICE <= number <= _MOST_PRICE else None


def _trades(value: object) -> int | None:
    number = _number(value)
    if number is None or not 0 <= number <= _MAX_TRADES:
        return None
    return int(number)
