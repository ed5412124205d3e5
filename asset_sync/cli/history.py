"""`asset-sync history status | holes | fill`: how complete the past is, and fetching it now."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from asset_sync import database
from asset_sync.cli.exits import explain
from asset_sync.cli.format import counted, duration, moment, short_date, table
from asset_sync.cli.log import Log, LogFormat, names
from asset_sync.cli.options import Common, Json, with_common_options
from asset_sync.cli.output import out, out_raw
from asset_sync.cli.settings import settings_for
from asset_sync.cli.symbols import known_symbols
from asset_sync.database import Connection
from asset_sync.ops import history
from asset_sync.ops.history import ASKED_EMPTY, AssetHistory, History, Hole
from asset_sync.settings import Settings
from asset_sync.spans import Span

_HOLES_SHOWN = 20
_CLASSES = {history.NEVER_ASKED: "never asked", ASKED_EMPTY: "asked, empty"}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Symbol = Annotated[str, typer.Argument(metavar="SYMBOL", help="Which asset.")]
SomeSymbols = Annotated[
    list[str] | None,
    typer.Argument(metavar="[SYMBOL…]", help="Which assets. Default: all.", show_default=False),
]
_DAY_FORMATS = ["%Y-%m-%d"]


@with_common_options
def history_status(options: Common, as_json: Json = False) -> None:
    """Show for each asset how much of the past was asked and is there, and when all of it will be.

    Example: asset-sync history status
    """
    settings = settings_for(options)
    with database.session(settings.conninfo) as db:
        found = history.history_of(db, settings)
    if as_json:
        out_raw(json.dumps(_status_as_json(found), indent=2))
        return
    if found.assets:
        out_raw(_table(found.assets))
        out_raw("")
    for line in _totals(found, settings):
        out(line)


@with_common_options
def history_holes(options: Common, symbol: Symbol, as_json: Json = False) -> None:
    """List what is missing of an asset's past, why, and when it is asked next.

    Example: asset-sync history holes EURUSD
    """
    settings = settings_for(options)
    [chosen] = _known(settings, [symbol])
    with database.session(settings.conninfo) as db:
        known = history.KnownPast.read(db, settings)
        found = history.holes_of(db, settings, chosen, known)
    refused = known.refused_until().get(chosen)
    if as_json:
        out_raw(json.dumps({"holes": [_hole_as_json(hole) for hole in found]}, indent=2))
        return
    if not found and refused is None:
        out(f"{chosen}: no hole. All that is wanted of its past was asked, and bars are there.")
        return
    if refused is not None:
        out(_refused({chosen: refused}, settings))
    if not found:
        out(f"{chosen}: no hole since then.")
        return
    longest = sorted(found, key=lambda hole: hole.end - hole.start, reverse=True)[:_HOLES_SHOWN]
    shown = [hole for hole in found if hole in set(longest)]
    columns = ["from (UTC)", "until (UTC)", ">long", "class", "next try (UTC)"]
    out_raw(table(columns, [_hole(hole, settings) for hole in shown], spare=[">long"]))
    if left := len(found) - len(shown):
        options.say(f"{left:,} shorter ones are not shown: --json lists all.")


@with_common_options
def history_fill(
    options: Common,
    symbols: SomeSymbols = None,
    since: Annotated[
        datetime | None,
        typer.Option(
            "--since",
            formats=_DAY_FORMATS,
            metavar="DATE",
            help="From this day on (UTC). Default: as far back as [history] days says.",
            show_default=False,
        ),
    ] = None,
    until: Annotated[
        datetime | None,
        typer.Option(
            "--until",
            formats=_DAY_FORMATS,
            metavar="DATE",
            help="Up to and including this day (UTC). Default: today.",
            show_default=False,
        ),
    ] = None,
    log_format: Annotated[
        LogFormat,
        typer.Option(
            "--log-format", help="The format of the lines on stderr: text, or json for a collector."
        ),
    ] = LogFormat.TEXT,
) -> None:
    """Fetch what was never asked of the past now, beside cron and within the limit.

    It makes a call only if no asset is refreshed later for it. Ctrl-C loses nothing: the next start
    continues. It works with [history] enabled = false, too.

    Example: asset-sync history fill EURUSD --since 2025-01-01
    """
    log, summary = Log(options, "history", log_format), ""
    try:
        settings = settings_for(options, log.info)
        chosen = _known(settings, symbols or [asset.symbol for asset in settings.assets])
        from asset_sync.cli.filling import fill_and_watch  # noqa: PLC0415  # status needs no loop

        with database.session(settings.conninfo) as db:
            only = _bounds(db, settings, since, until)
            _name_never_refreshed(options, db, settings, chosen)
            code, summary, trouble = fill_and_watch(log, db, settings, chosen, only)
        log.end(code, trouble, summary)
    except typer.BadParameter:
        raise
    except (Exception, KeyboardInterrupt, SystemExit) as error:  # noqa: BLE001
        code, why = explain(error)
        log.end(code, why)
    if summary and not options.quiet and not log.is_json:
        out(summary)
    raise typer.Exit(code)


def _name_never_refreshed(
    options: Common, db: Connection, settings: Settings, symbols: Sequence[str]
) -> None:
    new = history.never_refreshed(db, settings, symbols)
    if new:
        names = ", ".join(new[:5]) + (f" and {len(new) - 5} more" if len(new) > 5 else "")  # noqa: PLR2004
        options.say(
            f"{names}: never refreshed yet. The past follows the first bars, which"
            " `asset-sync sync priority` and `asset-sync sync queue` fetch."
        )


def _known(settings: Settings, symbols: Sequence[str]) -> list[str]:
    """Return the symbols, or say which one the settings do not have and which it may be."""
    known = [asset.symbol for asset in settings.named]
    chosen = known_symbols(symbols, known, "The settings have no asset", "assets list")
    for asset in settings.switched_off:
        if asset.symbol in chosen:
            raise typer.BadParameter(
                f"{asset.symbol} is switched off, so its past is not kept complete. Set enabled ="
                f" true in its block in {settings.source}."
            )
    return chosen


def _bounds(
    db: Connection, settings: Settings, since: datetime | None, until: datetime | None
) -> Span | None:
    """Return the bounds that the options name, None for none."""
    if since is None and until is None:
        return None
    [(now,)] = database.query(db, "select clock_timestamp()")
    days = timedelta(days=settings.history.days or settings.provider.plan.history_days)
    begin = since.replace(tzinfo=UTC) if since else max(_EPOCH, now - days)
    end = until.replace(tzinfo=UTC) + timedelta(days=1) if until else now
    if begin >= end:
        raise typer.BadParameter(
            "--since is after --until, or in the future."
            if since
            else "--until is before the past that is wanted: give --since, too."
        )
    return Span(max(begin, _EPOCH), end)


# --- on a screen ------------------------------------------------------------------------------


def _table(assets: Sequence[AssetHistory]) -> str:
    rows = [
        [
            one.symbol,
            short_date(one.oldest_bar) if one.oldest_bar else "-",
            short_date(one.newest_bar) if one.newest_bar else "-",
            f"{one.expected_bars:,}",
            _percent(one.asked_percent),
            _percent(one.there_percent),
            f"{one.never_asked:,}",
            f"{one.asked_empty:,}",
            f"{one.calls_left:,}",
        ]
        for one in assets
    ]
    columns = ["asset", "from", "to", ">expected", ">asked", ">there", ">unasked", ">empty"]
    return table([*columns, ">calls"], rows, spare=[">expected", "to", ">empty"])


def _totals(found: History, settings: Settings) -> list[str]:
    lines = [
        (
            "Bars of five minutes. unasked: never asked; empty: asked, and no bar came although the"
            " market was open; calls: to ask for the rest."
        )
    ]
    calls = counted(found.calls_left, "call")
    if not found.calls_left:
        reach = "the API gives to this key" if found.refused_until else "is wanted"
        lines.append(f"All of the past that {reach} was asked.")
    else:
        spare = f"{found.spare_calls_per_day:,} calls a day are spare"
        lines.append(
            f"Asked: {_percent(found.asked_percent)}. {calls} to go; {spare}{_done(found)}."
        )
    if found.calls_left and not settings.history.enabled:
        lines.append(
            "Runs fetch no history ([history] enabled = false): `asset-sync history fill` does."
        )
    if found.refused_until:
        lines.append(_refused(found.refused_until, settings))
    if found.revisions:
        lines.append(f"Bars that changed after they were stored: {found.revisions:,}.")
    return lines


def _refused(until: Mapping[str, datetime], settings: Settings) -> str:
    which = names([f"{symbol} before {short_date(at)}" for symbol, at in until.items()])
    by = "" if settings.history.enabled else " by `asset-sync history fill`"
    return f"The API refuses bars of {which}. They are tried again after a day{by}."


def _done(found: History) -> str:
    if found.done_at is None:
        return ", so it never ends: see `asset-sync plan`"
    left = (found.done_at - found.now).total_seconds()
    return f": done by {moment(found.done_at)[:16]} UTC (in {duration(max(left, 0))})"


def _percent(percent: float) -> str:
    return f"{percent:.0f} %" if percent in {0.0, 100.0} else f"{percent:.1f} %"


def _hole(hole: Hole, settings: Settings) -> list[str]:
    if hole.kind == history.NEVER_ASKED:
        next_try = "with a spare call" if settings.history.enabled else "by history fill"
    else:
        next_try = moment(hole.next_try_at)[:16] if hole.next_try_at else "never"
    return [
        moment(hole.start)[:16],
        moment(hole.end)[:16],
        duration((hole.end - hole.start).total_seconds()),
        _CLASSES[hole.kind],
        next_try,
    ]


# --- for a program ----------------------------------------------------------------------------


def _status_as_json(found: History) -> dict[str, object]:
    return {
        "assets": [
            {
                "symbol": one.symbol,
                "oldest_bar": _time(one.oldest_bar),
                "newest_bar": _time(one.newest_bar),
                "expected_bars": one.expected_bars,
                "asked_percent": one.asked_percent,
                "bars": one.bars,
                "holes": {"never_asked": one.never_asked, "asked_empty": one.asked_empty},
                "calls_left": one.calls_left,
            }
            for one in found.assets
        ],
        "asked_percent": found.asked_percent,
        "calls_left": found.calls_left,
        "spare_calls_per_day": found.spare_calls_per_day,
        "done_at": _time(found.done_at),
        "revisions": found.revisions,
    }


def _hole_as_json(hole: Hole) -> dict[str, object]:
    return {
        "symbol": hole.symbol,
        "from": _time(hole.start),
        "until": _time(hole.end),
        "class": hole.kind,
        "next_try_at": _time(hole.next_try_at),
    }


def _time(at: datetime | None) -> str | None:
    return at.astimezone(UTC).isoformat() if at else None
