"""`asset-sync assets add | remove`: edit the settings file."""

import json
import os
import re
import shlex
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from asset_sync import database
from asset_sync.assetfile import edit
from asset_sync.assetfile.edit import Change
from asset_sync.cli.assets_list import asset_as_json, tell_left
from asset_sync.cli.options import (
    Common,
    Json,
    with_common_options,
)
from asset_sync.cli.output import out_raw
from asset_sync.cli.settings import settings_for
from asset_sync.cli.symbols import known_symbols
from asset_sync.model import Asset, AssetType, Level
from asset_sync.provider.current import MARKETS
from asset_sync.queue import admin
from asset_sync.settings import SYMBOL_PATTERN, Settings

LevelOption = Annotated[
    Level, typer.Option("--level", help="critical: fetched in each cycle, before all others.")
]
Every = Annotated[
    int, typer.Option("--every", metavar="SECONDS", min=1, help="How old the data may get.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the blocks, and write nothing.")]


@with_common_options
def assets_add(
    options: Common,
    symbol: Annotated[str, typer.Argument(metavar="SYMBOL", help="Your name for it: EURCHF.")],
    ticker: Annotated[
        str | None,
        typer.Option(
            "--ticker",
            metavar="TICKER",
            help="The provider's name for it: C:EURCHF. Default: the type's prefix and the symbol.",
            show_default=False,
        ),
    ] = None,
    asset_type: Annotated[
        AssetType | None,
        typer.Option(
            "--type", help="Metals are forex. Default: by the ticker's prefix.", show_default=False
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", help="A readable name. Default: the symbol.", show_default=False),
    ] = None,
    level: LevelOption = Level.MEDIUM,
    every: Every = 300,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Append an asset to the settings file; everything else in it stays as it is.

    Example: asset-sync assets add EURCHF --type forex
    """
    settings = settings_for(options)
    _check_symbol(symbol)
    kind, ticker = _type_and_ticker(symbol, ticker, asset_type)
    asset = Asset(symbol, ticker, kind, symbol if name is None else name, level, 0, every)
    twin = next((one for one in settings.named if one.ticker == ticker), None)
    _write(options, settings, [asset], dry_run, as_json)
    if twin is not None:
        options.say(f"{twin.symbol} has the ticker {ticker} already: it now costs twice the calls.")


@with_common_options
def assets_remove(
    options: Common,
    symbols: Annotated[list[str], typer.Argument(metavar="SYMBOL…", help="Which assets.")],
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Remove assets from the settings file; everything else in it stays as it is.

    Comment lines directly above an asset's block go with it. Bars and prices stay.

    Example: asset-sync assets remove EURCHF
    """
    settings = settings_for(options)
    known = {asset.symbol: asset for asset in settings.named}
    chosen = known_symbols(symbols, known, "The settings name no asset", "assets list")
    act = edit.preview_removal if dry_run else edit.remove
    removal = act(settings, chosen, os.environ)
    left = _still_queued(options, settings, chosen)
    if as_json:
        document = {
            **_change_as_json(removal, written=not dry_run),
            "removed": [asset_as_json(known[symbol]) for symbol in chosen],
            "left_in_queue": left,
        }
        out_raw(json.dumps(document, indent=2))
        return
    if dry_run:
        out_raw(removal.blocks.rstrip("\n"))
        options.say(f"This would be removed from {removal.path}; nothing was written.")
    else:
        options.confirm(f"Removed {', '.join(chosen)} from {removal.path}")
    _tell_copied(options, removal, dry_run)
    if left and not dry_run:
        tell_left(options, left)


def _still_queued(options: Common, settings: Settings, symbols: Sequence[str]) -> list[str] | None:
    """Return which of the symbols the queue has; None if the database cannot be asked."""
    try:
        with database.session(settings.conninfo) as db:
            queued = admin.symbols(db)
    except database.DatabaseError as error:
        options.say(f"The queue could not be checked for them: {error}")
        return None
    return [symbol for symbol in symbols if symbol in queued]


def _check_symbol(symbol: str) -> None:
    """Refuse what cannot be a symbol, with the command that was probably meant."""
    if re.fullmatch(SYMBOL_PATTERN, symbol) or ":" in symbol:  # `_type_and_ticker` reports a ticker
        return
    rule = "A symbol is 1 to 32 of A-Z 0-9 . _ -, in upper case"
    if not re.fullmatch(SYMBOL_PATTERN, symbol.upper()):
        raise typer.BadParameter(f"{rule}; {symbol!r} is not one.")
    words = [word.upper() if word == symbol else word for word in sys.argv[1:]]
    raise typer.BadParameter(f"{rule}: asset-sync {shlex.join(words)}")


def _type_and_ticker(
    symbol: str, ticker: str | None, kind: AssetType | None
) -> tuple[AssetType, str]:
    """Return type and ticker; one that is not given follows from the other."""
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
    options: Common, settings: Settings, assets: Sequence[Asset], dry_run: bool, as_json: bool
) -> None:
    """Add the assets to the settings file, or show what would be added."""
    if dry_run:
        addition = edit.preview(settings, assets, os.environ)
    else:
        addition = edit.add(settings, assets, os.environ)
    if as_json:
        out_raw(json.dumps(addition_as_json(addition, assets, written=not dry_run), indent=2))
        return
    if dry_run:
        out_raw(addition.blocks.rstrip("\n"))
    tell_added(options, addition, assets, dry_run)


def tell_added(options: Common, addition: Change, assets: Sequence[Asset], dry_run: bool) -> None:
    """Say what was added to which file, or would be."""
    if dry_run:
        options.say(f"This would be added at the end of {addition.path}; nothing was written.")
    else:
        one = assets[0]
        added = f"{one.symbol} ({one.ticker}, {one.level})"
        many = added if len(assets) == 1 else f"{len(assets)} assets"
        options.confirm(f"Added {many} to {addition.path}")
    _tell_copied(options, addition, dry_run)


def _tell_copied(options: Common, change: Change, dry_run: bool) -> None:
    if change.copied:
        made, holds = ("would be", "would be used") if dry_run else ("is", "is used")
        options.say(
            "The settings in use came with the program and are not changed;"
            f" {change.path} {made} a copy of them and {holds} from now on."
        )


def addition_as_json(
    addition: Change, assets: Sequence[Asset], *, written: bool
) -> dict[str, object]:
    """Return what was added to which file, or would be, for a program."""
    added = [asset_as_json(asset) for asset in assets]
    return {**_change_as_json(addition, written=written), "added": added}


def _change_as_json(change: Change, *, written: bool) -> dict[str, object]:
    return {
        "file": str(change.path),
        "written": written,
        "copied_from_shipped": change.copied,
    }
