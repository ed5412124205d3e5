"""Tests the promises while processes are killed, databases restart and the API fails.

    make soak                                         # 4 minutes
    make soak SOAK_SECONDS=600 SOAK_CALLS=10700       # 20 minutes

It has four parts. Each has its own database and uses only loopback.

1. Many short runs are killed at random moments. The database restarts, the API fails, freezes and
   answers oddly, and one asset always fails. Then time passes, undisturbed runs finish the work,
   and the server's log and the database are checked.
2. 16 long-lived processes share one budget under a latency with a long tail.
3. One day with many disturbances. It is simulated (`simulation.py`), since it takes hours.
4. A key whose plan allows less than the settings say, simulated, too.

It prints one report and exits 1 if a promise was broken. A slow machine breaks none.
"""

# ruff: noqa: T201 - it starts this program, prints, and is no package

import atexit
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from math import inf
from pathlib import Path
from typing import NamedTuple, Self

import psycopg2
from psycopg2.extensions import make_dsn

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from simulation import Api, Asked, Day, Freeze, Jump, live_through  # noqa: E402

from asset_sync.budget import slots  # noqa: E402
from asset_sync.database import (  # noqa: E402
    Connection,
    embedded,
    migrate,
    query,
    raw_session,
)
from asset_sync.demo import replay  # noqa: E402
from asset_sync.demo.server import StandIn  # noqa: E402
from asset_sync.model import Asset, AssetType, Level  # noqa: E402
from asset_sync.provider.polygon.http import Reply  # noqa: E402
from asset_sync.secret import Secret  # noqa: E402
from asset_sync.settings import SHIPPED_FILE, VARIABLES, Settings, load  # noqa: E402

SECONDS = float(os.environ.get("SOAK_SECONDS", "90"))
CALLS = int(os.environ.get("SOAK_CALLS", "1000"))
SEED = int(os.environ.get("SOAK_SEED", "20140501"))

KEY, PASSWORD = "soak-key-never-to-be-shown", "soak-password-never-to-be-shown"
DOCUMENTED = {0, 1, 3, 4}
TICKERS = tuple(replay.INSTRUMENTS)
CRITICAL, OTHERS = 3, 60
INTERVAL_SECONDS = 30  # cron's interval, the shortest that the settings allow
# The run ends before its assets are due again, so all its waiting is for reserved slots.
CRON = ("sync", "priority", "--json", "--max-runtime", "20")
CALL_TIMEOUT_SECONDS = 2.0
LEASE_SECONDS = CALL_TIMEOUT_SECONDS + 30
RARELY = (3600, 3600)  # the critical ones and the others
LATE_SECONDS = 90  # a run that lasts so much longer than its limit hangs, on any machine

WORKERS = 5
KILLED = 0.7
RESTART_EVERY_SECONDS = 22
FAULT_EVERY_SECONDS = 3.0
FORGET_EVERY_SECONDS = 0.3
FREEZE_EVERY_SECONDS = 20.0
LONGEST_FREEZE = 1.5  # windows: the limit is promised for freezes up to this length
# A 429 without Retry-After stops all calls for a minute: that is tested in a simulated day.
FAULTS = (
    "rate-limit-retry-after:2",
    "server-error:3",
    "bad-gateway:3",
    "reset:3",
    "stall:2",
    "truncated:3",
    "drip:2",
    "bad-json:1",
    "key-revoked:1",
    "not-found",  # this one and the next two last until the next fault
    "wrong-shape",
    "server-error",
)
FAILING, FAILING_TICKER = "BAD", "X:BAD"
ALWAYS = f"server-error@{FAILING_TICKER}"

MANY = 16


class Window(NamedTuple):
    """The limit of a part."""

    calls: int
    seconds: float


KILLS_WINDOW, MANY_WINDOW = Window(40, 5.0), Window(125, 5.0)


def long_tail(generator: random.Random) -> float:
    """Return how long a call takes: mostly short, one in 50 longer than a call may last."""
    return (
        generator.uniform(1.0, 5.0) if generator.random() < 0.02 else generator.uniform(0.02, 0.3)
    )


# --- the server and the machine ---------------------------------------------------------------


class Server:
    """An embedded PostgreSQL that the soak restarts."""

    def __init__(self, directory: Path) -> None:
        self._server = embedded.start(directory / "data")
        with raw_session(Secret(self._server.address("postgres"))) as db:
            query(db, f"create role soak superuser login password '{PASSWORD}'")
        self.restarts: Counter[str] = Counter()

    def database(self, name: str) -> str:
        """Make an initialised database; its address has a password, which no output may show."""
        url = embedded.create_database(self._server, name)
        with raw_session(Secret(url)) as db:
            migrate(db)
        return str(make_dsn(url, user="soak", password=PASSWORD))

    def restart(self, mode: str) -> None:
        self._pg_ctl("-m", mode, "-l", "/dev/null", "restart")
        self.restarts[mode] += 1

    def stop(self) -> None:
        with suppress(subprocess.SubprocessError):
            self._pg_ctl("-m", "immediate", "stop")
        self._server.leave()

    def _pg_ctl(self, *arguments: str) -> None:
        self._server.run("pg_ctl", "-w", "-D", str(self._server.directory), *arguments)


@dataclass(frozen=True, slots=True)
class Ended:
    """A run that has ended."""

    arguments: Sequence[str]
    code: int
    out: str
    err: str
    killed: bool
    hung: bool

    def calls(self) -> int:
        """How many calls the run says it made."""
        return int(json.loads(self.out)["api_calls_used"])


class Machine:
    """Starts the program as cron does, and remembers how each run ended."""

    def __init__(self, directory: Path, url: str, api: StandIn, window: Window) -> None:
        self.window = window
        self.file = directory / "assets.toml"
        self.settings(often=True)
        kept = {name: value for name, value in os.environ.items() if not _is_setting(name)}
        self._directory = directory
        self.environ = {
            **kept,
            "HOME": str(directory),
            "PYTHONPATH": str(REPOSITORY),
            "POLYGON_API_KEY": KEY,
            "POLYGON_BASE_URL": api.base_url,
            "DATABASE_URL": url,
        }
        self.ended: list[Ended] = []
        self._alive: set[subprocess.Popen[str]] = set()
        self._stopped = False
        self._lock = threading.Lock()

    def settings(self, *, often: bool) -> None:
        """Write settings with assets due more often than the limit allows, or rarely."""
        frequency = round(OTHERS * self.window.seconds / self.window.calls / 2) or 1
        text = _settings_file(self.window, *(INTERVAL_SECONDS - 5, frequency) if often else RARELY)
        fresh = self.file.with_suffix(".new")
        fresh.write_text(text)
        fresh.rename(self.file)

    def run(self, *arguments: str, seconds: float, kill_after: float | None = None) -> Ended | None:
        """Run a command that may work for so long; then kill it, if asked to."""
        process = self._start(arguments)
        if process is None:
            return None
        hung = killed = False
        try:
            out, err = process.communicate(timeout=kill_after or seconds + LATE_SECONDS)
        except subprocess.TimeoutExpired:
            killed, hung = kill_after is not None, kill_after is None
            process.kill()
            out, err = process.communicate()
        killed = killed and process.returncode == -signal.SIGKILL
        ended = Ended(arguments, process.returncode, out, err, killed, hung)
        with self._lock:
            self._alive.discard(process)
            if not self._stopped:
                self.ended.append(ended)
        return ended

    def _start(self, arguments: Sequence[str]) -> "subprocess.Popen[str] | None":
        with self._lock:
            if self._stopped:
                return None
            process = subprocess.Popen(
                [sys.executable, "-m", "asset_sync", *arguments],
                cwd=self._directory,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            self._alive.add(process)
            return process

    def stop(self) -> None:
        """End all processes, however the soak ended."""
        with self._lock:
            self._stopped = True
            for process in self._alive:
                process.kill()


def _is_setting(name: str) -> bool:
    return name in VARIABLES or name.startswith("PG")


def _settings_file(window: Window, critical_seconds: int, other_seconds: int) -> str:
    text = f"""
[provider]
connect_timeout_seconds = 1
read_timeout_seconds = 1.5
call_timeout_seconds = {CALL_TIMEOUT_SECONDS}
[rate_limit]
calls = {window.calls}
period_seconds = {window.seconds}
[queue]
max_attempts = 100
retry_delay_seconds = 1
[batch]
interval_minutes = {INTERVAL_SECONDS / 60}
"""
    for number in range(CRITICAL + OTHERS):
        ticker = TICKERS[number % len(TICKERS)]
        critical = number < CRITICAL
        text += f"""
[[{"priority" if critical else "secondary"}_assets]]
symbol = "A{number:02}"
polygon_ticker = "{ticker}"
asset_type = "{"crypto" if ticker.startswith("X:") else "forex"}"
update_frequency_seconds = {critical_seconds if critical else other_seconds}
"""
    return (
        text
        + f"""
[[secondary_assets]]
symbol = "{FAILING}"
polygon_ticker = "{FAILING_TICKER}"
asset_type = "crypto"
update_frequency_seconds = {other_seconds}
"""
    )


def _two_days_ago(db: Connection) -> None:
    """Give each asset one bar, as if it had last been synced two days ago.

    First syncs would take all the time."""
    now_ms = int(time.time() * 1000)
    for number in range(CRITICAL + OTHERS):
        ticker = TICKERS[number % len(TICKERS)]
        bar = replay.newest(ticker, 0, now_ms - 2 * replay.DAY_MS, now_ms)
        query(
            db,
            """
            with new as (
              insert into trading.symbols (symbol) values (%s) returning id
            )
            insert into market_data.ohlcv_5m
            select id, to_timestamp(%s / 1000.0), %s, %s, %s, %s, %s, %s, %s from new
            """,
            (f"A{number:02}", *(bar or ())),
        )


# --- what goes wrong --------------------------------------------------------------------------


class Chaos:
    """Threads that repeat something until they are stopped; an error in one ends all."""

    def __init__(self) -> None:
        self.stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self.errors: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def every(self, seconds: float, action: Callable[[], object]) -> None:
        """Repeat this at this interval; 0 means again at once."""

        def loop() -> None:
            due = time.monotonic() + seconds
            try:
                while not self.stopping.wait(max(0.0, due - time.monotonic())):
                    due += seconds
                    action()
            except Exception as error:  # noqa: BLE001  # told in the report
                self.errors.append(f"{type(error).__name__}: {error}")

        thread = threading.Thread(target=loop, daemon=True)
        thread.start()
        self._threads.append(thread)

    def stop(self) -> None:
        self.stopping.set()
        for thread in self._threads:
            thread.join(120)


def _short_run(machine: Machine, generator: random.Random) -> None:
    """Run one of the two commands, and kill it or let it end."""
    lane = "queue" if generator.random() < 0.85 else "priority"
    seconds = generator.uniform(1, 6)
    # The kill comes between the start of the process and the middle of its work.
    kill_after = generator.uniform(0.05, 3) if generator.random() < KILLED else None
    arguments = ("sync", lane, "--json", "--max-runtime", f"{seconds:.2f}")
    machine.run(*arguments, seconds=seconds, kill_after=kill_after)


def _forget_some_bars(url: str, generator: random.Random) -> None:
    """Delete an asset's newest bars, unless a run holds it, so that there is much to store."""
    symbol = f"A{generator.randrange(CRITICAL + OTHERS):02}"
    with suppress(psycopg2.Error), raw_or_nothing(url) as db:
        query(
            db,
            """
            with free as materialized (
              select symbol from asset_sync.queue
              where symbol = %s and state <> 'leased' for update skip locked
            ),
            newest as materialized (
              select ticker_id, ts from market_data.ohlcv_5m
              where ticker_id = (
                select id from trading.symbols where symbol = (select symbol from free)
              )
              order by ts desc limit %s
            )
            delete from market_data.ohlcv_5m b using newest n
            where b.ticker_id = n.ticker_id and b.ts = n.ts
              and exists (
                select from market_data.ohlcv_5m o
                where o.ticker_id = n.ticker_id and o.ts < (select min(ts) from newest)
              )
            """,
            (symbol, generator.randrange(1, 400)),
        )


@contextmanager
def raw_or_nothing(url: str) -> Iterator[Connection]:
    """Open a connection; give none if a restart prevents it."""
    db = psycopg2.connect(url)
    try:
        db.autocommit = True
        yield db
    finally:
        db.close()


# --- the checks -------------------------------------------------------------------------------


class Bars(NamedTuple):
    """The stored bars compared with the replayed ones, between each asset's first and last bar."""

    stored: int
    missing: int
    twice: int
    different: int


@dataclass(slots=True)
class Report:
    """The lines to print and the broken promises."""

    lines: list[tuple[str, str]] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def say(self, what: str, value: object) -> None:
        self.lines.append((what, f"{value:,}" if isinstance(value, int) else str(value)))

    def hold(self, what: str, value: object, *, kept: bool) -> None:
        """Add a figure that decides whether a promise was kept."""
        self.say(what, value)
        if not kept:
            self.broken.append(f"{what}: {value}")

    def print(self, title: str) -> None:
        print(f"\n{title}")
        for what, value in self.lines:
            print(f"  {what:<38}{value}")
        for line in self.broken:
            print(f"  BROKEN: {line}")
        sys.stdout.flush()


def windows_over(api: StandIn, window: Window) -> int:
    """Count the calls that were over the limit of a window, by the server's own log."""
    stamps = [arrival.at_seconds for arrival in api.log if arrival.key_ok]
    return sum(
        later - earlier < window.seconds
        for earlier, later in zip(stamps, stamps[window.calls :], strict=False)
    )


def bars_beside_the_replay(db: Connection) -> Bars:
    now_ms = int(datetime.now(UTC).timestamp() * 1000)
    stored_bars = missing = twice = different = 0
    for symbol, ticker in query(
        db, "select symbol, ticker from asset_sync.queue where symbol <> %s", (FAILING,)
    ):
        rows = query(
            db,
            """
            select (extract(epoch from ts) * 1000)::bigint, open, high, low, close, volume, vwap,
              trades
            from market_data.ohlcv_5m b join trading.symbols s on s.id = b.ticker_id
            where symbol = %s order by ts
            """,
            (symbol,),
        )
        stored = {row[0]: row for row in rows}
        bars = replay.bars(ticker, min(stored), max(stored), now_ms)
        replayed = {bar.start_ms: tuple(bar) for bar in bars}
        stored_bars += len(rows)
        twice += len(rows) - len(stored)
        missing += len(replayed.keys() - stored.keys())
        different += sum(replayed.get(start) != row for start, row in stored.items())
    return Bars(stored_bars, missing, twice, different)


def items_lost(db: Connection) -> int:
    """Count assets without a row, still waiting or leased at the end, or not up to date."""
    [(kept,)] = query(
        db,
        """
        select count(*) from asset_sync.queue q
        join trading.symbols s using (symbol)
        join data_sources.data_sync_status d on d.ticker_id = s.id
        where q.feed = 'bars' and q.state = 'idle' and q.lease_token is null and q.attempts = 0
          and d.sync_status = 'success' and q.last_success_at > now() - interval '1 h'
          and (s.metadata -> 'last_update' ->> 'last_price')::float8 = (
            select close from market_data.ohlcv_5m b where b.ticker_id = s.id
            order by ts desc limit 1
          )
        """,
    )
    [(rows,)] = query(db, "select count(*) from asset_sync.queue where symbol <> %s", (FAILING,))
    return CRITICAL + OTHERS - int(kept) + max(0, int(rows) - CRITICAL - OTHERS)


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def check_the_outputs(report: Report, machine: Machine) -> None:
    """Check that runs that were not killed ended as documented, and that none showed a secret."""
    alone = [ended for ended in machine.ended if not ended.killed]
    codes = Counter(ended.code for ended in alone)
    report.hold(
        "exit codes of unkilled runs",
        ", ".join(f"{code}: {count}" for code, count in sorted(codes.items())),
        kept=set(codes) <= DOCUMENTED,
    )
    hung = sum(ended.hung for ended in alone)
    report.hold("runs that hung", hung, kept=not hung)
    shown = [
        ended
        for ended in machine.ended
        if any(word in ended.out + ended.err for word in (KEY, PASSWORD, "Traceback", "a bug"))
    ]
    report.hold("tracebacks and secrets shown", len(shown), kept=not shown)
    for ended in {ended.err: ended for ended in shown}.values():
        print(f"asset-sync {' '.join(ended.arguments)}: {ended.err}", file=sys.stderr)


def check_the_books(report: Report, machine: Machine, db: Connection, api: StandIn) -> None:
    """Check the server's log and the database after the last run."""
    over = windows_over(api, machine.window)
    report.hold("windows over the limit", over, kept=not over)
    lost = items_lost(db)
    report.hold("items lost", lost, kept=not lost)
    bars = bars_beside_the_replay(db)
    report.say("bars stored", bars.stored)
    report.hold("bars missing", bars.missing, kept=not bars.missing)
    report.hold("bars twice", bars.twice, kept=not bars.twice)
    report.hold("bars different", bars.different, kept=not bars.different)
    rate = slots.rate_of(load(machine.file, machine.environ))
    lost = rate.calls - slots.budget(db, rate).free
    report.hold("slots lost", lost, kept=not lost)


# --- part 1: kills ----------------------------------------------------------------------------


def kills(directory: Path, server: Server) -> Report:
    """Kill runs, restart the database and make the API fail; then let runs finish, and check."""
    report = Report()
    url = server.database("kills")
    window = KILLS_WINDOW
    with (
        StandIn(
            calls=window.calls, period_seconds=window.seconds, latency=long_tail, key=KEY
        ) as api,
        Chaos() as chaos,
        stopping(Machine(directory, url, api, window)) as machine,
    ):
        with raw_session(Secret(url)) as db:
            _two_days_ago(db)
        began = time.monotonic()
        cron = start_the_chaos(chaos, machine, server, url, api)
        wait_for_the_end(chaos, SECONDS)
        chaos.stop()
        seconds = time.monotonic() - began
        say_what_was_done(report, chaos, machine, server, api)
        mean = len(api.log) / (CRITICAL + OTHERS)
        wasted = api.calls_by_ticker().get(FAILING_TICKER, 0)
        report.hold("calls for what always fails", wasted, kept=wasted <= max(mean, 3))
        used = len(api.log) * window.seconds / (window.calls * seconds)
        report.say("budget used, kills and all", f"{used:.1%}")
        api.set_faults([ALWAYS])
        time.sleep(LEASE_SECONDS + 1)  # the leases of killed runs
        let_it_finish(machine, url)
        check_the_outputs(report, machine)
        with raw_session(Secret(url)) as db:
            [(cut,)] = query(db, "select count(*) from asset_sync.runs where reason_ended is null")
            report.say("runs that never said their end", int(cut))
            check_the_books(report, machine, db, api)
            say_the_waits(report, priority_waits(db, [ended for ended in cron if not ended.killed]))
        report.say("wall seconds", round(time.monotonic() - began))
    return report


def say_what_was_done(
    report: Report, chaos: Chaos, machine: Machine, server: Server, api: StandIn
) -> None:
    report.say("calls", len(api.log))
    report.say("runs", len(machine.ended))
    report.say("kills", sum(ended.killed for ended in machine.ended))
    report.say("restarts", ", ".join(f"{count} {mode}" for mode, count in server.restarts.items()))
    report.hold("the soak's own errors", len(chaos.errors), kept=not chaos.errors)
    print(*chaos.errors, sep="\n", file=sys.stderr)


def start_the_chaos(
    chaos: Chaos, machine: Machine, server: Server, url: str, api: StandIn
) -> list[Ended]:
    """Start all runs and all disturbances; return cron's own runs."""
    cron: list[Ended] = []
    for number in range(WORKERS):
        generator = random.Random(f"{SEED} worker {number}")
        chaos.every(0, lambda generator=generator: _short_run(machine, generator))  # type: ignore[misc]
    random_kill = random.Random(f"{SEED} cron")

    def priority() -> None:
        kill_after = random_kill.uniform(0.05, 2) if random_kill.random() < 0.3 else None
        ended = machine.run(*CRON, seconds=60, kill_after=kill_after)
        if ended is not None:
            cron.append(ended)

    chaos.every(INTERVAL_SECONDS, priority)
    modes = iter(["fast", "immediate"] * 10_000)
    chaos.every(RESTART_EVERY_SECONDS, lambda: server.restart(next(modes)))
    faults = random.Random(f"{SEED} faults")
    chaos.every(FAULT_EVERY_SECONDS, lambda: api.set_faults([ALWAYS, faults.choice(FAULTS)]))
    freezes = random.Random(f"{SEED} freezes")

    def freeze() -> None:
        api.freeze(freezes.uniform(0.1, LONGEST_FREEZE) * machine.window.seconds)

    chaos.every(FREEZE_EVERY_SECONDS, freeze)
    forget = random.Random(f"{SEED} forget")
    chaos.every(FORGET_EVERY_SECONDS, lambda: _forget_some_bars(url, forget))
    return cron


def wait_for_the_end(chaos: Chaos, seconds: float) -> None:
    """Wait, and print once a minute that the soak continues."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0 and not chaos.errors:
        print(f"soak: {left:.0f} s to go", file=sys.stderr)
        chaos.stopping.wait(min(left, 60))


def let_it_finish(machine: Machine, url: str) -> None:
    """Run without disturbances until each asset is fresh again, then let the windows end."""
    machine.settings(often=False)
    with raw_session(Secret(url)) as db:
        # Each asset is due once more, and then not soon again; every back-off has ended.
        query(
            db,
            """
            update asset_sync.queue
            set last_success_at = last_success_at - make_interval(secs => %(seconds)s),
              not_before = not_before - make_interval(secs => %(seconds)s)
            """,
            {"seconds": max(RARELY)},
        )
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        for lane in ("priority", "queue"):
            machine.run("sync", lane, "--json", seconds=60)
        with raw_session(Secret(url)) as db:
            [(busy,)] = query(
                db,
                "select count(*) from asset_sync.queue where state <> 'idle' and symbol <> %s",
                (FAILING,),
            )
        if not busy:
            break
    time.sleep((1 + LONGEST_FREEZE) * machine.window.seconds + CALL_TIMEOUT_SECONDS)


def priority_waits(db: Connection, cron: Sequence[Ended]) -> list[float]:
    """Return how long cron's priority runs waited for slots in total, by the database."""
    ids = [json.loads(ended.out)["run_id"] for ended in cron if ended.out.startswith("{")]
    rows = query(db, "select waited_seconds from asset_sync.runs where id = any(%s)", (ids,))
    return [float(seconds) for (seconds,) in rows]


def say_the_waits(report: Report, waits: Sequence[float]) -> None:
    report.say("priority runs of cron", len(waits))
    report.say("priority wait p50", f"{percentile(waits, 0.5):.2f} s")
    report.say("priority wait p95", f"{percentile(waits, 0.95):.2f} s")


# --- part 2: many at once ---------------------------------------------------------------------


def many(directory: Path, server: Server) -> Report:
    """Let 16 long-lived processes and cron's priority runs share one budget."""
    report = Report()
    url = server.database("many")
    window = MANY_WINDOW
    seconds = max(CALLS * window.seconds / window.calls, 2 * window.seconds)
    with (
        StandIn(
            calls=window.calls, period_seconds=window.seconds, latency=long_tail, key=KEY
        ) as api,
        Chaos() as chaos,
        stopping(Machine(directory, url, api, window)) as machine,
    ):
        with raw_session(Secret(url)) as db:
            _two_days_ago(db)
        began = time.monotonic()
        cron: list[Ended] = []

        def priority() -> None:
            ended = machine.run(*CRON, seconds=60)
            if ended is not None:
                cron.append(ended)

        chaos.every(INTERVAL_SECONDS, priority)
        threads = [threading.Thread(target=_long_run, args=(machine, seconds)) for _ in range(MANY)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        chaos.stop()
        report.say("calls", len(api.log))
        let_it_finish(machine, url)
        check_the_outputs(report, machine)
        with raw_session(Secret(url)) as db:
            check_the_books(report, machine, db, api)
            check_the_sharing(report, machine)
            say_the_budget(report, db, window, seconds, cron)
        report.say("wall seconds", round(time.monotonic() - began))
    return report


def _long_run(machine: Machine, seconds: float) -> None:
    machine.run("sync", "queue", "-q", "--json", "--max-runtime", f"{seconds}", seconds=seconds)


def check_the_sharing(report: Report, machine: Machine) -> None:
    long_lived = [ended.calls() for ended in machine.ended if "-q" in ended.arguments]
    report.say("calls per process", f"{min(long_lived)} to {max(long_lived)}")


def say_the_budget(
    report: Report, db: Connection, window: Window, seconds: float, cron: Sequence[Ended]
) -> None:
    """Compare the time for which slots were taken with the time for which they could be taken.

    A call takes its slot until a window after its end. Reserved slots are unused for up to a
    window before a priority run.
    """
    [(measured, calls, taken)] = query(
        db,
        """
        with span as (
          select min(at) + %(window)s as since, -- the first window is a burst
            (select min(started_at) from asset_sync.runs where command = 'queue') + %(end)s as until
          from asset_sync.calls
        ),
        taken as (
          select at, greatest(at - make_interval(secs => duration_ms / 1000.0), since) as from_at,
            least(at + %(window)s, until) as until_at, since, until
          from asset_sync.calls, span
        )
        select extract(epoch from until - since)::float8,
          count(*) filter (where at >= since and at < until),
          sum(extract(epoch from greatest(until_at - from_at, interval '0')))::float8
        from taken group by since, until
        """,
        # A run ends if the next slot comes after the run's end.
        {"window": timedelta(seconds=window.seconds), "end": timedelta(seconds=seconds - 3)},
    )
    could = window.calls * measured
    report.say("budget used, of the plan's", f"{calls * window.seconds / could:.1%}")
    held = len(cron) * CRITICAL * window.seconds
    # How much of the budget a machine uses depends on its speed. A simulated day checks the promise
    # without that dependence (`test_forecast.py`).
    report.say("budget used, of what holding allows", f"{taken / (could - held):.2%}")
    say_the_waits(report, priority_waits(db, cron))


# --- parts 3 and 4: simulated -----------------------------------------------------------------

HOUR, CYCLE_SECONDS = 3600.0, 300.0
BAD = "C:BAD"
ODD = Freeze(1 * HOUR, 1.5 * HOUR)
FREEZES = (  # each of at most a window and a half
    Freeze(3 * HOUR + 20, 3 * HOUR + 110),
    Freeze(3 * HOUR + 400, 3 * HOUR + 430),
    Freeze(3 * HOUR + 777, 3 * HOUR + 867),
)
JUMPS = (Jump(4 * HOUR + 50, -HOUR), Jump(5 * HOUR + 100, HOUR), Jump(6 * HOUR + 130, HOUR))
# All assets must be as fresh as before two cycles after a disturbance.
DISTURBED = (
    0.0,
    ODD.until_seconds,
    *(freeze.until_seconds for freeze in FREEZES),
    *(jump.at_seconds for jump in JUMPS),
)


def bad_day(directory: Path, server: Server) -> Report:
    """Simulate 8 hours of disturbances with three hosts that share the budget.

    One asset always fails. For half an hour the API answers oddly. It freezes and then reads
    everything it was sent. The database's clock is set back and forward.
    """
    report = Report()
    url = server.database("bad_day")
    settings = simulated_settings(url, ODD_OTHERS, "free")
    good = [one.symbol for one in settings.assets if one.ticker != BAD]
    asked: Counter[str] = Counter()

    def reply(call: Asked, right: Reply) -> Reply:
        asked.update(call.tickers)
        if BAD in call.tickers:
            return Reply(500, "", None)
        if ODD.from_seconds <= call.at_seconds < ODD.until_seconds:
            return ODD_REPLIES[int(call.at_seconds) // 300 % len(ODD_REPLIES)]
        return right

    api = Api(reply=reply, freezes=FREEZES)
    day = live_through(url, settings, api, seconds=8 * HOUR, hosts=3, jumps=JUMPS)
    report.say("calls", len(day.calls))
    over = calls_over(day.calls, 5, 60)
    report.hold("windows over the limit", over, kept=not over)
    ages = [fresh_again(day, good, since) for since in DISTURBED]
    report.hold(
        "all fresh again after, at most",
        f"{max(ages):.0f} s",
        kept=max(ages) <= 2 * CYCLE_SECONDS + 60,
    )
    share = asked[BAD] / len(day.calls)
    report.hold("calls for the asset that fails", asked[BAD], kept=share < 0.5 / len(good))
    with raw_session(Secret(url)) as db:
        [(dead,)] = query(db, "select count(*) from asset_sync.queue where state = 'dead'")
    report.hold("dead", int(dead), kept=not dead)
    return report


ODD_OTHERS = 12
ODD_REPLIES = (
    Reply(404, '{"status": "NOT_FOUND", "message": "moved"}', None),
    Reply(200, '{"status": "OK", "results": "moved"}', None),
    Reply(500, "", None),
    Reply(200, "garbage", None),
)


def lapsed_plan(directory: Path, server: Server) -> Report:
    """Simulate 2 hours with the settings of a paid plan and the key of a free one."""
    report = Report()
    url = server.database("lapsed_plan")
    settings = simulated_settings(url, 4, "starter")
    window: list[float] = []
    refused: list[float] = []

    def reply(call: Asked, right: Reply) -> Reply:
        window[:] = [at for at in window if at > call.at_seconds - 60] + [call.at_seconds]
        if len(window) > PLAN_CALLS:
            refused.append(call.at_seconds)
            return Reply(429, '{"status": "ERROR", "error": "exceeded"}', None)
        if len(call.tickers) > 1 or "quote" in right.text:
            return Reply(403, NOT_ENTITLED, None)
        return right

    day = live_through(url, settings, Api(reply=reply), seconds=2 * HOUR)
    report.say("calls", len(day.calls))
    report.hold("calls refused", len(refused), kept=len(refused) <= LAPSED_REFUSED)
    for one in settings.critical:
        fresh = [at for at in day.fresh_at[one.symbol] if at > HOUR]
        report.hold(
            f"{one.symbol} refreshed in an hour", len(fresh), kept=len(fresh) >= LAPSED_FRESH
        )
    return report


PLAN_CALLS = 5
LAPSED_REFUSED = 40
LAPSED_FRESH = 9
NOT_ENTITLED = (
    '{"status": "NOT_AUTHORIZED", "message": "You are not entitled to this data. '
    'Please upgrade your plan at https://massive.com/pricing"}'
)


def simulated_settings(url: str, others: int, plan: str) -> Settings:
    """Return the shipped settings with three priority assets, others, and one that always fails."""
    critical = [_asset(f"P{number}", Level.CRITICAL, number) for number in range(CRITICAL)]
    secondary = [_asset(f"S{number:02}", Level.MEDIUM, number) for number in range(others)]
    bad = replace(_asset("BAD", Level.MEDIUM, others), ticker=BAD)
    environ = {
        "POLYGON_API_KEY": KEY,
        "POLYGON_TIER": plan,
        "POLYGON_BASE_URL": "http://127.0.0.1:9",
        "DATABASE_URL": url,
    }
    return replace(load(SHIPPED_FILE, environ), assets=(*critical, *secondary, bad))


def _asset(symbol: str, level: Level, position: int) -> Asset:
    return Asset(symbol, f"C:{symbol}", AssetType.FOREX, symbol, level, position, 300)


def calls_over(calls: Sequence[float], most: int, seconds: float) -> int:
    """Count the calls that were over the limit of a window."""
    return sum(
        later - earlier < seconds - 1e-6
        for earlier, later in zip(calls, calls[most:], strict=False)
    )


def fresh_again(day: Day, symbols: Sequence[str], since: float) -> float:
    """Return how long after that moment each of the assets had been refreshed."""
    return max(
        next((at for at in day.fresh_at[symbol] if at >= since), inf) - since for symbol in symbols
    )


# --- main -------------------------------------------------------------------------------------


@contextmanager
def stopping(machine: Machine) -> Iterator[Machine]:
    try:
        yield machine
    finally:
        machine.stop()


def main() -> int:
    """Run all parts and return the exit code."""
    # Other accounts must be able to enter the directory: if root runs this, the server has another.
    directory = Path(tempfile.mkdtemp(prefix="asset-sync-soak-"))
    # The directory is deleted last: at exit the server writes there once more.
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    server = Server(directory)
    broken = 0
    try:
        for title, part, wanted in (
            ("Killed, restarted, failed", kills, SECONDS > 0),
            ("Many at once", many, CALLS > 0),
            ("A bad day, simulated", bad_day, True),
            ("A plan above the key's, simulated", lapsed_plan, True),
        ):
            if wanted:
                report = part(directory, server)
                report.print(title)
                broken += len(report.broken)
    except KeyboardInterrupt:
        return 130
    finally:
        server.stop()
    print(f"\n{'All promises kept.' if not broken else f'{broken} promises broken.'}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
