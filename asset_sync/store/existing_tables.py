"""Checks whether a run can store data in platform tables that existed before asset-sync.

If the catalogue shows that a table is as `db init` makes it, no more is checked. If a table
differs, a run's statements are executed once as a trial, in a transaction that is rolled back.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import NamedTuple

import psycopg2

from asset_sync import database
from asset_sync.database import (
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
from asset_sync.store import market, months
from asset_sync.store.table_differences import BARS, STATUS, SYMBOLS, Difference, catalogue

# A trial must not make other transactions wait.
_LOCK_SECONDS = 1


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
    from asset_sync.database.larger_bars import (  # noqa: PLC0415  no run needs it
        problems_of_readable,
    )

    found = database.status(db)
    if not found.ready:
        return found
    trial = _try_tables(db, catalogue(db).differences, assets)
    notes = (*trial.notes, *_missing_partitions(db), *problems_of_readable(db))
    return found._replace(problems=trial.problems, notes=notes)


def _missing_partitions(db: Connection) -> Iterator[str]:
    """Yield the months without a partition, which a run makes if its role owns the table."""
    missing = [f"{month.first:%Y-%m}" for month in months.missing(db)]
    if missing:
        yield (
            f"{BARS} has no partition for {', '.join(missing)}, so the default partition holds"
            " these bars: run `asset-sync db partition` as the role that owns the table."
        )


def require_usable(db: Connection, assets: Sequence[Asset]) -> None:
    """Raise DatabaseError if no answer could be stored, before a call is made.

    If only some assets cannot be stored, each of those fails by itself later. This takes two
    queries if the tables are as `db init` makes them, or if a run of this role has already tried
    these tables and stored everything.
    """
    lacking = [right for right in lacking_rights(db) if "asset_sync." not in right]
    if lacking:
        raise DatabaseError(f"The database's role lacks {', '.join(lacking)}: grant it the right.")
    found = catalogue(db)
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
    """Return for each asset type one asset that has a row and one that has no row, if any.

    They are those with the longest symbols, for which a column may be too short.
    """
    existing = {
        symbol
        for (symbol,) in query(
            db,
            f"select symbol from {SYMBOLS} where symbol = any(%s)",
            ([asset.symbol for asset in assets],),
        )
    }
    chosen: dict[tuple[AssetType, bool], Asset] = {}
    for asset in sorted(assets, key=lambda asset: len(asset.symbol), reverse=True):
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
        if not self._step(cursor, "a new asset", SYMBOLS, lambda: _symbol(cursor, symbol)):
            return len(self.problems) == before
        steps: tuple[tuple[str, str, Callable[[], Iterator[str]]], ...] = (
            ("a bar", BARS, lambda: _bars(cursor, asset.symbol)),
            ("a last price", SYMBOLS, lambda: _price(cursor, asset.symbol)),
            ("a sync status", STATUS, lambda: _status(cursor, asset.symbol)),
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
    cursor.execute(f"select from {SYMBOLS} where symbol = %s", (symbol.symbol,))
    if not cursor.fetchall():
        raise _NotStoredError(f"A new asset is lost after it was written to {SYMBOLS}.")
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
        raise _NotStoredError(f"A bar {why} {BARS}.")
    cursor.execute(
        f"""
        select bar.open::float8, bar.high::float8, bar.low::float8, bar.close::float8,
          bar.volume::float8, bar.vwap::float8, bar.trades::float8
        from {BARS} bar join {SYMBOLS} s on s.id = bar.ticker_id
        where s.symbol = %s and bar.ts = to_timestamp(%s)
        """,
        (symbol, full.start_ms / 1000),
    )
    kept = cursor.fetchall()
    if not kept:
        raise _NotStoredError(f"A bar is not found in {BARS} by its start (ts).")
    for name, value, stored in zip(full._fields[1:], full[1:], kept[0], strict=True):
        if stored != value:
            yield (
                f"{BARS} stores {value} in {name} as {stored}, so each call rewrites the bars"
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
            f"select metadata -> 'last_update' ->> 'last_price' from {SYMBOLS} where symbol = %s",
            (symbol,),
        )
        if cursor.fetchall() != [("1.08345",)]:
            raise _NotStoredError(
                f"A last price is lost after it was written to {SYMBOLS}.metadata."
            )
    yield from ()


def _status(cursor: Cursor, symbol: str) -> Iterator[str]:
    market.save_status(cursor, [symbol])
    market.save_status(cursor, [symbol], "The provider does not answer.")
    cursor.execute(
        f"""
        select status.sync_status from {STATUS} status
        join {SYMBOLS} s on s.id = status.ticker_id join {PROVIDERS} p on p.id = status.provider_id
        where s.symbol = %s and p.code = %s
        """,
        (symbol, CODE),
    )
    if cursor.fetchall() != [("error",)]:
        raise _NotStoredError(f"A sync status is lost after it was written to {STATUS}.")
    yield from ()
