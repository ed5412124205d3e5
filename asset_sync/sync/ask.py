"""Calls to the provider outside of a run, within the same limit."""

from collections.abc import Callable
from contextlib import suppress
from typing import Self, TypeVar

from asset_sync.budget import slots
from asset_sync.budget.clocks import Watch
from asset_sync.budget.turn import INTERRUPTED_SECONDS, Turn, Turns
from asset_sync.clock import Clock
from asset_sync.database import SERVER_ERRORS, Connection, statement_timeout
from asset_sync.errors import AssetSyncError, ExitCode
from asset_sync.model import Lane
from asset_sync.provider.errors import ProviderError, RateLimited
from asset_sync.provider.protocol import Provider
from asset_sync.settings import Settings
from asset_sync.sync.progress import Listener, Waiting, Warned
from asset_sync.sync.scope import key_of, open_provider

_T = TypeVar("_T")

# Each 429 stops every process for a window. After so many, another program must be using the key.
_TIMES_REFUSED = 3


class NoCallLeftError(AssetSyncError):
    """No slot became free within the given time."""

    exit_code = ExitCode.SOME_FAILED

    def __init__(self, seconds: float) -> None:
        super().__init__(f"The budget is used up for {seconds:.0f} s; try again after that.")
        self.seconds = seconds


class Questions:
    """Makes calls to the provider one at a time; slots reserved for priority runs stay free."""

    def __init__(
        self,
        db: Connection,
        settings: Settings,
        *,
        within_seconds: float,
        tell: Listener = lambda _: None,
        clock: Clock | None = None,
    ) -> None:
        """Prepare for calls within `within_seconds` in all. Raises SettingsError without a key."""
        key = key_of(settings)
        self._db = db
        self._tell = tell
        self._clock = clock or Clock()
        self._deadline = self._clock.monotonic() + within_seconds
        self._rate = slots.effective_rate(db, slots.rate_of(settings))
        self._turns = Turns(
            lambda: db,
            self._rate,
            Lane.QUEUE,
            self._clock,
            Watch(self._clock.steady),
            self._wait,
        )
        self._api = open_provider(settings.provider, key)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._api.close()

    def ask(self, question: Callable[[Provider], _T]) -> _T:
        """Wait for a slot, make one call and return its answer.

        After a 429 it waits and asks again. Raises any ProviderError, and NoCallLeftError when the
        time is over.
        """
        refused = 0
        while True:
            turn = self._turn()
            error: ProviderError | None = None
            try:
                answer = self._turns.call(turn, self._api, question)
            except ProviderError as refusal:
                error = refusal
            except BaseException:
                with suppress(*SERVER_ERRORS), statement_timeout(INTERRUPTED_SECONDS):
                    self._turns.stamp(turn)
                raise
            lowered = self._turns.stamp(turn, error)
            if lowered is not None:
                self._tell(Warned(str(lowered)))
            if error is None:
                return answer
            refused += 1
            if not isinstance(error, RateLimited) or refused == _TIMES_REFUSED:
                raise error
            if slots.budget(self._db, self._rate).blocked_seconds > self._remaining():
                raise error
            self._tell(Warned(str(error)))

    def _turn(self) -> Turn:
        """Return a turn that has most of its time left."""
        while True:
            turn = self._turns.take(self._remaining())
            if not isinstance(turn, Turn):
                raise NoCallLeftError(turn.seconds)
            if self._turns.in_time(turn):
                return turn
            self._turns.give_back(turn)  # the database was slow, or the host slept

    def _wait(self, seconds: float) -> None:
        self._tell(Waiting("a slot", seconds, slots.budget(self._db, self._rate)))

    def _remaining(self) -> float:
        return self._deadline - self._clock.monotonic()
