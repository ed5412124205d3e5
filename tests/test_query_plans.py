"""With 100,000 items in the queue, the frequent statements of a run read only a few of them.

The plans are those of the SQL that the program sends.
"""

import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, ClassVar

import conftest
import psycopg2
import psycopg2.extensions
import pytest
from conftest import asset, in_line

from asset_sync import queue
from asset_sync.budget import slots
from asset_sync.budget.slots import Rate, Spare
from asset_sync.database import Connection, query, raw_session
from asset_sync.model import Feed, Lane
from asset_sync.queue import Wanted
from asset_sync.queue.claiming import _HEAD_LENGTH
from asset_sync.secret import Secret
from asset_sync.settings import QueueSettings
from asset_sync.spans import Span
from asset_sync.store import ledger, partitioning
from asset_sync.store.bars_query import Every, Selection, bars_query
from asset_sync.store.partitioning import Layout

SETTINGS = QueueSettings()
SEVEN = [Wanted(asset(f"NEW{number}"), Feed.BARS) for number in range(7)]


class RecordingCursor(psycopg2.extensions.cursor):
    """A cursor that records the SQL it sends, including the values."""

    sent: ClassVar[list[str]] = []

    def execute(self, query: object, vars: object = None) -> None:  # noqa: A002  # psycopg2's name
        super().execute(query, vars)  # type: ignore[arg-type]
        self.sent.append((self.query or b"").decode())


class Plan:
    """The plan with which PostgreSQL ran one statement."""

    def __init__(self, root: dict[str, Any]) -> None:
        self.nodes = list(_walk(root))

    @property
    def blocks(self) -> int:
        """The number of blocks read, in memory or on disk: the same cost on every machine."""
        root = self.nodes[0]
        return int(root["Shared Hit Blocks"] + root["Shared Read Blocks"])

    @property
    def kinds(self) -> set[str]:
        return {node["Node Type"] for node in self.nodes}

    @property
    def indexes(self) -> set[str]:
        return {node["Index Name"] for node in self.nodes if "Index Name" in node}

    @property
    def most_rows_read(self) -> float:
        """The largest number of rows of the queue that one node read."""
        return max(self._rows_read("queue"))

    @property
    def bars_read(self) -> float:
        """How many bars were read."""
        return sum(self._rows_read("ohlcv_5m"))

    def _rows_read(self, table: str) -> Iterator[float]:
        for node in self.nodes:
            if node.get("Relation Name", "").startswith(table) and "Scan" in node["Node Type"]:
                removed = node.get("Rows Removed by Filter", 0)
                removed += node.get("Rows Removed by Index Recheck", 0)
                yield (node["Actual Rows"] + removed) * node["Actual Loops"]


def _walk(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", ()):
        yield from _walk(child)


def fill(db: Connection, *, waiting_percent: int, items: int = 100_000) -> None:
    """Put items into the queue, a given percentage of them waiting and the others idle."""
    with db.cursor() as cursor:
        cursor.execute(
            """
            insert into asset_sync.queue
              (symbol, feed, ticker, asset_type, name, level, state, sort_at, due_at)
            select 'S' || n, case n %% 3 when 0 then 'snapshot' else 'bars' end, 'C:S' || n,
              'forex', 'S' || n, (array['critical', 'high', 'medium', 'low'])[1 + n %% 4],
              case when n %% 100 < %s then 'waiting' else 'idle' end,
              now() - make_interval(secs => n), now() - make_interval(secs => n)
            from generate_series(1, %s) n
            """,
            (waiting_percent, items),
        )
    vacuum(db)  # as autovacuum does after such a load


def vacuum(db: Connection) -> None:
    """Mark every page as visible to all, which needs that no older transaction is open."""
    visible = False
    with db.cursor() as cursor:
        while not visible:
            # by default vacuum skips the last few pages, and they never become visible
            cursor.execute("vacuum (analyze, index_cleanup on) asset_sync.queue")
            cursor.execute(
                "select relallvisible = relpages from pg_class"
                " where oid = 'asset_sync.queue'::regclass"
            )
            [(visible,)] = cursor.fetchall()


@pytest.fixture(scope="module")
def crowded(maintenance_url: str, template: str) -> Iterator[Connection]:
    """A queue in which 100,000 items wait."""
    for url in conftest._fresh_database(maintenance_url, template):
        db = psycopg2.connect(url, cursor_factory=RecordingCursor)
        db.autocommit = True
        fill(db, waiting_percent=100)
        yield db
        db.close()


def plans(db: Connection, act: Callable[[], object]) -> list[Plan]:
    """Do this, run each statement that it sent again with EXPLAIN, and roll that back."""
    RecordingCursor.sent.clear()
    act()
    [sent] = RecordingCursor.sent
    parts = [one.strip() for one in re.sub(r"--.*", "", sent).split(";")]
    statements = [one for one in parts if not one.startswith("set ")]
    with db.cursor() as cursor:
        cursor.execute("begin")
        found = [explained(cursor, statement) for statement in statements]
        cursor.execute("rollback")
    return found


def explained(cursor: psycopg2.extensions.cursor, statement: str) -> Plan:
    cursor.execute(f"explain (analyze, buffers, format json) {statement}")
    [(plan,)] = cursor.fetchall()
    parsed = plan if isinstance(plan, list) else json.loads(plan)
    return Plan(parsed[0]["Plan"])


def line_of(db: Connection, *feeds: Feed) -> list[Wanted]:
    """Return the head of the line for settings that name every item."""
    line = [one for one in in_line(db) if one.feed in feeds]
    return line[: queue.LINE_LENGTH]


@pytest.mark.parametrize(
    "feeds", [[Feed.BARS], list(Feed.known.values())], ids=["bars", "both feeds"]
)
def test_a_claim_reads_the_items_of_its_own_line_by_their_keys(
    crowded: Connection, feeds: list[Feed]
) -> None:
    line = line_of(crowded, *feeds)
    [plan] = plans(crowded, lambda: queue.claim(crowded, line, lease_seconds=60, most=250))
    assert plan.indexes == {"queue_pkey"}
    assert plan.kinds.isdisjoint({"Seq Scan", "Hash Join"})
    assert plan.most_rows_read <= 2 * queue.LINE_LENGTH


def test_a_claim_among_100_000_reads_no_more_than_a_few_blocks_for_each_key(
    crowded: Connection,
) -> None:
    line = line_of(crowded, Feed.BARS)
    queue.claim(crowded, line, lease_seconds=60, most=1)  # the first claim fills the caches
    [plan] = plans(crowded, lambda: queue.claim(crowded, line, lease_seconds=60, most=1))
    assert plan.blocks <= 10 * _HEAD_LENGTH


def test_the_check_whether_an_item_waits_reads_only_the_head_of_the_line(
    crowded: Connection,
) -> None:
    line = line_of(crowded, *Feed.known.values())
    [plan] = plans(crowded, lambda: queue.can_claim(crowded, line))
    assert "Seq Scan" not in plan.kinds
    assert plan.most_rows_read <= queue.LINE_LENGTH


def test_reclaim_reads_only_the_leases(crowded: Connection) -> None:
    [(leased,)] = query(crowded, "select count(*) from asset_sync.queue where state = 'leased'")
    [plan] = plans(crowded, lambda: queue.reclaim(crowded, SETTINGS))
    assert "queue_leases_idx" in plan.indexes
    assert plan.most_rows_read <= leased


def test_enqueuing_seven_assets_reads_only_their_rows(crowded: Connection) -> None:
    insert, update = plans(crowded, lambda: queue.enqueue(crowded, SEVEN, SETTINGS))
    assert insert.indexes == {"queue_pkey"}
    assert insert.most_rows_read <= len(SEVEN)
    assert update.indexes == {"queue_pkey"}
    assert update.most_rows_read <= len(SEVEN)


def test_viewing_seven_assets_reads_only_their_rows(crowded: Connection) -> None:
    [plan] = plans(crowded, lambda: queue.due_within(crowded, SEVEN, 60, cycle_seconds=300))
    assert plan.indexes == {"queue_pkey"}
    symbols = [one.asset.symbol for one in SEVEN]
    for look in (queue.last_success, queue.levels, queue.failing):
        [plan] = plans(crowded, partial(look, crowded, symbols))
        assert plan.indexes == {"queue_pkey"}


def test_dead_items_are_found_by_their_index(crowded: Connection) -> None:
    [plan] = plans(crowded, lambda: queue.dead(crowded, ["S1", "S2"], 5))
    assert plan.indexes == {"queue_dead_idx"}


# --- history ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def idle_crowd(maintenance_url: str, template: str) -> Iterator[Connection]:
    """A queue in which 100,000 items are idle, 56 of them due in each second of half an hour."""
    for url in conftest._fresh_database(maintenance_url, template):
        db = psycopg2.connect(url, cursor_factory=RecordingCursor)
        db.autocommit = True
        fill(db, waiting_percent=0)
        query(
            db,
            """
            update asset_sync.queue
            set next_at = now() + make_interval(secs => random() * 1800)
            """,
        )
        vacuum(db)
        slots.prepare(db, RATE)
        yield db
        db.close()


RATE = Rate(calls=5, period_seconds=60, call_timeout_seconds=30)


# Where a call serves many, the planner may read all that falls due within a window.
@pytest.mark.parametrize(
    ("bulks", "rows"), [({}, RATE.calls + 1), ({Feed.SNAPSHOT: 250}, 5000)], ids=["bars", "both"]
)
def test_a_slot_for_history_reads_what_falls_due_first_by_its_indexes(
    idle_crowd: Connection, bulks: dict[str, int], rows: int
) -> None:
    spare = Spare(0.3, bulks)
    plan = plans(idle_crowd, lambda: slots.take(idle_crowd, Lane.QUEUE, RATE, spare=spare))[-1]
    assert {"queue_next_idx", "queue_retry_idx"} <= plan.indexes
    assert plan.most_rows_read <= rows


def test_a_slot_for_anything_else_reads_nothing_of_the_queue(idle_crowd: Connection) -> None:
    plan = plans(idle_crowd, lambda: slots.take(idle_crowd, Lane.QUEUE, RATE))[-1]
    assert not any(node.get("Relation Name") == "queue" for node in plan.nodes)


# --- larger bars --------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[Layout.TABLE, Layout.MONTHS], ids=["one table", "by month"])
def many_bars(
    request: pytest.FixtureRequest, maintenance_url: str, template: str
) -> Iterator[Connection]:
    """30 days of five-minute bars of twenty assets, as runs write them: in the order of time."""
    for url in conftest._fresh_database(maintenance_url, template):
        with raw_session(Secret(url)) as db:
            query(
                db,
                """
                insert into trading.symbols (symbol) select 'S' || n from generate_series(1, 20) n;
                insert into market_data.ohlcv_5m (ticker_id, ts, open, high, low, close)
                select id, ts, 1, 1, 1, 1 from generate_series(
                  timestamptz '2026-03-01 00:00Z', '2026-03-30 23:55Z', '5 min') ts, trading.symbols
                """,
            )
            if request.param is Layout.MONTHS:
                partitioning.partition(db)
            with db.cursor() as cursor:
                cursor.execute("vacuum (analyze) market_data.ohlcv_5m")
            yield db


def plan_of(db: Connection, statement: str) -> Plan:
    with db.cursor() as cursor:
        return explained(cursor, statement)


MONTH = 30 * 288  # the bars of an asset


@pytest.mark.parametrize(
    "arguments",
    [
        "'S7', '1 hour', '2026-03-10 00:00Z', '2026-03-11 00:00Z'",
        "'S7', '1 day', until_ts => '2026-03-02 00:00Z'",
        "'S7', '15 min', timestamptz '2026-03-30 00:00Z' + interval '1 s'",
        "'S7', '4 hours', from_ts => now() - (now() - '2026-03-30 00:00Z')",
    ],
)
def test_the_function_reads_only_the_bars_that_it_is_asked_for(
    many_bars: Connection, arguments: str
) -> None:
    plan = plan_of(many_bars, f"select * from market_data.bars({arguments})")
    assert "Function Scan" not in plan.kinds, "it is inlined"
    assert plan.bars_read <= 288


def test_the_function_joined_to_assets_reads_only_theirs(many_bars: Connection) -> None:
    plan = plan_of(
        many_bars,
        """
        select * from trading.symbols s,
          market_data.bars(s.symbol, '1 hour', '2026-03-10 00:00Z', '2026-03-11 00:00Z')
        where s.symbol in ('S3', 'S5')
        """,
    )
    assert "Function Scan" not in plan.kinds
    assert plan.bars_read <= 2 * 288


@pytest.mark.parametrize("view", ["15m", "1h", "4h", "1d", "1d_ny"])
def test_a_view_of_one_asset_reads_only_its_bars(many_bars: Connection, view: str) -> None:
    plan = plan_of(many_bars, f"select * from market_data.ohlcv_{view} where symbol = 'S7'")
    assert plan.bars_read <= MONTH


@pytest.mark.parametrize("every", Every)
def test_a_query_reads_only_the_bars_of_its_range(many_bars: Connection, every: Every) -> None:
    start, until = datetime(2026, 3, 10, 22, tzinfo=UTC), datetime(2026, 3, 11, 22, tzinfo=UTC)
    selection = Selection(["S7", "S9"], start, until, every)
    plan = plan_of(many_bars, bars_query(many_bars, selection))
    assert plan.bars_read <= 2 * 288


def test_counting_the_days_of_an_answer_reads_each_of_their_bars_once(
    many_bars: Connection,
) -> None:
    first, day = datetime(2026, 3, 2, tzinfo=UTC), timedelta(days=1)
    days = [Span(first + number * day, first + (number + 1) * day) for number in range(20)]
    counts: dict[Span, int] = {}

    def count() -> None:
        with many_bars.cursor(cursor_factory=RecordingCursor) as cursor:
            counts.update(ledger.count_bars(cursor, "S7", days))

    found = plans(many_bars, count)

    assert counts == dict.fromkeys(days, 288)
    assert sum(plan.bars_read for plan in found) == 20 * 288
