"""`asset-sync assets list | add`: what is kept fresh, and more of it; `reference` has the rest."""

import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from asset_sync.assets import Asset, AssetType, Level
from asset_sync.cli.options import (
    Common,
    Config,
    Json,
    Quiet,
    Verbose,
    answer,
    common,
    complain,
    exactly,
)

if TYPE_CHECKING:
    from asset_sync.asset_file import Addition
    from asset_sync.database import Connection
    from asset_sync.settings import Settings

app = typer.Typer(help="See and choose which assets are kept fresh.", no_args_is_help=True)

LevelOption = Annotated[
    Level, typer.Option("--level", help="critical: fetched in each cycle, before all others.")
]
Every = Annotated[
    int, typer.Option("--every", metavar="SECONDS", min=1, help="How old the data may get.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the block, and write nothing.")]


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
    options = common(context, config, quiet, verbose)
    settings = options.settings()
    from asset_sync import database, embedded  # noqa: PLC0415

    left: list[str] | None = None
    try:
        with database.session(settings.conninfo) as db:
            fresh = _last_success(db, settings)
            left = left_the_file(db, settings)
    except (database.DatabaseError, embedded.EmbeddedError) as error:
        # The database need not be there to list what the file says.
        complain(f"When they were last fresh is not known: {error}")
        fresh = {}
    if as_json:
        told = {"assets": _as_json(settings, fresh), "left_the_file": left}
        exactly(json.dumps(told, indent=2))
    else:
        _show(settings, fresh)
        tell_left(options, left or ())


def left_the_file(db: "Connection", settings: "Settings") -> list[str]:
    """Return the symbols that the queue has and the settings no longer name."""
    from asset_sync import queue_admin  # noqa: PLC0415

    named = {asset.symbol for asset in settings.assets}
    return [symbol for symbol in queue_admin.symbols(db) if symbol not in named]


def tell_left(options: Common, left: Sequence[str]) -> None:
    """Say which assets nobody asks for any more; they are forgotten only by command."""
    if left:
        from asset_sync.cli.log import names  # noqa: PLC0415

        options.say(
            f"No longer in the settings, but still in the queue: {names(left)}. To forget:"
            f" asset-sync queue remove {' '.join(left)}"
        )


@app.command("add")
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
    kind, ticker = _guessed(symbol, ticker, asset_type)
    asset = Asset(symbol, ticker, kind, symbol if name is None else name, level, 0, every)
    twin = next((one for one in settings.assets if one.ticker == ticker), None)
    _write(options, settings, [asset], dry_run, as_json)
    if twin is not None:
        options.say(f"{ticker} is kept fresh as {twin.symbol} already; this costs its calls twice.")


def _guessed(symbol: str, ticker: str | None, kind: AssetType | None) -> tuple[AssetType, str]:
    """Return type and ticker, of which each tells the other."""
    for prefix in (one.ticker_prefix for one in AssetType):
        if symbol.startswith(prefix):
            own = symbol.removeprefix(prefix)
            raise typer.BadParameter(
                f"{symbol} is a ticker; SYMBOL is your own name for it:"
                f" asset-sync assets add {own} --ticker {symbol}"
            )
    if kind is None and ticker is not None:
        kind = next((one for one in AssetType if ticker.startswith(one.ticker_prefix)), None)
    if kind is None and ticker is not None:
        prefixes = " nor ".join(f"{one.ticker_prefix} ({one})" for one in AssetType)
        raise typer.BadParameter(f"The ticker {ticker!r} begins with neither {prefixes}.")
    if kind is None:
        choices = " or ".join(
            f"--type {one} (ticker {one.ticker_prefix}{symbol})" for one in AssetType
        )
        raise typer.BadParameter(f"Say what {symbol} is: {choices}, or its --ticker.")
    return kind, f"{kind.ticker_prefix}{symbol}" if ticker is None else ticker


def _write(
    options: Common, settings: "Settings", assets: Sequence[Asset], dry_run: bool, as_json: bool
) -> None:
    """Add the assets to the settings file, or show what would be added."""
    from asset_sync import asset_file  # noqa: PLC0415

    if dry_run:
        addition = asset_file.preview(settings, assets, os.environ)
    else:
        addition = asset_file.add(settings, assets, os.environ)
    if as_json:
        exactly(json.dumps(addition_as_json(addition, assets, written=not dry_run), indent=2))
        return
    if dry_run:
        exactly(addition.blocks.rstrip("\n"))
    tell_added(options, addition, assets, dry_run)


def tell_added(
    options: Common, addition: "Addition", assets: Sequence[Asset], dry_run: bool
) -> None:
    """Say what went where, or would."""
    if dry_run:
        options.say(f"This would go to the end of {addition.path}; nothing was written.")
    else:
        one = assets[0]
        added = f"{one.symbol} ({one.ticker}, {one.level})"
        answer(f"Added {added if len(assets) == 1 else f'{len(assets)} assets'} to {addition.path}")
    if addition.copied:
        made = "would be" if dry_run else "is"
        options.say(
            "The settings in use came with the program and stay as they are;"
            f" {addition.path} {made} a copy of them, and is what holds from then on."
        )


def addition_as_json(
    addition: "Addition", assets: Sequence[Asset], *, written: bool
) -> dict[str, object]:
    """Return what went where, or would, for a program."""
    return {
        "file": str(addition.path),
        "written": written,
        "copied_from_shipped": addition.copied,
        "added": [_asset_as_json(asset) for asset in assets],
    }


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
            **_asset_as_json(asset),
            "last_success_at": fresh[asset.symbol].astimezone(UTC).isoformat()
            if asset.symbol in fresh
            else None,
        }
        for asset in settings.assets
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
