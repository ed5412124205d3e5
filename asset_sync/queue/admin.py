"""What an operator can see and change in the queue."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from asset_sync.database import Connection, query
from asset_sync.model import Feed, Level


class Entry(NamedTuple):
    """A row of the queue."""

    symbol: str
    feed: Feed
    ticker: str
    level: Level
    state: str
    """idle (fresh), waiting, leased or dead."""
    due_at: datetime
    wait_seconds: float
    """Until it may be tried; 0 if it may be tried now."""
    attempts: int
    last_success_at: datetime | None
    last_error: str | None


_ENTRY = """
  q.symbol, q.feed, q.ticker, q.level, q.state, q.due_at,
  greatest(0, extract(epoch from q.not_before - clock_timestamp()))::float8,
  q.attempts, q.last_success_at, q.last_error
"""

_LEVELS = [level.value for level in Level]

_FILTER = """
  (%(symbols)s::text[] = '{}' or q.symbol = any(%(symbols)s::text[]))
  and (%(states)s::text[] = '{}' or q.state = any(%(states)s::text[]))
  and (%(levels)s::text[] = '{}' or q.level = any(%(levels)s::text[]))
"""


def entries(
    db: Connection,
    *,
    symbols: Sequence[str] = (),
    states: Sequence[str] = (),
    levels: Sequence[str] = (),
    most: int = 1000,
) -> tuple[Entry, ...]:
    """Return rows of the queue, those that need attention first; an empty filter matches all."""
    rows = query(
        db,
        f"""
        select {_ENTRY} from asset_sync.queue q where {_FILTER}
        order by array_position(array['dead', 'leased', 'waiting', 'idle'], q.state),
          array_position(%(known)s::text[], q.level), q.sort_at, q.symbol, q.feed
        limit %(most)s
        """,
        {
            "symbols": list(symbols),
            "states": list(states),
            "levels": list(levels),
            "known": _LEVELS,
            "most": most,
        },
    )
    return tuple(_entry(*row) for row in rows)


def count(
    db: Connection,
    *,
    symbols: Sequence[str] = (),
    states: Sequence[str] = (),
    levels: Sequence[str] = (),
) -> int:
    """Return how many rows match the filters; `entries` returns the first of them."""
    [(rows,)] = query(
        db,
        f"select count(*) from asset_sync.queue q where {_FILTER}",
        {"symbols": list(symbols), "states": list(states), "levels": list(levels)},
    )
    return int(rows)


def symbols(db: Connection) -> list[str]:
    """Return the symbols of all items of the queue, each once."""
    rows = query(db, "select distinct symbol from asset_sync.queue order by symbol")
    return [symbol for (symbol,) in rows]


def retry(db: Connection, symbols: Sequence[str]) -> tuple[Entry, ...]:
    """Put dead items and those that back off in line, to be tried now; no symbols means all.

    Their failures are forgotten. Returns the changed items.
    """
    return _update(
        db,
        symbols,
        """q.state = 'dead' or (q.state = 'waiting' and q.not_before > clock_timestamp())""",
        # as if it had never failed: a first try asks for data, not whether the ticker exists
        """state = 'waiting', attempts = 0, strikes = 0, failed_tickers = '{}',
           failed_at = '-infinity', verify_ticker = false, not_before = now(), last_error = null""",
    )


def add(db: Connection, symbols: Sequence[str]) -> tuple[Entry, ...]:
    """Put fresh assets in line before they are due; returns the changed items."""
    return _update(
        db,
        symbols,
        "q.state = 'idle'",
        """state = 'waiting', due_at = now(), not_before = now(),
           sort_at = case when q.level = 'critical' then q.sort_at else now() end""",
    )


def remove(db: Connection, symbols: Sequence[str]) -> tuple[Entry, ...]:
    """Delete items that no run holds, and return them.

    If the settings still name an asset, the next run adds it again, as if it were new.
    """
    rows = query(
        db,
        f"""
        delete from asset_sync.queue q
        where q.symbol = any(%s) and q.state <> 'leased' returning {_ENTRY}
        """,
        (list(symbols),),
    )
    return tuple(_entry(*row) for row in rows)


def _update(db: Connection, symbols: Sequence[str], which: str, changes: str) -> tuple[Entry, ...]:
    """Update the unlocked items that fulfil the condition `which`, and return them."""
    rows = query(
        db,
        f"""
        with chosen as materialized (
          select symbol, feed from asset_sync.queue q
          where (%(symbols)s::text[] = '{{}}' or q.symbol = any(%(symbols)s::text[])) and ({which})
          order by symbol, feed for update skip locked
        )
        update asset_sync.queue q set {changes}
        from chosen c where q.symbol = c.symbol and q.feed = c.feed
        returning {_ENTRY}
        """,
        {"symbols": list(symbols)},
    )
    return tuple(sorted(_entry(*row) for row in rows))


def _entry(
    symbol: str,
    feed: str,
    ticker: str,
    level: str,
    state: str,
    due_at: datetime,
    wait_seconds: float,
    attempts: int,
    last_success_at: datetime | None,
    last_error: str | None,
) -> Entry:
    return Entry(
        symbol,
        Feed.named(feed),
        ticker,
        Level(level),
        state,
        due_at,
        wait_seconds,
        attempts,
        last_success_at,
        last_error,
    )
