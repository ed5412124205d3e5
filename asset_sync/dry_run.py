"""The calls that a run would make: `sync … --dry-run`. Nothing is called and nothing written."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from asset_sync import queue, slots, store
from asset_sync.assets import Feed
from asset_sync.database import Connection
from asset_sync.job import Job, job_of
from asset_sync.polygon import bars_endpoint, reference_endpoint, snapshot_endpoint
from asset_sync.queue import Upcoming
from asset_sync.settings import Settings
from asset_sync.slots import Lane


class PlannedCall(NamedTuple):
    """A call that a run would make."""

    symbols: tuple[str, ...]
    feed: Feed
    endpoint: str
    at_seconds: float | None
    """When its slot comes free, from now; None if not before the run's end."""


def plan(
    db: Connection,
    settings: Settings,
    lane: Lane,
    *,
    max_runtime_seconds: float | None = None,
    limit: int | None = None,
) -> tuple[PlannedCall, ...]:
    """Return the calls that a run would make now, in their order."""
    job = job_of(db, settings, lane)
    if job.switched_off:
        return ()
    runtime = max_runtime_seconds or job.runtime_seconds
    most = min(limit or settings.queue.max_size, settings.queue.max_size)
    upcoming = queue.preview(
        db, job.wanted, settings.queue, most, cycle_seconds=settings.batch.interval_seconds
    )
    times = slots.free_times(slots.budget(db, job.rate), lane)
    calls = []
    for batch in _batches(upcoming):
        endpoint = _endpoint(db, job, batch)
        if endpoint is not None:
            at = max(next(times), batch[0].wait_seconds)
            symbols = tuple(one.symbol for one in batch)
            when = at if at <= runtime else None
            calls.append(PlannedCall(symbols, batch[0].feed, endpoint, when))
    return tuple(calls)


def _batches(upcoming: Sequence[Upcoming]) -> Iterator[list[Upcoming]]:
    """Put together what one call serves, as claims do."""
    left = list(upcoming)
    while left:
        feed = left[0].feed
        batch = [one for one in left if one.feed is feed][: queue.BULK[feed]]
        left = [one for one in left if one not in batch]
        yield batch


def _endpoint(db: Connection, job: Job, batch: Sequence[Upcoming]) -> str | None:
    """Return what the call would ask for, None where it can bring nothing new."""
    first = batch[0]
    if first.verify_ticker:
        return reference_endpoint(first.ticker)
    if first.feed is Feed.SNAPSHOT:
        return snapshot_endpoint([one.ticker for one in batch])
    newest, now = store.newest_bar(db, first.symbol)
    span = job.reach(first.asset_type, newest, now)
    return None if span is None else bars_endpoint(first.ticker, span.start, span.end)
