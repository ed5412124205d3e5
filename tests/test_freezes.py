"""The limit is kept while the API freezes, processes die and the database's clock jumps.

Time is virtual. The slots are in a real database, in which our own function takes the place of the
clock. The provider is a model that counts a request when it reads it.
"""

import heapq
import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from asset_sync.budget import clocks, slots
from asset_sync.budget.clocks import Watch
from asset_sync.budget.slots import CallEnd, Rate, Slot, Wait
from asset_sync.database import Connection, query
from asset_sync.model import Lane

RATE = Rate(calls=5, period_seconds=60, call_timeout_seconds=30)
READ_TIMEOUT = 10.0
START = 1_800_000_000.0


@dataclass
class World:
    """Virtual time, a database that uses it, and a provider that may freeze."""

    db: Connection
    chance: random.Random
    now: float = 0.0
    jumps: list[tuple[float, float]] = field(default_factory=list)
    """When the database's clock jumps, and by how much."""
    freezes: list[tuple[float, float]] = field(default_factory=list)
    silent: Callable[[int], bool] = lambda _: False
    """Returns whether the call with this number is counted and not answered."""
    deaths: float = 0.0
    counted: list[float] = field(default_factory=list)
    begun: int = 0
    taken: list[float] = field(default_factory=list)
    _events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def after(self, seconds: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._numbers), do))

    def live(self, seconds: float, processes: int) -> None:
        slots.prepare(self.db, RATE)
        for _ in range(processes):
            watch = Watch(lambda: self.now)
            self.after(self.chance.random(), lambda watch=watch: self.ask(watch))  # type: ignore[misc]
        while self._events and self._events[0][0] < seconds:
            self.now, _, do = heapq.heappop(self._events)
            jumped = sum(far for at, far in self.jumps if at <= self.now)
            query(
                self.db,
                "select set_config('world.now', %s, false)",
                (str(START + self.now + jumped),),
            )
            do()

    def ask(self, watch: Watch) -> None:
        answer = slots.take(self.db, Lane.QUEUE, RATE, watch)
        if isinstance(answer, Wait):
            self.after(min(max(answer.seconds, 0.02), 15.0), lambda: self.ask(watch))
            return
        self.begun += 1
        self.taken.append(self.now)
        if self.chance.random() < self.deaths:
            self.after(1.0, lambda: self.ask(Watch(lambda: self.now)))
            self.read_by_the_provider(self.now)
            return
        self.after(self.chance.uniform(0, 0.1), lambda: self.send(watch, answer))

    def send(self, watch: Watch, slot: Slot) -> None:
        read_at = self.read_by_the_provider(self.now)
        seconds = read_at - self.now + self.chance.uniform(0.05, 0.5)
        end = CallEnd.ANSWERED_WELL
        if self.silent(self.begun) or seconds > READ_TIMEOUT:
            end, seconds = CallEnd.UNANSWERED, READ_TIMEOUT
        self.after(seconds, lambda: self.end(watch, slot, end, seconds))

    def end(self, watch: Watch, slot: Slot, end: CallEnd, seconds: float) -> None:
        slots.release(self.db, slot, end, RATE, sent_seconds_ago=seconds)
        self.ask(watch)

    def read_by_the_provider(self, at: float) -> float:
        """Record when the provider reads a request that is sent then."""
        read_at = max([at, *(end for begin, end in self.freezes if begin <= at < end)])
        self.counted.append(read_at)
        return read_at

    def most_in_a_window(self) -> int:
        counted = sorted(self.counted)
        return max(
            sum(first <= at < first + RATE.period_seconds - 0.001 for at in counted[i:])
            for i, first in enumerate(counted)
        )


@pytest.fixture
def world(db: Connection, connect: Callable[[], Connection]) -> Iterator[World]:
    query(
        db,
        """
        create schema world;
        create function world.clock_timestamp() returns timestamptz language sql stable
          as $$select to_timestamp(current_setting('world.now')::float8)$$
        """,
    )
    own = connect()
    query(own, "select set_config('search_path', 'world,pg_catalog', false)")
    yield World(own, random.Random(7))
    query(db, "drop schema world cascade")


# --- freezes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [1, 4, 16])
def test_no_window_is_over_the_limit_after_an_api_freezes_and_then_reads_everything(
    world: World, processes: int
) -> None:
    world.deaths = 0.02
    world.silent = lambda number: number % 50 == 0
    at = 100.0
    for share in (1.5, 0.7, 1.0, 1.5):
        world.freezes.append((at, at + share * RATE.period_seconds))
        at += (share + world.chance.uniform(0.5, 3)) * RATE.period_seconds
    world.live(at + 300, processes)
    assert len(world.counted) > 20
    assert world.most_in_a_window() <= RATE.calls


def test_one_unanswered_call_in_a_hundred_costs_one_and_a_half_percent_of_the_budget(
    world: World,
) -> None:
    world.silent = lambda number: number % 100 == 50
    windows = 40
    world.live(windows * RATE.period_seconds, processes=2)
    unheld = windows * RATE.calls * RATE.period_seconds / (RATE.period_seconds + 0.33)
    assert world.begun >= unheld * 0.985 - 1
    assert world.most_in_a_window() <= RATE.calls


# --- one call at a time -------------------------------------------------------------------------


def test_after_two_unanswered_calls_one_call_at_a_time_is_made_half_a_window_apart(
    world: World,
) -> None:
    world.freezes = [(0.0, 1e9)]
    world.live(600, processes=8)
    alone = world.taken[RATE.calls :]
    assert len(alone) > 5
    gaps = [later - at for at, later in itertools.pairwise(alone)]
    assert min(gaps) >= 29.999, gaps  # up to the precision of floats


# --- the clock ----------------------------------------------------------------------------------

HOUR = 3600.0


@pytest.mark.parametrize(
    "jumps",
    [
        [(200.0, -HOUR)],
        [(200.0, -40.0)],
        [(200.0, -HOUR), (330.0, -HOUR / 2)],
        [(200.0, -HOUR), (245.0, HOUR)],
        [(200.0, -40.0), (215.0, 40.0), (260.0, -20.0), (275.0, 20.0)],
        [(200.0, HOUR)],
        [(200.0, 50.0), (230.0, 50.0)],
        [(200.0, HOUR), (260.0, -HOUR)],
    ],
    ids=lambda jumps: "-then-".join(f"{far:+.0f}" for _, far in jumps),
)
def test_no_window_is_over_the_limit_and_calls_continue_if_the_databases_clock_jumps(
    world: World, jumps: list[tuple[float, float]]
) -> None:
    world.jumps = jumps
    world.live(700, processes=3)
    assert world.most_in_a_window() <= RATE.calls
    idle = max(later - at for at, later in itertools.pairwise(sorted(world.counted)))
    jumping = jumps[-1][0] - jumps[0][0]
    assert idle < jumping + 2.5 * RATE.period_seconds, "never idle for an hour"
    jump = clocks.last_jump(world.db)
    assert jump is not None
    assert jump.seconds == pytest.approx(jumps[-1][1], abs=7)


def test_a_clock_that_does_not_jump_is_not_reported_as_jumping(world: World) -> None:
    world.live(300, processes=3)
    assert clocks.last_jump(world.db) is None
    assert query(world.db, "select jumps from asset_sync.limiter") == [(0,)]
