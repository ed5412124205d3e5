"""`asset-sync assets show`: all that is known of one asset."""

import json
from datetime import UTC, datetime
from typing import Annotated

import typer

from asset_sync import database
from asset_sync.cli.assets_list import asset_as_json
from asset_sync.cli.format import bold, counted, duration, moment, price, red, short_date, yellow
from asset_sync.cli.lag import lag_as_json, lag_in_words
from asset_sync.cli.options import Common, Json, with_common_options
from asset_sync.cli.output import err, out, out_raw, plain
from asset_sync.cli.queue_status import age_as_json
from asset_sync.cli.settings import settings_for
from asset_sync.cli.symbols import known_symbols
from asset_sync.model import Asset, Feed
from asset_sync.ops.asset import AssetStatus, status_of
from asset_sync.queue import FeedStatus
from asset_sync.settings import Settings

_INDENT = 11


@with_common_options
def assets_show(
    options: Common,
    symbol: Annotated[str, typer.Argument(metavar="SYMBOL", help="Which asset.")],
    as_json: Json = False,
) -> None:
    """Show all of one asset: price, market, how old the data is, the next call, errors, history.

    Example: asset-sync assets show EURUSD
    """
    settings = settings_for(options)
    named = {asset.symbol: asset for asset in settings.named}
    [name] = known_symbols([symbol], named, "The settings have no asset", "assets list")
    asset, status = named[name], None
    try:
        with database.session(settings.conninfo) as db:
            status = status_of(db, settings, asset)
    except database.DatabaseError as error:
        # What the settings say can be shown without a database.
        err(f"What is stored could not be read: {error}")
    if as_json:
        out_raw(json.dumps(_as_json(asset, settings, status), indent=2))
        return
    for name, text in [
        (asset.symbol, _said(asset, settings)),
        *(_known(asset, status, settings) if status else ()),
    ]:
        out(f"{bold(name)}{' ' * max(1, _INDENT - len(name))}{text}")


# --- on a screen ------------------------------------------------------------------------------


def _said(asset: Asset, settings: Settings) -> str:
    off = " (switched off)" if asset in settings.switched_off else ""
    parts = [asset.name] if asset.name and asset.name != asset.symbol else []
    parts += [asset.ticker, asset.asset_type.value, f"{asset.level.value}{off}"]
    return ", ".join([*parts, f"every {duration(asset.update_frequency_seconds)}"])


def _known(asset: Asset, status: AssetStatus, settings: Settings) -> list[tuple[str, str]]:
    return [
        ("price", _price(status)),
        ("market", _market(status)),
        ("data", _data(status)),
        ("bars", _bars(status)),
        ("call", _call(asset, status, settings)),
        *(("error", _error(one)) for one in status.feeds if one.last_error),
        *_history(status, settings),
        ("revisions", _changed(status.revisions)),
        ("lag", lag_in_words(status.lag)),
    ]


def _price(status: AssetStatus) -> str:
    stored = status.stored
    if stored.last_price is None:
        return "none yet"
    if stored.priced_at is None:
        return price(stored.last_price)
    ago = duration(_since(status, stored.priced_at))
    return f"{price(stored.last_price)} of {moment(stored.priced_at)} UTC, {ago} ago"


def _market(status: AssetStatus) -> str:
    if status.data.opens_at is not None:
        return yellow(f"closed until {_at(status, status.data.opens_at)}")
    if status.closes_at is None:
        return "open, never closed"
    return f"open until {_at(status, status.closes_at)}"


def _data(status: AssetStatus) -> str:
    data = status.data
    if data.age_seconds is None or data.open_seconds is None:
        return "no bars yet"
    said = f"{duration(data.age_seconds)} old" if data.age_seconds else "still running"
    if data.age_seconds and not data.open_seconds:
        said += ", closed since"
    elif round(data.open_seconds) < round(data.age_seconds):
        said += f", of which the market was open for {duration(data.open_seconds)}"
    return said


def _bars(status: AssetStatus) -> str:
    stored, newest_end = status.stored, status.data.newest_bar_end
    if stored.oldest is None or newest_end is None:
        return f"{stored.bars:,}"
    return f"{stored.bars:,}, from {moment(stored.oldest)[:16]} to {moment(newest_end)[:16]} UTC"


def _call(asset: Asset, status: AssetStatus, settings: Settings) -> str:
    live = [one for one in status.feeds if one.feed is not Feed.HISTORY]
    said = "never asked"
    if status.last_success_at is not None:
        said = f"answered {duration(_since(status, status.last_success_at))} ago"
    if asset in settings.switched_off:
        return f"{said}; none follows while it is switched off"
    others = {one.level.value for one in live if one.state == "waiting"} - {asset.level.value}
    level = f", at the level {' or '.join(others)}" if others else ""
    if not live:
        return f"{said}; the next with the next run"
    if any(one.state == "leased" for one in live):
        return f"{said}; asked at this moment"
    next_at = status.next_call_at
    if next_at is None:
        return f"{said}; {red('dead')}: `asset-sync queue retry` tries it again"
    if next_at <= status.now:
        return f"{said}; due for {duration(_since(status, next_at))}{level}"
    return f"{said}; the next in {duration(-_since(status, next_at))}{level}"


def _error(one: FeedStatus) -> str:
    feed = "" if one.feed is Feed.BARS else f"{one.feed}: "
    strikes = f" ({one.strikes} times in a row)" if one.strikes > 1 else ""
    return red(f"{feed}{one.last_error}{strikes}")


def _history(status: AssetStatus, settings: Settings) -> list[tuple[str, str]]:
    found = status.history
    if found is None or status.past_begins is None:
        return []
    calls = counted(found.calls_left, "call")
    since = f"since {short_date(status.past_begins)}: {found.asked_percent:g} % asked"
    lines = [("history", f"{since}, {found.there_percent:g} % there, {calls} to go")]
    holes = []
    if found.never_asked:
        by_run = "with a spare call" if settings.history.enabled else "`asset-sync history fill`"
        holes.append(f"{counted(found.never_asked, 'bar')} never asked, next: {by_run}")
    if found.asked_empty:
        again = "not again"
        if status.next_try_at is not None:
            again = f"next: {moment(status.next_try_at)[:16]} UTC"
        holes.append(f"{counted(found.asked_empty, 'bar')} asked and empty, {again}")
    first, *others = holes or ["none"]
    return [*lines, ("holes", first), *(("", other) for other in others)]


def _changed(bars: int) -> str:
    return f"{counted(bars, 'bar')} changed after being stored"


def _at(status: AssetStatus, then: datetime) -> str:
    return f"{moment(then)[:16]} UTC, in {duration(-_since(status, then))}"


def _since(status: AssetStatus, then: datetime) -> float:
    return (status.now - then).total_seconds()


# --- for a program ----------------------------------------------------------------------------


def _as_json(asset: Asset, settings: Settings, status: AssetStatus | None) -> dict[str, object]:
    said = {**asset_as_json(asset), "enabled": asset not in settings.switched_off}
    if status is None:
        return {**said, **dict.fromkeys(_KEYS)}
    stored, found = status.stored, status.history
    known = (
        age_as_json(asset.symbol, status.data),
        _time(status.closes_at),
        stored.bars,
        _time(stored.oldest),
        stored.last_price,
        _time(stored.priced_at),
        _time(status.last_success_at),
        _time(status.next_call_at),
        [plain(one) for one in status.feeds],
        found
        and {
            "from": _time(status.past_begins),
            "asked_percent": found.asked_percent,
            "there_percent": found.there_percent,
            "calls_left": found.calls_left,
            "holes": {
                "never_asked": {"bars": found.never_asked, "next_try_at": None},
                "asked_empty": {
                    "bars": found.asked_empty,
                    "next_try_at": _time(status.next_try_at),
                },
            },
        },
        status.revisions,
        lag_as_json(status.lag),
    )
    return {**said, **dict(zip(_KEYS, known, strict=True))}


_KEYS = (
    *("data", "closes_at", "bars", "oldest_bar", "last_price", "priced_at", "last_success_at"),
    *("next_call_at", "feeds", "history", "revisions", "lag"),
)


def _time(at: datetime | None) -> str | None:
    return at.astimezone(UTC).isoformat() if at else None
