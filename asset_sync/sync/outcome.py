"""Applies one answer of the provider: stores what it brings and moves its queue items.

All of that happens in the caller's transaction. What has to wait for the commit is handed back, as
an `Result`.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from typing import NamedTuple, TypeAlias

from asset_sync import queue
from asset_sync.database import Cursor, ServerError, refuses_data, savepoint, servers_words
from asset_sync.model import Feed
from asset_sync.provider.answers import BarsAnswer, Quote, SnapshotAnswer
from asset_sync.provider.errors import (
    FeedDenied,
    KeyRefused,
    NotSent,
    ProviderError,
    RateLimited,
    TickerUnknown,
    TodayDenied,
    Unavailable,
)
from asset_sync.queue import Item, Struck
from asset_sync.store import entitlements, market, publish, runs
from asset_sync.store.market import LastPrice
from asset_sync.store.runs import Call
from asset_sync.sync.progress import Failed, Progress, PutBack, Synced, Warned
from asset_sync.sync.scope import NO_SNAPSHOTS, Scope, account
from asset_sync.sync.window import BAR_LENGTH, SAFE_HISTORY, Window


class BarsFetched(NamedTuple):
    """The bars of a range: what was asked for, and what came."""

    span: Window
    answer: BarsAnswer


Answer: TypeAlias = BarsFetched | SnapshotAnswer | bool | ProviderError
"""Whatever a call can bring; True or False where it asked whether a ticker exists."""


class Fetch(NamedTuple):
    """A call that was made, for these items, and what came back after so many seconds."""

    items: Sequence[Item]
    span: Window | None
    """What was asked for, where the call was for bars."""
    answer: Answer
    seconds: float


def is_well(answer: Answer) -> bool:
    """Whether the answer shows that the provider is well: it brought bars or a price.

    So does a ticker that exists. Nothing at all may be what a provider in trouble says.
    """
    match answer:
        case BarsFetched():
            return bool(answer.answer.bars)
        case SnapshotAnswer():
            return bool(answer.quotes)
    return answer is True


class Result(NamedTuple):
    """What an answer has led to, and what is left to do once that is committed."""

    call: Call
    """As the history has it."""
    told: Sequence[Progress] = ()
    prices: Sequence[LastPrice] = ()
    """Those that are new, to be published."""
    denied: bool = False
    """Whether the key may do less than was thought, so that the job is another one now."""
    not_in_plan: ProviderError | None = None
    """What the plan does not include for this asset, and maybe for every other."""
    hopeless: ProviderError | None = None
    """What every call of the run would bring again."""


def conclude(cursor: Cursor, scope: Scope, run_id: int, made: Fetch) -> Result:
    """Do with an answer what it asks for, and note its call. Raises LostLeaseError."""
    outcome = _outcome(cursor, scope, made)
    if not isinstance(made.answer, NotSent):  # that was no call
        runs.record(cursor, run_id, outcome.call)
    publish.notify(cursor, outcome.prices)
    return outcome


def refused_by_database(
    cursor: Cursor, scope: Scope, run_id: int, made: Fetch, error: ServerError
) -> Result:
    """Do what is left where the database refused what the answer brought, and note the call.

    One asset's data is that asset's failure. Of many, each is stored by itself. Raises
    LostLeaseError.
    """
    words = servers_words(error)
    call = Call(
        made.items[0].feed,
        [item.symbol for item in made.items],
        "refused_by_database",
        made.seconds,
        error=words,
    )
    if isinstance(made.answer, SnapshotAnswer):
        outcome = _quotes_one_by_one(cursor, scope, made.items, call, made.answer)
    else:
        item = made.items[0]
        with suppress(ServerError), savepoint(cursor):  # for its status, if it is new
            market.save_symbols(cursor, [_symbol(item)])
        outcome = Result(call, [_failure(cursor, scope, item, words)])
    runs.record(cursor, run_id, outcome.call)
    publish.notify(cursor, outcome.prices)
    return outcome


def _outcome(cursor: Cursor, scope: Scope, made: Fetch) -> Result:
    items = made.items
    call = Call(items[0].feed, [item.symbol for item in items], "ok", made.seconds)
    match made.answer:
        case BarsFetched() as stretch:
            return _bars(cursor, scope, items[0], call, stretch)
        case SnapshotAnswer() as answer:
            return _quotes(cursor, scope, items, call, answer)
        case ProviderError() as error:
            call = replace(call, outcome=error.kind, error=str(error))
            return _refused(cursor, scope, made, call, error)
        case exists:
            return _looked_up(cursor, scope, items[0], call, exists=exists)


# --- bars -------------------------------------------------------------------------------------


def _bars(cursor: Cursor, scope: Scope, item: Item, call: Call, stretch: BarsFetched) -> Result:
    """Store bars, last price and sync status; the item ends, or goes on from there."""
    span, answer = stretch
    newest, _ = market.newest_bar(cursor.connection, item.symbol)
    # The range begins with bars that are stored already: those at least should have come.
    if not answer.bars and (newest is None or span.start <= newest):
        return _no_data(cursor, scope, item, call)
    market.save_symbols(cursor, [_symbol(item)])
    written = market.save_bars(cursor, item.symbol, answer.bars)
    prices: tuple[LastPrice, ...] = ()
    close, advanced = None, False
    # The newest bar stored, which need not be of this answer.
    last, now = market.newest_bar(cursor.connection, item.symbol)
    if last is not None:
        price = market.price_of_bar(cursor, item.symbol, last, _as_of(scope, item, last, now))
        prices = market.save_prices(cursor, [price])
        close, advanced = price.last_price, newest is None or last > newest
    done = span.last and (answer.complete or not advanced)
    if done:
        market.save_status(cursor, [item.symbol])
        queue.finish(cursor, [item])
    else:
        queue.resume(cursor, item, backfilled_to=None if advanced else span.end)
    priced_at = prices[0].timestamp if prices else None
    synced = Synced(
        item.symbol,
        item.feed,
        written,
        close,
        priced_at,
        call.seconds,
        more=not done,
        recovered=done and _had_failed(item),
    )
    told: tuple[Progress, ...] = (*_left_out(item, answer), synced)
    return Result(replace(call, bars_written=written), told, prices)


def _as_of(scope: Scope, item: Item, start: datetime, now: datetime) -> datetime:
    """Return the moment for which the close of the bar is the price: its end, or now.

    Where the asset has quotes, too, its start: a quote of the same minutes knows more.
    """
    if scope.has_quotes(item.symbol):
        return start
    return min(start + BAR_LENGTH, now)


def _had_failed(item: Item) -> bool:
    """Whether it was reported that the asset fails, so that its recovery is worth a word."""
    return item.attempts > 1 or item.strikes >= queue.WORTH_A_WORD


def _left_out(item: Item, answer: BarsAnswer) -> tuple[Warned, ...]:
    if not answer.left_out:
        return ()
    reasons = ", ".join(map(str, answer.left_out))
    return (Warned(f"{item.symbol}: bars that cannot be true were left out: {reasons}."),)


# --- no bars: is it a typo, or just silent? ---------------------------------------------------


def _no_data(cursor: Cursor, scope: Scope, item: Item, call: Call) -> Result:
    """Have the ticker looked up, once."""
    if item.attempts > 1:
        return _silent(cursor, scope, item, call)
    queue.verify(cursor, item)
    return Result(replace(call, outcome="empty"))


def _looked_up(cursor: Cursor, scope: Scope, item: Item, call: Call, *, exists: bool) -> Result:
    if not exists:
        error = (
            f"The provider knows no ticker {item.ticker}; correct its "
            "polygon_ticker in assets.toml."
        )
        call = replace(call, outcome=TickerUnknown.kind)
        return _fail(cursor, scope, item, call, error, verify_ticker=True)
    if item.attempts == 1:
        return _silent(cursor, scope, item, call)
    queue.resume(cursor, item, backfilled_to=None)  # it was unknown, and now it is not
    return Result(call)


def _silent(cursor: Cursor, scope: Scope, item: Item, call: Call) -> Result:
    """Do with an item whose ticker exists and is silent: it has failed if it always was."""
    newest, now = market.newest_bar(cursor.connection, item.symbol)
    if newest is None:
        return _fail(cursor, scope, item, call, _no_bars(item))
    span = scope.window(item.asset_type, newest, now, item.backfilled_to)
    if span is not None and not span.last:
        queue.resume(cursor, item, backfilled_to=span.end)
        return Result(call)
    market.save_status(cursor, [item.symbol])
    queue.finish(cursor, [item])
    return Result(call, [Synced(item.symbol, item.feed, 0, None, None, call.seconds)])


def _no_bars(item: Item) -> str:
    return (
        f"The provider has no bars of {item.ticker} within one call's reach; check "
        "that it still trades."
    )


# --- snapshots --------------------------------------------------------------------------------


def _quotes(
    cursor: Cursor, scope: Scope, items: Sequence[Item], call: Call, answer: SnapshotAnswer
) -> Result:
    """Store the quotes of a snapshot; each row is judged by itself."""
    found = [(item, answer.quotes[item.ticker]) for item in items if item.ticker in answer.quotes]
    prices = _store_quotes(cursor, found)
    return Result(
        call,
        (
            *(_quoted(item, quote, call) for item, quote in found),
            *_rows_refused(cursor, scope, items, answer),
        ),
        prices,
    )


def _quotes_one_by_one(
    cursor: Cursor, scope: Scope, items: Sequence[Item], call: Call, answer: SnapshotAnswer
) -> Result:
    """Store what the database takes of a snapshot; the rest are failures of their assets."""
    told: list[Progress] = []
    prices: list[LastPrice] = []
    for item in items:
        quote = answer.quotes.get(item.ticker)
        if quote is None:
            continue
        try:
            with savepoint(cursor):
                prices += _store_quotes(cursor, [(item, quote)])
        except ServerError as error:
            if not refuses_data(error):
                raise
            told.append(_failure(cursor, scope, item, servers_words(error)))
        else:
            told.append(_quoted(item, quote, call))
    told += _rows_refused(cursor, scope, items, answer)
    return Result(call, told, prices)


def _store_quotes(cursor: Cursor, found: Sequence[tuple[Item, Quote]]) -> tuple[LastPrice, ...]:
    market.save_symbols(cursor, [_symbol(item) for item, _ in found])
    prices = market.save_prices(cursor, [_price(item, quote) for item, quote in found])
    market.save_status(cursor, [item.symbol for item, _ in found])
    queue.finish(cursor, [item for item, _ in found])
    return prices


def _quoted(item: Item, quote: Quote, call: Call) -> Synced:
    return Synced(
        item.symbol,
        item.feed,
        0,
        quote.last_price,
        quote.at,
        call.seconds,
        recovered=_had_failed(item),
    )


def _rows_refused(
    cursor: Cursor, scope: Scope, items: Sequence[Item], answer: SnapshotAnswer
) -> list[Progress]:
    return [
        _row_refused(cursor, scope, item, answer.refused[item.ticker])
        for item in items
        if item.ticker in answer.refused
    ]


def _row_refused(cursor: Cursor, scope: Scope, item: Item, error: ProviderError) -> Progress:
    if isinstance(error, FeedDenied):
        entitlements.note_missing(cursor, *account(scope.settings), "snapshot", [item.symbol])
        queue.skip(cursor, [item], str(error))
        return Warned(f"{item.symbol}: no snapshots for it on this plan; using bars.")
    return _failure(cursor, scope, item, str(error))


# --- refusals ---------------------------------------------------------------------------------


def _refused(cursor: Cursor, scope: Scope, made: Fetch, call: Call, error: ProviderError) -> Result:
    """Do with a call that failed as a whole what its kind of error asks for."""
    items = made.items
    match error:
        case NotSent():
            wait = queue.TRY_AGAIN_SECONDS
            queue.release(cursor, items, after_seconds=wait, reason=str(error))
            return Result(call, [PutBack(call.symbols, str(error))])
        case Unavailable():
            return _struck(cursor, scope, items, call, error)
        case RateLimited() | KeyRefused():
            # As a rule this is the account's. But should one asset alone be answered so, it must
            # not be the first in line for ever.
            queue.move_back(cursor, items, str(error), scope.settings.queue)
            told = [PutBack(call.symbols, str(error))] if isinstance(error, RateLimited) else []
            return Result(call, told, hopeless=error if isinstance(error, KeyRefused) else None)
        case TodayDenied() | FeedDenied():
            return _not_entitled(cursor, scope, made, call, error)
        case _ if len(items) > 1:  # one of many is at fault, and which is not said
            return _left_to_bars(cursor, scope, items, call, error)
    return _fail(cursor, scope, items[0], call, str(error))


def _not_entitled(
    cursor: Cursor, scope: Scope, made: Fetch, call: Call, error: TodayDenied | FeedDenied
) -> Result:
    """Ask for less where the plan may have less; otherwise it is this asset that it lacks."""
    items, about_time = made.items, isinstance(error, TodayDenied)
    if items[0].feed is Feed.SNAPSHOT and not about_time:
        return _without_snapshots(cursor, scope, items, call)
    if len(items) > 1:
        return _left_to_bars(cursor, scope, items, call, error)
    if about_time and made.span is not None:
        if _is_too_long_ago(cursor, scope, made):
            return _without_past(cursor, scope, items, call)
        if made.span.last and not scope.missing.today:
            return _without_today(cursor, scope, items, call)
    outcome = _fail(cursor, scope, items[0], call, str(error))
    # One may be the first of all, of which the run's end tells.
    told = [replace(one, is_news=False) for one in outcome.told if isinstance(one, Failed)]
    return outcome._replace(told=told, not_in_plan=error)


def _struck(
    cursor: Cursor, scope: Scope, items: Sequence[Item], call: Call, error: ProviderError
) -> Result:
    """Have items wait that got a bad answer or none, the longer the more often that happens."""
    struck = queue.strike(cursor, items, str(error), scope.settings.queue)
    if len(items) > 1:
        return Result(call, [PutBack(call.symbols, str(error))])
    item, strikes = items[0], struck[0].strikes
    _save_error(cursor, item, str(error))
    is_news = item.strikes < strikes == queue.WORTH_A_WORD
    return Result(call, [Failed(item.symbol, item.feed, str(error), is_news)])


def _is_too_long_ago(cursor: Cursor, scope: Scope, made: Fetch) -> bool:
    """Whether the call asked for more of the past than the smallest plan has."""
    if made.span is None or scope.missing.past:
        return False
    _, now = market.newest_bar(cursor.connection, made.items[0].symbol)
    return made.span.start < now - SAFE_HISTORY - BAR_LENGTH


def _without_past(cursor: Cursor, scope: Scope, items: Sequence[Item], call: Call) -> Result:
    entitlements.note_missing(cursor, *account(scope.settings), "past", [])
    queue.release(cursor, items)
    instead = f"those of the last {SAFE_HISTORY.days} days"
    why = _not_included(scope, "bars of so long ago", instead)
    return Result(call, [why], denied=True)


def _without_today(cursor: Cursor, scope: Scope, items: Sequence[Item], call: Call) -> Result:
    entitlements.note_missing(cursor, *account(scope.settings), "today", [])
    queue.release(cursor, items)
    why = _not_included(scope, "bars of the running day", "bars up to yesterday")
    return Result(call, [why], denied=True)


def _without_snapshots(cursor: Cursor, scope: Scope, items: Sequence[Item], call: Call) -> Result:
    entitlements.note_missing(cursor, *account(scope.settings), "snapshot", [])
    queue.skip(cursor, items, NO_SNAPSHOTS)
    return Result(call, [_not_included(scope, "snapshots", "bars")], denied=True)


def _not_included(scope: Scope, what: str, instead: str) -> Warned:
    return Warned(
        f"The key's plan ({scope.settings.provider.plan.name}) does not include {what}; using "
        f"{instead}. It is asked again after a day."
    )


def _left_to_bars(
    cursor: Cursor, scope: Scope, items: Sequence[Item], call: Call, error: ProviderError
) -> Result:
    """Have bars serve, for a day, assets of which one spoils the call that serves them all."""
    entitlements.note_missing(cursor, *account(scope.settings), "snapshot", call.symbols)
    queue.skip(cursor, items, str(error))
    why = Warned(f"{error} Bars serve these {len(items)} assets for a day.")
    return Result(call, [why], denied=True)


def _fail(
    cursor: Cursor, scope: Scope, item: Item, call: Call, error: str, *, verify_ticker: bool = False
) -> Result:
    failure = _failure(cursor, scope, item, error, verify_ticker=verify_ticker)
    return Result(replace(call, error=error), [failure])


def _failure(
    cursor: Cursor, scope: Scope, item: Item, error: str, *, verify_ticker: bool = False
) -> Failed:
    """Count a failure of the asset's own."""
    struck = queue.fail(cursor, item, error, scope.settings.queue, verify_ticker=verify_ticker)
    _save_error(cursor, item, error)
    return Failed(item.symbol, item.feed, error, _is_news(item, struck))


def _save_error(cursor: Cursor, item: Item, error: str) -> None:
    """Write an asset's error for readers, unless it is this very row that the database refuses."""
    try:
        with savepoint(cursor):
            market.save_status(cursor, [item.symbol], error)
    except ServerError as refusal:
        if not refuses_data(refusal):
            raise


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
