"""The age of the data: by the newest bar and by the hours in which its market was open."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from conftest import asset

from asset_sync.cli.assets_list import _data_age
from asset_sync.cli.queue_status import _data, age_as_json
from asset_sync.database import Connection, query
from asset_sync.model import Asset
from asset_sync.ops import age, health
from asset_sync.ops.age import DataAge
from asset_sync.provider.current import hours_of
from asset_sync.settings import SHIPPED_FILE, load

HOUR = 3600.0
EURO = replace(asset("EURUSD"), hours="crypto")


def give_bar(db: Connection, one: Asset, ago: timedelta) -> datetime:
    """Store a bar that ended so long ago, by the database's clock; return when it ended."""
    [(start,)] = query(
        db,
        """
        with new as (insert into trading.symbols (symbol) values (%s) returning id)
        insert into market_data.ohlcv_5m (ticker_id, ts, open, high, low, close)
        select id, now() - %s - interval '5 min', 1, 1, 1, 1 from new returning ts
        """,
        (one.symbol, ago),
    )
    assert isinstance(start, datetime)
    return start + timedelta(minutes=5)


def closed_now() -> str:
    """Return hours that are closed from an hour ago until an hour from now, and open otherwise."""
    now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    begin, end = now + timedelta(hours=2), now - timedelta(hours=1)
    return f"{begin:%a %H:%M} - {end:%a %H:%M} UTC"


def test_an_asset_without_bars_has_no_age(db: Connection) -> None:
    known = age.ages(db, [EURO])["EURUSD"]
    assert (known.newest_bar_end, known.age_seconds, known.open_seconds) == (None, None, None)
    assert not known.is_old(0)


def test_the_age_counts_from_the_end_of_the_newest_bar(db: Connection) -> None:
    end = give_bar(db, EURO, timedelta(hours=3))
    known = age.ages(db, [EURO])["EURUSD"]
    assert known.newest_bar_end == end
    assert known.age_seconds is not None
    assert 0 <= known.age_seconds - 3 * HOUR < 60
    assert known.open_seconds == known.age_seconds
    assert known.opens_at is None


def test_a_bar_that_still_runs_is_no_minute_old(db: Connection) -> None:
    give_bar(db, EURO, timedelta(minutes=-3))
    assert age.ages(db, [EURO])["EURUSD"].age_seconds == 0


def test_a_closed_market_makes_no_data_old(db: Connection) -> None:
    one = replace(EURO, hours=(closed_now(),))
    give_bar(db, one, timedelta(hours=4))
    known = age.ages(db, [one])["EURUSD"]
    assert known.open_seconds is not None
    assert 2 * HOUR <= known.open_seconds < 4 * HOUR
    assert known.opens_at == hours_of(one).next_open(datetime.now(UTC))


@pytest.mark.parametrize(
    ("hours_open", "allowed_hours", "old"), [(1.9, 0, False), (2.1, 0, True), (2.1, 3, False)]
)
def test_data_is_old_beyond_what_is_allowed_and_two_open_hours(
    hours_open: float,
    allowed_hours: float,
    old: bool,  # noqa: FBT001  # from parametrize
) -> None:
    known = DataAge(datetime.now(UTC), 9 * 24 * HOUR, hours_open * HOUR, opens_at=None)
    assert known.is_old(allowed_hours * HOUR) is old


def test_health_names_the_assets_whose_data_is_old_while_their_market_is_open(
    db: Connection,
) -> None:
    shipped = load(SHIPPED_FILE, {})
    closed = replace(asset("GBPUSD"), hours=(closed_now(),))
    give_bar(db, EURO, timedelta(hours=3))
    give_bar(db, closed, timedelta(hours=2, minutes=30))
    found = health.examine(db, replace(shipped, assets=(EURO, closed)))
    [old] = [check for check in found.checks if check.name == "data.old"]
    assert (old.value, old.verdict) == (1, health.Verdict.DEGRADED)
    assert old.about.endswith(": EURUSD")


def test_the_status_names_the_newest_and_the_oldest_data_and_the_closed_markets() -> None:
    now = datetime(2026, 11, 21, 12, tzinfo=UTC)
    ages = {
        "BTCUSD": DataAge(now, 180, 180, None),
        "EURUSD": DataAge(now, 14 * HOUR, 0.0, now + timedelta(hours=34)),
        "NEWONE": DataAge(None, None, None, None),
    }
    newest, closed = _data(ages).splitlines()
    assert newest == "newest bar 3 min old (BTCUSD), oldest 14 h (EURUSD)"
    assert closed.strip() == "1 asset's market is closed until 2026-11-22 22:00:00 UTC"
    running = DataAge(now, 0, 0, None)
    assert _data({"BTCUSD": running}) == "newest bar still running (BTCUSD)"
    assert _data_age(running) == "running"
    assert _data_age(None) == "-"
    both = _data({**ages, "XAUUSD": ages["EURUSD"]._replace(opens_at=now + timedelta(hours=35))})
    assert both.endswith(" 2 assets' markets are closed, the first until 2026-11-22 22:00:00 UTC")
    assert _data({"NEWONE": ages["NEWONE"]}) == "no bars yet"
    assert [_data_age(one) for one in ages.values()] == ["3 min", "14 h closed", "no bars"]
    assert json.loads(json.dumps(age_as_json("EURUSD", ages["EURUSD"]))) == {
        "symbol": "EURUSD",
        "newest_bar_end": "2026-11-21T12:00:00+00:00",
        "age_seconds": 50_400.0,
        "open_seconds": 0.0,
        "opens_at": "2026-11-22T22:00:00+00:00",
    }
