"""The calls that a run would make: `sync … --dry-run`. It makes no call and writes nothing."""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from asset_sync import queue
from asset_sync.budget import slots
from asset_sync.database import Connection
from asset_sync.model import Feed, Lane
from asset_sync.queue import Upcoming
from asset_sync.settings import Settings
from asset_sync.sync import feeds
from asset_sync.sync.apply import known_of_all
from asset_sync.sync.scope import scope_of


class PlannedCall(NamedTuple):
    """A call that a run would make."""

    symbols: tuple[str, ...]
    feed: Feed
    endpoint: str
    at_seconds: float | None
    """In how many seconds its slot becomes free; None if not before the run's end."""


def plan(
    db: Connection,
    settings: Settings,
    lane: Lane,
    *,
    max_runtime_seconds: float | None = None,
    limit: int | None = None,
) -> tuple[PlannedCall, ...]:
    """Return the calls that a run would make now, in their order."""
    scope = scope_of(db, settings, lane)
    if scope.switched_off:
        return ()
    runtime = max_runtime_seconds or scope.runtime_seconds
    most = min(limit or settings.queue.max_size, settings.queue.max_size)
    ahead = settings.batch.interval_seconds
    due = None if lane is Lane.QUEUE else ahead
    upcoming = queue.preview(db, scope.wanted, settings.queue, most, cycle_seconds=due)
    if not upcoming:  # as a run does
        upcoming = queue.preview(db, scope.wanted, settings.queue, most, cycle_seconds=ahead)
    times = slots.free_times(slots.budget(db, scope.rate), lane)
    batches = list(_batches(upcoming))
    calls = []
    for batch, known in zip(
        batches, known_of_all(db, [batch[0] for batch in batches]), strict=True
    ):
        request = feeds.request_of(scope, batch, known)
        if request is not None:
            at = max(next(times), batch[0].wait_seconds)
            symbols = tuple(item.symbol for item in batch)
            when = at if at <= runtime else None
            calls.append(PlannedCall(symbols, batch[0].feed, request.endpoint, when))
    return tuple(calls)


def _batches(upcoming: Sequence[Upcoming]) -> Iterator[list[Upcoming]]:
    """Group the items that one call serves, as `queue.claim` does."""
    left = {
        feed: deque(item for item in upcoming if item.feed is feed) for feed in Feed.known.values()
    }
    for item in upcoming:
        same = left[item.feed]
        if same and same[0] is item:  # else an earlier call serves it
            yield [same.popleft() for _ in range(min(len(same), item.feed.bulk))]
