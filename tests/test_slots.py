"""The slots keep the limit and use all of it, even if processes die."""

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass
from threading import Barrier, Thread

import pytest
from conftest import ShiftingClock

from asset_sync.budget import slots
from asset_sync.budget.slots import PRIORITY_GRACE_SECONDS, CallEnd, Rate, Slot, Wait
from asset_sync.database import Connection, query
from asset_sync.model import Lane
from asset_sync.secret import Secret

FREE_PLAN = Rate(calls=5, period_seconds=60, call_timeout_seconds=30)
ANSWERED = CallEnd.ANSWERED


def about(seconds: float) -> object:
    """Allow for the time that passes on the database's clock during a test."""
    return pytest.approx(seconds, abs=0.5)


def take(db: Connection, lane: Lane = Lane.PRIORITY, rate: Rate = FREE_PLAN) -> Slot:
    answer = slots.take(db, lane, rate)
    assert isinstance(answer, Slot), answer
    return answer


def refused(db: Connection, lane: Lane = Lane.PRIORITY, rate: Rate = FREE_PLAN) -> float:
    answer = slots.take(db, lane, rate)
    assert isinstance(answer, Wait), answer
    return answer.seconds


def use(db: Connection, calls: int, lane: Lane = Lane.PRIORITY, rate: Rate = FREE_PLAN) -> None:
    """Make a number of calls that end at once."""
    for _ in range(calls):
        slots.release(db, take(db, lane, rate), ANSWERED, rate)


def block(db: Connection, seconds: float) -> None:
    """Record a 429 with this duration for a call that was made before."""
    slots.refused(db, Slot(0, "", taken_at=0), FREE_PLAN, seconds)


def take_all(db: Connection, lane: Lane, rate: Rate = FREE_PLAN) -> list[Slot]:
    taken = []
    while isinstance(answer := slots.take(db, lane, rate), Slot):
        taken.append(answer)
    return taken


def stamps(db: Connection) -> list[tuple[object, ...]]:
    return query(db, "select slot, stamped_at from asset_sync.slots order by slot")


@pytest.fixture(autouse=True)
def _prepared(db: Connection) -> None:
    slots.prepare(db, FREE_PLAN)


# --- the limit --------------------------------------------------------------------------------


def test_a_window_holds_exactly_as_many_calls_as_the_rate_allows(
    db: Connection, clock: ShiftingClock
) -> None:
    use(db, 5)
    clock.sleep(59)
    assert refused(db) > 0
    clock.sleep(1)
    assert len(take_all(db, Lane.QUEUE)) == 5


def test_the_window_of_a_call_begins_when_it_ends(db: Connection, clock: ShiftingClock) -> None:
    rate = FREE_PLAN._replace(calls=1)
    slot = take(db, rate=rate)
    clock.sleep(20)
    slots.release(db, slot, ANSWERED, FREE_PLAN)
    clock.sleep(59)
    assert refused(db, rate=rate) == pytest.approx(1, abs=0.5)
    clock.sleep(1)
    take(db, rate=rate)


def test_the_slot_of_a_process_that_died_in_a_call_counts_as_sent_late_and_not_answered(
    db: Connection, clock: ShiftingClock
) -> None:
    take_all(db, Lane.PRIORITY)
    clock.sleep(FREE_PLAN.call_timeout_seconds + 2.5 * FREE_PLAN.period_seconds - 1)
    assert refused(db) == pytest.approx(1, abs=0.5)
    clock.sleep(1)
    assert len(take_all(db, Lane.PRIORITY)) == 5


def test_a_call_takes_the_slot_that_has_been_free_the_longest(
    db: Connection, clock: ShiftingClock
) -> None:
    first, second = take(db), take(db)
    slots.release(db, second, ANSWERED, FREE_PLAN)
    clock.sleep(1)
    slots.release(db, first, ANSWERED, FREE_PLAN)
    use(db, 3)
    clock.sleep(61)
    assert take(db).number == second.number


def test_a_call_whose_slot_was_taken_over_counts_once_in_the_oldest_slot(
    db: Connection, clock: ShiftingClock
) -> None:
    lost = take(db)
    clock.sleep(180.1)
    for slot in take_all(db, Lane.PRIORITY):
        if slot.number != lost.number:
            slots.give_back(db, slot)
    assert slots.budget(db, FREE_PLAN).free == 4
    for _ in range(2):
        slots.release(db, lost, ANSWERED, FREE_PLAN)
        assert slots.budget(db, FREE_PLAN).free == 3


def test_a_slot_can_be_released_only_once(db: Connection) -> None:
    slot = take(db)
    slots.release(db, slot, ANSWERED, FREE_PLAN)
    before = stamps(db)
    slots.release(db, slot, ANSWERED, FREE_PLAN)
    slots.give_back(db, slot)
    assert stamps(db) == before


def test_a_slot_given_back_keeps_its_earlier_stamp(db: Connection, clock: ShiftingClock) -> None:
    use(db, 5)
    clock.sleep(61)
    before = stamps(db)
    for slot in take_all(db, Lane.QUEUE):
        slots.give_back(db, slot)
    assert stamps(db) == before
    assert len(take_all(db, Lane.QUEUE)) == 5


# --- calls without an answer --------------------------------------------------------------------


def silence(db: Connection, slot: Slot, *, after: float = 10, rate: Rate = FREE_PLAN) -> None:
    slots.release(db, slot, CallEnd.UNANSWERED, rate, sent_seconds_ago=after)


def test_the_slot_of_an_unanswered_call_is_free_two_and_a_half_windows_after_it_was_sent(
    db: Connection, clock: ShiftingClock
) -> None:
    rate = FREE_PLAN._replace(calls=1)
    slot = take(db, rate=rate)
    clock.sleep(10)
    silence(db, slot)
    assert refused(db, rate=rate) == about(140)
    assert max(slots.budget(db, rate).free_in_seconds) == about(140)
    clock.sleep(140)
    take(db, rate=rate)


def test_a_request_that_was_never_sent_gives_its_slot_back(db: Connection) -> None:
    slots.release(db, take(db), CallEnd.NOT_SENT, FREE_PLAN)
    assert slots.budget(db, FREE_PLAN).free == 5


def test_after_two_unanswered_calls_one_is_made_each_half_window_until_one_is_answered(
    db: Connection, clock: ShiftingClock
) -> None:
    wide = FREE_PLAN._replace(calls=20)
    slots.prepare(db, wide)
    for _ in range(2):
        silence(db, take(db, rate=wide), rate=wide)
    assert refused(db, rate=wide) == about(30)
    assert slots.budget(db, wide).next_free_seconds == about(30)
    clock.sleep(30)
    alone = take(db, rate=wide)
    clock.sleep(29)
    assert refused(db, rate=wide) == about(1)
    silence(db, alone, rate=wide)
    clock.sleep(1)
    alone = take(db, rate=wide)
    slots.release(db, alone, ANSWERED, wide)
    assert len(take_all(db, Lane.QUEUE, wide)) == 16


def test_the_next_call_does_not_wait_for_a_call_that_was_not_made(
    db: Connection, clock: ShiftingClock
) -> None:
    for _ in range(2):
        silence(db, take(db))
    clock.sleep(30)
    slots.give_back(db, take(db))
    take(db)


def test_the_time_of_the_last_good_answer_is_recorded(db: Connection, clock: ShiftingClock) -> None:
    def known() -> bool:
        [(found,)] = query(db, "select isfinite(answered_at) from asset_sync.limiter")
        return bool(found)

    for end in (CallEnd.NOT_SENT, CallEnd.UNANSWERED, CallEnd.ANSWERED):
        slots.release(db, take(db), end, FREE_PLAN)
        assert not known()
    slots.release(db, take(db), CallEnd.ANSWERED_WELL, FREE_PLAN)
    assert known()


# --- a key that allows less than the settings say -----------------------------------------------

PAID = Rate(calls=100, period_seconds=1, call_timeout_seconds=30, key=Secret("a key"))


def refuse(db: Connection, slot: Slot, rate: Rate = PAID) -> bool:
    slots.release(db, slot, ANSWERED, rate)
    return slots.refused(db, slot, rate, None) is not None


def refuse_three_times(db: Connection, clock: ShiftingClock) -> None:
    for lowers in (False, False, True):
        together = [take(db, rate=PAID) for _ in range(4)]
        assert [refuse(db, slot) for slot in together] == [lowers, False, False, False]
        assert refused(db, rate=PAID) == about(60)
        clock.sleep(60)
        # The test moves rows and not the clock, so a call comes after the wait, not at its end.
        query(db, "update asset_sync.limiter set blocked_until = blocked_until - interval '1 s'")


def test_a_429_without_a_duration_stops_all_calls_for_at_least_a_minute(db: Connection) -> None:
    slots.prepare(db, PAID)
    refuse(db, take(db, rate=PAID))
    assert refused(db, rate=PAID) == about(60)


@pytest.mark.parametrize("until", ["2090-01-01", "9999-01-01"])
def test_a_block_of_years_written_by_somebody_else_lasts_at_most_an_hour(
    db: Connection, until: str
) -> None:
    slots.prepare(db, FREE_PLAN)
    query(db, "update asset_sync.limiter set blocked_until = %s", (until,))
    assert isinstance(slots.take(db, Lane.PRIORITY, FREE_PLAN), Slot)
    query(db, "update asset_sync.limiter set blocked_at = now() - interval '50 min'")
    assert refused(db) == about(600)
    assert slots.budget(db, FREE_PLAN).blocked_seconds == about(600)


def test_the_third_429_after_a_full_wait_lowers_this_keys_rate_to_the_free_plans(
    db: Connection, clock: ShiftingClock
) -> None:
    slots.prepare(db, PAID)
    refuse_three_times(db, clock)
    assert slots.effective_rate(db, PAID) == PAID._replace(calls=5, period_seconds=60)
    assert slots.budget(db, PAID).calls == 5
    # also for a process that started before
    assert len(take_all(db, Lane.QUEUE, PAID)) == 5
    assert "POLYGON_TIER" in str(slots.lowered(db, PAID))
    other = PAID._replace(key=Secret("another key"))
    assert slots.effective_rate(db, other) == other


def test_the_rate_of_the_settings_is_tried_again_after_15_minutes_then_less_often(
    db: Connection, clock: ShiftingClock
) -> None:
    slots.prepare(db, PAID)
    refuse_three_times(db, clock)
    clock.sleep(900)
    assert slots.lowered(db, PAID) is None
    assert refuse(db, take(db, rate=PAID)), "once is enough now"
    clock.sleep(1790)
    assert slots.lowered(db, PAID) is not None
    clock.sleep(20)
    assert slots.lowered(db, PAID) is None


def test_the_rate_of_the_settings_is_tried_again_at_least_once_a_day(
    db: Connection, clock: ShiftingClock
) -> None:
    slots.prepare(db, PAID)
    refuse_three_times(db, clock)
    for _ in range(9):  # 900 s doubled eight times is 64 hours
        clock.sleep(86_400)
        assert slots.lowered(db, PAID) is None
        assert refuse(db, take(db, rate=PAID))


def test_answered_calls_above_the_free_plans_rate_reset_the_count_of_refusals(
    db: Connection, clock: ShiftingClock
) -> None:
    slots.prepare(db, PAID)
    for _ in range(4):
        assert not refuse(db, take(db, rate=PAID))
        clock.sleep(61)
        for _ in range(12):
            slots.release(db, take(db, rate=PAID), CallEnd.ANSWERED_WELL, PAID)


def test_a_refusal_after_the_budget_was_used_up_does_not_lower_the_rate(
    db: Connection, clock: ShiftingClock
) -> None:
    rate = PAID._replace(calls=6, period_seconds=60)
    slots.prepare(db, rate)
    for _ in range(4):
        taken = take_all(db, Lane.PRIORITY, rate)
        assert not any(refuse(db, slot, rate) for slot in taken)
        clock.sleep(61)


# --- the reported wait ------------------------------------------------------------------------


def test_the_reported_wait_ends_when_the_first_slot_comes_free(
    db: Connection, clock: ShiftingClock
) -> None:
    use(db, 1)
    clock.sleep(10)
    use(db, 4)
    seconds = refused(db)
    assert seconds == pytest.approx(50, abs=0.5)
    clock.sleep(seconds)
    take(db)
    assert refused(db) == pytest.approx(10, abs=0.5)


def test_the_reported_wait_treats_a_call_in_flight_as_ending_now(
    db: Connection, clock: ShiftingClock
) -> None:
    take_all(db, Lane.PRIORITY)
    assert refused(db) == about(60)
    clock.sleep(20)
    assert refused(db) == about(60)
    # After the time-out the call cannot be in flight any more, and it was not answered.
    clock.sleep(20)
    assert refused(db) == about(140)


# --- blocked ----------------------------------------------------------------------------------


@pytest.mark.parametrize("lane", Lane)
def test_a_block_stops_every_call_until_it_ends(
    db: Connection, clock: ShiftingClock, lane: Lane
) -> None:
    block(db, 90)
    assert refused(db, lane) == about(90)
    clock.sleep(89)
    assert refused(db, lane) == pytest.approx(1, abs=0.5)
    clock.sleep(1)
    take(db, lane)


def test_a_block_is_never_shortened_by_a_shorter_one(db: Connection) -> None:
    block(db, 90)
    block(db, 10)
    assert refused(db) == about(90)
    block(db, 120)
    assert refused(db) == about(120)


def test_the_reported_wait_during_a_block_includes_busy_slots(db: Connection) -> None:
    use(db, 5)
    block(db, 10)
    assert refused(db) == about(60)


def test_a_block_changes_no_stamp(db: Connection) -> None:
    use(db, 2)
    before = stamps(db)
    block(db, 10)
    refused(db)
    assert stamps(db) == before


# --- the number of slots ----------------------------------------------------------------------


def test_a_larger_limit_gives_more_slots_at_once(db: Connection) -> None:
    use(db, 5)
    wider = FREE_PLAN._replace(calls=8)
    slots.prepare(db, wider)
    assert len(take_all(db, Lane.QUEUE, wider)) == 3


def test_a_smaller_limit_counts_the_calls_already_made(
    db: Connection, clock: ShiftingClock
) -> None:
    use(db, 2)
    clock.sleep(30)
    use(db, 1)
    narrower = FREE_PLAN._replace(calls=3)
    slots.prepare(db, narrower)
    assert refused(db, rate=narrower) == about(30)
    clock.sleep(30)
    assert len(take_all(db, Lane.QUEUE, narrower)) == 2


def test_a_smaller_limit_waits_until_few_enough_slots_are_busy(
    db: Connection, clock: ShiftingClock
) -> None:
    for _ in range(5):
        use(db, 1)
        clock.sleep(10)
    narrower = FREE_PLAN._replace(calls=2)  # calls ended 50, 40, 30, 20, 10 s ago
    slots.prepare(db, narrower)
    assert refused(db, rate=narrower) == about(40)
    clock.sleep(40)
    take(db, rate=narrower)
    refused(db, rate=narrower)


def test_a_host_with_a_smaller_limit_makes_no_host_forget_a_call(db: Connection) -> None:
    use(db, 5)
    for rate in (FREE_PLAN._replace(calls=3), FREE_PLAN):
        slots.prepare(db, rate)
    assert refused(db) == about(60)


def test_preparing_again_changes_nothing(db: Connection) -> None:
    use(db, 2)
    before = stamps(db)
    slots.prepare(db, FREE_PLAN)
    assert stamps(db) == before


# --- many at once -----------------------------------------------------------------------------


def together(
    connect: Callable[[], Connection], count: int, do: Callable[[Connection], None]
) -> None:
    """Do the same on several connections at the same moment."""
    barrier = Barrier(count)
    errors: list[BaseException] = []

    def work(db: Connection) -> None:
        try:
            barrier.wait(timeout=30)
            do(db)
        except BaseException as error:  # noqa: BLE001  # a thread's failure is the test's
            errors.append(error)

    threads = [Thread(target=work, args=(connect(),)) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not errors


def test_two_processes_never_get_the_same_slot(
    db: Connection, connect: Callable[[], Connection]
) -> None:
    rounds = Barrier(8)
    answers: list[list[Slot | Wait]] = [[] for _ in range(30)]

    def work(own: Connection) -> None:
        for answered in answers:
            rounds.wait(timeout=30)
            answer = slots.take(own, Lane.QUEUE, FREE_PLAN)
            answered.append(answer)
            rounds.wait(timeout=30)
            if isinstance(answer, Slot):
                slots.give_back(own, answer)

    together(connect, 8, work)
    for answered in answers:
        taken = [answer.number for answer in answered if isinstance(answer, Slot)]
        assert len(taken) == len(set(taken)) == 5
        assert len(answered) == 8


def test_preparing_many_times_at_once_creates_no_surplus_slot(
    db: Connection, connect: Callable[[], Connection]
) -> None:
    wider = FREE_PLAN._replace(calls=20)
    together(connect, 8, lambda own: slots.prepare(own, wider))
    assert len(stamps(db)) == 20


def test_the_clock_is_read_after_the_limiters_row_is_locked(
    db: Connection, connect: Callable[[], Connection]
) -> None:
    other, taker = connect(), connect()
    query(other, "begin; select from asset_sync.limiter for update")
    taken: list[Slot] = []
    thread = Thread(target=lambda: taken.append(take(taker)))
    thread.start()
    while not query(
        db,
        "select pid from pg_stat_activity where pid = %s and wait_event_type = 'Lock'",
        (taker.info.backend_pid,),
    ):
        assert thread.is_alive(), "it did not wait for its turn"
    [(let_go,)] = query(other, "select clock_timestamp()")
    with other.cursor() as cursor:
        cursor.execute("commit")
    thread.join(timeout=30)
    [(granted,)] = query(
        db,
        "select stamped_at from asset_sync.slots where slot = %s",
        (taken[0].number,),
    )
    assert granted >= let_go


# --- the reservation for the next priority run ------------------------------------------------


def test_the_queue_has_all_slots_until_one_window_before_the_priority_run(db: Connection) -> None:
    slots.reserve(db, calls=3, in_seconds=62)
    assert len(take_all(db, Lane.QUEUE)) == 5


def test_from_one_window_before_a_priority_run_the_queue_leaves_it_its_slots(
    db: Connection,
) -> None:
    slots.reserve(db, calls=3, in_seconds=59)
    assert len(take_all(db, Lane.QUEUE)) == 2
    assert len(take_all(db, Lane.PRIORITY)) == 3


def test_slots_that_come_free_in_time_count_for_the_priority_run(
    db: Connection, clock: ShiftingClock
) -> None:
    use(db, 3)
    clock.sleep(30)
    slots.reserve(db, calls=3, in_seconds=31)
    clock.sleep(1)
    assert len(take_all(db, Lane.QUEUE)) == 2


def test_each_call_of_the_priority_run_shrinks_the_reservation(
    db: Connection, clock: ShiftingClock
) -> None:
    slots.reserve(db, calls=3, in_seconds=30)
    clock.sleep(31)
    for left in (2, 1, 0):
        use(db, 1)
        assert slots.budget(db, FREE_PLAN).reserved == left
    assert len(take_all(db, Lane.QUEUE)) == 2


def test_a_priority_call_before_the_run_is_due_does_not_shrink_the_reservation(
    db: Connection,
) -> None:
    slots.reserve(db, calls=3, in_seconds=30)
    use(db, 1)
    assert slots.budget(db, FREE_PLAN).reserved == 3


def test_the_reservation_ends_if_the_priority_run_never_comes(
    db: Connection, clock: ShiftingClock
) -> None:
    slots.reserve(db, calls=5, in_seconds=0)
    clock.sleep(PRIORITY_GRACE_SECONDS - 1)
    assert refused(db, Lane.QUEUE) == pytest.approx(1, abs=0.5)
    clock.sleep(1)
    assert len(take_all(db, Lane.QUEUE)) == 5


def test_the_queue_waits_for_the_next_slot_when_that_comes_before_the_reservation_ends(
    db: Connection, clock: ShiftingClock
) -> None:
    slots.reserve(db, calls=3, in_seconds=0)
    use(db, 2, Lane.QUEUE)
    assert refused(db, Lane.QUEUE) == about(60)
    clock.sleep(20)
    assert refused(db, Lane.QUEUE) == about(40)


def test_the_queue_waits_for_the_end_of_the_reservation_when_that_comes_first(
    db: Connection, clock: ShiftingClock
) -> None:
    slots.reserve(db, calls=3, in_seconds=0)
    clock.sleep(30)
    use(db, 2, Lane.QUEUE)
    seconds = refused(db, Lane.QUEUE)
    assert seconds == about(30)
    clock.sleep(seconds)
    assert len(take_all(db, Lane.QUEUE)) == 3


def test_a_reservation_larger_than_the_limit_stops_the_queue_until_it_ends(
    db: Connection, clock: ShiftingClock
) -> None:
    slots.reserve(db, calls=12, in_seconds=0)
    assert refused(db, Lane.QUEUE) == about(PRIORITY_GRACE_SECONDS)
    use(db, 5)
    assert slots.budget(db, FREE_PLAN).reserved == 7


def test_with_three_priority_calls_each_five_minutes_22_of_25_calls_are_used_and_none_waits(
    db: Connection, clock: ShiftingClock
) -> None:
    # The reason: each window has 5 calls except the last, in which at most 2 leave room for 3.
    cycle, used = 300, []
    for _ in range(4):
        slots.reserve(db, calls=3, in_seconds=0)
        for _ in range(3):
            use(db, 1, Lane.PRIORITY)  # this fails if the call has to wait
        began, calls = clock.monotonic(), 3
        slots.reserve(db, calls=3, in_seconds=cycle)
        while (left := began + cycle - clock.monotonic()) > 0:
            answer = slots.take(db, Lane.QUEUE, FREE_PLAN)
            if isinstance(answer, Slot):
                slots.release(db, answer, ANSWERED, FREE_PLAN)
                calls += 1
            else:
                clock.sleep(min(answer.seconds, left))
        used.append(calls)
    # One more is possible if a window ends at the end of the cycle.
    assert all(calls in {22, 23} for calls in used), used


def test_without_a_reservation_the_queue_uses_every_call_and_priority_waits(
    db: Connection,
) -> None:
    slots.reserve(db, calls=0, in_seconds=30)
    assert len(take_all(db, Lane.QUEUE)) == 5
    assert refused(db, Lane.PRIORITY) == about(60)


# --- the budget -------------------------------------------------------------------------------


def test_before_the_first_run_the_whole_budget_is_free(db: Connection) -> None:
    query(db, "truncate asset_sync.slots")
    budget = slots.budget(db, FREE_PLAN)
    assert (budget.calls, budget.free, budget.used) == (5, 5, 0)
    assert budget.free_in_seconds == (0, 0, 0, 0, 0)
    assert (budget.next_free_seconds, budget.blocked_seconds, budget.reserved) == (0, 0, 0)


def test_the_budget_lists_when_each_slot_comes_free_soonest_first(
    db: Connection, clock: ShiftingClock
) -> None:
    use(db, 1)
    clock.sleep(20)
    use(db, 1)
    take(db)
    budget = slots.budget(db, FREE_PLAN)
    assert budget.free_in_seconds == (0, 0, about(40), about(60), about(60))
    assert (budget.free, budget.used, budget.next_free_seconds) == (2, 3, 0)


def test_the_budget_used_up_says_when_the_next_slot_is_free(
    db: Connection, clock: ShiftingClock
) -> None:
    use(db, 5)
    clock.sleep(12)
    budget = slots.budget(db, FREE_PLAN)
    assert (budget.free, budget.used) == (0, 5)
    assert budget.next_free_seconds == about(48)
    assert budget.next_free_seconds == pytest.approx(refused(db), abs=0.1)


def test_during_a_block_no_slot_of_the_budget_is_free(db: Connection) -> None:
    use(db, 1)
    block(db, 30)
    budget = slots.budget(db, FREE_PLAN)
    assert budget.blocked_seconds == about(30)
    assert budget.free == 0
    assert budget.free_in_seconds == (about(30),) * 4 + (about(60),)


def test_the_budget_shows_a_reservation_only_while_it_lasts(
    db: Connection, clock: ShiftingClock
) -> None:
    slots.reserve(db, calls=3, in_seconds=100)
    assert slots.budget(db, FREE_PLAN).reserved == 0
    clock.sleep(41)
    assert slots.budget(db, FREE_PLAN).reserved == 3
    clock.sleep(59 + PRIORITY_GRACE_SECONDS)
    assert slots.budget(db, FREE_PLAN).reserved == 0


def test_with_more_slots_than_calls_the_budget_counts_the_busiest_slots(
    db: Connection,
) -> None:
    use(db, 2)
    budget = slots.budget(db, FREE_PLAN._replace(calls=3))
    assert (budget.calls, budget.free, budget.used) == (3, 1, 2)


def test_reading_the_budget_waits_for_no_lock(
    db: Connection, connect: Callable[[], Connection]
) -> None:
    query(connect(), "begin; select from asset_sync.limiter for update")
    query(connect(), "begin; update asset_sync.slots set token = null")
    query(db, "set lock_timeout = '1ms'")
    assert slots.budget(db, FREE_PLAN).free == 5


# --- everything together ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Call:
    granted: float
    ended: float


@pytest.mark.parametrize("seed", range(2))
def test_no_window_is_over_the_limit_for_any_call_lengths_and_deaths(
    db: Connection, clock: ShiftingClock, seed: int
) -> None:
    chance = random.Random(seed)
    calls: list[Call] = []
    # The next events: the time, a tie-break, and the call that ends then, if the event is an end.
    events: list[tuple[float, float, Slot | None, float]] = []
    for process in range(6):
        heapq.heappush(events, (clock.monotonic() + process, chance.random(), None, 0))
    while len(calls) < 200:
        at, _, in_flight, granted = heapq.heappop(events)
        clock.sleep(max(0.0, at - clock.monotonic()))
        again = clock.monotonic() + chance.expovariate(1 / 2)
        if in_flight is not None:
            calls.append(Call(granted, clock.monotonic()))
            slots.release(db, in_flight, ANSWERED, FREE_PLAN)
            heapq.heappush(events, (again, chance.random(), None, 0))
            continue
        happening = chance.random()
        if happening < 0.02:
            slots.prepare(db, FREE_PLAN._replace(calls=chance.choice([2, 5])))
        elif happening < 0.04:
            slots.reserve(db, chance.randint(0, 5), chance.uniform(0, 90))
        asked = clock.monotonic()
        answer = slots.take(db, chance.choice(list(Lane)), FREE_PLAN)
        now = clock.monotonic()
        if isinstance(answer, Wait):
            again = now + answer.seconds * chance.choice([1, 1, 0.5])
        elif chance.random() < 0.03:
            # The process dies. Its request may arrive until the time-out. A run counts the time-out
            # from before it asks for the slot (`Turn.until`), so the slot's own is never earlier.
            calls.append(Call(now, asked + FREE_PLAN.call_timeout_seconds))
        elif chance.random() < 0.05:
            slots.give_back(db, answer)
        else:
            duration = min(29.0, chance.lognormvariate(-0.5, 1.5))
            heapq.heappush(events, (now + duration, chance.random(), answer, now))
            continue
        heapq.heappush(events, (again, chance.random(), None, 0))

    # A request reaches the server anywhere between grant and end. Calls can meet in one window
    # if none of them ended before it begins, and none was granted after it.
    for first in calls:
        together = [
            call
            for call in calls
            if call.ended >= first.ended
            and call.granted < first.ended + FREE_PLAN.period_seconds - 0.001
        ]
        assert len(together) <= FREE_PLAN.calls
