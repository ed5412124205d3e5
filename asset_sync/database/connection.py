"""The connection and its statements, each with a time limit."""

import select
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, TypeAlias

import psycopg2
import psycopg2.errors
import psycopg2.extensions

from asset_sync.database.timestamps import clamp_timestamps
from asset_sync.secret import Secret

EMBEDDED_DATABASE = "asset_sync"

Connection: TypeAlias = psycopg2.extensions.connection
Cursor: TypeAlias = psycopg2.extensions.cursor
# Only the code next to the SQL knows the types of a row.
Row: TypeAlias = tuple[Any, ...]
Parameters: TypeAlias = Mapping[str, object] | Sequence[object]

# The settings of each transaction. They are set per transaction because behind PgBouncer in
# transaction mode a session has no settings of its own.
# - The time limits: no statement here takes seconds, but another program's lock, or a server that
#   has lost its disk, must not stop a run for longer than the run may last. And the locks of a run
#   that vanishes within a transaction must not last until TCP gives up, after hours.
# - The isolation level is the one that the statements were written for, not the role's default.
STATEMENT_SECONDS = 20
LOCK_SECONDS = 10
# With JIT a statement over the limiter's one row took 2 to 7 s on a new PostgreSQL 15, whose
# planner expects hundreds of rows before the first analyse; JIT makes no statement here faster.
_TRANSACTION_SETTINGS = (
    "set local jit = off; "
    "set local transaction_isolation = 'read committed'; "
    f"set local statement_timeout = '{STATEMENT_SECONDS}s'; "
    f"set local lock_timeout = '{LOCK_SECONDS}s'; "
    f"set local idle_in_transaction_session_timeout = '{STATEMENT_SECONDS}s'; "
)
CONNECT_SECONDS = 10
# How long to wait for an answer: as long as the statement may take, plus the network.
_answer_seconds = ContextVar[float]("answer_seconds", default=STATEMENT_SECONDS + 5)


def connect(conninfo: Secret | None, *, within_seconds: float = CONNECT_SECONDS) -> Connection:
    """Return a new connection; the caller closes it. Raises what psycopg2 raises.

    Each host of the address is tried for `within_seconds`; libpq takes whole seconds, at least two.
    """
    address = _address(conninfo)
    # Without a wait callback libpq itself connects: it tries one host after the other, each with
    # its own time limit.
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
    clamp_timestamps(db)
    return db


def _wait_for_answer(db: Connection) -> None:
    """Wait for the answer to a statement, at most as long as a statement may take.

    psycopg2 calls this for each statement. Its own wait has two faults: Ctrl-C does not end it, and
    behind a proxy that stops forwarding, neither the server's time-outs nor TCP's would end it.
    """
    give_up = time.monotonic() + _answer_seconds.get()
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
def statement_timeout(seconds: float | None) -> Iterator[None]:
    """Wait at most so many seconds for each answer in this block; None changes nothing."""
    before = _answer_seconds.set(_answer_seconds.get() if seconds is None else seconds)
    try:
        yield
    finally:
        _answer_seconds.reset(before)


def _address(conninfo: Secret | None) -> str:
    if conninfo is not None:
        return conninfo.reveal()
    from asset_sync.database import (  # noqa: PLC0415  # takes 60 ms, and a server does not need it
        embedded,
    )

    return embedded.create_database(embedded.start(embedded.data_directory()), EMBEDDED_DATABASE)


def query(db: Connection, sql: str, parameters: Parameters = ()) -> list[Row]:
    """Run SQL as one transaction with time limits, in one round trip.

    Returns the last statement's rows. Each of several statements sees what the one before it
    changed, and what other transactions committed before it began.
    """
    with db.cursor() as cursor:
        cursor.execute(_TRANSACTION_SETTINGS + sql, parameters)
        return cursor.fetchall() if cursor.description is not None else []


@contextmanager
def transaction(db: Connection, first: str = "") -> Iterator[Cursor]:
    """Run a block as one transaction with time limits, rolled back if the block raises.

    `first` is SQL that is sent together with `begin`; the cursor holds its rows.
    """
    with db.cursor() as cursor:
        try:
            cursor.execute("begin; " + _TRANSACTION_SETTINGS + first)
            yield cursor
        except BaseException:
            with suppress(psycopg2.Error):  # a lost connection has rolled back by itself
                cursor.execute("rollback")
            raise
        cursor.execute("commit")


@contextmanager
def savepoint(cursor: Cursor) -> Iterator[None]:
    """Run a part of a transaction; if it raises, only this part is rolled back."""
    cursor.execute("savepoint part")
    try:
        yield
    except psycopg2.Error:
        cursor.execute("rollback to savepoint part")
        raise
    cursor.execute("release savepoint part")


def transaction_number(cursor: Cursor) -> str:
    """Return the number of the cursor's transaction, for `was_committed`."""
    cursor.execute("select pg_current_xact_id()::text")
    [(number,)] = cursor.fetchall()
    return str(number)


def was_committed(db: Connection, number: str) -> bool | None:
    """Return whether a transaction was committed; None while it is open."""
    try:
        [(state,)] = query(db, "select pg_xact_status(%s::xid8)", (number,))
    except psycopg2.errors.InvalidParameterValue:  # a promoted standby does not know it
        return False
    return None if state == "in progress" else bool(state == "committed")
