"""No fault shows a key, password or address in anything that other people can read."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import commandline
import pytest
from commandline import Told
from machine import Machine
from psycopg2.extensions import make_dsn, parse_dsn

import asset_sync
from asset_sync.database import Connection, query
from asset_sync.demo.faults import FAULTS
from asset_sync.demo.server import StandIn

KEY = "zq7key-Kx9vTn2"
PASSWORD = "zq7pass-Wm4rLp8"
PROXY_USER = "zq7user"
USER = "asset_sync_test_role"
"""This is no secret, and neither are the database's host, port and name."""
REDIS_PASSWORD = "zq7redis-Bd6yHc3"
REDIS_USER = "zq7reader"
PING_UUID = "zq7ping-0d338dcc-a054"
MARK = "zq7"
"""A text that is in every secret and nowhere else."""


FILE = """
[provider]
read_timeout_seconds = 0.3
call_timeout_seconds = 2
[rate_limit]
calls = 100
""" + "".join(
    f"""
[[{lane}_assets]]
symbol = "{symbol}"
polygon_ticker = "{ticker}"
asset_type = "crypto"
"""
    for lane, symbol, ticker in (
        ("priority", "BTCUSD", "X:BTCUSD"),
        ("priority", "BITCOIN", "X:BTCUSD"),
        ("priority", "BTC", "X:BTCUSD"),
        ("secondary", "ETHUSDT", "X:ETHUSDT"),
        ("secondary", "ETHER", "X:ETHUSDT"),
    )
)


class Host(Machine):
    """A machine in which every setting that can hold a secret has one."""

    def __init__(self, home: Path, url: str, db: Connection, **environ: str) -> None:
        super().__init__(home, url, secrets=(MARK,))
        self.environ |= environ
        self.db = db
        self.file(FILE)

    def tell(self, *arguments: str, **environ: str) -> Told:
        told = super().tell(*arguments, **environ)
        assert told.code != 70
        return told

    def due(self) -> None:
        query(
            self.db,
            """
            update asset_sync.queue set state = 'waiting', not_before = 'epoch';
            delete from asset_sync.slots; delete from asset_sync.entitlements;
            update asset_sync.limiter set blocked_until = '-infinity'
            """,
        )


@pytest.fixture
def role(db: Connection) -> Iterator[str]:
    """A database role whose name and password are secrets; it is dropped at the end."""
    [(allowed,)] = query(db, "select rolsuper from pg_roles where rolname = current_user")
    if not allowed:
        pytest.skip("the role of TEST_DATABASE_URL may not create superusers")
    query(
        db, f"drop role if exists {USER}; create role {USER} superuser login password '{PASSWORD}'"
    )
    yield USER
    query(
        db,
        f"""
        select pg_terminate_backend(pid) from pg_stat_activity where usename = '{USER}';
        reassign owned by {USER} to current_user; drop role {USER}
        """,
    )


@pytest.fixture
def host(tmp_path: Path, url: str, db: Connection, role: str) -> Iterator[Host]:
    environ = {
        "POLYGON_API_KEY": KEY,
        "POLYGON_BASE_URL": "http://127.0.0.1:1",
        "REDIS_URL": f"redis://{REDIS_USER}:{REDIS_PASSWORD}@127.0.0.1:1/0",
        "PING_URL": f"http://127.0.0.1:1/{PING_UUID}",
        "HTTPS_PROXY": f"http://{PROXY_USER}:{PASSWORD}@127.0.0.1:1",
    }
    # If the newest bar is an hour old, a call brings a dozen bars instead of ten thousand.
    query(
        db,
        """
        with new as (
          insert into trading.symbols (symbol, name, asset_type)
          select symbol, '', '' from unnest(%s) as symbol returning id
        )
        insert into market_data.ohlcv_5m (ticker_id, ts, open, high, low, close)
        select id, date_bin('5 min', now() - interval '1 h', 'epoch'), 1, 1, 1, 1 from new
        """,
        (["BTCUSD", "BITCOIN", "BTC", "ETHUSDT", "ETHER"],),
    )
    address = make_dsn(url, user=role, password=PASSWORD)
    with Host(tmp_path, address, db, **environ) as host:
        yield host


def assert_nothing_is_stored(db: Connection) -> None:
    """Check every column of every table as text."""
    tables = query(
        db,
        """
        select schemaname || '.' || tablename from pg_tables
        where schemaname in ('asset_sync', 'data_sources', 'trading', 'market_data')
        """,
    )
    assert len(tables) >= 10
    for (table,) in tables:
        assert query(db, f"select t from {table} t where t::text like %s", (f"%{MARK}%",)) == []


def assert_nothing_is_seen_in_the_server(db: Connection) -> None:
    rows = query(
        db,
        """
        select query, application_name, client_hostname from pg_stat_activity
        where pid <> pg_backend_pid()
        """,
    )
    assert rows
    assert MARK not in repr([row for row in rows if "create role" not in row[0]])


# --- the API ------------------------------------------------------------------------------------


def test_no_fault_of_the_api_reveals_a_secret(host: Host) -> None:
    with StandIn("starter", calls=10_000, key=KEY) as api:
        where = {"POLYGON_BASE_URL": api.base_url}
        for number, fault in enumerate(FAULTS):
            host.due()
            where["POLYGON_TIER"] = ["starter", "free"][number // 2 % 2]
            api.set_faults([fault])
            shown = ["--json"] if number % 2 else []
            limit = ["--limit", "1", "--max-runtime", "0.4"]
            lane = ["priority", "queue"][number % 2]
            host.tell("-v", "sync", lane, *shown, *limit, **where)
        host.tell("-v", "sync", "priority", "--dry-run", **where)
        host.tell("-v", "sync", "queue", "--dry-run", "--json", **where)
        host.tell("-v", "queue", "status")
        host.tell("-v", "queue", "status", "--json")
        host.tell("assets", "list", "--json", "-v")
        host.tell("db", "status", "--json", "-v")
        host.tell("db", "init", "-v")
        assert len(api.log) > len(FAULTS) / 2
        assert KEY not in repr(api.log)
    assert_nothing_is_stored(host.db)
    assert_nothing_is_seen_in_the_server(host.db)


def echo(request: bytes) -> bytes:
    """Answer with a message that quotes the key that was sent."""
    [sent] = [line for line in request.decode().splitlines() if line.startswith("Authorization")]
    assert KEY in sent
    return f'{{"status":"ERROR","error":"{sent}","message":"{sent}"}}'.encode()


@pytest.mark.parametrize("status", ["200 OK", "400 Bad", "401 No", "403 No", "404 No", "500 No"])
def test_a_key_that_the_server_sends_back_is_not_shown(host: Host, status: str) -> None:
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                line, _ = server.accept()
                with line:
                    body = echo(line.recv(65536))
                    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n"
                    line.sendall(f"{head}X-Key: {KEY}\r\n\r\n".encode() + body)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    where = f"http://127.0.0.1:{server.getsockname()[1]}"
    try:
        told = host.tell(
            "-v", "sync", "priority", "--json", "--max-runtime", "2", POLYGON_BASE_URL=where
        )
    finally:
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
        server.close()
    assert told.code in {1, 4}
    assert_nothing_is_stored(host.db)


def test_the_password_of_a_proxy_that_does_not_connect_is_not_shown(host: Host) -> None:
    told = host.tell(
        "-v", "sync", "priority", "--max-runtime", "2", POLYGON_BASE_URL="https://api.example.test"
    )
    assert told.code == 1
    assert "proxy" in told.err
    assert_nothing_is_stored(host.db)


# --- Redis --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        f"redis://{REDIS_USER}:{REDIS_PASSWORD}@127.0.0.1:1/0",
        f"redis://{REDIS_USER}:{REDIS_PASSWORD}@nosuch.invalid/0",
        f"redis://{REDIS_USER}:{REDIS_PASSWORD}@127.0.0.1:{{port}}/0",
        f"rediss://{REDIS_USER}:{REDIS_PASSWORD}@127.0.0.1:{{port}}/0",
        f"redis://:{REDIS_PASSWORD}@[broken/zq7",
        f"redis://{REDIS_USER}:{REDIS_PASSWORD}@127.0.0.1:notaport/0?zq7=1",
        f"unix://{REDIS_USER}:{REDIS_PASSWORD}@/zq7/nowhere",
        f"http://{REDIS_USER}:{REDIS_PASSWORD}@127.0.0.1",
    ],
)
def test_the_password_of_a_redis_that_refuses_it_is_not_shown(host: Host, address: str) -> None:
    with StandIn("free", calls=100, key=KEY) as api:  # a server that speaks HTTP is no Redis
        port = api.base_url.rsplit(":", 1)[1]
        told = host.tell(
            "-v",
            "sync",
            "priority",
            "--limit",
            "1",
            POLYGON_BASE_URL=api.base_url,
            REDIS_URL=address.format(port=port),
        )
    assert "Redis" in told.err
    assert told.code == (2 if address.startswith("http") else 0)
    assert_nothing_is_stored(host.db)


# --- a ping service -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        f"http://127.0.0.1:1/{PING_UUID}",
        f"https://127.0.0.1:{{port}}/{PING_UUID}",
        f"http://127.0.0.1:{{port}}/{PING_UUID}",
        f"https://{PING_UUID}.invalid/",
        f"https://nosuch.invalid:99999/{PING_UUID}",
        f"https://a..b/{PING_UUID}",
        f"http://nosuch.invalid/{PING_UUID}",
        f"https://{PROXY_USER}:{PASSWORD}@127.0.0.1/{PING_UUID}",
    ],
)
@pytest.mark.parametrize("log_format", ["text", "json"])
def test_the_url_of_a_ping_that_fails_is_not_shown(
    host: Host, address: str, log_format: str
) -> None:
    with StandIn("free", calls=100, key=KEY) as api:  # the stand-in has no such path
        port = api.base_url.rsplit(":", 1)[1]
        told = host.tell(
            *("-v", "sync", "priority", "--limit", "1", "--log-format", log_format),
            POLYGON_BASE_URL=api.base_url,
            PING_URL=address.format(port=port),
        )
    assert "PING_URL" in told.err
    wrong = "nosuch.invalid/" in address or "@" in address
    assert told.code == (2 if wrong else 0)
    assert_nothing_is_stored(host.db)


# --- the database -------------------------------------------------------------------------------

COMMANDS = (
    ("-v", "sync", "priority"),
    ("-v", "sync", "queue", "--json"),
    ("-v", "sync", "queue", "--dry-run"),
    ("-v", "queue", "status", "--json"),
    ("-v", "assets", "list"),
    ("-v", "db", "status"),
    ("-v", "db", "init"),
)


@pytest.mark.parametrize(
    "address",
    [
        f"postgresql://{USER}:{PASSWORD}@127.0.0.1:1/market",
        f"postgresql://{USER}:{PASSWORD}@nosuch.invalid/market",
        f"postgresql://{USER}:{PASSWORD}@127.0.0.1:1/market?sslmode={PASSWORD}",
        f"postgresql://{USER}:{PASSWORD}@127.0.0.1:1/market?{PASSWORD}=1",
        f"postgresql://{USER}:p@{PASSWORD}@127.0.0.1:1/market",
        f"postgresql://{USER}:%zz{PASSWORD}@127.0.0.1/market",
        f"host=127.0.0.1 port=1 user={USER} password={PASSWORD} {PASSWORD}",
        f"host=127.0.0.1 port={PASSWORD} user={USER}",
        f"mysql://{USER}:{PASSWORD}@127.0.0.1/market",
    ],
)
def test_the_password_in_an_unreachable_address_is_not_shown(host: Host, address: str) -> None:
    for command in COMMANDS:
        told = host.tell(*command, DATABASE_URL=address)
        assert told.code in ({0, 2} if "assets" in command else {2, 3})
        assert told.err


REFUSING = """
create function refuse() returns trigger language plpgsql as $$begin
  raise 'not today'; end$$;
create trigger refusing before insert on {} execute function refuse()
"""


@pytest.mark.parametrize(
    "trouble",
    [
        "drop table asset_sync.queue cascade",
        "drop schema market_data cascade",
        "drop schema trading cascade",
        REFUSING.format("asset_sync.runs"),
        REFUSING.format("market_data.ohlcv_5m"),
        REFUSING.format("asset_sync.calls"),
        "delete from data_sources.api_providers",
        "update asset_sync.migrations set version = version + 100",
        f"alter role {USER} set default_transaction_read_only = on",
        f"alter role {USER} set search_path = ''",
    ],
)
def test_a_database_that_refuses_reveals_no_secret(host: Host, trouble: str) -> None:
    query(host.db, trouble)
    with StandIn("free", calls=100, key=KEY) as api:
        for command in COMMANDS[:6]:
            host.tell(
                *command, "--max-runtime=2" if "sync" in command else "-v",
                POLYGON_BASE_URL=api.base_url,
            )  # fmt: skip


def test_a_missing_and_an_empty_database_reveal_no_secret(host: Host, empty_url: str) -> None:
    empty = make_dsn(empty_url, user=USER, password=PASSWORD)
    missing = make_dsn(empty, dbname="there_is_none")
    for address in (empty, missing):
        for command in COMMANDS[:6]:
            host.tell(*command, DATABASE_URL=address)


def test_the_address_is_printed_only_on_request_and_without_its_password(host: Host) -> None:
    told = commandline.asset_sync("db", "url", "-v", environ=host.environ, directory=host.home)
    assert parse_dsn(told.out)["user"] == USER
    assert PASSWORD not in told.out + told.err


@pytest.mark.parametrize(
    "name", ["POLYGON_API_KEY", "DATABASE_URL", "DB_PASSWORD", "REDIS_URL", "PING_URL"]
)
def test_a_secret_in_the_wrong_place_is_not_shown(host: Host, name: str) -> None:
    host.tell("-v", "queue", "status", **{f"{name}_FILE": KEY, name: ""})
    host.tell("-v", "queue", "status", **{f"{name}_FILE": host.environ["DATABASE_URL"], name: ""})
    (host.home / "assets.toml").write_text(f"[provider]\n{name.lower()} = '{PASSWORD}'\n")
    host.tell("-v", "queue", "status")


# --- a run that works ---------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["a bug", "terminated"])
def test_nobody_on_the_machine_sees_a_secret_of_a_run_that_works_or_breaks(
    host: Host, how: str
) -> None:
    script = "from asset_sync.cli import main; main()"
    if how == "a bug":
        # The exception is raised deep in the run, where key, session and connection are in scope.
        script = (
            "from asset_sync.provider.polygon import http as _http\n"
            "def broken(*what): raise RuntimeError(repr(what[0].request.headers))\n"
            "_http._read = broken\n" + script
        )
    with StandIn("free", calls=100, key=KEY, faults=["stall"] * (how != "a bug")) as api:
        process = subprocess.Popen(
            [sys.executable, "-c", script, "-v", "sync", "queue"],
            env=host.environ
            | {
                "POLYGON_BASE_URL": api.base_url,
                "PYTHONPATH": str(Path(asset_sync.__file__).parents[1]),
                "PATH": os.environ["PATH"],
            },
            cwd=host.home,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + 20
        while not api.log and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        if how == "terminated":
            assert MARK.encode() not in Path(f"/proc/{process.pid}/cmdline").read_bytes()
            [(name,)] = query(
                host.db, f"select application_name from pg_stat_activity where usename = '{USER}'"
            )
            assert name == "asset-sync"
            assert_nothing_is_seen_in_the_server(host.db)
            process.terminate()
        out, err = process.communicate(timeout=20)
    assert process.returncode == (70 if how == "a bug" else 143)
    assert MARK not in out + err
    assert "Traceback" not in err
    assert_nothing_is_stored(host.db)
