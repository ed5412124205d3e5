"""Neither the host's clock nor any time zone matters: all times are the database's, in UTC."""

import ast
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import commandline
import pytest
from machine import Machine, one_bar

import asset_sync
from asset_sync import database
from asset_sync.database import Connection, query
from asset_sync.demo import replay
from asset_sync.demo.replay import HOUR_MS
from asset_sync.demo.server import StandIn
from asset_sync.provider.answers import Bar
from asset_sync.secret import Secret
from asset_sync.store import market

PACKAGE = Path(asset_sync.__file__).parent
FILE = """
[rate_limit]
calls = 5
period_seconds = 1.5
[[priority_assets]]
symbol = "BTCUSD"
polygon_ticker = "X:BTCUSD"
asset_type = "crypto"
[[secondary_assets]]
symbol = "ETHUSDT"
polygon_ticker = "X:ETHUSDT"
asset_type = "crypto"
"""
TICKERS = {"BTCUSD": "X:BTCUSD", "ETHUSDT": "X:ETHUSDT"}


class Host(Machine):
    def __init__(self, home: Path, url: str, db: Connection, api: StandIn) -> None:
        super().__init__(home, url, api)
        self.db, self.api = db, api
        self.file(FILE)
        for symbol, ticker in TICKERS.items():
            one_bar(db, symbol, ticker, hours_ago=2)

    def assert_all_is_as_with_any_other_clock(self, began: datetime) -> None:
        """Check that stored times and bars are those of now by the database's clock."""
        [(now, *stamps)] = query(
            self.db,
            """
            select clock_timestamp(), (select min(started_at) from asset_sync.runs),
              (select min(at) from asset_sync.calls),
              (select min(last_success_at) from asset_sync.queue),
              (select min(stamped_at) from asset_sync.slots where stamped_at > '-infinity'),
              (select min(last_sync_timestamp) from data_sources.data_sync_status),
              (select min(updated_at) from data_sources.data_sync_status),
              (select min((metadata -> 'last_update' ->> 'timestamp')::timestamptz)
               from trading.symbols)
            """,
        )
        for stamp in stamps[:-1]:
            assert began <= stamp <= now
        assert 0 <= (now - stamps[-1]).total_seconds() < 310
        [(reserved,)] = query(
            self.db,
            "select extract(epoch from reserved_at - clock_timestamp())::float8 "
            "from asset_sync.limiter",
        )
        assert 270 < reserved < 301
        assert query(self.db, "select state from asset_sync.queue") == [("idle",)] * 2
        now_ms = int(time.time() * 1000)
        for symbol, ticker in TICKERS.items():
            stored = query(
                self.db,
                """
                select (extract(epoch from ts) * 1000)::bigint, open, high, low, close, volume,
                  vwap, trades
                from market_data.ohlcv_5m b join trading.symbols s on s.id = b.ticker_id
                where symbol = %s order by ts
                """,
                (symbol,),
            )
            assert stored == replay.bars(ticker, stored[0][0], stored[-1][0], now_ms)
            assert now_ms - stored[-1][0] < 610_000  # the newest bar that is over
        for call in self.api.log:
            start_ms, end_ms = (int(p) for p in call.method_path.split("?")[0].split("/")[-2:])
            assert abs(now_ms - end_ms) < 30_000
            # The first call reads the last days again: two open days before today.
            assert 2 * HOUR_MS < now_ms - start_ms < 72 * HOUR_MS


@pytest.fixture
def host(tmp_path: Path, url: str, db: Connection) -> Iterator[Host]:
    with StandIn("free", calls=5, period_seconds=1.5) as api, Host(tmp_path, url, db, api) as host:
        yield host


# --- the source ---------------------------------------------------------------------------------

WALL_CLOCK = {
    ("time", "time"),
    ("time", "time_ns"),
    ("time", "localtime"),
    ("time", "gmtime"),
    ("time", "ctime"),
    ("time", "strftime"),
    ("time", "clock_gettime"),
    ("datetime", "now"),
    ("datetime", "utcnow"),
    ("datetime", "today"),
    ("date", "today"),
}


def uses_of_the_wall_clock(file: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Attribute):
            owner = node.value
            name = owner.id if isinstance(owner, ast.Name) else getattr(owner, "attr", "")
            if (name, node.attr) in WALL_CLOCK:
                found.append(f"{file.name}:{node.lineno} {name}.{node.attr}")
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            found += [
                f"{file.name}:{node.lineno} {alias.name}"
                for alias in node.names
                if ("time", alias.name) in WALL_CLOCK
            ]
    return found


def test_only_the_demo_and_named_places_read_the_hosts_wall_clock() -> None:
    files = [file for file in PACKAGE.rglob("*.py") if PACKAGE / "demo" not in file.parents]
    assert len(files) > 30
    uses = [use for file in files for use in uses_of_the_wall_clock(file)]
    # The doctor compares the host's clock with the database's. The log and the live lines show the
    # time. `--watch` counts how long the database has been down, when it cannot ask the database.
    # `clock.py` reads a clock that only measures durations. `history.py` forecasts for a host that
    # has no database yet.
    shown = {"doctor.py", "clock.py", "history.py", "log.py", "queue_watch.py", "live.py"}
    assert {use.split(":")[0] for use in uses} == shown


def test_the_search_finds_each_use_of_the_wall_clock() -> None:
    assert uses_of_the_wall_clock(PACKAGE / "demo" / "sandbox.py")


# --- the host's clock ---------------------------------------------------------------------------

LIBRARY = next((str(path) for path in Path("/usr/lib").glob("*/faketime/libfaketime.so.1")), None)
pretended = pytest.mark.skipif(
    LIBRARY is None or shutil.which("faketime") is None,
    reason="needs libfaketime (apt-get install faketime) to give a process another clock",
)


# libfaketime does not support the way in which Python sleeps from 3.11 on (EINVAL).
SCRIPT = """
import select, time
time.sleep = lambda seconds: select.select([], [], [], seconds) and None
from asset_sync.cli import main
main()
"""


def run_under(host: Host, lane: str, **faked: str) -> None:
    """Run as on a host with a wrong clock; the database and the API have the correct time."""
    assert LIBRARY is not None
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "sync", lane],
        env=host.environ
        | {
            "PYTHONPATH": str(PACKAGE.parent),
            "LD_PRELOAD": LIBRARY,
            # As on any host, setting the clock does not move the monotonic clock.
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            **faked,
        },
        cwd=host.home,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "1 refreshed" in done.stdout


@pretended
def test_python_sees_the_faked_clock() -> None:
    shown = subprocess.run(
        [sys.executable, "-c", "import time; print(time.time())"],
        env={"LD_PRELOAD": str(LIBRARY), "FAKETIME": "+3600"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert 3500 < float(shown.stdout) - time.time() < 3700


@pretended
@pytest.mark.parametrize("offset", ["-3600", "+3600", "-9000d"])
def test_a_host_with_a_wrong_clock_stores_the_same(host: Host, offset: str) -> None:
    began = datetime.now(UTC)
    run_under(host, "priority", FAKETIME=offset)
    run_under(host, "queue", FAKETIME=offset)
    host.assert_all_is_as_with_any_other_clock(began)


@contextmanager
def jumping(file: Path) -> Iterator[None]:
    """Set the clock an hour forward and an hour back, thirty times a second."""
    ended = threading.Event()

    def jump() -> None:
        while not ended.is_set():
            for offset in ("+3600", "-3600"):
                fresh = file.with_suffix(".new")
                fresh.write_text(offset)
                fresh.rename(file)
                ended.wait(0.03)

    file.write_text("+0")
    thread = threading.Thread(target=jump)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pretended
def test_a_host_clock_that_jumps_during_a_run_changes_nothing_stored(host: Host) -> None:
    began = datetime.now(UTC)
    file = host.home / "clock"
    with jumping(file):
        for lane in ("priority", "queue"):
            run_under(host, lane, FAKETIME_TIMESTAMP_FILE=str(file), FAKETIME_NO_CACHE="1")
    host.assert_all_is_as_with_any_other_clock(began)


@pretended
def test_hosts_with_different_clocks_share_one_budget(host: Host) -> None:
    query(host.db, "update asset_sync.limiter set reserved_calls = 0")
    text = FILE + "".join(
        f'[[secondary_assets]]\nsymbol = "ETH{n}"\npolygon_ticker = "X:ETHUSDT"\n'
        'asset_type = "crypto"\n'
        for n in range(7)
    )
    (host.home / "assets.toml").write_text(
        text.replace("[rate_limit]", "[rate_limit]\nhold_for_priority = false")
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, "sync", "queue", "-q"],
            env=host.environ
            | {
                "PYTHONPATH": str(PACKAGE.parent),
                "LD_PRELOAD": str(LIBRARY),
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
                "FAKETIME": offset,
            },
            cwd=host.home,
        )
        for offset in ("-3600", "+3600")
    ]
    assert [process.wait(timeout=30) for process in started] == [0, 0]
    assert len(host.api.log) == 8
    assert host.api.refused == 0
    assert host.api.most_in_a_window() == 5


# --- time zones ---------------------------------------------------------------------------------


@pytest.fixture
def zone(request: pytest.FixtureRequest, host: Host, url: str) -> Iterator[dict[str, str]]:
    """Set the time zone in one of the possible places; return the environment for it."""
    where, name = request.param
    before = os.environ.get("TZ")
    if where == "TZ":
        os.environ["TZ"] = name
        time.tzset()
        yield {"TZ": name}
        if before is None:
            del os.environ["TZ"]
        else:
            os.environ["TZ"] = before
        time.tzset()
    elif where == "PGTZ":
        yield {"PGTZ": name}
    else:
        [(database, role)] = query(host.db, "select current_database(), current_user")
        target = f'database "{database}"' if where == "database" else f'role "{role}"'
        query(host.db, f"alter {target} set timezone = '{name}'")
        yield {}
        query(host.db, f"alter {target} reset timezone")


@pytest.mark.parametrize(
    "zone",
    [
        ("TZ", "America/St_Johns"),
        ("PGTZ", "Pacific/Kiritimati"),
        ("database", "America/St_Johns"),
        ("role", "Pacific/Kiritimati"),
    ],
    indirect=True,
    ids="-".join,
)
def test_any_time_zone_stores_the_same(host: Host, zone: dict[str, str]) -> None:
    began = datetime.now(UTC)
    for lane in ("priority", "queue"):
        told = commandline.asset_sync(
            "sync", lane, environ=host.environ | zone, directory=host.home
        )
        assert (told.code, told.out.split(",")[0]) == (0, f"{lane}: 1 refreshed")
    host.assert_all_is_as_with_any_other_clock(began)
    told = commandline.asset_sync(
        "queue", "status", "--json", environ=host.environ | zone, directory=host.home
    )
    assert '+00:00"' in told.out
    # Everything is due again after an hour and not earlier; a run looks five minutes ahead.
    config = host.home / "assets.toml"
    config.write_text(
        FILE.replace(
            'asset_type = "crypto"', 'asset_type = "crypto"\nupdate_frequency_seconds = 3600'
        )
    )
    for minutes, due in ((54, 0), (6, 1)):
        query(
            host.db,
            """
            update asset_sync.queue
            set last_success_at = last_success_at - make_interval(mins => %s)
            """,
            (minutes,),
        )
        planned = commandline.asset_sync(
            "sync", "queue", "--dry-run", environ=host.environ | zone, directory=host.home
        )
        assert planned.out.count("GET /v2/") == due


@pytest.mark.parametrize(
    "zone",
    [
        (where, name)
        for where in ("TZ", "PGTZ", "database")
        for name in ("Pacific/Kiritimati", "America/St_Johns")
    ],
    indirect=True,
    ids="-".join,
)
def test_the_day_begins_at_midnight_utc_in_any_time_zone(
    host: Host, zone: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in zone.items():
        monkeypatch.setenv(name, value)
    midnight = datetime(2026, 3, 2, tzinfo=UTC)
    at_ms = int(midnight.timestamp() * 1000)
    before, after = (
        Bar(at_ms + minutes * 60_000, price, price, price, price, 1, None, None)
        for minutes, price in ((-5, 9.0), (5, 2.0))
    )
    with (
        database.session(Secret(host.environ["DATABASE_URL"])) as db,
        database.transaction(db) as cursor,
    ):
        market.save_symbols(cursor, [market.Symbol("EURUSD", "Euro", "forex")])
        market.save_bars(cursor, "EURUSD", [before, after])
        price = market.price_of_bar(cursor, "EURUSD", midnight + timedelta(minutes=5), midnight)
    assert (price.daily_open, price.daily_high, price.daily_low) == (2.0, 2.0, 2.0)
