"""`asset-sync assets show`: all of one asset on one screen."""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import commandline
import pytest
from machine import Machine

from asset_sync.database import Connection, query, transaction
from asset_sync.demo.server import StandIn
from asset_sync.store import ledger
from asset_sync.store.ledger import LEAST_LAGS

ETHER = """
[rate_limit]
calls = 40
period_seconds = 1
[history]
days = 100
[[secondary_assets]]
symbol = "ETHUSDT"
polygon_ticker = "X:ETHUSDT"
asset_type = "crypto"
name = "Ether"
priority = "high"
"""


@pytest.fixture
def machine(tmp_path: Path, url: str) -> Iterator[Machine]:
    with (
        StandIn("free", calls=40, period_seconds=1.0) as api,
        Machine(tmp_path, url, api) as machine,
    ):
        machine.file(ETHER)
        yield machine


@pytest.fixture
def synced(machine: Machine) -> Machine:
    assert machine.tell("sync", "queue").code == 0
    return machine


def shown(machine: Machine, symbol: str = "ETHUSDT") -> dict[str, str]:
    """Return each line by its label, as it looks on a terminal 80 columns wide."""
    told = commandline.asset_sync(
        *("assets", "show", symbol),
        environ=machine.environ,
        directory=machine.home,
        columns=80,
    )
    assert told.code == 0, told.err
    lines = told.out.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    return {line[:11].strip(): line[11:] for line in lines}


def as_json(machine: Machine, symbol: str = "ETHUSDT") -> dict[str, Any]:
    told = machine.tell("assets", "show", symbol, "--json")
    assert told.code == 0, told.err
    found = json.loads(told.out)
    assert isinstance(found, dict)
    return found


def test_a_synced_asset_shows_price_market_data_calls_and_history(
    synced: Machine, db: Connection
) -> None:
    found = shown(synced)

    assert found["ETHUSDT"] == "Ether, X:ETHUSDT, crypto, high, every 5 min"
    assert re.fullmatch(r"[\d.]+ of \d{4}-.* UTC, .* ago", found["price"])
    assert found["market"] == "open, never closed"
    assert re.fullmatch(r"[\d.]+ (min|s)( [\d.]+ s)? old|still running", found["data"])
    [(bars,)] = query(db, "select count(*) from market_data.ohlcv_5m")
    assert found["bars"].startswith(f"{bars:,}, from ")
    assert re.fullmatch(r"answered [\d.]+ s ago; the next in (5 min|4 min .* s)", found["call"])
    assert re.match(
        r"since \d{4}-\d\d-\d\d: 3\d(\.\d)? % asked, .*, 2 calls to go", found["history"]
    )
    assert found["holes"].endswith("bars never asked, next: `asset-sync history fill`")
    assert found["revisions"].startswith("0 bars")
    assert found["lag"] == "not known yet: 0 of the 20 measurements needed"
    assert "error" not in found


def test_json_has_the_same_figures(synced: Machine, db: Connection) -> None:
    found = as_json(synced)

    [(bars, oldest)] = query(db, "select count(*), min(ts) from market_data.ohlcv_5m")
    assert (found["bars"], found["enabled"], found["level"]) == (bars, True, "high")
    assert datetime.fromisoformat(found["oldest_bar"]) == oldest
    wait = datetime.fromisoformat(found["next_call_at"]) - datetime.now(UTC)
    assert timedelta(minutes=4) < wait <= timedelta(minutes=5)
    assert [one["feed"] for one in found["feeds"]] == ["bars"]
    assert found["history"]["calls_left"] == 2
    assert set(found["history"]["holes"]) == {"never_asked", "asked_empty"}
    assert found["data"]["age_seconds"] < 600
    assert found["last_price"] > 0


def test_an_asset_that_no_run_has_seen_says_so(machine: Machine) -> None:
    found = shown(machine)

    assert found["price"] == "none yet"
    assert found["data"] == "no bars yet"
    assert found["call"] == "never asked; the next with the next run"
    assert as_json(machine)["next_call_at"] is None


def test_a_failing_asset_shows_its_error_and_a_dead_one_how_to_retry_it(
    synced: Machine, db: Connection
) -> None:
    query(
        db,
        """
        update asset_sync.queue set state = 'waiting', strikes = 4, last_error = 'No such ticker.',
          level = 'low', not_before = now() + interval '10 min'
        """,
    )
    waiting = shown(synced)
    query(db, "update asset_sync.queue set state = 'dead'")

    assert waiting["error"] == "No such ticker. (4 times in a row)"
    assert re.search(r"the next in (10 min|9 min .* s), at the level low$", waiting["call"])
    assert "dead: `asset-sync queue retry` tries it again" in shown(synced)["call"]


def test_a_closed_market_is_shown_with_its_opening(machine: Machine) -> None:
    now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    begin, end = now + timedelta(hours=2), now - timedelta(hours=1)
    machine.file(f'{ETHER}hours = ["{begin:%a %H:%M} - {end:%a %H:%M} UTC"]\n')

    assert shown(machine)["market"].startswith(f"closed until {begin:%Y-%m-%d %H:%M} UTC, in ")
    assert as_json(machine)["closes_at"] is None


def test_an_open_market_is_shown_with_its_closing(machine: Machine) -> None:
    now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    begin, end = now - timedelta(hours=1), now + timedelta(hours=2)
    machine.file(f'{ETHER}hours = ["{begin:%a %H:%M} - {end:%a %H:%M} UTC"]\n')

    assert shown(machine)["market"].startswith(f"open until {end:%Y-%m-%d %H:%M} UTC, in ")
    assert as_json(machine)["closes_at"] == end.isoformat()


def test_empty_ranges_and_revisions_are_counted_with_the_next_try(
    synced: Machine, db: Connection
) -> None:
    query(
        db,
        """
        update asset_sync.weeks set empty_slots = 7, next_try_at = '2031-01-02 03:04:00+00'
        where week = (select max(week) from asset_sync.weeks);
        insert into asset_sync.revisions (symbol, ts) values ('ETHUSDT', now()), ('OTHER', now())
        """,
    )
    told = synced.tell("assets", "show", "ETHUSDT").out

    assert re.search(r"\b\d+ bars asked and empty, next: 2031-01-02 03:04 UTC", told)
    assert as_json(synced)["revisions"] == 1
    assert shown(synced)["revisions"] == "1 bar changed after being stored"


def test_the_lag_is_shown_once_enough_was_measured(machine: Machine, db: Connection) -> None:
    with transaction(db) as cursor:
        for _ in range(LEAST_LAGS):
            ledger.note_lag(cursor, "free", "crypto", 90.0)

    line = shown(machine)["lag"]
    assert line == "half 1 min 30 s, 95 % 1 min 30 s, 99 % 1 min 30 s (20 measured)"
    assert as_json(machine)["lag"]["p99_seconds"] == 90


def test_an_asset_that_is_switched_off_has_no_history_to_come(machine: Machine) -> None:
    machine.file(f"{ETHER}enabled = false\n")

    assert "high (switched off)" in shown(machine)["ETHUSDT"]
    assert as_json(machine)["history"] is None


def test_an_asset_that_is_switched_off_has_no_next_call(synced: Machine) -> None:
    assert "the next in" in shown(synced)["call"]
    synced.file(f"{ETHER}enabled = false\n")

    assert shown(synced)["call"].endswith("; none follows while it is switched off")
    found = as_json(synced)
    assert (found["next_call_at"], found["feeds"][0]["next_at"]) == (None, None)


def test_a_mistyped_symbol_gets_the_likely_one(machine: Machine) -> None:
    told = machine.tell("assets", "show", "ETHUSTD")

    assert told.code == 2
    assert "Did you mean ETHUSDT?" in re.sub(r"[\s│]+", " ", told.err)


def test_without_a_database_the_settings_are_shown(machine: Machine) -> None:
    nowhere = "postgresql://127.0.0.1:1/market"
    told = machine.tell("assets", "show", "ETHUSDT", DATABASE_URL=nowhere)

    assert told.code == 0
    assert told.out == "ETHUSDT    Ether, X:ETHUSDT, crypto, high, every 5 min\n"
    assert "What is stored could not be read: " in told.err
    found = json.loads(
        machine.tell("assets", "show", "ETHUSDT", "--json", DATABASE_URL=nowhere).out
    )
    assert (found["symbol"], found["bars"], found["history"]) == ("ETHUSDT", None, None)


def test_what_another_program_wrote_into_the_metadata_ends_nothing(
    synced: Machine, db: Connection
) -> None:
    for written in ('{"last_update": {"last_price": "x", "timestamp": 7}}', "[]", "null"):
        query(db, "update trading.symbols set metadata = %s", (written,))
        assert shown(synced)["price"] == "none yet"
