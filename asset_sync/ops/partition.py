"""Gives the table of bars monthly partitions, or takes them away, while runs wait."""

from collections.abc import Callable
from contextlib import closing, suppress

from asset_sync.budget import slots
from asset_sync.clock import Clock
from asset_sync.database import SERVER_ERRORS, Connection, DatabaseError, connect, query
from asset_sync.settings import Settings
from asset_sync.store import partitioning
from asset_sync.store.months import make_missing
from asset_sync.store.partitioning import Layout

_POLL_SECONDS = 0.5
# A run that was killed keeps its lease for a minute or two.
_MOST_WAIT_SECONDS = 300.0


def change(
    db: Connection,
    settings: Settings,
    wanted: Layout,
    *,
    tell: Callable[[str], None] = lambda _: None,
    clock: Clock | None = None,
) -> None:
    """Store the bars as one table or in monthly partitions; return when it is done.

    No run takes a slot meanwhile: a run waits for one, or ends as it does if the budget is used up.
    The calls in flight are stored first. Raises DatabaseError, and changes nothing, if a copy of
    the table cannot keep something.
    """
    clock = clock or Clock()
    # Twice as long as it should take, should the estimate be wrong or this process be killed.
    seconds = 60 + _MOST_WAIT_SECONDS + 2 * partitioning.survey(db).seconds
    held = slots.hold(db, seconds)
    try:
        _wait_for_calls(db, settings.provider.call_timeout_seconds, clock, tell)
        if wanted is Layout.MONTHS:
            partitioning.partition(db, tell)
        else:
            partitioning.unite(db, tell)
    finally:
        _end_hold(db, settings, held)


def _end_hold(db: Connection, settings: Settings, held: slots.Hold) -> None:
    """Let runs go on, on a new connection if the change was interrupted."""
    with suppress(*SERVER_ERRORS):
        if not db.closed:
            slots.end_hold(db, held)
            return
        with closing(connect(settings.conninfo)) as another:
            slots.end_hold(another, held)


def complete(db: Connection) -> int:
    """Make the monthly partitions that are missing; return how many there were."""
    return len(list(make_missing(db)))


def _wait_for_calls(
    db: Connection, call_timeout_seconds: float, clock: Clock, tell: Callable[[str], None]
) -> None:
    """Wait until every call in flight has ended and its answer is stored."""
    end = clock.monotonic() + _MOST_WAIT_SECONDS
    told = False
    while True:
        # A run has a slot, or a leased item, or both, until its answer is stored.
        [(busy,)] = query(
            db,
            """
            select exists (
              select from asset_sync.slots where token is not null
                and stamped_at + make_interval(secs => %s) > clock_timestamp()
            ) or exists (
              select from asset_sync.queue
              where state = 'leased' and lease_until > clock_timestamp()
            )
            """,
            (call_timeout_seconds,),
        )
        if not busy:
            return
        if clock.monotonic() > end:
            raise DatabaseError("A run does not end: nothing was changed.")
        if not told:
            tell("Waiting for the calls in flight.")
            told = True
        clock.sleep(_POLL_SECONDS)
