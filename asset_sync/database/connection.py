"""The connection and its statements, each with a time limit."""

import _thread
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from typing import IO, Any, TypeAlias

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
TRANSACTION_SETTINGS = (
    "set local jit = off; "
    "set local transaction_isolation = 'read committed'; "
    f"set local statement_timeout = '{STATEMENT_SECONDS}s'; "
    f"set local lock_timeout = '{LOCK_SECONDS}s'; "
    f"set local idle_in_transaction_session_timeout = '{STATEMENT_SECONDS}s'; "
)
CONNECT_SECONDS = 10
# How long to wait for an answer: as long as the statement may take, plus the network.
_answer_seconds = ContextVar[float]("answer_seconds", default=STATEMENT_SECONDS + 5)


# What psycopg2 raises, without an SQLSTATE, where libpq has lost the connection.
_LOST = (psycopg2.OperationalError, psycopg2.DatabaseError)


class _Cursor(psycopg2.extensions.cursor):
    """A cursor that waits for an answer as long as a statement may take, and that a signal ends.

    A proxy that stops forwarding keeps its end of the connection alive, so that neither the
    server's time-outs nor TCP's would end the wait. libpq's own wait has no time limit, and Ctrl-C
    does not end it. So a thread waits in libpq, and to end that wait the connection's socket is
    shut down. psycopg2's wait callback would do the same in one thread, but it applies to every
    connection of the process and forbids COPY.
    """

    def execute(self, sql: str | bytes, parameters: Parameters | None = None) -> None:  # type: ignore[override]  # no Composable
        self._in_time(partial(super().execute, sql, parameters))

    def copy_expert(self, sql: str | bytes, file: IO[Any], size: int = 8192) -> None:  # type: ignore[override]
        self._in_time(partial(super().copy_expert, sql, file, size))

    def _in_time(self, act: Callable[[], None]) -> None:
        """Call `act` in a thread; on a time-out or an interrupt this closes the connection."""
        outcome: list[BaseException | None] = []
        over = _thread.allocate_lock()
        over.acquire()

        def run() -> None:
            try:
                act()
                outcome.append(None)
            except BaseException as error:  # noqa: BLE001  # raised in the other thread
                outcome.append(error)
            finally:
                over.release()

        # A second descriptor: libpq may close the first one, and its number may soon belong to
        # another file.
        with socket.socket(fileno=os.dup(self.connection.fileno())) as line:
            try:
                _thread.start_new_thread(run, ())
                over.acquire(timeout=_answer_seconds.get())
            finally:
                in_time = bool(outcome)
                if not in_time:
                    with suppress(OSError):  # the server has just closed it
                        line.shutdown(socket.SHUT_RDWR)
                    # psycopg2 must not close a connection that the thread still uses.
                    if over.acquire(timeout=1):
                        self.connection.close()
        if not in_time:
            raise psycopg2.OperationalError("timeout expired")
        error = outcome.pop()
        if error is not None:
            error = with_reason(error, self.connection)
            try:
                raise error
            finally:
                del error  # its traceback holds this frame


def answer_seconds() -> float:
    """Return how long to wait for an answer, as `statement_timeout` has it here."""
    return _answer_seconds.get()


def with_reason(error: BaseException, db: Connection) -> BaseException:
    """Return a statement's error; if libpq has lost the connection, with the server's reason.

    psycopg2 passes on libpq's last message; why the server hung up stands before it. And it may
    take a connection that was lost while a statement was sent for an open one.
    """
    if not isinstance(error, psycopg2.DatabaseError) or type(error) not in _LOST or error.pgcode:
        return error
    message = db.info.error_message or str(error)
    db.close()
    return psycopg2.OperationalError(message)


def connect(conninfo: Secret | None, *, within_seconds: float = CONNECT_SECONDS) -> Connection:
    """Return a new connection; the caller closes it. Raises what psycopg2 raises.

    Each host of the address is tried for `within_seconds`; libpq takes whole seconds, at least two.
    """
    address = _address(conninfo)
    db = psycopg2.connect(
        address,
        cursor_factory=_Cursor,
        connect_timeout=max(2, int(min(within_seconds, CONNECT_SECONDS))),
        application_name="asset-sync",
        client_encoding="utf8",
        # A peer that has vanished is noticed in about 25 s, not in the kernel's two hours.
        keepalives_idle=10,
        keepalives_interval=5,
        keepalives_count=3,
        tcp_user_timeout=25_000,
    )
    db.autocommit = True
    clamp_timestamps(db)
    return db


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
        cursor.execute(TRANSACTION_SETTINGS + sql, parameters)
        return cursor.fetchall() if cursor.description is not None else []


@contextmanager
def transaction(db: Connection, first: str = "") -> Iterator[Cursor]:
    """Run a block as one transaction with time limits, rolled back if the block raises.

    `first` is SQL that is sent together with `begin`; the cursor holds its rows.
    """
    with db.cursor() as cursor:
        try:
            cursor.execute("begin; " + TRANSACTION_SETTINGS + first)
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
