"""What a plan of the provider gives these assets: calls, staleness, and what would be enough.

The arithmetic of a queue that is served by turns. An asset is due `update_frequency_seconds` after
its last success and stands in line by that moment plus its level's allowance (`asset_sync.queue`),
so that all wait for the same moment in the line: the wait that makes the calls needed equal to the
calls there are. Between two successes an asset's age grows from 0 to the time between them.

`tests/test_forecast.py` holds it against the real loop, simulated for a day.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

from asset_sync.budget.slots import Lane
from asset_sync.model import Asset, Level
from asset_sync.provider.current import MARKETS
from asset_sync.settings import PLANS, Plan, RateLimit, Settings
from asset_sync.store.entitlements import Missing
from asset_sync.sync.scope import Scope

DAY_SECONDS = 86_400
CALL_SECONDS = 0.5
"""How long a call takes, where there is no history yet."""


class Staleness(NamedTuple):
    """How old the data of some assets is: ages that half and 95 % of the time are not exceeded."""

    p50_seconds: float
    p95_seconds: float
    worst_seconds: float


class AssetForecast(NamedTuple):
    """What one asset needs and gets."""

    asset: Asset
    asked_seconds: float
    """How often it would be refreshed if it never had to wait: its frequency, as cron allows."""
    calls_a_day: float
    """That this takes."""
    refreshed_every_seconds: float
    staleness: Staleness

    @property
    def kept(self) -> bool:
        """Whether it is refreshed as often as asked, as far as cron's interval allows."""
        return self.refreshed_every_seconds <= self.asked_seconds * _SLACK

    @property
    def later(self) -> bool:
        """Whether it may have to wait longer than from one refresh to the next."""
        return self.staleness.worst_seconds > self.refreshed_every_seconds


# So much later is still as asked: a call takes its time.
_SLACK = 1.02


class Forecast(NamedTuple):
    """What a plan gives all of the assets."""

    plan: Plan
    limit: RateLimit
    assets: tuple[AssetForecast, ...]
    calls_a_day: float
    """That can be made, less the places held for priority runs."""
    needed_a_day: float
    all_fresh_seconds: float
    """From a database without any data until each asset has been fresh once."""
    history_calls: int
    """That all of the history would take which the plan gives these assets."""

    @property
    def share(self) -> float:
        """Return which part of the calls is needed; above 1 they are not enough."""
        return self.needed_a_day / self.calls_a_day

    @property
    def left_a_day(self) -> float:
        """The calls that are left for history."""
        return max(0.0, self.calls_a_day - self.needed_a_day)

    @property
    def enough(self) -> bool:
        """Whether every asset is refreshed as often as asked."""
        return self.share <= 1 and all(one.kept for one in self.assets)

    @property
    def crowded_out(self) -> int:
        """How many priority assets have to wait for a later window of the limit in each cycle."""
        return sum(one.later for one in self.of_level(Level.CRITICAL))

    def of_level(self, level: Level) -> tuple[AssetForecast, ...]:
        """Return the assets of a level."""
        return tuple(one for one in self.assets if one.asset.level is level)


class Advice(NamedTuple):
    """What would keep every asset as fresh as asked, where the present plan does not."""

    frequency_seconds: int | None
    """The least `update_frequency_seconds` for all assets of the queue that fits the plan."""
    below: int
    """How many assets have a lower one."""
    plan: Forecast | None
    """The cheapest plan that is enough as things are."""


def forecast(settings: Settings, call_seconds: float = CALL_SECONDS) -> Forecast:
    """Return what the settings' own plan and limit give their assets."""
    line = _Line(settings, call_seconds)
    assets = (*line.priority_assets(), *line.queue_assets())
    return Forecast(
        plan=settings.provider.plan,
        limit=settings.rate_limit,
        assets=assets,
        calls_a_day=DAY_SECONDS * line.calls_a_second,
        needed_a_day=sum(one.calls_a_day for one in assets),
        all_fresh_seconds=line.all_fresh_seconds,
        history_calls=sum(_history_calls(settings.provider.plan, one.asset) for one in assets),
    )


def staleness(assets: Sequence[AssetForecast]) -> Staleness:
    """Return how stale these assets get, over all of them, one at least, and all of the time."""
    periods = [one.refreshed_every_seconds for one in assets]
    worst = max(one.staleness.worst_seconds for one in assets)
    return Staleness(_age(periods, 0.5), _age(periods, 0.95), worst)


def with_plan(settings: Settings, plan: Plan) -> Settings:
    """Return the settings of somebody who has that plan; the present one keeps its own limit."""
    if plan is settings.provider.plan:
        return settings
    limit = RateLimit(plan.calls, plan.period_seconds, settings.rate_limit.hold_for_priority)
    return replace(settings, provider=replace(settings.provider, plan=plan), rate_limit=limit)


def side_by_side(settings: Settings, call_seconds: float = CALL_SECONDS) -> tuple[Forecast, ...]:
    """Return the forecast of each plan that the provider sells, and of the present one."""
    plans = [
        plan
        for plan in PLANS.values()
        if plan.usd_a_month is not None or plan is settings.provider.plan
    ]
    return tuple(forecast(with_plan(settings, plan), call_seconds) for plan in plans)


def advise(settings: Settings, plans: Sequence[Forecast], call_seconds: float) -> Advice:
    """Return what helps where the present plan is not enough."""
    line = _Line(settings, call_seconds)
    enough = [one for one in plans if one.enough and one.plan.usd_a_month is not None]
    least = line.least_frequency()
    below = [one for one in line.others if one.update_frequency_seconds < (least or 0)]
    cheapest = min(enough, key=lambda one: one.plan.usd_a_month or 0, default=None)
    return Advice(least, len(below), cheapest)


class _Line:
    """How the calls are shared out among the assets of one plan; rates are calls a second."""

    def __init__(self, settings: Settings, call_seconds: float) -> None:
        priority = Scope(settings, Lane.PRIORITY, _NOTHING_DENIED)
        queue = Scope(settings, Lane.QUEUE, _NOTHING_DENIED)
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
        spent = self._priority_rate + (self._held() if self._limit.hold_for_priority else 0)
        # A run makes one call at a time.
        busy = queue.runtime_seconds / self._interval / call_seconds
        left = min(self._limit.calls / self._window - spent, busy)
        self.queue_rate = left if left > _NOTHING else 0.0

    @property
    def calls_a_second(self) -> float:
        """Return what can be called in all."""
        return self._priority_rate + self.queue_rate

    @property
    def all_fresh_seconds(self) -> float:
        """Return how long the first round takes; the first window's slots are there at once.

        Before the lowest level has had its turn, higher ones have another.
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
        """Return the least frequency, in whole minutes, that all assets of the queue can have."""
        if not self.queue_rate:
            return None

        def fits(seconds: float) -> bool:
            return self._rate(lambda one: max(one.update_frequency_seconds, seconds)) <= (
                self.queue_rate
            )

        return math.ceil(_least(fits, len(self.others) * self._cost / self.queue_rate) / 60) * 60

    # --- priority runs: the whole list once a cycle, in the order of the file --------------------

    def priority_assets(self) -> Iterator[AssetForecast]:
        """Tell what the priority assets get."""
        periods = self._priority_periods
        for place, (asset, period) in enumerate(zip(self.critical, periods, strict=True), start=1):
            # Who comes in a later window may fall out of a cycle.
            later = place * self._critical_cost > self._limit.calls
            pause = self._interval if later else 0
            yield _of(asset, self._in_cycles(asset), period, self._critical_cost, pause)

    @cached_property
    def _priority_periods(self) -> Sequence[float]:
        """Return the time between two refreshes of each; too many for a cycle take turns in it."""
        calls = len(self.critical) * self._critical_cost
        crowd = max(1.0, calls * self._window / (self._limit.calls * self._interval))
        return [crowd * self._in_cycles(asset) for asset in self.critical]

    def _in_cycles(self, asset: Asset) -> float:
        """Return its frequency in whole intervals of cron, since no run looks in between.

        A run refreshes what would not be fresh any more at the start of the next.
        """
        return max(1, asset.update_frequency_seconds // self._interval) * self._interval

    def _held(self) -> float:
        """Return the rate of calls not made, so that a priority run finds its slots free.

        Such a slot is left alone in the window before the run, and then begins its turns anew.
        """
        held, left = 0.0, float(self._limit.calls)
        for period in self._priority_periods:
            slots = min(self._critical_cost, left)
            left -= slots
            made = 1 + (period - self._limit.period_seconds) // self._window
            held += slots * (1 / self._window - made / period)
        return held

    # --- the queue: who has been due longest, after its level's allowance ------------------------

    def queue_assets(self) -> Iterator[AssetForecast]:
        """Tell what the others get."""
        wait = self._wait()
        needed = self._rate(self._asked)
        load = min(1.0, needed / self.queue_rate) if self.queue_rate else 1.0
        for asset in self.others:
            asked, period = self._asked(asset), self._period(asset, wait)
            # Who stands in line may be passed over for a window, when a priority run's place is
            # held; who does not may come due with many others (five windows, as simulated).
            windows = 1 if period > asked else 5 * load
            pause = windows * self._limit.period_seconds
            yield _of(asset, asked, period, self._cost, pause)

    def _asked(self, asset: Asset) -> float:
        """Return how often it is refreshed if it never waits for a call.

        A run that has had something to do stays for what becomes due; where nothing is due at its
        start there is no run to stay.
        """
        return asset.update_frequency_seconds if self._always_busy else self._in_cycles(asset)

    @cached_property
    def _always_busy(self) -> bool:
        needed = self._rate(lambda one: one.update_frequency_seconds)
        least = min(one.update_frequency_seconds for one, _ in self._kinds)
        return least <= self._interval or needed > _BUSY * self.queue_rate

    def _wait(self) -> float:
        """Return the wait in line that makes the calls needed equal to the calls there are."""
        if not self.queue_rate:
            return math.inf

        def fits(wait: float) -> bool:
            return self._rate(lambda one: self._period(one, wait)) <= self.queue_rate

        return _least(fits, len(self.others) * self._cost / self.queue_rate + 2 * self._aging)

    def _period(self, asset: Asset, wait: float) -> float:
        """Return the time between two refreshes where the lowest level waits so long in line."""
        late = max(0.0, wait - _ALLOWANCES_BELOW[asset.level] * self._aging)
        return self._asked(asset) + late

    def _rate(self, period: Callable[[Asset], float]) -> float:
        """Return the calls a second that refresh each asset of the queue so often."""
        return sum(count * self._cost / period(one) for one, count in self._kinds)


# A call in a day is 1e-5 a second; less than that is what rounding leaves.
_NOTHING = 1e-9
# With so much of the calls needed there is always an asset that waits for one.
_BUSY = 0.75
_ALLOWANCES_BELOW = {Level.HIGH: 2, Level.MEDIUM: 1, Level.LOW: 0}
_NOTHING_DENIED = Missing(today=False, past=False, snapshot=False, snapshot_symbols=frozenset())


def _of(asset: Asset, asked: float, every: float, cost: float, pause: float) -> AssetForecast:
    staleness = Staleness(0.5 * every, 0.95 * every, every + pause)
    return AssetForecast(asset, asked, DAY_SECONDS * cost / asked, every, staleness)


def _age(periods: Sequence[float], share: float) -> float:
    """Return the age that all of them together do not exceed for that share of the time."""
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
    """Return the least number from 0 to `most` for which it holds, as it does for all above."""
    low, high = 0.0, most
    if holds(low):
        return low
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


_HALVINGS = 60


def _distinct(scope: Scope) -> tuple[Asset, ...]:
    return tuple(dict.fromkeys(one.asset for one in scope.wanted))


def _kinds(assets: Sequence[Asset]) -> Sequence[tuple[Asset, int]]:
    """Return one asset of each level and frequency, and how many there are: all fare alike."""
    examples = {(one.level, one.update_frequency_seconds): one for one in assets}
    counts = Counter((one.level, one.update_frequency_seconds) for one in assets)
    return [(examples[kind], count) for kind, count in counts.items()]


def _calls_each(plan: Plan, assets: int) -> float:
    """Return how many calls one refresh of an asset takes, its share of those that serve many."""
    return sum(math.ceil(assets / feed.bulk) / assets for feed in plan.feeds) if assets else 0


def _history_calls(plan: Plan, asset: Asset) -> int:
    return math.ceil(plan.history_days / MARKETS[asset.asset_type].window.days)
