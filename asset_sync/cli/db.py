"""`asset-sync db init | status | serve | url`."""

import json
import threading
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from asset_sync.cli.options import Config, Json, Quiet, Verbose, answer, common, complain, exactly
from asset_sync.errors import ExitCode

if TYPE_CHECKING:
    from asset_sync.database import SchemaStatus

app = typer.Typer(help="Set up and look at the database.", no_args_is_help=True)


@app.command("init")
def db_init(
    context: typer.Context,
    config: Config = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Make what is missing: schemas, tables, their comments. Existing tables stay as they are.

    Example: DATABASE_URL=postgresql://me@localhost/market asset-sync db init
    """
    from asset_sync import database  # noqa: PLC0415
    from asset_sync.store import existing_tables  # noqa: PLC0415

    options = common(context, config, quiet, verbose)
    settings = options.settings()
    with database.raw_session(settings.conninfo) as db:
        hold = settings.rate_limit.period_seconds + settings.provider.call_timeout_seconds
        applied = database.migrate(db, hold_seconds=hold)
        status = existing_tables.status(db, settings.assets)
    for step in applied:
        options.say(f"Applied {step.version:04} {step.name}.")
    if status.missing:
        raise database.NotInitialisedError(
            f"{', '.join(status.missing)} cannot be made anew beside what is there: restore it from"
            " a backup, or `drop schema asset_sync cascade` and run this again; that forgets queue "
            "and history, and keeps bars and prices."
        )
    if status.problems:
        raise database.NotInitialisedError("\n".join(status.problems))
    for note in status.notes:
        options.say(f"Note: {note}")
    options.say(f"The schema is at version {status.version}; nothing is missing.")


@app.command("status")
def db_status(
    context: typer.Context,
    as_json: Json = False,
    config: Config = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Say which version the schema has and what is missing; exit 3 if a sync could not run.

    Example: asset-sync db status --json
    """
    from asset_sync import database  # noqa: PLC0415
    from asset_sync.store import existing_tables  # noqa: PLC0415

    settings = common(context, config, quiet, verbose).settings()
    with database.raw_session(settings.conninfo) as db:
        if settings.conninfo is None:
            database.migrate(db)
        status = existing_tables.status(db, settings.assets)
    where = "embedded" if settings.conninfo is None else "server"
    if as_json:
        exactly(json.dumps({"database": where, "ready": status.ready, **asdict(status)}, indent=2))
    else:
        _show(status, where)
    if not status.ready:
        raise typer.Exit(ExitCode.DATABASE)


def _show(status: "SchemaStatus", where: str) -> None:
    if where == "embedded":
        from asset_sync.database.embedded import data_directory  # noqa: PLC0415

        answer(f"Embedded PostgreSQL {status.server}, data in {data_directory()}")
        answer("It runs while a command does; `asset-sync db serve` keeps it up for other readers.")
    else:
        answer(f"PostgreSQL {status.server}")
    answer(f"Schema version {status.version} of {status.wanted}")
    for name in status.missing:
        answer(f"missing: {name}")
    for problem in status.problems:
        answer(f"problem: {problem}")
    for note in status.notes:
        answer(f"note: {note}")
    cure = "" if status.complete else ": run `asset-sync db init`"
    answer("Ready." if status.ready else f"Not ready{cure}.")


@app.command("serve")
def db_serve(
    context: typer.Context,
    config: Config = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Keep the embedded PostgreSQL up for other readers, until Ctrl-C.

    Example: asset-sync db serve, and elsewhere: psql "$(asset-sync db url)"
    """
    from asset_sync import database  # noqa: PLC0415
    from asset_sync.database import embedded  # noqa: PLC0415

    options = common(context, config, quiet, verbose)
    if options.settings().conninfo is not None:
        complain(
            "asset-sync: a server is configured (DATABASE_URL, DB_… or PG…), which runs by itself."
        )
        raise typer.Exit(ExitCode.USAGE)
    with database.session(None):
        exactly(_embedded_address())
        options.say("Up until Ctrl-C.")
        with suppress(KeyboardInterrupt):
            threading.Event().wait()
    options.say(f"Stopped; the data is in {embedded.data_directory()}.")


@app.command("url")
def db_url(
    context: typer.Context,
    config: Config = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Print the database's URL, for psql, SQLAlchemy and the like; a server's has no password.

    Example: psql "$(asset-sync db url)"
    """
    from asset_sync import database  # noqa: PLC0415
    from asset_sync.database import embedded  # noqa: PLC0415

    options = common(context, config, quiet, verbose)
    settings = options.settings()
    if settings.conninfo is not None:
        exactly(database.address_of(settings.conninfo).url())
        return
    exactly(_embedded_address())
    if not embedded.is_up(embedded.data_directory()):
        options.say("It is not up: start `asset-sync db serve` first.")


def _embedded_address() -> str:
    from asset_sync.database import EMBEDDED_DATABASE, embedded  # noqa: PLC0415

    return embedded.address(embedded.data_directory(), EMBEDDED_DATABASE)
