"""Creates and checks the schema, and finds the rights that the role lacks."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import psycopg2
import psycopg2.errors
import psycopg2.extensions

from asset_sync.database.connection import Connection, query, transaction
from asset_sync.database.errors import NotInitialisedError
from asset_sync.provider.current import CODE


class Migration(NamedTuple):
    """One numbered step of the schema."""

    version: int
    name: str
    sql: str


class SchemaStatus(NamedTuple):
    """What the database has, compared with what this program needs."""

    server: str
    """The server's version: `18.6`."""
    version: int
    """The last migration applied; 0 for none."""
    wanted: int
    missing: tuple[str, ...]
    """Tables that are not there."""
    problems: tuple[str, ...]
    """Sentences that say what keeps a sync from running."""
    notes: tuple[str, ...] = ()
    """Warnings that keep no sync from running."""

    @property
    def complete(self) -> bool:
        """Whether all tables are there, at this program's version."""
        return self.version == self.wanted and not self.missing

    @property
    def ready(self) -> bool:
        """Whether a sync can run."""
        return self.complete and not self.problems


class PlatformTable(NamedTuple):
    """What a table of the platform must have so that asset-sync can write to it."""

    name: str
    columns: tuple[str, ...]
    unique: tuple[str, ...]
    """The columns of the unique index that `on conflict` needs."""
    left_to_defaults: tuple[str, ...] = ()
    """Columns for which asset-sync's new rows have no value."""
    written_if_present: tuple[str, ...] = ()
    """Optional columns, for which asset-sync's new rows have a value if they exist."""


PROVIDERS = "data_sources.api_providers"
PLATFORM_TABLES = (
    PlatformTable(
        "trading.symbols",
        ("id", "symbol", "name", "asset_type", "metadata", "updated_at"),
        ("symbol",),
        left_to_defaults=("id", "metadata", "updated_at"),
    ),
    PlatformTable(
        PROVIDERS,
        ("id", "code"),
        ("code",),
        left_to_defaults=("id",),
        written_if_present=("name",),
    ),
    PlatformTable(
        "data_sources.data_sync_status",
        (
            "ticker_id",
            "provider_id",
            "last_sync_timestamp",
            "sync_status",
            "error_message",
            "updated_at",
        ),
        ("ticker_id", "provider_id"),
    ),
    PlatformTable(
        "market_data.ohlcv_5m",
        ("ticker_id", "ts", "open", "high", "low", "close", "volume", "vwap", "trades"),
        ("ticker_id", "ts"),
    ),
)
OWN_TABLES = (
    *("migrations", "runs", "queue", "calls", "limiter", "slots", "entitlements"),
    *("ledger", "weeks", "lags", "revisions", "arrivals"),
    *("symbol_hours", "expected_bars"),
)


def migrations() -> tuple[Migration, ...]:
    """Return the migrations that come with the program, in order."""
    files = sorted((Path(__file__).parent / "migrations").glob("*.sql"))
    return tuple(
        Migration(int(file.stem[:4]), file.stem[5:], file.read_text("utf-8")) for file in files
    )


def migrate(db: Connection, *, hold_seconds: float = 90) -> tuple[Migration, ...]:
    """Bring the schema up to date in one transaction and return the migrations applied.

    Processes that do this at the same time wait for each other; the later ones find nothing to do.
    Existing platform tables stay as they are. Raises NotInitialisedError, and changes nothing, if
    they do not fit or a newer program has changed the schema.

    If a restore has lost the rows, it adds the record of the migrations, the provider and the
    limiter's row again. Then it is not known which calls were made, so no call is made for
    `hold_seconds`: a window and the longest time of a call.
    """
    from asset_sync.database.larger_bars import (  # noqa: PLC0415  no run needs it
        make_readable,
    )

    known = migrations()
    with transaction(db) as cursor:
        cursor.execute("select pg_advisory_xact_lock(hashtext('asset-sync migrations'))")
        recorded, version = _recorded_version(db), _version_by_tables(db)
        if recorded > known[-1].version:
            raise _other_version(recorded)
        problems = _platform_problems(db)
        if problems:
            raise NotInitialisedError("\n".join(problems))
        pending = tuple(step for step in known if step.version > (recorded or version))
        # Migration 1, the platform's tables, creates only what is missing: it is always run.
        if known[0] not in pending:
            cursor.execute(known[0].sql)
        for step in pending:
            cursor.execute(step.sql)
        for step in known:
            if step.version > recorded:
                cursor.execute(
                    "insert into asset_sync.migrations (version, name) values (%s, %s)",
                    (step.version, step.name),
                )
        if _table_exists(db, "asset_sync.limiter") and not _has_limiter_row(db):
            cursor.execute(
                """
                insert into asset_sync.limiter (blocked_at, blocked_until)
                select now, now + make_interval(secs => %s) from clock_timestamp() as now
                """,
                (hold_seconds,),
            )
        make_readable(cursor)
    return pending


def require_schema(db: Connection) -> None:
    """Raise NotInitialisedError unless the schema is the one this program was written for.

    It uses a transaction: a PgBouncer that allows no transactions is noticed before any work.
    """
    try:
        with transaction(
            db,
            "select max(version), exists (select from asset_sync.limiter)"
            " from asset_sync.migrations",
        ) as cursor:
            [(recorded, has_limiter)] = cursor.fetchall()
    except (psycopg2.errors.UndefinedTable, psycopg2.errors.InvalidSchemaName):
        recorded, has_limiter = _recorded_version(db), True
    version = int(recorded or 0)
    if version != _newest_version():
        raise _other_version(version)
    if not has_limiter:
        raise NotInitialisedError(_NO_LIMITER)


def _other_version(version: int) -> NotInitialisedError:
    wanted = _newest_version()
    if version == 0:
        return NotInitialisedError(
            "This database has not been initialised for asset-sync: run `asset-sync db init`."
        )
    if version < wanted:
        return NotInitialisedError(
            f"The database's schema is at version {version}, this program needs {wanted}: run "
            "`asset-sync db init`."
        )
    return NotInitialisedError(
        f"The database's schema is at version {version}, this program knows {wanted}: a newer "
        "asset-sync has changed it; upgrade this one."
    )


def status(db: Connection) -> SchemaStatus:
    """Return which version the schema has, what is missing and what does not fit."""
    tables = [table.name for table in PLATFORM_TABLES]
    tables += [f"asset_sync.{name}" for name in OWN_TABLES]
    with transaction(db):  # raises here if a PgBouncer allows no transactions
        missing = [name for name in tables if not _table_exists(db, name)]
        server = str(query(db, "select current_setting('server_version')")[0][0])
        return SchemaStatus(
            server=server.split(maxsplit=1)[0],
            version=_recorded_version(db),
            wanted=_newest_version(),
            missing=tuple(missing),
            problems=(*_server_problems(db), *_platform_problems(db), *_lost_rows(db, missing)),
        )


def _server_problems(db: Connection) -> Iterator[str]:
    """Yield the reason why no table of this server can be written, if there is one."""
    [(standby, read_only)] = query(
        db, "select pg_is_in_recovery(), current_setting('default_transaction_read_only')::boolean"
    )
    if standby:
        yield (
            "The server is a standby, which can only be read: name the primary, or all hosts and "
            "target_session_attrs=read-write."
        )
    elif read_only:
        yield (
            "The database or the role is set to read only (default_transaction_read_only): point "
            "asset-sync to one that can be written."
        )


_NO_LIMITER = (
    "asset_sync.limiter has lost its row, without which no call can be made: `asset-sync db init` "
    "adds it."
)


def _lost_rows(db: Connection, missing: Sequence[str]) -> Iterator[str]:
    """Yield which rows that `db init` writes are missing, for example after a restore."""
    if "asset_sync.limiter" not in missing and not _has_limiter_row(db):
        yield _NO_LIMITER
    initialised = "asset_sync.limiter" not in missing and PROVIDERS not in missing
    if initialised and _has_column(db, PROVIDERS, "code") and not _has_provider_row(db):
        yield f"{PROVIDERS} has no row with the code {CODE!r}: `asset-sync db init` adds it."


def lacking_rights(db: Connection) -> tuple[str, ...]:
    """Return the rights that a run needs and this role lacks: `insert on market_data.ohlcv_5m`."""
    rows = query(
        db,
        """
        select privilege || ' on ' || name
        from unnest(%s::text[], %s::text[], %s::text[]) as needed (name, privilege, columns)
        where not case
          when columns = '' then has_table_privilege(name, privilege)
          else (
            select bool_and(has_column_privilege(name, one, privilege))
            from unnest(string_to_array(columns, ' ')) as one
          ) end
        """,
        [list(part) for part in zip(*_RIGHTS, strict=True)],
    )
    return tuple(right for (right,) in rows)


# What docs/json-and-tables.md grants: table, right, and columns if not the whole table.
_RIGHTS = (
    ("trading.symbols", "select", "id symbol metadata"),
    ("trading.symbols", "insert", "symbol name asset_type"),
    ("trading.symbols", "update", "metadata updated_at"),
    ("data_sources.api_providers", "select", "id code"),
    *(
        (table, right, "")
        for tables, rights in (
            (("data_sources.data_sync_status", "market_data.ohlcv_5m"), "select insert update"),
            (("asset_sync.migrations",), "select"),
            (("asset_sync.limiter",), "select update"),
            (
                (
                    *("asset_sync.queue", "asset_sync.slots", "asset_sync.entitlements"),
                    "asset_sync.ledger",
                ),
                "select insert update",
            ),
            (
                (
                    *("asset_sync.runs", "asset_sync.weeks"),
                    *("asset_sync.symbol_hours", "asset_sync.expected_bars"),
                ),
                "select insert update delete",
            ),
            (
                (
                    *("asset_sync.calls", "asset_sync.revisions", "asset_sync.arrivals"),
                    "asset_sync.lags",
                ),
                "select insert delete",
            ),
        )
        for table in tables
        for right in rights.split()
    ),
)


def _newest_version() -> int:
    return max(int(file.name[:4]) for file in (Path(__file__).parent / "migrations").glob("*.sql"))


def _recorded_version(db: Connection) -> int:
    """Return the last migration that is recorded, 0 for none."""
    if not _table_exists(db, "asset_sync.migrations"):
        return 0
    [(version,)] = query(db, "select max(version) from asset_sync.migrations")
    return int(version or 0)


# A table that each migration makes. It shows the version if the rows of asset_sync.migrations are
# lost. Migration 1 is not here: it can be run again at any time.
_TABLE_OF_MIGRATION = {
    2: "asset_sync.queue",
    3: "asset_sync.entitlements",
    4: "asset_sync.ledger",
    5: "asset_sync.expected_bars",
}


def _version_by_tables(db: Connection) -> int:
    """Return the last migration whose tables exist, 0 for none."""
    versions = (
        version for version, table in _TABLE_OF_MIGRATION.items() if _table_exists(db, table)
    )
    return max(versions, default=0)


def _table_exists(db: Connection, table: str) -> bool:
    """Return whether a table exists now.

    `to_regclass` would answer from the session's cache: it does not see tables that another
    transaction made while this one waited for its lock.
    """
    return bool(
        query(
            db,
            """
            select from pg_catalog.pg_class c
            join pg_catalog.pg_namespace n on n.oid = c.relnamespace
            where n.nspname = %s and c.relname = %s
            """,
            table.split("."),
        )
    )


def _has_limiter_row(db: Connection) -> bool:
    return bool(query(db, "select from asset_sync.limiter"))


def _has_column(db: Connection, table: str, column: str) -> bool:
    return bool(
        query(
            db,
            """
            select from pg_catalog.pg_attribute
            where attrelid = to_regclass(%s) and attname = %s and not attisdropped
            """,
            (table, column),
        )
    )


def _platform_problems(db: Connection) -> list[str]:
    """Return a sentence for each reason why an existing platform table cannot be used."""
    problems = []
    for table in PLATFORM_TABLES:
        rows = query(
            db,
            """
            select a.attname, a.attnotnull and a.attidentity = '' and a.attgenerated = ''
                and not a.atthasdef
            from pg_attribute a
            where a.attrelid = to_regclass(%s) and a.attnum > 0 and not a.attisdropped
            """,
            (table.name,),
        )
        if not rows:
            continue  # the table does not exist: it will be made
        columns = {name for name, _ in rows}
        # If the provider's row exists, nothing is written to the table of providers.
        complete = table.name == PROVIDERS and "code" in columns and _has_provider_row(db)
        written = {*table.columns, *table.written_if_present}.difference(table.left_to_defaults)
        problems += [
            f"The existing table {table.name} has no column {name}, which asset-sync writes: add "
            "it, or point asset-sync to another database."
            for name in table.columns
            if name not in columns
        ]
        problems += [
            f"The existing table {table.name} requires a value for {name}, which asset-sync does "
            "not give: give the column a default."
            for name, required in rows
            if required and name not in written and not complete
        ]
        if set(table.unique) <= columns and not _has_unique_index(db, table):
            listed = ", ".join(table.unique)
            problems.append(
                f"The existing table {table.name} has no unique index on ({listed}): "
                f"`create unique index on {table.name} ({listed})`."
            )
    return problems


def _has_provider_row(db: Connection) -> bool:
    return bool(query(db, f"select from {PROVIDERS} where code = %s", (CODE,)))


def _has_unique_index(db: Connection, table: PlatformTable) -> bool:
    [(found,)] = query(
        db,
        """
        select exists (
          select from pg_index i
          where i.indrelid = to_regclass(%s) and i.indisunique and i.indimmediate and i.indisvalid
            and i.indpred is null and i.indexprs is null
            and (select array_agg(a.attname::text order by a.attname::text)
                 from unnest(i.indkey[0:i.indnkeyatts - 1]) as k(attnum)
                 join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum)
              = %s::text[]
        )
        """,
        (table.name, sorted(table.unique)),
    )
    return bool(found)
