"""`asset-sync assets check`: ask the provider whether the tickers exist."""

import json
from collections.abc import Sequence
from typing import Annotated

import typer

from asset_sync.assetfile import reference
from asset_sync.assetfile.reference import Checked, TickerCheck, TickerStatus
from asset_sync.cli.asking import MaxRuntime, asking
from asset_sync.cli.assets_list import left_the_file, tell_left
from asset_sync.cli.format import duration, red, table
from asset_sync.cli.options import Common, Json, with_common_options
from asset_sync.cli.output import err, out, out_raw
from asset_sync.cli.settings import settings_for
from asset_sync.cli.symbols import known_symbols
from asset_sync.database import Connection
from asset_sync.errors import ExitCode
from asset_sync.provider.errors import ProviderError
from asset_sync.settings import Settings
from asset_sync.sync.ask import NoCallLeftError
from asset_sync.sync.progress import Progress, Waiting


@with_common_options
def assets_check(
    options: Common,
    symbols: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SYMBOL…]", help="Which assets. Default: all.", show_default=False),
    ] = None,
    max_runtime: MaxRuntime = None,
    as_json: Json = False,
) -> None:
    """Ask the provider whether the assets' tickers exist, and suggest tickers for unknown ones.

    Up to ten assets of a market take one call each. For more than ten, the market's list of tickers
    is fetched (1 or 2 calls), and a call is made only for each ticker that the list lacks.
    Exit 1 if a ticker does not exist or there was no answer, 4 if the API refuses the key.

    Example: asset-sync assets check EURUSD
    """
    settings = settings_for(options)
    known = {asset.symbol: asset for asset in settings.named}
    names = known_symbols(symbols or (), known, "The settings name no asset", "assets list")
    assets = [known[name] for name in names] or list(settings.assets)
    checked: list[Checked] = []

    def count(progress: Progress) -> Progress:
        if isinstance(progress, Waiting):
            return progress._replace(reason=f"a slot ({len(checked)} of {len(assets)} checked)")
        return progress

    with asking(options, settings, max_runtime, count) as (db, questions):
        check = reference.TickerCheck(questions)
        many = "1 asset" if len(assets) == 1 else f"{len(assets)} assets"
        _announce(options, db, settings, reference.calls_to_check(assets), many)
        for one in check.each(assets):
            checked.append(one)  # noqa: PERF402  # `count` looks at it meanwhile
        nearest = _nearest(options, db, settings, check, checked)
        left = left_the_file(db, settings)
    if as_json:
        document = [_checked_as_json(one, nearest.get(one.asset.symbol)) for one in checked]
        out_raw(json.dumps({"assets": document, "left_the_file": left}, indent=2))
    else:
        _show_checked(checked, nearest, settings)
        tell_left(options, left)
    raise typer.Exit(_exit_code(checked))


def _announce(options: Common, db: Connection, settings: Settings, calls: int, about: str) -> None:
    """Say how many calls there will be, if any, and how long they take at the limit."""
    if not calls:
        return
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
    db: Connection,
    settings: Settings,
    check: TickerCheck,
    checked: Sequence[Checked],
) -> dict[str, str]:
    """Return, by symbol, the existing ticker that is most similar to each unknown one."""
    unknown = [one.asset for one in checked if one.verdict is TickerStatus.UNKNOWN]
    what = f"tickers similar to the unknown {'one' if len(unknown) == 1 else 'ones'}"
    _announce(options, db, settings, check.calls_to_suggest(unknown), what)
    nearest = {}
    try:
        for asset in unknown:
            # an outdated list may still contain the ticker itself
            if (ticker := check.nearest(asset)) not in {None, asset.ticker}:
                nearest[asset.symbol] = ticker
    except NoCallLeftError as error:
        err(f"Similar tickers could not be found: {error}")
    except ProviderError as error:
        err(f"Similar tickers could not be found: {error.reason}")
    return nearest


def _show_checked(checked: Sequence[Checked], nearest: dict[str, str], settings: Settings) -> None:
    rows = [
        [
            one.asset.symbol,
            one.asset.ticker,
            one.verdict if one.verdict is TickerStatus.EXISTS else red(one.verdict),
        ]
        for one in checked
    ]
    out_raw(table(["symbol", "ticker", "at the provider"], rows))
    for asset in (one.asset for one in checked if one.verdict is TickerStatus.UNKNOWN):
        near = nearest.get(asset.symbol)
        out(
            f"{red(asset.symbol)}: The provider knows no ticker {asset.ticker}; correct its"
            f" polygon_ticker in {settings.source}.{f' Did you mean {near}?' if near else ''}"
        )
    for why, some in _by_reason(checked).items():
        out(f"{red(', '.join(some))}: {why}")


def _by_reason(checked: Sequence[Checked]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for one in checked:
        if one.why is not None:
            found.setdefault(one.why, []).append(one.asset.symbol)
    return found


def _checked_as_json(checked: Checked, nearest: str | None) -> dict[str, object]:
    return {
        "symbol": checked.asset.symbol,
        "ticker": checked.asset.ticker,
        "verdict": checked.verdict.value,
        "nearest": nearest,
        "why": checked.why,
    }


def _exit_code(checked: Sequence[Checked]) -> ExitCode:
    verdicts = {one.verdict for one in checked}
    if TickerStatus.REFUSED in verdicts:
        return ExitCode.REFUSED
    return ExitCode.DONE if verdicts <= {TickerStatus.EXISTS} else ExitCode.SOME_FAILED
