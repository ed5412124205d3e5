"""Sessions of a real PostgreSQL that hand over before each statement.

A session stands in for a psycopg2 connection. Its statements run on a real connection, which is
kept from one schedule to the next, with plans that were made once. A task that dies or loses its
connection leaves the database as a killed process does: its transaction is rolled back.
"""

import re
import select
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum, auto
from itertools import chain
from types import FrameType
from typing import Any, NamedTuple, Self, TypeAlias

import psycopg2
from psycopg2 import extensions

from explorer.plans import Fault
from explorer.scheduler import DeathError, Scheduler, Task
from explorer.statements import Statement, Statements, named

# Only the code next to the SQL knows the types of a row.
Row: TypeAlias = tuple[Any, ...]

LOST = "the connection is lost"
REPLY_LOST = "the reply is lost"
RESTART = "the server restarts"
JUMP = "the database's clock jumps"
FAULTS = frozenset((LOST, REPLY_LOST, RESTART, JUMP))
"""What can go wrong at each statement."""

# The server ends a session that is idle in a transaction for so long, and a statement that waits
# for a lock for so long.
IDLE_SECONDS = 20.0
LOCK_SECONDS = 10.0

# A statement that waited for a lock reads the clock after the wait, so it is not passed with the
# statement but read where it is: a sequence belongs to no transaction.
CLOCK = """
  create schema if not exists world;
  create unlogged sequence world.ticks;
  select setval('world.ticks', 1);
  create or replace function world.now() returns timestamptz language sql stable as
    $$select to_timestamp(current_setting('world.now')::float8)$$;
  create or replace function world.clock_timestamp() returns timestamptz language sql volatile as
    $$select to_timestamp(pg_sequence_last_value('world.ticks'::regclass) / 1e6::float8)$$
"""
"""SQL that makes `now()` and `clock_timestamp()` return the virtual time of a schedule.

It holds in sessions whose search path has the schema `world` first. The setting `world.task` is the
name of the task that works.
"""

_PREPARED = """
  prepare begins (bigint, text, text) as
    select setval('world.ticks', $1), set_config('world.now', $2, true),
      set_config('world.task', $3, true);
  prepare ticks (bigint) as select setval('world.ticks', $1)
"""


class LockWait(NamedTuple):
    """A statement that waited for a lock."""

    label: str
    task: str
    holders: tuple[str, ...]


class _Kind(Enum):
    BEGIN = auto()
    COMMIT = auto()
    ROLLBACK = auto()
    PLAIN = auto()


class _Text(NamedTuple):
    kind: _Kind
    statements: Sequence[Statement]
    label: str


class _Real(extensions.connection):
    """A real connection."""

    def __init__(self, *arguments: object, **named_ones: object) -> None:
        super().__init__(*arguments, **named_ones)  # type: ignore[arg-type]
        self.autocommit = True
        self.session: Session | None = None
        self.is_busy = False
        """Whether a thread waits for its reply. psycopg2 says no after the first of several."""
        self.prepared: set[str] = set()
        self.pid = self.get_backend_pid()
        self.replies = select.poll()
        self.replies.register(self.fileno(), select.POLLIN)


def _wait(db: extensions.connection) -> None:
    """Wait for a reply, as psycopg2's wait callback."""
    while (state := db.poll()) != extensions.POLL_OK:
        if state == extensions.POLL_WRITE:
            select.select([], [db.fileno()], [])
        elif isinstance(db, _Real) and getattr(db, "session", None) is not None:
            db.session.await_reply()  # type: ignore[union-attr]
        else:
            select.select([db.fileno()], [], [])


class Server:
    """A PostgreSQL server as the tasks of one schedule after the other see it."""

    def __init__(
        self,
        url: str,
        *,
        package: str,
        unnamed: Collection[str] = (),
        ignored: str = "$^",
        on_open: Callable[[extensions.connection], None] = lambda _: None,
    ) -> None:
        """Connect to a database in which `CLOCK` was run.

        A statement is named after the first public function above it in `package`, but not in the
        modules `unnamed`. Statements that match `ignored` are not sent.
        """
        extensions.set_wait_callback(_wait)
        self._url = url
        self._package = package
        self._unnamed = frozenset(unnamed)
        self._ignored = re.compile(ignored)
        self._on_open = on_open
        self._statements = Statements(url)
        self._texts: dict[str, _Text] = {}
        self._free: list[_Real] = []
        self._monitor = self._open()
        self._open_sessions: list[Session] = []
        self.scheduler: Scheduler
        self.on_commit: Callable[[str, Sequence[str], float], None] = lambda *_: None
        """Called with a task, the names of the statements that it has committed, and the time of
        the database's clock at the last of them."""
        self.lock_waits: list[LockWait] = []
        self.deadlocks: list[str] = []
        self.ended: list[Session] = []
        """The sessions of tasks that have ended."""
        self.jumped_seconds = 0.0
        self._start = 0.0
        self._back_at = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._statements.close()
        for db in (self._monitor, *self._free):
            db.close()
        extensions.set_wait_callback(None)

    def begin(self, scheduler: Scheduler, start_epoch: float) -> None:
        """Begin another schedule, at this time of the database's clock."""
        self.scheduler = scheduler
        self.lock_waits, self.deadlocks, self.ended = [], [], []
        self.jumped_seconds, self._back_at, self._start = 0.0, 0.0, start_epoch

    @property
    def epoch_seconds(self) -> float:
        """The time of the database's clock, as Unix time."""
        return self._start + self.scheduler.now + self.jumped_seconds

    @property
    def is_away(self) -> bool:
        """Whether it restarts just now."""
        return self.scheduler.now < self._back_at

    def query(self, sql: str, parameters: Sequence[object] = ()) -> list[Row]:
        """Run SQL that is no part of the schedule, at the time of the database's clock."""
        with self._monitor.cursor() as cursor:
            cursor.execute(f"{self.clock_sql()}; {sql}", parameters)
            return cursor.fetchall() if cursor.description is not None else []

    @contextmanager
    def reader(self) -> Iterator[extensions.connection]:
        """A connection that is no part of the schedule, at the time of the database's clock."""
        with self._monitor.cursor() as cursor:
            cursor.execute(f"begin; {self.clock_sql()}")
            try:
                yield self._monitor
            finally:
                cursor.execute("rollback")

    def query_alone(self, sql: str) -> None:
        """Run a statement that allows no transaction around it."""
        with self._monitor.cursor() as cursor:
            cursor.execute(sql)

    def clock_sql(self, task: str = "") -> str:
        """Return SQL that gives a transaction the virtual time and the name of its task."""
        at = self.epoch_seconds
        return f"execute begins({round(at * 1e6)}, '{at!r}', '{task}')"

    def connect(self) -> "Session":
        """Open a session for the running task. Raises OperationalError while the server is away."""
        self.scheduler.point("connect")
        if self.is_away:
            raise psycopg2.OperationalError("connection refused")
        return self.session_of(self.scheduler.running)

    def session_of(self, task: Task) -> "Session":
        """Open a session for a task."""
        session = Session(self, task, self._free.pop() if self._free else self._open())
        self._open_sessions.append(session)
        return session

    # --- for sessions -------------------------------------------------------------------------

    def text(self, sql: str, given: Mapping[str, object]) -> _Text:
        """Return the statements of a text, and its name."""
        known = self._texts.get(sql)
        if known is None:
            kind = _Kind.PLAIN
            statements = self._statements.of(sql, given)
            if statements[0].sql in {"begin", "commit", "rollback"}:
                kind = _Kind[statements[0].sql.upper()]
                statements = statements[1:]
            kept = [one for one in statements if not self._ignored.match(one.sql)]
            known = self._texts[sql] = _Text(kind, kept, self._caller())
        if known.kind is not _Kind.PLAIN:
            return known._replace(label=f"{self._caller()} {known.kind.name.lower()}")
        if "savepoint" in sql:  # every caller has the same
            return known._replace(label=f"{self._caller()} savepoint")
        return known

    def _caller(self) -> str:
        frame: FrameType | None = sys._getframe()
        while frame is not None:
            module = frame.f_globals.get("__name__", "")
            name = frame.f_code.co_name
            if (
                module.startswith(self._package)
                and module not in self._unnamed
                and not name.startswith(("_", "<"))
            ):
                return f"{module.rpartition('.')[2]}.{name}"
            frame = frame.f_back
        return "sql"

    def give_back(self, db: _Real, session: "Session") -> None:
        """Keep a real connection for later sessions."""
        if session in self._open_sessions:
            self._open_sessions.remove(session)
        db.session = None
        if not db.closed:
            self._free.append(db)

    def restart(self, seconds: float) -> None:
        """End all sessions; no new one can be opened for so long."""
        self._back_at = self.scheduler.now + seconds
        for session in list(self._open_sessions):
            session.lose()

    def may_block(self, session: "Session") -> bool:
        """Whether another session may hold a lock."""
        return any(one.in_transaction and one is not session for one in self._open_sessions)

    def holders(self, session: "Session", db: _Real) -> list[str]:
        """Return the tasks whose locks a session waits for."""
        tasks = {one.real.pid: one.task.name for one in self._open_sessions if one.real is not None}
        found = self._blockers(db.pid)
        holders = [tasks[pid] for pid in found if pid in tasks]
        if holders and self._is_deadlock(db.pid):
            self.deadlocks.append(f"{session.task.name} and {', '.join(holders)}")
            db.replies.poll(10_000)  # the server ends it
            return []
        return holders

    def cancel(self, db: _Real) -> None:
        """End the statement of a session with an error."""
        with self._monitor.cursor() as cursor:
            cursor.execute("select pg_cancel_backend(%s)", (db.pid,))
        db.replies.poll(10_000)

    def _blockers(self, pid: int) -> list[int]:
        with self._monitor.cursor() as cursor:
            cursor.execute("select pg_blocking_pids(%s)", (pid,))
            [(found,)] = cursor.fetchall()
        return list(found)

    def _is_deadlock(self, pid: int) -> bool:
        seen: set[int] = set()
        ahead = set(self._blockers(pid))
        while ahead and pid not in ahead:
            seen |= ahead
            ahead = set(chain.from_iterable(map(self._blockers, ahead))) - seen
        return pid in ahead

    def _open(self) -> _Real:
        db = psycopg2.connect(self._url, connection_factory=_Real)
        with db.cursor() as cursor:
            cursor.execute(_PREPARED)
        self._on_open(db)
        return db


class Session:
    """One task's connection, as far as programs use one."""

    def __init__(self, server: Server, task: Task, db: _Real) -> None:
        self.server = server
        self.task = task
        self.real: _Real | None = db
        db.session = self
        self.in_transaction = False
        self.was_left_in_transaction = False
        """Whether its task ended by itself within a transaction."""
        self._begin = ""
        """What begins the transaction, sent with its first statement."""
        self._stopped_at: float | None = None
        self._ends = False
        self._label = ""
        self._labels: list[str] = []
        """The points of the transaction."""
        self._last_at = 0.0
        """The time of the database's clock at the last statement."""
        task.at_end.append(self._end)
        task.while_asleep.append(self._stand_still)

    @property
    def closed(self) -> int:
        """0 while it is open."""
        return int(self.real is None)

    def cursor(self) -> "SessionCursor":
        """Return a cursor. Raises InterfaceError if the session is closed."""
        return SessionCursor(self, self._connection())

    def close(self) -> None:
        """Close it, which rolls back."""
        if self.task.dead:
            raise DeathError
        self.lose()

    def lose(self) -> None:
        """End it as if its process were gone."""
        db = self.real
        if db is None:
            return
        if db.is_busy:  # it waits for a lock
            self._ends = True
            self.server.cancel(db)
            return
        self.real = db.session = None
        if self.in_transaction and not self._begin and not db.closed:
            with db.cursor() as cursor:
                cursor.execute("rollback")
        self.in_transaction, self._begin = False, ""
        self.server.give_back(db, self)

    def await_reply(self) -> None:
        """Wait for a reply; if another session's lock is in the way, let others work meanwhile."""
        db = self._connection()
        while not db.replies.poll(2):
            holders = self.server.holders(self, db)
            if holders:
                wait = LockWait(self._label, self.task.name, tuple(holders))
                self.server.lock_waits.append(wait)
                self.server.scheduler.wait_for_lock(
                    lambda: self._is_answered(db),
                    lambda: self.server.cancel(db),
                    most_seconds=LOCK_SECONDS,
                )

    def _is_answered(self, db: _Real) -> bool:
        while not db.replies.poll(2):
            if self.server.holders(self, db):
                return False
        return True

    def _connection(self) -> _Real:
        if self.task.dead:
            raise DeathError
        if self.real is None:
            raise psycopg2.InterfaceError("connection already closed")
        return self.real

    def _end(self) -> None:
        self.was_left_in_transaction = self.in_transaction and not self.task.dead
        self.server.ended.append(self)
        self.lose()

    def _stand_still(self, left: float) -> float:
        """End the session if its task stands still in a transaction for too long."""
        now = self.server.scheduler.now
        if not left or not self.in_transaction or self._begin:
            self._stopped_at = None
        elif self._stopped_at is None:
            self._stopped_at = now
        elif now - self._stopped_at >= IDLE_SECONDS - 1e-6:
            self.lose()
        else:
            return self._stopped_at + IDLE_SECONDS - now
        return min(left, IDLE_SECONDS) if self._stopped_at is not None and self.real else left

    # --- statements ---------------------------------------------------------------------------

    def run(
        self,
        cursor: extensions.cursor,
        sql: str,
        parameters: Mapping[str, object] | Sequence[object] | None,
    ) -> None:
        """Run a text as psycopg2 does, and pass the points of its statements."""
        self._work_for(self.server.scheduler.running)
        given = named(parameters)
        text = self.server.text(sql, given)
        match text.kind:
            case _Kind.BEGIN:
                self._start_transaction()
                if text.statements:
                    self._one_by_one(cursor, text, given)
            case _Kind.COMMIT if self._begin:
                self.in_transaction, self._begin = False, ""
            case _Kind.COMMIT:
                self._commit(cursor, text.label)
            case _Kind.ROLLBACK:
                self._rollback(cursor)
            case _Kind.PLAIN if self.in_transaction:
                self._one_by_one(cursor, text, given)
            case _Kind.PLAIN:
                self._whole(cursor, text, given)

    def _work_for(self, task: Task) -> None:
        """Belong to the thread that uses it now; it ends with the one that has opened it."""
        if task is not self.task:
            # As a second thread that uses a connection of psycopg2 does.
            self.server.scheduler.wait_until(self._is_free, most_seconds=LOCK_SECONDS)
            self.task.while_asleep.remove(self._stand_still)
            task.while_asleep.append(self._stand_still)
            self.task = task

    def _is_free(self) -> bool:
        return self.real is None or not self.real.is_busy

    def _start_transaction(self, *labels: str) -> None:
        self.in_transaction, self._labels = True, list(labels)
        self._begin = f"begin; {self.server.clock_sql(self.task.name)}"

    def _whole(self, cursor: extensions.cursor, text: _Text, given: Mapping[str, object]) -> None:
        """Run a text as a transaction of its own."""
        label, count = text.label, len(text.statements)
        inner = [f"{label} {number}" for number in range(2, count + 1)] + [f"{label} commit"]
        is_lost = self._point(label)
        if is_lost or self.server.scheduler.is_quiet(inner):
            self.server.scheduler.pass_quietly(inner)
            self._send(cursor, [self.server.clock_sql(self.task.name)], text.statements, given)
            self.server.on_commit(self.task.name, [label], self._last_at)
            if is_lost:
                raise self._lost()
            return
        self._start_transaction(label)
        try:
            self._send_next(cursor, text.statements[:1], given)
            for place, statement in enumerate(text.statements[1:]):
                if self._point(inner[place], is_servers=True):
                    raise self._lost()
                self._send_next(cursor, [statement], given)
            with self._connection().cursor() as another:
                self._commit(another, inner[-1], is_servers=True)
        except psycopg2.Error:
            if self.real is not None:
                with self.real.cursor() as another:
                    self._rollback(another)
            raise

    def _one_by_one(
        self, cursor: extensions.cursor, text: _Text, given: Mapping[str, object]
    ) -> None:
        for number, statement in enumerate(text.statements, start=1):
            is_lost = self._point(text.label if number == 1 else f"{text.label} {number}")
            self._send_next(cursor, [statement], given)
            if is_lost:
                raise self._lost()

    def _commit(self, cursor: extensions.cursor, label: str, *, is_servers: bool = False) -> None:
        is_lost = self._point(label, is_servers=is_servers)
        self._send(cursor, [self._tick(), "commit"], (), {})
        self.in_transaction = False
        self.server.scheduler.changes += 1
        self.server.on_commit(self.task.name, self._labels, self._last_at)
        if is_lost:
            raise self._lost()

    def _rollback(self, cursor: extensions.cursor) -> None:
        if self.task.dead:
            raise DeathError
        if self.in_transaction and not self._begin:
            self._send(cursor, ["rollback"], (), {})
        self.in_transaction, self._begin = False, ""

    def _point(self, label: str, *, is_servers: bool = False) -> bool:
        """Pass a point; return whether the reply to what follows is lost.

        Raises OperationalError if the session has ended.
        """
        self._label = label
        self._labels.append(label)
        fault = self.server.scheduler.point(label, FAULTS, is_servers=is_servers)
        match fault:
            case Fault(name) if name == LOST:
                raise self._lost()
            case Fault(name, seconds) if name == RESTART:
                self.server.restart(seconds)
            case Fault(name, seconds) if name == JUMP:
                self.server.jumped_seconds += seconds
        if self.real is None:
            raise self._lost()
        return fault is not None and fault.name == REPLY_LOST

    def _lost(self) -> psycopg2.OperationalError:
        self.lose()
        return psycopg2.OperationalError("server closed the connection unexpectedly")

    def _tick(self) -> str:
        return f"execute ticks({round(self.server.epoch_seconds * 1e6)})"

    def _send_next(
        self,
        cursor: extensions.cursor,
        statements: Sequence[Statement],
        given: Mapping[str, object],
    ) -> None:
        """Send statements within the transaction."""
        before = [self._begin or self._tick()]
        self._begin = ""
        self._send(cursor, before, statements, given)

    def _send(
        self,
        cursor: extensions.cursor,
        before: Sequence[str],
        statements: Sequence[Statement],
        given: Mapping[str, object],
    ) -> None:
        db = self._connection()
        if statements:
            self._last_at = self.server.epoch_seconds
        for statement in statements:
            if statement.prepare and statement.prepare not in db.prepared:
                with db.cursor() as another:
                    another.execute(statement.prepare)
                db.prepared.add(statement.prepare)
        if not self.server.may_block(self):
            extensions.set_wait_callback(None)  # libpq's own wait costs less
        db.is_busy = True
        try:
            cursor.execute(
                "; ".join([*before, *(one.to_send for one in statements)]), given or None
            )
        except psycopg2.Error:
            if not self._ends:
                raise
        finally:
            db.is_busy = False
            extensions.set_wait_callback(_wait)
        if self._ends:  # while it waited; perhaps the wait had ended just before
            self._ends = False
            raise self._lost()


class SessionCursor:
    """A session's cursor, as far as programs use one."""

    def __init__(self, session: Session, db: _Real) -> None:
        self.connection = session
        self._real = db.cursor()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> object:
        return iter(self._real)

    def close(self) -> None:
        """Close it."""
        self._real.close()

    @property
    def description(self) -> object:
        """The columns of the last result."""
        return self._real.description

    @property
    def rowcount(self) -> int:
        """How many rows the last statement touched."""
        return self._real.rowcount

    def execute(
        self, sql: str, parameters: Mapping[str, object] | Sequence[object] | None = None
    ) -> None:
        """Run SQL."""
        self.connection.run(self._real, sql, parameters)

    def fetchall(self) -> list[Row]:
        """Return the rows of the last result."""
        return self._real.fetchall()
