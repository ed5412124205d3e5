"""The budget of calls: one slot for each call allowed in a window, shared by every process.

A slot is free one window after its last call ENDED, by the database's clock. A stamp at the start
of the call is not safe: a call that takes its slot at 0 s may reach the server at 2 s, and the next
call in that slot, at 60.0 s, may reach it at 60.1 s. The server then counts both in one window. In
a 20-day simulation with a 1 % latency tail, stamps at the start broke the limit 24 times a day,
even with a margin of 2 s. Stamps at the end never broke it, and used 99.7 % of the budget.

The server may count a call that it has not answered: if it was frozen, it reads the request when it
runs again. So the slot of such a call stays open for one and a half windows after the request was
sent, and is free one window after that. In 300 simulated runs with freezes of up to 1.5 windows, no
window held more calls than allowed. In the same runs with slots that closed at the time-out, a
window held up to 14 calls where 5 were allowed.

This module is the SQL; `asset_sync.budget.bucket` makes a pyrate-limiter bucket of it.

The types here, in `queue` and in `runs` are named tuples because a dataclass costs 0.3 ms at every
start and a named tuple 0.04 ms, and `queue status` needs about twenty of them.
"""

from collections.abc import Iterator, Mapping
from enum import Enum, auto
from typing import NamedTuple

from asset_sync.budget import clocks
from asset_sync.budget.clocks import Watch
from asset_sync.database import Connection, query
from asset_sync.model import Lane
from asset_sync.provider.current import PLANS
from asset_sync.secret import Secret
from asset_sync.settings import Settings

# How long slots stay reserved for a priority run that is late: as long as such a run may work.
PRIORITY_GRACE_SECONDS = 60
# A server may freeze for so many windows without any window holding too many calls.
FREEZE_WINDOWS = 1.5
# After so many calls in a row without an answer, there is one call at a time, half a window apart.
UNANSWERED_CALLS = 2
# After a 429 without Retry-After; the provider counts calls by the minute on every plan.
LEAST_BLOCK_SECONDS = 60
# After so many 429s in a row that count (see `refused`), the key allows less than the settings say.
REFUSALS = 3
LOWERED_SECONDS = 900
MOST_LOWERED_SECONDS = 86_400
_FREE = PLANS["free"]

ANSWERED_WELL_AT = "(select answered_at from asset_sync.limiter)"
"""SQL for when the provider last answered any asset well; -infinity before the first time."""


class CallEnd(Enum):
    """How a call ended, which decides how long its slot stays open."""

    NOT_SENT = auto()
    """Nothing reached the provider: the slot gets its earlier stamp back."""

    UNANSWERED = auto()
    """The request was sent, and the provider may still count it."""

    ANSWERED = auto()
    """The provider has counted the call, but its answer does not show that it works properly."""

    ANSWERED_WELL = auto()
    """The provider has counted the call, and its answer shows that it works properly."""


class Rate(NamedTuple):
    """How many calls any window of `period_seconds` may hold, and how long a call may last."""

    calls: int
    period_seconds: float
    call_timeout_seconds: float
    key: Secret | None = None
    """The API key, whose rate may be lowered to the free plan's; None if none is set."""

    @property
    def above_free(self) -> bool:
        """Whether it allows more calls than the free plan; only then can it be lowered."""
        return self.calls * _FREE.period_seconds > _FREE.calls * self.period_seconds


def rate_of(settings: Settings) -> Rate:
    """Return the rate of the settings; `effective_rate` may lower it to what the key allows."""
    limit, provider = settings.rate_limit, settings.provider
    return Rate(limit.calls, limit.period_seconds, provider.call_timeout_seconds, provider.api_key)


class Lowered(NamedTuple):
    """The key is used at the free plan's rate for so many more seconds."""

    seconds: float

    def __str__(self) -> str:
        return (
            "The API kept refusing calls with 429: the key allows fewer than the settings say. For "
            f"the next {self.seconds / 60:.0f} min the key is used at the free plan's rate, "
            f"{_FREE.calls} calls in {_FREE.period_seconds:.0f} s; set provider.plan (or "
            "POLYGON_TIER) to the key's plan."
        )


def lowered(db: Connection, rate: Rate) -> Lowered | None:
    """Return how long this key's rate is lowered; None if the API accepts its calls."""
    if rate.key is None or not rate.above_free:
        return None
    found = query(
        db,
        """
        select refused_key, extract(epoch from until - clock_timestamp())::float8
        from (
          select refused_key, lowered_at + make_interval(secs => lowered_seconds) as until
          from asset_sync.limiter where isfinite(lowered_at)
        ) limiter where clock_timestamp() < until
        """,
    )
    # A fingerprint needs an import of 3 ms, so it is computed only where a key was refused.
    return next((Lowered(left) for key, left in found if key == rate.key.fingerprint()), None)


def effective_rate(db: Connection, rate: Rate) -> Rate:
    """Return the rate that holds now: the free plan's while the key's rate is lowered."""
    if lowered(db, rate) is None:
        return rate
    return rate._replace(calls=_FREE.calls, period_seconds=_FREE.period_seconds)


class Slot(NamedTuple):
    """The right to make one call."""

    number: int
    token: str
    taken_at: float
    """By the database's clock, in seconds since the epoch."""


class Wait(NamedTuple):
    """No slot is free; the next one may be free after so many seconds at the earliest."""

    seconds: float


class Spare(NamedTuple):
    """The slot is for history, which must delay nobody."""

    call_seconds: float
    """How long a call for history lasts (p95)."""
    bulks: Mapping[str, int]
    """How many assets one call of each feed serves; of a feed that is not named it is one."""


class Reservation(NamedTuple):
    """The slots that are reserved for the next priority run; seconds count from now."""

    calls: int
    expected_seconds: float
    from_seconds: float
    until_seconds: float

    def holds(self, at_seconds: float) -> bool:
        """Whether the slots are reserved at that time."""
        return bool(self.calls) and self.from_seconds <= at_seconds < self.until_seconds


class Budget(NamedTuple):
    """The state of the budget; seconds count from now."""

    calls: int
    period_seconds: float
    free: int
    next_free_seconds: float
    """0 when a call may be made now."""
    blocked_seconds: float
    """Above 0 after a 429 of the provider."""
    reservation: Reservation
    free_in_seconds: tuple[float, ...]
    """When each slot becomes free, the earliest first; 0 for now."""

    @property
    def reserved(self) -> int:
        """Slots that are reserved for a priority run right now."""
        return self.reservation.calls if self.reservation.holds(0) else 0

    @property
    def kept(self) -> int:
        """How many free slots only a priority run may take now, by the rule of `take`."""
        expected = self.reservation.expected_seconds
        free_by_then = sum(0 < seconds <= expected for seconds in self.free_in_seconds)
        return min(self.free, max(0, self.reserved - free_by_then))

    @property
    def used(self) -> int:
        """How many slots are not free: their call is in flight, or its window is not over."""
        return self.calls - self.free


def prepare(db: Connection, rate: Rate) -> None:
    """Insert slots until there are as many as the rate allows calls.

    No slot is ever deleted: its stamp stands for a call that the provider has seen. After a change
    of plan, or if another host has other settings, there may be more slots than the rate allows.
    Then only those count that become free last.
    """
    query(
        db,
        """
        select from asset_sync.limiter for update;
        insert into asset_sync.slots (stamped_at)
        select '-infinity'
        from generate_series(1, %(calls)s - (select count(*) from asset_sync.slots))
        """,
        {"calls": rate.calls},
    )


# The time, the limiter's row, and the rate that holds now for this key.
_MOMENT = """
  moment as materialized (
    select limiter.*, make_interval(secs => period_seconds) as period
    from (
      select *, case when lowered then %(free_calls)s else %(calls)s end as calls,
        case when lowered then %(free_period)s else %(period)s end::float8 as period_seconds
      from (
        select *, refused_key = %(key)s
          and now < lowered_at + make_interval(secs => lowered_seconds) as lowered
        from (select *, clock_timestamp() as now from asset_sync.limiter) limiter
      ) limiter
    ) limiter
  )
"""

# The slots that count. `live`: its call is in flight. `free_at`: the earliest time at which it can
# be free. `held_until`: when it is free if its call is never answered. `ends_by`: the latest time
# at which its call ends.
_SLOTS = """
  slots as materialized (
    select slot, live, held_until, held_until <= now as free,
      -- a call in flight may be answered at any moment
      case when live then now + period else held_until end as free_at,
      case when live then stamped_at + make_interval(secs => %(call_timeout)s) end as ends_by
    from (
      select *, token is not null
          and stamped_at + make_interval(secs => %(call_timeout)s) > now as live,
        stamped_at + make_interval(secs => open_seconds) + period as held_until
      from (
        select s.slot, s.token, s.open_seconds, least(s.stamped_at, now) as stamped_at, now, period
        from asset_sync.slots s, moment
      ) slots
    ) slots
    order by held_until desc, slot limit (select calls from moment)
  )
"""

# Until when no process may call after a 429. A 429 stops calls for an hour at most, and the restore
# of a database for a few windows. A later time is a mistake, and must not stop the refreshes.
_BLOCKED_UNTIL = "least(blocked_until, blocked_at + greatest(interval '1 hour', 3 * period))"

# Until when no process may call at all: after a 429, or because calls got no answer.
_STOPPED_UNTIL = f"""
  greatest({_BLOCKED_UNTIL}, case when unanswered >= {UNANSWERED_CALLS}
    then greatest(called_at + period / 2, (select max(ends_by) from slots)) end)
"""


# What falls due before a slot that is taken for history is free again, in the order of time, and
# whether each finds a slot without that one. No slot serves two of them: its first call ends too
# late for that. Of the priority lane the reservation counts if its run is expected by then. Only
# the first dues decide, because there are no more slots than calls.
_SPARE = """,
  horizon as materialized (
    -- runs look every few seconds for what has become due, so it may not be taken yet
    select now - make_interval(secs => %(just_due)s) as since, now, until,
      greatest(now, reserved_at) as expected_at,
      case when now < reserved_until and reserved_at <= until then reserved_calls else 0 end
        as expected_calls
    from moment join rules using (now) cross join lateral (
      select now + period + make_interval(secs => %(call_seconds)s) as until
    ) as free_again
  ),
  items as materialized (
    (
      select next_at as at, feed from asset_sync.queue
      where state = 'idle' and next_at > (select since from horizon)
        and next_at <= (select until from horizon)
        and (level <> 'critical' or (select expected_calls from horizon) = 0)
      order by next_at limit %(most_dues)s
    )
    union all
    (
      select not_before, feed from asset_sync.queue
      where state = 'waiting' and not_before > (select since from horizon)
        and not_before <= (select until from horizon)
        and (level <> 'critical' or (select expected_calls from horizon) = 0)
      order by not_before limit %(most_dues)s
    )
  ),
  dues as materialized (
    select at, row_number() over (order by at) as place from (
      select greatest(at, (select now from horizon)) as at from (
        select at, bulk, row_number() over (partition by feed order by at) as place
        from items left join unnest(%(feeds)s::text[], %(bulks)s::int[]) as f (feed, bulk)
          using (feed)
      ) items where (place - 1) %% coalesce(bulk, 1) = 0
      union all
      select expected_at from horizon, generate_series(1, expected_calls)
    ) calls
  ),
  spare as materialized (
    select not exists (
      select from dues
      -- with the slot to be taken, without calls in flight, which may last as long as this one
      where place >= (select count(*) from slots where not live and slots.free_at <= dues.at)
    ) as found
  )
"""

# Until when the free slots are kept: for the priority run; and for what falls due, so that history
# asks again when the next of it is due or the next slot comes free.
_RESERVED_UNTIL = "least(reserved_until, (select min(free_at) from slots where not free))"
_KEPT_UNTIL = """
  least(
    now + make_interval(secs => period_seconds),
    greatest(now + interval '1 s', least(
      case when reserved_until > now then reserved_until end,
      (select min(free_at) from slots where not free),
      (select min(at) from dues where at > now)
    ))
  )
"""


def _parameters(rate: Rate, key: str) -> dict[str, object]:
    return {
        "calls": rate.calls,
        "period": rate.period_seconds,
        "call_timeout": rate.call_timeout_seconds,
        "free_calls": _FREE.calls,
        "free_period": _FREE.period_seconds,
        "key": key,
    }


# Runs look for what has become due as often as this (`turn.POLL_SECONDS`).
_JUST_DUE_SECONDS = 5.0


def _spare_parameters(rate: Rate, spare: Spare | None) -> dict[str, object]:
    if spare is None:
        return {}
    # Among so many items there is one call more than there are slots.
    most = (max(rate.calls, _FREE.calls) + 1) * max(spare.bulks.values(), default=1)
    return {
        "call_seconds": spare.call_seconds,
        "feeds": list(spare.bulks),
        "bulks": list(spare.bulks.values()),
        "most_dues": most,
        "just_due": _JUST_DUE_SECONDS,
    }


def _fingerprint(rate: Rate) -> str:
    return rate.key.fingerprint() if rate.key is not None and rate.above_free else ""


def take(
    db: Connection,
    lane: Lane,
    rate: Rate,
    watch: Watch | None = None,
    *,
    spare: Spare | None = None,
) -> Slot | Wait:
    """Take a slot, or return how long to wait for one: one round trip.

    The first statement locks the limiter's row; only the second reads the clock and the slots, so
    that neither is older than the lock. If a process dies during its call, its slot frees itself:
    the call counts as unanswered, and as sent at the latest possible moment.

    The queue takes no slot that the next priority run needs: from one window before that run is
    expected until it counts as missed, as many slots stay free as it has calls to make.

    With `spare` a slot is taken only if afterwards every item that falls due within a window and
    such a call still finds one when it does. What is overdue is not waited for. With 100,000 idle
    items the statement takes 0.3 ms instead of 0.2, and 0.7 ms longer to plan.

    If the database or `watch` proves that the database's clock has jumped, the slot is given back,
    every slot is stamped again, and another slot is taken.
    """
    watch = watch or Watch()
    while True:
        sent = watch.own_clock()
        [(number, token, wait_seconds, now, jumps, jumped)] = query(
            db,
            f"""
            -- with asynchronous commit, a server that crashes would forget its last calls
            set local synchronous_commit = on;
            select from asset_sync.limiter for update;
            with {_MOMENT}, {_SLOTS},
            rules as materialized (
              select now, period_seconds, {clocks.JUMPED.format(now="now")} as jumped,
                {_STOPPED_UNTIL} as stopped_until,
                reserved_at + make_interval(secs => %(grace)s) as reserved_until,
                case
                  when %(lane)s = 'queue' and now >= reserved_at - period
                    and now < reserved_at + make_interval(secs => %(grace)s)
                  then reserved_calls else 0
                end as reserved,
                (select count(*) from slots where free_at <= greatest(now, reserved_at))
                  as free_for_priority
              from moment
            ){_SPARE if spare else ""},
            taken as (
              update asset_sync.slots s
              set previous_stamped_at = s.stamped_at, previous_open_seconds = s.open_seconds,
                token = gen_random_uuid(), stamped_at = now,
                open_seconds = %(call_timeout)s + %(freeze)s * period_seconds
              from rules
              where s.slot = (select slot from slots where free order by held_until, slot limit 1)
                and stopped_until <= now and not jumped
                and (reserved = 0 or free_for_priority > reserved)
                {"and (select found from spare)" if spare else ""}
              returning s.slot, s.token
            ),
            seen as (
              update asset_sync.limiter
              set seen_at = now,
                called_at = case when exists (select from taken) then now else called_at end,
                reserved_calls = reserved_calls - (
                  %(lane)s = 'priority' and reserved_calls > 0 and now >= reserved_at
                  and exists (select from taken)
                )::int
              from rules where not jumped
            )
            select taken.slot, taken.token,
              -- not before now: a stamp may be -infinity, which PostgreSQL 16 cannot subtract
              extract(epoch from greatest(now, stopped_until, case
                when exists (select from slots where free) and stopped_until <= now
                then {_KEPT_UNTIL if spare else _RESERVED_UNTIL}
                else (select min(free_at) from slots)
              end) - now)::float8,
              extract(epoch from now)::float8, (select jumps from moment), jumped
            from rules left join taken on true
            """,
            {
                **_parameters(rate, _fingerprint(rate)),
                "lane": lane,
                "grace": PRIORITY_GRACE_SECONDS,
                "freeze": FREEZE_WINDOWS,
                **_spare_parameters(rate, spare),
            },
        )
        deviation = watch.deviation(now, jumps, sent)
        slot = None if number is None else Slot(number, token, now)
        if not jumped and not deviation:
            return Wait(wait_seconds) if slot is None else slot
        if slot is not None:
            give_back(db, slot)
        clocks.correct_times(db, jumps, deviation)


def release(
    db: Connection, slot: Slot, end: CallEnd, rate: Rate, *, sent_seconds_ago: float = 0.0
) -> None:
    """Stamp the slot at the end of its call, and note whether the provider answered well.

    If another process has taken the slot meanwhile, the call is stamped on the oldest slot instead.
    """
    if end is CallEnd.NOT_SENT:
        give_back(db, slot)
        return
    query(
        db,
        f"""
        select from asset_sync.limiter for update;
        with {_MOMENT},
        ended as materialized (
          select *, case when %(answered)s then 0
            else greatest(0, %(freeze)s * period_seconds - %(ago)s) end as open_seconds
          from moment
        ),
        own as (
          update asset_sync.slots s
          set stamped_at = now, open_seconds = ended.open_seconds, token = null, last_token = token
          from ended where s.slot = %(slot)s and s.token = %(token)s
          returning s.slot
        ),
        oldest as (
          update asset_sync.slots s
          set stamped_at = now, last_token = %(token)s, open_seconds = case
            when s.stamped_at + make_interval(secs => s.open_seconds + ended.open_seconds) > now
            then greatest(ended.open_seconds,
              extract(epoch from s.stamped_at - now)::float8 + s.open_seconds)
            else ended.open_seconds end
          from ended
          where not exists (select from own)
            and not exists (select from asset_sync.slots where last_token = %(token)s)
            and s.slot = (
              select slot from asset_sync.slots
              order by token is not null, stamped_at + make_interval(secs => open_seconds), slot
              limit 1
            )
        ),
        -- The key allows more than the free plan: within one of that plan's windows, more calls
        -- were answered than two such windows could hold.
        fast as materialized (
          select %(well)s and refusals > 0 and blocked_until <= now and (
            select count(*) from asset_sync.slots
            where open_seconds = 0 and stamped_at > now - make_interval(secs => %(free_period)s)
          ) > 2 * %(free_calls)s as enough from moment
        )
        update asset_sync.limiter l
        set seen_at = greatest(l.seen_at, now),
          unanswered = case when %(answered)s then 0 else l.unanswered + 1 end,
          answered_at = case when %(well)s then now else l.answered_at end,
          refusals = case when enough then 0 else l.refusals end,
          lowered_seconds = case when enough then 0 else l.lowered_seconds end
        from ended, fast
        """,
        {
            **_parameters(rate, _fingerprint(rate)),
            "freeze": FREEZE_WINDOWS,
            "ago": sent_seconds_ago,
            "answered": end is not CallEnd.UNANSWERED,
            "well": end is CallEnd.ANSWERED_WELL,
            "slot": slot.number,
            "token": slot.token,
        },
    )


def give_back(db: Connection, slot: Slot) -> None:
    """Return a slot for which no call was made; it gets its earlier stamp back."""
    query(
        db,
        """
        select from asset_sync.limiter for update;
        with returned as (
          update asset_sync.slots
          set stamped_at = previous_stamped_at, open_seconds = previous_open_seconds,
            token = null, last_token = token
          where slot = %s and token = %s
          returning slot
        )
        -- if only one call at a time is allowed, the next one does not wait for this slot
        update asset_sync.limiter set called_at = '-infinity'
        from returned where unanswered > 0
        """,
        (slot.number, slot.token),
    )


def refused(
    db: Connection, slot: Slot, rate: Rate, retry_after_seconds: float | None
) -> Lowered | None:
    """Stop all calls after a 429, for as long as it says, otherwise for at least a minute.

    The third 429 in a row that counts lowers this key's rate to the free plan's; then the lowered
    rate is returned. A 429 counts if its slot was taken after the earlier stop was over, and if the
    settings allowed another call. So several calls in flight at the same time count once.
    """
    key = rate.key.fingerprint() if rate.key is not None else ""
    [(lowers, seconds)] = query(
        db,
        f"""
        select from asset_sync.limiter for update;
        with {_MOMENT},
        counted as materialized (
          select now, period, refused_key = %(refused_key)s as known,
            case when refused_key = %(refused_key)s then refusals else 0 end
              + (to_timestamp(%(taken_at)s) >= blocked_until and spare)::int as refusals,
            to_timestamp(%(taken_at)s) >= blocked_until and spare and %(above_free)s
              and not lowered as may_lower
          from (
            select *, calls > (
              select count(*) from asset_sync.slots s
              where s.stamped_at + make_interval(secs => s.open_seconds) + period > now
            ) as spare from moment
          ) moment
        ),
        judged as materialized (
          select *, may_lower and refusals >= {REFUSALS} as lowers from counted
        )
        update asset_sync.limiter l
        set blocked_at = now,
          blocked_until =
            greatest({_BLOCKED_UNTIL}, now + make_interval(secs => %(seconds)s)),
          refused_key = %(refused_key)s, refusals = judged.refusals,
          lowered_at = case when lowers then now when known then lowered_at else '-infinity' end,
          lowered_seconds = case
            when not known then case when lowers then {LOWERED_SECONDS} else 0 end
            when lowers
            then least({MOST_LOWERED_SECONDS}, greatest({LOWERED_SECONDS}, 2 * lowered_seconds))
            else lowered_seconds end
        from judged
        returning lowers, l.lowered_seconds
        """,
        {
            **_parameters(rate, _fingerprint(rate)),
            "refused_key": key,
            "above_free": rate.above_free,
            "taken_at": slot.taken_at,
            "seconds": retry_after_seconds or max(LEAST_BLOCK_SECONDS, rate.period_seconds),
        },
    )
    return Lowered(seconds) if lowers else None


def reserve(db: Connection, calls: int, in_seconds: float) -> None:
    """Reserve slots for the priority run that is expected in `in_seconds` and makes `calls`."""
    query(
        db,
        """
        update asset_sync.limiter set reserved_calls = %s,
          reserved_at = clock_timestamp() + make_interval(secs => %s)
        """,
        (calls, in_seconds),
    )


class Hold(NamedTuple):
    """A time without calls, and the one that held before."""

    until: str
    earlier: str


def hold(db: Connection, seconds: float) -> Hold:
    """Let no process take a slot for so many seconds, an hour at most; see `end_hold`."""
    [row] = query(
        db,
        """
        select from asset_sync.limiter for update;
        update asset_sync.limiter l
        set blocked_at = now,
          blocked_until = greatest(l.blocked_until, now + make_interval(secs => %s))
        from (select blocked_until as earlier, clock_timestamp() as now from asset_sync.limiter) was
        returning l.blocked_until::text, earlier::text
        """,
        (seconds,),
    )
    return Hold(*row)


def end_hold(db: Connection, held: Hold) -> None:
    """Let processes take slots again, unless the provider has refused a call meanwhile."""
    query(
        db,
        "update asset_sync.limiter set blocked_until = %s::timestamptz"
        " where blocked_until = %s::timestamptz",
        (held.earlier, held.until),
    )


def free_times(state: Budget, lane: Lane) -> Iterator[float]:
    """Yield when each next slot can be taken, in seconds from now, by the rules of `take`."""
    free_at = list(state.free_in_seconds)
    held = state.reservation
    while True:
        at = min(free_at)
        while (
            lane is Lane.QUEUE
            and held.holds(at)
            and sum(free <= max(at, held.expected_seconds) for free in free_at) <= held.calls
        ):
            at = min([held.until_seconds, *(free for free in free_at if free > at)])
        yield at
        free_at.remove(min(free_at))
        free_at.append(at + state.period_seconds)


def budget(db: Connection, rate: Rate) -> Budget:
    """Return the state of the budget, without waiting for a lock."""
    rate = effective_rate(db, rate)
    rows = query(
        db,
        f"""
        with {_MOMENT}, {_SLOTS}
        -- before the first run there is no row yet, which is a free slot
        select extract(epoch from greatest(coalesce(free_at, '-infinity'), now) - now)::float8,
          extract(epoch from greatest({_STOPPED_UNTIL}, now) - now)::float8,
          extract(epoch from greatest({_BLOCKED_UNTIL}, now) - now)::float8,
          reserved_calls,
          extract(epoch from greatest(reserved_at, now - interval '1 day') - now)::float8
        from moment left join slots on true
        """,
        _parameters(rate, ""),
    )
    _, stopped, blocked, reserved, expected = rows[0]
    # There may be fewer rows than calls; a slot without a row yet is free.
    waits = [seconds for seconds, *_ in rows] + [0.0] * (rate.calls - len(rows))
    free_in = tuple(sorted(max(seconds, stopped) for seconds in waits))
    return Budget(
        calls=rate.calls,
        period_seconds=rate.period_seconds,
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
