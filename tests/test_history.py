"""History: runs of the queue ask for the past with the calls that nothing else needs."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from conftest import MakeSettings, ShiftingClock, asset
from test_sync import Job

from asset_sync import queue
from asset_sync.database import Connection, query
from asset_sync.demo import replay
from asset_sync.demo.server import StandIn
from asset_sync.model import Asset, AssetType, Feed, Lane, Level
from asset_sync.spans import Span
from asset_sync.store import ledger, market, runs
from asset_sync.sync import caller
from asset_sync.sync.progress import Synced, Warned
from asset_sync.sync.report import Ended, Report

DAYS = 100
ONE_DAY = 86_400
COIN = asset("BTCUSD", every=ONE_DAY, asset_type=AssetType.CRYPTO)
EURO = asset("EURUSD", every=ONE_DAY)
ETHER = asset("ETHUSDT", every=ONE_DAY, asset_type=AssetType.CRYPTO)
BAR = timedelta(minutes=5)

Row = tuple[Any, ...]


@dataclass(slots=True)
class Past(Job):
    """A job that fetches history."""

    def wish(self, *assets: Asset, days: int = DAYS, enabled: bool = True) -> None:
        self.serve(*assets)
        history = replace(self.settings.history, enabled=enabled, days=days)
        self.settings = replace(self.settings, history=history)

    def first_sync(self) -> Report:
        """Refresh the assets without history."""
        wanted = self.settings
        self.settings = replace(wanted, history=replace(wanted.history, enabled=False))
        report = self.run()
        self.settings = wanted
        return report

    def let_be_due(self, *, weeks: int) -> None:
        """Let the oldest weeks of an asset be due to be asked again."""
        query(
            self.db,
            """
            update asset_sync.weeks set next_try_at = now()
            where week in (select week from asset_sync.weeks order by week limit %s);
            update asset_sync.ledger set retry_at = now()
            """,
            (weeks,),
        )

    def calls(self) -> list[str]:
        """Return the symbols of the calls for history, in their order."""
        rows = query(
            self.db, "select symbols from asset_sync.calls where feed = 'history' order by id"
        )
        return [symbol for (symbols,) in rows for symbol in symbols]

    def spans(self) -> list[tuple[str, Span]]:
        """Return what was asked with each call for bars that the stand-in has answered."""
        return [
            (ticker, _span(arrival.method_path))
            for arrival in self.api.log
            if "/aggs/" in arrival.method_path and (ticker := arrival.ticker) is not None
        ]

    def ledger(self, one: Asset) -> ledger.Ledger:
        return ledger.read(self.db, Feed.BARS, {one.symbol: one.ticker})[one.symbol]


def _span(path: str) -> Span:
    start, end = path.split("?", maxsplit=1)[0].split("/")[-2:]
    return Span(_moment(start), _moment(end))


def _moment(ms: str) -> datetime:
    return datetime.fromtimestamp(int(ms) / 1000, UTC)


@pytest.fixture
def job(db: Connection, clock: ShiftingClock, api: StandIn, make_settings: MakeSettings) -> Past:
    """Bitcoin and the euro with a hundred days of history, on the free plan."""
    past = Past(db, clock, api, make_settings(api))
    past.wish(COIN, EURO)
    return past


def replayed(one: Asset, since: datetime, until: datetime) -> list[Row]:
    now_ms = int(datetime.now(UTC).timestamp() * 1000)
    start_ms, end_ms = (int(moment.timestamp() * 1000) for moment in (since, until))
    return [tuple(bar) for bar in replay.bars(one.ticker, start_ms, end_ms, now_ms)]


def assert_complete(job: Past, *assets: Asset, days: int = DAYS) -> None:
    """Check that every bar of so many days is stored, each once and as replayed."""
    for one in assets:
        stored = job.bars(one.symbol)
        since = datetime.now(UTC) - timedelta(days=days)
        last = datetime.fromtimestamp(stored[-1][0] / 1000, UTC)
        expected = replayed(one, since, last)
        assert stored[-len(expected) :] == expected
        assert len(stored) - len(expected) <= 1  # the bar that holds the start


def assert_asked_once(job: Past) -> None:
    """Check that no two calls of one asset asked for the same bar."""
    for ticker in {ticker for ticker, _ in job.spans()}:
        spans = sorted(span for name, span in job.spans() if name == ticker)
        for before, after in itertools.pairwise(spans):
            assert before.end < after.start


# --- two years, from the calls that are left ----------------------------------------------------


def test_a_run_goes_on_with_history_until_all_of_it_is_there(job: Past) -> None:
    report = job.run(seconds=600)
    assert_complete(job, COIN, EURO)
    assert_asked_once(job)
    # 100 days less the first call's 34: two calls; less 40, seven weeks each: two calls
    assert sorted(job.calls()) == ["BTCUSD", "BTCUSD", "EURUSD", "EURUSD"]
    assert report.history_calls == 4
    assert report.bars_written == len(job.bars("BTCUSD")) + len(job.bars("EURUSD"))
    assert report.reason_ended is Ended.DONE
    assert job.api.refused == 0
    assert job.api.most_in_a_window() <= 5


@pytest.mark.parametrize(
    ("one", "calls"), [(COIN, 21), (replace(EURO, hours="fx"), 15)], ids=["crypto", "forex"]
)
def test_720_days_take_as_few_calls_as_the_reach_of_a_call_allows(
    job: Past, one: Asset, calls: int
) -> None:
    """A call reaches 50,000 minutes in which the market is open (API page `aggregates`)."""
    job.wish(one, days=720)
    report = job.run(seconds=6000)
    assert_complete(job, one, days=720)
    assert_asked_once(job)
    assert report.api_calls_used == len(job.api.log) == calls


def test_when_all_is_there_nothing_more_is_asked(job: Past) -> None:
    job.run(seconds=600)
    calls = len(job.api.log)
    report = job.run(seconds=600)
    assert len(job.api.log) == calls
    assert report.reason_ended is Ended.NOTHING_DUE


def test_newest_first_breadth_first_and_the_higher_level_first(job: Past) -> None:
    job.wish(COIN, EURO, replace(ETHER, level=Level.HIGH), days=110)
    job.first_sync()
    job.run(seconds=900)
    calls = job.calls()
    assert calls == ["ETHUSDT", "BTCUSD", "EURUSD"] * 3
    for ticker in ("X:BTCUSD", "X:ETHUSDT", "C:EURUSD"):
        starts = [span.start for name, span in job.spans() if name == ticker]
        assert starts == sorted(starts, reverse=True)


def test_after_a_long_outage_one_call_brings_the_newest_bars_and_history_the_rest(
    job: Past,
) -> None:
    query(
        job.db,
        """
        insert into trading.symbols (symbol) values ('BTCUSD'), ('EURUSD');
        insert into market_data.ohlcv_5m (ticker_id, ts, open, high, low, close)
        select id, date_bin('5 min', now(), 'epoch') - interval '90 days', 1, 1, 1, 1
        from trading.symbols
        """,
    )
    report = job.run(seconds=600)
    assert len(report.updated) == 2
    for _, span in job.spans()[:2]:
        assert datetime.now(UTC) - span.end < timedelta(minutes=10)
    assert_complete(job, COIN, EURO)
    assert_asked_once(job)


def test_switched_off_there_is_no_call_for_history(job: Past) -> None:
    job.wish(COIN, EURO, enabled=False)
    job.run(seconds=600)
    assert job.calls() == []


def test_a_run_with_a_limit_and_a_priority_run_make_no_call_for_history(job: Past) -> None:
    job.run(seconds=600, limit=2)
    job.run(Lane.PRIORITY, seconds=600)
    assert job.calls() == []


def test_history_makes_no_asset_fresh(job: Past) -> None:
    job.wish(COIN, days=60)
    job.first_sync()
    job.clock.sleep(ONE_DAY / 2)
    status = job.row("select * from data_sources.data_sync_status")
    before = queue.freshness(job.db, ["BTCUSD"])["BTCUSD"].last_success_at
    report = job.run(seconds=600)
    assert job.calls() == ["BTCUSD"]
    assert report.updated == []
    shifted = queue.freshness(job.db, ["BTCUSD"])["BTCUSD"]
    assert before is not None
    assert shifted.seconds_old >= ONE_DAY / 2
    assert job.row("select * from data_sources.data_sync_status") == status
    assert not [step for step in job.heard if isinstance(step, Synced) and step.feed != "bars"]


def test_history_that_fails_changes_neither_the_status_nor_the_other_assets(job: Past) -> None:
    job.wish(COIN, EURO, days=70)
    job.first_sync()
    status = query(job.db, "select * from data_sources.data_sync_status order by 1")
    job.api.set_faults(["html@X:BTCUSD"])
    report = job.run(seconds=600)
    assert "EURUSD" in job.calls()
    assert_complete(job, EURO, days=70)
    assert report.failed == []
    assert query(job.db, "select * from data_sources.data_sync_status order by 1") == status


def test_a_dead_item_of_history_does_not_stop_the_rest(job: Past) -> None:
    job.first_sync()
    query(
        job.db,
        """
        insert into asset_sync.queue (symbol, feed, ticker, asset_type, name, level, state)
        values ('BTCUSD', 'history', 'X:BTCUSD', 'crypto', 'BTCUSD', 'medium', 'dead')
        """,
    )
    job.run(seconds=600)
    assert set(job.calls()) == {"EURUSD"}
    assert_complete(job, EURO)


# --- answers that are not as asked --------------------------------------------------------------


def test_a_range_without_bars_is_asked_by_the_minute_once_and_is_then_settled(job: Past) -> None:
    job.wish(COIN, days=60)
    job.first_sync()
    job.api.set_faults(["empty"])
    job.run(seconds=600)
    kinds = [arrival.method_path.split("/range/")[1] for arrival in job.api.log[1:]]
    assert [kind.split("/")[:2] for kind in kinds] == [["5", "minute"], ["1", "minute"]]
    since = datetime.now(UTC) - timedelta(days=60)
    assert job.ledger(COIN).gaps(since) == []


def test_five_minute_bars_that_the_provider_lacks_are_made_of_minutes(job: Past) -> None:
    job.wish(COIN, days=60)
    job.first_sync()
    job.api.set_faults(["five-minutes-empty"])
    job.run(seconds=600)
    assert job.calls() == ["BTCUSD", "BTCUSD"]
    starts = [row[0] for row in job.bars("BTCUSD")]
    assert starts[-1] - starts[0] >= 59.9 * ONE_DAY * 1000
    assert len(starts) == (starts[-1] - starts[0]) // 300_000 + 1


def test_an_answer_with_repetitions_settles_up_to_its_last_bar_and_goes_on_there(
    job: Past,
) -> None:
    job.wish(COIN, days=60)
    job.first_sync()
    job.api.set_faults(["duplicate:1"])
    job.run(seconds=600)
    assert_complete(job, COIN, days=60)
    assert len(job.calls()) <= 3


def test_a_start_before_the_plans_past_narrows_the_range_and_the_rest_is_fetched(
    job: Past,
) -> None:
    job.wish(COIN, days=80)
    job.first_sync()
    job.api._plan = replace(job.api._plan, history_days=50)
    report = job.run(seconds=3000)
    assert report.reason_ended is Ended.DONE
    assert len(job.calls()) <= 9
    # The range was halved twice, to 43 days; the last week is not searched for any closer.
    stored = job.bars("BTCUSD")
    first, last = (datetime.fromtimestamp(bar[0] / 1000, UTC) for bar in (stored[0], stored[-1]))
    assert datetime.now(UTC) - first > timedelta(days=42)
    assert stored == replayed(COIN, first, last)
    calls = len(job.api.log)
    job.run(seconds=600)
    assert len(job.api.log) == calls

    # Once a day the range before is tried again, and once the plan has it, all of it is fetched.
    calls = len(job.calls())
    job.clock.sleep(ONE_DAY + 60)
    job.run(seconds=600)
    assert len(job.calls()) == calls + 1
    job.clock.sleep(ONE_DAY + 60)
    job.api._plan = replace(job.api._plan, history_days=730)
    job.run(seconds=3000)
    oldest = datetime.fromtimestamp(job.bars("BTCUSD")[0][0] / 1000, UTC)
    assert datetime.now(UTC) - oldest > timedelta(days=79)
    assert job.ledger(COIN).past_begins is None


def test_one_wrong_refusal_cuts_the_past_off_for_a_day_only(job: Past) -> None:
    job.wish(COIN)
    job.first_sync()
    job.api.set_faults(["timeframe:1"])
    job.run(seconds=600)
    job.clock.sleep(ONE_DAY + 60)

    job.run(seconds=600)

    oldest = datetime.fromtimestamp(job.bars("BTCUSD")[0][0] / 1000, UTC)
    assert datetime.now(UTC) - oldest > timedelta(days=DAYS - 1)


def test_a_key_with_less_than_the_settings_say_costs_one_refused_call_a_day_until_its_upgrade(
    job: Past,
) -> None:
    job.wish(COIN, ETHER, days=790)
    plan = replace(job.settings.provider.plan, history_days=3650)
    job.settings = replace(job.settings, provider=replace(job.settings.provider, plan=plan))
    job.first_sync()
    query(
        job.db,
        """
        update asset_sync.ledger set tail_from = date_trunc('day', now()) - interval '715 days',
          unasked_until = date_trunc('day', now()) - interval '715 days'
        """,
    )

    report = job.run(seconds=3000)

    assert report.reason_ended is Ended.DONE
    [warning] = [step for step in job.heard if isinstance(step, Warned)]
    assert "does not include bars of so long ago" in warning.text
    for one in (COIN, ETHER):
        oldest = datetime.fromtimestamp(job.bars(one.symbol)[0][0] / 1000, UTC)
        assert timedelta(719) < datetime.now(UTC) - oldest < timedelta(721)
    assert len(job.calls()) == 3

    job.clock.sleep(ONE_DAY + 60)
    job.api._plan = replace(job.api._plan, history_days=3650)
    job.run(seconds=3000)
    for one in (COIN, ETHER):
        oldest = datetime.fromtimestamp(job.bars(one.symbol)[0][0] / 1000, UTC)
        assert datetime.now(UTC) - oldest > timedelta(788)


# --- the settings change ------------------------------------------------------------------------


def test_a_past_that_became_longer_is_asked_for_by_the_next_run(job: Past) -> None:
    job.wish(COIN, EURO, days=50)
    job.run(seconds=600)

    job.wish(COIN, EURO)
    job.run(seconds=600)

    assert_complete(job, COIN, EURO)
    calls = len(job.api.log)
    job.run(seconds=600)
    assert len(job.api.log) == calls


def test_weeks_due_again_before_a_past_that_became_shorter_cost_no_call_and_no_loop(
    job: Past,
) -> None:
    job.wish(COIN, days=60)
    job.run(seconds=600)
    job.let_be_due(weeks=1)
    job.wish(COIN, days=20)
    calls = len(job.api.log)
    assert job.run(seconds=600).reason_ended is Ended.NOTHING_DUE
    assert len(job.api.log) == calls
    assert query(job.db, "select count(next_try_at) from asset_sync.weeks") == [(0,)]


def test_weeks_that_are_due_again_while_the_api_refuses_them_are_asked_a_day_later(
    job: Past,
) -> None:
    job.wish(COIN, days=60)
    job.run(seconds=600)
    job.let_be_due(weeks=3)
    job.api.set_faults(["timeframe:1"])
    job.run(seconds=600)
    calls = len(job.calls())

    job.clock.sleep(ONE_DAY + 60)
    job.run(seconds=600)

    assert len(job.calls()) > calls
    assert query(job.db, "select count(next_try_at) from asset_sync.weeks") == [(0,)]


def test_days_of_the_past_have_24_hours_whatever_the_time_zone_of_the_session(
    db: Connection,
) -> None:
    query(
        db,
        """
        insert into asset_sync.ledger (symbol, feed, ticker, tail_from, tail_until, unasked_until)
        select 'A' || days, 'bars', 'X', at, at, at from unnest(array[90, 180, 270]) as days,
          lateral (select now() - make_interval(hours => 24 * days)) as moment (at)
        """,
    )
    query(db, "set timezone = 'Europe/Berlin'")

    wishes = [ledger.Wish(f"A{days}", "X", 0, days) for days in (90, 180, 270)]

    assert ledger.next_symbols(db, wishes, 3) == []


# --- empty weeks --------------------------------------------------------------------------------


def test_an_empty_week_is_asked_again_after_1_7_30_and_180_days(job: Past) -> None:
    job.wish(COIN, days=60)
    week = ledger.monday(datetime.now(UTC) - timedelta(days=20))
    at = datetime.combine(week, datetime.min.time(), UTC)
    entry = ledger.Week(week, 0, 2016)
    dues = []
    for _ in range(7):
        with job.db, job.db.cursor() as cursor:
            ledger.save_weeks(cursor, "TEST", [entry], tried=True, forget_at=timedelta(days=700))
        [(days,)] = query(
            job.db,
            """select round(extract(epoch from next_try_at - now()) / 86400)::int
            from asset_sync.weeks where symbol = 'TEST'""",
        )
        dues.append(days)
        query(
            job.db,
            "update asset_sync.weeks set next_try_at = now() - interval '1 s'"
            " where symbol = 'TEST' and next_try_at is not null",
        )
    left = round((at + timedelta(days=700) - datetime.now(UTC)).total_seconds() / ONE_DAY)
    assert dues[:4] == [1, 7, 30, 180]
    assert abs(dues[4] - left) <= 1
    assert dues[5:] == [None, None]


def test_the_empty_weeks_of_an_asset_are_asked_when_they_are_due_and_not_before(
    job: Past,
) -> None:
    job.wish(COIN, days=60)
    job.first_sync()
    job.api.set_faults(["empty"])
    job.run(seconds=600)
    job.api.set_faults([])
    calls = len(job.calls())
    job.clock.sleep(0.6 * ONE_DAY)
    job.run(seconds=600)
    assert len(job.calls()) == calls
    job.clock.sleep(0.6 * ONE_DAY)
    job.run(seconds=600)
    assert len(job.calls()) == calls + 2  # 37 days are more than one call's reach
    starts = [row[0] for row in job.bars("BTCUSD")]
    assert starts[-1] - starts[0] >= 58 * ONE_DAY * 1000
    job.clock.sleep(3 * ONE_DAY)
    job.run(seconds=600)
    assert len(job.calls()) == calls + 2  # 37 days are more than one call's reach


# --- interrupted --------------------------------------------------------------------------------

STEPS = {
    "the claim": (queue, "claim_history"),
    "the call": (caller.Caller, "_fetch"),
    "the bars": (market, "save_bars"),
    "the ledger": (ledger, "save"),
    "the weeks": (ledger, "save_weeks"),
    "the item": (queue, "idle"),
    "the record of the call": (runs, "record"),
}


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_an_interrupted_run_loses_nothing_and_asks_only_the_call_in_flight_again(
    job: Past, monkeypatch: pytest.MonkeyPatch, step: str, *, after: bool
) -> None:
    job.wish(COIN, days=60)
    job.first_sync()
    owner, name = STEPS[step]
    right: Callable[..., Any] = getattr(owner, name)

    def interrupted(*args: object, **kwargs: object) -> None:
        if after:
            right(*args, **kwargs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            job.run(seconds=600)
    job.clock.sleep(120)  # a lease may have to end
    job.run(seconds=600)
    assert_complete(job, COIN, days=60)
    assert 2 <= len(job.api.log) <= 3
    assert job.api.refused == 0


# --- the lag ------------------------------------------------------------------------------------


def test_the_lags_of_the_last_thirty_days_are_kept_and_give_quantiles(
    db: Connection, clock: ShiftingClock
) -> None:
    for days, seconds in ((31, 9999.0), (0, 100.0), (0, 200.0), (0, 300.0)):
        with db, db.cursor() as cursor:
            ledger.note_lag(cursor, "free", "forex", seconds)
        clock.sleep(days * ONE_DAY)
    assert ledger.lags(db, "starter") == {}
    assert ledger.lags(db, "free")["forex"] == pytest.approx((3, 200, 290, 298, 0))
