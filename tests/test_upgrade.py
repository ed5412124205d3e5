"""An upgrade of a database of the version before keeps its calls, failures and queue."""

from collections.abc import Iterator

import psycopg2
import pytest

from asset_sync import database
from asset_sync.database import Connection, query, transaction
from asset_sync.secret import Secret


@pytest.fixture
def version_2(empty_url: str) -> Iterator[Connection]:
    """A database with version 2 of the schema."""
    connection = psycopg2.connect(empty_url)
    connection.autocommit = True
    with transaction(connection) as cursor:
        steps = database.migrations()[:2]
        for step in steps:
            cursor.execute(step.sql)
        for step in steps:
            cursor.execute(
                "insert into asset_sync.migrations (version, name) values (%s, %s)",
                (step.version, step.name),
            )
    connection.close()
    with database.raw_session(Secret(empty_url)) as db:
        yield db


def test_an_upgrade_keeps_calls_in_flight_and_calls_made(version_2: Connection) -> None:
    query(
        version_2,
        """
        insert into asset_sync.slots (ended_at, token) values
          ('-infinity', null), (clock_timestamp() - interval '10 s', null),
          (clock_timestamp() + interval '20 s', gen_random_uuid())
        """,
    )
    database.migrate(version_2)
    rows = query(
        version_2,
        """
        select stamped_at <= clock_timestamp(), round(open_seconds), token is not null,
          stamped_at > clock_timestamp() - interval '15 s'
        from asset_sync.slots order by slot
        """,
    )
    assert rows == [
        (True, 0, False, False),
        (True, 0, False, True),
        (True, 20, True, True),
    ]


def test_an_upgrade_keeps_failures_and_a_dead_critical_asset_is_tried_again(
    version_2: Connection,
) -> None:
    query(
        version_2,
        """
        insert into asset_sync.queue
          (symbol, feed, ticker, asset_type, name, level, state, attempts, last_attempt_at)
        values
          ('GOLD', 'bars', 'C:GOLD', 'forex', 'Gold', 'critical', 'dead', 3, now()),
          ('TYPO', 'bars', 'C:TYPO', 'forex', 'Typo', 'low', 'dead', 3, now()),
          ('WELL', 'bars', 'C:WELL', 'forex', 'Well', 'medium', 'idle', 0, now())
        """,
    )
    database.migrate(version_2)
    rows = query(
        version_2,
        """
        select symbol, state, strikes, failed_tickers, failed_at = last_attempt_at
        from asset_sync.queue order by symbol
        """,
    )
    assert rows == [
        ("GOLD", "waiting", 1, ["C:GOLD"], True),
        ("TYPO", "dead", 1, ["C:TYPO"], True),
        ("WELL", "idle", 0, [], False),
    ]


def test_an_upgrade_keeps_what_the_key_was_refused(version_2: Connection) -> None:
    query(
        version_2,
        """
        insert into asset_sync.denials (key_fingerprint, plan, capability)
        values ('abc', 'free', 'today')
        """,
    )
    database.migrate(version_2)
    assert query(version_2, "select capability from asset_sync.entitlements") == [("today",)]


def test_an_upgrade_removes_infinite_times_and_nan(
    version_2: Connection,
) -> None:
    query(
        version_2,
        """
        insert into asset_sync.queue
          (symbol, feed, ticker, asset_type, name, level, due_at, last_success_at)
        values
          ('EURUSD', 'bars', 'C:EURUSD', 'forex', '', 'medium', 'infinity', now()),
          ('GBPUSD', 'bars', 'C:GBPUSD', 'forex', '', 'medium', now(), '4713-01-01 BC'),
          ('USDJPY', 'bars', 'C:USDJPY', 'forex', '', 'medium', now(), now());
        insert into asset_sync.runs (command, host, pid, started_at, waited_seconds)
        values ('queue', '', 1, 'infinity', 0), ('queue', '', 1, now(), 'NaN'),
          ('queue', '', 1, now(), 1);
        insert into asset_sync.slots (ended_at) values ('infinity'), (now());
        update asset_sync.limiter set blocked_until = 'infinity'
        """,
    )
    database.migrate(version_2)
    assert query(version_2, "select symbol from asset_sync.queue") == [("USDJPY",)]
    assert query(version_2, "select count(*) from asset_sync.runs") == [(1,)]
    assert query(version_2, "select stamped_at <= clock_timestamp() from asset_sync.slots") == [
        (True,),
        (True,),
    ]
    assert query(
        version_2, "select blocked_until from asset_sync.limiter where blocked_until < now()"
    )
