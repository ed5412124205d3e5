"""`asset-sync queue list | add | retry | remove`: show and change the queue's items."""

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Annotated

import typer

from asset_sync import database
from asset_sync.cli.format import duration, red, short_moment, table
from asset_sync.cli.options import (
    MOST_ROWS,
    Common,
    Json,
    with_common_options,
)
from asset_sync.cli.output import agreed, err, out, out_raw, plain
from asset_sync.cli.settings import settings_for
from asset_sync.cli.symbols import known_symbols
from asset_sync.database import Connection, transaction
from asset_sync.errors import ExitCode
from asset_sync.model import Level
from asset_sync.queue import admin
from asset_sync.queue.admin import Entry
from asset_sync.settings import Settings

_STATES = ("waiting", "leased", "dead", "idle")

Symbols = Annotated[list[str], typer.Argument(metavar="SYMBOL…", help="Which assets.")]
SomeSymbols = Annotated[
    list[str] | None,
    typer.Argument(metavar="[SYMBOL…]", help="Which assets. Default: all.", show_default=False),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the change without making it.")]


@with_common_options
def queue_list(
    options: Common,
    symbols: SomeSymbols = None,
    state: Annotated[
        list[str] | None,
        typer.Option(help=f"{', '.join(_STATES)}; repeatable.", show_default=False),
    ] = None,
    level: Annotated[
        list[Level] | None, typer.Option(help="Repeatable.", show_default=False)
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", metavar="N", min=1, max=MOST_ROWS, help="How many.")
    ] = 1000,
    as_json: Json = False,
) -> None:
    """List the queue's items: dead, then leased, waiting and idle (fresh) ones.

    Example: asset-sync queue list --state dead
    """
    unknown = [one for one in state or () if one not in _STATES]
    if unknown:
        raise typer.BadParameter(f"{unknown[0]!r} is none of {', '.join(_STATES)}.")
    levels = [one.value for one in level or ()]
    settings = settings_for(options)
    with database.session(settings.conninfo) as db:
        chosen = _known(db, symbols or ())
        found = admin.entries(db, symbols=chosen, states=state or (), levels=levels, most=limit)
        more = 0
        if len(found) == limit:
            total = admin.count(db, symbols=chosen, states=state or (), levels=levels)
            more = max(0, total - limit)
    _show(found, as_json, "No such item is in the queue.", settings)
    if more:
        options.say(f"{more:,} more are not shown: --limit {limit + more} lists them all.")


@with_common_options
def queue_retry(
    options: Common,
    symbols: SomeSymbols = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Have dead items, and items in a delay, tried again now; their failures are forgotten.

    Example: asset-sync queue retry EURUSD
    """
    settings = settings_for(options)
    with database.session(settings.conninfo) as db:
        chosen = _known(db, symbols or ())
        changed = _do(db, dry_run, lambda: admin.retry(db, chosen))
    nothing = "No item is dead or delayed; the next run tries all due assets."
    _show(changed, as_json, nothing, settings)


@with_common_options
def queue_add(
    options: Common,
    symbols: Symbols,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Put assets in line before they are due; the next run refreshes them.

    Example: asset-sync queue add ETHUSDT
    """
    settings = settings_for(options)
    with database.session(settings.conninfo) as db:
        there = admin.symbols(db)
        new = [asset.symbol for asset in settings.assets if asset.symbol not in there]
        chosen = known_symbols(symbols, {*there, *new}, "The queue has no asset", "queue list")
        unwanted = _unwanted(chosen, settings)
        wanted = [symbol for symbol in chosen if symbol not in unwanted]
        changed = _do(db, dry_run, lambda: admin.add(db, wanted)) if wanted else ()
        added = {entry.symbol for entry in changed}
        others = [symbol for symbol in chosen if symbol not in added]
        entries = admin.entries(db, symbols=others) if others else ()
    if changed or as_json:
        _show(changed, as_json, "", settings)
    if not as_json:
        states = {entry.symbol: entry.state for entry in reversed(entries)}
        for symbol in others:
            out(_why_not_added(symbol, unwanted.get(symbol) or states.get(symbol)))


def _unwanted(symbols: Iterable[str], settings: Settings) -> dict[str, str]:
    """Return those of the symbols that no run with these settings refreshes, and why not."""
    wanted = {asset.symbol for asset in settings.assets}
    off = {asset.symbol for asset in settings.switched_off}
    left = (symbol for symbol in symbols if symbol not in wanted)
    return {symbol: "off" if symbol in off else "left over" for symbol in left}


def _why_not_added(symbol: str, state: str | None) -> str:
    match state:
        case "off":
            return (
                f"{symbol} is switched off in the settings (enabled = false); no run refreshes it."
            )
        case "left over":
            return (
                f"{symbol} is not in the settings, so no run refreshes it; `asset-sync queue remove"
                f" {symbol}` takes it out of the queue."
            )
        case None:
            return f"{symbol} waits for its first run, which refreshes it."
        case "leased":
            return f"{symbol} is leased: a run works on it now."
        case "dead":
            return f"{symbol} is dead: `asset-sync queue retry {symbol}` tries it again."
        case _:
            return f"{symbol} is in line already."


@with_common_options
def queue_remove(
    options: Common,
    symbols: Symbols,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Delete assets from the queue, such as those that are no longer in the settings. Prices stay.

    An asset that is still in the settings is added again by the next run, as if it were new.

    Example: asset-sync queue remove OLDCOIN --yes
    """
    settings = settings_for(options)
    with database.session(settings.conninfo) as db:
        chosen = _known(db, symbols)
        asked = f"Delete {', '.join(chosen)} from the queue?"
        if not (yes or dry_run or agreed(asked)):
            err("Nothing was removed; --yes does it without asking.")
            raise typer.Exit(ExitCode.USAGE)
        removed = _do(db, dry_run, lambda: admin.remove(db, chosen))
    if as_json:
        _show(removed, as_json, "", settings)
        return
    gone = sorted({entry.symbol for entry in removed})
    if gone:
        verb = "Would remove" if dry_run else "Removed"
        options.confirm(f"{verb} {', '.join(gone)} from the queue. Bars and prices stay.")
    for symbol in sorted(set(chosen) - set(gone)):
        out(f"{symbol} is leased: a run works on it now. It was not removed; try again later.")
    named = {asset.symbol for asset in settings.assets}
    if back := [symbol for symbol in gone if symbol in named]:
        options.say(
            f"{', '.join(back)}: still in the settings, so the next run adds"
            f" {'it' if len(back) == 1 else 'them'} again. `asset-sync assets remove` ends that."
        )


def _do(
    db: Connection, dry_run: bool, change: Callable[[], tuple[Entry, ...]]
) -> tuple[Entry, ...]:
    """Make the change; a dry run rolls it back, so that it prints what would happen."""
    if not dry_run:
        return change()
    changed: tuple[Entry, ...] = ()
    with suppress(_RolledBack), transaction(db):
        changed = change()
        raise _RolledBack
    return changed


class _RolledBack(Exception):  # noqa: N818  # not an error
    """Ends a transaction without its changes."""


def _known(db: Connection, symbols: Sequence[str]) -> list[str]:
    """Return the symbols, or say which one the queue does not have and which it may be."""
    return known_symbols(symbols, admin.symbols(db), "The queue has no asset", "queue list")


def _show(found: Sequence[Entry], as_json: bool, nothing: str, settings: Settings) -> None:
    unwanted = _unwanted((one.symbol for one in found), settings)
    if as_json:
        items = [{**plain(one), "wanted": one.symbol not in unwanted} for one in found]
        out_raw(json.dumps({"items": items}, indent=2))
        return
    if not found:
        out(nothing)
        return
    rows = [
        [
            one.symbol,
            one.feed,
            one.level.value,
            unwanted.get(one.symbol) or (red(one.state) if one.state == "dead" else one.state),
            # a dead item has no next try
            duration(one.wait_seconds) if one.wait_seconds and one.state != "dead" else "-",
            str(one.attempts),
            short_moment(one.last_success_at) if one.last_success_at else "never",
        ]
        for one in found
    ]
    columns = ["symbol", "feed", "level", "state", ">delayed", ">tries", "last refreshed (UTC)"]
    out_raw(table(columns, rows, spare=[">tries", "feed", "level", ">delayed"]))
    for one in found:
        if one.last_error:
            out(f"{red(one.symbol)}: {one.last_error}")
