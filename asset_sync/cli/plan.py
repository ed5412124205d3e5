"""`asset-sync plan`: what the provider's plans give these assets."""

import json
import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Annotated

import typer

from asset_sync import database
from asset_sync.cli.format import duration, table
from asset_sync.cli.options import Common, Json, with_common_options
from asset_sync.cli.output import out, out_raw
from asset_sync.cli.settings import settings_for
from asset_sync.database import embedded
from asset_sync.model import Asset, AssetType, Level
from asset_sync.ops import forecast
from asset_sync.ops.forecast import Advice, AssetForecast, Forecast, Staleness, staleness
from asset_sync.settings import Settings

_USUAL_SECONDS = 300


@with_common_options
def plan(
    options: Common,
    more: Annotated[
        int,
        typer.Option(
            "--more",
            metavar="N",
            min=0,
            max=100_000,
            help="As if there were N more assets.",
            show_default=False,
        ),
    ] = 0,
    level: Annotated[Level, typer.Option("--level", help="Their level.")] = Level.MEDIUM,
    every: Annotated[
        int, typer.Option("--every", metavar="SECONDS", min=1, help="Their frequency.")
    ] = _USUAL_SECONDS,
    as_json: Json = False,
) -> None:
    """Forecast how fresh each plan of the provider keeps the assets, and what would be enough.

    Example: asset-sync plan --more 200
    """
    settings = _with_more(settings_for(options), more, level, every)
    settings, call_seconds, measured = _as_known(settings)
    plans = forecast.side_by_side(settings, call_seconds)
    now = next(one for one in plans if one.plan is settings.provider.plan)
    advice = forecast.advise(settings, plans, call_seconds)
    if as_json:
        document = {
            "call_seconds": call_seconds,
            "plan": now.plan.name,
            "plans": [_as_json(one) for one in plans],
            "assets": [_asset_as_json(one) for one in now.assets],
            "advice": _advice_as_json(now, advice),
        }
        out_raw(json.dumps(document, indent=2))
        return
    _show(now, plans)
    out(_advice(now, advice))
    if later := now.beyond_first_window:
        first = len(now.of_level(Level.CRITICAL)) - later
        out(
            f"A window has calls for {first} priority assets; the other {later} wait for a later"
            " window in each cycle, which `health` reports (api.rate_limit_waits)."
        )
    source = "the median of the last day" if measured else "an assumption without history"
    options.say(
        f"The forecast assumes that a call takes {call_seconds:.1f} s ({source}), and that there"
        " is no outage."
    )


def _with_more(settings: Settings, more: int, level: Level, every: int) -> Settings:
    new = (
        Asset(f"MORE{number}", f"C:MORE{number}", AssetType.FOREX, "", level, 1_000_000, every)
        for number in range(more)
    )
    return replace(settings, assets=(*settings.assets, *new))


def _as_known(settings: Settings) -> tuple[Settings, float, bool]:
    """Return the settings with the rate that holds, how long a call takes, and if it was measured.

    No database is needed.
    """
    seconds = None
    if settings.conninfo is not None or embedded.data_directory().exists():
        unusable = suppress(database.DatabaseError)
        with unusable, database.session(settings.conninfo) as db:
            settings, seconds = forecast.as_known(db, settings)
    if seconds is None:
        return settings, forecast.CALL_SECONDS, False
    return settings, seconds, True


# --- on a screen ------------------------------------------------------------------------------


def _show(now: Forecast, plans: Sequence[Forecast]) -> None:
    calls, period = now.limit.calls, duration(now.limit.period_seconds)
    many = "1 call" if calls == 1 else f"{calls} calls"
    out(
        f"Plan {now.plan.name}, {many} in {period}: {now.calls_a_day:,.0f} a day, of which these"
        f" {len(now.assets)} assets need {now.needed_a_day:,.0f} ({_percent(now.share)})."
    )
    out_raw("")
    if now.assets:
        columns = ["level", ">assets", ">every", ">calls/day", ">share", ">half", ">95 %", ">worst"]
        rows = [_group(now, group) for group in _groups(now.assets)]
        out_raw(table(columns, rows, spare=[">share", ">half", ">calls/day"]))
        out_raw("")
    columns = [
        "plan",
        ">$/month",
        ">calls/day",
        ">used",
        ">95 %",
        ">fresh in",
        ">left/day",
        "enough",
    ]
    rows = [_plan(one) for one in plans]
    out_raw(table(columns, rows, spare=[">left/day", ">used", ">calls/day"]))
    out_raw("")
    out(
        "half, 95 %, worst: what the data's age does not exceed half of the time, 95 % of it, ever;"
        " fresh in: from an empty database; left: for history."
    )


def _group(now: Forecast, group: Sequence[AssetForecast]) -> list[str]:
    first = group[0].asset
    calls = sum(one.calls_a_day for one in group)
    return [
        first.level.value,
        str(len(group)),
        duration(first.update_frequency_seconds),
        f"{calls:,.0f}",
        _percent(calls / now.calls_a_day),
        *(_age(seconds) for seconds in staleness(group)),
    ]


def _groups(assets: Iterable[AssetForecast]) -> list[list[AssetForecast]]:
    """Group the assets by level and frequency, in the order of the levels."""
    groups: dict[tuple[Level, int], list[AssetForecast]] = {}
    for one in assets:
        key = (one.asset.level, one.asset.update_frequency_seconds)
        groups.setdefault(key, []).append(one)
    order = list(Level)
    return [groups[key] for key in sorted(groups, key=lambda key: (order.index(key[0]), key[1]))]


def _plan(one: Forecast) -> list[str]:
    return [
        one.plan.name,
        "-" if one.plan.usd_a_month is None else str(one.plan.usd_a_month),
        f"{one.calls_a_day:,.0f}",
        _percent(one.share),
        _age(staleness(one.assets).p95_seconds) if one.assets else "-",
        _age(one.all_fresh_seconds),
        f"{one.left_a_day:,.0f}",
        "yes" if one.enough else "no",
    ]


def _age(seconds: float) -> str:
    return "never" if math.isinf(seconds) else duration(seconds)


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.1 or not share else f"{share:.1%}"  # noqa: PLR2004


def _advice(now: Forecast, advice: Advice) -> str:
    """Say what to do, if anything."""
    if now.enough:
        return (
            "This plan is enough: no asset waits for a call. All of the history that it gives"
            f" would take {now.history_calls:,} calls."
        )
    ways = []
    if advice.below:
        seconds = advice.frequency_seconds or 0
        which = "asset" if advice.below == 1 else f"{advice.below:,} assets"
        ways.append(
            f"raise update_frequency_seconds to {seconds} ({duration(seconds)}) for the {which}"
            " below that"
        )
    if advice.plan is not None:
        plan = advice.plan.plan
        ways.append(f"move to the plan {plan.name} (${plan.usd_a_month} a month)")
    if not ways:
        ways.append("name fewer priority assets: they alone need more calls than there are")
    return f"This plan is not enough: {', or '.join(ways)}."


# --- for a program ----------------------------------------------------------------------------


def _as_json(one: Forecast) -> dict[str, object]:
    return {
        "plan": one.plan.name,
        "usd_a_month": one.plan.usd_a_month,
        "calls_a_day": round(one.calls_a_day),
        "needed_a_day": round(one.needed_a_day),
        "share": round(one.share, 4),
        "left_a_day": round(one.left_a_day),
        "history_calls": one.history_calls,
        "all_fresh_seconds": _finite(one.all_fresh_seconds),
        "enough": one.enough,
        "staleness": {
            level.value: _staleness_as_json(staleness(assets))
            for level in Level
            if (assets := one.of_level(level))
        },
    }


def _asset_as_json(one: AssetForecast) -> dict[str, object]:
    return {
        "symbol": one.asset.symbol,
        "level": one.asset.level.value,
        "update_frequency_seconds": one.asset.update_frequency_seconds,
        "calls_a_day": round(one.calls_a_day, 2),
        "refreshed_every_seconds": _finite(one.refreshed_every_seconds),
        "staleness": _staleness_as_json(one.staleness),
    }


def _staleness_as_json(staleness: Staleness) -> dict[str, float | None]:
    return {name: _finite(seconds) for name, seconds in staleness._asdict().items()}


def _advice_as_json(now: Forecast, advice: Advice) -> dict[str, object]:
    return {
        "enough": now.enough,
        "update_frequency_seconds": None if now.enough else advice.frequency_seconds,
        "move_to": None if now.enough or advice.plan is None else advice.plan.plan.name,
    }


def _finite(seconds: float) -> float | None:
    """Return the number for JSON, which has no infinity: null for what never comes."""
    return None if math.isinf(seconds) else round(seconds, 1)
