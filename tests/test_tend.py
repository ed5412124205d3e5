"""The commands with which an operator views and changes the queue and the history."""

import json
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest
from conftest import MakeSettings, ShiftingClock, asset, in_line

from asset_sync import queue
from asset_sync.cli import main
from asset_sync.database import Connection, query, transaction
from asset_sync.demo.server import StandIn
from asset_sync.model import Feed, Lane, Level
from asset_sync.queue import admin
from asset_sync.settings import QueueSettings
from asset_sync.store import runs
from asset_sync.sync import loop

SETTINGS = QueueSettings(max_attempts=1)
Told: TypeAlias = tuple[int, str, str]
Tell: TypeAlias = Callable[..., Told]


@pytest.fixture
def tell(url: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Tell:
    """Run a command and return its exit code, stdout and stderr."""
    monkeypatch.setenv("DATABASE_URL", url)

    def run(*arguments: str) -> Told:
        monkeypatch.setattr(sys, "argv", ["asset-sync", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        return int(ended.value.code or 0), out, err

    return run


@pytest.fixture
def in_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings with A to D and a new asset that no run has enqueued yet; E is switched off."""
    blocks = [
        f'[[secondary_assets]]\nsymbol = "{symbol}"\npolygon_ticker = "C:{symbol}"\n'
        f'asset_type = "forex"\nenabled = {str(symbol != "E").lower()}\n'
        for symbol in ("A", "B", "C", "D", "E", "NEW")
    ]
    (tmp_path / "assets.toml").write_text("\n".join(blocks))
    monkeypatch.setenv("ASSET_SYNC_CONFIG", str(tmp_path / "assets.toml"))


@pytest.fixture
def stocked(db: Connection) -> Connection:
    """A queue in which A is dead, B waits, C is fresh, and a run holds D."""
    wanted = [queue.Wanted(asset(symbol, Level.HIGH), Feed.BARS) for symbol in "ADCB"]
    for one in wanted:
        queue.enqueue(db, [one], SETTINGS)
        items = () if one.asset.symbol == "B" else _claim(db)
        with transaction(db) as cursor:
            if one.asset.symbol == "A":
                queue.fail(cursor, items[0], "No such thing.", SETTINGS)
            if one.asset.symbol == "C":
                queue.finish(cursor, items)
    return db


def _claim(db: Connection) -> tuple[queue.Item, ...]:
    return queue.claim(db, in_line(db, Lane.QUEUE), lease_seconds=60, most=1)


def states(db: Connection) -> dict[str, str]:
    return dict(query(db, "select symbol, state from asset_sync.queue"))


# --- list -------------------------------------------------------------------------------------


def test_the_list_begins_with_items_that_need_attention(stocked: Connection) -> None:
    found = admin.entries(stocked)

    assert [(one.symbol, one.state) for one in found] == [
        ("A", "dead"),
        ("D", "leased"),
        ("B", "waiting"),
        ("C", "idle"),
    ]
    assert found[0].last_error == "No such thing."


@pytest.mark.parametrize(
    ("options", "symbols"),
    [
        (["--state", "dead"], ["A"]),
        (["--state", "dead", "--state", "idle"], ["A", "C"]),
        (["--level", "low"], ["A"]),
        (["--level", "critical"], []),
        (["B", "C"], ["B", "C"]),
    ],
    ids=" ".join,
)
def test_the_list_can_be_narrowed(
    stocked: Connection, tell: Tell, options: list[str], symbols: list[str]
) -> None:
    code, out, _ = tell("queue", "list", "--json", *options)

    assert code == 0
    assert [item["symbol"] for item in json.loads(out)["items"]] == symbols


def test_a_list_that_is_cut_says_how_many_more_items_there_are(
    stocked: Connection, tell: Tell
) -> None:
    _, out, err = tell("queue", "list", "--limit", "1")
    assert len(json.loads(tell("queue", "list", "--limit", "1", "--json")[1])["items"]) == 1
    assert out.splitlines()[1].split()[0] == "A"
    assert "3 more are not shown: --limit 4 lists them all." in err

    assert tell("queue", "list", "--limit", "4")[2] == ""
    assert tell("queue", "list", "--limit", "1", "--state", "dead")[2] == ""


def test_a_list_of_more_than_a_thousand_items_says_that_it_is_cut(
    db: Connection, tell: Tell
) -> None:
    query(
        db,
        """
        insert into asset_sync.queue (symbol, feed, ticker, asset_type, name, level)
        select 'A' || n, 'bars', 'C:A' || n, 'forex', 'A', 'low' from generate_series(1, 1002) n
        """,
    )

    _, out, err = tell("queue", "list")

    assert len(out.splitlines()) == 1001
    assert "2 more are not shown: --limit 1002" in err


def test_the_list_says_why_an_item_is_dead(stocked: Connection, tell: Tell) -> None:
    _, out, _ = tell("queue", "list", "--state", "dead")

    assert "A: No such thing." in out


def test_a_feed_of_a_newer_version_is_listed_and_claimed_by_no_run(
    stocked: Connection, tell: Tell
) -> None:
    query(
        stocked,
        """
        insert into asset_sync.queue (symbol, feed, ticker, asset_type, name, level, state)
        values ('B', 'daily', 'C:B', 'forex', 'B', 'low', 'dead')
        """,
    )
    code, out, _ = tell("queue", "list", "B", "--json")
    assert code == 0
    assert {one["feed"] for one in json.loads(out)["items"]} == {"bars", "daily"}
    line = [queue.Wanted(asset("B", Level.HIGH), Feed.BARS)]
    claimed = queue.claim(stocked, line, lease_seconds=60, most=9)
    assert [str(item.feed) for item in claimed] == ["bars"]
    assert "daily" not in Feed.known


@pytest.mark.usefixtures("in_settings")
def test_a_dead_item_is_listed_without_a_delay(stocked: Connection, tell: Tell) -> None:
    [_, row, *_] = tell("queue", "list", "--state", "dead")[1].splitlines()

    assert row.split()[:5] == ["A", "bars", "low", "dead", "-"]


def test_a_mistyped_symbol_gets_a_hint(stocked: Connection, tell: Tell) -> None:
    with transaction(stocked) as cursor:
        cursor.execute("update asset_sync.queue set symbol = 'EURUSD' where symbol = 'B'")

    code, _, err = tell("queue", "retry", "eurusf")

    assert code == 2
    assert "Did you mean EURUSD?" in err


def test_an_unknown_state_is_a_usage_error(stocked: Connection, tell: Tell) -> None:
    code, _, err = tell("queue", "list", "--state", "asleep")

    assert code == 2
    assert "waiting, leased, dead, idle" in err


# --- retry ------------------------------------------------------------------------------------


def test_retry_makes_a_dead_item_wait_again(stocked: Connection, tell: Tell) -> None:
    code, out, _ = tell("queue", "retry", "A")

    assert code == 0
    assert "A" in out
    [entry] = admin.entries(stocked, symbols=["A"])
    assert (entry.state, entry.attempts, entry.last_error) == ("waiting", 0, None)
    assert {item.symbol for item in (*_claim(stocked), *_claim(stocked))} == {"A", "B"}


def test_retry_without_a_symbol_retries_all_dead_and_delayed_items(
    stocked: Connection,
) -> None:
    query(
        stocked,
        "update asset_sync.queue set not_before = now() + interval '1 h' where symbol = 'B'",
    )

    changed = admin.retry(stocked, [])

    assert [one.symbol for one in changed] == ["A", "B"]
    assert states(stocked) == {"A": "waiting", "B": "waiting", "C": "idle", "D": "leased"}


def test_retry_forgets_that_the_provider_did_not_know_the_ticker(
    db: Connection, make_settings: MakeSettings
) -> None:
    toml = """
    [[secondary_assets]]
    symbol = "ETHUSDT"
    polygon_ticker = "X:ETHUSDT"
    asset_type = "crypto"
    """
    with StandIn("free", faults=["not-found"]) as api:
        loop.run(db, make_settings(api, toml=toml), Lane.QUEUE, limit=1)
    admin.retry(db, ["ETHUSDT"])
    with StandIn("free") as api:
        report = loop.run(db, make_settings(api, toml=toml), Lane.QUEUE, limit=1)

    assert (report.updated, report.failed) == (["ETHUSDT"], [])


# --- add --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("in_settings")
def test_add_enqueues_a_fresh_asset_before_it_is_due(stocked: Connection, tell: Tell) -> None:
    code, _, _ = tell("queue", "add", "C")

    assert code == 0
    assert states(stocked)["C"] == "waiting"


@pytest.mark.usefixtures("in_settings")
def test_add_does_not_change_an_item_that_a_run_holds(stocked: Connection, tell: Tell) -> None:
    code, out, _ = tell("queue", "add", "D")

    assert code == 0
    assert "D is leased: a run works on it" in out
    assert states(stocked)["D"] == "leased"


@pytest.mark.usefixtures("in_settings")
def test_add_answers_for_each_symbol(stocked: Connection, tell: Tell) -> None:
    code, out, _ = tell("queue", "add", "A", "B", "C", "D", "NEW")

    assert code == 0
    [_, added, *others] = out.splitlines()
    assert added.split()[:4] == ["C", "bars", "high", "waiting"]
    assert others == [
        "A is dead: `asset-sync queue retry A` tries it again.",
        "B is in line already.",
        "D is leased: a run works on it now.",
        "NEW waits for its first run, which refreshes it.",
    ]


@pytest.mark.usefixtures("in_settings")
def test_add_refuses_an_asset_that_no_run_refreshes(stocked: Connection, tell: Tell) -> None:
    query(stocked, "update asset_sync.queue set symbol = 'OLD' where symbol = 'B'")
    query(stocked, "update asset_sync.queue set symbol = 'E', state = 'idle' where symbol = 'C'")

    code, out, _ = tell("queue", "add", "OLD", "E")

    assert code == 0
    assert out.splitlines() == [
        (
            "OLD is not in the settings, so no run refreshes it; `asset-sync queue remove OLD`"
            " takes it out of the queue."
        ),
        "E is switched off in the settings (enabled = false); no run refreshes it.",
    ]
    assert states(stocked)["E"] == "idle"


@pytest.mark.usefixtures("in_settings")
def test_the_list_marks_items_that_no_run_refreshes(stocked: Connection, tell: Tell) -> None:
    query(stocked, "update asset_sync.queue set symbol = 'OLD' where symbol = 'B'")
    query(stocked, "update asset_sync.queue set symbol = 'E' where symbol = 'C'")

    _, out, _ = tell("queue", "list", "OLD", "E")
    _, as_json, _ = tell("queue", "list", "--json")

    assert [" ".join(row.split()[3:5]) for row in out.splitlines()[1:]] == ["left over", "off -"]
    wanted = {one["symbol"]: one["wanted"] for one in json.loads(as_json)["items"]}
    assert wanted == {"A": True, "D": True, "OLD": False, "E": False}


# --- remove -----------------------------------------------------------------------------------


def test_remove_deletes_an_asset_after_yes(stocked: Connection, tell: Tell) -> None:
    code, out, err = tell("queue", "remove", "A", "B", "D", "--yes")

    assert code == 0
    assert set(states(stocked)) == {"C", "D"}
    assert out.splitlines() == [
        "Removed A, B from the queue. Bars and prices stay.",
        "D is leased: a run works on it now. It was not removed; try again later.",
    ]
    assert err == "", "none of them is in the settings"


def test_remove_says_that_an_asset_in_the_settings_will_come_back(
    stocked: Connection, tell: Tell
) -> None:
    query(stocked, "update asset_sync.queue set symbol = 'EURUSD' where symbol = 'B'")

    _, _, err = tell("queue", "remove", "EURUSD", "A", "--yes")

    assert err.startswith("EURUSD: still in the settings, so the next run adds it again.")


def test_remove_without_a_terminal_removes_nothing(
    stocked: Connection, tell: Tell, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open("/dev/null") as nobody:  # noqa: PTH123
        monkeypatch.setattr(sys, "stdin", nobody)
        code, _, err = tell("queue", "remove", "A")

    assert code == 2
    assert "--yes" in err
    assert "A" in states(stocked)


def test_remove_keeps_an_item_that_a_run_holds(stocked: Connection, tell: Tell) -> None:
    code, out, _ = tell("queue", "remove", "D", "--yes")

    assert code == 0
    assert "was not removed" in out
    assert states(stocked)["D"] == "leased"


@pytest.mark.usefixtures("in_settings")
@pytest.mark.parametrize("command", [("retry", "A"), ("add", "C"), ("remove", "A")], ids=" ".join)
def test_a_dry_run_says_what_it_would_do_and_does_nothing(
    stocked: Connection, tell: Tell, command: tuple[str, str]
) -> None:
    before = admin.entries(stocked)

    code, out, _ = tell("queue", *command, "--dry-run", "--json")

    assert code == 0
    assert [item["symbol"] for item in json.loads(out)["items"]] == [command[1]]
    after = admin.entries(stocked)
    assert [one._replace(wait_seconds=0) for one in after] == [
        one._replace(wait_seconds=0) for one in before
    ]


# --- runs -------------------------------------------------------------------------------------


@pytest.fixture
def history(db: Connection, clock: ShiftingClock) -> int:
    """Record a run that ended and one that was killed after a call; return the second's number."""
    first = runs.start(db, "priority")
    runs.end(db, first, "done", updated=3, failed=0, waited_seconds=1.5)
    second = runs.start(db, "queue")
    with transaction(db) as cursor:
        made = runs.Call(Feed.BARS, ["EURUSD"], "unreadable", 0.25, 7, "rubbish.")
        runs.record(cursor, second, made)
    return second


def test_runs_lists_what_each_run_did_and_why_it_ended(history: int, tell: Tell) -> None:
    code, out, _ = tell("runs", "--json")

    assert code == 0
    [second, first] = json.loads(out)["runs"]
    assert (first["command"], first["reason_ended"], first["waited_seconds"]) == (
        *("priority", "done", 1.5),
    )
    assert (second["id"], second["reason_ended"]) == (history, None)
    assert (second["api_calls"], second["bars_written"]) == (1, 7), "what it did until it died"


def test_runs_show_lists_the_calls_and_their_errors(history: int, tell: Tell) -> None:
    _, as_json, _ = tell("runs", "show", str(history), "--json")
    code, shown, _ = tell("runs", "show", str(history))

    [call] = json.loads(as_json)["calls"]
    assert (call["symbols"], call["outcome"], call["seconds"]) == (["EURUSD"], "unreadable", 0.25)
    assert code == 0
    assert "at work" in shown
    assert "EURUSD: rubbish." in shown


def test_runs_show_names_the_host_and_each_errors_asset_once(history: int, tell: Tell) -> None:
    shown = tell("runs", "show", str(history))[1]

    assert f"It ran on {socket.gethostname()}." in shown
    assert "\nEURUSD: rubbish." in shown


def test_runs_names_the_hosts_if_there_are_several(db: Connection, tell: Tell) -> None:
    query(
        db,
        """
        insert into asset_sync.runs (command, host, pid, started_at)
        select 'queue', host, 1, at
        from (values ('old', '2026-11-01 10:00Z'::timestamptz), ('new', '2026-11-01 10:05Z'),
          ('new', '2026-11-01 10:10Z')) as run (host, at)
        """,
    )

    assert "Hosts: new (last 11-01 10:10:00), old (last 11-01 10:00:00)" in tell("runs")[1]
    assert "Hosts:" not in tell("runs", "--limit", "2")[1]


def test_an_unknown_run_gives_a_sentence_and_exit_2(db: Connection, tell: Tell) -> None:
    code, out, err = tell("runs", "show", "4711")

    assert (code, out) == (2, "")
    assert "there is no run 4711" in err


def test_runs_says_what_to_do_before_the_first_run(db: Connection, tell: Tell) -> None:
    assert "--dry-run" in tell("runs")[1]
