"""`asset-sync assets import`: add tickers from the provider's list."""

import json
import os
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated

import typer

from asset_sync.assetfile import edit, reference
from asset_sync.assetfile.reference import Found
from asset_sync.cli.asking import MaxRuntime, asking
from asset_sync.cli.assets_edit import Every, LevelOption, addition_as_json, tell_added
from asset_sync.cli.format import duration, table
from asset_sync.cli.log import names
from asset_sync.cli.options import Common, Json, with_common_options
from asset_sync.cli.output import agreed, err, out, out_raw
from asset_sync.cli.settings import settings_for
from asset_sync.errors import ExitCode
from asset_sync.model import Asset, AssetType, Feed, Level
from asset_sync.settings import Settings

_SHOWN_NAME = 48


class Market(StrEnum):
    """The provider's word for a type of assets."""

    FX = "fx"
    CRYPTO = "crypto"


_TYPES = {Market.FX: AssetType.FOREX, Market.CRYPTO: AssetType.CRYPTO}


@with_common_options
def assets_import(
    options: Common,
    market: Annotated[Market, typer.Option(help="fx: currencies and metals.", show_default=False)],
    search: Annotated[
        str, typer.Option(metavar="TEXT", help="In tickers and names.", show_default=False)
    ] = "",
    limit: Annotated[
        int | None,
        typer.Option("--limit", metavar="N", min=1, help="Add at most N.", show_default=False),
    ] = None,
    level: LevelOption = Level.MEDIUM,
    every: Every = 300,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Ask the provider, but write nothing.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    max_runtime: MaxRuntime = None,
    as_json: Json = False,
) -> None:
    """Find tickers in the provider's list and add them to the settings file, all or none.

    Each page of up to 1000 tickers takes a call of the budget.

    Example: asset-sync assets import --market fx --search franc
    """
    settings = settings_for(options)
    kind = _TYPES[market]
    if not dry_run:
        edit.ensure_writable(settings, os.environ)
    with asking(options, settings, max_runtime) as (_, questions):
        found = reference.find(
            reference.pages(questions, kind, search),
            kind,
            settings.named,
            level=level,
            every_seconds=every,
            most=limit,
        )
    preview = edit.preview(settings, found.new, os.environ)
    if not as_json:
        _show_found(options, found, market)
    if found.new and not dry_run:
        _confirm(options, settings, found.new, f"to {preview.path}", yes)
        edit.add(settings, found.new, os.environ)
    if as_json:
        document = addition_as_json(preview, found.new, written=bool(found.new) and not dry_run)
        document["there"] = [asset.symbol for asset in found.there]
        document["skipped"] = [skipped._asdict() for skipped in found.skipped]
        out_raw(json.dumps(document, indent=2))
    elif found.new:
        tell_added(options, preview, found.new, dry_run)


def _show_found(options: Common, found: Found, market: Market) -> None:
    if not (found.new or found.there or found.skipped):
        out(f"The provider's list of {market} has no such ticker.")
        return
    if found.new:
        rows = [[asset.symbol, asset.ticker, _short(asset.name)] for asset in found.new]
        out_raw(table(["symbol", "ticker", "name"], rows, spare=["name"]))
    if found.there:
        there = names([asset.symbol for asset in found.there])
        options.say(f"In the settings already: {there}.")
    for ticker, why in found.skipped:
        err(f"{ticker} is left out: {why}.")
    if not found.new:
        out("Nothing to add.")


def _short(name: str) -> str:
    return name if len(name) <= _SHOWN_NAME else f"{name[: _SHOWN_NAME - 1]}…"


def _confirm(
    options: Common, settings: Settings, new: Sequence[Asset], where: str, yes: bool
) -> None:
    """Say how much longer a round of all assets takes with them, and ask whether to add them."""
    many, limit = len(settings.assets) + len(new), settings.rate_limit
    turn_seconds = many * limit.period_seconds / limit.calls
    wanted_seconds = new[0].update_frequency_seconds
    if settings.provider.plan.feeds == (Feed.BARS,) and turn_seconds > wanted_seconds:
        options.say(
            f"With these there are {many} assets; {limit.calls} calls in"
            f" {duration(limit.period_seconds)} refresh each of them every"
            f" {duration(turn_seconds)} at best, not every {duration(wanted_seconds)}."
        )
    added = "this asset" if len(new) == 1 else f"these {len(new)} assets"
    if yes or agreed(f"Add {added} {where}?"):
        return
    err("Nothing was added; --yes does it without asking.")
    raise typer.Exit(ExitCode.USAGE)
