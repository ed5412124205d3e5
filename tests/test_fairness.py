"""Failing assets never stop the others: simulated days of the real loop."""

import os
from collections.abc import Callable, Sequence

import pytest
from conftest import Pool, asset
from simulation import Api, Asked, Day, live_through
from test_forecast import settings_for, symbols

from asset_sync.model import Asset, Level
from asset_sync.provider.polygon.http import Reply

HOUR = 3600.0
# A whole day takes minutes, so only .ci/run simulates it, and only for one case.
HOURS = float(os.environ.get("SIMULATED_HOURS", "3"))
ODD_HTML = Reply(200, "<html>Welcome</html>", None)
ERROR_500 = Reply(500, "", None)
UNKNOWN = Reply(404, '{"status":"NOT_FOUND"}', None)
MOVED = Reply(200, '{"status":"OK","results":"moved"}', None)


def seven(level: Level) -> list[Asset]:
    return [asset(f"A{number}", level, position=number) for number in range(1, 8)]


def failing(bad: Sequence[Asset], reply: Reply) -> Callable[[Asked, Reply], Reply]:
    """Give this answer to every request for these assets."""
    tickers = {one.ticker for one in bad}
    return lambda asked, right: reply if tickers.intersection(asked.tickers) else right


def odd_until(seconds: float, reply: Reply) -> Callable[[Asked, Reply], Reply]:
    """Give this answer to every request until then."""
    return lambda asked, right: reply if asked.at_seconds < seconds else right


def first_refreshes(day: Day, assets: Sequence[Asset], after: float = 0) -> list[float]:
    """Return when each of these was first refreshed after that time."""
    return [min(at for at in day.fresh_at[one.symbol] if at >= after) for one in assets]


@pytest.mark.parametrize(
    ("level", "reply", "hours"),
    [
        (Level.CRITICAL, ERROR_500, 3),
        (Level.CRITICAL, UNKNOWN, 3),
        (Level.MEDIUM, ERROR_500, HOURS),
        (Level.MEDIUM, UNKNOWN, 3),
    ],
    ids=["critical, 500", "critical, no such ticker", "medium, 500", "medium, no such ticker"],
)
def test_three_of_seven_assets_that_always_fail_do_not_delay_the_others(
    pool: Pool, level: Level, reply: Reply, hours: float
) -> None:
    assets = seven(level)
    bad, good = assets[:3], assets[3:]
    days = []
    for failed in ([], bad):
        with pool.database() as url:
            settings = settings_for(*assets, url=url)
            api = Api(reply=failing(failed, reply))
            days.append(live_through(url, settings, api, seconds=hours * HOUR))
    well, day = days

    assert max(first_refreshes(day, good)) < 300, "fresh in the first run"
    assert day.staleness(symbols(good)).at(0.95) <= 1.1 * well.staleness(symbols(good)).at(0.95)
    assert day.most_in(60) == 5
    calls_to_bad = sum(day.failures[one.symbol] for one in bad)
    assert calls_to_bad <= 3 * (6 + hours * 1.5), "about one an hour, once the back-off has grown"


@pytest.mark.parametrize(
    ("reply", "hours"),
    [(ERROR_500, 2), (ODD_HTML, 0.5), (UNKNOWN, 0.5), (MOVED, 0.5)],
    ids=["500", "html", "404", "moved"],
)
def test_after_the_api_was_odd_for_a_while_all_assets_are_fresh_within_minutes(
    url: str, reply: Reply, hours: float
) -> None:
    assets = [*seven(Level.CRITICAL)[:3], *seven(Level.MEDIUM)[3:]]
    begins, ends = HOUR, HOUR + hours * HOUR
    settings = settings_for(*assets, url=url)

    def answer(asked: Asked, right: Reply) -> Reply:
        return reply if begins <= asked.at_seconds < ends else right

    day = live_through(url, settings, Api(reply=answer), seconds=ends + 0.5 * HOUR)

    assert max(first_refreshes(day, assets, after=ends)) - ends <= 61 + 120
    meanwhile = sum(begins <= at < ends for at in day.calls)
    assert meanwhile <= hours * HOUR / 300 * (12 + 10), "some at each start, then two a minute"
    for one in assets:
        assert day.staleness([one.symbol], after=ends).worst <= 600
