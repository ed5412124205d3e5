"""The command line as a new user, a program, cron and a terminal use it."""

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

import psycopg2
import pytest
from commandline import asset_sync, without_times
from machine import Machine
from proxy import Proxy

from asset_sync import queue
from asset_sync.budget import slots
from asset_sync.cli.log import sentence
from asset_sync.cli.output import filled
from asset_sync.database import Connection, query
from asset_sync.demo.server import StandIn
from asset_sync.model import Feed, Lane
from asset_sync.settings import SHIPPED_FILE, QueueSettings, load
from asset_sync.store import runs
from asset_sync.sync.progress import Waiting
from asset_sync.sync.report import Ended

KEY = "demo-key"
COMMANDS = (
    ("sync", "priority"),
    ("sync", "queue"),
    ("queue", "status"),
    ("queue", "list"),
    ("queue", "retry"),
    ("queue", "add"),
    ("queue", "remove"),
    ("health",),
    ("metrics",),
    ("report",),
    ("doctor",),
    ("plan",),
    ("runs",),
    ("runs", "show"),
    ("assets", "list"),
    ("assets", "add"),
    ("assets", "remove"),
    ("assets", "import"),
    ("assets", "check"),
    ("db", "init"),
    ("db", "status"),
    ("db", "serve"),
    ("db", "url"),
    ("demo",),
    ("demo", "serve"),
)

Completed: TypeAlias = subprocess.CompletedProcess[str]
Run: TypeAlias = Callable[..., Completed]


@pytest.fixture
def machine(url: str, tmp_path: Path) -> Iterator[Machine]:
    """A new user's machine, with a database."""
    with Machine(tmp_path, url, POLYGON_API_KEY=KEY) as machine:
        yield machine


@pytest.fixture
def environ(machine: Machine) -> dict[str, str]:
    return machine.environ


@pytest.fixture
def run(machine: Machine) -> Run:
    """Run the command line within this process."""

    def run(*arguments: str, **changes: str) -> Completed:
        return Completed(arguments, *machine.tell(*arguments, **changes))

    return run


@pytest.fixture
def at_home() -> Iterator[Machine]:
    """A machine with an embedded database.

    Not in pytest's own directory: each session of pytest closes it to other accounts, and the
    server may run as another account.
    """
    with TemporaryDirectory(prefix="as-") as home, Machine(Path(home)) as machine:
        yield machine


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    with StandIn("free", calls=20, key=KEY) as server:
        yield server


# --- a new user -------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_the_help_of_every_command_has_an_example(run: Run, command: tuple[str, ...]) -> None:
    shown = run(*command, "--help", COLUMNS="80")

    assert shown.returncode == 0
    assert "Example: " in shown.stdout
    assert "{" not in next(line for line in shown.stdout.splitlines() if "Usage:" in line)
    assert max(map(len, shown.stdout.splitlines())) <= 80


def test_the_program_prints_its_version(run: Run) -> None:
    assert re.fullmatch(r"asset-sync \d+\.\d+\.\d+\n", run("--version").stdout)


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("snc",), "Did you mean 'sync'?"),
        (("sync", "prioritty"), "Did you mean 'priority'?"),
        (("helth",), "Did you mean 'health'?"),
        (("queue", "stauts"), "Did you mean 'status'?"),
        (("runs", "shw"), "Did you mean 'show'?"),
        (("health", "--jsn"), "--json"),
        (("sync", "queue", "--dryrun"), "--dry-run"),
        (("sync", "queue", "--limit", "0"), "--limit"),
        (("sync", "queue", "--max-runtime", "soon"), "--max-runtime"),
        (("sync", "queue", "--max-runtime", "inf"), "--max-runtime"),
        (("sync", "queue", "--max-runtime", "nan"), "--max-runtime"),
        (("assets", "check", "--max-runtime", "inf"), "--max-runtime"),
        (("runs", "--limit", "99999999999999999999"), "--limit"),
        (("queue", "list", "--limit", "99999999999999999999"), "--limit"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_typing_mistake_gets_a_hint_and_exit_2(
    run: Run, arguments: tuple[str, ...], hint: str
) -> None:
    answer = run(*arguments)

    assert answer.returncode == 2
    assert hint in answer.stderr
    assert not answer.stdout


def test_bash_completes_commands_once_completion_is_installed(
    environ: dict[str, str], tmp_path: Path
) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash here")
    programs = Path(sys.executable).parent
    typing = """
        asset-sync --install-completion >&2 && . "$HOME/.bashrc"
        COMP_WORDS=(asset-sync queue st) COMP_CWORD=2
        _asset_sync_completion asset-sync
        echo "${COMPREPLY[@]}"
    """

    shown = subprocess.run(
        [bash, "--norc", "-c", typing],
        env={**environ, "PATH": f"{programs}:{environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert shown.stdout == "status\n", shown.stderr
    assert str(tmp_path) in shown.stderr, "it says what it wrote"


def test_without_a_key_a_run_says_how_to_set_one_and_which_commands_work_without(run: Run) -> None:
    answer = run("sync", "priority", POLYGON_API_KEY="")

    assert answer.returncode == 2
    assert "POLYGON_API_KEY is not set" in answer.stderr
    assert "asset-sync demo" in answer.stderr


def test_all_mistakes_in_the_settings_are_reported_at_once_with_exit_2(run: Run) -> None:
    answer = run("assets", "list", POLYGON_TIER="gold", QUEUE_MAX_SIZE="many")

    assert answer.returncode == 2
    assert "POLYGON_TIER" in answer.stderr
    assert "QUEUE_MAX_SIZE" in answer.stderr


def test_verbose_says_which_settings_are_in_force(run: Run, tmp_path: Path) -> None:
    (tmp_path / "assets.toml").write_text('[provider]\nplan = "starter"\n')

    before, after = run("-v", "queue", "status"), run("queue", "status", "-v")

    assert "assets.toml" in before.stderr
    assert "starter" in before.stderr
    assert before.stderr == after.stderr, "an option means the same before and after the command"


def test_a_bug_is_reported_without_a_traceback_and_without_data(
    environ: Mapping[str, str],
) -> None:
    script = """
import typer
from asset_sync.cli import app, main

def boom() -> None:
    raise RuntimeError("the key is sesame")

own = typer.Typer(add_completion=False)
own.command("boom")(boom)
app.commands["boom"] = typer.main.get_command(own)
main()
"""
    answer = subprocess.run(
        [sys.executable, "-c", script, "boom"],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )

    assert answer.returncode == 70
    assert "this is a bug (RuntimeError at <string>:6 in boom)" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert "sesame" not in answer.stderr


# --- a program --------------------------------------------------------------------------------


def test_a_run_with_json_reports_what_it_did(run: Run, stand_in: StandIn) -> None:
    answer = run("sync", "priority", "--json", POLYGON_BASE_URL=stand_in.base_url)

    assert answer.returncode == 0
    told = json.loads(answer.stdout)
    assert told["updated"] == ["XAUUSD", "EURUSD", "BTCUSD"]
    assert told["failed"] == []
    assert told["api_calls_used"] == 3
    assert told["bars_written"] > 20_000
    assert told["waited_seconds"] == 0
    assert told["reason_ended"] == "done"
    assert isinstance(told["run_id"], int)


def test_the_status_with_json_reports_queue_and_budget(run: Run, stand_in: StandIn) -> None:
    run("sync", "priority", POLYGON_BASE_URL=stand_in.base_url)
    run("sync", "queue", "--limit", "1", POLYGON_BASE_URL=stand_in.base_url)

    told = json.loads(run("queue", "status", "--json").stdout)

    assert told["total_items"] == 3
    assert told["by_priority"] == {"CRITICAL": 0, "HIGH": 0, "MEDIUM": 3, "LOW": 0}
    assert told["oldest_item_age_seconds"] > 0
    assert (told["leased"], told["dead"]) == (0, 0)
    assert told["api_calls_remaining"] == 1
    assert told["next_slot_in_seconds"] == 0
    assert told["last_priority_update"].endswith("+00:00")
    assert [one["command"] for one in told["last_runs"]] == ["queue", "priority"]


def test_a_dry_run_names_each_call_and_makes_none(run: Run, stand_in: StandIn) -> None:
    answer = run("sync", "priority", "--dry-run", "--json", POLYGON_BASE_URL=stand_in.base_url)

    told = json.loads(answer.stdout)
    assert [call["symbols"] for call in told["calls"]] == [["XAUUSD"], ["EURUSD"], ["BTCUSD"]]
    assert "/v2/aggs/ticker/C:XAUUSD/range/5/minute/" in told["calls"][0]["endpoint"]
    assert stand_in.log == []


def test_the_assets_are_listed_even_while_the_database_is_down(run: Run) -> None:
    answer = run("assets", "list", "--json", DATABASE_URL="postgresql://me@127.0.0.1:1/x")

    assert answer.returncode == 0
    assert len(json.loads(answer.stdout)["assets"]) == 7
    assert "could not be read" in answer.stderr
    table = run("assets", "list", DATABASE_URL="postgresql://me@127.0.0.1:1/x").stdout
    assert [line.split()[-2:] for line in table.splitlines()[1:]] == [["-", "-"]] * 7


# --- cron -------------------------------------------------------------------------------------


def test_quiet_prints_nothing_if_all_is_well(run: Run, stand_in: StandIn) -> None:
    answer = run("sync", "priority", "-q", POLYGON_BASE_URL=stand_in.base_url)

    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "", "")


def test_quiet_still_prints_what_failed(run: Run) -> None:
    with StandIn("free", key=KEY, faults=["empty@C:EURUSD"]) as api:
        answer = run("sync", "priority", "-q", POLYGON_BASE_URL=api.base_url)

    assert answer.returncode == 1
    assert "EURUSD" in answer.stderr
    assert not answer.stdout


def test_without_a_terminal_a_run_prints_one_line_per_event_without_colour(
    run: Run, stand_in: StandIn
) -> None:
    answer = run("sync", "priority", POLYGON_BASE_URL=stand_in.base_url)

    assert [line.split(": ")[:2] for line in without_times(answer.stderr).splitlines()] == [
        ["run 1", "XAUUSD"],
        ["run 1", "EURUSD"],
        ["run 1", "BTCUSD"],
    ]
    assert answer.stdout.startswith("priority: 3 refreshed, 3 calls, ")
    assert "\x1b" not in answer.stderr + answer.stdout


def test_a_revoked_key_ends_with_exit_4_and_is_never_shown(run: Run, stand_in: StandIn) -> None:
    answer = run(
        "sync", "priority", POLYGON_BASE_URL=stand_in.base_url, POLYGON_API_KEY="s3same-0pen"
    )

    assert answer.returncode == 4
    assert "POLYGON_API_KEY" in answer.stderr
    assert "s3same" not in answer.stderr + answer.stdout


def test_the_message_about_a_revoked_key_names_the_file_it_was_read_from(
    run: Run, stand_in: StandIn, tmp_path: Path
) -> None:
    file = tmp_path / "key"
    file.write_text("s3same-0pen")

    answer = run(
        *("sync", "priority"),
        POLYGON_BASE_URL=stand_in.base_url,
        POLYGON_API_KEY="",
        POLYGON_API_KEY_FILE=str(file),
    )

    assert answer.returncode == 4
    assert f"check POLYGON_API_KEY_FILE ({file})" in answer.stderr
    assert "s3same" not in answer.stderr + answer.stdout


@pytest.mark.parametrize("command", [("sync", "queue"), ("queue", "status"), ("db", "status")])
def test_a_database_that_is_down_gives_one_sentence_and_exit_3(
    run: Run, command: tuple[str, ...]
) -> None:
    answer = run(*command, DATABASE_URL="postgresql://me:s3same@127.0.0.1:1/market")

    said = without_times(answer.stderr) if command[0] == "sync" else answer.stderr
    assert answer.returncode == 3
    assert said.startswith(
        'asset-sync: The database "market" at 127.0.0.1:1 is not reachable (from DATABASE_URL): '
        "nothing listens"
    )
    assert len(answer.stderr.splitlines()) == 1
    assert "s3same" not in answer.stderr


def test_verbose_names_the_database_and_where_its_address_was_read(run: Run) -> None:
    answer = run("-v", "queue", "status", DATABASE_URL="postgresql://me:s3same@127.0.0.1:1/market")

    assert 'Database: "market" at 127.0.0.1:1 (from DATABASE_URL).' in answer.stderr
    assert "s3same" not in answer.stderr


def test_for_a_database_that_was_not_initialised_the_message_names_the_command(
    run: Run, empty_url: str
) -> None:
    refused = run("sync", "queue", DATABASE_URL=empty_url)
    made = run("db", "init", DATABASE_URL=empty_url)
    again = run("db", "init", DATABASE_URL=empty_url)
    status = run("db", "status", DATABASE_URL=empty_url)

    assert refused.returncode == 3
    assert "asset-sync db init" in refused.stderr
    assert made.returncode == 0
    assert "0001" in made.stderr
    assert "Applied" not in again.stderr
    assert status.returncode == 0
    assert status.stdout.endswith("Ready.\n")


def test_db_status_names_what_is_missing_with_exit_3(run: Run, empty_url: str) -> None:
    answer = run("db", "status", "--json", DATABASE_URL=empty_url)

    assert answer.returncode == 3
    told = json.loads(answer.stdout)
    assert told["ready"] is False
    assert "asset_sync.queue" in told["missing"]


# --- a terminal -------------------------------------------------------------------------------


@contextmanager
def on_a_terminal(
    environ: Mapping[str, str], *arguments: str, columns: str = "80"
) -> Iterator["Terminal"]:
    """Run a command on a terminal."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "asset_sync", *arguments],
        env={**environ, "COLUMNS": columns, "TERM": "xterm-256color"},
        stdin=slave,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    try:
        yield Terminal(master, process)
    finally:
        process.kill()
        process.wait()
        os.close(master)


class Terminal:
    def __init__(self, master: int, process: subprocess.Popen[bytes]) -> None:
        self._master = master
        self.process = process
        self.text = ""

    def read_until(self, text: str | None) -> str:
        """Read until this is printed, or to the end."""
        while text is None or text not in self.text:
            ready, _, _ = select.select([self._master], [], [], 30)
            try:
                piece = os.read(self._master, 65536) if ready else b""
            except OSError:  # the program has ended and closed its terminal
                piece = b""
            if not piece:
                break
            self.text += piece.decode()
        return self.text


def test_a_run_shows_what_it_waits_for_and_ctrl_c_ends_it_cleanly(
    run: Run, environ: dict[str, str], stand_in: StandIn
) -> None:
    environ |= {"POLYGON_BASE_URL": stand_in.base_url}
    run("sync", "priority", **environ)

    with on_a_terminal(environ, "sync", "queue") as terminal:
        terminal.read_until("waiting for a slot")
        assert "slots: 5 used, 0 free" in terminal.text
        terminal.process.send_signal(signal.SIGINT)
        terminal.read_until(None)
        code = terminal.process.wait(timeout=2)

    assert code == 130
    assert "the item in work went back to the queue" in terminal.text
    assert terminal.text.rindex("\x1b[?25h") > terminal.text.rindex("\x1b[?25l"), "cursor is shown"
    assert "Traceback" not in terminal.text
    told = json.loads(run("queue", "status", "--json").stdout)
    assert told["leased"] == 0


@pytest.mark.parametrize("columns", ["60", "80", "120"])
def test_a_run_that_may_not_take_reserved_slots_says_for_which_run_they_are(
    environ: dict[str, str], db: Connection, stand_in: StandIn, columns: str
) -> None:
    environ |= {"POLYGON_BASE_URL": stand_in.base_url}
    slots.prepare(db, slots.Rate(5, 60, 30))
    slots.reserve(db, 5, 50)
    # If a slot comes free in half a minute, the display of the wait is short.
    query(db, "update asset_sync.slots set stamped_at = now() - interval '30 s' where slot = 1")

    with on_a_terminal(environ, "sync", "queue", columns=columns) as terminal:
        shown = terminal.read_until("for sync priority in ")
        terminal.process.send_signal(signal.SIGINT)
        terminal.read_until(None)

    assert "waiting for a slot" in shown
    assert "4 kept for sync priority in " in shown


def test_no_line_of_the_status_is_wider_than_80_columns(run: Run, environ: dict[str, str]) -> None:
    with StandIn("free", key=KEY, faults=["not-found@C:EURUSD"]) as api:
        run("sync", "priority", POLYGON_BASE_URL=api.base_url)
    run("sync", "queue", POLYGON_BASE_URL="http://127.0.0.1:1", POLYGON_RATE_LIMIT="20")
    with closing(psycopg2.connect(environ["DATABASE_URL"])) as db, db, db.cursor() as cursor:
        cursor.execute("update asset_sync.queue set state = 'dead' where symbol = 'EURUSD'")
    with on_a_terminal(environ, "queue", "status") as terminal:
        shown = terminal.read_until(None)

    lines = re.sub(r"\x1b\[[\d;]*m", "", shown).splitlines()
    assert max(map(len, lines)) <= 80
    assert "no answer" in shown
    assert "C:EURUSD" in shown
    assert "\x1b[1m" in shown


def test_watch_keeps_the_status_on_the_screen_and_restores_the_screen_at_its_end(
    environ: dict[str, str],
) -> None:
    with on_a_terminal(environ, "queue", "status", "--watch") as terminal:
        terminal.read_until("No run yet")
        terminal.text = ""
        terminal.read_until("No run yet")
        terminal.process.send_signal(signal.SIGINT)
        terminal.read_until(None)
        code = terminal.process.wait(timeout=2)

    assert code == 0
    assert "\x1b[?1049l" in terminal.text, "back on the ordinary screen"
    assert "\x1b[?25h" in terminal.text, "with its cursor"


def test_watch_waits_for_a_database_that_restarts(
    environ: dict[str, str],
) -> None:
    with Proxy(environ["DATABASE_URL"]) as proxy:
        environ["DATABASE_URL"] = proxy.url
        with on_a_terminal(environ, "queue", "status", "--watch") as terminal:
            terminal.read_until("No run yet")
            proxy.die()
            terminal.read_until("Trying again")
            away = terminal.text
            proxy.revive()
            for _ in range(30):
                terminal.text = ""
                if "Trying again" not in terminal.read_until("No run yet"):
                    break
            else:
                pytest.fail("it does not go on")
            terminal.process.send_signal(signal.SIGINT)
            terminal.read_until(None)
            code = terminal.process.wait(timeout=5)

    assert code == 0
    assert re.search(r"\d\d:\d\d:\d\d UTC, .* ago: The database", away), "since when"


def test_watch_ends_at_once_if_the_database_was_never_reachable(
    environ: dict[str, str],
) -> None:
    environ["DATABASE_URL"] = "postgresql://me@127.0.0.1:1/x"
    with on_a_terminal(environ, "queue", "status", "--watch") as terminal:
        terminal.read_until(None)
        code = terminal.process.wait(timeout=5)

    assert code == 3
    assert 'The database "x" at 127.0.0.1:1 is not reachable' in terminal.text


def test_watch_is_refused_without_a_terminal(run: Run) -> None:
    answer = run("queue", "status", "--watch")

    assert answer.returncode == 2
    assert "--json" in answer.stderr


def test_a_terminal_that_cannot_show_a_sign_gets_a_question_mark(machine: Machine) -> None:
    answer = machine.run("queue", "status", PYTHONIOENCODING="ascii")

    assert answer.code == 0
    assert "????? slots: 0 used, 5 free" in answer.out


@pytest.fixture
def busy(db: Connection, environ: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """A user's environment after months: large numbers, a dead asset and a long wait."""
    symbols = [asset.symbol for asset in load(SHIPPED_FILE, {}).assets]
    query(
        db,
        """
        insert into asset_sync.runs overriding system value
        select 150000 + number, 'priority', 'a', 0, now(), now() + interval '290 s', reason, 250,
          250, 100, 98765, 289.7
        from unnest(%s::text[]) with ordinality as run (reason, number);
        insert into asset_sync.calls (run_id, feed, symbols, outcome, duration_ms, bars_written)
        values (150001, 'snapshot', %s, 'ticker_unknown', 12345, 98765);
        insert into asset_sync.queue (symbol, feed, ticker, asset_type, name, level, state,
          attempts, last_success_at, last_attempt_at, not_before, last_error)
        select symbol, 'bars', 'C:' || symbol, 'forex', symbol, 'medium',
          case when symbol = 'XAUUSD' then 'dead' else 'waiting' end, 3,
          now() - interval '3 days', now(), now() + interval '100 min',
          'The provider has no bars of it within one call''s reach.'
        from unnest(%s::text[]) as symbol
        """,
        ([reason.value for reason in Ended], symbols, symbols),
    )
    return environ


@pytest.mark.parametrize("columns", [60, 80, 120])
@pytest.mark.parametrize(
    "command",
    [
        ("queue", "status"),
        ("queue", "list"),
        ("runs",),
        ("runs", "show", "150001"),
        ("assets", "list"),
        ("health",),
        ("plan",),
    ],
    ids=" ".join,
)
def test_a_table_fits_the_terminal_and_wraps_no_number(
    busy: dict[str, str], tmp_path: Path, command: tuple[str, ...], columns: int
) -> None:
    told = asset_sync(*command, environ=busy, directory=tmp_path, columns=columns)

    lines = told.out.splitlines()
    assert max(map(len, lines)) <= columns, told.out
    rules = [number for number, line in enumerate(lines) if line.startswith("──")]
    assert rules, "there is a table"
    for rule in rules:
        assert len(lines[rule]) >= max(map(len, (lines[rule - 1], lines[rule + 1])))


def test_a_wide_terminal_and_json_show_every_column(busy: dict[str, str], tmp_path: Path) -> None:
    def heading(columns: int | None) -> str:
        shown = asset_sync("runs", environ=busy, directory=tmp_path, columns=columns)
        return ",".join(re.split(r"  +", shown.out.splitlines()[0].strip()))

    everything = "id,began (UTC),command,refreshed,failed,calls,bars,wait,ended"
    assert heading(None) == heading(120) == everything
    assert heading(80) == everything.replace(",wait", "")
    assert heading(60) == "id,began (UTC),refreshed,failed,ended"


def test_the_status_lists_new_assets_as_waiting_for_their_first_run(
    db: Connection, environ: dict[str, str], tmp_path: Path
) -> None:
    runs.start(db, "queue")
    first = load(SHIPPED_FILE, {}).assets[0]
    queue.enqueue(db, [queue.Wanted(first, Feed.BARS)], QueueSettings())

    shown = asset_sync("queue", "status", environ=environ, directory=tmp_path)
    told = asset_sync("queue", "status", "--json", environ=environ, directory=tmp_path)

    assert "6 assets wait for their first run." in shown.out
    assert json.loads(told.out)["waiting_for_first_run"] == 6


def test_the_status_says_for_which_run_free_slots_are_reserved(
    db: Connection, environ: dict[str, str], tmp_path: Path
) -> None:
    rate = slots.Rate(5, 60, 30)
    slots.prepare(db, rate)
    slots.reserve(db, 3, 37)

    shown = asset_sync("queue", "status", environ=environ, directory=tmp_path).out
    waiting = Waiting("a slot", 37, slots.budget(db, rate))

    assert "●" not in shown
    assert "○○◌◌◌" in shown
    assert re.search(r"slots: 0 used, 2 free, 3 kept for sync priority in 3\d s", shown)
    assert re.search(r"for a slot \(3 kept for sync priority in 3\d s\)", sentence(waiting))


def test_a_slot_that_comes_free_in_time_need_not_be_reserved(db: Connection) -> None:
    rate = slots.Rate(5, 60, 30)
    slots.prepare(db, rate)
    query(
        db,
        """
        update asset_sync.slots set stamped_at = now() - interval '40 s'
        where slot in (select slot from asset_sync.slots limit 2)
        """,
    )
    slots.reserve(db, 3, 37)

    assert (slots.budget(db, rate).free, slots.budget(db, rate).kept) == (3, 1)
    assert isinstance(slots.take(db, Lane.QUEUE, rate), slots.Slot)
    assert isinstance(slots.take(db, Lane.QUEUE, rate), slots.Slot)
    assert isinstance(slots.take(db, Lane.QUEUE, rate), slots.Wait)


def test_the_variable_no_color_switches_colours_off(run: Run, environ: dict[str, str]) -> None:
    with on_a_terminal({**environ, "NO_COLOR": "1"}, "queue", "status") as terminal:
        assert "\x1b" not in terminal.read_until(None)


# --- the embedded database --------------------------------------------------------------------


def test_db_serve_serves_other_readers_until_ctrl_c(at_home: Machine) -> None:
    server = at_home.start("db", "serve")
    assert server.stdout is not None
    address = server.stdout.readline().strip()
    asked = at_home.tell("db", "url")
    status = at_home.tell("db", "status", DATABASE_URL=address)
    server.send_signal(signal.SIGINT)

    assert asked.out.strip() == address
    assert status.out.endswith("Ready.\n")
    assert at_home.end(server, seconds=20).code == 0
    assert "It is not up" in at_home.tell("db", "url").err


def test_db_url_prints_a_servers_address_without_its_password(run: Run) -> None:
    answer = run("db", "url", DATABASE_URL="postgresql://me:s3same@db1,db2:6432/market")

    assert "host=db1,db2" in answer.stdout
    assert "s3same" not in answer.stdout


def test_the_demo_ends_with_seven_fresh_assets_and_no_call_refused(at_home: Machine) -> None:
    answer = at_home.run("demo")

    assert answer.code == 0
    assert "REPLAYED" in answer.out
    # 59,304 to 62,148 within a week, as markets are closed or not; 56,520 after two holidays.
    stored = r"(5[6-9]|6\d),\d{3} bars stored"
    assert re.search(
        rf"7 of 7 assets fresh; {stored}, 0 unlike those replayed; 0 calls refused",
        answer.out,
    )
    assert "POLYGON_API_KEY" in answer.out
    [page] = re.findall(r"on one page, for a browser: (.+)", answer.out)
    assert Path(page).read_text().startswith("<!doctype html>")
    assert "7 of 7 assets are well" in Path(page).read_text()
    [(file, bars)] = re.findall(r"^(/.+/eurusd\.csv): (\d+) bars\.$", answer.out, re.MULTILINE)
    first, *rows = Path(file).read_text().splitlines()
    assert first.startswith("symbol,ts,open,")
    assert len(rows) == int(bars) > 600


def test_demo_serve_runs_the_stand_in_for_developers(
    machine: Machine,
) -> None:
    server = machine.start("demo", "serve", "--port", "0")
    assert server.stdout is not None
    exports = dict(word.split("=", 1) for word in server.stdout.readline().split() if "=" in word)
    answer = machine.tell("sync", "priority", "--limit", "1", **exports)
    server.send_signal(signal.SIGINT)
    ended = machine.end(server, seconds=5)

    assert answer.code == 0
    assert "Calls: 1," in ended.err
    assert ended.code == 0


def test_colours_do_not_count_as_width() -> None:
    red = "\x1b[31mXAUUSD\x1b[0m"
    assert list(filled(f"{red}: is too old", 14)) == [f"{red}: is too", "old"]
    assert list(filled("a-word-that-fits-nowhere and more", 8)) == [
        "a-word-that-fits-nowhere",
        "and more",
    ]
