"""What the parts of one run share."""

from collections.abc import Sequence
from dataclasses import dataclass

from asset_sync import queue
from asset_sync.budget import slots
from asset_sync.budget.turn import Turn, Turns
from asset_sync.clock import Clock
from asset_sync.database import Connection
from asset_sync.model import Feed, Lane
from asset_sync.queue import Item
from asset_sync.settings import Settings
from asset_sync.spans import Span
from asset_sync.store import runs
from asset_sync.sync.connection import LastingConnection
from asset_sync.sync.line import Line, Patience
from asset_sync.sync.progress import Listener, Progress, Waiting
from asset_sync.sync.report import Report
from asset_sync.sync.scope import Scope, scope_of
from asset_sync.sync.streaks import Streaks


@dataclass(slots=True)
class Held:
    """What the run has taken and has to give back."""

    turn: Turn
    items: Sequence[Item] = ()


class State:
    """The state of one run: its scope, connection and time, and what it has done."""

    def __init__(
        self,
        db: Connection,
        settings: Settings,
        lane: Lane,
        most_seconds: float | None,
        tell: Listener,
        clock: Clock,
        *,
        command: str | None = None,
        only: Span | None = None,
    ) -> None:
        """Begin the run: it has a row in the history from now on.

        Its `command` there is the lane's name unless another is given; `only` bounds the past that
        it asks for.
        """
        self.settings = settings
        self.lane = lane
        self.tell = tell
        self.clock = clock
        scope = scope_of(db, settings, lane, only)
        self.started = clock.monotonic()
        self.report = Report(runs.start(db, command or lane.value), lane)
        self.streaks = Streaks()
        self.connection = LastingConnection(db, settings.conninfo, clock, self.remaining, tell)
        self.turns = Turns(lambda: self.db, scope.rate, lane, clock, self._wait_for_a_slot)
        self.line = Line(lambda: self.db, scope, clock, self.turns.watch, tell)
        self.called_at: float | None = None
        """When the last call ended, or began while it is under way."""
        self._deadline = self.started + (most_seconds or scope.runtime_seconds)

    @property
    def db(self) -> Connection:
        """The connection that works at this moment."""
        return self.connection.db

    @property
    def scope(self) -> Scope:
        """What the run has to do; it changes when the key turns out to allow less."""
        return self.line.scope

    @property
    def live_feeds(self) -> Sequence[Feed]:
        """The feeds that keep assets fresh."""
        return self.settings.provider.plan.feeds

    @property
    def tried(self) -> bool:
        """Whether the run has made a call, or tried to."""
        return self.called_at is not None

    def remaining(self) -> float:
        """Return how many seconds are left until the run's end."""
        return self._deadline - self.clock.monotonic()

    def patience(self) -> Patience:
        """Return how long the run may wait for work."""
        return Patience(self.remaining(), self.tried)

    def say(self, progress: Sequence[Progress]) -> None:
        """Note all events in the report, then pass them to the listener."""
        for step in progress:
            self.report.note(step)
        for step in progress:
            self.tell(step)

    def read_scope(self) -> None:
        """Read again what the key may do, after the API refused it something."""
        self.line.scope = scope_of(self.db, self.settings, self.lane, self.scope.only)
        self.line.read()

    def reserve(self, in_seconds: float) -> None:
        """Reserve slots for the priority run that starts, or continues, in so many seconds."""
        if self.lane is not Lane.PRIORITY:
            return
        calls = 0
        batch = self.settings.batch
        if self.settings.rate_limit.hold_for_priority and batch.priority_assets_enabled:
            calls = queue.due_within(
                self.db, self.scope.wanted, in_seconds, cycle_seconds=batch.interval_seconds
            )
        slots.reserve(self.db, calls, in_seconds)

    def _wait_for_a_slot(self, seconds: float) -> None:
        self.reserve(seconds)
        self.tell(Waiting("a slot", seconds, slots.budget(self.db, self.scope.rate)))
