"""The line of one run: the waiting items of the queue that its settings want."""

from collections.abc import Callable
from typing import NamedTuple

from asset_sync import queue
from asset_sync.budget import clocks
from asset_sync.budget.clocks import Watch
from asset_sync.budget.turn import POLL_SECONDS
from asset_sync.clock import Clock
from asset_sync.database import Connection
from asset_sync.queue import LINE_LENGTH, Item, Wanted
from asset_sync.sync.progress import Listener, Waiting, Warned
from asset_sync.sync.scope import Scope

# An item that failed is tried again within a minute. A run that finds nothing else waits for that.
SECOND_TRY_SECONDS = 60
# The lease covers the call and its transaction.
LEASE_MARGIN_SECONDS = 30


class Patience(NamedTuple):
    """How long a run may wait for work."""

    remaining_seconds: float
    """Until its end."""
    tried: bool
    """Whether it has made a call. Only then does it also wait for assets to become due."""


class Reading:
    """What the last reading of the queue showed, which all workers of a run use."""

    def __init__(self, at: float) -> None:
        """Know nothing yet; `at` is the time of the reading."""
        self.at = at
        self.head: tuple[Wanted, ...] = ()
        self.claimed = False
        """Whether an item was claimed since then."""
        self.left_out = 0
        """How many due assets did not enter the queue because it is full."""


class Line:
    """The items that a run can claim, read again every few seconds."""

    def __init__(
        self,
        connection: Callable[[], Connection],
        scope: Callable[[], Scope],
        reading: Reading,
        clock: Clock,
        watch: Watch,
        tell: Listener,
    ) -> None:
        """Read nothing yet; `connection` and `scope` return those of this moment."""
        self._connection = connection
        self._scope = scope
        self._last = reading
        self._clock = clock
        self._watch = watch
        self._tell = tell

    @property
    def empty(self) -> bool:
        """Whether nothing that these settings want was waiting at the last reading."""
        return not self._last.head

    def read(self, cycle_seconds: float | None = None) -> None:
        """Enqueue what is due, take back what killed runs held, and read the line.

        With `cycle_seconds` an asset is due if it will not be fresh when the next run starts.
        """
        db = self._connection()
        self._last.at = self._clock.monotonic()
        clocks.correct_after_jump(db, self._watch)
        queue.reclaim(db, self._scope().settings.queue)
        self.enqueue(cycle_seconds)

    def enqueue(self, cycle_seconds: float | None) -> None:
        """Enqueue what is due, as `read` does, and read the line."""
        db, scope = self._connection(), self._scope()
        settings = scope.settings.queue
        entered = queue.enqueue(db, scope.wanted, settings, cycle_seconds=cycle_seconds)
        if entered.left_out and not self._last.left_out:
            self._tell(
                Warned(
                    f"The queue is full ({settings.max_size} items): {entered.left_out} due assets"
                    " wait for a later run. Raise queue.max_size or QUEUE_MAX_SIZE if that is not"
                    " what you want."
                )
            )
        self._last.left_out = entered.left_out
        self._last.head, self._last.claimed = entered.line, False

    def can_claim(self) -> bool:
        """Whether an item of the last reading can be claimed now."""
        return queue.can_claim(self._connection(), self._last.head)

    def has_work(
        self, patience: Callable[[], Patience], meanwhile: Callable[[], float | None]
    ) -> bool:
        """Whether an item can be claimed, now or after a wait that the run can afford.

        While there is none, `meanwhile` is called: it returns 0 if it made a call, else in how many
        seconds it can make one, or None if it has nothing to do.
        """
        while not self.can_claim():
            if self._last.claimed and len(self._last.head) >= LINE_LENGTH:
                self.read()  # the queue may hold more items
                continue
            pause = meanwhile()
            if pause == 0:
                if self._clock.monotonic() - self._last.at >= POLL_SECONDS:
                    self.read()
                continue
            due = self._next_ready_seconds(patience())
            if pause is not None and pause >= patience().remaining_seconds:
                pause = None
            if due is None and pause is None:
                return False
            seconds = min(wait for wait in (due, pause) if wait is not None)
            what = "the next asset to be due" if seconds == due else "a call for history"
            self._tell(Waiting(what, seconds))
            waits_since = self._clock.monotonic()
            self._clock.sleep(min(max(seconds, 0.05), POLL_SECONDS))
            if self._last.at <= waits_since:  # no other worker has read it meanwhile
                self.read()
        return True

    def claim(self, most: int | None) -> tuple[Item, ...]:
        """Lease the items of the next call; none if another run was quicker."""
        # Assets that have become due meanwhile may come first.
        if self._clock.monotonic() - self._last.at >= POLL_SECONDS:
            self.read()
        lease = self._scope().settings.provider.call_timeout_seconds + LEASE_MARGIN_SECONDS
        most = LINE_LENGTH if most is None else most
        items = queue.claim(self._connection(), self._last.head, lease_seconds=lease, most=most)
        if items:
            self._last.claimed = True
        return items

    def _next_ready_seconds(self, patience: Patience) -> float | None:
        """Return in how many seconds there is work, None if the run should not wait for it."""
        within = patience.remaining_seconds
        if not patience.tried:
            within = min(within, SECOND_TRY_SECONDS)
        states = ("idle", "waiting") if patience.tried else ("waiting",)
        db, wanted = self._connection(), self._scope().wanted
        return queue.next_ready_seconds(db, wanted, within, states=states)
