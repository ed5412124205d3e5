"""The connection to PostgreSQL, its schema, and the sentences for what can go wrong with it."""

import re
import select
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import psycopg2
import psycopg2.errors
import psycopg2.extensions

from asset_sync.errors import AssetSyncError
from asset_sync.settings import Secret
from asset_sync.timestamps import read_any

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
_BOUNDS = (
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


class NotInitialisedError(DatabaseError):
    """The server answers, but its schema is missing, too old, too new, or not what is needed."""


@contextmanager
def session(conninfo: Secret | None) -> Iterator[Connection]:
    """Open the one connection of a command; None stands for the embedded PostgreSQL.

    The connection is in autocommit: `query` and `transaction` say where a transaction begins and
    ends. The embedded database initialises itself; a server's schema is looked at, and
    NotInitialisedError raised where it does not fit. Raises DatabaseError for all that psycopg2
    raises, here and in the block.
    """
    with raw_session(conninfo) as db:
        if conninfo is None and _version(db) < _newest_version():
            migrate(db)
        require_schema(db)
        yield db


@contextmanager
def raw_session(conninfo: Secret | None) -> Iterator[Connection]:
    """Open a connection as `session` does, whatever state the schema is in."""
    with errors_as_sentences(), closing(connect(conninfo)) as db:
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
    from asset_sync import embedded  # noqa: PLC0415  # 60 ms that a server's user need not wait

    return embedded.create_database(embedded.start(embedded.data_directory()), EMBEDDED_DATABASE)


# What libpq itself marks as a secret (the `*` in PQconninfoOption.dispchar).
_SECRET_PARTS = {
    "password",
    "sslpassword",
    "oauth_client_secret",
    "scram_client_key",
    "scram_server_key",
}


def public_address(conninfo: Secret) -> str:
    """Return a server's address for humans and psql: everything but its password."""
    with errors_as_sentences():
        parts = psycopg2.extensions.parse_dsn(conninfo.reveal())
    address: str = psycopg2.extensions.make_dsn(
        **{key: value for key, value in parts.items() if key not in _SECRET_PARTS}
    )
    return address


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
def transaction(db: Connection) -> Iterator[Cursor]:
    """Run a block as one bounded transaction: all of it, or, if it raises, nothing."""
    with db.cursor() as cursor:
        cursor.execute("begin; " + _BOUNDS)
        try:
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


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered step of the schema."""

    version: int
    name: str
    sql: str


@dataclass(frozen=True, slots=True)
class SchemaStatus:
    """What the database has, against what this program needs."""

    server: str
    """The server's version, as it says it: `18.6`."""
    version: int
    """The last migration applied; 0 for none."""
    wanted: int
    missing: tuple[str, ...]
    """Tables that are not there."""
    problems: tuple[str, ...]
    """Sentences on tables that are there and do not fit."""

    @property
    def ready(self) -> bool:
        """Whether a sync can run."""
        return self.version == self.wanted and not self.missing and not self.problems


@dataclass(frozen=True, slots=True)
class PlatformTable:
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


def migrate(db: Connection) -> tuple[Migration, ...]:
    """Bring the schema up to date in one transaction and return the migrations applied.

    Two at once do no harm: the second waits for the first and finds nothing to do. Existing
    platform tables are taken as they are; raises NotInitialisedError where they do not fit, or a
    newer program has been here, with nothing changed.
    """
    known = migrations()
    with transaction(db) as cursor:
        cursor.execute("select pg_advisory_xact_lock(hashtext('asset-sync migrations'))")
        version = _version(db)
        if version > known[-1].version:
            require_schema(db)
        problems = _platform_problems(db)
        if problems:
            raise NotInitialisedError("\n".join(problems))
        pending = tuple(step for step in known if step.version > version)
        # The platform's part looks before each step: run again, it mends what others removed.
        if known[0] not in pending:
            cursor.execute(known[0].sql)
        for step in pending:
            cursor.execute(step.sql)
        for step in pending:
            cursor.execute(
                "insert into asset_sync.migrations (version, name) values (%s, %s)",
                (step.version, step.name),
            )
    return pending


def require_schema(db: Connection) -> None:
    """Raise NotInitialisedError unless the schema is the one this program was written for."""
    version, wanted = _version(db), _newest_version()
    if version == 0:
        raise NotInitialisedError(
            "This database has not been initialised for asset-sync: run `asset-sync db init`."
        )
    if version < wanted:
        raise NotInitialisedError(
            f"The database's schema is at version {version}, this program needs {wanted}: run "
            "`asset-sync db init`."
        )
    if version > wanted:
        raise NotInitialisedError(
            f"The database's schema is at version {version}, this program knows {wanted}: a newer "
            "asset-sync has been here; upgrade this one."
        )


def status(db: Connection) -> SchemaStatus:
    """Say which version the schema has, what is missing and what does not fit."""
    tables = [table.name for table in PLATFORM_TABLES]
    tables += [f"asset_sync.{name}" for name in OWN_TABLES]
    missing = query(
        db,
        "select name from unnest(%s::text[]) as name where to_regclass(name) is null",
        (tables,),
    )
    server = str(query(db, "select current_setting('server_version')")[0][0])
    return SchemaStatus(
        server=server.split(maxsplit=1)[0],
        version=_version(db),
        wanted=_newest_version(),
        missing=tuple(name for (name,) in missing),
        problems=tuple(_platform_problems(db)),
    )


def _newest_version() -> int:
    return max(int(file.name[:4]) for file in (Path(__file__).parent / "migrations").glob("*.sql"))


def _version(db: Connection) -> int:
    """Return the last migration applied, 0 for none."""
    [(table,)] = query(db, "select to_regclass('asset_sync.migrations')")
    if table is None:
        return 0
    [(version,)] = query(db, "select max(version) from asset_sync.migrations")
    return int(version or 0)


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


# --- errors -----------------------------------------------------------------------------------


@contextmanager
def errors_as_sentences() -> Iterator[None]:
    """Turn whatever psycopg2 raises into a DatabaseError that says what to do."""
    try:
        yield
    except psycopg2.Error as error:
        raise DatabaseError(sentence(error)) from None  # its text may hold the address


def may_pass(error: psycopg2.Error) -> bool:
    """Say whether what a server was at fault for may go well when tried again.

    Lost connections and restarts, time-outs, locks, deadlocks, conflicts, full connections; but not
    a full disk, or a standby.
    """
    code = error.pgcode or ""
    return isinstance(error, SERVER_ERRORS) and (
        code[:2] in {"", "08", "40", "57"} or code in {"25P03", "53300", "55P03"}
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


def sentence(error: psycopg2.Error) -> str:
    """Say what happened in words of ours: libpq's own may hold parts of the address."""
    message = error.diag.message_primary
    if error.pgcode in _REFUSALS:
        return _REFUSALS[error.pgcode].format(message)
    lost = isinstance(error, psycopg2.OperationalError) and (error.pgcode or "")[:2] in _LOST
    if error.pgcode and not lost:
        return f"The database refused a statement ({error.pgcode}: {message})."
    if isinstance(error, psycopg2.ProgrammingError):
        return "DATABASE_URL is not an address that PostgreSQL understands."
    text = str(error)
    meaning = next((known for part, known in _CONNECTION_TROUBLE if part in text), message)
    return (
        f"The database is not reachable{f': {meaning}' if meaning else ''}. Check DATABASE_URL (or "
        "DB_HOST, DB_PORT, …), and that the server runs."
    )


# The classes of SQLSTATE that say that there is no session: connection, authorisation, unknown
# database, too many connections, the operator.
_LOST = {"", "08", "28", "3D", "53", "57"}

# What a statement can be refused for that the user can mend, by SQLSTATE.
_REFUSALS = {
    "3F000": "The database lacks a schema ({}): run `asset-sync db init`.",
    "42P01": "The database lacks a table ({}): run `asset-sync db init`.",
    "42501": "The database's role may not do this ({}): grant it the right.",
    "25006": "The database is read-only ({}; a standby?): point DATABASE_URL to the primary.",
    "40001": "The database's transactions got into each other's way too often ({}).",
    "40P01": "The database's transactions got into each other's way too often ({}).",
    "53100": "The database's disk is full ({}): make room there.",
    "53200": "The database is out of memory ({}).",
    "55P03": "The database did not get a lock in time ({}): somebody else's transaction holds it.",
    "57014": "The database did not answer in time ({}).",
}

# What libpq says when no connection comes about, and what the user should know of it.
_CONNECTION_TROUBLE = (
    ("password authentication failed", "it refuses the user or the password"),
    ("no password supplied", "it wants a password: set DB_PASSWORD, or put it into DATABASE_URL"),
    ("root certificate", "the certificate by which to know it is not there (see sslrootcert)"),
    ("does not exist", "the database or the role does not exist"),
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
    ("no pg_hba.conf entry", "its pg_hba.conf does not let this host, user and database in"),
    ("SSL", "the encrypted connection failed (see sslmode)"),
    ("server closed the connection", "it closed the connection"),
    ("terminating connection", "it closed the connection"),
)
