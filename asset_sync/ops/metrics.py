"""What `health` looks at, in Prometheus' text format.

Gauges only: nobody is resident who could count, and the history forgets. What Prometheus would
rather have counted is given as of the last hour.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from asset_sync import queue
from asset_sync.budget import slots
from asset_sync.database import Connection
from asset_sync.ops import health
from asset_sync.ops.health import Verdict
from asset_sync.settings import Settings
from asset_sync.store import runs

PREFIX = "asset_sync"


class Family(NamedTuple):
    """One metric: its name without the prefix, what it says, its labels and its samples."""

    name: str
    about: str
    labels: tuple[str, ...]
    samples: Sequence[tuple[Sequence[str], float | None]]
    """Label values and value; None leaves the sample out."""


def exposition(db: Connection, settings: Settings) -> str:
    """Return all metrics as Prometheus reads them."""
    registry = CollectorRegistry()
    registry.register(_Families([family for look in _LOOKS for family in look(db, settings)]))
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
        "Since the asset was last fresh; since it was added, if it never was.",
        ("symbol",),
        [((symbol,), one.seconds_old) for symbol, one in sorted(fresh.items())],
    )
    yield Family(
        "asset_update_frequency_seconds",
        "How old the asset's data may get.",
        ("symbol",),
        [((asset.symbol,), asset.update_frequency_seconds) for asset in settings.assets],
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
    made = runs.calls_of_last_hour(db)
    yield Family(
        "calls_last_hour",
        "Calls of the last hour, by feed and outcome.",
        ("feed", "outcome"),
        [((one.feed, one.outcome), one.calls) for one in made],
    )
    yield Family(
        "bars_written_last_hour",
        "Bars that were new or changed in the last hour.",
        (),
        [((), sum(one.bars_written for one in made))],
    )


def _runs(db: Connection, _: Settings) -> Iterator[Family]:
    records = {command: runs.record_of(db, command) for command in ("priority", "queue")}
    for name, about, value in (
        # A moment goes on ageing where nobody writes the collector's file any more.
        ("last_run_timestamp_seconds", "When the last run began.", _last_run),
        ("run_duration_p95_seconds", "What 95 % of the last hour's runs took at most.", _p95),
        ("runs_waited_last_hour", "Runs that waited for a slot.", lambda one: one.waits),
        (
            "assets_tried_last_hour",
            "Assets refreshed, or asked for in vain.",
            lambda one: one.tried,
        ),
        ("assets_updated_last_hour", "Assets refreshed.", lambda one: one.updated),
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
            ((one.level.value, state), count)
            for one in levels
            for state, count in (
                ("waiting", one.waiting),
                ("leased", one.leased),
                ("dead", one.dead),
            )
        ],
    )
    yield Family(
        "queue_oldest_item_seconds",
        "How long the oldest item of a level has been due.",
        ("level",),
        [((one.level.value,), one.oldest_seconds) for one in levels],
    )
    rank = list(Verdict).index
    yield Family(
        "health",
        "0 healthy, 1 degraded, 2 unhealthy, by check.",
        ("check",),
        [((check.name,), rank(check.verdict)) for check in found.checks],
    )


_LOOKS: tuple[Callable[[Connection, Settings], Iterator[Family]], ...] = (
    _assets,
    _budget,
    _calls,
    _runs,
    _health,
)
