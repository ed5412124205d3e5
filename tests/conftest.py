"""Fixtures: a real PostgreSQL for every test that uses SQL, and a clock that does not wait."""

import itertools
import os
import pwd
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Protocol, Self

import psycopg2
import pytest
from anytime import WEDNESDAY, Today
from machine import Machine, one_bar

from asset_sync import database
from asset_sync.clock import Clock
from asset_sync.database import Connection, Row, embedded
from asset_sync.demo.server import StandIn
from asset_sync.model import Asset, AssetType, Feed, Lane, Level
from asset_sync.provider.polygon.markets import MARKETS
from asset_sync.queue import Wanted
from asset_sync.secret import Secret
from asset_sync.settings import SHIPPED_FILE, Settings, load
from asset_sync.store import partitioning
from asset_sync.store.partitioning import Layout

_TEMPLATE = f"asset_sync_template_{os.getpid()}"  # several processes may share a server
_numbers = itertools.count(1)


@pytest.fixture(scope="session", autouse=True)
def signals_end_processes() -> None:
    """Make SIGHUP and SIGINT end what the tests start, even if the tests run in the background.

    A shell makes background processes ignore SIGINT, and nohup SIGHUP; children inherit that.
    """
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def maintenance_url() -> Iterator[str]:
    """The server of the tests: TEST_DATABASE_URL, or an embedded one that is deleted at the end."""
    given = os.environ.get("TEST_DATABASE_URL")
    if given:
        yield given
        return
    # Not below pytest's own directory: each new session of pytest closes that to other accounts,
    # and if root runs the tests the server has another account.
    with tempfile.TemporaryDirectory(prefix="asset-sync-tests-") as base:
        server = embedded.start(Path(base) / "data")
        url = server.address("postgres")
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            _execute(url, f"alter system set {setting} = off")
        _execute(url, "select pg_reload_conf()")
        yield url
        server.leave()


@pytest.fixture(scope="session")
def template(maintenance_url: str) -> str:
    """An initialised database, of which each test gets a copy."""
    _execute(maintenance_url, f'drop database if exists "{_TEMPLATE}"')
    _execute(maintenance_url, f'create database "{_TEMPLATE}"')
    with database.raw_session(Secret(_with_database(maintenance_url, _TEMPLATE))) as db:
        database.migrate(db)
    return _TEMPLATE


@pytest.fixture(scope="session")
def partitioned_template(maintenance_url: str, template: str) -> Iterator[str]:
    """An initialised database whose bars have monthly partitions: some, and the default one."""
    for url in _fresh_database(maintenance_url, template):
        with database.raw_session(Secret(url)) as db:
            database.query(
                db,
                """
                insert into trading.symbols (symbol) values ('X');
                insert into market_data.ohlcv_5m (ticker_id, ts, open, high, low, close)
                select id, '2026-03-02 12:00Z', 1, 1, 1, 1 from trading.symbols
                """,
            )
            partitioning.partition(db)
            database.query(db, "truncate trading.symbols restart identity cascade")
        yield str(psycopg2.extensions.parse_dsn(url)["dbname"])


@pytest.fixture
def empty_url(maintenance_url: str) -> Iterator[str]:
    """The address of an empty database."""
    yield from _fresh_database(maintenance_url, "template0")


@pytest.fixture(scope="session")
def pool(maintenance_url: str, template: str) -> Iterator["Pool"]:
    """Keeps the database of one test for the next one."""
    with Pool(maintenance_url, template) as databases:
        yield databases


@pytest.fixture(scope="session")
def partitioned_pool(maintenance_url: str, partitioned_template: str) -> Iterator["Pool"]:
    """Keeps a database whose bars have monthly partitions."""
    with Pool(maintenance_url, partitioned_template) as databases:
        yield databases


@pytest.fixture
def layout() -> Layout:
    """How the bars are stored; a module whose tests must pass with both overrides it."""
    return Layout.TABLE


@pytest.fixture
def url(request: pytest.FixtureRequest, layout: Layout) -> Iterator[str]:
    """The address of an initialised database without data."""
    pool = request.getfixturevalue("pool" if layout is Layout.TABLE else "partitioned_pool")
    with pool.database() as address:
        yield address


@pytest.fixture
def today(request: pytest.FixtureRequest) -> Today:
    """The date on which a test runs: one of `anytime.DAYS`, by default a weekday."""
    return Today(getattr(request, "param", WEDNESDAY))


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


class Pool:
    """Gives one initialised database and empties it after each test: a copy for each takes 150 ms.

    If a test has changed more than rows, the next test gets a copy of the template.
    """

    def __init__(self, maintenance_url: str, template: str) -> None:
        self._maintenance_url = maintenance_url
        self._template = template
        self._exits = ExitStack()
        self._url: str | None = None
        self._shape: list[Row] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    @contextmanager
    def database(self) -> Iterator[str]:
        if self._url is None:
            fresh = contextmanager(_fresh_database)(self._maintenance_url, self._template)
            self._url = self._exits.enter_context(fresh)
            self._shape = _execute(self._url, _SHAPE)
        yield self._url
        try:
            _execute(self._url, _END_OTHERS)
            if _execute(self._url, _SHAPE) == self._shape:
                _execute(self._url, _EMPTY)
                return
        except psycopg2.Error:
            pass
        self._url = None


_END_OTHERS = """
select pg_terminate_backend(pid) from pg_stat_activity
where datname = current_database() and pid <> pg_backend_pid()
"""

# Columns, indexes, constraints, rights and comments of every table, and the schema's version.
_SHAPE = """
select n.nspname, n.nspacl::text, c.relname, c.relacl::text, c.relowner, a.attname, a.atttypid,
  a.attnotnull, (select string_agg(pg_get_indexdef(i.indexrelid), ';' order by i.indexrelid)
    from pg_index i where i.indrelid = c.oid),
  (select string_agg(o.conname, ';' order by o.conname) from pg_constraint o
    where o.conrelid = c.oid),
  (select string_agg(t.tgname, ';' order by t.tgname) from pg_trigger t where t.tgrelid = c.oid),
  (select string_agg(f.version::text, ';' order by f.version) from asset_sync.migrations f)
from pg_namespace n left join pg_class c on c.relnamespace = n.oid and c.relkind in ('r', 'p', 'v')
left join pg_attribute a on a.attrelid = c.oid and a.attnum > 0
where n.nspname !~ '^(pg_|information_schema)'
order by n.nspname, c.relname, a.attnum
"""

_EMPTY = """
do $$
begin
  if exists (select from market_data.ohlcv_5m offset 1000) then
    truncate market_data.ohlcv_5m;
  end if;
  if exists (select from asset_sync.queue offset 1000) then
    truncate asset_sync.queue;
  end if;
end
$$;
delete from market_data.ohlcv_5m;
delete from data_sources.data_sync_status;
delete from data_sources.api_providers;
delete from trading.symbols;
delete from asset_sync.calls;
delete from asset_sync.runs;
delete from asset_sync.queue;
delete from asset_sync.slots;
delete from asset_sync.entitlements;
delete from asset_sync.ledger;
delete from asset_sync.weeks;
delete from asset_sync.lags;
delete from asset_sync.revisions;
delete from asset_sync.arrivals;
delete from asset_sync.symbol_hours;
delete from asset_sync.expected_bars;
delete from asset_sync.limiter;
select setval(format('%I.%I', schemaname, sequencename), 1, false) from pg_sequences;
insert into data_sources.api_providers (code, name) values ('polygon', 'Polygon.io');
insert into asset_sync.limiter default values;
"""


class _Closing(list[Connection]):
    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self:
            connection.close()


class ShiftingClock(Clock):
    """A clock for `loop.run` that does not wait: it moves the times stored in the database back.

    Pass `monotonic` to the stand-in too, so that both have the same time. It is not another clock
    of the database, as in `anytime`: the bars of the stand-in would have to move along, and a test
    that sleeps for a day would find the markets of another day.
    """

    def __init__(self, db: Connection) -> None:
        self._db = db
        self._shifted = 0.0
        self._shift = _shift_of_every_time(db)

    def monotonic(self) -> float:
        return time.monotonic() + self._shifted

    def steady(self) -> float:
        return time.monotonic()  # the database's own clock does not change

    def sleep(self, seconds: float) -> None:
        self._shifted += seconds
        database.query(self._db, self._shift, {"seconds": seconds})


def _shift_of_every_time(db: Connection) -> str:
    """Return SQL that makes all times in our own tables older by a number of seconds."""
    rows = database.query(
        db,
        """
        select attrelid::regclass::text, string_agg(
          format(case when attname = 'sort_at'
            -- critical items stand in the order of the file, at seconds of 1970
            then '%%1$I = case level when ''critical'' then %%1$I else %%1$I - {ago} end'
            else '%%1$I = %%1$I - {ago}' end, attname), ', ')
        from pg_attribute join pg_class on pg_class.oid = attrelid
        where relnamespace = 'asset_sync'::regnamespace and relkind = 'r' and attnum > 0
          and atttypid = 'timestamptz'::regtype and not attisdropped
          -- these say which bars were asked for, and the bars do not move
          and (attrelid <> 'asset_sync.ledger'::regclass
            or attname not in ('tail_from', 'tail_until', 'unasked_until', 'past_begins'))
          and attname not in ('ts', 'first_ts', 'last_ts')
        group by attrelid
        """,
    )
    ago = "make_interval(secs => %(seconds)s)"
    return ";".join(f"update {table} set {changes}".format(ago=ago) for table, changes in rows)


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
    """Settings as a user has them, which name a stand-in and the test's database."""

    def make(api: StandIn, *, plan: str = "free", toml: str = "") -> Settings:
        path = SHIPPED_FILE
        if toml:
            path = tmp_path / "assets.toml"
            path.write_text(toml)
        environ = {
            "POLYGON_API_KEY": api.key,
            "POLYGON_BASE_URL": api.base_url,
            "POLYGON_TIER": plan,
            "POLYGON_PARALLEL_CALLS": "1",  # a shifting clock is that of one worker
            "DATABASE_URL": url,
            "HISTORY_ENABLED": "false",  # its calls would fill every simulated minute
        }
        return always_open(load(path, environ))

    return make


def always_open(settings: Settings) -> Settings:
    """Let every asset trade at all times, so that no test depends on the day of the week."""
    assets = tuple(replace(asset, hours="crypto") for asset in settings.assets)
    return replace(settings, assets=assets)


def asset(
    symbol: str,
    level: Level = Level.MEDIUM,
    *,
    position: int = 0,
    every: int = 300,
    asset_type: AssetType = AssetType.FOREX,
) -> Asset:
    """An asset as the settings file gives it."""
    ticker = f"{MARKETS[asset_type].prefix}{symbol}"
    return Asset(symbol, ticker, asset_type, symbol, level, position, every, hours="crypto")


def in_line(db: Connection, lane: Lane | None = None) -> list[Wanted]:
    """The line of settings that name every item in the queue: of one lane, or of both."""
    levels = {None: "true", Lane.PRIORITY: "level = 'critical'", Lane.QUEUE: "level <> 'critical'"}
    rows = database.query(
        db,
        f"""
        select symbol, feed, ticker, asset_type, name, level from asset_sync.queue
        where {levels[lane]}
        """,
    )
    return [
        Wanted(Asset(symbol, ticker, AssetType(kind), name, Level(level), 0, 300), Feed.named(feed))
        for symbol, feed, ticker, kind, name, level in rows
    ]


ETHER = """
[[secondary_assets]]
symbol = "ETHUSDT"
polygon_ticker = "X:ETHUSDT"
asset_type = "crypto"
"""
TYPO = ETHER.replace("X:ETHUSDT", "X:TYPO").replace("ETHUSDT", "TYPO")


def with_ether(url: str, db: Connection, api: StandIn, home: Path) -> Machine:
    """The machine of a user with one asset, which was last synced an hour ago."""
    one_bar(db, "ETHUSDT", "X:ETHUSDT")
    machine = Machine(home, url, api)
    machine.file(ETHER)
    return machine


def _fresh_database(maintenance_url: str, template: str) -> Iterator[str]:
    name = f"asset_sync_test_{os.getpid()}_{next(_numbers)}"
    copied = f'create database "{name}" template "{template}"'
    # Copying the files takes 20 ms, writing them to the log 145 ms. Before 15 only the log works.
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


OTHER_ACCOUNT = "asset_sync_other"
"""A second account of the machine; `.ci/run` creates it."""


@pytest.fixture
def other_account() -> str:
    """The name of an account other than root's, the tests' and a server's."""
    if os.geteuid() != 0:
        pytest.skip("only root can act as another account")
    try:
        return pwd.getpwnam(OTHER_ACCOUNT).pw_name
    except KeyError:
        pytest.skip(f"there is no second account: useradd --system {OTHER_ACCOUNT}")


@contextmanager
def nobody() -> Iterator[Path]:
    """Act as an account that file modes can stop, unlike root; give a directory of that account."""
    with tempfile.TemporaryDirectory() as directory:
        root = os.geteuid() == 0
        if root:
            os.chown(directory, 65534, -1)
            os.seteuid(65534)
        try:
            yield Path(directory)
        finally:
            if root:
                os.seteuid(0)
