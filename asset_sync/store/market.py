"""The platform's tables: bars, last prices, sync status.

Everything here runs in the caller's transaction, because each answer is stored in one transaction.
No id is read into Python: in an existing platform's tables it may be of any type.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from psycopg2.errors import UniqueViolation

from asset_sync.database import Connection, Cursor, DatabaseError, query, savepoint
from asset_sync.provider.answers import Bar
from asset_sync.provider.current import CODE

# Whether a bar's prices are finite numbers. For PostgreSQL NaN is greater than infinity.
_HAS_NUMBERS = """(
  least(bar.open, bar.high, bar.low, bar.close)::float8 > '-infinity'
  and greatest(bar.open, bar.high, bar.low, bar.close)::float8 < 'infinity'
)"""


class Symbol(NamedTuple):
    """A new row of `trading.symbols`."""

    symbol: str
    name: str
    asset_type: str


class LastPrice(NamedTuple):
    """The last price of an asset, as `metadata.last_update` holds it."""

    symbol: str
    bid: float | None
    ask: float | None
    last_price: float
    daily_open: float | None
    daily_high: float | None
    daily_low: float | None
    daily_close: float | None
    timestamp: datetime
    """The time of the price; aware."""

    def as_json(self) -> dict[str, float | str | None]:
        """Return the object for `metadata.last_update`."""
        return {
            "bid": self.bid,
            "ask": self.ask,
            "last_price": self.last_price,
            "daily_open": self.daily_open,
            "daily_high": self.daily_high,
            "daily_low": self.daily_low,
            "daily_close": self.daily_close,
            "timestamp": self.timestamp.astimezone(UTC).isoformat(),
            "source": CODE,
        }


def save_symbols(cursor: Cursor, symbols: Sequence[Symbol]) -> None:
    """Insert rows for assets that the platform does not have; leave existing rows unchanged."""
    cursor.execute(
        """
        insert into trading.symbols (symbol, name, asset_type)
        select * from unnest(%s::text[], %s::text[], %s::text[]) as new (symbol, name, asset_type)
        where not exists (select from trading.symbols s where s.symbol = new.symbol)
        order by symbol
        on conflict (symbol) do nothing
        """,
        (
            [row.symbol for row in symbols],
            [row.name for row in symbols],
            [row.asset_type for row in symbols],
        ),
    )


def newest_bar(db: Connection, symbol: str) -> tuple[datetime | None, datetime]:
    """Return the start of the asset's newest bar, None if it has none, and the current time."""
    newest, now = newest_bars(db, [symbol])
    return newest.get(symbol), now


def newest_bars(db: Connection, symbols: Sequence[str]) -> tuple[dict[str, datetime], datetime]:
    """Return the start of the newest bar of each asset that has one, and the current time.

    Bars of the future, from before 1970, and with infinite prices or NaN do not count: another
    program wrote them. A bar of the future would hide that earlier bars are missing. Some of the
    dates do not exist in Python, and some of the prices do not exist in JSON.
    """
    rows = query(
        db,
        f"""
        select asked.symbol, newest.ts, moment.now
        from (select clock_timestamp() as now) as moment
        left join unnest(%s::text[]) as asked (symbol) on true
        left join trading.symbols s on s.symbol = asked.symbol
        left join lateral (
          select bar.ts from market_data.ohlcv_5m bar
          where bar.ticker_id = s.id and bar.ts >= timestamptz 'epoch' and bar.ts <= now()
            and {_HAS_NUMBERS}
          order by bar.ts desc limit 1
        ) as newest on true
        """,
        (list(symbols),),
    )
    return {symbol: ts for symbol, ts, _ in rows if ts is not None}, rows[0][2]


class Stored(NamedTuple):
    """What is stored of an asset."""

    bars: int
    oldest: datetime | None
    """The start of its oldest bar."""
    last_price: float | None
    priced_at: datetime | None


def stored(db: Connection, symbol: str) -> Stored:
    """Return how many bars an asset has, the oldest, and its last price."""
    rows = query(
        db,
        """
        select span.bars, span.oldest,
          -- another program may have written anything
          case jsonb_typeof(price -> 'last_price') when 'number'
            then (price ->> 'last_price')::float8 end,
          price ->> 'timestamp'
        from trading.symbols s
        cross join lateral (select s.metadata::jsonb -> 'last_update' as price) as last_update
        cross join lateral (
          select count(*)::int as bars, min(ts) as oldest from market_data.ohlcv_5m
          where ticker_id = s.id and ts between timestamptz 'epoch' and now()
        ) as span
        where s.symbol = %s
        """,
        (symbol,),
    )
    if not rows:
        return Stored(0, None, None, None)
    [(bars, oldest, last_price, priced_at)] = rows
    return Stored(bars, oldest, last_price, _read_timestamp(priced_at))


def save_bars(cursor: Cursor, symbol: str, bars: Sequence[Bar], *, kept: bool = True) -> int:
    """Write the bars of one answer; return how many were new or changed.

    The provider corrects its history, so a stored bar is updated; an equal one costs no write. If
    `kept`, the values that are overwritten go to `asset_sync.revisions`, and each unbroken run of
    new bars leaves a row in `asset_sync.arrivals`.
    """
    if not bars:
        return 0
    values = {
        "symbol": symbol,
        "kept": kept,
        "first": min(bar.start_ms for bar in bars) / 1000,
        "last": max(bar.start_ms for bar in bars) / 1000,
        **dict(zip(Bar._fields, map(_array_literal, zip(*bars, strict=True)), strict=True)),
    }
    try:
        with savepoint(cursor):
            return _write_bars(cursor, values)
    except UniqueViolation:
        # A program that does not lock the ledger wrote one of the bars in this moment. Now its bar
        # is seen as stored.
        return _write_bars(cursor, values)


# Bars that are not stored are inserted without `on conflict`, which writes 10,000 of them in 70 %
# of the time.
_SENT = """
  unnest(
    %(start_ms)s::bigint[], %(open)s::float8[], %(high)s::float8[], %(low)s::float8[],
    %(close)s::float8[], %(volume)s::float8[], %(vwap)s::float8[], %(trades)s::bigint[]
  ) as sent (start_ms, open, high, low, close, volume, vwap, trades)
"""
_INTO_EMPTY_RANGE = f"""
with arrived as (
  insert into asset_sync.arrivals (symbol, first_ts, last_ts)
  select symbol, to_timestamp(%(first)s), to_timestamp(%(last)s)
  from trading.symbols where symbol = %(symbol)s and %(kept)s
)
insert into market_data.ohlcv_5m (ticker_id, ts, open, high, low, close, volume, vwap, trades)
select s.id, to_timestamp(start_ms / 1000.0::float8), open, high, low, close, volume, vwap, trades
from trading.symbols s cross join {_SENT} where s.symbol = %(symbol)s
"""
# All parts see the rows as they were before. What differs is decided by the upsert, whose values
# have the columns' own types, as numeric(18, 8).
_AMONG_STORED = f"""
with asset as materialized (
  select id, symbol, clock_timestamp() as now from trading.symbols where symbol = %(symbol)s
),
sent as materialized (
  select to_timestamp(start_ms / 1000.0::float8) as ts, open, high, low, close, volume, vwap, trades
  from {_SENT}
),
old as materialized (
  select bar.ts, bar.open::float8, bar.high::float8, bar.low::float8, bar.close::float8,
    bar.volume::float8, bar.vwap::float8, bar.trades::bigint
  from asset join market_data.ohlcv_5m bar on bar.ticker_id = asset.id
  where bar.ts between to_timestamp(%(first)s) and to_timestamp(%(last)s)
),
new as materialized (
  select * from sent where not exists (select from old where old.ts = sent.ts)
),
inserted as (
  insert into market_data.ohlcv_5m (ticker_id, ts, open, high, low, close, volume, vwap, trades)
  select asset.id, new.* from asset, new
),
arrived as (
  insert into asset_sync.arrivals (symbol, at, first_ts, last_ts)
  select asset.symbol, asset.now, min(ts), max(ts)
  from asset, (
    select ts, is_new, count(*) filter (where not is_new) over (order by ts) as stored_before
    from (select ts, true as is_new from new union all select ts, false from old) both_kinds
  ) in_order
  where is_new and %(kept)s
  group by asset.symbol, asset.now, stored_before
),
changed as (
  insert into market_data.ohlcv_5m as stored
    (ticker_id, ts, open, high, low, close, volume, vwap, trades)
  select asset.id, sent.* from asset, sent join old using (ts)
  where (sent.open, sent.high, sent.low, sent.close, sent.volume, sent.vwap, sent.trades)
    is distinct from (old.open, old.high, old.low, old.close, old.volume, old.vwap, old.trades)
  on conflict (ticker_id, ts) do update set
    open = excluded.open, high = excluded.high, low = excluded.low, close = excluded.close,
    volume = excluded.volume, vwap = excluded.vwap, trades = excluded.trades
  where (stored.open, stored.high, stored.low, stored.close,
         stored.volume, stored.vwap, stored.trades)
    is distinct from (excluded.open, excluded.high, excluded.low, excluded.close,
         excluded.volume, excluded.vwap, excluded.trades)
  returning ts
),
revised as (
  insert into asset_sync.revisions
    (symbol, at, ts, open, high, low, close, volume, vwap, trades)
  select asset.symbol, asset.now, old.* from asset, changed join old using (ts) where %(kept)s
)
select (select count(*) from new) + (select count(*) from changed)
"""


def _write_bars(cursor: Cursor, values: Mapping[str, object]) -> int:
    # The lock is a statement of its own, so that the statements after it see what was committed
    # while this one waited.
    cursor.execute(
        """
        select from asset_sync.ledger where symbol = %(symbol)s for update;
        select exists (
          select from trading.symbols s join market_data.ohlcv_5m bar on bar.ticker_id = s.id
          where s.symbol = %(symbol)s
            and bar.ts between to_timestamp(%(first)s) and to_timestamp(%(last)s)
        )
        """,
        values,
    )
    [(any_stored,)] = cursor.fetchall()
    if not any_stored:
        cursor.execute(_INTO_EMPTY_RANGE, values)
        return cursor.rowcount
    cursor.execute(_AMONG_STORED, values)
    [(written,)] = cursor.fetchall()
    return int(written)


def price_of_bar(
    cursor: Cursor, symbol: str, start: datetime, as_of: datetime, running: Bar | None = None
) -> LastPrice:
    """Return the close of a bar as a price, with the day's figures up to this bar.

    The bar is stored, or it is `running`, which is not.
    """
    day = start.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    cursor.execute(
        f"""
        with bar as (
          select ts, open::float8, high::float8, low::float8, close::float8
          from market_data.ohlcv_5m bar join trading.symbols s on s.id = bar.ticker_id
          where s.symbol = %(symbol)s and ts >= %(day)s and ts <= %(start)s and {_HAS_NUMBERS}
            and (%(open)s::float8 is null or ts < %(start)s)
          union all
          select %(start)s, %(open)s, %(high)s, %(low)s, %(close)s
          where %(open)s::float8 is not null
        )
        select (array_agg(open order by ts))[1], max(high), min(low),
          (array_agg(close order by ts desc))[1]
        from bar
        """,
        {
            "symbol": symbol,
            "day": day,
            "start": start,
            "open": running and running.open,
            "high": running and running.high,
            "low": running and running.low,
            "close": running and running.close,
        },
    )
    [(daily_open, daily_high, daily_low, close)] = cursor.fetchall()
    return LastPrice(
        symbol,
        bid=None,
        ask=None,
        last_price=close,
        daily_open=daily_open,
        daily_high=daily_high,
        daily_low=daily_low,
        daily_close=close,
        timestamp=as_of,
    )


def save_prices(cursor: Cursor, prices: Sequence[LastPrice]) -> tuple[LastPrice, ...]:
    """Write last prices, skipping any older than the stored one; return those written.

    On a plan with quotes, an asset's bars are fetched after its quote, whose price is newer. A time
    in the future is set to now, because a price of tomorrow would block all prices of today.
    """
    cursor.execute(
        """
        select from trading.symbols where symbol = any(%(symbols)s) order by symbol for update;
        -- read only after the lock, so that no other transaction can change them any more
        select symbol, metadata -> 'last_update' ->> 'timestamp', clock_timestamp()
        from trading.symbols where symbol = any(%(symbols)s)
        """,
        {"symbols": [price.symbol for price in prices]},
    )
    known = {symbol: (_read_timestamp(text), now) for symbol, text, now in cursor.fetchall()}
    newer = tuple(
        price._replace(timestamp=min(price.timestamp, known[price.symbol][1]))
        for price in prices
        if price.symbol in known and _not_older(price.timestamp, *known[price.symbol])
    )
    cursor.execute(
        """
        update trading.symbols s
        set updated_at = now(),
          -- null, or the JSON null that ORMs write for it, becomes an object
          metadata = case jsonb_typeof(s.metadata) when 'object' then s.metadata else '{}' end
            || jsonb_build_object('last_update', new.price)
        from unnest(%s::text[], %s::jsonb[]) as new (symbol, price)
        where s.symbol = new.symbol
        """,
        ([price.symbol for price in newer], [json.dumps(price.as_json()) for price in newer]),
    )
    return newer


def save_status(cursor: Cursor, symbols: Sequence[str], error: str | None = None) -> None:
    """Write the assets' sync status: a success now, or the error."""
    cursor.execute(
        """
        insert into data_sources.data_sync_status as stored
          (ticker_id, provider_id, last_sync_timestamp, sync_status, error_message, updated_at)
        select s.id, p.id, case when %(error)s is null then now() end,
          case when %(error)s is null then 'success' else 'error' end, %(error)s, now()
        from trading.symbols s, data_sources.api_providers p
        where s.symbol = any(%(symbols)s) and p.code = %(provider)s
        order by s.symbol
        on conflict (ticker_id, provider_id) do update set
          last_sync_timestamp = coalesce(excluded.last_sync_timestamp, stored.last_sync_timestamp),
          sync_status = excluded.sync_status, error_message = excluded.error_message,
          updated_at = excluded.updated_at
        """,
        {"symbols": list(symbols), "error": error, "provider": CODE},
    )
    # An asset with an error may have no row in trading.symbols yet; a refreshed one has.
    if error is None and cursor.rowcount != len(symbols):
        raise DatabaseError(
            f"data_sources.api_providers has no row with the code {CODE!r}: insert it, or run "
            "`asset-sync db init`."
        )


def _array_literal(values: Iterable[float | None]) -> str:
    """Return numbers as an array literal, which psycopg2 sends as one string."""
    return "{" + str(list(values))[1:-1].replace("None", "null") + "}"


def _read_timestamp(text: str | None) -> datetime | None:
    """Read a timestamp, in UTC by default; None if another program wrote something unreadable."""
    try:
        known = datetime.fromisoformat(text or "")
        return known.astimezone(UTC) if known.tzinfo else known.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None


def _not_older(timestamp: datetime, known: datetime | None, now: datetime) -> bool:
    """Whether a price may replace the one of `known`; a stored time in the future is ignored."""
    return known is None or known > now or timestamp >= known
