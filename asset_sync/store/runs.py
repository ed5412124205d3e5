"""The history: each run, and each call that it made."""

import os
import socket
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from asset_sync.database import Connection, Cursor, query
from asset_sync.model import Feed, Lane
from asset_sync.settings import HistorySettings
from asset_sync.starter import Starter, starter

CALLS_KEPT_DAYS = 30
RUNS_KEPT_DAYS = 90


class Run(NamedTuple):
    """A run as the history has it."""

    id: int
    command: str
    host: str
    started_at: datetime
    seconds: float | None
    """How long it took; None while it works, and always None if it was killed."""
    reason_ended: str | None
    updated: int
    failed: int
    api_calls: int
    bars_written: int
    waited_seconds: float


class Call(NamedTuple):
    """One HTTP request to the provider."""

    feed: Feed
    symbols: Sequence[str]
    outcome: str
    """`ok`, or the kind of error."""
    seconds: float
    bars_written: int = 0
    error: str | None = None


class CallMade(NamedTuple):
    """A call as the history has it."""

    ended_at: datetime
    feed: str
    symbols: list[str]
    outcome: str
    """`ok`, or the kind of error."""
    seconds: float
    bars_written: int
    error: str | None


class CallsMade(NamedTuple):
    """Calls of one feed with one outcome."""

    feed: str
    outcome: str
    calls: int
    bars_written: int


class HourOfCalls(NamedTuple):
    """The calls of one hour, by what they were for."""

    priority: int
    queue: int
    history: int


class JobRecord(NamedTuple):
    """The result of one command's recent runs; seconds are by the database's clock."""

    last_run_at: datetime | None
    seconds_ago: float | None
    """Since the last run began."""
    refused: bool
    """Whether the API refused the key or plan in the last ended run, and it still does."""
    tried: int
    """Assets that the last hour's runs refreshed or tried to refresh."""
    updated: int
    p95_ms: float | None
    """The 95th percentile of the last hour's run times, without waits for a slot."""
    waits: int
    """Runs of the last hour that waited for a slot."""


class LastDay(NamedTuple):
    """What the runs of the last day did."""

    queue_runs: int
    calls: int
    history_calls_last_hour: int
    """Calls for history of the last hour that were answered well."""
    filled: frozenset[str]
    """The assets of which a call for history was answered well."""


class LastRun(NamedTuple):
    """The last run of a command by one starter."""

    started_by: Starter | None
    """None for a run of an older version, which did not record it."""
    seconds_ago: float
    reason_ended: str | None
    """None while it works, and always None if it was killed."""


def start(db: Connection, command: str) -> int:
    """Note that a run begins; return its id.

    The limiter notes the time: if the database's clock is set back before the run takes a slot, the
    next run sees it, although the times that this one wrote into the queue lie ahead. The run does
    not wait for the limiter: who holds it notes the time itself.
    """
    [(run_id,)] = query(
        db,
        """
        with seen as (
          update asset_sync.limiter set seen_at = greatest(seen_at, clock_timestamp())
          where id in (select id from asset_sync.limiter for update skip locked)
        )
        insert into asset_sync.runs (command, host, pid, started_by) values (%s, %s, %s, %s)
        returning id
        """,
        (command, socket.gethostname(), os.getpid(), starter().value),
    )
    return int(run_id)


def end(
    db: Connection, run_id: int, reason: str, *, updated: int, failed: int, waited_seconds: float
) -> None:
    """Note how a run ended; its calls and bars are counted from `asset_sync.calls`."""
    query(
        db,
        """
        update asset_sync.runs set ended_at = clock_timestamp(), reason_ended = %s, updated = %s,
          failed = %s, waited_seconds = %s,
          (api_calls, bars_written) = (
            select count(*), coalesce(sum(bars_written), 0) from asset_sync.calls where run_id = %s
          )
        where id = %s
        """,
        (reason, updated, failed, waited_seconds, run_id, run_id),
    )


def record(cursor: Cursor, run_id: int, call: Call) -> None:
    """Note a call, in the transaction that stores its answer."""
    cursor.execute(
        """
        insert into asset_sync.calls
          (run_id, feed, symbols, outcome, duration_ms, bars_written, error)
        values (%s, %s, %s, %s, %s, %s, %s)
        """,
        (
            run_id,
            call.feed,
            list(call.symbols),
            call.outcome,
            round(call.seconds * 1000),
            call.bars_written,
            call.error,
        ),
    )


def usual_seconds(db: Connection, feed: str) -> float:
    """Return how long 95 of 100 calls of a feed take, by the last fifty; 5 s if there were none."""
    [(seconds,)] = query(
        db,
        """
        select percentile_cont(0.95) within group (order by duration_ms) / 1000
        from (
          select duration_ms from asset_sync.calls where feed = %s order by id desc limit 50
        ) as latest
        """,
        (feed,),
    )
    return 5.0 if seconds is None else float(seconds)


def reason_before(db: Connection, run_id: int) -> str | None:
    """Return why the command's previous run ended; runs without work are ignored."""
    rows = query(
        db,
        """
        select before.reason_ended from asset_sync.runs this
        join asset_sync.runs before on before.command = this.command and before.id < this.id
        where this.id = %s and before.reason_ended not in ('nothing_due', 'disabled')
        order by before.id desc limit 1
        """,
        (run_id,),
    )
    return str(rows[0][0]) if rows else None


def prune(db: Connection, history: HistorySettings) -> None:
    """Delete what is no longer kept, a bounded batch of each table at a time.

    Calls are kept 30 days, runs 90, and revisions and arrivals as the settings say: they reach back
    to `limiter.changes_from`. That moves before any row is deleted, so no read of the past misses
    one; once an hour, because whoever takes a slot waits for it.
    """
    query(
        db,
        """
        update asset_sync.limiter set changes_from = case
          when %(days)s = 0 then 'infinity'
          when changes_from = 'infinity' then now()
          else now() - make_interval(days => %(days)s) end
        where case when %(days)s = 0 then changes_from < 'infinity' else changes_from = 'infinity'
          or changes_from < now() - make_interval(days => %(days)s, hours => 1) end;
        delete from asset_sync.revisions where ctid = any(array(
          select ctid from asset_sync.revisions
          where at < (select changes_from from asset_sync.limiter) order by at limit 5000));
        delete from asset_sync.arrivals where ctid = any(array(
          select ctid from asset_sync.arrivals
          where at < (select changes_from from asset_sync.limiter) order by at limit 5000));
        delete from asset_sync.calls where id in (
          select id from asset_sync.calls where at < now() - make_interval(days => %(calls)s)
          order by at limit 5000);
        delete from asset_sync.runs where id in (
          select id from asset_sync.runs where started_at < now() - make_interval(days => %(runs)s)
          order by started_at limit 1000)
        """,
        {"days": history.keep_revisions_days, "calls": CALLS_KEPT_DAYS, "runs": RUNS_KEPT_DAYS},
    )


_RUN = """
  select r.id, r.command, r.host, r.started_at,
    extract(epoch from r.ended_at - r.started_at)::float8, r.reason_ended,
    -- for a run that has not ended, the counts so far
    case when r.ended_at is null then so_far.updated else r.updated end,
    case when r.ended_at is null then so_far.failed else r.failed end,
    coalesce(nullif(r.api_calls, 0), made.calls), coalesce(nullif(r.bars_written, 0), made.bars),
    r.waited_seconds
  from asset_sync.runs r
  cross join lateral (
    select
      count(distinct q.symbol) filter (where q.last_success_at >= r.started_at)::int as updated,
      count(distinct q.symbol) filter (
        where q.failed_at >= greatest(r.started_at, q.last_success_at)
      )::int as failed
    from asset_sync.calls c
    cross join lateral unnest(c.symbols) as called (symbol)
    join asset_sync.queue q on q.symbol = called.symbol and q.feed = c.feed
    where r.ended_at is null and c.run_id = r.id
  ) so_far
  cross join lateral (
    select count(*)::int as calls, coalesce(sum(bars_written), 0)::int as bars
    from asset_sync.calls where run_id = r.id
  ) made
"""


def last(db: Connection, most: int) -> tuple[Run, ...]:
    """Return the last runs, the latest first."""
    rows = query(db, f"{_RUN} order by r.started_at desc, r.id desc limit %s", (most,))
    return tuple(Run(*row) for row in rows)


def seconds_since_start(db: Connection, commands: Sequence[str]) -> float | None:
    """Return how long ago the last run of these commands began; None if there was none."""
    [(seconds,)] = query(
        db,
        """
        select extract(epoch from clock_timestamp() - max(started_at))::float8
        from asset_sync.runs where command = any(%s)
        """,
        (list(commands),),
    )
    return None if seconds is None else float(seconds)


def record_of(db: Connection, command: str) -> JobRecord:
    """Return how the recent runs of `priority` or `queue` went."""
    [row] = query(
        db,
        """
        with last as (
          select max(started_at) as at from asset_sync.runs where command = %(command)s
        ),
        hour as (
          select *, (
              -- assets without any good answer: one that was put back, for example after a refused
              -- key, was tried but did not fail
              select count(*) from (
                select from asset_sync.calls, unnest(symbols) as symbol
                where run_id = r.id and r.ended_at is not null
                group by symbol having bool_and(outcome <> 'ok')
              ) asked
            ) as unserved
          from asset_sync.runs r
          where command = %(command)s and started_at > now() - interval '1 hour'
        )
        select (select at from last),
          (select case when at is not null
            then greatest(0, extract(epoch from clock_timestamp() - at))::float8 end from last),
          coalesce((
            select reason_ended = 'plan_refused' or (
              -- an answer to either command shows that the key is right again
              reason_ended = 'key_refused' and not exists (
                select from asset_sync.calls where outcome = 'ok' and at > last_ended.ended_at
              )
            )
            from (
              select reason_ended, ended_at from asset_sync.runs
              where command = %(command)s and reason_ended is not null
              order by started_at desc limit 1
            ) last_ended
          ), false),
          coalesce(sum(updated + greatest(
            failed, unserved, case reason_ended when 'provider_unavailable' then 1 else 0 end
          )), 0)::int,
          coalesce(sum(updated), 0)::int,
          percentile_disc(0.95) within group (
            order by 1000 *
              greatest(0, extract(epoch from ended_at - started_at)::float8 - waited_seconds)),
          count(*) filter (where waited_seconds > 0)
        from hour
        """,
        {"command": command},
    )
    return JobRecord(*row)


def last_by_starter(db: Connection, command: str) -> tuple[LastRun, ...]:
    """Return the last run of the command on this host by each starter, the latest first."""
    rows = query(
        db,
        """
        select started_by, extract(epoch from clock_timestamp() - started_at)::float8, reason_ended
        from (
          select distinct on (started_by) started_by, started_at, reason_ended
          from asset_sync.runs where command = %s and host = %s
          order by started_by, started_at desc
        ) last
        order by started_at desc
        """,
        (command, socket.gethostname()),
    )
    return tuple(
        LastRun(None if who is None else Starter(who), seconds, reason)
        for who, seconds, reason in rows
    )


def calls_of_last_hour(db: Connection) -> tuple[CallsMade, ...]:
    """Return the calls of the last hour by feed and outcome."""
    rows = query(
        db,
        """
        select feed, outcome, count(*)::int, sum(bars_written)::int
        from asset_sync.calls where at > now() - interval '1 hour'
        group by feed, outcome order by feed, outcome
        """,
    )
    return tuple(CallsMade(*row) for row in rows)


def hours_of_calls(db: Connection) -> tuple[HourOfCalls, ...]:
    """Return the calls of the last 24 hours, hour by hour, the oldest first."""
    rows = query(
        db,
        """
        select count(c.id) filter (where r.command = %(priority)s and c.feed <> %(history)s)::int,
          count(c.id) filter (where r.command <> %(priority)s and c.feed <> %(history)s)::int,
          count(c.id) filter (where c.feed = %(history)s)::int
        from generate_series(24, 1, -1) as hours (ago)
        left join asset_sync.calls c on c.at > now() - make_interval(hours => ago)
          and c.at <= now() - make_interval(hours => ago - 1)
        left join asset_sync.runs r on r.id = c.run_id
        group by ago order by ago desc
        """,
        {"priority": Lane.PRIORITY, "history": Feed.HISTORY},
    )
    return tuple(HourOfCalls(*row) for row in rows)


def last_day(db: Connection) -> LastDay:
    """Return what the runs of the last 24 hours did."""
    [(queue_runs, calls, last_hour, filled)] = query(
        db,
        """
        with day as materialized (
          select at, symbols, feed = %s and outcome = 'ok' as fills
          from asset_sync.calls where at > now() - interval '1 day'
        )
        select (
            select count(*)::int from asset_sync.runs
            where command = %s and started_at > now() - interval '1 day'
          ),
          (select count(*)::int from day),
          (select count(*)::int from day where fills and at > now() - interval '1 hour'),
          array(select distinct symbol from day, unnest(symbols) as symbol where fills)
        """,
        (Feed.HISTORY, Lane.QUEUE),
    )
    return LastDay(queue_runs, calls, last_hour, frozenset(filled))


def usual_call_seconds(db: Connection) -> float | None:
    """Return the median time of the last day's calls, None if there were none."""
    [(seconds,)] = query(
        db,
        """
        select percentile_disc(0.5) within group (order by duration_ms) / 1000.0::float8
        from asset_sync.calls where at > now() - interval '1 day' and outcome = 'ok'
        """,
    )
    return None if seconds is None else float(seconds)


def get(db: Connection, run_id: int) -> Run | None:
    """Return the run with this id, None if there is none or it was deleted."""
    rows = query(db, f"{_RUN} where r.id = %s", (run_id,))
    return Run(*rows[0]) if rows else None


def calls(db: Connection, run_id: int) -> tuple[CallMade, ...]:
    """Return the calls that a run has made, in order."""
    return tuple(
        CallMade(*row)
        for row in query(
            db,
            """
            select at, feed, symbols, outcome, duration_ms / 1000.0::float8, bars_written, error
            from asset_sync.calls where run_id = %s order by at, id
            """,
            (run_id,),
        )
    )
