"""`asset-sync assets list | add | remove`: what is kept fresh; `reference` has the rest."""

import json
import os
import re
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from asset_sync.cli.options import (
    Common,
    Config,
    Json,
    PlainUsage,
    Quiet,
    Verbose,
    common,
    complain,
    exactly,
)
from asset_sync.model import Asset, AssetType, Level
from asset_sync.provider.polygon.markets import MARKETS

if TYPE_CHECKING:
    from asset_sync.assetfile.edit import Change
    from asset_sync.database import Connection
    from asset_sync.settings import Settings

app = typer.Typer(help="See and choose which assets are kept fresh.", no_args_is_help=True)

LevelOption = Annotated[
    Level, typer.Option("--level", help="critical: fetched in each cycle, before all others.")
]
Every = Annotated[
    int, typer.Option("--every", metavar="SECONDS", min=1, help="How old the data may get.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the blocks, and write nothing.")]


@app.command("list")
def assets_list(
    context: typer.Context,
    as_json: Json = False,
    config: Config = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """List the assets of the settings file, and when each was last refreshed.

    Example: asset-sync assets list --json
    """
    options = common(context, config, quiet, verbose)
    settings = options.settings()
    from asset_sync import database  # noqa: PLC0415

    left: list[str] | None = None
    try:
        with database.session(settings.conninfo) as db:
            fresh = _last_success(db, settings)
            left = left_the_file(db, settings)
    except database.DatabaseError as error:
        # The database need not be there to list what the file says.
        complain(f"When they were last refreshed is not known: {error}")
        fresh = {}
    if as_json:
        told = {"assets": _as_json(settings, fresh), "left_the_file": left}
        exactly(json.dumps(told, indent=2))
    else:
        _show(settings, fresh)
        tell_left(options, left or ())


def left_the_file(db: "Connection", settings: "Settings") -> list[str]:
    """Return the symbols that the queue has and the settings no longer name."""
    from asset_sync.queue import admin  # noqa: PLC0415

    named = {asset.symbol for asset in settings.named}
    return [symbol for symbol in admin.symbols(db) if symbol not in named]


def tell_left(options: Common, left: Sequence[str]) -> None:
    """Say which assets are left over in the queue; they are forgotten only by command."""
    if left:
        from asset_sync.cli.log import names  # noqa: PLC0415

        options.say(
            f"Left over in the queue, not in the settings: {names(left)}. To forget what the queue"
            f" knows: asset-sync queue remove {' '.join(left)}"
        )


@app.command("add", cls=PlainUsage)
def assets_add(
    context: typer.Context,
    symbol: Annotated[str, typer.Argument(metavar="SYMBOL", help="Your name for it: EURCHF.")],
    ticker: Annotated[
        str | None,
        typer.Option(
            "--ticker",
            metavar="TICKER",
            help="The provider's: C:EURCHF; without, the type's prefix and the symbol.",
            show_default=False,
        ),
    ] = None,
    asset_type: Annotated[
        AssetType | None,
        typer.Option(
            "--type", help="Metals are forex; without, what the ticker says.", show_default=False
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", help="For people; without, the symbol.", show_default=False),
    ] = None,
    level: LevelOption = Level.MEDIUM,
    every: Every = 300,
    dry_run: DryRun = False,
    as_json: Json = False,
    config: Config = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Append an asset to the settings file; all that stands there stays as it is.

    Example: asset-sync assets add EURCHF --type forex
    """
    options = common(context, config, quiet, verbose)
    settings = options.settings()
    _check_symbol(symbol)
    kind, ticker = _guessed(symbol, ticker, asset_type)
    asset = Asset(symbol, ticker, kind, symbol if name is None else name, level, 0, every)
    twin = next((one for one in settings.named if one.ticker == ticker), None)
    _write(options, settings, [asset], dry_run, as_json)
    if twin is not None:
        options.say(f"{ticker} is kept fresh as {twin.symbol} already; this costs its calls twice.")


@app.command("remove", cls=PlainUsage)
def assets_remove(
    context: typer.Context,
    symbols: Annotated[list[str], typer.Argument(metavar="SYMBOL…", help="Which assets.")],
    dry_run: DryRun = False,
    as_json: Json = False,
    config: Config = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Remove assets from the settings file; everything else in it stays as it is.

    Comment lines directly above an asset's block go with it. Bars and prices stay.

    Example: asset-sync assets remove EURCHF
    """
    from asset_sync.assetfile import edit  # noqa: PLC0415
    from asset_sync.cli.symbols import known_symbols  # noqa: PLC0415

    options = common(context, config, quiet, verbose)
    settings = options.settings()
    known = {asset.symbol: asset for asset in settings.named}
    chosen = known_symbols(symbols, known, "The settings name no asset", "assets list")
    act = edit.preview_removal if dry_run else edit.remove
    removal = act(settings, chosen, os.environ)
    left = _still_queued(options, settings, chosen)
    if as_json:
        told = {
            **_change_as_json(removal, written=not dry_run),
            "removed": [_asset_as_json(known[symbol]) for symbol in chosen],
            "left_in_queue": left,
        }
        exactly(json.dumps(told, indent=2))
        return
    if dry_run:
        exactly(removal.blocks.rstrip("\n"))
        options.say(f"This would be removed from {removal.path}; nothing was written.")
    else:
        options.confirm(f"Removed {', '.join(chosen)} from {removal.path}")
    _tell_copied(options, removal, dry_run)
    if left and not dry_run:
        tell_left(options, left)


def _still_queued(
    options: Common, settings: "Settings", symbols: Sequence[str]
) -> list[str] | None:
    """Return which of the symbols the queue has; None where the database cannot say."""
    from asset_sync import database  # noqa: PLC0415
    from asset_sync.queue import admin  # noqa: PLC0415

    try:
        with database.session(settings.conninfo) as db:
            queued = admin.symbols(db)
    except database.DatabaseError as error:
        options.say(f"Whether the queue still has them is not known: {error}")
        return None
    return [symbol for symbol in symbols if symbol in queued]


def _check_symbol(symbol: str) -> None:
    """Refuse what cannot be a symbol, with the command that was probably meant."""
    from asset_sync.settings import SYMBOL_PATTERN  # noqa: PLC0415

    if re.fullmatch(SYMBOL_PATTERN, symbol) or ":" in symbol:  # `_guessed` explains a ticker
        return
    rule = "A symbol is 1 to 32 of A-Z 0-9 . _ -, in upper case"
    if not re.fullmatch(SYMBOL_PATTERN, symbol.upper()):
        raise typer.BadParameter(f"{rule}; {symbol!r} is not one.")
    words = [word.upper() if word == symbol else word for word in sys.argv[1:]]
    raise typer.BadParameter(f"{rule}: asset-sync {shlex.join(words)}")


def _guessed(symbol: str, ticker: str | None, kind: AssetType | None) -> tuple[AssetType, str]:
    """Return type and ticker, of which each tells the other."""
    for prefix in (market.prefix for market in MARKETS.values()):
        if symbol.startswith(prefix):
            own = symbol.removeprefix(prefix)
            raise typer.BadParameter(
                f"{symbol} is a ticker; SYMBOL is your own name for it:"
                f" asset-sync assets add {own} --ticker {symbol}"
            )
    if kind is None and ticker is not None:
        kind = next((one for one in AssetType if ticker.startswith(MARKETS[one].prefix)), None)
    if kind is None and ticker is not None:
        prefixes = " nor ".join(f"{MARKETS[one].prefix} ({one})" for one in AssetType)
        raise typer.BadParameter(f"The ticker {ticker!r} begins with neither {prefixes}.")
    if kind is None:
        choices = " or ".join(
            f"--type {one} (ticker {MARKETS[one].prefix}{symbol})" for one in AssetType
        )
        raise typer.BadParameter(f"Say what {symbol} is: {choices}, or its --ticker.")
    return kind, f"{MARKETS[kind].prefix}{symbol}" if ticker is None else ticker


def _write(
    options: Common, settings: "Settings", assets: Sequence[Asset], dry_run: bool, as_json: bool
) -> None:
    """Add the assets to the settings file, or show what would be added."""
    from asset_sync.assetfile import edit  # noqa: PLC0415

    if dry_run:
        addition = edit.preview(settings, assets, os.environ)
    else:
        addition = edit.add(settings, assets, os.environ)
    if as_json:
        exactly(json.dumps(addition_as_json(addition, assets, written=not dry_run), indent=2))
        return
    if dry_run:
        exactly(addition.blocks.rstrip("\n"))
    tell_added(options, addition, assets, dry_run)


def tell_added(options: Common, addition: "Change", assets: Sequence[Asset], dry_run: bool) -> None:
    """Say what went where, or would."""
    if dry_run:
        options.say(f"This would go to the end of {addition.path}; nothing was written.")
    else:
        one = assets[0]
        added = f"{one.symbol} ({one.ticker}, {one.level})"
        many = added if len(assets) == 1 else f"{len(assets)} assets"
        options.confirm(f"Added {many} to {addition.path}")
    _tell_copied(options, addition, dry_run)


def _tell_copied(options: Common, change: "Change", dry_run: bool) -> None:
    if change.copied:
        made, holds = ("would be", "would be used") if dry_run else ("is", "is used")
        options.say(
            "The settings in use came with the program and are not changed;"
            f" {change.path} {made} a copy of them and {holds} from now on."
        )


def addition_as_json(
    addition: "Change", assets: Sequence[Asset], *, written: bool
) -> dict[str, object]:
    """Return what went where, or would, for a program."""
    added = [_asset_as_json(asset) for asset in assets]
    return {**_change_as_json(addition, written=written), "added": added}


def _change_as_json(change: "Change", *, written: bool) -> dict[str, object]:
    return {
        "file": str(change.path),
        "written": written,
        "copied_from_shipped": change.copied,
    }


def show_assets(db: "Connection", settings: "Settings") -> int:
    """Print the assets and return how many have ever been refreshed."""
    fresh = _last_success(db, settings)
    _show(settings, fresh)
    return len(fresh)


def _last_success(db: "Connection", settings: "Settings") -> dict[str, datetime]:
    from asset_sync import queue  # noqa: PLC0415

    return queue.last_success(db, [asset.symbol for asset in settings.named])


def _show(settings: "Settings", fresh: dict[str, datetime]) -> None:
    from asset_sync.cli.format import duration, moment, table  # noqa: PLC0415

    rows = [
        [
            asset.symbol,
            asset.ticker,
            asset.asset_type.value,
            "off" if asset in settings.switched_off else asset.level.value,
            duration(asset.update_frequency_seconds),
            moment(fresh.get(asset.symbol)),
        ]
        for asset in settings.named
    ]
    columns = ["symbol", "ticker", "type", "level", ">every", "last refreshed (UTC)"]
    exactly(table(columns, rows, spare=["type", ">every", "ticker"]))


def _as_json(settings: "Settings", fresh: dict[str, datetime]) -> list[dict[str, object]]:
    return [
        {
            **_asset_as_json(asset),
            "enabled": asset not in settings.switched_off,
            "last_success_at": fresh[asset.symbol].astimezone(UTC).isoformat()
            if asset.symbol in fresh
            else None,
        }
        for asset in settings.named
    ]


def _asset_as_json(asset: Asset) -> dict[str, object]:
    return {
        "symbol": asset.symbol,
        "ticker": asset.ticker,
        "asset_type": asset.asset_type.value,
        "name": asset.name,
        "level": asset.level.value,
        "update_frequency_seconds": asset.update_frequency_seconds,
    }
