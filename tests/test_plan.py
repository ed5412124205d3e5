"""`asset-sync plan`: the forecast as text and as JSON."""

import json
import re
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Protocol

import commandline
import pytest
from commandline import Told
from machine import Machine

from asset_sync.database import Connection, transaction
from asset_sync.model import Feed, Lane
from asset_sync.ops.forecast import CALL_SECONDS
from asset_sync.settings import SHIPPED_FILE, load
from asset_sync.store import ledger, runs
from asset_sync.store.entitlements import RUNNING_DAY, note_missing
from asset_sync.store.ledger import LEAST_LAGS


class Plan(Protocol):
    def __call__(self, *arguments: str, **environ: str) -> Told: ...


@pytest.fixture
def plan(url: str, tmp_path: Path) -> Plan:
    return partial(Machine(tmp_path, url).tell, "plan")


def test_plan_shows_each_level_and_each_plan_in_80_columns(url: str, tmp_path: Path) -> None:
    more = ("--more", "900", "--level", "low", "--every", "86400")
    environ = Machine(tmp_path, url).environ
    told = commandline.asset_sync("plan", *more, environ=environ, directory=tmp_path, columns=80)
    assert told.code == 0
    lines = told.out.splitlines()
    assert max(map(len, lines)) <= 80
    tables = [line for line in lines if "  " in line]
    assert [line.split()[0] for line in tables] == [
        "level",
        "critical",
        "medium",
        "low",
        "plan",
        "free",
        "starter",
        "bars",
        "forex",
        "crypto",
    ]
    assert "This plan is enough" in told.out


def test_plan_says_whether_200_more_assets_fit_and_what_would_make_them_fit(plan: Plan) -> None:
    told = plan("--more", "200")
    assert "This plan is not enough: raise update_frequency_seconds to 3240 (54 min)" in told.out
    assert "for the 204 assets below that, or move to the plan starter ($49 a month)." in told.out
    assert "This plan is enough" in plan("--more", "200", "--every", "21600").out


def test_plan_says_if_a_window_has_too_few_calls_for_the_priority_assets(plan: Plan) -> None:
    told = plan("--more", "4", "--level", "critical")
    assert "calls for 5 priority assets; the other 2 wait for a later" in told.out
    assert "priority assets;" not in plan("--more", "2", "--level", "critical").out


def test_an_asset_that_is_never_fresh_is_shown_as_never_and_null(plan: Plan) -> None:
    starving = ("--more", "60", "--level", "critical")
    told = plan(*starving)
    assert "never" in told.out
    assert "raise update_frequency_seconds" not in told.out
    [free, _] = json.loads(plan(*starving, "--json").out)["plans"]
    assert free["all_fresh_seconds"] is None
    assert free["staleness"]["medium"]["p95_seconds"] is None


def test_if_no_plan_is_enough_the_advice_still_names_something_to_do(plan: Plan) -> None:
    told = plan("--more", "100000", "--level", "critical", "--every", "1")
    assert "not enough: name fewer priority assets" in told.out


def test_plan_with_json_lists_each_plan_each_asset_and_the_advice(plan: Plan) -> None:
    told = json.loads(plan("--more", "1", "--json").out)
    assert told["plan"] == "free"
    assert told["call_seconds"] == CALL_SECONDS
    assert [one["plan"] for one in told["plans"]] == ["free", "starter"]
    assert [one["usd_a_month"] for one in told["plans"]] == [0, 49]
    assert [one["symbol"] for one in told["assets"]][:3] == ["XAUUSD", "EURUSD", "BTCUSD"]
    assert told["assets"][-1]["calls_a_day"] == 288
    assert told["advice"] == {"enough": True, "update_frequency_seconds": None, "move_to": None}


def test_a_call_is_taken_to_last_the_median_of_the_last_days_calls(
    plan: Plan, db: Connection
) -> None:
    run_id = runs.start(db, Lane.QUEUE.value)
    with transaction(db) as cursor:
        for seconds, outcome in ((0.2, "ok"), (1.5, "ok"), (2.5, "ok"), (9.0, "unavailable")):
            runs.record(cursor, run_id, runs.Call(Feed.BARS, ["A"], outcome, seconds))
    assert json.loads(plan("--json").out)["call_seconds"] == 1.5
    assert "the median of the last day" in plan().err


def test_plan_says_when_the_history_will_be_complete(plan: Plan) -> None:
    told = json.loads(plan("--json", HISTORY_ENABLED="true").out)
    shown = plan(HISTORY_ENABLED="true").out

    free, starter = told["plans"]
    # 21 for each of two of crypto, 15 for each of five with a weekend
    assert free["history_calls_left"] == 2 * 21 + 5 * 15
    assert starter["history_calls_left"] > 4 * free["history_calls_left"], "ten years"
    days = free["history_calls_left"] / free["left_a_day"]
    done = datetime.fromisoformat(free["history_done_at"])
    assert done - datetime.now(UTC) == pytest.approx(timedelta(days=days), abs=timedelta(minutes=1))
    assert (
        f"History: {free['history_calls_left']} calls to go, {free['left_a_day']:,} a day" in shown
    )
    assert f"complete by {done:%Y-%m-%d}" in shown
    assert "[history] enabled = false" in plan().out


def test_the_forecast_of_the_history_is_the_same_without_a_database(plan: Plan) -> None:
    with_one, without = (
        json.loads(plan("--json", **environ).out)["plans"]
        for environ in ({}, {"DATABASE_URL": "postgresql://127.0.0.1:1/market"})
    )
    for key in ("history_calls_left", "left_a_day"):
        assert [one[key] for one in with_one] == [one[key] for one in without]


def test_history_is_never_complete_without_spare_calls(plan: Plan) -> None:
    told = plan("--more", "200")
    assert "so it is never complete" in told.out
    assert json.loads(plan("--more", "200", "--json").out)["plans"][0]["history_done_at"] is None


def test_plan_shows_the_age_of_the_data_with_the_lag_once_it_is_measured(
    plan: Plan, db: Connection
) -> None:
    before = json.loads(plan("--json").out)
    assert "without the lag, which is not known yet" in plan().out
    with transaction(db) as cursor:
        for _ in range(LEAST_LAGS):
            ledger.note_lag(cursor, "free", "forex", 90.0)
    after = json.loads(plan("--json").out)

    ages = [one["plans"][0]["data_age"]["critical"]["worst_seconds"] for one in (before, after)]
    assert ages == [600, 690]
    forex, crypto = after["lags"]
    assert forex == {
        "market": "forex",
        "plan": "free",
        "measurements": LEAST_LAGS,
        "p50_seconds": 90,
        "p95_seconds": 90,
        "p99_seconds": 90,
    }
    assert (crypto["measurements"], crypto["p50_seconds"]) == (0, None)
    assert re.search(r"^forex +20 +1 min 30 s +1 min 30 s +1 min 30 s$", plan().out, re.MULTILINE)


def test_few_measurements_of_the_lag_are_called_too_few(plan: Plan, db: Connection) -> None:
    with transaction(db) as cursor:
        ledger.note_lag(cursor, "free", "forex", 90.0)
    assert re.search(r"^forex +1 of the 20 needed +- +- +-$", plan().out, re.MULTILINE)
    assert json.loads(plan("--json").out)["lags"][0]["p50_seconds"] is None


def test_of_a_key_whose_bars_end_yesterday_plan_forecasts_no_age_of_the_data(
    plan: Plan, db: Connection
) -> None:
    settings = load(SHIPPED_FILE, {})
    with transaction(db) as cursor:
        symbols = [asset.symbol for asset in settings.assets]
        note_missing(cursor, "", "free", RUNNING_DAY, symbols)
    told = json.loads(plan("--json").out)
    assert told["bars_end_yesterday"].startswith("This key's bars end yesterday")
    assert told["plans"][0]["data_age"]["critical"] is None
    assert told["bars_end_yesterday"] in plan().out


def test_plan_needs_no_database_and_creates_none(plan: Plan, tmp_path: Path) -> None:
    assert plan(DATABASE_URL="postgresql://127.0.0.1:1/market").code == 0
    assert plan(DATABASE_URL="").code == 0
    assert list(tmp_path.iterdir()) == []


def test_with_quiet_plan_prints_only_the_answer(plan: Plan) -> None:
    assert plan("-q").err == ""


def test_plan_refuses_a_senseless_number_of_more_assets(plan: Plan) -> None:
    told = plan("--more", "-1")
    assert told.code == 2
    assert "--more" in told.err
