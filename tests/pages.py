"""A database for the tests of the page, with every kind of trouble, and the page of it."""

from dataclasses import replace

from conftest import asset
from machine import one_bar

from asset_sync import queue
from asset_sync.cli.page import draw
from asset_sync.database import Connection, query, transaction
from asset_sync.model import Asset, Feed, Lane, Level
from asset_sync.ops.report import report_of
from asset_sync.queue import Wanted
from asset_sync.settings import SHIPPED_FILE, Settings, load
from asset_sync.store import runs

EVERY = 300.0

BAD, GONE, FINE = "BADUSD", "GONEUSD", "FINEUSD"
HOSTILE = """<img src=x onerror="alert('1')">&amp;`</script>\x07\u202e"""


def settings(*assets: Asset) -> Settings:
    """Return settings with these assets, or with three: one fails, one is dead, one is fine."""
    chosen = assets or (
        asset(BAD, Level.CRITICAL, position=1),
        asset(GONE, Level.HIGH),
        asset(FINE, Level.LOW, every=3600),
    )
    return replace(load(SHIPPED_FILE, {}), assets=chosen)


def refresh(db: Connection, wanted: Settings) -> None:
    """Leave the database as it is just after runs that refreshed every asset."""
    line = [Wanted(one, Feed.BARS) for one in wanted.assets]
    queue.enqueue(db, line, wanted.queue)
    for lane in Lane:
        run_id = runs.start(db, lane.value)
        with transaction(db) as cursor:
            for one in wanted.assets:
                if (one.level is Level.CRITICAL) == (lane is Lane.PRIORITY):
                    call = runs.Call(Feed.BARS, [one.symbol], "ok", 0.2, 1)
                    runs.record(cursor, run_id, call)
        runs.end(db, run_id, "done", updated=1, failed=0, waited_seconds=0)
    while items := queue.claim(db, line, lease_seconds=60, most=1):
        with transaction(db) as cursor:
            queue.finish(cursor, items)
    for one in wanted.assets:
        one_bar(db, one.symbol, "X:BTCUSD")


def break_two(db: Connection) -> None:
    """Let BAD fail since five hours, and GONE be dead."""
    query(
        db,
        """
        update asset_sync.queue set state = 'waiting', strikes = 4, attempts = 1,
          last_success_at = now() - interval '5 hours', not_before = now() - interval '1 hour',
          last_error = 'The API answered with 500.' where symbol = %s;
        update asset_sync.queue set state = 'dead', strikes = 3,
          last_error = 'The provider knows no ticker X:GONE.' where symbol = %s
        """,
        (BAD, GONE),
    )


def remember(db: Connection, wanted: Settings) -> None:
    """Let a year of each asset be asked: whole weeks, a week with gaps and an empty one."""
    for one in wanted.assets:
        query(
            db,
            """
            insert into asset_sync.ledger (symbol, feed, ticker, tail_from, tail_until)
            values (%(symbol)s, 'bars', %(ticker)s, date_trunc('week', now()) - interval '52 weeks',
              now());
            insert into asset_sync.weeks (symbol, week, bars, empty_slots, asked_at)
            select %(symbol)s, (date_trunc('week', now()) - make_interval(weeks => ago))::date,
              case ago when 30 then 0 when 20 then 1000 else 2016 end,
              case ago when 30 then 2016 when 20 then 1016 else 0 end, now()
            from generate_series(0, 52) as ago
            """,
            {"symbol": one.symbol, "ticker": one.ticker},
        )


def page(db: Connection, wanted: Settings) -> str:
    """Return the page."""
    return draw(report_of(db, wanted), EVERY)
