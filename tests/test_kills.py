"""A run is killed at each step: nothing is lost, nothing is stored twice, the limit is kept.

A process starts a run and kills itself with SIGKILL before or after the n-th call of a function.
Then a normal run starts at once, time passes, and another run finishes the work.
"""

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from itertools import chain, repeat
from pathlib import Path

import pytest
from conftest import ShiftingClock
from machine import Machine, close_at, one_bar, until

from asset_sync import queue
from asset_sync.budget import slots
from asset_sync.database import Connection, query
from asset_sync.demo import replay
from asset_sync.demo.server import StandIn
from asset_sync.model import Lane
from asset_sync.provider.answers import BarsAnswer
from asset_sync.provider.polygon.client import Polygon
from asset_sync.queue import Wanted
from asset_sync.settings import load
from asset_sync.sync import loop
from asset_sync.sync.report import Report

CALLS, PERIOD_SECONDS = 2, 60
CALL_TIMEOUT_SECONDS, LEASE_SECONDS = 30, 60
SYMBOLS = ("BTCUSD", "ETHUSDT", "COIN")

# Crypto markets never close, so these tests pass on weekends too.
SETTINGS = f"""
[rate_limit]
calls = {CALLS}
period_seconds = {PERIOD_SECONDS}
[[secondary_assets]]
symbol = "BTCUSD"
polygon_ticker = "X:BTCUSD"
asset_type = "crypto"
[[secondary_assets]]
symbol = "ETHUSDT"
polygon_ticker = "X:ETHUSDT"
asset_type = "crypto"
[[secondary_assets]]
symbol = "COIN"
polygon_ticker = "X:BTCUSD"
asset_type = "crypto"
priority = "low"
"""

# Runs the real command line, in which one function kills the process.
MINED = """
import importlib, os, signal, sys
from asset_sync import database

function, moment, left = sys.argv[1], sys.argv[2], int(sys.argv[3])

def mined(original):
    def call(*arguments, **named):
        global left
        left -= 1
        last = left == 0
        if last and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            return original(*arguments, **named)
        finally:
            if last:
                os.kill(os.getpid(), signal.SIGKILL)
    return call

if function == "commit":
    class Cursor(database.Cursor):
        def execute(self, sql, parameters=None):
            run = mined(super().execute) if sql == "commit" else super().execute
            return run(sql, parameters)
    session = importlib.import_module("asset_sync.database.session")
    connect = session.connect
    def connect_mined(*arguments, **named):
        db = connect(*arguments, **named)
        db.cursor_factory = Cursor
        return db
    session.connect = connect_mined
else:
    module, _, path = function.partition(":")
    owner = importlib.import_module(module)
    *holders, name = path.split(".")
    for holder in holders:
        owner = getattr(owner, holder)
    setattr(owner, name, mined(getattr(owner, name)))

sys.argv = ["asset-sync", *sys.argv[4:]]
from asset_sync.__main__ import main
main()
"""

STEPS = {
    "enqueue": "asset_sync.queue:enqueue",
    "slot": "asset_sync.budget.slots:take",
    "claim": "asset_sync.queue:claim",
    "request sent": "http.client:HTTPConnection.endheaders",
    "answer begun": "http.client:HTTPConnection.getresponse",
    "answer read": "asset_sync.provider.polygon.client:Polygon.bars",
    "slot released": "asset_sync.budget.slots:release",
    "bars": "asset_sync.store.market:save_bars",
    "item's end": "asset_sync.queue:finish",
    "event": "asset_sync.store.publish:notify",
    "commit": "commit",
    "Redis": "asset_sync.bus:Client.publish",
    "run's end": "asset_sync.store.runs:end",
}


class Scene(Machine):
    """A database, a stand-in on the same clock, and the processes that were started."""

    def __init__(
        self, home: Path, url: str, db: Connection, clock: ShiftingClock, api: StandIn
    ) -> None:
        """Store three assets that were last synced an hour ago."""
        super().__init__(home, url, api)
        self.db, self.clock, self.api = db, clock, api
        self.settings = load(self.file(SETTINGS), self.environ)
        self.environ |= {"REDIS_URL": "redis://127.0.0.1:1/0"}
        for asset in self.settings.assets:
            one_bar(db, asset.symbol, asset.ticker)

    def die(self, step: str, moment: str, number: int = 1) -> None:
        """Run the command line until it kills itself there."""
        # If the window is full, the run ends and does not wait for the next one.
        run = ("sync", "queue", "-q", "--max-runtime", "20")
        process = self.python("-c", MINED, STEPS[step], moment, str(number), *run)
        out, err = process.communicate(timeout=30)
        assert process.returncode == -signal.SIGKILL, (out, err)

    def sync(self) -> Report:
        """Run normally, on a clock that does not wait."""
        report = loop.run(self.db, self.settings, Lane.QUEUE, clock=self.clock)
        assert report.failed == []
        return report

    def items(self) -> list[tuple[object, ...]]:
        return query(
            self.db,
            "select symbol, feed, state, attempts from asset_sync.queue order by symbol, feed",
        )


@pytest.fixture
def api(clock: ShiftingClock) -> Iterator[StandIn]:
    with StandIn(calls=CALLS, period_seconds=PERIOD_SECONDS, monotonic=clock.monotonic) as server:
        yield server


@pytest.fixture
def scene(
    tmp_path: Path, url: str, db: Connection, clock: ShiftingClock, api: StandIn
) -> Iterator[Scene]:
    with Scene(tmp_path, url, db, clock, api) as found:
        yield found


# --- SIGKILL ----------------------------------------------------------------------------------

FIRST, SECOND = 1, 2
DEATHS = [
    *((step, moment, FIRST) for step in STEPS for moment in ("before", "after")),
    # with a call in the window and one asset done
    ("claim", "after", SECOND),
    ("request sent", "after", SECOND),
    ("commit", "before", SECOND),
    ("commit", "after", SECOND),
]


@pytest.mark.parametrize(("step", "moment", "number"), DEATHS)
def test_after_a_kill_at_any_step_the_next_runs_finish_the_work(
    scene: Scene, step: str, moment: str, number: int
) -> None:
    began_ms = int(time.time() * 1000)
    scene.die(step, moment, number)

    scene.sync()  # at once: this run leaves what the killed one holds
    assert _stored_unlike_replayed(scene.db) == 0
    scene.clock.sleep(LEASE_SECONDS + PERIOD_SECONDS + 1)
    scene.sync()

    assert scene.items() == [(symbol, "bars", "idle", 0) for symbol in sorted(SYMBOLS)]
    assert _stored_unlike_replayed(scene.db) == 0
    assert _all_is_fresh(scene.db, began_ms)
    assert (scene.api.refused, scene.api.most_in_a_window() <= CALLS) == (0, True)
    scene.clock.sleep(PERIOD_SECONDS + CALL_TIMEOUT_SECONDS)
    assert slots.budget(scene.db, slots.rate_of(scene.settings)).free == CALLS


def test_a_call_cut_off_by_a_kill_is_repeated_and_both_calls_count(scene: Scene) -> None:
    scene.die("answer read", "after")
    scene.clock.sleep(LEASE_SECONDS + PERIOD_SECONDS + 1)
    scene.sync()
    asked = [arrival.ticker for arrival in scene.api.log]
    assert len(asked) == len(SYMBOLS) + 1
    [(recorded,)] = query(scene.db, "select count(*) from asset_sync.calls")
    assert recorded == len(SYMBOLS)


def test_a_kill_after_the_commit_repeats_no_call(scene: Scene) -> None:
    scene.die("commit", "after")
    scene.sync()
    assert len(scene.api.log) == len(SYMBOLS)


def test_an_item_that_kills_each_of_its_runs_becomes_dead_and_is_reported(scene: Scene) -> None:
    most = scene.settings.queue.max_attempts
    for _ in range(most):
        scene.die("answer read", "after")
        scene.clock.sleep(LEASE_SECONDS + PERIOD_SECONDS + 1)
        # The provider works, so the failures are the item's own.
        query(scene.db, "update asset_sync.limiter set answered_at = clock_timestamp()")
        queue.reclaim(scene.db, scene.settings.queue)
        query(scene.db, "update asset_sync.queue set not_before = now() where state = 'waiting'")
    scene.sync()
    # Each run was killed while it held the first item in line, always the same.
    [(symbol, error)] = query(
        scene.db, "select symbol, last_error from asset_sync.queue where state = 'dead'"
    )
    assert symbol == "BTCUSD"
    assert "was killed" in error


def _stored_unlike_replayed(db: Connection) -> int:
    """Count bars that differ from the replayed ones, are missing or are stored twice."""
    now_ms = int(time.time() * 1000)
    unlike = 0
    for symbol, ticker in _tickers():
        rows = [
            tuple(row)
            for row in query(
                db,
                """
                select (extract(epoch from ts) * 1000)::bigint, open, high, low, close, volume,
                  vwap, trades
                from market_data.ohlcv_5m b join trading.symbols s on s.id = b.ticker_id
                where symbol = %s order by ts
                """,
                (symbol,),
            )
        ]
        replayed = [tuple(bar) for bar in replay.bars(ticker, rows[0][0], rows[-1][0], now_ms)]
        unlike += rows != replayed
    return unlike


def _all_is_fresh(db: Connection, began_ms: int) -> bool:
    """Return whether each asset has the last bar before the start of the test, and a price."""
    fresh = query(
        db,
        """
        select symbol, metadata -> 'last_update' from trading.symbols s
        where (select max(ts) from market_data.ohlcv_5m b where b.ticker_id = s.id)
          >= to_timestamp(%s / 1000.0)
        """,
        (began_ms - began_ms % replay.BAR_MS - replay.BAR_MS,),
    )
    tickers = dict(_tickers())
    priced = [price["last_price"] == close_at(tickers[symbol], price) for symbol, price in fresh]
    return priced == [True] * len(SYMBOLS)


def _tickers() -> list[tuple[str, str]]:
    return list(zip(SYMBOLS, ("X:BTCUSD", "X:ETHUSDT", "X:BTCUSD"), strict=True))


# --- time passes between slot and call ----------------------------------------------------------


def slow_claims(scene: Scene, monkeypatch: pytest.MonkeyPatch, seconds: Iterator[float]) -> None:
    """Make the database slow between the slot and the call."""
    claim = queue.claim

    def claim_slowly(
        db: Connection, line: Sequence[Wanted], *, lease_seconds: float, most: int
    ) -> tuple[queue.Item, ...]:
        items = claim(db, line, lease_seconds=lease_seconds, most=most)
        scene.clock.sleep(next(seconds))
        return items

    monkeypatch.setattr(queue, "claim", claim_slowly)


def times_of_calls(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Record for each call how long it may take."""
    bars, allowed = Polygon.bars, []

    def bars_in_time(api: Polygon, ticker: str, start: datetime, end: datetime) -> BarsAnswer:
        allowed.append(api.call_timeout_seconds)
        return bars(api, ticker, start, end)

    monkeypatch.setattr(Polygon, "bars", bars_in_time)
    return allowed


def test_a_slot_that_is_too_old_before_its_call_is_given_back(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_claims(scene, monkeypatch, chain([CALL_TIMEOUT_SECONDS * 0.6], repeat(0)))
    allowed = times_of_calls(monkeypatch)
    report = scene.sync()
    assert min(allowed) > CALL_TIMEOUT_SECONDS / 2
    # The old slot cost neither a call nor a wait: the third asset's call is the only one.
    assert (report.api_calls_used, len(scene.api.log)) == (len(SYMBOLS), len(SYMBOLS))
    assert report.waited_seconds < PERIOD_SECONDS + 1
    assert scene.items() == [(symbol, "bars", "idle", 0) for symbol in sorted(SYMBOLS)]


def test_a_call_ends_before_its_slot_would_be_free_again(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_claims(scene, monkeypatch, repeat(10))
    allowed = times_of_calls(monkeypatch)
    scene.sync()
    assert len(allowed) == len(SYMBOLS)
    assert all(0 < seconds <= CALL_TIMEOUT_SECONDS - 10 for seconds in allowed)


def test_a_request_is_not_sent_after_its_slots_time(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host was suspended between the slot and the request."""
    bars, sent = Polygon.bars, []
    pauses = chain([CALL_TIMEOUT_SECONDS + 1], repeat(0))

    def bars_late(api: Polygon, ticker: str, start: datetime, end: datetime) -> BarsAnswer:
        scene.clock.sleep(next(pauses))
        sent.append(False)
        answer = bars(api, ticker, start, end)
        sent[-1] = True
        return answer

    monkeypatch.setattr(Polygon, "bars", bars_late)
    report = scene.sync()
    assert sent == [False, *[True] * len(SYMBOLS)]
    assert report.api_calls_used == len(scene.api.log) == len(SYMBOLS)


# --- SIGINT and SIGTERM -----------------------------------------------------------------------

SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)]


@pytest.mark.parametrize(("number", "code"), SIGNALS)
@pytest.mark.parametrize(
    "lock",
    [
        "select from trading.symbols where symbol = 'BTCUSD' for update",
        "lock table market_data.ohlcv_5m in exclusive mode",
        "lock table data_sources.data_sync_status in exclusive mode",
        "select from asset_sync.limiter for update",
    ],
    ids=["price", "bars", "status", "slot"],
)
def test_a_signal_while_a_statement_waits_ends_the_run_and_gives_item_and_slot_back(
    scene: Scene,
    connect: Callable[[], Connection],
    lock: str,
    number: signal.Signals,
    code: int,
) -> None:
    slots.prepare(scene.db, slots.rate_of(scene.settings))
    somebody = connect()
    somebody.cursor().execute(f"begin; {lock}")
    before = query(scene.db, "select count(*) from market_data.ohlcv_5m")
    process = scene.start("sync", "queue", "-q")
    until(lambda: _somebody_waits(scene.db))
    began = time.monotonic()
    process.send_signal(number)
    out, err = process.communicate(timeout=10)
    assert time.monotonic() - began < 2
    assert process.returncode == code
    assert "Traceback" not in out + err
    somebody.cursor().execute("rollback")
    assert {(state, attempts) for _, _, state, attempts in scene.items()} == {("waiting", 0)}
    assert query(scene.db, "select count(token) from asset_sync.slots") == [(0,)]
    assert query(scene.db, "select count(*) from market_data.ohlcv_5m") == before


def _somebody_waits(db: Connection) -> bool:
    waiting = query(
        db,
        """
        select from pg_stat_activity
        where datname = current_database() and wait_event_type = 'Lock'
        """,
    )
    return bool(waiting)


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_while_a_run_waits_until_an_asset_is_due_ends_it(
    scene: Scene, number: signal.Signals, code: int
) -> None:
    file = scene.home / "assets.toml"
    soon = SETTINGS.split("[[secondary_assets]]\n", 2)
    file.write_text(f"{soon[0]}[[secondary_assets]]\nupdate_frequency_seconds = 20\n{soon[1]}")
    process = scene.start("-v", "sync", "queue")
    assert process.stderr is not None
    until(lambda: "next asset to be due" in process.stderr.readline())  # type: ignore[union-attr]
    began = time.monotonic()
    process.send_signal(number)
    process.communicate(timeout=10)
    assert time.monotonic() - began < 2
    assert process.returncode == code
    assert scene.items() == [("BTCUSD", "bars", "idle", 0)]
    assert query(scene.db, "select reason_ended from asset_sync.runs") == [("interrupted",)]
