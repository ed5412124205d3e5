"""What the provider changed, and when each bar came."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from test_store import EURUSD, NOON_MS, bar, layout, save_bars, start_of, stored_bars, theirs

from asset_sync.database import Connection, query, transaction
from asset_sync.provider.answers import Bar
from asset_sync.store import market

__all__ = ["layout", "theirs"]


def revisions(db: Connection) -> list[Bar]:
    """Return the old values, the oldest revision first."""
    rows = query(
        db,
        """
        select (extract(epoch from ts) * 1000)::bigint, open, high, low, close, volume, vwap, trades
        from asset_sync.revisions where symbol = 'EURUSD' order by at, ts
        """,
    )
    return [Bar(*row) for row in rows]


def arrivals(db: Connection) -> list[tuple[int, int]]:
    """Return the first and the last bar of each arrival, in bars after noon."""
    return [
        (number_of(first), number_of(last))
        for first, last in query(
            db,
            """
            select extract(epoch from first_ts)::bigint, extract(epoch from last_ts)::bigint
            from asset_sync.arrivals where symbol = 'EURUSD' order by at, first_ts
            """,
        )
    ]


def number_of(second: int) -> int:
    return (second - NOON_MS // 1000) // 300


def bars(*numbers: int) -> list[Bar]:
    return [bar(number) for number in numbers]


def test_bars_into_an_empty_range_are_one_arrival(db: Connection) -> None:
    save_bars(db, bars(0, 1, 5, 3))

    assert arrivals(db) == [(0, 5)]
    assert revisions(db) == []


def test_each_unbroken_run_of_new_bars_is_an_arrival(db: Connection) -> None:
    save_bars(db, bars(2, 6))

    assert save_bars(db, bars(0, 1, 2, 3, 4, 6, 8)) == 5

    assert arrivals(db) == [(2, 6), (0, 1), (3, 4), (8, 8)]


def test_a_stored_bar_that_the_answer_lacks_divides_an_arrival(db: Connection) -> None:
    save_bars(db, bars(2))

    save_bars(db, bars(0, 1, 3, 4))

    assert arrivals(db) == [(2, 2), (0, 1), (3, 4)]


def test_the_old_values_of_a_changed_bar_are_kept_each_time(db: Connection) -> None:
    save_bars(db, [bar(0), bar(1, close=1.1), bar(2)])
    save_bars(db, [bar(0), bar(1, close=1.2), bar(2)])

    assert save_bars(db, [bar(0), bar(1, close=1.3), bar(2)]) == 1

    assert revisions(db) == [bar(1, close=1.1), bar(1, close=1.2)]
    assert arrivals(db) == [(0, 2)]
    assert stored_bars(db) == [bar(0), bar(1, close=1.3), bar(2)]


def test_equal_bars_leave_no_trace(db: Connection) -> None:
    sent = [bar(0), bar(1, vwap=None, trades=None)]
    save_bars(db, sent)

    assert save_bars(db, sent) == 0

    assert revisions(db) == []
    assert arrivals(db) == [(0, 1)]


def test_a_null_that_became_a_number_and_a_number_that_became_null_are_kept(
    db: Connection,
) -> None:
    before = [bar(0, vwap=None, trades=None), bar(1)]
    save_bars(db, before)

    assert save_bars(db, [bar(0), bar(1, vwap=None, trades=None)]) == 2

    assert revisions(db) == before


def test_whoever_keeps_nothing_writes_the_bars_alone(db: Connection) -> None:
    save_bars(db, bars(0))
    query(db, "delete from asset_sync.arrivals")

    with transaction(db) as cursor:
        sent = [bar(0, close=1.1), bar(1)]
        assert market.save_bars(cursor, "EURUSD", sent, kept=False) == 2
        assert market.save_bars(cursor, "EURUSD", bars(9), kept=False) == 1

    assert (arrivals(db), revisions(db)) == ([], [])
    assert stored_bars(db) == [*sent, bar(9)]


def test_another_assets_bars_divide_nothing(db: Connection) -> None:
    save_bars(db, bars(0))
    with transaction(db) as cursor:
        market.save_symbols(cursor, [EURUSD._replace(symbol="GBPUSD")])
        market.save_bars(cursor, "GBPUSD", bars(2))

    save_bars(db, bars(0, 1, 3))

    assert arrivals(db) == [(0, 0), (1, 3)]


def test_a_platforms_own_types_are_kept_as_numbers(theirs: Connection) -> None:
    long = bar(1, close=1.08751234567)  # more digits than numeric(18, 8) holds
    save_bars(theirs, [bar(0, vwap=None, trades=None), long])

    assert save_bars(theirs, [bar(0), long, bar(2)]) == 2

    assert revisions(theirs) == [bar(0, vwap=None, trades=None)]
    assert arrivals(theirs) == [(0, 1), (2, 2)]
    assert save_bars(theirs, [bar(1, close=1.5)]) == 1
    assert revisions(theirs)[-1] == long._replace(close=1.08751235)


@pytest.mark.parametrize("stored_before", [[], [0]])
def test_writers_of_one_asset_wait_for_each_other_and_lose_no_revision(
    db: Connection, connect: Callable[[], Connection], stored_before: list[int]
) -> None:
    with transaction(db) as cursor:
        market.save_symbols(cursor, [EURUSD])
    save_bars(db, bars(*stored_before))
    query(db, "insert into asset_sync.ledger (symbol, feed, ticker) values ('EURUSD', 'bars', 'C')")
    other = connect()

    def write() -> None:
        with transaction(other) as cursor:
            market.save_bars(cursor, "EURUSD", [bar(0, close=1.2), bar(1)])

    with ThreadPoolExecutor() as threads:
        with transaction(db) as cursor:
            market.save_bars(cursor, "EURUSD", [bar(0, close=1.1)])
            waiting = threads.submit(write)
            until_blocked(cursor.connection, other)
        waiting.result()

    assert revisions(db) == [*bars(*stored_before), bar(0, close=1.1)]
    assert arrivals(db) == [(0, 0), (1, 1)]
    assert stored_bars(db) == [bar(0, close=1.2), bar(1)]


def test_a_bar_that_another_program_inserts_meanwhile_is_no_error(
    db: Connection, connect: Callable[[], Connection]
) -> None:
    with transaction(db) as cursor:
        market.save_symbols(cursor, [EURUSD])
    other = connect()

    with ThreadPoolExecutor() as threads:
        with transaction(db) as cursor:
            cursor.execute(
                """
                insert into market_data.ohlcv_5m (ticker_id, ts, open, high, low, close)
                select id, %s, 1, 1, 1, 1 from trading.symbols
                """,
                (start_of(bar(1)),),
            )
            writing = threads.submit(save_bars, other, bars(0, 1, 2))
            until_blocked(cursor.connection, other)
        assert writing.result() == 3

    assert stored_bars(db) == bars(0, 1, 2)
    assert arrivals(db) == [(0, 0), (2, 2)]
    assert revisions(db) == [Bar(bar(1).start_ms, 1, 1, 1, 1, None, None, None)]  # type: ignore[arg-type]


def until_blocked(db: Connection, other: Connection) -> None:
    """Return when the other connection waits for a lock of this one."""
    pids = (db.info.backend_pid, other.info.backend_pid)
    with db.cursor() as cursor:
        for _ in range(100_000):
            cursor.execute("select %s = any(pg_blocking_pids(%s))", pids)
            if cursor.fetchall() == [(True,)]:
                return
    raise TimeoutError
