"""The forecast of `plan`, compared with a day of the real loop, which also shows promise 2."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import inf
from types import MappingProxyType
from typing import NamedTuple

import pytest
from conftest import Pool, asset
from hypothesis import given
from hypothesis import strategies as st
from simulation import Api, Day, live_through

from asset_sync.model import Asset, AssetType, Level
from asset_sync.ops import history
from asset_sync.ops.forecast import (
    Advice,
    Forecast,
    advise,
    data_age,
    days_for,
    forecast,
    side_by_side,
    staleness,
    with_plan,
)
from asset_sync.provider.current import PLANS
from asset_sync.settings import SHIPPED_FILE, RateLimit, Settings, load
from asset_sync.store.ledger import Lag

CALL_SECONDS = 0.3
HOUR = 3600.0
# A whole day takes some minutes in all, so it is for .ci/run.
HOURS = float(os.environ.get("SIMULATED_HOURS", "6"))

# What is allowed to the queue in five minutes of the free plan: 25 calls, less three for the
# priority assets and three that hold the place of the next such run.
ALLOWED_IN_A_CYCLE = 19
CYCLE_SECONDS = 300


def settings_for(*assets: Asset, url: str = "postgresql:///", **environ: str) -> Settings:
    """Return the shipped settings with other assets."""
    usual = {
        "POLYGON_API_KEY": "k",
        "POLYGON_BASE_URL": "http://127.0.0.1:9",
        "DATABASE_URL": url,
    }
    return replace(load(SHIPPED_FILE, usual | environ), assets=assets)


def several(count: int, level: Level, *, every: int = 300) -> list[Asset]:
    return [
        asset(f"{level.value[0].upper()}{number:04}", level, position=number, every=every)
        for number in range(count)
    ]


PRIORITY = several(3, Level.CRITICAL)


# --- a day of the real loop -------------------------------------------------------------------


def symbols(assets: Sequence[Asset]) -> list[str]:
    return [one.symbol for one in assets]


@pytest.mark.parametrize("count", [4, 50, 200, 1000])
def test_the_queue_is_within_5_percent_of_the_best_possible_order(url: str, count: int) -> None:
    others = several(count, Level.MEDIUM)
    settings = settings_for(*PRIORITY, *others, url=url, QUEUE_MAX_SIZE="2000")

    day = live_through(url, settings, Api(CALL_SECONDS), seconds=HOURS * HOUR)

    # Whatever the order: an asset that is refreshed λ times a second is younger than x for at
    # most the share λx of the time. All of them together get the calls that are allowed, and none
    # is asked for before it is due.
    turn = max(CYCLE_SECONDS, count / ALLOWED_IN_A_CYCLE * CYCLE_SECONDS)
    real = day.staleness(symbols(others))
    assert 0.95 * turn <= real.at(0.95) * 1.001
    assert real.at(0.95) <= 1.05 * 0.95 * turn
    assert day.most_in(60) == 5
    assert max(day.waits) == 0, "no priority run ever waited"
    agree(forecast(settings, CALL_SECONDS), day)


def test_a_simulated_day_has_the_same_figures_on_a_busy_machine(pool: Pool) -> None:
    days = []
    for loops in (0, 2):
        with pool.database() as url, busy(loops):
            settings = settings_for(*PRIORITY, *several(50, Level.MEDIUM), url=url)
            days.append(live_through(url, settings, Api(CALL_SECONDS), seconds=HOUR / 2))
    assert days[0] == days[1]


@contextmanager
def busy(loops: int) -> Iterator[None]:
    """Keep the machine busy with this number of processes until the end of the block."""
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(loops)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


class Case(NamedTuple):
    assets: list[Asset]
    environ: Mapping[str, str] = MappingProxyType({})
    hours: float = 4
    warm_up_hours: float = 1.5


CASES = {
    "levels, too many": Case(
        [
            *PRIORITY,
            *several(10, Level.HIGH),
            *several(20, Level.MEDIUM, every=600),
            *several(40, Level.LOW, every=900),
        ]
    ),
    "levels, just enough": Case(
        [
            *PRIORITY,
            *several(10, Level.HIGH, every=600),
            *several(20, Level.MEDIUM, every=900),
            *several(40, Level.LOW, every=3600),
        ]
    ),
    "a frequency between two runs": Case([*PRIORITY, *several(10, Level.MEDIUM, every=450)]),
    "more priority assets than a window has calls": Case(
        [*several(7, Level.CRITICAL), *several(50, Level.MEDIUM)]
    ),
    "priority assets alone, due between two runs": Case(several(3, Level.CRITICAL, every=500)),
    "without priority assets": Case(several(50, Level.MEDIUM)),
    "priority runs switched off": Case(
        [*PRIORITY, *several(50, Level.MEDIUM)], {"PRIORITY_ASSETS_ENABLED": "false"}
    ),
    "cron each quarter of an hour": Case(
        [*PRIORITY, *several(50, Level.MEDIUM)], {"BATCH_INTERVAL_MINUTES": "15"}
    ),
    "a paid plan": Case(
        # the history of the whole plan would take more calls than all else
        [replace(one, history_days=80) for one in (*PRIORITY, *several(300, Level.MEDIUM))],
        {"POLYGON_TIER": "starter", "POLYGON_PARALLEL_CALLS": "1"},
        0.4,
        0,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_forecast_agrees_with_the_real_loop(url: str, name: str) -> None:
    case = CASES[name]
    settings = settings_for(*case.assets, url=url, **case.environ)
    day = live_through(url, settings, Api(CALL_SECONDS), seconds=case.hours * HOUR)
    agree(forecast(settings, CALL_SECONDS), day, after=case.warm_up_hours * HOUR)


def agree(told: Forecast, day: Day, after: float = 0) -> None:
    """Compare each level's staleness, and when all is fresh, with the simulation."""
    for level in Level:
        assets = told.of_level(level)
        if not assets:
            continue
        real = day.staleness(symbols([one.asset for one in assets]), after)
        expected = staleness(assets)
        # On a paid plan bars refresh a price between two quotes, which is not counted upon.
        half, most = (0.08, 0.08) if len(told.plan.feeds) == 1 else (0.5, 0.125)
        assert expected.p50_seconds == pytest.approx(real.at(0.5), rel=half), level
        assert expected.p95_seconds == pytest.approx(real.at(0.95), rel=most), level
        assert 0.95 * real.worst <= expected.worst_seconds <= real.worst + CYCLE_SECONDS, level
    all_fresh = max(day.fresh_at[one.asset.symbol][0] for one in told.assets)
    assert told.all_fresh_seconds == pytest.approx(all_fresh, rel=0.25, abs=60)


# --- the arithmetic alone ---------------------------------------------------------------------


def test_each_asset_needs_one_refresh_in_its_update_frequency() -> None:
    told = forecast(settings_for(*PRIORITY, *several(2, Level.LOW, every=3600)))
    assert {one.asset.symbol: one.calls_a_day for one in told.assets} == {
        **dict.fromkeys(symbols(PRIORITY), 288),
        "L0000": 24,
        "L0001": 24,
    }
    assert told.needed_a_day == 3 * 288 + 2 * 24
    assert told.left_a_day == told.calls_a_day - told.needed_a_day
    assert told.enough


@pytest.mark.parametrize(("every", "cron"), [(1, 300), (300, 300), (599, 300), (600, 600)])
def test_a_priority_asset_is_refreshed_by_the_last_run_before_it_is_stale(
    every: int, cron: int
) -> None:
    [told] = forecast(settings_for(*several(1, Level.CRITICAL, every=every))).assets
    assert told.refreshed_every_seconds == told.asked_seconds == cron
    assert told.kept


@pytest.mark.parametrize("call_seconds", [0.1, 0.25, 0.5, 0.9, 2.3])
def test_no_fewer_than_no_calls_are_kept_for_priority_runs(call_seconds: float) -> None:
    paid = with_plan(settings_for(*several(1, Level.CRITICAL)), PLANS["starter"])

    assert forecast(paid, call_seconds).kept_a_day >= 0


def test_a_paid_plan_needs_a_call_for_bars_per_asset_and_one_for_quotes_per_250_assets() -> None:
    settings = settings_for(*several(500, Level.MEDIUM))
    paid = forecast(with_plan(settings, PLANS["starter"]))
    assert paid.needed_a_day == pytest.approx((500 + 2) * 288)
    assert forecast(settings).needed_a_day == pytest.approx(500 * 288)


def test_the_whole_history_needs_one_call_for_each_range_that_a_call_reaches() -> None:
    coin = asset("BTCUSD", asset_type=AssetType.CRYPTO)
    euro = replace(asset("EURUSD"), hours="fx")
    assert history.outlook(settings_for(coin), None).calls_left == 21
    assert history.outlook(settings_for(euro), None).calls_left == 15


def test_history_takes_no_time_if_nothing_is_left_and_for_ever_without_spare_calls() -> None:
    assert days_for(0, 0) == 0
    assert days_for(1, 0.9) == inf
    assert days_for(30, 60) == 0.5


def test_the_data_is_older_than_the_call_by_a_bar_and_by_the_providers_lag() -> None:
    told = forecast(settings_for(asset("EURUSD", every=3600)))
    late = {AssetType.FOREX: Lag(20, 10.0, 40.0, 50.0)}
    for lags, (half, most, worst) in (({}, (0, 0, 0)), (late, (10, 40, 50))):
        age = data_age(told.assets, lags)
        called = staleness(told.assets)
        assert age.p50_seconds == pytest.approx(called.p50_seconds + 150 + half, abs=5)
        assert called.p95_seconds + 100 < age.p95_seconds - most < called.p95_seconds + 300
        assert age.worst_seconds == pytest.approx(called.worst_seconds + 300 + worst)


def test_a_lag_of_few_measurements_does_not_make_the_data_older() -> None:
    told = forecast(settings_for(asset("EURUSD")))
    few = {AssetType.FOREX: Lag(19, 10.0, 40.0, 50.0)}
    assert data_age(told.assets, few) == data_age(told.assets, {})


def test_the_forecast_compares_each_plan_on_sale_with_the_present_one() -> None:
    shown = [(one.plan.name, one.plan.usd_a_month) for one in side_by_side(settings_for())]
    assert shown == [("free", 0), ("starter", 49)]
    with_another = side_by_side(settings_for(POLYGON_TIER="advanced"))
    assert [one.plan.name for one in with_another] == ["free", "starter", "advanced"]


def test_the_present_plan_is_forecast_with_the_limit_of_the_settings() -> None:
    free, starter = side_by_side(settings_for(*PRIORITY, POLYGON_RATE_LIMIT="4"))
    assert (free.limit.calls, starter.limit.calls) == (4, 100)


@pytest.mark.parametrize("count", [20, 204, 3000])
def test_the_advised_frequency_is_the_shortest_that_is_enough(count: int) -> None:
    assets = [*PRIORITY, *several(count, Level.MEDIUM)]
    settings = settings_for(*assets)
    advice = advise(settings, side_by_side(settings), 0.5)
    assert advice.frequency_seconds is not None
    assert advice.below == count

    def enough(seconds: int) -> bool:
        slower = [replace(one, update_frequency_seconds=seconds) for one in assets[3:]]
        return forecast(settings_for(*PRIORITY, *slower)).share <= 1

    assert enough(advice.frequency_seconds)
    assert not enough(advice.frequency_seconds - 60)


def test_the_cheapest_plan_that_is_enough_is_advised() -> None:
    settings = settings_for(*PRIORITY, *several(200, Level.MEDIUM))
    plan = advise(settings, side_by_side(settings), 0.5).plan
    assert plan is not None
    assert plan.plan.name == "starter"


def test_if_priority_assets_take_every_call_the_others_are_never_fresh() -> None:
    settings = settings_for(*several(40, Level.CRITICAL), *several(1, Level.HIGH))
    told = forecast(settings)
    [starved] = told.of_level(Level.HIGH)
    assert starved.refreshed_every_seconds == told.all_fresh_seconds == inf
    assert not told.enough
    assert advise(settings, [told], 0.5) == Advice(None, 0, None)
    crowded = staleness(told.of_level(Level.CRITICAL))
    assert crowded.p95_seconds > 0.95 * CYCLE_SECONDS, "they take turns among themselves"


def test_without_assets_no_calls_are_needed() -> None:
    told = forecast(settings_for())
    assert (told.assets, told.needed_a_day, told.enough) == ((), 0, True)


LEVELS = st.sampled_from(list(Level))
FREQUENCIES = st.integers(1, 86_400)


@given(
    wanted=st.lists(st.tuples(LEVELS, FREQUENCIES), max_size=60),
    plan=st.sampled_from(["free", "starter"]),
    limit=st.builds(RateLimit, st.integers(1, 10_000), st.floats(0.1, 86_400), st.booleans()),
)
def test_for_any_assets_the_forecast_never_exceeds_the_calls_of_the_plan(
    wanted: list[tuple[Level, int]],
    plan: str,
    limit: RateLimit,
) -> None:
    assets = [
        asset(f"A{number}", level, position=number, every=every)
        for number, (level, every) in enumerate(wanted)
    ]
    settings = settings_for(*assets, POLYGON_TIER=plan)
    told = forecast(replace(settings, rate_limit=limit))
    made = sum(
        one.calls_a_day * one.asked_seconds / one.refreshed_every_seconds for one in told.assets
    )
    assert made <= told.calls_a_day * 1.001
    assert told.calls_a_day <= limit.calls / limit.period_seconds * 86_400
    for one in told.assets:
        ages = one.staleness
        assert 0 < ages.p50_seconds <= ages.p95_seconds <= ages.worst_seconds
        assert one.refreshed_every_seconds >= one.asked_seconds * 0.999
