"""Applies one answer: reads what is known, judges the answer, and writes the result.

Everything happens in the caller's transaction, in this order: the data, the queue items, the
history of calls, the event. What has to wait for the commit is returned.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from asset_sync import queue
from asset_sync.database import Cursor, ServerError, refuses_data, savepoint, servers_words
from asset_sync.provider.answers import Quote, SnapshotAnswer
from asset_sync.provider.errors import NotSent, ProviderError
from asset_sync.queue import Item, Struck
from asset_sync.store import entitlements, market, publish, runs
from asset_sync.store.market import LastPrice
from asset_sync.store.runs import Call
from asset_sync.sync import feeds
from asset_sync.sync.judge import (
    End,
    Fail,
    Fetch,
    Finish,
    Judgement,
    Known,
    MoveBack,
    Release,
    Resume,
    Skip,
    Strike,
    Verify,
)
from asset_sync.sync.progress import Failed, Progress, Synced
from asset_sync.sync.scope import Scope, account


class Result(NamedTuple):
    """What was written for an answer, and what is left to do after the commit."""

    progress: Sequence[Progress] = ()
    prices: Sequence[LastPrice] = ()
    """New prices, to be published."""
    scope_changed: bool = False
    """Whether the key turned out to allow less, so that the run's scope has changed."""
    not_in_plan: ProviderError | None = None
    """The error, if the plan does not include this asset's data (and perhaps no asset's)."""
    hopeless: ProviderError | None = None
    """The error, if every further call of the run would fail in the same way."""


class _Written(NamedTuple):
    progress: Sequence[Progress]
    prices: Sequence[LastPrice]
    bars: int


def apply(cursor: Cursor, scope: Scope, run_id: int, fetch: Fetch) -> Result:
    """Judge an answer, write the result and record the call. Raises LostLeaseError."""
    known = Known(*market.newest_bar(cursor.connection, fetch.items[0].symbol))
    judgement = feeds.judge_answer(scope, fetch, known)
    written = _write(cursor, scope, judgement)
    if not isinstance(fetch.answer, NotSent):  # that was no call
        call = _call(fetch, judgement.outcome, judgement.error)
        runs.record(cursor, run_id, call._replace(bars_written=written.bars))
    publish.notify(cursor, written.prices)
    return Result(
        written.progress,
        written.prices,
        judgement.scope_changed,
        judgement.not_in_plan,
        judgement.hopeless,
    )


def refused_by_database(
    cursor: Cursor, scope: Scope, run_id: int, fetch: Fetch, error: ServerError
) -> Result:
    """Record the call, and the failures, after the database refused an answer's data.

    If the call was for one asset, that asset fails. If it was for many, each is stored by itself.
    Raises LostLeaseError.
    """
    words = servers_words(error)
    if isinstance(fetch.answer, SnapshotAnswer):
        newest, now = market.newest_bars(cursor.connection, fetch.symbols)
        parts = [
            _write_alone(cursor, scope, fetch, item, Known(newest.get(item.symbol), now))
            for item in fetch.items
        ]
    else:
        item = fetch.items[0]
        with suppress(ServerError), savepoint(cursor):  # a new asset needs its row for the status
            market.save_symbols(cursor, [_symbol(item)])
        parts = [_write(cursor, scope, Judgement([([item], Fail(words))]))]
    runs.record(cursor, run_id, _call(fetch, "refused_by_database", words))
    prices = [price for part in parts for price in part.prices]
    publish.notify(cursor, prices)
    return Result([step for part in parts for step in part.progress], prices)


def _write_alone(cursor: Cursor, scope: Scope, fetch: Fetch, item: Item, known: Known) -> _Written:
    """Write one asset's part of an answer, or its failure if the database refuses the data.

    A feed judges of an answer only what concerns the items of the fetch.
    """
    judgement = feeds.judge_answer(scope, fetch._replace(items=[item]), known)
    try:
        with savepoint(cursor):
            return _write(cursor, scope, judgement)
    except ServerError as error:
        if not refuses_data(error):
            raise
        return _write(cursor, scope, Judgement([([item], Fail(servers_words(error)))]))


def _call(fetch: Fetch, outcome: str, error: str | None) -> Call:
    return Call(fetch.items[0].feed, fetch.symbols, outcome, fetch.seconds, error=error)


# --- writing ----------------------------------------------------------------------------------


def _write(cursor: Cursor, scope: Scope, judgement: Judgement) -> _Written:
    """Write a judgement, and return what was written and what to report."""
    bars_written, prices, progress = _store(cursor, scope, judgement)
    for missing in judgement.missing:
        entitlements.note_missing(
            cursor, *account(scope.settings), missing.capability, missing.symbols
        )
    for items, end in judgement.ends:
        progress += _end(cursor, scope, items, end, is_news=judgement.not_in_plan is None)
    return _Written(progress, prices, bars_written)


def _store(
    cursor: Cursor, scope: Scope, judgement: Judgement
) -> tuple[int, Sequence[LastPrice], list[Progress]]:
    """Store symbols, bars and prices; return the bars' number, the new prices, the report."""
    bars_written = 0
    prices: Sequence[LastPrice] = ()
    progress = list(judgement.progress)
    served = [item for items, end in judgement.ends for item in items if _is_served(end)]
    if served:
        market.save_symbols(cursor, [_symbol(item) for item in served])
    if judgement.bars is not None:
        item = served[0]
        kept = scope.settings.history.keep_revisions_days > 0
        bars_written = market.save_bars(cursor, item.symbol, judgement.bars, kept=kept)
        close = None
        if judgement.price is not None:
            price = market.price_of_bar(cursor, item.symbol, *judgement.price)
            prices, close = market.save_prices(cursor, [price]), price.last_price
        priced_at = prices[0].timestamp if prices else None
        progress = [
            step._replace(bars_written=bars_written, last_price=close, as_of=priced_at)
            if isinstance(step, Synced)
            else step
            for step in progress
        ]
    if judgement.quotes:
        quotes = [_price(item, quote) for item, quote in judgement.quotes]
        prices = market.save_prices(cursor, quotes)
    return bars_written, prices, progress


def _is_served(end: End) -> bool:
    return isinstance(end, Finish | Resume)


def _end(
    cursor: Cursor, scope: Scope, items: Sequence[Item], end: End, *, is_news: bool
) -> Sequence[Progress]:
    """Update the queue items; return the failures to report."""
    settings = scope.settings.queue
    match end:
        case Finish():
            market.save_status(cursor, [item.symbol for item in items])
            queue.finish(cursor, items)
        case Resume(backfilled_to):
            queue.resume(cursor, items[0], backfilled_to=backfilled_to)
        case Verify():
            queue.verify(cursor, items[0])
        case Skip(reason):
            queue.skip(cursor, items, reason)
        case Release(after_seconds, reason):
            queue.release(cursor, items, after_seconds=after_seconds, reason=reason)
        case MoveBack(reason):
            queue.move_back(cursor, items, reason, settings)
        case Strike(error):
            struck = queue.strike(cursor, items, error, settings)
            if len(items) == 1:
                return [_failed(cursor, items[0], error, is_news=_third(items[0], struck[0]))]
        case Fail(error, verify_ticker):
            item = items[0]
            became = queue.fail(cursor, item, error, settings, verify_ticker=verify_ticker)
            return [_failed(cursor, item, error, is_news=is_news and _is_news(item, became))]
    return ()


def _failed(cursor: Cursor, item: Item, error: str, *, is_news: bool) -> Failed:
    """Write an asset's error to its sync status, unless the database refuses that row, too."""
    try:
        with savepoint(cursor):
            market.save_status(cursor, [item.symbol], error)
    except ServerError as refusal:
        if not refuses_data(refusal):
            raise
    return Failed(item.symbol, item.feed, error, is_news)


def _third(item: Item, struck: Struck) -> bool:
    """Whether this strike is the first one that has the asset listed as failing."""
    return item.strikes < struck.strikes == queue.WORTH_A_WORD


def _is_news(item: Item, struck: Struck) -> bool:
    """Whether a failure is news: the first, the third and the last are."""
    return struck.strikes > item.strikes and (
        item.strikes == 0 or struck.dead or struck.strikes == queue.WORTH_A_WORD
    )


# --- from the queue's and provider's types to the store's -------------------------------------


def _symbol(item: Item) -> market.Symbol:
    return market.Symbol(item.symbol, item.name, item.asset_type.value)


def _price(item: Item, quote: Quote) -> LastPrice:
    return LastPrice(
        item.symbol,
        quote.bid,
        quote.ask,
        quote.last_price,
        quote.daily_open,
        quote.daily_high,
        quote.daily_low,
        quote.daily_close,
        timestamp=quote.at,
    )
