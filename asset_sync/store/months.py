"""The monthly partitions of `market_data.ohlcv_5m`, if it has them.

A partition holds the bars of one month, UTC. The default partition holds those of all other times,
so that every bar can be stored. `asset-sync db partition` makes them of an ordinary table.
"""

from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from typing import NamedTuple

import psycopg2.errors

from asset_sync.database import Connection, Cursor, query, transaction

BARS = "market_data.ohlcv_5m"
DEFAULT = f"{BARS}_default"

# A run that makes a partition keeps no other program waiting behind a long reader: it gives up
# after this time, and the next run tries again. It is shorter than PostgreSQL's deadlock_timeout.
_LOCK_MILLISECONDS = 500


class Month(NamedTuple):
    """A month, and the partition that holds it."""

    first: date

    @property
    def next(self) -> "Month":
        """The month after this one."""
        return Month((self.first + timedelta(days=31)).replace(day=1))

    @property
    def partition(self) -> str:
        """The name of its partition."""
        return f"{BARS}_{self.first:%Y_%m}"

    @property
    def bounds(self) -> str:
        """The bounds of its partition, in SQL."""
        return f"from ('{self.first}T00:00Z') to ('{self.next.first}T00:00Z')"


def partitions(db: Connection) -> list[str]:
    """Return the names of the partitions without their schema, none if there are no monthly ones.

    It takes other partitions, made by somebody else, for none.
    """
    rows = query(
        db,
        """
        select c.relname from pg_partitioned_table p
        join pg_inherits i on i.inhparent = p.partrelid join pg_class c on c.oid = i.inhrelid
        where p.partrelid = to_regclass(%s) and p.partdefid = to_regclass(%s) and p.partstrat = 'r'
          and p.partattrs::text = (
            select attnum::text from pg_attribute where attrelid = p.partrelid and attname = 'ts'
          )
        order by 1
        """,
        (BARS, DEFAULT),
    )
    return [name for (name,) in rows]


def missing(db: Connection) -> list[Month]:
    """Return the months that need a partition: this one, the next, and those in the default one.

    There are none if the table has no monthly partitions.
    """
    there = partitions(db)
    if not there:
        return []
    rows = query(
        db,
        f"""
        with soon as (
          select date_trunc('month', now() at time zone 'UTC') as this, interval '1 month' as month
        )
        select this::date from soon union select (this + month)::date from soon
        union
        select date_trunc('month', ts at time zone 'UTC')::date from {DEFAULT}, soon
        where ts >= timestamptz 'epoch' and ts < (this + 2 * month) at time zone 'UTC'
        order by 1
        """,
    )
    months = [Month(first) for (first,) in rows]
    return [month for month in months if month.partition.split(".")[1] not in there]


def make_missing(db: Connection) -> Iterator[Month]:
    """Make the partitions that are missing; yield each month that got one.

    Bars of the month that are in the default partition move. Raises what psycopg2 raises: for
    example LockNotAvailable if a long reader uses the default partition.
    """
    for month in missing(db):
        with transaction(db) as cursor:
            _make(cursor, month)
        yield month


def make_missing_quietly(db: Connection) -> None:
    """Make the partitions that are missing, as far as locks and the role's rights allow it now.

    Until they are made, their bars are in the default partition.
    """
    try:
        for _ in make_missing(db):
            pass
    except (
        psycopg2.errors.LockNotAvailable,
        psycopg2.errors.QueryCanceled,
        psycopg2.errors.DeadlockDetected,
        psycopg2.errors.InsufficientPrivilege,
        psycopg2.errors.DuplicateTable,
    ):
        pass


def _make(cursor: Cursor, month: Month) -> None:
    """Make the partition of a month, move the month's bars into it, and attach it."""
    cursor.execute(f"set local lock_timeout = '{_LOCK_MILLISECONDS}ms'")
    # In the order in which a reader locks them.
    cursor.execute(f"lock table only {BARS} in share update exclusive mode")
    cursor.execute(f"lock table {DEFAULT} in access exclusive mode")
    cursor.execute(f"create table {month.partition} (like {BARS} including all excluding indexes)")
    take_after(cursor, DEFAULT, [month.partition])
    columns = stored_columns(cursor, BARS)
    cursor.execute(
        f"""
        with moved as (
          delete from {DEFAULT}
          where ts >= '{month.first}T00:00Z' and ts < '{month.next.first}T00:00Z'
          returning {columns}
        )
        insert into {month.partition} ({columns})
        select {columns} from moved order by ticker_id, ts
        """
    )
    cursor.execute(
        f"alter table {BARS} attach partition {month.partition} for values {month.bounds}"
    )


def stored_columns(cursor: Cursor, table: str) -> str:
    """Return the table's columns, as SQL, without those that are generated."""
    cursor.execute(
        """
        select string_agg(quote_ident(attname), ', ' order by attnum) from pg_attribute
        where attrelid = to_regclass(%s) and attnum > 0 and not attisdropped and attgenerated = ''
        """,
        (table,),
    )
    [(columns,)] = cursor.fetchall()
    return str(columns)


def take_after(cursor: Cursor, table: str, others: Sequence[str]) -> None:
    """Give other tables the owner and the storage parameters of this one."""
    cursor.execute(
        """
        select case when rolname <> current_user then format('owner to %%I', rolname) end,
          (select 'set (' || string_agg(
             format('%%s = %%L', split_part(o, '=', 1), substr(o, strpos(o, '=') + 1)), ', ') || ')'
           from unnest(c.reloptions) as o)
        from pg_class c join pg_roles r on r.oid = c.relowner where c.oid = to_regclass(%s)
        """,
        (table,),
    )
    [(owner, options)] = cursor.fetchall()
    changes = [change for change in (options, owner) if change is not None]
    for other in others:
        for change in changes:
            cursor.execute(f"alter table {other} {change}")
