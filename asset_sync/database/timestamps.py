"""Timestamps outside Python's range, read as the nearest one that Python can represent.

PostgreSQL's timestamps reach from 4713 BC to the year 294276, and to infinity both ways; Python's
`datetime` reaches from the year 1 to 9999. For any other time psycopg2 raises an error, so a single
such row, written by another program, would end a command.
"""

from datetime import UTC, datetime

from psycopg2.extensions import PYDATETIMETZ, connection, cursor, new_type, register_type

_OID = 1184  # of `timestamptz`, in every PostgreSQL
# A year inside Python's own limits, so that adding, or converting to a time zone, does not fail.
EARLIEST = datetime(2, 1, 1, tzinfo=UTC)
LATEST = datetime(9998, 12, 31, tzinfo=UTC)


def clamp_timestamps(db: connection) -> None:
    """Have the connection return a datetime for every `timestamptz`."""
    register_type(_CLAMPED, db)


def _read(value: str | bytes | None, rows: cursor) -> datetime | None:
    if value is None:
        return None
    text = value.decode() if isinstance(value, bytes) else value
    if text == "-infinity" or text.endswith("BC"):
        return EARLIEST
    if text == "infinity" or text.index("-") > len("9999"):
        return LATEST
    at: datetime = PYDATETIMETZ(text, rows)
    return min(max(at, EARLIEST), LATEST)


_CLAMPED = new_type((_OID,), "timestamptz", _read)
