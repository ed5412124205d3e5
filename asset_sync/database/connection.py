"""The connection and its statements, each of which ends in time."""

import select
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, TypeAlias

import psycopg2
import psycopg2.errors
import psycopg2.extensions

from asset_sync.database.timestamps import read_any
from asset_sync.secret import Secret

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
_answer_seconds = ContextVar[float]("answer_seconds", default=STATEMENT_SECONDS + 5)


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
    """Wait no longer than so long for any answer in this block; None leaves it as it is."""
    before = _answer_seconds.set(_answer_seconds.get() if seconds is None else seconds)
    try:
        yield
    finally:
        _answer_seconds.reset(before)


def _address(conninfo: Secret | None) -> str:
    if conninfo is not None:
        return conninfo.reveal()
    from asset_sync.database import (  # noqa: PLC0415  # 60 ms that a server's user need not wait
        embedded,
    )

    return embedded.create_database(embedded.start(embedded.data_directory()), EMBEDDED_DATABASE)


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
