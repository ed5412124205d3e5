"""Another clock for a database: its search path has our functions before PostgreSQL's `now()`.

The suite must pass on any day, but a market is closed on Saturdays,
New York changes its clocks twice a year, and a year may have a 29 February. So what depends on the
day runs on each of `DAYS`. Time then passes at its real speed.
"""

import time
from collections.abc import Mapping
from datetime import datetime

import psycopg2

SEARCH_PATH = "world,pg_catalog"
WEDNESDAY = "2026-11-18 12:00:00+00:00"
DAYS: Mapping[str, str] = {
    "a weekday": WEDNESDAY,
    "a Saturday": "2026-11-21 12:00:00+00:00",
    "the first minutes after a Sunday's opening, 17:00 in New York": "2026-11-22 22:02:00+00:00",
    "the hour that New York skips in March": "2027-03-14 07:10:00+00:00",
    "the hour that New York has twice in November": "2026-11-01 06:10:00+00:00",
    "the last minute of a year": "2026-12-31 23:59:30+00:00",
    "the first minutes of a year": "2027-01-01 00:03:00+00:00",
    "a 29 February": "2028-02-29 12:00:00+00:00",
    "just after a 29 February": "2028-03-01 00:03:00+00:00",
}


class Today:
    """The date and time that a test, its database and its stand-in take for now."""

    def __init__(self, moment: str) -> None:
        self._ahead_seconds = datetime.fromisoformat(moment).timestamp() - time.time()

    def time(self) -> float:
        """Return the time as Unix time."""
        return time.time() + self._ahead_seconds

    @property
    def now_ms(self) -> int:
        """The time in Unix milliseconds."""
        return int(self.time() * 1000)

    def give_to(self, url: str) -> None:
        """Give this time to all sessions that connect to this database from now on."""
        ahead = f"interval '{self._ahead_seconds!r} s'"
        sql = shadowing(f"pg_catalog.now() + {ahead}", f"pg_catalog.clock_timestamp() + {ahead}")
        connection = psycopg2.connect(url)
        try:
            with connection, connection.cursor() as cursor:
                cursor.execute(sql)
                cursor.execute("select current_database()")
                [(name,)] = cursor.fetchall()
                cursor.execute(f'alter database "{name}" set search_path = {SEARCH_PATH}')
        finally:
            connection.close()


def shadowing(now: str, clock: str) -> str:
    """Return SQL that makes `now()` and `clock_timestamp()` return these expressions.

    This holds in sessions whose search path is `SEARCH_PATH`, and in defaults of columns, such as
    the time at which an asset was added.
    """
    return f"""
        create schema if not exists world;
        create function world.now() returns timestamptz language sql stable
          as $$select {now}$$;
        create function world.clock_timestamp() returns timestamptz language sql volatile
          as $$select {clock}$$;
        do $$
        declare
          own record;
        begin
          for own in
            select attrelid::regclass as owner, attname, pg_get_expr(adbin, adrelid) as moment
            from pg_attrdef join pg_attribute on attrelid = adrelid and attnum = adnum
            where pg_get_expr(adbin, adrelid) in ('now()', 'clock_timestamp()')
          loop
            execute format('alter table %s alter %I set default world.%s',
              own.owner, own.attname, own.moment);
          end loop;
        end;
        $$
    """
