"""A timestamp that Python does not know ends no command."""

import json
from datetime import UTC, datetime
from pathlib import Path

import commandline
import pytest

from asset_sync.database import Connection, query
from asset_sync.timestamps import EARLIEST, LATEST

FILE = """
[[secondary_assets]]
symbol = "EURUSD"
polygon_ticker = "C:EURUSD"
asset_type = "forex"
"""


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
def test_each_is_read_as_the_nearest_that_python_knows(
    db: Connection, zone: str, stored: str | None, read: datetime | None
) -> None:
    query(db, "select set_config('timezone', %s, false)", (zone,))
    assert query(db, "select %s::timestamptz", (stored,)) == [(read,)]


@pytest.mark.parametrize("at", ["4713-01-01 BC", "10000-01-01", "294276-12-31"])
def test_the_commands_that_show_times_show_it(
    url: str, db: Connection, tmp_path: Path, at: str
) -> None:
    (tmp_path / "assets.toml").write_text(FILE)
    query(
        db,
        """
        insert into asset_sync.queue (symbol, feed, ticker, asset_type, name, level, due_at,
          last_success_at)
        values ('EURUSD', 'bars', 'C:EURUSD', 'forex', '', 'medium', %(at)s, %(at)s);
        insert into asset_sync.runs (command, host, pid, started_at, ended_at)
        values ('queue', '', 1, %(at)s, %(at)s)
        """,
        {"at": at},
    )
    environ = {"HOME": str(tmp_path), "DATABASE_URL": url, "POLYGON_API_KEY": "key"}
    for command in ("queue list", "queue status", "assets list", "runs", "health", "metrics"):
        for how in ([], ["--json"] if command != "metrics" else []):
            told = commandline.asset_sync(
                *command.split(), *how, environ=environ, directory=tmp_path
            )
            assert told.code in {0, 1}, (command, told)
            assert not how or json.loads(told.out) is not None
