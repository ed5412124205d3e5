"""A database connection that is opened again if the server ends it, until the run's end."""

import contextlib
from collections.abc import Callable, Iterator
from threading import Lock

from asset_sync.clock import Clock
from asset_sync.database import (
    SERVER_ERRORS,
    Connection,
    Cursor,
    DriverError,
    connect,
    explanation,
    transaction,
    transaction_number,
    was_committed,
)
from asset_sync.errors import AssetSyncError
from asset_sync.secret import Secret
from asset_sync.sync.progress import Listener, Recovered, Warned

# A server that restarts is back within seconds.
RECONNECT_SECONDS = 1.0


class Outage:
    """A failure of the database, which a run reports once, however many connections it has."""

    def __init__(self) -> None:
        self._since: float | None = None  # None while the database works
        self._lock = Lock()

    def begin(self, now: float) -> bool:
        """Note that the database fails; return whether nobody has noted it before."""
        with self._lock:
            is_new = self._since is None
            if is_new:
                self._since = now
            return is_new

    def end(self) -> float | None:
        """Note that the database works; return since when it had failed, None if it had not."""
        with self._lock:
            since, self._since = self._since, None
            return since


class LastingConnection:
    """Holds a connection, and opens it again if the server ends it, until the run's end."""

    def __init__(
        self,
        db: Connection,
        conninfo: Secret | None,
        clock: Clock,
        remaining: Callable[[], float],
        tell: Listener,
        outage: Outage,
        *,
        is_callers: bool = True,
    ) -> None:
        """Start with an open connection; `remaining` returns how long to keep trying.

        `is_callers` says that the caller closes this first connection.
        """
        self.db = db
        self._callers = db if is_callers else None
        self._conninfo = conninfo
        self._clock = clock
        self._remaining = remaining
        self._tell = tell
        self._outage = outage

    def reconnect(self, error: DriverError) -> None:
        """Connect again, trying until the run's end; then raise the error."""
        if self._outage.begin(self._clock.monotonic()):
            self._tell(
                Warned(f"{explanation(error, self._conninfo)} Trying again until the run's end.")
            )
        while self._remaining() > RECONNECT_SECONDS:
            self._clock.sleep(RECONNECT_SECONDS)
            if not self.db.closed:
                return
            with contextlib.suppress(*SERVER_ERRORS, AssetSyncError):
                self.db = connect(self._conninfo, within_seconds=self._remaining())
        raise error

    def report_recovery(self) -> None:
        """Report the recovery, if there was a failure; called after a successful write."""
        since = self._outage.end()
        if since is not None:
            seconds = self._clock.monotonic() - since
            self._tell(Recovered("the database", seconds))

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Cursor]:
        """Run a block as one transaction.

        If the connection is lost during the commit, ask the server whether it was committed.
        """
        number, whole = "", False
        try:
            with transaction(self.db) as cursor:
                number = transaction_number(cursor)
                yield cursor
                whole = True
        except SERVER_ERRORS as error:
            if not whole or not self.db.closed:
                raise
            self.reconnect(error)
            if not self._was_committed(number):
                raise

    def _was_committed(self, number: str) -> bool:
        """Return whether a transaction was committed, asking again if a connection is lost.

        At the run's end a transaction that is still under way counts as not committed.
        """
        while True:
            try:
                committed = was_committed(self.db, number)
            except SERVER_ERRORS as error:
                if not self.db.closed:
                    raise
                self.reconnect(error)
                continue
            if committed is not None or self._remaining() <= 0:
                return bool(committed)
            self._clock.sleep(RECONNECT_SECONDS)

    def try_twice(self, step: Callable[[], None]) -> None:
        """Run the step, and once more on a new connection if this one is lost.

        A failure of the server is ignored.
        """
        for _ in range(2):
            if self.db.closed:
                self.db = connect(self._conninfo, within_seconds=0)
            try:
                step()
            except SERVER_ERRORS:
                if self.db.closed:
                    continue
            return

    def close(self) -> None:
        """Close the connection, unless it is the caller's."""
        if self.db is not self._callers:
            self.db.close()
