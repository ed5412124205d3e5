"""Lets one task work at a time, and hands over where a plan says so.

A task is a function in a thread of its own; some tasks may be threads of one process. At each of
its points (before a statement, before a request and so on) it asks the scheduler whether to go on.
Time is virtual: a step takes a millisecond, and more passes only when every task sleeps or waits
for a lock. So the plan alone decides the order.
"""

import _thread
import threading
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from enum import Enum, auto
from typing import NamedTuple, NoReturn

from explorer.plans import (
    Action,
    Ahead,
    Die,
    Fault,
    HandOver,
    Interrupt,
    Plan,
    Sleep,
    Spot,
)

TICK_SECONDS = 0.001
"""How long each step takes in virtual time."""

MOST_STEPS = 4000
"""A schedule with more steps is given up: a task asks again and again and never sleeps."""

# A schedule takes milliseconds. One that takes so long hangs.
_STUCK_SECONDS = 20.0


class DeathError(BaseException):
    """Ends a task as SIGKILL ends a process: whatever it does on its way out has no effect."""


class StuckError(Exception):
    """The tasks did not come to an end."""


class State(Enum):
    """What a task does."""

    READY = auto()
    ASLEEP = auto()
    BLOCKED = auto()
    """It waits for something that another task does, such as ending a transaction."""
    OVER = auto()


class Event(NamedTuple):
    """One thing that happened, for the story."""

    at_seconds: float
    task: str
    what: str
    is_action: bool = False
    """Whether the plan made it happen."""


class Task:
    """One of the functions that run concurrently."""

    def __init__(self, name: str, starts_at: float, main: "Task | None" = None) -> None:
        self.name = name
        self.main = main or self
        """The main thread of its process."""
        self.forks = 0
        """How many threads it has started."""
        self.is_interrupted = False
        """Whether a signal waits for it, as the main thread."""
        self.state = State.ASLEEP
        self.wakes_at = starts_at
        self.dead = False
        """Whether the plan killed it."""
        self.error: BaseException | None = None
        """The exception that ended it, if it was not killed."""
        self.at_end: list[Callable[[], None]] = []
        """Called when it has ended, however it did."""
        self.while_asleep: list[Callable[[float], float]] = []
        """Called with the seconds for which the plan still stops it, 0 at the end.

        Each returns after how many of them it wants to be called again.
        """
        self.seen = 0
        """The scheduler's `changes` when it fell asleep."""
        self.is_ready: Callable[[], bool] = lambda: True
        """Whether it does not wait any more, if it is blocked."""
        self.give_up: Callable[[], None] = lambda: None
        """Called when it has waited for too long."""
        self.baton = _thread.allocate_lock()
        self.baton.acquire()


class Scheduler:
    """Runs tasks one at a time, by a plan."""

    def __init__(self, plan: Plan) -> None:
        self.now = 0.0
        """Virtual time in seconds."""
        self.steps = 0
        """How many points were passed."""
        self.changes = 0
        """Grows whenever a task does something that another one can notice."""
        self.events: list[Event] = []
        self.is_endless = False
        """Whether the tasks did not come to an end in `MOST_STEPS`."""
        self._ahead = Ahead(plan)
        self._tasks: list[Task] = []
        self._order = list(plan.order)
        self._running: Task | None = None
        self._passed: Counter[tuple[str, str]] = Counter()
        self._over = threading.Event()

    # --- from outside -------------------------------------------------------------------------

    @property
    def used(self) -> dict[Spot, Action]:
        """The actions that were taken, and where."""
        return self._ahead.used

    @property
    def running(self) -> Task:
        """The task that works now."""
        if self._running is None:
            raise StuckError("no task works")
        return self._running

    @property
    def running_at_last(self) -> str:
        """The name of the task that has worked last."""
        return self.events[-1].task if self.events else ""

    def add(self, name: str, work: Callable[[], None], *, starts_at: float = 0.0) -> Task:
        """Add a task that starts then."""
        return self._add(Task(name, starts_at), work)

    def _add(self, task: Task, work: Callable[[], None]) -> Task:
        if task.name not in self._order:
            self._order.append(task.name)
        self._tasks.append(task)
        threading.Thread(target=self._live, args=(task, work), daemon=True).start()
        return task

    def fork(self, work: Callable[[], None]) -> Task:
        """Add a task in the running one's process; it dies with the process' main thread."""
        main = self.running.main
        main.forks += 1
        return self._add(Task(f"{main.name}.{main.forks}", self.now, main), work)

    def expect_nothing_more(self) -> None:
        """Let the rest of the plan not happen."""
        self._ahead.drop()

    def run(self) -> None:
        """Let all tasks work to their end. Raises StuckError."""
        self._over.clear()
        self._pass_on()
        if not self._over.wait(_STUCK_SECONDS):
            raise StuckError(f"{self.running.name} did not come to its next point")

    # --- from a task --------------------------------------------------------------------------

    def point(
        self, label: str, offers: Collection[object] = (), *, is_servers: bool = False
    ) -> Fault | None:
        """Pass a point; another task may work before this returns.

        `offers` are the names of the faults that can happen here; the one that happens is returned.
        With `is_servers` a server works on what the task has sent, whatever becomes of the task
        meanwhile. Raises DeathError, or SystemExit for an interrupt.
        """
        task = self.running
        if task.dead:
            raise DeathError
        self._take_signal()
        self._count(task.name, label)
        spot = Spot(task.name, label, self._passed[task.name, label])
        action = self._ahead.at(spot, self.steps, offers, is_servers=is_servers)
        if action is None:
            return None
        self.note(str(action))
        self.changes += 1
        match action:
            case HandOver(to):
                self._put_first(task.name, to)
                self._switch()
            case Sleep(seconds):
                self._stop(seconds)
            case Die():
                self.kill()
            case Interrupt() if task.main is task:
                raise SystemExit(143)
            case Interrupt():
                task.main.is_interrupted = True
            case Fault():
                return action
        return None

    def kill(self) -> NoReturn:
        """End the process of the running task at once. Raises DeathError."""
        self._end_process(self.running.main)
        raise DeathError

    def _end_process(self, main: Task) -> None:
        for task in self._tasks:
            if task.main is main and task.state is not State.OVER:
                task.dead = True
                if task.state is State.BLOCKED:
                    task.give_up()
                if task is not self._running:
                    task.state = State.READY

    def is_quiet(self, labels: Sequence[str]) -> bool:
        """Whether nothing would happen at the next points, if the running task passes these."""
        ahead: Counter[str] = Counter()
        for label in labels:
            ahead[label] += 1
            spot = Spot(
                self.running.name, label, self._passed[self.running.name, label] + ahead[label]
            )
            if self._ahead.is_planned(spot, self.steps + ahead.total()):
                return False
        return True

    def pass_quietly(self, labels: Sequence[str]) -> None:
        """Pass points at which nothing happens."""
        for label in labels:
            self._count(self.running.name, label)

    def sleep(self, seconds: float) -> bool:
        """Let the others work until so much time has passed; return whether nothing changed."""
        task = self.running
        if task.dead:
            raise DeathError
        task.seen = self.changes
        task.state, task.wakes_at = State.ASLEEP, self.now + max(0.0, seconds)
        self._switch()
        return task.seen == self.changes

    def wait_for_lock(
        self, is_ready: Callable[[], bool], give_up: Callable[[], None], *, most_seconds: float
    ) -> None:
        """Let the others work until the running task does not wait for a lock any more.

        After `most_seconds` of virtual time `give_up` has to end the wait.
        """
        self.note("waits for a lock")
        self._block(is_ready, give_up, most_seconds)

    def wait_until(self, is_true: Callable[[], bool], *, most_seconds: float) -> None:
        """Let the others work until something is true, or for so long."""
        task, end = self.running, self.now + most_seconds
        if task.dead:
            raise DeathError
        self._block(
            lambda: is_true() or task.is_interrupted or self.now >= end, lambda: None, most_seconds
        )
        self._take_signal()

    def _block(
        self, is_ready: Callable[[], bool], give_up: Callable[[], None], most_seconds: float
    ) -> None:
        task = self.running
        task.is_ready, task.give_up = is_ready, give_up
        task.state, task.wakes_at = State.BLOCKED, self.now + most_seconds
        self._switch()

    def _take_signal(self) -> None:
        """Raise SystemExit if a signal waits for the running task."""
        if self.running.is_interrupted:
            self.running.is_interrupted = False
            raise SystemExit(143)

    def note(self, what: str) -> None:
        """Add to the story what the running task does."""
        self.events.append(Event(self.now, self.running.name, what, is_action=True))

    def _count(self, name: str, label: str) -> None:
        self.steps += 1
        self.now += TICK_SECONDS
        if self.steps > MOST_STEPS:
            self.is_endless = True
            for task in self._tasks:
                task.dead = True
            raise DeathError
        self._passed[name, label] += 1
        self.events.append(Event(self.now, name, label))

    # --- who works ----------------------------------------------------------------------------

    def _live(self, task: Task, work: Callable[[], None]) -> None:
        task.baton.acquire()
        try:
            work()
        except DeathError:
            pass
        except BaseException as error:  # noqa: BLE001  # judged when all have ended
            task.error = error
        for act in task.at_end:
            with suppress(DeathError):
                act()
        task.state = State.OVER
        if task.main is task:
            self._end_process(task)
        self.changes += 1
        self._pass_on()

    def _stop(self, seconds: float) -> None:
        """Let the running task stand still, as if its host slept."""
        task, left = self.running, seconds
        while left > 0:
            pause = min([left, *(act(left) for act in task.while_asleep)])
            self.sleep(pause)
            left -= pause
        for act in task.while_asleep:
            act(0.0)

    def _put_first(self, name: str, to: str | None) -> None:
        """Let another task go first from now on; without one, let the running one go last."""
        if to is None:
            self._order.remove(name)
            self._order.append(name)
        else:
            self._order.remove(to)
            self._order.insert(0, to)

    def _switch(self) -> None:
        """Let the task work whose turn it is; return when it is the running one's again."""
        task = self.running
        following = self._next()
        if following is not task:
            self._running = following
            following.baton.release()
            task.baton.acquire()
        if task.dead:
            raise DeathError

    def _pass_on(self) -> None:
        """Let the task work whose turn it is, when no other one works any more."""
        if all(task.state is State.OVER for task in self._tasks):
            self._running = None
            self._over.set()
            return
        self._running = self._next()
        self._running.baton.release()

    def _next(self) -> Task:
        """Return the task whose turn it is; let time pass if none can work."""
        while True:
            for task in self._tasks:
                if task.state is State.BLOCKED and task.is_ready():
                    task.state = State.READY
                if task.state is State.ASLEEP and task.wakes_at <= self.now:
                    task.state = State.READY
            ready = [task for task in self._tasks if task.state is State.READY]
            if not ready:
                self._let_time_pass()
                continue
            following = min(ready, key=lambda task: self._order.index(task.name))
            following.state = State.READY
            return following

    def _let_time_pass(self) -> None:
        waiting = [one for one in self._tasks if one.state in {State.ASLEEP, State.BLOCKED}]
        self.now = max(self.now, min(task.wakes_at for task in waiting))
        for task in waiting:
            if task.wakes_at <= self.now and task.state is State.BLOCKED:
                task.give_up()
            elif task.wakes_at <= self.now:
                task.state = State.READY
