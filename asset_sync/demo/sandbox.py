"""A demonstration: the embedded PostgreSQL, the stand-in, and a window short enough to watch.

It does not touch the user's settings and data: it uses the shipped assets, and its own database,
which is created again each time.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime

from asset_sync.database import (
    Connection,
    embedded,
    errors_as_sentences,
    migrate,
    query,
    raw_session,
)
from asset_sync.demo import replay
from asset_sync.demo.server import StandIn
from asset_sync.secret import Secret
from asset_sync.settings import SHIPPED_FILE, RateLimit, Settings, load

DATABASE = "asset_sync_demo"
CALLS, WINDOW_SECONDS = 5, 10.0


@contextmanager
def trial(api: StandIn) -> Iterator[tuple[Connection, Settings]]:
    """Open a new, empty database, and the shipped settings pointed to it and to the stand-in."""
    server = embedded.start(embedded.data_directory())
    with errors_as_sentences():
        address = Secret(embedded.create_database(server, DATABASE, anew=True))
    shipped = load(SHIPPED_FILE, {})
    settings = replace(
        shipped,
        provider=replace(shipped.provider, base_url=api.base_url, api_key=Secret(api.key)),
        rate_limit=RateLimit(CALLS, WINDOW_SECONDS),
        conninfo=address,
        history=replace(shipped.history, enabled=False),  # the demo ends when all is fresh
    )
    with raw_session(address) as db:
        migrate(db)
        yield db, settings


def bars_unlike_the_replay(db: Connection) -> tuple[int, int]:
    """Return how many bars are stored, and how many of them differ from those replayed.

    A bar that was replayed within the stored range and is not stored counts as different.
    """
    stored = {
        (ticker, int(at.timestamp() * 1000)): tuple(prices)
        for ticker, at, *prices in query(
            db,
            """
            select q.ticker, bar.ts, bar.open, bar.high, bar.low, bar.close, bar.volume
            from asset_sync.queue q
            join trading.symbols s on s.symbol = q.symbol
            join market_data.ohlcv_5m bar on bar.ticker_id = s.id
            """,
        )
    }
    now_ms = int(datetime.now(UTC).timestamp() * 1000)
    replayed = {}
    for ticker in {ticker for ticker, _ in stored}:
        starts = [start for name, start in stored if name == ticker]
        for bar in replay.bars(ticker, min(starts), max(starts), now_ms):
            replayed[ticker, bar.start_ms] = tuple(bar[1:6])
    different = sum(stored.get(key) != replayed.get(key) for key in stored.keys() | replayed.keys())
    return len(stored), different
