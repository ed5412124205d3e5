"""The figures of `health`, in Prometheus' text format.

All metrics are gauges. There are no counters, because no process runs all the time and the history
is pruned. Instead there are the figures of the last hour.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from asset_sync import queue
from asset_sync.budget import slots
from asset_sync.database import Connection
from asset_sync.model import Lane
from asset_sync.ops import age, health, history
from asset_sync.ops.health import Verdict
from asset_sync.settings import Settings
from asset_sync.store import runs
from asset_sync.sync.scope import scope_of

PREFIX = "asset_sync"


class Family(NamedTuple):
    """One metric: its name without the prefix, its meaning, its labels and its samples."""

    name: str
    about: str
    labels: tuple[str, ...]
    samples: Sequence[tuple[Sequence[str], float | None]]
    """Label values and value; None leaves the sample out."""


def exposition(db: Connection, settings: Settings) -> str:
    """Return all metrics as Prometheus reads them."""
    registry = CollectorRegistry()
    families = [family for read in _READERS for family in read(db, settings)]
    registry.register(_Families(families))
    return generate_latest(registry).decode()


class _Families(Collector):
    def __init__(self, families: Sequence[Family]) -> None:
        self._families = families

    def collect(self) -> Iterator[GaugeMetricFamily]:
        for family in self._families:
            gauge = GaugeMetricFamily(
                f"{PREFIX}_{family.name}", family.about, labels=list(family.labels)
            )
            for labels, value in family.samples:
                if value is not None:
                    gauge.add_metric(list(labels), value)
            yield gauge


def _assets(db: Connection, settings: Settings) -> Iterator[Family]:
    fresh = queue.freshness(db, [asset.symbol for asset in settings.assets])
    yield Family(
        "asset_staleness_seconds",
        "Seconds since the asset's last success, or since it was added if it had none.",
        ("symbol",),
        [((symbol,), freshness.seconds_old) for symbol, freshness in sorted(fresh.items())],
    )
    yield Family(
        "asset_update_frequency_seconds",
        "How old the asset's data may get.",
        ("symbol",),
        [((asset.symbol,), asset.update_frequency_seconds) for asset in settings.assets],
    )


def _data(db: Connection, settings: Settings) -> Iterator[Family]:
    known = age.ages(db, settings.assets)
    yield Family(
        "asset_data_age_seconds",
        "Seconds since the end of the asset's newest bar.",
        ("symbol",),
        [((symbol,), one.age_seconds) for symbol, one in known.items()],
    )
    yield Family(
        "asset_data_open_seconds",
        "For how many of these seconds the asset's market was open.",
        ("symbol",),
        [((symbol,), one.open_seconds) for symbol, one in known.items()],
    )
    plan = settings.provider.plan.name
    lags = scope_of(db, settings, Lane.QUEUE).market_lags
    yield Family(
        "lag_seconds",
        "How late this share of a market's bars is first seen at most, if enough are measured.",
        ("market", "plan", "quantile"),
        [
            ((kind.value, plan, quantile), seconds)
            for kind, lag in lags.items()
            if lag.is_known
            for quantile, seconds in (("0.5", lag.p50), ("0.95", lag.p95), ("0.99", lag.p99))
        ],
    )
    yield Family(
        "lag_measurements",
        "How many measurements of this there are, 1,000 at most.",
        ("market", "plan"),
        [((kind.value, plan), lag.measurements) for kind, lag in lags.items()],
    )


def _history(db: Connection, settings: Settings) -> Iterator[Family]:
    found = history.history_of(db, settings)
    for name, about, value in (
        (
            "history_expected_bars",
            "Bars expected in the past that is wanted of all assets.",
            sum(one.expected_bars for one in found.assets),
        ),
        (
            "history_asked_bars",
            "Those of them whose range was asked for.",
            sum(one.asked_bars for one in found.assets),
        ),
        (
            "history_bars",
            "Those of them that are stored.",
            sum(one.there for one in found.assets),
        ),
        ("history_calls_left", "Calls that ask for the rest.", found.calls_left),
        (
            "history_spare_calls_per_day",
            "Calls of a day that fresh data leaves over.",
            found.spare_calls_per_day,
        ),
    ):
        yield Family(name, about, (), [((), value)])
    yield Family(
        "history_hole_bars",
        "Bars missing in open hours, by the class of their hole.",
        ("class",),
        [
            ((history.NEVER_ASKED,), sum(one.never_asked for one in found.assets)),
            ((history.ASKED_EMPTY,), sum(one.asked_empty for one in found.assets)),
        ],
    )


def _budget(db: Connection, settings: Settings) -> Iterator[Family]:
    budget = slots.budget(db, slots.rate_of(settings))
    yield Family("slots", "Calls that the plan allows in a window.", (), [((), budget.calls)])
    yield Family("slots_used", "Slots whose window is not over.", (), [((), budget.used)])
    yield Family(
        "blocked_seconds",
        "For how long no call is made, after a 429 of the provider.",
        (),
        [((), budget.blocked_seconds)],
    )


def _calls(db: Connection, _: Settings) -> Iterator[Family]:
    calls = runs.calls_of_last_hour(db)
    yield Family(
        "calls_last_hour",
        "Calls of the last hour, by feed and outcome.",
        ("feed", "outcome"),
        [((group.feed, group.outcome), group.calls) for group in calls],
    )
    yield Family(
        "bars_written_last_hour",
        "Bars that were new or changed in the last hour.",
        (),
        [((), sum(group.bars_written for group in calls))],
    )


def _runs(db: Connection, _: Settings) -> Iterator[Family]:
    records = {command: runs.record_of(db, command) for command in ("priority", "queue")}
    for name, about, value in (
        # A time, because an age would stand still if the collector's file were no longer written.
        ("last_run_timestamp_seconds", "When the last run began.", _last_run),
        ("run_duration_p95_seconds", "What 95 % of the last hour's runs took at most.", _p95),
        ("runs_waited_last_hour", "Runs that waited for a slot.", lambda record: record.waits),
        (
            "assets_tried_last_hour",
            "Assets that the runs refreshed or tried to refresh.",
            lambda record: record.tried,
        ),
        ("assets_updated_last_hour", "Assets refreshed.", lambda record: record.updated),
    ):
        samples = [((command,), value(record)) for command, record in records.items()]
        yield Family(name, about, ("command",), samples)


def _last_run(record: runs.JobRecord) -> float | None:
    return None if record.last_run_at is None else record.last_run_at.timestamp()


def _p95(record: runs.JobRecord) -> float | None:
    return None if record.p95_ms is None else record.p95_ms / 1000


def _health(db: Connection, settings: Settings) -> Iterator[Family]:
    found = health.examine(db, settings)
    levels = found.levels
    yield Family(
        "queue_items",
        "Items of the queue, by level and state.",
        ("level", "state"),
        [
            ((status.level.value, state), count)
            for status in levels
            for state, count in (
                ("waiting", status.waiting),
                ("leased", status.leased),
                ("dead", status.dead),
            )
        ],
    )
    yield Family(
        "queue_oldest_item_seconds",
        "How long the oldest item of a level has been due.",
        ("level",),
        [((status.level.value,), status.oldest_seconds) for status in levels],
    )
    rank = list(Verdict).index
    yield Family(
        "health",
        "0 healthy, 1 degraded, 2 unhealthy, by check.",
        ("check",),
        [((check.name,), rank(check.verdict)) for check in found.checks],
    )


_READERS: tuple[Callable[[Connection, Settings], Iterator[Family]], ...] = (
    _assets,
    _data,
    _history,
    _budget,
    _calls,
    _runs,
    _health,
)
