"""The judgement of each answer, without a database."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from asset_sync.hours import BAR_LENGTH
from asset_sync.model import AssetType, Feed, Lane, Level
from asset_sync.provider.answers import Bar, BarsAnswer, Flaw, LeftOut, Quote, SnapshotAnswer
from asset_sync.provider.current import PLANS
from asset_sync.provider.errors import (
    FeedDenied,
    KeyRefused,
    NotSent,
    ProviderError,
    RateLimited,
    Rejected,
    TickerUnknown,
    TimeRangeDenied,
    Unanswered,
    Unavailable,
)
from asset_sync.queue import FAILING_STRIKES, TRY_AGAIN_SECONDS, Item
from asset_sync.settings import SHIPPED_FILE, Settings, load
from asset_sync.store import entitlements
from asset_sync.store.ledger import Ledger
from asset_sync.sync import feeds
from asset_sync.sync.feeds import TickerRequest
from asset_sync.sync.feeds.bars import BarsRequest
from asset_sync.sync.feeds.snapshot import SnapshotRequest
from asset_sync.sync.judge import (
    Answer,
    Fail,
    Fetch,
    Finish,
    ItemEnd,
    Judgement,
    Known,
    MoveBack,
    NotIncluded,
    Price,
    Release,
    Request,
    Resume,
    Skip,
    Strike,
    Verify,
    is_well,
)
from asset_sync.sync.news import Chance
from asset_sync.sync.progress import PutBack, Synced, Warned
from asset_sync.sync.scope import NO_SNAPSHOTS, Scope
from asset_sync.sync.window import Window

NOW = datetime(2026, 11, 18, 12, 3, tzinfo=UTC)
NEWEST = datetime(2026, 11, 18, 11, 55, tzinfo=UTC)
NOON = datetime(2026, 11, 18, 12, tzinfo=UTC)
BEFORE = NEWEST - timedelta(minutes=5)
KNOWN = Known(NEWEST, NOW)
QUIET = Finish(Chance(None, silent=1))
NOTHING = entitlements.Missing(
    today=False, past=False, snapshot=False, snapshot_symbols=frozenset()
)


def settings(plan: str = "free") -> Settings:
    shipped = load(SHIPPED_FILE, {"HISTORY_ENABLED": "false"})
    return replace(shipped, provider=replace(shipped.provider, plan=PLANS[plan]))


def scope(plan: str = "free", missing: entitlements.Missing = NOTHING) -> Scope:
    return Scope(settings(plan), Lane.QUEUE, missing)


def item(
    symbol: str = "EURUSD",
    feed: Feed = Feed.BARS,
    *,
    attempts: int = 1,
    strikes: int = 0,
    verify: bool = False,
    backfilled_to: datetime | None = None,
) -> Item:
    return Item(
        symbol,
        feed,
        f"C:{symbol}",
        AssetType.FOREX,
        symbol,
        Level.MEDIUM,
        300,
        attempts,
        strikes,
        verify,
        backfilled_to,
        "token",
    )


def window(start: datetime = NEWEST - timedelta(minutes=30), *, last: bool = True) -> Window:
    return Window(start, NOW, last=last)


def bar(start: datetime) -> Bar:
    return Bar(int(start.timestamp() * 1000), 1.1, 1.2, 1.0, 1.15, 40, None, 40)


def bars(*starts: datetime, complete: bool = True, left_out: Sequence[LeftOut] = ()) -> BarsAnswer:
    return BarsAnswer("C:EURUSD", tuple(map(bar, starts)), complete, tuple(left_out))


def judged(
    answer: Answer,
    *items: Item,
    request: Request | None = None,
    known: Known = KNOWN,
    within: Scope | None = None,
) -> Judgement:
    items = items or (item(),)
    if request is None:
        request = BarsRequest(items[0].ticker, window())
        if items[0].feed is Feed.SNAPSHOT:
            request = SnapshotRequest([one.ticker for one in items])
    return feeds.judge_answer(
        within or scope(), Fetch(items, request, answer, 0.5, known.now), known
    )


def ends(judgement: Judgement) -> list[tuple[list[str], object]]:
    return [([one.symbol for one in items], end) for items, end in judgement.ends]


# --- bars -------------------------------------------------------------------------------------


def test_bars_to_the_end_of_the_window_finish_the_item() -> None:
    judgement = judged(bars(NEWEST, NOON))
    assert ends(judgement) == [(["EURUSD"], Finish())]
    assert judgement.bars == (bar(NEWEST),), "only bars that are over are stored"
    assert judgement.price == Price(NOON, NOW, bar(NOON)), "the price is of the bar that runs"
    assert judgement.progress == [Synced("EURUSD", Feed.BARS, 0, None, None, 0.5)]


def test_the_price_of_a_finished_bar_has_the_time_of_its_end() -> None:
    assert judged(bars(NEWEST)).price == Price(NEWEST, NOON)


def test_on_a_plan_with_quotes_the_price_of_a_bar_has_the_time_of_its_start() -> None:
    assert judged(bars(NEWEST), within=scope("starter")).price == Price(NEWEST, NEWEST)


def test_a_partial_catch_up_continues_from_the_newest_bar() -> None:
    request = BarsRequest("C:EURUSD", window(last=False))
    judgement = judged(bars(NEWEST), request=request, known=Known(BEFORE, NOW))
    assert ends(judgement) == [(["EURUSD"], Resume(backfilled_to=None))]
    [told] = judgement.progress
    assert isinstance(told, Synced)
    assert told.more


def test_a_partial_catch_up_without_newer_bars_continues_from_the_windows_end() -> None:
    request = BarsRequest("C:EURUSD", window(NEWEST + timedelta(days=1), last=False))
    judgement = judged(bars(), request=request)
    assert ends(judgement) == [(["EURUSD"], Resume(backfilled_to=NOW))]


def test_an_incomplete_answer_continues_only_if_it_brought_newer_bars() -> None:
    newer = judged(bars(NEWEST, complete=False), known=Known(BEFORE, NOW))
    assert ends(newer) == [(["EURUSD"], Resume(None))]
    assert ends(judged(bars(NEWEST, complete=False))) == [(["EURUSD"], QUIET)]


def test_a_bar_with_a_future_time_is_not_stored_and_gives_no_price() -> None:
    judgement = judged(bars(NEWEST, NOW + timedelta(minutes=7)))
    assert judgement.price == Price(NEWEST, NOON)
    assert judgement.bars == (bar(NEWEST),)


def test_impossible_bars_are_reported_once() -> None:
    judgement = judged(bars(NEWEST, left_out=[LeftOut(Flaw.PRICE, 2)]))
    assert judgement.progress[0] == Warned(
        "EURUSD: bars that cannot be true were left out: 2 with a price outside 1e-12 to 1e12."
    )


@pytest.mark.parametrize(("attempts", "strikes"), [(2, 0), (1, FAILING_STRIKES)])
def test_an_asset_that_was_reported_as_failing_is_reported_as_recovered(
    attempts: int, strikes: int
) -> None:
    [told] = judged(bars(NEWEST), item(attempts=attempts, strikes=strikes)).progress
    assert isinstance(told, Synced)
    assert told.recovered


# --- no bars ----------------------------------------------------------------------------------


@pytest.mark.parametrize("newest", [None, NEWEST], ids=["never any", "some before"])
def test_an_answer_without_bars_leads_to_one_check_of_the_ticker(newest: datetime | None) -> None:
    judgement = judged(bars(), known=Known(newest, NOW))
    assert (ends(judgement), judgement.outcome) == ([(["EURUSD"], Verify())], "empty")
    assert judgement.bars is None


def test_a_second_answer_without_bars_means_a_quiet_market_if_the_asset_has_bars() -> None:
    judgement = judged(bars(), item(attempts=2))
    assert ends(judgement) == [(["EURUSD"], QUIET)]


def test_a_second_answer_without_bars_is_a_failure_if_the_asset_never_had_any() -> None:
    [(_, end)] = ends(judged(bars(), item(attempts=2), known=Known(None, NOW)))
    assert isinstance(end, Fail)
    assert "no bars of C:EURUSD" in end.error


def verified(answer: Answer, *, attempts: int = 1, newest: datetime | None = NEWEST) -> Judgement:
    asked = item(attempts=attempts, verify=True)
    return judged(answer, asked, request=TickerRequest("C:EURUSD"), known=Known(newest, NOW))


def test_a_ticker_that_does_not_exist_is_a_failure_until_it_exists() -> None:
    [(_, end)] = ends(verified(answer=False))
    assert isinstance(end, Fail)
    assert end.verify_ticker
    assert "knows no ticker C:EURUSD" in end.error
    assert ends(verified(answer=True, attempts=2)) == [(["EURUSD"], Resume(None))]


def test_a_ticker_that_exists_but_has_no_bars_is_quiet() -> None:
    assert ends(verified(answer=True)) == [(["EURUSD"], QUIET)]
    [(_, never)] = ends(verified(answer=True, newest=None))
    assert isinstance(never, Fail)


def test_without_history_a_quiet_asset_far_behind_continues_where_the_asked_range_ends() -> None:
    long_ago = NOW - timedelta(days=100)
    usual = settings()
    alone = replace(usual, history=replace(usual.history, enabled=False))
    asked, known = item(verify=True), Known(long_ago, NOW)
    request = TickerRequest("C:EURUSD")
    within = replace(scope(), settings=alone)
    [(_, end)] = ends(judged(True, asked, request=request, known=known, within=within))  # noqa: FBT003
    assert isinstance(end, Resume)
    assert end.backfilled_to is not None
    assert long_ago < end.backfilled_to < NOW


# --- not included in the plan -----------------------------------------------------------------


def test_a_refused_window_that_begins_too_early_is_asked_for_again_with_a_later_start() -> None:
    request = BarsRequest("C:EURUSD", window(NOW - timedelta(days=730), last=False))
    judgement = judged(TimeRangeDenied("timeframe"), request=request)
    assert ends(judgement) == [(["EURUSD"], Release())]
    assert (judgement.missing, judgement.scope_changed) == ([NotIncluded("past")], True)
    assert judgement.not_in_plan is None


def test_a_refused_window_up_to_now_is_asked_for_again_without_today() -> None:
    judgement = judged(TimeRangeDenied("timeframe"))
    assert (judgement.missing, judgement.scope_changed) == ([NotIncluded("today")], True)


def test_a_refusal_of_the_shorter_window_counts_against_the_asset_and_may_end_the_run() -> None:
    error = TimeRangeDenied("timeframe")
    judgement = judged(error, within=scope(missing=NOTHING._replace(today=True)))
    assert ends(judgement) == [(["EURUSD"], Fail("timeframe"))]
    assert (judgement.missing, judgement.not_in_plan) == ((), error)


def test_a_refusal_of_bars_counts_against_the_asset_and_may_end_the_run() -> None:
    error = FeedDenied("no such data")
    judgement = judged(error)
    assert ends(judgement) == [(["EURUSD"], Fail("no such data"))]
    assert judgement.not_in_plan is error


# --- snapshots --------------------------------------------------------------------------------

EURO, POUND, YEN = (item(symbol, Feed.SNAPSHOT) for symbol in ("EURUSD", "GBPUSD", "USDJPY"))


def quote(one: Item) -> Quote:
    return Quote(one.ticker, 1.0, 1.2, 1.1, None, None, None, None, NOW)


def test_each_row_of_a_snapshot_is_judged_by_itself() -> None:
    refused = {POUND.ticker: FeedDenied("not entitled"), YEN.ticker: TickerUnknown("unknown")}
    answer = SnapshotAnswer({EURO.ticker: quote(EURO)}, refused)
    judgement = judged(answer, EURO, POUND, YEN, within=scope("starter"))
    assert ends(judgement) == [
        (["EURUSD"], Finish()),
        (["GBPUSD"], Skip("not entitled")),
        (["USDJPY"], Fail("unknown")),
    ]
    assert judgement.quotes == [(EURO, quote(EURO))]
    assert judgement.missing == [NotIncluded("snapshot", ["GBPUSD"])]
    assert not judgement.scope_changed


def test_on_a_plan_without_snapshots_bars_serve_the_assets() -> None:
    judgement = judged(FeedDenied("upgrade"), EURO, POUND, within=scope("starter"))
    assert ends(judgement) == [(["EURUSD", "GBPUSD"], Skip(NO_SNAPSHOTS))]
    assert (judgement.missing, judgement.scope_changed) == ([NotIncluded("snapshot")], True)


def test_if_one_asset_spoils_a_snapshot_bars_serve_its_assets_for_a_day() -> None:
    judgement = judged(Rejected("bad request"), EURO, POUND, within=scope("starter"))
    assert ends(judgement) == [(["EURUSD", "GBPUSD"], Skip("bad request"))]
    assert judgement.missing == [NotIncluded("snapshot", ["EURUSD", "GBPUSD"])]


# --- refusals that are the same for every feed ------------------------------------------------


def put_back(error: ProviderError) -> Release:
    return Release(TRY_AGAIN_SECONDS, str(error))


@pytest.mark.parametrize("one", [item(), EURO], ids=["bars", "snapshot"])
@pytest.mark.parametrize(
    ("error", "end", "told"),
    [
        (NotSent("no way"), put_back, True),
        (Unavailable("502"), lambda error: Strike(str(error)), False),
        (Unanswered("silence"), lambda error: Strike(str(error)), False),
        (Rejected("bad request"), lambda error: Fail(str(error)), False),
        (TickerUnknown("no such ticker"), lambda error: Fail(str(error)), False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, ProviderError) else "",
)
def test_a_refusal_has_the_same_end_for_every_feed(
    one: Item, error: ProviderError, end: Callable[[ProviderError], ItemEnd], *, told: bool
) -> None:
    judgement = judged(error, one, within=scope("starter"))
    assert ends(judgement) == [(["EURUSD"], end(error))]
    assert list(judgement.progress) == ([PutBack(["EURUSD"], str(error))] if told else [])
    assert (judgement.outcome, judgement.error) == (error.kind, str(error))


def test_a_429_moves_the_asset_behind_the_others() -> None:
    error = RateLimited(None)
    judgement = judged(error)
    assert ends(judgement) == [(["EURUSD"], MoveBack(str(error)))]
    assert judgement.hopeless is None


def test_a_refused_key_is_the_same_for_every_asset() -> None:
    error = KeyRefused("no")
    assert judged(error).hopeless is error


@pytest.mark.parametrize(
    ("answer", "well"),
    [
        (bars(NOON), True),
        (bars(), False),
        (SnapshotAnswer({EURO.ticker: quote(EURO)}, {}), True),
        (SnapshotAnswer({}, {EURO.ticker: TickerUnknown("no")}), False),
        (True, True),
        (False, False),
        (Unavailable("502"), False),
    ],
)
def test_only_an_answer_with_data_shows_that_the_provider_is_well(
    answer: Answer, *, well: bool
) -> None:
    assert is_well(answer) is well


# --- how late bars come -------------------------------------------------------------------------


def lag_minutes(*, lacked_minutes_ago: float, ended_minutes_ago: float) -> float | None:
    """Return the lag that is noted when a bar comes that an earlier call lacked."""
    asked_at, ended = NOON + timedelta(hours=6), timedelta(minutes=ended_minutes_ago)
    lacked_at = asked_at - timedelta(minutes=lacked_minutes_ago)
    came = asked_at - ended - BAR_LENGTH
    known = Known(came - BAR_LENGTH, asked_at, Ledger(asked_at=lacked_at))
    request = BarsRequest("C:EURUSD", Window(came - timedelta(hours=1), asked_at, last=True))
    fetch = Fetch([item()], request, bars(came - BAR_LENGTH, came), 0.3, asked_at)
    entry = feeds.judge_answer(scope(), fetch, known).entry
    assert entry is not None
    if entry.lag_seconds is None:
        return None
    at_least, at_most = entry.lag_seconds
    assert at_most - at_least == lacked_minutes_ago * 60
    return at_most / 60


def test_the_lag_of_a_bar_is_noted_if_an_earlier_call_lacked_it() -> None:
    assert lag_minutes(lacked_minutes_ago=5, ended_minutes_ago=6) == 6
    assert lag_minutes(lacked_minutes_ago=5, ended_minutes_ago=4) is None


def test_calls_that_are_far_apart_show_no_lag_but_the_frequency() -> None:
    assert lag_minutes(lacked_minutes_ago=10, ended_minutes_ago=11) == 11
    assert lag_minutes(lacked_minutes_ago=30, ended_minutes_ago=31) is None


def test_a_bar_that_came_far_later_than_the_calls_are_apart_shows_its_lag() -> None:
    assert lag_minutes(lacked_minutes_ago=60, ended_minutes_ago=120) == 120
