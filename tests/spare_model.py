"""Hours of fresh calls and history in seconds: the real SQL of the slots, the model's own time.

One process serves what is due and gives its spare slots to history, another is the priority run.
Both are generators that say how long they sleep.
"""

import heapq
import itertools
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum, auto

from anytime import SEARCH_PATH, shadowing

from asset_sync.budget import slots
from asset_sync.budget.slots import CallEnd, Rate, Slot, Spare, Wait
from asset_sync.budget.turn import POLL_SECONDS
from asset_sync.database import Connection, query
from asset_sync.model import Lane

FREE_PLAN = Rate(calls=5, period_seconds=60, call_timeout_seconds=30)
PRIORITY_ASSETS, PRIORITY_SECONDS = 3, 300
OTHERS_SECONDS = 1800
CALL_SECONDS = 0.3
_START = 1_800_000_000


class History(Enum):
    """Which slots go to history."""

    NONE = auto()
    GREEDY = auto()
    """Any, whenever nothing is due."""
    SPARE = auto()
    """Those that nobody needs."""


@dataclass
class Hours:
    """What came of it."""

    lateness: list[float] = field(default_factory=list)
    """How long after it was due each of the others was called, from the second round on."""
    priority_waits: list[float] = field(default_factory=list)
    """How long each call of the priority run waited for its slot."""
    history_calls: int = 0

    def late(self, percent: int) -> float:
        """Return the lateness that so many of a hundred calls did not exceed."""
        return statistics.quantiles(self.lateness, n=100, method="inclusive")[percent - 1]


class Model:
    """A database whose time is the model's, and two processes."""

    def __init__(self, db: Connection, others: int, history: History) -> None:
        """Have everything due at the start."""
        self.hours = Hours()
        self._db, self._others, self._history = db, others, history
        now = "to_timestamp(current_setting('world.now')::float8)"
        with db.cursor() as cursor:
            cursor.execute(f"{shadowing(now, now)}; set search_path = {SEARCH_PATH}")
        self._set_time(0)
        slots.prepare(db, FREE_PLAN)
        query(
            db,
            """
            insert into asset_sync.queue (symbol, feed, ticker, asset_type, name, level, next_at)
            select level || n, 'bars', '', 'forex', '', level, now()
            from (values ('critical', %s), ('medium', %s)) as k (level, count),
              generate_series(1, count) n
            """,
            (PRIORITY_ASSETS, others),
        )

    def live(self, seconds: float) -> Hours:
        """Let so much time pass."""
        numbers = itertools.count()
        awake = [(0.0, next(numbers), one) for one in (self._priority(), self._queue())]
        while awake[0][0] < seconds:
            now, _, process = heapq.heappop(awake)
            self._set_time(now)
            heapq.heappush(awake, (now + max(0.001, next(process)), next(numbers), process))
        return self.hours

    def _set_time(self, now: float) -> None:
        self._now = now
        query(self._db, "select set_config('world.now', %s, false)", (repr(_START + now),))

    def _priority(self) -> Iterator[float]:
        while True:
            began = self._now
            slots.reserve(self._db, PRIORITY_ASSETS, 0)
            for number in range(1, PRIORITY_ASSETS + 1):
                due = self._now
                while isinstance(slot := slots.take(self._db, Lane.PRIORITY, FREE_PLAN), Wait):
                    yield min(slot.seconds, POLL_SECONDS)
                self.hours.priority_waits.append(self._now - due)
                yield from self._call(slot, f"critical{number}", PRIORITY_SECONDS)
            next_in = began + PRIORITY_SECONDS - self._now
            slots.reserve(self._db, PRIORITY_ASSETS, next_in)
            yield next_in

    def _queue(self) -> Iterator[float]:
        dues = [(0.0, f"medium{number}") for number in range(1, self._others + 1)]
        spare = Spare(CALL_SECONDS, {})
        while True:
            due, symbol = dues[0]
            if due <= self._now:
                answer = slots.take(self._db, Lane.QUEUE, FREE_PLAN)
                if isinstance(answer, Slot):
                    if due > 0:
                        self.hours.lateness.append(self._now - due)
                    yield from self._call(answer, symbol, OTHERS_SECONDS)
                    heapq.heapreplace(dues, (self._now + OTHERS_SECONDS, symbol))
                    continue
            elif self._history is History.NONE:
                answer = Wait(due - self._now)
            else:
                answer = slots.take(
                    self._db,
                    Lane.QUEUE,
                    FREE_PLAN,
                    spare=spare if self._history is History.SPARE else None,
                )
                if isinstance(answer, Slot):
                    self.hours.history_calls += 1
                    yield from self._call(answer)
                    continue
            next_due = due - self._now if due > self._now else POLL_SECONDS
            yield min(answer.seconds, POLL_SECONDS, next_due)

    def _call(self, slot: Slot, symbol: str = "", every_seconds: float = 0) -> Iterator[float]:
        """Make a call; the asset is due again so long after it."""
        query(self._db, "update asset_sync.queue set next_at = null where symbol = %s", (symbol,))
        yield CALL_SECONDS
        slots.release(self._db, slot, CallEnd.ANSWERED_WELL, FREE_PLAN)
        query(
            self._db,
            """
            update asset_sync.queue set next_at = now() + make_interval(secs => %s)
            where symbol = %s
            """,
            (every_seconds, symbol),
        )
