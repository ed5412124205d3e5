"""Applies one answer: reads what is known, has it judged, and writes what was decided.

All of it happens in the caller's transaction, in one order: what is stored, what becomes of the
items, the history of calls, the event. What has to wait for the commit is handed back.
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
    """What an answer has led to, and what is left to do once that is committed."""

    told: Sequence[Progress] = ()
    prices: Sequence[LastPrice] = ()
    """Those that are new, to be published."""
    scope_changed: bool = False
    """Whether the key may do less than was thought, so that the run's scope is another one now."""
    not_in_plan: ProviderError | None = None
    """What the plan does not include for this asset, and maybe for every other."""
    hopeless: ProviderError | None = None
    """What every call of the run would bring again."""


class _Written(NamedTuple):
    told: Sequence[Progress]
    prices: Sequence[LastPrice]
    bars: int


def apply(cursor: Cursor, scope: Scope, run_id: int, fetch: Fetch) -> Result:
    """Do with an answer what it asks for, and note its call. Raises LostLeaseError."""
    known = Known(*market.newest_bar(cursor.connection, fetch.items[0].symbol))
    judgement = feeds.judge_answer(scope, fetch, known)
    written = _write(cursor, scope, judgement)
    if not isinstance(fetch.answer, NotSent):  # that was no call
        call = _call(fetch, judgement.outcome, judgement.error)
        runs.record(cursor, run_id, call._replace(bars_written=written.bars))
    publish.notify(cursor, written.prices)
    return Result(
        written.told,
        written.prices,
        judgement.scope_changed,
        judgement.not_in_plan,
        judgement.hopeless,
    )


def refused_by_database(
    cursor: Cursor, scope: Scope, run_id: int, fetch: Fetch, error: ServerError
) -> Result:
    """Do what is left where the database refused what the answer brought, and note the call.

    One asset's data is that asset's failure. Of many, each is stored by itself. Raises
    LostLeaseError.
    """
    words = servers_words(error)
    if isinstance(fetch.answer, SnapshotAnswer):
        parts = [_write_alone(cursor, scope, fetch, item, fetch.answer) for item in fetch.items]
    else:
        item = fetch.items[0]
        with suppress(ServerError), savepoint(cursor):  # for its status, if it is new
            market.save_symbols(cursor, [_symbol(item)])
        parts = [_write(cursor, scope, Judgement([([item], Fail(words))]))]
    runs.record(cursor, run_id, _call(fetch, "refused_by_database", words))
    prices = [price for part in parts for price in part.prices]
    publish.notify(cursor, prices)
    return Result([progress for part in parts for progress in part.told], prices)


def _write_alone(
    cursor: Cursor, scope: Scope, fetch: Fetch, item: Item, answer: SnapshotAnswer
) -> _Written:
    """Write one asset's part of an answer, or the failure that the database makes of it."""
    part = SnapshotAnswer(
        {item.ticker: answer.quotes[item.ticker]} if item.ticker in answer.quotes else {},
        {item.ticker: answer.refused[item.ticker]} if item.ticker in answer.refused else {},
    )
    known = Known(*market.newest_bar(cursor.connection, item.symbol))
    judgement = feeds.judge_answer(scope, fetch._replace(items=[item], answer=part), known)
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
    """Write what was decided, and say what is to be reported."""
    bars_written, prices, told = _store(cursor, judgement)
    for missing in judgement.missing:
        entitlements.note_missing(
            cursor, *account(scope.settings), missing.capability, missing.symbols
        )
    for items, end in judgement.ends:
        told += _end(cursor, scope, items, end, is_news=judgement.not_in_plan is None)
    return _Written(told, prices, bars_written)


def _store(cursor: Cursor, judgement: Judgement) -> tuple[int, Sequence[LastPrice], list[Progress]]:
    """Store bars, prices and who is fresh; return what is to be reported of them, too."""
    bars_written = 0
    prices: Sequence[LastPrice] = ()
    told = list(judgement.told)
    served = [item for items, end in judgement.ends for item in items if _is_served(end)]
    if served:
        market.save_symbols(cursor, [_symbol(item) for item in served])
    if judgement.bars is not None:
        item = served[0]
        bars_written = market.save_bars(cursor, item.symbol, judgement.bars)
        close = None
        if judgement.price is not None:
            price = market.price_of_bar(cursor, item.symbol, *judgement.price)
            prices, close = market.save_prices(cursor, [price]), price.last_price
        priced_at = prices[0].timestamp if prices else None
        told = [
            one._replace(bars_written=bars_written, last_price=close, as_of=priced_at)
            if isinstance(one, Synced)
            else one
            for one in told
        ]
    if judgement.quotes:
        quotes = [_price(item, quote) for item, quote in judgement.quotes]
        prices = market.save_prices(cursor, quotes)
    return bars_written, prices, told


def _is_served(end: End) -> bool:
    return isinstance(end, Finish | Resume)


def _end(
    cursor: Cursor, scope: Scope, items: Sequence[Item], end: End, *, is_news: bool
) -> Sequence[Progress]:
    """Move the items; return the failures that are to be reported."""
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
    """Write an asset's error for readers, unless it is this very row that the database refuses."""
    try:
        with savepoint(cursor):
            market.save_status(cursor, [item.symbol], error)
    except ServerError as refusal:
        if not refuses_data(refusal):
            raise
    return Failed(item.symbol, item.feed, error, is_news)


def _third(item: Item, struck: Struck) -> bool:
    """Whether this is the strike from which on the asset is named as failing."""
    return item.strikes < struck.strikes == queue.WORTH_A_WORD


def _is_news(item: Item, struck: Struck) -> bool:
    """Whether a failure changes how the asset stands: the first, the third and the last do."""
    return struck.strikes > item.strikes and (
        item.strikes == 0 or struck.dead or struck.strikes == queue.WORTH_A_WORD
    )


# --- an item as the store has it --------------------------------------------------------------


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
