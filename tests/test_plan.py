"""`asset-sync plan`: the forecast as text and as JSON."""

import json
from functools import partial
from pathlib import Path
from typing import Protocol

import pytest
from commandline import Told
from machine import Machine

from asset_sync.database import Connection, transaction
from asset_sync.model import Feed, Lane
from asset_sync.ops.forecast import CALL_SECONDS
from asset_sync.store import runs


class Plan(Protocol):
    def __call__(self, *arguments: str, **environ: str) -> Told: ...


@pytest.fixture
def plan(url: str, tmp_path: Path) -> Plan:
    return partial(Machine(tmp_path, url).tell, "plan")


def test_plan_shows_each_level_and_each_plan_in_80_columns(plan: Plan) -> None:
    told = plan("--more", "900", "--level", "low", "--every", "86400")
    assert told.code == 0
    lines = told.out.splitlines()
    tables = [line for line in lines if "  " in line]
    assert max(map(len, tables)) <= 80
    assert [line.split()[0] for line in tables] == [
        "level",
        "critical",
        "medium",
        "low",
        "plan",
        "free",
        "starter",
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
