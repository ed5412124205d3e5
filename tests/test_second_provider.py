"""The loop works with a second, small provider without HTTP."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest
from conftest import MakeSettings, ShiftingClock, asset

from asset_sync.database import Connection, query
from asset_sync.demo.server import StandIn
from asset_sync.model import Asset, AssetType, Lane, Level
from asset_sync.provider.answers import (
    Bar,
    BarsAnswer,
    Listed,
    Quote,
    SnapshotAnswer,
    TickersAnswer,
)
from asset_sync.provider.current import PLANS
from asset_sync.provider.errors import (
    KeyRefused,
    NotSent,
    ProviderError,
    RateLimited,
    TickerUnknown,
    Unavailable,
)
from asset_sync.settings import Settings
from asset_sync.sync import loop
from asset_sync.sync.report import Ended, Report

GOLD = asset("XAUUSD", Level.CRITICAL, position=1)
BITCOIN = asset("BTCUSD", asset_type=AssetType.CRYPTO)
ETHER = asset("ETHUSDT", asset_type=AssetType.CRYPTO)
FIVE_MINUTES = timedelta(minutes=5)


@dataclass
class Constant:
    """A provider whose prices never change; it raises a list of errors, one per call."""

    price: float = 42.0
    unknown: frozenset[str] = frozenset()
    errors: list[ProviderError | None] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    call_timeout_seconds: float = 30.0

    def send_only_if(self, may_send: Callable[[], bool]) -> None:
        self._may_send = may_send

    def _call(self, ticker: str) -> None:
        if not self._may_send():
            raise NotSent("The slot is no longer ours.")
        self.calls.append(ticker)
        error = self.errors.pop(0) if self.errors else None
        if error is not None:
            raise error

    def bars(
        self, ticker: str, start: datetime, end: datetime, *, by_minute: bool = False
    ) -> BarsAnswer:
        self._call(ticker)
        if ticker in self.unknown:
            return BarsAnswer(ticker, (), complete=True)
        first = max(start, end - timedelta(hours=1))
        first -= (first - datetime(1970, 1, 1, tzinfo=UTC)) % FIVE_MINUTES
        starts = [first + n * FIVE_MINUTES for n in range((end - first) // FIVE_MINUTES + 1)]
        p = self.price
        rows = (Bar(int(at.timestamp() * 1000), p, p, p, p, 1.0, None, None) for at in starts)
        return BarsAnswer(ticker, tuple(rows), complete=True)

    def snapshots(self, tickers: Sequence[str]) -> SnapshotAnswer:
        self._call(",".join(tickers))
        at = datetime.now(UTC)
        quotes = {one: Quote(one, 41.0, 43.0, 42.0, None, None, None, None, at) for one in tickers}
        return SnapshotAnswer(quotes, {})

    def ticker_exists(self, ticker: str) -> bool:
        self._call(ticker)
        return ticker not in self.unknown

    def tickers(self, page: str) -> TickersAnswer:
        self._call(page)
        return TickersAnswer((Listed("X:BTCUSD", "Bitcoin"),), None)

    def close(self) -> None:
        self.calls.append("closed")


@dataclass
class Runner:
    db: Connection
    settings: Settings
    clock: ShiftingClock
    provider: Constant

    def run(self, lane: Lane = Lane.QUEUE, seconds: float | None = None) -> Report:
        return loop.run(
            self.db,
            self.settings,
            lane,
            max_runtime_seconds=seconds,
            clock=self.clock,
            connect_to=lambda *_: self.provider,
        )

    def serve(self, *assets: Asset, plan: str = "free") -> None:
        provider = replace(self.settings.provider, plan=PLANS[plan])
        self.settings = replace(self.settings, assets=assets, provider=provider)


@pytest.fixture
def runner(
    db: Connection, api: StandIn, make_settings: MakeSettings, clock: ShiftingClock
) -> Runner:
    made = Runner(db, make_settings(api), clock, Constant())
    made.serve(GOLD, BITCOIN, ETHER)
    return made


def test_each_lane_serves_its_assets_from_the_second_provider(runner: Runner) -> None:
    assert runner.run(Lane.PRIORITY).updated == ["XAUUSD"]
    assert runner.run(Lane.QUEUE).updated == ["BTCUSD", "ETHUSDT"]
    assert runner.provider.calls == [
        *("C:XAUUSD", "closed"),
        *("X:BTCUSD", "X:ETHUSDT", "closed"),
    ]
    prices = query(
        runner.db,
        "select (metadata -> 'last_update' ->> 'last_price')::float8 from trading.symbols",
    )
    assert prices == [(42.0,)] * 3


def test_quotes_and_bars_serve_an_asset_on_a_plan_with_both(runner: Runner) -> None:
    runner.serve(BITCOIN, ETHER, plan="starter")
    assert runner.run().updated == ["BTCUSD", "ETHUSDT"]
    assert runner.provider.calls[0] == "X:BTCUSD,X:ETHUSDT"
    assert query(runner.db, "select count(*) from asset_sync.calls") == [(3,)]


def test_a_second_run_asks_only_for_new_bars(runner: Runner) -> None:
    runner.run()
    runner.clock.sleep(301)
    runner.provider.price = 43.0
    assert runner.run().updated == ["BTCUSD", "ETHUSDT"]


def test_an_unknown_ticker_is_a_failure_of_that_asset(runner: Runner) -> None:
    runner.provider.unknown = frozenset({"X:BTCUSD"})
    report = runner.run()
    assert report.updated == ["ETHUSDT"]
    [failure] = report.failed
    assert failure.symbol == "BTCUSD"
    assert "knows no ticker X:BTCUSD" in failure.error


@pytest.mark.parametrize("error", [Unavailable("502"), TickerUnknown("no such thing")])
def test_an_error_of_one_asset_stops_no_other(runner: Runner, error: ProviderError) -> None:
    runner.provider.errors = [error]
    report = runner.run(seconds=20)
    assert report.updated == ["ETHUSDT"]
    assert [failure.symbol for failure in report.failed] == ["BTCUSD"]


def test_a_429_stops_all_calls_for_as_long_as_it_says(runner: Runner) -> None:
    runner.provider.errors = [RateLimited(90)]
    assert runner.run(seconds=20).reason_ended is Ended.BUDGET
    runner.clock.sleep(91)
    assert sorted(runner.run().updated) == ["BTCUSD", "ETHUSDT"]


def test_a_refused_key_ends_the_run(runner: Runner) -> None:
    runner.provider.errors = [KeyRefused("It does not know the key.")]
    report = runner.run()
    assert (report.reason_ended, report.message) == (
        Ended.KEY_REFUSED,
        "It does not know the key.",
    )


def test_three_requests_that_could_not_be_sent_end_the_run(runner: Runner) -> None:
    runner.provider.errors = [NotSent("no way")] * 3
    report = runner.run()
    assert report.reason_ended is Ended.UNAVAILABLE
    assert report.api_calls_used == 0
