"""Checks whether a run can store data in platform tables that existed before asset-sync.

If the catalogue shows that a table is as `db init` makes it, no more is checked. If a table
differs, a run's statements are executed once as a trial, in a transaction that is rolled back.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import NamedTuple

import psycopg2

from asset_sync import database
from asset_sync.database import (
    PLATFORM_TABLES,
    PROVIDERS,
    Connection,
    Cursor,
    DatabaseError,
    NotInitialisedError,
    SchemaStatus,
    lacking_rights,
    query,
    refuses_data,
    transaction,
)
from asset_sync.model import Asset, AssetType
from asset_sync.provider.answers import Bar
from asset_sync.provider.current import CODE
from asset_sync.store import market

# A trial must not make other transactions wait.
_LOCK_SECONDS = 1

_SYMBOLS, _STATUS, _BARS = (
    "trading.symbols",
    "data_sources.data_sync_status",
    "market_data.ohlcv_5m",
)


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


class _Findings(NamedTuple):
    """The result of a trial."""

    problems: tuple[str, ...] = ()
    """Sentences that say what a run could not store, and how to correct that."""
    notes: tuple[str, ...] = ()
    """Warnings that keep no run from storing data."""
    for_all: bool = False
    """Whether every asset that was tried has problems."""


def status(db: Connection, assets: Sequence[Asset]) -> SchemaStatus:
    """Return the schema's status; tables that differ from those of `db init` are tried."""
    found = database.status(db)
    if not found.ready:
        return found
    trial = _try_tables(db, _read_catalogue(db).differences, assets)
    return found._replace(problems=trial.problems, notes=trial.notes)


def require_usable(db: Connection, assets: Sequence[Asset]) -> None:
    """Raise DatabaseError if no answer could be stored, before a call is made.

    If only some assets cannot be stored, each of those fails by itself later. This takes two
    queries if the tables are as `db init` makes them, or if a run of this role has already tried
    these tables and stored everything.
    """
    lacking = [right for right in lacking_rights(db) if "asset_sync." not in right]
    if lacking:
        raise DatabaseError(f"The database's role lacks {', '.join(lacking)}: grant it the right.")
    found = _read_catalogue(db)
    if not found.has_provider:
        raise NotInitialisedError(
            f"{PROVIDERS} has no row with the code {CODE!r}: `asset-sync db init` adds it."
        )
    if not found.differences or found.tried:
        return
    trial = _try_tables(db, found.differences, assets)
    if trial.for_all:
        raise NotInitialisedError("\n".join(trial.problems))
    if not trial.problems and not any(note.startswith(_NOT_TRIED) for note in trial.notes):
        query(db, "update asset_sync.limiter set tables_tried = %s", (found.fingerprint,))


# --- what differs -----------------------------------------------------------------------------

# The types of the columns that `db init` makes. Ids may be of any type: none is read into Python.
_TYPES = {
    _SYMBOLS: {
        "symbol": "text",
        "name": "text",
        "asset_type": "text",
        "metadata": "jsonb",
        "updated_at": "timestamp with time zone",
    },
    _STATUS: {
        "last_sync_timestamp": "timestamp with time zone",
        "sync_status": "text",
        "error_message": "text",
        "updated_at": "timestamp with time zone",
    },
    _BARS: {
        "ts": "timestamp with time zone",
        **dict.fromkeys(("open", "high", "low", "close", "volume", "vwap"), "double precision"),
        "trades": "bigint",
    },
}
# Columns into which a run writes null.
_NULLED = ("last_sync_timestamp", "error_message", "vwap", "trades")


class _Catalogue(NamedTuple):
    differences: tuple[Difference, ...]
    fingerprint: int
    """Changes with the differences and with the role that would write."""
    tried: bool
    """Whether a run of this role has tried exactly these tables, and could store everything."""
    has_provider: bool


def _read_catalogue(db: Connection) -> _Catalogue:
    """Return how the existing tables differ from those of `db init`: one query and no row lock."""
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
    return _Catalogue(
        tuple(Difference(*row[:4]) for row in rows if row[0] is not None),
        fingerprint or 0,
        tried is not None and tried == fingerprint,
        has_provider,
    )


# --- trying -----------------------------------------------------------------------------------

_NOT_TRIED = "Not tried"


class _RolledBack(Exception):  # noqa: N818  # not an error: how a trial ends
    pass


def _try_tables(
    db: Connection, differences: Sequence[Difference], assets: Sequence[Asset]
) -> _Findings:
    """Write test data as a run writes its data, and roll it back."""
    differing = [found for found in differences if found.table != PROVIDERS]
    if not differing:
        return _Findings()
    trial = _Trial(differing)
    storable: list[bool] = []
    with suppress(_RolledBack), transaction(db) as cursor:
        storable += [trial.store(cursor, asset) for asset in _sample(db, assets)]
        raise _RolledBack
    notes = list(dict.fromkeys(trial.notes))
    notes += [
        f"{column.table}.{column.name} has no time zone: times are written in the session's."
        for column in differing
        if column.detail == "timestamp without time zone" and column.name != "ts"
    ]
    notes += [
        f"{trigger.table} has the trigger {trigger.name}, which may have effects."
        for trigger in differing
        if trigger.kind == "trigger"
    ]
    problems = tuple(dict.fromkeys(trial.problems))
    return _Findings(problems, tuple(notes), for_all=bool(problems) and not any(storable))


def _sample(db: Connection, assets: Sequence[Asset]) -> tuple[Asset, ...]:
    """Return for each asset type one asset that has a row and one that has no row, if any."""
    existing = {
        symbol
        for (symbol,) in query(
            db,
            f"select symbol from {_SYMBOLS} where symbol = any(%s)",
            ([asset.symbol for asset in assets],),
        )
    }
    chosen: dict[tuple[AssetType, bool], Asset] = {}
    for asset in assets:
        chosen.setdefault((asset.asset_type, asset.symbol in existing), asset)
    return tuple(chosen.values())


class _Trial:
    """Runs each step in a savepoint, so that the next steps run even if one fails."""

    def __init__(self, differences: Sequence[Difference]) -> None:
        self._differences = differences
        self.problems: list[str] = []
        self.notes: list[str] = []

    def store(self, cursor: Cursor, asset: Asset) -> bool:
        """Store all that a run stores for the asset; return whether there was no problem."""
        before = len(self.problems)
        symbol = market.Symbol(asset.symbol, asset.name, asset.asset_type.value)
        if not self._step(cursor, "a new asset", _SYMBOLS, lambda: _symbol(cursor, symbol)):
            return len(self.problems) == before
        steps: tuple[tuple[str, str, Callable[[], Iterator[str]]], ...] = (
            ("a bar", _BARS, lambda: _bars(cursor, asset.symbol)),
            ("a last price", _SYMBOLS, lambda: _price(cursor, asset.symbol)),
            ("a sync status", _STATUS, lambda: _status(cursor, asset.symbol)),
        )
        for what, table, work in steps:
            self._step(cursor, what, table, work)
        return len(self.problems) == before

    def _step(
        self, cursor: Cursor, what: str, table: str, work: Callable[[], Iterator[str]]
    ) -> bool:
        """Do the step; return whether it succeeded."""
        # A query of the step before may have restored the usual time-outs.
        cursor.execute(f"set local lock_timeout = '{_LOCK_SECONDS}s'; savepoint step")
        try:
            self.notes += work()
            cursor.execute("set constraints all immediate")
        except psycopg2.Error as error:
            if cursor.connection.closed:
                raise
            cursor.execute("rollback to savepoint step")
            said = error.diag.message_primary or "no reason given"
            if not _caused_by_tables(error):
                self.notes.append(f"{_NOT_TRIED}: {what} in {table} ({said}).")
            else:
                advice = self._advice(table, f"{said} {error.diag.constraint_name or ''}")
                self.problems.append(
                    f"{what[0].upper()}{what[1:]} cannot be stored in {table} "
                    f"({error.pgcode}: {said}). {advice}"
                )
            return False
        except DatabaseError as error:
            cursor.execute("rollback to savepoint step")
            self.problems.append(f"{error} {self._advice(table, str(error))}")
            return False
        return True

    def _advice(self, table: str, said: str) -> str:
        """Return how the table differs and how to correct it.

        If the server's message names differences, only these are returned.
        """
        here = [found for found in self._differences if found.table == table]
        named = [
            found
            for found in here
            if _mentions(said, found.name) or (found.kind == "type" and _mentions(said, found.type))
        ]
        which = named or here
        if not which:
            return "Nothing in the catalogue explains it."
        differs = ", ".join(str(found) for found in which)
        fixes = "; or ".join(dict.fromkeys(found.fix for found in which))
        return f"The table differs: {differs}. To correct it: {fixes}."


def _caused_by_tables(error: psycopg2.Error) -> bool:
    """Whether the tables are the cause, and not a lock, a full disk or missing rights."""
    code = error.pgcode or ""
    return refuses_data(error) or (code[:2] in {"0A", "42"} and code != "42501")


def _mentions(said: str, name: str) -> bool:
    return bool(name) and re.search(rf"\b{re.escape(name)}\b", said) is not None


class _NotStoredError(DatabaseError):
    """Data that was written without an error is not there when it is read."""


def _symbol(cursor: Cursor, symbol: market.Symbol) -> Iterator[str]:
    market.save_symbols(cursor, [symbol])
    cursor.execute(f"select from {_SYMBOLS} where symbol = %s", (symbol.symbol,))
    if not cursor.fetchall():
        raise _NotStoredError(f"A new asset is lost after it was written to {_SYMBOLS}.")
    yield from ()


def _bars(cursor: Cursor, symbol: str) -> Iterator[str]:
    """Write two bars twice, one without the optional columns, and read them back."""
    cursor.execute("select extract(epoch from date_bin('5 min', now(), 'epoch'))::bigint * 1000")
    [(start_ms,)] = cursor.fetchall()
    full = Bar(start_ms - 300_000, 1.08345, 1.083571, 1.08339, 1.08352, 123.456789, 1.08346789, 42)
    bars = [full, full._replace(start_ms=start_ms, vwap=None, trades=None)]
    market.save_bars(cursor, symbol, bars)
    newest, now = market.newest_bar(cursor.connection, symbol)
    if newest is None or newest.tzinfo is None:
        why = "is lost after it was written to"
        if newest is not None:
            why = "comes back without its time zone (ts) from"
        raise _NotStoredError(f"A bar {why} {_BARS}.")
    cursor.execute(
        f"""
        select bar.open::float8, bar.high::float8, bar.low::float8, bar.close::float8,
          bar.volume::float8, bar.vwap::float8, bar.trades::float8
        from {_BARS} bar join {_SYMBOLS} s on s.id = bar.ticker_id
        where s.symbol = %s and bar.ts = to_timestamp(%s)
        """,
        (symbol, full.start_ms / 1000),
    )
    kept = cursor.fetchall()
    if not kept:
        raise _NotStoredError(f"A bar is not found in {_BARS} by its start (ts).")
    for name, value, stored in zip(full._fields[1:], full[1:], kept[0], strict=True):
        if stored != value:
            yield (
                f"{_BARS} stores {value} in {name} as {stored}, so each call rewrites the bars"
                " that it reads again."
            )
    market.save_bars(cursor, symbol, bars)
    market.price_of_bar(cursor, symbol, datetime.fromtimestamp(bars[-1].start_ms / 1000, UTC), now)


def _price(cursor: Cursor, symbol: str) -> Iterator[str]:
    cursor.execute("select clock_timestamp()")
    [(now,)] = cursor.fetchall()
    day = dict.fromkeys(("daily_open", "daily_high", "daily_low", "daily_close"), 1.08345)
    price = market.LastPrice(symbol, None, None, 1.08345, **day, timestamp=now)
    if market.save_prices(cursor, [price]):
        cursor.execute(
            f"select metadata -> 'last_update' ->> 'last_price' from {_SYMBOLS} where symbol = %s",
            (symbol,),
        )
        if cursor.fetchall() != [("1.08345",)]:
            raise _NotStoredError(
                f"A last price is lost after it was written to {_SYMBOLS}.metadata."
            )
    yield from ()


def _status(cursor: Cursor, symbol: str) -> Iterator[str]:
    market.save_status(cursor, [symbol])
    market.save_status(cursor, [symbol], "The provider does not answer.")
    cursor.execute(
        f"""
        select status.sync_status from {_STATUS} status
        join {_SYMBOLS} s on s.id = status.ticker_id join {PROVIDERS} p on p.id = status.provider_id
        where s.symbol = %s and p.code = %s
        """,
        (symbol, CODE),
    )
    if cursor.fetchall() != [("error",)]:
        raise _NotStoredError(f"A sync status is lost after it was written to {_STATUS}.")
    yield from ()
