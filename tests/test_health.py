"""What `health` calls wrong, and that it calls nothing wrong that is well."""

from dataclasses import replace

import pytest
from conftest import MakeSettings, ShiftingClock

from asset_sync import health, queue, runs, sync
from asset_sync.assets import Feed
from asset_sync.cli import health as command
from asset_sync.database import Connection, query, transaction
from asset_sync.demo.server import StandIn
from asset_sync.health import Health, Verdict
from asset_sync.settings import SHIPPED_FILE, HealthSettings, Settings, load
from asset_sync.slots import Lane


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
        while items := queue.claim(db, lane, lease_seconds=60, most=1):
            with transaction(db) as cursor:
                queue.finish(cursor, items)
    return db


def end(db: Connection, lane: Lane, *, updated: int, failed: int = 0, waited: float = 0) -> int:
    run_id = runs.start(db, lane.value)
    runs.end(db, run_id, "done", updated=updated, failed=failed, waited_seconds=waited)
    return run_id


def verdicts(found: Health) -> dict[str, Verdict]:
    return {one.name: one.verdict for one in found.checks if one.verdict is not Verdict.HEALTHY}


def test_where_all_is_well_nothing_is_wrong(well: Connection, settings: Settings) -> None:
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
        sync.run(db, settings, lane, clock=clock)

    assert verdicts(health.examine(db, settings)) == {}


def test_before_the_first_priority_run_it_is_unhealthy(db: Connection, settings: Settings) -> None:
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


def test_without_priority_runs_by_choice_they_are_not_missed(
    well: Connection, settings: Settings
) -> None:
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
def test_too_many_failures_of_priority_assets_are_told(
    well: Connection, settings: Settings, failed: int, expected: Verdict | None
) -> None:
    end(well, Lane.PRIORITY, updated=3, failed=failed)

    assert verdicts(health.examine(well, settings)).get("batch.priority.success_rate") is expected


def test_nothing_but_failures_is_unhealthy(well: Connection, settings: Settings) -> None:
    query(well, "update asset_sync.runs set updated = 0, failed = 3 where command = 'priority'")

    assert health.examine(well, settings).status is Verdict.UNHEALTHY


def test_slow_priority_runs_are_told(well: Connection, settings: Settings) -> None:
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


def test_waits_of_the_queue_are_normal_and_those_of_priority_runs_are_told(
    well: Connection, settings: Settings
) -> None:
    for _ in range(11):
        end(well, Lane.QUEUE, updated=1, waited=50)
    assert verdicts(health.examine(well, settings)) == {}

    for _ in range(11):
        end(well, Lane.PRIORITY, updated=3, waited=2)

    assert verdicts(health.examine(well, settings)) == {"api.rate_limit_waits": Verdict.DEGRADED}


def test_a_full_queue_is_told(well: Connection, settings: Settings) -> None:
    query(well, "update asset_sync.queue set state = 'waiting'")
    small = replace(settings, health=HealthSettings(queue_size=6))

    assert verdicts(health.examine(well, small)) == {"queue.size": Verdict.DEGRADED}


def test_a_dead_item_is_told(well: Connection, settings: Settings) -> None:
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
        update asset_sync.queue set last_success_at = now() - interval '901 s' where symbol = %s
        """,
        (symbol,),
    )

    found = health.examine(well, settings)

    assert verdicts(found) == {"assets.stale": expected}
    assert symbol in found.checks[-1].about


def test_what_happened_over_an_hour_ago_counts_no_more(
    well: Connection, settings: Settings
) -> None:
    failed = end(well, Lane.PRIORITY, updated=0, failed=9, waited=9)
    query(
        well,
        "update asset_sync.runs set started_at = now() - interval '61 min' where id = %s",
        (failed,),
    )

    assert verdicts(health.examine(well, settings)) == {}


def test_its_json_has_the_keys_that_monitors_rely_on(well: Connection, settings: Settings) -> None:
    told = command._as_json(health.examine(well, settings))

    assert set(told) == {
        "status",
        "jobs",
        "queue",
        "last_priority_update",
        "api_calls_remaining",
        "checks",
    }
