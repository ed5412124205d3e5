"""A key that shows nothing of the running day is named, in the same words everywhere.

And a run for which nothing is due because markets are closed says until when.
"""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from machine import Machine

from asset_sync.database import Connection, query, transaction
from asset_sync.demo.server import StandIn
from asset_sync.hours import FX
from asset_sync.secret import Secret
from asset_sync.store.entitlements import RUNNING_DAY, note_missing, note_running_day_shown

BITCOIN = """
[rate_limit]
calls = 40
period_seconds = 1
[history]
days = 100
[[secondary_assets]]
symbol = "BTCUSD"
polygon_ticker = "X:BTCUSD"
asset_type = "crypto"
"""


@pytest.fixture
def api() -> Iterator[StandIn]:
    with StandIn("free", calls=40, period_seconds=1.0) as api:
        yield api


@pytest.fixture
def machine(tmp_path: Path, url: str, api: StandIn) -> Iterator[Machine]:
    with Machine(tmp_path, url, api) as machine:
        machine.file(BITCOIN)
        yield machine


def give_bar(db: Connection, hours_ago: int) -> None:
    query(
        db,
        """
        with new as (insert into trading.symbols (symbol) values ('BTCUSD') returning id)
        insert into market_data.ohlcv_5m (ticker_id, ts, open, high, low, close)
        select id, now() - make_interval(hours => %s, mins => 5), 1, 1, 1, 1 from new
        """,
        (hours_ago,),
    )


def note(db: Connection, api: StandIn, capability: str) -> None:
    with transaction(db) as cursor:
        symbols = ["BTCUSD"] if capability == RUNNING_DAY else []
        note_missing(cursor, Secret(api.key).fingerprint(), "free", capability, symbols)


ENDS = "This key's bars end yesterday: the newest is 14 h old. "
LATE = f"{ENDS}Each asset is asked 4 times a day."
REFUSED = f"{ENDS}The API refuses those of the running day; they are tried once a day."


@pytest.mark.parametrize(("capability", "said"), [(RUNNING_DAY, LATE), ("today", REFUSED)])
def test_run_health_doctor_and_plan_say_the_same_of_a_key_whose_bars_end_yesterday(
    machine: Machine, db: Connection, api: StandIn, capability: str, said: str
) -> None:
    give_bar(db, 14)
    note(db, api, capability)

    checks = json.loads(machine.tell("health", "--json").out)["checks"]
    [old] = [one for one in checks if one["name"] == "data.old"]
    assert (old["verdict"], old["about"]) == ("healthy", said)
    assert json.loads(machine.tell("plan", "--json").out)["bars_end_yesterday"] == said
    assert said in machine.tell("plan").out
    assert f"free. {said}" in machine.tell("doctor").out
    assert said in machine.tell("sync", "queue").err


def test_its_other_calls_go_to_history_unless_that_is_disabled(
    machine: Machine, db: Connection, api: StandIn
) -> None:
    note(db, api, RUNNING_DAY)

    told = machine.tell("plan", HISTORY_ENABLED="true").out
    assert "asked 4 times a day, and the other calls go to history." in told
    assert "to history" not in machine.tell("plan").out.partition("This key")[2]


def test_a_quiet_run_does_not_say_it_each_time(
    machine: Machine, db: Connection, api: StandIn
) -> None:
    give_bar(db, 14)
    note(db, api, RUNNING_DAY)

    told = machine.tell("sync", "queue", "-q")

    assert (told.code, told.out, told.err) == (0, "", "")


def test_a_key_that_has_shown_the_running_day_is_not_named(
    machine: Machine, db: Connection, api: StandIn
) -> None:
    note(db, api, RUNNING_DAY)
    with transaction(db) as cursor:
        note_running_day_shown(cursor, Secret(api.key).fingerprint(), "free")

    assert json.loads(machine.tell("plan", "--json").out)["bars_end_yesterday"] is None
    assert "end yesterday" not in machine.tell("sync", "queue").err


@pytest.mark.parametrize(("hours", "verdict"), [(70, "healthy"), (74, "degraded")])
def test_the_data_of_such_a_key_is_old_after_three_open_days(
    machine: Machine, db: Connection, api: StandIn, hours: int, verdict: str
) -> None:
    give_bar(db, hours)
    note(db, api, RUNNING_DAY)

    checks = json.loads(machine.tell("health", "--json").out)["checks"]
    [old] = [one for one in checks if one["name"] == "data.old"]
    assert old["verdict"] == verdict
    assert f"the newest is {hours} h old" in old["about"]


# --- closed markets ------------------------------------------------------------------------------


@pytest.mark.parametrize("history", ["true", "false"])
def test_a_run_while_all_markets_are_closed_says_until_when(machine: Machine, history: str) -> None:
    now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    opening, closing = now + timedelta(hours=2), now - timedelta(hours=1)
    machine.file(f'{BITCOIN}hours = ["{opening:%a %H:%M} - {closing:%a %H:%M} UTC"]\n')
    assert machine.tell("sync", "queue").code == 0

    told = machine.tell("sync", "queue", HISTORY_ENABLED=history)
    again = json.loads(machine.tell("sync", "queue", "--json").out)

    assert re.match(r"queue: 0 refreshed, (\d) calls( \(\1 for history\))?, ", told.out)
    assert ("for history" in told.out) is (history == "true")
    closed = f"Nothing was due: the markets are closed until {opening:%Y-%m-%d %H:%M:%S} UTC.\n"
    assert told.out.endswith(closed)
    assert again["closed_until"] == opening.isoformat()
    assert again["history_calls"] == 0


def test_a_run_that_refreshed_something_is_not_said_to_be_closed(machine: Machine) -> None:
    found = json.loads(machine.tell("sync", "queue", "--json").out)

    assert (found["updated"], found["closed_until"]) == (["BTCUSD"], None)


def test_a_market_closes_next_when_it_is_open_and_at_once_when_it_is_closed() -> None:
    wednesday = datetime(2026, 11, 18, 12, tzinfo=UTC)
    friday = datetime(2026, 11, 20, 22, tzinfo=UTC)
    assert FX.next_close(wednesday) == friday
    assert FX.next_close(friday) == friday
