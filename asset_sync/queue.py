"""The queue: one row per asset and feed, from idle to waiting to leased and back.

A row is claimed by one run at a time, under a token that only this run holds: a run that comes
back from the dead changes nothing.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from asset_sync.assets import Asset, AssetType, Feed, Level
from asset_sync.database import Connection, Cursor, Row, query
from asset_sync.errors import AssetSyncError
from asset_sync.settings import QueueSettings
from asset_sync.slots import Lane

BULK = {Feed.BARS: 1, Feed.SNAPSHOT: 250}
"""How many items one call of each feed serves (v3 snapshot: 250 tickers)."""

# What is nobody's fault is tried again in the same run, but not at once.
TRY_AGAIN_SECONDS = 15

_LANE = {Lane.PRIORITY: "level = 'critical'", Lane.QUEUE: "level <> 'critical'"}

_WANTED = """
  wanted as (
    select * from unnest(
      %(symbols)s::text[], %(feeds)s::text[], %(tickers)s::text[], %(types)s::text[],
      %(names)s::text[], %(levels)s::text[], %(positions)s::int[], %(frequencies)s::int[],
      %(due_after)s::float8[]
    ) as w (
      symbol, feed, ticker, asset_type, name, level, position, frequency_seconds, due_after_seconds
    )
  )
"""

# What enqueue lets in: what is due; a critical asset that failed, once a cycle; whatever has been
# given another ticker, since that is how a mistyped one is mended; and what the settings have moved
# to the other lane, where it would wait for a command that serves it no more.
_READY = """
  case q.state
    when 'idle' then q.last_success_at is null or {now} >=
      q.last_success_at + make_interval(secs => w.due_after_seconds)
    when 'leased' then false
    else q.ticker <> w.ticker
      or (w.level <> 'critical' and q.level = 'critical' and q.state = 'waiting')
      or (w.level = 'critical' and (q.state = 'dead' or q.level <> 'critical') and ({now} >=
        q.last_attempt_at + make_interval(secs => w.due_after_seconds)) is not false)
  end
"""

# High items wait from when they are due, medium ones count as due later by one allowance, low
# ones by two. Critical ones have an index of their own and stand in the order of the file.
_SORT_AT = """
  case {level}
    when 'critical' then to_timestamp({position})
    when 'high' then {due_at}
    when 'medium' then {due_at} + make_interval(secs => %(aging)s)
    else {due_at} + make_interval(secs => 2 * %(aging)s)
  end
"""


class Grace(NamedTuple):
    """How much before its time an asset is due for a run that begins.

    Cron starts a minute's job within seconds, and a call takes seconds: an asset synced at 00:00:20
    must be due for the run of 00:05:00, or it would wait for that of 00:10:00. A critical asset
    belongs to each cycle, also when the last one came to it late: after a call that was tried
    again, say, or in a later window of the limit.
    """

    seconds: float = 30
    critical_seconds: float = 120

    def of(self, asset: Asset) -> float:
        """Return it for one asset, in seconds."""
        if asset.level is Level.CRITICAL:
            return min(self.critical_seconds, asset.update_frequency_seconds * 0.4)
        return min(self.seconds, asset.update_frequency_seconds * 0.1)


GRACE = Grace()
"""That of cron's usual five minutes."""

NO_GRACE = Grace(0, 0)
"""What becomes due while a run works can be waited for to the second."""


class LostLeaseError(AssetSyncError):
    """The item's lease ended while it was worked on; another run has it now."""


class Wanted(NamedTuple):
    """An asset and a feed that the settings ask for."""

    asset: Asset
    feed: Feed


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
    verify_ticker: bool
    """Whether the next call is to ask if the ticker exists at all."""
    backfilled_to: datetime | None
    """How far a catch-up of several calls has come, where it found no bars."""
    token: str


class Enqueued(NamedTuple):
    """What `enqueue` did."""

    entered: int
    left_out: int
    """Due, but over the queue's `max_size`: told, stays due, comes with a later run."""


class Upcoming(NamedTuple):
    """An item as it stands in line."""

    symbol: str
    feed: Feed
    ticker: str
    asset_type: AssetType
    level: Level
    due_at: datetime
    wait_seconds: float
    """Above 0 while a delay after a failure lasts."""
    verify_ticker: bool
    """Whether its call is to ask if the ticker exists at all."""


class LevelStatus(NamedTuple):
    """How many items of a level wait, are leased, are dead."""

    level: Level
    waiting: int
    leased: int
    dead: int
    oldest_seconds: float | None
    """How long the oldest item that waits or is leased has been due."""


class Dead(NamedTuple):
    """An item that failed too often."""

    symbol: str
    feed: Feed
    error: str


class Freshness(NamedTuple):
    """How fresh an asset is, by whichever feed served it last."""

    last_success_at: datetime | None
    seconds_old: float
    """Since its last success; of one that has had none, since it was added."""


# --- entering ---------------------------------------------------------------------------------


def enqueue(
    db: Connection,
    wanted: Sequence[Wanted],
    settings: QueueSettings,
    *,
    grace: Grace = GRACE,
) -> Enqueued:
    """Let in what is due, first what is served first, up to `max_size` items in the queue.

    Critical assets come in however full it is.
    """
    sort_at = _SORT_AT.format(level="r.level", position="r.position", due_at="r.due_at")
    [(entered, left_out)] = query(
        db,
        f"""
        with {_WANTED}
        insert into asset_sync.queue (symbol, feed, ticker, asset_type, name, level)
        select w.symbol, w.feed, w.ticker, w.asset_type, w.name, w.level from wanted w
        where not exists (
          select from asset_sync.queue q where q.symbol = w.symbol and q.feed = w.feed
        )
        order by w.symbol, w.feed
        on conflict do nothing;

        with {_WANTED},
        room as materialized (
          select %(max_size)s - count(*) as items
          from (
            select from asset_sync.queue where state in ('waiting', 'leased') limit %(max_size)s
          ) as live
        ),
        ready as materialized (
          select w.*, q.state, q.ticker <> w.ticker as mended,
            coalesce(q.last_success_at + make_interval(secs => w.frequency_seconds), q.added_at)
              as due_at
          from wanted w join asset_sync.queue q on q.symbol = w.symbol and q.feed = w.feed
          where {_READY.format(now="now()")}
          for update of q skip locked
        ),
        ranked as (
          select *, row_number() over (
            partition by state = 'waiting' order by sort_at, symbol, feed desc
          ) as place
          from (select r.*, {sort_at} as sort_at from ready r) as ordered
        ),
        picked as (
          select * from ranked, room
          where place <= room.items or state = 'waiting' or level = 'critical'
        ),
        entered as (
          update asset_sync.queue q
          set state = 'waiting', ticker = p.ticker, asset_type = p.asset_type, name = p.name,
            level = p.level, due_at = p.due_at, sort_at = p.sort_at, not_before = now(),
            attempts = case when mended then 0 else least(q.attempts, %(max_attempts)s - 1) end,
            verify_ticker = false
          from picked p where q.symbol = p.symbol and q.feed = p.feed
        )
        select (select count(*) from picked), (select count(*) from ready)
          - (select count(*) from picked)
        """,
        {
            **_arrays(wanted, grace),
            "max_size": settings.max_size,
            "max_attempts": settings.max_attempts,
            "aging": settings.aging_seconds,
        },
    )
    return Enqueued(entered, left_out)


def reclaim(db: Connection, settings: QueueSettings) -> int:
    """Take back what dead runs left; return how many. Their attempt stays counted."""
    [(count,)] = query(
        db,
        """
        with expired as materialized (
          select symbol, feed from asset_sync.queue
          where state = 'leased' and lease_until < clock_timestamp()
          order by lease_until limit 1000 for update skip locked
        ),
        taken_back as (
          update asset_sync.queue q
          set state = case when attempts >= %(max_attempts)s then 'dead' else 'waiting' end,
            lease_token = null, lease_until = null, not_before = now(),
            last_error = 'The run that worked on it ended without a word.'
          from expired e where q.symbol = e.symbol and q.feed = e.feed
          returning 1
        )
        select count(*) from taken_back
        """,
        {"max_attempts": settings.max_attempts},
    )
    return int(count)


# --- leaving ----------------------------------------------------------------------------------


def claim(db: Connection, lane: Lane, *, lease_seconds: float, most: int) -> tuple[Item, ...]:
    """Lease the first item of the lane, and with it what the same call can serve: one statement.

    Returns up to 250 items of the snapshot feed, or one of the bars feed; none when there is
    nothing to do. Counts the attempt and writes a fresh token.
    """
    rows = query(
        db,
        f"""
        with head as materialized (
          select feed from asset_sync.queue
          where state = 'waiting' and {_LANE[lane]} and not_before <= clock_timestamp()
          order by sort_at, symbol, feed desc limit 1
          for update skip locked
        ),
        picked as materialized (
          select symbol, feed from asset_sync.queue
          where state = 'waiting' and {_LANE[lane]} and not_before <= clock_timestamp()
            and feed = (select feed from head)
          order by sort_at, symbol, feed desc
          limit (select least(%(most)s, case feed when 'snapshot' then %(bulk)s else 1 end)
                 from head)
          for update skip locked
        )
        update asset_sync.queue q
        set state = 'leased', attempts = attempts + 1, last_attempt_at = clock_timestamp(),
          lease_token = gen_random_uuid(),
          lease_until = clock_timestamp() + make_interval(secs => %(lease)s)
        -- not a join: unaware of how few are picked, it would read the whole queue
        where q.symbol = any(array(select symbol from picked))
          and q.feed = (select feed from head)
        returning q.symbol, q.feed, q.ticker, q.asset_type, q.name, q.level, q.attempts,
          q.verify_ticker, q.backfilled_to, q.lease_token::text
        """,
        {"most": most, "bulk": BULK[Feed.SNAPSHOT], "lease": lease_seconds},
    )
    return tuple(
        Item(symbol, Feed(feed), ticker, AssetType(kind), name, Level(level), *rest)
        for symbol, feed, ticker, kind, name, level, *rest in rows
    )


def finish(cursor: Cursor, items: Sequence[Item]) -> None:
    """End the items well, in the caller's transaction. Raises LostLeaseError."""
    _update_held(
        cursor,
        items,
        """state = 'idle', last_success_at = clock_timestamp(), attempts = 0, last_error = null,
           verify_ticker = false, backfilled_to = null""",
    )


def put_back(
    cursor: Cursor, items: Sequence[Item], *, after_seconds: float = 0, reason: str | None = None
) -> None:
    """Return items for which nobody's fault, or more work, keeps them from being done.

    The attempt is taken off again. Raises LostLeaseError.
    """
    _update_held(
        cursor,
        items,
        """state = 'waiting', attempts = greatest(0, attempts - 1), last_error = %(reason)s,
           not_before = clock_timestamp() + make_interval(secs => %(after)s)""",
        {"after": after_seconds, "reason": reason},
    )


def go_on(cursor: Cursor, item: Item, *, backfilled_to: datetime | None) -> None:
    """Return an item of which a call brought a part; the next call goes on from there."""
    _update_held(
        cursor,
        [item],
        """state = 'waiting', attempts = greatest(0, attempts - 1), verify_ticker = false,
           backfilled_to = %(backfilled_to)s""",
        {"backfilled_to": backfilled_to},
    )


def look_up(cursor: Cursor, item: Item) -> None:
    """Return an item without any data; its next call tells a mistyped ticker from silence."""
    _update_held(
        cursor,
        [item],
        "state = 'waiting', attempts = greatest(0, attempts - 1), verify_ticker = true",
    )


def retire(cursor: Cursor, items: Sequence[Item], reason: str) -> None:
    """End items of a feed that the key may not use; another feed serves their assets."""
    _update_held(
        cursor, items, "state = 'idle', attempts = 0, last_error = %(reason)s", {"reason": reason}
    )


def fail(
    cursor: Cursor, item: Item, error: str, settings: QueueSettings, *, verify_ticker: bool = False
) -> None:
    """Count a failure of the asset's own: lowered to low, tried again later and later, then dead.

    The delay doubles with each attempt. `verify_ticker` says that the next try, too, is to ask
    whether the ticker exists. Raises LostLeaseError.
    """
    sort_at = _SORT_AT.format(level="'low'", position="0", due_at="q.due_at")
    _update_held(
        cursor,
        [item],
        f"""state = case when attempts >= %(max_attempts)s then 'dead' else 'waiting' end,
            level = 'low', sort_at = {sort_at}, last_error = %(error)s,
            verify_ticker = %(verify_ticker)s,
            not_before = clock_timestamp()
              + make_interval(secs => %(delay)s * power(2, least(attempts, 10) - 1))""",
        {
            "max_attempts": settings.max_attempts,
            "aging": settings.aging_seconds,
            "delay": settings.retry_delay_seconds,
            "error": error[:500],
            "verify_ticker": verify_ticker,
        },
    )


def _update_held(
    cursor: Cursor,
    items: Sequence[Item],
    changes: str,
    parameters: dict[str, object] | None = None,
) -> None:
    """Change rows that we hold and end their leases, or change nothing."""
    cursor.execute(
        f"""
        update asset_sync.queue q
        set lease_token = null, lease_until = null, {changes}
        from unnest(%(symbols)s::text[], %(feeds)s::text[], %(tokens)s::uuid[])
          as held (symbol, feed, token)
        where q.symbol = held.symbol and q.feed = held.feed and q.lease_token = held.token
        """,
        {
            "symbols": [item.symbol for item in items],
            "feeds": [item.feed.value for item in items],
            "tokens": [item.token for item in items],
            **(parameters or {}),
        },
    )
    if cursor.rowcount != len(items):
        raise LostLeaseError(
            f"{items[0].symbol}: its lease ended before its answer was stored; another run has it "
            "now, and nothing was written twice."
        )


# --- looking ----------------------------------------------------------------------------------


def next_ready_seconds(
    db: Connection, lane: Lane, wanted: Sequence[Wanted], within_seconds: float
) -> float | None:
    """Return in how many seconds there is something to do, None if not within that time.

    Counted are assets whose frequency will have passed before then, and items that wait for no
    fault of their own.
    """
    [(seconds,)] = query(
        db,
        f"""
        with {_WANTED},
        ready as (
          select last_success_at + make_interval(secs => w.frequency_seconds) as at
          from wanted w join asset_sync.queue q on q.symbol = w.symbol and q.feed = w.feed
          where state = 'idle' and last_success_at + make_interval(secs => w.frequency_seconds)
            < clock_timestamp() + make_interval(secs => %(within)s)
          union all
          select min(not_before) from asset_sync.queue
          where state = 'waiting' and {_LANE[lane]} and attempts = 0
            and not_before < clock_timestamp() + make_interval(secs => %(within)s)
        )
        select extract(epoch from min(at) - clock_timestamp())::float8 from ready
        """,
        {**_arrays(wanted), "within": within_seconds},
    )
    return None if seconds is None else max(0.0, seconds)


def due_within(
    db: Connection, wanted: Sequence[Wanted], seconds: float, *, grace: Grace = GRACE
) -> int:
    """Return how many calls it will take to serve what is due by then."""
    rows = query(
        db,
        f"""
        with {_WANTED}
        select w.feed, count(*)
        from wanted w left join asset_sync.queue q on q.symbol = w.symbol and q.feed = w.feed
        where q.state is null or q.state in ('waiting', 'leased')
          or {_READY.format(now="clock_timestamp() + make_interval(secs => %(seconds)s)")}
        group by w.feed
        """,
        {**_arrays(wanted, grace), "seconds": seconds},
    )
    return calls_for({Feed(feed): count for feed, count in rows})


def calls_for(items: Mapping[Feed, int]) -> int:
    """Return how many calls serve so many items of each feed once."""
    return sum(-(-count // BULK[feed]) for feed, count in items.items())


def waiting(db: Connection, lane: Lane) -> bool:
    """Say whether an item of the lane can be claimed now."""
    first = query(
        db,
        f"""
        select symbol from asset_sync.queue
        where state = 'waiting' and {_LANE[lane]} and not_before <= clock_timestamp()
        order by sort_at, symbol, feed desc limit 1
        """,
    )
    return bool(first)


def preview(
    db: Connection,
    lane: Lane,
    wanted: Sequence[Wanted],
    settings: QueueSettings,
    most: int,
    *,
    grace: Grace = GRACE,
) -> tuple[Upcoming, ...]:
    """Say what a run would serve, in order, and change nothing."""
    sort_at = _SORT_AT.format(level="level", position="position", due_at="due_at")
    rows = query(
        db,
        f"""
        with {_WANTED},
        entering as (
          select w.symbol, w.feed, w.ticker, w.asset_type, w.level, w.position,
            coalesce(q.last_success_at + make_interval(secs => w.frequency_seconds), q.added_at,
              now()) as due_at, false as verify_ticker
          from wanted w left join asset_sync.queue q on q.symbol = w.symbol and q.feed = w.feed
          where q.state is null or {_READY.format(now="now()")}
        ),
        line as (
          select symbol, feed, ticker, asset_type, level, due_at, {sort_at} as sort_at,
            0 as delay, verify_ticker
          from entering
          union all
          select symbol, feed, ticker, asset_type, level, due_at, sort_at,
            greatest(0, extract(epoch from not_before - clock_timestamp())), verify_ticker
          from asset_sync.queue
          where state = 'waiting' and {_LANE[lane]}
            and (symbol, feed) not in (select symbol, feed from entering)
        )
        select symbol, feed, ticker, asset_type, level, due_at, delay::float8, verify_ticker
        from line order by level <> 'critical', sort_at, symbol, feed desc limit %(most)s
        """,
        {
            **_arrays(wanted, grace),
            "aging": settings.aging_seconds,
            "most": most,
        },
    )
    return tuple(_upcoming(row) for row in rows)


def line(db: Connection, most: int) -> tuple[Upcoming, ...]:
    """Return the items that come next, in the order in which they will be claimed."""
    rows: list[Row] = []
    for lane in Lane:
        rows += query(
            db,
            f"""
            select symbol, feed, ticker, asset_type, level, due_at,
              greatest(0, extract(epoch from not_before - clock_timestamp()))::float8, verify_ticker
            from asset_sync.queue where state = 'waiting' and {_LANE[lane]}
            order by sort_at, symbol, feed desc limit %s
            """,
            (most - len(rows),),
        )
    return tuple(_upcoming(row) for row in rows)


def levels(db: Connection) -> tuple[LevelStatus, ...]:
    """Return how each level stands, from critical to low."""
    found = {
        level: rest
        for level, *rest in query(
            db,
            """
            with counted as (
              select level, count(*) filter (where state = 'waiting') as waiting,
                count(*) filter (where state = 'leased') as leased,
                count(*) filter (where state = 'dead') as dead
              from asset_sync.queue where state <> 'idle' group by level
            )
            select level, waiting, leased, dead, extract(epoch from clock_timestamp() - (
              select least(q.due_at, clock_timestamp()) from asset_sync.queue q
              where q.level = c.level and q.state in ('waiting', 'leased')
              order by q.due_at limit 1
            ))::float8
            from counted c
            """,
        )
    }
    return tuple(LevelStatus(level, *found.get(level.value, [0, 0, 0, None])) for level in Level)


def dead(db: Connection, most: int) -> tuple[Dead, ...]:
    """Return items that failed too often, the latest first."""
    return tuple(
        Dead(symbol, Feed(feed), error or "")
        for symbol, feed, error in query(
            db,
            """
            select symbol, feed, last_error from asset_sync.queue
            where state = 'dead' order by last_attempt_at desc limit %s
            """,
            (most,),
        )
    )


def freshness(db: Connection, symbols: Sequence[str]) -> dict[str, Freshness]:
    """Return how fresh each of these assets is; those the queue has not seen are not in it."""
    rows = query(
        db,
        """
        select symbol, max(last_success_at),
          greatest(0, extract(epoch from clock_timestamp()
            - coalesce(max(last_success_at), min(added_at))))::float8
        from asset_sync.queue where symbol = any(%s) group by symbol
        """,
        (list(symbols),),
    )
    return {symbol: Freshness(last, seconds) for symbol, last, seconds in rows}


def last_success(db: Connection, symbols: Sequence[str]) -> dict[str, datetime]:
    """Return when each of these assets was last fresh, by any feed, if it ever was."""
    known = freshness(db, symbols).items()
    return {symbol: one.last_success_at for symbol, one in known if one.last_success_at}


def _upcoming(row: Row) -> Upcoming:
    symbol, feed, ticker, kind, level, *rest = row
    return Upcoming(symbol, Feed(feed), ticker, AssetType(kind), Level(level), *rest)


def _arrays(wanted: Sequence[Wanted], grace: Grace = NO_GRACE) -> dict[str, object]:
    """Return what is wanted as the columns that the CTE `wanted` unnests."""
    assets = [one.asset for one in wanted]
    return {
        "symbols": [asset.symbol for asset in assets],
        "feeds": [one.feed.value for one in wanted],
        "tickers": [asset.ticker for asset in assets],
        "types": [asset.asset_type.value for asset in assets],
        "names": [asset.name for asset in assets],
        "levels": [asset.level.value for asset in assets],
        "positions": [asset.position for asset in assets],
        "frequencies": [asset.update_frequency_seconds for asset in assets],
        "due_after": [asset.update_frequency_seconds - grace.of(asset) for asset in assets],
    }
