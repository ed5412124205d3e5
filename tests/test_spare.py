"""A slot for history is one that nobody else needs: the look-ahead rule of `slots.take`."""

from collections.abc import Callable
from threading import Barrier, Thread

import pytest
import spare_model
from conftest import ShiftingClock
from spare_model import History, Model

from asset_sync.budget import slots
from asset_sync.budget.slots import PRIORITY_GRACE_SECONDS, CallEnd, Rate, Slot, Spare, Wait
from asset_sync.database import Connection, query
from asset_sync.model import Lane

FREE_PLAN = Rate(calls=5, period_seconds=60, call_timeout_seconds=30)
CALL_SECONDS = 10
SPARE = Spare(CALL_SECONDS, {"snapshot": 250})


@pytest.fixture(autouse=True)
def _prepared(db: Connection) -> None:
    slots.prepare(db, FREE_PLAN)


def due(
    db: Connection,
    *in_seconds: float,
    state: str = "idle",
    feed: str = "bars",
    level: str = "medium",
) -> None:
    """Have items fall due then: idle ones by `next_at`, waiting ones by `not_before`."""
    query(
        db,
        """
        insert into asset_sync.queue
          (symbol, feed, ticker, asset_type, name, level, state, next_at, not_before)
        select gen_random_uuid(), %(feed)s, '', 'forex', '', %(level)s, %(state)s,
          case %(state)s when 'idle' then clock_timestamp() + make_interval(secs => seconds) end,
          case %(state)s when 'idle' then now()
            else clock_timestamp() + make_interval(secs => seconds) end
        from unnest(%(seconds)s::float8[]) as seconds
        """,
        {"feed": feed, "level": level, "state": state, "seconds": list(in_seconds)},
    )


def history(db: Connection, spare: Spare = SPARE) -> Slot | Wait:
    return slots.take(db, Lane.QUEUE, FREE_PLAN, spare=spare)


def history_calls(db: Connection, spare: Spare = SPARE) -> int:
    """Take as many slots for history as there are, for calls that end at once; return how many."""
    calls = 0
    while isinstance(slot := history(db, spare), Slot):
        slots.release(db, slot, CallEnd.ANSWERED, FREE_PLAN)
        calls += 1
    return calls


def wait_seconds(db: Connection) -> float:
    answer = history(db)
    assert isinstance(answer, Wait), answer
    return answer.seconds


def use(db: Connection, calls: int) -> None:
    """Make so many calls for something that is due."""
    for _ in range(calls):
        slot = slots.take(db, Lane.PRIORITY, FREE_PLAN)
        assert isinstance(slot, Slot), "it had to wait"
        slots.release(db, slot, CallEnd.ANSWERED, FREE_PLAN)


# --- what is kept -------------------------------------------------------------------------------


def test_where_nothing_falls_due_history_has_all_slots(db: Connection) -> None:
    assert history_calls(db) == 5


@pytest.mark.parametrize("state", ["idle", "waiting"])
@pytest.mark.parametrize("dues", [1, 2, 4, 5, 9])
def test_each_item_that_falls_due_before_the_slot_is_free_again_keeps_a_slot(
    db: Connection, dues: int, state: str
) -> None:
    due(db, *(5 + 7 * number for number in range(dues)), state=state)
    assert history_calls(db) == max(0, 5 - dues)


def test_idle_and_waiting_items_count_together(db: Connection) -> None:
    due(db, 20)
    due(db, 30, state="waiting")
    assert history_calls(db) == 3


def test_an_item_counts_if_it_falls_due_within_a_window_and_the_call(db: Connection) -> None:
    due(db, 60 + CALL_SECONDS + 5)
    assert history_calls(db) == 5


def test_the_last_item_that_counts_falls_due_just_before_the_slot_is_free_again(
    db: Connection,
) -> None:
    due(db, 60 + CALL_SECONDS - 5)
    for _ in range(4):
        assert isinstance(history(db), Slot), "its call lasts"
    assert wait_seconds(db) == pytest.approx(60, abs=1)


def test_a_call_that_ended_early_serves_an_item_that_falls_due_a_window_later(
    db: Connection,
) -> None:
    due(db, 60 + CALL_SECONDS - 5)
    assert history_calls(db) == 5


def test_a_slot_that_comes_free_before_an_item_is_due_serves_it(
    db: Connection, clock: ShiftingClock
) -> None:
    use(db, 2)
    clock.sleep(30)
    due(db, 20)
    assert isinstance(history(db), Slot)
    due(db, 31, 32)
    assert isinstance(history(db), Slot), "two slots are free again in 30 s"
    due(db, 33)
    assert isinstance(history(db), Wait)


def test_an_item_that_is_due_before_the_slots_come_free_is_not_served_by_these(
    db: Connection, clock: ShiftingClock
) -> None:
    use(db, 4)
    clock.sleep(30)
    due(db, 29)
    assert isinstance(history(db), Wait)


@pytest.mark.parametrize("state", ["idle", "waiting"])
def test_what_is_overdue_does_not_stop_history(db: Connection, state: str) -> None:
    due(db, *[-6] * 9, state=state)
    assert history_calls(db) == 5


@pytest.mark.parametrize("state", ["idle", "waiting"])
def test_what_fell_due_a_moment_ago_keeps_its_slot(db: Connection, state: str) -> None:
    due(db, -0.001, -3, state=state)
    assert history_calls(db) == 3


def test_what_is_never_due_or_dead_or_leased_does_not_stop_history(db: Connection) -> None:
    due(db, *[20] * 9)
    query(db, "update asset_sync.queue set next_at = null")
    due(db, *[20] * 9, state="dead")
    assert history_calls(db) == 5


def test_of_a_feed_whose_call_serves_many_each_call_keeps_a_slot(db: Connection) -> None:
    due(db, *[20] * 250, feed="snapshot")
    due(db, 30, feed="snapshot", state="waiting")
    assert history_calls(db) == 3


def test_of_a_feed_that_is_not_named_each_item_keeps_a_slot(db: Connection) -> None:
    due(db, 20, 20, feed="snapshot")
    assert history_calls(db, Spare(CALL_SECONDS, {})) == 3


def test_a_block_stops_history_too(db: Connection) -> None:
    slots.refused(db, Slot(0, "", taken_at=0), FREE_PLAN, 90)
    assert wait_seconds(db) == pytest.approx(90, abs=1)


# --- the priority run ---------------------------------------------------------------------------


def test_the_priority_runs_calls_are_due_when_it_is_expected(db: Connection) -> None:
    # the rule of the queue's lane does not hold yet
    slots.reserve(db, calls=3, in_seconds=60 + CALL_SECONDS - 2)
    for _ in range(2):
        assert isinstance(history(db), Slot), "its call lasts"
    assert isinstance(history(db), Wait)


def test_the_priority_run_and_the_others_keep_a_slot_each(db: Connection) -> None:
    slots.reserve(db, calls=3, in_seconds=40)
    due(db, 50)
    assert history_calls(db) == 1


def test_an_asset_of_the_priority_run_that_is_expected_is_not_counted_twice(
    db: Connection,
) -> None:
    slots.reserve(db, calls=2, in_seconds=40)
    due(db, 40, 41, level="critical")
    assert history_calls(db) == 3


def test_without_a_priority_run_in_time_a_critical_asset_counts_as_any_other(
    db: Connection,
) -> None:
    slots.reserve(db, calls=3, in_seconds=200)
    due(db, 40, 41, level="critical")
    assert history_calls(db) == 3


def test_a_priority_run_that_is_late_keeps_its_slots_until_it_is_given_up(
    db: Connection, clock: ShiftingClock
) -> None:
    slots.reserve(db, calls=3, in_seconds=0)
    clock.sleep(PRIORITY_GRACE_SECONDS - 1)
    due(db, 30)
    assert history_calls(db) == 1
    clock.sleep(2)
    assert history_calls(db) == 3


# --- the wait -----------------------------------------------------------------------------------


def test_history_asks_again_when_the_next_item_is_due(db: Connection) -> None:
    due(db, *[25] * 5, 40)
    assert wait_seconds(db) == pytest.approx(25, abs=1)


def test_history_asks_again_when_the_next_slot_comes_free(
    db: Connection, clock: ShiftingClock
) -> None:
    use(db, 4)
    clock.sleep(50)
    due(db, *[5 + 10] * 5)
    seconds = wait_seconds(db)
    assert seconds == pytest.approx(10, abs=1)
    clock.sleep(60)
    assert history_calls(db) == 5


def test_what_it_waited_for_and_nobody_served_stops_it_no_longer(
    db: Connection, clock: ShiftingClock
) -> None:
    due(db, *[25] * 5)
    clock.sleep(wait_seconds(db))
    assert isinstance(history(db), Wait), "a run may serve it in this moment"
    clock.sleep(6)
    assert isinstance(history(db), Slot)


@pytest.mark.parametrize("reserved", [0, 5, 12])
def test_the_wait_is_never_nothing_and_never_longer_than_a_window(
    db: Connection, clock: ShiftingClock, reserved: int
) -> None:
    slots.reserve(db, calls=reserved, in_seconds=65)
    due(db, *(0.05 + 0.3 * number for number in range(230)))
    for _ in range(40):
        answer = history(db)
        if isinstance(answer, Wait):
            assert 0 < answer.seconds <= 60
            clock.sleep(max(1.0, answer.seconds))
        else:
            slots.release(db, answer, CallEnd.ANSWERED, FREE_PLAN)


# --- many at once -------------------------------------------------------------------------------


def test_several_processes_at_once_leave_what_one_of_them_has_to_leave(
    db: Connection, connect: Callable[[], Connection]
) -> None:
    rounds = Barrier(4)
    answers: list[list[Slot | Wait]] = [[] for _ in range(20)]
    due(db, 55, 60)

    def work(own: Connection) -> None:
        for answered in answers:
            rounds.wait(timeout=30)
            answered.append(history(own))
            rounds.wait(timeout=30)
            for answer in answered:
                if isinstance(answer, Slot):
                    slots.give_back(own, answer)

    threads = [Thread(target=work, args=(connect(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert [sum(isinstance(one, Slot) for one in answered) for answered in answers] == [3] * 20


# --- hours of it --------------------------------------------------------------------------------


def test_in_an_hour_history_gets_its_calls_and_nobody_waits_for_it(db: Connection) -> None:
    hours = Model(db, others=50, history=History.SPARE).live(3600)
    assert len(hours.lateness) == 50
    assert hours.late(95) <= spare_model.CALL_SECONDS
    assert max(hours.priority_waits) <= spare_model.CALL_SECONDS
    # of 300 calls the others take 100 and priority 36
    assert hours.history_calls >= 100
