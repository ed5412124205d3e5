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
    attempts: int
    """Tries since the last success that count against it, this one included."""
    strikes: int
    """Failures in a row that counted, before this try."""
    verify_ticker: bool
    """Whether the next call is to ask if the ticker exists at all."""
    backfilled_to: datetime | None
    """How far a catch-up of several calls has come, where it found no bars."""
    token: str


def claim(
    db: Connection, line: Sequence[Wanted], *, lease_seconds: float, most: int
) -> tuple[Item, ...]:
    """Lease the first item of the line, and with it what the same call can serve: one statement.

    `line` is that of `enqueue`: what is not in the settings is not fetched, whoever put it in the
    queue, and the settings' own ticker is used. Returns as many items as one call of the first
    one's feed serves; none when there is nothing to do. Counts the attempt and writes a new token.
    """
    one_each = all(one.feed.bulk == 1 for one in line)
    for part in (line[:_HEAD], line[_HEAD:]) if one_each else (line,):
        items = _claim(db, part, lease_seconds, most) if part else ()
        if items:
            return items
    return ()


# So many items from the head nearly always hold one that nobody else has.
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
        -- not a join: unaware of how few are picked, it would read the whole queue
        where q.symbol = any(array(select symbol from picked))
          and q.feed = (select feed from head)
        returning q.symbol, q.feed, q.attempts, q.strikes, q.verify_ticker, q.backfilled_to,
          q.lease_token::text
        """,
        {
            "symbols": [one.asset.symbol for one in line],
            "feeds": [one.feed for one in line],
            "bulks": [one.feed.bulk for one in line],
            "tickers": [one.asset.ticker for one in line],
            "most": most,
            "lease": lease_seconds,
        },
    )
    held = {(symbol, feed): rest for symbol, feed, *rest in rows}
    return tuple(
        _item(one.asset, one.feed, *held[one.asset.symbol, one.feed])
        for one in line
        if (one.asset.symbol, one.feed) in held
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
        attempts,
        strikes,
        verify_ticker,
        backfilled_to,
        token,
    )


def waiting(db: Connection, line: Sequence[Wanted]) -> bool:
    """Say whether an item of the line (see `enqueue`) can be claimed now."""
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
        ([one.asset.symbol for one in line], [one.feed for one in line]),
    )
    return bool(found)
