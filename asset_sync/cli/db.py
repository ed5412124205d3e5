"""`asset-sync db init | status | serve | url`."""

import json
import threading
from contextlib import suppress
from functools import partial

import typer

from asset_sync import database
from asset_sync.cli.options import Common, Json, with_common_options
from asset_sync.cli.output import err, out, out_raw
from asset_sync.cli.settings import settings_for
from asset_sync.database import EMBEDDED_DATABASE, SchemaStatus, embedded
from asset_sync.database.embedded import data_directory
from asset_sync.errors import ExitCode
from asset_sync.model import Lane
from asset_sync.store import existing_tables, expected
from asset_sync.sync.apply import recount
from asset_sync.sync.scope import scope_of


@with_common_options
def db_init(
    options: Common,
) -> None:
    """Create the missing schemas and tables. Existing tables stay as they are.

    Example: DATABASE_URL=postgresql://me@localhost/market asset-sync db init
    """
    settings = settings_for(options)
    with database.raw_session(settings.conninfo) as db:
        hold = settings.rate_limit.period_seconds + settings.provider.call_timeout_seconds
        applied = database.migrate(db, hold_seconds=hold)
        status = existing_tables.status(db, settings.assets)
        if status.ready:
            past_days = settings.provider.plan.history_days
            count_again = partial(recount, scope_of(db, settings, Lane.QUEUE))
            expected.keep(db, settings.assets, past_days, count_again, anew=True)
    for step in applied:
        options.say(f"Applied {step.version:04} {step.name}.")
    if status.missing:
        raise database.NotInitialisedError(
            f"{', '.join(status.missing)} cannot be created beside the existing tables: restore it"
            " from a backup, or `drop schema asset_sync cascade` and run this again; that deletes"
            " queue and history, and keeps bars and prices."
        )
    if status.problems:
        raise database.NotInitialisedError("\n".join(status.problems))
    for note in status.notes:
        options.say(f"Note: {note}")
    options.say(f"The schema is at version {status.version}; nothing is missing.")


@with_common_options
def db_status(
    options: Common,
    as_json: Json = False,
) -> None:
    """Say which version the schema has and what is missing; exit 3 if a sync could not run.

    Example: asset-sync db status --json
    """
    settings = settings_for(options)
    with database.raw_session(settings.conninfo) as db:
        if settings.conninfo is None:
            database.migrate(db)
        status = existing_tables.status(db, settings.assets)
    where = "embedded" if settings.conninfo is None else "server"
    if as_json:
        document = {"database": where, "ready": status.ready, **status._asdict()}
        out_raw(json.dumps(document, indent=2))
    else:
        _show(status, where)
    if not status.ready:
        raise typer.Exit(ExitCode.DATABASE)


def _show(status: SchemaStatus, where: str) -> None:
    if where == "embedded":
        out(f"Embedded PostgreSQL {status.server}, data in {data_directory()}")
        out("It runs while a command does; `asset-sync db serve` keeps it up for other readers.")
    else:
        out(f"PostgreSQL {status.server}")
    out(f"Schema version {status.version} of {status.wanted}")
    for name in status.missing:
        out(f"missing: {name}")
    for problem in status.problems:
        out(f"problem: {problem}")
    for note in status.notes:
        out(f"note: {note}")
    cure = "" if status.complete else ": run `asset-sync db init`"
    out("Ready." if status.ready else f"Not ready{cure}.")


@with_common_options
def db_serve(
    options: Common,
) -> None:
    """Keep the embedded PostgreSQL up for other readers, until Ctrl-C.

    Example: asset-sync db serve, and elsewhere: psql "$(asset-sync db url)"
    """
    if settings_for(options).conninfo is not None:
        err("asset-sync: a server is configured (DATABASE_URL, DB_… or PG…): nothing to serve.")
        raise typer.Exit(ExitCode.USAGE)
    with database.session(None):
        out_raw(_embedded_address())
        options.say("Up until Ctrl-C.")
        with suppress(KeyboardInterrupt):
            threading.Event().wait()
    options.say(f"Stopped; the data is in {embedded.data_directory()}.")


@with_common_options
def db_url(
    options: Common,
) -> None:
    """Print the database's URL, for psql, SQLAlchemy and the like; a server's has no password.

    Example: psql "$(asset-sync db url)"
    """
    settings = settings_for(options)
    if settings.conninfo is not None:
        out_raw(database.address_of(settings.conninfo).url())
        return
    out_raw(_embedded_address())
    if not embedded.is_up(embedded.data_directory()):
        options.say("It is not up: start `asset-sync db serve` first.")


def _embedded_address() -> str:
    return embedded.address(embedded.data_directory(), EMBEDDED_DATABASE)
