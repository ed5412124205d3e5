"""Reading the queue: what comes next, how many items each level has, what fails."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from asset_sync.database import Connection, Row, query
from asset_sync.model import Asset, AssetType, Feed, Level
from asset_sync.queue.rules import (
    DUE,
    DUE_AT,
    FAILING_STRIKES,
    ORDER,
    SORT_AT,
    WANTED,
    Wanted,
    arrays,
    calls_for,
    due_by,
)
from asset_sync.settings import QueueSettings


class Upcoming(NamedTuple):
    """An item in line."""

    symbol: str
    feed: Feed
    ticker: str
    asset_type: AssetType
    level: Level
    due_at: datetime
    wait_seconds: float
    """Until it may be tried; 0 if it may be tried now."""
    verify_ticker: bool
    """Whether its call only asks if the ticker exists."""
    backfilled_to: datetime | None
    """Up to when earlier calls of a catch-up have asked without finding new bars; else None."""


class LevelStatus(NamedTuple):
    """How many items of a level wait, are leased, are dead."""

    level: Level
    waiting: int
    leased: int
    dead: int
    oldest_seconds: float | None
    """For how long the oldest waiting or leased item has been due."""


class Dead(NamedTuple):
    """An item that failed too often."""

    symbol: str
    feed: Feed
    error: str


class Failing(NamedTuple):
    """An item that keeps failing and is tried less and less often."""

    symbol: str
    feed: Feed
    strikes: int
    wait_seconds: float
    """Until its next try."""
    error: str


class LastError(NamedTuple):
    """What last went wrong with an asset that has not been refreshed since."""

    feed: Feed
    state: str
    """waiting, leased or dead; idle if another feed serves it."""
    strikes: int
    error: str


class FeedStatus(NamedTuple):
    """How one feed serves an asset."""

    feed: Feed
    level: Level
    state: str
    """idle (fresh), waiting, leased or dead."""
    next_at: datetime | None
    """When it can be asked next; None if it is dead."""
    strikes: int
    last_error: str | None


class Freshness(NamedTuple):
    """How fresh an asset is, by the feed that served it last."""

    last_success_at: datetime | None
    seconds_old: float
    """Since its last success, or since it was added if it has had none."""
    news_seconds_ago: float | None
    """Since when a call could bring news again: below 0 in a closed market; None in no line."""


def next_ready_seconds(
    db: Connection,
    wanted: Sequence[Wanted],
    within_seconds: float,
    *,
    states: Sequence[str] = ("idle", "waiting"),
) -> float | None:
    """Return in how many seconds the next item is ready, None if not within that time.

    An idle item is ready when it becomes due, a waiting one when its delay ends. Waiting items
    whose attempts count do not matter here: no run waits for them.
    """
    [(seconds,)] = query(
        db,
        f"""
        with {WANTED},
        ready as (
          select case q.state
            when 'idle' then {DUE_AT}
            when 'waiting' then q.not_before end as at
          from wanted w join asset_sync.queue q on q.symbol = w.symbol and q.feed = w.feed
          where q.state = any(%(states)s)
            -- an idle one that was never refreshed is due already: the queue is full
            and case q.state when 'idle' then q.last_success_at is not null
              else q.attempts = 0 end
        )
        select extract(epoch from min(at) - clock_timestamp())::float8 from ready
        where at < clock_timestamp() + make_interval(secs => %(within)s)
        """,
        {**arrays(wanted), "within": within_seconds, "states": list(states)},
    )
    return None if seconds is None else max(0.0, seconds)


def due_within(
    db: Connection, wanted: Sequence[Wanted], seconds: float, *, cycle_seconds: float
) -> int:
    """Return how many calls are needed by the run that starts in so many seconds.

    The run is assumed to start at the nearest of cron's times.
    """
    then = "clock_timestamp() + make_interval(secs => %(seconds)s)"
    rows = query(
        db,
        f"""
        with {WANTED}
        select w.feed, count(*)
        from wanted w left join asset_sync.queue q on q.symbol = w.symbol and q.feed = w.feed
        where q.state is null or q.state = 'leased'
          or (q.state = 'waiting' and q.not_before <= {then})
          or {DUE.format(now=then, due_by=due_by(then, cycle_seconds, rounding=0.5))}
        group by w.feed
        """,
        {**arrays(wanted), "cycle": cycle_seconds, "seconds": seconds},
    )
    return calls_for({Feed.named(feed): count for feed, count in rows})


def preview(
    db: Connection,
    wanted: Sequence[Wanted],
    settings: QueueSettings,
    most: int,
    *,
    cycle_seconds: float | None,
) -> tuple[Upcoming, ...]:
    """Return what a run would serve, in order; changes nothing."""
    rows = query(
        db,
        f"""
        with {WANTED},
        known as materialized (
          select w.symbol, w.feed, w.feed_rank, w.ticker, w.asset_type, w.position, q.state,
            q.sort_at,
            coalesce(q.state is null
              or {DUE.format(now="now()", due_by=due_by("now()", cycle_seconds))}, false)
              as ready,
            w.level, coalesce(q.level, w.level) as queued_level,
            coalesce(q.verify_ticker, false) as verify_ticker, q.backfilled_to,
            coalesce({DUE_AT}, now()) as due_at,
            greatest(0, extract(epoch from q.not_before - clock_timestamp()))::float8 as delay
          from wanted w left join asset_sync.queue q on q.symbol = w.symbol and q.feed = w.feed
        ),
        line as (
          select symbol, feed, feed_rank, ticker, asset_type, level, due_at, 0::float8 as delay,
            false as verify_ticker, backfilled_to,
            {SORT_AT.format(level="level", position="position", due_at="due_at")} as sort_at
          from known where ready
          union all
          select symbol, feed, feed_rank, ticker, asset_type, queued_level, due_at, delay,
            verify_ticker, backfilled_to, sort_at
          from known where state = 'waiting' and not ready
        )
        select symbol, feed, ticker, asset_type, level, due_at, delay, verify_ticker, backfilled_to
        from line order by {ORDER} limit %(most)s
        """,
        {
            **arrays(wanted),
            "cycle": cycle_seconds,
            "aging": settings.aging_seconds,
            "most": most,
        },
    )
    return tuple(_upcoming(row) for row in rows)


def line(db: Connection, assets: Sequence[Asset], most: int) -> tuple[Upcoming, ...]:
    """Return the next items of these assets, in the order of their claims.

    The asset types come from the settings, as in a claim: another host may have written another
    type into the row.
    """
    of_level = """
        (select * from asset_sync.queue
         where state = 'waiting' and level {which} 'critical' and symbol = any(%(symbols)s)
           and feed <> %(history)s
         order by sort_at, symbol, feed_rank limit %(most)s)
        """
    rows = query(
        db,
        f"""
        select symbol, feed, ticker, level, due_at,
          greatest(0, extract(epoch from not_before - clock_timestamp()))::float8,
          verify_ticker, backfilled_to
        -- each part has its own index
        from ({of_level.format(which="=")} union all {of_level.format(which="<>")}) as next
        order by {ORDER} limit %(most)s
        """,
        {
            "symbols": [asset.symbol for asset in assets],
            "most": most,
            "history": Feed.HISTORY,  # is in no line
        },
    )
    types = {asset.symbol: asset.asset_type for asset in assets}
    return tuple(
        _upcoming((symbol, feed, ticker, types[symbol], *rest))
        for symbol, feed, ticker, *rest in rows
    )


class HeldHistory(NamedTuple):
    """An asset whose history no run can ask for now."""

    symbol: str
    wait_seconds: float | None
    """Until a run can; None if the item is dead."""
    error: str | None


def held_history(db: Connection, symbols: Sequence[str]) -> list[HeldHistory]:
    """Return those of the assets whose history is leased, backs off or is dead."""
    rows = query(
        db,
        """
        select symbol, case state when 'dead' then null else extract(epoch from
            case state when 'leased' then lease_until else not_before end - clock_timestamp()
          )::float8 end, last_error
        from asset_sync.queue
        where feed = %s and symbol = any(%s)
          and (state in ('leased', 'dead') or not_before > clock_timestamp())
        order by symbol
        """,
        (Feed.HISTORY, list(symbols)),
    )
    return [HeldHistory(*row) for row in rows]


def levels(db: Connection, symbols: Sequence[str]) -> tuple[LevelStatus, ...]:
    """Return the number and age of these assets' items by level, from critical to low."""
    found = {
        level: rest
        for level, *rest in query(
            db,
            """
            select level, count(*) filter (where state = 'waiting'),
              count(*) filter (where state = 'leased'), count(*) filter (where state = 'dead'),
              extract(epoch from greatest(interval '0', clock_timestamp()
                - min(due_at) filter (where state in ('waiting', 'leased'))))::float8
            from asset_sync.queue
            where state <> 'idle' and symbol = any(%s) and (feed <> %s or state = 'dead')
            group by level
            """,
            (list(symbols), Feed.HISTORY),
        )
    }
    return tuple(LevelStatus(level, *found.get(level.value, [0, 0, 0, None])) for level in Level)


def dead(db: Connection, symbols: Sequence[str], most: int) -> tuple[Dead, ...]:
    """Return the dead items of these assets, the latest first."""
    return tuple(
        Dead(symbol, Feed.named(feed), error or "")
        for symbol, feed, error in query(
            db,
            """
            select symbol, feed, last_error from asset_sync.queue
            where state = 'dead' and symbol = any(%s) order by last_attempt_at desc limit %s
            """,
            (list(symbols), most),
        )
    )


def failing(db: Connection, symbols: Sequence[str]) -> tuple[Failing, ...]:
    """Return items of these assets that have three strikes or more and are still tried."""
    return tuple(
        Failing(symbol, Feed.named(feed), strikes, wait_seconds, error or "")
        for symbol, feed, strikes, wait_seconds, error in query(
            db,
            """
            select symbol, feed, strikes,
              greatest(0, extract(epoch from not_before - clock_timestamp()))::float8, last_error
            from asset_sync.queue
            where strikes >= %s and state in ('waiting', 'leased') and symbol = any(%s)
            order by strikes desc, symbol, feed
            """,
            (FAILING_STRIKES, list(symbols)),
        )
    )


def last_errors(db: Connection, symbols: Sequence[str]) -> dict[str, LastError]:
    """Return the worst error of each of these assets, without those that have none."""
    rows = query(
        db,
        """
        select distinct on (symbol) symbol, feed, state, strikes, last_error
        from asset_sync.queue where symbol = any(%s) and last_error is not null
        order by symbol, (state = 'dead') desc, strikes desc, feed_rank
        """,
        (list(symbols),),
    )
    return {symbol: LastError(Feed.named(feed), *rest) for symbol, feed, *rest in rows}


def freshness(db: Connection, symbols: Sequence[str]) -> dict[str, Freshness]:
    """Return how fresh each of these assets is, without those that the queue does not have."""
    rows = query(
        db,
        """
        select symbol, max(last_success_at),
          greatest(0, extract(epoch from clock_timestamp()
            - coalesce(max(last_success_at), min(added_at))))::float8,
          extract(epoch from clock_timestamp()
            - max(not_before) filter (where state = 'idle' and next_at is not null))::float8
        -- history makes no asset fresh
        from asset_sync.queue where symbol = any(%s) and feed <> %s group by symbol
        """,
        (list(symbols), Feed.HISTORY),
    )
    return {symbol: Freshness(*rest) for symbol, *rest in rows}


def feeds_of(db: Connection, asset: Asset) -> tuple[FeedStatus, ...]:
    """Return how each feed serves an asset, in the order of the feeds."""
    rows = query(
        db,
        f"""
        select q.feed, q.level, q.state,
          case q.state when 'idle' then {DUE_AT}
            when 'waiting' then greatest(q.due_at, q.not_before)
            when 'leased' then clock_timestamp() end,
          q.strikes, q.last_error
        from asset_sync.queue q, (select %s::int as frequency_seconds) as w
        where q.symbol = %s order by q.feed_rank
        """,
        (asset.update_frequency_seconds, asset.symbol),
    )
    return tuple(FeedStatus(Feed.named(feed), Level(level), *rest) for feed, level, *rest in rows)


def last_success(db: Connection, symbols: Sequence[str]) -> dict[str, datetime]:
    """Return when any feed last refreshed each of these assets, without those never refreshed."""
    known = freshness(db, symbols).items()
    return {symbol: fresh.last_success_at for symbol, fresh in known if fresh.last_success_at}


def _upcoming(row: Row) -> Upcoming:
    symbol, feed, ticker, asset_type, level, *rest = row
    return Upcoming(symbol, Feed.named(feed), ticker, AssetType(asset_type), Level(level), *rest)
