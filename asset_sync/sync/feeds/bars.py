"""Five-minute bars, one asset a call."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from asset_sync.hours import BAR_LENGTH, Hours
from asset_sync.provider.answers import Bar, BarsAnswer
from asset_sync.provider.current import endpoints
from asset_sync.provider.errors import FeedDenied, ProviderError, TimeRangeDenied
from asset_sync.provider.protocol import Provider
from asset_sync.queue import Item
from asset_sync.spans import Span
from asset_sync.store.entitlements import RUNNING_DAY
from asset_sync.sync import coverage, judge
from asset_sync.sync.judge import (
    Entry,
    Fail,
    Fetch,
    Finish,
    Judgement,
    Known,
    NotIncluded,
    Price,
    Release,
    Resume,
    Verify,
)
from asset_sync.sync.news import Chance, next_chance
from asset_sync.sync.progress import Synced
from asset_sync.sync.scope import Scope, Target
from asset_sync.sync.window import SAFE_HISTORY, Window

# A key that sees the running day has shown some of it after so much open time.
_SURE_AFTER = timedelta(hours=3)

# How far apart two calls may be to show how late a bar came, unless it came far later than that.
_CLOSE_CALLS = 2 * BAR_LENGTH

BAR_MS = BAR_LENGTH // timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True)
class BarsRequest:
    """The bars of a window."""

    ticker: str
    window: Window

    @property
    def endpoint(self) -> str:
        """Path and query."""
        return endpoints.bars(self.ticker, self.window.start, self.window.end)

    def call(self, provider: Provider) -> BarsAnswer:
        """Return the bars. Raises any `ProviderError`."""
        return provider.bars(self.ticker, self.window.start, self.window.end)


def request(scope: Scope, targets: Sequence[Target], known: Known) -> BarsRequest | None:
    """Return the next call; None if it could bring this key nothing new."""
    [item] = targets
    window = scope.window(item, known.newest, known.now, known.ledger)
    return None if window is None else BarsRequest(item.ticker, window)


def judge_answer(scope: Scope, fetch: Fetch, known: Known) -> Judgement:
    """Judge bars, or why there are none."""
    match fetch.answer:
        case BarsAnswer() as answer:
            return _bars(scope, fetch, answer, known)
        case TimeRangeDenied() as error:
            return _time_denied(scope, fetch, error, known)
        case FeedDenied() as error:
            return _not_in_plan(fetch, error)
        case ProviderError() as error:
            return judge.failed(fetch, error)
        case exists:
            without_data = _without_data(scope, fetch, known)
            return judge.verified(fetch, exists=exists is True, without_data=without_data)


def _bars(scope: Scope, fetch: Fetch, answer: BarsAnswer, known: Known) -> Judgement:
    """Store bars and last price; finish the item, or let another call continue."""
    [item], newest = fetch.items, known.newest
    window = _window(fetch)
    # A window that begins with stored bars should bring at least these again.
    if not answer.bars and (newest is None or window.start <= newest):
        return _empty(scope, fetch, known)
    closed, running = _parted(answer.bars, fetch.asked_at)
    last = max(filter(None, (closed[-1].start if closed else None, newest)), default=None)
    advanced = last is not None and (newest is None or last > newest)
    done = window.last and (answer.complete or not advanced)
    today = known.now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    shows_today = running is not None or (last is not None and last >= today)
    opened = scope.hours(item.symbol).open_time(today, known.now)
    late = done and last is not None and not shows_today and opened >= _SURE_AFTER
    chance = _chance(scope, item, known, last, news=advanced or running is not None)
    end = Finish(chance) if done else Resume(backfilled_to=None if advanced else window.end)
    synced = Synced(
        item.symbol,
        item.feed,
        0,
        None,
        None,
        fetch.seconds,
        more=not done,
        recovered=done and judge.had_failed(item),
    )
    return Judgement(
        [(fetch.items, end)],
        missing=[NotIncluded(RUNNING_DAY, [item.symbol])] if late else (),
        shows_running_day=shows_today and not scope.missing.shows_running_day,
        bars=closed,
        entry=_entry(scope, fetch, known, closed, cut=not answer.complete or answer.repeats),
        price=_priced(scope, item, running, last, known.now),
        progress=[*judge.left_out(item, answer), synced],
    )


def _window(fetch: Fetch) -> Window:
    if not isinstance(fetch.request, BarsRequest):
        raise TypeError(f"bars came for {fetch.request.endpoint}")
    return fetch.request.window


def _parted(bars: Sequence[Bar], asked_at: datetime) -> tuple[Sequence[Bar], Bar | None]:
    """Return the bars that were over when they were asked for, and the one that still ran.

    Bars that begin later are dropped. Only bars that are over are stored: the figures of the others
    change until they are, and nobody who reads them could tell.
    """
    asked_ms = asked_at.timestamp() * 1000
    over = bisect_right(bars, asked_ms - BAR_MS, key=_start_ms)
    running = next((bar for bar in bars[over:] if bar.start_ms <= asked_ms), None)
    return bars[:over], running


def _start_ms(bar: Bar) -> int:
    return bar.start_ms


def _chance(
    scope: Scope, item: Item, known: Known, newest: datetime | None, *, news: bool
) -> Chance:
    return next_chance(
        scope.hours(item.symbol),
        known.now,
        scope.frequency(item.symbol),
        news=news,
        newest=newest,
        silent=item.silent,
        lag=scope.lag(item.asset_type),
        end_of_day=scope.is_end_of_day,
    )


def _entry(
    scope: Scope, fetch: Fetch, known: Known, closed: Sequence[Bar], *, cut: bool = False
) -> Entry:
    """Return what the ledger notes: the settled range, and how late a bar came."""
    [item], window = fetch.items, _window(fetch)
    hours, before = scope.hours(item.symbol), known.ledger
    asked = Span(window.start, window.end)
    settled = coverage.settled(asked, fetch.asked_at, closed, scope.lag(item.asset_type), cut=cut)
    after = before.with_settled(settled)._replace(asked_at=fetch.asked_at)
    if known.newest is None or window.start <= coverage.reread_from(hours, fetch.asked_at):
        after = after._replace(reread_at=fetch.asked_at)
    # An earlier call after the bar's end lacked it: otherwise this would be our own frequency.
    late = next(
        (
            bar
            for bar in closed
            if known.newest is not None
            and before.asked_at is not None
            and known.newest < bar.start <= before.asked_at - BAR_LENGTH
        ),
        None,
    )
    since = scope.past_begins(item.symbol, fetch.asked_at, after)
    return Entry(
        after,
        settled,
        hours,
        coverage.asked_down_to(hours, after, since, fetch.asked_at),
        lag_seconds=None
        if late is None or before.asked_at is None
        else _lag_seconds(hours, late, before.asked_at, fetch.asked_at),
    )


def _lag_seconds(
    hours: Hours, bar: Bar, lacked_at: datetime, seen_at: datetime
) -> tuple[float, float] | None:
    """Return how late a bar was at least and at most, None if that shows no lag.

    An earlier call lacked it, and this one has it.

    It shows none if the two calls are far apart: that would be the asset's frequency. And none if
    the market was closed meanwhile: nobody asks then, so Friday's last bar may be seen on Sunday.
    """
    ended_at = bar.start + BAR_LENGTH
    lag = seen_at - ended_at
    if seen_at - lacked_at > max(_CLOSE_CALLS, lacked_at - ended_at):
        return None
    if hours.open_time(ended_at, seen_at) != lag:
        return None
    return (lacked_at - ended_at).total_seconds(), lag.total_seconds()


def _priced(
    scope: Scope, item: Item, running: Bar | None, last: datetime | None, now: datetime
) -> Price | None:
    """Return the price: the close of the bar that runs, else of the newest that is over."""
    start = last if running is None else running.start
    return None if start is None else Price(start, _as_of(scope, item, start, now), running)


def _as_of(scope: Scope, item: Item, start: datetime, now: datetime) -> datetime:
    """Return the time of the price that is a bar's close: the end of the bar, but not after now.

    If the asset also has quotes, it is the start of the bar: a quote of the same five minutes is
    then newer, and is kept.
    """
    if scope.has_quotes(item.symbol):
        return start
    return min(start + BAR_LENGTH, now)


# --- no bars: the ticker is wrong, or the market is closed ------------------------------------


def _empty(scope: Scope, fetch: Fetch, known: Known) -> Judgement:
    """Judge an answer without bars: verify the ticker, unless an earlier attempt has counted."""
    if judge.tried_before(fetch.items[0]):
        return _without_data(scope, fetch, known)
    return Judgement([(fetch.items, Verify())], "empty")


def _without_data(scope: Scope, fetch: Fetch, known: Known) -> Judgement:
    """Judge an item whose ticker exists but has no new bars; it fails if no bars are stored."""
    [item] = fetch.items
    if known.newest is None:
        error = (
            f"The provider has no bars of {item.ticker} within one call's reach; check that it"
            " still trades."
        )
        return Judgement([(fetch.items, Fail(error))], error=error)
    window = scope.window(item, known.newest, known.now, known.ledger)
    if window is not None and not window.last:
        return Judgement([(fetch.items, Resume(backfilled_to=window.end))])
    return judge.nothing_new(fetch, _chance(scope, item, known, known.newest, news=False))


# --- what the plan does not include -----------------------------------------------------------


def _time_denied(scope: Scope, fetch: Fetch, error: TimeRangeDenied, known: Known) -> Judgement:
    """Ask for a shorter range if the plan may allow it; otherwise the plan lacks this asset."""
    if isinstance(fetch.request, BarsRequest):
        window = fetch.request.window
        if not scope.missing.past and window.start < known.now - SAFE_HISTORY - BAR_LENGTH:
            instead = f"those of the last {SAFE_HISTORY.days} days"
            return _without(scope, fetch, error, "past", "bars of so long ago", instead)
        if not scope.missing.today and window.last:
            return _without(
                scope, fetch, error, "today", "bars of the running day", "bars up to yesterday"
            )
    return _not_in_plan(fetch, error)


def _without(
    scope: Scope, fetch: Fetch, error: ProviderError, capability: str, what: str, instead: str
) -> Judgement:
    return Judgement(
        [(fetch.items, Release())],
        error.kind,
        str(error),
        missing=[NotIncluded(capability)],
        scope_changed=True,
        progress=[scope.not_included(what, instead)],
    )


def _not_in_plan(fetch: Fetch, error: ProviderError) -> Judgement:
    return judge.failed(fetch, error)._replace(not_in_plan=error)
