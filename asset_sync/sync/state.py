"""What the workers of one run share, and what each has of its own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock

from asset_sync import bus, queue
from asset_sync.budget import slots
from asset_sync.budget.clocks import Watch
from asset_sync.budget.turn import Turn, Turns
from asset_sync.clock import Clock
from asset_sync.database import Connection
from asset_sync.model import Feed, Lane
from asset_sync.queue import Item
from asset_sync.settings import Settings
from asset_sync.spans import Span
from asset_sync.store import runs
from asset_sync.sync.connection import LastingConnection, Outage
from asset_sync.sync.line import Line, Patience, Reading
from asset_sync.sync.progress import Listener, Progress, Waiting
from asset_sync.sync.report import Report
from asset_sync.sync.scope import Scope, scope_of
from asset_sync.sync.streaks import Streaks

# So long a run leaves an item to another one that is just claiming it.
_CLAIM_SECONDS = 0.05
# A worker that finds nothing to do for longer than this ends, if another one waits already.
IDLE_SECONDS = 1.0


class Leave(SystemExit):
    """Ends a worker because its run ends, as a signal ends the run."""


@dataclass(slots=True)
class Held:
    """What a worker has taken and has to give back."""

    turn: Turn
    items: Sequence[Item] = ()


class Shared:
    """What the workers of one run share: its scope, its time, and what it has done.

    A worker makes one call at a time; `lock` protects what several workers count.
    """

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
        self.lock = Lock()
        self.watch = Watch(clock.steady)
        self.scope = scope_of(db, settings, lane, only)
        self.started = clock.monotonic()
        self.deadline = self.started + (most_seconds or self.scope.runtime_seconds)
        self.report = Report(runs.start(db, command or lane.value), lane)
        self.streaks = Streaks()
        self.outage = Outage()
        self.warnings: set[str] = set()
        self.reading = Reading(self.started)
        self.bus = None if settings.bus_url is None else bus.Client(settings.bus_url)
        self.begun = False
        """Whether a worker has enqueued what is due."""
        self.called_at: float | None = None
        """When the last call ended, or began while it is under way."""
        self.in_work = 0
        """How many items the workers have claimed and not ended."""
        self.waiting: State | None = None
        """The one worker that waits for work; None while each has some."""
        self.needs_worker: Callable[[], None] | None = None
        """Asks for one more worker; None while there are as many as there may be."""
        self.leaving = False
        """Whether the workers should end, each after its call."""
        self.abandoned = False
        """Whether they should not even store their answers."""


class State:
    """The state of one worker of a run: its connection, its slot and its place in the line."""

    def __init__(self, shared: Shared, db: Connection, *, is_callers: bool = True) -> None:
        """Take nothing yet; `is_callers` says that the caller closes the connection."""
        self.shared = shared
        self.settings = shared.settings
        self.lane = shared.lane
        self.clock = shared.clock
        self.report = shared.report
        self.streaks = shared.streaks
        self.calls = 0
        """How many calls this worker has made."""
        self.connection = LastingConnection(
            db,
            self.settings.conninfo,
            self.clock,
            self.remaining,
            self.tell,
            shared.outage,
            is_callers=is_callers,
        )
        self.turns = Turns(
            lambda: self.db,
            self.scope.rate,
            self.lane,
            self.clock,
            shared.watch,
            self._wait_for_a_slot,
        )
        self.line = Line(
            lambda: self.db,
            lambda: self.scope,
            shared.reading,
            self.clock,
            shared.watch,
            self.tell,
        )

    @property
    def db(self) -> Connection:
        """The connection that works at this moment."""
        return self.connection.db

    @property
    def scope(self) -> Scope:
        """What the run has to do; it changes when the key turns out to allow less."""
        return self.shared.scope

    @property
    def live_feeds(self) -> Sequence[Feed]:
        """The feeds that keep assets fresh."""
        return self.settings.provider.plan.feeds

    @property
    def tried(self) -> bool:
        """Whether the run has made a call, or tried to."""
        return self.shared.called_at is not None

    def remaining(self) -> float:
        """Return how many seconds are left until the run's end."""
        return self.shared.deadline - self.clock.monotonic()

    def count_calls(self, number: int) -> None:
        """Count calls of this worker, or with -1 one that was not sent after all."""
        self.calls += number
        with self.shared.lock:
            self.report.api_calls_used += number

    def tell(self, progress: Progress) -> None:
        """Pass an event to the listener."""
        self.shared.tell(progress)

    def is_new(self, warning: str) -> bool:
        """Return whether no worker has told this warning yet; from now on one has."""
        with self.shared.lock:
            told = warning in self.shared.warnings
            self.shared.warnings.add(warning)
            return not told

    def say(self, progress: Sequence[Progress]) -> None:
        """Note all events in the report, then pass them to the listener."""
        with self.shared.lock:
            for step in progress:
                self.report.note(step)
        for step in progress:
            self.tell(step)

    # --- the other workers --------------------------------------------------------------------

    def ask_for_worker(self, more_work: Callable[[], bool]) -> None:
        """Ask for one more worker if there may be one and there is work for it."""
        ask = self.shared.needs_worker
        if ask is not None and not self.streaks.is_bad and more_work():
            ask()

    def leave_to_others(self) -> None:
        """Wait a moment, since another run is just claiming what this one wanted.

        Until its claim is committed, which may take long, the item looks free but cannot be had.
        """
        self.clock.sleep(_CLAIM_SECONDS)

    def check(self) -> None:
        """Raise Leave if the run's workers should end."""
        if self.shared.leaving:
            raise Leave

    def check_abandoned(self) -> None:
        """Raise Leave if the run was interrupted: another thread gives back what is held."""
        if self.shared.abandoned:
            raise Leave

    def may_wait(self) -> bool:
        """Return whether this worker is the one that waits for work; the first to ask is it."""
        with self.shared.lock:
            if self.shared.waiting is None:
                self.shared.waiting = self
            return self.shared.waiting is self

    def stop_waiting(self) -> None:
        """Let another worker be the one that waits."""
        if self.shared.waiting is self:
            self.shared.waiting = None

    def end(self) -> None:
        """Note that this worker has ended."""
        self.stop_waiting()
        with self.shared.lock:  # the workers wait at the same time, so the longest wait counts
            self.report.waited_seconds = max(self.report.waited_seconds, self.turns.waited_seconds)

    def patience(self) -> Patience:
        """Return how long the worker may wait for work."""
        remaining = self.remaining()
        if not self.may_wait():
            remaining = min(remaining, IDLE_SECONDS)
        return Patience(remaining, self.tried)

    # --- the run ------------------------------------------------------------------------------

    def read_scope(self) -> None:
        """Read again what the key may do, after the API refused it something."""
        self.shared.scope = scope_of(self.db, self.settings, self.lane, self.scope.only)
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
