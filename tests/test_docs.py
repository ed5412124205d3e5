"""The pages agree with the program."""

import io
import json
import os
import re
import runpy
import subprocess
import sys
import threading
import tomllib
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from datetime import UTC, datetime, timedelta
from pathlib import Path
from textwrap import dedent
from typing import get_args

import pytest
from conftest import MakeSettings
from machine import Machine
from psycopg2.extensions import make_dsn
from test_layers import LAYERS
from test_listening import publish_price

import asset_sync
from asset_sync import __version__, queue
from asset_sync.cli import app
from asset_sync.cli.log import _EVENTS
from asset_sync.database import Connection, DatabaseError, query, session
from asset_sync.demo.server import StandIn
from asset_sync.errors import ExitCode
from asset_sync.ops.health import Check, JobStatus, examine, without_database
from asset_sync.reading.block import numbers_of
from asset_sync.secret import Secret
from asset_sync.settings import SHIPPED_FILE, VARIABLES
from asset_sync.store.bars_query import Every
from asset_sync.sync.judge import ItemEnd
from asset_sync.sync.report import Ended

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
CRONTAB = (ROOT / "crontab.example").read_text()
PAGES = {
    path.name: path.read_text()
    for path in (ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md"))
}
OPERATIONS = PAGES["operations.md"]
SETTINGS = PAGES["settings.md"]
JSON_AND_TABLES = PAGES["json-and-tables.md"]
READING = PAGES["reading.md"]
ARCHITECTURE = PAGES["architecture.md"]

ASSETS = """
[[priority_assets]]
symbol = "EURUSD"
polygon_ticker = "C:EURUSD"
asset_type = "forex"
[[priority_assets]]
symbol = "BTCUSD"
polygon_ticker = "X:BTCUSD"
asset_type = "crypto"
[[secondary_assets]]
symbol = "ETHUSDT"
polygon_ticker = "X:ETHUSDT"
asset_type = "crypto"
"""


def section(title: str, page: str) -> str:
    """Return the part of a page from this heading to the next of the same level."""
    heading = re.search(rf"^(#+) {re.escape(title)}$", page, re.MULTILINE)
    assert heading is not None, title
    return re.split(rf"^#{{1,{len(heading[1])}}} ", page[heading.end() :], flags=re.MULTILINE)[0]


def first_column(text: str) -> list[str]:
    """Return the code in the first column of a table."""
    cells = [row.split("|")[1] for row in text.splitlines() if row.startswith("| ")]
    return [code for cell in cells for code in re.findall(r"`([^`]+)`", cell)]


def commands() -> dict[str, set[str]]:
    """Return every command of the program with its options."""
    found = {}
    for name, group in app.commands.items():
        subcommands = getattr(group, "commands", {})
        if not subcommands or group.invoke_without_command:  # type: ignore[attr-defined]
            found[name] = {
                option for one in group.params for option in (*one.opts, *one.secondary_opts)
            }
        for sub, command in subcommands.items():
            found[f"{name} {sub}"] = {
                option for one in command.params for option in (*one.opts, *one.secondary_opts)
            }
    return found


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150


def test_the_page_of_commands_matches_the_programs_help() -> None:
    made = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "commands.py")],
        capture_output=True,
        text=True,
        check=True,
    )

    page = PAGES["commands.md"]
    assert page == made.stdout, "`make reference` writes it anew"
    for command in commands():
        assert f"# asset-sync {command}\n" in page


@pytest.mark.parametrize("name", ["README.md", "operations.md", "json-and-tables.md"])
def test_every_option_that_a_page_names_exists(name: str) -> None:
    known = {option for options in commands().values() for option in options}
    known |= {option for one in app.params for option in (*one.opts, *one.secondary_opts)}

    named = set(re.findall(r"`(--?[a-z][a-z-]*)", PAGES[name]))

    others = {"--upgrade", "-t"}  # options of pip and journalctl
    assert named <= known | others


def test_the_page_lists_exactly_the_exit_codes_of_the_program() -> None:
    listed = re.findall(r"^\| (\d+) ", section("Exit codes", JSON_AND_TABLES), re.MULTILINE)

    assert [int(number) for number in listed] == list(ExitCode)


def test_the_readme_and_the_page_on_reliability_make_the_same_promises() -> None:
    promise = re.compile(r"^\d\. \*\*(.+?)\*\*", re.MULTILINE)
    made = promise.findall(section("What it promises", README))

    assert len(made) == 8
    assert made == promise.findall(PAGES["reliability.md"])[:8]


def test_the_page_of_settings_and_the_shipped_file_match_the_declared_settings() -> None:
    generator = runpy.run_path(str(ROOT / "docs" / "settings.py"))

    for path, text in generator["files"]().items():
        assert path.read_text() == text, "run `make reference`"


def test_the_page_of_settings_lists_exactly_the_variables() -> None:
    named = set(re.findall(r"`([A-Z][A-Z_]+[A-Z])`", SETTINGS)) - {"XDG_CONFIG_HOME"}

    assert named == {name for name in VARIABLES if not name.endswith("_FILE")}


def test_the_page_of_settings_lists_exactly_the_settings_of_the_file() -> None:
    shipped = tomllib.loads(
        re.sub(
            r"^# (parallel_calls|calls|period_seconds|days|ping_url|on_failure) =",
            r"\1 =",
            SHIPPED_FILE.read_text(),
            flags=re.MULTILINE,
        )
    )
    listed = {
        name: first_column(text)
        for name, text in re.findall(
            r"^### `\[(\w+)\]`$(.*?)(?=^##)", SETTINGS, re.MULTILINE | re.DOTALL
        )
    }

    assert listed == {
        table: list(values) for table, values in shipped.items() if isinstance(values, dict)
    }
    asset_keys = {key for asset in shipped["priority_assets"] for key in asset}
    assert set(first_column(section("Per asset", SETTINGS))) == asset_keys | {
        *("enabled", "hours", "history_days")
    }


def test_every_setting_that_a_page_names_exists(
    db: Connection, api: StandIn, make_settings: MakeSettings
) -> None:
    tables = {
        name: set(first_column(text))
        for name, text in re.findall(
            r"^### `\[(\w+)\]`$(.*?)(?=^##)", SETTINGS, re.MULTILINE | re.DOTALL
        )
    }
    checks = {check.name for check in examine(db, make_settings(api)).checks}

    named = {
        (table, key)
        for text in (README, OPERATIONS, JSON_AND_TABLES)
        for table, key in re.findall(r"`([a-z_]+)\.([a-z_]+)(?:`| =)", text)
        if table in tables and f"{table}.{key}" not in checks
    }

    assert named
    for table, key in named:
        assert key in tables[table]


def test_the_page_names_exactly_the_keys_of_the_json(
    url: str, api: StandIn, tmp_path: Path
) -> None:
    machine = Machine(tmp_path, url, api)
    machine.file(ASSETS)

    def keys(*arguments: str) -> dict[str, object]:
        told = machine.tell(*arguments, "--json")
        assert told.code in {0, 1}, told.err  # `health` is degraded, as the queue has never run
        found = json.loads(told.out)
        assert isinstance(found, dict)
        return found

    def listed(title: str) -> set[str]:
        return set(first_column(section(title, JSON_AND_TABLES)))

    assert set(keys("sync", "priority")) == listed("sync")
    assert set(keys("queue", "status")) == listed("queue status")
    [item, *_] = keys("queue", "list")["items"]  # type: ignore[misc]
    assert set(item) == listed("queue list")  # type: ignore[has-type]
    assert set(keys("health")) == listed("health")
    of_health = set(re.findall(r"`([a-z_]+)`", section("health", JSON_AND_TABLES)))
    assert of_health >= {*JobStatus._fields, *Check._fields}
    assert set(keys("plan")) == listed("plan")
    [run] = keys("runs")["runs"]  # type: ignore[misc]
    assert set(run) == listed("runs")  # type: ignore[has-type]
    [call] = keys("sync", "queue", "--dry-run")["calls"]  # type: ignore[misc]
    assert all(f"`{key}`" in section("sync", JSON_AND_TABLES) for key in call)  # type: ignore[has-type]
    first_five = list(keys("queue", "status"))[:5]
    assert list(keys("health")["queue"]) == first_five  # type: ignore[call-overload]


def test_the_page_names_exactly_the_reasons_why_a_run_ends() -> None:
    [row] = re.findall(r"^\| `reason_ended` \| (.*_.*) \|$", JSON_AND_TABLES, re.MULTILINE)

    assert re.findall(r"`(\w+)`", row) == list(Ended)


def test_the_page_names_exactly_the_keys_and_events_of_a_log_line(
    url: str, api: StandIn, tmp_path: Path
) -> None:
    machine = Machine(tmp_path, url, api)
    machine.file(ASSETS)
    told = machine.tell("sync", "priority", "--log-format", "json", "-v")
    lines = [json.loads(line) for line in told.err.splitlines()]

    text = section("Log lines", JSON_AND_TABLES)
    assert set(first_column(text)) == set.intersection(*(set(line) for line in lines))
    [row] = re.findall(r"^\| `event` \| (.*) \|$", text, re.MULTILINE)
    named = set(re.findall(r"`(\w+)`", row))
    assert named == {event for event, _ in _EVENTS.values()} | {"settings", "ended"}
    assert {line["event"] for line in lines} <= named
    assert lines[-1]["event"] == "ended"


def test_the_page_names_exactly_the_tables_and_columns(db: Connection) -> None:
    text = section("Tables", JSON_AND_TABLES)
    listed = {
        name: first_column(section(heading, text))
        for heading in re.findall(r"^### (`[a-z0-9_.`, ]+`)$", text, re.MULTILINE)
        for name in re.findall(r"`([^`]+)`", heading)
    }

    there = query(
        db,
        """
        select table_schema || '.' || table_name,
          array_agg(column_name::text order by ordinal_position)
        from information_schema.columns
        where table_schema in ('trading', 'market_data', 'data_sources')
        group by table_schema, table_name
        """,
    )
    assert dict(there) == listed
    own = query(db, "select tablename from pg_tables where schemaname = 'asset_sync'")
    assert set(first_column(section("asset-sync's own tables", text))) == {one for (one,) in own}


QUERIES = [
    *re.findall(r"```sql\n(.*?)```", README, re.DOTALL),
    *re.findall(r"```sql\n(.*?)```", section("Queries", JSON_AND_TABLES), re.DOTALL),
]


def test_every_query_on_the_pages_returns_rows_after_a_run(
    url: str, db: Connection, api: StandIn, tmp_path: Path
) -> None:
    machine = Machine(tmp_path, url, api)
    machine.file(ASSETS)
    assert machine.tell("sync", "priority").code == 0

    assert len(QUERIES) == 5
    for text in QUERIES:
        assert query(db, text)


def test_every_block_on_the_page_for_readers_works(
    url: str, db: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store_month(db)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", url)
    with Machine(tmp_path, url, PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}") as machine:
        machine.program("asset-sync", f'exec {sys.executable} -m asset_sync "$@"')
        for language, code in re.findall(r"```(python|bash)\n(.*?)```", READING, re.DOTALL):
            if language == "bash" and "pip install" not in code:
                shell = f"import os; os.execvp('sh', ['sh', '-ec', {code!r}])"
                told = machine.end(machine.python("-c", shell))
                assert told.code == 0, (code, told.err)
                assert "bars" in told.out
            elif "listen(" in code:
                listening = machine.python("-u", "-c", code)
                assert listening.stdout is not None
                assert "last_price=" in listening.stdout.readline()
                heard = threading.Event()
                with ThreadPoolExecutor() as threads:
                    publishing = threads.submit(publish_until, url, heard)
                    assert listening.stdout.readline().startswith("EURUSD 1.25 ")
                    heard.set()
                    publishing.result()
            elif language == "python":
                with redirect_stdout(io.StringIO()) as out:
                    exec(code, {})
                assert out.getvalue(), code
    assert sorted(path.name for path in (tmp_path / "training").iterdir()) == [
        *("BTCUSD.parquet", "EURUSD.parquet", "asset-sync-export.json"),
    ]


def store_month(db: Connection) -> None:
    """Store five weeks of two assets, without a hole, and that no bar is missing."""
    query(
        db,
        """
        update asset_sync.limiter set changes_from = now() - interval '1 year';
        insert into trading.symbols (symbol) values ('BTCUSD'), ('EURUSD');
        insert into asset_sync.symbol_hours select symbol, 'crypto' from trading.symbols;
        insert into asset_sync.expected_bars
        select 'crypto', now()::date - 40 + n, n * 288,
          (select array_agg(3 * quarter order by quarter) from generate_series(0, 95) quarter)
        from generate_series(0, 50) n;
        insert into market_data.ohlcv_5m
        select id, date_bin('5 min', now(), 'epoch') - n * interval '5 min',
          1 + mod(n, 7), 8 + mod(n, 7), 0.5, 2 + mod(n, 5), 10, 2, 10
        from trading.symbols, generate_series(1, 35 * 288) n
        """,
    )
    publish_price(db, "EURUSD", 1.5)


def publish_until(url: str, heard: threading.Event) -> None:
    """Publish prices until one was heard: nobody knows when a listener has begun."""
    with session(Secret(url)) as db:
        while not heard.wait(0.05):
            publish_price(db, "EURUSD", 1.25, datetime.now(UTC))


def test_the_page_for_readers_names_exactly_what_is_public() -> None:
    named = set(re.findall(r"`(?:asset_sync\.)?(\w+)`", section("What is public", READING)))

    assert named == {*asset_sync.__all__} - {"__version__"}


def test_the_page_for_readers_lists_exactly_the_columns() -> None:
    assert first_column(section("Columns", READING)) == ["symbol", "ts", *numbers_of(Every.HOUR)]


def test_the_rights_on_the_page_for_readers_are_enough(url: str, db: Connection) -> None:
    store_month(db)
    role = f"reader_{os.getpid()}"
    [rights] = re.findall(r"```sql\n(.*?)```", READING, re.DOTALL)
    query(db, re.sub(r"\breader\b", role, rights))
    try:
        query(db, f"alter role {role} password 'made-up'")
        theirs = make_dsn(url, user=role, password="made-up")
        before = datetime.now(UTC) - timedelta(minutes=1)
        hours = asset_sync.read("EURUSD", every="1h", as_of=before, database_url=theirs)
        assert len(hours) > 800
        assert asset_sync.last_price("EURUSD", database_url=theirs) is not None
        asset_sync.listen(database_url=theirs)
    finally:
        query(db, f"drop owned by {role}; drop role {role}")


def command_lines(text: str) -> list[str]:
    """Give our command lines: alone on a line, after cron's times or a prompt, or as code."""
    alone = r"^ *(?:\*/\d+ .*? +|\w*\$ )?(?:[A-Z_]+=\S+ )*(asset-sync [a-z][^#`\n]*)"
    lines = [
        *re.findall(alone, text, re.MULTILINE),
        *re.findall(r"`(asset-sync [a-z][^`]*)`", text),
    ]
    parts = (part.strip() for line in lines for part in re.split(r"&&|[;|<]", line))
    return [part for part in parts if part.startswith("asset-sync ")]


@pytest.mark.parametrize("name", ["crontab.example", *sorted(PAGES.keys() - {"commands.md"})])
def test_the_program_accepts_every_command_line_on_the_pages(name: str) -> None:
    known = commands()
    text = CRONTAB if name == "crontab.example" else PAGES[name]

    assert command_lines(text) or name in {"CHANGELOG.md", "reliability.md", "settings.md"}
    for line in command_lines(text):
        words = line.split()[1:]
        name = " ".join(words[:2]) if " ".join(words[:2]) in known else words[0]
        assert name in known, line
        assert {word for word in words if word.startswith("-")} <= known[name], line


def test_the_page_for_operators_says_what_to_do_at_each_check_of_health(
    db: Connection, api: StandIn, make_settings: MakeSettings
) -> None:
    looked_at = examine(db, make_settings(api)).checks
    looked_at += without_database(DatabaseError("gone")).checks

    listed = first_column(section("Alarms, and what to do at each", OPERATIONS))

    assert listed == [check.name for check in looked_at]


def test_the_page_for_operators_says_what_to_do_at_each_exit_code() -> None:
    table = section("What cron mails", OPERATIONS)
    cells = re.findall(r"^\| ([\d, ]+) \|", table, re.MULTILINE)

    assert [int(code) for cell in cells for code in cell.split(", ")] == list(ExitCode)


def test_cron_accepts_the_example_crontab() -> None:
    jobs = [line for line in CRONTAB.splitlines() if line and not line.startswith("#")]
    variables = [line for line in jobs if re.match(r"[A-Z_]+=", line)]

    assert {line.split("=")[0] for line in variables} >= {"PATH", "POLYGON_API_KEY_FILE"}
    assert {line.split("=")[0] for line in variables} <= {"SHELL", "PATH", *VARIABLES}
    assert [line.split(None, 5)[5] for line in jobs if line not in variables] == [
        "asset-sync sync priority -q",
        "asset-sync sync queue -q",
    ]


def test_cron_accepts_the_commented_lines_of_the_example_crontab() -> None:
    chosen = re.findall(r"^#(\S+ \S+ \S+ \S+ \S+)  (asset-sync .+)$", CRONTAB, re.MULTILINE)
    known = commands()

    assert [line.split(" | ")[1:] for _, line in chosen] == [
        *(["systemd-cat -t asset-sync"], ["systemd-cat -t asset-sync"]),
        *([], []),
    ]
    for when, line in chosen:
        assert set(when.split()) <= {"*", "*/5"}
        words = line.split(" | ")[0].removesuffix(" 2>&1").split()[1:]
        options = {word for word in words if word.startswith("-")}
        name = " ".join(word for word in words if not word.startswith(("-", "/")))
        assert options <= known[name]
    *_, (_, report), (_, metrics) = chosen
    assert report in PAGES["report.md"]
    assert metrics in OPERATIONS


def test_the_program_writes_no_log_file_that_needs_rotation() -> None:
    units = "".join(path.read_text() for path in (ROOT / "systemd").iterdir())

    assert not re.findall(r"^Standard(?:Output|Error)=", units, re.MULTILINE), "journald's, then"
    assert not re.findall(r">\s*[/~\w]", CRONTAB)


def test_every_test_named_on_the_page_on_reliability_exists() -> None:
    page = PAGES["reliability.md"]
    tests = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))

    named = set(re.findall(r"`(test_\w+)`", page))

    assert named
    assert named <= set(re.findall(r"^def (test_\w+)\(", tests, re.MULTILINE))


@pytest.mark.parametrize("name", sorted(PAGES))
def test_every_file_and_heading_that_a_page_links_to_exists(name: str) -> None:
    page = ROOT / name if (ROOT / name).exists() else ROOT / "docs" / name
    for target in re.findall(r"\]\(([^)]+)\)", PAGES[name]):
        if target.startswith("http"):
            continue
        file, _, heading = target.partition("#")
        pointed_to = page.parent / file if file else page
        assert pointed_to.exists(), target
        assert not heading or heading in anchors(pointed_to.read_text()), target


@pytest.mark.parametrize("name", sorted(PAGES.keys() - {"CHANGELOG.md"}))
def test_every_path_and_make_target_that_a_page_names_exists(name: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for path in re.findall(r"`((?:asset_sync|tests|docs|systemd|\.ci)/[^`* ]*)`", PAGES[name]):
        assert (ROOT / path).exists(), path
    for target in re.findall(r"`make (\w+)", PAGES[name]):
        assert f"\n{target}:" in makefile, target


def test_the_page_on_the_architecture_lists_the_layers_that_are_tested() -> None:
    rows = re.findall(r"^\| (\d+) \| (.*?) \|", section("Layers", ARCHITECTURE), re.MULTILINE)
    listed: dict[int, set[str]] = {}
    for number, cell in rows:
        names = re.findall(r"`asset_sync/(\w+)", cell)
        listed.setdefault(int(number), set()).update(names)

    assert list(listed.values()) == [names for names in LAYERS if names != {"__init__"}]


def test_the_page_on_the_architecture_names_every_way_a_lease_can_end() -> None:
    text = section("The states of a queue item", ARCHITECTURE)

    assert {one.__name__ for one in get_args(ItemEnd)} == set(re.findall(r"`([A-Z]\w+)`", text)) - {
        "LostLeaseError"
    }
    for name in set(re.findall(r"`queue\.(\w+)`", ARCHITECTURE)):
        assert hasattr(queue, name) or f"`{name}`" in section("`[queue]`", SETTINGS), name
    states = set(re.findall(r"│ (\w+) │|│ (\w+) +│", text))
    assert {"idle", "waiting", "leased", "dead"} <= {word for pair in states for word in pair}


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings: lower case, hyphens for blanks, no other signs."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings}


def test_no_block_on_the_page_for_operators_is_wider_than_a_terminal() -> None:
    blocks = re.split(r"```(?:toml)?", OPERATIONS)[1::2]
    seen = [line for block in blocks if "$ " in block for line in dedent(block).splitlines()]

    assert len(seen) > 50
    assert [line for line in seen if len(line) > 80] == []


def test_the_changelog_follows_keep_a_changelog() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()

    assert "## [Unreleased]" in text
    assert set(re.findall(r"^### (\w+)", text, re.MULTILINE)) <= {
        "Added",
        "Changed",
        "Deprecated",
        "Removed",
        "Fixed",
        "Security",
    }


def test_the_repository_holds_no_real_key_password_or_host() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    # A Polygon key has 32 letters and digits; a hash in lower-case hex is no key.
    key = re.compile(r"\b(?=\w*[A-Z])(?=\w*[a-z])(?=\w*\d)[A-Za-z0-9_]{32}\b")
    for name in listed.stdout.split():
        path = ROOT / name
        if path.suffix in {".svg", ".csv", ".webp"} or not path.is_file():
            continue
        # A test certificate is not a secret either, and consists of such letters.
        text = re.sub(r"-----BEGIN.*?-----END", "", path.read_text(), flags=re.DOTALL)
        assert not key.search(text), name


def test_the_package_reports_its_installed_version() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "asset_sync", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout == f"asset-sync {__version__}\n"
