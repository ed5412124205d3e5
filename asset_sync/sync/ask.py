"""Questions to the provider outside of a run, each of them one call within the limit."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Self, TypeVar

from asset_sync.budget import slots
from asset_sync.budget.clocks import Watch
from asset_sync.budget.slots import CallEnd, Lane, Slot
from asset_sync.database import SERVER_ERRORS, Connection, hurry
from asset_sync.errors import AssetSyncError, ExitCode
from asset_sync.provider.errors import NotSent, ProviderError, RateLimited, Unanswered
from asset_sync.provider.protocol import Provider
from asset_sync.settings import Settings
from asset_sync.sync.loop import INTERRUPTED_SECONDS, POLL_SECONDS, Clock
from asset_sync.sync.progress import Listener, Waiting, Warned
from asset_sync.sync.scope import key_of, open_provider

_T = TypeVar("_T")

# Each 429 holds everybody back for a window; who is refused so often is not alone with the key.
_TIMES_REFUSED = 3


class NoCallLeftError(AssetSyncError):
    """No slot came free in the time that there was."""

    exit_code = ExitCode.SOME_FAILED

    def __init__(self, seconds: float) -> None:
        super().__init__(f"The budget is used up for {seconds:.0f} s; try again then.")
        self.seconds = seconds


class Questions:
    """Asks the provider, one call at a time, leaving the next priority run its place."""

    def __init__(
        self,
        db: Connection,
        settings: Settings,
        *,
        within_seconds: float,
        tell: Listener = lambda _: None,
        clock: Clock | None = None,
    ) -> None:
        """Prepare to ask, for so long in all. Raises SettingsError without a key."""
        # Both take 0.2 s to import, which a slot need not wait for.
        from asset_sync.budget.bucket import Limiter  # noqa: PLC0415

        key = key_of(settings)
        self._db = db
        self._tell = tell
        self._clock = clock or Clock()
        self._deadline = self._clock.monotonic() + within_seconds
        self._rate = slots.effective_rate(db, slots.rate_of(settings))
        self._limiter = Limiter(db, self._rate, Watch(self._clock.steady))
        self._api = open_provider(settings.provider, key)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._api.close()

    def ask(self, question: Callable[[Provider], _T]) -> _T:
        """Wait for a slot, put the question, which is one call, and return its answer.

        A 429 is waited out. Raises any ProviderError, and NoCallLeftError when the time is over.
        """
        refused = 0
        while True:
            slot, until = self._taken()
            try:
                with self._stamped(slot):
                    self._api.call_timeout_seconds = until - self._clock.monotonic()
                    self._api.send_only_if(partial(self._before, until))
                    return question(self._api)
            except RateLimited as error:
                lowered = self._limiter.refused(slot, error.retry_after_seconds)
                if lowered is not None:
                    self._tell(Warned(str(lowered)))
                refused += 1
                blocked = slots.budget(self._db, self._rate).blocked_seconds
                if refused == _TIMES_REFUSED or blocked > self._remaining():
                    raise
                self._tell(Warned(str(error)))

    def _before(self, moment: float) -> bool:
        return self._clock.monotonic() < moment

    @contextmanager
    def _stamped(self, slot: Slot) -> Iterator[None]:
        """Stamp the slot at the end of the call that is made in this block."""
        try:
            yield
        except (KeyboardInterrupt, SystemExit):
            with suppress(*SERVER_ERRORS), hurry(INTERRUPTED_SECONDS):
                self._limiter.release(slot, CallEnd.UNANSWERED)
            raise
        except NotSent:
            self._limiter.give_back(slot)
            raise
        except Unanswered as error:
            ago = error.sent_seconds_ago
            self._limiter.release(slot, CallEnd.UNANSWERED, sent_seconds_ago=ago)
            raise
        except ProviderError:
            self._limiter.release(slot, CallEnd.ANSWERED)
            raise
        except Exception:
            self._limiter.release(slot, CallEnd.UNANSWERED)
            raise
        self._limiter.release(slot, CallEnd.ANSWERED_WELL)

    def _taken(self) -> tuple[Slot, float]:
        """Return a slot, and when its call must be over: then it frees itself."""
        while True:
            asked = self._clock.monotonic()
            answer = self._limiter.take(Lane.QUEUE)
            if isinstance(answer, Slot):
                until = asked + self._rate.call_timeout_seconds
                if until - self._clock.monotonic() >= self._rate.call_timeout_seconds / 2:
                    return answer, until
                self._limiter.give_back(answer)  # the database took its time, or the host slept
                continue
            if answer.seconds > self._remaining():
                raise NoCallLeftError(answer.seconds)
            self._tell(Waiting("a slot", answer.seconds, slots.budget(self._db, self._rate)))
            self._clock.sleep(min(max(answer.seconds, 0.02), POLL_SECONDS))

    def _remaining(self) -> float:
        return self._deadline - self._clock.monotonic()
