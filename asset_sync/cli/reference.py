"""`asset-sync assets import | check`: what the provider knows; adds to `assets`' app."""

import gc
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from asset_sync.cli.assets import (
    Every,
    LevelOption,
    addition_as_json,
    app,
    left_the_file,
    tell_added,
    tell_left,
)
from asset_sync.cli.options import (
    Common,
    Config,
    Json,
    Quiet,
    Verbose,
    agreed,
    answer,
    common,
    complain,
    exactly,
)
from asset_sync.cli.symbols import known_symbols
from asset_sync.errors import ExitCode
from asset_sync.model import Asset, AssetType, Level

if TYPE_CHECKING:
    from asset_sync.assetfile.reference import Check, Checked, Found
    from asset_sync.database import Connection
    from asset_sync.settings import Settings
    from asset_sync.sync.ask import Questions
    from asset_sync.sync.progress import Listener, Progress

_SHOWN_NAME = 48


class Market(StrEnum):
    """The provider's word for a type of assets."""

    FX = "fx"
    CRYPTO = "crypto"


_TYPES = {Market.FX: AssetType.FOREX, Market.CRYPTO: AssetType.CRYPTO}

MaxRuntime = Annotated[
    float | None,
    typer.Option(
        "--max-runtime",
        metavar="SECONDS",
        min=0.1,
        help="Wait no longer for calls; without, as long as it takes.",
        show_default=False,
    ),
]


# --- import -----------------------------------------------------------------------------------


@app.command("import")
def assets_import(
    context: typer.Context,
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
    config: Config = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Find tickers in the provider's list and add them to the settings file, all or none.

    Each page of up to 1000 tickers takes a call of the budget.

    Example: asset-sync assets import --market fx --search franc
    """
    from asset_sync.assetfile import edit, reference  # noqa: PLC0415

    options = common(context, config, quiet, verbose)
    settings = options.settings()
    kind = _TYPES[market]
    if not dry_run:
        edit.ensure_writable(settings, os.environ)
    with _asking(options, settings, max_runtime) as (_, questions):
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
        told = addition_as_json(preview, found.new, written=bool(found.new) and not dry_run)
        told["there"] = [asset.symbol for asset in found.there]
        told["skipped"] = [skipped._asdict() for skipped in found.skipped]
        exactly(json.dumps(told, indent=2))
    elif found.new:
        tell_added(options, preview, found.new, dry_run)


def _show_found(options: Common, found: "Found", market: Market) -> None:
    if not (found.new or found.there or found.skipped):
        answer(f"The provider's list of {market} has nothing like that.")
        return
    if found.new:
        from asset_sync.cli.format import table  # noqa: PLC0415

        rows = [[asset.symbol, asset.ticker, _short(asset.name)] for asset in found.new]
        exactly(table(["symbol", "ticker", "name"], rows, spare=["name"]))
    if found.there:
        from asset_sync.cli.log import names  # noqa: PLC0415

        there = names([asset.symbol for asset in found.there])
        options.say(f"In the settings already: {there}.")
    for ticker, why in found.skipped:
        complain(f"{ticker} is left out: {why}.")
    if not found.new:
        answer("Nothing to add.")


def _short(name: str) -> str:
    return name if len(name) <= _SHOWN_NAME else f"{name[: _SHOWN_NAME - 1]}…"


def _confirm(
    options: Common, settings: "Settings", new: Sequence[Asset], where: str, yes: bool
) -> None:
    """Ask whether to add them, having said what that means for the others."""
    from asset_sync.cli.format import duration  # noqa: PLC0415
    from asset_sync.model import Feed  # noqa: PLC0415

    many, limit = len(settings.assets) + len(new), settings.rate_limit
    turn_seconds = many * limit.period_seconds / limit.calls
    wanted_seconds = new[0].update_frequency_seconds
    if settings.provider.plan.feeds == (Feed.BARS,) and turn_seconds > wanted_seconds:
        options.say(
            f"With these there are {many} assets; {limit.calls} calls in"
            f" {duration(limit.period_seconds)} get round them in {duration(turn_seconds)} at"
            f" best, not in {duration(wanted_seconds)}."
        )
    added = "this asset" if len(new) == 1 else f"these {len(new)} assets"
    if yes or agreed(f"Add {added} {where}?"):
        return
    complain("Nothing was added; --yes does it without asking.")
    raise typer.Exit(ExitCode.USAGE)


# --- both -------------------------------------------------------------------------------------


@contextmanager
def _asking(
    options: Common,
    settings: "Settings",
    max_runtime: float | None,
    words: "Callable[[Progress], Progress]" = lambda progress: progress,
) -> "Iterator[tuple[Connection, Questions]]":
    """Give the database and who asks within its limit; what the provider refuses ends here."""
    from asset_sync import database  # noqa: PLC0415
    from asset_sync.provider.errors import ProviderError  # noqa: PLC0415
    from asset_sync.sync.ask import NoCallLeftError, Questions  # noqa: PLC0415

    gc.enable()  # see asset_sync.__main__
    patience = math.inf if max_runtime is None else max_runtime
    try:
        with (
            database.session(settings.conninfo) as db,
            _watching(options, words) as tell,
            Questions(db, settings, within_seconds=patience, tell=tell) as questions,
        ):
            yield db, questions
    except NoCallLeftError as error:
        complain(f"asset-sync: {error} Nothing was written.")
        raise typer.Exit(error.exit_code) from None
    except ProviderError as error:
        complain(f"asset-sync: {error.reason} Nothing was written.")
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        complain("Interrupted; nothing was written.")
        raise


@contextmanager
def _watching(options: Common, words: "Callable[[Progress], Progress]") -> "Iterator[Listener]":
    """Show waits as a run does; off a terminal each is told once."""
    from asset_sync.cli.log import Log, sentence  # noqa: PLC0415
    from asset_sync.cli.watch import watching  # noqa: PLC0415
    from asset_sync.sync.progress import Waiting  # noqa: PLC0415

    last_seconds = 0.0

    def listen(progress: "Progress") -> None:
        nonlocal last_seconds
        progress = words(progress)
        if isinstance(progress, Waiting):
            if progress.seconds > last_seconds and not (sys.stderr.isatty() or options.verbose):
                options.say(sentence(progress))
            last_seconds = progress.seconds
        tell(progress)

    with watching(Log(options, "assets")) as tell:
        yield listen


# --- check ------------------------------------------------------------------------------------


@app.command("check")
def assets_check(
    context: typer.Context,
    symbols: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SYMBOL…]", help="Which assets; all without.", show_default=False),
    ] = None,
    max_runtime: MaxRuntime = None,
    as_json: Json = False,
    config: Config = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Ask the provider whether the assets' tickers exist, and what a mistyped one may be.

    A ticker takes a call of the budget; of more than ten of a market, the market's list instead,
    and a call for each that it lacks.
    Exit 1 if one does not exist or there was no answer, 4 if the API refuses the key.

    Example: asset-sync assets check EURUSD
    """
    from asset_sync.assetfile import reference  # noqa: PLC0415

    options = common(context, config, quiet, verbose)
    settings = options.settings()
    known = {asset.symbol: asset for asset in settings.named}
    names = known_symbols(symbols or (), known, "The settings name no asset", "assets list")
    assets = [known[name] for name in names] or list(settings.assets)
    checked: list[Checked] = []

    def count(progress: "Progress") -> "Progress":
        from asset_sync.sync.progress import Waiting  # noqa: PLC0415

        if isinstance(progress, Waiting):
            return replace(progress, reason=f"a slot ({len(checked)} of {len(assets)} checked)")
        return progress

    with _asking(options, settings, max_runtime, count) as (db, questions):
        check = reference.Check(questions)
        many = "1 asset" if len(assets) == 1 else f"{len(assets)} assets"
        _announce(options, db, settings, reference.calls_to_check(assets), many)
        for one in check.each(assets):
            checked.append(one)  # noqa: PERF402  # `count` looks at it meanwhile
        nearest = _nearest(options, db, settings, check, checked)
        left = left_the_file(db, settings)
    if as_json:
        told = [_checked_as_json(one, nearest.get(one.asset.symbol)) for one in checked]
        exactly(json.dumps({"assets": told, "left_the_file": left}, indent=2))
    else:
        _show_checked(checked, nearest, settings)
        tell_left(options, left)
    raise typer.Exit(_exit_code(checked))


def _announce(
    options: Common, db: "Connection", settings: "Settings", calls: int, about: str
) -> None:
    """Say how many calls there will be, if any, and how long they take at the limit."""
    if not calls:
        return
    from asset_sync.assetfile import reference  # noqa: PLC0415
    from asset_sync.cli.format import duration  # noqa: PLC0415

    seconds = reference.seconds_for(db, settings, calls)
    limit = settings.rate_limit
    when = f"in about {duration(seconds)}" if seconds >= 1 else "at once"
    many = "1 call" if calls == 1 else f"{calls} calls"
    options.say(
        f"Asking for {about}: {many}, of which {limit.calls} are allowed in"
        f" {duration(limit.period_seconds)}; done {when}."
    )


def _nearest(
    options: Common,
    db: "Connection",
    settings: "Settings",
    check: "Check",
    checked: "Sequence[Checked]",
) -> dict[str, str]:
    """Return, by symbol, the ticker that each unknown one may be meant to be."""
    from asset_sync.assetfile.reference import Verdict  # noqa: PLC0415
    from asset_sync.provider.errors import ProviderError  # noqa: PLC0415
    from asset_sync.sync.ask import NoCallLeftError  # noqa: PLC0415

    unknown = [one.asset for one in checked if one.verdict is Verdict.UNKNOWN]
    what = f"what the unknown {'one' if len(unknown) == 1 else 'ones'} may be"
    _announce(options, db, settings, check.calls_to_suggest(unknown), what)
    nearest = {}
    try:
        for asset in unknown:
            # a list that is behind the times may still have the ticker itself
            if (ticker := check.nearest(asset)) not in {None, asset.ticker}:
                nearest[asset.symbol] = ticker
    except NoCallLeftError as error:
        complain(f"What the unknown may be was not told: {error}")
    except ProviderError as error:
        complain(f"What the unknown may be was not told: {error.reason}")
    return nearest


def _show_checked(
    checked: "Sequence[Checked]", nearest: dict[str, str], settings: "Settings"
) -> None:
    from asset_sync.assetfile.reference import Verdict  # noqa: PLC0415
    from asset_sync.cli.format import red, table  # noqa: PLC0415

    rows = [
        [
            one.asset.symbol,
            one.asset.ticker,
            one.verdict if one.verdict is Verdict.EXISTS else red(one.verdict),
        ]
        for one in checked
    ]
    exactly(table(["symbol", "ticker", "at the provider"], rows))
    for asset in (one.asset for one in checked if one.verdict is Verdict.UNKNOWN):
        near = nearest.get(asset.symbol)
        answer(
            f"{red(asset.symbol)}: The provider knows no ticker {asset.ticker}; correct its"
            f" polygon_ticker in {settings.source}.{f' Did you mean {near}?' if near else ''}"
        )
    for why, some in _by_reason(checked).items():
        answer(f"{red(', '.join(some))}: {why}")


def _by_reason(checked: "Sequence[Checked]") -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for one in checked:
        if one.why is not None:
            found.setdefault(one.why, []).append(one.asset.symbol)
    return found


def _checked_as_json(checked: "Checked", nearest: str | None) -> dict[str, object]:
    return {
        "symbol": checked.asset.symbol,
        "ticker": checked.asset.ticker,
        "verdict": checked.verdict.value,
        "nearest": nearest,
        "why": checked.why,
    }


def _exit_code(checked: "Sequence[Checked]") -> ExitCode:
    from asset_sync.assetfile.reference import Verdict  # noqa: PLC0415

    verdicts = {one.verdict for one in checked}
    if Verdict.REFUSED in verdicts:
        return ExitCode.REFUSED
    return ExitCode.DONE if verdicts <= {Verdict.EXISTS} else ExitCode.SOME_FAILED
