"""Entering the queue: due assets are put in line, and so are the items of killed runs."""

from collections.abc import Sequence
from typing import NamedTuple

from asset_sync.budget.slots import ANSWERED_WELL_AT
from asset_sync.database import Connection, query
from asset_sync.queue.rules import (
    BACK_OFF,
    DUE,
    DUE_AT,
    LONGEST_BACK_OFF_SECONDS,
    NEW_TICKER,
    ORDER,
    SORT_AT,
    WANTED,
    Wanted,
    arrays,
    due_by,
)
from asset_sync.settings import QueueSettings

LINE_LENGTH = 300
"""How many items of each feed, from the head of the feed's line, a run tries to claim.

With 16,000 waiting items a claim costs 25 ms if it filters them by the settings' symbols, 44 ms if
it joins them, and 0.4 ms if it gets the keys of the first 300 (PostgreSQL 15). `enqueue` runs every
few seconds and reads the line again.
"""


class Enqueued(NamedTuple):
    """What `enqueue` did, and what these settings can claim now."""

    entered: int
    left_out: int
    """How many due assets did not enter because of `max_size`; they stay due for a later run."""
    line: tuple[Wanted, ...]
    """The first items in line that these settings want, up to `LINE_LENGTH` of each feed."""


def enqueue(
    db: Connection,
    wanted: Sequence[Wanted],
    settings: QueueSettings,
    *,
    cycle_seconds: float | None = None,
) -> Enqueued:
    """Put due assets in line, in the order of service, up to `max_size` items of these settings.

    With `cycle_seconds`, cron's interval, an asset is due if it will no longer be fresh when the
    next run starts; otherwise it is due once its frequency has passed. Critical assets enter even
    if the queue is full.
    """
    [(entered, left_out, symbols, feeds)] = query(
        db,
        f"""
        with {WANTED}
        insert into asset_sync.queue
          (symbol, feed, feed_rank, ticker, asset_type, name, level, next_at)
        select w.symbol, w.feed, w.feed_rank, w.ticker, w.asset_type, w.name, w.level, now()
        from wanted w
        where not exists (
          select from asset_sync.queue q where q.symbol = w.symbol and q.feed = w.feed
        )
        order by w.symbol, w.feed
        on conflict do nothing;

        with {WANTED},
        known as materialized (
          select w.*, q.state, q.last_attempt_at, q.not_before, q.sort_at as queued_sort_at,
            q.level as queued_level, {NEW_TICKER} as new_ticker,
            {DUE_AT} as due_at,
            {DUE.format(now="now()", due_by=due_by("now()", cycle_seconds))} as ready
          from wanted w join asset_sync.queue q on q.symbol = w.symbol and q.feed = w.feed
        ),
        ready as materialized (
          select k.*, {SORT_AT.format(level="k.level", position="k.position", due_at="k.due_at")}
            as sort_at
          from known k join asset_sync.queue q on q.symbol = k.symbol and q.feed = k.feed
          where k.ready and q.state = k.state
            -- unless another run has served it meanwhile
            and q.last_attempt_at is not distinct from k.last_attempt_at
          for update of q skip locked
        ),
        ranked as (
          select *, row_number() over (partition by state = 'waiting' order by {ORDER}) as place
          from ready
        ),
        picked as materialized (
          select * from ranked
          where state = 'waiting' or level = 'critical' or place <= %(max_size)s
            - (select count(*) from known where state in ('waiting', 'leased'))
        ),
        entered as (
          update asset_sync.queue q
          set state = 'waiting', ticker = p.ticker, asset_type = p.asset_type, name = p.name,
            level = p.level, due_at = p.due_at, sort_at = p.sort_at,
            not_before = case when p.state = 'waiting' and not p.new_ticker then q.not_before
              else now() end,
            attempts = case when p.new_ticker then 0
              else least(q.attempts, %(max_attempts)s - 1) end,
            strikes = case when p.new_ticker then 0 else q.strikes end,
            verify_ticker = false
          from picked p where q.symbol = p.symbol and q.feed = p.feed
        ),
        line as (
          select symbol, feed, feed_rank, level, sort_at from picked
          union all
          select k.symbol, k.feed, k.feed_rank, k.queued_level, k.queued_sort_at from known k
          where k.state = 'waiting' and not k.ready
            and k.not_before <= now() + make_interval(secs => %(soon)s)
        ),
        own as materialized (
          select head.* from (select distinct feed as name from wanted) as feeds
          cross join lateral (
            select * from line where feed = feeds.name order by {ORDER} limit %(length)s
          ) as head
        )
        select (select count(*) from picked),
          (select count(*) from ready) - (select count(*) from picked),
          array(select symbol from own order by {ORDER}),
          array(select feed from own order by {ORDER})
        """,
        {
            **arrays(wanted),
            "cycle": cycle_seconds,
            "max_size": settings.max_size,
            "max_attempts": settings.max_attempts,
            "aging": settings.aging_seconds,
            "soon": _SOON_SECONDS,
            "length": LINE_LENGTH,
        },
    )
    by_key = {(item.asset.symbol, item.feed): item for item in wanted}
    line = tuple(by_key[key] for key in zip(symbols, feeds, strict=True))
    return Enqueued(entered, left_out, line)


# Items that are ready within this time can be claimed before the next `enqueue`.
_SOON_SECONDS = 5


def reclaim(db: Connection, settings: QueueSettings) -> int:
    """Put the items of killed runs back in line and return their number; the attempt counts.

    From the second killed attempt on the item backs off. After `max_attempts` it becomes dead, if
    it is not critical and the provider answered other assets meanwhile. So an item that kills its
    runs does not block the others.
    """
    [(count,)] = query(
        db,
        f"""
        with expired as materialized (
          select symbol, feed from asset_sync.queue
          where state = 'leased' and lease_until < clock_timestamp()
          order by lease_until limit 1000 for update skip locked
        ),
        taken_back as (
          update asset_sync.queue q
          set state = case when level <> 'critical' and attempts >= %(max_attempts)s
              and {ANSWERED_WELL_AT} > failed_at
              then 'dead' else 'waiting' end,
            lease_token = null, lease_until = null, failed_at = now(),
            failed_tickers = array_append(array_remove(failed_tickers, ticker), ticker),
            not_before = now() + case when attempts > 1
              then {BACK_OFF.format(strikes="attempts - 1")} else interval '0' end,
            last_error = 'The run that worked on it was killed.'
          from expired e where q.symbol = e.symbol and q.feed = e.feed
          returning 1
        )
        select count(*) from taken_back
        """,
        {
            "max_attempts": settings.max_attempts,
            "delay": settings.retry_delay_seconds,
            "longest_delay": LONGEST_BACK_OFF_SECONDS,
        },
    )
    return int(count)
