"""Turns `market_data.ohlcv_5m` into a table with monthly partitions, and back.

The table is copied, in one transaction: whatever ends it leaves the table as it was. Other programs
read meanwhile; those that write wait. What a copy cannot keep is found beforehand, and refused.
"""

from collections.abc import Callable, Sequence
from enum import Enum
from typing import NamedTuple

import psycopg2.errors

from asset_sync.database import (
    Connection,
    Cursor,
    DatabaseError,
    Row,
    savepoint,
    statement_timeout,
    transaction,
)
from asset_sync.store.months import BARS, DEFAULT, Month, partitions, stored_columns, take_after

_NEW, _OLD = f"{BARS}_new", f"{BARS}_old"
_MOST_SECONDS = 86_400.0

# The lock at the end waits for the table's readers. Others wait behind it, so each try is short.
_SWAP_SECONDS, _SWAP_TRIES = 2, 300

# Of 10 million bars 286,000 a second were copied and indexed, on two cores that other work used as
# well. A slower disk takes longer.
_ROWS_PER_SECOND = 100_000


class Layout(Enum):
    """How the bars are stored."""

    TABLE = "one ordinary table"
    MONTHS = "partitioned by month"
    HYPERTABLE = "a hypertable of TimescaleDB"
    PARTITIONS = "partitioned in another way"
    OTHER = "no table"


class Survey(NamedTuple):
    """What there is to change."""

    layout: Layout
    bars: int
    """About how many."""
    bytes: int
    """Of the table and its indexes."""
    partitions: int
    views: Sequence[str]
    """Views that read the table; they are made again, with their rights."""
    obstacles: Sequence[str]
    """What a copy of the table would lose."""

    @property
    def seconds(self) -> float:
        """About how long the change takes."""
        return self.bars / _ROWS_PER_SECOND


def survey(db: Connection) -> Survey:
    """Return how the bars are stored, how much they take, and what a copy would lose."""
    with statement_timeout(_MOST_SECONDS), transaction(db) as cursor:
        cursor.execute("set local statement_timeout = 0")
        layout = _layout(cursor)
        if layout not in (Layout.TABLE, Layout.MONTHS):
            return Survey(layout, 0, 0, 0, (), ())
        cursor.execute(
            f"""
            select count(*), sum(greatest(reltuples, 0))::bigint, bool_or(reltuples < 0),
              sum(pg_total_relation_size(oid))::bigint
            from pg_class where relkind = 'r' and (oid = '{BARS}'::regclass
              or oid in (select relid from pg_partition_tree('{BARS}')))
            """
        )
        [(leaves, bars, never_counted, size)] = cursor.fetchall()
        if never_counted:
            cursor.execute(f"select count(*) from {BARS}")
            [(bars,)] = cursor.fetchall()
        return Survey(
            layout,
            bars,
            size,
            leaves if layout is Layout.MONTHS else 0,
            [name for name, *_ in _views(cursor)],
            _obstacles(cursor),
        )


def partition(db: Connection, tell: Callable[[str], None] = lambda _: None) -> None:
    """Give the table monthly partitions. Raises DatabaseError if it cannot keep something."""
    _rebuild(db, Layout.TABLE, Layout.MONTHS, tell)


def unite(db: Connection, tell: Callable[[str], None] = lambda _: None) -> None:
    """Make one table of the partitions. Raises DatabaseError if it cannot keep something."""
    _rebuild(db, Layout.MONTHS, Layout.TABLE, tell)


def _rebuild(db: Connection, before: Layout, after: Layout, tell: Callable[[str], None]) -> None:
    with statement_timeout(_MOST_SECONDS):
        with transaction(db) as cursor:
            cursor.execute(
                f"lock table {BARS} in share row exclusive mode; set local statement_timeout = 0"
            )
            _end_with_the_client(cursor)
            if _layout(cursor) is not before:
                raise DatabaseError(f"{BARS} is no longer {before.value}: nothing was changed.")
            if obstacles := _obstacles(cursor):
                raise DatabaseError("\n".join(obstacles))
            _copy(cursor, after, tell)
            _swap(cursor, tell)
        # Nothing else gathers the statistics of a partitioned table.
        with db.cursor() as cursor:
            cursor.execute(f"vacuum (analyze) {BARS}")


def _layout(cursor: Cursor) -> Layout:
    cursor.execute(
        """
        select relkind, to_regclass('_timescaledb_catalog.hypertable') is not null
        from pg_class where oid = to_regclass(%s)
        """,
        (BARS,),
    )
    found = cursor.fetchall()
    if not found:
        return Layout.OTHER
    [(kind, timescale)] = found
    if timescale:
        cursor.execute(
            """
            select from _timescaledb_catalog.hypertable
            where schema_name || '.' || table_name = %s
            """,
            (BARS,),
        )
        if cursor.fetchall():
            return Layout.HYPERTABLE
    if kind == "p":
        return Layout.MONTHS if partitions(cursor.connection) else Layout.PARTITIONS
    return Layout.TABLE if kind == "r" else Layout.OTHER


def _obstacles(cursor: Cursor) -> list[str]:
    """Return a sentence for each thing that the copy could not keep."""
    cursor.execute(
        f"""
        with bars as (
          select *, '{BARS}'::regclass::oid as table_oid from pg_class
          where oid = '{BARS}'::regclass
        ),
        types as (
          select t.oid from pg_type t, bars where t.typrelid = table_oid
          union select t.typarray from pg_type t, bars where t.typrelid = table_oid
        )
        select distinct pg_describe_object(d.classid, d.objid, d.objsubid)
        from bars, pg_depend d
        where d.deptype in ('n', 'a')
          and (d.refclassid = 'pg_class'::regclass and d.refobjid = table_oid
            or d.refclassid = 'pg_type'::regclass and d.refobjid in (select oid from types))
          and not case d.classid
            when 'pg_class'::regclass then exists (
                select from pg_index where indexrelid = d.objid and indrelid = table_oid
              ) or exists (
                select from pg_inherits
                where inhrelid = d.objid and inhparent = table_oid and relkind = 'p'
              )
            when 'pg_constraint'::regclass then exists (
                select from pg_constraint k where k.oid = d.objid and conrelid = table_oid
              )
            when 'pg_rewrite'::regclass then exists (
                select from pg_rewrite w join pg_class v on v.oid = w.ev_class
                where w.oid = d.objid and v.relkind = 'v' and w.rulename = '_RETURN'
              )
            when 'pg_trigger'::regclass then exists (
                select from pg_trigger t where t.oid = d.objid and t.tgisinternal
              )
            else d.classid in ('pg_attrdef'::regclass, 'pg_statistic_ext'::regclass)
          end
        union
        select 'publication ' || pubname from pg_publication_tables, bars
        where schemaname || '.' || tablename = '{BARS}'
        union
        select what from bars, lateral (values
          ('its row level security', relrowsecurity),
          ('that it is unlogged', relpersistence <> 'p'),
          ('its replica identity', relreplident <> 'd'),
          ('its type', reloftype <> 0),
          ('its parent table', exists (select from pg_inherits where inhrelid = table_oid))
        ) as state (what, holds) where holds
        union
        select 'the identity of column ' || attname from pg_attribute, bars
        where attrelid = table_oid and attidentity <> '' and not attisdropped
        union
        select 'constraint ' || conname || ', which is not valid or has no ts'
        from pg_constraint, bars where conrelid = table_oid and (not convalidated or contype = 'x')
        union
        select 'unique index ' || i.indexrelid::regclass || ', which has no ts'
        from pg_index i, bars where i.indrelid = table_oid and (i.indisunique or i.indisexclusion)
          and not exists (
            select from pg_attribute a
            where a.attrelid = table_oid and a.attname = 'ts' and a.attnum = any(i.indkey)
          )
        union
        select 'the type ' || format_type(atttypid, atttypmod) || ' of ts' from pg_attribute, bars
        where attrelid = table_oid and attname = 'ts' and atttypid <> 'timestamptz'::regtype
        order by 1
        """
    )
    obstacles = [
        f"A copy of {BARS} cannot keep {what}: remove it, and make it again afterwards."
        for (what,) in cursor.fetchall()
    ]
    foreign = [name for name, *_, own in _views(cursor) if not own]
    cursor.execute(
        f"select pg_has_role(relowner, 'usage') from pg_class where oid = '{BARS}'::regclass"
    )
    [(owned,)] = cursor.fetchall()
    strangers = [*foreign, *([] if owned else [BARS])]
    return obstacles + [
        f"This role does not own {name}: use the role that does." for name in strangers
    ]


def _views(cursor: Cursor) -> list[Row]:
    """Return the views that read the table: name, SQL that makes each again, and whether it may."""
    cursor.execute(
        f"""
        select distinct v.oid::regclass::text,
          format('create or replace view %s%s as %s', v.oid::regclass,
            ' with (' || array_to_string(v.reloptions, ', ') || ')', pg_get_viewdef(v.oid)),
          pg_has_role(v.relowner, 'usage')
        from pg_depend d join pg_rewrite w on w.oid = d.objid join pg_class v on v.oid = w.ev_class
        where d.classid = 'pg_rewrite'::regclass and d.refclassid = 'pg_class'::regclass
          and d.refobjid = '{BARS}'::regclass and v.relkind = 'v'
        order by 1
        """
    )
    return cursor.fetchall()


# --- the copy -----------------------------------------------------------------------------------


def _copy(cursor: Cursor, after: Layout, tell: Callable[[str], None]) -> None:
    """Make the new table beside the old one, with the same rows, indexes and rights."""
    before = _content(cursor, BARS)
    parts = [_NEW]
    made = f"create table {_NEW} (like {BARS} including all excluding indexes)"
    if after is Layout.MONTHS:
        cursor.execute(f"{made} partition by range (ts)")
        cursor.execute("select date_trunc('month', now() at time zone 'UTC')::date")
        [(this,)] = cursor.fetchall()
        soon = [Month(this), Month(this).next]
        past = {month for month in before if month is not None and month < soon[1]}
        months = sorted({*past, *soon})
        tell(f"Copying {_bars(before):,} bars into {len(months)} months.")
        for month in months:
            cursor.execute(
                f"create table {month.partition} partition of {_NEW} for values {month.bounds}"
            )
        cursor.execute(f"create table {DEFAULT} partition of {_NEW} default")
        parts = [*(month.partition for month in months), DEFAULT]
        take_after(cursor, BARS, parts)
    else:
        tell(f"Copying {_bars(before):,} bars into one table.")
        cursor.execute(made)
        take_after(cursor, DEFAULT, parts)
    columns = stored_columns(cursor, BARS)
    # Sorted, so that the bars of one asset lie together.
    cursor.execute(
        f"""
        set local work_mem = '128MB'; set local maintenance_work_mem = '128MB';
        set local enable_indexscan = off;
        insert into {_NEW} ({columns}) select {columns} from {BARS} order by ticker_id, ts;
        reset work_mem; reset enable_indexscan
        """
    )
    if _content(cursor, _NEW) != before:
        raise DatabaseError(f"The copy of {BARS} has other rows: nothing was changed.")
    tell("Building the indexes.")
    for statement in _indexes(cursor) + _foreign_keys(cursor):
        cursor.execute(statement)
    _take_rights(cursor)


def _content(cursor: Cursor, table: str) -> dict[Month | None, tuple[int, int]]:
    """Return the number of bars and their checksum by month; None for times without a month."""
    cursor.execute(
        f"""
        select case when ts between timestamptz 'epoch' and timestamptz '9999-01-01 00:00Z'
            then date_trunc('month', ts at time zone 'UTC')::date end,
          count(*), bit_xor(hash_record_extended(
            row(ticker_id, ts, open, high, low, close, volume, vwap, trades), 0))
        from {table} group by 1
        """
    )
    return {
        None if first is None else Month(first): (count, checksum)
        for first, count, checksum in cursor.fetchall()
    }


def _bars(content: dict[Month | None, tuple[int, int]]) -> int:
    return sum(count for count, _ in content.values())


def _indexes(cursor: Cursor) -> list[str]:
    """Return SQL that makes the indexes and their constraints, under names ending in `_new`."""
    cursor.execute(
        f"""
        select case when k.oid is null
          then replace(replace(pg_get_indexdef(i.indexrelid), ' ON ONLY ', ' ON '),
            format('INDEX %I ON {BARS} ', c.relname),
            format('INDEX %I ON {_NEW} ', left(c.relname, 58) || '_new'))
          else format('alter table {_NEW} add constraint %I %s', left(k.conname, 58) || '_new',
            pg_get_constraintdef(k.oid)) end
        from pg_index i join pg_class c on c.oid = i.indexrelid
        left join pg_constraint k on k.conindid = c.oid and k.conrelid = i.indrelid
          and k.contype in ('p', 'u')
        where i.indrelid = '{BARS}'::regclass order by c.relname
        """
    )
    return [statement for (statement,) in cursor.fetchall()]


def _foreign_keys(cursor: Cursor) -> list[str]:
    """Return SQL that makes the foreign keys."""
    cursor.execute(
        f"""
        select format('alter table {_NEW} add constraint %I %s', conname, pg_get_constraintdef(oid))
        from pg_constraint where conrelid = '{BARS}'::regclass and contype = 'f' order by conname
        """
    )
    return [statement for (statement,) in cursor.fetchall()]


def _take_rights(cursor: Cursor) -> None:
    """Give the new table the owner, the rights and the comment of the old one."""
    take_owner = f"""
      select format('alter table {_NEW} owner to %I', rolname)
      from pg_class c join pg_roles r on r.oid = c.relowner
      where c.oid = '{BARS}'::regclass and rolname <> current_user
    """
    who = "case grantee when 0 then 'public' else quote_ident(pg_get_userbyid(grantee)) end"
    revoke = f"""
      select distinct format('revoke all on {_NEW} from %s', {who})
      from pg_class c, aclexplode(coalesce(relacl, acldefault('r', relowner)))
      where c.oid = '{_NEW}'::regclass
    """
    can_grant = "case when is_grantable then ' with grant option' else '' end"
    grant = f"""
      select format('grant %s on {_NEW} to %s%s', privilege_type, {who}, {can_grant})
      from pg_class c, aclexplode(coalesce(relacl, acldefault('r', relowner)))
      where c.oid = '{BARS}'::regclass
      union all
      select format('grant %s (%I) on {_NEW} to %s%s', privilege_type, attname, {who}, {can_grant})
      from pg_attribute a, aclexplode(attacl) where attrelid = '{BARS}'::regclass
    """
    comment = f"""
      select format('comment on table {_NEW} is %L',
        obj_description('{BARS}'::regclass, 'pg_class'))
    """
    for question in (take_owner, revoke, grant, comment):
        cursor.execute(question)
        for (statement,) in cursor.fetchall():
            cursor.execute(statement)


def _swap(cursor: Cursor, tell: Callable[[str], None]) -> None:
    """Put the new table into the old one's place, and drop the old one."""
    views = _views(cursor)
    cursor.execute(
        f"""
        select format('alter index market_data.%I rename to %I', left(relname, 58) || '_new',
          relname)
        from pg_index join pg_class on pg_class.oid = indexrelid where indrelid = '{BARS}'::regclass
        """
    )
    renames = [statement for (statement,) in cursor.fetchall()]
    cursor.execute(
        f"""
        select format('comment on %s is %L', case when k.oid is null
            then 'index ' || i.indexrelid::regclass
            else format('constraint %I on {BARS}', conname) end,
          comment)
        from pg_index i
        left join pg_constraint k on k.conindid = i.indexrelid and k.conrelid = i.indrelid
        cross join coalesce(
          obj_description(k.oid, 'pg_constraint'), obj_description(i.indexrelid, 'pg_class')
        ) as comment
        where i.indrelid = '{BARS}'::regclass and comment is not null
        """
    )
    comments = [statement for (statement,) in cursor.fetchall()]
    # A reader locks a view before the table.
    _lock(cursor, ", ".join([*(name for name, *_ in views), BARS]), tell)
    for name, new_name in ((BARS, _OLD), (_NEW, BARS)):
        cursor.execute(f"alter table {name} rename to {new_name.split('.')[1]}")
    for _, statement, _ in views:
        cursor.execute(statement)
    cursor.execute(f"drop table {_OLD}")
    for statement in (*renames, *comments):
        cursor.execute(statement)


def _lock(cursor: Cursor, tables: str, tell: Callable[[str], None]) -> None:
    """Lock tables against readers, too; try again while one reads."""
    cursor.execute(f"set local lock_timeout = '{_SWAP_SECONDS}s'")
    for number in range(_SWAP_TRIES):
        try:
            with savepoint(cursor):
                cursor.execute(f"lock table {tables} in access exclusive mode")
        except psycopg2.errors.LockNotAvailable:
            if not number:
                tell("Waiting for another program that reads the bars.")
        else:
            return
    raise DatabaseError(f"Another program reads {BARS} all the time: nothing was changed.")


def _end_with_the_client(cursor: Cursor) -> None:
    """Let the server notice within a second that this program was killed, if it can."""
    try:
        with savepoint(cursor):
            cursor.execute("set local client_connection_check_interval = '1s'")
    except psycopg2.errors.InvalidParameterValue:  # not on every operating system
        pass
