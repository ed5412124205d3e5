"""A third feed, written in this one file, runs through loop, dry run, plan and metrics."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pytest
from conftest import MakeSettings, ShiftingClock

from asset_sync.database import Connection, query
from asset_sync.demo.server import StandIn
from asset_sync.model import Feed, Lane
from asset_sync.ops import metrics
from asset_sync.ops.forecast import forecast
from asset_sync.provider.protocol import Provider
from asset_sync.settings import Settings
from asset_sync.sync import dry_run, feeds, loop
from asset_sync.sync.judge import Fetch, Finish, Judgement, Known
from asset_sync.sync.progress import Progress, Synced
from asset_sync.sync.scope import Scope, Target

TOML = """
[[secondary_assets]]
symbol = "BTCUSD"
polygon_ticker = "X:BTCUSD"
asset_type = "crypto"
[[secondary_assets]]
symbol = "ETHUSDT"
polygon_ticker = "X:ETHUSDT"
asset_type = "crypto"
"""


@dataclass(frozen=True, slots=True)
class Listing:
    """A feed that asks whether tickers are still listed, two assets per call."""

    tickers: Sequence[str]

    @property
    def endpoint(self) -> str:
        return f"/listing/{','.join(self.tickers)}"

    def call(self, provider: Provider) -> bool:
        return provider.ticker_exists(self.tickers[0])


def request(scope: Scope, targets: Sequence[Target], known: Known) -> Listing:
    return Listing([one.ticker for one in targets])


def judge_answer(scope: Scope, fetch: Fetch, known: Known) -> Judgement:
    synced = [Synced(item.symbol, item.feed, 0, None, None, fetch.seconds) for item in fetch.items]
    return Judgement([(fetch.items, Finish())], progress=synced)


@pytest.fixture
def listing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Feed]:
    feed = Feed("listing", rank=3, bulk=2)
    monkeypatch.setitem(feeds.WORK, feed, feeds.FeedWork(request, judge_answer))
    yield feed
    del Feed.known[feed]


@pytest.fixture
def settings(listing: Feed, api: StandIn, make_settings: MakeSettings) -> Settings:
    made = make_settings(api, toml=TOML)
    plan = replace(made.provider.plan, feeds=(Feed.BARS, listing), history_days=2)
    return replace(made, provider=replace(made.provider, plan=plan))


def test_a_run_serves_the_new_feed_after_the_bars_in_calls_of_its_own_size(
    db: Connection, settings: Settings, clock: ShiftingClock
) -> None:
    heard: list[Progress] = []
    report = loop.run(db, settings, Lane.QUEUE, clock=clock, tell=heard.append)

    assert report.updated == ["BTCUSD", "ETHUSDT"]
    served = [(one.symbol, str(one.feed)) for one in heard if isinstance(one, Synced)]
    assert sorted(served) == [
        *[("BTCUSD", "bars"), ("BTCUSD", "listing")],
        *[("ETHUSDT", "bars"), ("ETHUSDT", "listing")],
    ]
    assert served.index(("BTCUSD", "bars")) < served.index(("BTCUSD", "listing"))
    calls = query(db, "select symbols from asset_sync.calls where feed = 'listing'")
    assert [sorted(symbols) for (symbols,) in calls] == [["BTCUSD", "ETHUSDT"]]


def test_a_dry_run_shows_the_calls_of_the_new_feed(db: Connection, settings: Settings) -> None:
    planned = dry_run.plan(db, settings, Lane.QUEUE)
    assert [call.endpoint for call in planned if call.feed == "listing"] == [
        "/listing/X:BTCUSD,X:ETHUSDT"
    ]


def test_the_forecast_counts_the_calls_of_the_new_feed(settings: Settings) -> None:
    plan = replace(settings.provider.plan, feeds=(Feed.BARS,))
    without = replace(settings, provider=replace(settings.provider, plan=plan))
    assert forecast(settings).needed_a_day == 1.5 * forecast(without).needed_a_day


def test_the_metrics_count_the_calls_of_the_new_feed(
    db: Connection, settings: Settings, clock: ShiftingClock
) -> None:
    loop.run(db, settings, Lane.QUEUE, clock=clock)
    text = metrics.exposition(db, settings)
    assert 'feed="listing"' in text
