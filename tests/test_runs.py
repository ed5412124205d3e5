"""The history: what each run did, and what the key may not do. Old entries are deleted."""

import os
import socket
from collections.abc import Callable

import pytest
from conftest import MakeSettings, ShiftingClock, asset

from asset_sync import queue
from asset_sync.database import Connection, query, transaction
from asset_sync.demo.server import StandIn
from asset_sync.model import Feed, Lane
from asset_sync.settings import HistorySettings, QueueSettings
from asset_sync.store import entitlements, runs
from asset_sync.store.entitlements import Missing
from asset_sync.store.runs import Call, Run
from asset_sync.sync import loop
from asset_sync.sync.progress import Calling, Progress

KEY, OTHER_KEY = "0123456789ab", "ba9876543210"
NOTHING_DENIED = Missing(today=False, past=False, snapshot=False, snapshot_symbols=frozenset())


def record(db: Connection, run_id: int, call: Call) -> None:
    with transaction(db) as cursor:
        runs.record(cursor, run_id, call)


def deny(
    db: Connection,
    capability: str,
    *symbols: str,
    key: str = KEY,
    plan: str = "starter",
) -> None:
    with transaction(db) as cursor:
        entitlements.note_missing(cursor, key, plan, capability, symbols)


def end(db: Connection, run_id: int, reason: str = "done") -> None:
    runs.end(db, run_id, reason, updated=2, failed=1, waited_seconds=1.5)


def only_run(db: Connection) -> Run:
    [run] = runs.last(db, 5)
    return run


# --- runs and calls -----------------------------------------------------------------------------


def test_a_run_is_in_the_history_from_its_start(db: Connection) -> None:
    run_id = runs.start(db, "priority")

    run = only_run(db)
    assert (run.id, run.command, run.host) == (run_id, "priority", socket.gethostname())
    assert (run.seconds, run.reason_ended, run.updated, run.api_calls) == (None, None, 0, 0)
    assert query(db, "select pid from asset_sync.runs") == [(os.getpid(),)]


def test_a_run_that_ended_has_its_figures_and_its_reason(db: Connection) -> None:
    run_id = runs.start(db, "queue")
    record(db, run_id, Call(Feed.BARS, ["EURUSD"], "ok", 0.25, bars_written=100))
    record(db, run_id, Call(Feed.BARS, ["GBPUSD"], "ok", 0.25, bars_written=20))
    record(db, run_id, Call(Feed.BARS, ["NOSUCH"], "ticker_unknown", 0.25, error="no such ticker"))

    end(db, run_id)

    run = only_run(db)
    assert run.seconds is not None
    assert run.seconds >= 0
    assert (run.reason_ended, run.updated, run.failed) == ("done", 2, 1)
    assert (run.api_calls, run.bars_written, run.waited_seconds) == (3, 120, 1.5)


def test_a_run_without_calls_has_figures_of_zero(db: Connection) -> None:
    end(db, runs.start(db, "queue"), "nothing_due")

    assert (only_run(db).api_calls, only_run(db).bars_written) == (0, 0)


def test_a_run_counts_only_its_own_calls(db: Connection) -> None:
    other, mine = runs.start(db, "priority"), runs.start(db, "queue")
    record(db, other, Call(Feed.BARS, ["EURUSD"], "ok", 0.1, bars_written=7))
    record(db, mine, Call(Feed.BARS, ["GBPUSD"], "ok", 0.1, bars_written=5))

    end(db, mine)

    latest, earlier = runs.last(db, 5)
    assert (latest.api_calls, latest.bars_written) == (1, 5)
    assert (earlier.api_calls, earlier.bars_written, earlier.reason_ended) == (1, 7, None)


def test_a_run_at_work_shows_what_it_has_done_so_far(
    db: Connection, api: StandIn, clock: ShiftingClock, make_settings: MakeSettings
) -> None:
    seen = []

    def look(progress: Progress) -> None:
        if isinstance(progress, Calling):
            run = only_run(db)
            seen.append((run.reason_ended, run.updated, run.api_calls))

    loop.run(db, make_settings(api), Lane.PRIORITY, clock=clock, tell=look)

    assert seen == [(None, 0, 0), (None, 1, 1), (None, 2, 2)]
    assert (only_run(db).updated, only_run(db).api_calls) == (3, 3)


def test_a_run_at_work_counts_its_failures_too(db: Connection) -> None:
    wanted = [queue.Wanted(asset(symbol), Feed.BARS) for symbol in ("BAD", "GOOD", "OTHER")]
    queue.enqueue(db, wanted, QueueSettings())
    query(db, "update asset_sync.queue set failed_at = now() - interval '1 hour'")
    run_id = runs.start(db, "queue")
    for symbol in ("BAD", "GOOD"):
        record(db, run_id, Call(Feed.BARS, [symbol], "whatever", 0.1))
    query(
        db,
        """
        update asset_sync.queue set failed_at = clock_timestamp() where symbol in ('BAD', 'OTHER');
        update asset_sync.queue
        set failed_at = now(), last_success_at = now() + interval '1 s'
        where symbol = 'GOOD'
        """,
    )

    run = only_run(db)
    assert (run.updated, run.failed) == (1, 1), "what another run did is not counted"


def test_a_call_is_recorded_with_all_its_figures(db: Connection) -> None:
    run_id = runs.start(db, "queue")

    record(db, run_id, Call(Feed.SNAPSHOT, ["A", "B"], "unavailable", 1.2344, 0, "no answer"))

    assert query(
        db,
        """
        select run_id, feed, symbols, outcome, duration_ms, bars_written, error
        from asset_sync.calls
        """,
    ) == [(run_id, "snapshot", ["A", "B"], "unavailable", 1234, 0, "no answer")]


def test_a_call_is_recorded_only_together_with_its_data(db: Connection) -> None:
    run_id = runs.start(db, "queue")

    def cut_off() -> None:
        with transaction(db) as cursor:
            runs.record(cursor, run_id, Call(Feed.BARS, ["EURUSD"], "ok", 0.1))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut_off()

    assert query(db, "select from asset_sync.calls") == []


def test_the_last_runs_are_listed_latest_first_up_to_the_limit(db: Connection) -> None:
    ids = [runs.start(db, "queue") for _ in range(4)]

    assert [run.id for run in runs.last(db, 3)] == ids[:0:-1]


# --- upkeep -------------------------------------------------------------------------------------


def test_runs_are_kept_90_days_and_calls_30(db: Connection) -> None:
    query(
        db,
        """
        insert into asset_sync.runs (command, host, pid, started_at)
        select 'queue', 'h', age, now() - make_interval(days => age)
        from unnest('{89, 91}'::int[]) as age;
        insert into asset_sync.calls (run_id, feed, symbols, outcome, duration_ms, at)
        select (select id from asset_sync.runs where pid = 89), 'bars', '{A}', 'ok', age,
          now() - make_interval(days => age)
        from unnest('{29, 31}'::int[]) as age
        """,
    )

    runs.prune(db, HistorySettings())

    assert query(db, "select pid from asset_sync.runs") == [(89,)]
    assert query(db, "select duration_ms from asset_sync.calls") == [(29,)]


def test_the_calls_of_a_deleted_run_are_deleted_too(db: Connection) -> None:
    query(
        db,
        """
        insert into asset_sync.runs (command, host, pid, started_at)
        values ('queue', 'h', 1, now() - interval '91 days');
        insert into asset_sync.calls (run_id, feed, symbols, outcome, duration_ms)
        select id, 'bars', '{A}', 'ok', 1 from asset_sync.runs
        """,
    )

    runs.prune(db, HistorySettings())

    assert query(db, "select from asset_sync.calls") == []


def test_changes_are_kept_as_long_as_the_settings_say(db: Connection) -> None:
    fill_changes(db, "days => n", of="'{9, 11}'::int[]")
    query(db, "update asset_sync.limiter set changes_from = now() - interval '20 days'")

    runs.prune(db, HistorySettings(keep_revisions_days=10))

    assert kept_changes(db) == [(9, 9)]
    assert query(
        db, "select extract(epoch from now() - changes_from)::int / 60 from asset_sync.limiter"
    ) == [(10 * 24 * 60,)]


def test_the_start_of_the_kept_changes_moves_once_an_hour(db: Connection) -> None:
    fill_changes(db, "mins => n", of="'{1445}'::int[]")
    query(db, "update asset_sync.limiter set changes_from = now() - interval '1470 minutes'")
    before = query(db, "select changes_from, ctid::text from asset_sync.limiter")

    runs.prune(db, HistorySettings(keep_revisions_days=1))

    assert query(db, "select changes_from, ctid::text from asset_sync.limiter") == before
    assert kept_changes(db) == [(1445, 1445)]


def test_whoever_keeps_no_changes_has_none_and_keeps_them_again_from_then_on(
    db: Connection,
) -> None:
    fill_changes(db, "mins => n", of="'{1}'::int[]")

    runs.prune(db, HistorySettings(keep_revisions_days=0))
    assert kept_changes(db) == []
    assert query(db, "select changes_from = 'infinity' from asset_sync.limiter") == [(True,)]

    runs.prune(db, HistorySettings())
    assert query(
        db, "select changes_from between now() - interval '1 min' and now() from asset_sync.limiter"
    ) == [(True,)]


def test_long_neglected_changes_are_pruned_in_batches_the_oldest_first(db: Connection) -> None:
    fill_changes(
        db, "days => 100, mins => -n", of="(select array_agg(n) from generate_series(1, 5003) n)"
    )
    query(db, "update asset_sync.limiter set changes_from = 'epoch'")

    runs.prune(db, HistorySettings())
    assert kept_changes(db) == [(n, n) for n in (5001, 5002, 5003)]

    runs.prune(db, HistorySettings())
    assert kept_changes(db) == []


def fill_changes(db: Connection, ago: str, *, of: str) -> None:
    """Add a revision and an arrival for each of the numbers, with the number as trades and date."""
    query(
        db,
        f"""
        insert into asset_sync.revisions (symbol, ts, at, trades)
        select 'A', 'epoch', now() - make_interval({ago}), n from unnest({of}) n;
        insert into asset_sync.arrivals (symbol, at, first_ts, last_ts)
        select 'A', now() - make_interval({ago}), to_timestamp(n), to_timestamp(n)
        from unnest({of}) n
        """,
    )


def kept_changes(db: Connection) -> list[tuple[object, ...]]:
    return query(
        db,
        """
        select r.trades, a.n from asset_sync.revisions r full join (
          select extract(epoch from first_ts)::int as n from asset_sync.arrivals
        ) a on a.n = r.trades order by 1
        """,
    )


def test_a_long_history_is_pruned_in_batches_from_the_oldest_on(db: Connection) -> None:
    query(
        db,
        """
        insert into asset_sync.calls (feed, symbols, outcome, duration_ms, at)
        select 'bars', '{A}', 'ok', n, now() - interval '40 days' + make_interval(secs => n)
        from generate_series(1, 5003) as n;
        insert into asset_sync.runs (command, host, pid, started_at)
        select 'queue', 'h', n, now() - interval '100 days' + make_interval(secs => n)
        from generate_series(1, 1002) as n
        """,
    )

    runs.prune(db, HistorySettings())
    assert query(db, "select min(duration_ms), count(*) from asset_sync.calls") == [(5001, 3)]
    assert query(db, "select min(pid), count(*) from asset_sync.runs") == [(1001, 2)]

    runs.prune(db, HistorySettings())
    assert query(db, "select from asset_sync.calls union all select from asset_sync.runs") == []


# --- what the key may not do --------------------------------------------------------------------


def test_a_key_that_was_never_refused_may_do_everything(db: Connection) -> None:
    assert entitlements.missing(db, KEY, "starter") == NOTHING_DENIED


@pytest.mark.parametrize(
    ("refuse", "known"),
    [
        (lambda db: deny(db, "today"), NOTHING_DENIED._replace(today=True)),
        (lambda db: deny(db, "past"), NOTHING_DENIED._replace(past=True)),
        (lambda db: deny(db, "snapshot"), NOTHING_DENIED._replace(snapshot=True)),
        (
            lambda db: deny(db, "snapshot", "XAUUSD", "EURUSD"),
            NOTHING_DENIED._replace(snapshot_symbols=frozenset({"XAUUSD", "EURUSD"})),
        ),
    ],
)
def test_a_refusal_of_the_key_is_remembered(
    db: Connection, refuse: Callable[[Connection], None], known: Missing
) -> None:
    refuse(db)

    assert entitlements.missing(db, KEY, "starter") == known


def test_a_refusal_holds_only_for_that_key_and_that_plan(db: Connection) -> None:
    deny(db, "snapshot")
    deny(db, "snapshot", "XAUUSD")

    assert entitlements.missing(db, OTHER_KEY, "starter") == NOTHING_DENIED
    assert entitlements.missing(db, KEY, "advanced") == NOTHING_DENIED


def age_denials(db: Connection, interval: str) -> None:
    query(db, "update asset_sync.entitlements set noted_at = noted_at - %s::interval", (interval,))


def test_a_refusal_is_forgotten_after_a_day(db: Connection) -> None:
    deny(db, "today")
    deny(db, "snapshot", "XAUUSD")

    age_denials(db, "23 hours 59 minutes")
    assert entitlements.missing(db, KEY, "starter").today

    age_denials(db, "1 minute")
    assert entitlements.missing(db, KEY, "starter") == NOTHING_DENIED


def test_a_repeated_refusal_is_remembered_for_another_day(db: Connection) -> None:
    deny(db, "today")
    age_denials(db, "25 hours")

    deny(db, "today")

    assert entitlements.missing(db, KEY, "starter").today
