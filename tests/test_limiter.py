"""The limiter is an ordinary pyrate-limiter bucket and takes a slot in one round trip."""

import subprocess
import sys
import threading
from collections.abc import Callable

import psycopg2.extensions
import pytest
from conftest import ShiftingClock
from pyrate_limiter import AbstractBucket, RateItem, SingleBucketFactory
from pyrate_limiter import Limiter as PyrateLimiter

from asset_sync.budget import slots
from asset_sync.budget.bucket import Limiter, SlotBucket
from asset_sync.budget.slots import CallEnd, Rate, Slot, Wait
from asset_sync.database import Connection
from asset_sync.model import Lane

FREE_PLAN = Rate(calls=5, period_seconds=60, call_timeout_seconds=30)


class CountingCursor(psycopg2.extensions.cursor):
    """A cursor that remembers what it has sent."""

    sent: list[bytes | None]

    def execute(self, query: object, vars: object = None) -> None:  # noqa: A002  # psycopg2's name
        super().execute(query, vars)  # type: ignore[arg-type]
        self.sent.append(self.query)


@pytest.fixture
def sent(db: Connection, monkeypatch: pytest.MonkeyPatch) -> list[bytes | None]:
    """Every round trip to the database from here on."""
    monkeypatch.setattr(CountingCursor, "sent", [], raising=False)
    db.cursor_factory = CountingCursor
    return CountingCursor.sent


@pytest.fixture
def bucket(db: Connection) -> SlotBucket:
    return SlotBucket(db, FREE_PLAN)


@pytest.fixture
def pyrate(bucket: SlotBucket) -> PyrateLimiter:
    return PyrateLimiter(SingleBucketFactory(bucket, schedule_leak=False))


def acquire(pyrate: PyrateLimiter, times: int) -> list[object]:
    return [pyrate.try_acquire("queue", blocking=False) for _ in range(times)]


# --- pyrate-limiter's own interface -----------------------------------------------------------


def test_pyrate_limiter_hands_out_the_slots_of_the_database(
    db: Connection, pyrate: PyrateLimiter, bucket: SlotBucket
) -> None:
    assert isinstance(bucket, AbstractBucket)
    assert acquire(pyrate, 6) == [True, True, True, True, True, False]
    assert slots.budget(db, FREE_PLAN).free == 0


def test_two_buckets_over_one_database_share_its_slots(
    connect: Callable[[], Connection], pyrate: PyrateLimiter
) -> None:
    factory = SingleBucketFactory(SlotBucket(connect(), FREE_PLAN), schedule_leak=False)
    assert acquire(pyrate, 3) == [True, True, True]
    assert acquire(PyrateLimiter(factory), 3) == [True, True, False]


def test_pyrate_limiter_knows_the_rate(bucket: SlotBucket) -> None:
    assert [(rate.limit, rate.interval) for rate in bucket.rates] == [(5, 60_000)]


def test_a_refusal_says_how_long_to_wait_without_another_query(
    pyrate: PyrateLimiter, bucket: SlotBucket, sent: list[bytes | None], clock: ShiftingClock
) -> None:
    acquire(pyrate, 5)
    item = RateItem("queue", 0)
    assert not bucket.put(item)
    sent.clear()
    assert bucket.waiting(item) == pytest.approx(60_000, abs=500)
    assert sent == []


def test_a_granted_slot_clears_the_last_refusal(
    pyrate: PyrateLimiter, bucket: SlotBucket, clock: ShiftingClock
) -> None:
    acquire(pyrate, 6)
    assert bucket.failing_rate is not None
    clock.sleep(181)
    item = RateItem("queue", 0)
    assert bucket.put(item)
    assert bucket.failing_rate is None
    assert bucket.waiting(item) == 0


def test_the_bucket_counts_the_slots_in_use(pyrate: PyrateLimiter, bucket: SlotBucket) -> None:
    assert bucket.count() == 0
    acquire(pyrate, 3)
    assert bucket.count() == 3


def test_leak_and_flush_of_the_bucket_change_nothing_in_the_budget(
    pyrate: PyrateLimiter, bucket: SlotBucket
) -> None:
    acquire(pyrate, 6)
    assert bucket.leak() == 0
    assert bucket.leak(10**15) == 0
    assert bucket.peek(0) is None
    bucket.flush()
    assert bucket.failing_rate is None
    assert bucket.count() == 5
    assert acquire(pyrate, 1) == [False]


def test_the_name_passed_to_acquire_is_the_lane(db: Connection, pyrate: PyrateLimiter) -> None:
    slots.reserve(db, calls=5, in_seconds=0)
    assert pyrate.try_acquire("queue", blocking=False) is False
    assert pyrate.try_acquire("priority", blocking=False) is True


# --- what a run uses --------------------------------------------------------------------------


def test_a_slot_is_taken_in_one_round_trip_and_so_is_a_refusal(
    db: Connection, sent: list[bytes | None]
) -> None:
    limits = Limiter(db, FREE_PLAN)
    for _ in range(5):
        sent.clear()
        assert isinstance(limits.take(Lane.QUEUE), Slot)
        assert len(sent) == 1
    sent.clear()
    assert isinstance(limits.take(Lane.QUEUE), Wait)
    assert len(sent) == 1


def test_release_give_back_and_block_take_one_round_trip_each(
    db: Connection, sent: list[bytes | None]
) -> None:
    limits = Limiter(db, FREE_PLAN)
    first, second = limits.take(Lane.QUEUE), limits.take(Lane.QUEUE)
    assert isinstance(first, Slot)
    assert isinstance(second, Slot)
    sent.clear()
    slots.release(db, first, CallEnd.ANSWERED, FREE_PLAN)
    slots.give_back(db, second)
    slots.refused(db, first, FREE_PLAN, 30)
    assert len(sent) == 3
    assert slots.budget(db, FREE_PLAN).blocked_seconds == pytest.approx(30, abs=0.5)
    assert SlotBucket(db, FREE_PLAN).count() == 5  # blocked: none is free


def test_a_slot_given_back_can_be_taken_again_and_a_released_one_cannot(db: Connection) -> None:
    limits = Limiter(db, FREE_PLAN)
    taken = [limits.take(Lane.QUEUE) for _ in range(5)]
    assert isinstance(taken[0], Slot)
    assert isinstance(taken[1], Slot)
    slots.give_back(db, taken[0])
    slots.release(db, taken[1], CallEnd.ANSWERED, FREE_PLAN)
    assert isinstance(limits.take(Lane.QUEUE), Slot)
    answer = limits.take(Lane.QUEUE)
    assert isinstance(answer, Wait)
    assert answer.seconds == pytest.approx(60, abs=0.5)


def test_the_limiter_starts_no_thread(db: Connection) -> None:
    before = set(threading.enumerate())
    limits = Limiter(db, FREE_PLAN)
    for _ in range(6):
        limits.take(Lane.QUEUE)
    assert set(threading.enumerate()) == before


def test_pyrate_limiter_is_loaded_only_with_the_limiter() -> None:
    program = (
        "import sys, asset_sync.budget.slots, asset_sync.sync.loop\n"
        "assert 'pyrate_limiter' not in sys.modules\n"
        "import asset_sync.budget.bucket\n"
        "assert 'pyrate_limiter' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
