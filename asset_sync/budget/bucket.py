"""A pyrate-limiter bucket over the slots in the database.

Importing pyrate-limiter costs 87 ms, so this module is imported just before the first call.
"""

from pyrate_limiter import AbstractBucket, RateItem, SingleBucketFactory
from pyrate_limiter import Limiter as PyrateLimiter
from pyrate_limiter import Rate as PyrateRate
from pyrate_limiter.abstracts.algorithm import Decision

from asset_sync.budget import slots
from asset_sync.budget.clocks import Watch
from asset_sync.budget.slots import Rate, Slot, Spare, Wait
from asset_sync.database import Connection
from asset_sync.model import Lane


class SlotBucket(AbstractBucket):
    """A bucket whose content is the table `asset_sync.slots`: `put` takes a slot.

    The name of a `RateItem` is the lane, and `spare` is set first if the slot is for history.
    pyrate-limiter returns only a bool, so `answer` holds the slot, or how long to wait.
    """

    is_async = False

    def __init__(self, db: Connection, rate: Rate, watch: Watch | None = None) -> None:
        slots.prepare(db, rate)
        self._db = db
        self._rate = rate
        self._watch = watch or Watch()
        self.rates = [PyrateRate(rate.calls, round(rate.period_seconds * 1000))]
        self.spare: Spare | None = None
        self.answer: Slot | Wait = Wait(0)

    def put(self, item: RateItem) -> bool:
        """Take a slot in one round trip."""
        self.answer = slots.take(
            self._db, Lane(item.name), self._rate, self._watch, spare=self.spare
        )
        if isinstance(self.answer, Slot):
            return self._record(item, Decision())
        wait_ms = round(self.answer.seconds * 1000)
        return self._record(item, Decision(failing_rate=self.rates[0], retry_after_ms=wait_ms))

    def leak(self, current_timestamp: int | None = None) -> int:  # noqa: ARG002  # pyrate-limiter's
        """Do nothing: a slot frees itself."""
        return 0

    def flush(self) -> None:
        """Keep every slot: the provider has counted its call."""
        self.failing_rate = None

    def count(self) -> int:
        """Return how many slots are in use."""
        return slots.budget(self._db, self._rate).used

    def peek(self, index: int) -> RateItem | None:  # noqa: ARG002  # pyrate-limiter's
        """Return None: `put` already reports how long to wait."""
        return None


class Limiter:
    """Hands out the slots of one run."""

    def __init__(self, db: Connection, rate: Rate, watch: Watch | None = None) -> None:
        self._bucket = SlotBucket(db, rate, watch)
        # A leak schedule would start a thread that uses the same connection.
        self._limiter = PyrateLimiter(SingleBucketFactory(self._bucket, schedule_leak=False))

    def take(self, lane: Lane, *, spare: Spare | None = None) -> Slot | Wait:
        """Take a slot, or return how long to wait for one; with `spare` one that nobody needs.

        It never waits: a run that would end before a slot is free should stop at once.
        """
        self._bucket.spare = spare
        self._limiter.try_acquire(lane.value, blocking=False)
        return self._bucket.answer
