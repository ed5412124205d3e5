"""The queue: one row per asset and feed, from idle to waiting to leased and back.

A row is claimed by one run at a time, under a token that only this run holds: a run that comes
back from the dead changes nothing.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from asset_sync.database import Connection, Cursor, Row, query
from asset_sync.errors import AssetSyncError
from asset_sync.model import Asset, AssetType, Feed, Level
from asset_sync.settings import QueueSettings

# What could not be sent, or was interrupted, is tried again in the same run, but not at once.
TRY_AGAIN_SECONDS = 15

LINE_LENGTH = 300
"""How many items of each feed, from the head of its own line, a run tries to claim.

Filtering 16,000 waiting items by the settings' symbols costs 25 ms a claim, a join 44 ms, the keys
of the first 300 cost 0.4 ms (PostgreSQL 15). `enqueue`, which runs every few seconds, renews them.
"""

LONGEST_BACK_OFF_SECONDS = 3600

WORTH_A_WORD = 3
"""From so many strikes on `queue status` and `health` name the asset."""

_WANTED = """
  wanted as (
    select * from unnest(
      %(symbols)s::text[], %(feeds)s::text[], %(ranks)s::smallint[],
      %(tickers)s::text[], %(types)s::text[],
      %(names)s::text[], %(levels)s::text[], %(positions)s::int[], %(frequencies)s::int[]
    ) as w (
      symbol, feed, feed_rank, ticker, asset_type, name, level, position, frequency_seconds
    )
  )
"""

_RANK = "array_position(array['critical', 'high', 'medium', 'low'], {level})"

# The provider answered an asset well since this one failed, so this one is to blame. A first
# failure counts without evidence: something has to make it wait.
_COUNTS = """
  (q.strikes = 0 or (select answered_at from asset_sync.limiter) > q.failed_at)
"""

_STRIKES = f"(case when {_COUNTS} then q.strikes + 1 else greatest(q.strikes, 1) end)"

_BACK_OFF = """
  make_interval(secs => least(
    greatest(%(longest_delay)s, %(delay)s), %(delay)s * power(2, least({strikes}, 20) - 1)
  ))
"""

# Another ticker in the settings is a new start, unless it is known to fail as well: two hosts with
# two wrong tickers for one symbol would otherwise correct each other for ever.
_NEW_TICKER = "(cardinality(q.failed_tickers) > 0 and w.ticker <> all(q.failed_tickers))"

# What enqueue lets in: what will not be fresh when the next run starts, unless it was refreshed a
# moment ago (a tenth of its frequency); whatever has got another ticker; what was given up and has
# become critical; and what these settings want more than those of the host that put it in line, so
# that the higher level holds.
_READY = f"""
  case q.state
    when 'idle' then q.last_success_at is null
      or (q.last_success_at + make_interval(secs => w.frequency_seconds) <= {{due_by}}
        and q.last_success_at + make_interval(secs => w.frequency_seconds * 0.1) <= {{now}})
    when 'leased' then false
    when 'waiting' then {_NEW_TICKER}
      or (q.strikes = 0 and {_RANK.format(level="w.level")} < {_RANK.format(level="q.level")})
    else {_NEW_TICKER} or w.level = 'critical'
  end
"""

_NEXT_START = """
  to_timestamp((floor(extract(epoch from {now}) / %(cycle)s + {rounding}) + 1) * %(cycle)s)
"""

# High items wait from when they are due, medium ones count as due later by one allowance, low
# ones by two. Critical ones come first and stand in the order of the file.
_SORT_AT = """
  case {level}
    when 'critical' then to_timestamp({position})
    when 'high' then {due_at}
    when 'medium' then {due_at} + make_interval(secs => %(aging)s)
    else {due_at} + make_interval(secs => 2 * %(aging)s)
  end
"""

_FIRST = "level <> 'critical', sort_at, symbol, feed_rank"


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
    strikes: int
    """Failures in a row that counted, before this try."""
    verify_ticker: bool
    """Whether the next call is to ask if the ticker exists at all."""
    backfilled_to: datetime | None
    """How far a catch-up of several calls has come, where it found no bars."""
    token: str


class Enqueued(NamedTuple):
    """What `enqueue` did, and what these settings can claim now."""

    entered: int
    left_out: int
    """Due, but over the queue's `max_size`: reported, stays due, comes with a later run."""
    line: tuple[Wanted, ...]
    """The first items in line that these settings want, up to `LINE_LENGTH` of each feed."""


class Struck(NamedTuple):
    """What has become of an item that failed."""

    strikes: int
    """Failures in a row that count, this one included if it does."""
    dead: bool
    """Whether it is given up."""


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
    backfilled_to: datetime | None
    """How far a catch-up of several calls has come, where it found no bars."""


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


class Failing(NamedTuple):
    """An item that keeps failing and is tried less and less often."""

    symbol: str
    feed: Feed
    strikes: int
    wait_seconds: float
    """Until its next try."""
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
    cycle_seconds: float | None = None,
) -> Enqueued:
    """Let in what is due, first what is served first, up to `max_size` items of these settings.

    With `cycle_seconds`, cron's interval, an asset is due if it will not be fresh any more when
    the next run starts; without, once its frequency has passed. Critical assets come in however
    full the queue is.
    """
    [(entered, left_out, symbols, feeds)] = query(
        db,
        f"""
        with {_WANTED}
        insert into asset_sync.queue (symbol, feed, feed_rank, ticker, asset_type, name, level)
        select w.symbol, w.feed, w.feed_rank, w.ticker, w.asset_type, w.name, w.level from wanted w
        where not exists (
          select from asset_sync.queue q where q.symbol = w.symbol and q.feed = w.feed
        )
        order by w.symbol, w.feed
        on conflict do nothing;

        with {_WANTED},
        known as materialized (
          select w.*, q.state, q.last_attempt_at, q.not_before, q.sort_at as stands_at,
            q.level as stands_as, {_NEW_TICKER} as new_ticker,
            coalesce(q.last_success_at + make_interval(secs => w.frequency_seconds), q.added_at)
              as due_at,
            {_READY.format(now="now()", due_by=_due_by("now()", cycle_seconds))} as ready
          from wanted w join asset_sync.queue q on q.symbol = w.symbol and q.feed = w.feed
        ),
        ready as materialized (
          select k.*, {_SORT_AT.format(level="k.level", position="k.position", due_at="k.due_at")}
            as sort_at
          from known k join asset_sync.queue q on q.symbol = k.symbol and q.feed = k.feed
          where k.ready and q.state = k.state
            -- or another run has served it meanwhile
            and q.last_attempt_at is not distinct from k.last_attempt_at
          for update of q skip locked
        ),
        ranked as (
          select *, row_number() over (partition by state = 'waiting' order by {_FIRST}) as place
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
          select k.symbol, k.feed, k.feed_rank, k.stands_as, k.stands_at from known k
          where k.state = 'waiting' and not k.ready
            and k.not_before <= now() + make_interval(secs => %(soon)s)
        ),
        own as materialized (
          select head.* from (select distinct feed as served from wanted) as kind
          cross join lateral (
            select * from line where feed = kind.served order by {_FIRST} limit %(length)s
          ) as head
        )
        select (select count(*) from picked),
          (select count(*) from ready) - (select count(*) from picked),
          array(select symbol from own order by {_FIRST}),
          array(select feed from own order by {_FIRST})
        """,
        {
            **_arrays(wanted),
            "cycle": cycle_seconds,
            "max_size": settings.max_size,
            "max_attempts": settings.max_attempts,
            "aging": settings.aging_seconds,
            "soon": _SOON_SECONDS,
            "length": LINE_LENGTH,
        },
    )
    named = {(one.asset.symbol, one.feed): one for one in wanted}
    line = tuple(named[key] for key in zip(symbols, feeds, strict=True))
    return Enqueued(entered, left_out, line)


# What can be claimed before the next `enqueue`.
_SOON_SECONDS = 5


def _due_by(now: str, cycle_seconds: float | None, rounding: float = 0) -> str:
    """Return SQL for the moment at which an asset must still be fresh, or it is due."""
    if cycle_seconds is None:
        return now
    return _NEXT_START.format(now=now, rounding=rounding)


def reclaim(db: Connection, settings: QueueSettings) -> int:
    """Take back what killed runs left; return how many. Their attempt stays counted.

    From the second on the item backs off, so that one which kills its run lets others be served.
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
              and (select answered_at from asset_sync.limiter) > failed_at
              then 'dead' else 'waiting' end,
            lease_token = null, lease_until = null, failed_at = now(),
            failed_tickers = array_append(array_remove(failed_tickers, ticker), ticker),
            not_before = now() + case when attempts > 1
              then {_BACK_OFF.format(strikes="attempts - 1")} else interval '0' end,
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


# --- leaving ----------------------------------------------------------------------------------


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
          order by {_FIRST} limit 1
          for update of q skip locked
        ),
        picked as materialized (
          select q.symbol, q.feed from own join asset_sync.queue q using (symbol, feed)
          where q.state = 'waiting' and q.not_before <= clock_timestamp()
            and q.feed = (select feed from head)
          order by {_FIRST}
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


def finish(cursor: Cursor, items: Sequence[Item]) -> None:
    """End the items well, in the caller's transaction. Raises LostLeaseError."""
    _update_held(
        cursor,
        items,
        """state = 'idle', last_success_at = clock_timestamp(), attempts = 0, strikes = 0,
           failed_tickers = '{}', last_error = null, verify_ticker = false,
           backfilled_to = null""",
    )


def release(
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


def resume(cursor: Cursor, item: Item, *, backfilled_to: datetime | None) -> None:
    """Return an item of which a call brought a part; the next call goes on from there."""
    _update_held(
        cursor,
        [item],
        """state = 'waiting', attempts = greatest(0, attempts - 1), verify_ticker = false,
           backfilled_to = %(backfilled_to)s""",
        {"backfilled_to": backfilled_to},
    )


def verify(cursor: Cursor, item: Item) -> None:
    """Return an item without any data; its next call tells a mistyped ticker from silence."""
    _update_held(
        cursor,
        [item],
        "state = 'waiting', attempts = greatest(0, attempts - 1), verify_ticker = true",
    )


def skip(cursor: Cursor, items: Sequence[Item], reason: str) -> None:
    """End items of a feed that the key may not use; another feed serves their assets."""
    _update_held(
        cursor, items, "state = 'idle', attempts = 0, last_error = %(reason)s", {"reason": reason}
    )


def move_back(cursor: Cursor, items: Sequence[Item], reason: str, settings: QueueSettings) -> None:
    """Return items behind those that are due already; nothing is counted.

    Raises LostLeaseError.
    """
    sort_at = _SORT_AT.format(
        level="coalesce(nullif(q.level, 'critical'), 'high')",  # these stand at seconds of 1970
        position="0",
        due_at="clock_timestamp()",
    )
    _update_held(
        cursor,
        items,
        f"""state = 'waiting', attempts = greatest(0, attempts - 1), last_error = %(reason)s,
           not_before = clock_timestamp(), sort_at = {sort_at}""",
        {"reason": reason[:500], "aging": settings.aging_seconds},
    )


def strike(
    cursor: Cursor, items: Sequence[Item], error: str, settings: QueueSettings
) -> tuple[Struck, ...]:
    """Return items that were answered badly or not at all: each backs off, and none dies of it.

    The strike counts if it is the first, or if the provider answered any asset well since the item
    failed last; then the back-off doubles, up to an hour. Simulated for a day with three of seven
    assets always failing: p95 between refreshes of the others 275 s (280 s without bad ones); all
    fresh 95 s after an outage of two hours. Raises LostLeaseError.
    """
    return _back_off(cursor, items, error, settings, "attempts = greatest(0, q.attempts - 1)")


def fail(
    cursor: Cursor, item: Item, error: str, settings: QueueSettings, *, verify_ticker: bool = False
) -> Struck:
    """Count a failure of the asset's own: a strike, and after `max_attempts` of them it is dead.

    It counts on the same evidence as a strike. A critical asset is never given up, but tried less
    and less often; others are lowered to low. `verify_ticker` says that the next try, too, is to
    ask whether the ticker exists. Raises LostLeaseError.
    """
    [struck] = _back_off(
        cursor,
        [item],
        error,
        settings,
        f"""attempts = case when {_COUNTS} then q.attempts else greatest(0, q.attempts - 1) end,
            state = case when %(may_die)s and q.attempts >= %(max_attempts)s and {_COUNTS}
              then 'dead' else 'waiting' end,
            level = case when %(may_die)s then 'low' else q.level end,
            verify_ticker = %(verify_ticker)s,
            failed_tickers = array_append(array_remove(q.failed_tickers, q.ticker), q.ticker)""",
        level="case when %(may_die)s then 'low' else q.level end",
        may_die=item.level is not Level.CRITICAL,
        verify_ticker=verify_ticker,
    )
    return struck


def _back_off(
    cursor: Cursor,
    items: Sequence[Item],
    error: str,
    settings: QueueSettings,
    changes: str,
    *,
    level: str = "q.level",
    **parameters: object,
) -> tuple[Struck, ...]:
    """End leases with a failure; the items stand in line from the end of their back-off on."""
    back_at = f"clock_timestamp() + {_BACK_OFF.format(strikes=_STRIKES)}"
    # Behind the other critical ones, which stand at seconds of 1970.
    sort_at = _SORT_AT.format(
        level=f"coalesce(nullif({level}, 'critical'), 'high')", position="0", due_at=back_at
    )
    state = "" if "state =" in changes else "state = 'waiting', "
    rows = _update_held(
        cursor,
        items,
        f"""{state}{changes}, strikes = {_STRIKES}, failed_at = clock_timestamp(),
            not_before = {back_at}, sort_at = {sort_at}, last_error = %(error)s""",
        {
            "max_attempts": settings.max_attempts,
            "aging": settings.aging_seconds,
            "delay": settings.retry_delay_seconds,
            "longest_delay": LONGEST_BACK_OFF_SECONDS,
            "error": error[:500],
            **parameters,
        },
    )
    return tuple(Struck(strikes, state == "dead") for strikes, state in rows)


def _update_held(
    cursor: Cursor,
    items: Sequence[Item],
    changes: str,
    parameters: dict[str, object] | None = None,
) -> list[Row]:
    """Change rows that we hold and end their leases, or change nothing.

    Returns strikes and state of each.
    """
    cursor.execute(
        f"""
        update asset_sync.queue q
        set lease_token = null, lease_until = null, {changes}
        from unnest(%(symbols)s::text[], %(feeds)s::text[], %(tokens)s::uuid[])
          as held (symbol, feed, token)
        where q.symbol = held.symbol and q.feed = held.feed and q.lease_token = held.token
        returning q.strikes, q.state
        """,
        {
            "symbols": [item.symbol for item in items],
            "feeds": [item.feed for item in items],
            "tokens": [item.token for item in items],
            **(parameters or {}),
        },
    )
    if cursor.rowcount != len(items):
        raise LostLeaseError(
            f"{items[0].symbol}: its lease ended before its answer was stored; another run has it "
            "now, and nothing was written twice."
        )
    return cursor.fetchall()


# --- looking ----------------------------------------------------------------------------------


def next_ready_seconds(
    db: Connection,
    wanted: Sequence[Wanted],
    within_seconds: float,
    *,
    states: Sequence[str] = ("idle", "waiting"),
) -> float | None:
    """Return in how many seconds there is something to do, None if not within that time.

    Counted are assets whose frequency will have passed before then (idle), and items that have
    waited since a failure that was not their own (waiting).
    """
    [(seconds,)] = query(
        db,
        f"""
        with {_WANTED},
        ready as (
          select case q.state
            when 'idle' then q.last_success_at + make_interval(secs => w.frequency_seconds)
            when 'waiting' then q.not_before end as at
          from wanted w join asset_sync.queue q on q.symbol = w.symbol and q.feed = w.feed
          where q.state = any(%(states)s) and (q.state = 'idle' or q.attempts = 0)
        )
        select extract(epoch from min(at) - clock_timestamp())::float8 from ready
        where at < clock_timestamp() + make_interval(secs => %(within)s)
        """,
        {**_arrays(wanted), "within": within_seconds, "states": list(states)},
    )
    return None if seconds is None else max(0.0, seconds)


def due_within(
    db: Connection, wanted: Sequence[Wanted], seconds: float, *, cycle_seconds: float
) -> int:
    """Return how many calls a run will need that starts so many seconds from now.

    The start is taken to be the nearest of cron's.
    """
    then = "clock_timestamp() + make_interval(secs => %(seconds)s)"
    rows = query(
        db,
        f"""
        with {_WANTED}
        select w.feed, count(*)
        from wanted w left join asset_sync.queue q on q.symbol = w.symbol and q.feed = w.feed
        where q.state is null or q.state = 'leased'
          or (q.state = 'waiting' and q.not_before <= {then})
          or {_READY.format(now=then, due_by=_due_by(then, cycle_seconds, rounding=0.5))}
        group by w.feed
        """,
        {**_arrays(wanted), "cycle": cycle_seconds, "seconds": seconds},
    )
    return calls_for({Feed.known[feed]: count for feed, count in rows})


def calls_for(items: Mapping[Feed, int]) -> int:
    """Return how many calls serve so many items of each feed once."""
    return sum(-(-count // feed.bulk) for feed, count in items.items())


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


def preview(
    db: Connection,
    wanted: Sequence[Wanted],
    settings: QueueSettings,
    most: int,
    *,
    cycle_seconds: float | None,
) -> tuple[Upcoming, ...]:
    """Say what a run would serve, in order, and change nothing."""
    rows = query(
        db,
        f"""
        with {_WANTED},
        known as materialized (
          select w.symbol, w.feed, w.feed_rank, w.ticker, w.asset_type, w.position, q.state,
            q.sort_at,
            coalesce(q.state is null
              or {_READY.format(now="now()", due_by=_due_by("now()", cycle_seconds))}, false)
              as ready,
            w.level, coalesce(q.level, w.level) as stands_as,
            coalesce(q.verify_ticker, false) as verify_ticker, q.backfilled_to,
            coalesce(q.last_success_at + make_interval(secs => w.frequency_seconds), q.added_at,
              now()) as due_at,
            greatest(0, extract(epoch from q.not_before - clock_timestamp()))::float8 as delay
          from wanted w left join asset_sync.queue q on q.symbol = w.symbol and q.feed = w.feed
        ),
        line as (
          select symbol, feed, feed_rank, ticker, asset_type, level, due_at, 0::float8 as delay,
            false as verify_ticker, backfilled_to,
            {_SORT_AT.format(level="level", position="position", due_at="due_at")} as sort_at
          from known where ready
          union all
          select symbol, feed, feed_rank, ticker, asset_type, stands_as, due_at, delay,
            verify_ticker, backfilled_to, sort_at
          from known where state = 'waiting' and not ready
        )
        select symbol, feed, ticker, asset_type, level, due_at, delay, verify_ticker, backfilled_to
        from line order by {_FIRST} limit %(most)s
        """,
        {
            **_arrays(wanted),
            "cycle": cycle_seconds,
            "aging": settings.aging_seconds,
            "most": most,
        },
    )
    return tuple(_upcoming(row) for row in rows)


def line(db: Connection, symbols: Sequence[str], most: int) -> tuple[Upcoming, ...]:
    """Return the items of these assets that come next, in the order in which they are claimed."""
    of_lane = """
        (select * from asset_sync.queue
         where state = 'waiting' and level {which} 'critical' and symbol = any(%(symbols)s)
         order by sort_at, symbol, feed_rank limit %(most)s)
        """
    rows = query(
        db,
        f"""
        select symbol, feed, ticker, asset_type, level, due_at,
          greatest(0, extract(epoch from not_before - clock_timestamp()))::float8,
          verify_ticker, backfilled_to
        -- an index each
        from ({of_lane.format(which="=")} union all {of_lane.format(which="<>")}) as next
        order by {_FIRST} limit %(most)s
        """,
        {"symbols": list(symbols), "most": most},
    )
    return tuple(_upcoming(row) for row in rows)


def levels(db: Connection, symbols: Sequence[str]) -> tuple[LevelStatus, ...]:
    """Return how the items of these assets stand by level, from critical to low."""
    found = {
        level: rest
        for level, *rest in query(
            db,
            """
            select level, count(*) filter (where state = 'waiting'),
              count(*) filter (where state = 'leased'), count(*) filter (where state = 'dead'),
              extract(epoch from greatest(interval '0', clock_timestamp()
                - min(due_at) filter (where state in ('waiting', 'leased'))))::float8
            from asset_sync.queue where state <> 'idle' and symbol = any(%s) group by level
            """,
            (list(symbols),),
        )
    }
    return tuple(LevelStatus(level, *found.get(level.value, [0, 0, 0, None])) for level in Level)


def dead(db: Connection, symbols: Sequence[str], most: int) -> tuple[Dead, ...]:
    """Return items of these assets that failed too often, the latest first."""
    return tuple(
        Dead(symbol, Feed.known[feed], error or "")
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
        Failing(symbol, Feed.known[feed], strikes, wait_seconds, error or "")
        for symbol, feed, strikes, wait_seconds, error in query(
            db,
            """
            select symbol, feed, strikes,
              greatest(0, extract(epoch from not_before - clock_timestamp()))::float8, last_error
            from asset_sync.queue
            where strikes >= %s and state in ('waiting', 'leased') and symbol = any(%s)
            order by strikes desc, symbol, feed
            """,
            (WORTH_A_WORD, list(symbols)),
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
    return Upcoming(symbol, Feed.known[feed], ticker, AssetType(kind), Level(level), *rest)


def _arrays(wanted: Sequence[Wanted]) -> dict[str, object]:
    """Return what is wanted as the columns that the CTE `wanted` unnests."""
    assets = [one.asset for one in wanted]
    return {
        "symbols": [asset.symbol for asset in assets],
        "feeds": [one.feed for one in wanted],
        "ranks": [one.feed.rank for one in wanted],
        "tickers": [asset.ticker for asset in assets],
        "types": [asset.asset_type.value for asset in assets],
        "names": [asset.name for asset in assets],
        "levels": [asset.level.value for asset in assets],
        "positions": [asset.position for asset in assets],
        "frequencies": [asset.update_frequency_seconds for asset in assets],
    }
