"""How platform tables that existed before asset-sync differ from those that `db init` makes."""

from collections.abc import Mapping
from typing import NamedTuple

from asset_sync.database import PLATFORM_TABLES, Connection, query
from asset_sync.provider.current import CODE

SYMBOLS, STATUS, BARS = (
    "trading.symbols",
    "data_sources.data_sync_status",
    "market_data.ohlcv_5m",
)

# The types of the columns that `db init` makes. Ids may be of any type: none is read into Python.
_TYPES = {
    SYMBOLS: {
        "symbol": "text",
        "name": "text",
        "asset_type": "text",
        "metadata": "jsonb",
        "updated_at": "timestamp with time zone",
    },
    STATUS: {
        "last_sync_timestamp": "timestamp with time zone",
        "sync_status": "text",
        "error_message": "text",
        "updated_at": "timestamp with time zone",
    },
    BARS: {
        "ts": "timestamp with time zone",
        **dict.fromkeys(("open", "high", "low", "close", "volume", "vwap"), "double precision"),
        "trades": "bigint",
    },
}
# Columns into which a run writes null.
_NULLED = ("last_sync_timestamp", "error_message", "vwap", "trades")


class Difference(NamedTuple):
    """One way in which an existing table differs from what `db init` makes."""

    table: str
    kind: str
    name: str
    """Of the column, constraint, trigger or rule."""
    detail: str

    def __str__(self) -> str:
        """Return the difference, as a part of a sentence."""
        return self._filled(_DIFFERENCES)

    @property
    def fix(self) -> str:
        """Return what the user can do about it, as a part of a sentence."""
        return self._filled(_FIXES)

    @property
    def type(self) -> str:
        """The column's type, without the values that it allows."""
        return self.detail.split(" [")[0]

    def _filled(self, texts: Mapping[str, str]) -> str:
        """Return the text for this kind of difference, with its names and types."""
        without_zone = self.detail == "timestamp without time zone"
        wanted = _TYPES.get(self.table, {}).get(self.name, "")
        return texts[self.kind].format(
            table=self.table,
            schema=self.table.split(".")[0],
            name=self.name,
            type=self.type,
            wanted=wanted,
            cast="at time zone 'UTC'" if without_zone else f"::text::{wanted}",
        )


_DIFFERENCES = {
    "table": "it is {type}",
    "row security": "it has row level security",
    "type": "{name} is {type}",
    "generated": "{name} is generated",
    "not null": "{name} takes no null",
    "constraint": "it has the constraint {name}",
    "unique index": "it has the unique index {name}",
    "trigger": "it has the trigger {name}",
    "rule": "it has the rule {name}",
}
_FIXES = {
    "table": "check {table}, which is {type}",
    "row security": "add a policy on {table} for this role",
    "type": "`alter table {table} alter column {name} type {wanted} using {name} {cast}`",
    "generated": "`alter table {table} alter column {name} drop expression`",
    "not null": "`alter table {table} alter column {name} drop not null`",
    "constraint": "`alter table {table} drop constraint {name}`, or one that allows it",
    "unique index": "`drop index {schema}.{name}`",
    "trigger": "check the trigger {name}",
    "rule": "`drop rule {name} on {table}`",
}


class Catalogue(NamedTuple):
    """What the catalogue says of the existing tables."""

    differences: tuple[Difference, ...]
    fingerprint: int
    """Changes with the differences and with the role that would write."""
    tried: bool
    """Whether a run of this role has tried exactly these tables, and could store everything."""
    has_provider: bool


def catalogue(db: Connection) -> Catalogue:
    """Return how the existing tables differ from ours, with one query and no row lock."""
    columns = [
        (table, name, wanted) for table, types in _TYPES.items() for name, wanted in types.items()
    ]
    rows = query(
        db,
        """
        with ours as materialized (
          select name, to_regclass(name)::oid as oid, keys
          from unnest(%(tables)s::text[], %(keys)s::text[]) as given (name, keys)
        ),
        differing as materialized (
          select ours.name as table_name, 'table' as kind, '' as name,
            case c.relkind when 'p' then 'partitioned' when 'v' then 'a view'
              when 'f' then 'a foreign table' else 'no ordinary table' end as detail
          from ours join pg_class c on c.oid = ours.oid where c.relkind <> 'r'
          union all
          select ours.name, 'row security', '', current_user::text
          from ours join pg_class c on c.oid = ours.oid where c.relrowsecurity
          union all
          select ours.name, 'type', a.attname, format_type(a.atttypid, a.atttypmod)
            || coalesce((select ' [' || string_agg(e.enumlabel, ', ' order by e.enumsortorder)
                 from pg_enum e where e.enumtypid = a.atttypid), '')
            || coalesce((select ' [' || string_agg(pg_get_constraintdef(d.oid), ', ')
                 from pg_constraint d where d.contypid = a.atttypid and d.contypid <> 0), '')
          from ours
          join unnest(%(of)s::text[], %(columns)s::text[], %(types)s::text[])
            as given (of, attname, wanted) on given.of = ours.name
          join pg_attribute a
            on a.attrelid = ours.oid and a.attname = given.attname and not a.attisdropped
          where format_type(a.atttypid, a.atttypmod) <> given.wanted
          union all
          select ours.name, 'generated', a.attname, ''
          from ours join pg_attribute a on a.attrelid = ours.oid and a.attnum > 0
          where a.attgenerated <> '' and a.attname = any(%(columns)s::text[] || '{ticker_id}')
          union all
          select ours.name, 'not null', a.attname, ''
          from ours join pg_attribute a on a.attrelid = ours.oid and a.attnum > 0
          where a.attnotnull and a.attname = any(%(nulled)s::text[])
          union all
          select ours.name, 'constraint', k.conname, pg_get_constraintdef(k.oid)
          from ours join pg_constraint k on k.conrelid = ours.oid
          where k.contype in ('c', 'x') or k.contype = 'f'
            and not exists (select from ours referred where referred.oid = k.confrelid)
          union all
          select ours.name, 'unique index', c.relname, pg_get_indexdef(c.oid)
          from ours join pg_index i on i.indrelid = ours.oid
          join pg_class c on c.oid = i.indexrelid
          where i.indisunique and coalesce((
            select string_agg(a.attname, ' ' order by a.attname)
            from pg_attribute a where a.attrelid = i.indrelid and a.attnum = any(i.indkey)
          ), '') not in (ours.keys, 'id')
          union all
          select ours.name, 'trigger', t.tgname,
            pg_get_triggerdef(t.oid) || (select p.prosrc from pg_proc p where p.oid = t.tgfoid)
          from ours join pg_trigger t on t.tgrelid = ours.oid
          where not t.tgisinternal and t.tgenabled <> 'D'
          union all
          select ours.name, 'rule', r.rulename, pg_get_ruledef(r.oid)
          from ours join pg_rewrite r on r.ev_class = ours.oid where r.rulename <> '_RETURN'
        ),
        known as (
          select hashtextextended(
              current_user || string_agg(d::text, ',' order by table_name, kind, name, detail), 0
            ) as fingerprint
          from differing d
        )
        select d.table_name, d.kind, d.name, d.detail, known.fingerprint, limiter.tables_tried,
          exists (select from data_sources.api_providers where code = %(provider)s)
        from known left join asset_sync.limiter on true left join differing d on true
        order by d.table_name, d.kind, d.name
        """,
        {
            "tables": [table.name for table in PLATFORM_TABLES],
            "keys": [" ".join(sorted(table.unique)) for table in PLATFORM_TABLES],
            "of": [table for table, _, _ in columns],
            "columns": [name for _, name, _ in columns],
            "types": [wanted for _, _, wanted in columns],
            "nulled": list(_NULLED),
            "provider": CODE,
        },
    )
    *_, fingerprint, tried, has_provider = rows[0]
    return Catalogue(
        tuple(Difference(*row[:4]) for row in rows if row[0] is not None),
        fingerprint or 0,
        tried is not None and tried == fingerprint,
        has_provider,
    )
