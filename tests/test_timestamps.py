"""No command ends because of a timestamp that Python or PostgreSQL cannot compute with."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import psycopg2
import pytest

from asset_sync.database import Connection, query
from asset_sync.database.timestamps import EARLIEST, LATEST


@pytest.mark.parametrize("zone", ["UTC", "Pacific/Kiritimati", "America/St_Johns"])
@pytest.mark.parametrize(
    ("stored", "read"),
    [
        ("-infinity", EARLIEST),
        ("4713-01-01 00:00:00+00 BC", EARLIEST),
        ("0001-01-01 00:00:00+00 BC", EARLIEST),
        ("0001-01-01 00:00:00+00", EARLIEST),
        ("0002-01-01 00:00:00+00", EARLIEST),
        ("1970-01-01 00:00:00+00", datetime(1970, 1, 1, tzinfo=UTC)),
        ("2026-11-21 10:20:30.123456+00", datetime(2026, 11, 21, 10, 20, 30, 123456, UTC)),
        ("9999-12-31 23:59:59.999999+00", LATEST),
        ("10000-01-01 00:00:00+00", LATEST),
        ("294276-12-31 23:59:59.999999+00", LATEST),
        ("infinity", LATEST),
        (None, None),
    ],
)
def test_each_timestamp_is_read_as_the_nearest_that_python_knows(
    db: Connection, zone: str, stored: str | None, read: datetime | None
) -> None:
    query(db, "select set_config('timezone', %s, false)", (zone,))
    assert query(db, "select %s::timestamptz", (stored,)) == [(read,)]


_OF_OURS = {
    "queue": ("added_at", "due_at", "sort_at", "not_before", "last_success_at", "last_attempt_at"),
    "runs": ("started_at", "ended_at"),
    "calls": ("at",),
}
_OF_OURS_FROM_LONG_AGO = {  # -infinity means never
    "queue": ("failed_at",),
    "slots": ("stamped_at", "previous_stamped_at"),
    "limiter": ("blocked_until", "reserved_at", "seen_at", "answered_at", "called_at"),
}
_NUMBERS = {"slots": ("open_seconds", "previous_open_seconds"), "runs": ("waited_seconds",)}


def _each(tables: Mapping[str, Sequence[str]], *values: str) -> list[tuple[str, str, str]]:
    return [
        (table, column, value)
        for table, columns in tables.items()
        for column in columns
        for value in values
    ]


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        *_each(_OF_OURS, "4713-01-01 BC", "-infinity", "10000-01-01", "infinity"),
        *_each(_OF_OURS_FROM_LONG_AGO, "10000-01-01", "infinity"),
        *_each(_NUMBERS, "NaN", "infinity", "-1"),
    ],
)
def test_our_own_tables_refuse_infinite_times_and_nan(
    db: Connection, table: str, column: str, value: str
) -> None:
    query(
        db,
        """
        insert into asset_sync.queue (symbol, feed, ticker, asset_type, name, level)
        values ('EURUSD', 'bars', 'C:EURUSD', 'forex', '', 'medium');
        insert into asset_sync.runs (command, host, pid) values ('queue', '', 1);
        insert into asset_sync.calls (feed, symbols, outcome, duration_ms)
        values ('bars', '{EURUSD}', 'ok', 1);
        insert into asset_sync.slots default values
        """,
    )
    with pytest.raises(psycopg2.errors.CheckViolation):
        query(db, f"update asset_sync.{table} set {column} = %s", (value,))
