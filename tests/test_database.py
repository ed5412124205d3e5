"""The connection and the schema, and the sentence for each error of either."""

import io
import os
import re
import socket
import struct
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import psycopg2
import pytest
from machine import until
from psycopg2.extensions import make_dsn, parse_dsn
from psycopg2.extras import wait_select

from asset_sync import database
from asset_sync.budget import slots
from asset_sync.database import (
    Connection,
    DatabaseError,
    NotInitialisedError,
    migrate,
    query,
    raw_session,
    require_schema,
    session,
    transaction,
)
from asset_sync.model import Lane
from asset_sync.provider.answers import Bar
from asset_sync.secret import Secret
from asset_sync.settings import load
from asset_sync.store import market, runs

PASSWORD = "s3cret-Tr4ding-v4lue"
USER = "somebody_in_particular"
SCHEMAS = ("asset_sync", "data_sources", "market_data", "trading")
ALL_STEPS = tuple(step.name for step in database.migrations())


@pytest.fixture
def empty(empty_url: str) -> Iterator[Connection]:
    """Return a connection to an empty database."""
    with raw_session(Secret(empty_url)) as db:
        yield db


def shape(db: Connection) -> list[database.Row]:
    """Return every column of every table, except PostgreSQL's own tables."""
    return query(
        db,
        """
        select table_schema, table_name, column_name, data_type, column_default, is_nullable
        from information_schema.columns join information_schema.tables
          using (table_schema, table_name)
        where table_schema not in ('pg_catalog', 'information_schema')
          and table_type = 'BASE TABLE'
        order by 1, 2, 3
        """,
    )


# --- migrations ---------------------------------------------------------------------------------


def test_init_creates_all_that_is_needed_in_an_empty_database(empty: Connection) -> None:
    assert tuple(step.name for step in migrate(empty)) == ALL_STEPS

    status = database.status(empty)
    assert (status.version, status.missing, status.problems) == (status.wanted, (), ())
    assert status.ready
    require_schema(empty)


def test_a_second_init_changes_nothing(empty: Connection) -> None:
    migrate(empty)
    before = shape(empty)

    assert migrate(empty) == ()

    assert shape(empty) == before


def test_two_inits_at_once_do_no_harm(empty_url: str) -> None:
    together = threading.Barrier(4)

    def init() -> tuple[str, ...]:
        with raw_session(Secret(empty_url)) as db:
            together.wait()
            return tuple(step.name for step in migrate(db))

    with ThreadPoolExecutor(4) as pool:
        applied = [future.result() for future in [pool.submit(init) for _ in range(4)]]

    assert sorted(applied, reverse=True) == [ALL_STEPS, (), (), ()]


def test_an_init_that_waited_for_another_sees_the_new_tables(
    empty_url: str, empty: Connection
) -> None:
    """The session has looked for the tables before they existed and has cached that."""
    waiting = "select from pg_locks where locktype = 'advisory' and not granted"

    def init() -> tuple[database.Migration, ...]:
        with raw_session(Secret(empty_url)) as db:
            query(db, "select to_regclass('asset_sync.migrations')")
            assert not database.status(db).ready
            return migrate(db)

    with ThreadPoolExecutor(1) as pool, raw_session(Secret(empty_url)) as first:
        with transaction(first) as cursor:
            cursor.execute("select pg_advisory_xact_lock(hashtext('asset-sync migrations'))")
            late = pool.submit(init)
            until(lambda: query(empty, waiting))
            for step in database.migrations():
                cursor.execute(step.sql)
            cursor.execute(
                "insert into asset_sync.migrations select generate_series(1, %s), ''",
                (len(ALL_STEPS),),
            )
        assert late.result() == ()
    assert database.status(empty).ready


@pytest.mark.parametrize("attempt", range(5))
def test_many_first_sessions_at_once_all_find_the_schema_initialised(
    empty_url: str, empty: Connection, attempt: int
) -> None:
    together = threading.Barrier(6)

    def first_session() -> None:
        with raw_session(Secret(empty_url)) as db:
            together.wait()
            with pytest.raises(NotInitialisedError):
                require_schema(db)
            together.wait()
            migrate(db)
            require_schema(db)

    with ThreadPoolExecutor(6) as pool:
        for future in [pool.submit(first_session) for _ in range(6)]:
            future.result()


# --- a restore that lost rows -------------------------------------------------------------------

_OWN_ROWS = "truncate asset_sync.migrations, asset_sync.limiter, asset_sync.slots"


@pytest.mark.parametrize("version", [step.version for step in database.migrations()][1:])
def test_a_restore_without_rows_is_initialised_from_any_version(
    empty: Connection, version: int
) -> None:
    for step in database.migrations()[:version]:
        query(empty, step.sql)
    query(empty, f"{_OWN_ROWS}; delete from data_sources.api_providers")
    assert not database.status(empty).ready

    assert tuple(step.name for step in migrate(empty)) == ALL_STEPS[version:]

    assert database.status(empty).ready
    assert query(empty, "select count(*) from asset_sync.migrations") == [(len(ALL_STEPS),)]


def test_after_a_restore_without_rows_no_call_is_made_for_a_window_and_a_call(
    db: Connection,
) -> None:
    """The database does not know any more which calls were made."""
    rate = slots.Rate(calls=5, period_seconds=60, call_timeout_seconds=30)
    query(db, f"{_OWN_ROWS}; delete from data_sources.api_providers")

    migrate(db)
    slots.prepare(db, rate)

    waiting = slots.take(db, Lane.QUEUE, rate)
    assert isinstance(waiting, slots.Wait)
    assert 80 < waiting.seconds <= 90


def test_a_new_database_has_the_whole_budget_at_once(db: Connection) -> None:
    rate = slots.Rate(calls=5, period_seconds=60, call_timeout_seconds=30)
    slots.prepare(db, rate)

    assert slots.budget(db, rate).free == 5


@pytest.mark.parametrize(
    ("loss", "problem"),
    [
        ("delete from asset_sync.limiter", "asset_sync.limiter has lost its row"),
        ("delete from data_sources.api_providers", "has no row with the code 'polygon'"),
    ],
)
def test_a_lost_row_is_reported_and_init_restores_it(
    db: Connection, loss: str, problem: str
) -> None:
    query(db, loss)

    [told] = database.status(db).problems
    assert problem in told
    migrate(db)
    assert database.status(db).ready


def test_without_the_limiters_row_no_session_begins(url: str, db: Connection) -> None:
    query(db, "delete from asset_sync.limiter")

    with (
        pytest.raises(NotInitialisedError, match=r"limiter has lost its row.*`asset-sync db init`"),
        session(Secret(url)),
    ):
        pass


def test_an_empty_table_is_not_taken_for_a_lost_table(db: Connection) -> None:
    query(db, "drop table asset_sync.limiter")

    assert database.status(db).missing == ("asset_sync.limiter",)
    assert database.status(db).problems == ()


def test_a_read_only_server_is_reported_as_a_problem(url: str, db: Connection) -> None:
    name = db.info.dbname
    query(db, f'alter database "{name}" set default_transaction_read_only = on')
    try:
        with raw_session(Secret(url)) as other:
            [problem] = database.status(other).problems
            assert "set to read only" in problem
    finally:
        with raw_session(Secret(url)) as other:
            query(other, f'set transaction read write; alter database "{name}" reset all')


def test_init_restores_what_somebody_removed_of_the_platform_tables(db: Connection) -> None:
    query(db, "drop table market_data.ohlcv_5m; delete from data_sources.api_providers")
    assert not database.status(db).ready

    migrate(db)

    assert database.status(db).ready
    assert query(db, "select code from data_sources.api_providers") == [("polygon",)]


def test_the_migrations_are_numbered_without_a_gap() -> None:
    versions = [step.version for step in database.migrations()]

    assert versions == list(range(1, len(versions) + 1))


def test_every_schema_and_table_has_a_comment(db: Connection) -> None:
    assert (
        query(
            db,
            """
        select nspname from pg_namespace
        where nspname = any(%(schemas)s) and obj_description(oid, 'pg_namespace') is null
        union all
        select oid::regclass::text from pg_class
        where relnamespace = any(%(schemas)s::text[]::regnamespace[]) and relkind = 'r'
          and obj_description(oid, 'pg_class') is null
        """,
            {"schemas": list(SCHEMAS)},
        )
        == []
    )


@pytest.mark.parametrize(
    "column",
    [
        "trading.symbols.symbol",
        "trading.symbols.metadata",
        "data_sources.data_sync_status.last_sync_timestamp",
        "data_sources.data_sync_status.sync_status",
        "market_data.ohlcv_5m.ts",
        "market_data.ohlcv_5m.volume",
        "asset_sync.runs.reason_ended",
        "asset_sync.runs.waited_seconds",
        "asset_sync.queue.level",
        "asset_sync.queue.due_at",
        "asset_sync.queue.sort_at",
        "asset_sync.queue.not_before",
        "asset_sync.queue.attempts",
        "asset_sync.queue.lease_token",
        "asset_sync.calls.outcome",
        "asset_sync.limiter.blocked_until",
        "asset_sync.limiter.reserved_at",
        "asset_sync.slots.stamped_at",
        "asset_sync.slots.token",
        "asset_sync.entitlements.key_fingerprint",
    ],
)
def test_every_column_with_an_unclear_name_has_a_comment(db: Connection, column: str) -> None:
    table, name = column.rsplit(".", 1)

    [(comment,)] = query(
        db,
        """
        select col_description(attrelid, attnum) from pg_attribute
        where attrelid = %s::regclass and attname = %s
        """,
        (table, name),
    )

    assert comment


def test_the_tables_named_in_the_program_are_those_of_the_migrations(db: Connection) -> None:
    named = {table.name for table in database.PLATFORM_TABLES}
    named |= {f"asset_sync.{name}" for name in database.OWN_TABLES}

    made = {f"{schema}.{table}" for schema, table, *_ in shape(db)}

    assert made == named


# --- a platform's own tables --------------------------------------------------------------------

_THEIRS = {
    "trading.symbols": """
        create table trading.symbols (
          id serial primary key, symbol text not null unique, name text, asset_type text,
          metadata jsonb, updated_at timestamptz
        )""",
    "data_sources.api_providers": """
        create table data_sources.api_providers (
          id serial primary key, code text not null unique, name text not null
        )""",
    "data_sources.data_sync_status": """
        create table data_sources.data_sync_status (
          ticker_id int, provider_id int, last_sync_timestamp timestamptz, sync_status text,
          error_message text, updated_at timestamptz, unique (ticker_id, provider_id)
        )""",
    "market_data.ohlcv_5m": """
        create table market_data.ohlcv_5m (
          ticker_id int, ts timestamptz, open float8, high float8, low float8, close float8,
          volume float8, vwap float8, trades int, primary key (ticker_id, ts)
        )""",
}


def have_platform(db: Connection, changes: str = "") -> None:
    query(
        db,
        "create schema trading; create schema data_sources; create schema market_data;"
        + ";".join(_THEIRS.values())
        + ";"
        + changes,
    )


def refusals(db: Connection) -> list[str]:
    """Return the sentences of `db init`, and check that it changed nothing."""
    before = shape(db)
    with pytest.raises(NotInitialisedError) as caught:
        migrate(db)
    assert shape(db) == before
    assert query(db, "select to_regnamespace('asset_sync')") == [(None,)]
    assert str(caught.value).splitlines() == list(database.status(db).problems)
    return str(caught.value).splitlines()


def test_existing_platform_tables_are_used_unchanged(empty: Connection) -> None:
    have_platform(
        empty,
        """
        alter table trading.symbols add country text not null default 'none';
        insert into data_sources.api_providers (code, name) values ('polygon', 'Theirs')
        """,
    )
    before = shape(empty)

    migrate(empty)

    assert [row for row in shape(empty) if row[0] != "asset_sync"] == before
    assert query(empty, "select name from data_sources.api_providers") == [("Theirs",)]
    assert database.status(empty).ready


@pytest.mark.parametrize("table", _THEIRS)
def test_init_creates_missing_platform_tables_beside_existing_ones(
    empty: Connection, table: str
) -> None:
    have_platform(empty, f"drop table {table}")
    if table in {"trading.symbols", "data_sources.api_providers"}:
        query(empty, "drop table data_sources.data_sync_status, market_data.ohlcv_5m")

    migrate(empty)

    assert database.status(empty).ready


def test_each_missing_column_of_a_platform_is_reported_in_a_sentence(empty: Connection) -> None:
    have_platform(
        empty,
        """
        alter table trading.symbols drop metadata;
        alter table market_data.ohlcv_5m drop vwap
        """,
    )

    advice = "which asset-sync writes: add it, or point asset-sync to another database."
    assert refusals(empty) == [
        f"The existing table trading.symbols has no column metadata, {advice}",
        f"The existing table market_data.ohlcv_5m has no column vwap, {advice}",
    ]


def test_a_missing_unique_index_is_reported_with_advice_that_works(empty: Connection) -> None:
    have_platform(empty, "alter table market_data.ohlcv_5m drop constraint ohlcv_5m_pkey")

    [sentence] = refusals(empty)

    advice = re.search("`(.*)`", sentence)
    assert advice is not None
    query(empty, advice[1])
    migrate(empty)
    assert database.status(empty).ready


@pytest.mark.parametrize(
    "index",
    [
        "create unique index on trading.symbols (symbol) where asset_type = 'forex'",
        "create unique index on trading.symbols (symbol, (lower(name)))",
        "create unique index on trading.symbols (symbol, name)",
        "create unique index on trading.symbols (lower(symbol))",
        "alter table trading.symbols add unique (symbol) deferrable",
        "create index on trading.symbols (symbol)",
    ],
)
def test_an_index_that_cannot_settle_a_conflict_does_not_count(
    empty: Connection, index: str
) -> None:
    have_platform(empty, "alter table trading.symbols drop constraint symbols_symbol_key;" + index)

    [sentence] = refusals(empty)

    assert "trading.symbols has no unique index on (symbol)" in sentence


@pytest.mark.parametrize(
    "index",
    [
        "create unique index on data_sources.data_sync_status (provider_id, ticker_id)",
        """create unique index on data_sources.data_sync_status (ticker_id, provider_id)
           include (updated_at)""",
    ],
)
def test_a_unique_index_may_have_its_columns_in_any_order(empty: Connection, index: str) -> None:
    have_platform(
        empty,
        """alter table data_sources.data_sync_status
             drop constraint data_sync_status_ticker_id_provider_id_key;"""
        + index,
    )

    migrate(empty)

    with transaction(empty) as cursor:
        market.save_symbols(cursor, [market.Symbol("EURUSD", "Euro", "forex")])
        market.save_status(cursor, ["EURUSD"])


@pytest.mark.parametrize(
    ("table", "column"),
    [
        ("trading.symbols", "add exchange text not null"),
        ("trading.symbols", "alter metadata set not null"),
        ("trading.symbols", "alter id drop default"),
        ("data_sources.api_providers", "add base_url text not null"),
        ("data_sources.data_sync_status", "add id uuid not null"),
        ("market_data.ohlcv_5m", "add source text not null"),
    ],
)
def test_a_required_column_that_asset_sync_does_not_fill_is_reported_in_a_sentence(
    empty: Connection, table: str, column: str
) -> None:
    have_platform(empty, f"alter table {table} {column}")

    [sentence] = refusals(empty)

    assert sentence == (
        f"The existing table {table} requires a value for {column.split()[1]}, which asset-sync "
        "does not give: give the column a default."
    )


@pytest.mark.parametrize(
    "column",
    [
        "add number int generated always as identity",
        "add half int not null generated always as (1) stored",
        "add source text not null default 'x'",
        "add remark text",
    ],
)
def test_a_column_that_fills_itself_is_no_problem(empty: Connection, column: str) -> None:
    have_platform(empty, f"alter table market_data.ohlcv_5m {column}")

    migrate(empty)

    with transaction(empty) as cursor:
        market.save_symbols(cursor, [market.Symbol("EURUSD", "Euro", "forex")])
        assert market.save_bars(cursor, "EURUSD", [Bar(0, 1, 1, 1, 1, 1, None, None)]) == 1


def test_a_required_column_of_providers_is_no_problem_if_our_row_exists(empty: Connection) -> None:
    have_platform(
        empty,
        """
        insert into data_sources.api_providers (code, name) values ('polygon', 'Theirs');
        alter table data_sources.api_providers add base_url text not null default 'x';
        alter table data_sources.api_providers alter base_url drop default
        """,
    )

    migrate(empty)

    assert database.status(empty).ready


# --- the version of the schema ------------------------------------------------------------------


def test_a_database_that_was_not_initialised_is_reported_in_one_sentence(empty_url: str) -> None:
    with (
        pytest.raises(NotInitialisedError, match=r"not been initialised.*`asset-sync db init`"),
        session(Secret(empty_url)),
    ):
        pass


def test_an_older_schema_is_reported_in_one_sentence(url: str, db: Connection) -> None:
    query(db, "delete from asset_sync.migrations where version > 1")

    with pytest.raises(NotInitialisedError, match=r"at version 1.*`asset-sync db init`"):
        require_schema(db)
    assert not database.status(db).ready


def test_a_newer_schema_is_reported_in_one_sentence_and_not_changed(db: Connection) -> None:
    query(db, "insert into asset_sync.migrations (version, name) values (9999, 'of the future')")
    query(db, "drop table market_data.ohlcv_5m")
    before = shape(db)

    with pytest.raises(NotInitialisedError, match=r"at version 9999.*upgrade this one"):
        require_schema(db)
    with pytest.raises(NotInitialisedError, match=r"at version 9999.*upgrade this one"):
        migrate(db)
    assert shape(db) == before


def test_db_status_lists_missing_tables(db: Connection) -> None:
    query(db, "drop table market_data.ohlcv_5m, asset_sync.calls")

    status = database.status(db)

    assert status.missing == ("market_data.ohlcv_5m", "asset_sync.calls")
    assert re.fullmatch(r"\d+(\.\d+)*", status.server)


# --- an ordinary role ---------------------------------------------------------------------------


@pytest.fixture
def ordinary_url(empty_url: str) -> Iterator[str]:
    """Return the address for a role that owns the four schemas and has no other right."""
    role = f"asset_sync_test_role_{os.getpid()}"
    with raw_session(Secret(empty_url)) as admin:
        [(allowed,)] = query(
            admin, "select rolsuper or rolcreaterole from pg_roles where rolname = current_user"
        )
        if not allowed:
            pytest.skip("the role of TEST_DATABASE_URL may not create roles")
        query(admin, f"create role {role} login password '{PASSWORD}'")
        try:
            for schema in SCHEMAS:
                query(admin, f"create schema {schema} authorization {role}")
            yield make_dsn(empty_url, user=role, password=PASSWORD)
        finally:
            query(admin, f"drop owned by {role} cascade; drop role {role}")


def test_a_role_that_owns_only_its_schemas_can_initialise_and_sync(ordinary_url: str) -> None:
    with raw_session(Secret(ordinary_url)) as db:
        assert query(
            db,
            """
            select rolsuper, has_database_privilege(current_database(), 'create')
            from pg_roles where rolname = current_user
            """,
        ) == [(False, False)]
        migrate(db)
        migrate(db)
    with session(Secret(ordinary_url)) as db, transaction(db) as cursor:
        market.save_symbols(cursor, [market.Symbol("EURUSD", "Euro", "forex")])
        market.save_status(cursor, ["EURUSD"])


# --- statements ---------------------------------------------------------------------------------

_SETTINGS = "select current_setting('statement_timeout'), current_setting('lock_timeout')"
BOUNDED = ("20s", "10s")


def outside(db: Connection) -> tuple[str, str]:
    with db.cursor() as cursor:
        cursor.execute(_SETTINGS)
        [row] = cursor.fetchall()
        return row


def test_every_statement_has_a_time_limit(db: Connection) -> None:
    assert query(db, _SETTINGS) == [BOUNDED]
    assert query(db, "select 1; " + _SETTINGS) == [BOUNDED]
    with transaction(db) as cursor:
        cursor.execute("select 1")
        cursor.execute(_SETTINGS)
        assert cursor.fetchall() == [BOUNDED]


def test_a_program_that_imports_us_copies_on_its_own_connection_and_on_ours(
    db: Connection, connect: Callable[[], Connection]
) -> None:
    query(db, "select 1")
    own = connect()
    own.cursor().execute("create temporary table numbers (n int)")
    own.cursor().copy_expert("copy numbers from stdin", io.StringIO("1\n2\n"))
    copied = io.StringIO()
    own.cursor().copy_expert("copy numbers to stdout", copied)
    assert copied.getvalue() == "1\n2\n"

    rows = io.BytesIO()
    with transaction(db) as cursor:
        cursor.execute("create temporary table numbers (n int) on commit drop")
        cursor.execute("insert into numbers values (3), (4)")
        cursor.copy_expert("copy numbers to stdout (format binary)", rows)
        rows.seek(0)
        cursor.copy_expert("copy numbers from stdin (format binary)", rows)
        cursor.execute("select array_agg(n) from numbers")
        assert cursor.fetchall() == [([3, 4, 3, 4],)]


def test_the_wait_callback_of_a_program_that_imports_us_is_left_as_it_is(url: str) -> None:
    """Ours works with it, and without any; psycopg2 has one for the whole process."""

    def own_one(connection: Connection) -> None:
        waited.append(connection)
        wait_select(connection)

    for callback in (None, own_one):
        waited: list[Connection] = []
        psycopg2.extensions.set_wait_callback(callback)
        try:
            with database.session(Secret(url)) as db:
                assert query(db, "select 1") == [(1,)]
                assert (db in waited) is (callback is own_one)
                with pytest.raises(psycopg2.OperationalError), database.statement_timeout(0.3):
                    query(db, "select pg_sleep(10)")
                assert db.closed
            assert psycopg2.extensions.get_wait_callback() is callback
        finally:
            psycopg2.extensions.set_wait_callback(None)


@pytest.mark.parametrize("how", ["execute", "copy_expert"])
def test_in_each_thread_a_statement_is_given_up_in_its_own_time(url: str, how: str) -> None:
    def sleep_in_the_database(patience_seconds: float) -> tuple[float, str]:
        with (
            database.session(Secret(url)) as db,
            database.statement_timeout(patience_seconds),
            db.cursor() as cursor,
        ):
            began = time.monotonic()
            try:
                if how == "copy_expert":
                    cursor.copy_expert("copy (select pg_sleep(2)) to stdout", io.BytesIO())
                else:
                    cursor.execute("select pg_sleep(2)")
            except psycopg2.OperationalError as error:
                return time.monotonic() - began, f"{error} {bool(db.closed)}"
            return time.monotonic() - began, f"done {bool(db.closed)}"

    with ThreadPoolExecutor() as threads:
        short, long = threads.map(sleep_in_the_database, (0.5, 20))

    assert 0.5 <= short[0] < 1.9
    assert 2 <= long[0] < 20
    assert (short[1], long[1]) == ("timeout expired True", "done False")


def test_no_session_setting_outlives_its_transaction(
    db: Connection, connect: Callable[[], Connection]
) -> None:
    """Behind PgBouncer another client may get the session next."""
    before = outside(connect())

    query(db, "select 1")
    with transaction(db) as cursor:
        cursor.execute("select 1")
    with suppress(ValueError), transaction(db):
        raise ValueError
    with suppress(psycopg2.Error):
        query(db, "select 1 / 0")

    assert outside(db) == before


@pytest.mark.parametrize("trouble", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_a_transaction_that_raises_is_rolled_back(
    db: Connection, trouble: type[BaseException]
) -> None:
    def cut_off() -> None:
        with transaction(db) as cursor:
            cursor.execute("insert into asset_sync.runs (command, host, pid) values ('q', 'h', 1)")
            raise trouble

    with pytest.raises(trouble):
        cut_off()

    assert runs.last(db, 5) == ()
    assert db.info.transaction_status == psycopg2.extensions.TRANSACTION_STATUS_IDLE


def test_several_statements_of_a_query_are_one_transaction(db: Connection) -> None:
    with pytest.raises(psycopg2.Error):
        query(db, "insert into asset_sync.runs (command, host, pid) values ('q','h',1); select 1/0")

    assert runs.last(db, 5) == ()


def test_an_interrupt_stays_an_interrupt_even_if_the_connection_is_lost(
    db: Connection, connect: Callable[[], Connection]
) -> None:
    other = connect()

    def cut_off() -> None:
        with transaction(other):
            query(db, "select pg_terminate_backend(%s, 5000)", (other.info.backend_pid,))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut_off()


def test_times_are_read_with_a_time_zone(db: Connection) -> None:
    [(now,)] = query(db, "select clock_timestamp()")

    assert abs((now - datetime.now(UTC)).total_seconds()) < 3600


# --- errors -------------------------------------------------------------------------------------


def trouble_with(address: str) -> str:
    """Return the sentence of the error, and check that it is one sentence without a secret."""
    with pytest.raises(DatabaseError) as caught, raw_session(Secret(address)):
        pass
    sentence = str(caught.value)
    told = "".join(traceback.format_exception(caught.value))
    assert "\n" not in sentence
    assert sentence.endswith(".")
    for hidden in (PASSWORD, "Tr4ding"):
        assert hidden not in told
    return sentence


@contextmanager
def server_that_says(sqlstate: str, message: str, *, ssl: bytes = b"N") -> Iterator[int]:
    """Refuse each connection with PostgreSQL's ErrorResponse; give the port."""
    fields = f"SFATAL\0VFATAL\0C{sqlstate}\0M{message}\0\0".encode()
    refusal = b"E" + struct.pack("!i", len(fields) + 4) + fields

    def converse(client: socket.socket) -> None:
        with client, suppress(OSError):
            while header := client.recv(8):
                length, code = struct.unpack("!ii", header)
                if code in {80877103, 80877104}:  # SSLRequest, GSSENCRequest
                    client.sendall(ssl if code == 80877103 else b"N")
                else:
                    client.recv(length - 8)
                    client.sendall(refusal)
                    return

    def serve() -> None:
        with suppress(OSError):
            while True:
                converse(server.accept()[0])

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


ROLE_REFUSED = f'refuses the role "{USER}"'
NOT_REACHABLE = "is not reachable"


@pytest.mark.parametrize(
    ("sqlstate", "message", "what", "meaning"),
    [
        (
            "28P01",
            f'password authentication failed for user "{USER}"',
            ROLE_REFUSED,
            "the role or its password is wrong",
        ),
        ("28000", f'role "{USER}" does not exist', ROLE_REFUSED, "there is no such role"),
        (
            "3D000",
            'database "x" does not exist',
            NOT_REACHABLE,
            "there is no such database: `createdb` makes one",
        ),
        (
            "28000",
            f'no pg_hba.conf entry for host "10.0.0.1", user "{USER}", database "x"',
            ROLE_REFUSED,
            "its pg_hba.conf does not allow this host, role and database",
        ),
        ("53300", "sorry, too many clients already", NOT_REACHABLE, "it has no free connection"),
        ("57P03", "the database system is starting up", NOT_REACHABLE, "it is just starting up"),
        ("57P03", "the database system is shutting down", NOT_REACHABLE, "it is shutting down"),
    ],
)
def test_a_refused_connection_is_a_sentence_with_host_port_database_and_role(
    sqlstate: str, message: str, what: str, meaning: str
) -> None:
    with server_that_says(sqlstate, message) as port:
        sentence = trouble_with(f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{port}/x?sslmode=prefer")

    assert sentence.startswith(f'The database "x" at 127.0.0.1:{port} {what}: {meaning}')


@pytest.mark.parametrize(
    ("environ", "source"),
    [
        ({"DATABASE_URL": "postgresql://me:{0}@127.0.0.1:1/market"}, "DATABASE_URL"),
        ({"DATABASE_URL_FILE": "{1}"}, "DATABASE_URL_FILE ({1})"),
        (
            {
                "DB_HOST": "127.0.0.1",
                "DB_PORT": "1",
                "DB_NAME": "market",
                "DB_USER": "me",
                "DB_PASSWORD": PASSWORD,
            },
            "DB_HOST, DB_PORT, DB_NAME, DB_USER, DB_PASSWORD",
        ),
        (
            {"PGHOST": "127.0.0.1", "PGPORT": "1", "PGDATABASE": "market", "PGUSER": "me"},
            "PGHOST, PGDATABASE, PGPORT, PGUSER",
        ),
    ],
)
def test_the_sentence_names_the_setting_or_file_that_the_address_came_from(
    environ: dict[str, str], source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "address"
    file.write_text(f"postgresql://me:{PASSWORD}@127.0.0.1:1/market")
    given = {name: value.format(PASSWORD, file) for name, value in environ.items()}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    conninfo = load(None, given).conninfo

    with pytest.raises(DatabaseError) as caught, raw_session(conninfo):
        pass

    said = source.format("", file)
    assert str(caught.value) == (
        f'The database "market" at 127.0.0.1:1 is not reachable (from {said}): nothing listens at '
        f"that host and port. Check {said}, and that the server runs."
    )


def test_an_unknown_refusal_reveals_nothing() -> None:
    with server_that_says("28P01", f"Passwort von »{USER}« falsch: {PASSWORD}") as port:
        trouble_with(f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{port}/x")


def test_a_missing_root_certificate_is_not_taken_for_a_missing_database() -> None:
    with server_that_says("XX000", "never said", ssl=b"S") as port:
        sentence = trouble_with(
            f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{port}/x"
            "?sslmode=verify-full&sslrootcert=/no/such/file"
        )

    assert "sslrootcert" in sentence


@pytest.mark.parametrize(
    ("name", "value"), [("PGTZ", "nonsense"), ("PGOPTIONS", "-c no_such_setting=1")]
)
def test_an_option_of_the_session_that_the_server_refuses_is_named(
    url: str, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)

    sentence = trouble_with(url)

    assert "it refuses an option of the session" in sentence
    assert name in sentence


def test_a_port_without_a_listener_is_reported_in_a_sentence() -> None:
    sentence = trouble_with(f"postgresql://{USER}:{PASSWORD}@127.0.0.1:1/x")

    assert "nothing listens at that host and port" in sentence
    assert "DATABASE_URL" in sentence


def test_a_missing_socket_is_reported_in_a_sentence() -> None:
    sentence = trouble_with(f"host=/no/such/place user={USER} password={PASSWORD}")

    assert "no server listens on that socket" in sentence


def test_a_password_with_an_at_sign_is_not_shown_as_part_of_the_host() -> None:
    """If the @ is not percent-encoded, libpq takes the rest of the password for the host."""
    sentence = trouble_with(f"postgresql://{USER}:a@{PASSWORD}@no-such-host.invalid/x")

    assert "the host's name is not known" in sentence
    assert "%40" in sentence


@pytest.mark.parametrize(
    "address",
    [
        f"postgresql://{USER}:{PASSWORD}@host:port/x",
        f"postgresql://{USER}:{PASSWORD}@[::1/x",
        f"postgresql://{USER}:{PASSWORD}@host/x?no_such_option=1",
        f"postgresql://{USER}:{PASSWORD}%zz@host/x",
        f"host=x password={PASSWORD} nonsense",
        f"{PASSWORD}",
        f"mysql://{USER}:{PASSWORD}@host/x",
    ],
)
def test_an_invalid_address_is_reported_in_a_sentence(address: str) -> None:
    assert "DATABASE_URL" in trouble_with(address)


def test_a_database_that_does_not_exist_is_reported_in_a_sentence(url: str) -> None:
    sentence = trouble_with(make_dsn(url, dbname="no_such_database"))

    assert '"no_such_database"' in sentence
    assert "there is no such database" in sentence


def test_one_reachable_host_of_several_is_enough(url: str, db: Connection) -> None:
    host, port = db.info.host, db.info.port

    with session(Secret(make_dsn(url, host=f"127.0.0.1,{host}", port=f"1,{port}"))) as connected:
        assert query(connected, "select 1") == [(1,)]


def test_the_primary_is_chosen_of_several_hosts_if_the_address_asks_for_it(
    url: str, db: Connection
) -> None:
    host, port = db.info.host, db.info.port
    hosts = make_dsn(
        url, host=f"127.0.0.1,{host}", port=f"1,{port}", target_session_attrs="read-write"
    )

    with session(Secret(hosts)) as connected:
        assert query(connected, "select pg_is_in_recovery()") == [(False,)]


def in_a_session(url: str, work: Callable[[Connection], object]) -> str:
    """Return the sentence of the error in a session that does this."""
    with pytest.raises(DatabaseError) as caught, session(Secret(url)) as db:
        work(db)
    assert caught.value.__cause__ is None
    return str(caught.value)


@pytest.mark.parametrize(
    ("sql", "sentence"),
    [
        ("select from no_such_schema.x", r"lacks a (schema|table) .*`asset-sync db init`"),
        ("create table no_such_schema.x ()", r"lacks a schema .*`asset-sync db init`"),
        ("set transaction read only; delete from asset_sync.calls", r"is read-only .*DATABASE_URL"),
        (
            "set local statement_timeout = '1ms'; select pg_sleep(9)",
            r"did not answer in time \(canceling statement due to statement timeout\)",
        ),
        ("select 1 / 0", r"refused a statement \(22012: division by zero\)"),
    ],
)
def test_a_refused_statement_is_reported_in_a_sentence(url: str, sql: str, sentence: str) -> None:
    assert re.search(sentence, in_a_session(url, lambda db: query(db, sql)))


def test_a_lock_held_by_others_is_reported_in_a_sentence(url: str, db: Connection) -> None:
    with transaction(db) as cursor:
        cursor.execute("lock table asset_sync.limiter")

        sentence = in_a_session(
            url,
            lambda other: query(
                other, "set local lock_timeout = '1ms'; select from asset_sync.limiter for update"
            ),
        )

    assert "did not get a lock in time" in sentence


def test_a_session_ended_by_the_server_is_reported_in_a_sentence(url: str, db: Connection) -> None:
    def lose(other: Connection) -> None:
        query(db, "select pg_terminate_backend(%s, 5000)", (other.info.backend_pid,))
        query(other, "select 1")

    assert "it closed the connection" in in_a_session(url, lose)


def test_a_missing_right_is_reported_in_a_sentence(ordinary_url: str) -> None:
    with raw_session(Secret(ordinary_url)) as db:
        migrate(db)

    sentence = in_a_session(ordinary_url, lambda db: query(db, "create schema x"))

    assert "may not do this (permission denied for database" in sentence


def test_the_connection_is_closed_however_the_session_ends(url: str) -> None:
    opened: list[Connection] = []

    def leave() -> None:
        with session(Secret(url)) as db:
            opened.append(db)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        leave()

    assert opened[0].closed


# --- the URL of `db url` ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "url"),
    [
        (
            f"postgresql://me:{PASSWORD}@db.example.test:5433/market?sslmode=require",
            "postgresql://me@db.example.test:5433/market?sslmode=require",
        ),
        (
            f"host=db.example.test dbname=market user=me sslmode=require password={PASSWORD}",
            "postgresql://me@db.example.test:5432/market?sslmode=require",
        ),
        (
            f"postgresql://me@[::1]/market?password={PASSWORD}&sslpassword={PASSWORD}",
            "postgresql://me@[::1]:5432/market",
        ),
        (
            f"host=/run/postgresql port=5433 dbname='my market' user=me@home password={PASSWORD}",
            "postgresql://me%40home@/my%20market?host=/run/postgresql&port=5433",
        ),
        (
            f"postgresql://me:{PASSWORD}@one:1,two:2/market?target_session_attrs=read-write",
            "postgresql://me@/market?target_session_attrs=read-write&host=one,two&port=1,2",
        ),
        ("dbname=market user=me", "postgresql://me@/market"),
    ],
)
def test_the_url_of_a_server_has_everything_except_the_password(address: str, url: str) -> None:
    made = database.address_of(Secret(address), {}).url()

    assert made == url
    given, read = parse_dsn(address), parse_dsn(made)
    secrets = {"password", "sslpassword"}
    assert {**given, "port": given.get("port", "5432")}.items() - {
        (k, PASSWORD) for k in secrets
    } == {**read, "port": read.get("port", "5432")}.items()


def test_the_url_includes_values_from_libpqs_own_variables() -> None:
    environ = {"PGHOST": "db.example.test", "PGDATABASE": "market", "PGUSER": "me"}

    assert (
        database.address_of(Secret(""), environ).url()
        == "postgresql://me@db.example.test:5432/market"
    )


def test_the_printed_url_connects(url: str, db: Connection) -> None:
    with session(Secret(database.address_of(Secret(url)).url())) as connected:
        assert connected.info.dbname == db.info.dbname


def test_an_invalid_address_has_no_url() -> None:
    with pytest.raises(DatabaseError, match="DATABASE_URL") as caught:
        database.address_of(Secret(f"postgresql://me:{PASSWORD}@host:1/x?nonsense=1"))

    assert PASSWORD not in "".join(traceback.format_exception(caught.value))
