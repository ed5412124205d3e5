"""A real PostgreSQL for every test that has SQL in it, and a clock that does not wait."""

import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, Self

import psycopg2
import pytest

from asset_sync import database, embedded, sync
from asset_sync.assets import Asset, AssetType, Level
from asset_sync.database import Connection, Row
from asset_sync.demo.server import StandIn
from asset_sync.settings import SHIPPED_FILE, Secret, Settings, load

_TEMPLATE = "asset_sync_template"
_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def maintenance_url() -> Iterator[str]:
    """The server of the tests: TEST_DATABASE_URL, or an embedded one that is thrown away."""
    given = os.environ.get("TEST_DATABASE_URL")
    if given:
        yield given
        return
    # Not below pytest's own directory, which it closes to others whenever another session begins;
    # as root the server is such another.
    with tempfile.TemporaryDirectory(prefix="asset-sync-tests-") as base:
        server = embedded.start(Path(base) / "data")
        url = embedded.address("postgres", server.get_postmaster_info().socket_dir)
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            _execute(url, f"alter system set {setting} = off")
        _execute(url, "select pg_reload_conf()")
        yield url
        server.cleanup()


@pytest.fixture(scope="session")
def template(maintenance_url: str) -> str:
    """An initialised database, of which each test gets a copy."""
    _execute(maintenance_url, f'drop database if exists "{_TEMPLATE}"')
    _execute(maintenance_url, f'create database "{_TEMPLATE}"')
    with database.raw_session(Secret(_with_database(maintenance_url, _TEMPLATE))) as db:
        database.migrate(db)
    return _TEMPLATE


@pytest.fixture
def empty_url(maintenance_url: str) -> Iterator[str]:
    """The address of a database in which nothing is."""
    yield from _fresh_database(maintenance_url, "template0")


@pytest.fixture
def url(maintenance_url: str, template: str) -> Iterator[str]:
    """The address of a database that has been initialised."""
    yield from _fresh_database(maintenance_url, template)


@pytest.fixture
def db(url: str) -> Iterator[Connection]:
    """A connection to a database that has been initialised."""
    with database.session(Secret(url)) as connection:
        yield connection


@pytest.fixture
def connect(url: str) -> Iterator[Callable[[], Connection]]:
    """More connections to the same database, as another process would have."""
    with _Closing() as opened:

        def another() -> Connection:
            connection = psycopg2.connect(url)
            connection.autocommit = True
            opened.append(connection)
            return connection

        yield another


class _Closing(list[Connection]):
    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self:
            connection.close()


class ShiftingClock(sync.Clock):
    """A clock for `sync.run` that does not wait: it moves the database's past away instead.

    Hand `monotonic` to the stand-in, too, and both agree on how late it is.
    """

    SHIFTED = (
        ("slots", "ended_at"),
        ("slots", "previous_ended_at"),
        ("limiter", "blocked_until"),
        ("limiter", "reserved_at"),
        ("queue", "last_success_at"),
        ("queue", "last_attempt_at"),
        ("queue", "added_at"),
        ("queue", "due_at"),
        ("queue", "available_at"),
        ("queue", "lease_until"),
    )

    def __init__(self, db: Connection) -> None:
        self._db = db
        self._shifted = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self._shifted

    def sleep(self, seconds: float) -> None:
        self._shifted += seconds
        for table, column in self.SHIFTED:
            database.query(
                self._db,
                f"update asset_sync.{table} set {column} = {column} - make_interval(secs => %s)",
                (seconds,),
            )
        database.query(
            self._db,
            """
            update asset_sync.queue set order_at = order_at - make_interval(secs => %s)
            where level <> 'critical'
            """,
            (seconds,),
        )


@pytest.fixture
def clock(db: Connection) -> ShiftingClock:
    return ShiftingClock(db)


@pytest.fixture
def api(clock: ShiftingClock) -> Iterator[StandIn]:
    """The stand-in on the free plan, on the same clock."""
    with StandIn("free", monotonic=clock.monotonic) as server:
        yield server


class MakeSettings(Protocol):
    def __call__(self, api: StandIn, *, plan: str = ..., toml: str = ...) -> Settings: ...


@pytest.fixture
def make_settings(url: str, tmp_path: Path) -> MakeSettings:
    """Settings as a user would have them, pointed to a stand-in and to the test's database."""

    def make(api: StandIn, *, plan: str = "free", toml: str = "") -> Settings:
        path = SHIPPED_FILE
        if toml:
            path = tmp_path / "assets.toml"
            path.write_text(toml)
        environ = {
            "POLYGON_API_KEY": api.key,
            "POLYGON_BASE_URL": api.base_url,
            "POLYGON_TIER": plan,
            "DATABASE_URL": url,
        }
        return load(path, environ)

    return make


def asset(
    symbol: str,
    level: Level = Level.MEDIUM,
    *,
    position: int = 0,
    every: int = 300,
    asset_type: AssetType = AssetType.FOREX,
) -> Asset:
    """An asset as the settings file would give it."""
    ticker = f"{asset_type.ticker_prefix}{symbol}"
    return Asset(symbol, ticker, asset_type, symbol, level, position, every)


def _fresh_database(maintenance_url: str, template: str) -> Iterator[str]:
    name = f"asset_sync_test_{os.getpid()}_{next(_numbers)}"
    copied = f'create database "{name}" template "{template}"'
    # Copying the files takes 20 ms, writing them to the log 145; before 15 there is no choice.
    [(version,)] = _execute(maintenance_url, "select current_setting('server_version_num')::int")
    _execute(maintenance_url, copied + (" strategy file_copy" if version >= 150_000 else ""))
    yield _with_database(maintenance_url, name)
    _execute(maintenance_url, f'drop database "{name}" with (force)')


def _with_database(url: str, name: str) -> str:
    return str(psycopg2.extensions.make_dsn(url, dbname=name))


def _execute(url: str, sql: str) -> list[Row]:
    connection = psycopg2.connect(url)
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchall() if cursor.description is not None else []
    finally:
        connection.close()
