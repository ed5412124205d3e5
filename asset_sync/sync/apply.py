"""Applies one answer: reads what is stored, judges the answer, and writes the result.

Everything happens in the caller's transaction, in this order: the data, the queue items, the
history of calls, the event. The result holds what is left to do after the commit.
"""

from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import NamedTuple

from asset_sync import queue
from asset_sync.database import (
    Connection,
    Cursor,
    DriverError,
    refuses_data,
    savepoint,
    servers_words,
)
from asset_sync.model import Asset, Feed
from asset_sync.provider.answers import Quote, SnapshotAnswer
from asset_sync.provider.errors import NotSent, ProviderError
from asset_sync.queue import Item, Struck
from asset_sync.spans import Span
from asset_sync.store import entitlements, ledger, market, publish, runs
from asset_sync.store.ledger import Ledger
from asset_sync.store.market import LastPrice
from asset_sync.store.runs import Call
from asset_sync.sync import coverage, feeds
from asset_sync.sync.judge import (
    Entry,
    Fail,
    Fetch,
    Finish,
    Idle,
    ItemEnd,
    Judgement,
    Known,
    MoveBack,
    Release,
    Resume,
    Skip,
    Strike,
    Verify,
)
from asset_sync.sync.progress import Failed, Filled, Progress, Synced
from asset_sync.sync.scope import Scope, Target, account

# A week that was never filled is asked a last time so long before it leaves the plan's years.
LAST_TRY_DAYS = 14

# Both feeds bring bars, so one ledger holds what either has asked.
_KEPT_IN_LEDGER = (Feed.BARS, Feed.HISTORY)


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


def known_of(db: Connection, target: Target) -> Known:
    """Return what is known of an asset's bars."""
    [known] = known_of_all(db, [target])
    return known


def known_of_all(db: Connection, targets: Sequence[Target]) -> list[Known]:
    """Return what is known of the bars of each asset, in two round trips."""
    newest, now = market.newest_bars(db, [target.symbol for target in targets])
    asked = ledger.read(db, Feed.BARS, {target.symbol: target.ticker for target in targets})
    due = ledger.due_weeks(db, [one.symbol for one in targets if one.feed is Feed.HISTORY])
    return [
        Known(
            newest.get(target.symbol),
            now,
            asked.get(target.symbol, Ledger()),
            due.get(target.symbol, ()),
        )
        for target in targets
    ]


def apply(cursor: Cursor, scope: Scope, run_id: int, fetch: Fetch) -> Result:
    """Judge an answer, write the result and record the call. Raises LostLeaseError."""
    item = fetch.items[0]
    if item.feed in _KEPT_IN_LEDGER:
        ledger.lock(cursor, item.symbol, Feed.BARS, item.ticker)
    known = known_of(cursor.connection, item)
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


def no_history_left(cursor: Cursor, scope: Scope, item: Item) -> None:
    """Note that nothing of an asset's past is to be asked now. Raises LostLeaseError.

    The settings or the plan reach less far back than when the ledger was written. Until the next
    ordinary call the asset has no history, so that no run claims it again and again.
    """
    ledger.lock(cursor, item.symbol, Feed.BARS, item.ticker)
    known = known_of(cursor.connection, item)
    since = scope.past_begins(item.symbol, known.now, known.ledger)
    ledger.put_off_due_weeks(cursor, item.symbol, scope.wanted_since(item.symbol, known.now))
    left = coverage.unasked_until(scope.hours(item.symbol), known.ledger, since, known.now)
    ledger.save(cursor, item.symbol, Feed.BARS, known.ledger, left)
    queue.idle(cursor, [item])


def recount(scope: Scope, cursor: Cursor, asset: Asset) -> None:
    """Count anew what came of an asset and what is missing: the settings give it other hours."""
    ledger.lock(cursor, asset.symbol, Feed.BARS, asset.ticker)
    [known] = ledger.read(cursor.connection, Feed.BARS, {asset.symbol: asset.ticker}).values()
    if not known.settled:
        return
    hours = scope.hours(asset.symbol)
    _, now = market.newest_bars(cursor.connection, ())
    whole = Span(known.settled[0].start, known.settled[-1].end)
    left = coverage.asked_down_to(hours, known, scope.past_begins(asset.symbol, now, known), now)
    ledger.forget_weeks(cursor, asset.symbol)
    _note(cursor, scope, asset, Entry(known, whole, hours, left))


def refused_by_database(
    cursor: Cursor, scope: Scope, run_id: int, fetch: Fetch, error: DriverError
) -> Result:
    """Record the call, and the failures, after the database refused an answer's data.

    If the call was for one asset, that asset fails. If it was for many, each asset's part is stored
    by itself, and only those fail whose data the database refuses. Raises LostLeaseError.
    """
    reason = servers_words(error)
    if isinstance(fetch.answer, SnapshotAnswer):
        newest, now = market.newest_bars(cursor.connection, fetch.symbols)
        parts = [
            _write_alone(cursor, scope, fetch, item, Known(newest.get(item.symbol), now))
            for item in fetch.items
        ]
    else:
        item = fetch.items[0]
        with suppress(DriverError), savepoint(cursor):  # the sync status needs the asset's row
            market.save_symbols(cursor, [_symbol(item)])
        parts = [_write(cursor, scope, Judgement([([item], Fail(reason))]))]
    runs.record(cursor, run_id, _call(fetch, "refused_by_database", reason))
    prices = [price for part in parts for price in part.prices]
    publish.notify(cursor, prices)
    return Result([step for part in parts for step in part.progress], prices)


def _write_alone(cursor: Cursor, scope: Scope, fetch: Fetch, item: Item, known: Known) -> _Written:
    """Write one asset's part of an answer, or its failure if the database refuses the data.

    A feed judges only the parts of an answer that belong to the items of the fetch.
    """
    judgement = feeds.judge_answer(scope, fetch._replace(items=[item]), known)
    try:
        with savepoint(cursor):
            return _write(cursor, scope, judgement)
    except DriverError as error:
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
    if judgement.shows_running_day:
        entitlements.note_running_day_shown(cursor, *account(scope.settings))
    for items, end in judgement.ends:
        progress += _update_items(cursor, scope, items, end, is_news=judgement.not_in_plan is None)
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
        if judgement.entry is not None:
            _note(cursor, scope, item, judgement.entry)
        close = None
        if judgement.price is not None:
            price = market.price_of_bar(cursor, item.symbol, *judgement.price)
            prices, close = market.save_prices(cursor, [price]), price.last_price
        priced_at = prices[0].timestamp if prices else None
        progress = [
            step._replace(bars_written=bars_written, last_price=close, as_of=priced_at)
            if isinstance(step, Synced)
            else step._replace(bars_written=bars_written)
            if isinstance(step, Filled)
            else step
            for step in progress
        ]
    if judgement.quotes:
        quotes = [_price(item, quote) for item, quote in judgement.quotes]
        prices = market.save_prices(cursor, quotes)
    return bars_written, prices, progress


def _note(cursor: Cursor, scope: Scope, item: Item | Asset, entry: Entry) -> None:
    """Write the ledger, what came in the weeks that the answer touches, and the lag."""
    days = coverage.asked_days(entry.hours, entry.ledger, entry.settled)
    came = ledger.count_bars(cursor, item.symbol, [span for day in days for span in day.asked])
    weeks = coverage.weeks(days, came)
    if weeks:
        forget_at = timedelta(days=scope.settings.provider.plan.history_days - LAST_TRY_DAYS)
        ledger.save_weeks(cursor, item.symbol, weeks, tried=entry.tried, forget_at=forget_at)
    ledger.save(cursor, item.symbol, Feed.BARS, entry.ledger, entry.unasked_until)
    if entry.lag_seconds is not None:
        plan = scope.settings.provider.plan.name
        at_least, seconds = entry.lag_seconds
        ledger.note_lag(cursor, plan, item.asset_type, seconds, at_least)


def _is_served(end: ItemEnd) -> bool:
    return isinstance(end, Finish | Idle | Resume)


def _update_items(
    cursor: Cursor, scope: Scope, items: Sequence[Item], end: ItemEnd, *, is_news: bool
) -> Sequence[Progress]:
    """Update the queue items; return the failures to report."""
    settings = scope.settings.queue
    match end:
        case Finish(chance):
            market.save_status(cursor, [item.symbol for item in items])
            queue.finish(cursor, items, not_before=chance.not_before, silent=chance.silent)
        case Strike(error):
            struck = queue.strike(cursor, items, error, settings)
            if len(items) == 1:
                news = _becomes_failing(items[0], struck[0])
                return [_failed(cursor, items[0], error, is_news=news)]
        case Fail(error, verify_ticker):
            item = items[0]
            became = queue.fail(cursor, item, error, settings, verify_ticker=verify_ticker)
            return [_failed(cursor, item, error, is_news=is_news and _is_news(item, became))]
        case _:
            _update_unfinished(cursor, scope, items, end)
    return ()


def _update_unfinished(cursor: Cursor, scope: Scope, items: Sequence[Item], end: ItemEnd) -> None:
    """Update queue items that neither are fresh now nor have failed."""
    match end:
        case Idle():
            queue.idle(cursor, items)
        case Resume(backfilled_to):
            queue.resume(cursor, items[0], scope.settings.queue, backfilled_to=backfilled_to)
        case Verify():
            queue.verify(cursor, items[0])
        case Skip(reason):
            queue.skip(cursor, items, reason)
        case Release(after_seconds, reason):
            queue.release(cursor, items, after_seconds=after_seconds, reason=reason)
        case MoveBack(reason):
            queue.move_back(cursor, items, reason, scope.settings.queue)


def _failed(cursor: Cursor, item: Item, error: str, *, is_news: bool) -> Failed:
    """Write an asset's error to its sync status, unless the database refuses that row, too.

    History does not change it: the asset may be fresh.
    """
    if item.feed is Feed.HISTORY:
        return Failed(item.symbol, item.feed, error, is_news)
    try:
        with savepoint(cursor):
            market.save_status(cursor, [item.symbol], error)
    except DriverError as refusal:
        if not refuses_data(refusal):
            raise
    return Failed(item.symbol, item.feed, error, is_news)


def _becomes_failing(item: Item, struck: Struck) -> bool:
    """Whether `queue status` and `health` name the asset as failing from this strike on."""
    return item.strikes < struck.strikes == queue.FAILING_STRIKES


def _is_news(item: Item, struck: Struck) -> bool:
    """Whether a failure is reported: only the first, the third and the last one are."""
    return struck.strikes > item.strikes and (
        item.strikes == 0 or struck.dead or struck.strikes == queue.FAILING_STRIKES
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
