"""The SQL that reads bars for other programs: of any size, of many assets, of any moment."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

from asset_sync.database import Connection, query
from asset_sync.database.larger_bars import (
    FIGURES,
    TOTALS,
    VALUES,
    Every,
    expected,
    expected_joins,
    is_expected,
    is_expected_joins,
)
from asset_sync.errors import AssetSyncError

__all__ = ["COLUMNS", "AsOfError", "Column", "Every", "Selection", "bars_query"]


class AsOfError(AssetSyncError):
    """What was stored at a moment is not known."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which bars to read."""

    symbols: Sequence[str]
    start: datetime | None = None
    """The earliest start of a bar, aware; None for no bound."""
    until: datetime | None = None
    """Bars start before it; aware; None for no bound."""
    every: Every = Every.FIVE_MINUTES
    """How long a bar is."""
    as_of: datetime | None = None
    """The moment whose bars to read, as they were stored then; None for now."""
    complete: bool = False
    """Whether to leave out bars that are not over, and larger bars of which a part is missing, or
    of which it is not known how many parts are expected."""
    now: datetime | None = None
    """The moment that counts as now: no five-minute bar starts then or later; None for now."""


class Column(NamedTuple):
    """A column that the query returns."""

    name: str
    type: str
    """Its type in PostgreSQL."""
    nullable: bool = False


COLUMNS = (
    Column("symbol", "text"),
    Column("ts", "timestamptz"),
    Column("open", "float8"),
    Column("high", "float8"),
    Column("low", "float8"),
    Column("close", "float8"),
    Column("volume", "float8", nullable=True),
    Column("vwap", "float8", nullable=True),
    Column("trades", "int8", nullable=True),
    Column("bars", "int8"),
    Column("expected", "int8", nullable=True),
)
"""What `bars_query` returns, in this order. `ts` is a bar's start, `bars` how many five-minute bars
it is made of, and `expected` how many there should be: null for five-minute bars, and where it is
not known."""


def bars_query(db: Connection, selection: Selection) -> str:
    """Return a `select` of the bars, with all values quoted, for `copy (…) to stdout`.

    The rows have the `COLUMNS`, in the order of the symbols as they are asked for, then of `ts`.
    A symbol without bars has no row. Raises AsOfError if it is not known any more, or not yet, what
    was stored at `as_of`. A run may delete it before it is read: then `require_kept` raises.
    """
    every = selection.every
    if selection.as_of is not None:
        require_kept(db, selection.as_of)
        stored = _STORED_THEN
    else:
        stored = _STORED_OF_ONE if len(selection.symbols) == 1 else _STORED
    source = f"select * from ({stored}) bar {_within(selection)}"
    if every is Every.FIVE_MINUTES:
        larger = f"select bar.*, 1 as bars, null as expected from ({source}) bar"
    else:
        start = every.start("bar.ts")
        end = every.end("total.start")
        totals = TOTALS
        if selection.complete:  # bars outside of the hours make up for none within
            source = f"""
            select bar.*, {is_expected("bar.ts")} as is_expected
            from ({source}) bar {is_expected_joins("bar.symbol", "bar.ts")}
            """
            totals += ", count(*) filter (where bar.is_expected) as expected_there"
        larger = f"""
        select total.*, total.start as ts, {expected("total.start", end)} as expected
        from (
          select number, bar.symbol, {start} as start, {totals} from ({source}) bar
          group by number, bar.symbol, start
        ) total
        {expected_joins("total.symbol", "total.start", end)}
        """
    columns = ", ".join(f"{column.name}::{column.type}" for column in COLUMNS)
    text = f"select {columns} from ({larger}) larger {_complete(selection)} order by number, ts"
    with db.cursor() as cursor:
        return cursor.mogrify(
            text,
            {
                "symbols": list(selection.symbols),
                "start": selection.start,
                "until": selection.until,
                "as_of": selection.as_of,
                "now": selection.now,
            },
        ).decode()


_THEN = ", ".join(
    f"case when old.ts is null then bar.{name}::{kind} else old.{name} end as {name}"
    for name, kind in FIGURES.items()
)

_STORED = f"""
select asked.number, asked.symbol, bar.ts, {VALUES}
from unnest(%(symbols)s::text[]) with ordinality as asked (symbol, number)
join trading.symbols s on s.symbol = asked.symbol
join market_data.ohlcv_5m bar on bar.ticker_id = s.id
"""

# The index has the bars of one asset in the order that is asked for. From a join the planner cannot
# tell that there is one asset, and so it sorts them.
_STORED_OF_ONE = f"""
select 1 as number, (%(symbols)s::text[])[1] as symbol, bar.ts, {VALUES}
from market_data.ohlcv_5m bar
where bar.ticker_id = (
  select id from trading.symbols where symbol = (%(symbols)s::text[])[1]
)
"""

# A bar was first stored at the latest arrival that covers it. So one that a later arrival covers
# was not there yet. Of any other, the first later revision has the values that it had.
_STORED_THEN = f"""
select asked.number, asked.symbol, bar.ts, {_THEN}
from unnest(%(symbols)s::text[]) with ordinality as asked (symbol, number)
join trading.symbols s on s.symbol = asked.symbol
cross join lateral (
  select range_agg(tstzrange(first_ts, last_ts + interval '5 min')) as spans
  from asset_sync.arrivals where symbol = asked.symbol and at > %(as_of)s
) later
join market_data.ohlcv_5m bar
  on bar.ticker_id = s.id and (later.spans is null or not later.spans @> bar.ts)
left join (
  select distinct on (symbol, ts) * from asset_sync.revisions
  where symbol = any(%(symbols)s) and at > %(as_of)s order by symbol, ts, at
) old on old.symbol = asked.symbol and old.ts = bar.ts
"""


def require_kept(db: Connection, as_of: datetime) -> None:
    """Raise AsOfError unless it is known what was stored at that moment."""
    [(now, is_future, anything, reaches, since)] = query(
        db,
        """
        select date_trunc('second', now), %(as_of)s > now, isfinite(changes_from),
          %(as_of)s >= changes_from, date_trunc('second', changes_from + interval '1 s')
        from asset_sync.limiter, clock_timestamp() as now
        """,
        {"as_of": as_of},
    )
    if is_future:
        raise AsOfError(
            f"{_in_utc(as_of)} is in the future: the database's clock says {_in_utc(now)}."
        )
    if not anything:
        raise AsOfError(
            "Bars can only be read as they are now: [history] keep_revisions_days is 0, so what the"
            " provider changes is not kept."
        )
    if not reaches:
        raise AsOfError(
            f"Bars can be read as they were at {_in_utc(since)} or later, not at {_in_utc(as_of)}:"
            " what changed before is not kept ([history] keep_revisions_days)."
        )


def _in_utc(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _complete(selection: Selection) -> str:
    """Return SQL that leaves out the bars that are not whole, if that is asked for."""
    if not selection.complete:
        return ""
    if selection.as_of is not None:
        now = "%(as_of)s"
    else:
        now = "now()" if selection.now is None else "%(now)s"
    over = f"{selection.every.end('ts')} <= {now}"
    is_part = selection.every is Every.FIVE_MINUTES  # nothing can be missing of it
    return f"where {over}" if is_part else f"where {over} and expected_there >= expected"


def _within(selection: Selection) -> str:
    """Return SQL that limits the five-minute bars to those of the larger bars in the range."""
    bounds = [
        f"bar.ts {comparison} {selection.every.first_start(f'%({name})s::timestamptz')}"
        for name, comparison, moment in (
            ("start", ">=", selection.start),
            ("until", "<", selection.until),
        )
        if moment is not None
    ]
    if selection.now is not None:
        bounds.append("bar.ts < %(now)s")
    return f"where {' and '.join(bounds)}" if bounds else ""
