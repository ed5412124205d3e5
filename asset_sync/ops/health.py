"""The health checks: figures from the history and the queue, compared with thresholds."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

from asset_sync import queue
from asset_sync.budget import clocks, slots
from asset_sync.database import Connection, DatabaseError
from asset_sync.model import Asset, AssetType, Lane, Level
from asset_sync.ops import age, forecast, history
from asset_sync.queue import FAILING_STRIKES, Dead, Failing, Freshness, LevelStatus
from asset_sync.settings import Settings
from asset_sync.store import ledger, runs
from asset_sync.store.ledger import Lag
from asset_sync.store.runs import JobRecord
from asset_sync.sync.scope import Scope, scope_of

# Cron starts a run in each interval. One missing run may be chance; after two the job is overdue.
OVERDUE_INTERVALS = 2
JUMP_REPORTED_SECONDS = 3600
# Yesterday's bars come within a day after its end, and each asset is asked every six hours; nobody
# has published how late they are, so one day more is allowed.
_END_OF_DAY_SECONDS = 3 * 86_400
_MOST_DEAD = 1000  # that are named


class Verdict(StrEnum):
    """The result of a check; the members are in the order from good to bad."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"


class Check(NamedTuple):
    """One figure and its verdict."""

    name: str
    value: float | None
    """None if there is no figure yet."""
    threshold: float | None
    """None if the check has no figure."""
    verdict: Verdict
    about: str
    """What was found, as text for the user."""
    symbols: tuple[str, ...] = ()
    """The assets that are not well; empty if it is about no single asset."""
    since: datetime | None = None
    """Since when it is so: the last time at which it was well. None if that is not known."""


class JobStatus(NamedTuple):
    """When one of the two commands ran and will run."""

    command: str
    last_run_at: datetime | None
    next_run_at: datetime | None
    """When it is expected, by the interval that the settings name."""
    overdue: bool


class Health(NamedTuple):
    """Everything that `health` reports."""

    jobs: tuple[JobStatus, ...]
    levels: tuple[LevelStatus, ...]
    """The levels of the queue; empty if the database could not be asked."""
    checks: tuple[Check, ...]
    last_priority_update: datetime | None
    api_calls_remaining: int | None
    lags: Mapping[AssetType, Lag]
    """How late the provider's bars are, by market; empty if the database could not be asked."""

    @property
    def status(self) -> Verdict:
        """The worst verdict of all checks."""
        return max((check.verdict for check in self.checks), key=list(Verdict).index)


def examine(db: Connection, settings: Settings) -> Health:
    """Make all checks; reads only."""
    lanes = [lane for lane in Lane if lane is Lane.QUEUE or _has_priority_runs(settings)]
    records = {lane: runs.record_of(db, lane.value) for lane in lanes}
    symbols = [asset.symbol for asset in settings.assets]
    levels = queue.levels(db, symbols)
    freshness = queue.freshness(db, symbols)
    scope = scope_of(db, settings, Lane.QUEUE)
    critical = [freshness.get(asset.symbol) for asset in settings.critical]
    return Health(
        jobs=tuple(_job_status(lane, records[lane], settings) for lane in lanes),
        levels=levels,
        checks=(
            *(_overdue(lane, records[lane], settings) for lane in lanes),
            *(
                _of_priority_runs(db, records[Lane.PRIORITY], settings, freshness)
                if len(lanes) > 1
                else ()
            ),
            _size(levels, settings),
            _dead(levels, queue.dead(db, symbols, most=_MOST_DEAD), freshness),
            _failing(queue.failing(db, symbols), freshness),
            _refused(records, freshness),
            _lowered(db, settings),
            _jumped(db),
            _stale(settings.assets, freshness, settings),
            _old(db, scope),
            _holes(db, settings),
        ),
        last_priority_update=max(
            (fresh.last_success_at for fresh in critical if fresh and fresh.last_success_at),
            default=None,
        ),
        api_calls_remaining=slots.budget(db, slots.rate_of(settings)).free,
        lags=scope.market_lags,
    )


def without_database(why: DatabaseError) -> Health:
    """Return the health if the database cannot be used: nothing is refreshed."""
    check = Check("database", None, None, Verdict.UNHEALTHY, str(why))
    return Health((), (), (check,), None, None, {})


def _has_priority_runs(settings: Settings) -> bool:
    return settings.batch.priority_assets_enabled and bool(settings.critical)


def _job_status(lane: Lane, record: JobRecord, settings: Settings) -> JobStatus:
    interval = timedelta(seconds=settings.batch.interval_seconds)
    last = record.last_run_at
    overdue = _overdue(lane, record, settings).verdict is not Verdict.HEALTHY
    return JobStatus(lane.value, last, last + interval if last else None, overdue)


# --- the checks -------------------------------------------------------------------------------


def _overdue(lane: Lane, record: JobRecord, settings: Settings) -> Check:
    """Check how long ago the last run began; missing priority runs are the worse case."""
    longest = settings.batch.interval_seconds * OVERDUE_INTERVALS
    late = record.seconds_ago is None or record.seconds_ago > longest
    bad = Verdict.UNHEALTHY if lane is Lane.PRIORITY else Verdict.DEGRADED
    return Check(
        f"batch.{lane.value}.seconds_since_run",
        record.seconds_ago,
        longest,
        bad if late else Verdict.HEALTHY,
        f"no `sync {lane.value}` has run yet: is cron set up?"
        if record.seconds_ago is None
        else f"the last `sync {lane.value}` began {record.seconds_ago:.0f} s ago",
        since=record.last_run_at if late else None,
    )


def _of_priority_runs(
    db: Connection, record: JobRecord, settings: Settings, freshness: Mapping[str, Freshness]
) -> Iterator[Check]:
    """Check the priority runs of the last hour."""
    limits = settings.health
    rate = None if not record.tried else 100 * record.updated / record.tried
    low = rate is not None and rate < limits.success_rate_percent
    critical = [asset.symbol for asset in settings.critical]
    failing = tuple(queue.last_errors(db, critical)) if low else ()
    named = f"; with an error: {_named(failing)}" if failing else ""
    yield Check(
        "batch.priority.success_rate",
        rate,
        limits.success_rate_percent,
        Verdict.UNHEALTHY if rate == 0 else Verdict.DEGRADED if low else Verdict.HEALTHY,
        f"{record.updated} of {record.tried} refreshes of priority assets succeeded in the last"
        f" hour{named}",
        failing,
        _last_well(failing, freshness),
    )
    slow = record.p95_ms is not None and record.p95_ms > limits.latency_ms
    yield Check(
        "batch.priority.latency_ms",
        record.p95_ms,
        limits.latency_ms,
        Verdict.DEGRADED if slow else Verdict.HEALTHY,
        "milliseconds that 95 % of the last hour's priority runs took at most, without waits for a"
        " slot",
    )
    yield Check(
        "api.rate_limit_waits",
        record.waits,
        limits.rate_limit_waits,
        Verdict.DEGRADED if record.waits > limits.rate_limit_waits else Verdict.HEALTHY,
        "priority runs of the last hour that waited for a slot",
    )


def _size(levels: Sequence[LevelStatus], settings: Settings) -> Check:
    size = sum(level.waiting + level.leased for level in levels)
    threshold = settings.health.queue_size
    verdict = Verdict.DEGRADED if size > threshold else Verdict.HEALTHY
    return Check("queue.size", size, threshold, verdict, "assets that wait or are at work")


def _last_well(symbols: Sequence[str], freshness: Mapping[str, Freshness]) -> datetime | None:
    """Return since when the first of these assets is not well: its last success of any feed."""
    moments = [freshness[symbol].last_success_at for symbol in symbols if symbol in freshness]
    return min((moment for moment in moments if moment is not None), default=None)


def _dead(
    levels: Sequence[LevelStatus], items: Sequence[Dead], freshness: Mapping[str, Freshness]
) -> Check:
    dead = sum(level.dead for level in levels)
    symbols = tuple(dict.fromkeys(one.symbol for one in items))
    about = "dead items: `asset-sync queue list --state dead` says why"
    verdict = Verdict.DEGRADED if dead else Verdict.HEALTHY
    since = _last_well(symbols, freshness)
    return Check("queue.dead", dead, 0, verdict, about, symbols, since)


def _failing(failing: Sequence[Failing], freshness: Mapping[str, Freshness]) -> Check:
    about = f"assets that failed {FAILING_STRIKES} times in a row or more"
    if failing:
        worst = failing[0]
        about = f"{about}: {worst.symbol} ({worst.strikes} times): {worst.error}"
        if len(failing) > 1:
            about += f" And {len(failing) - 1} more: `asset-sync queue status` names them."
    verdict = Verdict.DEGRADED if failing else Verdict.HEALTHY
    symbols = tuple(dict.fromkeys(one.symbol for one in failing))
    since = _last_well(symbols, freshness)
    return Check("assets.failing", len(failing), 0, verdict, about, symbols, since)


def _refused(records: Mapping[Lane, JobRecord], freshness: Mapping[str, Freshness]) -> Check:
    """Report a refused key or plan at once, before data is stale: no later run can correct it."""
    refused = [lane for lane, record in records.items() if record.refused]
    about = "jobs whose last run the API refused because of the key or its plan"
    if refused:
        jobs = " and ".join(f"`sync {lane.value}`" for lane in refused)
        about = f"the API refuses {jobs}, for the key or its plan: `asset-sync doctor` says more"
    verdict = Verdict.UNHEALTHY if refused else Verdict.HEALTHY
    well = [one.last_success_at for one in freshness.values() if one.last_success_at]
    since = max(well, default=None) if refused else None
    return Check("api.refused", len(refused), 0, verdict, about, since=since)


def _lowered(db: Connection, settings: Settings) -> Check:
    """Report a key that turned out to allow fewer calls than the settings say."""
    lowered = slots.lowered(db, slots.rate_of(settings))
    if lowered is None:
        return Check("api.rate_lowered", 0, 0, Verdict.HEALTHY, "the rate of the settings holds")
    return Check("api.rate_lowered", 1, 0, Verdict.DEGRADED, str(lowered))


def _jumped(db: Connection) -> Check:
    """Report for an hour that the database's clock has jumped: times before it are wrong."""
    jump = clocks.last_jump(db)
    if jump is None or jump.seconds_ago > JUMP_REPORTED_SECONDS:
        return Check("clock.jumped", 0, 0, Verdict.HEALTHY, "the database's clock has not jumped")
    about = f"{jump}, noticed {jump.seconds_ago:.0f} s ago: check the time service of its host"
    return Check("clock.jumped", 1, 0, Verdict.DEGRADED, about)


def _is_stale(fresh: Freshness, frequency: float, factor: float) -> bool:
    """Whether an asset was not refreshed for so many times its frequency while news could come."""
    could = fresh.news_seconds_ago
    waited = fresh.seconds_old if could is None else min(fresh.seconds_old, could + frequency)
    return waited > factor * frequency


def _old(db: Connection, scope: Scope) -> Check:
    """Count the assets whose data is older than expected while their market is open."""
    assets = scope.settings.assets
    known = age.ages(db, assets)
    factor = scope.settings.health.stale_after_frequencies
    ends_yesterday = scope.bars_end_yesterday(db)
    least = _END_OF_DAY_SECONDS if ends_yesterday else 0
    old = [
        asset.symbol
        for asset in assets
        if known[asset.symbol].is_old(max(factor * asset.update_frequency_seconds, least))
    ]
    about = "assets whose newest bar is older than expected in an open market"
    if old:
        about = f"the newest bar is older than expected in an open market: {_named(old)}"
    if ends_yesterday:
        about = f"{about}. {ends_yesterday}" if old else ends_yesterday
    verdict = Verdict.DEGRADED if old else Verdict.HEALTHY
    ends = [end for symbol in old if (end := known[symbol].newest_bar_end) is not None]
    since = min(ends, default=None)
    return Check("data.old", len(old), 0, verdict, about, tuple(old), since)


def _holes(db: Connection, settings: Settings) -> Check:
    """Count the assets whose past was never asked although calls were spare for a day."""
    stuck = _stuck(db, settings)
    if stuck:
        about = (
            f"for a day calls were spare, and none asked for the past of {_named(stuck)}:"
            " `asset-sync history fill` asks for it now and says what fails"
        )
        return Check("history.holes", len(stuck), 0, Verdict.DEGRADED, about, tuple(stuck))
    about = "assets whose past was never asked although calls were spare for a day"
    over = ledger.given_up(db, [asset.symbol for asset in settings.assets])
    if over:
        weeks = sum(over.values())
        many = "1 week" if weeks == 1 else f"{weeks:,} weeks"
        about += f". Asked for the last time and still empty, which is no fault: {many} of"
        about += f" {_named(list(over))}"
    return Check("history.holes", 0, 0, Verdict.HEALTHY, about)


def _stuck(db: Connection, settings: Settings) -> list[str]:
    """Return the assets whose past is not asked for though the calls for it are there.

    While calls for history are made, each asset has its turn. A day without all of its runs, or in
    which other calls took what there was, shows nothing.
    """
    if not settings.history.enabled:
        return []
    day = runs.last_day(db)
    if day.history_calls_last_hour or day.queue_runs < _ALL_RUNS * (
        forecast.DAY_SECONDS / settings.batch.interval_seconds
    ):
        return []
    waiting = [one for one in history.with_unasked_past(db, settings) if one not in day.filled]
    if not waiting:
        return []
    now_settings, call_seconds = forecast.as_known(db, settings)
    told = forecast.forecast(now_settings, call_seconds or forecast.CALL_SECONDS)
    spare = min(told.left_a_day, told.calls_a_day - day.calls)
    return waiting if spare > _SPARE * told.calls_a_day else []


# The share of a day's runs that must have taken place, and the share of its calls that must have
# been spare, before a hole that stays counts as a fault.
_ALL_RUNS = 0.9
_SPARE = 0.5


def _named(symbols: Sequence[str]) -> str:
    """Return the first five symbols, and whether there are more."""
    return ", ".join(symbols[:5]) + (" …" if len(symbols) > 5 else "")  # noqa: PLR2004


def _stale(assets: Sequence[Asset], freshness: dict[str, Freshness], settings: Settings) -> Check:
    """Count the stale assets; the result is unhealthy if one of them is critical."""
    factor = settings.health.stale_after_frequencies
    stale = [
        asset
        for asset in assets
        if asset.symbol in freshness
        and _is_stale(freshness[asset.symbol], asset.update_frequency_seconds, factor)
    ]
    verdict = Verdict.DEGRADED if stale else Verdict.HEALTHY
    if any(asset.level is Level.CRITICAL for asset in stale):
        verdict = Verdict.UNHEALTHY
    symbols = tuple(asset.symbol for asset in stale)
    named = _named(symbols)
    why = f": {named}; `asset-sync queue list {stale[0].symbol}` says why" if stale else ""
    about = f"not fresh for {factor:g} times their frequency{why}"
    since = _last_well(symbols, freshness)
    return Check("assets.stale", len(stale), 0, verdict, about, symbols, since)
