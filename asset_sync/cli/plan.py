"""`asset-sync plan`: what the provider's plans give these assets."""

import json
import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Annotated, NamedTuple

import typer

from asset_sync import database
from asset_sync.cli.format import counted, duration, moment, table
from asset_sync.cli.lag import lag_table, lags_as_json
from asset_sync.cli.options import Common, Json, with_common_options
from asset_sync.cli.output import out, out_raw
from asset_sync.cli.settings import settings_for
from asset_sync.database import Connection, embedded
from asset_sync.model import Asset, AssetType, Level
from asset_sync.ops import forecast, history
from asset_sync.ops.forecast import Advice, AssetForecast, Forecast, Staleness, staleness
from asset_sync.ops.history import Outlook
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
    known = _known(settings)
    plans = known.plans
    now = next(one for one in plans if one.forecast.plan is settings.provider.plan)
    forecasts = [one.forecast for one in plans]
    advice = forecast.advise(known.settings, forecasts, known.call_seconds)
    if as_json:
        document = {
            "call_seconds": known.call_seconds,
            "plan": now.forecast.plan.name,
            "plans": [_as_json(one) for one in plans],
            "assets": [_asset_as_json(one, now) for one in now.forecast.assets],
            "lags": lags_as_json(now.outlook.lags, now.forecast.plan.name),
            "bars_end_yesterday": now.outlook.bars_end_yesterday,
            "advice": _advice_as_json(now.forecast, advice),
        }
        out_raw(json.dumps(document, indent=2))
        return
    _show(now, plans)
    out(advice_in_words(now.forecast, advice))
    out(_history(now, settings))
    if said := now.outlook.bars_end_yesterday:
        out(said)
    if later := now.forecast.beyond_first_window:
        first = len(now.forecast.of_level(Level.CRITICAL)) - later
        out(
            f"A window has calls for {first} priority assets; the other {later} wait for a later"
            " window in each cycle, which `health` reports (api.rate_limit_waits)."
        )
    source = "the median of the last day" if known.measured else "an assumption without history"
    options.say(
        f"The forecast assumes that a call takes {known.call_seconds:.1f} s ({source}), and that"
        " there is no outage."
    )


class _PlanView(NamedTuple):
    """What one plan gives."""

    forecast: Forecast
    outlook: Outlook

    @property
    def history_days(self) -> float:
        """In how many days all of the past was asked."""
        return forecast.days_for(self.outlook.calls_left, self.forecast.left_a_day)

    def data_age(self, assets: Sequence[AssetForecast]) -> Staleness | None:
        """Return how old the data of these assets gets; None if their bars end yesterday."""
        if self.outlook.bars_end_yesterday:
            return None
        return forecast.data_age(assets, self.outlook.lags)


class _Known(NamedTuple):
    """What the settings say and, if there is a database, what it knows."""

    settings: Settings
    """With the rate that holds."""
    call_seconds: float
    measured: bool
    """Whether that is how long calls took."""
    plans: Sequence[_PlanView]


def _known(settings: Settings) -> _Known:
    """Return what each plan gives; no database is needed."""
    if settings.conninfo is not None or embedded.data_directory().exists():
        with suppress(database.DatabaseError), database.session(settings.conninfo) as db:
            as_known, seconds = forecast.as_known(db, settings)
            call_seconds = forecast.CALL_SECONDS if seconds is None else seconds
            plans = _side_by_side(as_known, call_seconds, db)
            return _Known(as_known, call_seconds, seconds is not None, plans)
    plans = _side_by_side(settings, forecast.CALL_SECONDS, None)
    return _Known(settings, forecast.CALL_SECONDS, measured=False, plans=plans)


def _side_by_side(
    settings: Settings, call_seconds: float, db: Connection | None
) -> Sequence[_PlanView]:
    return [
        _PlanView(one, history.outlook(forecast.with_plan(settings, one.plan), db))
        for one in forecast.side_by_side(settings, call_seconds)
    ]


def _with_more(settings: Settings, more: int, level: Level, every: int) -> Settings:
    new = (
        Asset(f"MORE{number}", f"C:MORE{number}", AssetType.FOREX, "", level, 1_000_000, every)
        for number in range(more)
    )
    return replace(settings, assets=(*settings.assets, *new))


# --- on a screen ------------------------------------------------------------------------------


def _show(view: _PlanView, plans: Sequence[_PlanView]) -> None:
    now = view.forecast
    calls, period = now.limit.calls, duration(now.limit.period_seconds)
    many = "1 call" if calls == 1 else f"{calls} calls"
    out(
        f"Plan {now.plan.name}, {many} in {period}: {now.calls_a_day:,.0f} a day, of which these"
        f" {len(now.assets)} assets need {now.needed_a_day:,.0f} ({_percent(now.share)})."
    )
    out_raw("")
    if now.assets:
        columns = ["level", ">assets", ">every", ">calls/day", ">share"]
        columns += [">half", ">95 %", ">worst", ">data"]
        rows = [_group(view, group) for group in _groups(now.assets)]
        out_raw(table(columns, rows, spare=[">share", ">calls/day", ">half"]))
        out_raw("")
    columns = ["plan", ">$/month", ">calls/day", ">used", ">95 %", ">data", ">fresh in"]
    columns += [">left/day", ">history", "enough"]
    rows = [_plan(one) for one in plans]
    out_raw(table(columns, rows, spare=[">calls/day", ">used", ">left/day", ">fresh in", ">95 %"]))
    out_raw("")
    out_raw(lag_table(view.outlook.lags))
    out_raw("")
    with_lag = "the lag of the bars above" if _has_lag(view) else "the lag, which is not known yet"
    out(
        "half, 95 %, worst: how long ago the last call was at most, half of the time, 95 % of it,"
        " ever; data: how old the newest bar is at most in an open market, 95 % of the time,"
        f" {'with' if _has_lag(view) else 'without'} {with_lag}; fresh in: from an empty database;"
        " left: for history; history: until all of it was asked."
    )


def _has_lag(view: _PlanView) -> bool:
    return any(lag.is_known for lag in view.outlook.lags.values())


def _group(view: _PlanView, group: Sequence[AssetForecast]) -> list[str]:
    first = group[0].asset
    calls = sum(one.calls_a_day for one in group)
    return [
        first.level.value,
        str(len(group)),
        duration(first.update_frequency_seconds),
        f"{calls:,.0f}",
        _percent(calls / view.forecast.calls_a_day),
        *(never_or(seconds) for seconds in staleness(group)),
        _data_age(view, group),
    ]


def _groups(assets: Iterable[AssetForecast]) -> list[list[AssetForecast]]:
    """Group the assets by level and frequency, in the order of the levels."""
    groups: dict[tuple[Level, int], list[AssetForecast]] = {}
    for one in assets:
        key = (one.asset.level, one.asset.update_frequency_seconds)
        groups.setdefault(key, []).append(one)
    order = list(Level)
    return [groups[key] for key in sorted(groups, key=lambda key: (order.index(key[0]), key[1]))]


def _plan(view: _PlanView) -> list[str]:
    one = view.forecast
    return [
        one.plan.name,
        "-" if one.plan.usd_a_month is None else str(one.plan.usd_a_month),
        f"{one.calls_a_day:,.0f}",
        _percent(one.share),
        never_or(staleness(one.assets).p95_seconds) if one.assets else "-",
        _data_age(view, one.assets) if one.assets else "-",
        never_or(one.all_fresh_seconds),
        f"{one.left_a_day:,.0f}",
        never_or(view.history_days * forecast.DAY_SECONDS),
        "yes" if one.enough else "no",
    ]


def _data_age(view: _PlanView, assets: Sequence[AssetForecast]) -> str:
    age = view.data_age(assets)
    return "-" if age is None else never_or(age.p95_seconds)


def _history(view: _PlanView, settings: Settings) -> str:
    """Say when the history will be complete."""
    calls = view.outlook.calls_left
    if not calls:
        return "History: all that is wanted was asked."
    many = counted(calls, "call")
    spare = f"History: {many} to go, {view.forecast.left_a_day:,.0f} a day are spare"
    done_at = _done_at(view)
    if done_at is None:
        return f"{spare}, so it is never complete."
    said = f"{spare}: complete by {moment(done_at)[:16]} UTC"
    if not settings.history.enabled:
        return f"{said} if runs fetched it, but [history] enabled = false."
    return f"{said} (in {never_or(view.history_days * forecast.DAY_SECONDS)})."


def _done_at(view: _PlanView) -> datetime | None:
    """Return when all of the past was asked; None if nothing is left, or if that is never."""
    days = view.history_days
    return view.outlook.now + timedelta(days=days) if 0 < days < math.inf else None


def never_or(seconds: float) -> str:
    """Return a length of time, or that it is infinite."""
    return "never" if math.isinf(seconds) else duration(seconds)


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.1 or not share else f"{share:.1%}"  # noqa: PLR2004


def advice_in_words(now: Forecast, advice: Advice) -> str:
    """Say what to do, if anything."""
    if now.enough:
        return "This plan is enough: no asset waits for a call."
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


def _as_json(view: _PlanView) -> dict[str, object]:
    one = view.forecast
    return {
        "plan": one.plan.name,
        "usd_a_month": one.plan.usd_a_month,
        "calls_a_day": round(one.calls_a_day),
        "needed_a_day": round(one.needed_a_day),
        "share": round(one.share, 4),
        "left_a_day": round(one.left_a_day),
        "history_calls_left": view.outlook.calls_left,
        "history_done_at": None if (at := _done_at(view)) is None else at.isoformat(),
        "all_fresh_seconds": _finite(one.all_fresh_seconds),
        "enough": one.enough,
        "staleness": {
            level.value: _staleness_as_json(staleness(assets))
            for level in Level
            if (assets := one.of_level(level))
        },
        "data_age": {
            level.value: _staleness_as_json(view.data_age(assets))
            for level in Level
            if (assets := one.of_level(level))
        },
    }


def _asset_as_json(one: AssetForecast, view: _PlanView) -> dict[str, object]:
    return {
        "symbol": one.asset.symbol,
        "level": one.asset.level.value,
        "update_frequency_seconds": one.asset.update_frequency_seconds,
        "calls_a_day": round(one.calls_a_day, 2),
        "refreshed_every_seconds": _finite(one.refreshed_every_seconds),
        "staleness": _staleness_as_json(one.staleness),
        "data_age": _staleness_as_json(view.data_age([one])),
    }


def _staleness_as_json(staleness: Staleness | None) -> dict[str, float | None] | None:
    if staleness is None:
        return None
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
