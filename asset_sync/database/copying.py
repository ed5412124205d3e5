"""COPY to this process, as a stream of bytes to read."""

import io
import os
import select
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING

import psycopg2
import psycopg2.extensions

from asset_sync.database.connection import (
    TRANSACTION_SETTINGS,
    Connection,
    answer_seconds,
    with_reason,
)

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

# How much of an answer may wait here. psycopg2 writes each row by itself, so a small buffer would
# cost a system call for each.
_BUFFER_BYTES = 1 << 18

# A COPY may take as long as its reader does. Times are UTC and written as ISO 8601 says.
# The bars of one asset lie in the table as in the index, in the order of time, which the planner
# does not see: by default it expects a page for each bar, and sorts them (1.8 times as long).
_COPY_SETTINGS = (
    "set local statement_timeout = 0; "
    "set local random_page_cost = 1.1; "
    "set local transaction_read_only = on; "
    "set local timezone = 'UTC'; "
    "set local datestyle = 'ISO'; "
    "set local extra_float_digits = 1; "
)


def can_copy() -> bool:
    """Return whether psycopg2 can COPY: not if the program has registered a wait callback."""
    return psycopg2.extensions.get_wait_callback() is None


def can_read(descriptor: int, within_seconds: float | None) -> bool:
    """Wait until there is something to read, or the end; return whether it came in time."""
    poll = select.poll()  # select.select allows no number above 1023
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(None if within_seconds is None else within_seconds * 1000))


@contextmanager
def copied(db: Connection, sql: str) -> Iterator[io.RawIOBase]:
    """Run `copy … to stdout` as one transaction, and give what the server sends as a file.

    The file holds a few hundred kilobytes at a time, however long the answer is; the server waits
    for the reader. A read raises what psycopg2 raises if the server sends nothing for as long as an
    answer may take (`statement_timeout`), or ends with an error. If the block ends before the file
    does, the connection is closed.
    """
    # A second descriptor, as libpq may close the first one.
    with socket.socket(fileno=os.dup(db.fileno())) as line:
        reading, writing = os.pipe()
        copy = _Copy(db, sql, writing)
        with closing(_Stream(reading, copy)) as file:
            copy.start()
            try:
                yield file
            finally:
                if not file.ended:
                    with suppress(OSError):  # the server has just closed it
                        line.shutdown(socket.SHUT_RDWR)
                    file.close()  # ends a write that waits for the reader
                    copy.join(timeout=1)
                    if not copy.is_alive():  # psycopg2 must not close what the thread still uses
                        db.close()


class _Copy(threading.Thread):
    """Waits in libpq, which Ctrl-C does not end, and writes into a pipe."""

    def __init__(self, db: Connection, sql: str, writing: int) -> None:
        super().__init__(daemon=True)
        self._db = db
        self._sql = sql
        self._writing = writing
        self.error: BaseException | None = None

    def run(self) -> None:
        with (
            suppress(BrokenPipeError),
            open(self._writing, "wb", _BUFFER_BYTES) as file,  # noqa: PTH123  # a descriptor
            _no_traceback_of_psycopg2(),
        ):
            try:
                with psycopg2.extensions.cursor(self._db) as cursor:
                    cursor.execute("begin; " + TRANSACTION_SETTINGS + _COPY_SETTINGS)
                    cursor.copy_expert(self._sql, file)
                    cursor.execute("commit")
            except Exception as error:  # noqa: BLE001  # raised in the other thread
                self.error = with_reason(error, self._db)


@contextmanager
def _no_traceback_of_psycopg2() -> Iterator[None]:
    """Keep psycopg2 from printing a traceback if the server ends the connection during a COPY.

    It turns the server's last message into a notice while the statement's error is set. Python
    objects with a SystemError, which psycopg2 prints. The statement's error is raised all the same.
    """
    print_error = sys.excepthook

    def print_others(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        if not isinstance(error, SystemError) or not isinstance(error.__cause__, psycopg2.Error):
            print_error(kind, error, trace)

    sys.excepthook = print_others
    try:
        yield
    finally:
        sys.excepthook = print_error


class _Stream(io.RawIOBase):
    """What the thread has written into the pipe; raises its error at the end."""

    def __init__(self, reading: int, copy: _Copy) -> None:
        self._reading = reading
        self._copy = copy
        self.ended = False
        """Whether all was read, and the transaction has ended well."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        if self.ended:
            return 0
        if not can_read(self._reading, answer_seconds()):
            raise psycopg2.OperationalError("timeout expired")
        number = os.readv(self._reading, [buffer])
        if not number:
            self._copy.join()
            if self._copy.error is not None:
                raise self._copy.error
            self.ended = True
        return number

    def close(self) -> None:
        if not self.closed:
            os.close(self._reading)
        super().close()
