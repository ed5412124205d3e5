"""When the next call for an asset's newest bars has the chance of news.

A closed market costs one call after its closing, and none until a bar can be there again. An open
but silent one is asked less and less often, at least once an hour, and as often as its frequency
says with the first new bar.
"""

from datetime import datetime, timedelta
from typing import NamedTuple

from asset_sync.hours import BAR_LENGTH, Hours
from asset_sync.store.ledger import Lag

LONGEST_SILENCE = timedelta(hours=1)
# A key that shows nothing of the running day gets new bars once a day, nobody knows when.
END_OF_DAY_EVERY = timedelta(hours=6)
# Until enough lags are measured: how long after the closing the last bar is final.
_UNKNOWN_LAG = timedelta(minutes=1)


class Chance(NamedTuple):
    """When the next call can bring news."""

    not_before: datetime | None = None
    """None if it can at any time, so that the asset's frequency decides."""
    silent: int = 0
    """How many answers in a row brought nothing new although the market was open."""


def next_chance(
    hours: Hours,
    now: datetime,
    frequency: timedelta,
    *,
    news: bool,
    newest: datetime | None,
    silent: int,
    lag: Lag,
    end_of_day: bool = False,
) -> Chance:
    """Return when to ask again, after an answer that did or did not bring a newer bar.

    `newest` is the start of the newest bar that is stored after the answer.
    """
    if end_of_day:
        return Chance(now + max(END_OF_DAY_EVERY, frequency))
    closed_at = hours.last_close(now)
    if not hours.is_open(now):
        last_bar_at = now if closed_at is None else closed_at + _last_bar_lag(lag)
        if now < last_bar_at and not _is_final(closed_at, newest, now, lag):
            return Chance(last_bar_at)
        return Chance(hours.next_open(now) + _first_bar_after(lag))
    if not news and closed_at is not None:
        first_bar_at = hours.next_open(closed_at) + _first_bar_after(lag)
        if now < first_bar_at:
            return Chance(first_bar_at)
    # One silent answer proves nothing; from the second on the time between two calls doubles.
    doubled = not news and silent > 0
    pause = min(frequency * 2 ** min(silent, 20), max(LONGEST_SILENCE, frequency))
    not_before = _unless_bar_is_open(hours, now + (pause if doubled else frequency), lag)
    if not_before is None and doubled:
        not_before = now + pause
    return Chance(not_before, 0 if news else silent + 1)


def _unless_bar_is_open(hours: Hours, at: datetime, lag: Lag) -> datetime | None:
    """Return when the last bar is final, if it is not yet at this time after the closing."""
    closed_at = None if hours.is_open(at) else hours.last_close(at)
    if closed_at is None or closed_at + _last_bar_lag(lag) <= at:
        return None
    return closed_at + _last_bar_lag(lag)


def _is_final(closed_at: datetime | None, newest: datetime | None, now: datetime, lag: Lag) -> bool:
    """Return whether the last bar before the closing is there, and was not seen too early.

    Then nobody needs to wait until nearly every last bar is there: the measured lag of those is
    mostly the time between two calls, and moves a little with each measurement.
    """
    return (
        closed_at is not None
        and newest is not None
        and newest + BAR_LENGTH >= closed_at
        and now >= closed_at + max(_UNKNOWN_LAG, timedelta(seconds=lag.at_least))
    )


def _last_bar_lag(lag: Lag) -> timedelta:
    return _UNKNOWN_LAG if lag.p95 is None else max(_UNKNOWN_LAG, timedelta(seconds=lag.p95))


def _first_bar_after(lag: Lag) -> timedelta:
    """Return how long after the opening the first bar can be there."""
    return BAR_LENGTH + timedelta(seconds=lag.at_least)
