"""The queue loses no item, serves none twice, and claims the right one first."""

import itertools
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from threading import Barrier, Thread

import pytest
from conftest import ShiftingClock, asset, in_line

from asset_sync import queue
from asset_sync.database import Connection, Cursor, Row, query, transaction
from asset_sync.model import Asset, AssetType, Feed, Lane, Level
from asset_sync.queue import Item, LostLeaseError, Wanted
from asset_sync.settings import QueueSettings

SETTINGS = QueueSettings(max_size=1000, max_attempts=3, retry_delay_seconds=60, aging_seconds=600)
CRITICAL, HIGH, MEDIUM, LOW = Level


def enter(
    db: Connection,
    *assets: Asset,
    feed: Feed = Feed.BARS,
    settings: QueueSettings = SETTINGS,
    cycle_seconds: float | None = None,
) -> tuple[int, int]:
    """Return how many items were enqueued and how many did not fit."""
    entered = queue.enqueue(db, wanted(*assets, feed=feed), settings, cycle_seconds=cycle_seconds)
    return entered.entered, entered.left_out


def answered_well(db: Connection) -> None:
    """Record that the provider answered another asset well."""
    query(db, "update asset_sync.limiter set answered_at = clock_timestamp()")


def wanted(*assets: Asset, feed: Feed = Feed.BARS) -> list[Wanted]:
    return [Wanted(one, feed) for one in assets]


def claim(
    db: Connection, lane: Lane = Lane.QUEUE, *, most: int = 250, lease: float = 60
) -> tuple[Item, ...]:
    return queue.claim(db, in_line(db, lane), lease_seconds=lease, most=most)


def claim_one(db: Connection, lane: Lane = Lane.QUEUE, lease: float = 60) -> Item:
    [item] = claim(db, lane, lease=lease)
    return item


def finish(db: Connection, items: Sequence[Item]) -> None:
    with transaction(db) as cursor:
        queue.finish(cursor, items)


def fail(
    db: Connection, item: Item, error: str = "404", settings: QueueSettings = SETTINGS
) -> None:
    with transaction(db) as cursor:
        queue.fail(cursor, item, error, settings)


def serve_all(db: Connection, lane: Lane = Lane.QUEUE) -> list[str]:
    """Serve everything that can be claimed; return the symbols in the order of claims."""
    served = []
    while items := claim(db, lane):
        served += [item.symbol for item in items]
        finish(db, items)
    return served


def kill(db: Connection, clock: ShiftingClock, lane: Lane = Lane.QUEUE) -> None:
    """Let a run claim the next item and die, and reclaim the item afterwards."""
    claim_one(db, lane)
    clock.sleep(61)
    assert queue.reclaim(db, SETTINGS) == 1


def names(db: Connection) -> list[str]:
    return [symbol for (symbol,) in query(db, "select symbol from asset_sync.queue")]


def assets_of(db: Connection) -> list[Asset]:
    return [wanted.asset for wanted in in_line(db)]


def rows(db: Connection) -> list[Row]:
    return query(db, "select * from asset_sync.queue order by symbol, feed")


def row(db: Connection, columns: str, symbol: str = "A") -> Row:
    [found] = query(db, f"select {columns} from asset_sync.queue where symbol = %s", (symbol,))
    return found


def state(db: Connection, symbol: str = "A") -> str:
    return str(row(db, "state", symbol)[0])


def delay(db: Connection, symbol: str = "A") -> float:
    """Return in how many seconds the item may be claimed."""
    columns = "extract(epoch from not_before - clock_timestamp())::float8"
    return float(row(db, columns, symbol)[0])


# --- enqueue ----------------------------------------------------------------------------------


def test_an_asset_that_was_never_synced_is_due(db: Connection) -> None:
    assert enter(db, asset("A")) == (1, 0)
    assert state(db) == "waiting"


def test_an_asset_counts_as_due_since_it_was_added(db: Connection, clock: ShiftingClock) -> None:
    enter(db, asset("A"), settings=replace(SETTINGS, max_size=0))
    clock.sleep(1000)
    enter(db, asset("A"))
    assert row(db, "due_at = added_at, now() - due_at >= interval '1000 s'") == (True, True)


@pytest.mark.parametrize("frequency", [300, 3600])
def test_an_asset_is_due_again_after_its_update_frequency(
    db: Connection, clock: ShiftingClock, frequency: int
) -> None:
    enter(db, asset("A", every=frequency))
    serve_all(db)
    clock.sleep(frequency - 2)
    assert enter(db, asset("A", every=frequency)) == (0, 0)
    clock.sleep(2)
    assert enter(db, asset("A", every=frequency)) == (1, 0)
    assert row(db, "due_at = last_success_at + make_interval(secs => %d)" % frequency) == (True,)  # noqa: UP031


CYCLE = 10**9
"""Cron's interval; its next start is in 2033, so the length of a test does not matter."""


@pytest.mark.parametrize(("seconds_fresh_at_start", "entered"), [(1000, 0), (-1000, 1)])
def test_an_asset_is_skipped_only_if_it_will_be_fresh_at_crons_next_start(
    db: Connection, clock: ShiftingClock, seconds_fresh_at_start: int, entered: int
) -> None:
    until_next_start = CYCLE - time.time() % CYCLE
    one = asset("A", every=round(until_next_start * 1.2))
    enter(db, one)
    serve_all(db)
    clock.sleep(one.update_frequency_seconds - until_next_start - seconds_fresh_at_start)
    assert enter(db, one, cycle_seconds=CYCLE) == (entered, 0)
    assert len(queue.preview(db, wanted(one), SETTINGS, 10, cycle_seconds=CYCLE)) == entered


def test_an_asset_that_was_just_refreshed_is_not_refreshed_again_before_crons_next_start(
    db: Connection, clock: ShiftingClock
) -> None:
    enter(db, asset("A"))
    serve_all(db)
    assert enter(db, asset("A"), cycle_seconds=CYCLE) == (0, 0)
    clock.sleep(29)
    assert enter(db, asset("A"), cycle_seconds=CYCLE) == (0, 0)
    clock.sleep(1)
    assert enter(db, asset("A"), cycle_seconds=CYCLE) == (1, 0)


def test_a_waiting_or_leased_item_is_not_enqueued_again(db: Connection) -> None:
    enter(db, asset("A"), asset("B"))
    claim_one(db)
    before = rows(db)
    assert enter(db, asset("A"), asset("B")) == (0, 0)
    assert rows(db) == before


def test_an_asset_has_one_item_per_feed(db: Connection) -> None:
    enter(db, asset("A"), feed=Feed.BARS)
    enter(db, asset("A"), feed=Feed.SNAPSHOT)
    assert [one[:2] for one in rows(db)] == [("A", "bars"), ("A", "snapshot")]


def test_eight_processes_enqueue_each_asset_once_without_deadlock(
    db: Connection, connect: Callable[[], Connection]
) -> None:
    rounds = [[asset(f"R{cycle}-{number}") for number in range(150)] for cycle in range(5)]
    barrier = Barrier(8)
    entered: list[int] = []
    errors: list[BaseException] = []

    def work(own: Connection, seed: int) -> None:
        chance = random.Random(seed)
        try:
            for assets in rounds:
                mine = chance.sample(assets, len(assets))
                barrier.wait(timeout=30)
                entered.append(enter(own, *mine)[0])
        except BaseException as error:  # noqa: BLE001  # a thread's failure is the test's
            errors.append(error)

    threads = [Thread(target=work, args=(connect(), seed)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not errors
    assert sum(entered) == 750
    assert sorted(
        query(db, "select symbol, feed from asset_sync.queue where state = 'waiting'")
    ) == (sorted((one.symbol, "bars") for assets in rounds for one in assets))


def test_assets_are_enqueued_in_one_order_so_that_two_runs_cannot_deadlock(
    db: Connection, connect: Callable[[], Connection]
) -> None:
    waiter, after_m = connect(), [asset(f"Z{number}") for number in range(20)]
    with transaction(connect()) as cursor:
        cursor.execute(
            "insert into asset_sync.queue (symbol, feed, ticker, asset_type, name, level)"
            " values ('M', 'bars', 'C:M', 'forex', 'M', 'low')"
        )
        thread = Thread(target=enter, args=(waiter, *after_m, asset("M")))
        thread.start()
        while not query(
            db,
            "select pid from pg_stat_activity where pid = %s and wait_event_type = 'Lock'",
            (waiter.info.backend_pid,),
        ):
            assert thread.is_alive(), "it did not wait for M"
        assert enter(db, *after_m)[0] == 20, "they come after M: nobody has them yet"
    thread.join(timeout=30)
    assert sorted(serve_all(db)) == sorted(["M", *(one.symbol for one in after_m)])


def test_enqueue_does_not_wait_for_a_run_that_holds_an_item(
    db: Connection, connect: Callable[[], Connection]
) -> None:
    none = replace(SETTINGS, max_size=0)
    enter(db, asset("A"), asset("B"), settings=none)
    with transaction(connect()) as cursor:
        cursor.execute("select from asset_sync.queue where symbol = 'A' for update")
        assert enter(db, asset("A"), asset("B")) == (1, 0)
    assert enter(db, asset("A"), asset("B")) == (1, 0)


def test_assets_that_do_not_fit_are_reported_and_stay_due_and_are_enqueued_later(
    db: Connection,
) -> None:
    assets = [asset(f"A{number}") for number in range(5)]
    small = replace(SETTINGS, max_size=3)
    assert enter(db, *assets, settings=small) == (3, 2)
    assert enter(db, *assets, settings=small) == (0, 2)
    first = serve_all(db)
    assert enter(db, *assets, settings=small) == (2, 0)
    assert sorted(first + serve_all(db)) == ["A0", "A1", "A2", "A3", "A4"]


def test_leased_items_count_for_the_queue_size_and_dead_ones_do_not(db: Connection) -> None:
    small = replace(SETTINGS, max_size=2, max_attempts=1)
    enter(db, asset("A"), asset("B"), settings=small)
    item = claim_one(db)
    assets = [asset("A"), asset("B"), asset("C")]
    assert enter(db, *assets, settings=small) == (0, 1)
    fail(db, item, settings=small)
    assert enter(db, *assets, settings=small) == (1, 0)


def test_a_full_queue_takes_first_what_it_would_serve_first(db: Connection) -> None:
    small = replace(SETTINGS, max_size=2)
    enter(db, asset("A", LOW), asset("B", MEDIUM), asset("C", HIGH), settings=small)
    assert serve_all(db) == ["C", "B"]


def test_a_critical_asset_is_enqueued_even_if_the_queue_is_full(db: Connection) -> None:
    small = replace(SETTINGS, max_size=1)
    enter(db, asset("A"), asset("B"), settings=small)
    assert enter(db, asset("GOLD", CRITICAL), settings=small) == (1, 0)
    assert serve_all(db, Lane.PRIORITY) == ["GOLD"]
    euro = asset("EURO", CRITICAL)
    assert enter(db, asset("A"), asset("B"), euro, settings=small) == (1, 1)
    assert serve_all(db, Lane.PRIORITY) == ["EURO"]


def test_an_item_that_waits_already_counts_once_for_the_queue_size(db: Connection) -> None:
    small = replace(SETTINGS, max_size=2)
    enter(db, asset("A"), settings=small)
    raised = asset("A", HIGH)
    assert enter(db, raised, asset("B"), settings=small) == (2, 0)


# --- the order --------------------------------------------------------------------------------


def test_critical_assets_are_served_in_the_order_of_the_file(
    db: Connection, clock: ShiftingClock
) -> None:
    enter(db, asset("LAST", CRITICAL, position=3))
    clock.sleep(5000)
    enter(db, asset("FIRST", CRITICAL, position=1), asset("NEXT", CRITICAL, position=2))
    assert serve_all(db, Lane.PRIORITY) == ["FIRST", "NEXT", "LAST"]


def test_each_lane_serves_its_own_assets(db: Connection) -> None:
    enter(db, asset("A", HIGH), asset("GOLD", CRITICAL, position=1))
    assert serve_all(db, Lane.QUEUE) == ["A"]
    assert serve_all(db, Lane.PRIORITY) == ["GOLD"]


def test_equally_old_items_are_served_by_level(db: Connection) -> None:
    enter(db, asset("A", LOW), asset("B", MEDIUM), asset("C", HIGH))
    assert serve_all(db) == ["C", "B", "A"]


@pytest.mark.parametrize(
    ("level", "older_by", "first"),
    [
        (MEDIUM, 590, "YOUNG"),
        (MEDIUM, 610, "OLD"),
        (LOW, 1190, "YOUNG"),
        (LOW, 1210, "OLD"),
    ],
)
def test_an_item_overtakes_a_higher_level_once_it_is_due_longer_by_the_allowance(
    db: Connection, clock: ShiftingClock, level: Level, older_by: int, first: str
) -> None:
    enter(db, asset("OLD", level))
    clock.sleep(older_by)
    enter(db, asset("YOUNG", HIGH))
    assert serve_all(db)[0] == first


def test_low_items_never_starve_beside_many_high_ones(db: Connection, clock: ShiftingClock) -> None:
    # More assets become due than can be served: 30 high ones each minute, 10 calls each minute.
    assets = [asset(f"H{number:02}", HIGH, every=60) for number in range(30)]
    assets.append(asset("Z", LOW, every=60))
    served = []
    for minute in range(40):
        enter(db, *assets)
        for _ in range(10):
            item = claim_one(db)
            finish(db, [item])
            if item.symbol == "Z":
                served.append(minute)
        clock.sleep(60)
    # Two allowances of 10 minutes, and the three minutes for which each high item waits.
    assert served[0] <= 24
    assert len(served) >= 1


# --- lease and token --------------------------------------------------------------------------


def test_a_claim_counts_the_attempt_and_leases_the_item(db: Connection) -> None:
    enter(db, asset("A", HIGH))
    item = claim_one(db)
    assert (item.symbol, item.feed, item.ticker) == ("A", Feed.BARS, "C:A")
    assert (item.asset_type, item.name, item.level) == (AssetType.FOREX, "A", HIGH)
    assert (item.attempts, item.verify_ticker, item.backfilled_to) == (1, False, None)
    assert row(db, "state, attempts, lease_token::text") == ("leased", 1, item.token)


def test_of_two_items_a_second_run_claims_the_other_and_a_third_none(
    db: Connection, connect: Callable[[], Connection]
) -> None:
    enter(db, asset("A"), asset("B"))
    assert {claim_one(db).symbol, claim_one(connect()).symbol} == {"A", "B"}
    assert claim(connect()) == ()


def test_a_claim_skips_an_item_that_another_run_is_claiming(
    db: Connection, connect: Callable[[], Connection]
) -> None:
    enter(db, asset("A"), asset("B"))
    with transaction(connect()) as cursor:
        cursor.execute("select from asset_sync.queue where symbol = 'A' for update")
        assert claim_one(db).symbol == "B"
        assert claim(db) == ()


def test_many_runs_that_claim_at_once_serve_each_item_once(
    db: Connection, connect: Callable[[], Connection]
) -> None:
    enter(db, *(asset(f"A{number}") for number in range(100)))
    barrier = Barrier(8)
    served: list[str] = []

    def work(own: Connection) -> None:
        barrier.wait(timeout=30)
        served.extend(serve_all(own))

    threads = [Thread(target=work, args=(connect(),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert sorted(served) == sorted(f"A{number}" for number in range(100))


_CHANGES: dict[str, Callable[[Cursor, Item], object]] = {
    "finish": lambda cursor, item: queue.finish(cursor, [item]),
    "release": lambda cursor, item: queue.release(cursor, [item], reason="502"),
    "resume": lambda cursor, item: queue.resume(cursor, item, SETTINGS, backfilled_to=None),
    "verify": queue.verify,
    "skip": lambda cursor, item: queue.skip(cursor, [item], "no snapshots"),
    "fail": lambda cursor, item: queue.fail(cursor, item, "404", SETTINGS),
    "strike": lambda cursor, item: queue.strike(cursor, [item], "500", SETTINGS),
}


@pytest.mark.parametrize("change", _CHANGES.values(), ids=_CHANGES)
def test_a_run_that_lost_its_lease_changes_nothing(
    db: Connection, clock: ShiftingClock, change: Callable[[Cursor, Item], object]
) -> None:
    enter(db, asset("A"))
    lost = claim_one(db, lease=60)
    clock.sleep(61)
    queue.reclaim(db, SETTINGS)
    claim_one(db)
    before = rows(db)
    with pytest.raises(LostLeaseError, match="A: the lease ended"), transaction(db) as cursor:
        change(cursor, lost)
    assert rows(db) == before


@pytest.mark.parametrize("change", _CHANGES.values(), ids=_CHANGES)
def test_an_item_can_be_finished_only_once(
    db: Connection, change: Callable[[Cursor, Item], object]
) -> None:
    enter(db, asset("A"))
    item = claim_one(db)
    with transaction(db) as cursor:
        change(cursor, item)
    with pytest.raises(LostLeaseError), transaction(db) as cursor:
        change(cursor, item)


def test_several_items_are_finished_together_or_not_at_all(
    db: Connection, clock: ShiftingClock
) -> None:
    enter(db, asset("A"), asset("B"), feed=Feed.SNAPSHOT)
    items = claim(db)
    query(db, "update asset_sync.queue set lease_token = gen_random_uuid() where symbol = 'B'")
    with pytest.raises(LostLeaseError):
        finish(db, items)
    assert [state(db, symbol) for symbol in "AB"] == ["leased", "leased"]


# --- reclaim ----------------------------------------------------------------------------------


def test_a_lease_that_has_not_ended_is_not_reclaimed(db: Connection, clock: ShiftingClock) -> None:
    enter(db, asset("A"))
    claim_one(db, lease=60)
    clock.sleep(59)
    assert queue.reclaim(db, SETTINGS) == 0
    assert state(db) == "leased"


def test_an_item_of_a_killed_run_waits_again_with_its_attempt_counted(
    db: Connection, clock: ShiftingClock
) -> None:
    enter(db, asset("A"))
    claim_one(db, lease=60)
    clock.sleep(61)
    assert queue.reclaim(db, SETTINGS) == 1
    assert row(db, "state, attempts, lease_token, lease_until") == ("waiting", 1, None, None)
    assert claim_one(db).attempts == 2


def test_an_item_that_kills_its_runs_is_dead_after_max_attempts(
    db: Connection, clock: ShiftingClock
) -> None:
    enter(db, asset("A"))
    for back_off in (0, 60, 120):
        kill(db, clock)
        answered_well(db)
        if state(db) != "dead":
            assert delay(db) == pytest.approx(back_off, abs=0.5)
            clock.sleep(back_off)
    assert state(db) == "dead"
    [dead] = queue.dead(db, names(db), 10)
    assert dead.error == "The run that worked on it was killed."
    assert claim(db) == ()


def test_an_item_whose_runs_are_killed_during_an_outage_does_not_become_dead(
    db: Connection, clock: ShiftingClock
) -> None:
    enter(db, asset("A"))
    for _ in range(5):
        clock.sleep(3600)
        kill(db, clock)
    assert state(db) == "waiting"


# --- failing ----------------------------------------------------------------------------------


def test_each_failure_of_its_own_doubles_an_items_delay_and_it_is_low_and_at_last_dead(
    db: Connection, clock: ShiftingClock
) -> None:
    settings = replace(SETTINGS, max_attempts=4)
    enter(db, asset("A", HIGH))
    for attempt, seconds in [(1, 60), (2, 120), (3, 240)]:
        answered_well(db)
        fail(db, claim_one(db), f"error {attempt}", settings)
        assert row(db, "state, attempts, level, last_error") == (
            "waiting", attempt, "low", f"error {attempt}",
        )  # fmt: skip
        assert delay(db) == pytest.approx(seconds, abs=0.5)
        assert claim(db) == ()
        clock.sleep(seconds)
    answered_well(db)
    fail(db, claim_one(db), "error 4", settings)
    assert state(db) == "dead"
    assert queue.dead(db, names(db), 10) == (queue.Dead("A", Feed.BARS, "error 4"),)


def test_an_item_that_failed_is_ordered_as_a_low_one(db: Connection, clock: ShiftingClock) -> None:
    enter(db, asset("A", HIGH))
    fail(db, claim_one(db))
    clock.sleep(61)
    enter(db, asset("B", MEDIUM))
    assert serve_all(db) == ["B", "A"]


def test_after_a_success_failures_are_forgotten_and_the_level_is_restored(
    db: Connection, clock: ShiftingClock
) -> None:
    enter(db, asset("A", HIGH))
    fail(db, claim_one(db))
    clock.sleep(61)
    serve_all(db)
    assert row(db, "state, attempts, last_error, verify_ticker") == ("idle", 0, None, False)
    clock.sleep(300)
    enter(db, asset("A", HIGH))
    item = claim_one(db)
    assert (item.level, item.attempts) == (HIGH, 1)


def test_a_dead_item_is_not_enqueued_again_by_itself(db: Connection, clock: ShiftingClock) -> None:
    settings = replace(SETTINGS, max_attempts=1)
    enter(db, asset("A"), settings=settings)
    fail(db, claim_one(db), settings=settings)
    clock.sleep(10**6)
    assert enter(db, asset("A"), settings=settings) == (0, 0)


def test_a_critical_asset_never_becomes_dead_and_is_tried_less_and_less_often(
    db: Connection, clock: ShiftingClock
) -> None:
    enter(db, asset("GOLD", CRITICAL, position=1))
    for seconds in (60, 120, 240, 480, 960, 1920, 3600, 3600):
        fail(db, claim_one(db, Lane.PRIORITY))
        assert row(db, "state, level", "GOLD") == ("waiting", "critical")
        assert delay(db, "GOLD") == pytest.approx(seconds, abs=0.5)
        answered_well(db)
        clock.sleep(seconds)


def test_a_critical_asset_that_failed_is_ordered_behind_the_other_critical_ones(
    db: Connection, clock: ShiftingClock
) -> None:
    gold, euro = asset("GOLD", CRITICAL, position=1), asset("EURO", CRITICAL, position=2)
    enter(db, gold, euro)
    fail(db, claim_one(db, Lane.PRIORITY))
    clock.sleep(61)
    assert serve_all(db, Lane.PRIORITY) == ["EURO", "GOLD"]


def test_a_critical_asset_that_killed_its_runs_is_tried_again(
    db: Connection, clock: ShiftingClock
) -> None:
    enter(db, asset("GOLD", CRITICAL, position=1))
    for _ in range(5):
        kill(db, clock, Lane.PRIORITY)
        answered_well(db)
        clock.sleep(3600)
    assert claim_one(db, Lane.PRIORITY).symbol == "GOLD"


# --- strikes by evidence ----------------------------------------------------------------------


def strike(db: Connection, *items: Item, error: str = "500") -> tuple[queue.Struck, ...]:
    with transaction(db) as cursor:
        return queue.strike(cursor, items, error, SETTINGS)


def test_bad_answers_make_an_item_back_off_up_to_an_hour_and_never_make_it_dead(
    db: Connection, clock: ShiftingClock
) -> None:
    enter(db, asset("A", HIGH))
    for strikes, seconds in enumerate([60, 120, 240, 480, 960, 1920, 3600, 3600], start=1):
        answered_well(db)
        [struck] = strike(db, claim_one(db))
        assert struck == (strikes, False)
        assert row(db, "state, attempts, level, last_error") == ("waiting", 0, "high", "500")
        assert delay(db) == pytest.approx(seconds, abs=0.5)
        clock.sleep(seconds)


@pytest.mark.parametrize("fail_one", [strike, fail], ids=["bad answers", "failures of its own"])
def test_while_no_other_asset_is_answered_well_no_back_off_grows_and_no_item_becomes_dead(
    db: Connection, clock: ShiftingClock, fail_one: Callable[[Connection, Item], object]
) -> None:
    enter(db, asset("A"))
    answered_well(db)
    for _ in range(10):
        fail_one(db, claim_one(db))
        assert (state(db), row(db, "strikes")) == ("waiting", (1,))
        assert delay(db) == pytest.approx(60, abs=0.5)
        clock.sleep(60)


def test_an_item_with_strikes_is_ordered_by_the_end_of_its_back_off(
    db: Connection, clock: ShiftingClock
) -> None:
    enter(db, asset("BAD", HIGH))
    strike(db, claim_one(db))
    clock.sleep(30)
    enter(db, asset("GOOD", HIGH))
    clock.sleep(31)
    enter(db, asset("LATER", HIGH))
    assert serve_all(db) == ["GOOD", "BAD", "LATER"]


def test_a_success_ends_the_strikes(db: Connection, clock: ShiftingClock) -> None:
    enter(db, asset("A"))
    strike(db, claim_one(db))
    clock.sleep(61)
    serve_all(db)
    assert row(db, "state, strikes, failed_tickers") == ("idle", 0, [])


def test_an_asset_with_three_strikes_is_named_with_its_error(
    db: Connection, clock: ShiftingClock
) -> None:
    enter(db, asset("A"), asset("B"))
    for _ in range(3):
        assert queue.failing(db, ["A", "B"]) == ()
        answered_well(db)
        [item] = queue.claim(db, wanted(asset("A")), lease_seconds=60, most=1)
        strike(db, item, error="500 for A")
        clock.sleep(3600)
    assert queue.failing(db, ["A", "B"]) == (queue.Failing("A", Feed.BARS, 3, 0.0, "500 for A"),)
    assert queue.failing(db, ["B"]) == ()


# --- settings that differ ---------------------------------------------------------------------


def test_an_item_that_the_settings_do_not_name_is_not_claimed(db: Connection) -> None:
    enter(db, asset("THEIRS"), asset("OURS"))
    entered = queue.enqueue(db, wanted(asset("OURS")), SETTINGS)
    assert entered.line == tuple(wanted(asset("OURS")))
    [item] = queue.claim(db, entered.line, lease_seconds=60, most=250)
    assert item.symbol == "OURS"
    assert queue.claim(db, entered.line, lease_seconds=60, most=250) == ()
    assert state(db, "THEIRS") == "waiting"


def test_an_item_that_the_settings_do_not_name_does_not_count_for_the_queue_size(
    db: Connection,
) -> None:
    small = replace(SETTINGS, max_size=1)
    enter(db, asset("THEIRS"))
    assert enter(db, asset("OURS"), settings=small) == (1, 0)


def test_a_run_uses_the_ticker_of_its_own_settings(db: Connection) -> None:
    enter(db, asset("A"))
    own = wanted(replace(asset("A"), ticker="C:OTHER"))
    assert queue.enqueue(db, own, SETTINGS).entered == 0
    [item] = queue.claim(db, own, lease_seconds=60, most=1)
    assert (item.ticker, row(db, "ticker")) == ("C:OTHER", ("C:OTHER",))


def test_of_two_hosts_levels_the_higher_one_wins_and_the_item_does_not_move_back(
    db: Connection,
) -> None:
    enter(db, asset("A", LOW))
    enter(db, asset("A", HIGH))
    assert row(db, "level") == ("high",)
    before = rows(db)
    for level in (LOW, HIGH, MEDIUM, LOW):
        assert enter(db, asset("A", level)) == (0, 0)
    assert rows(db) == before


def test_two_hosts_with_different_wrong_tickers_do_not_revive_an_item_for_ever(
    db: Connection, clock: ShiftingClock
) -> None:
    hosts = [wanted(replace(asset("A"), ticker=ticker)) for ticker in ("C:WRONG", "C:BAD")]
    calls = 0
    for own in itertools.islice(itertools.cycle(hosts), 20):
        answered_well(db)
        line = queue.enqueue(db, own, SETTINGS).line
        for item in queue.claim(db, line, lease_seconds=60, most=1):
            fail(db, item)
            calls += 1
        clock.sleep(300)
    assert state(db) == "dead"
    assert calls <= 2 * SETTINGS.max_attempts


def test_a_line_has_the_first_items_of_each_feed_in_order(db: Connection) -> None:
    many = [asset(f"A{number:03}") for number in range(queue.LINE_LENGTH + 5)]
    everything = wanted(*many) + wanted(*many, feed=Feed.SNAPSHOT)
    line = queue.enqueue(db, everything, SETTINGS).line
    bars = [one.asset.symbol for one in line if one.feed is Feed.BARS]
    quotes = [one.asset.symbol for one in line if one.feed is Feed.SNAPSHOT]
    assert bars == quotes == [one.symbol for one in many[: queue.LINE_LENGTH]]


def test_a_corrected_ticker_makes_a_dead_item_wait_as_if_new(db: Connection) -> None:
    settings = replace(SETTINGS, max_attempts=1)
    enter(db, asset("A"))
    fail(db, claim_one(db), settings=settings)
    assert state(db) == "dead"
    mended = replace(asset("A", HIGH), ticker="C:RIGHT")
    assert enter(db, mended) == (1, 0)
    item = claim_one(db)
    assert (item.ticker, item.level, item.attempts) == ("C:RIGHT", HIGH, 1)


def test_a_corrected_ticker_does_not_wait_for_the_delay_of_the_wrong_one(db: Connection) -> None:
    enter(db, asset("A"))
    fail(db, claim_one(db))
    enter(db, replace(asset("A"), ticker="C:RIGHT"))
    assert claim_one(db).ticker == "C:RIGHT"


def test_a_waiting_asset_that_becomes_critical_changes_its_lane(db: Connection) -> None:
    enter(db, asset("A", LOW))
    enter(db, asset("A", CRITICAL, position=1))
    assert claim(db, Lane.QUEUE) == ()
    assert claim_one(db, Lane.PRIORITY).level is CRITICAL


def test_a_waiting_asset_that_is_no_longer_critical_is_claimed_by_the_queue_run(
    db: Connection,
) -> None:
    enter(db, asset("A", CRITICAL, position=1))
    line = queue.enqueue(db, wanted(asset("A", HIGH)), SETTINGS).line
    [item] = queue.claim(db, line, lease_seconds=60, most=1)
    assert item.level is HIGH


# --- release, resume, verify, skip ------------------------------------------------------------


def test_a_release_takes_the_attempt_off_and_delays_the_item(
    db: Connection, clock: ShiftingClock
) -> None:
    enter(db, asset("A", HIGH))
    item = claim_one(db)
    with transaction(db) as cursor:
        queue.release(cursor, [item], after_seconds=30, reason="502")
    assert row(db, "state, attempts, level, last_error") == ("waiting", 0, "high", "502")
    assert delay(db) == pytest.approx(30, abs=0.5)
    clock.sleep(30)
    assert claim_one(db).attempts == 1


def test_an_item_released_without_delay_can_be_claimed_at_once(db: Connection) -> None:
    enter(db, asset("A"))
    with transaction(db) as cursor:
        queue.release(cursor, [claim_one(db)])
    assert claim_one(db).symbol == "A"


def test_resume_remembers_how_far_a_catch_up_came_until_it_ends(db: Connection) -> None:
    backfilled_to = datetime(2025, 3, 1, 12, tzinfo=UTC)
    enter(db, asset("A"))
    with transaction(db) as cursor:
        queue.resume(cursor, claim_one(db), SETTINGS, backfilled_to=backfilled_to)
    item = claim_one(db)
    assert (item.backfilled_to, item.attempts) == (backfilled_to, 1)
    finish(db, [item])
    assert row(db, "backfilled_to") == (None,)


@pytest.mark.parametrize("level", [Level.CRITICAL, Level.MEDIUM])
def test_an_asset_that_catches_up_lets_those_that_are_due_go_first(
    db: Connection, level: Level
) -> None:
    lane = Lane.PRIORITY if level is Level.CRITICAL else Lane.QUEUE
    enter(db, asset("A", level), asset("B", level, position=1))
    with transaction(db) as cursor:
        queue.resume(cursor, claim_one(db, lane), SETTINGS, backfilled_to=None)
    assert [claim_one(db, lane).symbol, claim_one(db, lane).symbol] == ["B", "A"]


def test_verify_makes_only_the_next_call_look_up_the_ticker(
    db: Connection,
) -> None:
    enter(db, asset("A"))
    with transaction(db) as cursor:
        queue.verify(cursor, claim_one(db))
    item = claim_one(db)
    assert (item.verify_ticker, item.attempts) == (True, 1)
    with transaction(db) as cursor:
        queue.resume(cursor, item, SETTINGS, backfilled_to=None)
    assert claim_one(db).verify_ticker is False


def test_a_failed_look_up_can_be_repeated(db: Connection, clock: ShiftingClock) -> None:
    enter(db, asset("A"))
    with transaction(db) as cursor:
        queue.fail(cursor, claim_one(db), "no such ticker", SETTINGS, verify_ticker=True)
    clock.sleep(60)
    assert claim_one(db).verify_ticker is True


def test_a_skipped_item_is_idle_with_its_reason(db: Connection) -> None:
    enter(db, asset("A"), feed=Feed.SNAPSHOT)
    with transaction(db) as cursor:
        queue.skip(cursor, claim(db), "no snapshots")
    assert row(db, "state, attempts, last_error, last_success_at") == (
        "idle", 0, "no snapshots", None,
    )  # fmt: skip
    assert claim(db) == ()


# --- one call for many ------------------------------------------------------------------------


def test_a_claim_of_snapshots_takes_as_many_items_as_one_call_serves(db: Connection) -> None:
    enter(db, *(asset(f"A{number:03}") for number in range(260)), feed=Feed.SNAPSHOT)
    first, second, third = claim(db), claim(db), claim(db)
    assert (len(first), len(second), third) == (250, 10, ())
    assert len({item.symbol for item in first + second}) == 260
    assert len({item.token for item in first + second}) == 260


def test_a_claim_takes_at_most_the_number_asked_for(db: Connection) -> None:
    enter(db, *(asset(f"A{number}") for number in range(5)), feed=Feed.SNAPSHOT)
    assert sorted(item.symbol for item in claim(db, most=3)) == ["A0", "A1", "A2"]


def test_a_claim_of_bars_takes_one_item(db: Connection) -> None:
    enter(db, asset("A"), asset("B"))
    assert len(claim(db, most=250)) == 1


def test_a_claim_takes_items_of_only_one_feed_that_of_the_first_item(
    db: Connection, clock: ShiftingClock
) -> None:
    enter(db, asset("S1"), feed=Feed.SNAPSHOT)
    clock.sleep(10)
    enter(db, asset("B1"), asset("S1"), feed=Feed.BARS)
    clock.sleep(10)
    enter(db, asset("S2"), feed=Feed.SNAPSHOT)
    first = claim(db, most=2)
    assert {(item.symbol, item.feed) for item in first} == {
        ("S1", Feed.SNAPSHOT),
        ("S2", Feed.SNAPSHOT),
    }
    assert [claim_one(db).symbol for _ in range(2)] == ["B1", "S1"]
    assert claim(db) == ()


# --- next ready item, due within, preview -----------------------------------------------------


def test_no_item_is_ready_if_none_is_due_in_time(db: Connection, clock: ShiftingClock) -> None:
    enter(db, asset("A", every=300))
    serve_all(db)
    own = wanted(asset("A", every=300))
    assert queue.next_ready_seconds(db, own, 299) is None
    assert queue.next_ready_seconds(db, own, 301) == pytest.approx(300, abs=0.5)
    clock.sleep(100)
    assert queue.next_ready_seconds(db, own, 201) == pytest.approx(200, abs=0.5)


def finish_later(db: Connection, seconds: float) -> None:
    """Finish the next item; no news of it can come for so many seconds."""
    [(then,)] = query(db, "select clock_timestamp() + make_interval(secs => %s)", (seconds,))
    with transaction(db) as cursor:
        queue.finish(cursor, [claim_one(db)], not_before=then, silent=2)


def next_seconds(db: Connection) -> list[float | None]:
    """Return in how many seconds each asset is due next, by `next_at`."""
    rows = query(
        db,
        """
        select extract(epoch from next_at - clock_timestamp())::float8 from asset_sync.queue
        order by symbol
        """,
    )
    return [seconds for (seconds,) in rows]


def test_where_an_item_ends_it_is_noted_when_it_is_due_next(db: Connection) -> None:
    both = asset("A", every=300), asset("B", every=900)
    enter(db, *both, feed=Feed.SNAPSHOT)
    line = wanted(*both, feed=Feed.SNAPSHOT)
    finish(db, queue.claim(db, line, lease_seconds=60, most=250))
    assert next_seconds(db) == [pytest.approx(300, abs=1), pytest.approx(900, abs=1)]
    assert query(db, "select distinct silent from asset_sync.queue") == [(0,)]


@pytest.mark.parametrize(("news_in", "due_in"), [(1000, 1000), (100, 300), (-5, 300)])
def test_an_item_is_due_after_its_frequency_and_not_before_news_can_come(
    db: Connection, clock: ShiftingClock, news_in: float, due_in: float
) -> None:
    one = asset("A", every=300)
    enter(db, one)
    finish_later(db, news_in)
    assert next_seconds(db) == [pytest.approx(due_in, abs=1)]
    assert query(db, "select silent from asset_sync.queue") == [(2,)]
    assert queue.next_ready_seconds(db, wanted(one), 2000) == pytest.approx(due_in, abs=1)
    assert queue.due_within(db, wanted(one), due_in - 5, cycle_seconds=1) == 0
    assert queue.due_within(db, wanted(one), due_in + 5, cycle_seconds=1) == 1
    clock.sleep(due_in - 5)
    assert queue.preview(db, wanted(one), SETTINGS, 9, cycle_seconds=None) == ()
    assert enter(db, one) == (0, 0)
    clock.sleep(6)
    [upcoming] = queue.preview(db, wanted(one), SETTINGS, 9, cycle_seconds=None)
    assert enter(db, one) == (1, 0)
    [(late,)] = query(db, "select extract(epoch from now() - due_at)::float8 from asset_sync.queue")
    assert late == pytest.approx(1, abs=1), "it is late since news can come, not since before"
    assert upcoming.due_at == query(db, "select due_at from asset_sync.queue")[0][0]


def test_no_run_takes_an_item_before_news_of_it_can_have_come(
    db: Connection, clock: ShiftingClock
) -> None:
    one = asset("A", every=300)
    enter(db, one)
    finish_later(db, 1000)
    clock.sleep(500)
    assert enter(db, one, cycle_seconds=3600 * 24 * 365) == (0, 0)
    clock.sleep(501)
    assert enter(db, one, cycle_seconds=1) == (1, 0)


def test_an_asset_that_another_feed_serves_is_not_due_by_this_one(db: Connection) -> None:
    enter(db, asset("A"))
    finish(db, claim(db))
    query(db, "update asset_sync.queue set state = 'waiting'")
    with transaction(db) as cursor:
        queue.skip(cursor, claim(db), "no snapshots")
    assert next_seconds(db) == [None]


def test_an_asset_without_room_in_the_queue_is_due_now(db: Connection) -> None:
    enter(db, asset("A"), asset("B"), settings=replace(SETTINGS, max_size=1))
    assert query(db, "select max(next_at) <= now() from asset_sync.queue") == [(True,)]


def test_an_asset_is_enqueued_when_it_was_predicted_to_be_ready(
    db: Connection, clock: ShiftingClock
) -> None:
    enter(db, asset("A"))
    serve_all(db)
    seconds = queue.next_ready_seconds(db, wanted(asset("A")), 600)
    assert seconds is not None
    clock.sleep(seconds)
    assert enter(db, asset("A"))[0] == 1


def test_a_released_item_is_ready_after_its_delay_and_a_failed_one_is_left_to_the_next_run(
    db: Connection,
) -> None:
    enter(db, asset("A"))
    with transaction(db) as cursor:
        queue.release(cursor, [claim_one(db)], after_seconds=30)
    own = wanted(asset("A"))
    assert queue.next_ready_seconds(db, own, 60) == pytest.approx(30, abs=0.5)
    assert queue.next_ready_seconds(db, own, 20) is None
    assert queue.next_ready_seconds(db, wanted(asset("B")), 60) is None
    query(db, "update asset_sync.queue set attempts = 1")
    assert queue.next_ready_seconds(db, own, 60) is None


def test_due_within_counts_the_calls_that_will_be_needed(
    db: Connection, clock: ShiftingClock
) -> None:
    new, fresh, held = asset("NEW"), asset("FRESH", every=300), asset("HELD")
    enter(db, fresh)
    serve_all(db)
    enter(db, held)
    claim_one(db)
    everything = wanted(new, fresh, held)
    assert queue.due_within(db, everything, 200, cycle_seconds=1) == 2
    assert queue.due_within(db, everything, 300, cycle_seconds=1) == 3


def test_due_within_counts_one_call_for_all_snapshots_that_it_serves(db: Connection) -> None:
    many = [asset(f"A{number}") for number in range(251)]
    assert queue.due_within(db, wanted(*many[:250], feed=Feed.SNAPSHOT), 0, cycle_seconds=300) == 1
    assert queue.due_within(db, wanted(*many, feed=Feed.SNAPSHOT), 0, cycle_seconds=300) == 2
    both = wanted(*many[:3]) + wanted(*many, feed=Feed.SNAPSHOT)
    assert queue.due_within(db, both, 0, cycle_seconds=300) == 5


def test_due_within_does_not_count_dead_items(db: Connection) -> None:
    enter(db, asset("A"))
    fail(db, claim_one(db), settings=replace(SETTINGS, max_attempts=1))
    assert queue.due_within(db, wanted(asset("A")), 10**6, cycle_seconds=300) == 0


def test_waiting_says_whether_something_can_be_claimed_now(
    db: Connection, clock: ShiftingClock
) -> None:
    assert not queue.can_claim(db, in_line(db, Lane.QUEUE))
    enter(db, asset("A"))
    assert queue.can_claim(db, in_line(db, Lane.QUEUE))
    assert not queue.can_claim(db, in_line(db, Lane.PRIORITY))
    with transaction(db) as cursor:
        queue.release(cursor, [claim_one(db)], after_seconds=30)
    assert not queue.can_claim(db, in_line(db, Lane.QUEUE))
    clock.sleep(30)
    assert queue.can_claim(db, in_line(db, Lane.QUEUE))


def test_a_preview_changes_nothing_and_matches_the_later_claims(
    db: Connection, clock: ShiftingClock
) -> None:
    chance = random.Random(7)
    levels = itertools.cycle([LOW, HIGH, MEDIUM])
    assets = [asset(f"A{number:02}", next(levels), every=300) for number in range(30)]
    for one in chance.sample(assets, 20):  # some items were synced, some wait, some are new
        enter(db, one)
        clock.sleep(chance.uniform(0, 200))
        if chance.random() < 0.6:
            serve_all(db)
    before = rows(db)
    seen = queue.preview(db, wanted(*assets), SETTINGS, 100, cycle_seconds=300)
    assert rows(db) == before
    enter(db, *assets, cycle_seconds=300)
    assert [one.symbol for one in seen] == serve_all(db)
    assert len(seen) > 10


def test_a_preview_before_the_first_run_matches_the_first_run(db: Connection) -> None:
    assets = [asset("C2", CRITICAL, position=2), asset("C1", CRITICAL, position=1)]
    seen = queue.preview(db, wanted(*assets), SETTINGS, 10, cycle_seconds=300)
    assert rows(db) == []
    enter(db, *assets)
    assert [one.symbol for one in seen] == ["C1", "C2"] == serve_all(db, Lane.PRIORITY)


def test_a_preview_of_a_full_queue_begins_with_the_items_that_fit(
    db: Connection, clock: ShiftingClock
) -> None:
    small = replace(SETTINGS, max_size=1)
    none = replace(SETTINGS, max_size=0)
    enter(db, asset("OLD", LOW), settings=none)
    clock.sleep(600)  # due longer, but by less than the two allowances of a low item
    enter(db, asset("YOUNG", HIGH), settings=none)
    assets = [asset("OLD", LOW), asset("YOUNG", HIGH)]
    [seen] = queue.preview(db, wanted(*assets), small, 1, cycle_seconds=300)
    enter(db, *assets, settings=small)
    assert [seen.symbol] == serve_all(db)


def test_a_preview_shows_the_delay_of_an_item_that_failed(db: Connection) -> None:
    enter(db, asset("A"))
    fail(db, claim_one(db))
    [seen] = queue.preview(db, wanted(asset("A")), SETTINGS, 10, cycle_seconds=300)
    assert seen.wait_seconds == pytest.approx(60, abs=0.5)


# --- views ------------------------------------------------------------------------------------


def test_the_counts_by_level_show_waiting_leased_and_dead_items(
    db: Connection, clock: ShiftingClock
) -> None:
    enter(db, asset("A", HIGH), asset("B", LOW))
    clock.sleep(100)
    enter(db, asset("C", HIGH), asset("D", CRITICAL, position=1))
    claim_one(db, Lane.PRIORITY)
    fail(db, claim_one(db), settings=replace(SETTINGS, max_attempts=1))  # A, now low
    levels = queue.levels(db, names(db))
    assert [(one.level, one.waiting, one.leased, one.dead) for one in levels] == [
        (CRITICAL, 0, 1, 0),
        (HIGH, 1, 0, 0),
        (MEDIUM, 0, 0, 0),
        (LOW, 1, 0, 1),
    ]
    ages = [one.oldest_seconds for one in levels]
    assert ages == [
        pytest.approx(0, abs=0.5),
        pytest.approx(0, abs=0.5),
        None,
        pytest.approx(100, abs=0.5),
    ]


def test_the_line_shows_an_asset_whose_row_is_of_a_type_that_this_version_does_not_know(
    db: Connection,
) -> None:
    enter(db, asset("A"))
    query(db, "update asset_sync.queue set asset_type = 'index'")
    [upcoming] = queue.line(db, [asset("A")], 10)
    assert (upcoming.symbol, upcoming.asset_type) == ("A", AssetType.FOREX)


def test_the_line_lists_items_in_the_order_of_claims_critical_first(db: Connection) -> None:
    enter(db, asset("A", LOW), asset("B", HIGH), asset("C", CRITICAL, position=1))
    assert [one.symbol for one in queue.line(db, assets_of(db), 10)] == ["C", "B", "A"]
    assert [one.symbol for one in queue.line(db, assets_of(db), 2)] == ["C", "B"]


def test_dead_items_are_listed_with_the_latest_first(db: Connection, clock: ShiftingClock) -> None:
    for symbol in "AB":
        enter(db, asset(symbol))
        fail(db, claim_one(db), settings=replace(SETTINGS, max_attempts=1))
        clock.sleep(10)
    assert [one.symbol for one in queue.dead(db, names(db), 10)] == ["B", "A"]
    assert [one.symbol for one in queue.dead(db, names(db), 1)] == ["B"]


def test_the_last_success_is_the_newest_of_any_feed(db: Connection, clock: ShiftingClock) -> None:
    enter(db, asset("A"), feed=Feed.BARS)
    serve_all(db)
    clock.sleep(50)
    enter(db, asset("A"), asset("NEVER"), feed=Feed.SNAPSHOT)
    finish(db, claim(db, most=1))
    [(newest,)] = query(db, "select max(last_success_at) from asset_sync.queue")
    assert queue.last_success(db, ["A", "NEVER", "UNKNOWN"]) == {"A": newest}


@pytest.mark.parametrize(
    "symbol",
    [
        "O'HARA",
        "50%",
        "%s",
        "%(symbols)s",
        "A;drop table asset_sync.queue;--",
        '"',
        "\\",
        "{}",
        "金",
    ],
)
def test_a_hostile_symbol_is_treated_as_plain_text(db: Connection, symbol: str) -> None:
    enter(db, asset(symbol))
    assert [one.symbol for one in queue.line(db, assets_of(db), 10)] == [symbol]
    item = claim_one(db)
    assert (item.symbol, item.ticker, item.name) == (symbol, f"C:{symbol}", symbol)
    fail(db, item, error=symbol, settings=replace(SETTINGS, max_attempts=1))
    assert queue.dead(db, names(db), 1) == (queue.Dead(symbol, Feed.BARS, symbol),)
