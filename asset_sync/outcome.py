"""What an answer leads to: what it brings is stored; its items end, go on, wait or have failed.

All of that happens in the caller's transaction. What has to wait for the commit is handed back, as
an `Outcome`. Imported once a call is made: the provider's types cost 150 ms.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import NamedTuple, TypeAlias

from asset_sync import events, queue, runs, store
from asset_sync.assets import Feed
from asset_sync.database import Cursor
from asset_sync.job import NO_SNAPSHOTS, Job, account
from asset_sync.polygon import (
    Bar,
    BarsAnswer,
    FeedDenied,
    KeyRefused,
    ProviderError,
    Quote,
    RateLimited,
    SnapshotAnswer,
    TickerUnknown,
    TodayDenied,
    Unavailable,
)
from asset_sync.progress import Failed, Progress, PutBack, Synced, Warned
from asset_sync.queue import Item
from asset_sync.reach import BAR_LENGTH, Reach
from asset_sync.runs import Call
from asset_sync.store import LastPrice


class Stretch(NamedTuple):
    """The bars of a range: what was asked for, and what came."""

    span: Reach
    answer: BarsAnswer


Answer: TypeAlias = Stretch | SnapshotAnswer | bool | ProviderError
"""Whatever a call can bring; True or False where it asked whether a ticker exists."""


class Exchange(NamedTuple):
    """A call that was made, for these items, and what came back after so many seconds."""

    items: Sequence[Item]
    answer: Answer
    seconds: float


class Outcome(NamedTuple):
    """What an answer has led to, and what is left to do once that is committed."""

    call: Call
    """As the history has it."""
    told: Sequence[Progress] = ()
    prices: Sequence[LastPrice] = ()
    """Those that are new, to be published."""
    denied: bool = False
    """Whether the key may do less than was thought, so that the job is another one now."""
    hopeless: ProviderError | None = None
    """What every call of the run would bring again."""


def conclude(cursor: Cursor, job: Job, run_id: int, made: Exchange) -> Outcome:
    """Do with an answer what it asks for, and note its call. Raises LostLeaseError."""
    outcome = _outcome(cursor, job, made)
    runs.record(cursor, run_id, outcome.call)
    events.notify(cursor, outcome.prices)
    return outcome


def _outcome(cursor: Cursor, job: Job, made: Exchange) -> Outcome:
    items = made.items
    call = Call(items[0].feed, [item.symbol for item in items], "ok", made.seconds)
    match made.answer:
        case Stretch() as stretch:
            return _bars(cursor, job, items[0], call, stretch)
        case SnapshotAnswer() as answer:
            return _quotes(cursor, job, items, call, answer)
        case ProviderError() as error:
            call = replace(call, outcome=error.kind, error=str(error))
            return _refused(cursor, job, items, call, error)
        case exists:
            return _looked_up(cursor, job, items[0], call, exists=exists)


# --- bars -------------------------------------------------------------------------------------


def _bars(cursor: Cursor, job: Job, item: Item, call: Call, stretch: Stretch) -> Outcome:
    """Store bars, last price and sync status; the item ends, or goes on from there."""
    span, answer = stretch
    newest, now = store.newest_bar(cursor.connection, item.symbol)
    # The range begins with bars that are stored already: those at least should have come.
    if not answer.bars and (newest is None or span.start <= newest):
        return _no_data(cursor, job, item, call)
    store.save_symbols(cursor, [_symbol(item)])
    written = store.save_bars(cursor, item.symbol, answer.bars)
    prices: tuple[LastPrice, ...] = ()
    close, advanced = None, False
    if answer.bars:
        last = answer.bars[-1]
        as_of = _as_of(job, item, last, now)
        price = store.price_of_last_bar(cursor, item.symbol, last, as_of)
        prices = store.save_prices(cursor, [price])
        close, advanced = last.close, newest is None or last.start_ms > newest.timestamp() * 1000
    done = span.last and (answer.complete or not advanced)
    if done:
        store.save_status(cursor, [item.symbol])
        queue.finish(cursor, [item])
    else:
        queue.go_on(cursor, item, backfilled_to=None if advanced else span.end)
    priced_at = prices[0].timestamp if prices else None
    synced = Synced(item.symbol, item.feed, written, close, priced_at, call.seconds, more=not done)
    return Outcome(replace(call, bars_written=written), (*_left_out(item, answer), synced), prices)


def _as_of(job: Job, item: Item, bar: Bar, now: datetime) -> datetime:
    """Return the moment for which the bar's close is the price: its end, or now.

    Where the asset has quotes, too, its start: a quote of the same minutes knows more.
    """
    start = datetime.fromtimestamp(bar.start_ms / 1000, UTC)
    if job.has_quotes(item.symbol):
        return start
    return min(start + BAR_LENGTH, now)


def _left_out(item: Item, answer: BarsAnswer) -> tuple[Warned, ...]:
    if not answer.dropped:
        return ()
    return (Warned(f"{item.symbol}: {answer.dropped} bars could not be true and were left out."),)


# --- no bars: is it a typo, or just silent? ---------------------------------------------------


def _no_data(cursor: Cursor, job: Job, item: Item, call: Call) -> Outcome:
    """Have the ticker looked up, once."""
    if item.attempts > 1:
        return _silent(cursor, job, item, call)
    queue.look_up(cursor, item)
    return Outcome(replace(call, outcome="empty"))


def _looked_up(cursor: Cursor, job: Job, item: Item, call: Call, *, exists: bool) -> Outcome:
    if not exists:
        error = (
            f"{item.symbol}: the provider knows no ticker {item.ticker}; mend its polygon_ticker "
            "in assets.toml."
        )
        call = replace(call, outcome=TickerUnknown.kind)
        return _fail(cursor, job, item, call, error, verify_ticker=True)
    if item.attempts == 1:
        return _silent(cursor, job, item, call)
    queue.go_on(cursor, item, backfilled_to=None)  # it was unknown, and now it is not
    return Outcome(call)


def _silent(cursor: Cursor, job: Job, item: Item, call: Call) -> Outcome:
    """Do with an item whose ticker exists and is silent: it has failed if it always was."""
    newest, now = store.newest_bar(cursor.connection, item.symbol)
    if newest is None:
        return _fail(cursor, job, item, call, _no_bars(item))
    span = job.reach(item.asset_type, newest, now, item.backfilled_to)
    if span is not None and not span.last:
        queue.go_on(cursor, item, backfilled_to=span.end)
        return Outcome(call)
    store.save_status(cursor, [item.symbol])
    queue.finish(cursor, [item])
    return Outcome(call, [Synced(item.symbol, item.feed, 0, None, None, call.seconds)])


def _no_bars(item: Item) -> str:
    return (
        f"{item.symbol}: the provider has no bars of {item.ticker} within one call's reach; check "
        "that it still trades."
    )


# --- snapshots --------------------------------------------------------------------------------


def _quotes(
    cursor: Cursor, job: Job, items: Sequence[Item], call: Call, answer: SnapshotAnswer
) -> Outcome:
    """Store the quotes of a snapshot; each row is judged by itself."""
    fresh = [(item, answer.quotes[item.ticker]) for item in items if item.ticker in answer.quotes]
    symbols = [item.symbol for item, _ in fresh]
    store.save_symbols(cursor, [_symbol(item) for item, _ in fresh])
    prices = store.save_prices(cursor, [_price(item, quote) for item, quote in fresh])
    store.save_status(cursor, symbols)
    queue.finish(cursor, [item for item, _ in fresh])
    synced = [
        Synced(item.symbol, item.feed, 0, quote.last_price, quote.at, call.seconds)
        for item, quote in fresh
    ]
    refused = [
        _row_refused(cursor, job, item, answer.refused[item.ticker])
        for item in items
        if item.ticker in answer.refused
    ]
    return Outcome(call, (*synced, *refused), prices)


def _row_refused(cursor: Cursor, job: Job, item: Item, error: ProviderError) -> Progress:
    if isinstance(error, FeedDenied):
        runs.deny(cursor, *account(job.settings), "snapshot", [item.symbol])
        queue.retire(cursor, [item], str(error))
        return Warned(f"{item.symbol}: no snapshots for it on this plan; using bars.")
    return _failure(cursor, job, item, str(error))


# --- refusals ---------------------------------------------------------------------------------


def _refused(
    cursor: Cursor, job: Job, items: Sequence[Item], call: Call, error: ProviderError
) -> Outcome:
    """Do with a call that failed as a whole what its kind of error asks for."""
    match error:
        case RateLimited() | Unavailable():
            # After a 429 every call waits, and no item need wait besides.
            wait = queue.TRY_AGAIN_SECONDS if isinstance(error, Unavailable) else 0
            queue.put_back(cursor, items, after_seconds=wait, reason=str(error))
            return Outcome(call, [PutBack(call.symbols, str(error))])
        case TodayDenied() if not job.denials.today:
            return _without_today(cursor, job, items, call)
        case FeedDenied() if items[0].feed is Feed.SNAPSHOT:
            return _without_snapshots(cursor, job, items, call)
        case KeyRefused() | TodayDenied() | FeedDenied():
            queue.put_back(cursor, items, reason=str(error))
            return Outcome(call, hopeless=error)
        case _ if len(items) > 1:  # one of many is at fault, and which is not said
            return _left_to_bars(cursor, job, items, call, error)
        case _:
            verify_ticker = isinstance(error, TickerUnknown)
            return _fail(cursor, job, items[0], call, str(error), verify_ticker=verify_ticker)


def _without_today(cursor: Cursor, job: Job, items: Sequence[Item], call: Call) -> Outcome:
    runs.deny(cursor, *account(job.settings), "today", [])
    queue.put_back(cursor, items)
    why = _not_included(job, "bars of the running day", "bars up to yesterday")
    return Outcome(call, [why], denied=True)


def _without_snapshots(cursor: Cursor, job: Job, items: Sequence[Item], call: Call) -> Outcome:
    runs.deny(cursor, *account(job.settings), "snapshot", [])
    queue.retire(cursor, items, NO_SNAPSHOTS)
    return Outcome(call, [_not_included(job, "snapshots", "bars")], denied=True)


def _not_included(job: Job, what: str, instead: str) -> Warned:
    return Warned(
        f"The key's plan ({job.settings.provider.plan.name}) does not include {what}; using "
        f"{instead}. It is asked again after a day."
    )


def _left_to_bars(
    cursor: Cursor, job: Job, items: Sequence[Item], call: Call, error: ProviderError
) -> Outcome:
    """Have bars serve, for a day, assets of which one spoils the call that serves them all."""
    runs.deny(cursor, *account(job.settings), "snapshot", call.symbols)
    queue.retire(cursor, items, str(error))
    why = Warned(f"{error} Bars serve these {len(items)} assets for a day.")
    return Outcome(call, [why], denied=True)


def _fail(
    cursor: Cursor, job: Job, item: Item, call: Call, error: str, *, verify_ticker: bool = False
) -> Outcome:
    failure = _failure(cursor, job, item, error, verify_ticker=verify_ticker)
    return Outcome(replace(call, error=error), [failure])


def _failure(
    cursor: Cursor, job: Job, item: Item, error: str, *, verify_ticker: bool = False
) -> Failed:
    """Count a failure of the asset's own."""
    queue.fail(cursor, item, error, job.settings.queue, verify_ticker=verify_ticker)
    store.save_status(cursor, [item.symbol], error)
    return Failed(item.symbol, item.feed, error)


# --- an item as the store has it --------------------------------------------------------------


def _symbol(item: Item) -> store.Symbol:
    return store.Symbol(item.symbol, item.name, item.asset_type.value)


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
