"""The budget of calls: as many slots as the provider allows in a window, shared by every process.

A slot is free one window after its last call ENDED, by the database's clock. Only that stamp is
safe: a call granted at 0 s may reach the server at 2 s, and another granted at 60.0 reach it at
60.1. In a 20-day simulation with a 1 % latency tail, stamping at the grant broke the limit 24
times a day even with a guard of 2 s; stamping at the end never did, at 99.7 % of the budget.

This module is the SQL; `asset_sync.limiter` makes a pyrate-limiter bucket of it.

What is read here, in `queue` and in `runs` is named tuples and not dataclasses: of these each costs
0.3 ms at every start, of those 0.04 ms, and `queue status` needs some twenty.
"""

from collections.abc import Iterator
from enum import StrEnum
from typing import NamedTuple

from asset_sync.database import Connection, query
from asset_sync.settings import Settings

# How long the place of a priority run that is late is kept: as long as such a run may work.
PRIORITY_GRACE_SECONDS = 60


class Lane(StrEnum):
    """Which of the two commands asks; the queue leaves room for the next priority run."""

    PRIORITY = "priority"
    QUEUE = "queue"


class Rate(NamedTuple):
    """So many calls in any window of so many seconds, and how long one call can last."""

    calls: int
    period_seconds: float
    call_timeout_seconds: float


def rate_of(settings: Settings) -> Rate:
    """Return the rate that the settings ask for."""
    limit = settings.rate_limit
    return Rate(limit.calls, limit.period_seconds, settings.provider.call_timeout_seconds)


class Slot(NamedTuple):
    """The right to make one call."""

    number: int
    token: str


class Wait(NamedTuple):
    """There is no slot; ask again after so many seconds (at the soonest one may be free then)."""

    seconds: float


class Reservation(NamedTuple):
    """The place that is kept for the next priority run; seconds count from now."""

    calls: int
    expected_seconds: float
    from_seconds: float
    until_seconds: float

    def holds(self, at_seconds: float) -> bool:
        """Whether the place is kept then."""
        return bool(self.calls) and self.from_seconds <= at_seconds < self.until_seconds


class Budget(NamedTuple):
    """How the budget stands; seconds count from now."""

    calls: int
    free: int
    next_free_seconds: float
    """0 when a call may be made now."""
    blocked_seconds: float
    """Above 0 after a 429 of the provider."""
    reservation: Reservation
    free_in_seconds: tuple[float, ...]
    """For each slot when it comes free, soonest first; 0 for now."""

    @property
    def reserved(self) -> int:
        """Slots that are reserved for a priority run right now."""
        return self.reservation.calls if self.reservation.holds(0) else 0

    @property
    def kept(self) -> int:
        """Free slots that only a priority run may take now, by the rule of `take`."""
        expected = self.reservation.expected_seconds
        free_by_then = sum(0 < seconds <= expected for seconds in self.free_in_seconds)
        return min(self.free, max(0, self.reserved - free_by_then))

    @property
    def used(self) -> int:
        """Slots whose window is not over, or that are in use."""
        return self.calls - self.free


def prepare(db: Connection, rate: Rate) -> None:
    """Have at least as many slots as the rate allows calls.

    None is ever deleted: its stamp is a call that the provider has seen. Where there are more, as
    after a change of plan or beside a host with other settings, the busiest are what counts.
    """
    query(
        db,
        """
        select from asset_sync.limiter for update;
        insert into asset_sync.slots (ended_at)
        select '-infinity'
        from generate_series(1, %(calls)s - (select count(*) from asset_sync.slots))
        """,
        {"calls": rate.calls},
    )


def take(db: Connection, lane: Lane, rate: Rate) -> Slot | Wait:
    """Take a slot, or say how long to wait for one: one round trip.

    The first statement waits for its turn at the limiter's row; only the second reads the clock
    and the slots, so that neither is older than the lock. While the call is in flight the slot
    counts as ending at the latest moment it can: a process that dies frees it by itself.

    The queue takes no slot that the next priority run will want: from one window before that run
    is expected until it is given up, so many slots stay free as it has calls to make.
    """
    [(number, token, wait_seconds)] = query(
        db,
        """
        -- a server that forgets its last moments when it crashes would forget calls
        set local synchronous_commit = on;
        select from asset_sync.limiter for update;
        with moment as materialized (
          select clock_timestamp() as now, make_interval(secs => %(period)s) as period
        ),
        slots as materialized (
          select s.slot, s.ended_at, s.ended_at + period <= now as free,
            -- in flight it may end at any moment, so this is the soonest
            least(s.ended_at, now) + period as free_at
          from asset_sync.slots s, moment
          order by s.ended_at desc, s.slot limit %(calls)s
        ),
        rules as materialized (
          select now, blocked_until,
            reserved_at + make_interval(secs => %(grace)s) as reserved_until,
            case
              when %(lane)s = 'queue' and now >= reserved_at - period
                and now < reserved_at + make_interval(secs => %(grace)s)
              then reserved_calls else 0
            end as reserved,
            (select count(*) from slots where free_at <= greatest(now, reserved_at))
              as free_for_priority
          from asset_sync.limiter, moment
        ),
        taken as (
          update asset_sync.slots s
          set previous_ended_at = s.ended_at, token = gen_random_uuid(),
            ended_at = now + make_interval(secs => %(call_timeout)s)
          from rules
          where s.slot = (select slot from slots where free order by ended_at, slot limit 1)
            and blocked_until <= now
            and (reserved = 0 or free_for_priority > reserved)
          returning s.slot, s.token
        ),
        spent as (
          update asset_sync.limiter set reserved_calls = reserved_calls - 1
          from rules
          where %(lane)s = 'priority' and reserved_calls > 0 and now >= reserved_at
            and exists (select from taken)
        )
        select taken.slot, taken.token,
          -- not before now: a stamp may be -infinity, which before 17 no difference can be
          extract(epoch from greatest(now, blocked_until, case
            when exists (select from slots where free) and blocked_until <= now
            then least(reserved_until, (select min(free_at) from slots where not free))
            else (select min(free_at) from slots)
          end) - now)::float8
        from rules left join taken on true
        """,
        {
            "lane": lane,
            "calls": rate.calls,
            "period": rate.period_seconds,
            "call_timeout": rate.call_timeout_seconds,
            "grace": PRIORITY_GRACE_SECONDS,
        },
    )
    return Wait(wait_seconds) if number is None else Slot(number, token)


def release(db: Connection, slot: Slot) -> None:
    """Stamp the slot at the end of its call, if it is still ours."""
    query(
        db,
        """
        update asset_sync.slots set ended_at = clock_timestamp(), token = null
        where slot = %s and token = %s
        """,
        (slot.number, slot.token),
    )


def give_back(db: Connection, slot: Slot) -> None:
    """Return a slot with which no call was made; it is as free as before."""
    query(
        db,
        """
        update asset_sync.slots set ended_at = previous_ended_at, token = null
        where slot = %s and token = %s
        """,
        (slot.number, slot.token),
    )


def block(db: Connection, seconds: float) -> None:
    """After a 429: no call by anyone for so long."""
    query(
        db,
        """
        update asset_sync.limiter set blocked_until =
          greatest(blocked_until, clock_timestamp() + make_interval(secs => %s))
        """,
        (seconds,),
    )


def reserve(db: Connection, calls: int, in_seconds: float) -> None:
    """Keep the place of a priority run that is expected then, with so many calls to make."""
    query(
        db,
        """
        update asset_sync.limiter set reserved_calls = %s,
          reserved_at = clock_timestamp() + make_interval(secs => %s)
        """,
        (calls, in_seconds),
    )


def free_times(state: Budget, lane: Lane, rate: Rate) -> Iterator[float]:
    """Tell when each next slot could be taken, in seconds from now, by the rules of `take`."""
    free_at = list(state.free_in_seconds)
    held = state.reservation
    while True:
        at = min(free_at)
        while (
            lane is Lane.QUEUE
            and held.holds(at)
            and sum(one <= max(at, held.expected_seconds) for one in free_at) <= held.calls
        ):
            at = min([held.until_seconds, *(one for one in free_at if one > at)])
        yield at
        free_at.remove(min(free_at))
        free_at.append(at + rate.period_seconds)


def budget(db: Connection, rate: Rate) -> Budget:
    """Say how the budget stands, without waiting for anybody."""
    rows = query(
        db,
        """
        with moment as materialized (
          select clock_timestamp() as now, make_interval(secs => %(period)s) as period
        )
        -- no row yet, before the first run, is a free slot
        select extract(epoch from
            greatest(least(coalesce(s.ended_at, '-infinity'), now) + period, now) - now)::float8,
          extract(epoch from greatest(blocked_until, now) - now)::float8,
          reserved_calls,
          extract(epoch from greatest(reserved_at, now - interval '1 day') - now)::float8
        from asset_sync.limiter, moment left join asset_sync.slots s on true
        """,
        {"period": rate.period_seconds},
    )
    _, blocked, reserved, expected = rows[0]
    # There may be fewer rows than calls; what is not there yet is free.
    waits = sorted((seconds for seconds, *_ in rows), reverse=True)[: rate.calls]
    waits += [0.0] * (rate.calls - len(waits))
    free_in = tuple(sorted(max(seconds, blocked) for seconds in waits))
    return Budget(
        calls=rate.calls,
        free=sum(seconds == 0 for seconds in free_in),
        next_free_seconds=free_in[0],
        blocked_seconds=blocked,
        reservation=Reservation(
            reserved,
            expected,
            from_seconds=expected - rate.period_seconds,
            until_seconds=expected + PRIORITY_GRACE_SECONDS,
        ),
        free_in_seconds=free_in,
    )
