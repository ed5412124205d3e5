"""A turn: a slot that is held for one call.

Runs, and the commands that call the provider outside of a run, wait for slots and stamp them here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from asset_sync.budget import slots
from asset_sync.budget.clocks import Watch
from asset_sync.budget.slots import CallEnd, Lowered, Rate, Slot, Spare, Wait
from asset_sync.clock import Clock
from asset_sync.database import Connection
from asset_sync.model import Lane
from asset_sync.provider.errors import NotSent, ProviderError, RateLimited, Unanswered
from asset_sync.provider.protocol import Provider

if TYPE_CHECKING:
    from asset_sync.budget.bucket import Limiter  # pyrate-limiter takes 87 ms

_T = TypeVar("_T")

# A change by another process (of a slot, an item or a lease) is noticed within this time.
POLL_SECONDS = 5
# A user who interrupts a call does not want to wait for a database that may be gone.
INTERRUPTED_SECONDS = 1.0


@dataclass(slots=True)
class Turn:
    """A slot that is held, and how its call ended."""

    slot: Slot
    until: float
    """When its call must have ended, by `Clock.monotonic`."""
    call_end: CallEnd = CallEnd.NOT_SENT
    """How its call ended; UNANSWERED while it may be in flight."""
    sent_seconds_ago: float = 0.0

    @property
    def called(self) -> bool:
        """Whether the provider may have seen the call."""
        return self.call_end is not CallEnd.NOT_SENT


class Turns:
    """Takes slots, one at a time."""

    def __init__(
        self,
        connection: Callable[[], Connection],
        rate: Rate,
        lane: Lane,
        clock: Clock,
        watch: Watch,
        waiting: Callable[[float], None],
    ) -> None:
        """Take no slot yet.

        `connection` returns the current connection, `watch` is the process's. `waiting` is called
        before each wait for a slot, with its length in seconds.
        """
        self.waited_seconds = 0.0
        """How long it has waited for slots."""
        self._watch = watch
        self._connection = connection
        self._rate = rate
        self._lane = lane
        self._clock = clock
        self._waiting = waiting
        self._limiter: Limiter | None = None
        self._limiter_on: Connection | None = None

    def take(self, within_seconds: float, *, spare: Spare | None = None) -> Turn | Wait:
        """Take a slot, and wait for it if necessary; return the wait if it is too long.

        With `spare` the slot is for history: one that nobody else needs.
        """
        deadline = self._clock.monotonic() + within_seconds
        while True:
            asked = self._clock.monotonic()
            answer = self._current_limiter().take(self._lane, spare=spare)
            if isinstance(answer, Slot):
                return Turn(answer, asked + self._rate.call_timeout_seconds)
            if answer.seconds > deadline - self._clock.monotonic():
                return answer
            self._waiting(answer.seconds)
            pause = min(max(answer.seconds, 0.02), POLL_SECONDS)
            self._clock.sleep(pause)
            self.waited_seconds += pause

    def in_time(self, turn: Turn) -> bool:
        """Whether at least half of the turn's time is left for the call.

        Less is left if the database was slow meanwhile, or the host was suspended.
        """
        left = turn.until - self._clock.monotonic()
        return left >= self._rate.call_timeout_seconds / 2

    def call(
        self,
        turn: Turn,
        provider: Provider,
        ask: Callable[[Provider], _T],
        *,
        is_well: Callable[[_T], bool] = lambda _: True,
        most_seconds: float = float("inf"),
    ) -> _T:
        """Make the one call of this turn, and note in the turn how it ended.

        Raises any `ProviderError`; `NotSent` if the turn's time is over before the request is
        written.
        """
        provider.send_only_if(lambda: self._clock.monotonic() < turn.until)
        provider.call_timeout_seconds = min(turn.until - self._clock.monotonic(), most_seconds)
        turn.call_end = CallEnd.UNANSWERED
        try:
            answer = ask(provider)
        except NotSent:
            turn.call_end = CallEnd.NOT_SENT
            raise
        except Unanswered as error:
            turn.sent_seconds_ago = error.sent_seconds_ago
            raise
        except ProviderError:
            turn.call_end = CallEnd.ANSWERED
            raise
        turn.call_end = CallEnd.ANSWERED_WELL if is_well(answer) else CallEnd.ANSWERED
        return answer

    def stamp(self, turn: Turn, error: ProviderError | None = None) -> Lowered | None:
        """Stamp the slot at the end of its call, and after a 429 stop all calls for a while.

        Returns the lowered rate if this 429 lowered it.
        """
        db, rate, ago = self._connection(), self._rate, turn.sent_seconds_ago
        slots.release(db, turn.slot, turn.call_end, rate, sent_seconds_ago=ago)
        if isinstance(error, RateLimited):
            return slots.refused(db, turn.slot, rate, error.retry_after_seconds)
        return None

    def give_back(self, turn: Turn) -> None:
        """Return the turn's slot, for which no call was made."""
        slots.give_back(self._connection(), turn.slot)

    def _current_limiter(self) -> "Limiter":
        """Return the limiter, made for the first slot and again for each new connection."""
        db = self._connection()
        if self._limiter is None or self._limiter_on is not db:
            from asset_sync.budget.bucket import Limiter  # noqa: PLC0415

            self._limiter, self._limiter_on = Limiter(db, self._rate, self._watch), db
        return self._limiter
