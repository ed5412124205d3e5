"""How complete the history is: what was asked of each asset, what is there, and which holes remain.

A hole is a range that was never asked, or one that was asked and is empty although the market was
open. A day of which no asset with the same hours has a bar is none: the market was closed.
"""

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from itertools import accumulate
from typing import NamedTuple

from asset_sync.database import Connection
from asset_sync.hours import BAR_LENGTH, Hours, without_breaks
from asset_sync.model import Asset, AssetType, Feed, Lane
from asset_sync.ops import forecast
from asset_sync.provider.current import hours_of
from asset_sync.settings import Settings
from asset_sync.spans import Span, difference, intersection
from asset_sync.store import ledger, market
from asset_sync.store.entitlements import NOTHING_MISSING
from asset_sync.store.ledger import Came, Lag, Ledger
from asset_sync.sync import coverage
from asset_sync.sync.scope import Scope, scope_of
from asset_sync.sync.window import start_of_bar

NEVER_ASKED = "never_asked"
ASKED_EMPTY = "asked_empty"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# Fewer assets without a bar do not show that their market was closed.
_LEAST_SILENT = 3


class AssetHistory(NamedTuple):
    """How complete the history of one asset is."""

    symbol: str
    oldest_bar: datetime | None
    newest_bar: datetime | None
    expected_bars: int
    """Bars expected in the range that is wanted, without days on which the market was closed."""
    asked_bars: int
    """Those of them whose range was asked."""
    bars: int
    """Bars that are there in the weeks that were asked."""
    unasked_ranges: int
    asked_empty: int
    """Bars that were asked and are not there, without the days on which the market was closed."""
    calls_left: int

    @property
    def never_asked(self) -> int:
        """Bars expected in the ranges that were never asked."""
        return self.expected_bars - self.asked_bars

    @property
    def there(self) -> int:
        """Bars expected that are there."""
        return self.asked_bars - self.asked_empty

    @property
    def asked_percent(self) -> float:
        """How much of what is expected was asked."""
        return _percent(self.asked_bars, self.expected_bars)

    @property
    def there_percent(self) -> float:
        """How much of what is expected is there."""
        return _percent(self.there, self.expected_bars)


class History(NamedTuple):
    """How complete the history is, and when it will be."""

    now: datetime
    """The database's time for which all of this holds."""
    assets: tuple[AssetHistory, ...]
    spare_calls_per_day: int
    """Calls of a day that fresh data leaves over."""
    done_at: datetime | None
    """When all was asked; None if nothing is left, or if there are no spare calls."""
    revisions: int
    """Values kept that the provider has changed."""
    refused_until: Mapping[str, datetime]
    """By symbol, before when the API refuses a past that is wanted."""

    @property
    def asked_percent(self) -> float:
        """How much of what is expected of all assets was asked."""
        return _percent(
            sum(one.asked_bars for one in self.assets),
            sum(one.expected_bars for one in self.assets),
        )

    @property
    def there_percent(self) -> float:
        """How much of what is expected of all assets is there."""
        return _percent(
            sum(one.there for one in self.assets), sum(one.expected_bars for one in self.assets)
        )

    @property
    def calls_left(self) -> int:
        """How many calls it takes to ask for all that was never asked."""
        return sum(one.calls_left for one in self.assets)


class Hole(NamedTuple):
    """A range that is missing."""

    symbol: str
    start: datetime
    end: datetime
    kind: str
    """NEVER_ASKED or ASKED_EMPTY."""
    next_try_at: datetime | None
    """None for one that was never asked (it is with the next spare call), or never again.

    Of one that is overdue it is now.
    """


def history_of(db: Connection, settings: Settings, known: "KnownPast | None" = None) -> History:
    """Return how complete the history of every asset is; `known` is read if it is not given."""
    known = known or KnownPast.read(db, settings)
    assets = _assets(db, settings, known)
    now_settings, call_seconds = forecast.as_known(db, settings)
    spare = forecast.forecast(now_settings, call_seconds or forecast.CALL_SECONDS).left_a_day
    days = forecast.days_for(sum(one.calls_left for one in assets), spare)
    done_at = known.now + timedelta(days=days) if 0 < days < math.inf else None
    revisions = ledger.count_revisions(db)
    return History(known.now, assets, int(spare), done_at, revisions, known.refused_until())


def history_of_asset(db: Connection, settings: Settings, symbol: str) -> AssetHistory:
    """Return how complete the history of one asset is."""
    alike = _alike(settings, symbol)
    found = _assets(db, alike, KnownPast.read(db, alike))
    return next(one for one in found if one.symbol == symbol)


def _alike(settings: Settings, symbol: str) -> Settings:
    """Return the settings with only the assets that trade when this one does.

    A day on which all of them are silent was a holiday.
    """
    [hours] = [hours_of(one) for one in settings.assets if one.symbol == symbol]
    assets = tuple(one for one in settings.assets if hours_of(one) is hours)
    return replace(settings, assets=assets)


def _assets(db: Connection, settings: Settings, known: "KnownPast") -> tuple[AssetHistory, ...]:
    came = ledger.came(db, {asset.symbol: known.past(asset).start for asset in settings.assets})
    closed = known.closed_days({symbol: one.silent_days for symbol, one in came.items()})
    return tuple(
        _asset(
            asset, known, _from_start(db, asset, known, came[asset.symbol]), closed[asset.symbol]
        )
        for asset in settings.assets
    )


def _from_start(db: Connection, asset: Asset, known: "KnownPast", came: Came) -> Came:
    """Return what came, of the first week only from where the wanted past begins."""
    past = known.past(asset)
    week_ends = datetime.combine(ledger.monday(past.start), time(), UTC) + timedelta(days=7)
    if not came.empty_in_first_week:
        return came
    opened = hours_of(asset).spans(past.start, min(past.end, week_ends))
    asked = intersection(opened, known.ledger(asset).settled)
    with db.cursor() as cursor:
        stored = sum(ledger.count_bars(cursor, asset.symbol, asked).values())
    empty = came.empty_slots - came.empty_in_first_week + coverage.expected_bars(asked) - stored
    return came._replace(empty_slots=empty)


class Outlook(NamedTuple):
    """What is still to be asked of the past, and how late bars are."""

    now: datetime
    calls_left: int
    """Calls for all that was never asked."""
    lags: Mapping[AssetType, Lag]
    """How late bars are, by market."""
    bars_end_yesterday: str | None
    """What to say of a key that shows nothing of the running day."""


def outlook(settings: Settings, db: Connection | None) -> Outlook:
    """Return what is to come with the settings' plan.

    Without a database nothing was asked: that is all of the past which is wanted and in the plan.
    """
    known = KnownPast.nothing(settings) if db is None else KnownPast.read(db, settings)
    calls = sum(known.calls(asset) for asset in settings.assets)
    said = None if db is None else known.scope.bars_end_yesterday(db)
    return Outlook(known.now, calls, known.scope.market_lags, said)


def calls_left(
    db: Connection, settings: Settings, symbols: Sequence[str], only: Span | None = None
) -> int:
    """Return how many calls it takes to ask for what was never asked of these assets.

    `only` bounds the past that counts. An asset that was never refreshed counts as 0.
    """
    known = KnownPast.read(db, settings, only)
    return sum(
        known.calls(asset)
        for asset in settings.assets
        if asset.symbol in symbols and known.ledger(asset).tail is not None
    )


def with_unasked_past(db: Connection, settings: Settings) -> list[str]:
    """Return the assets that were refreshed and whose past was not asked for as a whole."""
    known = KnownPast.read(db, settings)
    return [
        asset.symbol
        for asset in settings.assets
        if known.ledger(asset).tail is not None and known.calls(asset)
    ]


def never_refreshed(db: Connection, settings: Settings, symbols: Sequence[str]) -> list[str]:
    """Return those of the assets of which nothing was asked: fresh bars come before history."""
    known = KnownPast.read(db, settings)
    return [
        asset.symbol
        for asset in settings.assets
        if asset.symbol in symbols and known.ledger(asset).tail is None
    ]


def holes_of(db: Connection, settings: Settings, symbol: str, known: "KnownPast") -> list[Hole]:
    """Return the holes of one asset, the newest first."""
    [asset] = [one for one in settings.assets if one.symbol == symbol]
    hours, past, asked = hours_of(asset), known.past(asset), known.ledger(asset)
    never = [
        Hole(symbol, opened[0].start, opened[-1].end, NEVER_ASKED, None)
        for gap in known.unasked(asset)
        if (opened := hours.spans(*gap))
    ]
    fellows = _alike(settings, symbol).assets
    came = ledger.came(db, {one.symbol: past.start for one in fellows})
    silent = known.closed_days({one: came[one].silent_days for one in came}).get(symbol, {})
    closed = sorted(span for spans in silent.values() for span in spans)
    tries = ledger.next_tries(db, symbol)
    empty = []
    for stretch in intersection(ledger.without_bars(db, symbol, past), asked.settled):
        missing = difference(hours.spans(*stretch), closed)
        if coverage.expected_bars(missing):
            hole = Span(missing[0].start, missing[-1].end)
            again_at = _next_try(hole, tries)
            empty.append(Hole(symbol, *hole, ASKED_EMPTY, again_at and max(again_at, known.now)))
    return sorted([*never, *empty], key=lambda hole: hole.start, reverse=True)


def _next_try(hole: Span, tries: Mapping[date, datetime]) -> datetime | None:
    weeks = []
    week = ledger.monday(hole.start)
    while week <= ledger.monday(hole.end):
        weeks.append(week)
        week += timedelta(days=7)
    return min((tries[week] for week in weeks if week in tries), default=None)


def _asset(
    asset: Asset, known: "KnownPast", came: Came, closed: Mapping[date, Sequence[Span]]
) -> AssetHistory:
    times, past = known.times(asset), known.past(asset)
    unasked = [bars for gap in known.unasked(asset) if (bars := times.bars(gap))]
    not_traded = sum(
        coverage.expected_bars(intersection(sorted(spans), [past])) for spans in closed.values()
    )
    expected = times.bars(past) - not_traded
    return AssetHistory(
        asset.symbol,
        came.oldest,
        came.newest,
        expected,
        expected - sum(unasked),
        came.bars,
        len(unasked),
        max(0, came.empty_slots - not_traded),
        known.calls(asset),
    )


class KnownPast:
    """What is known of the history of all assets."""

    def __init__(self, scope: Scope, now: datetime, ledgers: Mapping[str, Ledger]) -> None:
        self.scope = scope
        self._assets = scope.settings.assets
        self.now = now
        self._ledgers = ledgers
        self._pasts = {asset.symbol: self._past(asset) for asset in self._assets}
        since = min((past.start for past in self._pasts.values()), default=self.now)
        self._whole = Span(since - (since - _EPOCH) % BAR_LENGTH, self.now)
        self._times: dict[Hours, _OpenTimes] = {}

    @classmethod
    def read(cls, db: Connection, settings: Settings, only: Span | None = None) -> "KnownPast":
        """Return what the database knows."""
        _, now = market.newest_bars(db, ())
        tickers = {asset.symbol: asset.ticker for asset in settings.assets}
        ledgers = ledger.read(db, Feed.BARS, tickers)
        return cls(scope_of(db, settings, Lane.QUEUE, only), now, ledgers)

    @classmethod
    def nothing(cls, settings: Settings) -> "KnownPast":
        """Return what is known without a database: nothing was asked."""
        return cls(Scope(settings, Lane.QUEUE, NOTHING_MISSING), datetime.now(UTC), {})

    def ledger(self, asset: Asset) -> Ledger:
        """Return what was asked of an asset."""
        return self._ledgers.get(asset.symbol, Ledger())

    def refused_until(self) -> dict[str, datetime]:
        """Return by symbol before when the API refuses a past that is wanted."""
        found = {}
        for asset in self._assets:
            until = self.scope.refused_until(asset.symbol, self.now, self.ledger(asset))
            if until is not None and until > self.scope.wanted_since(asset.symbol, self.now):
                found[asset.symbol] = until
        return found

    def past(self, asset: Asset) -> Span:
        """Return the range that is wanted, up to where the ordinary calls continue."""
        return self._pasts[asset.symbol]

    def _past(self, asset: Asset) -> Span:
        known = self.ledger(asset)
        start, end = self.scope.past(asset.symbol, self.now, known)
        newest = known.tail.end if known.tail else start_of_bar(self.now)
        return Span(start, max(start, min(end, newest)))

    def unasked(self, asset: Asset) -> list[Span]:
        """Return the ranges of the past that were never asked, closed times included."""
        return difference([self.past(asset)], self.ledger(asset).settled)

    def calls(self, asset: Asset) -> int:
        """Return how many calls these ranges take, as far as bars are expected in them."""
        times = self.times(asset)
        unasked = (gap for gap in self.unasked(asset) if times.bars(gap))
        return coverage.calls_for(times.reached_time, unasked)

    def times(self, asset: Asset) -> "_OpenTimes":
        """Return when the asset trades, computed once for all with the same hours."""
        hours = hours_of(asset)
        if hours not in self._times:
            self._times[hours] = _OpenTimes(hours.spans(*self._whole))
        return self._times[hours]

    def closed_days(
        self, silent: Mapping[str, Sequence[date]]
    ) -> dict[str, dict[date, list[Span]]]:
        """Return on which of their silent days the markets were closed, with their open spans.

        A market was closed on a day of which no asset with its hours has a bar, if that day was
        asked of at least three of them. `silent` has the silent days of each asset.
        """
        found: dict[str, dict[date, list[Span]]] = defaultdict(dict)
        groups: dict[Hours, list[Asset]] = defaultdict(list)
        for asset in self._assets:
            groups[hours_of(asset)].append(asset)
        for hours, assets in groups.items():
            symbols_of: dict[date, set[str]] = defaultdict(set)
            for asset in assets:
                for day in silent.get(asset.symbol, ()):
                    symbols_of[day].add(asset.symbol)
            for day, symbols in symbols_of.items():
                if len(symbols) < _LEAST_SILENT:
                    continue
                spans = _open_on(hours, day)
                asked = {one.symbol for one in assets if self._has_asked(one, spans)}
                if asked <= symbols:
                    for symbol in symbols:
                        found[symbol][day] = spans
        return found

    def _has_asked(self, asset: Asset, spans: Iterable[Span]) -> bool:
        settled = self.ledger(asset).settled
        return all(
            any(one.start <= span.start and span.end <= one.end for one in settled)
            for span in spans
        )


def _open_on(hours: Hours, day: date) -> list[Span]:
    """Return the open spans of a trading day."""
    noon = datetime.combine(day, time(12), tzinfo=UTC)
    around = hours.days(noon - timedelta(days=3), noon + timedelta(days=3))
    return next((spans for found, spans in around if found == day), [])


_SECOND = timedelta(seconds=1)


class _OpenTimes:
    """Open spans, with sums that make each question cheap: 1,000 assets ask about the same ones."""

    def __init__(self, spans: Sequence[Span]) -> None:
        self._bars = _Sums(spans, lambda span: coverage.expected_bars([span]))
        self._seconds = _Sums(without_breaks(spans), lambda span: span.length // _SECOND)

    def bars(self, span: Span) -> int:
        """Return how many bars are expected to start within a span."""
        return self._bars.before(span.end) - self._bars.before(span.start)

    def reached_time(self, span: Span) -> timedelta:
        """Return how much of a span counts for the reach of a call: all but long closures."""
        return (self._seconds.before(span.end) - self._seconds.before(span.start)) * _SECOND


class _Sums:
    """What ascending spans hold of something, summed up to each of them."""

    def __init__(self, spans: Sequence[Span], amount: Callable[[Span], int]) -> None:
        self._spans, self._amount = spans, amount
        self._starts = [span.start for span in spans]
        self._sums = [0, *accumulate(map(amount, spans))]

    def before(self, moment: datetime) -> int:
        """Return what the spans hold before a moment."""
        place = bisect_right(self._starts, moment) - 1
        if place < 0:
            return 0
        start, end = self._spans[place]
        return self._sums[place] + self._amount(Span(start, min(end, moment)))


def _percent(part: int, whole: int) -> float:
    """Return a share, rounded down to a tenth: 100 % only if nothing is missing."""
    return min(1000 * part // whole, 1000) / 10 if whole else 100.0
