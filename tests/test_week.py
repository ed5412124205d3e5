"""A week of all markets: history delays nobody, and a closed market is not asked."""

import os
import statistics
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from enum import Enum, auto

import pytest
from conftest import Pool, asset
from simulation import Api, Bars, Day, live_through
from test_forecast import settings_for

from asset_sync.budget import slots
from asset_sync.hours import BAR_LENGTH
from asset_sync.model import Asset, AssetType, Level
from asset_sync.provider.current import hours_of
from asset_sync.spans import Span, difference

HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
# The whole week takes long, so it is simulated on demand; else it is the weekend with few assets.
WHOLE_WEEK = float(os.environ.get("SIMULATED_HOURS", "0")) >= 168
WEDNESDAY = datetime(2026, 11, 18, 12, tzinfo=UTC)
FRIDAY = datetime(2026, 11, 20, 16, tzinfo=UTC)
"""All markets are open; Thanksgiving is in the week that follows."""
CALL_SECONDS = 0.3
LAG_SECONDS = 20.0


class History(Enum):
    """Which slots go to history."""

    NONE = auto()
    SPARE = auto()
    """Those that nobody needs: the rule of `slots.take`."""
    GREEDY = auto()
    """Any, whenever nothing is due."""


# Then nothing falls due before the slot is free again.
_NOBODY = """,
  dues as materialized (select null::timestamptz as at),
  spare as materialized (select true as found)
"""


def of_all_markets(count: int, every: timedelta) -> list[Asset]:
    """Return three priority assets, and others of all markets."""
    critical = [
        _asset(hours, 0, Level.CRITICAL, 5 * MINUTE) for hours in ("metals", "fx", "crypto")
    ]
    hours = ("fx", "crypto", "fx", "metals", "fx", "us", "fx", "crypto")
    others = [
        _asset(hours[number % len(hours)], number, Level.MEDIUM, every) for number in range(count)
    ]
    return [*critical, *others]


def _asset(hours: str, number: int, level: Level, every: timedelta) -> Asset:
    kind = AssetType.CRYPTO if hours == "crypto" else AssetType.FOREX
    name = f"{hours}{level}{number}".upper()
    seconds = int(every.total_seconds())
    made = asset(name, level, position=number, every=seconds, asset_type=kind)
    return replace(made, hours=hours)


def live(
    pool: Pool,
    assets: Sequence[Asset],
    lasting: Span,
    history: History,
    *,
    history_days: int | None = None,
) -> Day:
    """Return what happened."""
    with pool.database() as url, pytest.MonkeyPatch.context() as patch:
        if history is History.GREEDY:
            patch.setattr(slots, "_SPARE", _NOBODY)
        settings = settings_for(*assets, url=url)
        wanted = replace(settings.history, enabled=history is not History.NONE, days=history_days)
        settings = replace(settings, history=wanted)
        hours = {one.ticker: hours_of(one) for one in assets}
        api = Api(CALL_SECONDS, Bars(hours, lasting.start - 2 * HOUR, LAG_SECONDS))
        seconds = lasting.length.total_seconds()
        return live_through(url, settings, api, seconds=seconds, start=lasting.start)


def p95(seconds: Sequence[float]) -> float:
    return statistics.quantiles(seconds, n=100, method="inclusive")[94]


# --- closed hours -------------------------------------------------------------------------------


def test_a_closed_market_costs_one_call_after_its_closing_and_one_at_its_opening(
    pool: Pool,
) -> None:
    if WHOLE_WEEK:
        assets, lasting, days = of_all_markets(47, HOUR), Span(FRIDAY, FRIDAY + 168 * HOUR), None
    else:
        assets, lasting, days = of_all_markets(8, HOUR), Span(FRIDAY, FRIDAY + 56 * HOUR), 60
        assets.remove(_asset("crypto", 0, Level.CRITICAL, 5 * MINUTE))

    day = live(pool, assets, lasting, History.SPARE, history_days=days)

    for one in assets:
        asked = [lasting.start + timedelta(seconds=at) for at in day.asked_at[one.symbol]]
        for closed in difference([lasting], hours_of(one).spans(*lasting)):
            within = [at for at in asked if closed.start <= at < closed.end]
            # an asset that is asked once in an hour can miss a break of an hour
            assert len(within) == 1 or (not within and closed.length <= HOUR), (one, closed, within)
            assert all(at >= closed.start + MINUTE for at in within), "the last bar is final"
            if closed.end + HOUR / 2 < lasting.end:
                first = next(at for at in asked if at >= closed.end)
                assert BAR_LENGTH <= first - closed.end <= BAR_LENGTH + LONGEST_OPENING, one
    assert max(day.waits) == 0, "no priority run ever waited"
    assert not day.failures


# Until the last of those that open at the same time, after the lag that was learned.
LONGEST_OPENING = (20 if WHOLE_WEEK else 10) * MINUTE


# --- fresh data and history ---------------------------------------------------------------------


def test_history_makes_nothing_late_and_gets_most_calls_of_a_greedy_rule(pool: Pool) -> None:
    assets = of_all_markets(47, HOUR / 2)
    lasting = Span(WEDNESDAY, WEDNESDAY + (6 if WHOLE_WEEK else 1) * HOUR)
    without, spare, greedy = (live(pool, assets, lasting, history) for history in History)

    assert p95(spare.late) <= p95(without.late) + 2
    assert sum(spare.waits) == sum(without.waits) == 0
    assert len(spare.history_calls) >= 0.85 * len(greedy.history_calls)
    assert spare.most_in(60) == greedy.most_in(60) == 5
    assert sum(greedy.late) > sum(spare.late), "what the rule is for"
