"""Queue and runs are corrected after the database's clock was set back, and this is reported.

The tests move all stored times an hour forward, which is the same as a clock set an hour back.
"""

import re

import pytest
from conftest import MakeSettings, ShiftingClock

from asset_sync.budget import clocks, slots
from asset_sync.budget.clocks import Watch
from asset_sync.database import Connection, query, status
from asset_sync.demo.server import StandIn
from asset_sync.model import Lane
from asset_sync.ops import doctor, health
from asset_sync.ops.health import Verdict
from asset_sync.settings import Settings
from asset_sync.sync import loop
from asset_sync.sync.progress import Progress, Warned

ONE = """
[[secondary_assets]]
symbol = "BTCUSD"
polygon_ticker = "X:BTCUSD"
asset_type = "crypto"
"""
HOUR = 3600
# By the clock of the test's host, which runs meanwhile.
SET_BACK = re.compile(r"went back by at least 3,[56]\d\d s")


@pytest.fixture
def settings(api: StandIn, make_settings: MakeSettings) -> Settings:
    return make_settings(api, toml=ONE)


def set_back(db: Connection, clock: ShiftingClock) -> None:
    clock.sleep(-HOUR)
    query(
        db,
        """
        update asset_sync.runs set started_at = started_at + interval '1 h',
          ended_at = ended_at + interval '1 h';
        update asset_sync.calls set at = at + interval '1 h'
        """,
    )


def test_after_the_clock_was_set_back_an_hour_assets_are_refreshed_in_their_next_cycle(
    db: Connection, clock: ShiftingClock, settings: Settings
) -> None:
    assert loop.run(db, settings, Lane.QUEUE, clock=clock).updated == ["BTCUSD"]
    set_back(db, clock)
    loop.run(db, settings, Lane.QUEUE, clock=clock, max_runtime_seconds=1)
    clock.sleep(300)
    assert loop.run(db, settings, Lane.QUEUE, clock=clock).updated == ["BTCUSD"]
    found = query(
        db,
        """
        select greatest(max(last_success_at), max(due_at), max(added_at)) <= clock_timestamp(),
          (select max(greatest(started_at, ended_at)) <= clock_timestamp() from asset_sync.runs),
          (select max(at) <= clock_timestamp() and count(*) = 2 from asset_sync.calls)
        from asset_sync.queue
        """,
    )
    assert found == [(True, True, True)]


def test_after_the_clock_was_set_back_no_future_time_moves_further_away(
    db: Connection, clock: ShiftingClock, settings: Settings
) -> None:
    loop.run(db, settings, Lane.QUEUE, clock=clock)
    query(
        db,
        """
        update asset_sync.queue set state = 'leased', lease_token = gen_random_uuid(),
          last_attempt_at = now(), lease_until = now() + interval '60 s',
          not_before = now() + interval '120 s', failed_at = now(),
          due_at = now(), sort_at = now() + interval '600 s', last_success_at = null;
        update asset_sync.limiter
        set blocked_at = now(), blocked_until = now() + interval '90 s',
          reserved_at = now() + interval '200 s'
        """,
    )
    set_back(db, clock)
    clocks.correct_after_jump(db, Watch(clock.steady))
    [ahead] = query(
        db,
        """
        select extract(epoch from lease_until - now())::float8,
          extract(epoch from not_before - now())::float8,
          extract(epoch from sort_at - now())::float8,
          extract(epoch from blocked_until - now())::float8,
          extract(epoch from reserved_at - now())::float8, failed_at <= now()
        from asset_sync.queue, asset_sync.limiter
        """,
    )
    assert ahead[:5] == pytest.approx((60, 120, 600, 90, 200), abs=5)
    assert ahead[5]


def test_after_the_clock_was_set_back_nothing_is_due_later_than_after_its_frequency(
    db: Connection, clock: ShiftingClock, settings: Settings
) -> None:
    loop.run(db, settings, Lane.QUEUE, clock=clock)
    query(
        db,
        """
        insert into asset_sync.queue
          (symbol, feed, ticker, asset_type, name, level, last_success_at, next_at)
        values ('OPENS', 'bars', 'C:OPENS', 'forex', '', 'low', now(), now() + interval '9 h'),
          ('SKIPPED', 'bars', 'C:SKIPPED', 'forex', '', 'low', null, null)
        """,
    )
    set_back(db, clock)
    clocks.correct_after_jump(db, Watch(clock.steady))
    ahead = query(
        db,
        """
        select symbol, extract(epoch from next_at - now())::float8 from asset_sync.queue
        order by symbol
        """,
    )
    about = pytest.approx
    assert ahead == [
        ("BTCUSD", about(300, abs=5)),
        ("OPENS", about(9 * HOUR, abs=5)),
        ("SKIPPED", None),
    ]


@pytest.mark.parametrize("looks", [0, 1], ids=["before a run", "after a run noticed it"])
def test_health_and_doctor_report_a_jump_and_show_no_negative_seconds(
    db: Connection, clock: ShiftingClock, settings: Settings, looks: int
) -> None:
    loop.run(db, settings, Lane.QUEUE, clock=clock)
    set_back(db, clock)
    for _ in range(looks):
        clocks.correct_after_jump(db, Watch(clock.steady))
    found = health.examine(db, settings)
    checks = {check.name: check for check in found.checks}
    assert checks["clock.jumped"].verdict is Verdict.DEGRADED
    assert SET_BACK.search(checks["clock.jumped"].about)
    assert all(check.value is None or check.value >= 0 for check in found.checks)
    findings = list(doctor.examine_database(db, settings, status(db)))
    assert any(SET_BACK.search(finding.text) for finding in findings)


def test_a_jump_is_reported_for_an_hour(
    db: Connection, clock: ShiftingClock, settings: Settings
) -> None:
    loop.run(db, settings, Lane.QUEUE, clock=clock)
    set_back(db, clock)
    clocks.correct_after_jump(db, Watch(clock.steady))
    clock.sleep(HOUR + 60)
    checks = {check.name: check.verdict for check in health.examine(db, settings).checks}
    assert checks["clock.jumped"] is Verdict.HEALTHY


# --- a plan in the settings above the key's -------------------------------------------------------


def test_a_plan_above_the_keys_is_reported_and_the_free_plans_rate_is_used(
    db: Connection, clock: ShiftingClock, api: StandIn, make_settings: MakeSettings
) -> None:
    assets = "".join(ONE.replace("BTCUSD", f"BTC{n}", 1) for n in range(30))
    settings = make_settings(api, plan="starter", toml=assets)
    told: list[Progress] = []

    loop.run(db, settings, Lane.QUEUE, clock=clock, tell=told.append)

    assert api.refused <= 5
    assert api.most_in_a_window() <= 8, "a few are refused until it is noticed"
    assert any("POLYGON_TIER" in one.text for one in told if isinstance(one, Warned))
    checks = {check.name: check for check in health.examine(db, settings).checks}
    assert checks["api.rate_lowered"].verdict is Verdict.DEGRADED
    assert slots.budget(db, slots.rate_of(settings)).calls == 5
