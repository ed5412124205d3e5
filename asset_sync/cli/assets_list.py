"""`asset-sync assets list`: which assets are kept fresh, and since when."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime

from asset_sync import database, queue
from asset_sync.cli.format import duration, moment, table
from asset_sync.cli.log import names
from asset_sync.cli.options import (
    Common,
    Json,
    with_common_options,
)
from asset_sync.cli.output import err, out_raw
from asset_sync.cli.queue_status import age_as_json
from asset_sync.cli.settings import settings_for
from asset_sync.database import Connection
from asset_sync.model import Asset
from asset_sync.ops.age import DataAge, ages
from asset_sync.queue import admin
from asset_sync.settings import Settings


@with_common_options
def assets_list(
    options: Common,
    as_json: Json = False,
) -> None:
    """List the assets of the settings file, and when each was last refreshed.

    Example: asset-sync assets list --json
    """
    settings = settings_for(options)
    left: list[str] | None = None
    known: dict[str, DataAge] = {}
    try:
        with database.session(settings.conninfo) as db:
            fresh = _last_success(db, settings)
            known = ages(db, settings.named)
            left = left_the_file(db, settings)
    except database.DatabaseError as error:
        # The assets of the file can be listed without a database.
        err(f"The times of the last refresh could not be read: {error}")
        fresh = {}
    if as_json:
        document = {"assets": _as_json(settings, fresh, known), "left_the_file": left}
        out_raw(json.dumps(document, indent=2))
    else:
        _show(settings, fresh, known)
        tell_left(options, left or ())


def left_the_file(db: Connection, settings: Settings) -> list[str]:
    """Return the symbols that the queue has and the settings no longer name."""
    named = {asset.symbol for asset in settings.named}
    return [symbol for symbol in admin.symbols(db) if symbol not in named]


def tell_left(options: Common, left: Sequence[str]) -> None:
    """Say which assets are left over in the queue; only a command removes them."""
    if left:
        options.say(
            f"Left over in the queue, not in the settings: {names(left)}. To forget what the queue"
            f" knows: asset-sync queue remove {' '.join(left)}"
        )


def show_assets(db: Connection, settings: Settings) -> int:
    """Print the assets and return how many have ever been refreshed."""
    fresh = _last_success(db, settings)
    _show(settings, fresh, ages(db, settings.named))
    return len(fresh)


def _last_success(db: Connection, settings: Settings) -> dict[str, datetime]:
    return queue.last_success(db, [asset.symbol for asset in settings.named])


def _show(settings: Settings, fresh: dict[str, datetime], known: dict[str, DataAge]) -> None:
    rows = [
        [
            asset.symbol,
            asset.ticker,
            asset.asset_type.value,
            "off" if asset in settings.switched_off else asset.level.value,
            duration(asset.update_frequency_seconds),
            moment(fresh.get(asset.symbol)) if asset.symbol in known else "-",
            _data_age(known.get(asset.symbol)),
        ]
        for asset in settings.named
    ]
    columns = ["symbol", "ticker", "type", "level", ">every", "last refreshed (UTC)", ">data age"]
    out_raw(table(columns, rows, spare=["type", ">every", "ticker"]))


def _data_age(known: DataAge | None) -> str:
    """Return how old the newest bar is, if it is over, and whether its market is closed."""
    if known is None:  # the database could not be read
        return "-"
    if known.age_seconds is None:
        return "no bars"
    how_old = duration(known.age_seconds) if known.age_seconds else "running"
    return how_old + (" closed" if known.opens_at else "")


def _as_json(
    settings: Settings, fresh: dict[str, datetime], known: dict[str, DataAge]
) -> list[dict[str, object]]:
    return [
        {
            **asset_as_json(asset),
            "enabled": asset not in settings.switched_off,
            "last_success_at": fresh[asset.symbol].astimezone(UTC).isoformat()
            if asset.symbol in fresh
            else None,
            "data": age_as_json(asset.symbol, known[asset.symbol])
            if asset.symbol in known
            else None,
        }
        for asset in settings.named
    ]


def asset_as_json(asset: Asset) -> dict[str, object]:
    """Return an asset as programs get it."""
    return {
        "symbol": asset.symbol,
        "ticker": asset.ticker,
        "asset_type": asset.asset_type.value,
        "name": asset.name,
        "level": asset.level.value,
        "update_frequency_seconds": asset.update_frequency_seconds,
    }
