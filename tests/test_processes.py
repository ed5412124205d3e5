"""The program as cron starts it: real processes, a real clock, and the stand-in's log."""

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from machine import Machine, Process, until

from asset_sync.database import Connection, Row, query
from asset_sync.demo.replay import INSTRUMENTS
from asset_sync.demo.sandbox import bars_unlike_the_replay
from asset_sync.demo.server import StandIn
from asset_sync.settings import SHIPPED_FILE

WINDOW_SECONDS = 3
PASSWORD = "never-to-be-shown"
SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)]
OTHER_SYMBOLS = ["ETHUSDT", "GBPUSD", "USDJPY", "XAGUSD"]

ETHER = """
[[secondary_assets]]
symbol = "ETHUSDT"
polygon_ticker = "X:ETHUSDT"
asset_type = "crypto"
"""


@pytest.fixture
def api() -> Iterator[StandIn]:
    with StandIn("free", calls=5, period_seconds=WINDOW_SECONDS, key="a-secret-key") as server:
        yield server


@pytest.fixture
def host(tmp_path: Path, url: str, api: StandIn) -> Iterator[Machine]:
    """The shipped assets and a window short enough to wait for."""
    shipped = SHIPPED_FILE.read_text()
    window = shipped.replace("# calls = 5", "calls = 5").replace(
        "# period_seconds = 60", f"period_seconds = {WINDOW_SECONDS}"
    )
    assert window != shipped
    with Machine(tmp_path, url, api, secrets=(PASSWORD, api.key, "another-key")) as machine:
        machine.file(window)
        yield machine


@contextmanager
def in_the_middle_of_a_call(host: Machine, api: StandIn) -> Iterator[Process]:
    """Give a run whose request the server has received and does not answer."""
    api.set_faults(["stall@X:ETHUSDT"])
    process = host.start("sync", "queue")
    until(lambda: api.log)
    yield process
    api.set_faults([])


def item(db: Connection, symbol: str) -> Row:
    [row] = query(
        db, "select state, attempts, level from asset_sync.queue where symbol = %s", (symbol,)
    )
    return row


def in_flight(db: Connection) -> int:
    [(count,)] = query(db, "select count(token) from asset_sync.slots")
    return int(count)


# --- many at once -----------------------------------------------------------------------------


def test_eight_processes_keep_the_limit_and_serve_each_asset_once(
    host: Machine, db: Connection, url: str, api: StandIn
) -> None:
    with StandIn(
        "free",
        calls=5,
        period_seconds=WINDOW_SECONDS,
        latency=(0.0, 2.0),
        key=api.key,
    ) as slow:
        host.environ["POLYGON_BASE_URL"] = slow.base_url
        started = [host.start("sync", lane, "--json") for lane in ("priority", "queue") * 4]
        ended = [host.end(process) for process in started]
        assert [code for code, _, _ in ended] == [0] * 8, ended
        assert slow.refused == 0
        assert slow.most_in_a_window() <= 5
        assert slow.calls_by_ticker() == dict.fromkeys(INSTRUMENTS, 1)
    reports = [json.loads(out) for _, out, _ in ended]
    assert all(report["failed"] == [] for report in reports)
    updated = sorted(symbol for report in reports for symbol in report["updated"])
    assert updated == sorted(["BTCUSD", "EURUSD", "XAUUSD", *OTHER_SYMBOLS])
    stored, different = bars_unlike_the_replay(db)
    assert stored == sum(report["bars_written"] for report in reports)
    assert different == 0
    assert in_flight(db) == 0


# --- death ------------------------------------------------------------------------------------


def test_after_a_kill_in_the_middle_of_a_call_the_next_runs_do_the_rest(
    host: Machine, db: Connection, api: StandIn
) -> None:
    with in_the_middle_of_a_call(host, api) as process:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert item(db, "ETHUSDT") == ("leased", 1, "medium")
    assert in_flight(db) == 1
    # Its lease has not ended: no other run takes the item, and all other items are served.
    code, out, _ = host.run("sync", "queue", "--json", "--max-runtime", "10")
    assert (code, json.loads(out)["updated"]) == (0, OTHER_SYMBOLS[1:])
    assert item(db, "ETHUSDT") == ("leased", 1, "medium")
    # After the lease and the longest call; the next run has no other slot.
    query(
        db,
        """
        update asset_sync.queue set lease_until = now() where state = 'leased';
        update asset_sync.slots set stamped_at = now(), open_seconds = 3600 where token is null;
        update asset_sync.slots set stamped_at = stamped_at - make_interval(secs => %s)
        where token is not null
        """,
        (30 + 2.5 * WINDOW_SECONDS,),
    )
    code, out, _ = host.run("sync", "queue", "--json", "--max-runtime", "10")
    assert (code, json.loads(out)["updated"]) == (0, OTHER_SYMBOLS[:1])
    assert item(db, "ETHUSDT") == ("idle", 0, "medium")
    assert in_flight(db) == 0
    stored, different = bars_unlike_the_replay(db)
    assert (stored > 0, different) == (True, 0)
    assert (api.refused, api.calls_by_ticker()["X:ETHUSDT"]) == (0, 2)
    reasons = query(db, "select reason_ended from asset_sync.runs order by id")
    assert reasons == [(None,), ("done",), ("done",)]


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_in_the_middle_of_a_call_ends_the_run_and_gives_the_item_back(
    host: Machine, db: Connection, api: StandIn, number: signal.Signals, code: int
) -> None:
    with in_the_middle_of_a_call(host, api) as process:
        began = time.monotonic()
        process.send_signal(number)
        ended, out, _ = host.end(process)
        assert time.monotonic() - began < 2
    assert (ended, out) == (code, "")
    assert item(db, "ETHUSDT") == ("waiting", 0, "medium")
    assert in_flight(db) == 0
    assert query(db, "select reason_ended from asset_sync.runs") == [("interrupted",)]
    assert host.run("sync", "queue")[0] == 0
    assert bars_unlike_the_replay(db)[1] == 0


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_while_a_run_waits_for_a_slot_ends_it(
    host: Machine, db: Connection, api: StandIn, number: signal.Signals, code: int
) -> None:
    query(
        db,
        """
        update asset_sync.limiter
        set blocked_at = now(), blocked_until = now() + interval '100 s'
        """,
    )
    process = host.start("-v", "sync", "queue")
    assert process.stderr is not None
    until(lambda: "waiting" in process.stderr.readline())  # type: ignore[union-attr]
    began = time.monotonic()
    process.send_signal(number)
    assert host.end(process)[0] == code
    assert time.monotonic() - began < 2
    assert query(db, "select count(*) from asset_sync.queue where state = 'leased'") == [(0,)]
    assert api.log == []


# --- exit codes -------------------------------------------------------------------------------


def test_exit_0_for_done_and_for_nothing_due(host: Machine) -> None:
    host.file(ETHER)
    code, out, err = host.run("sync", "queue", "-q")
    assert (code, out, err) == (0, "", "")
    code, out, err = host.run("sync", "queue")
    assert (code, err) == (0, "")
    assert "Nothing was due" in out


def test_exit_0_for_a_budget_that_is_used_up(host: Machine, api: StandIn) -> None:
    host.file(ETHER)
    api.set_faults(["rate-limit"])
    code, out, _ = host.run("sync", "queue", "--max-runtime", "2")
    assert code == 0
    assert "the next run continues" in out


def test_exit_1_for_a_mistyped_ticker(host: Machine) -> None:
    host.file(ETHER.replace("X:ETHUSDT", "X:TYPO"))
    code, out, err = host.run("sync", "queue", "-q", "--max-runtime", "20")
    assert (code, out) == (1, "")
    assert _one_sentence(err)
    assert "X:TYPO" in err


def test_exit_1_for_a_provider_that_does_not_answer(host: Machine, api: StandIn) -> None:
    api.set_faults(["reset"])
    code, out, err = host.run("sync", "queue", "-q", "--max-runtime", "5")
    assert (code, out) == (1, "")
    assert _one_sentence(err)


def test_exit_2_for_an_option_that_does_not_exist(host: Machine) -> None:
    code, out, err = host.run("sync", "queue", "--max-runtim", "3")
    assert (code, out) == (2, "")
    assert "--max-runtim" in err


def test_exit_2_for_a_missing_key_and_for_mistakes_in_the_file(host: Machine) -> None:
    code, out, err = host.run("sync", "queue", POLYGON_API_KEY="")
    assert (code, out) == (2, "")
    assert "POLYGON_API_KEY is not set" in err
    host.file(ETHER.replace("crypto", "crypt"))
    code, out, err = host.run("sync", "queue")
    assert (code, out) == (2, "")
    assert _one_sentence(err)
    assert "crypt" in err


def test_exit_2_for_settings_that_everybody_may_write(host: Machine) -> None:
    (host.home / "assets.toml").chmod(0o666)

    code, out, err = host.run("sync", "queue")

    assert (code, out) == (2, "")
    assert _one_sentence(err)
    assert "can be changed by every account: run `chmod o-w" in err


def test_exit_3_for_a_database_that_is_not_reachable(host: Machine) -> None:
    address = f"postgresql://somebody:{PASSWORD}@127.0.0.1:1/prices"
    for command in (("sync", "queue"), ("sync", "priority", "--dry-run"), ("queue", "status")):
        code, out, err = host.run(*command, DATABASE_URL=address)
        assert (code, out) == (3, "")
        assert _one_sentence(err)
        assert "nothing listens" in err


def test_exit_4_for_a_key_that_the_api_does_not_know(host: Machine, db: Connection) -> None:
    code, out, err = host.run("sync", "queue", "-q", POLYGON_API_KEY="another-key")
    assert (code, out) == (4, "")
    assert _one_sentence(err)
    assert "POLYGON_API_KEY" in err
    assert item(db, "ETHUSDT") == ("waiting", 0, "medium")


def test_exit_4_for_a_plan_without_bars(host: Machine, api: StandIn) -> None:
    api.set_faults(["forbidden"])
    code, out, err = host.run("sync", "priority", "-q")
    assert (code, out) == (4, "")
    assert _one_sentence(err)


def test_exit_0_for_a_dry_run_that_makes_no_call(
    host: Machine, db: Connection, api: StandIn
) -> None:
    code, out, err = host.run("sync", "queue", "--dry-run", "--json")
    assert (code, err) == (0, "")
    assert [call["symbols"] for call in json.loads(out)["calls"]] == [[s] for s in OTHER_SYMBOLS]
    assert api.log == []
    assert query(db, "select count(*) from asset_sync.queue") == [(0,)]


def _one_sentence(err: str) -> bool:
    """Return whether this is one line that ends like a sentence."""
    return err.count("\n") == 1 and err.endswith(".\n")
