"""Several calls in flight: the loop of a run in several workers, each a thread of its own.

A run begins with one worker. A worker that begins a call while there is more to do asks for another
one, and one that finds nothing to do for a second ends, unless it is the only one that waits. So a
run has no more threads and connections than calls to make.

The main thread opens the connections, starts the workers and alone passes their events on. They are
daemon threads: a signal ends the program without waiting for their calls. In a prototype with eight
calls in flight, Ctrl-C ended the program within 0.3 s.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from asset_sync.budget.turn import INTERRUPTED_SECONDS
from asset_sync.clock import Clock
from asset_sync.database import (
    SERVER_ERRORS,
    DriverError,
    connect,
    explanation,
    statement_timeout,
)
from asset_sync.errors import AssetSyncError
from asset_sync.sync.progress import Progress, Waiting, Warned
from asset_sync.sync.report import Ended
from asset_sync.sync.state import Leave, Shared, State

if TYPE_CHECKING:
    from asset_sync.sync.loop import Worker

# A signal that comes just before a wait does not interrupt it.
_SLICE_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class _Over:
    """A worker has ended, for a reason or by an error."""

    worker: "Worker"
    outcome: Ended | BaseException


class _WorkersClock(Clock):
    """The run's clock, whose waits end when the workers should leave."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._leaving = threading.Event()

    def monotonic(self) -> float:
        return self._clock.monotonic()

    def steady(self) -> float:
        return self._clock.steady()

    def sleep(self, seconds: float) -> None:
        """Wait; raises Leave as soon as the workers should."""
        end = self.monotonic() + seconds
        while (left := end - self.monotonic()) > 0:
            if self._leaving.wait(min(left, _SLICE_SECONDS)):
                raise Leave

    def end_waits(self) -> None:
        """End the waits of all workers, now and later."""
        self._leaving.set()


class Team:
    """The workers of one run."""

    def __init__(self, shared: Shared, make_worker: "Callable[[State], Worker]", most: int) -> None:
        """Take the run's events and waits over, before its first worker is made."""
        self._shared = shared
        self._make_worker = make_worker
        self._most = most
        self._tell = shared.tell
        self._clock = _WorkersClock(shared.clock)
        self._events: SimpleQueue[Progress | _Over | None] = SimpleQueue()
        """What the workers tell; None if one more is needed."""
        self._busy: dict[Worker, threading.Thread] = {}
        self._first: Worker | None = None
        self._error: BaseException | None = None
        self._reason = Ended.DONE
        shared.tell, shared.clock = self._events.put, self._clock

    def serve(self, first: "Worker") -> Ended:
        """Let workers serve until the last has ended; return why it did.

        After the error of one worker the others end after their calls; then it is raised.
        """
        self._first = first
        try:
            self._start(first)
            while self._busy:
                self._hear()
        except BaseException:
            self._abandon()
            raise
        self._shared.tell = self._tell
        if self._error is not None:
            raise self._error
        return self._reason

    def _hear(self) -> None:
        """Wait for something that a worker tells, and pass it on or follow it."""
        try:
            event = self._events.get(timeout=_SLICE_SECONDS)
        except Empty:
            return
        match event:
            case None:
                self._add()
            case _Over():
                self._note_end(event)
            case Waiting() if any(worker.is_in_flight for worker in self._busy):
                pass  # the run does not wait, one of its workers does
            case _:
                self._tell(event)

    # --- workers ------------------------------------------------------------------------------

    def _add(self) -> None:
        """Start one more worker, on a connection of its own."""
        if self._shared.leaving or len(self._busy) >= self._most:
            return
        if self._first is not None and self._first not in self._busy:
            self._start(self._first)
            return
        conninfo = self._shared.settings.conninfo
        seconds = self._shared.deadline - self._shared.clock.monotonic()
        try:
            db = connect(conninfo, within_seconds=seconds)
        except (*SERVER_ERRORS, AssetSyncError) as error:
            self._most = len(self._busy)
            why = explanation(error, conninfo) if isinstance(error, DriverError) else str(error)
            self._tell(Warned(f"{why} The run has {self._most} connections and needs more."))
            return
        self._start(self._make_worker(State(self._shared, db, is_callers=False)))

    def _start(self, worker: "Worker") -> None:
        thread = threading.Thread(target=self._work, args=(worker,), daemon=True)
        self._busy[worker] = thread
        thread.start()
        self._offer()

    def _work(self, worker: "Worker") -> None:
        """Serve, in the worker's thread."""
        outcome: Ended | BaseException
        try:
            outcome = worker.serve()
        except BaseException as error:  # noqa: BLE001  # raised in the main thread
            outcome = error
        self._events.put(_Over(worker, outcome))

    def _offer(self) -> None:
        """Let the workers ask for another one if there may be one more."""
        self._shared.needs_worker = self._ask if len(self._busy) < self._most else None

    def _ask(self) -> None:
        """Ask for one more worker, in a worker's thread; only the first to do so has to."""
        self._shared.needs_worker = None
        self._events.put(None)

    # --- the end ------------------------------------------------------------------------------

    def _note_end(self, over: _Over) -> None:
        del self._busy[over.worker]
        if over.worker is not self._first:  # the run itself ends that one
            over.worker.leave()
        if isinstance(over.outcome, Ended):
            self._reason = over.outcome
        elif not isinstance(over.outcome, Leave):
            self._error = self._error or over.outcome
            self._leave()
        self._offer()

    def _leave(self) -> None:
        self._shared.leaving = True
        self._clock.end_waits()

    def _abandon(self) -> None:
        """End the workers that are still busy, because of a signal, without their answers.

        A worker whose call is in flight does nothing more afterwards, so its connection can be used
        here. The others store what they have first, for which they get some time.
        """
        self._shared.abandoned = True
        self._leave()
        deadline = self._clock.monotonic() + INTERRUPTED_SECONDS
        with statement_timeout(INTERRUPTED_SECONDS):
            for worker, thread in self._busy.items():
                while (
                    busy := thread.is_alive() and not worker.is_in_flight
                ) and self._clock.monotonic() < deadline:
                    thread.join(0.01)
                if not busy and worker is not self._first:
                    worker.leave()
