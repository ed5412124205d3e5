"""`health` reports everything that is wrong, and nothing that is well."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
from commandline import Told
from conftest import MakeSettings, ShiftingClock, in_line
from machine import Machine

from asset_sync import queue
from asset_sync.database import Connection, query, transaction
from asset_sync.demo.server import StandIn
from asset_sync.model import Feed, Lane
from asset_sync.ops import health
from asset_sync.ops.health import Health, Verdict
from asset_sync.secret import Secret
from asset_sync.settings import SHIPPED_FILE, HealthSettings, Settings, load
from asset_sync.spans import Span
from asset_sync.store import ledger, runs
from asset_sync.sync import loop
from asset_sync.sync.progress import Progress, Synced


@pytest.fixture
def settings() -> Settings:
    return load(SHIPPED_FILE, {})


@pytest.fixture
def well(db: Connection, settings: Settings) -> Connection:
    """A database in which both jobs have just run and every asset is fresh."""
    for lane in Lane:
        end(db, lane, updated=3)
    wanted = [queue.Wanted(asset, Feed.BARS) for asset in settings.assets]
    queue.enqueue(db, wanted, settings.queue)
    for lane in Lane:
        while items := queue.claim(db, in_line(db, lane), lease_seconds=60, most=1):
            with transaction(db) as cursor:
                queue.finish(cursor, items)
    return db


def end(db: Connection, lane: Lane, *, updated: int, failed: int = 0, waited: float = 0) -> int:
    run_id = runs.start(db, lane.value)
    runs.end(db, run_id, "done", updated=updated, failed=failed, waited_seconds=waited)
    return run_id


def verdicts(found: Health) -> dict[str, Verdict]:
    return {one.name: one.verdict for one in found.checks if one.verdict is not Verdict.HEALTHY}


def test_if_all_is_well_every_check_is_ok(well: Connection, settings: Settings) -> None:
    found = health.examine(well, settings)

    assert verdicts(found) == {}
    assert found.status is Verdict.HEALTHY
    assert [(job.command, job.overdue) for job in found.jobs] == [
        ("priority", False),
        ("queue", False),
    ]
    assert found.last_priority_update is not None
    assert found.api_calls_remaining == 5


def test_runs_of_the_real_loop_are_healthy(
    db: Connection, api: StandIn, clock: ShiftingClock, make_settings: MakeSettings
) -> None:
    settings = make_settings(api)
    for lane in Lane:
        loop.run(db, settings, lane, clock=clock)

    assert verdicts(health.examine(db, as_traded(settings))) == {}


def as_traded(settings: Settings) -> Settings:
    """Let every asset trade in its market's hours, whose bars the stand-in replays."""
    assets = tuple(replace(asset, hours=None) for asset in settings.assets)
    return replace(settings, assets=assets)


def test_before_the_first_priority_run_the_verdict_is_unhealthy(
    db: Connection, settings: Settings
) -> None:
    found = health.examine(db, settings)

    assert found.status is Verdict.UNHEALTHY
    assert verdicts(found)["batch.priority.seconds_since_run"] is Verdict.UNHEALTHY
    assert "is cron set up?" in found.checks[0].about


@pytest.mark.parametrize(
    ("seconds", "expected"), [(599, Verdict.HEALTHY), (601, Verdict.UNHEALTHY)]
)
def test_no_priority_run_for_two_intervals_is_unhealthy(
    well: Connection, settings: Settings, seconds: int, expected: Verdict
) -> None:
    query(
        well,
        "update asset_sync.runs set started_at = now() - make_interval(secs => %s)",
        (seconds,),
    )

    found = health.examine(well, settings)

    assert verdicts(found).get("batch.priority.seconds_since_run", Verdict.HEALTHY) is expected
    assert found.jobs[0].overdue is (expected is Verdict.UNHEALTHY)


def test_switched_off_priority_runs_are_not_missed(well: Connection, settings: Settings) -> None:
    query(well, "delete from asset_sync.runs where command = 'priority'")
    off = replace(settings, batch=replace(settings.batch, priority_assets_enabled=False))

    found = health.examine(well, off)

    assert verdicts(found) == {}
    assert [job.command for job in found.jobs] == ["queue"]


@pytest.mark.parametrize(
    ("failed", "expected"),
    [(0, None), (1, Verdict.DEGRADED)],
    ids=["100 %", "6 of 7"],
)
def test_too_many_failures_of_priority_assets_are_reported(
    well: Connection, settings: Settings, failed: int, expected: Verdict | None
) -> None:
    end(well, Lane.PRIORITY, updated=3, failed=failed)

    assert verdicts(health.examine(well, settings)).get("batch.priority.success_rate") is expected


def test_only_failures_are_unhealthy(well: Connection, settings: Settings) -> None:
    query(well, "update asset_sync.runs set updated = 0, failed = 3 where command = 'priority'")

    assert health.examine(well, settings).status is Verdict.UNHEALTHY


def test_slow_priority_runs_are_reported(well: Connection, settings: Settings) -> None:
    query(
        well,
        """
        update asset_sync.runs set ended_at = started_at + interval '31 s'
        where command = 'priority'
        """,
    )

    assert verdicts(health.examine(well, settings)) == {
        "batch.priority.latency_ms": Verdict.DEGRADED
    }


def test_waiting_for_slots_does_not_make_a_priority_run_slow(
    well: Connection, settings: Settings
) -> None:
    query(
        well,
        """
        update asset_sync.runs set ended_at = started_at + interval '61 s', waited_seconds = 55
        where command = 'priority'
        """,
    )

    assert verdicts(health.examine(well, settings)) == {}


def test_waits_of_priority_runs_are_reported_and_those_of_queue_runs_are_not(
    well: Connection, settings: Settings
) -> None:
    for _ in range(11):
        end(well, Lane.QUEUE, updated=1, waited=50)
    assert verdicts(health.examine(well, settings)) == {}

    for _ in range(11):
        end(well, Lane.PRIORITY, updated=3, waited=2)

    assert verdicts(health.examine(well, settings)) == {"api.rate_limit_waits": Verdict.DEGRADED}


def test_a_full_queue_is_reported(well: Connection, settings: Settings) -> None:
    query(well, "update asset_sync.queue set state = 'waiting'")
    small = replace(settings, health=HealthSettings(queue_size=6))

    assert verdicts(health.examine(well, small)) == {"queue.size": Verdict.DEGRADED}


def test_a_dead_item_is_reported(well: Connection, settings: Settings) -> None:
    query(well, "update asset_sync.queue set state = 'dead' where symbol = 'GBPUSD'")

    assert verdicts(health.examine(well, settings)) == {"queue.dead": Verdict.DEGRADED}


@pytest.mark.parametrize(
    ("symbol", "expected"), [("GBPUSD", Verdict.DEGRADED), ("XAUUSD", Verdict.UNHEALTHY)]
)
def test_an_asset_stale_beyond_three_times_its_frequency_is_named(
    well: Connection, settings: Settings, symbol: str, expected: Verdict
) -> None:
    query(
        well,
        """
        update asset_sync.queue set last_success_at = now() - interval '901 s',
          not_before = now() - interval '901 s'
        where symbol = %s
        """,
        (symbol,),
    )

    found = health.examine(well, settings)

    assert verdicts(found) == {"assets.stale": expected}
    [about] = [check.about for check in found.checks if check.name == "assets.stale"]
    assert symbol in about


def test_an_asset_whose_market_is_closed_is_not_stale(well: Connection, settings: Settings) -> None:
    query(
        well,
        """
        update asset_sync.queue set last_success_at = now() - interval '2 days',
          not_before = now() + interval '1 hour', next_at = now() + interval '1 hour'
        """,
    )

    assert verdicts(health.examine(well, settings)) == {}


def test_events_older_than_an_hour_do_not_count(well: Connection, settings: Settings) -> None:
    failed = end(well, Lane.PRIORITY, updated=0, failed=9, waited=9)
    query(
        well,
        "update asset_sync.runs set started_at = now() - interval '61 min' where id = %s",
        (failed,),
    )

    assert verdicts(health.examine(well, settings)) == {}


@pytest.mark.parametrize("lane", Lane)
def test_a_refused_key_is_reported_after_the_first_run_that_it_stops(
    db: Connection, api: StandIn, clock: ShiftingClock, make_settings: MakeSettings, lane: Lane
) -> None:
    settings = make_settings(api)
    for one in Lane:
        loop.run(db, settings, one, clock=clock)
    assert verdicts(health.examine(db, as_traded(settings))) == {}

    clock.sleep(301)
    loop.run(db, with_key(settings, "revoked"), lane, clock=clock)

    found = health.examine(db, settings)
    assert verdicts(found)["api.refused"] is Verdict.UNHEALTHY
    [about] = [check.about for check in found.checks if check.name == "api.refused"]
    assert about.startswith(f"the API refuses `sync {lane.value}`, for the key")

    clock.sleep(61)
    loop.run(db, settings, lane, clock=clock)
    assert "api.refused" not in verdicts(health.examine(db, settings))


def test_a_key_counts_as_accepted_again_after_the_first_answer_to_any_run(
    db: Connection, api: StandIn, clock: ShiftingClock, make_settings: MakeSettings
) -> None:
    settings = make_settings(api)
    loop.run(db, with_key(settings, "revoked"), Lane.PRIORITY, clock=clock)
    assert "api.refused" in verdicts(health.examine(db, settings))

    def look(progress: Progress) -> None:
        if isinstance(progress, Synced):
            seen.append("api.refused" in verdicts(health.examine(db, settings)))

    seen: list[bool] = []
    loop.run(db, settings, Lane.QUEUE, clock=clock, limit=1, tell=look)

    assert seen == [False], "while the queue's run is still at work"


def with_key(settings: Settings, key: str) -> Settings:
    return replace(settings, provider=replace(settings.provider, api_key=Secret(key)))


def test_priority_assets_that_got_no_answer_have_not_succeeded(
    db: Connection, clock: ShiftingClock, make_settings: MakeSettings
) -> None:
    """Nothing was sent and no call is recorded, but the run ended without a refresh."""
    with StandIn("free", monotonic=clock.monotonic) as api:
        settings = make_settings(api)
    loop.run(db, settings, Lane.PRIORITY, clock=clock, max_runtime_seconds=5)

    [rate] = [
        check
        for check in health.examine(db, settings).checks
        if check.name == "batch.priority.success_rate"
    ]
    assert (rate.value, rate.verdict) == (0, Verdict.UNHEALTHY)
    assert rate.about == (
        "0 of 1 refreshes of priority assets succeeded in the last hour; with an error: BTCUSD,"
        " EURUSD, XAUUSD"
    )
    assert rate.symbols == ("BTCUSD", "EURUSD", "XAUUSD")


def test_a_call_that_succeeds_on_retry_counts_as_a_success(
    well: Connection, settings: Settings
) -> None:
    run_id = end(well, Lane.PRIORITY, updated=1)
    for outcome in ("unavailable", "ok"):
        with transaction(well) as cursor:
            runs.record(cursor, run_id, runs.Call(Feed.BARS, ["XAUUSD"], outcome, 0.1))

    record = runs.record_of(well, "priority")

    assert (record.tried, record.updated) == (4, 4)


def test_a_run_at_work_does_not_count_as_failed(well: Connection, settings: Settings) -> None:
    run_id = runs.start(well, "priority")
    with transaction(well) as cursor:
        runs.record(cursor, run_id, runs.Call(Feed.BARS, ["XAUUSD"], "unavailable", 0.1))

    assert verdicts(health.examine(well, settings)) == {}


# --- output and exit code ------------------------------------------------------------------------


@pytest.fixture
def told(url: str, tmp_path: Path) -> Callable[..., Told]:
    """Run `health` on the command line."""

    return partial(Machine(tmp_path, url).tell, "health")


def test_the_exit_code_follows_the_verdict(well: Connection, told: Callable[..., Told]) -> None:
    codes = [told().code]
    query(well, "update asset_sync.queue set state = 'dead' where symbol = 'GBPUSD'")
    codes.append(told().code)
    query(well, "delete from asset_sync.runs")
    codes.append(told().code)

    assert codes == [0, 1, 2]


def test_quiet_prints_only_the_checks_that_are_not_ok(
    well: Connection, told: Callable[..., Told]
) -> None:
    assert told("-q").out == ""

    query(well, "update asset_sync.queue set state = 'dead' where symbol = 'GBPUSD'")

    assert "queue.dead" in told("-q").out


def test_health_reports_the_same_queue_figures_as_queue_status(
    well: Connection, url: str, tmp_path: Path, told: Callable[..., Told]
) -> None:
    query(well, "update asset_sync.queue set state = 'waiting' where symbol <> 'GBPUSD'")
    query(well, "update asset_sync.queue set state = 'dead' where symbol = 'GBPUSD'")

    of_health = json.loads(told("--json").out)["queue"]
    status = json.loads(Machine(tmp_path, url).tell("queue", "status", "--json").out)

    assert list(of_health) == [
        *("total_items", "by_priority", "oldest_item_age_seconds", "leased", "dead")
    ]
    for key in of_health.keys() - {"oldest_item_age_seconds"}:
        assert of_health[key] == status[key]


def test_a_database_that_is_down_is_unhealthy_in_text(told: Callable[..., Told]) -> None:
    answer = told(DATABASE_URL="postgresql://me:s3same@127.0.0.1:1/x")

    assert answer.code == 2
    assert answer.out.startswith("unhealthy\n")
    assert 'database: The database "x" at 127.0.0.1:1 is not reachable' in answer.out
    assert "s3same" not in answer.out + answer.err


def test_a_database_that_is_down_is_unhealthy_in_json(told: Callable[..., Told]) -> None:
    answer = told("--json", DATABASE_URL="postgresql://me:s3same@127.0.0.1:1/x")

    assert answer.code == 2
    found = json.loads(answer.out)
    assert (found["status"], found["jobs"], found["queue"]) == ("unhealthy", {}, None)
    [check] = found["checks"]
    assert (check["name"], check["verdict"]) == ("database", "unhealthy")
    assert "s3same" not in answer.out


def test_a_database_that_was_not_initialised_is_unhealthy_and_the_cure_is_named(
    empty_url: str, told: Callable[..., Told]
) -> None:
    answer = told("--json", DATABASE_URL=empty_url)

    assert answer.code == 2
    assert "asset-sync db init" in json.loads(answer.out)["checks"][0]["about"]


# --- holes that do not close -------------------------------------------------------------------


@pytest.fixture
def unasked(well: Connection) -> Connection:
    """A database in which, for a day, all runs took place and nobody asked for EURUSD's past."""
    query(
        well,
        """
        insert into asset_sync.runs (command, host, pid, started_at, ended_at, reason_ended)
        select 'queue', 'host', 1, at, at, 'done'
        from generate_series(now() - interval '1 day', now(), '5 min') as at
        """,
    )
    settle(well, "EURUSD", timedelta(days=40))
    return well


def settle(db: Connection, symbol: str, length: timedelta) -> None:
    """Note that the newest range of an asset was asked for."""
    now = datetime.now(UTC)
    with transaction(db) as cursor:
        ledger.lock(cursor, symbol, Feed.BARS, f"C:{symbol}")
        known = ledger.Ledger(tail=Span(now - length, now))
        ledger.save(cursor, symbol, Feed.BARS, known, None)


def give_calls(db: Connection, number: int, feed: Feed, symbol: str, ago: str) -> None:
    """Note so many answered calls."""
    query(
        db,
        """
        insert into asset_sync.calls (feed, symbols, outcome, duration_ms, at)
        select %s, %s, 'ok', 300, now() - %s::interval from generate_series(1, %s)
        """,
        (feed, [symbol], ago, number),
    )


def holes(db: Connection, settings: Settings) -> health.Check:
    [check] = [one for one in health.examine(db, settings).checks if one.name == "history.holes"]
    return check


def test_a_past_that_nobody_asks_for_although_calls_are_spare_is_degraded(
    unasked: Connection, settings: Settings
) -> None:
    give_calls(unasked, 1, Feed.HISTORY, "GBPUSD", "2 hours")
    check = holes(unasked, settings)

    assert (check.value, check.verdict) == (1, Verdict.DEGRADED)
    assert "of EURUSD: `asset-sync history fill` asks for it now" in check.about


def test_history_that_is_disabled_leaves_holes_on_purpose(
    unasked: Connection, settings: Settings
) -> None:
    off = replace(settings, history=replace(settings.history, enabled=False))

    assert holes(unasked, off).verdict is Verdict.HEALTHY


def test_a_new_database_has_no_holes_that_stay(well: Connection, settings: Settings) -> None:
    settle(well, "EURUSD", timedelta(days=40))

    assert holes(well, settings).verdict is Verdict.HEALTHY


def test_while_history_is_fetched_each_asset_has_its_turn(
    unasked: Connection, settings: Settings
) -> None:
    give_calls(unasked, 1, Feed.HISTORY, "GBPUSD", "30 minutes")

    assert holes(unasked, settings).verdict is Verdict.HEALTHY


def test_a_past_that_was_asked_for_within_the_day_shrinks(
    unasked: Connection, settings: Settings
) -> None:
    give_calls(unasked, 1, Feed.HISTORY, "EURUSD", "20 hours")

    assert holes(unasked, settings).verdict is Verdict.HEALTHY


def test_on_a_busy_plan_no_call_is_spare(unasked: Connection, settings: Settings) -> None:
    give_calls(unasked, 4000, Feed.BARS, "EURUSD", "12 hours")

    assert holes(unasked, settings).verdict is Verdict.HEALTHY


def test_a_past_that_was_asked_for_as_a_whole_has_no_hole(
    unasked: Connection, settings: Settings
) -> None:
    settle(unasked, "EURUSD", timedelta(days=721))

    assert holes(unasked, settings).verdict is Verdict.HEALTHY


def test_ranges_that_stay_empty_after_every_try_are_named_and_no_fault(
    well: Connection, settings: Settings
) -> None:
    query(
        well,
        """
        insert into asset_sync.weeks (symbol, week, bars, empty_slots, tries, asked_at, next_try_at)
        values ('EURUSD', '2026-01-05', 9, 3, 6, now(), null),
          ('GBPUSD', '2026-01-05', 9, 3, 2, now(), now())
        """,
    )
    check = holes(well, settings)

    assert check.verdict is Verdict.HEALTHY
    assert check.about.endswith("still empty, which is no fault: 1 week of EURUSD")


def test_health_shows_how_late_bars_are_and_calls_few_measurements_too_few(
    well: Connection, told: Callable[..., Told]
) -> None:
    with transaction(well) as cursor:
        for number in range(20):
            ledger.note_lag(cursor, "free", "forex", number)
        ledger.note_lag(cursor, "free", "crypto", 5)

    forex, crypto = json.loads(told("--json").out)["lags"]
    assert (forex["market"], forex["plan"], forex["measurements"]) == ("forex", "free", 20)
    assert forex["p50_seconds"] == pytest.approx(9.5)
    assert (crypto["measurements"], crypto["p99_seconds"]) == (1, None)
    shown = told().out
    assert re.search(r"^forex +20 +9.5 s +18 s +19 s$", shown, re.MULTILINE)
    assert re.search(r"^crypto +1 of the 20 needed +- +- +-$", shown, re.MULTILINE)


def test_priority_runs_switched_off_in_the_settings_are_not_missed(
    well: Connection, told: Callable[..., Told]
) -> None:
    query(well, "delete from asset_sync.runs where command = 'priority'")

    answer = told("--json", PRIORITY_ASSETS_ENABLED="false")

    assert answer.code == 0
    assert set(json.loads(answer.out)["jobs"]) == {"queue"}


def test_a_check_names_its_assets_and_since_when_they_are_not_well(
    well: Connection, settings: Settings
) -> None:
    query(
        well,
        """
        update asset_sync.queue set last_success_at = now() - interval '3 hours',
          not_before = now() - interval '3 hours'
        where symbol in ('GBPUSD', 'EURUSD');
        update asset_sync.queue set last_success_at = now() - interval '5 hours', state = 'dead'
        where symbol = 'GBPUSD'
        """,
    )
    now = datetime.now(UTC)

    found = {check.name: check for check in health.examine(well, settings).checks}

    dead, stale = found["queue.dead"], found["assets.stale"]
    assert dead.symbols == ("GBPUSD",)
    assert dead.since is not None
    assert abs(now - dead.since - timedelta(hours=5)) < timedelta(minutes=1)
    assert set(stale.symbols) == {"EURUSD", "GBPUSD"}
    assert stale.since == dead.since, "the asset that is not well for the longest time"
    assert found["data.old"].symbols == ()
    assert found["data.old"].since is None
