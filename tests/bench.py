"""Measures speed and size, each figure beside its floor, in the same run.

`make bench` makes an embedded PostgreSQL of its own, takes some minutes, prints a
table and exits 1 if a target is missed. Repetitions are interleaved and the median counts, so
that a busy machine slows both sides of a ratio.
"""

# ruff: noqa: T201 - it starts this program, prints, and is no package

import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import count
from pathlib import Path
from statistics import median
from urllib.parse import quote

import psycopg2.extras

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from asset_sync import queue  # noqa: E402
from asset_sync.budget import slots  # noqa: E402
from asset_sync.budget.bucket import Limiter  # noqa: E402
from asset_sync.budget.slots import Rate, Slot  # noqa: E402
from asset_sync.cli.page import draw  # noqa: E402
from asset_sync.database import (  # noqa: E402
    Connection,
    Cursor,
    embedded,
    migrate,
    query,
    raw_session,
    statement_timeout,
    transaction,
)
from asset_sync.model import (  # noqa: E402
    Asset,
    AssetType,
    Feed,
    Lane,
    Level,
)
from asset_sync.ops.report import report_of  # noqa: E402
from asset_sync.provider.answers import Bar  # noqa: E402
from asset_sync.queue import Wanted  # noqa: E402
from asset_sync.secret import Secret  # noqa: E402
from asset_sync.settings import SHIPPED_FILE, load  # noqa: E402
from asset_sync.spans import Span  # noqa: E402
from asset_sync.store import expected, ledger, market, partitioning, runs  # noqa: E402
from asset_sync.store.bars_query import Every, Selection, bars_query  # noqa: E402

STARTS, CLAIMS, SLOTS, WRITES, PAGES = 15, 50, 50, 5, 5
BARS, BIG_ANSWER = 10_000, 50_000
STATUS_TARGET, EMPTY_RUN_TARGET = 2.5, 3.0
STATUS_ASSETS, HISTORY_STATUS_TARGET = 1000, 14  # about a second
CLAIM_TARGET = 2.0  # with 100 times the rows, a claim may take twice as long
EMPTY_RANGE_TARGET, BARS_TARGET = 13, 9
# The bars of the large table; 10,000,000 take some minutes more, and are what the target is for.
MANY_BARS = int(os.environ.get("BENCH_BARS", "1000000"))
FEW_BARS, SCALE_ASSETS, LOOKS = 100_000, 50, 300
SCALE_TARGET = 1.2  # the queries of a run, among MANY_BARS and among FEW_BARS
YEAR_BARS, LENGTHS = 365 * 288, 15
HOURS_TARGET, AS_OF_TARGET = 4, 1.3
MEMORY_TARGET_MB = 80
# A paid plan: each call takes so long, and each asset needs a call for its last weeks and another
# one for the weeks before. Two years (BENCH_DAYS=720) are the second step more often, and take some
# 25 minutes. No asset falls due again meanwhile. With fewer assets the start of the run is a larger
# part of it.
CALL_SECONDS, PAID_ASSETS, PAID_DAYS = 0.3, 200, int(os.environ.get("BENCH_DAYS", "60"))
PAID_TARGET = 1.5
PAID_CALLS_A_SECOND = 100
PAGE_ASSETS, PAGE_TARGET_KB, DRAWN_TARGET = 1000, 300, 1.0

READ_BARS, READ_ASSETS, READS = 100_000, 10, 5
READ_TARGET, READ_MEMORY_MB = 3, 60
PARQUET_TARGET, EXPORT_MEMORY_MB, IMPORT_TARGET_MS = 2, 120, 5

FLOOR = """
import sys, psycopg2
connection = psycopg2.connect(sys.argv[1])
cursor = connection.cursor()
cursor.execute("select 1")
cursor.fetchall()
connection.close()
"""

# A user's host has no provider on it, so this one must cost little: the assets of the paid plan all
# ask for the same bars, and it makes an answer with the same bars once.
STAND_IN = """
import gzip, sys
from asset_sync.demo import answers
from asset_sync.demo.replay import BAR_MS
from asset_sync.demo.server import StandIn
from asset_sync.demo.wire import Reply

make, made = answers.right_answer, {}

def right_answer(route, call, plan):
    if "from" not in call.parts:
        return make(route, call, plan)
    first_bar = -(-int(call.parts["from"]) // BAR_MS)
    last_bar = min(int(call.parts["to"]), call.now_ms) // BAR_MS
    named = call.parts | {"from": first_bar, "to": last_bar} | call.query
    key = tuple(named.items())
    if key not in made:
        made[key] = gzip.compress(make(route, call, plan).payload(), compresslevel=1)
    return Reply(200, made[key], send=send)

def send(wire, reply):
    wire.head(reply, len(reply.body), encoding="gzip")
    wire.write(reply.body)

answers.right_answer = right_answer
with StandIn("starter", latency=(float(sys.argv[1]),) * 2) as api:
    print(api.base_url, flush=True)
    sys.stdin.read()
    print(api.most_in_a_window())
"""

# A process starts with the peak memory of its parent, so a small process comes in between.
PEAK_OF = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE)
sys.stdout.buffer.write(done.stdout)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(done.returncode)
"""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table."""

    what: str
    measured: str
    floor: str
    ratio: str
    target: str
    ok: bool


def main() -> int:
    """Measure everything and return the exit code."""
    directory = Path(tempfile.mkdtemp(prefix="asset-sync-bench-"))
    # The program finds this file before the machine's own settings.
    shutil.copy(SHIPPED_FILE, directory / "assets.toml")
    server = embedded.start(directory / "data")
    try:

        def database(name: str) -> str:
            address = embedded.create_database(server, name)
            with raw_session(Secret(address)) as db:
                migrate(db)
            return address

        lines = [
            *commands(database("commands"), directory),
            *slots_taken(database("slots")),
            claimed(database("few"), database("many")),
            *bars_written(database("bars")),
            *scale(database("few bars"), database("many bars"), database("months")),
            history_status(database("status"), directory),
            *read(database("read")),
            *paid_plan(database("paid"), directory),
            *page(database("page")),
            memory(database("memory"), directory),
            *reading(database("reading"), directory),
        ]
    finally:
        server.leave()
        shutil.rmtree(directory)
    show(lines)
    return 0 if all(line.ok for line in lines) else 1


def show(lines: Sequence[Line]) -> None:
    """Print the table."""
    rows = [("what", "measured", "floor", "ratio", "target", "ok")]
    rows += [
        (line.what, line.measured, line.floor, line.ratio, line.target, "yes" if line.ok else "NO")
        for line in lines
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).strip())


def interleaved(repetitions: int, *works: Callable[[], float]) -> list[float]:
    """Run these functions in turn; return the median of what each returns."""
    results = [[work() for work in works] for _ in range(repetitions)]
    return [median(column) for column in zip(*results, strict=True)]


def seconds_of(work: Callable[[], object]) -> float:
    """Return how long this takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


# --- starting a command -------------------------------------------------------------------------


def started(environ: dict[str, str], directory: Path, *command: str) -> Callable[[], float]:
    """Return what runs a command and returns how long it takes."""

    def work() -> object:
        return subprocess.run(
            command, check=True, env=environ, cwd=directory, stdout=subprocess.DEVNULL
        )

    work()  # so that the bytecode exists
    return lambda: seconds_of(work)


def commands(address: str, directory: Path) -> Iterator[Line]:
    """Measure `queue status` and an empty run, beside a bare Python that runs one query."""
    make_fresh(address)
    start = partial(started, environment(address, directory), directory)
    floor, status, as_json, run = interleaved(
        STARTS,
        start(sys.executable, "-c", FLOOR, address),
        start(*program(), "queue", "status"),
        start(*program(), "queue", "status", "--json"),
        start(*program(), "-q", "sync", "queue"),
    )
    for what, seconds, target in (
        ("queue status", status, STATUS_TARGET),
        ("queue status --json", as_json, STATUS_TARGET),
        ("sync queue, nothing due", run, EMPTY_RUN_TARGET),
    ):
        yield Line(
            what,
            f"{seconds * 1000:.0f} ms",
            f"{floor * 1000:.0f} ms (Python, psycopg2, 1 query)",
            f"{seconds / floor:.2f}",
            f"<= {target}",
            seconds / floor <= target,
        )


def program() -> tuple[str, ...]:
    """Return the command that starts the program: installed beside this Python, or as a module."""
    script = Path(sys.executable).parent / "asset-sync"
    return (str(script),) if script.exists() else (sys.executable, "-m", "asset_sync")


def environment(address: str, home: Path, **more: str) -> dict[str, str]:
    """Return the environment that cron gives."""
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(REPOSITORY),
        "HOME": str(home),
        "DATABASE_URL": address,
        "POLYGON_API_KEY": "made-up",
        **more,
    }


def make_fresh(address: str) -> None:
    """Make the database as it is after runs that have just served every asset."""
    settings = load(SHIPPED_FILE, {})
    with raw_session(Secret(address)) as db:
        wanted = [Wanted(asset, Feed.BARS) for asset in settings.assets]
        queue.enqueue(db, wanted, settings.queue)
        for lane in Lane:
            run_id = runs.start(db, lane.value)
            line = [
                one
                for one in wanted
                if (one.asset.level is Level.CRITICAL) == (lane is Lane.PRIORITY)
            ]
            while items := queue.claim(db, line, lease_seconds=60, most=1):
                with transaction(db) as cursor:
                    queue.finish(cursor, items)
                    symbols = [item.symbol for item in items]
                    runs.record(cursor, run_id, runs.Call(Feed.BARS, symbols, "ok", 0.2, 1))
            runs.end(db, run_id, "done", updated=1, failed=0, waited_seconds=0)
        Limiter(db, Rate(5, 60, 30))


def history_status(address: str, directory: Path) -> Line:
    """Measure `history status` of many assets, each with holes in two years, beside the floor."""
    (directory / "assets.toml").write_text(
        "".join(
            f"""
[[secondary_assets]]
symbol = "A{number}"
polygon_ticker = "C:A{number}"
asset_type = "forex"
"""
            for number in range(STATUS_ASSETS)
        )
    )
    with raw_session(Secret(address)) as db:
        query(
            db,
            """
            insert into asset_sync.ledger (symbol, feed, ticker, asked, tail_from, tail_until)
            select 'A' || n, 'bars', 'C:A' || n, (
                select range_agg(tstzrange(start, start + interval '20 days'))
                from generate_series(now() - interval '700 days', now(), '33 days') as start
                where start < now() - interval '60 days'
              ), now() - interval '20 days', now() from generate_series(1, %(assets)s) as n;
            insert into asset_sync.weeks (symbol, week, bars, empty_slots, asked_at)
            select 'A' || n, week::date, 1300, 5, now() from generate_series(1, %(assets)s) as n,
              generate_series(date_trunc('week', now()) - interval '98 weeks', now(), '7 days') week
            """,
            {"assets": STATUS_ASSETS},
        )
        query(db, "analyze asset_sync.ledger, asset_sync.weeks")
    start = partial(started, environment(address, directory), directory)
    floor, seconds = interleaved(
        WRITES,
        start(sys.executable, "-c", FLOOR, address),
        start(*program(), "history", "status", "--json"),
    )
    return Line(
        f"history status, {STATUS_ASSETS:,} assets with 20 holes each",
        f"{seconds * 1000:.0f} ms",
        f"{floor * 1000:.0f} ms (Python, psycopg2, 1 query)",
        f"{seconds / floor:.1f}",
        f"<= {HISTORY_STATUS_TARGET}",
        seconds / floor <= HISTORY_STATUS_TARGET,
    )


# --- slots and items ----------------------------------------------------------------------------


def slots_taken(address: str) -> Iterator[Line]:
    """Measure how long a slot takes, beside the shortest query."""
    with raw_session(Secret(address)) as db:
        rate = Rate(5, 60, 30)
        limiter = Limiter(db, rate)
        statements: list[object] = []

        class Counting(psycopg2.extensions.cursor):
            def execute(self, *arguments: object) -> None:
                statements.append(arguments)
                super().execute(*arguments)  # type: ignore[arg-type]

        def take() -> float:
            slot: list[object] = []
            seconds = seconds_of(lambda: slot.append(limiter.take(Lane.QUEUE)))
            [taken] = slot
            if not isinstance(taken, Slot):
                raise TypeError(taken)
            slots.give_back(db, taken)
            return seconds

        ask, slot = interleaved(SLOTS, lambda: seconds_of(lambda: bare(db)), take)
        db.cursor_factory = Counting
        limiter.take(Lane.QUEUE)
    count = len(statements)
    yield Line("a slot taken, round trips", str(count), "1", f"{count}", "<= 1", count == 1)
    yield Line(
        "a slot taken",
        f"{slot * 1000:.2f} ms",
        f"{ask * 1000:.2f} ms (select 1)",
        f"{slot / ask:.1f}",
        "",
        ok=True,
    )


def bare(db: Connection) -> None:
    """Run the shortest query."""
    with db.cursor() as cursor:
        cursor.execute("select 1")
        cursor.fetchall()


def _crypto(symbol: str) -> Asset:
    return Asset(symbol, f"X:{symbol}", AssetType.CRYPTO, "A", Level.MEDIUM, 0, 300)


def claimed(few: str, many: str) -> Line:
    """Measure claims among 100,000 waiting items and among 1,000."""
    with raw_session(Secret(few)) as small, raw_session(Secret(many)) as large:
        for db, rows in ((small, 1_000), (large, 100_000)):
            query(
                db,
                """
                insert into asset_sync.queue
                  (symbol, feed, ticker, asset_type, name, level, state, due_at, sort_at)
                select 'A' || n, 'bars', 'X:A' || n, 'crypto', 'A', 'medium', 'waiting', at, at
                from generate_series(1, %s) as n,
                  lateral (select now() - make_interval(secs => n * 7919 %% 100003) as at) moment
                """,
                (rows,),
            )
            query(db, "analyze asset_sync.queue")

        line = [Wanted(_crypto(f"A{number}"), Feed.BARS) for number in range(1, queue.LINE_LENGTH)]

        def claim(db: Connection) -> Callable[[], float]:
            return lambda: seconds_of(lambda: queue.claim(db, line, lease_seconds=60, most=1))

        least, most = interleaved(CLAIMS, claim(small), claim(large))
    return Line(
        "an item claimed of 100,000",
        f"{most * 1000:.2f} ms",
        f"{least * 1000:.2f} ms (of 1,000)",
        f"{most / least:.2f}",
        f"<= {CLAIM_TARGET}",
        most / least <= CLAIM_TARGET,
    )


# --- bars ---------------------------------------------------------------------------------------

_INSERT = """
insert into market_data.ohlcv_5m
  (ticker_id, ts, open, high, low, close, volume, vwap, trades) values
"""


def bars_written(address: str) -> Iterator[Line]:
    """Measure how the bars of one answer are written, beside the two usual ways."""
    bars = [answer_bar(1_700_000_000_000 + number * 300_000) for number in range(BARS)]
    with raw_session(Secret(address)) as db:
        with transaction(db) as cursor:
            market.save_symbols(cursor, [market.Symbol("EURUSD", "Euro", "forex")])
        [(ticker_id,)] = query(db, "select id from trading.symbols")
        rows = [(ticker_id, bar.start_ms / 1000, *bar[1:]) for bar in bars]

        def row_by_row(cursor: Cursor) -> None:
            for row in rows:
                cursor.execute(_INSERT + "(%s, to_timestamp(%s), %s, %s, %s, %s, %s, %s, %s)", row)

        def in_pages(cursor: Cursor) -> None:
            psycopg2.extras.execute_values(
                cursor,
                _INSERT + "%s",
                rows,
                template="(%s, to_timestamp(%s), %s, %s, %s, %s, %s, %s, %s)",
                page_size=1000,
            )

        def ours(cursor: Cursor) -> None:
            if market.save_bars(cursor, "EURUSD", bars) != BARS:
                raise RuntimeError("not all bars were written")

        def rows_per_second(
            write: Callable[[Cursor], None], stored: Sequence[Bar] = ()
        ) -> Callable[[], float]:
            def work() -> float:
                query(
                    db,
                    "truncate market_data.ohlcv_5m, asset_sync.revisions, asset_sync.arrivals",
                )
                with transaction(db) as cursor:
                    market.save_bars(cursor, "EURUSD", stored)

                def whole() -> None:
                    with transaction(db) as cursor:
                        write(cursor)

                return BARS / seconds_of(whole)

            return work

        first, last = bars[0].start_ms - 60_000, bars[-1].start_ms
        changed = [bar._replace(volume=1.0) for bar in bars]
        slow, paged, empty, among, repaired = interleaved(
            WRITES,
            rows_per_second(row_by_row),
            rows_per_second(in_pages),
            rows_per_second(ours),
            # Stray bars between those that are sent: each is a run of its own.
            rows_per_second(ours, [answer_bar(start) for start in range(first, last, 600_000)]),
            rows_per_second(ours, changed),
        )
    for what, fast, target in (
        ("10,000 bars into an empty range", empty, EMPTY_RANGE_TARGET),
        ("10,000 bars, among 5,000 stored", among, BARS_TARGET),
        ("10,000 bars, all of them changed", repaired, BARS_TARGET),
    ):
        yield Line(
            what,
            f"{fast:,.0f} rows/s",
            f"{slow:,.0f} rows/s (row by row)",
            f"{fast / slow:.1f}",
            f">= {target}",
            fast / slow >= target,
        )
    yield Line(
        "",
        f"{empty:,.0f} rows/s",
        f"{paged:,.0f} rows/s (execute_values)",
        f"{empty / paged:.1f}",
        "",
        ok=True,
    )


def answer_bar(start_ms: int) -> Bar:
    """Return a bar with as many digits as a real one."""
    open_ = 1 + start_ms // 60_000 % 9973 / 100_000
    return Bar(start_ms, open_, open_ + 0.00021, open_ - 0.00017, open_ + 4e-05, 321.0, open_, 321)


# --- many bars, and partitions ------------------------------------------------------------------

_IN_ORDER_OF_TIME = """
insert into trading.symbols (symbol) select 'S' || n from generate_series(1, %(assets)s) n;
insert into asset_sync.ledger (symbol, feed, ticker) select symbol, 'bars', symbol
from trading.symbols;
set local session_replication_role = replica;  -- as the bars are right, no foreign key is checked
insert into market_data.ohlcv_5m (ticker_id, ts, open, high, low, close, volume, vwap, trades)
select s.id, date_bin('5 min', now(), 'epoch') - number * interval '5 min', 1.08345, 1.08366,
  1.08328, 1.08349, 321, 1.08345, 321
from generate_series(%(bars)s / %(assets)s, 1, -1) number, trading.symbols s
"""


def scale(few: str, many: str, months: str) -> Iterator[Line]:
    """Measure a run's queries in a small table, a large one, and a large one with partitions.

    The tables are filled in the order of time, as runs fill them, so that the bars of one asset do
    not lie together. The median of the looks at one asset after the other counts.
    """
    with ExitStack() as opened:
        small, large, monthly = (
            opened.enter_context(raw_session(Secret(url))) for url in (few, many, months)
        )
        opened.enter_context(statement_timeout(3600))
        for db, number in ((small, FEW_BARS), (large, MANY_BARS), (monthly, MANY_BARS)):
            with transaction(db) as cursor:
                cursor.execute("set local statement_timeout = 0")
                cursor.execute(_IN_ORDER_OF_TIME, {"assets": SCALE_ASSETS, "bars": number})
            if db is monthly:
                partitioning.partition(db)
            with db.cursor() as cursor:
                cursor.execute("vacuum (analyze) market_data.ohlcv_5m")
        parts = partitioning.survey(monthly).partitions
        for what, look in _LOOKS.items():
            works = [partial(_seconds_of_look, db, look, count()) for db in (small, large, monthly)]
            for work in works:
                work()
            least, whole, parted = interleaved(LOOKS, *works)
            is_of_a_run = look is not _read_month
            if is_of_a_run:
                yield Line(
                    f"{what}, of {MANY_BARS:,} bars",
                    f"{whole * 1000:.2f} ms",
                    f"{least * 1000:.2f} ms (of {FEW_BARS:,})",
                    f"{whole / least:.2f}",
                    f"<= {SCALE_TARGET}",
                    whole / least <= SCALE_TARGET,
                )
            yield Line(
                f"{what}, {parts} partitions",
                f"{parted * 1000:.2f} ms",
                f"{whole * 1000:.2f} ms (one table)",
                f"{parted / whole:.2f}",
                "",
                ok=True,
            )


class _RolledBack(Exception):  # noqa: N818  # not an error
    pass


def _seconds_of_look(
    db: Connection, look: Callable[[Cursor, str, int], object], numbers: Iterator[int]
) -> float:
    """Return how long a look at the next asset takes; what it writes is rolled back."""
    number = next(numbers)
    seconds = 0.0
    with suppress(_RolledBack), transaction(db) as cursor:
        symbol = f"S{number % SCALE_ASSETS + 1}"
        cursor.execute("select extract(epoch from date_bin('5 min', now(), 'epoch'))::bigint")
        [(now,)] = cursor.fetchall()
        seconds = seconds_of(lambda: look(cursor, symbol, now))
        raise _RolledBack
    return seconds


def _find_newest(cursor: Cursor, symbol: str, _: int) -> object:
    return market.newest_bars(cursor.connection, [symbol])


def _answer(now: int, close: float = 1.08349) -> list[Bar]:
    """Return the bars of an ordinary answer: eleven are stored, and the twelfth is new."""
    bar = Bar(0, 1.08345, 1.08366, 1.08328, close, 321.0, 1.08345, 321)
    return [bar._replace(start_ms=(now - ago * 300) * 1000) for ago in range(11, -1, -1)]


def _save_answer(cursor: Cursor, symbol: str, now: int) -> object:
    return market.save_bars(cursor, symbol, _answer(now))


def _save_revisions(cursor: Cursor, symbol: str, now: int) -> object:
    return market.save_bars(cursor, symbol, _answer(now, close=1.0835))


def _count_week(cursor: Cursor, symbol: str, now: int) -> object:
    end, day = datetime.fromtimestamp(now, UTC), timedelta(days=1)
    days = [Span(end - (ago + 1) * day, end - ago * day) for ago in range(7)]
    return ledger.count_bars(cursor, symbol, days)


def _read_month(cursor: Cursor, symbol: str, now: int) -> object:
    """Sum up a month of one asset: of last year, if the table is long enough."""
    days_ago = min(300, MANY_BARS // SCALE_ASSETS // 288 - 31)
    cursor.execute(
        """
        select count(*), max(high), sum(volume)
        from market_data.ohlcv_5m bar join trading.symbols s on s.id = bar.ticker_id
        where s.symbol = %(symbol)s and ts >= to_timestamp(%(now)s) - make_interval(days => %(ago)s)
          and ts < to_timestamp(%(now)s) - make_interval(days => %(ago)s - 30)
        """,
        {"symbol": symbol, "now": now, "ago": days_ago + 30},
    )
    return cursor.fetchall()


_LOOKS: dict[str, Callable[[Cursor, str, int], object]] = {
    "the newest bar": _find_newest,
    "an ordinary answer": _save_answer,
    "an answer with 11 revisions": _save_revisions,
    "a week counted": _count_week,
    "a month of one asset": _read_month,
}


# --- reading ------------------------------------------------------------------------------------

_SUM = """
select count(*), sum(open), sum(high), sum(low), sum(close), sum(volume), sum(vwap), sum(trades)
from market_data.ohlcv_5m bar join trading.symbols s on s.id = bar.ticker_id
where s.symbol = %(symbol)s and ts >= %(start)s
"""
# Each bar of the last 30 days came alone, and one of a hundred was revised a day later.
_CHANGES = """
update asset_sync.limiter set changes_from = now() - interval '40 days';
insert into asset_sync.arrivals (symbol, at, first_ts, last_ts)
select symbol, ts + interval '6 min', ts, ts
from market_data.ohlcv_5m join trading.symbols on id = ticker_id
where ts > now() - interval '30 days';
insert into asset_sync.revisions
select symbol, ts, ts + interval '1 day', open, high, low, close, volume, vwap, trades
from market_data.ohlcv_5m join trading.symbols on id = ticker_id
where ts > now() - interval '30 days' and extract(epoch from ts)::bigint / 300 % 100 = 0;
analyze asset_sync.arrivals; analyze asset_sync.revisions
"""


class _Nowhere(io.RawIOBase):
    def write(self, _: object) -> int:
        return 0


def read(address: str) -> Iterator[Line]:
    """Measure a year of hours beside a sum of its bars, and a read as of a moment beside a read."""
    assets = max(MANY_BARS // YEAR_BARS, 1)
    with raw_session(Secret(address)) as db, statement_timeout(3600):
        with transaction(db) as cursor:
            cursor.execute("set local statement_timeout = 0")
            cursor.execute(_IN_ORDER_OF_TIME, {"assets": assets, "bars": assets * YEAR_BARS})
            cursor.execute(_CHANGES)
        with db.cursor() as cursor:
            cursor.execute("vacuum (analyze) market_data.ohlcv_5m")
        own = [_crypto(f"S{number + 1}") for number in range(assets)]
        expected.keep(db, own, 720, lambda *_: None)
        [(now,)] = query(db, "select date_trunc('day', now())")
        start = now - timedelta(days=363)
        numbers = count()

        def copied(
            every: Every = Every.FIVE_MINUTES, as_of: datetime | None = None
        ) -> Callable[[], float]:
            def work() -> float:
                symbol = f"S{next(numbers) % assets + 1}"
                selection = Selection([symbol], start, every=every, as_of=as_of)
                copy = f"copy ({bars_query(db, selection)}) to stdout (format binary)"
                with db.cursor() as cursor:
                    return seconds_of(lambda: cursor.copy_expert(copy, _Nowhere()))

            return work

        def summed() -> float:
            values = {"symbol": f"S{next(numbers) % assets + 1}", "start": start}
            return seconds_of(lambda: query(db, _SUM, values))

        def hours() -> float:
            values = (f"S{next(numbers) % assets + 1}", start)
            return seconds_of(
                lambda: query(
                    db,
                    """
                    select count(*), sum(open), sum(close), sum(vwap), sum(expected)
                    from market_data.bars(%s, '1 hour', %s)
                    """,
                    values,
                )
            )

        works = (
            *(summed, hours, copied(Every.HOUR), copied(Every.NEW_YORK_DAY)),
            *(copied(), copied(as_of=now - timedelta(days=10))),
        )
        for work in works:
            work()
        plain, by_hour, hours_read, days_read, bars, as_of = interleaved(LENGTHS, *works)
    of = f"of {assets * YEAR_BARS:,} bars"
    for what, seconds, floor, beside, target in (
        (f"a year of hours, {of}", by_hour, plain, "their bars summed", HOURS_TARGET),
        ("… read by COPY", hours_read, plain, "their bars summed", None),
        ("a year of New York days, by COPY", days_read, plain, "their bars summed", None),
        (f"a year's bars as of 10 days ago, {of}", as_of, bars, "as they are", AS_OF_TARGET),
    ):
        yield Line(
            what,
            f"{seconds * 1000:.0f} ms",
            f"{floor * 1000:.0f} ms ({beside})",
            f"{seconds / floor:.2f}",
            f"<= {target}" if target else "",
            not target or seconds / floor <= target,
        )


# --- several calls in flight ---------------------------------------------------------------------


def paid_plan(address: str, directory: Path) -> Iterator[Line]:
    """Measure a run that fetches history, beside writing the same bars over one connection."""
    (directory / "assets.toml").write_text(
        f"[history]\ndays = {PAID_DAYS}\n"
        + "".join(
            f"""
[[secondary_assets]]
symbol = "A{number:03}"
polygon_ticker = "X:BTCUSD"
asset_type = "crypto"
update_frequency_seconds = 86400
"""
            for number in range(PAID_ASSETS)
        )
    )
    with subprocess.Popen(
        [sys.executable, "-c", STAND_IN, str(CALL_SECONDS)],
        env={"PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as stand_in:
        if stand_in.stdout is None:
            raise RuntimeError("the stand-in has no output")
        at = {
            "POLYGON_BASE_URL": stand_in.stdout.readline().strip(),
            "POLYGON_API_KEY": "demo-key",
            "POLYGON_TIER": "starter",
        }
        run: list[str] = []
        seconds = seconds_of(
            lambda: run.append(
                subprocess.run(
                    [*program(), "sync", "queue", "-q", "--json", "--max-runtime", "7000"],
                    env=environment(address, directory, **at),
                    cwd=directory,
                    capture_output=True,
                    text=True,
                    check=True,
                ).stdout
            )
        )
        most = int(stand_in.communicate()[0])
    report = json.loads(run[0])
    if len(report["updated"]) != PAID_ASSETS or report["reason_ended"] != "done":
        raise RuntimeError(f"the run did not do all: {report}")
    answers = round(report["api_calls_used"] / PAID_ASSETS)
    alone = seconds_alone(address, report["bars_written"], answers)
    yield Line(
        f"{report['bars_written']:,} bars in {report['api_calls_used']} calls",
        f"{seconds:.1f} s",
        f"{alone:.1f} s (writing them, one connection)",
        f"{seconds / alone:.2f}",
        f"<= {PAID_TARGET}",
        seconds / alone <= PAID_TARGET,
    )
    yield Line(
        "the most calls in a second",
        str(most),
        f"{report['api_calls_used'] / seconds:.0f} (mean)",
        "",
        f"<= {PAID_CALLS_A_SECOND}",
        most <= PAID_CALLS_A_SECOND,
    )


def seconds_alone(address: str, bars_written: int, answers: int) -> float:
    """Return how long it takes to write what a run has written, over one connection.

    As the run does, it writes the newest bars of every asset first, and in one transaction as many
    as an answer has.
    """
    with raw_session(Secret(address)) as db:
        symbols = [symbol for (symbol,) in query(db, "select symbol from trading.symbols")]
        stored = query(
            db,
            """
            select (extract(epoch from ts) * 1000)::bigint, open::float8, high::float8,
              low::float8, close::float8, volume::float8, vwap::float8, trades::bigint
            from market_data.ohlcv_5m join trading.symbols s on s.id = ticker_id
            where s.symbol = %s order by ts
            """,
            (symbols[0],),
        )
        bars = [Bar(*row) for row in stored]
        query(db, "truncate market_data.ohlcv_5m, asset_sync.revisions, asset_sync.arrivals")
        written = 0

        def write() -> None:
            nonlocal written
            for number in range(answers, 0, -1):
                part = bars[len(bars) * (number - 1) // answers : len(bars) * number // answers]
                for symbol in symbols:
                    with transaction(db) as cursor:
                        written += market.save_bars(cursor, symbol, part)

        seconds = seconds_of(write)
    if abs(written - bars_written) > len(symbols):  # a bar may have ended meanwhile
        raise RuntimeError(f"the run wrote {bars_written} bars, but {written} are stored")
    return seconds


# --- the page for people ------------------------------------------------------------------------


def page(address: str) -> Iterator[Line]:
    """Measure the page of 1,000 assets: its size, and drawing it beside the queries for it."""
    assets = tuple(
        replace(_crypto(f"ASSET{number}"), update_frequency_seconds=3600)
        for number in range(PAGE_ASSETS)
    )
    settings = replace(load(SHIPPED_FILE, {}), assets=assets)
    with raw_session(Secret(address)) as db:
        query(db, _PAGE, ([one.symbol for one in assets],))
        found = report_of(db, settings)
        queries, drawn = interleaved(
            PAGES,
            lambda: seconds_of(lambda: report_of(db, settings)),
            lambda: seconds_of(lambda: draw(found, 300)),
        )
    size = len(draw(found, 300).encode()) / 1000
    yield Line(
        f"the page of {PAGE_ASSETS:,} assets",
        f"{size:.0f} kB",
        "",
        "",
        f"<= {PAGE_TARGET_KB} kB",
        size <= PAGE_TARGET_KB,
    )
    yield Line(
        f"the page of {PAGE_ASSETS:,} assets, drawn",
        f"{drawn * 1000:.0f} ms",
        f"{queries * 1000:.0f} ms (reading its data)",
        f"{drawn / queries:.2f}",
        f"<= {DRAWN_TARGET:.0f}",
        drawn / queries <= DRAWN_TARGET,
    )


# No two assets are alike: of each another part of two years was asked, 1 week in 20 has gaps and
# 1 in 100 is empty. One asset in 20 fails, with an error of usual length.
_PAGE = """
create temporary table wanted as
  select symbol, number from unnest(%s::text[]) with ordinality as given (symbol, number);
insert into trading.symbols (symbol) select symbol from wanted;
insert into market_data.ohlcv_5m (ticker_id, ts, open, high, low, close)
  select id, date_bin('5 min', now(), 'epoch') - 5 * (id %% 9) * interval '1 min', 1, 1, 1, 1
  from trading.symbols;
insert into asset_sync.ledger (symbol, feed, ticker, tail_from, tail_until)
  select symbol, 'bars', 'X:' || symbol,
    now() - make_interval(days => 60 + (number * 37 %% 660)::int), now() from wanted;
insert into asset_sync.weeks (symbol, week, bars, empty_slots, asked_at)
  select symbol, week::date, case when dice < 0.01 then 0 else 1300 end,
    case when dice < 0.06 then 700 else 5 end, now()
  from wanted, generate_series(date_trunc('week', now()) - interval '104 weeks', now(), '7 days')
    as week, lateral (select random() as dice where number > 0 and week < now()) as thrown;
insert into asset_sync.queue (symbol, feed, ticker, asset_type, name, level, state, due_at, sort_at,
    last_success_at, strikes, last_error)
  select symbol, 'bars', 'X:' || symbol, 'crypto', symbol, 'medium',
    case when number %% 20 = 0 then 'waiting' else 'idle' end, now(), now(),
    now() - (number %% 50) * interval '1 min', case when number %% 20 = 0 then 5 else 0 end,
    case when number %% 20 = 0 then 'The API answered with 500 (Internal Server Error).' end
  from wanted;
insert into asset_sync.runs (command, host, pid, started_at, ended_at, reason_ended)
  select 'queue', 'here', 1, at, at, 'done'
  from generate_series(now() - interval '1 day', now(), '5 min') as at;
insert into asset_sync.calls (run_id, at, feed, symbols, outcome, duration_ms)
  select id, started_at, case number %% 3 when 0 then 'history' else 'bars' end,
    array['ASSET' || number], 'ok', 300
  from asset_sync.runs, generate_series(1, 25) as number;
analyze asset_sync.weeks, asset_sync.queue, asset_sync.ledger, asset_sync.calls
"""


# --- memory -------------------------------------------------------------------------------------

_SETTINGS = """
[[secondary_assets]]
symbol = "EURUSD"
polygon_ticker = "C:EURUSD"
asset_type = "forex"
"""


def memory(address: str, directory: Path) -> Line:
    """Measure the peak memory of a run that stores the longest possible answer."""
    (directory / "assets.toml").write_text(_SETTINGS)
    with long_answers() as base_url:
        run = subprocess.run(
            [sys.executable, "-c", PEAK_OF, *program(), "sync", "queue", "--json"],
            # Its answers never end, so neither would the history.
            env=environment(address, directory, POLYGON_BASE_URL=base_url, HISTORY_ENABLED="false"),
            cwd=directory,
            capture_output=True,
            text=True,
            check=True,
        )
        bare_python = subprocess.run(
            [sys.executable, "-c", PEAK_OF, sys.executable, "-c", FLOOR, address],
            capture_output=True,
            text=True,
            check=True,
        )
    written = json.loads(run.stdout)["bars_written"]
    if written != BIG_ANSWER // 5 - 1:  # the bar that still runs is not stored
        raise RuntimeError(f"the run wrote {written} bars: {run.stdout}")
    peak, floor = (int(done.stderr.splitlines()[-1]) / 1024 for done in (run, bare_python))
    return Line(
        "peak of a run sent 50,000 bars",
        f"{peak:.0f} MB",
        f"{floor:.0f} MB (Python, psycopg2)",
        f"{peak / floor:.1f}",
        f"< {MEMORY_TARGET_MB} MB",
        peak < MEMORY_TARGET_MB,
    )


@contextmanager
def long_answers() -> Iterator[str]:
    """Serve an API whose answers have as many bars as possible; give its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            last = int(self.path.split("?")[0].rsplit("/", 1)[1]) // 60_000 * 60_000
            # The bars are a minute apart, since so many would not fit into the range of one call
            # otherwise. Four of five do not start at a multiple of five minutes and are left out.
            starts = range(last - (BIG_ANSWER - 1) * 60_000, last + 1, 60_000)
            rows = (answer_bar(start) for start in starts)
            results = [
                {"v": v, "vw": vw, "o": o, "c": c, "h": h, "l": low, "t": t, "n": n}
                for t, o, h, low, c, v, vw, n in rows
            ]
            answer = {
                "ticker": "C:EURUSD",
                "status": "OK",
                "request_id": "bench",
                "adjusted": True,
                "queryCount": BIG_ANSWER,
                "resultsCount": BIG_ANSWER,
                "count": BIG_ANSWER,
                "results": results,
            }
            body = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # its name there
            """Log nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


# --- reading ------------------------------------------------------------------------------------

_READ_SQL = """
select ts, open, high, low, close, volume, vwap, trades
from market_data.ohlcv_5m bar join trading.symbols s on s.id = bar.ticker_id
where s.symbol = 'S1' order by ts
"""
# Each in a process of its own: what is imported, and how it reads.
_READERS = {
    "asset_sync.read": (
        "import asset_sync, numpy; asset_sync.read",
        "asset_sync.read('S1', database_url=url)",
    ),
    "pandas.read_sql": (
        """import pandas, psycopg2, sqlalchemy
engine = sqlalchemy.create_engine("postgresql+psycopg2://", creator=lambda: psycopg2.connect(url))
""",
        "pandas.read_sql(sql, engine)",
    ),
    "connectorx": (
        "import connectorx, pyarrow",
        "connectorx.read_sql(url_with_password, sql, return_type='arrow')",
    ),
    "adbc-driver-postgresql": (
        "import adbc_driver_postgresql.dbapi as adbc, pyarrow",
        "adbc.connect(url).cursor().execute(sql).fetch_arrow_table()",
    ),
}
_READ = """
import sys, time
url, url_with_password, sql = sys.argv[1:]
{imports}
start = time.perf_counter()
read = {read}
seconds = time.perf_counter() - start
print(len(read) / seconds)
"""
_READ_AND_WRITE = """
import sys, time
from pathlib import Path
import arro3.io, asset_sync, numpy
from asset_sync.database import raw_session
from asset_sync.reading.export import Format, whole_file, write
from asset_sync.secret import Secret
from asset_sync.store.bars_query import Selection
url, path = sys.argv[1:]

def written():
    with raw_session(Secret(url)) as db, whole_file(Path(path)) as file:
        write(db, Selection(["S1"]), Format.PARQUET, file, lambda symbol, bars: None)

times = []
for work in (lambda: asset_sync.read("S1", database_url=url), written):
    start = time.perf_counter()
    work()
    times.append(time.perf_counter() - start)
print(*times)
"""


def reading(address: str, directory: Path) -> Iterator[Line]:
    """Measure how fast bars are read and written to files, and in how much memory."""
    with raw_session(Secret(address)) as db, statement_timeout(3600):
        with transaction(db) as cursor:
            cursor.execute("set local statement_timeout = 0")
            number = READ_BARS * READ_ASSETS
            cursor.execute(_IN_ORDER_OF_TIME, {"assets": READ_ASSETS, "bars": number})
        query(db, "create role reader superuser login password 'made-up'")
        with db.cursor() as cursor:
            cursor.execute("vacuum (analyze) market_data.ohlcv_5m")
        host = quote(str(db.info.host), safe="")
        with_password = f"postgresql://reader:made-up@{host}/{db.info.dbname}"
    yield _import()
    yield from _readers(address, with_password, directory)
    yield _parquet(address, directory)
    yield _export_memory(address, directory)


def _import() -> Line:
    """Measure what the import costs a program that may never read anything."""

    def imported() -> float:
        command = [sys.executable, "-X", "importtime", "-c", "import asset_sync"]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
        *_, ours = done.stderr.splitlines()  # import time: own us | cumulative us | asset_sync
        return int(ours.split("|")[1]) / 1000

    [milliseconds] = interleaved(STARTS, imported)
    return Line(
        "import asset_sync",
        f"{milliseconds:.1f} ms",
        "",
        "",
        f"<= {IMPORT_TARGET_MS} ms",
        milliseconds <= IMPORT_TARGET_MS,
    )


def _readers(address: str, with_password: str, directory: Path) -> Iterator[Line]:
    def run(imports: str, read: str) -> tuple[float, float]:
        script = _READ.format(imports=imports, read=read)
        return _rate_and_peak(["-c", script, address, with_password, _READ_SQL], directory)

    results = [[run(*reader) for reader in _READERS.values()] for _ in range(READS)]
    medians = [
        (median(rate for rate, _ in runs), median(peak for _, peak in runs))
        for runs in zip(*results, strict=True)
    ]
    (rate, peak), *others = medians
    for (other_rate, other_peak), name, target in zip(
        others, list(_READERS)[1:], (READ_TARGET, 1, 1), strict=True
    ):
        yield Line(
            f"{READ_BARS:,} bars read",
            f"{rate:,.0f} rows/s, {peak:.0f} MB",
            f"{other_rate:,.0f} rows/s, {other_peak:.0f} MB ({name})",
            f"{rate / other_rate:.2f}",
            f">= {target}, less memory",
            rate / other_rate >= target and peak < other_peak,
        )
    yield Line(
        "peak of a program that reads them",
        f"{peak:.0f} MB",
        "",
        "",
        f"<= {READ_MEMORY_MB} MB",
        peak <= READ_MEMORY_MB,
    )


def _rate_and_peak(arguments: Sequence[str], directory: Path) -> tuple[float, float]:
    """Run a Python; return the number that it prints, and its peak memory in MB."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK_OF, sys.executable, *arguments],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY), "HOME": str(directory)},
        cwd=directory,
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout), int(done.stderr.splitlines()[-1]) / 1024


def _parquet(address: str, directory: Path) -> Line:
    path = str(directory / "bars.parquet")
    times = []
    for _ in range(READS):
        done = subprocess.run(
            [sys.executable, "-c", _READ_AND_WRITE, address, path],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            check=True,
        )
        times.append([float(seconds) for seconds in done.stdout.split()])
    read, written = (median(column) for column in zip(*times, strict=True))
    return Line(
        f"{READ_BARS:,} bars to Parquet",
        f"{written * 1000:.0f} ms",
        f"{read * 1000:.0f} ms (reading them)",
        f"{written / read:.2f}",
        f"<= {PARQUET_TARGET}",
        written / read <= PARQUET_TARGET,
    )


def _export_memory(address: str, directory: Path) -> Line:
    run = subprocess.run(
        [sys.executable, "-c", PEAK_OF, *program(), "export", "--all", "--output", "all.parquet"],
        env=environment(address, directory),
        cwd=directory,
        capture_output=True,
        text=True,
        check=True,
    )
    if f"{READ_BARS * READ_ASSETS:,} bars" not in run.stdout:
        raise RuntimeError(f"the export did not write all: {run.stdout}")
    peak = int(run.stderr.splitlines()[-1]) / 1024
    return Line(
        f"peak of exporting {READ_BARS * READ_ASSETS:,} bars",
        f"{peak:.0f} MB",
        "",
        "",
        f"< {EXPORT_MEMORY_MB} MB",
        peak < EXPORT_MEMORY_MB,
    )


if __name__ == "__main__":
    sys.exit(main())
