"""Two years of each asset, week by week: what is there, what was empty, what was never asked."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum

from asset_sync.database import Connection
from asset_sync.hours import Hours
from asset_sync.model import Asset
from asset_sync.ops.history import KnownPast
from asset_sync.provider.current import hours_of
from asset_sync.spans import Span
from asset_sync.store import ledger
from asset_sync.store.ledger import Week

WEEKS = 105
"""Two years and the running week."""

_WEEK = timedelta(days=7)
# A week counts as whole if at most this share of its bars is missing: a holiday of hours.
_MISSING = 0.05


class WeekState(StrEnum):
    """What there is of one week of an asset."""

    THERE = "there"
    """All that is expected of it, or nearly."""

    PARTLY = "partly"
    """Some of it: where nobody trades, no bar comes."""

    EMPTY = "empty"
    """It was asked, the market was open, and no bar came."""

    UNASKED = "unasked"
    """At least half of it was never asked."""

    NONE = "none"
    """The market was closed, or the week lies before the past that is wanted."""


def first_week(now: datetime) -> date:
    """Return the Monday with which the two years begin."""
    return ledger.monday(now) - (WEEKS - 1) * _WEEK


def weeks_of(
    db: Connection, assets: Sequence[Asset], known: KnownPast
) -> dict[str, tuple[WeekState, ...]]:
    """Return the state of each week of each asset, the oldest first, by symbol."""
    first = first_week(known.now)
    came = ledger.weeks(db, [asset.symbol for asset in assets], first)
    spans = [_span(first + number * _WEEK, known.now) for number in range(WEEKS)]
    expected: dict[Hours, list[int]] = {}
    for asset in assets:
        if hours_of(asset) not in expected:
            expected[hours_of(asset)] = [known.times(asset).bars(span) for span in spans]
    return {
        asset.symbol: _states(
            spans, expected[hours_of(asset)], came.get(asset.symbol, ()), asset, known
        )
        for asset in assets
    }


def _span(monday: date, now: datetime) -> Span:
    start = datetime.combine(monday, time(), tzinfo=UTC)
    return Span(start, min(start + _WEEK, now))


def _states(
    spans: Sequence[Span],
    expected: Sequence[int],
    came: Sequence[Week],
    asset: Asset,
    known: KnownPast,
) -> tuple[WeekState, ...]:
    states = [WeekState.NONE] * len(spans)
    for week in came:
        states[(week.week - spans[0].start.date()) // _WEEK] = _state(week)
    for gap in known.unasked(asset):
        first = max(0, (gap.start - spans[0].start) // _WEEK)
        for number in range(first, len(spans)):
            start, end = spans[number]
            if start >= gap.end:
                break
            whole = gap.start <= start and end <= gap.end
            part = Span(max(start, gap.start), min(end, gap.end))
            unasked = expected[number] if whole else known.times(asset).bars(part)
            if unasked * 2 > expected[number]:
                states[number] = WeekState.UNASKED
    return tuple(states)


def _state(week: Week) -> WeekState:
    if not week.bars:
        return WeekState.EMPTY if week.empty_slots else WeekState.NONE
    if week.empty_slots > _MISSING * (week.bars + week.empty_slots):
        return WeekState.PARTLY
    return WeekState.THERE
