"""What an answer settles, and which ranges of the past are still to be asked.

Everything here is pure. A settled range is asked again only to see late repairs. The rule was
tried on a model of 21 days with dense, thin and late bars, a holiday, an end-of-day key and an
outage: a claim was wrong after the outage only (66 bars), and the daily reread corrected it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from typing import NamedTuple

from asset_sync.hours import BAR_LENGTH, Hours
from asset_sync.provider.answers import Bar
from asset_sync.spans import Span, difference, intersection, union
from asset_sync.store.ledger import Lag, Ledger, Week, monday
from asset_sync.sync.window import OVERLAP, start_of_bar

# How late a bar can be: twice the lag that 99 of 100 bars stay below, within these bounds.
_LEAST_HORIZON = timedelta(hours=1)
_MOST_HORIZON = timedelta(hours=48)

REREAD_EVERY = timedelta(days=1)
# Two calendar days would miss Thursday after a weekend.
_REREAD_OPEN_DAYS = 2

BASE_BARS = 50_000
"""How many minute bars one call covers (API page `aggregates`)."""
# One bar less than the limit: an answer that reaches the limit may be cut off.
_ONE_CALL = timedelta(minutes=BASE_BARS) - BAR_LENGTH


def horizon(lag: Lag) -> timedelta:
    """Return how old a bar must be so that its absence is final."""
    if not lag.is_known or lag.p99 is None:
        return _MOST_HORIZON
    return min(max(2 * timedelta(seconds=lag.p99), _LEAST_HORIZON), _MOST_HORIZON)


def settled(asked: Span, asked_at: datetime, bars: Sequence[Bar], lag: Lag, *, cut: bool) -> Span:
    """Return the part of `asked` that an answer has settled; it may be empty.

    `bars` are those that had ended at `asked_at`. Of an answer that was cut off, or that repeats
    bars (the repetitions count against its limit), only what comes before its last bar is settled.
    """
    newest = bars[-1].start if bars else None
    if cut:
        end = asked.start if newest is None else newest
    else:
        end = start_of_bar(asked_at - horizon(lag))
        if newest is not None:
            end = max(end, newest + BAR_LENGTH - OVERLAP)
    return Span(asked.start, max(asked.start, min(end, asked.end)))


# --- What is still to be asked -------------------------------------------------------------------


def unasked_until(
    hours: Hours, ledger: Ledger, since: datetime, until: datetime | None = None
) -> datetime | None:
    """Return the end of the newest range that was never asked though bars are expected.

    Only ranges from `since` on, and before `until`, count. None if there is none, or if no call has
    settled anything yet.
    """
    for gap in reversed(ledger.gaps(since, until)):
        opened = hours.spans(*gap)
        if opened:
            return opened[-1].end
    return None


def asked_down_to(hours: Hours, ledger: Ledger, since: datetime, now: datetime) -> datetime | None:
    """Return the moment from which on every expected bar was asked for; at the earliest `since`.

    None if no call has settled anything yet.
    """
    return unasked_until(hours, ledger, since, now) or (since if ledger.tail else None)


def next_unasked(
    hours: Hours, ledger: Ledger, since: datetime, until: datetime | None = None
) -> Span | None:
    """Return the newest range that was never asked, at most as long as one call reaches.

    It ends where the newer range begins, also in closed hours: bars in gold's daily break are few,
    but what is stored must not depend on where calls happen to end.
    """
    end = unasked_until(hours, ledger, since, until)
    if end is None:
        return None
    gap = next(gap for gap in ledger.gaps(since, until) if gap.start < end <= gap.end)
    return Span(max(gap.start, reach(hours, end)), gap.end)


def reach(hours: Hours, end: datetime) -> datetime:
    """Return the earliest start of a call that ends then: it reaches so many OPEN minutes.

    It is one bar less than the limit: an answer that reaches the limit may be cut off.
    Counting calendar days instead, two years of forex would take 18 calls and not 15.
    """
    return hours.back(end, _ONE_CALL)


def missing(hours: Hours, ledger: Ledger, since: datetime, until: datetime) -> list[Span]:
    """Return all ranges in which bars are expected that were never asked."""
    return difference(hours.spans(since, until), ledger.settled)


def calls_for(reached_time: Callable[[Span], timedelta], unasked: Iterable[Span]) -> int:
    """Return how many calls it takes to ask for these ranges.

    `reached_time` returns how much of a range counts for the reach of a call.
    """
    return sum(-(-reached_time(span) // _ONE_CALL) for span in unasked)


@lru_cache(maxsize=32)
def reread_from(hours: Hours, now: datetime) -> datetime:
    """Return where a call begins that reads the last days again: two open days before today."""
    days = hours.days(now - timedelta(days=14), now)
    earlier = [spans[0].start for _, spans in days[:-1]][-_REREAD_OPEN_DAYS:]
    return earlier[0] if earlier else now - _REREAD_OPEN_DAYS * timedelta(days=1)


# --- Week by week --------------------------------------------------------------------------------


class AskedDay(NamedTuple):
    """The part of a trading day that is open, within one week, and was asked."""

    week: date
    day: date
    asked: Sequence[Span]
    whole: bool
    """Whether all of the day's open time in its own week was asked.

    A Monday of forex begins with two hours of Sunday, which say little about it.
    """


def asked_days(hours: Hours, ledger: Ledger, around: Span) -> list[AskedDay]:
    """Return the asked days of every week that a range touches."""
    first, last = monday(around.start), monday(around.end)
    start = datetime.combine(first, time(), UTC)
    end = datetime.combine(last + timedelta(days=7), time(), UTC)
    answered = intersection([Span(start, end)], ledger.settled)
    found = []
    for day, opened in hours.days(start - timedelta(days=1), end + timedelta(days=1)):
        asked = intersection(opened, answered)
        edges = [edge for span in asked for edge in (span.start, span.end - datetime.resolution)]
        for week in sorted({monday(edge) for edge in edges}):
            begin = datetime.combine(week, time(), UTC)
            own = [Span(begin, begin + timedelta(days=7))]
            within = intersection(asked, own)
            if within:
                whole = week == day - timedelta(days=day.weekday())
                whole = whole and within == intersection(opened, own)
                found.append(AskedDay(week, day, within, whole))
    return found


def weeks(days: Sequence[AskedDay], came: Mapping[Span, int]) -> list[Week]:
    """Return what came in each week; `came` holds the number of bars of each span."""
    found: dict[date, Week] = {}
    for day in days:
        bars = sum(came.get(span, 0) for span in day.asked)
        before = found.get(day.week, Week(day.week, 0, 0))
        silent = (day.day,) if day.whole and not bars else ()
        found[day.week] = Week(
            day.week,
            before.bars + bars,
            before.empty_slots + max(0, expected_bars(day.asked) - bars),
            (*before.silent_days, *silent),
        )
    return list(found.values())


def expected_bars(spans: Sequence[Span]) -> int:
    """Return how many bars start in open spans."""
    return sum(-(-span.length // BAR_LENGTH) for span in union(spans))
