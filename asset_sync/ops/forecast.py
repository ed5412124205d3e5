"""How fresh a plan of the provider keeps these assets, and which plan would be enough.

An asset becomes due `update_frequency_seconds` after its last success. The queue serves assets in
the order of the time at which they became due plus the allowance of their level (see
`asset_sync.queue`). So if calls are short, an asset waits one aging time less than an asset of the
level below. Longer waits mean fewer refreshes, which need fewer calls. The forecast finds the wait
at which the calls needed equal the calls available. Between two successes an asset's age grows from
0 to the time between them.

`tests/test_forecast.py` compares this with the real loop, simulated for a day.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

from asset_sync.budget import slots
from asset_sync.database import Connection
from asset_sync.hours import BAR_LENGTH
from asset_sync.model import Asset, AssetType, Lane, Level
from asset_sync.provider.current import PLANS
from asset_sync.provider.plan import Plan
from asset_sync.settings import RateLimit, Settings
from asset_sync.store import runs
from asset_sync.store.entitlements import NOTHING_MISSING
from asset_sync.store.ledger import Lag
from asset_sync.sync.scope import Scope

DAY_SECONDS = 86_400
CALL_SECONDS = 0.5
"""How long a call takes if there is no history yet."""


class Staleness(NamedTuple):
    """The age of some assets' data: the median, the 95th percentile and the maximum."""

    p50_seconds: float
    p95_seconds: float
    worst_seconds: float


class AssetForecast(NamedTuple):
    """What one asset needs and gets."""

    asset: Asset
    asked_seconds: float
    """The time between refreshes if it never waits for a call: its frequency, as cron allows."""
    calls_a_day: float
    """How many calls a day it takes to refresh it that often."""
    refreshed_every_seconds: float
    staleness: Staleness

    @property
    def kept(self) -> bool:
        """Whether it is refreshed as often as `asked_seconds` says."""
        return self.refreshed_every_seconds <= self.asked_seconds * _SLACK

    @property
    def later(self) -> bool:
        """Whether a refresh may be later than `refreshed_every_seconds`."""
        return self.staleness.worst_seconds > self.refreshed_every_seconds


# A time between refreshes up to this factor too long still counts as kept: a call takes time.
_SLACK = 1.02


class Forecast(NamedTuple):
    """How fresh one plan keeps the assets."""

    plan: Plan
    limit: RateLimit
    assets: tuple[AssetForecast, ...]
    calls_a_day: float
    """Calls that can be made, without the slots reserved for priority runs."""
    needed_a_day: float
    allowed_a_day: float
    """Calls that the limit allows, those reserved for priority runs included."""
    kept_a_day: float
    """Calls that are never made, because their slots are reserved for priority runs."""
    all_fresh_seconds: float
    """From an empty database until each asset has been fresh once."""

    @property
    def share(self) -> float:
        """The share of the calls that is needed; above 1 the calls are not enough."""
        return self.needed_a_day / self.calls_a_day

    @property
    def left_a_day(self) -> float:
        """The calls that are left for history."""
        return max(0.0, self.calls_a_day - self.needed_a_day)

    @property
    def enough(self) -> bool:
        """Whether every asset is refreshed as often as asked."""
        return self.share <= 1 and all(asset.kept for asset in self.assets)

    @property
    def beyond_first_window(self) -> int:
        """How many priority assets wait for a later window of the rate limit in each cycle."""
        return sum(asset.later for asset in self.of_level(Level.CRITICAL))

    def of_level(self, level: Level) -> tuple[AssetForecast, ...]:
        """Return the assets of a level."""
        return tuple(given for given in self.assets if given.asset.level is level)


class Advice(NamedTuple):
    """What would keep every asset as fresh as asked if the current plan does not."""

    frequency_seconds: int | None
    """The smallest `update_frequency_seconds` that the plan allows for all assets of the queue."""
    below: int
    """How many assets have a smaller one."""
    plan: Forecast | None
    """The cheapest plan that is enough for the current frequencies."""


def forecast(settings: Settings, call_seconds: float = CALL_SECONDS) -> Forecast:
    """Return how fresh the settings' own plan and limit keep their assets."""
    line = _Line(settings, call_seconds)
    assets = (*line.priority_assets(), *line.queue_assets())
    return Forecast(
        plan=settings.provider.plan,
        limit=settings.rate_limit,
        assets=assets,
        calls_a_day=DAY_SECONDS * line.calls_a_second,
        needed_a_day=sum(one.calls_a_day for one in assets),
        allowed_a_day=DAY_SECONDS * line.allowed_a_second,
        kept_a_day=DAY_SECONDS * line.kept_a_second,
        all_fresh_seconds=line.all_fresh_seconds,
    )


def days_for(calls: int, spare_a_day: float) -> float:
    """Return in how many days so many calls for history are made; infinite if none is spare."""
    if not calls:
        return 0.0
    return calls / spare_a_day if spare_a_day >= 1 else math.inf


def as_known(db: Connection, settings: Settings) -> tuple[Settings, float | None]:
    """Return the settings with the rate that holds now, and how long a call takes if known."""
    seconds = runs.usual_call_seconds(db)
    rate = slots.effective_rate(db, slots.rate_of(settings))
    limit = replace(settings.rate_limit, calls=rate.calls, period_seconds=rate.period_seconds)
    return replace(settings, rate_limit=limit), None if seconds is None else max(seconds, 0.01)


def staleness(assets: Sequence[AssetForecast]) -> Staleness:
    """Return how stale these assets get together; at least one is needed."""
    periods = [one.refreshed_every_seconds for one in assets]
    worst = max(one.staleness.worst_seconds for one in assets)
    return Staleness(_age(periods, 0.5), _age(periods, 0.95), worst)


def data_age(assets: Sequence[AssetForecast], lags: Mapping[AssetType, Lag]) -> Staleness:
    """Return how old the newest bar of these assets gets while their markets are open.

    A call brings the bars that are over: the newest ended up to five minutes ago, plus the
    provider's lag, where it is known. Then the data ages until the next call. At least one asset is
    needed.
    """
    known = {kind: lag for kind, lag in lags.items() if lag.is_known}
    bar = BAR_LENGTH.total_seconds()

    def late(one: AssetForecast, quantile: str) -> float:
        return getattr(known.get(one.asset.asset_type), quantile, None) or 0.0

    def age(share: float, quantile: str) -> float:
        counts = Counter((one.refreshed_every_seconds, late(one, quantile)) for one in assets)
        if any(math.isinf(every) for every, _ in counts):
            return math.inf
        return _least(
            lambda seconds: (
                sum(
                    count * _sum_below(seconds - lag, every, bar)
                    for (every, lag), count in counts.items()
                )
                >= share * len(assets)
            ),
            max(every + lag for every, lag in counts) + bar,
        )

    worst = max(one.staleness.worst_seconds + late(one, "p99") for one in assets) + bar
    return Staleness(age(0.5, "p50"), age(0.95, "p95"), worst)


def _sum_below(value: float, first: float, second: float) -> float:
    """Return how probable a sum below `value` is of two times, equally likely up to their most."""
    area = sum(
        sign * max(0.0, value - most) ** 2
        for sign, most in ((1, 0.0), (-1, first), (-1, second), (1, first + second))
    )
    return min(1.0, area / (2 * first * second))


def with_plan(settings: Settings, plan: Plan) -> Settings:
    """Return the settings with that plan; the current plan keeps the limit that is set."""
    if plan is settings.provider.plan:
        return settings
    limit = RateLimit(plan.calls, plan.period_seconds, settings.rate_limit.hold_for_priority)
    return replace(settings, provider=replace(settings.provider, plan=plan), rate_limit=limit)


def side_by_side(settings: Settings, call_seconds: float = CALL_SECONDS) -> tuple[Forecast, ...]:
    """Return the forecast of each plan that the provider sells, and of the current one."""
    plans = [
        plan
        for plan in PLANS.values()
        if plan.usd_a_month is not None or plan is settings.provider.plan
    ]
    return tuple(forecast(with_plan(settings, plan), call_seconds) for plan in plans)


def advise(settings: Settings, plans: Sequence[Forecast], call_seconds: float) -> Advice:
    """Return what to change if the current plan is not enough."""
    line = _Line(settings, call_seconds)
    enough = [one for one in plans if one.enough and one.plan.usd_a_month is not None]
    least = line.least_frequency()
    below = [one for one in line.others if one.update_frequency_seconds < (least or 0)]
    cheapest = min(enough, key=lambda one: one.plan.usd_a_month or 0, default=None)
    return Advice(least, len(below), cheapest)


class _Line:
    """How the calls of one plan are divided among the assets; rates are in calls a second."""

    def __init__(self, settings: Settings, call_seconds: float) -> None:
        priority = Scope(settings, Lane.PRIORITY, NOTHING_MISSING)
        queue = Scope(settings, Lane.QUEUE, NOTHING_MISSING)
        self._interval = settings.batch.interval_seconds
        self._limit = settings.rate_limit
        self._aging = settings.queue.aging_seconds
        self._call_seconds = call_seconds
        # A slot is free again one window after its call's end.
        self._window = self._limit.period_seconds + call_seconds
        self.critical, self.others = _distinct(priority), _distinct(queue)
        self._kinds = _kinds(self.others)
        self._critical_cost = _calls_each(settings.provider.plan, len(self.critical))
        self._cost = _calls_each(settings.provider.plan, len(self.others))
        self._priority_rate = sum(self._critical_cost / one for one in self._priority_periods)
        self.allowed_a_second = self._limit.calls / self._window
        self.kept_a_second = self._reserved() if self._limit.hold_for_priority else 0.0
        spent = self._priority_rate + self.kept_a_second
        in_flight = settings.provider.calls_in_flight
        busy = queue.runtime_seconds / self._interval / call_seconds * in_flight
        left = min(self.allowed_a_second - spent, busy)
        self.queue_rate = left if left > _SMALLEST_RATE else 0.0

    @property
    def calls_a_second(self) -> float:
        """Return the rate of all calls together."""
        return self._priority_rate + self.queue_rate

    @property
    def all_fresh_seconds(self) -> float:
        """Return how long it takes until each asset has been fresh once.

        The slots of the first window are free at once. Higher levels are refreshed several times
        before the lowest level is refreshed for the first time.
        """
        first = len(self.critical) * self._critical_cost
        calls = len(self.others) * self._cost
        if first + calls <= self._limit.calls:
            return (first + calls) * self._call_seconds
        if calls and not self.queue_rate:
            return math.inf
        lowest = min((_ALLOWANCES_BELOW[one.level] for one in self.others), default=0)
        wait = self._wait()
        turns = sum(
            count
            * (1 + (_ALLOWANCES_BELOW[one.level] - lowest) * self._aging // self._period(one, wait))
            for one, count in self._kinds
        )
        in_turns = turns * self._cost / self.queue_rate if calls else 0.0
        return max(self._window, in_turns - self._window)

    def least_frequency(self) -> int | None:
        """Return the smallest frequency, in whole minutes, that all queue assets can have."""
        if not self.queue_rate:
            return None

        def fits(seconds: float) -> bool:
            return self._rate(lambda one: max(one.update_frequency_seconds, seconds)) <= (
                self.queue_rate
            )

        return math.ceil(_least(fits, len(self.others) * self._cost / self.queue_rate) / 60) * 60

    # --- priority runs: the whole list once a cycle, in the order of the file --------------------

    def priority_assets(self) -> Iterator[AssetForecast]:
        """Yield what the priority assets get."""
        periods = self._priority_periods
        for place, (asset, period) in enumerate(zip(self.critical, periods, strict=True), start=1):
            # An asset that is served in a later window may miss a cycle.
            later = place * self._critical_cost > self._limit.calls
            pause = self._interval if later else 0
            yield _of(asset, self._in_cycles(asset), period, self._critical_cost, pause)

    @cached_property
    def _priority_periods(self) -> Sequence[float]:
        """Return the time between two refreshes of each asset.

        If a cycle has fewer calls than these assets need, each time is longer by the same factor.
        """
        calls = len(self.critical) * self._critical_cost
        factor = max(1.0, calls * self._window / (self._limit.calls * self._interval))
        return [factor * self._in_cycles(asset) for asset in self.critical]

    def _in_cycles(self, asset: Asset) -> float:
        """Return the asset's frequency, rounded down to whole intervals of cron, at least one.

        A run refreshes what would no longer be fresh at the start of the next run.
        """
        return max(1, asset.update_frequency_seconds // self._interval) * self._interval

    def _reserved(self) -> float:
        """Return the rate of calls that are lost because slots are reserved for priority runs.

        A reserved slot is unused in the window before the run; its next window begins with the run.
        """
        lost, left = 0.0, float(self._limit.calls)
        for period in self._priority_periods:
            slots = min(self._critical_cost, left)
            left -= slots
            made = 1 + (period - self._limit.period_seconds) // self._window
            # The period may begin and end with a window, and so hold more than its share.
            lost += slots * max(0.0, 1 / self._window - made / period)
        return lost

    # --- the queue: by the time since which an asset is due, plus its level's allowance ----------

    def queue_assets(self) -> Iterator[AssetForecast]:
        """Yield what the other assets get."""
        wait = self._wait()
        needed = self._rate(self._asked)
        load = min(1.0, needed / self.queue_rate) if self.queue_rate else 1.0
        for asset in self.others:
            asked, period = self._asked(asset), self._period(asset, wait)
            # An asset that always waits in line may wait one more window while slots are reserved
            # for a priority run. An asset that usually does not wait may become due together with
            # many others, and then waits up to five windows (simulated).
            windows = 1 if period > asked else 5 * load
            pause = windows * self._limit.period_seconds
            yield _of(asset, asked, period, self._cost, pause)

    def _asked(self, asset: Asset) -> float:
        """Return the time between refreshes if the asset never waits for a call.

        If the runs always have work, each asset is refreshed when it becomes due, because such a
        run also waits for assets. Otherwise runs end early, and cron's next run refreshes it.
        """
        return asset.update_frequency_seconds if self._always_busy else self._in_cycles(asset)

    @cached_property
    def _always_busy(self) -> bool:
        needed = self._rate(lambda one: one.update_frequency_seconds)
        least = min(one.update_frequency_seconds for one, _ in self._kinds)
        return least <= self._interval or needed > _BUSY * self.queue_rate

    def _wait(self) -> float:
        """Return the lowest level's wait at which the calls needed equal the calls available."""
        if not self.queue_rate:
            return math.inf

        def fits(wait: float) -> bool:
            return self._rate(lambda one: self._period(one, wait)) <= self.queue_rate

        return _least(fits, len(self.others) * self._cost / self.queue_rate + 2 * self._aging)

    def _period(self, asset: Asset, wait: float) -> float:
        """Return the time between two refreshes if the lowest level waits so long in line.

        Each level above it waits less, by one aging time for each level between them.
        """
        late = max(0.0, wait - _ALLOWANCES_BELOW[asset.level] * self._aging)
        return self._asked(asset) + late

    def _rate(self, period: Callable[[Asset], float]) -> float:
        """Return the calls a second that refresh each asset of the queue once in its period."""
        return sum(count * self._cost / period(one) for one, count in self._kinds)


# One call a day is 1e-5 a second, so a rate below this is a rounding error.
_SMALLEST_RATE = 1e-9
# If this share of the calls is needed, there is always an asset that waits for a call.
_BUSY = 0.75
_ALLOWANCES_BELOW = {Level.HIGH: 2, Level.MEDIUM: 1, Level.LOW: 0}


def _of(asset: Asset, asked: float, every: float, cost: float, pause: float) -> AssetForecast:
    staleness = Staleness(0.5 * every, 0.95 * every, every + pause)
    return AssetForecast(asset, asked, DAY_SECONDS * cost / asked, every, staleness)


def _age(periods: Sequence[float], share: float) -> float:
    """Return the age that the assets' data does not exceed for that share of the time."""
    if math.inf in periods:
        return math.inf
    counts = Counter(periods)
    return _least(
        lambda age: (
            sum(count * min(1.0, age / every) for every, count in counts.items())
            >= share * len(periods)
        ),
        max(periods),
    )


def _least(holds: Callable[[float], bool], most: float) -> float:
    """Return the smallest number from 0 to `most` for which `holds` is true, by halving.

    `holds` must be true for all numbers above that one.
    """
    low, high = 0.0, most
    if holds(low):
        return low
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


_HALVINGS = 60


def _distinct(scope: Scope) -> tuple[Asset, ...]:
    return tuple(dict.fromkeys(wanted.asset for wanted in scope.wanted))


def _kinds(assets: Sequence[Asset]) -> Sequence[tuple[Asset, int]]:
    """Return one asset of each level and frequency, and how many there are."""
    examples = {(asset.level, asset.update_frequency_seconds): asset for asset in assets}
    counts = Counter((asset.level, asset.update_frequency_seconds) for asset in assets)
    return [(examples[kind], count) for kind, count in counts.items()]


def _calls_each(plan: Plan, assets: int) -> float:
    """Return the calls that one refresh of an asset takes; a call for n assets counts as 1/n."""
    return sum(math.ceil(assets / feed.bulk) / assets for feed in plan.feeds) if assets else 0
