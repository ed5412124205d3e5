"""The data of one answer is stored in the platform's tables: nothing is lost or stored twice."""

import json
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import psycopg2
import pytest
from conftest import in_line

from asset_sync import queue
from asset_sync.database import (
    Connection,
    Cursor,
    DatabaseError,
    migrate,
    query,
    raw_session,
    transaction,
)
from asset_sync.model import Asset, AssetType, Feed, Level
from asset_sync.provider.answers import Bar
from asset_sync.queue import Wanted
from asset_sync.secret import Secret
from asset_sync.settings import QueueSettings
from asset_sync.store import market, publish, runs
from asset_sync.store.market import LastPrice, Symbol
from asset_sync.store.partitioning import Layout

NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
NOON_MS = int(NOON.timestamp() * 1000)
FIVE_MINUTES_MS = 300_000
LATER = NOON + timedelta(days=1)

EURUSD = Symbol("EURUSD", "Euro", "forex")


@pytest.fixture(params=[Layout.TABLE, Layout.MONTHS], ids=["one table", "by month"])
def layout(request: pytest.FixtureRequest) -> Layout:
    """Run each test on both."""
    return Layout(request.param)


def bar(
    number: int = 0,
    close: float = 1.0869,
    *,
    high: float = 1.09,
    low: float = 1.08,
    vwap: float | None = 1.0868,
    trades: int | None = 321,
) -> Bar:
    """Return the bar that starts this number of bars after noon."""
    start_ms = NOON_MS + number * FIVE_MINUTES_MS
    return Bar(start_ms, 1.0865, high, low, close, 321.0, vwap, trades)


def start_of(one: Bar) -> datetime:
    return datetime.fromtimestamp(one.start_ms / 1000, UTC)


def price(
    at: datetime = NOON, last_price: float = 1.1, *, symbol: str = "EURUSD", bid: float | None = 1.0
) -> LastPrice:
    return LastPrice(symbol, bid, 1.2, last_price, 1.3, 1.4, 1.5, 1.6, at)


def save_bars(db: Connection, bars: Sequence[Bar]) -> int:
    with transaction(db) as cursor:
        market.save_symbols(cursor, [EURUSD])
        return market.save_bars(cursor, "EURUSD", bars)


def save_price(db: Connection, one: LastPrice) -> tuple[LastPrice, ...]:
    with transaction(db) as cursor:
        market.save_symbols(cursor, [EURUSD])
        return market.save_prices(cursor, [one])


def stored_bars(db: Connection) -> list[Bar]:
    rows = query(
        db,
        """
        select (extract(epoch from ts) * 1000)::bigint, open, high, low, close, volume, vwap, trades
        from market_data.ohlcv_5m order by ts
        """,
    )
    return [Bar(*row) for row in rows]


def versions(db: Connection) -> list[tuple[object, ...]]:
    """Return each bar's place and the transaction that wrote it: a write changes both."""
    return query(db, "select ts, ctid::text, xmin::text from market_data.ohlcv_5m order by ts")


def metadata(db: Connection, symbol: str = "EURUSD") -> dict[str, object]:
    [(value,)] = query(db, "select metadata from trading.symbols where symbol = %s", (symbol,))
    assert isinstance(value, dict)
    return value


def set_metadata(db: Connection, value: object) -> None:
    text = None if value is None else json.dumps(value)
    query(
        db,
        """
        insert into trading.symbols (symbol, metadata) values ('EURUSD', coalesce(%s, '{}')::jsonb)
        on conflict (symbol) do update set metadata = excluded.metadata
        """,
        (text,),
    )


# --- bars ---------------------------------------------------------------------------------------


def test_new_bars_are_stored_as_they_came_and_counted(db: Connection) -> None:
    sent = [bar(0), bar(1), bar(2)]

    assert save_bars(db, sent) == 3

    assert stored_bars(db) == sent


def test_a_bar_that_the_provider_repaired_is_updated(db: Connection) -> None:
    save_bars(db, [bar(0), bar(1), bar(2)])

    assert save_bars(db, [bar(0), bar(1, close=1.0875), bar(2), bar(3)]) == 2

    assert stored_bars(db) == [bar(0), bar(1, close=1.0875), bar(2), bar(3)]


@pytest.mark.parametrize("field", Bar._fields[1:])
def test_each_figure_of_a_bar_can_be_repaired(db: Connection, field: str) -> None:
    save_bars(db, [bar()])
    repaired = bar()._replace(**{field: 7})

    assert save_bars(db, [repaired]) == 1

    assert stored_bars(db) == [repaired]


def test_equal_bars_cost_no_write(db: Connection) -> None:
    sent = [bar(0), bar(1, vwap=None, trades=None), bar(2)]
    save_bars(db, sent)
    before = versions(db)

    assert save_bars(db, sent) == 0

    assert versions(db) == before


def test_equal_bars_beside_a_repaired_one_cost_no_write(db: Connection) -> None:
    save_bars(db, [bar(0), bar(1), bar(2)])
    before = versions(db)

    save_bars(db, [bar(0), bar(1, close=1.0875), bar(2)])

    after = versions(db)
    assert [after[0], after[2]] == [before[0], before[2]]
    assert after[1] != before[1]


def test_a_figure_that_the_provider_leaves_out_is_null_until_it_is_sent(db: Connection) -> None:
    bare = bar(vwap=None, trades=None)

    assert save_bars(db, [bare]) == 1
    assert stored_bars(db) == [bare]

    assert save_bars(db, [bar()]) == 1
    assert stored_bars(db) == [bar()]


def test_floats_are_stored_exactly(db: Connection) -> None:
    chance = random.Random(1)
    odd = [
        *(1.7976931348623157e308, 5e-324, 2.2250738585072014e-308, 0.1 + 0.2, 1 / 3, 1e22),
        *(2.0**53 + 2, 1.0869500000000001, 100.0, 0.0000001),
        *(chance.uniform(0, 2) * 10 ** chance.randint(-12, 12) for _ in range(200)),
    ]
    sent = [
        Bar(NOON_MS + number * FIVE_MINUTES_MS, one, one, one, one, one, one, 2**31 - 1)
        for number, one in enumerate(odd)
    ]

    save_bars(db, sent)

    assert [tuple(map(repr, one)) for one in stored_bars(db)] == [
        tuple(map(repr, one)) for one in sent
    ]
    assert save_bars(db, sent) == 0


def test_fifty_thousand_bars_are_stored_with_one_statement(db: Connection) -> None:
    sent = [bar(number, close=1 + number / 50_000) for number in range(50_000)]
    statements = []

    class Counting:
        """A cursor that counts its statements."""

        def __init__(self, cursor: Cursor) -> None:
            self._cursor = cursor

        def execute(self, sql: str, parameters: Mapping[str, object] | None = None) -> None:
            if "insert into market_data.ohlcv_5m" in sql:
                statements.append(sql)
            self._cursor.execute(sql, parameters)

        def __getattr__(self, name: str) -> object:
            return getattr(self._cursor, name)

    with transaction(db) as cursor:
        market.save_symbols(cursor, [EURUSD])
        assert market.save_bars(Counting(cursor), "EURUSD", sent) == 50_000  # type: ignore[arg-type]

    assert len(statements) == 1
    assert stored_bars(db) == sent


def test_no_bars_cause_no_statement_and_no_error(db: Connection) -> None:
    assert save_bars(db, []) == 0


def test_bars_are_stored_for_their_own_asset(db: Connection) -> None:
    with transaction(db) as cursor:
        market.save_symbols(cursor, [EURUSD, Symbol("GBPUSD", "Pound", "forex")])
        market.save_bars(cursor, "EURUSD", [bar(0)])
        market.save_bars(cursor, "GBPUSD", [bar(1)])

    assert market.newest_bar(db, "EURUSD")[0] == NOON
    assert market.newest_bar(db, "GBPUSD")[0] == NOON + timedelta(minutes=5)


def test_an_asset_without_bars_or_row_has_no_newest_bar(db: Connection) -> None:
    newest, now = market.newest_bar(db, "EURUSD")

    assert newest is None
    assert now.tzinfo is not None


def store_bar_of(db: Connection, ts: str) -> None:
    """Store a bar of EURUSD as another program may have done."""
    query(
        db,
        """
        insert into market_data.ohlcv_5m (ticker_id, ts, open, high, low, close)
        select id, %s::timestamptz, 9, 9, 9, 9 from trading.symbols where symbol = 'EURUSD'
        """,
        (ts,),
    )


IMPOSSIBLE_TIMES = [
    "2030-01-01 00:00:00+00",
    "9999-12-31 23:59:59+00",
    "10000-01-01 00:00:00+00",
    "294276-12-31 23:59:59+00",
    "infinity",
    "-infinity",
    "4713-01-01 00:00:00+00 BC",
    "0001-01-01 00:00:00+00 BC",
    "0001-01-01 00:00:00+00",
]


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo", "America/New_York"])
def test_a_bar_with_an_impossible_time_is_not_the_newest(db: Connection, zone: str) -> None:
    query(db, "select set_config('timezone', %s, false)", (zone,))
    save_bars(db, [bar(0), bar(1)])
    for ts in IMPOSSIBLE_TIMES:
        store_bar_of(db, ts)

    assert market.newest_bar(db, "EURUSD")[0] == NOON + timedelta(minutes=5)


@pytest.mark.parametrize("ts", IMPOSSIBLE_TIMES)
def test_an_asset_with_only_a_bar_of_an_impossible_time_has_no_newest_bar(
    db: Connection, ts: str
) -> None:
    with transaction(db) as cursor:
        market.save_symbols(cursor, [EURUSD])
    store_bar_of(db, ts)

    assert market.newest_bar(db, "EURUSD")[0] is None


@pytest.mark.parametrize("figure", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize("column", ["open", "high", "low", "close"])
def test_a_bar_whose_prices_are_not_numbers_is_not_the_newest_and_gives_no_price(
    db: Connection, column: str, figure: str
) -> None:
    save_bars(db, [bar(0), bar(1)])
    store_bar_of(db, "2024-01-01 00:00:00+00")
    for ts in (NOON - timedelta(minutes=5), NOON + timedelta(minutes=10)):
        store_bar_of(db, ts.isoformat())
        query(db, f"update market_data.ohlcv_5m set {column} = %s where ts = %s", (figure, ts))

    newest, now = market.newest_bar(db, "EURUSD")
    assert newest == NOON + timedelta(minutes=5)
    with transaction(db) as cursor:
        price = market.price_of_bar(cursor, "EURUSD", newest, now)
    assert json.loads(json.dumps(price.as_json(), allow_nan=False))["last_price"] == bar(1).close


def test_a_bar_that_starts_now_counts_as_the_newest(db: Connection) -> None:
    with transaction(db) as cursor:
        market.save_symbols(cursor, [EURUSD])
        cursor.execute(
            """
            insert into market_data.ohlcv_5m (ticker_id, ts, open, high, low, close)
            select id, now(), 9, 9, 9, 9 from trading.symbols returning ts
            """
        )
        [(ts,)] = cursor.fetchall()
        assert market.newest_bar(db, "EURUSD")[0] == ts


# --- the last price of bars ---------------------------------------------------------------------


def price_of(db: Connection, bars: Sequence[Bar], now: datetime = LATER) -> LastPrice:
    save_bars(db, bars)
    with transaction(db) as cursor:
        return market.price_of_bar(cursor, "EURUSD", start_of(bars[-1]), now)


def test_the_last_bar_gives_a_price_without_a_quote(db: Connection) -> None:
    told = price_of(db, [bar(0), bar(1, close=1.0881)])

    assert (told.symbol, told.bid, told.ask, told.last_price) == ("EURUSD", None, None, 1.0881)


def test_the_days_figures_come_from_its_bars(db: Connection) -> None:
    told = price_of(db, [bar(0, high=1.2), bar(1, low=1.01), bar(2, close=1.0855)])

    assert (told.daily_open, told.daily_high, told.daily_low, told.daily_close) == (
        *(1.0865, 1.2, 1.01, 1.0855),
    )


def test_the_days_figures_include_bars_stored_before_this_answer(db: Connection) -> None:
    save_bars(db, [bar(-3, high=1.5)])

    assert price_of(db, [bar(0)]).daily_high == 1.5


def test_the_days_figures_end_with_the_bar_that_has_the_price(db: Connection) -> None:
    save_bars(db, [bar(3, close=9.0, high=9.0)])

    told = price_of(db, [bar(0)])

    assert (told.last_price, told.daily_high, told.daily_close) == (1.0869, 1.09, 1.0869)


def test_the_day_begins_at_midnight_utc_in_any_time_zone_of_the_session(db: Connection) -> None:
    query(db, "select set_config('timezone', 'Asia/Tokyo', false)")
    last_of_yesterday, first_of_today = -145, -144  # midnight is 144 bars before noon

    told = price_of(
        db,
        [
            bar(last_of_yesterday, close=9.0, high=9.0),
            bar(first_of_today, close=1.2, high=1.3),
            bar(first_of_today + 1, close=1.1),
        ],
    )

    assert (told.daily_high, told.daily_close) == (1.3, 1.1)


def test_the_first_bar_after_midnight_resets_the_days_figures(db: Connection) -> None:
    told = price_of(db, [bar(-145, high=9.0), bar(-144, close=1.2, high=1.3, low=1.1)])

    assert (told.daily_open, told.daily_high, told.daily_low, told.daily_close) == (
        *(1.0865, 1.3, 1.1, 1.2),
    )


# --- writing last prices ------------------------------------------------------------------------


def test_last_update_has_the_keys_that_the_platform_reads(db: Connection) -> None:
    save_price(db, price())

    assert metadata(db)["last_update"] == {
        "bid": 1.0,
        "ask": 1.2,
        "last_price": 1.1,
        "daily_open": 1.3,
        "daily_high": 1.4,
        "daily_low": 1.5,
        "daily_close": 1.6,
        "timestamp": "2026-03-02T12:00:00+00:00",
        "source": "polygon",
    }


def test_a_newer_price_replaces_an_older_one(db: Connection) -> None:
    save_price(db, price())
    newer = price(NOON + timedelta(seconds=1), 2.0)

    assert save_price(db, newer) == (newer,)

    assert metadata(db)["last_update"] == newer.as_json()


def test_a_bar_never_overwrites_a_newer_quote(db: Connection) -> None:
    quote = price()
    save_price(db, quote)

    assert save_price(db, price(NOON - timedelta(microseconds=1), 2.0, bid=None)) == ()

    assert metadata(db)["last_update"] == quote.as_json()


def test_a_price_with_a_future_time_is_stored_as_of_now_and_blocks_no_later_price(
    db: Connection,
) -> None:
    far = datetime(9999, 12, 31, 23, 59, tzinfo=UTC)

    [written] = save_price(db, price(far, 2.0))

    [(now,)] = query(db, "select clock_timestamp()")
    assert timedelta(0) <= now - written.timestamp < timedelta(seconds=9)
    assert metadata(db)["last_update"] == written.as_json()
    assert len(save_price(db, price(now, 3.0))) == 1


def test_a_price_with_a_future_time_written_by_others_blocks_no_price(db: Connection) -> None:
    set_metadata(db, {"last_update": {"timestamp": "9999-12-31T23:59:00+00:00"}})

    assert save_price(db, price()) == (price(),)


def test_each_price_of_an_answer_is_compared_by_itself(db: Connection) -> None:
    save_price(db, price())
    old = price(NOON - timedelta(hours=1))
    new = price(symbol="GBPUSD")

    with transaction(db) as cursor:
        market.save_symbols(cursor, [Symbol("GBPUSD", "Pound", "forex")])
        assert market.save_prices(cursor, [old, new]) == (new,)


def test_a_price_of_an_unknown_asset_is_not_written(db: Connection) -> None:
    with transaction(db) as cursor:
        assert market.save_prices(cursor, [price(symbol="NOSUCH")]) == ()


@pytest.fixture
def in_new_york(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run the test on a host in another time zone."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "America/New_York")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.parametrize(
    "theirs",
    ["2026-03-02T13:30:00+02:00", "2026-03-02 11:30:00", "2026-03-02T11:30:00Z", "20260302T113000"],
)
def test_a_timestamp_that_others_wrote_is_compared_with_its_time_zone(
    db: Connection, theirs: str, in_new_york: None
) -> None:
    set_metadata(db, {"last_update": {"timestamp": theirs}})
    half_past = NOON - timedelta(minutes=30)

    assert save_price(db, price(half_past - timedelta(seconds=1))) == ()
    assert len(save_price(db, price(half_past + timedelta(seconds=1)))) == 1


@pytest.mark.parametrize(
    "theirs",
    [
        {"last_update": {"timestamp": "yesterday"}},
        {"last_update": {"timestamp": 1772452800}},
        {"last_update": {"timestamp": None}},
        {"last_update": {"timestamp": "0001-01-01T00:00:00+14:00"}},
        {"last_update": {"timestamp": "10000-01-01T00:00:00+00:00"}},
        {"last_update": {"timestamp": "4713-01-01T00:00:00+00:00 BC"}},
        {"last_update": {"timestamp": "infinity"}},
        {"last_update": {"timestamp": "-infinity"}},
        {"last_update": {"timestamp": {"at": "noon"}}},
        {"last_update": "none"},
        {"last_update": None},
        {"last_update": []},
        {},
        None,
    ],
)
def test_an_unreadable_timestamp_blocks_no_price(db: Connection, theirs: object) -> None:
    set_metadata(db, theirs)

    assert len(save_price(db, price())) == 1

    assert metadata(db)["last_update"] == price().as_json()


def test_other_keys_of_metadata_are_kept(db: Connection) -> None:
    set_metadata(db, {"pip": 0.0001, "tags": ["major"], "last_update": {"note": "old"}})

    save_price(db, price())

    kept = metadata(db)
    assert (kept["pip"], kept["tags"]) == (0.0001, ["major"])
    assert kept["last_update"] == price().as_json()


def test_metadata_that_is_a_json_null_becomes_an_object(db: Connection) -> None:
    query(db, "insert into trading.symbols (symbol, metadata) values ('EURUSD', 'null')")

    save_price(db, price())

    assert metadata(db) == {"last_update": price().as_json()}


# --- symbols and sync status --------------------------------------------------------------------


def test_an_existing_asset_of_the_platform_is_not_changed(db: Connection) -> None:
    query(
        db,
        "insert into trading.symbols (symbol, name, asset_type) values ('EURUSD', 'Mine', 'fx')",
    )
    sql = "select ctid::text, xmin::text, s.* from trading.symbols s where symbol = 'EURUSD'"
    before = query(db, sql)

    with transaction(db) as cursor:
        market.save_symbols(cursor, [EURUSD, Symbol("BTCUSD", "Bitcoin", "crypto")])

    assert query(db, sql) == before
    assert query(db, "select name, asset_type from trading.symbols where symbol = 'BTCUSD'") == [
        ("Bitcoin", "crypto")
    ]


def test_existing_assets_use_up_no_ids(db: Connection) -> None:
    with transaction(db) as cursor:
        for _ in range(3):
            market.save_symbols(cursor, [EURUSD])
        market.save_symbols(cursor, [Symbol("GBPUSD", "Pound", "forex")])

    assert query(db, "select max(id) - min(id) from trading.symbols") == [(1,)]


def status_of(db: Connection) -> tuple[object, ...]:
    [row] = query(
        db,
        "select last_sync_timestamp, sync_status, error_message from data_sources.data_sync_status",
    )
    return row


def save_status(db: Connection, error: str | None = None) -> None:
    with transaction(db) as cursor:
        market.save_symbols(cursor, [EURUSD])
        market.save_status(cursor, ["EURUSD"], error)


def test_a_success_is_recorded_with_its_time(db: Connection) -> None:
    [(before,)] = query(db, "select now()")

    save_status(db)

    at, state, error = status_of(db)
    assert isinstance(at, datetime)
    assert at >= before
    assert (state, error) == ("success", None)


def test_a_failure_is_recorded_and_keeps_the_time_of_the_last_success(db: Connection) -> None:
    save_status(db)
    at, *_ = status_of(db)

    save_status(db, "the ticker is unknown")

    assert status_of(db) == (at, "error", "the ticker is unknown")


@pytest.mark.parametrize("at", ["infinity", "-infinity", "4713-01-01 BC", "10000-01-01"])
def test_a_success_gets_the_time_of_now_whatever_time_others_wrote(db: Connection, at: str) -> None:
    save_status(db)
    query(db, "update data_sources.data_sync_status set last_sync_timestamp = %s", (at,))

    save_status(db, "no such ticker")
    save_status(db)

    [(recent,)] = query(
        db,
        """
        select last_sync_timestamp between now() - interval '1 minute' and now()
        from data_sources.data_sync_status
        """,
    )
    assert recent


def test_a_failure_before_any_success_has_no_time(db: Connection) -> None:
    save_status(db, "no such ticker")

    assert status_of(db) == (None, "error", "no such ticker")


def test_a_success_clears_the_error(db: Connection) -> None:
    save_status(db, "no such ticker")

    save_status(db)

    assert status_of(db)[1:] == ("success", None)


def test_a_failure_of_an_asset_without_a_row_is_no_error(db: Connection) -> None:
    with transaction(db) as cursor:
        market.save_status(cursor, ["NEVER"], "no such ticker")

    assert query(db, "select from data_sources.data_sync_status") == []


def test_a_missing_row_of_the_provider_is_reported_with_advice_that_works(db: Connection) -> None:
    query(db, "delete from data_sources.api_providers")

    with pytest.raises(DatabaseError, match=r"has no row with the code 'polygon'.*db init"):
        save_status(db)

    migrate(db)
    save_status(db)
    assert status_of(db)[1] == "success"


# --- somebody else's tables ---------------------------------------------------------------------

_THEIRS = """
create schema trading; create schema data_sources; create schema market_data;
create table trading.symbols (
  id uuid primary key default gen_random_uuid(),
  symbol varchar(20) not null unique,
  name varchar(100),
  asset_type varchar(10),
  exchange text not null default 'otc',
  metadata jsonb,
  updated_at timestamptz
);
create table data_sources.api_providers (
  id uuid primary key default gen_random_uuid(),
  code varchar(50) not null unique,
  name varchar(50) not null
);
create table data_sources.data_sync_status (
  ticker_id uuid not null references trading.symbols (id),
  provider_id uuid not null references data_sources.api_providers (id),
  last_sync_timestamp timestamptz,
  sync_status varchar(20),
  error_message varchar(500),
  updated_at timestamptz,
  retries integer not null default 0
);
create unique index on data_sources.data_sync_status (provider_id, ticker_id);
create table market_data.ohlcv_5m (
  ts timestamptz not null,
  ticker_id uuid not null references trading.symbols (id),
  open numeric(18, 8) not null, high numeric(18, 8) not null,
  low numeric(18, 8) not null, close numeric(18, 8) not null,
  volume numeric, vwap numeric, trades integer,
  inserted_at timestamptz not null default now(),
  primary key (ticker_id, ts)
);
insert into trading.symbols (symbol, name, asset_type) values ('EURUSD', 'Theirs', 'fx');
"""

_SHAPE = """
select table_schema, table_name, column_name, data_type, column_default, is_nullable
from information_schema.columns join information_schema.tables
  using (table_schema, table_name)
where table_schema in ('trading', 'data_sources', 'market_data') and table_type = 'BASE TABLE'
order by 1, 2, 3
"""


@pytest.fixture
def theirs(empty_url: str) -> Iterator[Connection]:
    """Return a platform with its own tables of other types, on which `db init` has run."""
    with raw_session(Secret(empty_url)) as db:
        query(db, _THEIRS)
        before = query(db, _SHAPE)
        migrate(db)
        assert query(db, _SHAPE) == before
        yield db
        assert query(db, _SHAPE) == before


def test_an_answer_is_stored_in_a_platforms_own_tables_of_any_types(
    theirs: Connection,
) -> None:
    sent = [bar(0), bar(1, close=1.08751234, vwap=None, trades=None)]
    with transaction(theirs) as cursor:
        market.save_symbols(cursor, [EURUSD, Symbol("GBPUSD", "Pound", "forex")])
        assert market.save_bars(cursor, "EURUSD", sent) == 2
        told = market.price_of_bar(cursor, "EURUSD", start_of(sent[-1]), LATER)
        assert market.save_prices(cursor, [told]) == (told,)
        market.save_status(cursor, ["EURUSD", "GBPUSD"])
        publish.notify(cursor, [told])

    assert [tuple(map(float, row)) for row in query(
        theirs, "select open, high, low, close from market_data.ohlcv_5m order by ts"
    )] == [one[1:5] for one in sent]  # fmt: skip
    assert metadata(theirs)["last_update"] == told.as_json()
    assert told.daily_close == 1.08751234
    assert query(theirs, "select count(*) from data_sources.data_sync_status") == [(2,)]
    assert market.newest_bar(theirs, "EURUSD")[0] == NOON + timedelta(minutes=5)


def test_equal_bars_cost_no_write_in_a_platforms_own_table(theirs: Connection) -> None:
    sent = [bar(0), bar(1, vwap=None)]
    save_bars(theirs, sent)
    before = versions(theirs)

    assert save_bars(theirs, sent) == 0

    assert versions(theirs) == before


def test_status_and_price_can_be_written_again_in_a_platforms_own_tables(
    theirs: Connection,
) -> None:
    save_status(theirs)
    save_status(theirs, "no such ticker")
    save_price(theirs, price())
    save_price(theirs, price(NOON + timedelta(seconds=1), 2.0))

    assert status_of(theirs)[1:] == ("error", "no such ticker")
    assert metadata(theirs)["last_update"] == price(NOON + timedelta(seconds=1), 2.0).as_json()


# --- one transaction ----------------------------------------------------------------------------

_TRACES = {
    "bars": "select count(*) from market_data.ohlcv_5m",
    "price": "select count(*) from trading.symbols where metadata ? 'last_update'",
    "status": "select count(*) from data_sources.data_sync_status",
    "item": "select count(*) from asset_sync.queue where state = 'idle'",
    "call": "select count(*) from asset_sync.calls",
}


class PowerCut(BaseException):
    """An unexpected error."""


class Answer:
    """One answer of the provider that is being stored."""

    def __init__(self, db: Connection) -> None:
        self._db = db
        asset = Asset("EURUSD", "C:EURUSD", AssetType.FOREX, "Euro", Level.LOW, 0, 300)
        queue.enqueue(db, [Wanted(asset, Feed.BARS)], QueueSettings())
        [self._item] = queue.claim(db, in_line(db), lease_seconds=60, most=1)
        self._run_id = runs.start(db, "queue")

    def store(self, last_words: Callable[[], None]) -> None:
        with transaction(self._db) as cursor:
            market.save_symbols(cursor, [EURUSD])
            market.save_bars(cursor, "EURUSD", [bar()])
            told = market.price_of_bar(cursor, "EURUSD", NOON, LATER)
            prices = market.save_prices(cursor, [told])
            market.save_status(cursor, ["EURUSD"])
            queue.finish(cursor, [self._item])
            runs.record(cursor, self._run_id, runs.Call(Feed.BARS, ["EURUSD"], "ok", 0.1, 1))
            publish.notify(cursor, prices)
            last_words()


def traces(db: Connection) -> dict[str, int]:
    return {name: query(db, sql)[0][0] for name, sql in _TRACES.items()}


def events_heard(listener: Connection) -> int:
    """Return how many events have arrived: NOTIFY comes before the answer to a statement."""
    query(listener, "select 1")
    listener.poll()
    count = len(listener.notifies)
    listener.notifies.clear()
    return count


@pytest.mark.parametrize("trouble", [PowerCut, KeyboardInterrupt, SystemExit, ValueError])
def test_an_answer_interrupted_before_its_commit_leaves_nothing(
    db: Connection, connect: Callable[[], Connection], trouble: type[BaseException]
) -> None:
    listener = connect()
    query(listener, "listen asset_update")
    answer = Answer(db)

    def cut_off() -> None:
        raise trouble

    with suppress(trouble):
        answer.store(cut_off)

    assert traces(db) == dict.fromkeys(_TRACES, 0)
    assert events_heard(listener) == 0
    answer.store(lambda: None)  # and this run still has the lease
    assert traces(db) == dict.fromkeys(_TRACES, 1)
    assert events_heard(listener) == 1


def test_other_sessions_never_see_a_part_of_an_answer(
    db: Connection, connect: Callable[[], Connection]
) -> None:
    other = connect()
    answer = Answer(db)
    seen: list[dict[str, int]] = []

    answer.store(lambda: seen.append(traces(other)))

    assert seen == [dict.fromkeys(_TRACES, 0)]
    assert traces(other) == dict.fromkeys(_TRACES, 1)


def test_a_process_that_dies_before_its_commit_leaves_nothing(
    db: Connection, connect: Callable[[], Connection]
) -> None:
    dying = connect()
    answer = Answer(dying)

    with pytest.raises(psycopg2.Error):
        answer.store(lambda: kill(db, dying))

    assert traces(db) == dict.fromkeys(_TRACES, 0)


def kill(db: Connection, victim: Connection) -> None:
    """End a session on the server, as the death of its process does."""
    query(db, "select pg_terminate_backend(%s, 5000)", (victim.info.backend_pid,))
