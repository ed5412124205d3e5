"""Threads of one process as tasks: what a program takes from `threading` and `queue`.

A program uses them if a test puts them in the places of the originals.
"""

from collections import deque
from collections.abc import Callable, Sequence
from queue import Empty

from explorer.scheduler import Scheduler, State, Task


class Threads:
    """Stands in for the module `threading`, and has a queue."""

    def __init__(self, scheduler: Callable[[], Scheduler]) -> None:
        """`scheduler` returns that of the schedule at this moment."""
        self._scheduler = scheduler

    def Thread(  # noqa: N802  # as the original
        self, *, target: Callable[..., None], args: Sequence[object] = (), daemon: bool
    ) -> "Thread":
        """Return a thread that is not started yet. Only daemons are known."""
        assert daemon
        return Thread(self._scheduler(), lambda: target(*args))

    def Event(self) -> "Event":  # noqa: N802  # as the original
        """Return an event that is not set."""
        return Event(self._scheduler())

    def SimpleQueue(self) -> "SimpleQueue":  # noqa: N802  # as the original
        """Return an empty queue."""
        return SimpleQueue(self._scheduler())


class Thread:
    """A thread of the running task's process."""

    def __init__(self, scheduler: Scheduler, work: Callable[[], None]) -> None:
        self._scheduler = scheduler
        self._work = work
        self._task: Task | None = None

    def start(self) -> None:
        """Let it work as soon as it is its turn."""
        self._task = self._scheduler.fork(self._work)

    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return self._task is not None and self._task.state is not State.OVER

    def join(self, seconds: float) -> None:
        """Wait until it has ended, at most for so long."""
        self._scheduler.wait_until(lambda: not self.is_alive(), most_seconds=seconds)


class Event:
    """What threads wait for."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._is_set = False

    def set(self) -> None:
        """Let those that wait go on."""
        self._is_set = True

    def wait(self, seconds: float) -> bool:
        """Wait until it is set, at most for so long; return whether it is."""
        self._scheduler.wait_until(lambda: self._is_set, most_seconds=seconds)
        return self._is_set


class SimpleQueue:
    """A queue between threads."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._elements: deque[object] = deque()

    def put(self, element: object) -> None:
        """Add an element."""
        self._elements.append(element)

    def get(self, *, timeout: float) -> object:
        """Return the first element, as soon as there is one. Raises Empty after so long."""
        self._scheduler.wait_until(lambda: bool(self._elements), most_seconds=timeout)
        if not self._elements:
            raise Empty
        return self._elements.popleft()
