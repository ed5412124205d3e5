"""Larger bars are made of the five-minute bars as the field defines them, at any time."""

import os
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby
from math import isclose
from pathlib import Path
from typing import NamedTuple
from zoneinfo import ZoneInfo

import pytest
from conftest import ETHER
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from machine import Machine
from psycopg2.extensions import make_dsn
from test_store import layout, theirs

from asset_sync.database import Connection, migrate, query, raw_session, transaction
from asset_sync.database.larger_bars import problems_of_readable
from asset_sync.demo.server import StandIn
from asset_sync.provider.answers import Bar
from asset_sync.secret import Secret
from asset_sync.store import market, partitioning
from asset_sync.store.bars_query import Every, Selection, bars_query
from asset_sync.store.market import Symbol
from asset_sync.store.partitioning import Layout

__all__ = ["layout", "theirs"]

FIVE_MINUTES = timedelta(minutes=5)
NEW_YORK = ZoneInfo("America/New_York")
SIZES = [every for every in Every if every is not Every.FIVE_MINUTES]


class Read(NamedTuple):
    """A row of the query."""

    symbol: str
    ts: datetime
    open: float
    high: float
    low: float
    close: float
    volume: float | None
    vwap: float | None
    trades: int | None
    bars: int
    expected: int | None


def read(db: Connection, selection: Selection) -> list[Read]:
    return [Read(*row) for row in query(db, bars_query(db, selection))]


def save(db: Connection, *bars: Bar, symbol: str = "EURUSD") -> None:
    with transaction(db) as cursor:
        market.save_symbols(cursor, [Symbol(symbol, symbol, "forex")])
        market.save_bars(cursor, symbol, bars)


def at(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def bar(
    start: datetime | str,
    close: float = 1.0,
    *,
    volume: float | None = 10.0,
    vwap: float | None = 1.0,
    trades: int | None = 5,
) -> Bar:
    start = at(start) if isinstance(start, str) else start
    volume_sent: float = volume  # type: ignore[assignment]  # a table may have null
    return Bar(int(start.timestamp() * 1000), 1.0, 2.0, 0.5, close, volume_sent, vwap, trades)


# --- the same in Python --------------------------------------------------------------------------


def start_of(every: Every, ts: datetime) -> datetime:
    """Return the start of the larger bar of a moment."""
    if every is Every.NEW_YORK_DAY:
        day = ts.astimezone(NEW_YORK)
        while day.hour != 17 or day.minute:  # back through the wall time
            day = (day.astimezone(UTC) - FIVE_MINUTES).astimezone(NEW_YORK)
        return day.astimezone(UTC)
    hours = {Every.QUARTER: 0.25, Every.HOUR: 1, Every.FOUR_HOURS: 4, Every.DAY: 24}[every]
    midnight = ts.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return midnight + (ts - midnight) // timedelta(hours=hours) * timedelta(hours=hours)


def larger(every: Every, bars: Sequence[Bar]) -> Iterator[Read]:
    """Give the larger bars of one asset."""

    def start(bar: Bar) -> datetime:
        return start_of(every, datetime.fromtimestamp(bar.start_ms / 1000, UTC))

    for ts, group in groupby(sorted(bars), start):
        parts = list(group)
        weighted = [one for one in parts if one.vwap is not None and (one.volume or 0) > 0]
        weight = sum(one.volume for one in weighted)
        mean = sum(one.volume * (one.vwap or 0) for one in weighted)
        volumes = [one.volume for one in parts if one.volume is not None]
        trades = [one.trades for one in parts if one.trades is not None]
        yield Read(
            "EURUSD",
            ts,
            parts[0].open,
            max(one.high for one in parts),
            min(one.low for one in parts),
            parts[-1].close,
            sum(volumes) if volumes else None,
            mean / weight if weighted else None,
            sum(trades) if trades else None,
            len(parts),
            None,
        )


def same(one: Read, other: Read) -> bool:
    """Whether two bars are equal, except for the order in which floats were added."""
    return one._replace(volume=None, vwap=None) == other._replace(volume=None, vwap=None) and all(
        mine == theirs
        if mine is None or theirs is None
        else isclose(mine, theirs, rel_tol=1e-12, abs_tol=1e-300)
        for mine, theirs in ((one.volume, other.volume), (one.vwap, other.vwap))
    )


prices = st.floats(1e-6, 1e6)
amounts = st.none() | st.just(0.0) | st.floats(1e-3, 1e9)
# Across the change of the clock in New York on 8 March 2026.
starts = st.integers(0, 4 * 288).map(lambda number: at("2026-03-06") + number * FIVE_MINUTES)


def one_bar(start: datetime) -> st.SearchStrategy[Bar]:
    return st.builds(
        Bar,
        st.just(int(start.timestamp() * 1000)),
        *(prices, prices, prices, prices),
        amounts,  # another program may have stored null
        st.none() | prices,
        st.none() | st.integers(0, 10**6),
    )


@st.composite
def many_bars(draw: st.DrawFn) -> list[Bar]:
    chosen = draw(st.lists(starts, unique=True, max_size=40))
    return draw(st.tuples(*map(one_bar, chosen)).map(list))


@pytest.mark.parametrize("every", SIZES)
@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(bars=many_bars())
def test_larger_bars_are_those_that_python_makes(
    db: Connection, every: Every, bars: list[Bar]
) -> None:
    query(db, "delete from market_data.ohlcv_5m")
    save(db, *bars)

    made, wanted = read(db, Selection(["EURUSD"], every=every)), list(larger(every, bars))

    assert len(made) == len(wanted)
    assert all(map(same, made, wanted)), (made, wanted)


def test_a_part_without_volume_or_mean_price_does_not_count_in_the_mean(db: Connection) -> None:
    save(
        db,
        bar("2026-03-02T12:00", volume=10.0, vwap=1.0),
        bar("2026-03-02T12:05", volume=30.0, vwap=2.0),
        bar("2026-03-02T12:10", volume=60.0, vwap=None),
        bar("2026-03-02T12:15", volume=0.0, vwap=9.0),
        bar("2026-03-02T12:20", volume=None, vwap=9.0),
        bar("2026-03-02T13:00", volume=0.0, vwap=9.0, trades=None),
        bar("2026-03-02T14:00", volume=None, vwap=9.0, trades=None),
    )

    rows = read(db, Selection(["EURUSD"], every=Every.HOUR))

    assert [(row.vwap, row.volume, row.trades) for row in rows] == [
        (1.75, 100.0, 25),
        (None, 0.0, None),
        (None, None, None),
    ]


# --- the views and the function ------------------------------------------------------------------

VIEWS: dict[Every, str] = {every: f"market_data.ohlcv_{every.replace('-', '_')}" for every in SIZES}
STRIDES: dict[Every, str] = {
    Every.QUARTER: "15 min",
    Every.HOUR: "1 hour",
    Every.FOUR_HOURS: "4 hours",
    Every.DAY: "1 day",
}


def two_assets(db: Connection) -> None:
    """Store a week of one asset and a day of another one."""
    week = [bar(at("2026-03-02") + number * FIVE_MINUTES, number) for number in range(7 * 288)]
    save(db, *week)
    save(db, *week[:288], symbol="GBPUSD")


@pytest.mark.parametrize("every", SIZES)
def test_the_views_have_what_the_query_reads(db: Connection, every: Every) -> None:
    two_assets(db)

    rows = query(db, f"select * from {VIEWS[every]} where symbol = 'EURUSD' order by ts")

    assert [Read(*row) for row in rows] == read(db, Selection(["EURUSD"], every=every))
    both = query(db, f"select symbol, sum(bars) from {VIEWS[every]} group by 1 order by 1")
    assert both == [("EURUSD", 7 * 288), ("GBPUSD", 288)]


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Kathmandu"])
@pytest.mark.parametrize("every", STRIDES)
def test_the_function_has_what_the_query_reads_in_any_time_zone(
    db: Connection, every: Every, zone: str
) -> None:
    two_assets(db)
    start, until = at("2026-03-03T12:07"), at("2026-03-08T12:00")

    with transaction(db) as cursor:
        cursor.execute(f"set local time zone '{zone}'")
        cursor.execute(
            "select * from market_data.bars('EURUSD', %s, %s, %s) order by ts",
            (STRIDES[every], start, until),
        )
        rows = cursor.fetchall()

    assert [Read(*row) for row in rows] == read(db, Selection(["EURUSD"], start, until, every))


def test_the_function_makes_bars_of_any_length_and_weeks_begin_on_monday(db: Connection) -> None:
    two_assets(db)

    weeks = query(db, "select ts, bars from market_data.bars('EURUSD', '7 days')")
    lone = query(db, "select count(*), max(bars) from market_data.bars('GBPUSD', '5 min')")

    assert weeks == [(at("2026-03-02"), 7 * 288)]
    assert lone == [(288, 1)]


def test_only_whole_ranges_are_asked_for_so_no_bar_is_cut(db: Connection) -> None:
    two_assets(db)

    found = read(
        db, Selection(["EURUSD"], at("2026-03-03T12:07"), at("2026-03-03T15:00:01"), Every.HOUR)
    )

    assert [(one.ts.hour, one.bars) for one in found] == [(13, 12), (14, 12), (15, 12)]


def test_a_new_york_day_has_23_or_25_hours_where_the_clock_changes(db: Connection) -> None:
    for first in ("2026-03-06T22:00", "2026-10-30T21:00"):
        save(db, *(bar(at(first) + number * FIVE_MINUTES) for number in range(3 * 288)))

    days = read(db, Selection(["EURUSD"], every=Every.NEW_YORK_DAY))

    assert [(one.ts, one.bars) for one in days] == [
        (at("2026-03-06T22:00"), 288),
        (at("2026-03-07T22:00"), 276),
        (at("2026-03-08T21:00"), 288),
        (at("2026-03-09T21:00"), 12),
        (at("2026-10-30T21:00"), 288),
        (at("2026-10-31T21:00"), 300),
        (at("2026-11-01T22:00"), 276),
    ]


def test_times_that_no_bar_should_have_are_bars_of_their_own(db: Connection) -> None:
    save(db, bar("2026-03-02"))
    query(
        db,
        """
        insert into market_data.ohlcv_5m (ticker_id, ts, open, high, low, close)
        select id, ts, 1, 'NaN', '-infinity', 1 from trading.symbols,
          unnest(array['infinity', '-infinity', '0001-01-01 00:00Z BC']::timestamptz[]) as ts
        """,
    )

    for view in VIEWS.values():
        assert query(db, f"select count(*) from {view}") == [(4,)]
    assert query(db, "select count(*) from market_data.bars('EURUSD', '1 day')") == [(3,)]


def test_a_platforms_own_table_has_larger_bars_too(theirs: Connection) -> None:
    two_assets(theirs)

    [day, *_] = read(theirs, Selection(["EURUSD"], every=Every.DAY))

    assert (day.open, day.close, day.volume, day.vwap, day.bars) == (1.0, 287.0, 2880.0, 1.0, 288)
    first = query(theirs, "select * from market_data.ohlcv_1d where symbol = 'EURUSD' limit 1")
    assert [Read(*row) for row in first] == [day]
    assert query(theirs, "select count(*) from market_data.bars('GBPUSD', '1 hour')") == [(24,)]


def test_the_views_and_the_function_follow_the_table_into_partitions_and_back(
    db: Connection,
) -> None:
    two_assets(db)
    looks = [f"select * from {view} order by symbol, ts" for view in VIEWS.values()]
    looks.append("select * from market_data.bars('EURUSD', '1 hour') order by ts")
    before = [query(db, look) for look in looks]

    changes = [partitioning.partition, partitioning.unite]
    if partitioning.survey(db).layout is Layout.MONTHS:
        changes.reverse()
    for change in changes:
        change(db)
        assert [query(db, look) for look in looks] == before
        save(db, bar("2026-04-01"), symbol="USDJPY")
        assert query(db, "select bars from market_data.ohlcv_1d where symbol = 'USDJPY'") == [(1,)]
        query(db, "delete from market_data.ohlcv_5m where ts >= '2026-04-01'")
    assert migrate(db) == ()
    assert list(problems_of_readable(db)) == []


# A view of somebody else with the same columns.
THEIR_VIEW = """
view market_data.ohlcv_1d as
  select 'mine'::text as symbol, now() as ts, 1.0::float8 as open, 1.0::float8 as high,
    1.0::float8 as low, 1.0::float8 as close, 1.0::float8 as volume, 1.0::float8 as vwap,
    1::bigint as trades, 1 as bars, 1 as expected
"""


def test_a_name_that_is_taken_is_left_alone_and_named(empty_url: str, tmp_path: Path) -> None:
    with raw_session(Secret(empty_url)) as db:
        query(
            db,
            f"""
            create schema market_data;
            create table market_data.ohlcv_1h (mine int);
            create {THEIR_VIEW};
            create function market_data.bars(text, interval, timestamptz, timestamptz)
              returns int language sql as 'select 1'
            """,
        )
    with Machine(tmp_path, empty_url) as machine:
        told = machine.tell("db", "init")
        assert told.code == 0
        taken = (
            "Note: market_data.ohlcv_1h, market_data.ohlcv_1d,"
            " market_data.bars(text,interval,timestamptz,timestamptz) is not asset-sync's,"
        )
        assert taken in told.err
        assert "market_data.ohlcv_1h" in machine.tell("db", "status").out
        assert "market_data.ohlcv_1h" in machine.tell("doctor", "--offline").out
        with raw_session(Secret(empty_url)) as db:
            assert query(db, "select symbol from market_data.ohlcv_1d") == [("mine",)]
            assert query(db, "select count(*) from market_data.ohlcv_4h") == [(0,)]
            query(db, "drop table market_data.ohlcv_1h; drop view market_data.ohlcv_1d")
        assert "ohlcv" not in machine.tell("db", "init").err
        with raw_session(Secret(empty_url)) as db:
            assert query(db, "select count(*) from market_data.ohlcv_1d") == [(0,)]


def test_a_role_that_may_not_make_them_is_told_and_syncs_all_the_same(
    db: Connection, url: str, api: StandIn, tmp_path: Path
) -> None:
    role = f"asset_sync_test_owner_{os.getpid()}"
    query(
        db,
        f"""
        create role {role} login password 'made-up';
        grant usage on schema trading, data_sources, market_data to {role};
        grant all on all tables in schema trading, data_sources, market_data to {role};
        drop schema asset_sync cascade;
        grant create on database {db.info.dbname} to {role};
        """,
    )
    try:
        with Machine(tmp_path, make_dsn(url, user=role, password="made-up"), api) as machine:
            machine.file(ETHER)
            told = machine.tell("db", "init")
            assert told.code == 0
            assert "market_data.ohlcv_1d_ny for larger bars could not be made" in told.err
            assert "as a role that may create in the schema market_data" in told.err
            assert machine.tell("sync", "queue", "--limit", "1").code == 0
    finally:
        query(db, f"drop owned by {role} cascade; drop role {role}")
    assert query(db, "select count(*) > 0 from market_data.ohlcv_5m") == [(True,)]


def test_a_view_of_an_older_version_is_replaced_and_what_reads_it_stays(db: Connection) -> None:
    two_assets(db)
    query(
        db,
        f"""
        create or replace {THEIR_VIEW};
        comment on view market_data.ohlcv_1d is 'Days. Made by asset-sync (00000000).';
        create view market_data.mine as select * from market_data.ohlcv_1d
        """,
    )

    migrate(db)

    assert query(db, "select count(*) from market_data.mine") == [(8,)]


def test_a_role_with_the_rights_of_the_page_reads_views_and_function(db: Connection) -> None:
    page = (Path(__file__).parents[1] / "docs/json-and-tables.md").read_text()
    [grants] = re.findall(r"```sql\n(grant [^`]* to reader;)\n```", page)
    two_assets(db)
    role = f"asset_sync_test_larger_{os.getpid()}"
    query(db, f"create role {role}")
    query(db, grants.replace("reader", role))
    query(db, f"grant select on market_data.ohlcv_1d to {role}")
    try:
        with transaction(db) as cursor:
            cursor.execute(f"set local role {role}")
            cursor.execute("select count(*) from market_data.bars('EURUSD', '1 day')")
            assert cursor.fetchall() == [(7,)]
            cursor.execute("select count(*) from market_data.ohlcv_1d")
            assert cursor.fetchall() == [(8,)]
    finally:
        query(db, f"drop owned by {role}; drop role {role}")
