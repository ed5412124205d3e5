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
    """Tries since the last success that count against the asset itself, this one included."""
    strikes: int
    """Counted failures in a row, before this try."""
    verify_ticker: bool
    """Whether the next call only asks if the ticker exists."""
    backfilled_to: datetime | None
    """Up to when earlier calls of a catch-up have asked without finding new bars; else None."""
    token: str
    silent: int = 0
    """How many answers in a row brought no newer bar although the market was open."""


def claim(
    db: Connection, line: Sequence[Wanted], *, lease_seconds: float, most: int
) -> tuple[Item, ...]:
    """Lease the first item of the line and others that the same call can serve.

    `line` comes from `enqueue`, so that only assets of these settings are fetched, with the tickers
    of these settings. Returns at most as many items as one call of the first item's feed serves,
    none if no item can be claimed. Counts the attempt and writes a new token.
    """
    one_each = all(wanted.feed.bulk == 1 for wanted in line)
    for part in (line[:_HEAD_LENGTH], line[_HEAD_LENGTH:]) if one_each else (line,):
        items = _claim_from(db, part, lease_seconds, most) if part else ()
        if items:
            return items
    return ()


# Among the first 32 items there is nearly always one that no other run holds.
_HEAD_LENGTH = 32


def _claim_from(
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
          q.lease_token::text, q.silent
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


def claim_history(db: Connection, asset: Asset, *, lease_seconds: float) -> Item | None:
    """Lease the item of an asset's history; None if another run holds it or it backs off.

    Such an item is in no line: it is idle between two calls, and made with the first.
    """
    rows = query(
        db,
        """
        insert into asset_sync.queue (symbol, feed, feed_rank, ticker, asset_type, name, level)
        select %(symbol)s, %(feed)s, %(rank)s, %(ticker)s, %(type)s, %(name)s, %(level)s
        where not exists (
          select from asset_sync.queue where symbol = %(symbol)s and feed = %(feed)s
        )
        on conflict do nothing;

        with picked as materialized (
          select symbol, feed from asset_sync.queue
          where symbol = %(symbol)s and feed = %(feed)s and (
            (state in ('idle', 'waiting') and not_before <= clock_timestamp())
            or (state = 'dead' and ticker <> %(ticker)s)
          )
          for update skip locked
        )
        update asset_sync.queue q
        set state = 'leased', attempts = least(attempts, 1000) + 1, ticker = %(ticker)s,
          last_attempt_at = clock_timestamp(), lease_token = gen_random_uuid(),
          lease_until = clock_timestamp() + make_interval(secs => %(lease)s)
        from picked p where q.symbol = p.symbol and q.feed = p.feed
        returning q.attempts, q.strikes, q.verify_ticker, q.backfilled_to, q.lease_token::text,
          q.silent
        """,
        {
            "symbol": asset.symbol,
            "feed": Feed.HISTORY,
            "rank": Feed.HISTORY.rank,
            "ticker": asset.ticker,
            "type": asset.asset_type.value,
            "name": asset.name,
            "level": asset.level.value,
            "lease": lease_seconds,
        },
    )
    return _item(asset, Feed.HISTORY, *rows[0]) if rows else None


def _item(
    asset: Asset,
    feed: Feed,
    attempts: int,
    strikes: int,
    verify_ticker: bool,  # noqa: FBT001  # a column
    backfilled_to: datetime | None,
    token: str,
    silent: int,
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
        silent,
    )


def can_claim(db: Connection, line: Sequence[Wanted]) -> bool:
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
