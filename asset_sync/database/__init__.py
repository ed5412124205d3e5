"""The connection to PostgreSQL, its schema, and the sentences for what can go wrong with it."""

import os
import re
import select
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import psycopg2
import psycopg2.errors
import psycopg2.extensions

from asset_sync.database.timestamps import read_any
from asset_sync.errors import AssetSyncError, ExitCode
from asset_sync.settings import Secret

EMBEDDED_DATABASE = "asset_sync"

Connection: TypeAlias = psycopg2.extensions.connection
Cursor: TypeAlias = psycopg2.extensions.cursor
# What a row holds is known where its SQL stands, and to nobody else.
Row: TypeAlias = tuple[Any, ...]
Parameters: TypeAlias = Mapping[str, object] | Sequence[object]

# No statement of ours takes seconds. A lock held by somebody else, or a server that has lost its
# disk, must not hold a run past its own limit; nor may a run that vanishes in the middle of a
# transaction hold its locks until TCP gives up, after hours. The isolation is the one that the
# statements were written for, whatever the role's default. Per transaction, because behind
# PgBouncer in transaction mode a session has no settings of its own.
STATEMENT_SECONDS = 20
LOCK_SECONDS = 10
# Compiled, a statement over the limiter's one row took 2 to 7 s on a new PostgreSQL 15, whose
# planner expects hundreds of rows where nothing has been analysed yet; nothing here gains by it.
_BOUNDS = (
    "set local jit = off; "
    "set local transaction_isolation = 'read committed'; "
    f"set local statement_timeout = '{STATEMENT_SECONDS}s'; "
    f"set local lock_timeout = '{LOCK_SECONDS}s'; "
    f"set local idle_in_transaction_session_timeout = '{STATEMENT_SECONDS}s'; "
)
CONNECT_SECONDS = 10
# How long an answer is waited for: as long as the statement may take, and the way there and back.
_patience_seconds = ContextVar[float]("patience", default=STATEMENT_SECONDS + 5)

ServerError: TypeAlias = psycopg2.Error
SERVER_ERRORS = (
    psycopg2.OperationalError,
    psycopg2.InterfaceError,
    psycopg2.errors.ReadOnlySqlTransaction,
    psycopg2.errors.IdleInTransactionSessionTimeout,
)
"""What psycopg2 raises when the server, and neither a statement nor its data, is at fault."""


class DatabaseError(AssetSyncError):
    """The database cannot be used; the message says why and what to do."""

    exit_code = ExitCode.DATABASE


class NotInitialisedError(DatabaseError):
    """The server answers, but its schema is missing, too old, too new, or not what is needed."""


@contextmanager
def session(conninfo: Secret | None) -> Iterator[Connection]:
    """Open the one connection of a command; None stands for the embedded PostgreSQL.

    The connection is in autocommit: `query` and `transaction` say where a transaction begins and
    ends. The embedded database is initialised, and repaired, where that is needed; of a server
    NotInitialisedError is raised. Raises DatabaseError for all that psycopg2 raises, here and in
    the block.
    """
    with raw_session(conninfo) as db:
        try:
            require_schema(db)
        except NotInitialisedError:
            if conninfo is not None:
                raise
            migrate(db)
            require_schema(db)
        yield db


@contextmanager
def raw_session(conninfo: Secret | None) -> Iterator[Connection]:
    """Open a connection as `session` does, whatever state the schema is in."""
    with errors_as_sentences(conninfo), closing(connect(conninfo)) as db:
        yield db


def connect(conninfo: Secret | None, *, within_seconds: float = CONNECT_SECONDS) -> Connection:
    """Return a new connection; the caller closes it. Raises what psycopg2 does.

    The time is for each host of the address, and whole seconds, two at least, are libpq's.
    """
    address = _address(conninfo)
    # Only libpq's own connecting gives each host of the address its time and then takes the next.
    psycopg2.extensions.set_wait_callback(None)
    try:
        db = psycopg2.connect(
            address,
            connect_timeout=max(2, int(min(within_seconds, CONNECT_SECONDS))),
            application_name="asset-sync",
            client_encoding="utf8",
            # A peer that has vanished is noticed in about 25 s, not in the kernel's two hours.
            keepalives_idle=10,
            keepalives_interval=5,
            keepalives_count=3,
            tcp_user_timeout=25_000,
        )
    finally:
        psycopg2.extensions.set_wait_callback(_wait_for_answer)
    db.autocommit = True
    read_any(db)
    return db


def _wait_for_answer(db: Connection) -> None:
    """Wait as long as a statement may take and no longer; psycopg2 calls this for each.

    A proxy that stops forwarding keeps its end of the connection alive, so that neither the
    server's time-outs nor TCP's would end the wait. And Ctrl-C ends it, which libpq's does not.
    """
    give_up = time.monotonic() + _patience_seconds.get()
    while (state := db.poll()) != psycopg2.extensions.POLL_OK:
        left = give_up - time.monotonic()
        if left <= 0:
            raise psycopg2.OperationalError("timeout expired")
        sockets = [db.fileno()]
        if state == psycopg2.extensions.POLL_READ:
            select.select(sockets, [], [], left)
        else:
            select.select([], sockets, [], left)


@contextmanager
def hurry(seconds: float | None) -> Iterator[None]:
    """Wait no longer than so long for any answer in this block; None leaves it as it is."""
    before = _patience_seconds.set(_patience_seconds.get() if seconds is None else seconds)
    try:
        yield
    finally:
        _patience_seconds.reset(before)


def _address(conninfo: Secret | None) -> str:
    if conninfo is not None:
        return conninfo.reveal()
    from asset_sync.database import (  # noqa: PLC0415  # 60 ms that a server's user need not wait
        embedded,
    )

    return embedded.create_database(embedded.start(embedded.data_directory()), EMBEDDED_DATABASE)


# --- statements -------------------------------------------------------------------------------


def query(db: Connection, sql: str, parameters: Parameters = ()) -> list[Row]:
    """Run SQL as one bounded transaction in one round trip and return the last one's rows.

    Several statements may stand in it, each of which sees what the one before it did and what
    others committed until it began.
    """
    with db.cursor() as cursor:
        cursor.execute(_BOUNDS + sql, parameters)
        return cursor.fetchall() if cursor.description is not None else []


@contextmanager
def transaction(db: Connection, first: str = "") -> Iterator[Cursor]:
    """Run a block as one bounded transaction: all of it, or, if it raises, nothing.

    `first` is SQL that travels with the beginning; the cursor holds its rows.
    """
    with db.cursor() as cursor:
        try:
            cursor.execute("begin; " + _BOUNDS + first)
            yield cursor
        except BaseException:
            with suppress(psycopg2.Error):  # a lost connection has rolled back by itself
                cursor.execute("rollback")
            raise
        cursor.execute("commit")


@contextmanager
def savepoint(cursor: Cursor) -> Iterator[None]:
    """Run a part of a transaction that, if it raises, leaves the rest of it as it was."""
    cursor.execute("savepoint part")
    try:
        yield
    except psycopg2.Error:
        cursor.execute("rollback to savepoint part")
        raise
    cursor.execute("release savepoint part")


def transaction_number(cursor: Cursor) -> str:
    """Return by what `was_committed` knows the cursor's transaction."""
    cursor.execute("select pg_current_xact_id()::text")
    [(number,)] = cursor.fetchall()
    return str(number)


def was_committed(db: Connection, number: str) -> bool | None:
    """Say whether a transaction was committed whose answer was lost; None while it is open."""
    try:
        [(state,)] = query(db, "select pg_xact_status(%s::xid8)", (number,))
    except psycopg2.errors.InvalidParameterValue:  # a standby was promoted that never heard of it
        return False
    return None if state == "in progress" else bool(state == "committed")


# --- the schema -------------------------------------------------------------------------------


class Migration(NamedTuple):
    """One numbered step of the schema."""

    version: int
    name: str
    sql: str


class SchemaStatus(NamedTuple):
    """What the database has, against what this program needs."""

    server: str
    """The server's version, as it says it: `18.6`."""
    version: int
    """The last migration applied; 0 for none."""
    wanted: int
    missing: tuple[str, ...]
    """Tables that are not there."""
    problems: tuple[str, ...]
    """Sentences on what is there and keeps a sync from running."""
    notes: tuple[str, ...] = ()
    """Sentences on what is there and good to know."""

    @property
    def complete(self) -> bool:
        """Whether all tables are there, at this program's version."""
        return self.version == self.wanted and not self.missing

    @property
    def ready(self) -> bool:
        """Whether a sync can run."""
        return self.complete and not self.problems


class PlatformTable(NamedTuple):
    """What a table that may be somebody else's must have for us to write to it."""

    name: str
    columns: tuple[str, ...]
    unique: tuple[str, ...]
    """The columns of the unique index that `on conflict` needs."""
    left_to_defaults: tuple[str, ...] = ()
    """Those of the columns that a new row of ours does not give."""
    given_if_there: tuple[str, ...] = ()
    """Columns that need not be there, but are given if they are."""


PROVIDERS = "data_sources.api_providers"
PLATFORM_TABLES = (
    PlatformTable(
        "trading.symbols",
        ("id", "symbol", "name", "asset_type", "metadata", "updated_at"),
        ("symbol",),
        left_to_defaults=("id", "metadata", "updated_at"),
    ),
    PlatformTable(
        PROVIDERS,
        ("id", "code"),
        ("code",),
        left_to_defaults=("id",),
        given_if_there=("name",),
    ),
    PlatformTable(
        "data_sources.data_sync_status",
        (
            "ticker_id",
            "provider_id",
            "last_sync_timestamp",
            "sync_status",
            "error_message",
            "updated_at",
        ),
        ("ticker_id", "provider_id"),
    ),
    PlatformTable(
        "market_data.ohlcv_5m",
        ("ticker_id", "ts", "open", "high", "low", "close", "volume", "vwap", "trades"),
        ("ticker_id", "ts"),
    ),
)
OWN_TABLES = ("migrations", "runs", "queue", "calls", "limiter", "slots", "entitlements")


def migrations() -> tuple[Migration, ...]:
    """Return the migrations that come with the program, in order."""
    files = sorted((Path(__file__).parent / "migrations").glob("*.sql"))
    return tuple(
        Migration(int(file.stem[:4]), file.stem[5:], file.read_text("utf-8")) for file in files
    )


def migrate(db: Connection, *, hold_seconds: float = 90) -> tuple[Migration, ...]:
    """Bring the schema up to date in one transaction and return the migrations applied.

    Several at once do no harm: each waits for the one before it and finds nothing left to do.
    Existing platform tables are taken as they are; raises NotInitialisedError where they do not
    fit, or a newer program has been here, with nothing changed.

    What a restore without rows has lost comes back: the record of the migrations, the provider,
    the limiter's row. Then nobody knows which calls were made, so none is made for `hold_seconds`:
    a window and the longest time of a call.
    """
    known = migrations()
    with transaction(db) as cursor:
        cursor.execute("select pg_advisory_xact_lock(hashtext('asset-sync migrations'))")
        recorded, version = _version(db), _version_by_tables(db)
        if recorded > known[-1].version:
            raise _other_version(recorded)
        problems = _platform_problems(db)
        if problems:
            raise NotInitialisedError("\n".join(problems))
        pending = tuple(step for step in known if step.version > (recorded or version))
        # The platform's part looks before each step: run again, it restores what others removed.
        if known[0] not in pending:
            cursor.execute(known[0].sql)
        for step in pending:
            cursor.execute(step.sql)
        for step in known:
            if step.version > recorded:
                cursor.execute(
                    "insert into asset_sync.migrations (version, name) values (%s, %s)",
                    (step.version, step.name),
                )
        if _exists(db, "asset_sync.limiter") and not _has_limiter(db):
            cursor.execute(
                """
                insert into asset_sync.limiter (blocked_at, blocked_until)
                select now, now + make_interval(secs => %s) from clock_timestamp() as now
                """,
                (hold_seconds,),
            )
    return pending


def require_schema(db: Connection) -> None:
    """Raise NotInitialisedError unless the schema is the one this program was written for.

    It asks in a transaction, so that a PgBouncer that allows none is recognised before any work.
    """
    try:
        with transaction(
            db,
            "select max(version), exists (select from asset_sync.limiter)"
            " from asset_sync.migrations",
        ) as cursor:
            [(recorded, has_limiter)] = cursor.fetchall()
    except (psycopg2.errors.UndefinedTable, psycopg2.errors.InvalidSchemaName):
        recorded, has_limiter = _version(db), True
    version = int(recorded or 0)
    if version != _newest_version():
        raise _other_version(version)
    if not has_limiter:
        raise NotInitialisedError(_NO_LIMITER)


def _other_version(version: int) -> NotInitialisedError:
    wanted = _newest_version()
    if version == 0:
        return NotInitialisedError(
            "This database has not been initialised for asset-sync: run `asset-sync db init`."
        )
    if version < wanted:
        return NotInitialisedError(
            f"The database's schema is at version {version}, this program needs {wanted}: run "
            "`asset-sync db init`."
        )
    return NotInitialisedError(
        f"The database's schema is at version {version}, this program knows {wanted}: a newer "
        "asset-sync has been here; upgrade this one."
    )


def status(db: Connection) -> SchemaStatus:
    """Say which version the schema has, what is missing and what does not fit."""
    tables = [table.name for table in PLATFORM_TABLES]
    tables += [f"asset_sync.{name}" for name in OWN_TABLES]
    with transaction(db):  # which not every PgBouncer allows
        missing = [name for name in tables if not _exists(db, name)]
        server = str(query(db, "select current_setting('server_version')")[0][0])
        return SchemaStatus(
            server=server.split(maxsplit=1)[0],
            version=_version(db),
            wanted=_newest_version(),
            missing=tuple(missing),
            problems=(*_server_problems(db), *_platform_problems(db), *_lost_rows(db, missing)),
        )


def _server_problems(db: Connection) -> Iterator[str]:
    """Say what keeps every table of this server from being written."""
    [(standby, read_only)] = query(
        db, "select pg_is_in_recovery(), current_setting('default_transaction_read_only')::boolean"
    )
    if standby:
        yield (
            "The server is a standby, which can only be read: name the primary, or all hosts and "
            "target_session_attrs=read-write."
        )
    elif read_only:
        yield (
            "The database or the role is set to read only (default_transaction_read_only): point "
            "asset-sync to one that can be written."
        )


_NO_LIMITER = (
    "asset_sync.limiter has lost its row, without which no call can be made: `asset-sync db init` "
    "adds it."
)


def _lost_rows(db: Connection, missing: Sequence[str]) -> Iterator[str]:
    """Say which rows are missing that are there from the beginning, as after a bare restore."""
    if "asset_sync.limiter" not in missing and not _has_limiter(db):
        yield _NO_LIMITER
    initialised = "asset_sync.limiter" not in missing and PROVIDERS not in missing
    if initialised and _has_column(db, PROVIDERS, "code") and not _knows_us(db):
        yield f"{PROVIDERS} has no row with the code 'polygon': `asset-sync db init` adds it."


def lacking_rights(db: Connection) -> tuple[str, ...]:
    """Return what a run does and this role may not: `insert on market_data.ohlcv_5m`."""
    rows = query(
        db,
        """
        select privilege || ' on ' || name
        from unnest(%s::text[], %s::text[], %s::text[]) as needed (name, privilege, columns)
        where not case
          when columns = '' then has_table_privilege(name, privilege)
          else (
            select bool_and(has_column_privilege(name, one, privilege))
            from unnest(string_to_array(columns, ' ')) as one
          ) end
        """,
        [list(part) for part in zip(*_RIGHTS, strict=True)],
    )
    return tuple(right for (right,) in rows)


# What the README grants: table, right, and the columns where the whole table is not needed.
_RIGHTS = (
    ("trading.symbols", "select", "id symbol metadata"),
    ("trading.symbols", "insert", "symbol name asset_type"),
    ("trading.symbols", "update", "metadata updated_at"),
    ("data_sources.api_providers", "select", "id code"),
    *(
        (table, right, "")
        for tables, rights in (
            (("data_sources.data_sync_status", "market_data.ohlcv_5m"), "select insert update"),
            (("asset_sync.migrations",), "select"),
            (("asset_sync.limiter",), "select update"),
            (
                ("asset_sync.queue", "asset_sync.slots", "asset_sync.entitlements"),
                "select insert update",
            ),
            (("asset_sync.runs",), "select insert update delete"),
            (("asset_sync.calls",), "select insert delete"),
        )
        for table in tables
        for right in rights.split()
    ),
)


def _newest_version() -> int:
    return max(int(file.name[:4]) for file in (Path(__file__).parent / "migrations").glob("*.sql"))


def _version(db: Connection) -> int:
    """Return the last migration that is recorded, 0 for none."""
    if not _exists(db, "asset_sync.migrations"):
        return 0
    [(version,)] = query(db, "select max(version) from asset_sync.migrations")
    return int(version or 0)


# The first table that only this migration makes: by it the version is known where the rows of
# asset_sync.migrations are lost. (The platform's part, 1, may be run at any time.)
_MADE_BY = {2: "asset_sync.queue", 3: "asset_sync.entitlements"}


def _version_by_tables(db: Connection) -> int:
    """Return the last migration whose tables are there, 0 for none."""
    return max((version for version, table in _MADE_BY.items() if _exists(db, table)), default=0)


def _exists(db: Connection, table: str) -> bool:
    """Say whether a table is there now.

    Not by `to_regclass`, which answers from what the session has cached: within a transaction it
    does not see what others made while this one waited for them.
    """
    return bool(
        query(
            db,
            """
            select from pg_catalog.pg_class c
            join pg_catalog.pg_namespace n on n.oid = c.relnamespace
            where n.nspname = %s and c.relname = %s
            """,
            table.split("."),
        )
    )


def _has_limiter(db: Connection) -> bool:
    return bool(query(db, "select from asset_sync.limiter"))


def _has_column(db: Connection, table: str, column: str) -> bool:
    return bool(
        query(
            db,
            """
            select from pg_catalog.pg_attribute
            where attrelid = to_regclass(%s) and attname = %s and not attisdropped
            """,
            (table, column),
        )
    )


def _platform_problems(db: Connection) -> list[str]:
    """Say in a sentence each what keeps an existing platform table from being used."""
    problems = []
    for table in PLATFORM_TABLES:
        rows = query(
            db,
            """
            select a.attname, a.attnotnull and a.attidentity = '' and a.attgenerated = ''
                and not a.atthasdef
            from pg_attribute a
            where a.attrelid = to_regclass(%s) and a.attnum > 0 and not a.attisdropped
            """,
            (table.name,),
        )
        if not rows:
            continue  # not there: it will be made
        columns = {name for name, _ in rows}
        # Into the providers nothing is written where ours is there already.
        complete = table.name == PROVIDERS and "code" in columns and _knows_us(db)
        given = {*table.columns, *table.given_if_there}.difference(table.left_to_defaults)
        problems += [
            f"The existing table {table.name} has no column {name}, which asset-sync writes: add "
            "it, or point asset-sync to another database."
            for name in table.columns
            if name not in columns
        ]
        problems += [
            f"The existing table {table.name} requires a value for {name}, which asset-sync does "
            "not give: give the column a default."
            for name, required in rows
            if required and name not in given and not complete
        ]
        if set(table.unique) <= columns and not _has_unique_index(db, table):
            listed = ", ".join(table.unique)
            problems.append(
                f"The existing table {table.name} has no unique index on ({listed}): "
                f"`create unique index on {table.name} ({listed})`."
            )
    return problems


def _knows_us(db: Connection) -> bool:
    return bool(query(db, f"select from {PROVIDERS} where code = 'polygon'"))


def _has_unique_index(db: Connection, table: PlatformTable) -> bool:
    [(found,)] = query(
        db,
        """
        select exists (
          select from pg_index i
          where i.indrelid = to_regclass(%s) and i.indisunique and i.indimmediate and i.indisvalid
            and i.indpred is null and i.indexprs is null
            and (select array_agg(a.attname::text order by a.attname::text)
                 from unnest(i.indkey[0:i.indnkeyatts - 1]) as k(attnum)
                 join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum)
              = %s::text[]
        )
        """,
        (table.name, sorted(table.unique)),
    )
    return bool(found)


# --- addresses --------------------------------------------------------------------------------


class Address(NamedTuple):
    """Where a database is, as far as a human may read it: all but the password."""

    hosts: tuple[tuple[str, str], ...]
    """Each host, or the directory of its socket, and its port."""
    database: str
    role: str
    options: Mapping[str, str]
    """Everything else of the address that is no secret: `sslmode` and the like."""

    def __str__(self) -> str:
        """Name database and server, as a sentence does."""
        places = " or ".join(_place(host, port) for host, port in self.hosts)
        return f'"{self.database}" at {places}'

    def url(self) -> str:
        """Return the URL, as psql, libpq and SQLAlchemy read it."""
        from urllib.parse import quote, urlencode  # noqa: PLC0415  # only one command needs it

        options = dict(self.options)
        [(host, port), *more] = self.hosts
        where = ""
        if more or not host or host.startswith(("/", "@")):  # several, or a socket
            if host:
                options["host"] = ",".join(host for host, _ in self.hosts)
            if {port for _, port in self.hosts} != {_PORT}:
                options["port"] = ",".join(port for _, port in self.hosts)
        else:
            where = _place(host, port)
        asked = urlencode(options, safe="/,", quote_via=quote)
        return (
            f"postgresql://{quote(self.role, safe='')}@{where}/{quote(self.database, safe='')}"
            f"{'?' if asked else ''}{asked}"
        )


_PORT = "5432"


def address_of(conninfo: Secret, environ: Mapping[str, str] = os.environ) -> Address:
    """Return where libpq connects to, with what it takes from its `PG*` variables.

    Raises DatabaseError for what is no address. What a service file says is not looked up.
    """
    from getpass import getuser  # noqa: PLC0415  # only what failed, and one command, needs it

    with errors_as_sentences(conninfo):
        given = psycopg2.extensions.parse_dsn(conninfo.reveal())
    parts = {
        **{key: environ[name] for key, name in _LIBPQ.items() if environ.get(name)},
        **{key: str(value) for key, value in given.items() if value},
    }
    hosts = parts.pop("host", parts.get("hostaddr", "")).split(",")
    ports = parts.pop("port", _PORT).split(",")
    role = parts.pop("user", "") or getuser()
    return Address(
        tuple(zip(hosts, ports if len(ports) == len(hosts) else ports * len(hosts), strict=False)),
        parts.pop("dbname", role),
        role,
        {key: value for key, value in parts.items() if key not in _SECRET_PARTS},
    )


# Where libpq looks for what the address leaves out.
_LIBPQ = {
    "host": "PGHOST",
    "hostaddr": "PGHOSTADDR",
    "port": "PGPORT",
    "dbname": "PGDATABASE",
    "user": "PGUSER",
    "service": "PGSERVICE",
    "sslmode": "PGSSLMODE",
}

# What libpq itself marks as a secret (the `*` in PQconninfoOption.dispchar).
_SECRET_PARTS = {
    "password",
    "sslpassword",
    "oauth_client_secret",
    "scram_client_key",
    "scram_server_key",
}


def _place(host: str, port: str) -> str:
    if not host:
        return "the local socket" + (f" of port {port}" if port != _PORT else "")
    if host.startswith("/"):
        return f"{host} (port {port})"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


# --- errors -----------------------------------------------------------------------------------


@contextmanager
def errors_as_sentences(conninfo: Secret | None = None) -> Iterator[None]:
    """Turn whatever psycopg2 raises into a DatabaseError that says what to do."""
    try:
        yield
    except psycopg2.Error as error:
        raise DatabaseError(sentence(error, conninfo)) from None  # its text may hold the address


def may_pass(error: psycopg2.Error) -> bool:
    """Say whether what a server was at fault for may go well when tried again.

    Lost connections and restarts, time-outs, locks, deadlocks, conflicts, full connections; but not
    a full disk, a standby, or a PgBouncer that lets no transaction through.
    """
    code = error.pgcode or ""
    return (
        isinstance(error, SERVER_ERRORS)
        and (code[:2] in {"", "08", "40", "57"} or code in {"25P03", "53300", "55P03"})
        and _STATEMENT_MODE not in str(error)
    )


# The classes of SQLSTATE in which the data has no part: connection, transaction state, rights,
# catalogue, conflicts, syntax and names, resources, locks, the operator, the system.
_OF_EVERYBODY = frozenset(
    ("", "08", "0A", "25", "28", "3D", "3F", "40", "42", "53", "55", "57", "58", "F0")
)


def refuses_data(error: psycopg2.Error) -> bool:
    """Say whether the database refused a statement for its data: another row may be taken.

    Such are checks, ranges, a partition that is missing, and what a trigger raises.
    """
    return (error.pgcode or "")[:2] not in _OF_EVERYBODY


def servers_words(error: psycopg2.Error) -> str:
    """Return why the server refused a statement, without the values of the row."""
    said = re.sub(r': ".*|"[^"]*" (?=is out of range)', "", error.diag.message_primary or "")
    return f"The database refuses its data ({error.pgcode}: {said})."


def sentence(error: psycopg2.Error, conninfo: Secret | None = None) -> str:
    """Say what happened in our own words, because libpq's may hold parts of the address.

    `conninfo` is the address that was used: its host, port, database, role and source are named.
    """
    source = (conninfo.source if conninfo is not None else "") or "DATABASE_URL"
    message = error.diag.message_primary
    if error.pgcode in _REFUSALS:
        return _REFUSALS[error.pgcode].format(message, source=source)
    text = str(error)
    if _STATEMENT_MODE in text:
        return (
            "PgBouncer is in statement mode, in which no transaction is possible: set pool_mode = "
            f"transaction (or session) for this database, or connect past it ({source})."
        )
    lost = isinstance(error, psycopg2.OperationalError) and (error.pgcode or "")[:2] in _LOST
    if error.pgcode and not lost:
        return f"The database refused a statement ({error.pgcode}: {message})."
    if isinstance(error, psycopg2.ProgrammingError):
        return f"{source} is not an address that PostgreSQL understands."
    meaning = next((known for part, known in _CONNECTION_TROUBLE if part in text), message)
    if conninfo is None:
        return f"The database is not reachable{f': {meaning}' if meaning else ''}."
    address = _address_to_tell(conninfo)
    which = f"The database {address}" if address is not None else "The database"
    what = "is not reachable"
    if address is not None and any(part in text for part in _NOT_LET_IN):
        what = f'does not let the role "{address.role}" in'
    origin = f" (from {conninfo.source})" if conninfo.source else ""
    advice = f"Check {source}, and that the server runs."
    if address is None:
        advice = f"Check {source}: @ : / and % in a password are written as %40 %3A %2F %25."
    return f"{which} {what}{origin}{f': {meaning}' if meaning else ''}. {advice}"


def name_of(conninfo: Secret | None) -> str:
    """Return which database it is, and which setting or file says so."""
    if conninfo is None:
        return "the embedded PostgreSQL"
    address = _address_to_tell(conninfo)
    return f"{address or 'a server'} (from {conninfo.source})"


def _address_to_tell(conninfo: Secret) -> Address | None:
    """Return the address, None where a part of the password may have got into another part.

    That is so where a password with an @ or a slash is not encoded.
    """
    try:
        address = address_of(conninfo)
    except DatabaseError:
        return None
    names = [address.database, address.role, *(host for host, _ in address.hosts)]
    plain = all(port.isdecimal() for _, port in address.hosts) and all(
        name.isprintable() and "@" not in name for name in names
    )
    return address if plain else None


# PgBouncer's words for a transaction where pool_mode is `statement`.
_STATEMENT_MODE = "not allowed in statement pooling mode"

# The classes of SQLSTATE that say that there is no session: connection, authorisation, unknown
# database, too many connections, the operator.
_LOST = {"", "08", "28", "3D", "53", "57"}

# What a statement can be refused for that the user can cure, by SQLSTATE.
_REFUSALS = {
    "3F000": "The database lacks a schema ({}): run `asset-sync db init`.",
    "42P01": "The database lacks a table ({}): run `asset-sync db init`.",
    "42501": "The database's role may not do this ({}): grant it the right.",
    "25006": "The database is read-only ({}; a standby?): point {source} to the primary.",
    "40001": "The database's transactions got into each other's way too often ({}).",
    "40P01": "The database's transactions got into each other's way too often ({}).",
    "53100": "The database's disk is full ({}): make room there.",
    "53200": "The database is out of memory ({}).",
    "55P03": "The database did not get a lock in time ({}): somebody else's transaction holds it.",
    "57014": "The database did not answer in time ({}).",
}

# What libpq says when no connection comes about, and what the user should know of it.
_CONNECTION_TROUBLE = (
    ("password authentication failed", "it refuses the role or its password"),
    ("no password supplied", "it wants a password: set DB_PASSWORD, or put it into DATABASE_URL"),
    ("root certificate", "the certificate by which to know it is not there (see sslrootcert)"),
    ("no pg_hba.conf entry", "its pg_hba.conf does not let this host, role and database in"),
    ('FATAL:  role "', "there is no such role"),
    ('FATAL:  database "', "there is no such database: `createdb` makes one"),
    ("permission denied for database", "the role may not connect to it: grant connect"),
    ("could not translate host name", "the host's name is not known"),
    ("Connection refused", "nothing listens at that host and port"),
    ("No such file or directory", "no server listens on that socket"),
    ("timeout expired", "it did not answer in time"),
    ("too many clients", "it has no connection to spare"),
    ("too many connections", "it has no connection to spare"),
    ("remaining connection slots", "it has no connection to spare"),
    ("no more connections allowed", "it has no connection to spare"),  # PgBouncer
    ("starting up", "it is just starting up"),
    ("shutting down", "it is shutting down"),
    ("SSL", "the encrypted connection failed (see sslmode)"),
    ("server closed the connection", "it closed the connection"),
    ("terminating connection", "it closed the connection"),
)

# Which of them say that the server is there, but not for this role.
_NOT_LET_IN = (
    "password authentication failed",
    "no password supplied",
    "no pg_hba.conf entry",
    'FATAL:  role "',
    "permission denied for database",
)
