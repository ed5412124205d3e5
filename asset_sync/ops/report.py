"""All that the page for people shows, as it is at one moment."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from statistics import median
from typing import NamedTuple

from asset_sync import queue
from asset_sync.budget import slots
from asset_sync.budget.slots import Budget
from asset_sync.database import Connection
from asset_sync.model import Asset, AssetType, Level
from asset_sync.ops import age, coverage_weeks, forecast, health, history
from asset_sync.ops.age import DataAge
from asset_sync.ops.coverage_weeks import WeekState
from asset_sync.ops.forecast import Advice, Forecast, Staleness
from asset_sync.ops.health import Health
from asset_sync.ops.history import AssetHistory, History, KnownPast
from asset_sync.queue import Failing, LastError, Upcoming
from asset_sync.settings import Settings
from asset_sync.store import runs
from asset_sync.store.ledger import Lag
from asset_sync.store.runs import HourOfCalls, Run

_NEXT, _RUNS = 10, 12


class DayOfCalls(NamedTuple):
    """What became of the calls that the limit allowed in the last day."""

    hours: tuple[HourOfCalls, ...]
    """The calls made, hour by hour, the oldest first."""
    allowed: int
    """Calls that the limit allows in a day, if each slot is taken as soon as it is free."""
    reserved: int
    """Those of them that are lost because their slots are kept for priority runs."""

    @property
    def priority(self) -> int:
        """Calls of priority runs."""
        return sum(hour.priority for hour in self.hours)

    @property
    def queue(self) -> int:
        """Calls of queue runs that made an asset fresh, or tried to."""
        return sum(hour.queue for hour in self.hours)

    @property
    def history(self) -> int:
        """Calls that asked for the past."""
        return sum(hour.history for hour in self.hours)

    @property
    def kept(self) -> int:
        """Calls that were kept for priority runs, as far as they were not made after all."""
        return min(self.reserved, self._left)

    @property
    def unused(self) -> int:
        """Calls that nobody made."""
        return self._left - self.kept

    @property
    def _left(self) -> int:
        return max(0, self.allowed - self.priority - self.queue - self.history)


class LevelAge(NamedTuple):
    """How old the data of one level is, and how old the plan lets it become."""

    level: Level
    assets: int
    closed: int
    """How many of them have a closed market."""
    half_seconds: float | None
    """In open hours, of the median of the assets whose market is open; None without any."""
    oldest_seconds: float | None
    """In open hours, of the asset with the oldest data; None without any bar."""
    oldest: str
    """The asset with that age; empty without any bar."""
    planned: Staleness | None
    """By the plan; None if it shows nothing of the running day."""


class AssetLine(NamedTuple):
    """One asset."""

    asset: Asset
    data: DataAge
    refreshed_seconds: float | None
    """Since its last success; None if it has had none."""
    history: AssetHistory
    weeks: tuple[WeekState, ...]
    last_error: LastError | None
    """What went wrong since its last success."""


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that is on the page."""

    now: datetime
    """The database's time for which all of this holds."""
    interval_seconds: float
    """Between two starts of the jobs."""
    health: Health
    day: DayOfCalls
    budget: Budget
    levels: tuple[LevelAge, ...]
    """Those that have assets."""
    assets: tuple[AssetLine, ...]
    first_week: date
    """The Monday with which the weeks of each asset begin."""
    history: History
    history_enabled: bool
    next: tuple[Upcoming, ...]
    failing: tuple[Failing, ...]
    runs: tuple[Run, ...]
    forecast: Forecast
    """Of the settings' plan, with the rate that holds now."""
    plans: tuple[Forecast, ...]
    advice: Advice
    bars_end_yesterday: str | None
    """What to say of a key that shows nothing of the running day."""


def report_of(db: Connection, settings: Settings) -> Report:
    """Return what the page shows; reads only."""
    symbols = [asset.symbol for asset in settings.assets]
    known = KnownPast.read(db, settings)
    past = history.history_of(db, settings, known)
    found = health.examine(db, settings)
    ages = age.ages(db, settings.assets)
    as_known, measured = forecast.as_known(db, settings)
    call_seconds = measured or forecast.CALL_SECONDS
    now_forecast = forecast.forecast(as_known, call_seconds)
    plans = forecast.side_by_side(as_known, call_seconds)
    ends_yesterday = known.scope.bars_end_yesterday(db)
    return Report(
        now=known.now,
        interval_seconds=settings.batch.interval_seconds,
        health=found,
        day=_day(db, now_forecast),
        budget=slots.budget(db, slots.rate_of(settings)),
        levels=_levels(
            settings, ages, now_forecast, None if ends_yesterday else known.scope.market_lags
        ),
        assets=_assets(db, settings, known, past, ages),
        first_week=coverage_weeks.first_week(known.now),
        history=past,
        history_enabled=settings.history.enabled,
        next=queue.line(db, settings.assets, _NEXT),
        failing=queue.failing(db, symbols),
        runs=runs.last(db, _RUNS),
        forecast=now_forecast,
        plans=plans,
        advice=forecast.advise(as_known, plans, call_seconds),
        bars_end_yesterday=ends_yesterday,
    )


def _day(db: Connection, told: Forecast) -> DayOfCalls:
    return DayOfCalls(runs.hours_of_calls(db), round(told.allowed_a_day), round(told.kept_a_day))


def _levels(
    settings: Settings,
    ages: Mapping[str, DataAge],
    told: Forecast,
    lags: Mapping[AssetType, Lag] | None,
) -> tuple[LevelAge, ...]:
    """Return the age of each level's data; without `lags` the plan promises none."""
    planned = {one.asset.symbol: one for one in told.assets}
    found = []
    for level in Level:
        assets = [asset.symbol for asset in settings.assets if asset.level is level]
        if not assets:
            continue
        seconds = {
            symbol: age_of for symbol in assets if (age_of := ages[symbol].open_seconds) is not None
        }
        oldest = max(seconds, key=seconds.__getitem__, default="")
        in_open = [one for symbol, one in seconds.items() if ages[symbol].opens_at is None]
        found.append(
            LevelAge(
                level=level,
                assets=len(assets),
                closed=sum(ages[symbol].opens_at is not None for symbol in assets),
                half_seconds=median(in_open) if in_open else None,
                oldest_seconds=seconds.get(oldest),
                oldest=oldest,
                planned=None
                if lags is None
                else forecast.data_age([planned[symbol] for symbol in assets], lags),
            )
        )
    return tuple(found)


def _assets(
    db: Connection,
    settings: Settings,
    known: KnownPast,
    past: History,
    ages: Mapping[str, DataAge],
) -> tuple[AssetLine, ...]:
    symbols = [asset.symbol for asset in settings.assets]
    success = queue.last_success(db, symbols)
    weeks = coverage_weeks.weeks_of(db, settings.assets, known)
    errors = queue.last_errors(db, symbols)
    return tuple(
        AssetLine(
            asset,
            ages[asset.symbol],
            None
            if (at := success.get(asset.symbol)) is None
            else max(0.0, (known.now - at).total_seconds()),
            history_,
            weeks[asset.symbol],
            errors.get(asset.symbol),
        )
        for asset, history_ in zip(settings.assets, past.assets, strict=True)
    )
