"""`asset-sync assets list`."""

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import typer

from asset_sync.cli.options import Config, Json, Quiet, Verbose, common, complain, exactly

if TYPE_CHECKING:
    from asset_sync.database import Connection
    from asset_sync.settings import Settings

app = typer.Typer(help="See which assets are kept fresh.", no_args_is_help=True)


@app.command("list")
def assets_list(
    context: typer.Context,
    as_json: Json = False,
    config: Config = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """List the assets of the settings file, and when each was last fresh.

    Example: asset-sync assets list --json
    """
    settings = common(context, config, quiet, verbose).settings()
    from asset_sync import database, embedded  # noqa: PLC0415

    try:
        with database.session(settings.conninfo) as db:
            fresh = _last_success(db, settings)
    except (database.DatabaseError, embedded.EmbeddedError) as error:
        # The database need not be there to list what the file says.
        complain(f"When they were last fresh is not known: {error}")
        fresh = {}
    if as_json:
        exactly(json.dumps({"assets": _as_json(settings, fresh)}, indent=2))
    else:
        _show(settings, fresh)


def show_assets(db: "Connection", settings: "Settings") -> int:
    """Print the assets and return how many have ever been fresh."""
    fresh = _last_success(db, settings)
    _show(settings, fresh)
    return len(fresh)


def _last_success(db: "Connection", settings: "Settings") -> dict[str, datetime]:
    from asset_sync import queue  # noqa: PLC0415

    return queue.last_success(db, [asset.symbol for asset in settings.assets])


def _show(settings: "Settings", fresh: dict[str, datetime]) -> None:
    from asset_sync.cli.show import duration, moment, table  # noqa: PLC0415

    rows = [
        [
            asset.symbol,
            asset.ticker,
            asset.asset_type.value,
            asset.level.value,
            duration(asset.update_frequency_seconds),
            moment(fresh.get(asset.symbol)),
        ]
        for asset in settings.assets
    ]
    exactly(table(["symbol", "ticker", "type", "level", ">every", "last fresh (UTC)"], rows))


def _as_json(settings: "Settings", fresh: dict[str, datetime]) -> list[dict[str, object]]:
    return [
        {
            "symbol": asset.symbol,
            "ticker": asset.ticker,
            "asset_type": asset.asset_type.value,
            "name": asset.name,
            "level": asset.level.value,
            "update_frequency_seconds": asset.update_frequency_seconds,
            "last_success_at": fresh[asset.symbol].astimezone(UTC).isoformat()
            if asset.symbol in fresh
            else None,
        }
        for asset in settings.assets
    ]
