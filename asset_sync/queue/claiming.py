"""Claiming: one run holds an item at a time, under a token that only this run knows."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from asset_sync.database import Connection, query
from asset_sync.model import Asset, AssetType, Feed, Level
from asset_sync.queue.rules import ORDER, Wanted


class Item(NamedTuple):
    """A row of the queue that this run holds."""

    symbol: str
    feed: Feed
    ticker: str
    asset_type: AssetType
    name: str
    level: Level
    frequency_seconds: int
    """How often the settings want it refreshed."""
    attempts: int
    """Tries since the last success that count as failures, this one included."""
    strikes: int
    """Counted failures in a row, before this try."""
    verify_ticker: bool
    """Whether the next call only asks if the ticker exists."""
    backfilled_to: datetime | None
    """How far a catch-up of several calls has come, where it found no bars."""
    token: str


def claim(
    db: Connection, line: Sequence[Wanted], *, lease_seconds: float, most: int
) -> tuple[Item, ...]:
    """Lease the first item of the line and others that the same call can serve.

    `line` comes from `enqueue`, so that only assets of these settings are fetched, by their own
    tickers. Returns at most as many items as one call of the first item's feed serves, none when
    there is nothing to do. Counts the attempt and writes a new token.
    """
    one_each = all(wanted.feed.bulk == 1 for wanted in line)
    for part in (line[:_HEAD], line[_HEAD:]) if one_each else (line,):
        items = _claim(db, part, lease_seconds, most) if part else ()
        if items:
            return items
    return ()


# Among so many items from the head there is nearly always one that no other run holds.
_HEAD = 32


def _claim(
    db: Connection, line: Sequence[Wanted], lease_seconds: float, most: int
) -> tuple[Item, ...]:
    rows = query(
        db,
        f"""
        with own as materialized (
          select * from unnest(
            %(symbols)s::text[], %(feeds)s::text[], %(bulks)s::int[], %(tickers)s::text[]
          ) as own (symbol, feed, bulk, ticker)
        ),
        head as materialized (
          select q.feed, own.bulk from own join asset_sync.queue q using (symbol, feed)
          where q.state = 'waiting' and q.not_before <= clock_timestamp()
          order by {ORDER} limit 1
          for update of q skip locked
        ),
        picked as materialized (
          select q.symbol, q.feed from own join asset_sync.queue q using (symbol, feed)
          where q.state = 'waiting' and q.not_before <= clock_timestamp()
            and q.feed = (select feed from head)
          order by {ORDER}
          limit (select least(%(most)s, bulk) from head)
          for update of q skip locked
        )
        update asset_sync.queue q
        set state = 'leased', attempts = least(attempts, 1000) + 1,
          last_attempt_at = clock_timestamp(),
          ticker = (select own.ticker from own where own.symbol = q.symbol and own.feed = q.feed),
          lease_token = gen_random_uuid(),
          lease_until = clock_timestamp() + make_interval(secs => %(lease)s)
        -- not a join: the planner would read the whole queue, not knowing how few are picked
        where q.symbol = any(array(select symbol from picked))
          and q.feed = (select feed from head)
        returning q.symbol, q.feed, q.attempts, q.strikes, q.verify_ticker, q.backfilled_to,
          q.lease_token::text
        """,
        {
            "symbols": [wanted.asset.symbol for wanted in line],
            "feeds": [wanted.feed for wanted in line],
            "bulks": [wanted.feed.bulk for wanted in line],
            "tickers": [wanted.asset.ticker for wanted in line],
            "most": most,
            "lease": lease_seconds,
        },
    )
    held = {(symbol, feed): rest for symbol, feed, *rest in rows}
    return tuple(
        _item(wanted.asset, wanted.feed, *held[wanted.asset.symbol, wanted.feed])
        for wanted in line
        if (wanted.asset.symbol, wanted.feed) in held
    )


def _item(
    asset: Asset,
    feed: Feed,
    attempts: int,
    strikes: int,
    verify_ticker: bool,  # noqa: FBT001  # a column
    backfilled_to: datetime | None,
    token: str,
) -> Item:
    return Item(
        asset.symbol,
        feed,
        asset.ticker,
        asset.asset_type,
        asset.name,
        asset.level,
        asset.update_frequency_seconds,
        attempts,
        strikes,
        verify_ticker,
        backfilled_to,
        token,
    )


def waiting(db: Connection, line: Sequence[Wanted]) -> bool:
    """Return whether an item of the line (see `enqueue`) can be claimed now."""
    if not line:
        return False
    [(found,)] = query(
        db,
        """
        select exists (
          select from unnest(%s::text[], %s::text[]) as own (symbol, feed)
          join asset_sync.queue q using (symbol, feed)
          where q.state = 'waiting' and q.not_before <= clock_timestamp()
        )
        """,
        ([wanted.asset.symbol for wanted in line], [wanted.feed for wanted in line]),
    )
    return bool(found)
