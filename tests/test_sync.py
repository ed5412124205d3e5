"""The loop of one run, against the stand-in, on a clock that does not wait."""

import json
import re
import select
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg2
import pytest
from conftest import MakeSettings, ShiftingClock, asset

from asset_sync import queue
from asset_sync.budget.slots import PRIORITY_GRACE_SECONDS
from asset_sync.database import Connection, query
from asset_sync.demo import replay
from asset_sync.demo.server import StandIn
from asset_sync.model import Asset, AssetType, Feed, Lane, Level
from asset_sync.secret import Secret
from asset_sync.settings import Settings, SettingsError
from asset_sync.store import entitlements
from asset_sync.sync import caller, dry_run, loop, streaks
from asset_sync.sync.progress import (
    Calling,
    Failed,
    Listener,
    Progress,
    Started,
    Synced,
    Waiting,
    Warned,
)
from asset_sync.sync.report import Ended, Failure, Report
from asset_sync.sync.scope import account

GOLD = asset("XAUUSD", Level.CRITICAL, position=1)
EURO = asset("EURUSD", Level.CRITICAL, position=2)
BITCOIN = asset("BTCUSD", Level.CRITICAL, position=3, asset_type=AssetType.CRYPTO)
# Crypto never closes: what follows holds on weekends too.
COIN = asset("BTCUSD", asset_type=AssetType.CRYPTO)
ETHER = asset("ETHUSDT", asset_type=AssetType.CRYPTO)
TYPO = replace(ETHER, symbol="TYPO", ticker="X:TYPO", name="TYPO")

PRIORITY_SYMBOLS = ["XAUUSD", "EURUSD", "BTCUSD"]
OTHER_SYMBOLS = ["ETHUSDT", "GBPUSD", "USDJPY", "XAGUSD"]

Row = tuple[Any, ...]


def _ignore(_: Progress) -> None:
    pass


@dataclass(slots=True)
class Job:
    """What a run needs, and the events that it emitted."""

    db: Connection
    clock: ShiftingClock
    api: StandIn
    settings: Settings
    heard: list[Progress] = field(default_factory=list)

    def run(
        self,
        lane: Lane = Lane.QUEUE,
        *,
        seconds: float | None = None,
        limit: int | None = None,
        tell: Listener = _ignore,
    ) -> Report:
        def listen(progress: Progress) -> None:
            self.heard.append(progress)
            tell(progress)

        return loop.run(
            self.db,
            self.settings,
            lane,
            max_runtime_seconds=seconds,
            limit=limit,
            tell=listen,
            clock=self.clock,
        )

    def serve(self, *assets: Asset, history_days: int = 720) -> None:
        """Set these assets; two days of history are 577 bars and are fast."""
        plan = replace(self.settings.provider.plan, history_days=history_days)
        provider = replace(self.settings.provider, plan=plan)
        self.settings = replace(self.settings, assets=assets, provider=provider)

    def row(self, sql: str, *parameters: object) -> Row:
        [found] = query(self.db, sql, parameters)
        return found

    def item(self, symbol: str, feed: Feed = Feed.BARS) -> Row:
        """Return state, attempts and level of an item."""
        return self.row(
            "select state, attempts, level from asset_sync.queue where symbol = %s and feed = %s",
            symbol,
            feed,
        )

    def outcomes(self) -> list[str]:
        rows = query(self.db, "select outcome from asset_sync.calls order by id")
        return [outcome for (outcome,) in rows]

    def slots(self) -> Row:
        """Return how many slots are stamped in the window and how many are in flight."""
        return self.row(
            """
            select count(*) filter (where stamped_at > now() - make_interval(secs => %s)),
              count(token)
            from asset_sync.slots
            """,
            self.settings.rate_limit.period_seconds,
        )

    def bars(self, symbol: str) -> list[Row]:
        """Return the stored bars in the form of the replay."""
        return query(
            self.db,
            """
            select (extract(epoch from ts) * 1000)::bigint, open, high, low, close, volume, vwap,
              trades
            from market_data.ohlcv_5m b join trading.symbols s on s.id = b.ticker_id
            where symbol = %s order by ts
            """,
            (symbol,),
        )

    def warnings(self) -> list[str]:
        return [progress.text for progress in self.heard if isinstance(progress, Warned)]

    def asked(self) -> list[str | None]:
        return [arrival.ticker for arrival in self.api.log]


@pytest.fixture
def job(db: Connection, clock: ShiftingClock, api: StandIn, make_settings: MakeSettings) -> Job:
    """The shipped assets on the free plan."""
    return Job(db, clock, api, make_settings(api))


@pytest.fixture
def paid(db: Connection, clock: ShiftingClock, make_settings: MakeSettings) -> Iterator[Job]:
    """The shipped assets on a plan with snapshots."""
    with StandIn("starter", monotonic=clock.monotonic) as api:
        yield Job(db, clock, api, make_settings(api, plan="starter"))


def replayed(ticker: str, start: datetime, end: datetime | None = None) -> list[Row]:
    now_ms = _ms(datetime.now(UTC))
    end_ms = _ms(end) if end else now_ms
    return [tuple(bar) for bar in replay.bars(ticker, _ms(start), end_ms, now_ms)]


def assert_as_replayed(job: Job, one: Asset, *, days: float) -> None:
    """Check that the bars of so many days until now are stored, each once and as replayed."""
    stored = job.bars(one.symbol)
    last = datetime.fromtimestamp(stored[-1][0] / 1000, UTC)
    assert datetime.now(UTC) - last < timedelta(days=3)  # over a weekend there are none
    first = datetime.now(UTC) - timedelta(days=days)
    expected = replayed(one.ticker, first, last)
    assert stored[-len(expected) :] == expected
    # A call starts with the whole bar that holds its start, a catch-up a few bars earlier.
    assert len(stored) - len(expected) <= 8


def _ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


# --- what a run brings ------------------------------------------------------------------------


def test_the_priority_run_serves_its_assets_in_the_order_of_the_file(job: Job) -> None:
    report = job.run(Lane.PRIORITY)
    assert job.asked() == ["C:XAUUSD", "C:EURUSD", "X:BTCUSD"]
    assert report.updated == PRIORITY_SYMBOLS
    assert (report.failed, report.api_calls_used) == ([], 3)
    assert report.reason_ended is Ended.DONE


def test_the_queue_run_serves_the_others_and_waits_for_its_slots(job: Job) -> None:
    job.run(Lane.PRIORITY)
    report = job.run(Lane.QUEUE)
    assert report.updated == OTHER_SYMBOLS
    assert 30 < report.waited_seconds < 70
    assert job.api.refused == 0
    assert job.api.most_in_a_window() == 5


def test_bars_are_stored_as_replayed_over_the_range_of_one_call(job: Job) -> None:
    report = job.run(Lane.PRIORITY)
    for one, days in ((GOLD, 40), (EURO, 40), (BITCOIN, 34)):
        assert_as_replayed(job, one, days=days)
    assert report.bars_written == sum(len(job.bars(symbol)) for symbol in PRIORITY_SYMBOLS)


def test_the_last_price_is_that_of_the_last_bar_with_the_figures_of_its_day(job: Job) -> None:
    job.run(Lane.PRIORITY)
    [update] = job.row(
        "select metadata -> 'last_update' from trading.symbols where symbol = 'BTCUSD'"
    )
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    day = replayed("X:BTCUSD", midnight)
    assert update["bid"] is update["ask"] is None
    assert update["last_price"] == update["daily_close"] == day[-1][4], "of the bar that runs"
    assert update["daily_open"] == day[0][1]
    assert update["daily_high"] == max(bar[2] for bar in day)
    assert update["daily_low"] == min(bar[3] for bar in day)
    assert update["source"] == "polygon"
    assert 0 <= datetime.now(UTC).timestamp() - _timestamp(update["timestamp"]) < 310


def _timestamp(text: str) -> float:
    moment = datetime.fromisoformat(text)
    assert moment.utcoffset() == timedelta(0)
    return moment.timestamp()


def test_sync_status_and_item_show_that_the_asset_is_fresh(job: Job) -> None:
    job.run(Lane.PRIORITY)
    rows = query(
        job.db,
        """
        select symbol, code, sync_status, error_message, last_sync_timestamp > now() - interval '9s'
        from data_sources.data_sync_status t join trading.symbols s on s.id = t.ticker_id
          join data_sources.api_providers p on p.id = t.provider_id
        """,
    )
    assert sorted(rows) == [
        (symbol, "polygon", "success", None, True) for symbol in sorted(PRIORITY_SYMBOLS)
    ]
    assert job.item("XAUUSD") == ("idle", 0, "critical")
    assert job.slots() == (3, 0)


def test_listeners_in_the_database_get_each_price_once(
    job: Job, connect: Callable[[], Connection]
) -> None:
    listener = connect()
    query(listener, "listen asset_update")
    job.run(Lane.PRIORITY)
    while len(listener.notifies) < 3:  # each comes on its own way, after its commit
        assert select.select([listener], [], [], 5)[0]
        listener.poll()
    query(listener, "select 1")  # what is still under way comes before the answer
    messages = [json.loads(notify.payload) for notify in listener.notifies]
    assert [message["symbol"] for message in messages] == PRIORITY_SYMBOLS
    assert set(messages[0]) == {"symbol", "bid", "ask", "last_price", "timestamp", "source"}
    for message in messages:
        [update] = job.row(
            "select metadata -> 'last_update' from trading.symbols where symbol = %s",
            message.pop("symbol"),
        )
        assert message == {key: update[key] for key in message}


def test_the_run_and_its_calls_are_in_the_history(job: Job) -> None:
    report = job.run(Lane.PRIORITY)
    assert job.row(
        """
        select id, command, reason_ended, updated, failed, api_calls, bars_written,
          ended_at >= started_at
        from asset_sync.runs
        """
    ) == (report.run_id, "priority", "done", 3, 0, 3, report.bars_written, True)
    assert query(
        job.db, "select run_id, feed, symbols, outcome, error from asset_sync.calls order by id"
    ) == [(report.run_id, "bars", [symbol], "ok", None) for symbol in PRIORITY_SYMBOLS]


def test_events_are_emitted_as_they_happen(job: Job) -> None:
    job.serve(COIN, history_days=2)
    job.run()
    started, calling, synced = job.heard
    assert started == Started(*job.row("select id from asset_sync.runs"))
    assert isinstance(calling, Calling)
    assert (calling.symbols, calling.feed, calling.budget.free) == (["BTCUSD"], Feed.BARS, 4)
    assert isinstance(synced, Synced)
    assert synced.symbol == "BTCUSD"
    assert synced.bars_written == len(job.bars("BTCUSD"))
    [price] = job.row("select metadata -> 'last_update' -> 'last_price' from trading.symbols")
    assert synced.last_price == price


# --- again ------------------------------------------------------------------------------------


def test_a_later_sync_asks_for_a_few_bars_again_and_writes_only_changed_ones(job: Job) -> None:
    job.serve(COIN, history_days=2)
    job.run()
    whole = job.bars("BTCUSD")
    query(
        job.db,
        f"""
        update market_data.ohlcv_5m set close = close + 1
        where ts = (select max(ts) - interval '20 min' {_FROM_BARS})
        """,
    )
    query(job.db, f"delete from market_data.ohlcv_5m where ts = (select max(ts) {_FROM_BARS})")
    untouched = "select count(*) from market_data.ohlcv_5m where xmin <> %s::text::xid"
    job.clock.sleep(300)
    report = job.run()
    assert job.bars("BTCUSD")[: len(whole)] == whole
    new = len(job.bars("BTCUSD")) - len(whole)  # five minutes may have gone by
    assert report.bars_written == 2 + new
    [newest] = job.row("select xmin::text from market_data.ohlcv_5m order by ts desc limit 1")
    assert job.row(untouched, newest) == (len(whole) - 2,)
    start_ms, end_ms = (int(part) for part in _path(job, -1).split("/")[-2:])
    assert end_ms - start_ms < 45 * 60_000


_FROM_BARS = "from market_data.ohlcv_5m"


def _path(job: Job, call: int) -> str:
    return job.api.log[call].method_path.split("?")[0]


def test_an_answer_without_new_bars_makes_the_asset_fresh_too(job: Job) -> None:
    job.serve(COIN, history_days=2)
    job.run()
    before = job.bars("BTCUSD")
    job.api.set_faults(["empty"])
    job.clock.sleep(300)
    report = job.run()
    assert (report.updated, report.failed, report.bars_written) == (["BTCUSD"], [], 0)
    assert job.bars("BTCUSD") == before
    assert job.item("BTCUSD") == ("idle", 0, "medium")


# --- catching up ------------------------------------------------------------------------------


def leave_a_gap(job: Job, one: Asset, days: int) -> None:
    """Let the asset's last sync and its newest bar be that long ago."""
    job.run()
    query(
        job.db,
        f"""
        with newest as (select max(ts) {_FROM_BARS})
        delete from market_data.ohlcv_5m where ts < (table newest);
        update market_data.ohlcv_5m set ts = date_bin('5 min', now(), 'epoch')
          - make_interval(days => %s);
        update trading.symbols set metadata = '{{}}'
        """,
        (days,),
    )
    job.clock.sleep(300)
    assert len(job.bars(one.symbol)) == 1


def test_a_long_gap_is_closed_by_several_calls_each_with_its_own_slot(job: Job) -> None:
    job.serve(COIN)
    leave_a_gap(job, COIN, 200)
    report = job.run()
    assert report.api_calls_used == 6  # 34 days each
    assert report.updated == ["BTCUSD"]
    assert report.waited_seconds > 30
    assert (job.api.refused, job.api.most_in_a_window()) == (0, 5)
    assert_as_replayed(job, COIN, days=200)
    parts = [progress.more for progress in job.heard if isinstance(progress, Synced)]
    assert parts == [False, True, True, True, True, True, False]
    assert job.outcomes() == ["ok"] * 7


@pytest.mark.parametrize(("silent", "calls"), [("empty:4", 7), ("empty", 7)])
def test_a_catch_up_passes_a_quiet_time_longer_than_one_call_reaches(
    job: Job, silent: str, calls: int
) -> None:
    """One of the calls asks whether the ticker still exists."""
    job.serve(COIN)
    leave_a_gap(job, COIN, 200)
    job.api.set_faults([silent])
    report = job.run()
    assert (report.api_calls_used, report.updated) == (calls, ["BTCUSD"])
    assert job.item("BTCUSD") == ("idle", 0, "medium")


def test_a_catch_up_that_is_cut_short_continues_in_the_next_run(job: Job) -> None:
    job.serve(COIN)
    leave_a_gap(job, COIN, 200)
    report = job.run(seconds=30)
    assert (report.updated, report.reason_ended) == ([], Ended.BUDGET)
    assert job.item("BTCUSD") == ("waiting", 0, "medium")
    job.clock.sleep(60)
    report = job.run()
    assert (report.updated, report.api_calls_used) == (["BTCUSD"], 1)
    assert_as_replayed(job, COIN, days=200)


@pytest.mark.parametrize("fault", ["endless-next-url", "foreign-next-url"])
def test_further_bars_are_asked_for_by_a_new_call_and_no_link_is_followed(
    job: Job, fault: str
) -> None:
    job.serve(COIN, history_days=2)
    job.api.set_faults([fault])
    report = job.run()
    assert (report.updated, report.failed) == (["BTCUSD"], [])
    assert report.api_calls_used == len(job.api.log) == 2
    assert "cursor" not in job.api.log[1].method_path
    assert_as_replayed(job, COIN, days=2)


# --- the budget and the end -------------------------------------------------------------------


def test_a_run_that_can_get_no_slot_before_its_end_stops_at_once(job: Job) -> None:
    job.run(Lane.PRIORITY)
    began = job.clock.monotonic()
    report = job.run(Lane.QUEUE, seconds=40)
    assert report.reason_ended is Ended.BUDGET
    assert (report.updated, report.waited_seconds) == (OTHER_SYMBOLS[:2], 0)
    assert job.clock.monotonic() - began < 20
    assert job.item("USDJPY") == ("waiting", 0, "medium")
    job.clock.sleep(60)
    assert job.run(Lane.QUEUE, seconds=30).updated == OTHER_SYMBOLS[2:]


def test_a_limit_ends_the_run(job: Job) -> None:
    report = job.run(Lane.PRIORITY, limit=2)
    assert (report.updated, report.reason_ended) == (PRIORITY_SYMBOLS[:2], Ended.LIMIT)
    assert job.run(Lane.PRIORITY).updated == PRIORITY_SYMBOLS[2:]


def test_a_failed_asset_counts_for_the_limit_too(job: Job) -> None:
    job.serve(COIN, ETHER, history_days=2)
    job.api.set_faults(["not-found@X:BTCUSD"])
    report = job.run(limit=1)
    assert [failure.symbol for failure in report.failed] == ["BTCUSD"]
    assert (report.api_calls_used, report.reason_ended) == (1, Ended.LIMIT)


def test_the_time_limit_ends_the_run(job: Job) -> None:
    job.serve(COIN, ETHER, history_days=2)

    def dawdle(progress: Progress) -> None:
        if isinstance(progress, Synced):
            job.clock.sleep(31)

    report = job.run(tell=dawdle, seconds=30)
    assert (report.updated, report.reason_ended) == (["BTCUSD"], Ended.TIME)
    assert job.item("ETHUSDT") == ("waiting", 0, "medium")


def test_a_call_may_not_take_longer_than_the_run(job: Job) -> None:
    job.serve(COIN, history_days=2)
    job.api.set_faults(["stall"])
    report = job.run(seconds=0.5)
    [failed] = report.failed
    assert f"longer than {caller.LEAST_CALL_SECONDS:g} s in all" in failed.error
    assert report.reason_ended is Ended.UNAVAILABLE


def all_fresh_now(job: Job) -> None:
    query(job.db, "update asset_sync.queue set last_success_at = clock_timestamp()")


@pytest.mark.parametrize("lane", list(Lane))
def test_with_nothing_due_no_call_is_made(job: Job, lane: Lane) -> None:
    job.run(Lane.PRIORITY)
    job.run(Lane.QUEUE)
    all_fresh_now(job)
    job.heard.clear()
    report = job.run(lane)
    assert report.reason_ended is Ended.NOTHING_DUE
    assert (report.api_calls_used, report.updated, report.waited_seconds) == (0, [], 0)
    assert job.heard == [Started(report.run_id)]
    assert len(job.api.log) == 7


def test_with_nothing_due_no_slow_module_is_imported(job: Job) -> None:
    job.run(Lane.PRIORITY)
    code = """
import os, sys
from asset_sync import database, settings
from asset_sync.model import Lane
from asset_sync.sync import loop
chosen = settings.load(settings.SHIPPED_FILE, os.environ)
with database.session(chosen.conninfo) as db:
    print(loop.run(db, chosen, Lane.PRIORITY).reason_ended)
print(*{"requests", "pyrate_limiter", "rich", "typer", "redis"}.intersection(sys.modules))
"""
    assert job.settings.conninfo is not None
    shown = subprocess.run(
        [sys.executable, "-c", code],
        env={
            "POLYGON_API_KEY": job.api.key,
            "POLYGON_BASE_URL": job.api.base_url,
            "DATABASE_URL": job.settings.conninfo.reveal(),
            "REDIS_URL": "redis://127.0.0.1:1",
        },
        capture_output=True,
        check=True,
        text=True,
    )
    assert shown.stdout == "nothing_due\n\n"


def test_a_run_without_a_key_ends_with_one_sentence_and_is_not_recorded(job: Job) -> None:
    job.settings = replace(job.settings, provider=replace(job.settings.provider, api_key=None))
    with pytest.raises(SettingsError, match="POLYGON_API_KEY is not set"):
        job.run()
    assert job.row("select count(*) from asset_sync.runs") == (0,)


def test_assets_that_do_not_fit_into_the_queue_are_reported_once_and_served_later(job: Job) -> None:
    job.serve(COIN, ETHER, TYPO, history_days=2)
    job.settings = replace(job.settings, queue=replace(job.settings.queue, max_size=1))
    report = job.run(seconds=20)
    assert report.left_out == 2
    [warning] = job.warnings()
    assert "2 due assets" in warning
    report = job.run(seconds=20)
    assert report.updated == ["ETHUSDT"]


# --- the two lanes ----------------------------------------------------------------------------


def test_the_queue_leaves_slots_for_the_next_priority_run(job: Job) -> None:
    job.run(Lane.PRIORITY)
    job.clock.sleep(250)  # less than a window before the next one
    report = job.run(Lane.QUEUE, seconds=45)
    assert report.updated == OTHER_SYMBOLS[:2]
    job.clock.sleep(50)
    report = job.run(Lane.PRIORITY)
    assert (report.updated, report.waited_seconds) == (PRIORITY_SYMBOLS, 0)
    assert job.api.refused == 0


def test_the_queue_waits_for_a_missing_priority_run_only_until_the_reservation_ends(
    job: Job,
) -> None:
    job.run(Lane.PRIORITY)
    job.clock.sleep(295)
    report = job.run(Lane.QUEUE)
    assert report.updated == OTHER_SYMBOLS
    assert report.waited_seconds < PRIORITY_GRACE_SECONDS + 10


def test_more_priority_assets_than_a_window_has_calls_are_all_served_in_one_run(job: Job) -> None:
    symbols = [*PRIORITY_SYMBOLS, *OTHER_SYMBOLS]
    assets = {one.symbol: one for one in job.settings.assets}
    job.serve(
        *(
            replace(assets[symbol], level=Level.CRITICAL, position=place)
            for place, symbol in enumerate(symbols)
        ),
        history_days=2,
    )
    assert job.run(Lane.PRIORITY).updated == symbols


def until_next_start(job: Job) -> float:
    """Return the seconds until cron's next start, by the database's clock."""
    [(seconds,)] = query(job.db, "select extract(epoch from clock_timestamp())::float8")
    return 300 - float(seconds) % 300


def refreshed(job: Job, seconds_ago: float) -> None:
    query(
        job.db,
        """
        update asset_sync.queue
        set last_success_at = clock_timestamp() - make_interval(secs => %s)
        """,
        (seconds_ago,),
    )


def test_an_asset_that_will_not_be_fresh_at_crons_next_start_is_refreshed_now(job: Job) -> None:
    gold = replace(GOLD, update_frequency_seconds=600)
    job.serve(gold, history_days=2)
    job.run(Lane.PRIORITY)
    refreshed(job, 600 - until_next_start(job) + 5)  # stale five seconds before
    foretold = dry_run.plan(job.db, job.settings, Lane.PRIORITY)
    assert job.run(Lane.PRIORITY).updated == ["XAUUSD"]
    assert [call.symbols for call in foretold] == [("XAUUSD",)]


def test_an_asset_that_will_be_fresh_at_crons_next_start_is_left_to_that_run(job: Job) -> None:
    gold = replace(GOLD, update_frequency_seconds=600)
    job.serve(gold, history_days=2)
    job.run(Lane.PRIORITY)
    refreshed(job, 600 - until_next_start(job) - 5)  # fresh for five seconds more
    assert dry_run.plan(job.db, job.settings, Lane.PRIORITY) == ()
    assert job.run(Lane.PRIORITY).reason_ended is Ended.NOTHING_DUE


def test_the_slot_that_a_priority_run_waits_for_is_kept_from_the_queue(job: Job) -> None:
    job.serve(GOLD, EURO, ETHER, history_days=2)
    job.settings = replace(job.settings, rate_limit=replace(job.settings.rate_limit, calls=1))
    beside: list[Report] = []

    def listen(progress: Progress) -> None:
        if isinstance(progress, Waiting) and progress.seconds < 5 and not beside:
            beside.append(job.run(Lane.QUEUE, seconds=10))

    job.run(Lane.PRIORITY, tell=listen)
    assert [report.reason_ended for report in beside] == [Ended.BUDGET]
    assert job.asked() == ["C:XAUUSD", "C:EURUSD"]


def test_without_hold_for_priority_the_queue_takes_every_slot(job: Job) -> None:
    job.settings = replace(
        job.settings, rate_limit=replace(job.settings.rate_limit, hold_for_priority=False)
    )
    job.run(Lane.PRIORITY)
    job.clock.sleep(300)  # due, wherever cron's next start is
    assert job.run(Lane.QUEUE).waited_seconds == 0
    report = job.run(Lane.PRIORITY)
    assert report.updated[:1] == PRIORITY_SYMBOLS[:1]
    assert report.waited_seconds > 0 or report.reason_ended is Ended.BUDGET


def test_if_priority_runs_are_switched_off_the_queue_serves_critical_assets_first(
    job: Job,
) -> None:
    job.settings = replace(
        job.settings, batch=replace(job.settings.batch, priority_assets_enabled=False)
    )
    report = job.run(Lane.PRIORITY)
    assert (report.reason_ended, report.api_calls_used) == (Ended.DISABLED, 0)
    report = job.run(Lane.QUEUE)
    assert sorted(report.updated[:3]) == sorted(PRIORITY_SYMBOLS)
    assert sorted(report.updated[3:]) == OTHER_SYMBOLS


def test_if_priority_runs_are_switched_off_the_queue_serves_waiting_critical_assets(
    job: Job,
) -> None:
    assert job.run(Lane.PRIORITY, limit=1).updated == PRIORITY_SYMBOLS[:1]
    job.settings = replace(
        job.settings, batch=replace(job.settings.batch, priority_assets_enabled=False)
    )
    report = job.run(Lane.QUEUE)
    assert sorted(report.updated) == sorted([*PRIORITY_SYMBOLS[1:], *OTHER_SYMBOLS])


# --- lingering --------------------------------------------------------------------------------


def test_only_assets_that_become_due_during_the_run_are_served_again(job: Job) -> None:
    job.serve(replace(COIN, update_frequency_seconds=60), ETHER, history_days=2)
    report = job.run()
    assert job.api.calls_by_ticker()["X:ETHUSDT"] == 1
    assert job.api.calls_by_ticker()["X:BTCUSD"] in {4, 5}  # in 290 s
    assert report.updated == ["BTCUSD", "ETHUSDT"]
    assert report.reason_ended in {Ended.DONE, Ended.TIME}
    waits = [p.seconds for p in job.heard if isinstance(p, Waiting)]
    assert len(waits) < 100  # it sleeps, it does not spin


def test_no_asset_is_fetched_twice_by_a_run_that_ends_before_it_is_due_again(job: Job) -> None:
    job.serve(COIN, ETHER, history_days=2)
    began = job.clock.monotonic()
    report = job.run()
    assert report.api_calls_used == 2
    assert report.reason_ended is Ended.DONE
    assert job.clock.monotonic() - began < 30


def test_an_asset_that_becomes_due_during_the_run_is_served_before_lower_ones(job: Job) -> None:
    others = [
        replace(one, level=Level.MEDIUM, update_frequency_seconds=300)
        for one in job.settings.assets
        if one.symbol != "ETHUSDT"
    ]
    first = replace(ETHER, level=Level.HIGH)
    first = replace(first, update_frequency_seconds=3600)
    job.serve(first, history_days=2)
    job.run()
    refreshed(job, 3600 - 30)  # due within the run, and not before cron's next start
    each_second = replace(job.settings.batch, interval_minutes=1 / 60)
    job.settings = replace(job.settings, batch=each_second)
    job.serve(first, *others, history_days=2)
    in_order = job.run(seconds=600).updated
    assert in_order.index("ETHUSDT") >= 4, "the free slots go to those who are due already"
    assert in_order.index("ETHUSDT") < len(in_order) - 1


# --- whatever the provider does: nobody's fault -----------------------------------------------

NOBODYS = [
    "server-error",
    "bad-gateway",
    "html",
    "truncated",
    "bad-json",
    "reset",
    "stall",
    "drip",
    "huge",
    "gzip-bomb",
    "redirect",
]


def be_quick(job: Job) -> None:
    """Shorten the time limits for silent and dripping servers."""
    job.settings = replace(
        job.settings,
        provider=replace(job.settings.provider, read_timeout_seconds=0.3, call_timeout_seconds=3.0),
    )


@pytest.mark.parametrize("fault", NOBODYS)
def test_a_bad_or_missing_answer_delays_the_item_and_counts_as_a_strike_only(
    job: Job, fault: str
) -> None:
    job.serve(COIN, ETHER, history_days=2)
    be_quick(job)
    if fault == "drip":
        provider = replace(job.settings.provider, call_timeout_seconds=0.3)
        job.settings = replace(job.settings, provider=provider)
    job.api.set_faults([f"{fault}@X:BTCUSD"])
    report = job.run(seconds=10)
    assert report.updated == ["ETHUSDT"]
    assert [failure.symbol for failure in report.failed] == ["BTCUSD"]
    assert report.reason_ended is Ended.DONE
    assert job.outcomes()[0] in {"unavailable", "unanswered"}
    assert job.outcomes()[1:] == ["ok"]
    assert job.item("BTCUSD") == ("waiting", 0, "medium")
    assert job.bars("BTCUSD") == []
    job.api.set_faults([])
    job.clock.sleep(60)
    assert job.run(seconds=30).updated == ["BTCUSD"]
    assert_as_replayed(job, COIN, days=2)


def test_a_delayed_item_is_served_again_within_the_same_run(job: Job) -> None:
    job.serve(COIN, history_days=2)
    job.api.set_faults(["server-error:2"])
    report = job.run()
    assert (report.updated, report.api_calls_used) == (["BTCUSD"], 3)
    assert_as_replayed(job, COIN, days=2)


@pytest.mark.parametrize("lane", list(Lane))
@pytest.mark.parametrize("fault", ["server-error", "html", "not-found", "other-ticker"])
def test_three_assets_that_always_fail_do_not_stop_the_others(
    job: Job, fault: str, lane: Lane
) -> None:
    level = Level.CRITICAL if lane is Lane.PRIORITY else Level.MEDIUM
    seven = [
        replace(one, level=level, position=place)
        for place, one in enumerate(job.settings.assets, start=1)
    ]
    bad, good = [one.symbol for one in seven[:3]], [one.symbol for one in seven[3:]]
    job.serve(*seven, history_days=2)
    job.api.set_faults([f"{fault}@{one.ticker}" for one in seven[:3]])
    report = job.run(lane)
    assert sorted(report.updated) == sorted(good)
    assert {failure.symbol for failure in report.failed} <= set(bad)
    assert report.reason_ended is not Ended.UNAVAILABLE


@pytest.mark.parametrize("fault", ["server-error", "html", "not-found", "wrong-shape"])
def test_an_api_that_is_odd_for_a_while_makes_no_item_dead_and_all_are_fresh_soon_after(
    job: Job, fault: str
) -> None:
    job.serve(*job.settings.assets, history_days=2)
    job.api.set_faults([fault])
    for _ in range(6):
        for lane in Lane:
            job.run(lane, seconds=150)
    assert len(job.api.log) <= 3 * 12 + 30 * 60 / 30, "from the third on two calls a window"
    assert query(job.db, "select max(strikes) from asset_sync.queue") == [(1,)]
    job.api.set_faults([])
    updated = {symbol for lane in (*Lane, *Lane) for symbol in job.run(lane).updated}
    assert updated == {one.symbol for one in job.settings.assets}, "within two cycles"


@pytest.mark.parametrize("fault", ["rate-limit", "key-revoked"])
@pytest.mark.parametrize("lane", list(Lane))
def test_one_asset_that_is_answered_with_a_key_error_does_not_stop_the_others(
    job: Job, fault: str, lane: Lane
) -> None:
    level = Level.CRITICAL if lane is Lane.PRIORITY else Level.MEDIUM
    three = [
        replace(one, level=level, position=place)
        for place, one in enumerate(job.settings.critical, start=1)
    ]
    job.serve(*three, history_days=2)
    job.api.set_faults([f"{fault}@{three[0].ticker}"])
    updated: set[str] = set()
    for _ in range(3):
        updated.update(job.run(lane, seconds=100).updated)
        job.clock.sleep(200)
    assert updated == {one.symbol for one in three[1:]}


def test_three_requests_in_a_row_that_could_not_be_sent_end_the_run(job: Job) -> None:
    nowhere = replace(job.settings.provider, base_url="http://127.0.0.1:9")
    job.settings = replace(job.settings, provider=nowhere)
    report = job.run(Lane.QUEUE)
    assert report.reason_ended is Ended.UNAVAILABLE
    assert "3 requests that could not be sent" in report.message
    assert (report.api_calls_used, report.updated, report.failed) == (0, [], [])
    for symbol in OTHER_SYMBOLS:
        assert job.item(symbol) == ("waiting", 0, "medium")
    assert job.row("select count(*) from asset_sync.calls") == (0,)


def test_an_outage_and_its_end_are_reported_once_each(job: Job) -> None:
    job.serve(COIN, history_days=2)
    job.api.set_faults(["server-error"])
    reports = [job.run(seconds=100) for _ in range(3)]
    assert [one.reason_ended for one in reports] == [Ended.UNAVAILABLE] * 3
    assert [one.is_news for one in reports] == [True, False, False]
    job.api.set_faults([])
    job.clock.sleep(60)
    assert job.run().is_news
    assert Warned("The API serves this key again.") in job.heard


@pytest.mark.parametrize("fault", ["rate-limit", "rate-limit-empty", "rate-limit-retry-after"])
def test_after_a_429_every_run_waits_and_nothing_counts_against_the_asset(
    job: Job, fault: str
) -> None:
    job.serve(BITCOIN, ETHER, history_days=2)
    job.api.set_faults([f"{fault}:1"])
    report = job.run(Lane.QUEUE)
    assert job.outcomes() == ["rate_limited", "ok"]
    assert report.updated == ["ETHUSDT"]
    assert 55 < report.waited_seconds <= 61
    first, second = (arrival.at_seconds for arrival in job.api.log)
    assert second - first >= 60
    assert_as_replayed(job, ETHER, days=2)


@pytest.mark.parametrize("fault", ["rate-limit", "rate-limit-empty", "rate-limit-retry-after"])
def test_after_a_429_a_short_run_ends_and_the_other_lane_waits_too(job: Job, fault: str) -> None:
    job.serve(BITCOIN, ETHER, history_days=2)
    job.api.set_faults([fault])
    report = job.run(Lane.QUEUE, seconds=30)
    assert (report.reason_ended, report.api_calls_used) == (Ended.BUDGET, 1)
    assert job.item("ETHUSDT") == ("waiting", 0, "medium")
    assert job.slots() == (1, 0)
    report = job.run(Lane.PRIORITY, seconds=50)
    assert (report.reason_ended, report.api_calls_used) == (Ended.BUDGET, 0)


# --- whatever the provider does: the asset's fault --------------------------------------------


@pytest.mark.parametrize(
    ("fault", "outcome"), [("not-found", "ticker_unknown"), ("other-ticker", "unreadable")]
)
def test_an_answer_that_is_the_assets_fault_counts_and_lowers_its_level(
    job: Job, fault: str, outcome: str
) -> None:
    job.serve(COIN, ETHER, history_days=2)
    job.api.set_faults([f"{fault}:1@X:BTCUSD"])
    report = job.run(seconds=30)
    [failure] = report.failed
    assert failure.symbol == "BTCUSD"
    assert "X:BTCUSD" in failure.error
    assert (report.updated, report.reason_ended) == (["ETHUSDT"], Ended.DONE)
    assert job.outcomes() == [outcome, "ok"]
    assert job.item("BTCUSD") == ("waiting", 1, "low")
    assert job.slots() == (2, 0)
    assert [p for p in job.heard if isinstance(p, Failed)] == [
        Failed("BTCUSD", Feed.BARS, failure.error)
    ]
    job.clock.sleep(job.settings.queue.retry_delay_seconds)
    assert "BTCUSD" in job.run(seconds=30).updated
    assert job.item("BTCUSD")[:2] == ("idle", 0)
    assert_as_replayed(job, COIN, days=2)


def another_answered_well(job: Job) -> None:
    """Record that the provider answered another asset well: so the failure is the asset's own."""
    query(job.db, "update asset_sync.limiter set answered_at = clock_timestamp()")


def test_an_asset_with_failures_of_its_own_is_tried_later_and_later_until_it_is_dead(
    job: Job,
) -> None:
    job.serve(COIN, history_days=2)
    job.api.set_faults(["other-ticker"])
    for attempt, delay in ((1, 60), (2, 120)):
        another_answered_well(job)
        assert len(job.run(seconds=30).failed) == 1
        assert job.item("BTCUSD") == ("waiting", attempt, "low")
        job.clock.sleep(delay - 10)
        assert job.run(seconds=5).api_calls_used == 0
        job.clock.sleep(10)
    another_answered_well(job)
    assert len(job.run(seconds=30).failed) == 1
    assert job.item("BTCUSD") == ("dead", 3, "low")
    job.clock.sleep(3600)
    assert job.run().reason_ended is Ended.NOTHING_DUE
    assert len(job.api.log) == 3


def test_an_asset_that_fails_twice_in_a_run_is_reported_once(job: Job) -> None:
    job.serve(COIN, replace(ETHER, update_frequency_seconds=60), history_days=2)
    job.api.set_faults(["other-ticker@X:BTCUSD"])
    report = job.run()
    assert job.api.calls_by_ticker()["X:BTCUSD"] > 1
    assert [failure.symbol for failure in report.failed] == ["BTCUSD"]


def test_an_asset_that_fails_and_then_succeeds_is_reported_as_updated(job: Job) -> None:
    job.serve(COIN, replace(ETHER, update_frequency_seconds=60), history_days=2)
    job.api.set_faults(["other-ticker:1@X:BTCUSD"])
    report = job.run()
    assert (sorted(report.updated), report.failed) == (["BTCUSD", "ETHUSDT"], [])


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("nan", "a figure that is missing or no number"),
        ("infinity", "a figure that is missing or no number"),
        ("negative", "a price outside 1e-12 to 1e12"),
        ("high-below-low", "a high below the low"),
        ("future", "a start outside the time asked for"),
    ],
)
def test_an_impossible_bar_is_left_out_and_reported_and_its_correction_is_stored_later(
    job: Job, fault: str, reason: str
) -> None:
    job.serve(COIN, history_days=2)
    job.api.set_faults([f"{fault}:1"])
    report = job.run()
    assert (report.updated, report.failed, report.api_calls_used) == (["BTCUSD"], [], 1)
    assert job.warnings() == [f"BTCUSD: bars that cannot be true were left out: 1 with {reason}."]
    stored = job.bars("BTCUSD")
    expected = replayed("X:BTCUSD", datetime.fromtimestamp(stored[0][0] / 1000, UTC))
    assert stored == expected[: len(stored)]
    assert 1 <= len(expected) - len(stored) <= 2
    job.clock.sleep(300)
    assert job.run().updated == ["BTCUSD"]
    assert_as_replayed(job, COIN, days=2)


@pytest.mark.parametrize("fault", ["unordered", "duplicate"])
def test_bars_in_any_order_and_number_are_stored_correctly(job: Job, fault: str) -> None:
    job.serve(COIN, history_days=2)
    job.api.set_faults([fault])
    report = job.run()
    assert (report.updated, report.failed, report.api_calls_used) == (["BTCUSD"], [], 1)
    assert job.warnings() == []
    assert_as_replayed(job, COIN, days=2)


# --- what the database refuses ------------------------------------------------------------------


REFUSALS = {
    "a check": "alter table market_data.ohlcv_5m add constraint cheap check (close < 2000)",
    "a trigger": """
        create function market_data.refuse() returns trigger language plpgsql as $$
        begin
          if new.close >= 2000 then raise exception 'too dear for us'; end if;
          return new;
        end $$;
        create trigger refuse before insert on market_data.ohlcv_5m
          for each row execute function market_data.refuse()
    """,
}


@pytest.mark.parametrize("lane", list(Lane))
@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)
def test_data_that_the_database_refuses_is_that_assets_failure(
    job: Job, refusal: str, lane: Lane
) -> None:
    level = Level.CRITICAL if lane is Lane.PRIORITY else Level.MEDIUM
    euro, pound = (one for one in job.settings.assets if one.symbol in {"EURUSD", "GBPUSD"})
    dear = [replace(COIN, level=level, position=1)]
    cheap = [replace(one, level=level, position=2) for one in (euro, pound)]
    query(job.db, refusal)
    job.serve(*dear, *cheap, history_days=2)
    report = job.run(lane)
    assert report.updated == [one.symbol for one in cheap]
    [failure] = report.failed
    assert failure.symbol == "BTCUSD"
    assert "The database refuses its data" in failure.error
    assert "cheap" in failure.error or "too dear for us" in failure.error
    [(said, told)] = query(
        job.db,
        """
        select q.last_error, d.error_message from asset_sync.queue q
        join trading.symbols s on s.symbol = q.symbol
        join data_sources.data_sync_status d on d.ticker_id = s.id
        where q.symbol = 'BTCUSD'
        """,
    )
    assert said == told == failure.error
    assert not re.search(r"[0-9]{4}[.][0-9]", said), "no values of the row"


def test_the_same_refusal_for_two_assets_in_a_row_ends_the_run_and_is_no_assets_failure(
    job: Job,
) -> None:
    query(job.db, "alter table market_data.ohlcv_5m add constraint low check (close < 1.2)")
    job.serve(COIN, ETHER, *job.settings.critical, history_days=2)
    with pytest.raises(psycopg2.errors.CheckViolation):
        job.run()
    assert len(job.api.log) == 2


def test_a_statement_refused_for_every_asset_ends_the_run_and_counts_against_none(job: Job) -> None:
    query(
        job.db,
        """
        create function market_data.broken() returns trigger language plpgsql as $$
        begin
          if new.close > 1.2 then perform * from no_such_table; end if;
          return new;
        end $$;
        create trigger broken before insert on market_data.ohlcv_5m
          for each row execute function market_data.broken()
        """,
    )
    job.serve(COIN, ETHER, history_days=2)
    for _ in range(4):
        with pytest.raises(psycopg2.errors.UndefinedTable):
            job.run()
        another_answered_well(job)
        job.clock.sleep(300)
    assert query(job.db, "select distinct state, attempts from asset_sync.queue") == [
        ("waiting", 0)
    ]


# --- whatever the provider does: a mistyped ticker --------------------------------------------


def test_a_mistyped_ticker_costs_one_look_up_and_then_one_call_per_try(job: Job) -> None:
    job.serve(TYPO, history_days=2)
    report = job.run(seconds=30)
    assert report.failed == [
        Failure(
            "TYPO",
            "The provider knows no ticker X:TYPO; correct its polygon_ticker in assets.toml.",
        )
    ]
    assert job.outcomes() == ["empty", "ticker_unknown"]
    assert _path(job, 1) == "GET /v3/reference/tickers/X:TYPO"
    assert job.item("TYPO") == ("waiting", 1, "low")
    for attempt, state in ((2, "waiting"), (3, "dead")):
        job.clock.sleep(600)
        another_answered_well(job)
        assert job.run(seconds=30).api_calls_used == 1
        assert job.item("TYPO") == (state, attempt, "low")
    assert job.row("select count(*) from market_data.ohlcv_5m") == (0,)


@pytest.mark.parametrize("tries", [1, 3])
def test_an_asset_whose_ticker_was_corrected_is_fresh_after_the_next_run(
    job: Job, tries: int
) -> None:
    job.serve(TYPO, history_days=2)
    for _ in range(tries):
        job.run(seconds=30)
        job.clock.sleep(600)
    job.serve(replace(TYPO, ticker="X:BTCUSD"), history_days=2)
    report = job.run()
    assert (report.updated, report.failed, report.api_calls_used) == (["TYPO"], [], 1)
    assert job.item("TYPO") == ("idle", 0, "medium")


def test_a_ticker_that_becomes_wrong_after_it_brought_bars_fails_too(job: Job) -> None:
    job.serve(COIN, history_days=2)
    job.run()
    job.serve(replace(COIN, ticker="X:TYPO"), history_days=2)
    job.clock.sleep(300)
    report = job.run()
    assert report.updated == []
    assert [failure.error for failure in report.failed] == [
        "The provider knows no ticker X:TYPO; correct its polygon_ticker in assets.toml."
    ]


def test_a_ticker_that_exists_without_bars_fails_with_another_message(job: Job) -> None:
    job.serve(COIN, history_days=2)
    job.api.set_faults(["empty:1"])
    report = job.run(seconds=30)
    [failure] = report.failed
    assert "no bars of X:BTCUSD" in failure.error
    assert job.outcomes() == ["empty", "ok"]
    job.clock.sleep(60)
    assert job.run().updated == ["BTCUSD"]
    assert_as_replayed(job, COIN, days=2)


def test_a_ticker_that_begins_to_exist_is_served(job: Job) -> None:
    job.serve(COIN, history_days=2)
    job.api.set_faults(["empty:1", "not-found:1"])
    assert "knows no ticker" in job.run(seconds=30).failed[0].error
    job.clock.sleep(60)
    assert job.run(seconds=30).updated == ["BTCUSD"]


# --- whatever the provider does: the account's fault ------------------------------------------


def test_a_revoked_key_ends_the_run_at_once(job: Job) -> None:
    job.api.set_faults(["key-revoked"])
    report = job.run(Lane.PRIORITY)
    assert (report.reason_ended, report.api_calls_used) == (Ended.KEY_REFUSED, 1)
    assert "POLYGON_API_KEY" in report.message
    assert report.failed == []
    assert job.item("XAUUSD") == job.item("EURUSD") == ("waiting", 0, "critical")
    assert job.slots() == (1, 0)
    job.api.set_faults([])
    assert sorted(job.run(Lane.PRIORITY).updated) == sorted(PRIORITY_SYMBOLS)


def test_a_key_revoked_in_the_middle_of_a_run_keeps_earlier_answers(job: Job) -> None:
    job.api.set_faults(["key-revoked@C:EURUSD"])
    report = job.run(Lane.PRIORITY)
    assert (report.reason_ended, report.updated) == (Ended.KEY_REFUSED, ["XAUUSD"])
    assert_as_replayed(job, GOLD, days=40)
    assert job.item("XAUUSD") == ("idle", 0, "critical")
    assert job.item("EURUSD") == job.item("BTCUSD") == ("waiting", 0, "critical")
    assert job.row("select reason_ended, updated from asset_sync.runs") == ("key_refused", 1)


def test_a_plan_without_bars_ends_the_run(job: Job) -> None:
    job.api.set_faults(["forbidden"])
    report = job.run(Lane.PRIORITY)
    assert (report.reason_ended, report.api_calls_used) == (Ended.PLAN_REFUSED, streaks.NOT_IN_PLAN)
    assert "plan" in report.message
    assert job.item("XAUUSD") == ("waiting", 1, "critical")


def test_an_asset_that_the_plan_lacks_does_not_stop_the_others(job: Job) -> None:
    job.serve(COIN, ETHER, history_days=2)
    job.api.set_faults(["forbidden@X:BTCUSD"])
    report = job.run(seconds=30)
    assert report.updated == ["ETHUSDT"]
    assert [failure.symbol for failure in report.failed] == ["BTCUSD"]
    assert report.reason_ended is Ended.DONE


def test_a_plan_without_today_gets_bars_until_yesterday_and_it_is_remembered(job: Job) -> None:
    job.serve(COIN, history_days=3)
    job.api.set_faults(["today"])
    report = job.run()
    assert (report.updated, report.api_calls_used) == (["BTCUSD"], 2)
    assert job.outcomes() == ["range_denied", "ok"]
    [warning] = job.warnings()
    assert "running day" in warning
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    assert job.bars("BTCUSD")[-1][0] == _ms(midnight) - replay.BAR_MS
    job.clock.sleep(300)
    report = job.run()  # nothing new before tomorrow: no call, and fresh
    assert (report.updated, report.api_calls_used) == (["BTCUSD"], 0)
    assert job.slots() == (0, 0)
    job.serve(COIN, ETHER, history_days=3)
    report = job.run()
    assert (report.updated, report.api_calls_used) == (["ETHUSDT"], 1)


def test_a_denial_is_remembered_for_a_day_and_only_for_that_key(job: Job) -> None:
    job.serve(COIN, history_days=3)
    job.api.set_faults(["today:1"])
    job.run()
    query(job.db, "update asset_sync.entitlements set noted_at = noted_at - interval '24 hours'")
    job.clock.sleep(300)
    report = job.run()
    assert report.api_calls_used == 1
    assert_as_replayed(job, COIN, days=3)


def test_history_beyond_the_plan_ends_the_run(job: Job) -> None:
    job.serve(COIN, history_days=2)
    job.api.set_faults(["timeframe"])
    report = job.run()
    assert report.reason_ended is Ended.PLAN_REFUSED
    assert [failure.symbol for failure in report.failed] == ["BTCUSD"]
    assert report.api_calls_used == 2
    assert job.item("BTCUSD") == ("waiting", 1, "low")


def test_an_asset_two_years_behind_asks_for_less_and_does_not_deny_today_to_others(
    job: Job,
) -> None:
    job.serve(COIN, ETHER, history_days=2)
    leave_a_gap(job, COIN, 800)
    plan = replace(job.settings.provider.plan, history_days=3650)
    job.settings = replace(job.settings, provider=replace(job.settings.provider, plan=plan))
    job.api.set_faults(["timeframe:1@X:BTCUSD"])
    report = job.run(seconds=900)
    assert report.failed == []
    assert "ETHUSDT" in report.updated
    missing = entitlements.missing(job.db, *account(job.settings))
    assert (missing.past, missing.today) == (True, False)


# --- plans with snapshots ---------------------------------------------------------------------


def many(count: int) -> list[Asset]:
    """Return this number of assets, of which the stand-in knows two."""
    made = [replace(TYPO, symbol=f"S{n:03}", ticker=f"X:S{n:03}") for n in range(count - 2)]
    return [COIN, ETHER, *made]


def snapshots_only(job: Job) -> None:
    plan = replace(job.settings.provider.plan, feeds=(Feed.SNAPSHOT,))
    job.settings = replace(job.settings, provider=replace(job.settings.provider, plan=plan))


def both_feeds(job: Job) -> None:
    plan = replace(job.settings.provider.plan, feeds=(Feed.SNAPSHOT, Feed.BARS))
    job.settings = replace(job.settings, provider=replace(job.settings.provider, plan=plan))


def test_three_hundred_assets_take_two_calls(paid: Job) -> None:
    paid.serve(*many(300))
    snapshots_only(paid)
    report = paid.run()
    assert report.api_calls_used == len(paid.api.log) == 2
    sizes = [len(tickers.split(",")) for tickers in paid.asked() if tickers]
    assert sizes == [250, 50]
    assert report.updated == ["BTCUSD", "ETHUSDT"]
    assert len(report.failed) == 298
    assert paid.row("select sum(array_length(symbols, 1)) from asset_sync.calls") == (300,)


def test_quotes_with_bid_and_ask_and_bars_are_both_stored(paid: Job) -> None:
    paid.serve(asset("EURUSD"), COIN, history_days=5)
    snapshots_only(paid)
    assert sorted(paid.run().updated) == ["BTCUSD", "EURUSD"]
    [quote] = paid.row(QUOTE)
    assert quote["bid"] < quote["last_price"] < quote["ask"]
    both_feeds(paid)
    report = paid.run()
    assert (sorted(report.updated), report.api_calls_used) == (["BTCUSD", "EURUSD"], 2)
    assert_as_replayed(paid, COIN, days=5)
    feeds = query(paid.db, "select symbol, feed, state from asset_sync.queue order by 1, 2")
    assert feeds == [
        (symbol, feed, "idle") for symbol in ("BTCUSD", "EURUSD") for feed in ("bars", "snapshot")
    ]


QUOTE = "select metadata -> 'last_update' from trading.symbols where symbol = 'EURUSD'"


def test_a_bar_does_not_replace_a_quote_of_the_same_minutes(paid: Job) -> None:
    paid.serve(asset("EURUSD"), history_days=5)
    snapshots_only(paid)
    paid.run()
    quote = paid.row(QUOTE)
    both_feeds(paid)
    assert paid.run().api_calls_used == 1
    assert paid.row(QUOTE) == quote


def test_a_call_that_serves_all_assets_comes_before_calls_for_one(paid: Job) -> None:
    paid.run(Lane.QUEUE)
    assert paid.api.log[0].method_path.startswith("GET /v3/snapshot?")


def test_a_row_that_is_not_found_fails_only_its_own_asset(paid: Job) -> None:
    paid.serve(COIN, TYPO)
    snapshots_only(paid)
    report = paid.run(seconds=30)
    assert report.updated == ["BTCUSD"]
    [failure] = report.failed
    assert failure.symbol == "TYPO"
    assert "X:TYPO" in failure.error
    assert paid.item("TYPO", Feed.SNAPSHOT) == ("waiting", 1, "low")
    assert paid.item("BTCUSD", Feed.SNAPSHOT) == ("idle", 0, "medium")


def test_a_plan_that_turns_out_to_have_no_snapshots_is_served_by_bars(paid: Job) -> None:
    with StandIn("free", calls=100, period_seconds=1, monotonic=paid.clock.monotonic) as free:
        paid.settings = replace(
            paid.settings, provider=replace(paid.settings.provider, base_url=free.base_url)
        )
        paid.serve(COIN, ETHER, history_days=2)
        report = paid.run()
        assert (report.updated, report.failed) == (["BTCUSD", "ETHUSDT"], [])
        assert sorted(paid.outcomes()) == ["feed_denied", "ok", "ok"]
        [warning] = paid.warnings()
        assert "does not include snapshots" in warning
        assert paid.item("BTCUSD", Feed.SNAPSHOT) == ("idle", 0, "medium")
        paid.clock.sleep(300)
        assert paid.run().api_calls_used == 2
        assert len([a for a in free.log if "snapshot" in a.method_path]) == 1


def test_a_denied_feed_is_not_asked_for_again_by_waiting_items(paid: Job) -> None:
    with StandIn("free", calls=100, period_seconds=1, monotonic=paid.clock.monotonic) as free:
        paid.settings = replace(
            paid.settings, provider=replace(paid.settings.provider, base_url=free.base_url)
        )
        paid.serve(*many(300), history_days=2)
        paid.run(seconds=30)
        assert paid.outcomes().count("feed_denied") == 1


# --- cut off ----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_in_a_call_puts_the_item_back_without_the_attempt(
    job: Job, how: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    job.serve(COIN, history_days=2)

    def cut_off(*_: object) -> None:
        raise how

    with monkeypatch.context() as patched:
        patched.setattr("asset_sync.provider.polygon.client.Polygon.bars", cut_off)
        with pytest.raises(how):
            job.run()
    assert job.item("BTCUSD") == ("waiting", 0, "medium")
    assert job.row("select last_error from asset_sync.queue") == (None,), "it is no failure"
    assert job.slots() == (1, 0)
    assert job.row("select reason_ended, ended_at is null from asset_sync.runs") == (
        "interrupted",
        False,
    )
    assert job.run().updated == ["BTCUSD"]
    assert_as_replayed(job, COIN, days=2)


@pytest.mark.parametrize("how", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_while_waiting_for_a_slot_leaves_nothing_held(
    job: Job, how: type[BaseException]
) -> None:
    class Clock(ShiftingClock):
        def sleep(self, seconds: float) -> None:
            raise how

    job.run(Lane.PRIORITY)
    with pytest.raises(how):
        loop.run(job.db, job.settings, Lane.QUEUE, clock=Clock(job.db))
    assert job.row("select count(*) from asset_sync.queue where state = 'leased'") == (0,)
    assert job.slots() == (5, 0)
    assert job.row("select reason_ended from asset_sync.runs order by id desc limit 1") == (
        "interrupted",
    )


@pytest.mark.parametrize("how", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_while_an_answer_is_stored_puts_the_item_back(
    job: Job, monkeypatch: pytest.MonkeyPatch, how: type[BaseException]
) -> None:
    job.serve(COIN, history_days=2)

    def cut_off(*_: object) -> None:
        raise how

    with monkeypatch.context() as patched:
        patched.setattr("asset_sync.store.publish.notify", cut_off)
        with pytest.raises(how):
            job.run()
    assert job.bars("BTCUSD") == []
    assert job.item("BTCUSD") == ("waiting", 0, "medium")
    assert job.run().updated == ["BTCUSD"]


def test_an_attempt_counts_if_the_item_breaks_its_run(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    job.serve(COIN, history_days=2)

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("asset_sync.provider.polygon.client.Polygon.bars", broken)
    for attempt in (1, 2, 3):
        with pytest.raises(ZeroDivisionError):
            job.run()
        assert job.item("BTCUSD") == ("leased", attempt, "medium")
        assert job.slots()[1] == 0
        another_answered_well(job)
        job.clock.sleep(60)
        queue.reclaim(job.db, job.settings.queue)
        another_answered_well(job)
        job.clock.sleep(120)
    assert job.run().reason_ended is Ended.NOTHING_DUE
    assert job.item("BTCUSD")[0] == "dead"
    assert job.row("select reason_ended from asset_sync.runs order by id limit 1") == ("broken",)


def test_a_run_whose_lease_was_lost_writes_nothing(
    job: Job, connect: Callable[[], Connection]
) -> None:
    job.serve(COIN, history_days=2)
    other = connect()

    def take_over(progress: Progress) -> None:
        if isinstance(progress, Calling):
            query(other, "update asset_sync.queue set lease_token = gen_random_uuid()")

    report = job.run(tell=take_over)
    assert (report.updated, report.failed, report.bars_written) == ([], [], 0)
    [warning] = job.warnings()
    assert warning.startswith("BTCUSD: the lease ended")
    for table in (
        "market_data.ohlcv_5m",
        "trading.symbols",
        "data_sources.data_sync_status",
        "asset_sync.calls",
    ):
        assert job.row(f"select count(*) from {table}") == (0,)
    assert job.item("BTCUSD") == ("leased", 1, "medium")
    assert job.slots() == (1, 0)


def test_a_redis_that_is_down_causes_one_warning_in_a_run(job: Job) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    job.settings = replace(job.settings, bus_url=Secret(f"redis://:hidden@127.0.0.1:{port}"))
    report = job.run(Lane.PRIORITY)
    assert report.updated == PRIORITY_SYMBOLS
    [warning] = job.warnings()
    assert "redis" in warning.lower()
    assert "hidden" not in warning


# --- the dry run ------------------------------------------------------------------------------


def everything(db: Connection) -> dict[str, list[Row]]:
    """Return each row of each table."""
    tables = query(
        db,
        """
        select quote_ident(schemaname) || '.' || quote_ident(tablename) from pg_tables
        where schemaname in ('asset_sync', 'trading', 'data_sources', 'market_data')
        """,
    )
    return {table: query(db, f"select * from {table} order by 1, 2") for (table,) in tables}


def endpoints(planned: Sequence[dry_run.PlannedCall]) -> list[str]:
    return [_without_times(f"GET {call.endpoint}") for call in planned]


def _without_times(path: str) -> str:
    parts = path.split("/")
    return "/".join("T" if part[:8].isdecimal() else part for part in parts)


def _calls(api: StandIn, first: int = 0) -> list[str]:
    return [_without_times(arrival.method_path) for arrival in api.log[first:]]


@pytest.mark.parametrize("lane", list(Lane))
def test_a_dry_run_lists_the_calls_that_a_run_then_makes_and_changes_nothing(
    job: Job, lane: Lane
) -> None:
    before = everything(job.db)
    planned = dry_run.plan(job.db, job.settings, lane)
    assert everything(job.db) == before
    assert job.api.log == []
    job.run(lane)
    assert endpoints(planned) == _calls(job.api)
    assert [call.at_seconds for call in planned] == [0] * len(planned)


def test_a_dry_run_says_when_each_slot_comes_free(job: Job) -> None:
    job.run(Lane.PRIORITY)
    job.clock.sleep(20)
    planned = dry_run.plan(job.db, job.settings, Lane.QUEUE)
    began = job.clock.monotonic()
    job.run(Lane.QUEUE)
    made = [arrival.at_seconds - began for arrival in job.api.log[3:]]
    assert [symbol for call in planned for symbol in call.symbols] == OTHER_SYMBOLS
    # A slot comes free a window after its call's end, which a busy machine delays by seconds.
    assert [call.at_seconds for call in planned] == pytest.approx(made, abs=10)
    first_free = job.api.log[0].at_seconds + 60 - began
    assert planned[2].at_seconds == pytest.approx(first_free, abs=10)


def test_a_dry_run_marks_calls_after_the_runs_end(job: Job) -> None:
    job.run(Lane.PRIORITY)
    planned = dry_run.plan(job.db, job.settings, Lane.QUEUE, max_runtime_seconds=30)
    assert [call.at_seconds for call in planned] == [0, 0, None, None]
    report = job.run(Lane.QUEUE, seconds=30)
    assert report.api_calls_used == 2


def test_a_dry_run_leaves_slots_for_the_next_priority_run(job: Job) -> None:
    job.run(Lane.PRIORITY)
    job.clock.sleep(250)
    planned = dry_run.plan(job.db, job.settings, Lane.QUEUE, max_runtime_seconds=45)
    report = job.run(Lane.QUEUE, seconds=45)
    made = sum(call.at_seconds is not None for call in planned)
    assert made == report.api_calls_used == 2


def test_a_dry_run_of_a_paid_plan_lists_snapshots_and_bars(paid: Job) -> None:
    before = everything(paid.db)
    planned = dry_run.plan(paid.db, paid.settings, Lane.QUEUE)
    assert everything(paid.db) == before
    paid.run(Lane.QUEUE)
    assert sorted(endpoints(planned)) == sorted(_calls(paid.api))
    assert tuple(OTHER_SYMBOLS) in [call.symbols for call in planned]


def test_a_dry_run_of_switched_off_priority_runs_lists_no_call(job: Job) -> None:
    assert job.run(Lane.PRIORITY, limit=1).updated == PRIORITY_SYMBOLS[:1]
    job.settings = replace(
        job.settings, batch=replace(job.settings.batch, priority_assets_enabled=False)
    )
    assert dry_run.plan(job.db, job.settings, Lane.PRIORITY) == ()


def test_a_dry_run_lists_no_more_calls_than_limit_allows(job: Job) -> None:
    planned = dry_run.plan(job.db, job.settings, Lane.PRIORITY, limit=2)
    report = job.run(Lane.PRIORITY, limit=2)
    assert [call.symbols for call in planned] == [(symbol,) for symbol in report.updated]


def test_a_dry_run_lists_no_call_until_tomorrow_for_a_plan_without_today(job: Job) -> None:
    job.serve(COIN, history_days=3)
    job.api.set_faults(["today"])
    job.run()
    job.clock.sleep(300)
    assert dry_run.plan(job.db, job.settings, Lane.QUEUE) == ()


def test_a_dry_run_of_a_mistyped_ticker_lists_the_look_up(job: Job) -> None:
    job.serve(TYPO, history_days=2)
    job.run(seconds=30)
    job.clock.sleep(60)
    planned = dry_run.plan(job.db, job.settings, Lane.QUEUE)
    job.run(seconds=30)
    assert endpoints(planned) == _calls(job.api, 2)
