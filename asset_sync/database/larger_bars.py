"""Larger bars, made of the five-minute bars when they are read: their SQL, views and function.

They are never stored, so they are right even after the provider has repaired bars of long ago.
"""

import zlib
from collections.abc import Iterator
from contextlib import suppress
from enum import StrEnum
from typing import NamedTuple

import psycopg2

from asset_sync.database.connection import Connection, Cursor, query, savepoint

_NEW_YORK = "'America/New_York'"
# A Monday before every bar, so that weeks begin on Monday. Before its origin `date_bin` of some
# versions of PostgreSQL rounds in the wrong direction.
_ORIGIN = "timestamptz '1969-12-29 00:00Z'"


class Every(StrEnum):
    """How long a bar is."""

    FIVE_MINUTES = "5m"
    QUARTER = "15m"
    HOUR = "1h"
    FOUR_HOURS = "4h"
    DAY = "1d"
    """From midnight to midnight, UTC."""
    NEW_YORK_DAY = "1d-ny"
    """Until 17:00 in New York, as the day of forex; 23 or 25 hours where the clock changes."""

    def start(self, ts: str) -> str:
        """Return SQL for the start of the bar that covers a moment; `ts` is SQL, too."""
        if self is Every.NEW_YORK_DAY:
            wall = f"({ts} at time zone {_NEW_YORK} + interval '7 hours')"
            return f"((date_trunc('day', {wall}) - interval '7 hours') at time zone {_NEW_YORK})"
        return f"date_bin({_STRIDES[self]}, {ts}, {_ORIGIN})"

    def end(self, start: str) -> str:
        """Return SQL for the end of the bar with that start."""
        if self is Every.NEW_YORK_DAY:
            wall = f"({start} at time zone {_NEW_YORK} + interval '1 day')"
            return f"({wall} at time zone {_NEW_YORK})"
        return f"({start} + {_STRIDES[self]})"

    def first_start(self, ts: str) -> str:
        """Return SQL for the start of the first bar that starts at a moment or later."""
        start = self.start(ts)
        return f"case when {start} = {ts} then {ts} else {self.end(start)} end"


_STRIDES = {
    Every.FIVE_MINUTES: "interval '5 min'",
    Every.QUARTER: "interval '15 min'",
    Every.HOUR: "interval '1 hour'",
    Every.FOUR_HOURS: "interval '4 hours'",
    # Not '1 day': that would be 23 hours where the session's time zone changes its clock.
    Every.DAY: "interval '24 hours'",
}

FIGURES = {
    **dict.fromkeys(("open", "high", "low", "close", "volume", "vwap"), "float8"),
    "trades": "bigint",
}
"""The columns of a bar and the types in which they are read; those of a user's own table differ."""

VALUES = ", ".join(f"bar.{name}::{kind} as {name}" for name, kind in FIGURES.items())
"""SQL for the figures of a row `bar` of `market_data.ohlcv_5m`."""

TOTALS = """
(array_agg(bar.open order by bar.ts))[1] as open,
max(bar.high) as high,
min(bar.low) as low,
(array_agg(bar.close order by bar.ts))[count(*)] as close,
sum(bar.volume) as volume,
sum(bar.vwap * bar.volume) filter (where bar.volume > 0)
  / sum(bar.volume) filter (where bar.volume > 0 and bar.vwap is not null) as vwap,
sum(bar.trades)::bigint as trades,
count(*)::integer as bars
"""
"""SQL for the figures of a larger bar, grouped from rows `bar` with the columns of `VALUES`.

A bar without volume or mean price does not count in the volume-weighted mean.
"""


def expected(start: str, end: str) -> str:
    """Return SQL for how many five-minute bars are expected between two moments.

    It is null beyond the days that are written. The moments, SQL themselves, are multiples of a
    quarter of an hour. It needs the joins of `expected_joins`.
    """
    return " - ".join(
        f"({row}.before + {row}.before_quarter"
        f"[1 + mod(date_part('epoch', {moment})::bigint / 900, 96)])"
        for row, moment in (("until", end), ("since", start))
    )


def expected_joins(symbol: str, start: str, end: str) -> str:
    """Return SQL that joins what `expected` needs."""
    joins = f"left join asset_sync.symbol_hours own on own.symbol = {symbol}"
    for row, moment in (("since", start), ("until", end)):
        joins += f"""
          left join asset_sync.expected_bars {row} on {row}.hours = own.hours
            and {row}.day = ({moment} at time zone 'UTC')::date"""
    return joins


def is_expected(ts: str) -> str:
    """Return SQL for whether bars are expected in the quarter of an hour of a moment.

    It needs the joins of `is_expected_joins`.
    """
    quarter = f"mod(date_part('epoch', {ts})::bigint / 900, 96)::int"
    return f"""
      case when {quarter} = 95 then next.before - day.before
        else day.before_quarter[{quarter} + 2] end > day.before_quarter[{quarter} + 1]
    """


def is_expected_joins(symbol: str, ts: str) -> str:
    """Return SQL that joins what `is_expected` needs."""
    return f"""
      left join asset_sync.symbol_hours own on own.symbol = {symbol}
      left join asset_sync.expected_bars day on day.hours = own.hours
        and day.day = ({ts} at time zone 'UTC')::date
      left join asset_sync.expected_bars next on next.hours = own.hours and next.day = day.day + 1
    """


# --- the views and the function ------------------------------------------------------------------


class _Made(NamedTuple):
    """A view or a function that `make_readable` makes."""

    kind: str
    name: str
    """With its schema; of a function with the types of its arguments, as `to_regprocedure` has it.
    """
    about: str
    sql: str

    @property
    def comment(self) -> str:
        """The comment by which it is recognised, with a fingerprint of its SQL."""
        return f"{self.about} {_OURS}{zlib.crc32(self.sql.encode()):08x})."


_OURS = "Made by asset-sync ("

# What a view reads cannot be altered, dropped or replaced. A function whose body is text keeps no
# one from it, and names the tables anew in each query, which has the body in its place.
_STORED = _Made(
    "function",
    "asset_sync.stored_bars()",
    "The five-minute bars with the symbols of their assets, for the views of larger bars.",
    f"""
    create or replace function asset_sync.stored_bars() returns table (
      symbol text, ts timestamptz, open double precision, high double precision,
      low double precision, close double precision, volume double precision,
      vwap double precision, trades bigint
    )
    language sql stable parallel safe as $stored$
    select s.symbol::text, bar.ts, {VALUES}
    from trading.symbols s join market_data.ohlcv_5m bar on bar.ticker_id = s.id
    $stored$
    """,
)


def _larger(start: str, end: str, expected_there: str = "true", where: str = "") -> str:
    """Return SQL for larger bars; `start` is that of a row `bar`, `end` that of a row `total`."""
    expected_bars = f"case when {expected_there} then {expected('total.ts', end)} end"
    return f"""
    select total.symbol, total.ts, total.open, total.high, total.low, total.close, total.volume,
      total.vwap, total.trades, total.bars, {expected_bars} as expected
    from (
      select bar.symbol, {start} as ts, {TOTALS}
      from asset_sync.stored_bars() bar {where} group by bar.symbol, {start}
    ) total
    {expected_joins("total.symbol", "total.ts", end)}
    """


def _view(every: Every, about: str) -> _Made:
    name = f"market_data.ohlcv_{every.replace('-', '_')}"
    body = _larger(every.start("bar.ts"), every.end("total.ts"))
    about = f"{about}, made of market_data.ohlcv_5m when they are read."
    return _Made("view", name, about, f"create or replace view {name} as {body}")


# A number of seconds is that long on every day, whatever the session's time zone.
_STRIDE = "make_interval(secs => date_part('epoch', every))"
_FIRST_START = f"date_bin(every, {{}} + {_STRIDE} - interval '1 microsecond', {_ORIGIN})"
_FUNCTION = _Made(
    "function",
    "market_data.bars(text,interval,timestamptz,timestamptz)",
    "The bars of any length of an asset that start in [from_ts, until_ts), made of"
    " market_data.ohlcv_5m when they are read.",
    f"""
    create or replace function market_data.bars(
      asset text, every interval,
      from_ts timestamptz default '-infinity', until_ts timestamptz default 'infinity'
    )
    returns table (
      symbol text, ts timestamptz, open double precision, high double precision,
      low double precision, close double precision, volume double precision,
      vwap double precision, trades bigint, bars integer, expected integer
    )
    language sql stable parallel safe as $bars$
    {
        _larger(
            f"date_bin(every, bar.ts, {_ORIGIN})",
            f"(total.ts + {_STRIDE})",
            "mod(date_part('epoch', every)::bigint, 900) = 0",
            f"where bar.symbol = asset and bar.ts >= {_FIRST_START.format('from_ts')}"
            f" and bar.ts < {_FIRST_START.format('until_ts')}",
        )
    }
    $bars$
    """,
)

_MADE = (
    _STORED,
    _view(Every.QUARTER, "Bars of a quarter of an hour"),
    _view(Every.HOUR, "Bars of an hour"),
    _view(Every.FOUR_HOURS, "Bars of four hours, from midnight UTC"),
    _view(Every.DAY, "Bars of a day, UTC"),
    _view(Every.NEW_YORK_DAY, "Bars of a day that ends at 17:00 in New York"),
    _FUNCTION,
)


def make_readable(cursor: Cursor) -> None:
    """Make the views and the function whose names are free, and bring ours up to date.

    What this role may not make is left out: `problems_of_readable` says so.
    """
    for one, found in _comments(cursor.connection).items():
        if found == one.comment or (found is not None and _OURS not in found):
            continue
        with suppress(psycopg2.ProgrammingError), savepoint(cursor):
            cursor.execute(one.sql)
            cursor.execute(f"comment on {one.kind} {one.name} is %s", (one.comment,))


def problems_of_readable(db: Connection) -> Iterator[str]:
    """Yield a sentence for the views and functions whose names are taken, or that are missing."""
    comments = _comments(db)
    taken = [
        one.name for one, found in comments.items() if found is not None and _OURS not in found
    ]
    if taken:
        yield (
            f"{', '.join(taken)} is not asset-sync's, and stays as it is: rename it and run"
            " `asset-sync db init` to get larger bars by that name."
        )
    missing = [one.name for one, found in comments.items() if found is None]
    if missing:
        yield (
            f"{', '.join(missing)} for larger bars could not be made: run `asset-sync db init` as"
            " a role that may create in the schema market_data."
        )


def _comments(db: Connection) -> dict[_Made, str | None]:
    """Return the comment of each view and function; None if there is nothing of that name."""
    rows = query(
        db,
        """
        select case kind when 'function' then (
            select coalesce(obj_description(oid, 'pg_proc'), '') from pg_proc
            where oid = to_regprocedure(name))
          else (
            select coalesce(obj_description(oid, 'pg_class'), '') from pg_class
            where oid = to_regclass(name))
          end
        from unnest(%s::text[], %s::text[]) with ordinality as made (kind, name, number)
        order by number
        """,
        ([one.kind for one in _MADE], [one.name for one in _MADE]),
    )
    return {one: found for one, (found,) in zip(_MADE, rows, strict=True)}
